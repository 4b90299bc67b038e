"""A container's output on disk: written by the keeper, read by the engine.

One file is a sequence of records, each a header and the bytes exactly as they were read from
the program::

    u8 stream (1 stdout, 2 stderr) | u8 0 | u16 magic | u32 length | u64 time (ns since 1970)

Lengths, not line ends, separate records, so nothing a program prints can forge one (attack A19).
A writer that is killed leaves at most its last record short: readers wait for the rest of it, and
the next writer corrects its length to what is there. The current file is ``log``; when it would
grow past its maximum it becomes ``log.1``, that one ``log.2``, and so on up to the number of files
kept.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

STDOUT: Final = 1
STDERR: Final = 2

# Not O_APPEND: splice(2) refuses it. The keeper is the only writer.
_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
_HEADER: Final = struct.Struct("<BBHIQ")
_MAGIC: Final = 0x7A7E
_MAXIMUM_RECORD: Final = 1 << 20
_MAXIMUM_LINE: Final = 1 << 16
_SCAN: Final = 1 << 18


def paths(path: str, maximum_files: int = 100) -> list[str]:
    """The files of the log at *path* that exist, oldest first."""
    older = [f"{path}.{number}" for number in range(1, maximum_files + 1)]
    kept = []
    for name in older:
        if not os.path.exists(name):
            break
        kept.append(name)
    return [*reversed(kept), *([path] if os.path.exists(path) else [])]


class LogWriter:
    """Appends records to a rotated log; never raises for a full disk, but says so in `lost`."""

    __slots__ = ("_descriptor", "_files", "_maximum", "_path", "_size", "lost")

    def __init__(self, path: str, maximum: int, files: int) -> None:
        self._path, self._maximum, self._files = path, maximum, max(1, files)
        self.lost = 0
        self._descriptor = os.open(path, _FLAGS, 0o600)
        self._size = os.fstat(self._descriptor).st_size
        if self._size:
            self._mend_torn_record()

    def _mend_torn_record(self) -> None:
        whole = 0
        for offset, length, *_ in _records(self._descriptor, 0):
            whole = offset + _HEADER.size + length
        if whole < self._size:
            header = os.pread(self._descriptor, _HEADER.size, whole)
            self._shorten(whole, header, self._size - whole - _HEADER.size)

    def _shorten(self, offset: int, header: bytes, length: int) -> None:
        """The record at *offset* has *length* bytes after all; none: there is no such record."""
        if length > 0 and (fields := _HEADER.unpack(header))[2] == _MAGIC:
            stream, _, magic, _, when = fields
            fixed = _HEADER.pack(stream, 0, magic, length, when)
            os.pwrite(self._descriptor, fixed, offset)
            self._size = offset + _HEADER.size + length
        else:
            self._size = offset
        os.ftruncate(self._descriptor, self._size)

    def write(self, stream: int, data: bytes, now_ns: int) -> None:
        """Append what was read at *now_ns* from *stream*; at most 64 KiB at a time."""
        length = _HEADER.size + len(data)
        self._make_room(length)
        header = _HEADER.pack(stream, 0, _MAGIC, len(data), now_ns)
        try:
            written = os.pwritev(self._descriptor, (header, data), self._size)
        except OSError:  # the disk is full: the container must go on
            self.lost += len(data)
            return
        if written < length:
            os.ftruncate(self._descriptor, self._size)
            self.lost += len(data)
            return
        self._size += length

    def move(self, stream: int, pipe: int, count: int, now_ns: int) -> int:
        """Append the *count* bytes that wait in *pipe*; how many were moved.

        They go by splice(2): at any moment a byte is in the pipe or in the file, so a kill -9
        of this process loses none. Fewer are moved when the disk is full or somebody else reads.
        """
        self._make_room(_HEADER.size + count)
        start, moved = self._size, 0
        header = _HEADER.pack(stream, 0, _MAGIC, count, now_ns)
        try:
            os.pwrite(self._descriptor, header, start)
        except OSError:
            return 0
        try:
            while moved < count:
                position = start + _HEADER.size + moved
                got = os.splice(
                    pipe, self._descriptor, count - moved, None, position, os.SPLICE_F_NONBLOCK
                )
                if not got:
                    break
                moved += got
        except OSError:  # the disk is full, or the pipe is empty after all
            pass
        if moved < count:
            self._shorten(start, header, moved)
        else:
            self._size = start + _HEADER.size + count
        return moved

    def tail(self, count: int) -> bytes:
        """The last *count* bytes of the last record."""
        return os.pread(self._descriptor, count, self._size - count)

    def _make_room(self, length: int) -> None:
        if self._maximum > 0 and self._size and self._size + length > self._maximum:
            self._rotate()

    def _rotate(self) -> None:
        if self._files == 1:
            os.ftruncate(self._descriptor, 0)
            self._size = 0
            return
        for number in range(self._files - 1, 0, -1):
            older = f"{self._path}.{number - 1}" if number > 1 else self._path
            try:
                os.rename(older, f"{self._path}.{number}")
            except FileNotFoundError:
                continue
        os.close(self._descriptor)
        self._descriptor = os.open(self._path, _FLAGS, 0o600)
        self._size = 0

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)


def _records(descriptor: int, offset: int) -> Iterator[tuple[int, int, int, int]]:
    """(offset, length, stream, time) of each whole record from *offset* on."""
    end = os.fstat(descriptor).st_size
    buffer, base = b"", offset
    while True:
        position = offset - base
        if position + _HEADER.size > len(buffer):
            buffer, base, position = os.pread(descriptor, _SCAN, offset), offset, 0
            if len(buffer) < _HEADER.size:
                return
        stream, _, magic, length, when = _HEADER.unpack_from(buffer, position)
        if magic != _MAGIC or length > _MAXIMUM_RECORD or offset + _HEADER.size + length > end:
            return
        yield offset, length, stream, when
        offset += _HEADER.size + length


@dataclass(frozen=True, slots=True)
class Line:
    """One line (with its newline, if it had one) of one stream, and when it was read."""

    stream: int
    time_ns: int
    data: bytes


class LogReader:
    """Reads lines from the oldest kept record on; `read` again later gives what came since.

    A line that is not finished yet is held back until it is, or until `flush`. Lines longer
    than 64 KiB come in parts. Rotation between two reads is followed by the file's identity.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = -1
        self._offset = 0
        self._partial: dict[int, tuple[int, bytes]] = {}

    def open(self) -> None:
        """Hold the oldest file now, so that it can be read after its container is removed."""
        if self._descriptor < 0:
            self._open_next()

    def __del__(self) -> None:
        self.close()

    def read(self) -> Iterator[Line]:
        """The lines that are there now and were not given before."""
        while self._descriptor >= 0 or self._open_next():
            if os.fstat(self._descriptor).st_size < self._offset:
                self._offset = 0  # the single kept file was truncated by rotation
            yield from self._lines(self._descriptor)
            newer = self._newer()
            if newer < 0:
                return
            # It was renamed meanwhile: nothing is appended to it any more after this.
            yield from self._lines(self._descriptor)
            os.close(self._descriptor)
            self._descriptor, self._offset = newer, 0

    def _open_next(self) -> bool:
        for name in paths(self._path):
            try:
                self._descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            self._offset = 0
            return True
        return False

    def _newer(self) -> int:
        """A descriptor of the file that followed the current one, -1 if it is the newest."""
        opened = []
        try:
            for name in paths(self._path):
                try:
                    opened.append(os.open(name, os.O_RDONLY | os.O_CLOEXEC))
                except FileNotFoundError:
                    continue
            own = os.fstat(self._descriptor)
            identities = [(s.st_dev, s.st_ino) for s in map(os.fstat, opened)]
            key = (own.st_dev, own.st_ino)
            position = identities.index(key) + 1 if key in identities else 0
            return opened.pop(position) if position < len(opened) else -1
        finally:
            for descriptor in opened:
                os.close(descriptor)

    def _lines(self, descriptor: int) -> Iterator[Line]:
        for offset, length, stream, when in _records(descriptor, self._offset):
            data = os.pread(descriptor, length, offset + _HEADER.size)
            self._offset = offset + _HEADER.size + length
            yield from self._split(stream, when, data)

    def _split(self, stream: int, when: int, data: bytes) -> Iterator[Line]:
        held = self._partial.pop(stream, None)
        for part in data.splitlines(keepends=True) if b"\r" not in data else _by_newline(data):
            if held is not None:
                since, text = held
                held, part, moment = None, text + part, since
            else:
                moment = when
            if part.endswith(b"\n") or len(part) >= _MAXIMUM_LINE:
                yield Line(stream, moment, part)
            else:
                held = (moment, part)
        if held is not None:
            self._partial[stream] = held

    def flush(self) -> Iterator[Line]:
        """Unfinished lines, for when no more will come."""
        for stream, (when, data) in sorted(self._partial.items()):
            yield Line(stream, when, data)
        self._partial.clear()

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _by_newline(data: bytes) -> list[bytes]:
    parts = data.split(b"\n")
    whole = [part + b"\n" for part in parts[:-1]]
    return whole + ([parts[-1]] if parts[-1] else [])
