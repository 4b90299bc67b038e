"""Files by descriptor: resolution that cannot leave a root, and the one durable write.

`replace` is the only durable write in the program. `open_in_root` and `open_beneath` are the
only ways to follow a path that an image, a container or an archive chose (openat2(2)).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from ctypes import c_char_p, c_int, c_size_t, c_uint, c_uint64
from typing import Final

from tare.kernel.libc import Libc, Syscall

RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", c_uint64), ("mode", c_uint64), ("resolve", c_uint64))


_RENAME_EXCHANGE: Final = 2
_AT_FDCWD: Final = -100
_renameat2 = Libc("renameat2", c_int, c_char_p, c_int, c_char_p, c_uint)
_openat2 = Syscall("openat2", 437, c_int, c_char_p, ctypes.POINTER(_OpenHow), c_size_t)


def openat2(directory: int, path: str | bytes, flags: int, *, mode: int = 0, resolve: int) -> int:
    """openat2(2): open *path* below *directory*; the descriptor is close-on-exec.

    EAGAIN (a rename raced a ``..``) is tried again a bounded number of times.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    encoded = os.fsencode(path)
    subject = os.fsdecode(path)
    for _ in range(32):
        try:
            # SAFETY: how and encoded live until the call returns.
            return _openat2(
                directory, encoded, ctypes.byref(how), ctypes.sizeof(how), subject=subject
            )
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise
    raise OSError(errno.EAGAIN, "openat2: the path kept changing", subject)


def open_in_root(root: int, path: str | bytes, flags: int, *, mode: int = 0) -> int:
    """Open *path* as a process chrooted to *root* would, magic links refused."""
    return openat2(root, path, flags, mode=mode, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)


def open_beneath(root: int, path: str | bytes, flags: int, *, mode: int = 0) -> int:
    """Open *path* strictly below *root*; any symlink, ``..`` escape or absolute path fails."""
    return openat2(root, path, flags, mode=mode, resolve=RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)


def exchange(one: str, other: str) -> None:
    """renameat2(2) with RENAME_EXCHANGE: each has the other's name, at no moment is one missing."""
    _renameat2(
        _AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE, subject=other
    )


def sync_directory(path: str | os.PathLike[str]) -> None:
    """fsync(2) a directory, so that a rename in it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: str | os.PathLike[str]) -> None:
    """fsync(2) a file by name."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(path: str | os.PathLike[str], content: bytes, *, mode: int = 0o600) -> None:
    """Make *path* hold *content*: after a power cut it holds the old bytes or these.

    The file is synced before the rename and the directory after it; without the second
    the rename itself may be lost.
    """
    parent = os.path.dirname(os.fspath(path)) or "."
    # Not tempfile: it imports half the library, and the keeper and its children import this.
    temporary = f"{parent}/.{os.urandom(8).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    sync_directory(parent)
