"""Hijacked connections: HTTP until the answer's headers, then bytes both ways.

After ``101 UPGRADED`` (``Upgrade: tcp``) or a plain ``200`` (old clients) the transport is taken
from aiohttp and given to a `Duplex`. A client that shuts down its writing side has no more input
and still reads; a client that closes altogether is noticed at once, even while nothing is said,
because the kernel reports a hang-up of a unix socket only when both directions are shut.

Not for: what flows (routes), ends of containers' own streams (engine.streams).
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from aiohttp import web

from tare.api.call import HEADERS
from tare.wire.detach import Detector

if TYPE_CHECKING:
    from tare.engine.streams import Attachment

_FRAME: Final = struct.Struct(">BxxxL")
_LIMIT: Final = 256 << 10
RAW: Final = "application/vnd.docker.raw-stream"
MULTIPLEXED: Final = "application/vnd.docker.multiplexed-stream"
_FIXED: Final = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())


def frame(stream: int, content: bytes) -> bytes:
    """One frame of a multiplexed stream: 1 stdout, 2 stderr, 3 what the engine says."""
    return _FRAME.pack(stream, len(content)) + content


class HangUps:
    """Tells which half-closed connections have been closed altogether since."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, Callable[[], None]] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._epoll.fileno(), self._ready)

    def watch(self, descriptor: int, hung_up: Callable[[], None]) -> None:
        """Call *hung_up* once when the peer of *descriptor* has closed both directions."""
        if descriptor in self._watched:
            return
        # An empty mask still reports EPOLLHUP and EPOLLERR (epoll_ctl(2)).
        self._epoll.register(descriptor, 0)
        self._watched[descriptor] = hung_up

    def forget(self, descriptor: int) -> None:
        """Watch *descriptor* no longer; called before it is closed."""
        if self._watched.pop(descriptor, None) is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(descriptor)

    def close(self) -> None:
        """Watch nothing any more."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _ready(self) -> None:
        for descriptor, _ in self._epoll.poll(0):
            hung_up = self._watched.get(descriptor)
            self.forget(descriptor)
            if hung_up is not None:
                hung_up()


class _Taken(asyncio.StreamReaderProtocol):
    """The protocol of a hijacked transport; it tells the aiohttp one of the end."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        former: web.RequestHandler,
        hangups: HangUps,
    ) -> None:
        super().__init__(reader)
        self._former = former
        self._hangups = hangups
        self._descriptor = -1
        self._transport_taken: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport_taken = transport
        self._descriptor = transport.get_extra_info("socket").fileno()
        super().connection_made(transport)

    def eof_received(self) -> bool:
        super().eof_received()
        assert self._transport_taken is not None
        self._hangups.watch(self._descriptor, self._transport_taken.abort)
        return True  # the client still reads

    def connection_lost(self, exc: Exception | None) -> None:
        self._hangups.forget(self._descriptor)
        super().connection_lost(exc)
        self._former.connection_lost(exc)


class Duplex:
    """A hijacked connection: `read` what the client sends, `write` what it gets."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self) -> bytes:
        """The next bytes; empty when the client has shut down its side."""
        try:
            return await self._reader.read(65_536)
        except ConnectionError:
            return b""

    async def write(self, content: bytes) -> None:
        """Send *content*, waiting while the client is slow; ConnectionError when it is gone."""
        self._writer.write(content)
        await self._writer.drain()

    async def close(self) -> None:
        """Send what is left and close."""
        with contextlib.suppress(OSError):
            self._writer.close()
            await self._writer.wait_closed()


class Hijacked(web.StreamResponse):
    """What a handler returns after it took the connection: nothing more is to be sent."""

    def __init__(self) -> None:
        super().__init__()
        self.force_close()

    async def prepare(self, request: web.BaseRequest) -> None:
        """Nothing: the headers went out when the connection was taken."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing."""


def hijack(
    request: web.BaseRequest, hangups: HangUps, content_type: str, headers: str = ""
) -> Duplex:
    """Answer the headers (*headers* are more lines of them) and take the connection."""
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client is gone")
    upgrade = request.headers.get("Upgrade", "").lower() == "tcp"
    start = "101 UPGRADED" if upgrade else "200 OK"
    more = "Connection: Upgrade\r\nUpgrade: tcp\r\n" if upgrade else "Connection: close\r\n"
    former = request.protocol
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=_LIMIT, loop=loop)
    protocol = _Taken(reader, former, hangups)
    transport.write(
        f"HTTP/1.1 {start}\r\nContent-Type: {content_type}\r\n{more}{_FIXED}{headers}\r\n".encode(
            "ascii"
        )
    )
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    former.keep_alive(False)
    # Input that a client sent without waiting for our headers.
    if early := getattr(former, "early", b""):
        reader.feed_data(bytes(early))
    if getattr(former, "half_closed", False):
        reader.feed_eof()
    transport.resume_reading()
    return Duplex(reader, asyncio.StreamWriter(transport, protocol, reader, loop))


async def _inward(duplex: Duplex, attachment: Attachment, detector: Detector | None) -> bool:
    while data := await duplex.read():
        detach = False
        if detector is not None:
            data, detach = detector.feed(data)
        if data:
            await attachment.write(data)
        if detach:
            await attachment.close()  # ends the output too
            return True
    await attachment.close_stdin()
    return False


async def converse(
    duplex: Duplex,
    attachment: Attachment,
    *,
    stdin: bool,
    detector: Detector | None = None,
    framed: bool = False,
) -> bool:
    """Carry an attachment's streams until its output ends; False when the user detached instead.

    With a terminal the output is raw unless *framed*. ConnectionError when the client goes.
    """
    typing = asyncio.ensure_future(_inward(duplex, attachment, detector)) if stdin else None
    raw = attachment.tty and not framed
    try:
        async for stream, chunk in attachment.output:
            await duplex.write(chunk if raw else _FRAME.pack(stream, len(chunk)) + chunk)
        return typing is None or not (typing.done() and typing.result())
    finally:
        if typing is not None and not typing.done():
            typing.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await typing
