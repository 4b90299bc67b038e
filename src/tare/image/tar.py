"""A streaming reader of tar archives that trusts nothing in them.

Reads v7, ustar, GNU and PAX archives, sparse files included, from any object with ``readinto``
or ``read``, front to back, once, in bounded memory. What it hands out is already checked: names
are relative and have no ``..``, numbers are in range, sizes are what the stream must still hold.

Not for: what an entry of a *layer* means (``whiteout``), putting entries anywhere (``erofs``,
``extract``), or compression (``compress``). Archives are written by `TarWriter`, in ``tar_writer``.

Where readers of tar differ, and an attacker could show two trees in one archive, this one refuses
(a global header that renames, a lone zero block, pieces of a sparse file that are no whole blocks)
or does as Go's archive/tar, by which the images were made: links, directories and devices never
have data; GNU long names win over PAX ones.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Final

from tare.errors import InvalidError
from tare.image.entry import (
    DEFAULT_LIMITS,
    ID_MAX,
    NO_XATTRS,
    ByteSource,
    Entry,
    Kind,
    Limits,
    Segments,
    clean_path,
    show,
)
from tare.image.pax import PaxHeader, parse_decimal, parse_records
from tare.image.tar_writer import TarWriter

__all__ = [
    "DEFAULT_LIMITS",
    "ID_MAX",
    "ByteSource",
    "Content",
    "Entry",
    "Kind",
    "Limits",
    "TarWriter",
    "clean_path",
    "read",
    "show",
]

BLOCK: Final = 512
_BUFFER: Final = 1 << 20
_TIME_MAX: Final = 1 << 40  # seconds; beyond it file systems wrap or refuse
_ZERO_BLOCK: Final = bytes(BLOCK)
_HEADER: Final = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12s")
_OCTAL: Final = re.compile(rb"[0-7]+")


class Content:
    """The data of the entry at hand; what is not read of it is skipped.

    Valid until the next entry is asked for, and a piece until the next piece is.
    """

    __slots__ = ("_buffer", "_entry", "_reader")

    def __init__(self, reader: _Source) -> None:
        self._reader = reader
        self._entry: Entry | None = None
        self._buffer = b""

    def _bind(self, entry: Entry) -> None:
        self._entry = entry
        self._buffer = b""

    @property
    def offset(self) -> int:
        """Where in the archive the data that is not yet read begins."""
        return self._reader.offset

    def chunks(self) -> Iterator[memoryview]:
        """The data as the archive holds it: a sparse file's without its holes."""
        return self._reader.chunks()

    def pieces(self) -> Iterator[tuple[int, memoryview]]:
        """The data with the offset in the file where each piece belongs, in order."""
        entry = self._entry
        if entry is None or entry.sparse is None:
            offset = 0
            for chunk in self._reader.chunks():
                yield offset, chunk
                offset += len(chunk)
            return
        for offset, length in entry.sparse:
            for chunk in self._reader.chunks(length):
                yield offset, chunk
                offset += len(chunk)

    def read(self, n: int = -1) -> bytes:
        """The next *n* bytes of the archive's data for it, or all that is left."""
        left = self._reader.left
        wanted = left if n < 0 else min(n, left)
        return b"".join(bytes(chunk) for chunk in self._reader.chunks(wanted))


class _Source:
    """A window over the stream: headers are parsed in it, data is handed out from it."""

    __slots__ = ("_buffer", "_end", "_read", "_readinto", "_start", "_view", "base", "left", "pad")

    def __init__(self, stream: ByteSource) -> None:
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._readinto = getattr(stream, "readinto", None)
        self._read = stream.read
        self.base = 0  # offset in the archive of the window's first byte
        self.left = 0  # of the current entry's data
        self.pad = 0  # zeros after it

    @property
    def offset(self) -> int:
        """Where in the archive we are."""
        return self.base + self._start

    def _fill(self) -> int:
        """Read more behind what is there; 0 at the end of the stream."""
        if self._readinto is not None:
            got: int = self._readinto(self._view[self._end :]) or 0
        else:
            data = self._read(_BUFFER - self._end)
            got = len(data)
            self._view[self._end : self._end + got] = data
        self._end += got
        return got

    def take(self, n: int) -> bytes:
        """Exactly *n* bytes, or fewer at the end of the stream; *n* is at most the window."""
        while self._end - self._start < n:
            if self._start:
                rest = self._end - self._start
                self._view[:rest] = self._view[self._start : self._end]
                self.base += self._start
                self._start, self._end = 0, rest
            if not self._fill():
                break
        end = min(self._start + n, self._end)
        data = bytes(self._view[self._start : end])
        self._start = end
        return data

    def chunks(self, limit: int | None = None) -> Iterator[memoryview]:
        """The next *limit* bytes of the current entry, or all that are left of it."""
        wanted = self.left if limit is None else min(limit, self.left)
        while wanted:
            if self._start == self._end:
                self.base += self._end
                self._start = self._end = 0
                if not self._fill():
                    raise InvalidError(f"archive is truncated: {self.left} bytes of data missing")
            size = min(wanted, self._end - self._start)
            start = self._start
            self._start = start + size
            self.left -= size
            wanted -= size
            yield self._view[start : start + size]

    def skip(self) -> None:
        """Pass what is left of the current entry, and its padding."""
        inside = self._end - self._start
        if self.left + self.pad <= inside:
            self._start += self.left + self.pad
            self.left = self.pad = 0
            return
        self.left += self.pad
        self.pad = 0
        for _ in self.chunks():
            pass

    def drain(self, limit: int) -> None:
        """Read the stream to its end, so that whoever hashes it has seen all of it."""
        self._start = self._end = 0
        while got := self._fill():
            self._start = self._end = 0
            limit -= got
            if limit < 0:
                raise InvalidError("archive goes on without end behind its end")


def read(stream: ByteSource, *, limits: Limits = DEFAULT_LIMITS) -> Iterator[tuple[Entry, Content]]:
    """The entries of *stream* with their data; InvalidError names the entry and what is wrong.

    After the archive's end the stream is read to its own end and the rest is ignored.
    """
    return _Parser(stream, limits).entries()


class _Parser:
    """Turns headers into entries. Holds what the headers before an entry said about it."""

    def __init__(self, stream: ByteSource, limits: Limits) -> None:
        self._source = _Source(stream)
        self._limits = limits
        self._global: dict[bytes, bytes] = {}
        self._inherited = PaxHeader.of_global(self._global)  # of entries without an own header
        self._pax: PaxHeader | None = None
        self._long_name: bytes | None = None
        self._long_link: bytes | None = None
        self._headers = 0
        self._total = 0
        self._metadata = 0
        self._octal: dict[bytes, int] = {}

    def entries(self) -> Iterator[tuple[Entry, Content]]:
        """Parse until the end."""
        source = self._source
        content = Content(source)
        while (block := self._next_header()) is not None:
            entry = self._entry(block)
            if entry is None:
                continue
            content._bind(entry)
            yield entry, content
            source.skip()
        if self._pax or self._long_name is not None or self._long_link is not None:
            raise InvalidError("archive ends after a header that describes a next entry")
        source.drain(self._limits.total)

    def _next_header(self) -> bytes | None:
        """The next header block; None at the end of the archive."""
        source = self._source
        block = source.take(BLOCK)
        if not block:
            return None
        if len(block) < BLOCK:
            raise InvalidError(f"archive is truncated inside the header at byte {source.offset}")
        if block == _ZERO_BLOCK:
            second = source.take(BLOCK)
            if second.strip(b"\0"):
                raise InvalidError(
                    f"archive goes on after a zero block at byte {source.offset - BLOCK}"
                )
            return None
        self._headers += 1
        # An entry may have a PAX header, a long name and a long link of its own.
        if self._headers > 4 * self._limits.files:
            raise InvalidError(f"archive has more than {self._limits.files} entries")
        return block

    def _entry(self, block: bytes) -> Entry | None:
        """What *block* describes; None when it is about the next entry."""
        fields = _HEADER.unpack(block)
        self._verify_checksum(block, fields[6])
        type_ = fields[7]
        if type_ in b"xXgLK":
            self._describe(type_, self._number(fields[4], "size", b"header"))
            return None
        pax = self._pax or self._inherited
        name = self._name(fields, pax)
        try:
            return self._checked(name, type_, block, fields, pax)
        finally:
            self._pax = self._long_name = self._long_link = None

    def _describe(self, type_: bytes, size: int) -> None:
        """Read a header that describes the next entry, or all that follow."""
        source = self._source
        if size > self._limits.header:
            raise InvalidError(
                f"archive has a header of {size} bytes at byte {source.offset};"
                f" at most {self._limits.header} are read"
            )
        padded = size + -size % BLOCK
        data = source.take(min(padded, _BUFFER)) if padded <= _BUFFER else b""
        if len(data) < padded:
            raise InvalidError(f"archive is truncated inside the header at byte {source.offset}")
        data = data[:size]
        self._account(size, b"header")
        match type_:
            case b"L":
                self._long_name = data.split(b"\0", 1)[0]
            case b"K":
                self._long_link = data.split(b"\0", 1)[0]
            case b"g":
                self._set_global(parse_records(data))
            case _:
                self._pax = PaxHeader.of_records(self._global, parse_records(data))

    def _set_global(self, records: list[tuple[bytes, bytes]]) -> None:
        for key, value in records:
            if key in (b"path", b"linkpath", b"size") or key.startswith(
                (b"GNU.sparse.", b"SCHILY.", b"LIBARCHIVE.")
            ):
                raise InvalidError(
                    f"archive has a global header that sets {key.decode(errors='replace')!r}"
                    " for every entry"
                )
            if key in (b"uid", b"gid", b"mtime"):
                self._global[key] = value
        self._inherited = PaxHeader.of_global(self._global)

    def _name(self, fields: tuple[bytes, ...], pax: PaxHeader) -> bytes:
        """The raw name, from wherever it is told."""
        if self._long_name is not None:
            return self._long_name
        if pax is not self._inherited:
            told = pax.sparse_name or pax.values.get(b"path")
            if told:
                return told
        name = fields[0].split(b"\0", 1)[0]
        # GNU archives have times, not a prefix, in the last field.
        if fields[9][:6] == b"ustar\0" and fields[14][:1] != b"\0":
            return fields[14].split(b"\0", 1)[0] + b"/" + name
        return name

    def _checked(
        self, name: bytes, type_: bytes, block: bytes, fields: tuple[bytes, ...], pax: PaxHeader
    ) -> Entry | None:
        kind = _KINDS.get(type_)
        if kind is Kind.FILE and name.endswith(b"/"):
            kind = Kind.DIR  # how v7 said it
            if self._number(fields[4], "size", name) or b"size" in pax.values:
                raise InvalidError(f"archive entry {show(name)}: a directory with data")
        if kind is None:
            if type_ == b"V":  # a volume's label says nothing about the tree
                return None
            raise InvalidError(f"archive entry {show(name)}: its type {type_!r} is not supported")
        path = clean_path(name, self._limits)
        size, sparse = self._data(name, kind, block, fields, pax)
        linkname = b"" if kind is Kind.FILE else self._linkname(name, kind, fields, pax)
        major = minor = 0
        if kind in (Kind.CHAR, Kind.BLOCK):
            major, minor = self._device(name, fields)
        mode = self._number(fields[1], "mode", name) & 0o7777
        xattrs: Mapping[bytes, bytes] = pax.xattrs or NO_XATTRS
        if xattrs:
            self._check_xattrs(name, xattrs)
        values = pax.values
        return Entry(
            path,
            kind,
            mode,
            self._owner(values.get(b"uid"), fields[2], "uid", name),
            self._owner(values.get(b"gid"), fields[3], "gid", name),
            self._mtime(values.get(b"mtime"), fields[5], name),
            size,
            linkname,
            major,
            minor,
            xattrs,
            sparse,
        )

    def _data(
        self,
        name: bytes,
        kind: Kind,
        block: bytes,
        fields: tuple[bytes, ...],
        pax: PaxHeader,
    ) -> tuple[int, Segments | None]:
        """Set up the data that follows; the apparent size and the map of a sparse file."""
        source = self._source
        if kind is not Kind.FILE:
            source.left = source.pad = 0
            return 0, None
        told = pax.values.get(b"size")
        stored = (
            self._number(fields[4], "size", name)
            if told is None
            else parse_decimal(told, "size", name)
        )
        self._total += stored
        if self._total > self._limits.total:
            raise InvalidError(
                f"archive entry {show(name)}: the archive's data exceeds {self._limits.total} bytes"
            )
        source.left, source.pad = stored, -stored % BLOCK
        if fields[7] == b"S":
            return self._old_sparse(name, block, stored)
        if not pax.sparse or not pax.sparse_version:
            return stored, None
        segments, size = (
            self._inline_sparse(name, pax) if pax.sparse_version == (1, 0) else pax.sparse_map(name)
        )
        return self._check_sparse(name, segments, size, source.left)

    def _old_sparse(self, name: bytes, block: bytes, stored: int) -> tuple[int, Segments | None]:
        """GNU's first format: four pieces in the header, 21 in each block that follows it."""
        source = self._source
        size = self._number(block[483:495], "real size", name)
        segments: list[tuple[int, int]] = []
        area, more = block[386:482], block[482]
        while True:
            for position in range(0, len(area) - 23, 24):
                if area[position] == 0:
                    break
                offset = self._number(area[position : position + 12], "sparse map", name)
                length = self._number(area[position + 12 : position + 24], "sparse map", name)
                segments.append((offset, length))
            if not more:
                break
            self._check_segment_count(name, len(segments))
            block = source.take(BLOCK)
            if len(block) < BLOCK:
                raise InvalidError(f"archive entry {show(name)}: truncated inside its sparse map")
            self._headers += 1
            if self._headers > 4 * self._limits.files:
                raise InvalidError(f"archive entry {show(name)}: its sparse map does not end")
            area, more = block[:504], block[504]
        return self._check_sparse(name, segments, size, stored)

    def _inline_sparse(self, name: bytes, pax: PaxHeader) -> tuple[list[tuple[int, int]], int]:
        """GNU's format 1.0: the map is decimal lines in whole blocks before the data."""
        source = self._source
        numbers: list[int] = []
        pending = b""
        wanted = 1
        while len(numbers) < wanted:
            block = source.take(min(BLOCK, source.left)) if source.left else b""
            source.left -= len(block)
            if len(block) < BLOCK:
                raise InvalidError(f"archive entry {show(name)}: its sparse map is cut off")
            *lines, pending = (pending + block).split(b"\n")
            if len(pending) > 2 * BLOCK:
                raise InvalidError(f"archive entry {show(name)}: its sparse map is malformed")
            for line in lines:
                if len(numbers) == wanted:
                    break
                numbers.append(parse_decimal(line, "sparse map", name))
                if len(numbers) == 1:
                    self._check_segment_count(name, numbers[0])
                    wanted = 1 + 2 * numbers[0]
        pairs = iter(numbers[1:])
        return list(zip(pairs, pairs, strict=True)), pax.sparse_size(name)

    def _check_segment_count(self, name: bytes, count: int) -> None:
        if count > self._limits.segments:
            raise InvalidError(
                f"archive entry {show(name)}: a sparse file of more than"
                f" {self._limits.segments} pieces"
            )

    def _check_sparse(
        self, name: bytes, segments: list[tuple[int, int]], size: int, stored: int
    ) -> tuple[int, Segments | None]:
        """A map is in order, without overlap, within the file, and as long as the data."""
        self._check_segment_count(name, len(segments))
        position = total = 0
        for offset, length in segments:
            if offset < position or offset + length > size:
                raise InvalidError(f"archive entry {show(name)}: its sparse map is inconsistent")
            # GNU tar pads every piece to a block, other readers none: only the last may be odd.
            if total % BLOCK and length:
                raise InvalidError(f"archive entry {show(name)}: its sparse map is not in blocks")
            position = offset + length
            total += length
        if total != stored or size >= 1 << 63:
            raise InvalidError(f"archive entry {show(name)}: its sparse map is inconsistent")
        return size, tuple(piece for piece in segments if piece[1])

    def _linkname(
        self, name: bytes, kind: Kind, fields: tuple[bytes, ...], pax: PaxHeader
    ) -> bytes:
        if kind is not Kind.SYMLINK and kind is not Kind.HARDLINK:
            return b""
        link = self._long_link
        if link is None:
            link = pax.values.get(b"linkpath") or fields[8].split(b"\0", 1)[0]
        if kind is Kind.HARDLINK:
            target = clean_path(link, self._limits)
            if not target:
                raise InvalidError(f"archive entry {show(name)}: a hard link to the root")
            return target
        if not link or b"\0" in link:
            raise InvalidError(f"archive entry {show(name)}: a symbolic link without a target")
        if len(link) >= self._limits.path:
            raise InvalidError(
                f"archive entry {show(name)}: its link target is {len(link)} bytes long;"
                f" at most {self._limits.path - 1} are possible"
            )
        return link

    def _device(self, name: bytes, fields: tuple[bytes, ...]) -> tuple[int, int]:
        major = self._number(fields[12], "device number", name)
        minor = self._number(fields[13], "device number", name)
        if major > 0xFFF or minor > 0xFFFFF:
            raise InvalidError(f"archive entry {show(name)}: device {major}:{minor} does not exist")
        return major, minor

    def _owner(self, told: bytes | None, field: bytes, what: str, name: bytes) -> int:
        value = self._number(field, what, name) if told is None else parse_decimal(told, what, name)
        if value > ID_MAX:
            raise InvalidError(f"archive entry {show(name)}: {what} {value} is out of range")
        return value

    def _mtime(self, told: bytes | None, field: bytes, name: bytes) -> int:
        if told is None:
            seconds, nanoseconds = self._number(field, "mtime", name, signed=True), 0
        else:
            whole, _, fraction = told.partition(b".")
            negative = whole.startswith(b"-")
            seconds = parse_decimal(whole[negative:] or b"0", "mtime", name)
            nanoseconds = parse_decimal(fraction[:9].ljust(9, b"0"), "mtime", name)
            if negative:
                seconds, nanoseconds = -seconds, -nanoseconds
        if abs(seconds) >= _TIME_MAX:
            raise InvalidError(f"archive entry {show(name)}: mtime {seconds} is out of range")
        return seconds * 1_000_000_000 + nanoseconds

    def _check_xattrs(self, name: bytes, xattrs: Mapping[bytes, bytes]) -> None:
        limits = self._limits
        for key, value in xattrs.items():
            if not key or b"\0" in key or len(key) > limits.xattr_name:
                raise InvalidError(f"archive entry {show(name)}: a bad attribute name {show(key)}")
            if len(value) > limits.xattr_value:
                raise InvalidError(
                    f"archive entry {show(name)}: attribute {show(key)} is {len(value)} bytes long;"
                    f" at most {limits.xattr_value} are possible"
                )
        if sum(len(key) + len(value) + 1 for key, value in xattrs.items()) > limits.xattrs:
            raise InvalidError(
                f"archive entry {show(name)}: more than {limits.xattrs} bytes of attributes"
            )

    def _account(self, size: int, name: bytes) -> None:
        self._metadata += size
        # Ten times: long names and PAX records repeat directories that are stored once.
        if self._metadata > 10 * self._limits.metadata:
            raise InvalidError(f"archive entry {show(name)}: the archive's headers are too large")

    def _number(self, field: bytes, what: str, name: bytes, *, signed: bool = False) -> int:
        """A header's number: octal digits, or GNU's base 256."""
        known = self._octal.get(field)
        if known is not None:
            return known
        if field[0] & 0x80:
            value = int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
            if field[0] & 0x40:
                value -= 1 << (8 * len(field) - 1)
                if not signed:
                    raise InvalidError(f"archive entry {show(name)}: its {what} is negative")
            return value
        digits = field.strip(b" \0")
        if not digits:
            return 0
        if not _OCTAL.fullmatch(digits):
            raise InvalidError(f"archive entry {show(name)}: its {what} {digits!r} is no number")
        value = int(digits, 8)
        if len(self._octal) < 4096:
            self._octal[field] = value
        return value

    def _verify_checksum(self, block: bytes, field: bytes) -> None:
        # Adler-32's low half is 1 + the sum of the bytes modulo 65521, and 256 bytes cannot
        # reach that modulus: two calls in C give the sum of a header exactly.
        total = (zlib.adler32(block[:256]) & 0xFFFF) + (zlib.adler32(block[256:]) & 0xFFFF) - 2
        total += 8 * 0x20 - sum(field)  # the field itself counts as spaces
        digits = field.strip(b" \0")
        stated = int(digits, 8) if _OCTAL.fullmatch(digits) else -1
        if total != stated and _signed_sum(block, field) != stated:
            raise InvalidError(
                f"not a tar archive: bad header checksum at byte {self._source.offset - BLOCK}"
            )


def _signed_sum(block: bytes, field: bytes) -> int:
    """The sum as old programs with signed characters computed it."""
    signed = (byte - 256 if byte > 127 else byte for byte in block)
    return sum(signed) + 8 * 0x20 - sum(byte - 256 if byte > 127 else byte for byte in field)


_KINDS: Final[Mapping[bytes, Kind]] = {
    b"0": Kind.FILE,
    b"\0": Kind.FILE,
    b"7": Kind.FILE,
    b"S": Kind.FILE,
    b"1": Kind.HARDLINK,
    b"2": Kind.SYMLINK,
    b"3": Kind.CHAR,
    b"4": Kind.BLOCK,
    b"5": Kind.DIR,
    b"6": Kind.FIFO,
}
