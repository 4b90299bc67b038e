"""The one switch: off, warn, on. Apart, because every start asks it and nothing else here."""

from __future__ import annotations

from enum import StrEnum

from tare.errors import InvalidError


class Mode(StrEnum):
    """What becomes of an image that nothing verifies: nothing, a warning, a refusal."""

    OFF = "off"
    WARN = "warn"
    ON = "on"

    def at_least(self, other: Mode) -> Mode:
        """The stricter of the two: a request adds to what is set, it never relaxes it."""
        order = list(Mode)
        return max(self, other, key=order.index)

    @classmethod
    def parse(cls, text: str) -> Mode:
        """``off``, ``warn`` or ``on``; InvalidError."""
        try:
            return cls(text)
        except ValueError:
            raise InvalidError(f"invalid trust mode {text[:40]!a}: off, warn or on") from None
