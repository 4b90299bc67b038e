"""Where copied files go: the layer of COPY, ADD and WORKDIR, made without a container.

A `Placement` gathers the entries of one layer above a base: it looks at what is below (through
`tree`, so no link leads out of the image), follows links on the way to a destination, and repeats
the directories of the base that lead to something new, with their own modes and owners, since a
layer's directories replace those below. `LayerStream` gives the archive of it, sorted, as a
stream; the image store makes a layer of that.

Not for: choosing files (``selection``), or the store.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from tare.build.selection import Selection, Source
from tare.build.tree import Node, Tree, join, resolve
from tare.errors import InvalidError
from tare.image.entry import NO_XATTRS, Entry, Kind, show
from tare.image.tar_writer import END, archived

Data = Callable[[], Iterator[bytes | memoryview]]

_SYMBOLIC: Final = re.compile(r"([ugoa]*)([=+-])([rwxXst]*)")
_GATHERED: Final = 256 << 10
_BITS: Final = {"r": 4, "w": 2, "x": 1}
_SHIFTS: Final = {"u": 6, "g": 3, "o": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How files are placed: ``owner`` None keeps the source's (root for a context's).

    ``mode`` is an octal or a symbolic mode. ``now_ns`` is the time of directories that are made;
    nothing is given a later one than ``latest_ns``.
    """

    owner: tuple[int, int] | None = None
    mode: str = ""
    now_ns: int = 0
    latest_ns: int | None = None


@dataclass(slots=True)
class _Placed:
    entry: Entry
    data: Data | None = None


class Unpacked(Tree, Protocol):
    """An archive as a tree, which knows what it only implied."""

    def paths(self) -> list[bytes]:
        """Every path, parents first."""
        ...

    def implied(self, path: bytes) -> bool:
        """Whether the archive used the directory *path* and did not describe it."""
        ...


class Placement:
    """The entries of one layer, above *base* (None: nothing is known of what is below)."""

    def __init__(self, base: Tree | None, manner: Manner) -> None:
        self._base = base
        self._manner = manner
        self._placed: dict[bytes, _Placed] = {}
        self._links: dict[tuple[int, int, int], bytes] = {}
        self.changes = 0

    # --- looking --------------------------------------------------------------------------------

    def node(self, path: bytes) -> Node | None:
        """What is at *path* now: of this layer, or below it."""
        placed = self._placed.get(path)
        if placed is not None:
            entry = placed.entry
            return Node(entry.kind, entry.mode, entry.uid, entry.gid, link=entry.linkname)
        if not path:
            return self._base.node(b"") if self._base is not None else Node(Kind.DIR)
        return self._base.node(path) if self._base is not None else None

    def destination(self, path: str) -> bytes:
        """An absolute path with links followed, whether it is there or not."""
        found = resolve(self.node, path.encode("utf-8", "surrogateescape"), missing=True)
        assert found is not None
        return found

    # --- directories ----------------------------------------------------------------------------

    def directory(self, path: bytes) -> bool:
        """Have a directory at *path* (without links in it); True when it is made here."""
        if path in self._placed:
            if self._placed[path].entry.kind is not Kind.DIR:
                raise _not_a_directory(path)
            return False
        below = self.node(path)
        if below is not None and below.kind is not Kind.DIR:
            raise _not_a_directory(path)
        if path:
            self.directory(path.rpartition(b"/")[0])
        if below is not None:
            if path or self._base is not None:
                self._placed[path] = _Placed(_entry(path, below))
            return False
        uid, gid = self._manner.owner or (0, 0)
        self._put(Entry(path, Kind.DIR, 0o755, uid, gid, self._manner.now_ns))
        return True

    def _put(self, entry: Entry, data: Data | None = None) -> None:
        latest = self._manner.latest_ns
        if latest is not None and entry.mtime_ns > latest:
            entry = entry._replace(mtime_ns=latest)
        self._placed[entry.path] = _Placed(entry, data)
        self.changes += 1

    # --- copying --------------------------------------------------------------------------------

    def copy(self, selection: Selection, destination: str, *, into: bool) -> None:
        """Place what was selected at *destination*; *into*: that is a directory in any case."""
        for source in selection.sources:
            place = self.destination(destination)
            if into:
                self.directory(place)
            if source.directory:
                self._copy_directory(selection.tree, source, place)
            else:
                self._copy_file(selection.tree, source, place)

    def _copy_file(self, tree: Tree, source: Source, place: bytes) -> None:
        there = self.node(place)
        if there is not None and there.kind is Kind.DIR:
            place = join(place, source.name)
            there = self.node(place)
            if there is not None and there.kind is Kind.DIR:
                raise InvalidError(f"cannot copy the file {show(source.name)} over a directory")
        self.directory(place.rpartition(b"/")[0])
        self.take(tree, source.path, source.node, place)

    def _copy_directory(self, tree: Tree, source: Source, place: bytes) -> None:
        """Place what is in a directory; the directory itself is not described by its source.

        Below it the source's directories are, and take the place of whatever is no directory.
        """
        self.directory(place)
        for item in source.items:
            target = join(place, item.name)
            if item.node.kind is not Kind.DIR:
                self._drop_below(target)
            self.directory(target.rpartition(b"/")[0])
            self.take(tree, item.path, item.node, target)

    def take(self, tree: Tree, path: bytes, node: Node, target: bytes) -> None:
        """Place one file, hard links among those taken kept."""
        entry = self._described(target, node, tree)
        if node.identity is not None:
            key = (id(tree), *node.identity)
            first = self._links.setdefault(key, target)
            if first != target and first in self._placed:
                # The order of names decides which one holds the data.
                if target < first:
                    self._put(entry, lambda: tree.content(path))
                    self._placed[first] = _Placed(_hard_link(self._placed[first].entry, target))
                    self._links[key] = target
                else:
                    self._put(_hard_link(entry, first))
                return
        if node.kind is Kind.FILE:
            self._put(entry, lambda: tree.content(path))
        else:
            self._put(entry)

    def _described(self, target: bytes, node: Node, tree: Tree) -> Entry:
        uid, gid = (node.uid, node.gid) if tree.owned else (0, 0)
        if self._manner.owner is not None:
            uid, gid = self._manner.owner
        mode = node.mode
        if self._manner.mode and node.kind is not Kind.SYMLINK:
            mode = changed_mode(self._manner.mode, mode, directory=node.kind is Kind.DIR)
        return _entry(target, node)._replace(mode=mode, uid=uid, gid=gid)

    def file(self, target: bytes, data: bytes, *, mode: int = 0o644) -> None:
        """Place a file of which only the content is known."""
        self.directory(target.rpartition(b"/")[0])
        node = Node(Kind.FILE, mode, mtime_ns=self._manner.now_ns, size=len(data))
        uid, gid = self._manner.owner or (0, 0)
        if self._manner.mode:
            mode = changed_mode(self._manner.mode, mode, directory=False)
        entry = _entry(target, node)._replace(mode=mode, uid=uid, gid=gid)
        self._put(entry, lambda: iter((data,)))

    def unpack(self, archive: Unpacked, place: bytes) -> None:
        """Place what an archive holds below the directory *place*.

        As tar does in a directory that is its root: links on the way are followed inside it, and
        what is there is replaced, but for a directory by a directory.
        """
        self.directory(place)
        for path in archive.paths():
            if archive.implied(path):
                continue
            node = archive.node(path)
            assert node is not None
            parent, _, name = path.rpartition(b"/")
            inside = resolve(lambda at: self.node(join(place, at)), parent, missing=True)
            above = join(place, inside) if inside else place
            self.directory(above)
            target = join(above, name)
            if node.kind is not Kind.DIR:
                self._drop_below(target)
            self.take(archive, path, node, target)

    def _drop_below(self, path: bytes) -> None:
        """What was placed below a directory that is no more."""
        placed = self._placed.get(path)
        if placed is None or placed.entry.kind is not Kind.DIR:
            return  # the usual case: to look through all that was placed is dear
        for below in [other for other in self._placed if other.startswith(path + b"/")]:
            del self._placed[below]

    # --- the layer ------------------------------------------------------------------------------

    def stream(self) -> LayerStream:
        """The archive of the layer, to be read once."""
        return LayerStream(self._ordered())

    def _ordered(self) -> Iterator[_Placed]:
        """Sorted by name, hard links behind what they are links to."""
        late = []
        for path in sorted(self._placed):
            placed = self._placed[path]
            if placed.entry.kind is Kind.HARDLINK and placed.entry.linkname > path:
                late.append(placed)
            else:
                yield placed
        yield from late


class LayerStream:
    """The bytes of an archive, made as they are read; a `ByteSource`."""

    def __init__(self, placed: Iterable[_Placed]) -> None:
        self._made = self._make(placed)
        self._rest = memoryview(b"")

    @staticmethod
    def _make(placed: Iterable[_Placed]) -> Iterator[bytes | memoryview]:
        for each in placed:
            yield from archived(each.entry, each.data() if each.data is not None else ())
        yield END

    def read(self, n: int = -1, /) -> bytes:
        """At most *n* bytes; empty at the end."""
        if not self._rest:
            gathered = bytearray()
            for piece in self._made:
                gathered += piece
                if len(gathered) >= _GATHERED:
                    break
            self._rest = memoryview(gathered)
        size = len(self._rest) if n < 0 else min(n, len(self._rest))
        data = bytes(self._rest[:size])
        self._rest = self._rest[size:]
        return data


def _entry(path: bytes, node: Node) -> Entry:
    return Entry(
        path,
        node.kind,
        node.mode,
        node.uid,
        node.gid,
        node.mtime_ns,
        node.size,
        node.link,
        node.major,
        node.minor,
        node.xattrs,
        node.sparse,
    )


def _hard_link(entry: Entry, target: bytes) -> Entry:
    return entry._replace(
        kind=Kind.HARDLINK, size=0, linkname=target, xattrs=NO_XATTRS, sparse=None
    )


def _not_a_directory(path: bytes) -> InvalidError:
    return InvalidError(f"cannot copy to /{path.decode('utf-8', 'replace')}: not a directory")


def changed_mode(text: str, mode: int, *, directory: bool) -> int:
    """*mode* after ``chmod TEXT``: octal, or ``u=rwX,go=rX``; InvalidError."""
    if text.isascii() and text.isdigit():
        if len(text) > 5 or set(text) & set("89") or int(text, 8) > 0o7777:
            raise InvalidError(f"invalid chmod parameter: {text!r}", hint="write it as 0755")
        return int(text, 8)
    for clause in text.split(","):
        match = _SYMBOLIC.fullmatch(clause)
        if match is None:
            raise InvalidError(f"invalid chmod parameter: {text!r}", hint="write it as 0755")
        mode = _clause(match[1] or "a", match[2], match[3], mode, directory=directory)
    return mode


def _clause(who: str, sign: str, what: str, mode: int, *, directory: bool) -> int:
    bits = special = 0
    for letter in what:
        if letter == "X":
            bits |= 1 if directory or mode & 0o111 else 0
        elif letter == "t":
            special |= 0o1000
        elif letter != "s":
            bits |= _BITS[letter]
    chosen = 0
    for group in "ugo" if "a" in who else who:
        chosen |= bits << _SHIFTS[group]
        if "s" in what:
            special |= {"u": 0o4000, "g": 0o2000}.get(group, 0)
    chosen |= special
    if sign == "+":
        return mode | chosen
    if sign == "-":
        return mode & ~chosen
    for group in "ugo" if "a" in who else who:
        mode &= ~(7 << _SHIFTS[group])
    return mode | chosen
