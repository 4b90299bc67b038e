"""Times as images write them: RFC 3339 with nanoseconds. Not for other forms of time."""

from __future__ import annotations

import re
from datetime import UTC, datetime


def parse_time(text: str) -> int | None:
    """RFC 3339 in nanoseconds since 1970; None for anything else."""
    match = re.fullmatch(
        r"(\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d)(?:\.(\d{1,9})\d*)?([Zz]|[+-]\d\d:\d\d)", text
    )
    if match is None:
        return None
    zone = "+00:00" if match[3] in "Zz" else match[3]
    try:
        moment = datetime.fromisoformat(match[1].upper() + zone)
    except ValueError:
        return None
    return int(moment.timestamp()) * 10**9 + int((match[2] or "0").ljust(9, "0"))


def format_time(nanoseconds: int) -> str:
    """RFC 3339 in UTC, with as many digits as are needed."""
    seconds, rest = divmod(nanoseconds, 10**9)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{rest:09d}".rstrip("0") if rest else ""
    return f"{text}{fraction}Z"
