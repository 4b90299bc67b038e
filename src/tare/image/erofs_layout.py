"""Where things go in an EROFS file: whole blocks of data first, then all metadata, once.

Takes the finished tree of a layer (`erofs.ErofsWriter` builds it), gives each inode its number and
place, and writes them. Not for: what belongs in the tree, or the bytes of a structure
(``erofs_format``).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Final, Protocol

from tare.errors import InvalidError
from tare.image import erofs_format as fmt
from tare.image.whiteout import cannot_write

ROOT: Final = 0  # index of the root's node
WHITEOUT: Final = 1  # all whiteouts are one node
EXTENDED: Final = 1  # i_format: the 64-byte inode
_FIRST_NID: Final = 2  # inode number 0 reads as "none" in user space
_BUFFER: Final = 1 << 20
_ZEROS: Final = bytes(_BUFFER)
# dirent file types, by the top four bits of the mode
_FILE_TYPES: Final = {0x8: 1, 0x4: 2, 0x2: 3, 0x6: 4, 0x1: 5, 0xA: 7}


class Output(Protocol):
    """A file open for writing, at its start."""

    def write(self, data: bytes | bytearray | memoryview, /) -> int | None:
        """Take some of *data*, and say how much."""
        ...

    def seek(self, offset: int, /) -> int:
        """Go to *offset*."""
        ...


class Blocks:
    """The output, gathered into large writes and kept in whole blocks."""

    def __init__(self, out: Output, limit: int) -> None:
        self._out = out
        self._limit = limit
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._used = 0
        self._flushed = 0

    @property
    def position(self) -> int:
        """Bytes written so far."""
        return self._flushed + self._used

    @property
    def block(self) -> int:
        """The block that comes next; only asked for between files."""
        return self.position // fmt.BLOCK

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append *data*."""
        size = len(data)
        if self._used + size > _BUFFER:
            self.flush()
            if size >= _BUFFER // 4:
                self._write_out(memoryview(data))
                return
        end = self._used + size
        self._view[self._used : end] = data
        self._used = end

    def zeros(self, count: int) -> None:
        """Append *count* zeros."""
        while count:
            size = min(count, _BUFFER)
            self.write(_ZEROS[:size])
            count -= size

    def pad(self) -> None:
        """Fill the last block."""
        if rest := -self.position % fmt.BLOCK:
            self.write(_ZEROS[:rest])

    def flush(self) -> None:
        """Hand over what is gathered."""
        self._write_out(self._view[: self._used])
        self._used = 0

    def _write_out(self, data: memoryview) -> None:
        self._flushed += len(data)
        if self._flushed > self._limit:
            raise InvalidError(f"the layer needs more than {self._limit} bytes")
        try:
            while len(data):
                taken = self._out.write(data)
                data = data[len(data) if taken is None else taken :]
        except OSError as error:
            raise cannot_write("the layer", error) from error


class Layout:
    """Decides where metadata goes, and writes it. Nodes that lost their name are not visited."""

    def __init__(
        self,
        inodes: bytearray,
        directories: dict[int, dict[bytes, int]],
        targets: dict[int, bytes],
        chunks: dict[int, tuple[int, array[int]]],
        bodies: Callable[[int], bytes],
    ) -> None:
        self._records = inodes
        self._directories = directories
        self._targets = targets
        self._chunks = chunks
        self._bodies = bodies
        nodes = len(inodes) // fmt.INODE_SIZE
        self._nids = array("Q", bytes(8 * nodes))
        self._links = array("I", bytes(4 * nodes))
        self._order = array("I")
        self._outside: dict[int, int] = {}  # node -> its first block outside the metadata
        self._outside_blocks = 0
        self._parents = {ROOT: ROOT}
        self._sizes: dict[int, int] = {}  # of directories
        self.names = 0

    @property
    def inodes(self) -> int:
        """How many inodes there are."""
        return len(self._order)

    def write(self, blocks: Blocks) -> tuple[int, int]:
        """Write all; answers the root's number and the block where the metadata begins."""
        self._assign()
        base = blocks.block
        meta = base + self._outside_blocks
        start = blocks.position
        for index in self._outside:
            blocks.write(self._tail(index))
            blocks.pad()
        assert blocks.position - start == self._outside_blocks * fmt.BLOCK
        self._write_inodes(blocks, base)
        return self._nids[ROOT], meta

    def _assign(self) -> None:
        """Give each node its number: breadth first, so what is listed together lies together."""
        position = _FIRST_NID * fmt.SLOT
        directories, links, order = self._directories, self._links, self._order
        order.append(ROOT)
        links[ROOT] = 2
        for index in order:  # which grows
            children = directories.get(index)
            if children is not None:
                children = {name: children[name] for name in sorted(children)}
                directories[index] = children
                self._sizes[index] = fmt.directory_size(sorted((*children, b".", b"..")))
            position = self._allocate(index, position)
            if children is None:
                continue
            self.names += len(children)
            for child in children.values():
                links[child] += 1
                if child in directories:
                    links[child] += 1  # its own "."
                    links[index] += 1  # its ".."
                    self._parents[child] = index
                elif links[child] > 1:
                    continue
                order.append(child)

    def _allocate(self, index: int, position: int) -> int:
        """Place one inode and what lies beside it; answers where the next may go."""
        size = fmt.INODE_SIZE + len(self._bodies(index))
        tail = self._tail_size(index)
        if index in self._chunks:
            beside = 0
            after = 4 * len(self._chunks[index][1])
        elif tail and size + tail <= fmt.BLOCK:
            beside, after = tail, tail
        else:
            beside = after = 0
            if tail:
                self._outside[index] = self._outside_blocks
                self._outside_blocks += -(-tail // fmt.BLOCK)
        together = size + beside
        if together <= fmt.BLOCK and position % fmt.BLOCK + together > fmt.BLOCK:
            position += -position % fmt.BLOCK  # the kernel reads inline data from one block
        self._nids[index] = position // fmt.SLOT
        position += size + after
        return position + -position % fmt.SLOT

    def _tail_size(self, index: int) -> int:
        size = self._sizes.get(index)
        return len(self._targets.get(index, b"")) if size is None else size

    def _tail(self, index: int) -> bytes:
        """A directory's or a link's content."""
        children = self._directories.get(index)
        if children is None:
            return self._targets[index]
        nids, records = self._nids, self._records
        listing = [
            (name, nids[child], _FILE_TYPES[records[child * fmt.INODE_SIZE + 5] >> 4])
            for name, child in children.items()
        ]
        listing.append((b".", nids[index], 2))
        listing.append((b"..", nids[self._parents[index]], 2))
        listing.sort()
        return fmt.directory(listing)

    def _write_inodes(self, blocks: Blocks, base: int) -> None:
        start = blocks.position
        for index in self._order:
            position = self._nids[index] * fmt.SLOT
            blocks.zeros(position - (blocks.position - start))
            body = self._bodies(index)
            blocks.write(self._final_record(index, body, base))
            if body:
                blocks.write(body)
            if index in self._chunks:
                blocks.write(self._chunks[index][1].tobytes())
            elif self._is_inline(index):
                blocks.write(self._tail(index))

    def _is_inline(self, index: int) -> bool:
        return index not in self._outside and (index in self._directories or index in self._targets)

    def _final_record(self, index: int, body: bytes, base: int) -> bytes:
        start = index * fmt.INODE_SIZE
        fields = list(fmt.INODE.unpack_from(self._records, start))
        layout = fmt.LAYOUT_PLAIN
        if index in self._chunks:
            layout = fmt.LAYOUT_CHUNKS
        elif self._is_inline(index):
            layout = fmt.LAYOUT_INLINE
        elif index in self._outside:
            fields[5] = base + self._outside[index]
        fields[0] = EXTENDED | layout << 1
        fields[1] = fmt.xattr_count(body)
        if index in self._directories:
            fields[4] = self._sizes[index]
        fields[11] = self._links[index]
        return fmt.INODE.pack(*fields)
