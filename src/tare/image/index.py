"""Which images there are, what they are called, and what may not be collected.

::

    images.db    SQLite, WAL, synchronous=FULL: a change is on disk when the call returns
        images   id (of the configuration), when it was added, its parent, its size
        layers   the diff_ids of an image, bottom first
        names    full references, with a tag or with a digest, each of one image
        manifests  the documents that registries keep of an image, by their digests
        sources  which blob of which repository a layer is: what a push need not send
        notes    what the engine keeps beside an image, by kind: its bill, provenance, recipe
        pins     names that no collector takes
        used     when an image was last used, as far as it was told

Leases are in memory only: they protect what a running operation has added and not yet named. After
a crash nothing is leased, and `store.recover` collects what was left.

Not for: the content itself (``blobs``, ``layers``). One process owns the file; its threads share
one connection under one lock.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tare.errors import FailedError
from tare.model.digest import Digest
from tare.model.reference import Reference

_FORMAT: Final = 3
_SCHEMA: Final = """
CREATE TABLE images (id TEXT PRIMARY KEY, added_ns INTEGER NOT NULL, parent TEXT,
                     size INTEGER NOT NULL) STRICT;
CREATE TABLE layers (image TEXT NOT NULL REFERENCES images(id) ON DELETE CASCADE,
                     position INTEGER NOT NULL, diff_id TEXT NOT NULL,
                     PRIMARY KEY (image, position)) STRICT;
CREATE INDEX layers_by_diff_id ON layers(diff_id);
CREATE TABLE names (name TEXT PRIMARY KEY, image TEXT NOT NULL REFERENCES images(id)
                    ON DELETE CASCADE) STRICT;
CREATE INDEX names_by_image ON names(image);
"""
_SCHEMA_2: Final = """
CREATE TABLE manifests (digest TEXT NOT NULL, image TEXT NOT NULL REFERENCES images(id)
                        ON DELETE CASCADE, media_type TEXT NOT NULL,
                        PRIMARY KEY (digest, image)) STRICT;
CREATE INDEX manifests_by_image ON manifests(image);
CREATE TABLE sources (diff_id TEXT NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL,
                      media_type TEXT NOT NULL, repository TEXT NOT NULL,
                      used_ns INTEGER NOT NULL, PRIMARY KEY (diff_id, repository, digest)) STRICT;
"""
_SCHEMA_3: Final = """
CREATE TABLE notes (image TEXT NOT NULL REFERENCES images(id) ON DELETE CASCADE,
                    kind TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (image, kind)) STRICT;
CREATE TABLE pins (name TEXT PRIMARY KEY) STRICT;
CREATE TABLE used (image TEXT PRIMARY KEY REFERENCES images(id) ON DELETE CASCADE,
                   used_ns INTEGER NOT NULL) STRICT;
"""
_SOURCES_KEPT: Final = 32  # of one layer


@dataclass(frozen=True, slots=True)
class Row:
    """One image as the index knows it; ``names`` are full references, sorted."""

    id: Digest
    added_ns: int
    parent: Digest | None
    size: int
    layers: tuple[Digest, ...]
    names: tuple[Reference, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """A layer as a blob of a registry's repository, ``HOST/PATH``."""

    diff_id: Digest
    digest: Digest
    size: int
    media_type: str
    repository: str


class Lease:
    """Keeps layers and images from the collector until it is released."""

    def __init__(self, pins: Counter[Digest], lock: threading.RLock) -> None:
        self._pins = pins
        self._lock = lock
        self._mine: list[Digest] = []

    def pin(self, digest: Digest) -> None:
        """Keep *digest*, which may not be there yet."""
        with self._lock:
            self._pins[digest] += 1
            self._mine.append(digest)

    def release(self) -> list[Digest]:
        """Keep nothing any more; answers what was kept. A second call does nothing."""
        with self._lock:
            released, self._mine = self._mine, []
            for digest in released:
                self._pins[digest] -= 1
                if not self._pins[digest]:
                    del self._pins[digest]
            return released


class Index:
    """The names and the references of one store."""

    def __init__(self, path: Path) -> None:
        self.lock = threading.RLock()
        """Held while something is collected, or named so that it may not be."""
        self._pins: Counter[Digest] = Counter()
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        path.chmod(0o600)
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            self._database.execute(f"PRAGMA {pragma}")
        version = int(self._database.execute("PRAGMA user_version").fetchone()[0])
        if version > _FORMAT:
            raise FailedError(f"{path} was written by a newer tare", hint="upgrade tare")
        if version == 0:
            self._database.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version=1; COMMIT;")
        if version < 2:
            self._database.executescript(f"BEGIN; {_SCHEMA_2} PRAGMA user_version=2; COMMIT;")
        if version < 3:
            self._database.executescript(f"BEGIN; {_SCHEMA_3} PRAGMA user_version=3; COMMIT;")

    def close(self) -> None:
        """Close the file."""
        with self.lock:
            self._database.close()

    def lease(self) -> Lease:
        """A lease that lasts until it is released, or as long as the process."""
        return Lease(self._pins, self.lock)

    def pinned(self, digest: Digest, *, besides: int = 0) -> bool:
        """Is it leased, more often than *besides*?"""
        return self._pins[digest] > besides

    @contextmanager
    def change(self) -> Iterator[None]:
        """All changes in this ``with`` are made, or none."""
        with self.lock:
            if self._database.in_transaction:
                yield
                return
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    def add(
        self, id: Digest, layers: Iterable[Digest], *, size: int, parent: Digest | None, now_ns: int
    ) -> None:
        """Know an image; one that is known stays as it is."""
        with self.change():
            cursor = self._database.execute(
                "INSERT OR IGNORE INTO images VALUES (?, ?, ?, ?)",
                (id.hex, now_ns, parent.hex if parent else None, size),
            )
            if cursor.rowcount:
                self._database.executemany(
                    "INSERT INTO layers VALUES (?, ?, ?)",
                    [(id.hex, i, layer.hex) for i, layer in enumerate(layers)],
                )

    def name(self, name: Reference, id: Digest) -> Digest | None:
        """Let *name* mean *id*; answers the image that it meant before, if another."""
        with self.change():
            old = self.find(name)
            self._database.execute(
                "INSERT OR REPLACE INTO names VALUES (?, ?)", (str(name), id.hex)
            )
            return old if old != id else None

    def unname(self, name: Reference) -> None:
        """Let *name* mean nothing."""
        with self.change():
            self._database.execute("DELETE FROM names WHERE name = ?", (str(name),))
            self._database.execute("DELETE FROM pins WHERE name = ?", (str(name),))

    def remove(self, id: Digest) -> None:
        """Forget an image and its names."""
        with self.change():
            self._database.execute("DELETE FROM images WHERE id = ?", (id.hex,))
            self._database.execute("DELETE FROM pins WHERE name NOT IN (SELECT name FROM names)")

    def add_manifest(self, digest: Digest, id: Digest, media_type: str) -> None:
        """Know that the document *digest* is a manifest of an image."""
        with self.change():
            self._database.execute(
                "INSERT OR REPLACE INTO manifests VALUES (?, ?, ?)",
                (digest.hex, id.hex, media_type),
            )

    def manifests(self, id: Digest | None = None) -> list[tuple[Digest, str]]:
        """The manifests of an image, or all, with their media types."""
        where, arguments = ("", ()) if id is None else ("WHERE image = ?", (id.hex,))
        with self.lock:
            rows = self._database.execute(
                f"SELECT DISTINCT digest, media_type FROM manifests {where}",  # noqa: S608
                arguments,
            ).fetchall()
        return [(Digest(digest), media_type) for digest, media_type in rows]

    # -- notes, pins, use -------------------------------------------------------------------

    def add_note(self, id: Digest, kind: str, digest: Digest) -> None:
        """Know the document *digest* as the image's note of that kind, instead of another."""
        with self.change():
            self._database.execute(
                "INSERT OR REPLACE INTO notes VALUES (?, ?, ?)", (id.hex, kind, digest.hex)
            )

    def notes(self, id: Digest) -> dict[str, Digest]:
        """The notes of an image by kind."""
        with self.lock:
            rows = self._database.execute(
                "SELECT kind, digest FROM notes WHERE image = ?", (id.hex,)
            ).fetchall()
        return {kind: Digest(digest) for kind, digest in rows}

    def documents(self) -> set[Digest]:
        """Every document that some image needs: manifests and notes."""
        with self.lock:
            rows = self._database.execute(
                "SELECT digest FROM manifests UNION SELECT digest FROM notes"
            ).fetchall()
        return {Digest(row[0]) for row in rows}

    def pin(self, name: Reference) -> None:
        """Keep *name*, which there is, from collectors."""
        with self.change():
            self._database.execute("INSERT OR IGNORE INTO pins VALUES (?)", (str(name),))

    def unpin(self, name: Reference) -> bool:
        """Keep it no more; whether it was kept."""
        with self.change():
            return (
                self._database.execute("DELETE FROM pins WHERE name = ?", (str(name),)).rowcount > 0
            )

    def pins(self) -> set[Reference]:
        """The names that are kept."""
        with self.lock:
            rows = self._database.execute("SELECT name FROM pins").fetchall()
        return {Reference.parse(row[0]) for row in rows}

    def touch(self, moments: Iterable[tuple[Digest, int]]) -> None:
        """Remember when images were used; of what is no image, nothing."""
        with self.change():
            self._database.executemany(
                "INSERT OR REPLACE INTO used SELECT id, ?2 FROM images WHERE id = ?1",
                [(id.hex, moment) for id, moment in moments],
            )

    def used(self) -> dict[Digest, int]:
        """When images were last used, of those that were."""
        with self.lock:
            rows = self._database.execute("SELECT image, used_ns FROM used").fetchall()
        return {Digest(image): moment for image, moment in rows}

    def add_source(self, source: Source, now_ns: int) -> None:
        """Remember where a layer is; of many places the latest."""
        with self.change():
            self._database.execute(
                "INSERT OR REPLACE INTO sources VALUES (?, ?, ?, ?, ?, ?)",
                (
                    source.diff_id.hex, source.digest.hex, source.size, source.media_type,
                    source.repository, now_ns,
                ),
            )  # fmt: skip
            self._database.execute(
                "DELETE FROM sources WHERE diff_id = ?1 AND rowid NOT IN (SELECT rowid FROM sources"
                " WHERE diff_id = ?1 ORDER BY used_ns DESC, rowid DESC LIMIT ?2)",
                (source.diff_id.hex, _SOURCES_KEPT),
            )

    def sources(self, diff_id: Digest) -> list[Source]:
        """Where a layer is known to be, the latest first."""
        with self.lock:
            rows = self._database.execute(
                "SELECT digest, size, media_type, repository FROM sources WHERE diff_id = ?"
                " ORDER BY used_ns DESC, rowid DESC",
                (diff_id.hex,),
            ).fetchall()
        return [Source(diff_id, Digest(row[0]), *row[1:]) for row in rows]

    def forget_sources(self, diff_id: Digest) -> None:
        """The layer is gone."""
        with self.change():
            self._database.execute("DELETE FROM sources WHERE diff_id = ?", (diff_id.hex,))

    def find(self, name: Reference) -> Digest | None:
        """What *name* means."""
        with self.lock:
            row = self._database.execute(
                "SELECT image FROM names WHERE name = ?", (str(name),)
            ).fetchone()
        return Digest(row[0]) if row else None

    def by_prefix(self, prefix: str) -> list[Digest]:
        """The images whose ids begin with *prefix*, which is hex: at most two of them."""
        with self.lock:
            rows = self._database.execute(
                "SELECT id FROM images WHERE id >= ? AND id < ? LIMIT 2", (prefix, prefix + "g")
            ).fetchall()
        return [Digest(row[0]) for row in rows]

    def get(self, id: Digest) -> Row | None:
        """An image, or None."""
        found = self._rows("WHERE id = ?", (id.hex,))
        return found[0] if found else None

    def all(self) -> list[Row]:
        """Every image."""
        return self._rows("", ())

    def uses(self, diff_id: Digest) -> bool:
        """Is it a layer of any image?"""
        with self.lock:
            row = self._database.execute(
                "SELECT 1 FROM layers WHERE diff_id = ? LIMIT 1", (diff_id.hex,)
            ).fetchone()
        return row is not None

    def _rows(self, where: str, arguments: tuple[str, ...]) -> list[Row]:
        filtered = "" if not where else "WHERE image = ?"
        with self.lock:
            execute = self._database.execute
            images = execute(f"SELECT * FROM images {where}", arguments).fetchall()  # noqa: S608
            layers = execute(
                f"SELECT image, diff_id FROM layers {filtered} ORDER BY image, position",  # noqa: S608
                arguments,
            ).fetchall()
            names = execute(
                f"SELECT image, name FROM names {filtered} ORDER BY name",  # noqa: S608
                arguments,
            ).fetchall()
        layers_of: dict[str, list[Digest]] = {}
        for image, diff_id in layers:
            layers_of.setdefault(image, []).append(Digest(diff_id))
        names_of: dict[str, list[Reference]] = {}
        for image, name in names:
            names_of.setdefault(image, []).append(Reference.parse(name))
        return [
            Row(
                Digest(id),
                added_ns,
                Digest(parent) if parent else None,
                size,
                tuple(layers_of.get(id, ())),
                tuple(names_of.get(id, ())),
            )
            for id, added_ns, parent, size in images
        ]
