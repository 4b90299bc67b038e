"""What may be taken from where: containers' policy.json.

The file is read as containers-policy.json(5) says, so that podman, skopeo and tare can share it:
the most specific scope wins, and every requirement of its list must hold. What tare cannot check
(GPG, Fulcio, PKI) is a requirement that is never met: nothing is accepted because it was not
understood. Whatever is misspelled is refused by file and line; tare's own settings are elsewhere
(``ring``), so that the file stays valid for the others.

Not for: reading files (``engine``), checking signatures (``verdict``).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NoReturn

from tare.errors import InvalidError, TareError
from tare.model import strict_json
from tare.model.reference import Reference
from tare.model.strict_json import Json
from tare.trust.identity import Identity, Match, check_scope, scopes_of
from tare.trust.keys import PublicKey, decoded

LIMIT: Final = 1 << 20
_KEY_FIELDS: Final = ("keyPath", "keyPaths", "keyData", "keyDatas")
_OTHER_ROOTS: Final = ("fulcio", "pki", "rekorPublicKeyPath", "rekorPublicKeyPaths",
                       "rekorPublicKeyData", "rekorPublicKeyDatas")  # fmt: skip
ReadKey = Callable[[str], bytes]


class Kind(StrEnum):
    """What a requirement asks."""

    ACCEPT = "insecureAcceptAnything"
    REJECT = "reject"
    SIGSTORE = "sigstoreSigned"
    UNMET = "unmet"


@dataclass(frozen=True, slots=True)
class Requirement:
    """One entry of a scope's list. ``why`` says what makes an ``unmet`` one so."""

    kind: Kind
    keys: tuple[PublicKey, ...] = ()
    identity: Identity = field(default_factory=Identity)
    why: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """What holds in one scope ("" is the default), and where that is written."""

    scope: str
    requirements: tuple[Requirement, ...]
    where: str

    def __str__(self) -> str:
        scope = f"the scope {self.scope}" if self.scope else "the default"
        return f"{scope} ({self.where})"


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy file, read. ``digest`` names this content with these keys."""

    digest: str
    default: Rule | None = None
    scopes: Mapping[str, Rule] = field(default_factory=dict)

    def explicit(self, name: Reference) -> Rule | None:
        """The rule of the most specific scope that *name* lies in, if one was written for it."""
        for scope in scopes_of(name):
            rule = self.scopes.get(scope)
            if rule is not None:
                return rule
        return None

    def fallback(self) -> Rule | None:
        """The rule for whatever no scope is written for."""
        return self.scopes.get("") or self.default


NOTHING: Final = Policy(digest=hashlib.sha256(b"").hexdigest())


def parse(raw: bytes, path: str, read_key: ReadKey) -> Policy:
    """Read policy.json; InvalidError names *path*, the line, and what is wrong there."""
    return _Reader(raw, path, read_key).policy()


class _Reader:
    """One file as it is read; knows where in it things stand."""

    def __init__(self, raw: bytes, path: str, read_key: ReadKey) -> None:
        self._raw = raw
        self._path = path
        self._read_key = read_key
        self._keys = hashlib.sha256(raw)

    def policy(self) -> Policy:
        try:
            top = strict_json.decode(self._raw, self._path, limit=LIMIT)
        except InvalidError as error:
            raise InvalidError(str(error), hint=self._hint()) from None
        self._only(top, (), "default", "transports")
        if "default" not in top:
            raise InvalidError(f"{self._path}: line 1: default is missing", hint=self._hint())
        default = self._rule(top["default"], ("default",), "")
        scopes: dict[str, Rule] = {}
        transports = self._object(top.get("transports", {}), ("transports",))
        for transport, listed in transports.items():
            at = ("transports", transport)
            for scope, value in self._object(listed, at).items():
                # Other transports are read too, so that a typo in them shows, but name files.
                rule = self._rule(value, (*at, scope), scope)
                if transport == "docker":
                    self._check_scope(scope, (*at, scope))
                    scopes[scope] = rule
        return Policy(self._keys.hexdigest(), default, scopes)

    def _check_scope(self, scope: str, at: tuple[str, ...]) -> None:
        if not scope:
            return
        try:
            check_scope(scope)
            if scope == "*":
                self._refuse(at, "is no scope here: the default is written as an empty one")
        except InvalidError as error:
            if error.hint:
                raise
            self._refuse(at, str(error))

    def _rule(self, value: Json, at: tuple[str, ...], scope: str) -> Rule:
        if not isinstance(value, list) or not value:
            self._refuse(at, "must be a list with at least one requirement")
        found = tuple(self._requirement(self._object(one, at), at) for one in value)
        return Rule(scope, found, f"{self._path}: line {self._line(at)}")

    def _requirement(self, value: dict[str, Json], at: tuple[str, ...]) -> Requirement:
        kind = value.get("type")
        if kind in (Kind.ACCEPT, Kind.REJECT):
            self._only(value, at, "type")
            return Requirement(Kind(str(kind)))
        if kind == "signedBy":
            self._only(value, at, "type", "keyType", "signedIdentity", *_KEY_FIELDS)
            return Requirement(
                Kind.UNMET, why="it asks for a GPG signature (signedBy), which tare does not check"
            )
        if kind != Kind.SIGSTORE:
            self._refuse((*at, "type"), f"is {kind!a}: that is no type of requirement")
        return self._sigstore(value, at)

    def _sigstore(self, value: dict[str, Json], at: tuple[str, ...]) -> Requirement:
        self._only(value, at, "type", "signedIdentity", *_KEY_FIELDS, *_OTHER_ROOTS)
        identity = self._identity(value.get("signedIdentity"), (*at, "signedIdentity"))
        other = [name for name in _OTHER_ROOTS if name in value]
        if other:
            return Requirement(
                Kind.UNMET, why=f"it asks for {', '.join(other)}, which tare does not check"
            )
        given = [name for name in _KEY_FIELDS if name in value]
        if len(given) != 1:
            self._refuse(at, f"must have one of {', '.join(_KEY_FIELDS)}, not {len(given)}")
        [name] = given
        listed = value[name]
        texts = listed if name.endswith("s") else [listed]
        if not isinstance(texts, list) or not texts:
            self._refuse((*at, name), "must be a list of at least one")
        keys = tuple(self._key(text, name, (*at, name)) for text in texts)
        return Requirement(Kind.SIGSTORE, keys, identity)

    def _key(self, text: Json, field_: str, at: tuple[str, ...]) -> PublicKey:
        if not isinstance(text, str) or not text:
            self._refuse(at, "must be a string, not empty")
        try:
            inline = field_.startswith("keyData")
            raw = decoded(text, "it") if inline else self._read_key(text)
            key = PublicKey.parse(raw, "the key" if inline else text)
        except TareError as error:
            self._refuse(at, f"cannot be used: {error}")
        except OSError as error:
            self._refuse(at, f"cannot be read: {text[:200]}: {error.strerror or error}")
        self._keys.update(key.der)
        return key

    def _identity(self, value: Json, at: tuple[str, ...]) -> Identity:
        if value is None:
            return Identity()
        fields = self._object(value, at)
        try:
            match = Match(str(fields.get("type")))
        except ValueError:
            self._refuse((*at, "type"), f"is {fields.get('type')!a}: that is no comparison")
        more = {
            Match.EXACT_REFERENCE: ("dockerReference",),
            Match.EXACT_REPOSITORY: ("dockerRepository",),
            Match.REMAP: ("prefix", "signedPrefix"),
        }.get(match, ())
        self._only(fields, at, "type", *more)
        texts = [fields.get(name) for name in more]
        for name, text in zip(more, texts, strict=True):
            if not isinstance(text, str) or not text:
                self._refuse((*at, name), "must be a string, not empty")
        values = [str(text) for text in texts]
        if match is Match.REMAP:
            return Identity(match, prefix=values[0], signed_prefix=values[1])
        if not values:
            return Identity(match)
        try:
            return Identity(match, name=Reference.parse(values[0]))
        except InvalidError as error:
            self._refuse((*at, more[0]), str(error))

    # --- refusing -----------------------------------------------------------------------------

    def _object(self, value: Json, at: tuple[str, ...]) -> dict[str, Json]:
        if not isinstance(value, dict):
            self._refuse(at, "must be an object")
        return value

    def _only(self, value: Mapping[str, Json], at: tuple[str, ...], *known: str) -> None:
        for key in value:
            if key not in known:
                near = _nearest(key, known)
                meant = f"; {near!r} is meant?" if near else f"; there are: {', '.join(known)}"
                self._refuse((*at, key), f"is not known here{meant}")

    def _refuse(self, at: tuple[str, ...], why: str) -> NoReturn:
        shown = ".".join(step if step.isprintable() else ascii(step) for step in at)
        raise InvalidError(
            f"{self._path}: line {self._line(at)}: {shown[:300]} {why}", hint=self._hint()
        )

    def _hint(self) -> str:
        return f"Until {self._path} is corrected, nothing that needs a verdict is accepted."

    def _line(self, at: tuple[str, ...]) -> int:
        """The line where the keys of *at*, one inside the other, lead to."""
        text = self._raw.decode("utf-8", "replace")
        position = 0
        for step in at:
            found = re.compile(rf'"{re.escape(step)}"\s*:').search(text, position)
            if found is None:
                break
            position = found.end()
        return text.count("\n", 0, position) + 1


def _nearest(word: str, known: tuple[str, ...]) -> str:
    lowered = {name.lower(): name for name in known}
    if word.lower() in lowered:
        return lowered[word.lower()]
    for name in known:
        longer, shorter = sorted((name, word), key=len, reverse=True)
        if len(longer) - len(shorter) <= 1 and sum(a != b for a, b in zip(name, word)) <= 2:  # noqa: B905  # their lengths differ by one
            return name
        if any(longer[:i] + longer[i + 1 :] == shorter for i in range(len(longer))):
            return name
    return ""
