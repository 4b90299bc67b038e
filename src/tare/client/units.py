"""Sizes, durations and times as people write and read them, by Docker's grammars.

Not for the kernel's units: everything here is bytes, nanoseconds or seconds since the epoch.
"""

from __future__ import annotations

import time

from tare.errors import InvalidError

_BINARY = {"k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
_SECOND = 1_000_000_000
_GO_UNITS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,
    "ms": 1_000_000,
    "s": _SECOND,
    "m": 60 * _SECOND,
    "h": 3600 * _SECOND,
}
_DECIMAL_NAMES = ("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB")
_BINARY_NAMES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB")


def size(text: str) -> int:
    """Bytes from ``512``, ``1.5g``, ``64MiB``, ``10 kb`` (powers of 1024); InvalidError."""
    last = max((at for at, letter in enumerate(text) if letter in "0123456789. "), default=-1)
    if last < 0:
        raise InvalidError(f"invalid size: '{text}'")
    figure = text[:last] if text[last] == " " else text[: last + 1]
    suffix = text[last + 1 :].lower()
    try:
        value = float(figure)
    except ValueError:
        raise InvalidError(f"invalid size: '{text}'") from None
    if value < 0:
        raise InvalidError(f"invalid size: '{text}'")
    shift = 0
    if suffix not in ("", "b"):
        shift = _BINARY.get(suffix[0], -1)
        if shift < 0 or suffix[1:] not in ("", "b", "ib"):
            raise InvalidError(f"invalid suffix: '{suffix}'")
    # `not <` and not `>=`: also refuses what is not a number.
    if not value * (1 << shift) < 1 << 63:
        raise InvalidError(f"invalid size: '{text}' is more than 8 EiB")
    return int(value * (1 << shift))


def swap_size(text: str) -> int:
    """A size, or -1 for no limit."""
    return -1 if text == "-1" else size(text)


def duration(text: str) -> int:
    """Nanoseconds from Go's form (``1h30m``, ``1.5s``, ``300ms``); InvalidError."""
    rest = text.lstrip("+-")
    if rest == "0":
        return 0
    if not rest or len(text) - len(rest) > 1:
        raise InvalidError(f'time: invalid duration "{text}"')
    total = 0.0
    while rest:
        end = _span(rest, "0123456789.")
        figure, rest = rest[:end], rest[end:]
        end = _span(rest, "0123456789.", inside=False)
        unit, rest = rest[:end], rest[end:]
        if not figure or figure == "." or figure.count(".") > 1:
            raise InvalidError(f'time: invalid duration "{text}"')
        if not unit:
            raise InvalidError(f'time: missing unit in duration "{text}"')
        if unit not in _GO_UNITS:
            raise InvalidError(f'time: unknown unit "{unit}" in duration "{text}"')
        total += float(figure) * _GO_UNITS[unit]
    if total >= 1 << 63:
        raise InvalidError(f'time: invalid duration "{text}"')
    return -int(total) if text.startswith("-") else int(total)


def _span(text: str, letters: str, *, inside: bool = True) -> int:
    return next((at for at, c in enumerate(text) if (c in letters) != inside), len(text))


def nano_cpus(text: str) -> int:
    """Billionths of a processor from ``1.5`` or ``3/2``; InvalidError."""
    over, slash, under = text.partition("/")
    try:
        whole, _, fraction = over.partition(".")
        scale = 10 ** len(fraction)
        value = int(whole + fraction) * _SECOND
        below = scale * (int(under) if slash else 1)
    except ValueError:
        raise InvalidError(f"failed to parse {text} as a rational number") from None
    if not below or value % below:
        raise InvalidError("value is too precise")
    return int(value // below)


CHECKS = {"bytes": swap_size, "duration": duration, "decimal": nano_cpus}


def human_size(count: float, digits: int = 4) -> str:
    """``1.234kB``: powers of 1000 with *digits* significant digits."""
    return _scaled(count, 1000.0, _DECIMAL_NAMES, digits)


def binary_size(count: float) -> str:
    """``1.5MiB``: powers of 1024 with four significant digits."""
    return _scaled(count, 1024.0, _BINARY_NAMES, 4)


def _scaled(count: float, base: float, names: tuple[str, ...], digits: int) -> str:
    at = 0
    while count >= base and at < len(names) - 1:
        count /= base
        at += 1
    return f"{count:.{digits}g}{names[at]}"


def human_duration(seconds: float) -> str:
    """``About an hour``, ``3 days``."""
    whole, minutes, hours = int(seconds), int(seconds / 60), int(seconds / 3600 + 0.5)
    if whole < 1:
        return "Less than a second"
    if whole < 60:
        return "1 second" if whole == 1 else f"{whole} seconds"
    if minutes < 60:
        return "About a minute" if minutes == 1 else f"{minutes} minutes"
    if hours < 48:
        return "About an hour" if hours == 1 else f"{hours} hours"
    for limit, unit, name in ((336, 24, "days"), (1440, 168, "weeks"), (17520, 720, "months")):
        if hours < limit:
            return f"{hours // unit} {name}"
    return f"{int(seconds / 3600) // 24 // 365} years"


def ago(seconds: int) -> str:
    """How long since that second of the epoch, as in ``ps``."""
    return f"{human_duration(time.time() - seconds)} ago"


def local_stamp(seconds: int) -> str:
    """Go's way to write a local time: ``2026-01-02 15:04:05 +0000 UTC``."""
    return time.strftime("%Y-%m-%d %H:%M:%S %z %Z", time.localtime(seconds))


def nano_stamp(nanoseconds: int) -> str:
    """RFC 3339 in local time with nine digits, as ``events`` prints."""
    zone = time.strftime("%z", time.localtime(nanoseconds // _SECOND))
    zone = "Z" if zone == "+0000" else f"{zone[:3]}:{zone[3:]}"
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(nanoseconds // _SECOND))
    return f"{whole}.{nanoseconds % _SECOND:09d}{zone}"


def rfc3339(text: str) -> int:
    """Nanoseconds since the epoch from RFC 3339; zone and parts of the time may be missing.

    Without a zone it is local time. InvalidError when it is not a time.
    """
    try:
        return _rfc3339(text)
    except (ValueError, IndexError, OverflowError):
        raise InvalidError(f"failed to parse {text!r} as a time") from None


def _rfc3339(text: str) -> int:
    date, _, clock = text.partition("T")
    offset: int | None = None
    body = clock if clock else date
    if body.endswith("Z"):
        offset, body = 0, body[:-1]
    elif body[-6:-5] in ("+", "-") and body[-3:-2] == ":":
        sign = 1 if body[-6] == "+" else -1
        offset = sign * (int(body[-5:-3]) * 3600 + int(body[-2:]) * 60)
        body = body[:-6]
    date, clock = (date, body) if clock else (body, "")
    year, month, day = (int(part) for part in date.split("-"))
    clock, _, fraction = clock.partition(".")
    parts = [int(part) for part in clock.split(":")] if clock else []
    hour, minute, second = [*parts, 0, 0, 0][:3]
    if not (1 <= month <= 12 and 1 <= day <= 31 and hour < 25 and minute < 60 and second < 61):
        raise ValueError(text)
    if offset is None:
        base = int(time.mktime((year, month, day, hour, minute, second, 0, 0, -1)))
    else:
        base = _days(year, month, day) * 86400 + hour * 3600 + minute * 60 + second - offset
    return base * _SECOND + int((fraction + "000000000")[:9])


def _days(year: int, month: int, day: int) -> int:
    """Days since 1970 in the proleptic Gregorian calendar (years start in March)."""
    year -= month <= 2
    era, of_era = divmod(year, 400)
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719468


def moment(text: str) -> str:
    """``--since`` and ``--until``: seconds[.nanoseconds] for the API.

    Takes a duration before now, a time, or such seconds; InvalidError for anything else.
    """
    if not text:
        return ""
    try:
        if text == "0":
            return text
        nanoseconds = time.time_ns() - duration(text)
    except InvalidError:
        digits = text.replace(".", "", 1)
        if digits.isdecimal() and digits.isascii():
            return text
        try:
            nanoseconds = rfc3339(text)
        except InvalidError:
            raise InvalidError(
                f'invalid value "{text}": neither a time nor a duration',
                hint="Write 2013-01-02T13:23:37Z, seconds since 1970, or 42m for 42 minutes ago.",
            ) from None
    return f"{nanoseconds // _SECOND}.{nanoseconds % _SECOND:09d}"
