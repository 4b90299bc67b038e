"""Writes tar archives that no honest tool would: raw 512-byte headers, every field at will.

Not for: well-formed archives of real trees (``tarfile`` or ``TarWriter`` make those).
"""

from __future__ import annotations

from collections.abc import Mapping

BLOCK = 512


def header(
    name: bytes,
    *,
    type_: bytes = b"0",
    size: int | bytes = 0,
    mode: int | bytes = 0o644,
    uid: int | bytes = 0,
    gid: int | bytes = 0,
    mtime: int | bytes = 0,
    link: bytes = b"",
    magic: bytes = b"ustar\x0000",
    device: tuple[int | bytes, int | bytes] = (0, 0),
    prefix: bytes = b"",
    patch: Mapping[int, bytes] | None = None,
    checksum: bytes | None = None,
) -> bytes:
    """One header block; numbers may be given as raw bytes; *patch* overwrites at offsets."""

    def number(value: int | bytes, width: int) -> bytes:
        if isinstance(value, bytes):
            return value.ljust(width, b"\0")[:width]
        return b"%0*o\0" % (width - 1, value)

    block = bytearray(BLOCK)
    for offset, data in (
        (0, name[:100]),
        (100, number(mode, 8)),
        (108, number(uid, 8)),
        (116, number(gid, 8)),
        (124, number(size, 12)),
        (136, number(mtime, 12)),
        (156, type_),
        (157, link[:100]),
        (257, magic),
        (329, number(device[0], 8)),
        (337, number(device[1], 8)),
        (345, prefix[:155]),
        *((patch or {}).items()),
    ):
        block[offset : offset + len(data)] = data
    block[148:156] = b" " * 8
    block[148:156] = checksum or b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    """*data* in whole blocks."""
    return data + bytes(-len(data) % BLOCK)


def member(name: bytes, data: bytes = b"", **fields: object) -> bytes:
    """A header and its data; the size is that of the data unless said otherwise."""
    fields.setdefault("size", len(data))
    return header(name, **fields) + padded(data)  # type: ignore[arg-type]


def directory(name: bytes, **fields: object) -> bytes:
    """A directory."""
    return header(name, **{"type_": b"5", "mode": 0o755, **fields})  # type: ignore[arg-type]


def symlink(name: bytes, target: bytes) -> bytes:
    """A symbolic link."""
    return header(name, type_=b"2", link=target, mode=0o777)


def hardlink(name: bytes, target: bytes) -> bytes:
    """A hard link."""
    return header(name, type_=b"1", link=target)


def record(key: bytes, value: bytes) -> bytes:
    """One PAX record."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def pax(*records: tuple[bytes, bytes], type_: bytes = b"x") -> bytes:
    """A PAX header for the next member; ``type_=b"g"`` for all that follow."""
    return member(b"pax", b"".join(record(*pair) for pair in records), type_=type_)


def gnu_long(text: bytes, *, link: bool = False) -> bytes:
    """A GNU long name, or long link, for the next member."""
    return member(b"././@LongLink", text + b"\0", type_=b"K" if link else b"L")


def archive(*members: bytes, end: bool = True) -> bytes:
    """Members, and the two zero blocks."""
    return b"".join(members) + (bytes(2 * BLOCK) if end else b"")
