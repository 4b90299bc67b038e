"""Small words of Docker's API as checked values: sizes, times, signals, users, texts.

Pure; each function returns the value or raises InvalidError with a sentence that names it.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from tare.errors import InvalidError

MACHINE_RUNTIME: Final = "tare-vm"
"""The runtime whose name asks for a virtual machine, from any Docker client."""

_SIZE: Final = re.compile(r"([0-9]{1,18})(?:\.([0-9]{1,9}))? ?([kKmMgGtTpP]?)(?:i?[bB])?")
_UNITS: Final = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_ID: Final = re.compile(r"[0-9]+", re.ASCII)
_NAME: Final = re.compile(r"[^\s:/\\\x00-\x1f\x7f+-][^\s:/\\\x00-\x1f\x7f]*")
_ID_LIMIT: Final = 2**32 - 2
_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ns|us|µs|ms|h|m|s)")
_DURATION_NS: Final = {
    "ns": 1, "us": 1_000, "µs": 1_000, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9,
}  # fmt: skip


def checked_text(what: str, text: str, *, limit: int = 32_768) -> str:
    """The text itself, when it has no NUL and is not absurdly long."""
    if "\0" in text:
        raise InvalidError(f"invalid {what}: it contains a NUL character")
    if len(text) > limit:
        raise InvalidError(f"invalid {what}: it is longer than {limit} characters")
    return text


def one_line(what: str, text: str, *, limit: int = 4096) -> str:
    """The text itself, when it has no control characters (a line break would forge records)."""
    if _CONTROL.search(text):
        raise InvalidError(f"invalid {what}: it contains a control character")
    return checked_text(what, text, limit=limit)


def size(text: str) -> int:
    """Bytes of ``64m``, ``1.5g``, ``1024``; units are powers of 1024 as for Docker's memory."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InvalidError(f"invalid size: {text[:80]!r}")
    whole, fraction, unit = match[1], match[2] or "", _UNITS[match[3].lower()]
    exact = int(whole) << unit
    if fraction:
        exact += (int(fraction) << unit) // 10 ** len(fraction)
    return exact


def _user_part(part: str, whole: str) -> None:
    digits = _ID.fullmatch(part) is not None
    if digits and (len(part) > 10 or int(part) > _ID_LIMIT):
        raise InvalidError(f"invalid user {whole[:80]!r}: ids are 0 to {_ID_LIMIT}")
    if digits:
        return
    # A digit of another script, a sign or a blank would be read as a number by a laxer parser.
    foreign = any(letter.isnumeric() and not letter.isascii() for letter in part)
    if foreign or not _NAME.fullmatch(part):
        raise InvalidError(
            f"invalid user {whole[:80]!r}: a name, or an id of digits only, is expected"
        )


def user(text: str) -> str:
    """``USER[:GROUP]``, each a name or 0 to 2**32-2, ready to be looked up in the image."""
    if not text:
        return ""
    one_line("user", text, limit=128)
    name, colon, group = text.partition(":")
    if name:
        _user_part(name, text)
    if colon and group:
        _user_part(group, text)
    if not name and not group:
        raise InvalidError(f"invalid user {text!r}: a name or an id is expected")
    return text if name else f"0:{group}"


def environment(entries: list[str] | None) -> tuple[str, ...]:
    """The entries as given, each ``NAME`` or ``NAME=value`` without NUL."""
    for entry in entries or ():
        checked_text("environment variable", entry, limit=131_000)  # the kernel's own bound
        if entry.startswith("=") or not entry:
            raise InvalidError(f"invalid environment variable: {entry[:80]!r}")
    return tuple(entries or ())


def rfc3339(ns: int, *, digits: int = 0) -> str:
    """A time as Go prints it, with at least *digits* of a fraction; 0 is Go's zero time."""
    if not ns:
        return "0001-01-01T00:00:00Z"
    seconds, rest = divmod(ns, 10**9)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{rest:09d}" if digits else f".{rest:09d}".rstrip("0") if rest else ""
    return f"{text}{fraction}Z"


def duration(text: str) -> int:
    """Nanoseconds of Go's ``1m30s``."""
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise InvalidError(f"invalid duration: {text[:40]!r}")
    total = 0
    for number, unit in parts:
        whole, _, fraction = number.partition(".")
        total += int(whole) * _DURATION_NS[unit]
        if fraction:
            total += int(fraction[:9]) * _DURATION_NS[unit] // 10 ** len(fraction[:9])
    return total


_SECONDS: Final = re.compile(r"(-?[0-9]{1,12})(?:\.([0-9]{1,9}))?", re.ASCII)


def moment(text: str, *, now_ns: int) -> int:
    """Nanoseconds of ``since`` and ``until``: ``1700000000.5``, RFC 3339, or ``10m`` ago."""
    if match := _SECONDS.fullmatch(text):
        fraction = (match[2] or "").ljust(9, "0")
        return int(match[1]) * 10**9 + int(fraction or "0")
    try:
        whole, rest = text, 0
        if found := re.search(r"\.([0-9]{1,9})(?=Z|[+-][0-9]{2}:|$)", text):
            rest = int(found[1].ljust(9, "0"))
            whole = text[: found.start()] + text[found.end() :]
        parsed = datetime.fromisoformat(whole)
    except ValueError:
        return now_ns - duration(text)
    if parsed.tzinfo is None:
        parsed = parsed.replace(tzinfo=UTC)
    return int(parsed.timestamp()) * 10**9 + rest
