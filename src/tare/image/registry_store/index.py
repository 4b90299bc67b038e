"""What a registry's content is called and what refers to what: one SQLite file.

::

    registry.db    WAL, synchronous=FULL: a change is on disk when its ``with`` ends
        repositories  by name
        blobs         every blob of which the file is there, with its size
        links         which repository has which blob, and since when it was wanted
        documents     the bytes of manifests, by digest
        manifests     which repository has which manifest; its type, artifact type and subject
        parts         what a repository's manifest needs: its blobs and its child manifests
        tags          of one manifest each
        uploads       sessions that have begun and not ended

A write transaction is also the lock on the directory of blobs: a blob's file appears and goes only
inside one. So a collector may run in another process while the registry is being served. Reads use
a connection of their own and never wait for a writer.

Not for: files (``uploads``, ``store``), deciding what may be answered (``store``).
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tare.errors import FailedError

_FORMAT: Final = 1
_BUSY_SECONDS: Final = 30.0
_SCHEMA: Final = """
CREATE TABLE repositories (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE blobs (digest TEXT PRIMARY KEY, size INTEGER NOT NULL) STRICT;
CREATE TABLE links (repository INTEGER NOT NULL REFERENCES repositories(id) ON DELETE CASCADE,
                    digest TEXT NOT NULL REFERENCES blobs(digest) ON DELETE CASCADE,
                    since INTEGER NOT NULL, PRIMARY KEY (repository, digest)) STRICT;
CREATE INDEX links_by_digest ON links(digest);
CREATE TABLE documents (digest TEXT PRIMARY KEY, raw BLOB NOT NULL) STRICT;
CREATE TABLE manifests (repository INTEGER NOT NULL REFERENCES repositories(id) ON DELETE CASCADE,
                        digest TEXT NOT NULL REFERENCES documents(digest),
                        media_type TEXT NOT NULL, size INTEGER NOT NULL,
                        artifact_type TEXT NOT NULL, subject TEXT, annotations TEXT NOT NULL,
                        since INTEGER NOT NULL, PRIMARY KEY (repository, digest)) STRICT;
CREATE INDEX manifests_by_subject ON manifests(repository, subject) WHERE subject IS NOT NULL;
CREATE INDEX manifests_by_digest ON manifests(digest);
CREATE TABLE parts (repository INTEGER NOT NULL, manifest TEXT NOT NULL, digest TEXT NOT NULL,
                    PRIMARY KEY (repository, manifest, digest),
                    FOREIGN KEY (repository, manifest) REFERENCES manifests(repository, digest)
                    ON DELETE CASCADE) STRICT;
CREATE INDEX parts_by_digest ON parts(repository, digest);
CREATE TABLE tags (repository INTEGER NOT NULL, name TEXT NOT NULL, digest TEXT NOT NULL,
                   PRIMARY KEY (repository, name),
                   FOREIGN KEY (repository, digest) REFERENCES manifests(repository, digest)
                   ON DELETE CASCADE) STRICT;
CREATE INDEX tags_by_digest ON tags(repository, digest);
CREATE TABLE uploads (id TEXT PRIMARY KEY, repository TEXT NOT NULL, began INTEGER NOT NULL) STRICT;
"""

Value = str | int | bytes | None
Row = tuple[Value, ...]


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, check_same_thread=False, isolation_level=None, timeout=_BUSY_SECONDS
    )
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


class Index:
    """The database: `read` at any time, `write` inside `change`. May be used from many threads."""

    def __init__(self, path: Path) -> None:
        self._writing = threading.RLock()
        self._reading = threading.Lock()
        # Before SQLite opens it: its other files get the mode that this one has then.
        path.touch(mode=0o600)
        path.chmod(0o600)
        self._writer = _connect(path)
        with self.change():
            version = int(self._writer.execute("PRAGMA user_version").fetchone()[0])
            if version > _FORMAT:
                raise FailedError(f"{path} was written by a newer tare", hint="upgrade tare")
            if version == 0:
                for statement in _SCHEMA.split(";"):
                    self._writer.execute(statement)
                self._writer.execute(f"PRAGMA user_version={_FORMAT}")
        self._reader = _connect(path)
        self._reader.execute("PRAGMA query_only=ON")

    def close(self) -> None:
        """Close the file."""
        with self._writing, self._reading:
            self._reader.close()
            self._writer.close()

    @contextmanager
    def change(self) -> Iterator[None]:
        """All changes in this ``with`` are made and on disk at its end, or none."""
        with self._writing:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._writer.execute("ROLLBACK")
                raise
            self._writer.execute("COMMIT")

    def write(self, statement: str, *values: Value) -> list[Row]:
        """One statement, inside `change`; it sees what was written before it."""
        return self._writer.execute(statement, values).fetchall()

    def changed(self) -> int:
        """How many rows the last `write` changed."""
        return int(self._writer.execute("SELECT changes()").fetchone()[0])

    def read(self, statement: str, *values: Value) -> list[Row]:
        """One query, of what was committed."""
        with self._reading:
            return self._reader.execute(statement, values).fetchall()

    def repository(self, name: str) -> int | None:
        """A repository's number, if there is one of that name."""
        rows = self.read("SELECT id FROM repositories WHERE name = ?", name)
        return int(str(rows[0][0])) if rows else None

    def make_repository(self, name: str) -> int:
        """A repository's number; inside `change` it is made if it is not there."""
        self.write("INSERT OR IGNORE INTO repositories(name) VALUES (?)", name)
        return int(str(self.write("SELECT id FROM repositories WHERE name = ?", name)[0][0]))
