"""Writes a layer as one uncompressed EROFS file, in one pass over its archive.

File data goes straight to the output as it comes; names, attributes and the tree stay in memory,
compactly, and are written behind the data at the end. The result is an overlayfs layer: whiteouts
are character devices 0:0, opaque directories carry overlayfs's attribute. A directory that holds
whiteouts carries its ``origin`` attribute, empty: without it overlayfs lists them as files where no
lower layer has that directory. The same archive gives the same bytes.

::

    block 0     superblock
    1 ...       data of files, each from a block of its own, in the archive's order
    ...         directories and link targets too long to lie beside their inode
    meta        inodes, each with its attributes, and its directory, link target or chunk map

Not for: reading archives (``tar``), what names mean (``whiteout``), where in the file metadata goes
(``erofs_layout``), where layers are kept. On any
error the output is of no use and the caller deletes it.
"""

from __future__ import annotations

import stat
from array import array
from collections.abc import Iterable, Iterator
from typing import Final

from tare.errors import InvalidError
from tare.image import erofs_format as fmt
from tare.image.entry import DEFAULT_LIMITS, Entry, Kind, Limits, show
from tare.image.erofs_layout import EXTENDED, ROOT, WHITEOUT, Blocks, Layout, Output
from tare.image.tar import Content
from tare.image.whiteout import (
    LayerSummary,
    Meaning,
    cannot_write,
    meaning,
    permitted_xattrs,
)

_MAX_CHUNKS: Final = 1 << 18
_NAME_COST: Final = 64  # bytes of memory beside the name's own, roughly
_DIRECTORY_COST: Final = 256
_FORMATS: Final = {
    Kind.FILE: stat.S_IFREG,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHAR: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.DIR: stat.S_IFDIR,
    Kind.FIFO: stat.S_IFIFO,
}


class ErofsWriter:
    """Builds one layer: `add` its entries in order, then `finish`."""

    def __init__(
        self,
        out: Output,
        *,
        limits: Limits = DEFAULT_LIMITS,
        userxattr: bool = False,
        devices: bool = True,
    ) -> None:
        self._out = out
        self._limits = limits
        self._devices = devices
        overlay = b"user.overlay." if userxattr else b"trusted.overlay."
        self._opaque_mark = fmt.xattr_entries({overlay + b"opaque": b"y"})
        self._origin_mark = fmt.xattr_entries({overlay + b"origin": b""})
        self._blocks = Blocks(out, limits.total + limits.metadata)
        self._blocks.zeros(fmt.BLOCK)
        # One finished inode record a node, but for what only the layout knows.
        self._inodes = bytearray()
        self._directories: dict[int, dict[bytes, int]] = {}
        self._targets: dict[int, bytes] = {}
        self._xattrs: dict[int, bytes] = {}
        self._interned: dict[bytes, bytes] = {}
        self._chunks: dict[int, tuple[int, array[int]]] = {}
        self._opaque: set[int] = set()
        self._skipped: set[bytes] = set()  # devices left out: links to them are, too
        self._hiding: set[int] = set()  # directories that hold whiteouts
        self._parent: tuple[bytes, int] | None = None
        self._metadata = 0
        self._added = 0
        self._summary = LayerSummary()
        self._new_directory()
        self._new_inode(stat.S_IFCHR, Entry(b"", Kind.CHAR, mode=0))

    def add(self, entry: Entry, content: Content) -> None:
        """Add one entry; a later one of the same name takes its place, as the layer rules say."""
        self._added += 1
        if self._added > self._limits.files:
            raise InvalidError(f"the layer has more than {self._limits.files} entries")
        what, path = meaning(entry)
        match what:
            case Meaning.NOTHING:
                return
            case Meaning.OPAQUE:
                self._opaque.add(self._directory(path))
                self._summary.opaque_root |= not path
            case Meaning.WHITEOUT:
                self._hide(path)
            case Meaning.ENTRY if not path:
                self._set_root(entry)
            case Meaning.ENTRY:
                self._place(entry, content)

    @property
    def position(self) -> int:
        """Where in the output the data of the next file goes, whole if it is not sparse."""
        return self._blocks.position

    def finish(self) -> LayerSummary:
        """Write the metadata and the superblock; the output is then complete, but not synced."""
        self._settle_whiteouts()
        layout = Layout(self._inodes, self._directories, self._targets, self._chunks, self._bodies)
        self._blocks.pad()
        root_nid, meta_block = layout.write(self._blocks)
        self._blocks.pad()
        blocks = self._blocks.block
        self._blocks.flush()
        summary = self._summary
        head = fmt.superblock(
            root_nid=root_nid,
            inodes=layout.inodes,
            blocks=blocks,
            meta_block=meta_block,
            chunked=bool(self._chunks),
        )
        try:
            self._out.seek(0)
            self._out.write(head)
        except OSError as error:
            raise cannot_write("the layer", error) from error
        summary.entries = layout.names
        summary.written = blocks * fmt.BLOCK
        return summary

    def _settle_whiteouts(self) -> None:
        """Drop whiteouts where nothing shows through: overlayfs would list them as files."""
        for index in self._hiding & self._opaque:
            children = self._directories[index]
            for name in [name for name, child in children.items() if child == WHITEOUT]:
                del children[name]
        self._hiding -= self._opaque

    def _bodies(self, index: int) -> bytes:
        """The extended attributes of a node."""
        entries = self._xattrs.get(index, b"")
        if index in self._opaque:
            entries += self._opaque_mark
        if index in self._hiding:
            entries += self._origin_mark
        return fmt.xattr_body(entries)

    # -- the tree -------------------------------------------------------------------------

    def _new_inode(self, format_: int, entry: Entry, *, size: int = 0, u: int = 0) -> int:
        index = len(self._inodes) // fmt.INODE_SIZE
        if index > self._limits.files + 1:
            raise InvalidError(f"the layer has more than {self._limits.files} files")
        self._inodes += self._record(index, format_, entry, size, u)
        return index

    def _record(self, index: int, format_: int, entry: Entry, size: int, u: int) -> bytes:
        seconds, nanoseconds = divmod(entry.mtime_ns, 1_000_000_000)
        self._summary.max_id = max(self._summary.max_id, entry.uid, entry.gid)
        return fmt.INODE.pack(
            EXTENDED | fmt.LAYOUT_PLAIN << 1,
            0,
            format_ | entry.mode,
            0,
            size,
            u,
            index + 1,
            entry.uid,
            entry.gid,
            seconds & 0xFFFFFFFFFFFFFFFF,
            nanoseconds,
            1,
        )

    def _new_directory(self, entry: Entry | None = None) -> int:
        if entry is None:
            entry = Entry(b"", Kind.DIR, mode=0o755)
        index = self._new_inode(stat.S_IFDIR, entry)
        self._directories[index] = {}
        self._account(_DIRECTORY_COST)
        return index

    def _set_root(self, entry: Entry) -> None:
        if entry.kind is not Kind.DIR:
            raise InvalidError("layer entry '/': the root is not a directory")
        self._update_directory(ROOT, entry)

    def _update_directory(self, index: int, entry: Entry) -> None:
        start = index * fmt.INODE_SIZE
        self._inodes[start : start + fmt.INODE_SIZE] = self._record(
            index, stat.S_IFDIR, entry, 0, 0
        )
        self._set_xattrs(index, entry)

    def _set_xattrs(self, index: int, entry: Entry) -> None:
        xattrs = entry.xattrs and permitted_xattrs(entry, self._summary)
        entries = fmt.xattr_entries(xattrs) if xattrs else b""
        if not entries:
            self._xattrs.pop(index, None)
            return
        if entries not in self._interned:
            self._account(len(entries))
        self._xattrs[index] = self._interned.setdefault(entries, entries)

    def _account(self, size: int) -> None:
        self._metadata += size
        if self._metadata > self._limits.metadata:
            raise InvalidError(
                f"the layer's names and attributes exceed {self._limits.metadata} bytes"
            )

    def _directory(self, path: bytes) -> int:
        """The directory at *path*, made with its parents where the archive did not say."""
        if not path:
            return ROOT
        if self._parent is not None and self._parent[0] == path:
            return self._parent[1]
        index = ROOT
        for name in path.split(b"/"):
            children = self._directories[index]
            child = children.get(name)
            if child is None or child == WHITEOUT:
                self._summary.implied += 1
                made = self._new_directory()
                self._account(len(name) + _NAME_COST)
                children[name] = made
                if child == WHITEOUT:  # the layer hides what was there, and has its own
                    self._opaque.add(made)
                child = made
            elif child not in self._directories:
                raise InvalidError(
                    f"layer entry below {show(path)}: {show(name)} in its path is not a directory"
                )
            index = child
        self._parent = (path, index)
        return index

    def _place(self, entry: Entry, content: Content) -> None:
        """Make *entry* what its name is in the tree."""
        parent, _, name = entry.path.rpartition(b"/")
        children = self._directories[self._directory(parent)]
        if entry.kind is Kind.HARDLINK:
            index: int | None = self._link_target(entry)
        elif entry.kind is Kind.DIR:
            self._place_directory(entry, children, name)
            return
        else:
            index = self._new_node(entry, content)
        if index is None:
            return
        self._account(len(name) + _NAME_COST)
        children[name] = index

    def _place_directory(self, entry: Entry, children: dict[bytes, int], name: bytes) -> None:
        existing = children.get(name)
        if existing is not None and existing in self._directories:
            self._update_directory(existing, entry)
            return
        index = self._new_directory(entry)
        self._set_xattrs(index, entry)
        self._account(len(name) + _NAME_COST)
        if existing == WHITEOUT:
            self._opaque.add(index)
        children[name] = index

    def _hide(self, path: bytes) -> None:
        """A whiteout: for lower layers only, so what this layer has of the name stays."""
        parent, _, name = path.rpartition(b"/")
        directory = self._directory(parent)
        children = self._directories[directory]
        existing = children.get(name)
        self._summary.whiteouts += 1
        if existing is None:
            self._account(len(name) + _NAME_COST)
            children[name] = WHITEOUT
            self._hiding.add(directory)
        elif existing in self._directories:
            self._opaque.add(existing)

    def _skip_device(self, entry: Entry) -> None:
        self._account(len(entry.path) + _NAME_COST)
        self._skipped.add(entry.path)
        self._summary.skipped_devices += 1

    def _link_target(self, entry: Entry) -> int | None:
        """The node to link to; None for a device that was left out."""
        index: int | None = ROOT
        for name in entry.linkname.split(b"/"):
            children = self._directories.get(index) if index is not None else None
            index = children.get(name) if children is not None else None
        if index is None and entry.linkname in self._skipped:
            self._skip_device(entry)
            return None
        if index is None or index == WHITEOUT:
            raise InvalidError(
                f"layer entry {show(entry.path)}: hard link to {show(entry.linkname)},"
                " which the layer does not have"
            )
        if index in self._directories or entry.linkname.startswith(entry.path + b"/"):
            raise InvalidError(
                f"layer entry {show(entry.path)}: hard link to {show(entry.linkname)},"
                " which is a directory or inside what it replaces"
            )
        return index

    def _new_node(self, entry: Entry, content: Content) -> int | None:
        """A node that is neither directory nor link; None for a device that is left out."""
        format_ = _FORMATS[entry.kind]
        match entry.kind:
            case Kind.FILE:
                index = self._new_file(entry, content)
            case Kind.SYMLINK:
                index = self._new_inode(format_, entry, size=len(entry.linkname))
                self._account(len(entry.linkname))
                self._targets[index] = entry.linkname
            case Kind.CHAR | Kind.BLOCK if not self._devices:
                self._skip_device(entry)
                return None
            case _:
                number = fmt.device_number(entry.major, entry.minor)
                index = self._new_inode(format_, entry, u=number)
        self._set_xattrs(index, entry)
        return index

    # -- file data ------------------------------------------------------------------------

    def _new_file(self, entry: Entry, content: Content) -> int:
        self._summary.size += entry.stored
        if entry.sparse is not None:
            return self._new_sparse_file(entry, content)
        blocks = self._blocks
        start = blocks.block
        if entry.size:
            for chunk in content.chunks():
                blocks.write(chunk)
            blocks.pad()
        return self._new_inode(stat.S_IFREG, entry, size=entry.size, u=start if entry.size else 0)

    def _new_sparse_file(self, entry: Entry, content: Content) -> int:
        """A chunk map: the holes cost four bytes each, chunks that hold anything are whole."""
        most = _MAX_CHUNKS if entry.sparse else 1
        bits = 0
        while entry.size > most * fmt.BLOCK << bits and bits < 31:
            bits += 1
        size = fmt.BLOCK << bits
        count = -(-entry.size // size)
        if count > _MAX_CHUNKS:
            raise InvalidError(f"layer entry {show(entry.path)}: its size is out of range")
        self._account(4 * count)
        chunks = array("I", [fmt.HOLE]) * count
        blocks = self._blocks
        current, filled = -1, 0
        for offset, piece in content.pieces():
            while len(piece):
                chunk, within = divmod(offset, size)
                if chunk != current:
                    if current >= 0:
                        blocks.zeros(size - filled)
                    current, filled = chunk, 0
                    chunks[chunk] = blocks.block
                blocks.zeros(within - filled)
                taken = min(len(piece), size - within)
                blocks.write(piece[:taken])
                piece = piece[taken:]
                offset += taken
                filled = within + taken
        if current >= 0:
            blocks.zeros(min(size, entry.size - current * size) - filled)
            blocks.pad()
        index = self._new_inode(stat.S_IFREG, entry, size=entry.size, u=bits)
        self._chunks[index] = (bits, chunks)
        return index


def convert(
    entries: Iterable[tuple[Entry, Content]] | Iterator[tuple[Entry, Content]],
    out: Output,
    *,
    limits: Limits = DEFAULT_LIMITS,
    userxattr: bool = False,
    devices: bool = True,
) -> LayerSummary:
    """Write the layer that `tar.read` gives as *entries* to *out*, an empty file.

    *userxattr* marks opaque directories for overlayfs mounts with that option; without *devices*,
    device nodes are left out and counted. InvalidError names the entry that cannot be in a layer.
    """
    writer = ErofsWriter(out, limits=limits, userxattr=userxattr, devices=devices)
    for entry, content in entries:
        writer.add(entry, content)
    return writer.finish()
