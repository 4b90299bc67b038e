"""The HTTP server on the unix socket: who may speak, limits, dispatch, errors.

A request passes these steps, in this order:

1. the peer's user (SO_PEERCRED) must be root, the engine's own user, or in the socket's group;
2. the number of open connections is bounded, and an idle or slow one is closed;
3. the path's API version must be one we speak;
4. a handler is found and called; what it raises becomes ``{"message": ...}``.

Handlers that change something are not cancelled when their client goes away: a half-made
container would be worse than an answer nobody reads.

Not for: what the answers say (routes), TLS and TCP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aiohttp import web

from tare.api import routes
from tare.api.call import Call, refused
from tare.api.routing import Routes, version_of
from tare.api.streams import HangUps
from tare.engine.ledger import WHO
from tare.engine.trust import ASKED
from tare.errors import FailedError, InvalidError, TareError
from tare.trust.switch import Mode

if TYPE_CHECKING:
    from tare.engine.engine import Engine

log = logging.getLogger("tare.api")

CONNECTIONS: Final = 4096
IDLE_SECONDS: Final = 75.0
TRUST: Final = "Tare-Trust"
"""The header by which one request asks for verified images: ``on``, or ``warn``."""
_BACKLOG: Final = 1024
_EARLY_LIMIT: Final = 256 << 10
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *([0-9]{1,9})\r", re.I)
_SO_PEERGROUPS: Final = 59
_UCRED: Final = struct.Struct("3i")
_REFUSAL: Final = (
    b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b"
)


def peer_allowed(peer: socket.socket, group: int | None) -> bool:
    """Whether the process at the other end is root, this user, or a member of *group*.

    Credentials are those at connect(2), as ids of this user namespace: root of a container
    with ids of its own is not root here.
    """
    _, uid, gid = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    if uid in (0, os.geteuid()):
        return True
    if group is None:
        return False
    if gid == group:
        return True
    with contextlib.suppress(OSError):
        raw = peer.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * 1024)
        return group in struct.unpack(f"{len(raw) // 4}I", raw)
    return False


def upgrade_length(data: bytes) -> int:
    """The length of the upgrade request that *data* begins with, -1 when it is none."""
    if not data.startswith(b"POST ") or b"pgrade: tcp" not in data:
        return -1
    end = data.find(b"\r\n\r\n") + 4
    if end < 4 or b"chunked" in data[:end].lower():
        return -1
    length = _LENGTH.search(data, 0, end)
    return end + (int(length[1]) if length else 0)


class Connection(web.RequestHandler):
    """One client's connection; a stranger is told so and dropped before anything is parsed.

    A client may shut down its writing side while it waits for an answer (``half_closed``), and
    one that asks for an upgrade may send its input at once (``early``): aiohttp's parser would
    lose what comes behind such a request, so those bytes never reach it.
    """

    __slots__ = ("_descriptor", "_listener", "_missing", "_taking", "early", "half_closed")

    def __init__(self, listener: Listener, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            listener,
            loop=loop,
            keepalive_timeout=IDLE_SECONDS,
            tcp_keepalive=False,
            access_log=None,  # type: ignore[arg-type]  # None is aiohttp's documented "off"
            auto_decompress=False,
            max_line_size=64 << 10,
            max_field_size=16 << 10,
            lingering_time=1.0,
            logger=log,
        )
        self._listener = listener
        self._descriptor = -1
        self._taking: asyncio.Transport | None = None
        self._missing = -1  # bytes of an upgrade request still to come; -1: there is none
        self.early = bytearray()
        self.half_closed = False

    def data_received(self, data: bytes) -> None:
        """Parse requests, but keep what comes behind one that asks for an upgrade."""
        if self._missing < 0:
            self._missing = upgrade_length(data)
            if self._missing < 0:
                super().data_received(data)
                return
        if self._missing:
            super().data_received(data[: self._missing])
        self.early += data[self._missing :]
        self._missing = max(0, self._missing - len(data))
        if not self._missing:
            self.close()  # the last request of this connection, taken or not
        if len(self.early) > _EARLY_LIMIT and self._taking is not None:
            self._taking.pause_reading()  # until it is taken

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Check the peer (steps 1 and 2)."""
        assert isinstance(transport, asyncio.Transport)
        peer: socket.socket = transport.get_extra_info("socket")
        refusal = self._listener.refusal(peer)
        self._descriptor = peer.fileno()
        self._taking = transport
        super().connection_made(transport)
        if refusal:
            transport.write(refusal)
            self.force_close()

    def eof_received(self) -> bool:  # type: ignore[override]  # aiohttp's says None: always close
        """Stay for the answer to the running request, but notice a client that is gone."""
        busy = self._messages or (self._waiter is None and self._request_count)
        if not busy:
            return False
        assert self._taking is not None
        self.half_closed = True
        self._listener.hangups.watch(self._descriptor, self._taking.abort)
        self.close()  # no more requests can come
        return True

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what was no request; it is not worth a line of the log to whoever sends it."""
        if status < 500:
            return refused(InvalidError("malformed request"))
        return super().handle_error(request, status, exc, message)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Cancel what ran for this client, if it may be cancelled."""
        self._listener.hangups.forget(self._descriptor)
        super().connection_lost(exc)


class Listener(web.Server):
    """aiohttp's low-level server with our dispatch."""

    def __init__(self, engine: Engine, group: int | None = None) -> None:
        super().__init__(self._dispatch, handler_cancellation=True)
        self._engine = engine
        self._group = group
        self._routes = Routes()
        routes.install(self._routes)
        self.hangups = HangUps()

    def __call__(self) -> web.RequestHandler:
        """The protocol of a new connection."""
        return Connection(self, asyncio.get_running_loop())

    def refusal(self, peer: socket.socket | None) -> bytes:
        """Raw bytes to answer a connection with that may not speak; "" when it may."""
        if len(self._connections) >= CONNECTIONS:
            status, reason = b"503 Service Unavailable", b"too many connections"
        elif peer is None or not peer_allowed(peer, self._group):
            status, reason = b"403 Forbidden", b"permission denied: not a user of this engine"
        else:
            return b""
        body = b'{"message":"%b"}\n' % reason
        return _REFUSAL % (status, len(body), body)

    async def _dispatch(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            minor, path = version_of(request.raw_path.partition("?")[0])
            route, ref = self._routes.find(request.method, path)
            call = Call(request, self._engine, self.hangups, minor, ref)
            # A task of this request alone: what it asks for ends with it.
            WHO.set(_user(request))
            ASKED.set(Mode.parse(request.headers.get(TRUST, "off").strip().lower()))
            if route.cancellable:
                return await route.handler(call)
            return await asyncio.shield(asyncio.ensure_future(route.handler(call)))
        except TareError as error:
            return _refuse(request, error)
        except ConnectionError:
            raise  # aiohttp's: the client is gone
        except (ValueError, UnicodeError) as error:
            log.exception("request %s %s", request.method, request.path)
            return _refuse(request, InvalidError(f"the request makes no sense: {error}"))
        except OSError as error:
            log.exception("request %s %s", request.method, request.path)
            reason = error.strerror or str(error)
            return _refuse(request, FailedError(f"the host refused: {reason}"))
        except Exception as error:
            log.exception("request %s %s", request.method, request.path)
            wrong = FailedError(f"internal error: {type(error).__name__}: {error}")
            return _refuse(request, wrong)


def _user(request: web.BaseRequest) -> str:
    """Whose process asks, as the kernel has it."""
    peer = None if request.transport is None else request.transport.get_extra_info("socket")
    if peer is None or peer.family != socket.AF_UNIX:
        return "unknown"
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return f"uid {_UCRED.unpack(raw)[1]}"


def _refuse(request: web.BaseRequest, error: TareError) -> web.StreamResponse:
    """Answer with *error*, or, when an answer has begun already, break it off.

    A second answer inside the first would be read as its content.
    """
    if request.writer.output_size:
        log.warning("%s %s broke off: %s", request.method, request.path, error)
        raise ConnectionResetError(str(error))
    return refused(error)


def bind(path: Path, group: int | None) -> socket.socket:
    """A listening socket at *path*, 0660 of *group* or 0600; one left by a dead daemon is replaced.

    The caller holds the engine's lock, so nobody else listens there. The socket is made under
    another name and gets its mode before anyone can find it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        mask = os.umask(0o177)
        try:
            listening.bind(str(temporary))
        except OSError as error:
            raise FailedError(
                f"cannot listen on {path}: {error.strerror}",
                hint="a socket's path is at most 107 bytes long; set TARE_RUN_DIR to a shorter one",
            ) from error
        finally:
            os.umask(mask)
        if group is not None:
            os.chown(temporary, -1, group)
            temporary.chmod(0o660)
        listening.listen(_BACKLOG)
        listening.setblocking(False)
        temporary.rename(path)
    except BaseException:
        listening.close()
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    return listening


class Server:
    """The API, listening from `start` to `close`."""

    def __init__(self, engine: Engine, *, group: int | None = None) -> None:
        self._engine = engine
        self._group = group
        self._server: asyncio.Server | None = None
        self._listener: Listener | None = None

    async def start(self, listening: socket.socket) -> None:
        """Answer on *listening* from now on."""
        listener = Listener(self._engine, self._group)
        self._listener = listener
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(listener, sock=listening, backlog=_BACKLOG)

    async def close(self, timeout: float = 2.0) -> None:
        """Accept no more, give running answers *timeout* seconds, then end all."""
        if self._server is not None:
            self._server.close()
        if self._listener is not None:
            self._listener.pre_shutdown()
            await self._listener.shutdown(timeout)
            self._listener.hangups.close()
