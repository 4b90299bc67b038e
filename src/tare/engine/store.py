"""The engine's memory: records in SQLite, and all of them in this process as well.

``state.db`` (WAL, synchronous=NORMAL: a commit survives the death of any process without an
fsync of its own; after a power cut a record may be an older one, and recovery settles that)::

    meta(key, value)             schema
    containers(seq, spec, state)  one row a container, its record as JSON in two parts: what was
                                  asked for, which seldom changes, and all the rest
    volumes, budgets, ...(name, value)  engine.documents

Reads never touch the disk. Each write is one statement, so one commit. The one writer is the
daemon that holds ``run/daemon.lock``.

Not for: deciding anything about records (engine.lifecycle does).
"""

from __future__ import annotations

import bisect
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from tare.engine import names
from tare.errors import ConflictError, FailedError, InvalidError, MissingError
from tare.model.record import Record
from tare.model.state import State

SCHEMA: Final = 1
_CHECKPOINT_EVERY: Final = 1024  # commits between two moves of the WAL into the database

_T = TypeVar("_T")
_INACTIVE: Final = frozenset((State.CREATED, State.EXITED, State.DEAD))

_STATE_FIELDS: Final = tuple(name for name in Record.__dataclass_fields__ if name != "spec")
_state_values: Final = attrgetter(*_STATE_FIELDS)

_TABLES: Final = """
CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS containers(
    seq INTEGER PRIMARY KEY, spec BLOB NOT NULL, state BLOB NOT NULL
);
"""


class Store:
    """All records, by id, unique id prefix and name; every change durable when it returns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._decoder = msgspec.json.Decoder(Record)
        self._encoder = msgspec.json.Encoder()
        self._db = self._open()
        self._by_id: dict[str, Record] = {}
        self._rows: dict[str, int] = {}
        self._last_row = 0
        self._by_name: dict[str, str] = {}
        self._active: dict[str, None] = {}
        self._sorted: list[str] = []
        self._writes = 0
        self._load()

    def get(self, ref: str) -> Record:
        """The record of a name, an id or a unique id prefix; MissingError or InvalidError."""
        found = self._by_id.get(ref)
        if found is not None:
            return found
        name = ref[1:] if ref.startswith("/") else ref
        identity = self._by_name.get(name)
        if identity is None:
            identity = self._by_prefix(ref)
        return self._by_id[identity]

    def find(self, identity: str) -> Record | None:
        """The record of a full id, or None."""
        return self._by_id.get(identity)

    def holder(self, name: str) -> str | None:
        """The id of the container called *name*, or None."""
        return self._by_name.get(name)

    def named(self, words: Sequence[str]) -> list[Record]:
        """The records whose names contain one of *words*, the newest first."""
        # One pass over the names for each word: there is hardly ever more than one.
        names = self._by_name
        matching = {name for word in words for name in names if word in name}
        found = [self._by_id[names[name]] for name in matching]
        return sorted(found, key=lambda record: record.created_ns, reverse=True)

    def all(self) -> Iterable[Record]:
        """Every record, the newest first."""
        return reversed(self._by_id.values())

    def active(self) -> list[Record]:
        """The records in a state that has processes or an intent, the newest first."""
        return [self._by_id[identity] for identity in reversed(self._active)]

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, record: Record) -> Record:
        """Keep a new record; ConflictError when its name is in use."""
        holder = self._by_name.get(record.name)
        if holder is not None:
            raise names.conflict(record.name, holder)
        row = self._last_row + 1
        self._write(
            "INSERT INTO containers VALUES (?, ?, ?)",
            (row, self._encode(record.spec), self._encode(_state(record))),
        )
        self._last_row = self._rows[record.id] = row
        self._remember(record)
        return record

    def put(self, record: Record) -> Record:
        """Keep a changed record (a new name included); MissingError when it is gone."""
        old = self._by_id.get(record.id)
        if old is None:
            raise MissingError(f"No such container: {record.id}")
        if old.name != record.name:
            holder = self._by_name.get(record.name)
            if holder is not None:
                raise names.conflict(record.name, holder)
        row, state = self._rows[record.id], self._encode(_state(record))
        if record.spec is old.spec:
            self._write("UPDATE containers SET state = ? WHERE seq = ?", (state, row))
        else:
            self._write(
                "UPDATE containers SET spec = ?, state = ? WHERE seq = ?",
                (self._encode(record.spec), state, row),
            )
        if old.name != record.name:
            del self._by_name[old.name]
            self._by_name[record.name] = record.id
        self._by_id[record.id] = record
        self._sort_active(record)
        return record

    def delete(self, identity: str) -> None:
        """Forget a record and free its name."""
        self._write("DELETE FROM containers WHERE seq = ?", (self._rows[identity],))
        del self._rows[identity]
        record = self._by_id.pop(identity)
        del self._by_name[record.name]
        self._active.pop(identity, None)
        at = bisect.bisect_left(self._sorted, identity)
        del self._sorted[at]

    @property
    def checkpoint_due(self) -> bool:
        """True once so many commits were made that `checkpoint` should run."""
        return self._writes >= _CHECKPOINT_EVERY

    def checkpoint(self) -> None:
        """Move the WAL into the database over a connection of its own: call it in a thread."""
        self._writes = 0
        connection = sqlite3.connect(self._path, isolation_level=None)
        try:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        finally:
            connection.close()

    def make_table(self, statement: str) -> None:
        """Run a CREATE TABLE IF NOT EXISTS; FailedError when the database refuses it."""
        self._checked(lambda: self._db.execute(statement))

    def rows(self, statement: str) -> list[tuple[bytes, ...]]:
        """All rows of a SELECT."""
        return self._checked(lambda: list(self._db.execute(statement)))

    def execute(self, statement: str, values: tuple[int | bytes, ...]) -> None:
        """One change of a table of `engine.documents`, durable when it returns."""
        self._write(statement, values)

    def _checked(self, work: Callable[[], _T]) -> _T:
        try:
            return work()
        except sqlite3.Error as error:
            raise FailedError(f"cannot use the engine's database {self._path}: {error}") from error

    def close(self) -> None:
        """Close the database; the last connection moves the WAL into it."""
        self._db.close()

    def _open(self) -> sqlite3.Connection:
        try:
            db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            db.execute("PRAGMA wal_autocheckpoint=16384")
            db.executescript(_TABLES)
            row = db.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
            if row is None:
                db.execute("INSERT INTO meta VALUES ('schema', ?)", (str(SCHEMA),))
        except sqlite3.Error as error:
            raise FailedError(
                f"cannot use the engine's database {self._path}: {error}",
                hint="check the disk and the file's owner; containers go on running meanwhile",
            ) from error
        if row is not None and row[0] != str(SCHEMA):
            db.close()
            raise FailedError(
                f"{self._path} has schema {row[0]}, and this tare reads {SCHEMA}",
                hint="use the tare that wrote it",
            )
        return db

    def _load(self) -> None:
        for row, spec, state in self._db.execute("SELECT * FROM containers ORDER BY seq"):
            try:
                record = self._decoder.decode(b'{"spec":' + spec + b"," + state[1:])
            except msgspec.DecodeError as error:
                raise FailedError(
                    f"record {row} in {self._path} cannot be read: {error}",
                    hint="was it written by another version of tare?",
                ) from error
            self._rows[record.id] = self._last_row = row
            self._by_id[record.id] = record
            self._by_name[record.name] = record.id
            self._sort_active(record)
        self._sorted = sorted(self._by_id)

    def _remember(self, record: Record) -> None:
        self._by_id[record.id] = record
        self._by_name[record.name] = record.id
        bisect.insort(self._sorted, record.id)
        self._sort_active(record)

    def _sort_active(self, record: Record) -> None:
        if record.state in _INACTIVE:
            self._active.pop(record.id, None)
        else:
            self._active[record.id] = None

    def _by_prefix(self, ref: str) -> str:
        at = bisect.bisect_left(self._sorted, ref)
        found = self._sorted[at : at + 2]
        if not ref or not found or not found[0].startswith(ref):
            raise MissingError(f"No such container: {ref[:256]}")
        if len(found) == 2 and found[1].startswith(ref):
            raise InvalidError(f"multiple IDs found with provided prefix: {ref}")
        return found[0]

    def _encode(self, part: object) -> bytes:
        try:
            return self._encoder.encode(part)
        except (msgspec.EncodeError, UnicodeEncodeError) as error:
            raise InvalidError(f"the container's settings are not valid text: {error}") from error

    def _write(self, statement: str, values: tuple[int | bytes, ...]) -> None:
        try:
            self._db.execute(statement, values)
        except sqlite3.IntegrityError as error:
            raise ConflictError(f"the record exists already: {error}") from error
        except sqlite3.Error as error:
            raise FailedError(
                f"cannot write the engine's database {self._path}: {error}",
                hint="check the free space of its disk",
            ) from error
        self._writes += 1


def _state(record: Record) -> dict[str, object]:
    """All of a record but what was asked for."""
    return dict(zip(_STATE_FIELDS, _state_values(record), strict=True))
