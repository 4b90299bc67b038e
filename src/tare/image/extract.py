"""Puts the entries of an archive into a directory, and nowhere else.

For layers where the kernel cannot mount EROFS files, with the same rules as the EROFS writer; and,
with ``layer=False``, for plain archives such as those of ``cp``. No path string reaches the kernel
but below a descriptor: parents are opened with openat2(2), RESOLVE_BENEATH and NO_SYMLINKS, and the
last component is never followed (attacks A26, A27).

Whiteouts are character devices 0:0, which user namespaces may make since Linux 5.8; where that is
refused, empty files with overlayfs's ``whiteout`` attribute in directories marked ``opaque=x``,
which overlayfs honours since 6.7.

Not for: reading archives (``tar``), syncing, or replacing the directory as a whole. After an error
the directory is half made and the caller deletes it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from tare.errors import ConflictError, FailedError, InvalidError
from tare.image.entry import DEFAULT_LIMITS, Entry, Kind, Limits, show
from tare.image.tar import Content
from tare.image.whiteout import (
    LayerSummary,
    Meaning,
    cannot_write,
    meaning,
    permitted_xattrs,
)
from tare.kernel.files import open_beneath

Owner = Callable[[int, int], tuple[int, int]]

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FORMATS: Final = {Kind.CHAR: stat.S_IFCHR, Kind.BLOCK: stat.S_IFBLK, Kind.FIFO: stat.S_IFIFO}
_NOT_A_DIRECTORY: Final = (errno.ENOTDIR, errno.ELOOP)
_DEFERRED_COST: Final = 256


def same_owner(uid: int, gid: int) -> tuple[int, int]:
    """Owners as the archive says."""
    return uid, gid


@dataclass(frozen=True, slots=True)
class Rules:
    """How entries become files.

    ``layer``: names may be whiteouts; the directory was empty before. ``userxattr``: overlayfs's
    marks are ``user.overlay.*``. ``devices``: make device nodes, else leave them out and count
    them. ``owner`` maps uid and gid; None leaves all to the caller. ``replace_types``: a directory
    may take the place of something else and the other way round, else that is ConflictError.
    ``mode_mask``: the bits of a mode that may be set. ``all_xattrs``: set every attribute but
    overlayfs's own: for archives that the host itself has written, of a volume.
    """

    layer: bool = True
    userxattr: bool = False
    devices: bool = True
    owner: Owner | None = same_owner
    replace_types: bool = True
    mode_mask: int = 0o7777
    all_xattrs: bool = False


class Extractor:
    """Makes one tree: `add` its entries in order, then `finish`; owns descriptors until `close`."""

    def __init__(self, root: int, rules: Rules, limits: Limits = DEFAULT_LIMITS) -> None:
        self._root = root
        self._rules = rules
        self._limits = limits
        self._overlay = "user.overlay." if rules.userxattr else "trusted.overlay."
        self._parent: tuple[bytes, int] | None = None
        self._deferred: dict[bytes, tuple[int, int, int]] = {}  # path -> inode, mode, mtime
        self._metadata = 0
        self._added = 0
        self._skipped: set[bytes] = set()  # devices left out: links to them are, too
        self._whiteouts_by_xattr = False
        self._summary = LayerSummary()

    def close(self) -> None:
        """Give back the descriptor of the last parent."""
        self._forget_parent()

    def add(self, entry: Entry, content: Content) -> None:
        """Make one entry; a later one of the same name takes its place."""
        self._added += 1
        if self._added > self._limits.files:
            raise InvalidError(f"the archive has more than {self._limits.files} entries")
        if self._rules.layer:
            what, path = meaning(entry)
        else:
            what, path = Meaning.ENTRY, entry.path
        try:
            match what:
                case Meaning.NOTHING:
                    return
                case Meaning.OPAQUE:
                    self._summary.opaque_root |= not path
                    self._set_opaque(self._open_parent(path))
                case Meaning.WHITEOUT:
                    self._hide(path)
                case Meaning.ENTRY:
                    self._place(entry, content)
        except OSError as error:
            raise cannot_write(show(entry.path), error) from error
        self._summary.entries += 1

    def finish(self) -> LayerSummary:
        """Set the modes and times of directories, which earlier would have been in the way."""
        self._forget_parent()
        for path in reversed(self._deferred):
            inode, mode, mtime_ns = self._deferred[path]
            try:
                with self._opened(path) as directory:
                    if os.fstat(directory).st_ino == inode:
                        os.fchmod(directory, mode)
                        os.utime(directory, ns=(mtime_ns, mtime_ns))
            except OSError as error:
                # A later entry of the archive took its place.
                if error.errno not in (errno.ENOENT, *_NOT_A_DIRECTORY):
                    raise cannot_write(show(path), error) from error
        return self._summary

    # -- directories ----------------------------------------------------------------------

    @contextlib.contextmanager
    def _opened(self, path: bytes) -> Iterator[int]:
        directory = open_beneath(self._root, path or b".", _DIRECTORY)
        try:
            yield directory
        finally:
            os.close(directory)

    def _forget_parent(self) -> None:
        if self._parent is not None:
            os.close(self._parent[1])
            self._parent = None

    def _open_parent(self, path: bytes) -> int:
        """A descriptor of the directory at *path*, made if it is missing; we close it."""
        if self._parent is not None and self._parent[0] == path:
            return self._parent[1]
        self._forget_parent()
        try:
            directory = open_beneath(self._root, path or b".", _DIRECTORY)
        except OSError as error:
            if error.errno not in (errno.ENOENT, *_NOT_A_DIRECTORY):
                raise
            directory = self._make_parents(path)
        self._parent = (path, directory)
        return directory

    def _make_parents(self, path: bytes) -> int:
        current = os.dup(self._root)
        try:
            for name in path.split(b"/"):
                below = self._step(current, name, path)
                os.close(current)
                current = below
        except BaseException:
            os.close(current)
            raise
        return current

    def _step(self, directory: int, name: bytes, path: bytes) -> int:
        """The directory *name* in *directory*, made if need be."""
        try:
            return os.open(name, _DIRECTORY, dir_fd=directory)
        except OSError as error:
            if error.errno not in (errno.ENOENT, *_NOT_A_DIRECTORY):
                raise
            hidden = error.errno != errno.ENOENT and self._is_whiteout(directory, name)
            if error.errno != errno.ENOENT and not hidden:
                raise InvalidError(
                    f"archive entry below {show(path)}: {show(name)} in its path is not a directory"
                ) from error
        if hidden:
            os.unlink(name, dir_fd=directory)
        os.mkdir(name, 0o755, dir_fd=directory)
        self._summary.implied += 1
        below = os.open(name, _DIRECTORY, dir_fd=directory)
        os.fchmod(below, 0o755)
        if self._rules.owner is not None:
            os.fchown(below, *self._rules.owner(0, 0))
        if hidden:
            self._set_opaque(below)
        return below

    def _place_directory(self, entry: Entry) -> None:
        if not entry.path:
            self._describe_directory(self._root, entry)
            return
        parent_path, _, name = entry.path.rpartition(b"/")
        parent = self._open_parent(parent_path)
        opaque = False
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
                opaque = self._is_whiteout(parent, name)
                if not opaque and not self._rules.replace_types:
                    raise ConflictError(
                        f"cannot overwrite non-directory {show(entry.path)} with a directory"
                    ) from None
                os.unlink(name, dir_fd=parent)
                os.mkdir(name, 0o700, dir_fd=parent)
        directory = os.open(name, _DIRECTORY, dir_fd=parent)
        try:
            if opaque:
                self._set_opaque(directory)
            self._describe_directory(directory, entry)
        finally:
            os.close(directory)

    def _describe_directory(self, directory: int, entry: Entry) -> None:
        self._own(entry, lambda uid, gid: os.fchown(directory, uid, gid))
        self._set_xattrs(directory, entry)
        if entry.path not in self._deferred:
            self._account(len(entry.path) + _DEFERRED_COST)
        inode = os.fstat(directory).st_ino
        self._deferred[entry.path] = (inode, entry.mode & self._rules.mode_mask, entry.mtime_ns)

    def _account(self, size: int) -> None:
        self._metadata += size
        if self._metadata > self._limits.metadata:
            raise InvalidError(f"the archive's names exceed {self._limits.metadata} bytes")

    # -- whiteouts ------------------------------------------------------------------------

    def _is_whiteout(self, parent: int, name: bytes) -> bool:
        if not self._rules.layer:
            return False
        found = os.lstat(name, dir_fd=parent)
        if stat.S_ISCHR(found.st_mode):
            return found.st_rdev == 0
        return self._whiteouts_by_xattr and self._is_xattr_whiteout(parent, name, found)

    def _is_xattr_whiteout(self, parent: int, name: bytes, found: os.stat_result) -> bool:
        if not stat.S_ISREG(found.st_mode) or found.st_size:
            return False
        path = b"/proc/self/fd/%d/%s" % (parent, name)
        try:
            os.getxattr(path, self._overlay + "whiteout", follow_symlinks=False)
        except OSError:
            return False
        return True

    def _hide(self, path: bytes) -> None:
        """A whiteout: for lower layers only, so what this layer has of the name stays."""
        parent_path, _, name = path.rpartition(b"/")
        parent = self._open_parent(parent_path)
        self._summary.whiteouts += 1
        try:
            found = os.lstat(name, dir_fd=parent)
        except FileNotFoundError:
            self._make_whiteout(parent, name)
            return
        if stat.S_ISDIR(found.st_mode):
            directory = os.open(name, _DIRECTORY, dir_fd=parent)
            try:
                self._set_opaque(directory)
            finally:
                os.close(directory)

    def _make_whiteout(self, parent: int, name: bytes) -> None:
        if self._opaque_mark(parent) == b"y":
            return  # nothing shows through there, and overlayfs would list it as a file
        if not self._whiteouts_by_xattr:
            try:
                os.mknod(name, stat.S_IFCHR, 0, dir_fd=parent)
            except PermissionError:
                self._whiteouts_by_xattr = True
            else:
                self._mark_hiding(parent)
                return
        file = os.open(name, _CREATE, 0, dir_fd=parent)
        try:
            os.setxattr(file, self._overlay + "whiteout", b"y")
        finally:
            os.close(file)
        os.setxattr(parent, self._overlay + "opaque", b"x")
        self._mark_hiding(parent)

    def _mark_hiding(self, directory: int) -> None:
        """As the EROFS writer does; it only changes what a listing shows, so it may fail."""
        with contextlib.suppress(OSError):
            os.setxattr(directory, self._overlay + "origin", b"")

    def _opaque_mark(self, directory: int) -> bytes:
        try:
            return os.getxattr(directory, self._overlay + "opaque")
        except OSError:
            return b""

    def _set_opaque(self, directory: int) -> None:
        if self._opaque_mark(directory) == b"y":
            return
        for entry in os.listdir(directory):
            name = os.fsencode(entry)
            if self._is_whiteout(directory, name):
                os.unlink(name, dir_fd=directory)
        with contextlib.suppress(OSError):
            os.removexattr(directory, self._overlay + "origin")
        os.setxattr(directory, self._overlay + "opaque", b"y")

    # -- everything else ------------------------------------------------------------------

    def _place(self, entry: Entry, content: Content) -> None:
        if entry.kind is Kind.DIR:
            self._place_directory(entry)
            return
        if not entry.path:
            raise InvalidError("archive entry '/': the root is not a directory")
        if entry.kind in (Kind.CHAR, Kind.BLOCK) and not self._rules.devices:
            self._skip_device(entry)
            return
        parent_path, _, name = entry.path.rpartition(b"/")
        parent = self._open_parent(parent_path)
        try:
            self._make(parent, name, entry, content)
        except FileExistsError:
            if entry.kind is Kind.HARDLINK and self._is_same(parent, name, entry):
                return
            self._make_room(parent, name, entry)
            self._make(parent, name, entry, content)

    def _make(self, parent: int, name: bytes, entry: Entry, content: Content) -> None:
        """Make a name that must not exist; nothing is read of *content* when it does."""
        match entry.kind:
            case Kind.FILE:
                file = os.open(name, _CREATE, 0o600, dir_fd=parent)
                try:
                    self._fill(file, entry, content)
                finally:
                    os.close(file)
            case Kind.SYMLINK:
                os.symlink(entry.linkname, name, dir_fd=parent)
                self._own(entry, lambda uid, gid: _lchown(parent, name, uid, gid))
                times = (entry.mtime_ns, entry.mtime_ns)
                os.utime(name, ns=times, dir_fd=parent, follow_symlinks=False)
                permitted_xattrs(entry, self._summary)  # a link keeps none: only to count them
            case Kind.HARDLINK:
                self._link(parent, name, entry)
            case _:
                self._make_special(parent, name, entry)

    def _fill(self, file: int, entry: Entry, content: Content) -> None:
        for offset, piece in content.pieces():
            while len(piece):
                done = os.pwrite(file, piece, offset)
                piece, offset = piece[done:], offset + done
        if entry.sparse is not None:
            os.ftruncate(file, entry.size)
        self._summary.size += entry.stored
        # Owner before mode and capabilities: chown(2) takes away both set-id bits and capabilities.
        self._own(entry, lambda uid, gid: os.fchown(file, uid, gid))
        os.fchmod(file, entry.mode & self._rules.mode_mask)
        self._set_xattrs(file, entry)
        os.utime(file, ns=(entry.mtime_ns, entry.mtime_ns))

    def _make_special(self, parent: int, name: bytes, entry: Entry) -> None:
        format_ = _FORMATS[entry.kind]
        os.mknod(name, format_ | 0o600, os.makedev(entry.major, entry.minor), dir_fd=parent)
        node = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            if stat.S_IFMT(os.fstat(node).st_mode) != format_:
                raise FailedError(f"{show(entry.path)} changed while it was made")
            self._own(entry, lambda uid, gid: _lchown(parent, name, uid, gid))
            # fchmod(2) refuses O_PATH descriptors; this names the same inode and no other.
            os.chmod(f"/proc/self/fd/{node}", entry.mode & self._rules.mode_mask)
            os.utime(f"/proc/self/fd/{node}", ns=(entry.mtime_ns, entry.mtime_ns))
            permitted_xattrs(entry, self._summary)
        finally:
            os.close(node)

    def _link(self, parent: int, name: bytes, entry: Entry) -> None:
        target_path, _, target = entry.linkname.rpartition(b"/")
        missing = InvalidError(
            f"archive entry {show(entry.path)}: hard link to {show(entry.linkname)},"
            " which is not in the archive"
        )
        try:
            with self._opened(target_path) as source:
                found = os.lstat(target, dir_fd=source)
                if entry.linkname.startswith(entry.path + b"/") or stat.S_ISDIR(found.st_mode):
                    raise InvalidError(
                        f"archive entry {show(entry.path)}: hard link to {show(entry.linkname)},"
                        " which is a directory or inside what it replaces"
                    )
                if self._is_whiteout(source, target):
                    raise missing
                os.link(target, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.ENOENT, *_NOT_A_DIRECTORY):
                raise
            if entry.linkname not in self._skipped:
                raise missing from error
            self._skip_device(entry)

    def _skip_device(self, entry: Entry) -> None:
        self._account(len(entry.path) + _DEFERRED_COST)
        self._skipped.add(entry.path)
        self._summary.skipped_devices += 1

    def _is_same(self, parent: int, name: bytes, entry: Entry) -> bool:
        """Is the name that is in the way already the file to link to?"""
        target_path, _, target = entry.linkname.rpartition(b"/")
        with self._opened(target_path) as source:
            there, here = os.lstat(target, dir_fd=source), os.lstat(name, dir_fd=parent)
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)

    def _make_room(self, parent: int, name: bytes, entry: Entry) -> None:
        if not stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
            os.unlink(name, dir_fd=parent)
            return
        if not self._rules.replace_types:
            raise ConflictError(f"cannot overwrite directory {show(entry.path)} with non-directory")
        remove_tree(parent, name)

    def _own(self, entry: Entry, chown: Callable[[int, int], None]) -> None:
        self._summary.max_id = max(self._summary.max_id, entry.uid, entry.gid)
        if self._rules.owner is not None:
            chown(*self._rules.owner(entry.uid, entry.gid))

    def _set_xattrs(self, file: int, entry: Entry) -> None:
        wanted = permitted_xattrs(entry, self._summary)
        if self._rules.all_xattrs:
            wanted = {k: v for k, v in entry.xattrs.items() if b".overlay." not in k}
        for key, value in wanted.items():
            try:
                os.setxattr(file, key, value)
            except OSError as error:
                # The file system or the caller's privilege does not have them: the summary says so.
                if error.errno not in (errno.ENOTSUP, errno.EPERM):
                    raise
                self._summary.stripped_xattrs += 1


def _lchown(parent: int, name: bytes, uid: int, gid: int) -> None:
    os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)


def remove_tree(parent: int, name: bytes) -> None:
    """Remove the directory *name* in *parent* and all below it, following nothing."""
    first = os.open(name, _DIRECTORY, dir_fd=parent)
    stack = [(parent, name, first, _empty(first))]
    try:
        while stack:
            above, own_name, directory, subdirectories = stack[-1]
            if subdirectories:
                child = subdirectories.pop()
                opened = os.open(child, _DIRECTORY, dir_fd=directory)
                stack.append((directory, child, opened, _empty(opened)))
            else:
                stack.pop()
                os.close(directory)
                os.rmdir(own_name, dir_fd=above)
    finally:
        for _, _, directory, _ in stack:
            os.close(directory)


def _empty(directory: int) -> list[bytes]:
    """Unlink what is no directory; answers the subdirectories, which are left."""
    subdirectories = []
    with os.scandir(directory) as listing:
        for item in listing:
            if item.is_dir(follow_symlinks=False):
                subdirectories.append(os.fsencode(item.name))
            else:
                os.unlink(item.name, dir_fd=directory)
    return subdirectories


def extract(
    entries: Iterable[tuple[Entry, Content]],
    root_fd: int,
    *,
    rules: Rules | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> LayerSummary:
    """Make the tree that `tar.read` gives as *entries* below the directory *root_fd*.

    InvalidError names the entry that breaks a rule, ConflictError the one that may not replace what
    is there, FailedError the one that the host could not make.
    """
    extractor = Extractor(root_fd, rules or Rules(), limits)
    try:
        for entry, content in entries:
            extractor.add(entry, content)
        return extractor.finish()
    finally:
        extractor.close()
