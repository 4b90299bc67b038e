"""What builds have made before, by the key of each step; and directories kept between builds.

::

    STATE/build/            0700
        cache.db            SQLite, WAL: steps (key to layer, when, and of what parts), digests
                            of what was copied out of stages, and what downloads were
        mounts/HEX/         the directory of one ``RUN --mount=type=cache``
        tmp/                what a running build has on disk; emptied at the start

A row is a hint that is verified: a layer that is not there any more is a miss. Layers of rows are
leased, so no collector of images takes them; `prune` lets go. Losing the database (it is not
synced) costs time, never truth: keys are made of content (``graph``).

Not for: the layers themselves (image.store).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

from tare.image.store import ImageStore
from tare.model.digest import Digest

if TYPE_CHECKING:
    from tare.image.index import Lease

_FORMAT: Final = 1
_SCHEMA: Final = """
CREATE TABLE steps (key TEXT PRIMARY KEY, layer TEXT, size INTEGER NOT NULL,
                    created_ns INTEGER NOT NULL, used_ns INTEGER NOT NULL,
                    what TEXT NOT NULL, parts TEXT NOT NULL,
                    files BLOB) STRICT;
CREATE INDEX steps_by_what ON steps(what, used_ns);
CREATE INDEX steps_by_layer ON steps(layer);
CREATE TABLE digests (key TEXT PRIMARY KEY, digest TEXT NOT NULL, used_ns INTEGER NOT NULL) STRICT;
"""
_FILES_MOST: Final = 5000
_AGE_NS: Final = 60 * 86400 * 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one step made: a layer (None: nothing but configuration), and when."""

    key: str
    layer: Digest | None
    created_ns: int
    what: str = ""
    parts: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One thing that the cache keeps, for those who look: a step, or a cache mount."""

    id: str
    kind: str
    size: int
    used_ns: int
    what: str
    layer: Digest | None = None


@dataclass(frozen=True, slots=True)
class Pruned:
    """What a prune deleted, and the bytes that came free."""

    deleted: tuple[str, ...]
    reclaimed: int


class Cache:
    """The build cache below *directory*, which it makes. Its methods are quick; any thread."""

    def __init__(self, directory: Path, store: ImageStore) -> None:
        """Open it, and keep its layers from the collector from now on."""
        self._store = store
        self._lock = threading.RLock()
        self.directory = directory
        self.temporary = directory / "tmp"
        self.mounts = directory / "mounts"
        tag = hashlib.sha256(os.fsencode(directory.absolute())).hexdigest()[:12]
        self.public_prefix = f"tare-build-{tag}-"
        """What begins the names of this cache's directories in /tmp, for programs run as nobody."""
        shutil.rmtree(self.temporary, ignore_errors=True)
        for left in Path(tempfile.gettempdir()).glob(f"{self.public_prefix}*"):
            shutil.rmtree(left, ignore_errors=True)
        for path in (directory, self.temporary, self.mounts):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._database = self._open(directory / "cache.db")
        self._leases: dict[Digest, Lease] = {}
        self._busy: Counter[str] = Counter()  # cache mounts that steps have mounted
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        with self._lock:
            rows = self._database.execute(
                "SELECT DISTINCT layer FROM steps WHERE layer IS NOT NULL"
            ).fetchall()
            # What makes no layer costs nothing but rows: those go by themselves when they are old.
            old = (time.time_ns() - _AGE_NS,)
            self._database.execute("DELETE FROM steps WHERE layer IS NULL AND used_ns < ?", old)
            self._database.execute("DELETE FROM digests WHERE used_ns < ?", old)
            gone = [(row[0],) for row in rows if not self._lease(Digest(row[0]))]
            if gone:
                self._database.executemany("DELETE FROM steps WHERE layer = ?", gone)

    def _open(self, path: Path) -> sqlite3.Connection:
        """The database; one that is damaged or of another format is begun anew."""
        for _ in range(2):
            database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            try:
                path.chmod(0o600)
                for pragma in ("journal_mode=WAL", "synchronous=OFF"):
                    database.execute(f"PRAGMA {pragma}")
                version = int(database.execute("PRAGMA user_version").fetchone()[0])
                if version == 0:
                    database.executescript(
                        f"BEGIN; {_SCHEMA} PRAGMA user_version={_FORMAT}; COMMIT;"
                    )
                    version = _FORMAT
                if version == _FORMAT:
                    return database
            except sqlite3.DatabaseError:
                pass
            database.close()
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
        raise AssertionError("a fresh database could not be opened")

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._database.close()

    def _lease(self, layer: Digest) -> bool:
        """Keep *layer* if it is there."""
        if layer in self._leases:
            return True
        lease = self._store.retain()
        if not self._store.has_layer(layer, lease):
            lease.release()
            return False
        self._leases[layer] = lease
        return True

    # --- steps --------------------------------------------------------------------------------

    def find(self, key: str) -> Step | None:
        """What a step with this key made, if it is still there."""
        with self._lock:
            row = self._database.execute(
                "SELECT layer, created_ns FROM steps WHERE key = ?", (key,)
            ).fetchone()
            if row is None:
                return None
            layer = Digest(row[0]) if row[0] is not None else None
            if layer is not None and not self._lease(layer):
                self._database.execute("DELETE FROM steps WHERE key = ?", (key,))
                return None
        return Step(key=key, layer=layer, created_ns=row[1])

    def similar(self, what: str) -> Step | None:
        """The step that was last used of those that say the same in the Dockerfile."""
        with self._lock:
            row = self._database.execute(
                "SELECT key, layer, created_ns, parts, files FROM steps WHERE what = ?"
                " ORDER BY used_ns DESC LIMIT 1",
                (what,),
            ).fetchone()
        if row is None:
            return None
        files = json.loads(zlib.decompress(row[4])) if row[4] is not None else {}
        layer = Digest(row[1]) if row[1] is not None else None
        return Step(
            key=row[0],
            layer=layer,
            created_ns=row[2],
            what=what,
            parts=json.loads(row[3]),
            files=files,
        )

    def add(self, step: Step) -> None:
        """Remember what a step made; its layer must be there."""
        files = None
        if 0 < len(step.files) <= _FILES_MOST:
            files = zlib.compress(json.dumps(step.files).encode(), 1)
        layer, size = None, 0
        with self._lock:
            if step.layer is not None:
                if not self._lease(step.layer):
                    return
                layer, size = step.layer.hex, self._store.layer(step.layer).size
            self._database.execute(
                "INSERT OR REPLACE INTO steps VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    step.key,
                    layer,
                    size,
                    step.created_ns,
                    time.time_ns(),
                    step.what,
                    json.dumps(dict(step.parts)),
                    files,
                ),
            )

    def touch(self, keys: Iterable[str]) -> None:
        """These steps were used just now."""
        now = time.time_ns()
        with self._lock, self._database:
            self._database.executemany(
                "UPDATE steps SET used_ns = ? WHERE key = ?", [(now, key) for key in keys]
            )

    # --- digests ------------------------------------------------------------------------------

    def digest(self, key: str) -> str | None:
        """What was remembered under *key*: the digest of a selection, what a download was."""
        with self._lock:
            row = self._database.execute(
                "SELECT digest FROM digests WHERE key = ?", (key,)
            ).fetchone()
        return str(row[0]) if row is not None else None

    def remember(self, key: str, digest: str) -> None:
        """Keep what costs more to find out again: a hint, worth nothing to who loses it."""
        with self._lock:
            self._database.execute(
                "INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", (key, digest, time.time_ns())
            )

    # --- cache mounts -------------------------------------------------------------------------

    @contextlib.contextmanager
    def mount(self, identity: str, *, alone: bool = False) -> Iterator[tuple[Path, bool]]:
        """The directory of a cache mount, and whether it is new; kept from `prune` meanwhile.

        *alone* never gives a directory that another step is using: such a step gets one beside.
        """
        name = base = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()
        with self._lock:
            count = 0
            while alone and self._busy[name]:
                count += 1
                name = f"{base}.{count}"
            self._busy[name] += 1
            path = self.mounts / name
            new = not path.exists()
            if new:
                path.mkdir(mode=0o700)
        try:
            yield path, new
        finally:
            with self._lock:
                self._busy[name] -= 1
                with contextlib.suppress(OSError):
                    os.utime(path)

    def turn(self, identity: str) -> asyncio.Lock:
        """What steps hold that may use or make the same thing only one after the other."""
        return self._turns.setdefault(identity, asyncio.Lock())

    # --- housekeeping -------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """All that is kept, the longest unused first."""
        with self._lock:
            rows = self._database.execute(
                "SELECT key, layer, size, used_ns, what FROM steps"
            ).fetchall()
        found = [
            Entry(
                id=key,
                kind="step",
                size=size,
                used_ns=used_ns,
                what=what,
                layer=Digest(layer) if layer is not None else None,
            )
            for key, layer, size, used_ns, what in rows
        ]
        for path in self.mounts.iterdir():
            found.append(
                Entry(
                    id=path.name,
                    kind="mount",
                    size=disk_usage(path),
                    used_ns=path.stat().st_mtime_ns,
                    what="RUN --mount=type=cache",
                )
            )
        return sorted(found, key=lambda entry: entry.used_ns)

    def prune(
        self,
        *,
        everything: bool = False,
        until_ns: int | None = None,
        keep_bytes: int = 0,
        dry: bool = False,
    ) -> Pruned:
        """Forget what was not used for longest, until no more than *keep_bytes* are kept.

        Without *everything* steps stay whose layer is in an image: they cost next to nothing.
        *until_ns* takes only what was not used since. What a running build uses stays.
        *dry* forgets nothing, and answers about the same.
        """
        entries = self.entries()
        total = sum(entry.size for entry in entries)
        deleted: list[str] = []
        reclaimed = 0
        for entry in entries:
            if total <= keep_bytes and keep_bytes:
                break
            if until_ns is not None and entry.used_ns >= until_ns:
                continue
            if entry.kind == "mount":
                if self._busy[entry.id] if dry else not self._remove_mount(entry.id):
                    continue
                freed = entry.size
            else:
                if not everything and entry.layer is not None and self._store.uses(entry.layer):
                    continue
                freed = self._would_free(entry) if dry else self._forget(entry)
            deleted.append(entry.id)
            reclaimed += freed
            total -= entry.size
        with self._lock:
            if everything and until_ns is None and not keep_bytes and not dry:
                self._database.execute("DELETE FROM digests")
        return Pruned(tuple(deleted), reclaimed)

    def layers(self) -> frozenset[Digest]:
        """The layers that the cache keeps, by one lease of each."""
        with self._lock:
            return frozenset(self._leases)

    def let_go(self, layers: Iterable[Digest]) -> int:
        """Forget every step that made one of these layers; the bytes that freed."""
        wanted = {layer.hex for layer in layers}
        with self._lock:
            rows = self._database.execute("SELECT key, layer FROM steps").fetchall()
            doomed = [(key,) for key, layer in rows if layer in wanted]
            self._database.executemany("DELETE FROM steps WHERE key = ?", doomed)
            leases = [self._leases.pop(layer, None) for layer in layers]
        return sum(self._store.discard(lease) for lease in leases if lease is not None)

    def _would_free(self, entry: Entry) -> int:
        if entry.layer is None or self._store.uses(entry.layer):
            return 0
        return entry.size

    def _forget(self, entry: Entry) -> int:
        with self._lock:
            self._database.execute("DELETE FROM steps WHERE key = ?", (entry.id,))
            layer = entry.layer
            if layer is None:
                return 0
            row = self._database.execute(
                "SELECT 1 FROM steps WHERE layer = ? LIMIT 1", (layer.hex,)
            ).fetchone()
            lease = self._leases.pop(layer, None) if row is None else None
        return self._store.discard(lease) if lease is not None else 0

    def _remove_mount(self, name: str) -> bool:
        with self._lock:
            if self._busy[name]:
                return False
            doomed = self.temporary / f"{name}-{time.time_ns()}"
            try:
                os.rename(self.mounts / name, doomed)
            except OSError:
                return False
        shutil.rmtree(doomed, ignore_errors=True)
        return True


def disk_usage(path: Path) -> int:
    """The bytes of the files below a directory, links not followed."""
    total = 0
    for directory, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(f"{directory}/{name}").st_size
    return total
