"""What this engine was told to trust: keys with their scopes and times, pins, revocations.

A value, and its form on disk. A key counts for the names in its scopes, while it is valid. A pin
says which digest a name has, so its image needs no signature and another image is refused. What is
revoked does not count, whoever signed it.

Not for: where it is kept (``engine``), other tools' policies (``policy``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from tare.errors import InvalidError, MissingError
from tare.model import strict_json
from tare.model.digest import Digest
from tare.model.reference import Reference
from tare.model.strict_json import Fields, Json
from tare.trust.identity import check_scope, within
from tare.trust.keys import PublicKey

LIMIT: Final = 4 << 20
_FORMAT: Final = 1
_KEYS_MAX: Final = 1000
_PINS_MAX: Final = 10_000


@dataclass(frozen=True, slots=True)
class Trusted:
    """A key that may sign. Times are seconds since 1970; 0 says nothing.

    ``nameless`` takes bundles that name no repository, as cosign 3 writes them. ``vouches`` marks
    the key of somebody here, who answers for what others published.
    """

    key: PublicKey
    name: str
    scopes: tuple[str, ...]
    not_before: int = 0
    not_after: int = 0
    revoked: int = 0
    nameless: bool = False
    vouches: bool = False

    def why_not(self, now: int) -> str:
        """Why the key does not count now; "" when it does."""
        if self.revoked:
            return "was revoked"
        if now < self.not_before:
            return "is not valid yet"
        if self.not_after and now >= self.not_after:
            return "has expired"
        return ""

    def covers(self, name: Reference) -> bool:
        """Whether it may sign what is called *name*."""
        return any(within(scope, name) for scope in self.scopes)


@dataclass(frozen=True, slots=True)
class Ring:
    """All that the engine was told."""

    keys: tuple[Trusted, ...] = ()
    pins: Mapping[str, Digest] = field(default_factory=dict)
    """Full names with a tag, and the digest that each must have."""
    revoked: frozenset[Digest] = frozenset()

    @property
    def digest(self) -> str:
        """What names this content."""
        return hashlib.sha256(strict_json.encode(self.encode())).hexdigest()

    def known(self, key: PublicKey) -> Trusted | None:
        """The entry of a key."""
        return next((one for one in self.keys if one.key == key), None)

    def find(self, text: str) -> Trusted:
        """The one key of this name or beginning of an id; MissingError, InvalidError."""
        named = [one for one in self.keys if one.name == text]
        found = named or [
            one for one in self.keys if len(text) >= 4 and one.key.id.startswith(text)
        ]
        if not found:
            raise MissingError(
                f"No such key: {text[:80]}", hint="tare trust key ls lists those that are trusted"
            )
        if len(found) > 1:
            raise InvalidError(f"{text[:80]} means {len(found)} keys", hint="type more of the id")
        return found[0]

    def with_key(self, entry: Trusted) -> Ring:
        """The same with *entry*, in the place of what was known of that key."""
        if not entry.scopes:
            raise InvalidError("a key needs a scope: whose images may it sign?")
        others = tuple(one for one in self.keys if one.key != entry.key)
        if any(one.name == entry.name for one in others):
            raise InvalidError(f"another key is called {entry.name[:80]!r}")
        return replace(self, keys=(*others, entry))

    def without_key(self, entry: Trusted) -> Ring:
        """The same without *entry*."""
        return replace(self, keys=tuple(one for one in self.keys if one.key != entry.key))

    def with_pin(self, name: Reference, digest: Digest | None) -> Ring:
        """The same with *name* at *digest*, or free again."""
        if name.tag is None or name.digest is not None:
            raise InvalidError(f"only a name with a tag can be pinned: {name.familiar}")
        pins = {key: value for key, value in self.pins.items() if key != str(name)}
        if digest is not None:
            pins[str(name)] = digest
        return replace(self, pins=pins)

    def encode(self) -> dict[str, Json]:
        """As JSON."""
        keys: list[Json] = [
            {
                "name": one.name,
                "pem": one.key.pem().decode("ascii"),
                "scopes": list(one.scopes),
                "notBefore": one.not_before,
                "notAfter": one.not_after,
                "revoked": one.revoked,
                "nameless": one.nameless,
                "vouches": one.vouches,
            }
            for one in self.keys
        ]
        pins: dict[str, Json] = {name: str(digest) for name, digest in sorted(self.pins.items())}
        revoked: list[Json] = [str(digest) for digest in sorted(self.revoked)]
        return {"format": _FORMAT, "keys": keys, "pins": pins, "revoked": revoked}

    @classmethod
    def decode(cls, raw: bytes, what: str) -> Ring:
        """Read what `encode` made; InvalidError for anything else."""
        top = Fields(strict_json.decode(raw, what, limit=LIMIT), what)
        if top.integer("format") != _FORMAT:
            raise InvalidError(f"{what} was written by another version of tare")
        pins = {}
        for name, digest in top.mapping("pins").items():
            pins[str(Reference.parse(name))] = Digest.parse(digest)
        if len(pins) > _PINS_MAX:
            raise InvalidError(f"{what} has more than {_PINS_MAX} pins")
        revoked = frozenset(Digest.parse(text) for text in top.texts("revoked") or ())
        keys = tuple(_trusted(one) for one in top.each("keys", limit=_KEYS_MAX))
        return cls(keys, pins, revoked)


def _trusted(fields: Fields) -> Trusted:
    return Trusted(
        key=PublicKey.parse(fields.text("pem", required=True).encode()),
        name=fields.text("name", required=True),
        scopes=tuple(check_scope(scope) for scope in fields.texts("scopes") or ()),
        not_before=fields.integer("notBefore"),
        not_after=fields.integer("notAfter"),
        revoked=fields.integer("revoked"),
        nameless=fields.boolean("nameless"),
        vouches=fields.boolean("vouches"),
    )
