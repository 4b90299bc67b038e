"""TUF metadata made: a publisher's keys, targets, delegations and rotations. Pure.

A value of files by their names, as they lie in a directory or a registry, and verbs that answer the
files that are new. Snapshots are consistent (``N.targets.json``), so that a reader in the middle of
a change sees one release or the other. Not for: keys on disk, or who reads it (``tuf``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Role,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization import DeserializationError

from tare.errors import InvalidError
from tare.model.digest import Digest
from tare.trust.keys import PrivateKey

ROLES: Final = ("root", "targets", "snapshot", "timestamp")
_LASTS: Final = {
    "root": timedelta(days=365),
    "targets": timedelta(days=90),
    "snapshot": timedelta(days=7),
    "timestamp": timedelta(days=1),
}
Keys = Mapping[str, Sequence[PrivateKey]]


@dataclass
class Author:
    """One publisher's metadata as it is made; ``files`` is all of it, by name."""

    keys: dict[str, list[PrivateKey]]
    root: Metadata[Root]
    targets: dict[str, Metadata[Targets]]
    snapshot: Metadata[Snapshot]
    timestamp: Metadata[Timestamp]
    files: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def create(cls, keys: Keys, now: int, *, thresholds: Mapping[str, int] | None = None) -> Author:
        """New metadata with the keys of each of `ROLES`; InvalidError when there are too few."""
        given = {role: list(keys.get(role, ())) for role in ROLES}
        wanted = thresholds or {}
        for role, listed in given.items():
            if len(listed) < max(wanted.get(role, 1), 1):
                raise InvalidError(f"the role {role} has {len(listed)} keys: too few")
        moment = datetime.fromtimestamp(now, UTC)
        root = Root(
            version=1,
            expires=moment + _LASTS["root"],
            consistent_snapshot=True,
            roles={role: Role([], wanted.get(role, 1)) for role in ROLES},
        )
        for role, listed in given.items():
            for key in listed:
                root.add_key(_public(key), role)
        made = cls(
            given,
            Metadata(root),
            {"targets": Metadata(Targets(version=1, expires=moment))},
            Metadata(Snapshot(version=1, expires=moment)),
            Metadata(Timestamp(version=1, expires=moment)),
        )
        made._put(made.root, given["root"], "1.root.json")
        made.publish({}, now)
        return made

    @classmethod
    def load(cls, files: Mapping[str, bytes], keys: Sequence[PrivateKey]) -> Author:
        """The author of *files*, with those of *keys* that its roles know; InvalidError."""
        try:
            newest = max(int(name.split(".")[0]) for name in files if name.endswith(".root.json"))
            root: Metadata[Root] = Metadata.from_bytes(files[f"{newest}.root.json"])
            timestamp: Metadata[Timestamp] = Metadata.from_bytes(files["timestamp.json"])
            version = timestamp.signed.snapshot_meta.version
            snapshot: Metadata[Snapshot] = Metadata.from_bytes(files[f"{version}.snapshot.json"])
            targets: dict[str, Metadata[Targets]] = {
                name.removesuffix(".json"): Metadata.from_bytes(files[f"{meta.version}.{name}"])
                for name, meta in snapshot.signed.meta.items()
            }
        except (ValueError, KeyError, RepositoryError, DeserializationError) as error:
            raise InvalidError(f"the publisher's metadata cannot be read: {error}") from error
        known = {_public(key).keyid: key for key in keys}
        wanted = {role: root.signed.roles[role].keyids for role in ROLES}
        below = targets["targets"].signed.delegations
        if below is not None and below.roles is not None:
            wanted |= {name: role.keyids for name, role in below.roles.items()}
        own = {role: [known[i] for i in ids if i in known] for role, ids in wanted.items()}
        return cls(own, root, targets, snapshot, timestamp, dict(files))

    @property
    def current(self) -> dict[str, bytes]:
        """What a reader needs: every root, and the rest as it is now."""
        names = {"timestamp.json", f"{self.snapshot.signed.version}.snapshot.json"}
        names |= {f"{own.signed.version}.{role}.json" for role, own in self.targets.items()}
        roots = {name for name in self.files if name.endswith(".root.json")}
        return {name: self.files[name] for name in sorted(names | roots)}

    def publish(
        self, targets: Mapping[str, tuple[Digest, int] | None], now: int, *, role: str = "targets"
    ) -> None:
        """Say what names are (None: nothing any more), in *role*, and sign all that follows."""
        own = self._role(role).signed
        for name, found in targets.items():
            if found is None:
                own.targets.pop(name, None)
            else:
                digest, length = found
                own.targets[name] = TargetFile(length, {"sha256": digest.hex}, name)
        self._release({role}, now)

    def delegate(
        self, role: str, keys: Sequence[PrivateKey], paths: Sequence[str], now: int
    ) -> None:
        """Let *keys* say what the names that match *paths* are."""
        if role in ROLES or "/" in role or not role.isprintable() or role.startswith("."):
            raise InvalidError(f"{role[:80]!a} cannot be the name of a role")
        own = self.targets["targets"].signed
        if own.delegations is None:
            own.delegations = Delegations({}, {})
        assert own.delegations.roles is not None
        own.delegations.roles[role] = DelegatedRole(role, [], 1, True, paths=list(paths))
        for key in keys:
            own.add_key(_public(key), role)
        self.keys[role] = list(keys)
        moment = datetime.fromtimestamp(now, UTC)
        self.targets.setdefault(role, Metadata(Targets(version=1, expires=moment)))
        self._release({"targets", role}, now)

    def rotate(self, role: str, keys: Sequence[PrivateKey], now: int) -> None:
        """Give *role* other keys: the next root, signed by the old root's keys and the new."""
        if role not in ROLES or not keys:
            raise InvalidError(f"{role[:40]!a} cannot be rotated, or there are no new keys")
        root = self.root.signed
        if len(keys) < root.roles[role].threshold:
            raise InvalidError(f"{role} needs {root.roles[role].threshold} keys")
        signers = list(self.keys["root"])
        for old in self.keys[role]:
            root.revoke_key(_public(old).keyid, role)
        for key in keys:
            root.add_key(_public(key), role)
        self.keys[role] = list(keys)
        root.version += 1
        root.expires = datetime.fromtimestamp(now, UTC) + _LASTS["root"]
        if role == "root":
            signers += keys
        self._put(self.root, signers, f"{root.version}.root.json")
        self._release(set(self.targets) if role == "targets" else set(), now)

    def _role(self, role: str) -> Metadata[Targets]:
        if role not in self.targets:
            raise InvalidError(f"there is no role {role[:80]!a}")
        return self.targets[role]

    def _release(self, roles: set[str], now: int) -> None:
        """Sign those targets anew, then the snapshot of all, then the timestamp."""
        moment = datetime.fromtimestamp(now, UTC)
        for role in roles:
            own = self.targets[role]
            own.signed.version += f"{own.signed.version}.{role}.json" in self.files
            own.signed.expires = moment + _LASTS["targets"]
            name = f"{own.signed.version}.{role}.json"
            raw = self._put(own, self.keys[role], name)
            self.snapshot.signed.meta[f"{role}.json"] = _meta(own.signed.version, raw)
        self.snapshot.signed.version += (
            f"{self.snapshot.signed.version}.snapshot.json" in self.files
        )
        self.snapshot.signed.expires = moment + _LASTS["snapshot"]
        version = self.snapshot.signed.version
        raw = self._put(self.snapshot, self.keys["snapshot"], f"{version}.snapshot.json")
        self.timestamp.signed.snapshot_meta = _meta(version, raw)
        self.timestamp.signed.version += "timestamp.json" in self.files
        self.timestamp.signed.expires = moment + _LASTS["timestamp"]
        self._put(self.timestamp, self.keys["timestamp"], "timestamp.json")

    def _put(
        self,
        document: Metadata[Root] | Metadata[Targets] | Metadata[Snapshot] | Metadata[Timestamp],
        keys: Sequence[PrivateKey],
        name: str,
    ) -> bytes:
        if not keys:
            raise InvalidError(f"the private key that signs {name} is not here")
        document.signatures.clear()
        for key in keys:
            document.sign(CryptoSigner(key.key), append=True)
        raw = document.to_bytes()
        self.files[name] = raw
        return raw


def _public(key: PrivateKey) -> SSlibKey:
    return SSlibKey.from_crypto(key.key.public_key())


def _meta(version: int, raw: bytes) -> MetaFile:
    return MetaFile(version, len(raw), {"sha256": Digest.of(raw).hex})
