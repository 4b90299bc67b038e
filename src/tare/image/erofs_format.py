"""EROFS on disk: the few structures that an uncompressed image of 4 KiB blocks has.

Pure: values in, bytes out. Layouts are those of Linux's fs/erofs/erofs_fs.h. Not for: where things
go in the file (``erofs``).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Final

BLOCK: Final = 4096
SLOT: Final = 32  # inode numbers count these from the start of the metadata
SUPERBLOCK_OFFSET: Final = 1024
HOLE: Final = 0xFFFFFFFF

LAYOUT_PLAIN: Final = 0
LAYOUT_INLINE: Final = 2
LAYOUT_CHUNKS: Final = 4

INODE: Final = struct.Struct("<HHHHQIIIIQII16x")  # struct erofs_inode_extended
INODE_SIZE: Final = INODE.size
_MAGIC: Final = 0xE0F5E1E2
_SUPERBLOCK: Final = struct.Struct("<IIIBBHQQIIII16s16sI56x")
_COMPAT_CHECKSUM: Final = 1
_COMPAT_MTIME: Final = 2
_INCOMPAT_CHUNKED: Final = 4
_DIRENT: Final = struct.Struct("<QHBx")
_XATTR: Final = struct.Struct("<BBH")
_XATTR_HEADER: Final = bytes(12)
_PREFIXES: Final = ((b"user.", 1), (b"trusted.", 4), (b"security.", 6))


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


def crc32c(data: bytes) -> int:
    """Castagnoli's CRC as EROFS uses it: seeded with ones, not inverted at the end."""
    table = _crc_table()
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc


def superblock(*, root_nid: int, inodes: int, blocks: int, meta_block: int, chunked: bool) -> bytes:
    """Block 0. No UUID and no time: the same layer gives the same file."""

    def pack(checksum: int) -> bytes:
        return _SUPERBLOCK.pack(
            _MAGIC,
            checksum,
            _COMPAT_CHECKSUM | _COMPAT_MTIME,
            12,
            0,
            root_nid,
            inodes,
            0,
            0,
            blocks,
            meta_block,
            0,
            bytes(16),
            bytes(16),
            _INCOMPAT_CHUNKED if chunked else 0,
        )

    rest = bytes(BLOCK - SUPERBLOCK_OFFSET - _SUPERBLOCK.size)
    return bytes(SUPERBLOCK_OFFSET) + pack(crc32c(pack(0) + rest)) + rest


def device_number(major: int, minor: int) -> int:
    """The kernel's 32-bit encoding (new_encode_dev)."""
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)


def xattr_entries(xattrs: Mapping[bytes, bytes]) -> bytes:
    """Inline extended attributes, without the header before the first."""
    parts = []
    for key in sorted(xattrs):
        value = xattrs[key]
        for prefix, index in _PREFIXES:
            if key.startswith(prefix):
                name = key[len(prefix) :]
                body = _XATTR.pack(len(name), index, len(value)) + name + value
                parts.append(body + bytes(-len(body) % 4))
                break
        else:
            raise ValueError(f"attribute {key!r} has no EROFS prefix")
    return b"".join(parts)


def xattr_body(entries: bytes) -> bytes:
    """What follows an inode that has attributes: header and entries."""
    return _XATTR_HEADER + entries if entries else b""


def xattr_count(body: bytes) -> int:
    """The inode's i_xattr_icount for *body*."""
    return (len(body) - len(_XATTR_HEADER)) // 4 + 1 if body else 0


def directory_size(names: Iterable[bytes]) -> int:
    """Bytes of the directory with these sorted *names*, ``.`` and ``..`` included."""
    blocks = used = 0
    for name in names:
        need = _DIRENT.size + len(name)
        if used + need > BLOCK:
            blocks += 1
            used = 0
        used += need
    return blocks * BLOCK + used


def directory(children: list[tuple[bytes, int, int]]) -> bytes:
    """The directory with sorted (name, nid, file type); the last block is not padded."""
    blocks: list[bytes] = []
    start = used = 0
    for position, (name, _, _) in enumerate(children):
        need = _DIRENT.size + len(name)
        if used + need > BLOCK:
            blocks.append(_directory_block(children[start:position]).ljust(BLOCK, b"\0"))
            start, used = position, 0
        used += need
    blocks.append(_directory_block(children[start:]))
    return b"".join(blocks)


def _directory_block(children: list[tuple[bytes, int, int]]) -> bytes:
    pack = _DIRENT.pack
    offset = _DIRENT.size * len(children)
    parts = []
    for name, nid, file_type in children:
        parts.append(pack(nid, offset, file_type))
        offset += len(name)
    parts += [name for name, _, _ in children]
    return b"".join(parts)
