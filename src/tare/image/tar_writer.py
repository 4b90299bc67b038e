"""A deterministic writer of tar archives: ustar headers, PAX records only where they are needed.

The same entries give the same bytes: no names of users, no times but those of the entries.
Not for: deciding what goes in, or compression.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Protocol

from tare.errors import FailedError, InvalidError
from tare.image.entry import Entry, Kind

_BLOCK: Final = 512
_OCTAL_7: Final = 0o7777777
_OCTAL_11: Final = 0o77777777777
_TYPES: Final = b"0123456"  # in the order of Kind


class ByteSink(Protocol):
    """Whatever takes bytes, all of them."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Take *data*."""
        ...


class TarWriter:
    """Writes entries to a stream as they come; `close` ends the archive, not the stream."""

    def __init__(self, stream: ByteSink) -> None:
        self._write = stream.write

    def add(self, entry: Entry, data: Iterable[bytes | memoryview] = ()) -> None:
        """Write *entry* and its *data*, as `archived` gives them."""
        for piece in archived(entry, data):
            self._write(piece)

    def close(self) -> None:
        """Write the archive's end."""
        self._write(END)


def archived(entry: Entry, data: Iterable[bytes | memoryview] = ()) -> Iterator[bytes | memoryview]:
    """The bytes of *entry* and its *data* in an archive: of a sparse one, its pieces in order.

    FailedError when *data* is not as long as the entry says: the archive is then of no use.
    """
    records = _records(entry)
    prefix = _sparse_prefix(entry)
    stored = entry.stored + len(prefix)
    if stored > _OCTAL_11:
        records[b"size"] = b"%d" % stored
    name, prefix_field = _split_name(_stored_name(entry), records)
    if records:
        yield _pax_header(entry, records)
    yield _header(entry, name, prefix_field, stored)
    if prefix:
        yield prefix
    written = len(prefix)
    for chunk in data:
        written += len(chunk)
        if written > stored:
            break
        yield chunk
    if written != stored:
        raise FailedError(
            f"{entry.path!r} changed while it was archived: {stored} bytes were announced"
        )
    if written % _BLOCK:
        yield bytes(-written % _BLOCK)


END: Final = bytes(2 * _BLOCK)
"""What ends an archive."""


def _stored_name(entry: Entry) -> bytes:
    name = entry.path or b"."
    return name + b"/" if entry.kind is Kind.DIR else name


def _split_name(name: bytes, records: dict[bytes, bytes]) -> tuple[bytes, bytes]:
    """Fit *name* into ustar's two fields, or put it into a PAX record."""
    if len(name) <= 100:
        return name, b""
    cut = name.rfind(b"/", 0, 156)
    if cut > 0 and 0 < len(name) - cut - 1 <= 100:
        return name[cut + 1 :], name[:cut]
    records[b"path"] = name
    return name[:100].rstrip(b"/") or b"x", b""


def _records(entry: Entry) -> dict[bytes, bytes]:
    """What does not fit into the header."""
    records: dict[bytes, bytes] = {}
    if len(entry.linkname) > 100:
        records[b"linkpath"] = entry.linkname
    if entry.uid > _OCTAL_7:
        records[b"uid"] = b"%d" % entry.uid
    if entry.gid > _OCTAL_7:
        records[b"gid"] = b"%d" % entry.gid
    seconds, nanoseconds = divmod(entry.mtime_ns, 1_000_000_000)
    if nanoseconds or not 0 <= seconds <= _OCTAL_11:
        records[b"mtime"] = _decimal_time(entry.mtime_ns)
    if entry.sparse is not None:
        records[b"GNU.sparse.major"] = b"1"
        records[b"GNU.sparse.minor"] = b"0"
        records[b"GNU.sparse.name"] = entry.path
        records[b"GNU.sparse.realsize"] = b"%d" % entry.size
    for key in sorted(entry.xattrs):
        if b"=" in key:
            raise InvalidError(f"{entry.path!r}: attribute name {key!r} cannot be archived")
        records[b"SCHILY.xattr." + key] = entry.xattrs[key]
    return records


def _decimal_time(nanoseconds: int) -> bytes:
    sign = b"-" if nanoseconds < 0 else b""
    seconds, rest = divmod(abs(nanoseconds), 1_000_000_000)
    fraction = (b".%09d" % rest).rstrip(b"0") if rest else b""
    return sign + b"%d" % seconds + fraction


def _pax_header(entry: Entry, records: dict[bytes, bytes]) -> bytes:
    text = records.get(b"path", b"") + records.get(b"linkpath", b"")
    lines = []
    try:
        text.decode()
    except UnicodeDecodeError:
        lines.append(_record(b"hdrcharset", b"BINARY"))
    lines += [_record(key, value) for key, value in sorted(records.items())]
    body = b"".join(lines)
    base = (entry.path.rsplit(b"/", 1)[-1] or b"root")[:80]
    block = _block(
        b"PaxHeaders.0/" + base, b"", b"x", mode=0o644, uid=0, gid=0, size=len(body), mtime=0
    )
    return block + body + bytes(-len(body) % _BLOCK)


def _record(key: bytes, value: bytes) -> bytes:
    """A record whose length counts its own digits."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) != len(str(rest)):
        length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _sparse_prefix(entry: Entry) -> bytes:
    """The map of GNU's format 1.0, in whole blocks."""
    if entry.sparse is None:
        return b""
    pieces = entry.sparse
    if any(length % _BLOCK for _, length in pieces[:-1]):
        raise ValueError("only the last piece of a sparse file may be no whole blocks")
    if not pieces or sum(pieces[-1]) < entry.size:
        pieces = (*pieces, (entry.size, 0))  # GNU tar ends the file where its last piece ends
    lines = [b"%d\n" % len(pieces)]
    lines += [b"%d\n%d\n" % piece for piece in pieces]
    text = b"".join(lines)
    return text + bytes(-len(text) % _BLOCK)


def _header(entry: Entry, name: bytes, prefix: bytes, stored: int) -> bytes:
    kind = int(entry.kind)
    seconds = entry.mtime_ns // 1_000_000_000
    return _block(
        name,
        prefix,
        _TYPES[kind : kind + 1],
        mode=entry.mode & 0o7777,
        uid=entry.uid if entry.uid <= _OCTAL_7 else 0,
        gid=entry.gid if entry.gid <= _OCTAL_7 else 0,
        size=stored if stored <= _OCTAL_11 else 0,
        mtime=min(max(seconds, 0), _OCTAL_11),
        link=entry.linkname[:100],
        device=(entry.major, entry.minor),
    )


def _block(
    name: bytes,
    prefix: bytes,
    type_: bytes,
    *,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime: int,
    link: bytes = b"",
    device: tuple[int, int] = (0, 0),
) -> bytes:
    """One ustar header block with its checksum."""
    front = b"%s%07o\0%07o\0%07o\0%011o\0%011o\0" % (
        name.ljust(100, b"\0"), mode, uid, gid, size, mtime,
    )  # fmt: skip
    back = b"%s%s%s%s%07o\0%07o\0%s" % (
        type_, link.ljust(100, b"\0"), b"ustar\x0000", bytes(64), *device, prefix.ljust(167, b"\0"),
    )  # fmt: skip
    total = sum(front) + sum(back) + 8 * 0x20
    return b"%s%06o\0 %s" % (front, total, back)
