"""The registry's listener: who may speak, for how long, and what goes wrong.

A request passes these steps, in this order:

1. the number of connections is bounded, and one on which no request begins is closed;
2. a browser that a page of somebody else drives is refused (it sends Origin or Sec-Fetch-Site);
3. where there is a file of users, the request must prove to be from one of them;
4. a handler is found; a server that is read-only has none that changes anything;
5. what it raises becomes the error that the specification describes.

Not for: the process and its options (``command``), what the answers say (the handlers).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import sqlite3
import ssl
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from aiohttp import web

from tare.api.registry import routes
from tare.api.registry.call import Call, Site, refused
from tare.api.registry.htpasswd import Htpasswd
from tare.errors import FailedError, InvalidError, TareError
from tare.image.registry_store.collect import collect
from tare.image.registry_store.engine_images import EngineImages
from tare.image.registry_store.settings import ServeSettings
from tare.image.registry_store.store import DIRECTORY, RegistryStore
from tare.model.distribution import Code, DistributionError

log = logging.getLogger("tare.registry")

CONNECTIONS: Final = 1024
IDLE_SECONDS: Final = 60.0
_HANDSHAKE_SECONDS: Final = 20.0
_HOUSEKEEPING_SECONDS: Final = 3600.0
_READ_AHEAD: Final = 256 << 10
_WRITERS: Final = 64  # requests with a body at a time: each may hold some MiB
_BACKLOG: Final = 512
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


class Connection(web.RequestHandler):
    """One client's connection, closed when it sends no whole request for a while (slowloris)."""

    __slots__ = ("_listener", "_watch")

    def __init__(self, listener: Listener, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            listener,
            loop=loop,
            keepalive_timeout=IDLE_SECONDS,
            access_log=None,  # type: ignore[arg-type]  # None is aiohttp's documented "off"
            auto_decompress=False,
            max_line_size=16 << 10,
            max_field_size=16 << 10,
            lingering_time=1.0,
            read_bufsize=_READ_AHEAD,
            logger=log,
        )
        self._listener = listener
        self._watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a request (step 1)."""
        super().connection_made(transport)
        if self._listener.full:
            self.force_close()
        self.wait()

    def wait(self) -> None:
        """A request must have begun by then."""
        self.stop_waiting()
        loop = asyncio.get_running_loop()
        self._watch = loop.call_later(self._listener.idle_seconds, self.force_close)

    def stop_waiting(self) -> None:
        """A request has begun."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def connection_lost(self, exc: BaseException | None) -> None:
        """The client is gone."""
        self.stop_waiting()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what was no request; it is not worth a line of the log to whoever sends it."""
        if status < 500:
            return refused(DistributionError(Code.UNSUPPORTED, "malformed request", status=400))
        return super().handle_error(request, status, exc, message)


class Listener(web.Server):
    """aiohttp's low-level server with our dispatch."""

    def __init__(self, site: Site, users: Htpasswd | None, *, verbose: bool) -> None:
        super().__init__(self._dispatch)
        self._site = site
        self._users = users
        self._verbose = verbose
        self.idle_seconds = IDLE_SECONDS
        self.connections_max = CONNECTIONS
        self._writers = asyncio.Semaphore(_WRITERS)

    def __call__(self) -> web.RequestHandler:
        """The protocol of a new connection."""
        return Connection(self, asyncio.get_running_loop())

    @property
    def full(self) -> bool:
        """Are there as many connections as may be?"""
        return len(self._connections) > self.connections_max

    async def _dispatch(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        assert isinstance(connection, Connection)
        connection.stop_waiting()
        began = time.monotonic()
        status, user = 0, "-"
        try:
            _refuse_browsers(request)
            if self._users is not None:
                user = await self._users.check(request.headers.get("Authorization", ""))
            response = await self._answer(request)
            status = response.status
            return response
        except ConnectionError:
            raise  # aiohttp's: the client is gone, or is to be
        except Exception as error:
            response = _failed(request, error)
            status = response.status
            return response
        finally:
            connection.wait()
            if self._verbose:
                spent = (time.monotonic() - began) * 1000
                path = ascii(request.raw_path[:300])[1:-1]
                who = request.remote or "-"
                log.info("%s %s %s %s %s %.1f ms", who, user, request.method, path, status, spent)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        handler, words = routes.find(request.method, request.raw_path.partition("?")[0])
        call = Call(request, self._site, words)
        if request.method in routes.READING:
            return await handler(call)
        if self._site.settings.read_only:
            raise DistributionError(Code.UNSUPPORTED, "this registry is read-only")
        async with self._writers:
            return await handler(call)


def _refuse_browsers(request: web.BaseRequest) -> None:
    origin = request.headers.get("Origin", "")
    if origin or request.headers.get("Sec-Fetch-Site", "none") != "none":
        raise DistributionError(Code.DENIED, "web pages may not use this registry")


def _failed(request: web.BaseRequest, error: Exception) -> web.StreamResponse:
    """The answer that says so; what a stranger need not know goes to the log."""
    if not isinstance(error, DistributionError):
        error = _translated(request, error)
    if request.writer.output_size:
        # A second answer inside the first would be read as its content.
        log.warning("%s %s broke off: %s", request.method, ascii(request.raw_path[:300]), error)
        raise ConnectionResetError(str(error))
    return refused(error)


def _translated(request: web.BaseRequest, error: Exception) -> DistributionError:
    if isinstance(error, InvalidError):
        return DistributionError(Code.UNSUPPORTED, str(error), status=400)
    if isinstance(error, web.HTTPException | web.RequestPayloadError):
        return DistributionError(Code.BLOB_UPLOAD_INVALID, "the body is malformed")
    if isinstance(error, OSError) and error.errno in _FULL:
        return DistributionError(
            Code.BLOB_UPLOAD_INVALID, "no space left for the registry's content", status=507
        )
    trace = None if isinstance(error, TareError) else error
    log.error("%s %s: %s", request.method, ascii(request.raw_path[:300]), error, exc_info=trace)
    return DistributionError(Code.UNKNOWN, "the registry failed; its log says why")


class RegistryServer:
    """A registry, answering from `start` to `close`."""

    def __init__(self, settings: ServeSettings, state: Path, *, verbose: bool = False) -> None:
        """*state* is the engine's state directory; `start` may raise FailedError."""
        self._settings = settings
        self._state = state
        self._verbose = verbose
        self._owned = ExitStack()
        self._server: asyncio.Server | None = None
        self._listener: Listener | None = None
        self._housekeeping: asyncio.Task[None] | None = None
        self.addresses: list[str] = []

    async def start(self) -> None:
        """Open the content and listen; the error says which of the settings cannot be."""
        try:
            await self._start()
        except (OSError, sqlite3.Error) as error:
            raise FailedError(f"the registry cannot be served: {error}") from error

    async def _start(self) -> None:
        settings = self._settings
        tls = _tls(settings)
        users = Htpasswd(settings.htpasswd) if settings.htpasswd is not None else None
        with ExitStack() as owned:
            data = settings.data or self._state / DIRECTORY
            store = await asyncio.to_thread(RegistryStore, data)
            owned.callback(store.close)
            serving = store.serve()
            await asyncio.to_thread(serving.__enter__)
            owned.push(serving)
            engine = EngineImages(self._state) if settings.images else None
            listener = Listener(Site(store, engine, settings), users, verbose=self._verbose)
            self._server = await _listen(settings, listener, tls)
            self._listener = listener
            self._housekeeping = asyncio.create_task(_keep_house(store))
            self._owned = owned.pop_all()
        scheme = "http" if tls is None else "https"
        for each in self._server.sockets:
            host, port = each.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            self.addresses.append(f"{scheme}://{shown}:{port}")

    async def close(self, timeout: float = 5.0) -> None:
        """Accept no more, give running answers *timeout* seconds, then end all."""
        if self._server is not None:
            self._server.close()
        if self._housekeeping is not None:
            self._housekeeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._housekeeping
        if self._listener is not None:
            self._listener.pre_shutdown()
            await self._listener.shutdown(timeout)
        self._owned.close()


async def _listen(
    settings: ServeSettings, listener: Listener, tls: ssl.SSLContext | None
) -> asyncio.Server:
    loop = asyncio.get_running_loop()
    try:
        return await loop.create_server(
            listener,
            settings.host or None,
            settings.port,
            ssl=tls,
            backlog=_BACKLOG,
            ssl_handshake_timeout=None if tls is None else _HANDSHAKE_SECONDS,
        )
    except (OSError, socket.gaierror) as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise FailedError(
            f"cannot listen on {settings.host}:{settings.port}: {reason}",
            hint="--listen HOST:PORT names another address; port 0 takes any that is free",
        ) from error


def _tls(settings: ServeSettings) -> ssl.SSLContext | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # The callback keeps OpenSSL from asking the terminal for a key's passphrase.
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password=lambda: "")
    except (OSError, ssl.SSLError) as error:
        raise InvalidError(
            f"the certificate {settings.tls_cert} and the key {settings.tls_key}"
            f" cannot be used: {error}"
        ) from error
    return context


async def _keep_house(store: RegistryStore) -> None:
    """Now and then delete abandoned uploads and blobs that no manifest ever named."""
    while True:
        await asyncio.sleep(_HOUSEKEEPING_SECONDS)
        try:
            await asyncio.to_thread(store.expire)
            found = await asyncio.to_thread(collect, store)
            if found.blobs:
                log.info("collected %d blobs, %d bytes", len(found.blobs), found.freed)
        except Exception:
            log.exception("housekeeping of the registry failed")
