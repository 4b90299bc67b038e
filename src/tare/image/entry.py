"""What an archive holds, as values: entries, and the limits on them.

Shared by the reader, the writer and those who put entries somewhere. Not for: any format's bytes.
"""

from __future__ import annotations

import enum
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol

from tare.errors import InvalidError

Segments = tuple[tuple[int, int], ...]

ID_MAX: Final = 2**32 - 2  # (uid_t)-1 means "no id" to the kernel
NO_XATTRS: Final[Mapping[bytes, bytes]] = MappingProxyType({})


class ByteSource(Protocol):
    """Whatever bytes are read from: a file, a socket's file, a decompressor."""

    def read(self, n: int, /) -> bytes:
        """At most *n* bytes; empty at the end."""
        ...


class Kind(enum.IntEnum):
    """What an entry makes."""

    FILE = 0
    HARDLINK = 1
    SYMLINK = 2
    CHAR = 3
    BLOCK = 4
    DIR = 5
    FIFO = 6


class Entry(NamedTuple):
    """One member of an archive, checked.

    ``path`` is relative, without ``.`` and ``..``; the root itself is empty. ``size`` is the file's
    apparent size, 0 for all but files. ``sparse`` lists the (offset, length) that hold data, in
    order, or is None for a file without holes. ``linkname`` of a hard link is checked like
    ``path``; that of a symbolic link is the text as it is.
    """

    path: bytes
    kind: Kind
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    linkname: bytes = b""
    major: int = 0
    minor: int = 0
    xattrs: Mapping[bytes, bytes] = NO_XATTRS
    sparse: Segments | None = None

    @property
    def stored(self) -> int:
        """How many bytes of data the archive holds for it."""
        return self.size if self.sparse is None else sum(length for _, length in self.sparse)


FILE_KINDS: Final = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIR,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHAR,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFIFO: Kind.FIFO,
}
"""What a file of a type of stat(2) is in an archive; a socket is nothing there."""


def described(
    path: bytes,
    kind: Kind,
    status: os.stat_result,
    *,
    owner: Callable[[int], int] = lambda number: number,
    linkname: bytes = b"",
    xattrs: Mapping[bytes, bytes] = NO_XATTRS,
) -> Entry:
    """The entry of a file on disk; *owner* turns its ids into those of the archive."""
    device = kind in (Kind.CHAR, Kind.BLOCK)
    return Entry(
        path,
        kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=owner(status.st_uid),
        gid=owner(status.st_gid),
        mtime_ns=status.st_mtime_ns,
        size=status.st_size if kind is Kind.FILE else 0,
        linkname=linkname,
        major=os.major(status.st_rdev) if device else 0,
        minor=os.minor(status.st_rdev) if device else 0,
        xattrs=xattrs,
    )


@dataclass(frozen=True, slots=True)
class Limits:
    """What an archive may cost; beyond any of these it is refused (attacks A28, A29)."""

    files: int = 2_000_000
    depth: int = 512
    name: int = 255
    path: int = 4096
    header: int = 1 << 20
    """Bytes of one PAX or long-name header."""
    xattr_name: int = 255
    xattr_value: int = 65_536
    xattrs: int = 65_536
    """Bytes of all extended attributes of one entry: the kernel's own bound on a list of them."""
    segments: int = 1 << 18
    """Pieces of one sparse file."""
    metadata: int = 384 << 20
    """Bytes of memory for names, link targets and attributes of a whole archive, roughly."""
    total: int = 1 << 40
    """Bytes of data of a whole archive, and of what is written for it."""
    ratio: int | None = 200
    """How many bytes one compressed byte may become, counted once 64 MiB have come out."""


DEFAULT_LIMITS: Final = Limits()


def show(name: bytes) -> str:
    """A name for an error message: short, quoted, nothing in it acts on a terminal."""
    text = name.decode("utf-8", "backslashreplace")
    return ascii(text if len(text) <= 120 else text[:117] + "...") if text else "''"


def clean_path(name: bytes, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """*name* relative to the root, without ``.`` and doubled slashes; InvalidError for ``..``.

    Leading slashes are dropped, as every extractor does: an archive has no other root than its own.
    """
    if b"\0" in name:
        raise InvalidError(f"archive entry {show(name)}: its name contains NUL")
    path = name.strip(b"/")
    if b"//" in path or path[:1] == b"." or b"/." in path:
        parts = [part for part in path.split(b"/") if part not in (b"", b".")]
        if b".." in parts:
            raise InvalidError(f"archive entry {show(name)}: its name leads outside by '..'")
        path = b"/".join(parts)
    elif not name:
        raise InvalidError("archive entry '': it has no name")
    if len(path) > limits.name:
        if len(path) > limits.path:
            raise InvalidError(
                f"archive entry {show(name)}: its name is {len(path)} bytes long;"
                f" at most {limits.path} are possible"
            )
        if max(map(len, path.split(b"/"))) > limits.name:
            raise InvalidError(
                f"archive entry {show(name)}: a component is over {limits.name} bytes long"
            )
    if path.count(b"/") >= limits.depth:
        raise InvalidError(f"archive entry {show(name)}: deeper than {limits.depth} directories")
    return path
