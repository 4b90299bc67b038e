"""What a container changed: the upper directory of its overlay, listed and made into a layer.

overlayfs keeps in the upper directory what was made or changed, a whiteout (a character device
0:0, or a file with the attribute ``overlay.whiteout``) where something was deleted, and the
attribute ``overlay.opaque`` on a directory that hides the one below. The attributes are
``trusted.overlay.*``, or ``user.overlay.*`` for mounts with the option userxattr; the other kind
means nothing, for a container may set those itself.

A container writes while we read: everything is by descriptor, links are never followed, and a
file that changes under the reader is an error of the archive, not of ours. Not for: mounting, or
pausing what runs.
"""

from __future__ import annotations

import os
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import IO, Final

from tare.errors import FailedError, TareError, UnsupportedError
from tare.image.entry import Entry, Kind, described, show
from tare.image.tar_writer import ByteSink, TarWriter

Unshift = Callable[[int], int]

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CHUNK: Final = 1 << 20
_DEPTH: Final = 250  # of directories; each takes a descriptor and two frames of Python
_WHITEOUT: Final = b".wh."
_CAPABILITY: Final = "security.capability"
_VFS_CAP_REVISION_2: Final = 0x02000000
_VFS_CAP_REVISION_3: Final = 0x03000000
_VFS_CAP_FLAGS: Final = 0x00FFFFFF

PLACES: Final = frozenset(
    {
        b"proc", b"sys", b"dev", b"etc/hosts", b"etc/hostname", b"etc/resolv.conf",
        b"sbin/docker-init",
    }
)  # fmt: skip
"""Where the engine itself mounts something: what lies there, empty, nobody inside has made."""


class ChangeKind(StrEnum):
    """As ``docker diff`` shows it."""

    CHANGED = "C"
    ADDED = "A"
    DELETED = "D"


@dataclass(frozen=True, slots=True, order=True)
class Change:
    """One path, absolute within the container, and what happened to it."""

    path: str
    kind: ChangeKind


def changes(upper_fd: int, lower_fd: int, *, userxattr: bool = False) -> list[Change]:
    """What differs between the layers below, mounted at *lower_fd*, and the upper directory.

    Sorted by path. A directory is listed when it was made or when something in it differs; a
    deleted tree is listed by its root.
    """
    comparison = _Comparison(_Marks(userxattr=userxattr))
    comparison.directory(upper_fd, lower_fd, "", opaque=False)
    return sorted(comparison.found)


class _Comparison:
    """Walks the upper directory beside what lies below."""

    def __init__(self, marks: _Marks) -> None:
        self._marks = marks
        self.found: list[Change] = []

    def directory(self, upper: int, lower: int | None, path: str, *, opaque: bool) -> None:
        """Compare one directory; *lower* is None where there was none."""
        if path.count("/") > _DEPTH:
            raise FailedError(f"the container's files are nested deeper than {_DEPTH} directories")
        names = set()
        for name in os.listdir(upper):
            names.add(name)
            self._entry(upper, lower, name, path)
        if opaque and lower is not None:
            for name in os.listdir(lower):
                if name not in names:
                    self.found.append(Change(f"{path}/{name}", ChangeKind.DELETED))

    def _entry(self, upper: int, lower: int | None, name: str, path: str) -> None:
        here = _lstat(upper, name)
        if here is None:
            return
        below = None if lower is None else _lstat(lower, name)
        below_path = f"{path}/{name}"
        if self._marks.is_whiteout(upper, name, here):
            if below is not None:
                self.found.append(Change(below_path, ChangeKind.DELETED))
            return
        if not stat.S_ISDIR(here.st_mode):
            kind = ChangeKind.ADDED if below is None else ChangeKind.CHANGED
            self.found.append(Change(below_path, kind))
            return
        before = len(self.found)
        with _directory(upper, name) as inside:
            was_directory = below is not None and stat.S_ISDIR(below.st_mode)
            with _optional_directory(lower, name, was_directory) as inside_below:
                opaque = self._marks.is_opaque(inside)
                self.directory(inside, inside_below, below_path, opaque=opaque)
        if below is None:
            self.found.append(Change(below_path, ChangeKind.ADDED))
        elif (
            len(self.found) > before or not was_directory or _attributes(here) != _attributes(below)
        ):
            self.found.append(Change(below_path, ChangeKind.CHANGED))


def _attributes(status: os.stat_result) -> tuple[int, int]:
    """What tells that a directory itself was changed; owners differ by the shift of ids."""
    return stat.S_IMODE(status.st_mode), status.st_mtime_ns


def write_layer(
    upper: int,
    out: ByteSink,
    *,
    unshift: Unshift = lambda value: value,
    devices: bool = True,
    userxattr: bool = False,
    lower: int | None = None,
    stubs: frozenset[bytes] = PLACES,
    latest_ns: int | None = None,
) -> None:
    """Write the upper directory as a layer's archive: whiteouts and opaque marks as OCI has them.

    *unshift* maps ids on disk to those in the container. Sockets are left out, and device nodes
    without *devices*, and files whose names would be whiteouts, and the empty *stubs* on which
    something was mounted. With *lower*, what lies below (ids as in the image), a directory that
    overlayfs copied up only to hold such stubs is left out as well. No file is given a time after
    *latest_ns*. The same tree gives the same bytes.
    """
    marks = _Marks(userxattr=userxattr)
    writer = _LayerWriter(
        TarWriter(out), unshift, marks, devices=devices, stubs=stubs, latest_ns=latest_ns
    )
    writer.tree(upper, b"", lower)
    writer.close()


@contextmanager
def open_layer(
    upper: int,
    *,
    unshift: Unshift = lambda value: value,
    devices: bool = True,
    userxattr: bool = False,
    lower: int | None = None,
    stubs: frozenset[bytes] = PLACES,
    latest_ns: int | None = None,
) -> Iterator[IO[bytes]]:
    """What `write_layer` writes, as a stream to read from; its failure comes at the end."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    failures: list[BaseException] = []

    def write() -> None:
        try:
            with open(write_end, "wb") as sink:
                write_layer(
                    upper,
                    sink,
                    unshift=unshift,
                    devices=devices,
                    userxattr=userxattr,
                    lower=lower,
                    stubs=stubs,
                    latest_ns=latest_ns,
                )
        except BrokenPipeError:
            pass  # nobody reads any more
        except BaseException as error:
            failures.append(error)

    writer = threading.Thread(target=write, name="layer", daemon=True)
    with open(read_end, "rb") as source:
        writer.start()
        yield _Checked(source, writer, failures)  # type: ignore[misc]  # it only needs to read
    writer.join()


class _Checked:
    """Reads a pipe, and at its end raises what its writer failed with."""

    def __init__(
        self, source: IO[bytes], writer: threading.Thread, failures: list[BaseException]
    ) -> None:
        self._source = source
        self._writer = writer
        self._failures = failures

    def read(self, n: int = -1, /) -> bytes:
        """At most *n* bytes; empty at the end, if all went well."""
        data = self._source.read(n)
        if not data or n < 0:
            self._writer.join()
            for failure in self._failures:
                if isinstance(failure, TareError):
                    raise failure
                raise FailedError(f"the container's files cannot be read: {failure}") from failure
        return data


class _LayerWriter:
    """Walks an upper directory and writes its entries in the order of their names."""

    def __init__(
        self,
        writer: TarWriter,
        unshift: Unshift,
        marks: _Marks,
        *,
        devices: bool,
        stubs: frozenset[bytes],
        latest_ns: int | None,
    ) -> None:
        self._stubs = stubs
        self._latest_ns = latest_ns
        self._writer = writer
        self._unshift = unshift
        self._marks = marks
        self._devices = devices
        self._linked: dict[tuple[int, int], bytes] = {}

    def close(self) -> None:
        """End the archive."""
        self._writer.close()

    def tree(self, directory: int, path: bytes, lower: int | None = None) -> None:
        """Write what is in *directory*, which lies over *lower*."""
        if path.count(b"/") > _DEPTH:
            raise FailedError(f"the container's files are nested deeper than {_DEPTH} directories")
        if path and self._marks.is_opaque(directory):
            self._marker(path + b"/.wh..wh..opq")
        for name in sorted(os.fsencode(n) for n in os.listdir(directory)):
            status = _lstat(directory, os.fsdecode(name))
            if status is None:
                continue
            below = path + b"/" + name if path else name
            if not self._is_stub(directory, below, status):
                self._entry(directory, name, below, status, lower)

    def _is_stub(self, parent: int, path: bytes, status: os.stat_result) -> bool:
        """Is it a place that the engine made to mount something on, with nothing else in it?"""
        if path not in self._stubs:
            return False
        if stat.S_ISREG(status.st_mode):
            return status.st_size == 0
        if not stat.S_ISDIR(status.st_mode):
            return False
        with _directory(parent, os.fsdecode(path.rpartition(b"/")[2])) as inside:
            return not self._marks.is_opaque(inside) and self._all_stubs(inside, path)

    def _all_stubs(self, directory: int, path: bytes) -> bool:
        for name in os.listdir(directory):
            found = _lstat(directory, name)
            if found is None or not self._is_stub(
                directory, path + b"/" + os.fsencode(name), found
            ):
                return False
        return True

    def _holds_only_stubs(
        self, directory: int, path: bytes, status: os.stat_result, below: os.stat_result | None
    ) -> bool:
        """Was the directory copied up for stubs alone, and is it otherwise the one below?"""
        if below is None or not any(place.startswith(path + b"/") for place in self._stubs):
            return False
        same = (
            stat.S_IMODE(status.st_mode) == stat.S_IMODE(below.st_mode)
            and self._unshift(status.st_uid) == below.st_uid
            and self._unshift(status.st_gid) == below.st_gid
        )
        if not same or not os.listdir(directory) or self._marks.is_opaque(directory):
            return False
        return self._all_stubs(directory, path)

    def _entry(
        self,
        parent: int,
        name: bytes,
        path: bytes,
        status: os.stat_result,
        lower: int | None = None,
    ) -> None:
        text = os.fsdecode(name)
        if self._marks.is_whiteout(parent, text, status):
            head, slash, _ = path.rpartition(b"/")
            self._marker(head + slash + _WHITEOUT + name)
            return
        if name.startswith(_WHITEOUT):
            return
        match stat.S_IFMT(status.st_mode):
            case stat.S_IFDIR:
                below = None if lower is None else _lstat(lower, text)
                there = below is not None and stat.S_ISDIR(below.st_mode)
                with (
                    _directory(parent, text) as inside,
                    _optional_directory(lower, text, there) as inside_lower,
                ):
                    self._marks.refuse_redirect(inside, path)
                    if self._holds_only_stubs(inside, path, status, below):
                        return
                    xattrs = self._xattrs(inside)
                    self._writer.add(self._described(path, Kind.DIR, status, xattrs=xattrs))
                    self.tree(inside, path, inside_lower)
            case stat.S_IFREG:
                self._file(parent, text, path, status)
            case stat.S_IFLNK:
                target = os.fsencode(os.readlink(text, dir_fd=parent))
                self._node(path, Kind.SYMLINK, status, linkname=target)
            case stat.S_IFIFO:
                self._node(path, Kind.FIFO, status)
            case stat.S_IFCHR | stat.S_IFBLK if self._devices:
                kind = Kind.CHAR if stat.S_ISCHR(status.st_mode) else Kind.BLOCK
                self._node(path, kind, status)
            case _:
                pass  # a socket means nothing without its listener

    def _marker(self, path: bytes) -> None:
        self._writer.add(Entry(path, Kind.FILE, mode=0o600))

    def _node(
        self, path: bytes, kind: Kind, status: os.stat_result, *, linkname: bytes = b""
    ) -> None:
        if not self._link(path, status):
            self._writer.add(self._described(path, kind, status, linkname=linkname))

    def _link(self, path: bytes, status: os.stat_result) -> bool:
        """Write a hard link if the inode was written before; remember it if it may come again."""
        if status.st_nlink < 2:
            return False
        identity = (status.st_dev, status.st_ino)
        first = self._linked.setdefault(identity, path)
        if first == path:
            return False
        self._writer.add(self._described(path, Kind.HARDLINK, status, linkname=first))
        return True

    def _file(self, parent: int, name: str, path: bytes, status: os.stat_result) -> None:
        if self._link(path, status):
            return
        descriptor = os.open(name, _FILE, dir_fd=parent)
        try:
            opened = os.fstat(descriptor)
            if not stat.S_ISREG(opened.st_mode):
                raise FailedError(f"{show(path)} changed while it was archived")
            xattrs = self._xattrs(descriptor)
            self._marks.refuse_redirect(descriptor, path)
            entry = self._described(path, Kind.FILE, opened, xattrs=xattrs)
            sparse = _segments(descriptor, opened)
            if sparse is not None:
                entry = entry._replace(sparse=sparse)
            pieces = ((0, opened.st_size),) if sparse is None else sparse
            self._writer.add(entry, _data(descriptor, pieces))
        finally:
            os.close(descriptor)

    def _described(
        self,
        path: bytes,
        kind: Kind,
        status: os.stat_result,
        *,
        linkname: bytes = b"",
        xattrs: dict[bytes, bytes] | None = None,
    ) -> Entry:
        entry = described(
            path, kind, status, owner=self._unshift, linkname=linkname, xattrs=xattrs or {}
        )
        return entry._replace(mtime_ns=self._time(entry.mtime_ns))

    def _time(self, nanoseconds: int) -> int:
        latest = self._latest_ns
        return nanoseconds if latest is None else min(nanoseconds, latest)

    def _xattrs(self, descriptor: int) -> dict[bytes, bytes]:
        """Capabilities and the user's own attributes; overlayfs's and the host's stay behind."""
        found: dict[bytes, bytes] = {}
        for name in os.listxattr(descriptor):
            if name == _CAPABILITY:
                found[name.encode()] = self._capability(os.getxattr(descriptor, name))
            elif name.startswith("user.") and not name.startswith("user.overlay."):
                found[os.fsencode(name)] = os.getxattr(descriptor, name)
        return found

    def _capability(self, value: bytes) -> bytes:
        """A capability of a user namespace (revision 3 has its root's id) as one of the image."""
        if len(value) != 24:
            return value
        magic, *words, root = struct.unpack("<IIIIII", value)
        if magic & ~_VFS_CAP_FLAGS != _VFS_CAP_REVISION_3:
            return value
        inside = self._unshift(root)
        if inside == 0:
            return struct.pack("<IIIII", _VFS_CAP_REVISION_2 | magic & _VFS_CAP_FLAGS, *words)
        return struct.pack("<IIIIII", magic, *words, inside)


def _segments(descriptor: int, status: os.stat_result) -> tuple[tuple[int, int], ...] | None:
    """Where a file with holes has data; None for a file without."""
    if status.st_blocks * 512 >= status.st_size or not status.st_size:
        return None
    found = []
    position = 0
    while position < status.st_size:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError:
            break  # ENXIO: only a hole is left
        end = min(os.lseek(descriptor, start, os.SEEK_HOLE), status.st_size)
        if start >= end:
            break
        found.append((start, end - start))
        position = end
    whole = ((0, status.st_size),)
    return None if tuple(found) == whole else tuple(found)


def _data(descriptor: int, pieces: tuple[tuple[int, int], ...]) -> Iterator[bytes]:
    for offset, length in pieces:
        left = length
        while left:
            data = os.pread(descriptor, min(left, _CHUNK), offset)
            if not data:
                return  # the archive's writer says that the file has shrunk
            offset += len(data)
            left -= len(data)
            yield data


def _lstat(directory: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None  # deleted since it was listed


@contextmanager
def _directory(parent: int, name: str) -> Iterator[int]:
    descriptor = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _optional_directory(parent: int | None, name: str, there: bool) -> Iterator[int | None]:
    if parent is None or not there:
        yield None
        return
    with _directory(parent, name) as descriptor:
        yield descriptor


class _Marks:
    """overlayfs's own marks, of the one kind that the mount reads."""

    def __init__(self, *, userxattr: bool) -> None:
        self._prefix = "user.overlay." if userxattr else "trusted.overlay."

    def is_whiteout(self, parent: int, name: str, status: os.stat_result) -> bool:
        """Does it stand for something deleted?"""
        if stat.S_ISCHR(status.st_mode):
            return status.st_rdev == 0
        if not stat.S_ISREG(status.st_mode) or status.st_size:
            return False
        # A file, in mounts that cannot make devices; only then is its attribute worth a call.
        try:
            descriptor = os.open(name, _FILE, dir_fd=parent)
        except OSError:
            return False
        try:
            return self._attribute(descriptor, "whiteout") is not None
        finally:
            os.close(descriptor)

    def is_opaque(self, directory: int) -> bool:
        """Does it hide the directory below it?"""
        return self._attribute(directory, "opaque") == b"y"

    def refuse_redirect(self, descriptor: int, path: bytes) -> None:
        """Our mounts never make these; a layer made of one would lack its files."""
        for name in ("redirect", "metacopy"):
            if self._attribute(descriptor, name) is not None:
                raise UnsupportedError(
                    f"{show(path)} is stored with overlayfs's {name}: it cannot be archived"
                )

    def _attribute(self, descriptor: int, name: str) -> bytes | None:
        try:
            return os.getxattr(descriptor, self._prefix + name)
        except OSError:
            return None
