"""Trees as values, to be compared; and mounts that nobody else sees and that end by themselves.

Not for: user namespaces (the ``isolated`` fixture).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import pickle
import stat
import subprocess
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Node(NamedTuple):
    """What can be seen of a name; for directories no size and links, which file systems choose."""

    kind: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    content: str = ""
    links: int = 0
    xattrs: tuple[tuple[str, bytes], ...] = ()


def snapshot(root: str | Path) -> dict[bytes, Node]:
    """All below *root* by relative path; the root itself is empty."""
    top = os.fsencode(root)
    seen = {b"": _node(top)}
    for directory, names, files in os.walk(top):
        for name in names + files:
            path = os.path.join(directory, name)
            seen[os.path.relpath(path, top)] = _node(path)
    return seen


def _node(path: bytes) -> Node:
    found = os.lstat(path)
    format_ = stat.S_IFMT(found.st_mode)
    content, links = "", found.st_nlink
    match format_:
        case stat.S_IFREG:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            content = f"{found.st_size}:{digest}"
        case stat.S_IFLNK:
            content = os.fsdecode(os.readlink(path))
        case stat.S_IFCHR | stat.S_IFBLK:
            content = f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
        case stat.S_IFDIR:
            links = 0
    names = sorted(os.listxattr(path, follow_symlinks=False))
    xattrs = tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)
    kind = stat.filemode(found.st_mode)[0]
    mode = stat.S_IMODE(found.st_mode)
    return Node(kind, mode, found.st_uid, found.st_gid, found.st_mtime_ns, content, links, xattrs)


def in_private_mounts(work: Callable[[], T]) -> T:
    """Run *work* in a child with a mount namespace of its own; what it mounts ends with it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reader)
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.unshare(0x00020000) or libc.mount(b"none", b"/", None, 0x44000, None):
                raise OSError(ctypes.get_errno(), "cannot make a mount namespace")
            with open(writer, "wb", closefd=False) as pipe:
                pickle.dump((True, work()), pipe)
            code = 0
        except BaseException:
            with open(writer, "wb", closefd=False) as pipe:
                pickle.dump((False, traceback.format_exc()), pipe)
        finally:
            os._exit(code)
    os.close(writer)
    with open(reader, "rb") as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    succeeded, result = pickle.loads(told)
    assert succeeded, result
    return result  # type: ignore[no-any-return]


def mount(*arguments: str | Path) -> None:
    """mount(8)."""
    done = subprocess.run(
        ["mount", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def erofs_tree(image: Path) -> dict[bytes, Node]:
    """What the kernel shows of an EROFS file."""

    def work() -> dict[bytes, Node]:
        mount("-t", "erofs", "-o", "ro", image, "/mnt")
        return snapshot("/mnt")

    return in_private_mounts(work)


def overlay_tree(*layers: Path, options: str = "") -> dict[bytes, Node]:
    """What overlayfs makes of *layers*, the lowest first: EROFS files or directories."""

    def work() -> dict[bytes, Node]:
        mount("-t", "tmpfs", "none", "/mnt")
        lowers: list[str] = []
        for number, layer in enumerate((*layers, Path("/mnt/empty"))):
            point = Path(f"/mnt/{number}")
            point.mkdir()
            if layer.is_file():
                mount("-t", "erofs", "-o", "ro", layer, point)
            elif layer.is_dir():
                mount("--bind", layer, point)
            lowers.insert(0, str(point))
        Path("/mnt/merged").mkdir()
        # The empty one on top: a single layer alone is no overlay.
        mount("-t", "overlay", "-o", f"lowerdir={':'.join(lowers)}{options}", "none", "/mnt/merged")
        return snapshot("/mnt/merged")

    return in_private_mounts(work)
