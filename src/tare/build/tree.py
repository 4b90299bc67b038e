"""Files to copy from, wherever they lie: the build context, a stage, an image, a clone.

A `Tree` answers by path, and `resolve` follows links inside it and never out of it: a path that
a Dockerfile or an archive chose is only ever looked up below the tree's own root (attack A38).

Not for: choosing what to copy (``selection``), or where it goes (``placing``).
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple, Protocol

from tare.errors import InvalidError
from tare.image.entry import FILE_KINDS, NO_XATTRS, Kind, Segments, show
from tare.kernel import files

_LINKS: Final = 255
_CHUNK: Final = 1 << 20
_CAPABILITY: Final = "security.capability"


class Node(NamedTuple):
    """One file of a tree; ``identity`` is shared by the names of one file, None for a lone one."""

    kind: Kind
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    link: bytes = b""
    major: int = 0
    minor: int = 0
    xattrs: Mapping[bytes, bytes] = NO_XATTRS
    sparse: Segments | None = None
    identity: tuple[int, int] | None = None


class Tree(Protocol):
    """A tree of files below a root; paths are relative, without ``.``, ``..`` and links."""

    owned: bool
    """Whether the owners of its files mean something (not so in a build context)."""

    def node(self, path: bytes) -> Node | None:
        """What is at *path*, a link itself; the empty path is the root; None if there is none."""
        ...

    def names(self, path: bytes) -> list[bytes]:
        """The names in the directory *path*, sorted."""
        ...

    def content(self, path: bytes) -> Iterator[bytes | memoryview]:
        """The data of the file *path*: of a sparse one, its pieces."""
        ...

    def digest(self, path: bytes) -> str:
        """sha256 of the file's data, in hex."""
        ...


def join(parent: bytes, name: bytes) -> bytes:
    """The path of *name* in *parent*."""
    return parent + b"/" + name if parent else name


def resolve(
    node: Callable[[bytes], Node | None],
    path: bytes,
    *,
    follow: bool = True,
    missing: bool = False,
) -> bytes | None:
    """*path* without links, as a process rooted in the tree would see it; ``..`` stops at the root.

    The last link is followed only with *follow*. Where something is missing the answer is None,
    or with *missing* the path as it would be made. InvalidError when links go round in circles.
    """
    left = [part for part in path.split(b"/") if part not in (b"", b".")]
    left.reverse()
    done: list[bytes] = []
    links = 0
    while left:
        name = left.pop()
        if name == b"..":
            if done:
                done.pop()
            continue
        done.append(name)
        found = node(b"/".join(done))
        if found is None:
            if missing:
                continue
            return None
        if found.kind is Kind.SYMLINK and (left or follow):
            links += 1
            if links > _LINKS:
                raise InvalidError(f"{show(path)}: too many levels of symbolic links")
            done.pop()
            if found.link.startswith(b"/"):
                done.clear()
            steps = [part for part in found.link.split(b"/") if part not in (b"", b".")]
            left += reversed(steps)
        elif left and found.kind is not Kind.DIR and not missing:
            return None
    return b"/".join(done)


def walk(tree: Tree, path: bytes = b"") -> Iterator[tuple[bytes, Node]]:
    """Everything below the directory *path*, parents first, sorted within a directory."""
    stack = [join(path, name) for name in reversed(tree.names(path))]
    while stack:
        here = stack.pop()
        node = tree.node(here)
        if node is None:
            continue
        yield here, node
        if node.kind is Kind.DIR:
            stack += [join(here, name) for name in reversed(tree.names(here))]


class DirectoryTree:
    """The tree below a directory that nothing changes: a mounted image, a clone.

    *unshift* maps ids on disk to those that are meant.
    """

    def __init__(self, root: int, *, owned: bool = True) -> None:
        """Own the descriptor *root*: `close` closes it."""
        self.root = root
        self.owned = owned

    def close(self) -> None:
        """Let go of the directory."""
        os.close(self.root)

    def _open(self, path: bytes, flags: int) -> int:
        return files.openat2(
            self.root,
            path or b".",
            flags | os.O_NOFOLLOW,
            resolve=files.RESOLVE_BENEATH | files.RESOLVE_NO_SYMLINKS,
        )

    def node(self, path: bytes) -> Node | None:
        """What is at *path*."""
        try:
            handle = self._open(path, os.O_PATH)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise InvalidError(f"{show(path)} cannot be read: {error.strerror}") from error
        try:
            status = os.fstat(handle)
            kind = FILE_KINDS.get(stat.S_IFMT(status.st_mode))
            if kind is None:
                return None  # a socket means nothing without its listener
            link = os.readlink(b"", dir_fd=handle) if kind is Kind.SYMLINK else b""
            plain = kind in (Kind.FILE, Kind.DIR)
            device = kind in (Kind.CHAR, Kind.BLOCK)
            return Node(
                kind,
                stat.S_IMODE(status.st_mode),
                status.st_uid,
                status.st_gid,
                status.st_mtime_ns,
                status.st_size if kind is Kind.FILE else 0,
                link,
                os.major(status.st_rdev) if device else 0,
                os.minor(status.st_rdev) if device else 0,
                _attributes(handle) if plain else NO_XATTRS,
                None,
                (status.st_dev, status.st_ino)
                if status.st_nlink > 1 and kind is not Kind.DIR
                else None,
            )
        finally:
            os.close(handle)

    def names(self, path: bytes) -> list[bytes]:
        """The names in a directory."""
        directory = self._open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return sorted(os.fsencode(name) for name in os.listdir(directory))
        finally:
            os.close(directory)

    def content(self, path: bytes) -> Iterator[bytes]:
        """The data of a file."""
        file = self._open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            while piece := os.read(file, _CHUNK):
                yield piece
        finally:
            os.close(file)

    def digest(self, path: bytes) -> str:
        """sha256 of a file."""
        found = hashlib.sha256()
        for piece in self.content(path):
            found.update(piece)
        return found.hexdigest()


def _attributes(handle: int) -> Mapping[bytes, bytes]:
    """The user's own attributes and capabilities."""
    path = f"/proc/self/fd/{handle}"
    try:
        names = os.listxattr(path)
    except OSError:
        return NO_XATTRS
    return {
        os.fsencode(name): os.getxattr(path, name)
        for name in names
        if name == _CAPABILITY
        or (name.startswith("user.") and not name.startswith("user.overlay."))
    } or NO_XATTRS
