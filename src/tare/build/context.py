"""A build context: an archive that is kept as it came, and never unpacked.

The data of its files lies in one file without a name, in the order of its arrival; the tree is
in memory, with the digest of each file taken once, as it passed. So there is no directory that a
path of the archive could lead out of, and a daemon that is killed leaves nothing behind.

Not for: contexts that are directories already (a clone): `tree.DirectoryTree` shows those.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tare.build.tree import Node, Tree, join, resolve
from tare.errors import FailedError, InvalidError
from tare.image import tar
from tare.image.compress import open_decompressed
from tare.image.entry import ByteSource, Entry, Kind, show
from tare.model.ignore import IgnoreRules

_CHUNK: Final = 1 << 20
_CHECKED: Final = 64 << 20
_SPARED: Final = 16 << 20
_FILES_MOST: Final = 500_000
_NAMES_MOST: Final = 128 << 20
_EMPTY: Final = hashlib.sha256().hexdigest()


@dataclass(frozen=True, slots=True)
class _Stored:
    """Where the data of a file lies, and what it is."""

    node: Node
    offset: int = 0
    length: int = 0
    digest: str = _EMPTY


class Context:
    """The files of one build; `close` it. Implements `tree.Tree`."""

    def __init__(self, directory: Path, *, owned: bool = False) -> None:
        """An empty context, whose data will lie on the disk of *directory*.

        *owned* keeps the owners that an archive tells; those of a build context mean nothing.
        """
        self.owned = owned
        self._implied: set[bytes] = set()
        flags = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC
        self._file = os.open(directory, flags, 0o600)
        # Whoever fills or reads it may be a thread that outlives its caller: after `close` none
        # may touch the descriptor, whose number is soon that of another file.
        self._open = threading.RLock()
        self._closed = False
        self._length = 0
        self._room = 0
        root = _Stored(Node(Kind.DIR))
        self._stored: dict[bytes, _Stored] = {b"": root}
        self._children: dict[bytes, dict[bytes, None]] = {b"": {}}
        self._identities = 0
        self._names = 0

    def close(self) -> None:
        """Let go of the data."""
        with self._open:
            if not self._closed:
                self._closed = True
                os.close(self._file)

    def _check_open(self) -> None:
        if self._closed:
            raise FailedError("the build has ended")

    # --- filling it ---------------------------------------------------------------------------

    def take(self, stream: ByteSource) -> None:
        """Add what an archive holds, plain or compressed; InvalidError if it is not a sound one."""
        with open_decompressed(stream) as plain:
            for entry, content in tar.read(plain):
                self._add(entry, content.chunks)

    def put(self, path: bytes, data: bytes, *, mode: int = 0o644) -> None:
        """Add one file."""
        self._add(Entry(path, Kind.FILE, mode=mode, size=len(data)), lambda: iter((data,)))

    def receiving(self, entry: Entry) -> Receiving:
        """Add one file whose size is not known before it has come."""
        return Receiving(self, entry)

    def _add(self, entry: Entry, chunks: Callable[[], Iterator[bytes | memoryview]]) -> None:
        path = entry.path
        if not path:
            if entry.kind is Kind.DIR:
                self._stored[b""] = _Stored(self._node(entry))
            return
        self._account(path)
        self._make_parents(path.rpartition(b"/")[0])
        self._implied.discard(path)
        known = self._stored.get(path)
        if entry.kind is Kind.HARDLINK:
            stored = self._linked(entry)
        elif entry.kind is Kind.FILE:
            stored = self._store(entry, chunks())
        else:
            stored = _Stored(self._node(entry))
        if known is not None and known.node.kind is Kind.DIR:
            if entry.kind is Kind.DIR:
                self._stored[path] = stored
                return
            self.remove(path)
        self._place(path, stored)

    def _place(self, path: bytes, stored: _Stored) -> None:
        parent, _, name = path.rpartition(b"/")
        self._stored[path] = stored
        self._children[parent][name] = None
        if stored.node.kind is Kind.DIR:
            self._children[path] = {}

    def _account(self, path: bytes) -> None:
        """Bound the memory that a context takes: what is beyond that is a mistake or an attack."""
        self._names += len(path)
        if len(self._stored) > _FILES_MOST or self._names > _NAMES_MOST:
            raise InvalidError(
                f"the build context has more than {_FILES_MOST} files, or too long names",
                hint="leave out what the build does not need: .dockerignore",
            )

    def _make_parents(self, path: bytes) -> None:
        if path in self._children:
            return
        above, _, name = path.rpartition(b"/")
        self._make_parents(above)
        self._children[path] = {}
        if path in self._stored:
            # Of an archive that is unpacked: whoever places it follows the link.
            if self.owned and self._stored[path].node.kind is Kind.SYMLINK:
                return
            raise InvalidError(f"the build context has entries below {show(path)}, no directory")
        self._implied.add(path)
        self._stored[path] = _Stored(Node(Kind.DIR))
        self._children[above][name] = None

    def _linked(self, entry: Entry) -> _Stored:
        target = self._stored.get(entry.linkname)
        if target is None or target.node.kind is Kind.DIR:
            raise InvalidError(
                f"the build context has a hard link {show(entry.path)} to"
                f" {show(entry.linkname)}, which is no file in it"
            )
        if target.node.identity is None:
            self._identities += 1
            target = replace(target, node=target.node._replace(identity=(0, self._identities)))
            self._stored[entry.linkname] = target
        return target

    def _store(self, entry: Entry, chunks: Iterator[bytes | memoryview]) -> _Stored:
        start = self._length
        found = hashlib.sha256()
        if entry.sparse is not None:  # the holes are part of what it is
            found.update(repr((entry.size, entry.sparse)).encode())
        for chunk in chunks:
            found.update(chunk)
            self._write(chunk)
        return _Stored(self._node(entry), start, self._length - start, found.hexdigest())

    def _write(self, data: bytes | memoryview) -> None:
        with self._open:
            self._check_open()
            self._write_all(data)

    def _write_all(self, data: bytes | memoryview) -> None:
        self._room -= len(data)
        if self._room < 0:
            status = os.fstatvfs(self._file)
            if status.f_bavail * status.f_frsize < len(data) + _SPARED:
                raise FailedError(
                    "no space left on the device that holds the build context",
                    hint="tare builder prune frees what builds keep",
                )
            self._room = min(_CHECKED, status.f_bavail * status.f_frsize // 2) - len(data)
        view = memoryview(data)
        while view:
            try:
                done = os.pwrite(self._file, view, self._length)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise FailedError(
                    "no space left on the device that holds the build context",
                    hint="tare builder prune frees what builds keep",
                ) from error
            self._length += done
            view = view[done:]

    def remove(self, path: bytes) -> None:
        """Forget a file, or a directory with all below it."""
        for name in list(self._children.get(path, ())):
            self.remove(join(path, name))
        self._children.pop(path, None)
        if self._stored.pop(path, None) is not None and path:
            parent, _, name = path.rpartition(b"/")
            self._children[parent].pop(name, None)

    def _node(self, entry: Entry) -> Node:
        return Node(
            entry.kind,
            entry.mode,
            entry.uid if self.owned else 0,
            entry.gid if self.owned else 0,
            entry.mtime_ns,
            entry.size,
            entry.linkname if entry.kind is Kind.SYMLINK else b"",
            entry.major,
            entry.minor,
            entry.xattrs,
            entry.sparse,
        )

    def implied(self, path: bytes) -> bool:
        """Whether the archive used the directory *path* and did not describe it."""
        return path in self._implied

    def paths(self) -> list[bytes]:
        """Every path in it, parents first."""
        return [path for path in sorted(self._stored) if path]

    # --- reading it ---------------------------------------------------------------------------

    def node(self, path: bytes) -> Node | None:
        """What is at *path*."""
        stored = self._stored.get(path)
        return stored.node if stored is not None else None

    def names(self, path: bytes) -> list[bytes]:
        """The names in a directory."""
        return sorted(self._children.get(path, ()))

    def content(self, path: bytes) -> Iterator[bytes]:
        """The data of a file."""
        stored = self._stored[path]
        offset, left = stored.offset, stored.length
        while left:
            with self._open:
                self._check_open()
                piece = os.pread(self._file, min(left, _CHUNK), offset)
            if not piece:
                raise FailedError("the build context was cut off on disk")
            offset += len(piece)
            left -= len(piece)
            yield piece

    def digest(self, path: bytes) -> str:
        """sha256 of a file, known since it came."""
        return self._stored[path].digest


class Ignoring:
    """A tree without what an ignore file names; implements `tree.Tree`."""

    def __init__(self, tree: Tree, rules: IgnoreRules) -> None:
        self.owned = tree.owned
        self._tree = tree
        self._rules = rules

    def _hidden(self, path: bytes, node: Node) -> bool:
        text = os.fsdecode(path)
        if not path or not self._rules.ignores(text):
            return False
        if node.kind is not Kind.DIR or not self._rules.takes_back:
            return True
        # A directory is there as long as something in it is.
        return not (self._rules.may_take_back_below(text) and self.names(path))

    def node(self, path: bytes) -> Node | None:
        """What is at *path*, if it is not left out."""
        node = self._tree.node(path)
        return None if node is None or self._hidden(path, node) else node

    def names(self, path: bytes) -> list[bytes]:
        """The names in a directory that are not left out."""
        return [name for name in self._tree.names(path) if self.node(join(path, name)) is not None]

    def content(self, path: bytes) -> Iterator[bytes | memoryview]:
        """The data of a file."""
        return self._tree.content(path)

    def digest(self, path: bytes) -> str:
        """sha256 of a file."""
        return self._tree.digest(path)


class Receiving:
    """A file that is on its way into a context."""

    def __init__(self, context: Context, entry: Entry) -> None:
        self._context = context
        self._entry = entry
        self._start = context._length
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> None:
        """Take the next bytes."""
        self._hash.update(data)
        self._context._write(data)

    def finish(self) -> str:
        """All has come; the sha256 of it."""
        context = self._context
        length = context._length - self._start
        digest = self._hash.hexdigest()
        node = context._node(self._entry._replace(size=length))
        context._place(self._entry.path, _Stored(node, self._start, length, digest))
        return digest


def read_small(tree: Tree, path: str, *, limit: int, what: str) -> bytes | None:
    """A small file of *tree*, links followed inside it; None if there is none.

    InvalidError for what is no file, or larger than *limit*.
    """
    place = resolve(tree.node, os.fsencode(path))
    node = tree.node(place) if place is not None else None
    if place is None or node is None:
        return None
    if node.kind is not Kind.FILE:
        raise InvalidError(f"{what} {path!r} is not a regular file")
    if node.size > limit or node.sparse is not None:
        raise InvalidError(f"{what} {path!r} is larger than {limit >> 10} KiB")
    return b"".join(bytes(piece) for piece in tree.content(place))
