"""Durations and sizes in a Dockerfile's flags, by Docker's grammars.

Not for the client's or the API's (they have their own, above this layer).
"""

from __future__ import annotations

import re
from typing import Final

_UNITS: Final = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_PART: Final = re.compile(r"([0-9]{0,19})(?:\.([0-9]{0,30}))?([a-zµμ]*)")
_SIZE: Final = re.compile(r"([0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18}) ?([kmgtp]?)(i?b)?", re.I)
_SHIFT: Final = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
_MOST: Final = (1 << 63) - 1


def duration(text: str) -> int:
    """Nanoseconds from Go's form (``1h30m``, ``1.5s``, ``300ms``); ValueError in Go's words."""
    shown = text[:80]
    rest = text[1:] if text[:1] in ("+", "-") else text
    if rest == "0":
        return 0
    total = 0
    if not rest or len(rest) > 200:
        raise ValueError(f'time: invalid duration "{shown}"')
    while rest:
        match = _PART.match(rest)
        assert match is not None
        whole, fraction, unit = match[1], match[2] or "", match[3]
        if not whole and not fraction:
            raise ValueError(f'time: invalid duration "{shown}"')
        if not unit:
            what = "invalid" if match.end() < len(rest) else "missing unit in"
            raise ValueError(f'time: {what} duration "{shown}"')
        if unit not in _UNITS:
            raise ValueError(f'time: unknown unit "{unit}" in duration "{shown}"')
        total += int(whole + fraction) * _UNITS[unit] // 10 ** len(fraction)
        rest = rest[match.end() :]
    if total > _MOST:
        raise ValueError(f'time: invalid duration "{shown}"')
    return -total if text.startswith("-") else total


def size(text: str) -> int:
    """Bytes from ``512``, ``1.5g``, ``64MiB`` (powers of 1024); ValueError."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"invalid size: '{text[:80]}'")
    value = float(match[1]) * (1 << _SHIFT[match[2].lower()])
    if value > _MOST:
        raise ValueError(f"invalid size: '{text[:80]}'")
    return int(value)


def truth(text: str) -> bool:
    """What Go's ParseBool makes of *text*; ValueError."""
    if text in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if text in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    raise ValueError(f"invalid boolean: '{text[:80]}'")


def number(text: str, base: int = 10) -> int:
    """An unsigned number of 32 bits; ValueError."""
    digits = "01234567" if base == 8 else "0123456789"
    if not 0 < len(text) < 40 or text.strip(digits):
        raise ValueError(f"invalid number: '{text[:80]}'")
    value = int(text, base)
    if value >= 1 << 32:
        raise ValueError(f"number out of range: '{text}'")
    return value
