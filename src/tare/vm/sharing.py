"""The file server of a machine: directories of the host, for a guest that asks by FUSE.

A second program in the machine's sandbox, started when the machine has binds or volumes. It sees
of the host what the sandbox has mounted at ``/shares/NUMBER`` and nothing else, with the ids of
the machine, read-only where the mount is; so what a hostile guest asks for is bounded by mounts,
not by this code. Within a share (attack A50, by number):

1. A name is one component: a slash, ``.``, ``..`` or a NUL in it is refused.
2. A path is opened beneath the share's own descriptor, symlinks refused (openat2(2)).
3. The last component is never followed; device nodes are never made or opened.
4. Handles and nodes are numbers of ours: one that was not given is refused.

Requests come as frames by the relay. Not for: which directories these are (engine.machines).
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from tare.kernel import files
from tare.vm import fuse, protocol
from tare.vm.fuse import Op, Request
from tare.vm.protocol import Decoder, ToGuest, ToHost

SHARES: Final = "/shares"
ROOT: Final = 1
_LONGEST_NAME: Final = 255
_SET_MODE, _SET_UID, _SET_GID, _SET_SIZE, _SET_ATIME, _SET_MTIME, _SET_FH = (
    1 << bit for bit in range(7)
)
_ATIME: Final = (_SET_ATIME, 1 << 7)  # and now
_MTIME: Final = (_SET_MTIME, 1 << 8)
_KEPT_FLAGS: Final = (
    os.O_ACCMODE | os.O_APPEND | os.O_TRUNC | os.O_SYNC | os.O_DSYNC | os.O_NONBLOCK
)
_MOST_READ: Final = fuse.MAX_WRITE


@dataclass(slots=True)
class Node:
    """A file that the guest knows: by its name in a directory that it knows."""

    parent: int
    name: bytes  # b"" when that name is gone
    key: tuple[int, int]
    lookups: int = 0


@dataclass(slots=True)
class Handle:
    """An open file or directory; of a directory what it held when it was read from its start."""

    descriptor: int
    node: int
    listing: list[bytes] = field(default_factory=list)


class Share:
    """One directory, and what the guest knows of it."""

    def __init__(self, path: str) -> None:
        self._root = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        status = os.fstat(self._root)
        self._nodes = {ROOT: Node(ROOT, b".", (status.st_dev, status.st_ino), 1)}
        self._by_key = {(status.st_dev, status.st_ino): ROOT}
        self._handles: dict[int, Handle] = {}
        self._next = ROOT + 1
        self._answers: dict[int, Callable[[Request], bytes | None]] = {
            Op.INIT: lambda request: fuse.welcome(request.body),
            Op.LOOKUP: self._lookup,
            Op.FORGET: self._forget,
            Op.BATCH_FORGET: self._forget_many,
            Op.GETATTR: self._getattr,
            Op.SETATTR: self._setattr,
            Op.READLINK: self._readlink,
            Op.SYMLINK: self._symlink,
            Op.MKNOD: self._mknod,
            Op.MKDIR: self._mkdir,
            Op.UNLINK: lambda request: self._remove(request, os.unlink),
            Op.RMDIR: lambda request: self._remove(request, os.rmdir),
            Op.RENAME: self._rename,
            Op.RENAME2: self._rename2,
            Op.LINK: self._link,
            Op.OPEN: self._open,
            Op.CREATE: self._create,
            Op.READ: self._read,
            Op.WRITE: self._write,
            Op.RELEASE: self._release,
            Op.FLUSH: lambda request: b"",
            Op.FSYNC: self._fsync,
            Op.FSYNCDIR: self._fsync,
            Op.FALLOCATE: self._fallocate,
            Op.LSEEK: self._lseek,
            Op.STATFS: self._statfs,
            Op.OPENDIR: self._opendir,
            Op.READDIR: self._readdir,
            Op.RELEASEDIR: self._release,
            Op.SETXATTR: self._setxattr,
            Op.GETXATTR: self._getxattr,
            Op.LISTXATTR: self._listxattr,
            Op.REMOVEXATTR: self._removexattr,
            Op.INTERRUPT: lambda request: None,
            Op.DESTROY: lambda request: b"",
        }

    def answer(self, message: bytes) -> bytes | None:
        """The reply to one message of the guest's kernel; None when it wants none."""
        request = fuse.parse(message)
        if request is None:
            return None
        work = self._answers.get(request.op)
        if work is None:
            return fuse.failure(request.unique, errno.ENOSYS)
        try:
            body = work(request)
        except OSError as error:
            return fuse.failure(request.unique, error.errno or errno.EIO)
        except (struct.error, ValueError, KeyError, IndexError):
            return fuse.failure(request.unique, errno.EINVAL)
        return None if body is None else fuse.reply(request.unique, body)

    def close(self) -> None:
        """Let go of everything."""
        for handle in self._handles.values():
            os.close(handle.descriptor)
        self._handles.clear()
        os.close(self._root)

    # --- names --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _directory(self, number: int) -> Iterator[int]:
        """An O_PATH descriptor of the directory that is node *number* (rule 2)."""
        flags = os.O_PATH | os.O_DIRECTORY
        descriptor = files.open_beneath(self._root, self._path(number) or b".", flags)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _path(self, number: int) -> bytes:
        parts: list[bytes] = []
        while number != ROOT:
            node = self._nodes[number]
            if not node.name or len(parts) > 4096:
                raise OSError(errno.ESTALE, "it has no name any more")
            parts.append(node.name)
            number = node.parent
        return b"/".join(reversed(parts))

    @contextlib.contextmanager
    def _where(self, number: int) -> Iterator[tuple[int, bytes]]:
        """The directory that node *number* is in, and its name there."""
        if number == ROOT:
            yield self._root, b"."
            return
        node = self._nodes[number]
        if not node.name:
            raise OSError(errno.ESTALE, "it has no name any more")
        with self._directory(node.parent) as directory:
            yield directory, node.name

    @contextlib.contextmanager
    def _reopened(self, number: int) -> Iterator[str]:
        """A path that names node *number* whatever becomes of its name; not for symlinks."""
        with self._where(number) as (directory, name):
            flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(name, flags, dir_fd=directory)
        try:
            if stat.S_ISLNK(os.fstat(descriptor).st_mode):
                raise OSError(errno.EOPNOTSUPP, "a symlink has none")
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)

    def _entered(self, parent: int, name: bytes, directory: int) -> bytes:
        """The guest learns of *name*: its node, and what it is."""
        status = os.lstat(name, dir_fd=directory)
        key = (status.st_dev, status.st_ino)
        number = self._by_key.get(key)
        if number is None:
            number, self._next = self._next, self._next + 1
            self._nodes[number] = Node(parent, name, key)
            self._by_key[key] = number
        node = self._nodes[number]
        if number != ROOT:
            node.parent, node.name = parent, name
        node.lookups += 1
        return fuse.entry(number, status)

    def _lookup(self, request: Request) -> bytes:
        name = _name(request.body)
        with self._directory(request.node) as directory:
            return self._entered(request.node, name, directory)

    def _forget(self, request: Request) -> None:
        self._drop(request.node, *struct.unpack_from("<Q", request.body))

    def _forget_many(self, request: Request) -> None:
        (count,) = struct.unpack_from("<I", request.body)
        for number, lookups in struct.iter_unpack("<QQ", request.body[8 : 8 + count * 16]):
            self._drop(number, lookups)

    def _drop(self, number: int, lookups: int) -> None:
        node = self._nodes.get(number)
        if node is None or number == ROOT:
            return
        node.lookups -= lookups
        if node.lookups <= 0:
            del self._nodes[number]
            if self._by_key.get(node.key) == number:
                del self._by_key[node.key]

    # --- attributes ---------------------------------------------------------------------------

    def _getattr(self, request: Request) -> bytes:
        flags, _, number = struct.unpack_from("<IIQ", request.body)
        if flags & 1:
            return fuse.attribute_answer(os.fstat(self._handles[number].descriptor))
        return fuse.attribute_answer(self._status(request.node))

    def _status(self, number: int) -> os.stat_result:
        nameless = self._nameless(number)
        if nameless is not None:
            return os.fstat(nameless)
        with self._where(number) as (directory, name):
            return os.lstat(name, dir_fd=directory)

    def _setattr(self, request: Request) -> bytes:
        (
            valid, _, handle, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _,
        ) = struct.unpack_from("<IIQQQQQQIIIIIIII", request.body)  # fmt: skip
        nameless = self._nameless(request.node)
        if nameless is not None:
            return _change_nameless(nameless, valid, size, mode)
        with self._where(request.node) as (directory, name):
            if valid & (_SET_UID | _SET_GID):
                owner = uid if valid & _SET_UID else -1
                group = gid if valid & _SET_GID else -1
                os.chown(name, owner, group, dir_fd=directory, follow_symlinks=False)
            if valid & _SET_SIZE:
                self._truncate(handle if valid & _SET_FH else 0, directory, name, size)
            if valid & (_SET_ATIME | _SET_MTIME):
                before = os.lstat(name, dir_fd=directory)
                times = (
                    _time(valid, _ATIME, (atime, atime_ns), before.st_atime_ns),
                    _time(valid, _MTIME, (mtime, mtime_ns), before.st_mtime_ns),
                )
                os.utime(name, ns=times, dir_fd=directory, follow_symlinks=False)
            if valid & _SET_MODE:
                with self._reopened(request.node) as path:
                    os.chmod(path, mode & 0o7777)  # noqa: PTH101 -- no pathlib in here
            return fuse.attribute_answer(os.lstat(name, dir_fd=directory))

    def _truncate(self, handle: int, directory: int, name: bytes, size: int) -> None:
        if handle:
            os.ftruncate(self._handles[handle].descriptor, size)
            return
        descriptor = _open_file(name, os.O_WRONLY, directory)
        try:
            os.ftruncate(descriptor, size)
        finally:
            os.close(descriptor)

    def _statfs(self, request: Request) -> bytes:
        return fuse.statistics(os.fstatvfs(self._root))

    # --- making and removing ------------------------------------------------------------------

    def _own(self, request: Request, name: bytes, directory: int, mode: int) -> None:
        """What was just made belongs to who asked for it, its group by the directory's rule."""
        group = -1 if os.fstat(directory).st_mode & stat.S_ISGID else request.gid
        try:
            os.chown(name, request.uid, group, dir_fd=directory, follow_symlinks=False)
        except OSError:
            with contextlib.suppress(OSError):
                (os.rmdir if stat.S_ISDIR(mode) else os.unlink)(name, dir_fd=directory)
            raise

    def _readlink(self, request: Request) -> bytes:
        with self._where(request.node) as (directory, name):
            return os.readlink(name, dir_fd=directory)

    def _symlink(self, request: Request) -> bytes:
        raw, _, rest = request.body.partition(b"\0")
        name, target = _name(raw), rest.partition(b"\0")[0]
        with self._directory(request.node) as directory:
            os.symlink(target, name, dir_fd=directory)
            self._own(request, name, directory, stat.S_IFLNK)
            return self._entered(request.node, name, directory)

    def _mknod(self, request: Request) -> bytes:
        mode, _, _, _ = struct.unpack_from("<IIII", request.body)
        name = _name(request.body[16:])
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            raise PermissionError(errno.EPERM, "no device nodes")  # rule 3
        with self._directory(request.node) as directory:
            os.mknod(name, mode, dir_fd=directory)
            self._own(request, name, directory, mode)
            return self._entered(request.node, name, directory)

    def _mkdir(self, request: Request) -> bytes:
        mode, _ = struct.unpack_from("<II", request.body)
        name = _name(request.body[8:])
        with self._directory(request.node) as directory:
            os.mkdir(name, mode & 0o7777, dir_fd=directory)
            self._own(request, name, directory, stat.S_IFDIR)
            return self._entered(request.node, name, directory)

    def _remove(self, request: Request, remove: Callable[..., None]) -> bytes:
        name = _name(request.body)
        with self._directory(request.node) as directory:
            status = os.lstat(name, dir_fd=directory)
            remove(name, dir_fd=directory)
        self._gone(request.node, name, status)
        return b""

    def _gone(self, parent: int, name: bytes, status: os.stat_result) -> None:
        number = self._by_key.get((status.st_dev, status.st_ino), 0)
        node = self._nodes.get(number)
        if node is not None and (node.parent, node.name) == (parent, name):
            node.name = b""
            if status.st_nlink <= 1 or stat.S_ISDIR(status.st_mode):
                del self._by_key[node.key]

    def _rename(self, request: Request) -> bytes:
        (target,) = struct.unpack_from("<Q", request.body)
        return self._move(request.node, target, 0, request.body[8:])

    def _rename2(self, request: Request) -> bytes:
        target, flags, _ = struct.unpack_from("<QII", request.body)
        return self._move(request.node, target, flags, request.body[16:])

    def _move(self, source: int, target: int, flags: int, names: bytes) -> bytes:
        raw, _, rest = names.partition(b"\0")
        old, new = _name(raw), _name(rest)
        if flags & ~1:
            raise OSError(errno.EINVAL, "only RENAME_NOREPLACE is known")
        with self._directory(source) as here, self._directory(target) as there:
            moved = os.lstat(old, dir_fd=here)
            replaced = None
            with contextlib.suppress(FileNotFoundError):
                replaced = os.lstat(new, dir_fd=there)
            if replaced is not None and flags & 1:
                raise FileExistsError(errno.EEXIST, "it is there")
            os.rename(old, new, src_dir_fd=here, dst_dir_fd=there)
        same = replaced is not None and os.path.samestat(replaced, moved)
        if replaced is not None and not same:
            self._gone(target, new, replaced)
        number = self._by_key.get((moved.st_dev, moved.st_ino), 0)
        node = self._nodes.get(number)
        if node is not None and not same:
            node.parent, node.name = target, new
        return b""

    def _link(self, request: Request) -> bytes:
        (old,) = struct.unpack_from("<Q", request.body)
        name = _name(request.body[8:])
        with self._where(old) as (here, known), self._directory(request.node) as there:
            os.link(known, name, src_dir_fd=here, dst_dir_fd=there, follow_symlinks=False)
            return self._entered(request.node, name, there)

    # --- open files ---------------------------------------------------------------------------

    def _handle(self, descriptor: int, node: int) -> int:
        number, self._next = self._next, self._next + 1
        self._handles[number] = Handle(descriptor, node)
        return number

    def _nameless(self, node: int) -> int | None:
        """An open descriptor of a file that was deleted meanwhile; None of one with a name."""
        if node == ROOT or self._nodes[node].name:
            return None
        for handle in self._handles.values():
            if handle.node == node:
                return handle.descriptor
        raise OSError(errno.ESTALE, "it has no name any more")

    def _descriptor(self, body: bytes) -> int:
        (number,) = struct.unpack_from("<Q", body)
        return self._handles[number].descriptor

    def _open(self, request: Request) -> bytes:
        (flags,) = struct.unpack_from("<I", request.body)
        with self._where(request.node) as (directory, name):
            descriptor = _open_file(name, flags & _KEPT_FLAGS, directory)
        return fuse.opened(self._handle(descriptor, request.node))

    def _create(self, request: Request) -> bytes:
        flags, mode, _, _ = struct.unpack_from("<IIII", request.body)
        name = _name(request.body[16:])
        wanted = flags & (_KEPT_FLAGS | os.O_EXCL)
        with self._directory(request.node) as directory:
            try:
                made = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                descriptor = os.open(name, wanted | made, mode & 0o7777, dir_fd=directory)
                self._own(request, name, directory, stat.S_IFREG)
                if mode & 0o7000:
                    os.fchmod(descriptor, mode & 0o7777)
            except FileExistsError:
                if flags & os.O_EXCL:
                    raise
                descriptor = _open_file(name, wanted, directory)
            known = self._entered(request.node, name, directory)
        (node,) = struct.unpack_from("<Q", known)
        return known + fuse.opened(self._handle(descriptor, node))

    def _read(self, request: Request) -> bytes:
        number, offset, size = struct.unpack_from("<QQI", request.body)
        return os.pread(self._handles[number].descriptor, min(size, _MOST_READ), offset)

    def _write(self, request: Request) -> bytes:
        number, offset, size = struct.unpack_from("<QQI", request.body)
        content = memoryview(request.body)[40 : 40 + size]
        written = os.pwrite(self._handles[number].descriptor, content, offset)
        return struct.pack("<II", written, 0)

    def _release(self, request: Request) -> bytes:
        (number,) = struct.unpack_from("<Q", request.body)
        os.close(self._handles.pop(number).descriptor)
        return b""

    def _fsync(self, request: Request) -> bytes:
        os.fsync(self._descriptor(request.body))
        return b""

    def _fallocate(self, request: Request) -> bytes:
        number, offset, length, mode, _ = struct.unpack_from("<QQQII", request.body)
        if mode:
            raise OSError(errno.EOPNOTSUPP, "only plain allocation is known")
        os.posix_fallocate(self._handles[number].descriptor, offset, length)
        return b""

    def _lseek(self, request: Request) -> bytes:
        number, offset, whence, _ = struct.unpack_from("<QQII", request.body)
        return struct.pack("<Q", os.lseek(self._handles[number].descriptor, offset, whence))

    def _opendir(self, request: Request) -> bytes:
        with self._directory(request.node) as found:
            descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=found)
        return fuse.opened(self._handle(descriptor, request.node))

    def _readdir(self, request: Request) -> bytes:
        number, offset, size = struct.unpack_from("<QQI", request.body)
        handle = self._handles[number]
        if offset == 0:
            handle.listing = _listed(handle.descriptor)
        out = bytearray()
        for at, kept in enumerate(handle.listing[offset:], offset + 1):
            inode, kind = struct.unpack_from("<QI", kept)
            packed = fuse.directory_entry(inode, at, kind, kept[12:])
            if len(out) + len(packed) > min(size, _MOST_READ):
                break
            out += packed
        return bytes(out)

    # --- extended attributes ------------------------------------------------------------------

    def _setxattr(self, request: Request) -> bytes:
        size, flags = struct.unpack_from("<II", request.body)
        raw, _, rest = request.body[8:].partition(b"\0")
        with self._reopened(request.node) as path:
            os.setxattr(path, _attribute(raw), rest[:size], flags)
        return b""

    def _getxattr(self, request: Request) -> bytes:
        (size,) = struct.unpack_from("<I", request.body)
        with self._reopened(request.node) as path:
            return _sized(os.getxattr(path, _attribute(request.body[8:].rstrip(b"\0"))), size)

    def _listxattr(self, request: Request) -> bytes:
        (size,) = struct.unpack_from("<I", request.body)
        with self._reopened(request.node) as path:
            names = [name for name in os.listxattr(path) if name.startswith("user.")]
        return _sized(b"".join(os.fsencode(name) + b"\0" for name in names), size)

    def _removexattr(self, request: Request) -> bytes:
        with self._reopened(request.node) as path:
            os.removexattr(path, _attribute(request.body.rstrip(b"\0")))
        return b""


def _name(raw: bytes) -> bytes:
    """One component, up to its NUL (rule 1)."""
    name = raw.partition(b"\0")[0]
    if not name or b"/" in name or name in (b".", b".."):
        raise OSError(errno.EINVAL, "not a name")
    if len(name) > _LONGEST_NAME:
        raise OSError(errno.ENAMETOOLONG, "name too long")
    return name


def _attribute(name: bytes) -> bytes:
    """A name of the user's own attributes: the others are the host's business."""
    if not name.startswith(b"user."):
        raise OSError(errno.EOPNOTSUPP, "only user. attributes")
    return name


def _sized(value: bytes, size: int) -> bytes:
    if not size:
        return struct.pack("<II", len(value), 0)
    if len(value) > size:
        raise OSError(errno.ERANGE, "it is longer")
    return value


def _time(valid: int, bits: tuple[int, int], given: tuple[int, int], before: int) -> int:
    """What a time is to be: what it was, now, or what was *given*."""
    if not valid & bits[0]:
        return before
    return time.time_ns() if valid & bits[1] else given[0] * 1_000_000_000 + given[1]


def _change_nameless(descriptor: int, valid: int, size: int, mode: int) -> bytes:
    if valid & _SET_SIZE:
        os.ftruncate(descriptor, size)
    if valid & _SET_MODE:
        os.fchmod(descriptor, mode & 0o7777)
    return fuse.attribute_answer(os.fstat(descriptor))


def _open_file(name: bytes, flags: int, directory: int) -> int:
    """Open a regular file; anything else is refused before it is opened (rule 3)."""
    if not stat.S_ISREG(os.lstat(name, dir_fd=directory).st_mode):
        raise OSError(errno.EACCES, "not a regular file")
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    # The kernel of the guest adds at the end itself; here an offset is always given.
    return os.open(name, flags & ~os.O_APPEND, dir_fd=directory)


def _listed(descriptor: int) -> list[bytes]:
    """The entries of a directory, each as inode, type and name."""
    found = []
    with os.scandir(descriptor) as entries:
        for one in entries:
            with contextlib.suppress(OSError):
                status = one.stat(follow_symlinks=False)
                kind = stat.S_IFMT(status.st_mode) >> 12
                found.append(struct.pack("<QI", status.st_ino, kind) + os.fsencode(one.name))
    return found


def serve(control: str, shares: str = SHARES) -> int:
    """Answer until the relay is gone: the exit code."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.umask(0)
    found = {int(name): Share(f"{shares}/{name}") for name in os.listdir(shares)}  # noqa: PTH208
    relay = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    relay.connect(control)
    relay.sendall(protocol.frame(ToGuest.FILES))
    decoder = Decoder(ToHost)
    while data := relay.recv(1 << 18):
        for said in decoder.feed(data):
            share = found.get(said.channel)
            body = share.answer(said.payload) if share is not None else None
            if body is not None:
                relay.sendall(protocol.frame(ToGuest.FILES, body, channel=said.channel))
    return 0
