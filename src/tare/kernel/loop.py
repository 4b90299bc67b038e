"""Loop devices: a file as a block device (loop(4)), and sharing of extents between files.

Not for: what is on the device.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from typing import Final

_CONTROL: Final = "/dev/loop-control"
_LOOP_MAJOR: Final = 7
_CTL_GET_FREE: Final = 0x4C82
_CONFIGURE: Final = 0x4C0A
_AUTOCLEAR: Final = 4
_DIRECT_IO: Final = 16
_INFO: Final = struct.Struct("=5Q4I64s64s32s2Q")  # struct loop_info64
_CONFIG: Final = struct.Struct(f"=2I{_INFO.size}s64x")  # struct loop_config
_FICLONE: Final = 0x40049409
_TRIES: Final = 64


def attach(path: str) -> int:
    """A descriptor of a fresh loop device that shows the file *path*, not bound to a name.

    The kernel lets go of the file when the last user of the device (a mount, this descriptor) does.
    """
    backing = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):
            device = _open_free()
            try:
                _configure(device, backing, path)
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:  # somebody else took it meanwhile
                    raise
            else:
                return device
    finally:
        os.close(backing)
    raise OSError(errno.EBUSY, "no loop device stays free", _CONTROL)


def _configure(device: int, backing: int, path: str) -> None:
    name = os.fsencode(path)[-63:]
    for flags in (_AUTOCLEAR | _DIRECT_IO, _AUTOCLEAR):
        info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, name, b"", b"", 0, 0)
        try:
            fcntl.ioctl(device, _CONFIGURE, _CONFIG.pack(backing, 0, info))
        except OSError as error:
            if error.errno != errno.EINVAL or flags == _AUTOCLEAR:
                raise  # direct I/O is a wish: some file systems cannot
        else:
            return


def _open_free() -> int:
    control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        number: int = fcntl.ioctl(control, _CTL_GET_FREE)
    finally:
        os.close(control)
    path = f"/dev/loop{number}"
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        # Nobody makes nodes here (no devtmpfs, no udev).
        os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(_LOOP_MAJOR, number))
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)


def reflink(source: int, target: int) -> None:
    """ioctl_ficlone(2): *target* shares all extents of *source*.

    EOPNOTSUPP, EXDEV or EINVAL where the file system cannot.
    """
    fcntl.ioctl(target, _FICLONE, source)
