"""TUF metadata of a publisher, checked: which digest a tag has, and that it is today's. Pure.

The formats are python-tuf's own, the workflow that of the specification (1.0, section 5), numbered
here as there. Targets are image names with a tag, ``registry.example/team/app:1``; their hash is
that of the manifest or index. What signatures alone leave open is closed here: an old image under
a tag that moved on (rollback), a registry that serves yesterday for ever (freeze), parts of two
releases (mix and match), and files without an end.

What was trusted before is a `State`; `refreshed` makes the next of it and of files from anywhere:
a registry, a directory, a stick. It never goes back. Not for: publishing (``tuf_author``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final, TypeVar

from securesystemslib.exceptions import StorageError
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization import DeserializationError

from tare.errors import DeniedError, InvalidError
from tare.model.digest import Digest

ROOT_MAX: Final = 512 << 10
TIMESTAMP_MAX: Final = 16 << 10
SNAPSHOT_MAX: Final = 2 << 20
TARGETS_MAX: Final = 5 << 20
_ROTATIONS_MAX: Final = 256
_ROLES_MAX: Final = 100
_WRONG: Final = (
    RepositoryError, DeserializationError, StorageError,
    ValueError, KeyError, TypeError, AttributeError, RecursionError,
)  # fmt: skip

Read = Callable[[str, int], bytes | None]
"""A file by its name, None when there is none; at most one byte more than the number is read."""
_S = TypeVar("_S", Root, Timestamp, Snapshot, Targets)


@dataclass(frozen=True, slots=True)
class State:
    """What is trusted of one publisher: the files as they were, each verified when it came."""

    root: bytes
    timestamp: bytes = b""
    snapshot: bytes = b""
    targets: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Target:
    """The content that a name has."""

    digest: Digest
    length: int


def started(root: bytes) -> State:
    """A state that trusts *root*, which somebody brought by a way that is trusted; DeniedError."""
    signed = _loaded(root, Root, "root.json")
    _by(signed.signed, "root", signed, "root.json")
    return State(root)


def refreshed(state: State, read: Read, now: int) -> State:
    """The state after what *read* has, at *now* (seconds since 1970); DeniedError says what is
    wrong with it, and *state* stays what is trusted."""
    moment = datetime.fromtimestamp(now, UTC)
    return _Refresh(state, read, moment).done()


def find(state: State, name: str, now: int | None) -> Target | None:
    """What *name* is, by the publisher's word; None if he does not know it.

    With *now* his word must be of today: DeniedError when it has expired.
    """
    moment = None if now is None else datetime.fromtimestamp(now, UTC)
    if not state.timestamp or "targets" not in state.targets:
        raise DeniedError("nothing of this publisher was ever refreshed")
    _fresh(_loaded(state.timestamp, Timestamp, "timestamp.json").signed, "timestamp.json", moment)
    visited: set[str] = set()
    pending = ["targets"]
    while pending:
        role = pending.pop()
        if role in visited or role not in state.targets:
            continue
        visited.add(role)
        own = _loaded(state.targets[role], Targets, f"{role}.json")
        _fresh(own.signed, f"{role}.json", moment)
        if name in own.signed.targets:
            return _target(own.signed.targets[name])
        if own.signed.delegations is None:
            continue
        below: list[str] = []
        for child, terminating in own.signed.delegations.get_roles_for_target(name):
            if child in state.targets:
                document = _loaded(state.targets[child], Targets, f"{child}.json")
                _by(own.signed, child, document, f"{child}.json")
            below.append(child)
            if terminating:
                pending = []  # what stands behind it is not asked
                break
        pending += reversed(below)
    return None


def _target(found: TargetFile) -> Target:
    try:
        return Target(Digest(found.hashes["sha256"]), found.length)
    except (KeyError, InvalidError):
        raise DeniedError(f"the target {found.path} has no sha256") from None


def _loaded(raw: bytes, kind: type[_S], what: str) -> Metadata[_S]:
    try:
        found: Metadata[_S] = Metadata.from_bytes(raw)
        # The type is part of what is signed: a snapshot is never taken for a timestamp.
        if found.signed.type != kind.type:
            raise ValueError(f"it is of the type {found.signed.type}")
    except _WRONG as error:
        raise DeniedError(f"{what} cannot be read: {error}") from error
    return found


def _by(
    delegator: Root | Targets,
    role: str,
    document: Metadata[Root] | Metadata[Timestamp] | Metadata[Snapshot] | Metadata[Targets],
    what: str,
) -> None:
    """See that enough keys of *role*, each counted once, signed *document*."""
    try:
        delegator.verify_delegate(role, document.signed_bytes, document.signatures)
        # python-tuf counts ids: a key that is listed under two of them would count twice.
        ids = delegator.get_delegated_role(role).keyids
        keys = [json.dumps(delegator.get_key(one).keyval, sort_keys=True) for one in ids]
        if len(set(keys)) != len(keys):
            raise ValueError("one key is listed under two ids")
    except _WRONG as error:
        raise DeniedError(f"{what} is not signed by enough of its keys: {error}") from error


def _fresh(signed: Root | Timestamp | Snapshot | Targets, what: str, now: datetime | None) -> None:
    if now is not None and signed.is_expired(now):
        raise DeniedError(
            f"{what} has expired on {signed.expires:%Y-%m-%d %H:%M} UTC",
            hint="The publisher signs anew now and then; a registry that serves old files, or a"
            " clock that runs ahead, looks like this.",
        )


class _Refresh:
    """One pass through the workflow."""

    def __init__(self, state: State, read: Read, now: datetime) -> None:
        self._state = state
        self._read = read
        self._now = now
        self._root = _loaded(state.root, Root, "root.json").signed

    def done(self) -> State:
        self._rotate()
        self._timestamp()
        self._snapshot()
        self._targets()
        return self._state

    def _get(self, name: str, limit: int) -> bytes:
        raw = self._read(name, limit)
        if raw is None:
            raise DeniedError(f"{name} is missing")
        if len(raw) > limit:
            raise DeniedError(f"{name} does not end within {limit} bytes")
        return raw

    def _rotate(self) -> None:
        """5.3: every root after ours, one by one, each signed by the one before and by itself."""
        first = self._root
        for _ in range(_ROTATIONS_MAX):
            name = f"{self._root.version + 1}.root.json"
            raw = self._read(name, ROOT_MAX)
            if raw is None:
                break
            if len(raw) > ROOT_MAX:
                raise DeniedError(f"{name} does not end within {ROOT_MAX} bytes")
            fresh = _loaded(raw, Root, name)
            _by(self._root, "root", fresh, name)
            if fresh.signed.version != self._root.version + 1:
                raise DeniedError(f"{name} is of version {fresh.signed.version}")
            _by(fresh.signed, "root", fresh, name)
            self._root = fresh.signed
            self._state = replace(self._state, root=raw)
        _fresh(self._root, "root.json", self._now)
        # 5.3.11: after a change of their keys, numbers that a thief ran up count no more.
        if any(_keys(first, role) != _keys(self._root, role) for role in ("timestamp", "snapshot")):
            self._state = State(self._state.root)

    def _timestamp(self) -> None:
        """5.4: signed, not older than ours, not expired."""
        name = "timestamp.json"
        raw = self._get(name, TIMESTAMP_MAX)
        fresh = _loaded(raw, Timestamp, name)
        _by(self._root, "timestamp", fresh, name)
        if self._state.timestamp:
            old = _loaded(self._state.timestamp, Timestamp, name).signed
            _forward(name, fresh.signed.version, old.version)
            _forward("the snapshot in timestamp.json", fresh.signed.snapshot_meta.version,
                     old.snapshot_meta.version)  # fmt: skip
            if fresh.signed.version == old.version:
                raw = self._state.timestamp
        _fresh(fresh.signed, name, self._now)
        self._state = replace(self._state, timestamp=raw)
        self._meta = _loaded(raw, Timestamp, name).signed.snapshot_meta

    def _snapshot(self) -> None:
        """5.5: the one that the timestamp names, and no role in it is older or gone."""
        version = self._meta.version
        name = f"{version}.snapshot.json" if self._root.consistent_snapshot else "snapshot.json"
        raw = self._get(name, self._meta.length or SNAPSHOT_MAX)
        self._whole(raw, name, self._meta.verify_length_and_hashes)
        fresh = _loaded(raw, Snapshot, name)
        _by(self._root, "snapshot", fresh, name)
        if fresh.signed.version != version:
            raise DeniedError(f"{name} is of version {fresh.signed.version}, not {version}")
        if self._state.snapshot:
            for role, meta in _loaded(self._state.snapshot, Snapshot, name).signed.meta.items():
                now = fresh.signed.meta.get(role)
                if now is None:
                    raise DeniedError(f"{name} names {role} no more")
                _forward(f"{role} in {name}", now.version, meta.version)
        _fresh(fresh.signed, name, self._now)
        self._state = replace(self._state, snapshot=raw)
        self._listed = fresh.signed.meta

    def _whole(self, raw: bytes, name: str, verify: Callable[[bytes], None]) -> None:
        try:
            verify(raw)
        except _WRONG as error:
            raise DeniedError(f"{name} is not the file that was announced: {error}") from error

    def _targets(self) -> None:
        """5.6: the targets that the snapshot lists, and every role that they delegate to."""
        found: dict[str, bytes] = {}
        pending: list[tuple[str, Root | Targets]] = [("targets", self._root)]
        while pending:
            role, delegator = pending.pop()
            if role in found:
                continue
            if len(found) >= _ROLES_MAX:
                raise DeniedError(f"the publisher delegates to more than {_ROLES_MAX} roles")
            raw, own = self._role(role, delegator)
            found[role] = raw
            if own.delegations is not None and own.delegations.roles is not None:
                pending += [(child, own) for child in own.delegations.roles]
        self._state = replace(self._state, targets=found)

    def _role(self, role: str, delegator: Root | Targets) -> tuple[bytes, Targets]:
        if "/" in role or role.startswith("."):
            raise DeniedError(f"{role[:80]!a} is no name of a role")
        meta = self._listed.get(f"{role}.json")
        if meta is None:
            raise DeniedError(f"the snapshot does not list {role}.json")
        consistent = self._root.consistent_snapshot
        name = f"{meta.version}.{role}.json" if consistent else f"{role}.json"
        raw = self._get(name, meta.length or TARGETS_MAX)
        self._whole(raw, name, meta.verify_length_and_hashes)
        fresh = _loaded(raw, Targets, name)
        _by(delegator, role, fresh, name)
        if fresh.signed.version != meta.version:
            raise DeniedError(f"{name} is of version {fresh.signed.version}, not {meta.version}")
        _fresh(fresh.signed, name, self._now)
        return raw, fresh.signed


def _keys(root: Root, role: str) -> tuple[frozenset[str], int]:
    found = root.roles[role]
    return frozenset(found.keyids), found.threshold


def _forward(what: str, fresh: int, old: int) -> None:
    if fresh < old:
        raise DeniedError(
            f"{what} has version {fresh}, and version {old} was seen before",
            hint="Somebody serves old files: try later or elsewhere. Nothing that was trusted"
            " before was given up.",
        )
