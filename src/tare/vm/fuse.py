"""The messages of FUSE that a guest's kernel sends, as bytes: headers, attributes, entries.

Pure. include/uapi/linux/fuse.h is the format; the version spoken is 7.31. Imports next to
nothing, for it is in memory once for each machine with shares.

Not for: what a request does (vm.sharing).
"""

from __future__ import annotations

import os
import struct
from enum import IntEnum
from typing import Final, NamedTuple

MAJOR: Final = 7
MINOR: Final = 31
MAX_WRITE: Final = 1 << 16
REQUEST: Final = struct.Struct("<IIQQIIII")
_REPLY: Final = struct.Struct("<IiQ")
_ATTRIBUTES: Final = struct.Struct("<QQQQQQIIIIIIIIII")
_ENTRY: Final = struct.Struct("<QQQQII")
_ATTR_OUT: Final = struct.Struct("<QII")
_STATFS: Final = struct.Struct("<QQQQQIIII24x")
_INIT_OUT: Final = struct.Struct("<IIIIHHIIHHI28x")
VALID_SECONDS: Final = 1
"""How long the guest may believe what it was told: others change the same files."""
_ASYNC_READ, _ATOMIC_TRUNCATE, _BIG_WRITES = 1 << 0, 1 << 3, 1 << 5
_PARALLEL, _MAX_PAGES = 1 << 18, 1 << 22


class Op(IntEnum):
    """What is asked; those not here are answered with ENOSYS, which the kernel remembers."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43
    RENAME2 = 45
    LSEEK = 46


class Request(NamedTuple):
    """One request: who asks (*uid*, *gid*) what of which node."""

    op: int
    unique: int
    node: int
    uid: int
    gid: int
    body: bytes


def parse(message: bytes) -> Request | None:
    """The request in *message*; None when it is none."""
    if len(message) < REQUEST.size:
        return None
    length, op, unique, node, uid, gid, _, _ = REQUEST.unpack_from(message)
    if length != len(message):
        return None
    return Request(op, unique, node, uid, gid, message[REQUEST.size :])


def reply(unique: int, body: bytes = b"") -> bytes:
    """An answer."""
    return _REPLY.pack(_REPLY.size + len(body), 0, unique) + body


def failure(unique: int, number: int) -> bytes:
    """An answer that is an errno."""
    return _REPLY.pack(_REPLY.size, -number, unique)


def attributes(status: os.stat_result) -> bytes:
    """struct fuse_attr."""
    seconds = []
    nanoseconds = []
    for at in (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns):
        whole, rest = divmod(at, 1_000_000_000)
        seconds.append(whole & (1 << 64) - 1)
        nanoseconds.append(rest)
    major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
    return _ATTRIBUTES.pack(
        status.st_ino, status.st_size, status.st_blocks, *seconds, *nanoseconds, status.st_mode,
        status.st_nlink, status.st_uid, status.st_gid,
        minor & 0xFF | major << 8 | (minor & ~0xFF) << 12, status.st_blksize, 0,
    )  # fmt: skip


def entry(node: int, status: os.stat_result) -> bytes:
    """struct fuse_entry_out."""
    return _ENTRY.pack(node, 0, VALID_SECONDS, VALID_SECONDS, 0, 0) + attributes(status)


def attribute_answer(status: os.stat_result) -> bytes:
    """struct fuse_attr_out."""
    return _ATTR_OUT.pack(VALID_SECONDS, 0, 0) + attributes(status)


def opened(handle: int) -> bytes:
    """struct fuse_open_out."""
    return struct.pack("<QII", handle, 0, 0)


def directory_entry(inode: int, after: int, kind: int, name: bytes) -> bytes:
    """struct fuse_dirent; *kind* is the file type of st_mode, shifted down by 12."""
    packed = struct.pack("<QQII", inode, after, len(name), kind) + name
    return packed + bytes(-len(packed) % 8)


def statistics(found: os.statvfs_result) -> bytes:
    """struct fuse_statfs_out."""
    return _STATFS.pack(
        found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree,
        found.f_bsize, found.f_namemax, found.f_frsize, 0,
    )  # fmt: skip


def welcome(body: bytes) -> bytes:
    """The answer to INIT: the flags that both sides know, and the sizes."""
    _, _, readahead, flags = struct.unpack_from("<IIII", body)
    ours = _ASYNC_READ | _ATOMIC_TRUNCATE | _BIG_WRITES | _PARALLEL | _MAX_PAGES
    return _INIT_OUT.pack(
        MAJOR, MINOR, min(readahead, MAX_WRITE), flags & ours, 16, 12, MAX_WRITE, 1,
        MAX_WRITE >> 12, 0, 0,
    )  # fmt: skip
