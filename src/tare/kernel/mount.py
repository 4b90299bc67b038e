"""The descriptor mount API: fsopen(2), open_tree(2), mount_setattr(2), move_mount(2).

A mount is made detached, changed, and only then attached, so no process ever sees it half
made, and no path is resolved twice. Descriptors are plain ints owned by the caller and are
close-on-exec. These calls have one number on every architecture but alpha.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from ctypes import c_char_p, c_int, c_size_t, c_uint, c_uint64, c_ulong, c_void_p
from typing import Final

from tare.kernel.libc import Libc, Syscall, number

AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = 0x1000
AT_RECURSIVE: Final = 0x8000
AT_SYMLINK_NOFOLLOW: Final = 0x100

RDONLY: Final = 0x01
NOSUID: Final = 0x02
NODEV: Final = 0x04
NOEXEC: Final = 0x08
NOATIME: Final = 0x10
IDMAP: Final = 0x100000
NOSYMFOLLOW: Final = 0x200000

MS_UNBINDABLE: Final = 1 << 17
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MS_SHARED: Final = 1 << 20
PROPAGATION: Final = {"private": MS_PRIVATE, "slave": MS_SLAVE, "shared": MS_SHARED}

_OPEN_TREE_CLONE: Final = 1
_OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC
_MOVE_F_EMPTY_PATH: Final = 0x04
_MOVE_T_EMPTY_PATH: Final = 0x40
_FSOPEN_CLOEXEC: Final = 1
_FSMOUNT_CLOEXEC: Final = 1
_FSCONFIG_SET_FLAG: Final = 0
_FSCONFIG_SET_STRING: Final = 1
_FSCONFIG_SET_FD: Final = 5
_FSCONFIG_CMD_CREATE: Final = 6
_MNT_DETACH: Final = 2


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", c_uint64),
        ("attr_clr", c_uint64),
        ("propagation", c_uint64),
        ("userns_fd", c_uint64),
    )


_open_tree = Syscall("open_tree", 428, c_int, c_char_p, c_uint)
_move_mount = Syscall("move_mount", 429, c_int, c_char_p, c_int, c_char_p, c_uint)
_fsopen = Syscall("fsopen", 430, c_char_p, c_uint)
_fsconfig = Syscall("fsconfig", 431, c_int, c_uint, c_char_p, c_char_p, c_int)
_fsmount = Syscall("fsmount", 432, c_int, c_uint, c_uint)
_mount_setattr = Syscall(
    "mount_setattr", 442, c_int, c_char_p, c_uint, ctypes.POINTER(_MountAttr), c_size_t
)
_mount = Libc("mount", c_char_p, c_char_p, c_char_p, c_ulong, c_void_p)
_umount2 = Libc("umount2", c_char_p, c_int)
_pivot_root = Syscall("pivot_root", number(x86_64=155, aarch64=41), c_char_p, c_char_p)


def clone_tree(source: str | bytes, *, recursive: bool = False, follow: bool = False) -> int:
    """open_tree(2): a detached copy of the mount at *source*.

    A final symlink is followed only with *follow*.
    """
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC
    flags |= 0 if follow else AT_SYMLINK_NOFOLLOW
    flags |= AT_RECURSIVE if recursive else 0
    return _open_tree(AT_FDCWD, os.fsencode(source), flags, subject=os.fsdecode(source))


def clone_tree_at(descriptor: int, *, recursive: bool = False) -> int:
    """open_tree(2): a detached copy of what *descriptor* (O_PATH or a mount) shows."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | AT_EMPTY_PATH
    flags |= AT_RECURSIVE if recursive else 0
    return _open_tree(descriptor, b"", flags)


def set_attributes(
    tree: int, attributes: int = 0, *, clear: int = 0, propagation: int = 0, recursive: bool = False
) -> None:
    """mount_setattr(2): set and clear attributes of the mount behind *tree*."""
    attr = _MountAttr(attributes, clear, propagation, 0)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    # SAFETY: attr lives until the call returns; its size is passed with it.
    _mount_setattr(tree, b"", flags, ctypes.byref(attr), ctypes.sizeof(attr))


def map_ids(
    tree: int, user_namespace: int, *, attributes: int = 0, recursive: bool = False
) -> None:
    """mount_setattr(2) with MOUNT_ATTR_IDMAP: show *tree* shifted by the namespace's maps."""
    attr = _MountAttr(attributes | IDMAP, 0, 0, user_namespace)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    # SAFETY: attr lives until the call returns; its size is passed with it.
    _mount_setattr(tree, b"", flags, ctypes.byref(attr), ctypes.sizeof(attr))


def make_private(path: str = "/") -> None:
    """mount(2) MS_PRIVATE, recursively: nothing mounted here is seen elsewhere, nor back."""
    _mount(None, os.fsencode(path), None, 0x4000 | MS_PRIVATE, None, subject=path)


def make_slave(path: str = "/") -> None:
    """mount(2) MS_SLAVE, recursively: mounts of the original arrive here, none go back."""
    _mount(None, os.fsencode(path), None, 0x4000 | MS_SLAVE, None, subject=path)


def attach(tree: int, target: str) -> None:
    """move_mount(2): attach a detached mount at the path *target*."""
    _move_mount(tree, b"", AT_FDCWD, os.fsencode(target), _MOVE_F_EMPTY_PATH, subject=target)


def attach_at(tree: int, target: int, *, subject: str = "") -> None:
    """move_mount(2): attach a detached mount on what the descriptor *target* shows."""
    flags = _MOVE_F_EMPTY_PATH | _MOVE_T_EMPTY_PATH
    _move_mount(tree, b"", target, b"", flags, subject=subject)


Options = Iterable[tuple[str, str | int | None]]


def filesystem(kind: str, options: Options = (), *, attributes: int = 0) -> int:
    """fsopen, fsconfig, fsmount: a new detached mount of file system *kind*.

    An option is a name with a string, with a descriptor (int), or with None for a bare flag.
    The kernel's own words about a refused option are part of the OSError.
    """
    context = _fsopen(kind.encode(), _FSOPEN_CLOEXEC, subject=kind)
    try:
        for key, value in options:
            name = key.encode()
            if value is None:
                _fsconfig(context, _FSCONFIG_SET_FLAG, name, None, 0, subject=key)
            elif isinstance(value, int):
                _fsconfig(context, _FSCONFIG_SET_FD, name, None, value, subject=key)
            else:
                text = os.fsencode(value)
                _fsconfig(context, _FSCONFIG_SET_STRING, name, text, 0, subject=key)
        _fsconfig(context, _FSCONFIG_CMD_CREATE, None, None, 0, subject=kind)
        return _fsmount(context, _FSMOUNT_CLOEXEC, attributes, subject=kind)
    except OSError as error:
        words = _explanation(context)
        if words:
            raise OSError(error.errno, f"{error.strerror} ({words})", error.filename) from None
        raise
    finally:
        os.close(context)


def _explanation(context: int) -> str:
    """What the kernel wrote about a failed fsconfig; fsopen(2) returns it by read."""
    try:
        return os.read(context, 4096).decode("utf-8", "replace").strip()
    except OSError:
        return ""


def mount(kind: str, target: str, options: str = "") -> None:
    """mount(2): a new file system of *kind* at *target*; for what needs a place in the tree."""
    data = ctypes.create_string_buffer(os.fsencode(options))
    # SAFETY: the buffer ends in NUL and lives until the call returns.
    _mount(kind.encode(), os.fsencode(target), kind.encode(), 0, data, subject=target)


def unmount(path: str) -> None:
    """umount2(2) with MNT_DETACH."""
    _umount2(os.fsencode(path), _MNT_DETACH, subject=path)


def enter_root(root: int) -> None:
    """pivot_root(2) into the mount that *root* shows, and let go of the old one.

    The trick of pivot_root(".", "."): the old root is stacked on the new one and detached,
    so no directory for it is needed.
    """
    os.fchdir(root)
    _pivot_root(b".", b".", subject="/")
    unmount(".")
    os.chdir("/")
