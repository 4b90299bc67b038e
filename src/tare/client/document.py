"""JSON documents in and out, and safe steps into them.

The json package costs milliseconds to import (it brings re), a fifth of what `tare ps` may
take, so its C halves are used directly. Not for anything but what the daemon sends and is sent.
"""

from __future__ import annotations

from _json import encode_basestring, encode_basestring_ascii, make_encoder, make_scanner

from tare.errors import FailedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
else:
    Json = object  # for those who import the name at run time


class _Rules:
    """What make_scanner reads from the decoder object of the json package."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    memo: dict[str, str] = {}  # noqa: RUF012  # the C scanner wants this attribute

    @staticmethod
    def parse_constant(name: str) -> float:
        raise ValueError(name)


_scan = make_scanner(_Rules())  # type: ignore[arg-type]  # typeshed: "needs the attrs, not the type"


def _refused(value: object) -> object:
    raise TypeError(f"not JSON: {value!r}")


_encode = make_encoder(None, _refused, encode_basestring_ascii, None, ":", ",", False, False, False)


def decode(raw: bytes) -> Json:
    """Read one document; FailedError when it is none."""
    try:
        text = raw.decode()
        start = len(text) - len(text.lstrip(" \t\r\n"))
        value: Json
        value, end = _scan(text, start)
        if text[end:].strip(" \t\r\n"):
            raise ValueError("data after the document")
    except (ValueError, StopIteration, RecursionError) as error:
        raise FailedError(f"the daemon sent something that is not JSON: {raw[:80]!r}") from error
    return value


def encode(value: Json) -> bytes:
    """Write *value* compactly, in ASCII."""
    return "".join(_encode(value, 0)).encode("ascii")


def pretty(value: Json, indent: str = "    ", level: str = "") -> str:
    """Write *value* over several lines as Docker's clients do.

    What a terminal would obey (controls, bidi marks) is written as escapes, so printing the
    answer is safe and it is still the same JSON.
    """
    inner = level + indent
    if isinstance(value, dict) and value:
        rows = [f"{inner}{_quoted(k)}: {pretty(v, indent, inner)}" for k, v in value.items()]
        return "{\n" + ",\n".join(rows) + f"\n{level}}}"
    if isinstance(value, list) and value:
        rows = [inner + pretty(v, indent, inner) for v in value]
        return "[\n" + ",\n".join(rows) + f"\n{level}]"
    return compact(value)


def compact(value: Json, *, ordered: bool = False) -> str:
    """Write *value* on one line; *ordered* sorts the keys as Go's maps are."""
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, dict):
        pairs = sorted(value.items()) if ordered else value.items()
        return "{" + ",".join(f"{_quoted(k)}:{compact(v, ordered=ordered)}" for k, v in pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(compact(v, ordered=ordered) for v in value) + "]"
    return "".join(_encode(value, 0))


def _quoted(text: str) -> str:
    return encode_basestring(text) if text.isprintable() else encode_basestring_ascii(text)


def field(document: Json, *keys: str) -> Json:
    """The value below *keys*, or None where a step is missing."""
    for key in keys:
        if not isinstance(document, dict):
            return None
        document = document.get(key)
    return document


def text(document: Json, *keys: str) -> str:
    """The string below *keys*; "" for anything else."""
    value = field(document, *keys)
    return value if isinstance(value, str) else ""


def number(document: Json, *keys: str) -> int:
    """The whole number below *keys*; 0 for anything else."""
    value = field(document, *keys)
    return int(value) if isinstance(value, (int, float)) else 0


def flag(document: Json, *keys: str) -> bool:
    """Whether the value below *keys* is true."""
    return field(document, *keys) is True


def items(document: Json, *keys: str) -> list[Json]:
    """The list below *keys*; empty for anything else."""
    value = field(document, *keys)
    return value if isinstance(value, list) else []


def mapping(document: Json, *keys: str) -> dict[str, Json]:
    """The object below *keys*; empty for anything else."""
    value = field(document, *keys)
    return value if isinstance(value, dict) else {}


def strings(document: Json, *keys: str) -> list[str]:
    """The strings of the list below *keys*."""
    return [value for value in items(document, *keys) if isinstance(value, str)]
