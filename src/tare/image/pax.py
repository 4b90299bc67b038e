"""PAX extended headers: their records, and what tare takes from them.

Not for: the headers that they describe (``tar``). Bounds on their size are the caller's.
"""

from __future__ import annotations

import base64
import binascii
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Self

from tare.errors import InvalidError

XATTR: Final = b"SCHILY.xattr."
_XATTR_LIBARCHIVE: Final = b"LIBARCHIVE.xattr."
_SPARSE: Final = b"GNU.sparse."
_TAKEN: Final = frozenset((b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime"))


def _entry(name: bytes, problem: str) -> InvalidError:
    shown = ascii(name[:120].decode("utf-8", "backslashreplace"))
    return InvalidError(f"archive entry {shown}: {problem}")


def parse_decimal(text: bytes, what: str, name: bytes) -> int:
    """A number that is nothing but at most 20 digits: no sign, space, underscore or Unicode."""
    if not 0 < len(text) <= 20 or not text.isdigit():
        raise _entry(name, f"its {what} {text[:40]!r} is no number")
    return int(text)


def parse_records(data: bytes) -> list[tuple[bytes, bytes]]:
    """The records ``LENGTH KEY=VALUE`` of a header, in order; InvalidError if it is malformed."""
    records: list[tuple[bytes, bytes]] = []
    position, end = 0, len(data)
    while position < end:
        space = data.find(b" ", position, position + 11)
        digits = data[position:space] if space > 0 else b""
        if not digits.isdigit():
            if not data[position:].strip(b"\0"):
                break  # some writers pad with NUL inside the size
            raise InvalidError("archive has a malformed PAX header: a record has no length")
        stop = position + int(digits)
        if stop > end or stop <= space + 1 or data[stop - 1] != 0x0A:
            raise InvalidError("archive has a malformed PAX header: a record's length is wrong")
        key, separator, value = data[space + 1 : stop - 1].partition(b"=")
        if not separator or not key:
            raise InvalidError("archive has a malformed PAX header: a record has no key")
        records.append((key, value))
        position = stop
    return records


@dataclass(slots=True)
class PaxHeader:
    """What extended headers say about one entry; later records win, an empty value takes back."""

    values: dict[bytes, bytes]
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    sparse: dict[bytes, bytes] = field(default_factory=dict)
    pairs: list[tuple[bytes, bytes]] = field(default_factory=list)

    @classmethod
    def of_global(cls, values: Mapping[bytes, bytes]) -> Self:
        """The header of an entry that has none of its own."""
        return cls(dict(values))

    @classmethod
    def of_records(
        cls, inherited: Mapping[bytes, bytes], records: list[tuple[bytes, bytes]]
    ) -> Self:
        """The header that *records* make on top of the global one."""
        header = cls(dict(inherited))
        for key, value in records:
            if key in _TAKEN:
                if value:
                    header.values[key] = value
                else:
                    header.values.pop(key, None)
            elif key.startswith(XATTR):
                header.xattrs[key[len(XATTR) :]] = value
            elif key.startswith(_XATTR_LIBARCHIVE):
                name, decoded = _libarchive(key[len(_XATTR_LIBARCHIVE) :], value)
                header.xattrs.setdefault(name, decoded)
            elif key.startswith(_SPARSE):
                header._add_sparse(key[len(_SPARSE) :], value)
        return header

    def _add_sparse(self, key: bytes, value: bytes) -> None:
        if key in {b"offset", b"numbytes"}:
            self.pairs.append((key, value))  # the only records that repeat on purpose
        else:
            self.sparse[key] = value

    @property
    def sparse_version(self) -> tuple[int, int] | None:
        """Which of GNU's three PAX formats this entry uses, or None."""
        if self.sparse.get(b"major") == b"1" and self.sparse.get(b"minor", b"0") == b"0":
            return (1, 0)
        if b"map" in self.sparse:
            return (0, 1)
        return (0, 0) if b"numblocks" in self.sparse else None

    @property
    def sparse_name(self) -> bytes | None:
        """The real name of a sparse file, whose ``path`` is a made-up one."""
        return self.sparse.get(b"name") if self.sparse_version else None

    def sparse_size(self, name: bytes) -> int:
        """The apparent size of a sparse file."""
        size = self.sparse.get(b"realsize") or self.sparse.get(b"size")
        if size is None:
            raise _entry(name, "a sparse file without a size")
        return parse_decimal(size, "real size", name)

    def sparse_map(self, name: bytes) -> tuple[list[tuple[int, int]], int]:
        """The map of formats 0.0 and 0.1, unchecked but for being numbers; and the size."""
        if self.sparse_version == (0, 1):
            text = self.sparse[b"map"]
            numbers = [parse_decimal(part, "sparse map", name) for part in text.split(b",") if text]
        else:
            expected = (b"offset", b"numbytes") * ((len(self.pairs) + 1) // 2)
            if any(key != want for (key, _), want in zip(self.pairs, expected, strict=False)):
                raise _entry(name, "its sparse map is inconsistent")
            numbers = [parse_decimal(value, "sparse map", name) for _, value in self.pairs]
        if len(numbers) % 2:
            raise _entry(name, "its sparse map is inconsistent")
        stated = self.sparse.get(b"numblocks")
        if stated is not None and parse_decimal(stated, "sparse map", name) != len(numbers) // 2:
            raise _entry(name, "its sparse map is inconsistent")
        pairs = iter(numbers)
        return list(zip(pairs, pairs, strict=True)), self.sparse_size(name)


def _libarchive(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """libarchive's form: the name percent-encoded, the value in base64, padded or not."""
    try:
        decoded = base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except binascii.Error as error:
        raise InvalidError("archive has a malformed LIBARCHIVE.xattr record") from error
    return urllib.parse.unquote_to_bytes(name), decoded
