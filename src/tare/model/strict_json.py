"""JSON from strangers: bounded, one meaning only, and typed as it is taken out.

A document that two readers could take for two different things is refused: duplicate keys, a
byte order mark, numbers beyond 64 bits, NaN, lone surrogates. `Fields` takes typed values out
of an object and names the field that is wrong.

Not for: Docker's API bodies (``wire``), files that tare wrote itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Final, NoReturn

from tare.errors import InvalidError

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

_DEPTH: Final = 32
_INT_DIGITS: Final = 20
_NESTING: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|([\[{])|([\]}])')
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def decode(raw: bytes, what: str, *, limit: int) -> dict[str, Json]:
    """The object that *raw* is; InvalidError names *what* and why it is none."""
    if len(raw) > limit:
        raise InvalidError(f"{what} is {len(raw)} bytes long; at most {limit} are read")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise InvalidError(f"{what} is not JSON: it is not UTF-8") from None
    _check_depth(raw, what)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_int=_integer,
        )
    except (ValueError, RecursionError) as error:
        raise InvalidError(f"{what} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidError(f"{what} is not a JSON object")
    return value


def decode_list(raw: bytes, what: str, *, limit: int) -> list[Json]:
    """The list that *raw* is, as strictly as `decode`."""
    if not raw.lstrip().startswith(b"["):
        raise InvalidError(f"{what} is not a JSON list")
    wrapped = decode(b'{"list":' + raw + b"}", what, limit=limit + 9)
    if set(wrapped) != {"list"}:
        raise InvalidError(f"{what} is not a JSON list")
    value = wrapped["list"]
    assert isinstance(value, list)
    return value


def encode(value: Json) -> bytes:
    """The one encoding of *value*: sorted keys, no spaces, UTF-8."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def _check_depth(raw: bytes, what: str) -> None:
    depth = 0
    for match in _NESTING.finditer(raw):
        if match[1]:
            depth += 1
            if depth > _DEPTH:
                raise InvalidError(f"{what} is nested deeper than {_DEPTH} levels")
        elif match[2]:
            depth -= 1


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:80]!a} occurs twice")
            seen.add(key)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _integer(text: str) -> int:
    if len(text) > _INT_DIGITS:
        raise ValueError(f"the number {text[:24]}... is too large")
    return int(text)


class Fields:
    """An object's fields, typed; every refusal names the document and the field.

    A field that is absent or null has the empty value; `required` ones may be neither.
    """

    __slots__ = ("_value", "_what")

    def __init__(self, value: Mapping[str, Json], what: str) -> None:
        self._value = value
        self._what = what

    def __contains__(self, name: str) -> bool:
        return self._value.get(name) is not None

    def refuse(self, name: str, why: str) -> NoReturn:
        """Raise the error that says what is wrong with *name*."""
        raise InvalidError(f"{self._what}: {name} {why}")

    def only_spelled(self, *names: str) -> None:
        """Refuse a key that another reader, blind to case, would take for one of *names*."""
        known = {name.lower(): name for name in names}
        for key in self._value:
            if known.get(key.lower(), key) != key:
                self.refuse(ascii(key[:80]), f"must be spelled {known[key.lower()]!r}")

    def text(self, name: str, *, required: bool = False) -> str:
        """A string without NUL."""
        value = self._value.get(name)
        if value is None:
            if required:
                self.refuse(name, "is missing")
            return ""
        return self._text(name, value)

    def _text(self, name: str, value: Json) -> str:
        if not isinstance(value, str):
            self.refuse(name, f"must be a string, not {_kind(value)}")
        if "\0" in value or _SURROGATE.search(value):
            self.refuse(name, "contains a character that no text has")
        return value

    def integer(self, name: str, *, required: bool = False, maximum: int = 2**63 - 1) -> int:
        """A number from 0 to *maximum*."""
        value = self._value.get(name)
        if value is None and not required:
            return 0
        if not isinstance(value, int) or isinstance(value, bool):
            self.refuse(name, f"must be a whole number, not {_kind(value)}")
        if not 0 <= value <= maximum:
            self.refuse(name, f"is out of range: {value}")
        return value

    def boolean(self, name: str) -> bool:
        """True or false."""
        value = self._value.get(name)
        if value is None:
            return False
        if not isinstance(value, bool):
            self.refuse(name, f"must be true or false, not {_kind(value)}")
        return value

    def texts(self, name: str) -> tuple[str, ...] | None:
        """A list of strings; None when it is absent, which is not the same as empty."""
        value = self._value.get(name)
        if value is None:
            return None
        if isinstance(value, str):
            # Old builders wrote a lone string where a list of one was meant.
            return (self._text(name, value),)
        if not isinstance(value, list):
            self.refuse(name, f"must be a list of strings, not {_kind(value)}")
        return tuple(self._text(f"{name}[{i}]", item) for i, item in enumerate(value))

    def mapping(self, name: str) -> dict[str, str]:
        """An object of strings."""
        value = self._value.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.refuse(name, f"must be an object, not {_kind(value)}")
        return {
            self._text(name, key): "" if item is None else self._text(f"{name}.{key[:80]}", item)
            for key, item in value.items()
        }

    def keys(self, name: str) -> tuple[str, ...]:
        """The keys of an object that is used as a set, sorted."""
        value = self._value.get(name)
        if value is None:
            return ()
        if not isinstance(value, dict):
            self.refuse(name, f"must be an object, not {_kind(value)}")
        return tuple(sorted(self._text(name, key) for key in value))

    def fields(self, name: str, *, required: bool = False) -> Fields:
        """An object's own fields."""
        value = self._value.get(name)
        if value is None and not required:
            return Fields({}, f"{self._what}: {name}")
        if not isinstance(value, dict):
            self.refuse(name, f"must be an object, not {_kind(value)}")
        return Fields(value, f"{self._what}: {name}")

    def each(self, name: str, *, limit: int, required: bool = False) -> list[Fields]:
        """A list of objects, at most *limit*."""
        value = self._value.get(name)
        if value is None and not required:
            return []
        if not isinstance(value, list):
            self.refuse(name, f"must be a list, not {_kind(value)}")
        if len(value) > limit:
            self.refuse(name, f"has {len(value)} entries; at most {limit} are possible")
        found = []
        for i, item in enumerate(value):
            if not isinstance(item, dict):
                self.refuse(f"{name}[{i}]", f"must be an object, not {_kind(item)}")
            found.append(Fields(item, f"{self._what}: {name}[{i}]"))
        return found


def _kind(value: Json) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case _:
            return "an object"
