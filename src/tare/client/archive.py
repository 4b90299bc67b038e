"""Tar archives on the caller's side of `cp`: packed from host files, and unpacked safely.

What a container hands out is hostile (attack A23): the unpacker opens every step of a path by
descriptor without following links, so nothing lands outside the destination; it makes regular
files, directories and symbolic links only, masks modes by the umask and never sets setuid.
tarfile parses; its extraction is not used. Not for image layers (image.layers has its own).
"""

from __future__ import annotations

import io
import os
import stat
import tarfile

from tare.errors import FailedError, InvalidError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

_PIECE = 256 << 10
_DEPTH_LIMIT = 4096
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Pieces:
    """A readable file made of an iterator of bytes."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, size: int = -1) -> bytes:
        """Exactly *size* bytes, fewer only at the end."""
        parts = [self._rest]
        have = len(self._rest)
        while size < 0 or have < size:
            piece = next(self._pieces, b"")
            if not piece:
                break
            parts.append(piece)
            have += len(piece)
        data = b"".join(parts)
        cut = have if size < 0 else size
        self._rest = data[cut:]
        return data[:cut]


class Unpacker:
    """Unpacks one archive below one directory; the caller's umask is honoured."""

    def __init__(self, directory: str, *, rename: str = "", owners: bool = False) -> None:
        """*rename* replaces the first step of every name; *owners* keeps uid and gid."""
        self._rename = rename
        self._owners = owners
        self._root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._modes: list[tuple[list[str], int, float]] = []
        self.size = 0
        self.skipped: list[str] = []

    def close(self) -> None:
        """Close the directory."""
        os.close(self._root)

    def unpack(self, stream: Pieces) -> None:
        """Take all entries of *stream*; InvalidError at the first that is not safe."""
        try:
            with tarfile.open(fileobj=stream, mode="r|") as archive:  # type: ignore[call-overload]
                for entry in archive:
                    self._entry(archive, entry)
        except tarfile.TarError as error:
            raise FailedError(f"the archive is broken: {error}") from error
        # Modes and times of directories last: a read-only one must still be filled.
        for steps, mode, mtime in reversed(self._modes):
            parent = self._parent(steps, make=False)
            try:
                inner = os.open(steps[-1], _DIRECTORY, dir_fd=parent)
                os.fchmod(inner, mode)
                os.utime(inner, (mtime, mtime))
                os.close(inner)
            finally:
                os.close(parent)

    def _steps(self, name: str) -> list[str]:
        steps = [step for step in name.split("/") if step not in ("", ".")]
        if name.startswith("/") or ".." in steps:
            raise InvalidError(f"refused: the archive names {name!r}, outside the destination")
        if self._rename:
            first_is_dot = name == "." or name.startswith("./")
            steps = [self._rename, *(steps if first_is_dot else steps[1:])]
        if len(steps) > _DEPTH_LIMIT:
            raise InvalidError("refused: the archive has a path of absurd depth")
        return steps

    def _parent(self, steps: list[str], *, make: bool) -> int:
        """A descriptor of the directory that holds the last step; no link is followed."""
        current = os.dup(self._root)
        for step in steps[:-1]:
            try:
                if make:
                    try:
                        os.mkdir(step, 0o777, dir_fd=current)
                    except FileExistsError:
                        pass
                inner = os.open(step, _DIRECTORY, dir_fd=current)
            except OSError as error:
                shown = "/".join(steps)
                raise InvalidError(
                    f"refused: {step!r} on the way to {shown!r} is not a directory"
                ) from error
            finally:
                os.close(current)
            current = inner
        return current

    def _entry(self, archive: tarfile.TarFile, entry: tarfile.TarInfo) -> None:
        steps = self._steps(entry.name)
        if not steps:
            return  # the top itself
        if not (entry.isreg() or entry.isdir() or entry.issym() or entry.islnk()):
            self.skipped.append(entry.name)
            return
        parent = self._parent(steps, make=True)
        try:
            if entry.isdir():
                self._directory(parent, steps, entry)
            else:
                self._clear(parent, steps)
                if entry.issym():
                    os.symlink(entry.linkname, steps[-1], dir_fd=parent)
                elif entry.islnk():
                    self._link(parent, steps, entry)
                else:
                    self._file(parent, steps, archive, entry)
            if self._owners and not entry.isdir():
                os.chown(steps[-1], entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(parent)

    def _clear(self, parent: int, steps: list[str]) -> None:
        try:
            found = os.lstat(steps[-1], dir_fd=parent)
        except FileNotFoundError:
            return
        if stat.S_ISDIR(found.st_mode):
            raise InvalidError(f"cannot overwrite directory {'/'.join(steps)!r} with non-directory")
        os.unlink(steps[-1], dir_fd=parent)

    def _directory(self, parent: int, steps: list[str], entry: tarfile.TarInfo) -> None:
        try:
            os.mkdir(steps[-1], 0o700, dir_fd=parent)
        except FileExistsError:
            found = os.lstat(steps[-1], dir_fd=parent)
            if not stat.S_ISDIR(found.st_mode):
                raise InvalidError(
                    f"cannot overwrite non-directory {'/'.join(steps)!r} with directory"
                ) from None
            return
        if self._owners:
            os.chown(steps[-1], entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        self._modes.append((steps, entry.mode & 0o777 & ~self._umask, entry.mtime))

    def _file(
        self, parent: int, steps: list[str], archive: tarfile.TarFile, entry: tarfile.TarInfo
    ) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        made = os.open(steps[-1], flags, 0o600, dir_fd=parent)
        try:
            source = archive.extractfile(entry)
            assert source is not None
            while piece := source.read(_PIECE):
                view = memoryview(piece)
                while view:
                    view = view[os.write(made, view) :]
                self.size += len(piece)
            os.fchmod(made, entry.mode & 0o777 & ~self._umask)
            os.utime(made, (entry.mtime, entry.mtime))
        finally:
            os.close(made)

    def _link(self, parent: int, steps: list[str], entry: tarfile.TarInfo) -> None:
        target = self._steps(entry.linkname)
        if not target:
            raise InvalidError(f"refused: {entry.name!r} is a hard link to a directory")
        source = self._parent(target, make=False)
        try:
            if not stat.S_ISREG(os.lstat(target[-1], dir_fd=source).st_mode):
                raise InvalidError(f"refused: {entry.name!r} is a hard link to no regular file")
            os.link(
                target[-1], steps[-1], src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False
            )
        except FileNotFoundError:
            raise InvalidError(
                f"refused: {entry.name!r} is a hard link to something that is not in the archive"
            ) from None
        finally:
            os.close(source)


def packed(path: str, name: str, *, follow: bool = False, owners: bool = False) -> Iterator[bytes]:
    """The archive of *path*, its top called *name*; *follow* takes what a link points to.

    Sockets are left out. Without *owners* everything belongs to root inside, as with Docker.
    """
    top = os.path.realpath(path) if follow else path
    # Only for gettarinfo, which remembers hard links: what is written comes from here.
    with tarfile.open(fileobj=io.BytesIO(), mode="w") as archive:
        for host, inside in _walk(top, name):
            if stat.S_ISSOCK(os.lstat(host).st_mode):
                continue
            entry = archive.gettarinfo(host, inside)
            if not owners:
                entry.uid = entry.gid = 0
                entry.uname = entry.gname = ""
            if entry.isreg():
                with open(host, "rb") as file:
                    yield _head(entry)
                    yield from _content(entry, file)
            else:
                yield _head(entry)
    yield b"\0" * 1024


def _head(entry: tarfile.TarInfo) -> bytes:
    return entry.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _walk(host: str, inside: str) -> Iterator[tuple[str, str]]:
    yield host, inside
    if os.path.isdir(host) and not os.path.islink(host):
        for name in sorted(os.listdir(host)):
            yield from _walk(f"{host}/{name}", f"{inside}/{name}")


def _content(entry: tarfile.TarInfo, file: IO[bytes]) -> Iterator[bytes]:
    """A file in pieces: exactly the bytes that its head promises."""
    left = entry.size
    while left:
        piece = file.read(min(_PIECE, left))
        if not piece:
            raise FailedError(f"{entry.name}: the file became shorter while it was read")
        left -= len(piece)
        yield piece
    yield b"\0" * (-entry.size % 512)
