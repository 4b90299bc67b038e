"""How to make a layer's archive again, bit for bit, from the layer's EROFS file.

The archive of a layer is not kept. What the EROFS file does not hold of it (headers, padding, the
data of sparse files, whatever follows the end) is written to a *recipe* while the layer is
converted, with references to where in the file the data lies; tar-split does the same for trees.
A recipe is about a hundredth of its layer.

::

    recipe   a zstd stream of steps, each LENGTH << 1 | KIND as a LEB128 number, then
             KIND 0 (literal): LENGTH bytes of the archive
             KIND 1 (data):    OFFSET as LEB128: LENGTH bytes of the EROFS file from there

`replay` trusts nothing in it: whoever calls compares the digest of what comes out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from tare.errors import FailedError
from tare.image.compress import Compression, compressor, open_decompressed
from tare.image.entry import ByteSource, Limits
from tare.image.tar_writer import ByteSink

_LITERAL: Final = 0
_DATA: Final = 1
_COPY: Final = 1 << 20
_WINDOW: Final = 2 << 20  # the reader of archives looks at most 1 MiB ahead
_HELD: Final = 8 << 20
_GATHERED: Final = 256 << 10


class Recorder:
    """Stands between an archive's bytes and its reader, and writes the recipe.

    The reader's owner calls `data` before each file that the EROFS file will hold; everything
    else that passes is literal.
    """

    def __init__(self, stream: ByteSource, out: ByteSink) -> None:
        self._stream = stream
        self._out = compressor(Compression.ZSTD, out, level=1)
        self._steps = bytearray()  # gathered, because most steps are a few bytes
        self._held = bytearray()  # passed, and not yet known to be literal or data
        self._start = 0  # offset in the archive of the first byte held
        self._skip = 0  # bytes of data still to pass
        self.size = 0

    def read(self, n: int = -1, /) -> bytes:
        """Read on, and remember."""
        data = self._stream.read(n)
        self._pass(memoryview(data))
        return data

    def readinto(self, buffer: memoryview, /) -> int:
        """Read on into *buffer*, and remember."""
        data = self._stream.read(len(buffer))
        size = len(data)
        buffer[:size] = data
        self._pass(memoryview(data))
        return size

    def _pass(self, data: memoryview) -> None:
        self.size += len(data)
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            self._start += skipped
            data = data[skipped:]
        self._held += data
        if len(self._held) > _HELD:
            self._literal(len(self._held) - _WINDOW)

    def data(self, archive_offset: int, length: int, file_offset: int) -> None:
        """What lies in the archive from *archive_offset* lies in the file at *file_offset*."""
        self._literal(archive_offset - self._start)
        self._number(length << 1 | _DATA)
        self._number(file_offset)
        known = min(length, len(self._held))
        del self._held[:known]
        self._start += known
        self._skip = length - known

    def _literal(self, length: int) -> None:
        if length < 0 or length > len(self._held):
            raise FailedError("the recipe of a layer does not fit its archive")
        if length:
            self._number(length << 1 | _LITERAL)
            self._steps += self._held[:length]
            del self._held[:length]
            self._start += length
            if len(self._steps) > _GATHERED:
                self._flush()

    def _number(self, value: int) -> None:
        steps = self._steps
        while value > 0x7F:
            steps.append(value & 0x7F | 0x80)
            value >>= 7
        steps.append(value)

    def _flush(self) -> None:
        self._out.write(bytes(self._steps))
        self._steps.clear()

    def finish(self) -> None:
        """The reader has read all: what is held is literal, and the recipe ends."""
        if self._skip:
            raise FailedError("the recipe of a layer does not fit its archive")
        self._literal(len(self._held))
        self._flush()
        self._out.close()


def replay(recipe: ByteSource, erofs: int) -> Iterator[bytes]:
    """The archive's bytes, in pieces; FailedError if the recipe or the file is damaged."""
    # A run of equal headers may compress well without being a bomb: we made it.
    with open_decompressed(recipe, limits=Limits(ratio=None)) as stream:
        steps = _Steps(stream)
        while (step := steps.number()) is not None:
            kind, left = step & 1, step >> 1
            if kind == _LITERAL:
                while left:
                    literal = steps.take(min(left, _COPY))
                    left -= len(literal)
                    yield literal
                continue
            offset = steps.number()
            if offset is None:
                raise FailedError("the recipe of a layer is truncated")
            while left:
                piece = os.pread(erofs, min(left, _COPY), offset)
                if not piece:
                    raise FailedError("the file of a layer is truncated")
                offset += len(piece)
                left -= len(piece)
                yield piece


class _Steps:
    """Numbers and bytes out of a stream, through a buffer: most numbers are two bytes long."""

    def __init__(self, stream: ByteSource) -> None:
        self._stream = stream
        self._buffer = b""
        self._position = 0

    def number(self) -> int | None:
        """The next number; None at the end of the stream."""
        value = shift = 0
        while True:
            if self._position == len(self._buffer):
                self._buffer, self._position = self._stream.read(_COPY), 0
                if not self._buffer:
                    if shift:
                        raise FailedError("the recipe of a layer is truncated")
                    return None
            byte = self._buffer[self._position]
            self._position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 56:  # more than any offset
                raise FailedError("the recipe of a layer is damaged")

    def take(self, n: int) -> bytes:
        """Some of the next *n* bytes."""
        if self._position == len(self._buffer):
            self._buffer, self._position = self._stream.read(_COPY), 0
            if not self._buffer:
                raise FailedError("the recipe of a layer is truncated")
        piece = self._buffer[self._position : self._position + n]
        self._position += len(piece)
        return piece
