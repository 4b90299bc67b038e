"""Notary v1 metadata (Docker Content Trust), read and verified, for those who leave it.

One repository name (GUN) has four files, ``root``, ``targets``, ``snapshot`` and ``timestamp``, and
one for each delegation, ``targets/NAME``. Their form is older than TUF's 1.0: types have capitals,
hashes are base64, key ids are of another canonical JSON. Verification is numbered:

1. every file is bounded, JSON that can be read in one way only, and of the type that it should be;
2. a key is called what its content says; its kind decides how its signatures are checked;
3. the root is signed by keys that the caller trusts, whose certificates are for this name and
   valid, by enough of its own, and by those of the root before it where that is given;
4. every role is signed by enough of the keys that the role above names, each counted once;
5. timestamp leads to snapshot, and snapshot to root and targets, by length and sha256;
6. nothing is older than what was seen, and nothing has expired.

A delegation binds the tags that its paths allow; ``targets/releases`` is asked before ``targets``,
as Docker's client does; other delegations bind nothing on their own.

Not for: fetching it, writing it, or what becomes of the digests (``client`` pins them).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key
from cryptography.x509.oid import NameOID

from tare.errors import DeniedError, InvalidError, TareError
from tare.model import strict_json
from tare.model.digest import Digest
from tare.model.strict_json import Fields, Json
from tare.trust.keys import PublicKey

TIMESTAMP_MAX: Final = 1 << 20
FILE_MAX: Final = 16 << 20
RELEASES: Final = "targets/releases"
_KEYS_MAX: Final = 100
_SIGNATURES_MAX: Final = 100
_ROLES_MAX: Final = 200
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_ROLE: Final = re.compile(r"targets/[-A-Za-z0-9_.]{1,100}")
_TIME: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d{1,9})?(Z|[+-]\d\d:\d\d)")
_METHODS: Final = {
    "ecdsa": ("ecdsa",),
    "ed25519": ("eddsa",),
    "rsa": ("rsapss", "rsapkcs1v15"),
}


@dataclass(frozen=True, slots=True)
class Tag:
    """What a tag was signed to be, and by which role."""

    digest: Digest
    size: int
    role: str


@dataclass(frozen=True, slots=True)
class Published:
    """What the metadata of one name says, verified."""

    gun: str
    tags: Mapping[str, Tag]
    roots: tuple[str, ...]
    """Ids of the keys that the root was signed by: what to compare, and to trust next time."""
    versions: Mapping[str, int]
    expires: int
    """When the first of its files expires, in seconds since 1970."""


@dataclass(frozen=True, slots=True)
class _Key:
    kind: str
    key: PublicKey
    certificate: x509.Certificate | None


@dataclass(frozen=True, slots=True)
class _Role:
    keyids: tuple[str, ...]
    threshold: int


@dataclass(frozen=True, slots=True)
class _File:
    """A file that was read, not verified."""

    what: str
    raw: bytes
    signed: Fields
    content: bytes
    signatures: tuple[tuple[str, str, bytes], ...]
    version: int
    expires: int


def verified(
    files: Mapping[str, bytes],
    gun: str,
    *,
    roots: Collection[str],
    now: int,
    seen: Mapping[str, int] | None = None,
    previous: bytes = b"",
) -> Published:
    """What *files* (by role) say of the tags of *gun*; DeniedError where they prove nothing.

    *roots* are ids of root keys that are trusted. None at all takes the root as it is, so the
    caller has to have asked somebody. *previous* is the root that was trusted before.
    """
    try:
        return _Reader(files, gun, now, seen or {}).published(frozenset(roots), previous)
    except InvalidError as error:
        raise DeniedError(
            f"the Notary metadata of {gun[:200]!a} is not accepted: {error}"
        ) from None


def canonical(value: Json) -> bytes:
    """OLPC's canonical JSON: sorted keys, no spaces, only quotes and backslashes escaped."""
    match value:
        case None:
            return b"null"
        case bool():
            return b"true" if value else b"false"
        case int():
            return str(value).encode()
        case str():
            return b'"' + value.replace("\\", "\\\\").replace('"', '\\"').encode() + b'"'
        case list():
            return b"[" + b",".join(canonical(each) for each in value) + b"]"
        case dict():
            pairs = (canonical(key) + b":" + canonical(value[key]) for key in sorted(value))
            return b"{" + b",".join(pairs) + b"}"
        case _:
            raise InvalidError("a number with a fraction cannot be signed")


class _Reader:
    """One verification."""

    def __init__(
        self, files: Mapping[str, bytes], gun: str, now: int, seen: Mapping[str, int]
    ) -> None:
        self._files = files
        self._gun = gun
        self._now = now
        self._seen = seen
        self._read: dict[str, _File] = {}

    def published(self, roots: frozenset[str], previous: bytes) -> Published:
        root, keys, roles, signers = self._root(roots, previous)
        timestamp = self._file("timestamp", "Timestamp", keys, roles["timestamp"])
        snapshot = self._file("snapshot", "Snapshot", keys, roles["snapshot"])
        self._leads(timestamp, "snapshot", snapshot)
        self._leads(snapshot, "root", root)
        targets = self._file("targets", "Targets", keys, roles["targets"])
        self._leads(snapshot, "targets", targets)
        tags = self._tags(targets, "targets", ("",))
        tags |= self._released(targets, snapshot)
        return Published(
            self._gun,
            dict(sorted(tags.items())),
            signers,
            {role: one.version for role, one in self._read.items()},
            min(one.expires for one in self._read.values()),
        )

    # --- the root -----------------------------------------------------------------------------

    def _root(
        self, trusted: frozenset[str], previous: bytes
    ) -> tuple[_File, dict[str, _Key], dict[str, _Role], tuple[str, ...]]:
        root = self._parsed("root", "Root", self._files.get("root", b""))
        keys, roles = _keys(root.signed), _top_roles(root.signed)
        own = {keyid: keys[keyid] for keyid in roles["root"].keyids if keyid in keys}
        usable = {keyid: key for keyid, key in own.items() if self._valid_for_gun(key)}
        if own and not usable:
            raise InvalidError("root: no certificate of its keys is for this name and valid")
        signers = self._signed(root, usable, roles["root"])
        if trusted and not trusted & set(signers):
            raise InvalidError(
                f"root: it is signed by {', '.join(each[:12] for each in signers)},"
                " and none of these keys is trusted"
            )
        if previous:
            before = self._parsed("root", "Root", previous)
            old_keys, old_roles = _keys(before.signed), _top_roles(before.signed)
            self._signed(root, old_keys, old_roles["root"])
            if root.version < before.version:
                raise InvalidError(f"root: version {root.version} is older than {before.version}")
        self._current(root, "root")
        return root, keys, roles, signers

    def _valid_for_gun(self, key: _Key) -> bool:
        if key.certificate is None:
            return True
        names = key.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        if len(names) != 1:
            return False
        name = str(names[0].value)
        fits = self._gun.startswith(name[:-1]) if name.endswith("*") else name == self._gun
        begins = key.certificate.not_valid_before_utc.timestamp()
        ends = key.certificate.not_valid_after_utc.timestamp()
        return fits and len(name) > 1 and begins <= self._now < ends

    # --- the others ---------------------------------------------------------------------------

    def _file(self, role: str, kind: str, keys: Mapping[str, _Key], rule: _Role) -> _File:
        if role not in self._files:
            raise InvalidError(f"{role} is missing")
        found = self._parsed(role, kind, self._files[role])
        self._signed(found, keys, rule)
        self._current(found, role)
        return found

    def _current(self, file: _File, role: str) -> None:
        if file.version < self._seen.get(role, 0):
            raise InvalidError(
                f"{role}: version {file.version} is older than {self._seen[role]}, which was seen"
            )
        if self._now >= file.expires:
            day = datetime.fromtimestamp(file.expires, UTC).strftime("%Y-%m-%d")
            raise InvalidError(f"{role} expired on {day}")
        self._read[role] = file

    def _leads(self, above: _File, role: str, below: _File) -> None:
        entry = above.signed.fields("meta", required=True).fields(role, required=True)
        length = entry.integer("length", required=True)
        if length != len(below.raw) or _sha256(entry) != hashlib.sha256(below.raw).digest():
            raise InvalidError(f"{above.what}: it is about another {role}")

    def _released(self, targets: _File, snapshot: _File) -> dict[str, Tag]:
        """What ``targets/releases`` says: it goes before ``targets``."""
        delegations = targets.signed.fields("delegations")
        for entry in delegations.each("roles", limit=_ROLES_MAX):
            name = entry.text("name", required=True)
            if not _ROLE.fullmatch(name):
                raise InvalidError(f"targets: {name[:80]!a} is no name of a delegation")
            if name != RELEASES:
                continue
            file = self._file(name, "Targets", _keys(delegations), _role(entry))
            self._leads(snapshot, name, file)
            return self._tags(file, name, entry.texts("paths") or ())
        return {}

    @staticmethod
    def _tags(file: _File, role: str, prefixes: tuple[str, ...]) -> dict[str, Tag]:
        found = {}
        targets = file.signed.fields("targets")
        for tag in file.signed.keys("targets"):
            if not _TAG.fullmatch(tag) or not tag.startswith(prefixes):
                continue
            entry = targets.fields(tag, required=True)
            digest = Digest(_sha256(entry).hex())
            found[tag] = Tag(digest, entry.integer("length", required=True), role)
        return found

    # --- reading and signatures ---------------------------------------------------------------

    @staticmethod
    def _parsed(role: str, kind: str, raw: bytes) -> _File:
        limit = TIMESTAMP_MAX if role == "timestamp" else FILE_MAX
        value = strict_json.decode(raw, role, limit=limit)
        top = Fields(value, role)
        signed = top.fields("signed", required=True)
        if signed.text("_type", required=True) != kind:
            signed.refuse("_type", f"is not {kind}")
        signatures = tuple(
            (
                one.text("keyid", required=True),
                one.text("method", required=True),
                _base64(one.text("sig", required=True), f"{role}: a signature"),
            )
            for one in top.each("signatures", limit=_SIGNATURES_MAX, required=True)
        )
        return _File(
            role,
            raw,
            signed,
            canonical(value["signed"]),
            signatures,
            signed.integer("version", required=True),
            _seconds(signed),
        )

    @staticmethod
    def _signed(file: _File, keys: Mapping[str, _Key], rule: _Role) -> tuple[str, ...]:
        """The keys that count: InvalidError when they are fewer than *rule* asks for."""
        found: dict[bytes, str] = {}
        for keyid, method, signature in file.signatures:
            key = keys.get(keyid)
            if key is None or keyid not in rule.keyids or method not in _METHODS[key.kind]:
                continue
            if _verifies(key, signature, file.content):
                found.setdefault(key.key.der, keyid)
        if len(found) < rule.threshold:
            raise InvalidError(
                f"{file.what}: {len(found)} of the keys that may sign it did, and"
                f" {rule.threshold} must"
            )
        return tuple(found.values())


def _verifies(key: _Key, signature: bytes, content: bytes) -> bool:
    if key.kind == "ecdsa":
        if len(signature) != 64:
            return False  # r and s as they are, not DER
        r, s = (int.from_bytes(part) for part in (signature[:32], signature[32:]))
        signature = encode_dss_signature(r, s)
    return key.key.verifies(signature, content)


def _keys(signed: Fields) -> dict[str, _Key]:
    found = {}
    listed = signed.fields("keys")
    names = signed.keys("keys")
    if len(names) > _KEYS_MAX:
        signed.refuse("keys", f"has {len(names)} entries; at most {_KEYS_MAX} are possible")
    for keyid in names:
        entry = listed.fields(keyid, required=True)
        kind = entry.text("keytype", required=True)
        public = entry.fields("keyval", required=True).text("public", required=True)
        named = canonical({"keytype": kind, "keyval": {"private": None, "public": public}})
        if hashlib.sha256(named).hexdigest() != keyid:
            raise InvalidError(f"the key {keyid[:80]!a} is another than its id says")
        key = _key(kind, _base64(public, "a public key"))
        if key is not None:
            found[keyid] = key
    return found


def _key(kind: str, raw: bytes) -> _Key | None:
    """A key of one of Notary's kinds; None for a kind that is not known, which signs nothing."""
    base, _, form = kind.partition("-")
    if base not in _METHODS or form not in ("", "x509"):
        return None
    try:
        certificate = x509.load_pem_x509_certificate(raw) if form else None
        if certificate is not None:
            key = PublicKey.of(certificate.public_key())
        elif base == "ed25519":
            key = PublicKey.of(ed25519.Ed25519PublicKey.from_public_bytes(raw))
        else:
            key = PublicKey.of(load_der_public_key(raw))
    except (ValueError, TareError) as error:
        raise InvalidError(f"a key cannot be read: {error}") from None
    fits = {"ecdsa": "ECDSA P-256", "ed25519": "Ed25519"}.get(base, "RSA")
    if not key.kind.startswith(fits) or (
        isinstance(key.key, ec.EllipticCurvePublicKey) != (base == "ecdsa")
    ):
        raise InvalidError(f"a key is {key.kind}, and is said to be {kind[:40]!a}")
    return _Key(base, key, certificate)


def _top_roles(signed: Fields) -> dict[str, _Role]:
    roles = signed.fields("roles", required=True)
    return {
        name: _role(roles.fields(name, required=True))
        for name in ("root", "targets", "snapshot", "timestamp")
    }


def _role(entry: Fields) -> _Role:
    threshold = entry.integer("threshold", required=True)
    if threshold < 1:
        entry.refuse("threshold", "must be at least 1")
    return _Role(entry.texts("keyids") or (), threshold)


def _sha256(entry: Fields) -> bytes:
    digest = _base64(entry.fields("hashes", required=True).text("sha256", required=True), "a hash")
    if len(digest) != 32:
        entry.refuse("hashes", "has no sha256 of 32 bytes")
    return digest


def _base64(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidError(f"{what} is not base64") from None


def _seconds(signed: Fields) -> int:
    text = signed.text("expires", required=True)
    match = _TIME.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        return int(datetime.fromisoformat(match[1] + match[2].replace("Z", "+00:00")).timestamp())
    except (ValueError, OverflowError):
        signed.refuse("expires", f"is no time: {json.dumps(text[:40])}")
