"""Archives of a container's files, out (cp, export) and in (cp), below a root's descriptor.

Every path is followed by openat2(2) inside the root, again for each entry, so a program that
swaps directories for links meanwhile moves nothing out of its container (attack A22). Nothing of
the container is executed or imported. Ids in archives are those inside; on disk they are shifted
by the container's block.

Not for: finding the root (engine.copying).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final

from tare.errors import FailedError, InvalidError, MissingError
from tare.image.compress import open_decompressed
from tare.image.entry import FILE_KINDS, Entry, Kind, described
from tare.image.extract import Rules, extract
from tare.image.tar import read
from tare.image.tar_writer import TarWriter
from tare.kernel import files
from tare.kernel.confine import acting_as
from tare.model.record import PathStat
from tare.run import identity

Block = tuple[int, int] | None

_CHUNK: Final = 1 << 18
_DEPTH: Final = 512
_CAPABILITY: Final = "security.capability"


def _locate(root: int, path: str) -> tuple[int, str]:
    """An O_PATH descriptor of *path* and its last name; its final link is followed only when
    the path says so by a trailing ``/`` or ``/.``."""
    if "\0" in path:
        raise InvalidError("a path cannot contain NUL")
    wants_directory = path.endswith(("/", "/.")) or path in ("", ".")
    flags = os.O_PATH | (os.O_DIRECTORY if wants_directory else os.O_NOFOLLOW)
    try:
        descriptor = files.open_in_root(root, path or "/", flags)
    except FileNotFoundError:
        raise MissingError(f"Could not find the file {path} in container") from None
    except NotADirectoryError:
        raise InvalidError(f"{path} is not a directory in the container") from None
    except OSError as error:
        raise FailedError(f"cannot look at {path} in the container: {error.strerror}") from error
    if path.endswith("/."):
        return descriptor, "."
    return descriptor, path.rstrip("/").rpartition("/")[2]


def find(root: int, path: str) -> PathStat:
    """What *path* is; a link says where it leads inside the container."""
    descriptor, name = _locate(root, path)
    try:
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    target = ""
    if stat.S_ISLNK(status.st_mode):
        with contextlib.suppress(OSError):
            followed = files.open_in_root(root, path, os.O_PATH)
            target = os.readlink(f"/proc/self/fd/{followed}")
            os.close(followed)
    return PathStat(
        name=name or "/",
        size=status.st_size,
        mode=status.st_mode,
        mtime_ns=status.st_mtime_ns,
        link_target=target,
    )


def write(root: int, path: str, out: BinaryIO, *, block: Block, one_mount: bool = False) -> None:
    """Write an archive of *path* and all below it; its entries begin with the path's last name.

    With *one_mount* other file systems inside show as empty: they are not the container's own.
    """
    descriptor, name = _locate(root, path)
    try:
        writer = _Writer(TarWriter(out), block, one_mount=one_mount)
        prefix = b"" if name in ("", ".", "/") else os.fsencode(name)
        writer.add(descriptor, prefix, 0)
        writer.close()
    finally:
        os.close(descriptor)


class _Writer:
    """Walks a tree by descriptors and writes it."""

    def __init__(self, tar: TarWriter, block: Block, *, one_mount: bool) -> None:
        self._tar = tar
        self._block = block
        self._resolve = files.RESOLVE_BENEATH | files.RESOLVE_NO_SYMLINKS
        self._stay = files.RESOLVE_NO_XDEV if one_mount else 0
        self._links: dict[tuple[int, int], bytes] = {}

    def close(self) -> None:
        """End the archive."""
        self._tar.close()

    def add(self, place: int, path: bytes, depth: int) -> None:
        """Write what the O_PATH descriptor *place* shows as *path*, and what is below."""
        status = os.fstat(place)
        kind = FILE_KINDS.get(stat.S_IFMT(status.st_mode))
        if kind is None:
            return  # a socket is nothing without its listener
        if depth > _DEPTH:
            raise FailedError(f"the tree is deeper than {_DEPTH} directories")
        if kind is Kind.DIR:
            self._tar.add(
                described(path, kind, status, owner=self._inside, xattrs=self._xattrs(place))
            )
            self._children(place, path, depth)
            return
        identity_ = (status.st_dev, status.st_ino)
        first = self._links.get(identity_) if status.st_nlink > 1 else None
        if first is not None:
            self._tar.add(
                described(path, Kind.HARDLINK, status, owner=self._inside, linkname=first)
            )
            return
        if status.st_nlink > 1:
            self._links[identity_] = path
        if kind is Kind.FILE:
            self._file(place, path)
            return
        link = b""
        if kind is Kind.SYMLINK:
            link = os.readlink(b"", dir_fd=place)
        self._tar.add(described(path, kind, status, owner=self._inside, linkname=link))

    def _children(self, place: int, path: bytes, depth: int) -> None:
        directory = os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in sorted(os.fsencode(n) for n in os.listdir(directory)):
                below = path + b"/" + name if path else name
                try:
                    child = files.openat2(
                        directory,
                        name,
                        os.O_PATH | os.O_NOFOLLOW,
                        resolve=files.RESOLVE_BENEATH | self._stay,
                    )
                except FileNotFoundError:
                    continue  # deleted since it was listed
                except OSError as error:
                    if error.errno != errno.EXDEV:
                        raise
                    self._stand_in(directory, name, below)
                    continue
                try:
                    self.add(child, below, depth + 1)
                finally:
                    os.close(child)
        finally:
            os.close(directory)

    def _stand_in(self, directory: int, name: bytes, path: bytes) -> None:
        """Something mounted over the container's own files: an empty one of its kind."""
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        kind = Kind.DIR if stat.S_ISDIR(status.st_mode) else Kind.FILE
        mode = 0o755 if kind is Kind.DIR else 0o644
        self._tar.add(Entry(path, kind, mode=mode))

    def _file(self, place: int, path: bytes) -> None:
        descriptor = os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            entry = described(
                path, Kind.FILE, status, owner=self._inside, xattrs=self._xattrs(descriptor)
            )
            self._tar.add(entry, _content(descriptor, status.st_size))
        finally:
            os.close(descriptor)

    def _inside(self, number: int) -> int:
        if self._block is None:
            return number
        base, size = self._block
        return number - base if base <= number < base + size else 65534

    @staticmethod
    def _xattrs(descriptor: int) -> dict[bytes, bytes]:
        """The user's own attributes and capabilities, as far as they can be read."""
        found = {}
        path = f"/proc/self/fd/{descriptor}"
        with contextlib.suppress(OSError):
            for name in os.listxattr(path):
                if name.startswith("user.") and not name.startswith("user.overlay."):
                    found[os.fsencode(name)] = os.getxattr(path, name)
                elif name == _CAPABILITY:
                    value = os.getxattr(path, name)
                    if len(value) == 20:  # one without a namespace's root: means the same anywhere
                        found[name.encode()] = value
        return found


def _content(descriptor: int, size: int) -> Iterator[bytes]:
    """Just *size* bytes, however the file changes meanwhile: cut off, or filled up with zeros."""
    left = size
    while left:
        data = os.read(descriptor, min(left, _CHUNK))
        if not data:
            yield bytes(left)  # it has shrunk; GNU tar pads with zeros too
            return
        left -= len(data)
        yield data


def unpack(
    root: int,
    path: str,
    source: BinaryIO,
    *,
    block: Block,
    keep_types: bool,
    user: str = "",
) -> None:
    """Unpack an archive (compressed or not) into the directory *path*.

    With *keep_types* a directory never replaces something else nor the other way round. Files get
    the ids in the archive, or those of *user* if one is given.
    """
    try:
        directory = files.open_in_root(root, path or "/", os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        raise MissingError(f"Could not find the file {path} in container") from None
    except NotADirectoryError:
        raise InvalidError(f"extraction point is not a directory: {path}") from None
    base = block[0] if block else 0
    owner = _owner(root, user, block)
    rules = Rules(layer=False, devices=block is None, owner=owner, replace_types=not keep_types)
    try:
        # Made as the container's root makes them: a tmpfs inside knows no other ids.
        with acting_as(base, base), open_decompressed(source) as archive:
            extract(read(archive), directory, rules=rules)
    except OSError as error:
        if error.errno == errno.EROFS:
            raise InvalidError(f"{path} is read-only in the container") from error
        raise
    finally:
        os.close(directory)


def _owner(root: int, user: str, block: Block) -> Callable[[int, int], tuple[int, int]]:
    base, size = block or (0, 1 << 32)
    fixed: tuple[int, int] | None = None
    if user:
        passwd = identity.read_account_file(root, "etc/passwd")
        group = identity.read_account_file(root, "etc/group")
        who = identity.resolve(user, (), passwd, group)
        fixed = (who.uid, who.gid)

    def owner(uid: int, gid: int) -> tuple[int, int]:
        uid, gid = fixed or (uid, gid)
        if not (uid < size and gid < size):
            raise InvalidError(
                f"id {max(uid, gid)} of the archive is outside the container's {size} ids"
            )
        return base + uid, base + gid

    return owner
