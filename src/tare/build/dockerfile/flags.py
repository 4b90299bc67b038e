"""The ``--flags`` of one instruction, checked against those it has."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

from tare.build.dockerfile.suggestion import meant


class Kind(Enum):
    """What a flag's value is."""

    TEXT = auto()
    TEXTS = auto()  # may be given several times
    SWITCH = auto()


class FlagError(ValueError):
    """A flag cannot be read; the text is BuildKit's sentence, ``focus`` what to point at."""

    def __init__(self, reason: str, focus: str) -> None:
        super().__init__(reason)
        self.focus = focus


class Flags:
    """The values of flags by name; asking for one that the instruction lacks is a KeyError."""

    def __init__(self, kinds: dict[str, Kind], given: Sequence[str]) -> None:
        """Read *given*; FlagError."""
        self._kinds = kinds
        self._values: dict[str, list[str]] = {}
        for flag in given:
            self._take(flag)

    def _take(self, flag: str) -> None:
        shown, equals, value = flag.partition("=")
        name = shown[2:]
        kind = self._kinds.get(name)
        if kind is None:
            raise FlagError(f"unknown flag: {shown}{meant(name, self._kinds)}", shown)
        if name in self._values and kind is not Kind.TEXTS:
            raise FlagError(f"duplicate flag specified: {shown}", shown)
        if kind is Kind.SWITCH:
            value = self._switch(shown, value, given=bool(equals))
        elif not equals:
            raise FlagError(f"missing a value on flag: {shown}", shown)
        self._values.setdefault(name, []).append(value)

    @staticmethod
    def _switch(shown: str, value: str, *, given: bool) -> str:
        if given and not value:
            raise FlagError(f"missing a value on flag: {shown}", shown)
        if value.lower() not in ("", "true", "false"):
            reason = f"expecting boolean value for flag {shown}, not: {value}"
            raise FlagError(reason, shown)
        return value.lower() or "true"

    def text(self, name: str, default: str = "") -> str:
        """The flag's value, or *default* where it was left out."""
        assert self._kinds[name] is Kind.TEXT
        return self._values.get(name, [default])[0]

    def texts(self, name: str) -> tuple[str, ...]:
        """All of its values in order."""
        assert self._kinds[name] is Kind.TEXTS
        return tuple(self._values.get(name, ()))

    def switch(self, name: str) -> bool | None:
        """Its value, or None where it was left out."""
        assert self._kinds[name] is Kind.SWITCH
        values = self._values.get(name)
        return None if values is None else values[0] == "true"
