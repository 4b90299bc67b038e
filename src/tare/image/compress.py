"""Compressed streams: told by their first bytes, undone and made in bounded memory.

gzip (of many members), zstd (of many frames) and plain. isal does gzip where it is installed,
zlib where not. Bombs are stopped by the ratio of what comes out to what went in (attack A29).

Not for: the archive inside (``tar``), or verifying anything: a reader only keeps the digest of what
came out of it, for whoever compares it.
"""

from __future__ import annotations

import enum
import hashlib
import importlib
import queue
import threading
import zlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Final, Protocol, Self

from tare.errors import InvalidError, UnsupportedError
from tare.image.entry import DEFAULT_LIMITS, ByteSource, Limits
from tare.image.tar_writer import ByteSink

_deflate: ModuleType
try:
    from isal import isal_zlib

    _deflate, _GZIP_LEVEL = isal_zlib, 2  # of isal's 0 to 3
except ImportError:  # isal has no build for every architecture
    _deflate, _GZIP_LEVEL = zlib, 6

_INPUT: Final = 256 << 10
_OUTPUT: Final = 1 << 20
_FREE: Final = 64 << 20  # bytes that may come out before the ratio counts
_WINDOW_LOG: Final = 27
_GZIP_WBITS: Final = 31
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"


class Compression(enum.StrEnum):
    """How a stream is compressed; the value is its name in media types and messages."""

    PLAIN = "plain"
    GZIP = "gzip"
    ZSTD = "zstd"


def detect(head: bytes) -> Compression:
    """Tell by the first bytes; UnsupportedError for compressions that tare does not read."""
    if head.startswith(b"\x1f\x8b"):
        return Compression.GZIP
    if head.startswith(_ZSTD_MAGIC) or (head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5):
        return Compression.ZSTD
    for magic, name in ((b"\xfd7zXZ\0", "xz"), (b"BZh", "bzip2"), (b"\x04\x22\x4d\x18", "lz4")):
        if head.startswith(magic):
            raise UnsupportedError(
                f"archives compressed with {name} are not supported",
                hint=f"decompress it first and pipe it in: {name} -dc ARCHIVE | tare ...",
            )
    return Compression.PLAIN


class Decompressed:
    """A readable stream of what a compressed one holds.

    ``compressed`` counts the bytes taken in, ``size`` those handed out; after the end, `digest` is
    the sha256 of all that was handed out. Use it in a ``with``: it may own a thread.
    """

    def __init__(
        self, stream: ByteSource, *, limits: Limits, digest: bool, read_ahead: bool
    ) -> None:
        self._limits = limits
        self._stream = stream
        self.compressed = 0
        self.size = 0
        self._produced = 0
        self._hash = hashlib.sha256() if digest else None
        head = self._head()
        self.compression = detect(head)
        chunks = self._decode(head)
        self._ahead = (
            _ReadAhead(chunks) if read_ahead and self.compression is not Compression.PLAIN else None
        )
        self._chunks: Iterator[bytes] = iter(self._ahead or chunks)
        self._rest = memoryview(b"")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading; the stream underneath stays open, wherever it is."""
        if self._ahead is not None:
            self._ahead.close()

    @property
    def digest(self) -> str:
        """sha256 of what was handed out so far, in hex; only if it was asked for."""
        if self._hash is None:
            raise RuntimeError("no digest was asked for")
        return self._hash.hexdigest()

    def read(self, n: int = -1, /) -> bytes:
        """At most *n* bytes, fewer only at the end; all that is left when negative."""
        parts: list[bytes] = []
        while n:
            if not self._advance():
                break
            size = len(self._rest) if n < 0 else min(n, len(self._rest))
            parts.append(bytes(self._rest[:size]))
            self._rest = self._rest[size:]
            if n > 0:
                n -= size
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def readinto(self, buffer: memoryview | bytearray, /) -> int:
        """Fill *buffer* with what is at hand; 0 only at the end (or for an empty buffer)."""
        if not len(buffer) or not self._advance():
            return 0
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size

    def _advance(self) -> bool:
        """Make `_rest` non-empty; False at the end."""
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return False
            self.size += len(chunk)
            if self._hash is not None:
                self._hash.update(chunk)
            self._rest = memoryview(chunk)
        return True

    def _more(self) -> bytes:
        data = self._stream.read(_INPUT)
        self.compressed += len(data)
        return data

    def _head(self) -> bytes:
        """The first bytes, enough to tell by: a pipe may give them one by one."""
        head = b""
        while len(head) < 6 and (data := self._more()):
            head = head + data if head else data
        return head

    def _decode(self, head: bytes) -> Iterator[bytes]:
        match self.compression:
            case Compression.GZIP:
                chunks = self._gzip(head)
            case Compression.ZSTD:
                chunks = self._zstd(head)
            case Compression.PLAIN:
                return self._plain(head)
        return self._bounded(chunks)

    def _bounded(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Stop a bomb."""
        ratio = self._limits.ratio
        for chunk in chunks:
            self._produced += len(chunk)
            if (
                ratio is not None
                and self._produced > _FREE
                and self._produced > ratio * self.compressed
            ):
                raise InvalidError(
                    f"the {self.compression} stream grows more than {ratio} times:"
                    " it is refused as a decompression bomb",
                    hint="decompress it yourself if you know what it is, and load the result",
                )
            yield chunk

    def _plain(self, head: bytes) -> Iterator[bytes]:
        data = head
        while data:
            yield data
            data = self._more()

    def _gzip(self, head: bytes) -> Iterator[bytes]:
        source = _Input(head, self._more)
        while source.at_member(b"\x1f\x8b", "gzip"):
            decompressor = _deflate.decompressobj(_GZIP_WBITS)
            data = source.take()
            while True:
                try:
                    out = decompressor.decompress(data, _OUTPUT)
                except (zlib.error, _deflate.error) as error:
                    raise InvalidError(f"the gzip stream is corrupt: {error}") from error
                if out:
                    yield out
                if decompressor.eof:
                    source.give_back(decompressor.unused_data)
                    break
                data = decompressor.unconsumed_tail
                # A full output may leave more inside, even when all input was taken.
                if not data and len(out) < _OUTPUT and not (data := source.take()):
                    raise InvalidError("the gzip stream is truncated")

    def _zstd(self, head: bytes) -> Iterator[bytes]:
        zstd = _zstd_module()
        source = _Input(head, self._more)
        options = {int(zstd.DecompressionParameter.window_log_max): _WINDOW_LOG}
        while source.at_member(None, "zstd"):
            decompressor = zstd.ZstdDecompressor(options=options)
            while not decompressor.eof:
                data = source.take() if decompressor.needs_input else b""
                if decompressor.needs_input and not data:
                    raise InvalidError("the zstd stream is truncated")
                try:
                    out = decompressor.decompress(data, _OUTPUT)
                except zstd.ZstdError as error:
                    raise InvalidError(f"the zstd stream is corrupt: {error}") from error
                if out:
                    yield out
            source.give_back(decompressor.unused_data)


class _Input:
    """Compressed bytes in slices that grow with the member.

    What a member leaves unused is copied by the decompressor, so a stream of millions of tiny
    members would cost its square if every slice were large.
    """

    _SMALL: Final = 16 << 10

    def __init__(self, head: bytes, more: Callable[[], bytes]) -> None:
        self._data = head
        self._position = 0
        self._slice = self._SMALL
        self._more = more

    def take(self) -> bytes:
        """The next slice; empty at the end."""
        if self._position == len(self._data):
            self._data, self._position = self._more(), 0
        data = self._data[self._position : self._position + self._slice]
        self._position += len(data)
        self._slice = min(2 * self._slice, _INPUT)
        return data

    def give_back(self, unused: bytes) -> None:
        """The end of the last slice was not needed by its member."""
        self._position -= len(unused)
        self._slice = self._SMALL

    def at_member(self, magic: bytes | None, what: str) -> bool:
        """Is there another member? Zeros that pad the end are passed; else it must be one."""
        while self._position < len(self._data) or self._refill():
            if self._data[self._position]:
                break
            rest = self._data[self._position :].lstrip(b"\0")
            self._position = len(self._data) - len(rest)
        else:
            return False
        while len(self._data) - self._position < 2 and (data := self._more()):
            self._data, self._position = self._data[self._position :] + data, 0
        if magic is not None and not self._data.startswith(magic, self._position):
            raise InvalidError(f"the {what} stream is followed by something else")
        return True

    def _refill(self) -> bool:
        self._data, self._position = self._more(), 0
        return bool(self._data)


class _ReadAhead:
    """Runs an iterator in a thread of its own, at most four chunks ahead."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._queue: queue.Queue[bytes | BaseException | None] = queue.Queue(4)
        self._closed = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(chunks,), name="decompress", daemon=True
        )
        self._thread.start()

    def __iter__(self) -> Iterator[bytes]:
        while True:
            item = self._queue.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def close(self) -> None:
        """End the thread, and wait for it: afterwards nobody reads the stream."""
        self._closed.set()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)  # make room for a put that blocks
            except queue.Empty:
                pass
        self._thread.join()

    def _run(self, chunks: Iterator[bytes]) -> None:
        try:
            for chunk in chunks:
                self._queue.put(chunk)
                if self._closed.is_set():
                    return
        except BaseException as error:
            self._queue.put(error)  # it belongs to the reader
        else:
            self._queue.put(None)


def open_decompressed(
    stream: ByteSource,
    *,
    limits: Limits = DEFAULT_LIMITS,
    digest: bool = False,
    read_ahead: bool = False,
) -> Decompressed:
    """Read *stream* decompressed, whatever it is; a corrupt or explosive one is InvalidError.

    *digest* keeps the sha256 of what comes out (a layer's diff_id). *read_ahead* decompresses in a
    thread, on another processor than the reader's.
    """
    return Decompressed(stream, limits=limits, digest=digest, read_ahead=read_ahead)


class _Encoder(Protocol):
    def compress(self, data: bytes | memoryview, /) -> bytes: ...

    def flush(self) -> bytes: ...


class Compressor:
    """A writable stream that compresses into another; `close` ends the frame, not the stream."""

    def __init__(self, encoder: _Encoder | None, stream: ByteSink) -> None:
        self._encoder = encoder
        self._stream = stream

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()

    def write(self, data: bytes | memoryview, /) -> int:
        """Compress *data*; returns how much was taken, which is all."""
        if self._encoder is None:
            self._stream.write(data)
        elif out := self._encoder.compress(data):
            self._stream.write(out)
        return len(data)

    def close(self) -> None:
        """Write what ends the compressed stream; a second call does nothing."""
        if self._encoder is not None:
            encoder, self._encoder = self._encoder, _Ended()
            if out := encoder.flush():
                self._stream.write(out)


class _Ended:
    """What a closed compressor writes to."""

    def compress(self, data: bytes | memoryview, /) -> bytes:
        raise ValueError("the compressed stream is closed")

    def flush(self) -> bytes:
        return b""


def compressor(
    compression: Compression, stream: ByteSink, *, level: int | None = None
) -> Compressor:
    """A deterministic compressor into *stream*: no name and no time in its headers."""
    match compression:
        case Compression.PLAIN:
            return Compressor(None, stream)
        case Compression.GZIP:
            chosen = _GZIP_LEVEL if level is None else level
            return Compressor(
                _deflate.compressobj(level=chosen, wbits=_GZIP_WBITS),
                stream,
            )
        case Compression.ZSTD:
            zstd = _zstd_module()
            return Compressor(zstd.ZstdCompressor(level=3 if level is None else level), stream)


def _zstd_module() -> ModuleType:
    """Python 3.14's module, or its backport."""
    try:
        zstd = importlib.import_module("compression.zstd")
    except ImportError:
        try:
            zstd = importlib.import_module("backports.zstd")
        except ImportError as error:
            raise UnsupportedError(
                "zstd is not supported by this Python", hint="install backports.zstd"
            ) from error
    return zstd
