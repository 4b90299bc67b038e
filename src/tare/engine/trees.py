"""A tree of files copied as it is: owners, modes, times, attributes, links and holes.

Everything is by descriptor and no link is followed, so a tree that somebody changes meanwhile
leads nowhere else. Sockets are left out: they mean nothing without their listener.

Not for: archives (engine.volume_archive), layers (image).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Container, Iterator
from typing import Final

from tare.errors import FailedError
from tare.kernel import loop

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK: Final = 1 << 20
_DEPTH: Final = 500
_OVERLAY: Final = ("trusted.overlay.", "user.overlay.")
_CANNOT: Final = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY)


def can_reflink(directory: int) -> bool:
    """Whether files in *directory* can share extents (btrfs, xfs): tried, nothing is left."""
    flags = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC
    try:
        one = os.open(".", flags, 0o600, dir_fd=directory)
    except OSError:
        return False
    try:
        other = os.open(".", flags, 0o600, dir_fd=directory)
        try:
            loop.reflink(one, other)
        except OSError:
            return False
        finally:
            os.close(other)
    finally:
        os.close(one)
    return True


def copy(source: int, target: int, *, devices: bool = False, reflink: bool = False) -> None:
    """Copy what is in directory *source* into the empty directory *target*, and its attributes.

    With *reflink* file contents are shared, never copied: OSError where that cannot be.
    """
    copier = _Copier(devices=devices, reflink=reflink)
    try:
        copier.directory(source, target, 0)
    finally:
        copier.close()


def segments(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Where a file of *size* bytes has data: (offset, length) in order."""
    position = 0
    while position < size:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError:
            return  # ENXIO: only a hole is left
        end = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        if start >= end:
            return
        yield start, end - start
        position = end


def attributes(path: str | int) -> dict[str, bytes]:
    """The extended attributes that are the file's own; overlayfs's marks are not."""
    found = {}
    for name in os.listxattr(path):
        if not name.startswith(_OVERLAY):
            with contextlib.suppress(OSError):  # removed since it was listed
                found[name] = os.getxattr(path, name)
    return found


class _Copier:
    def __init__(self, *, devices: bool, reflink: bool) -> None:
        self._devices = devices
        self._reflink = reflink
        self._links: dict[tuple[int, int], tuple[int, str]] = {}
        self._open: list[int] = []

    def directory(self, source: int, target: int, depth: int) -> None:
        if depth > _DEPTH:
            raise FailedError(f"the tree is deeper than {_DEPTH} directories")
        for name in os.listdir(source):
            try:
                status = os.stat(name, dir_fd=source, follow_symlinks=False)
            except FileNotFoundError:
                continue  # deleted since it was listed
            self._entry(source, target, name, status, depth)
        _describe(target, os.fstat(source), attributes(source))

    def close(self) -> None:
        for descriptor in self._open:
            os.close(descriptor)

    def _entry(
        self, source: int, target: int, name: str, status: os.stat_result, depth: int
    ) -> None:
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFDIR:
            os.mkdir(name, 0o700, dir_fd=target)
            below = os.open(name, _DIRECTORY, dir_fd=source)
            try:
                made = os.open(name, _DIRECTORY, dir_fd=target)
                try:
                    self.directory(below, made, depth + 1)
                finally:
                    os.close(made)
            finally:
                os.close(below)
            return
        if self._linked(target, name, status):
            return
        if kind == stat.S_IFREG:
            self._file(source, target, name)
        elif kind == stat.S_IFLNK:
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
            times = (status.st_atime_ns, status.st_mtime_ns)
            os.utime(name, ns=times, dir_fd=target, follow_symlinks=False)
        elif kind == stat.S_IFIFO or (self._devices and kind in (stat.S_IFCHR, stat.S_IFBLK)):
            os.mknod(name, kind | 0o600, status.st_rdev, dir_fd=target)
            node = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=target)
            try:
                os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
                # fchmod(2) refuses O_PATH descriptors; this names the same inode and no other.
                os.chmod(f"/proc/self/fd/{node}", stat.S_IMODE(status.st_mode))
            finally:
                os.close(node)

    def _linked(self, target: int, name: str, status: os.stat_result) -> bool:
        """Make a hard link if the inode was copied before; remember where it goes else."""
        if status.st_nlink < 2:
            return False
        key = (status.st_dev, status.st_ino)
        first = self._links.get(key)
        if first is not None:
            os.link(first[1], name, src_dir_fd=first[0], dst_dir_fd=target, follow_symlinks=False)
            return True
        if not self._open or not os.path.sameopenfile(self._open[-1], target):
            self._open.append(os.dup(target))
        self._links[key] = (self._open[-1], name)
        return False

    def _file(self, source: int, target: int, name: str) -> None:
        descriptor = os.open(name, _READ, dir_fd=source)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise FailedError(f"{name!r} changed while it was copied")
            made = os.open(name, _CREATE, 0o600, dir_fd=target)
            try:
                if self._reflink:
                    loop.reflink(descriptor, made)
                else:
                    _content(descriptor, made, status.st_size)
                _describe(made, status, attributes(descriptor))
            finally:
                os.close(made)
        finally:
            os.close(descriptor)


def _content(source: int, target: int, size: int) -> None:
    for offset, length in segments(source, size):
        left = length
        while left:
            data = os.pread(source, min(left, _CHUNK), offset)
            if not data:
                break  # it has shrunk meanwhile
            while data:
                done = os.pwrite(target, data, offset)
                data, offset, left = data[done:], offset + done, left - done
    os.ftruncate(target, size)


def _describe(target: int, status: os.stat_result, xattrs: dict[str, bytes]) -> None:
    # Owner before mode and capabilities: chown(2) takes away both set-id bits and capabilities.
    os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    for name, value in xattrs.items():
        try:
            os.setxattr(target, name, value)
        except OSError as error:
            # Without privilege (rootless) or on a file system that has none of that kind.
            if error.errno not in (errno.ENOTSUP, errno.EPERM):
                raise
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def usage(path: str, *, without: Container[str] = ()) -> int:
    """Bytes that the tree at *path* takes on its disk, hard links once; 0 when it is gone.

    Directories *without* are passed over: what is mounted there lies elsewhere.
    """
    total, seen = 0, set()
    stack = [path]
    while stack:
        try:
            with os.scandir(stack.pop()) as listing:
                for item in listing:
                    try:
                        status = item.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    if stat.S_ISDIR(status.st_mode):
                        if item.path in without:
                            continue
                        stack.append(item.path)
                    elif status.st_nlink > 1:
                        if (status.st_dev, status.st_ino) in seen:
                            continue
                        seen.add((status.st_dev, status.st_ino))
                    total += status.st_blocks * 512
        except OSError:
            continue
    return total
