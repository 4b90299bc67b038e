"""Small named values that the engine keeps beside its records: one table of state.db a kind.

Volumes, budgets and the like are few and small, so all of a kind are in memory, and a change is
one statement, durable when it returns (as `engine.store` defines it). A table is made when it is
first asked for: a new kind needs no other migration, and fields that a newer tare added get their
defaults when an older value is read.

Not for: containers, whose rows are in two parts (engine.store).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import msgspec

from tare.errors import FailedError

if TYPE_CHECKING:
    from tare.engine.store import Store

_T = TypeVar("_T")
_TABLE: Final = re.compile(r"[a-z_]+")


class Documents(Generic[_T]):
    """The values of one kind by name."""

    def __init__(self, store: Store, table: str, kind: type[_T]) -> None:
        assert _TABLE.fullmatch(table), "the name becomes part of a statement"
        self._store, self._table = store, table
        self._encoder = msgspec.json.Encoder()
        self._values: dict[str, _T] = {}
        decoder = msgspec.json.Decoder(kind)
        store.make_table(
            f"CREATE TABLE IF NOT EXISTS {table}(name BLOB PRIMARY KEY, value BLOB NOT NULL)"
            " WITHOUT ROWID"
        )
        for name, value in store.rows(f"SELECT name, value FROM {table} ORDER BY name"):  # noqa: S608
            try:
                self._values[name.decode()] = decoder.decode(value)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise FailedError(
                    f"the {table} entry {name!r} of the engine's database cannot be read: {error}",
                    hint="was it written by another version of tare?",
                ) from error

    def get(self, name: str) -> _T | None:
        """The value called *name*, or None."""
        return self._values.get(name)

    def put(self, name: str, value: _T) -> None:
        """Keep *value*, in the place of an older one."""
        self._store.execute(
            f"INSERT OR REPLACE INTO {self._table} VALUES (?, ?)",  # noqa: S608
            (name.encode(), self._encoder.encode(value)),
        )
        self._values[name] = value

    def delete(self, name: str) -> None:
        """Forget it; nothing happens when it is not there."""
        if name in self._values:
            statement = f"DELETE FROM {self._table} WHERE name = ?"  # noqa: S608
            self._store.execute(statement, (name.encode(),))
            del self._values[name]

    def items(self) -> list[tuple[str, _T]]:
        """All names and values."""
        return list(self._values.items())

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._values))

    def __len__(self) -> int:
        return len(self._values)
