"""HTTP/1.1 to the daemon over its unix socket: requests, streamed bodies, hijacked connections.

http.client and socket cost 8 ms to import; this is the part of HTTP that one client and one
server of ours need. Not for any other server: no TLS, no proxies, no redirects.
"""

from __future__ import annotations

import os
from _socket import AF_UNIX, SHUT_WR, SOCK_CLOEXEC, SOCK_STREAM
from _socket import socket as Socket

from tare.client import document
from tare.errors import (
    ConflictError,
    DeniedError,
    FailedError,
    InvalidError,
    MissingError,
    TareError,
    UnsupportedError,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tare.client.document import Json

_HEAD_LIMIT = 64 << 10
_LINE_LIMIT = 16 << 10
_PIECE = 64 << 10
_SAFE = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~/:@,")

_BY_STATUS: dict[int, type[TareError]] = {
    400: InvalidError,
    401: DeniedError,
    403: DeniedError,
    404: MissingError,
    409: ConflictError,
    501: UnsupportedError,
}


ALWAYS: dict[str, str] = {}
"""Headers of every request of this process: what the command line asks for as a whole."""


def quoted(part: str) -> str:
    """Percent-encode *part* for a path or a query value."""
    return "".join(chr(b) if b in _SAFE else f"%{b:02X}" for b in os.fsencode(part))


def target(path: str, query: Mapping[str, str | int | bool]) -> str:
    """A request target: *path* and the query values that say something ("" and False do not)."""
    pairs = [
        f"{key}={quoted('1' if value is True else str(value))}"
        for key, value in query.items()
        if value is not False and value != ""
    ]
    return f"{path}?{'&'.join(pairs)}" if pairs else path


def segment(name: str) -> str:
    """Percent-encode *name* as one step of a path, "/" included."""
    return quoted(name).replace("/", "%2F") or "%20"


class Response:
    """An answer whose head has been read; the body is read on demand."""

    __slots__ = ("_done", "_length", "connection", "headers", "status")

    def __init__(self, connection: Connection, status: int, headers: dict[str, str]) -> None:
        self.connection = connection
        self.status = status
        self.headers = headers
        self._done = False
        self._length = -2 if headers.get("transfer-encoding", "").lower() == "chunked" else -1
        if self._length == -1 and "content-length" in headers:
            self._length = int(headers["content-length"])
        if status in (204, 304):
            self._length = 0

    def pieces(self) -> Iterator[bytes]:
        """The body as it arrives."""
        connection = self.connection
        if self._length == -2:
            while size := int(connection.line().split(b";")[0], 16):
                yield from connection.exactly(size)
                connection.line()
            while connection.line():
                pass
        elif self._length >= 0:
            yield from connection.exactly(self._length)
        else:
            while piece := connection.some():
                yield piece
            connection.close()
        self._done = True

    def read(self) -> bytes:
        """The whole body."""
        return b"".join(self.pieces())

    def skip_body(self) -> None:
        """The answer has no body, whatever its head says (HEAD)."""
        self._length = 0

    def lines(self) -> Iterator[bytes]:
        """The body's lines, without their ends, as they arrive."""
        rest = b""
        for piece in self.pieces():
            *whole, rest = (rest + piece).split(b"\n")
            yield from (line for line in whole if line.strip())
        if rest.strip():
            yield rest

    def error(self, raw: bytes | None = None) -> TareError:
        """The error that this answer reports, from its status and its body."""
        raw = self.read() if raw is None else raw
        message, hint, code = "", "", 1
        if raw.lstrip().startswith(b"{"):
            body = document.decode(raw)
            message, hint = document.text(body, "message"), document.text(body, "hint")
            code = document.number(body, "exitCode") or 1
        message = message or raw.decode("utf-8", "replace").strip() or f"HTTP {self.status}"
        return _BY_STATUS.get(self.status, FailedError)(message, hint=hint, exit_code=code)


class Connection:
    """One connection to the daemon; one request at a time, the answer read before the next."""

    __slots__ = ("_buffer", "socket")

    def __init__(self, path: str) -> None:
        """Connect to the socket at *path*; OSError when nobody answers there."""
        self.socket = Socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
        self._buffer = b""
        try:
            self.socket.connect(path)
        except OSError:
            self.socket.close()
            raise

    def close(self) -> None:
        """Close it; doing so again is harmless."""
        self.socket.close()

    def fileno(self) -> int:
        """The descriptor, for poll(2)."""
        return self.socket.fileno()

    def some(self) -> bytes:
        """What has arrived, at least a byte; b"" at the end."""
        if self._buffer:
            piece, self._buffer = self._buffer, b""
            return piece
        return self.socket.recv(_PIECE)

    def leftover(self) -> bytes:
        """What was read beyond the head of a hijacked answer."""
        piece, self._buffer = self._buffer, b""
        return piece

    def line(self) -> bytes:
        """One line of the protocol without its CRLF."""
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > _LINE_LIMIT:
                raise FailedError("the daemon sent a line without an end")
            self._more()
        line, self._buffer = self._buffer[:end], self._buffer[end + 1 :]
        return line.rstrip(b"\r")

    def exactly(self, size: int) -> Iterator[bytes]:
        """The next *size* bytes in pieces."""
        while size > 0:
            piece = self.some()
            if not piece:
                raise FailedError("the daemon closed the connection in the middle of an answer")
            if len(piece) > size:
                piece, self._buffer = piece[:size], piece[size:]
            size -= len(piece)
            yield piece

    def _more(self) -> None:
        piece = self.socket.recv(_PIECE)
        if not piece:
            raise FailedError("the daemon closed the connection without an answer")
        self._buffer += piece

    def send(
        self,
        method: str,
        where: str,
        body: bytes | Iterable[bytes] | None = None,
        *,
        kind: str = "application/json",
        upgrade: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """Make one request and read the head of its answer.

        An iterable body is sent in chunks; a server that answers before it has read them all is
        heard.
        """
        head = f"{method} {where} HTTP/1.1\r\nHost: tare\r\n"
        for name, value in {**ALWAYS, **(headers or {})}.items():
            head += f"{name}: {value}\r\n"
        if upgrade:
            head += "Connection: Upgrade\r\nUpgrade: tcp\r\n"
        if body is None:
            if method != "GET":
                head += "Content-Length: 0\r\n"
            self._send_all(f"{head}\r\n".encode("ascii"))
        elif isinstance(body, bytes):
            head += f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
            self._send_all(head.encode("ascii") + body)
        else:
            head += f"Content-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n"
            self._send_chunks(head.encode("ascii"), body)
        return self._head(bodyless=method == "HEAD")

    def _send_all(self, data: bytes) -> bool:
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False  # the answer, if one came before the end, tells why
        return True

    def _send_chunks(self, head: bytes, body: Iterable[bytes]) -> None:
        self._send_all(head)
        for piece in body:
            if piece and not self._send_all(b"%x\r\n%b\r\n" % (len(piece), piece)):
                return
        self._send_all(b"0\r\n\r\n")

    def _head(self, *, bodyless: bool) -> Response:
        try:
            status_line = self.line()
            while status_line.startswith(b"HTTP/1.1 100"):
                while self.line():
                    pass
                status_line = self.line()
            headers: dict[str, str] = {}
            total = 0
            while line := self.line():
                total += len(line)
                if total > _HEAD_LIMIT:
                    raise FailedError("the daemon sent a head without an end")
                name, _, value = line.partition(b":")
                headers[name.decode("latin-1").lower()] = value.strip().decode("latin-1")
            words = status_line.split(None, 2)
            response = Response(self, int(words[1]), headers)
        except ConnectionResetError as error:
            raise FailedError("the daemon closed the connection without an answer") from error
        except (ValueError, IndexError) as error:
            raise FailedError("what answers on the socket does not speak HTTP") from error
        if bodyless:
            response.skip_body()
        return response

    def half_close(self) -> None:
        """No more input will come; the answer goes on."""
        try:
            self.socket.shutdown(SHUT_WR)
        except OSError:
            pass  # the other side has closed already


class Daemon:
    """The daemon at one socket: opens connections, starts it when none answers, maps errors."""

    __slots__ = ("_idle", "path", "starts")

    def __init__(self, path: str = "", *, starts: bool = True) -> None:
        """Speak to the socket at *path*; "" is where the environment says.

        docs/architecture.md, "Environment", has the variables.
        A daemon that was named, by *path* or by TARE_HOST, is never started.
        """
        named = path or os.environ.get("TARE_HOST", "")
        self.path = _socket_path(named) if named else f"{run_directory()}/tare.sock"
        self.starts = starts and not named
        self._idle: Connection | None = None

    def connect(self) -> Connection:
        """A fresh connection; FailedError or DeniedError when there can be none."""
        try:
            return Connection(self.path)
        except (FileNotFoundError, ConnectionRefusedError):
            if not self.starts:
                raise FailedError(
                    f"no tare daemon answers at {self.path}",
                    hint="Start it with `tared`, or unset TARE_HOST so that tare starts its own.",
                ) from None
        except PermissionError:
            raise DeniedError(
                f"permission denied at the daemon's socket {self.path}",
                hint="Run as root, join the group `tare`, or unset TARE_HOST and TARE_RUN_DIR to "
                "use an engine of your own.",
            ) from None
        except OSError as error:
            raise FailedError(f"cannot connect to {self.path}: {error.strerror or error}") from None
        from tare.client import autostart

        autostart.start(self.path)
        return Connection(self.path)

    def open(
        self,
        method: str,
        where: str,
        body: Json | Iterable[bytes] = None,
        *,
        kind: str = "application/json",
        upgrade: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """Make a request on a connection of its own; any refusal is raised as its TareError."""
        payload = document.encode(body) if isinstance(body, (dict, list)) else None
        if body is not None and payload is None:
            payload = body  # type: ignore[assignment]  # neither dict nor list: the iterable
        connection = self._idle or self.connect()
        self._idle = None
        response = connection.send(
            method, where, payload, kind=kind, upgrade=upgrade, headers=headers
        )
        if response.status >= 400:
            error = response.error()
            connection.close()
            raise error
        return response

    def call(self, method: str, where: str, body: Json = None) -> Json:
        """Make a request and read its JSON answer (None when it has none)."""
        response = self.open(method, where, body)
        raw = response.read()
        if response.headers.get("connection", "").lower() == "close":
            response.connection.close()
        else:
            if self._idle is not None:
                self._idle.close()
            self._idle = response.connection
        return document.decode(raw) if raw.strip() else None

    def close(self) -> None:
        """Close what is kept open."""
        if self._idle is not None:
            self._idle.close()
            self._idle = None


def run_directory() -> str:
    """Where this user's daemon keeps its socket."""
    if chosen := os.environ.get("TARE_RUN_DIR"):
        return chosen
    if os.geteuid() == 0:
        return "/run/tare"
    if base := os.environ.get("XDG_RUNTIME_DIR"):
        return f"{base}/tare"
    return f"/tmp/tare-{os.geteuid()}"  # noqa: S108  # the daemon makes it 0700 and checks owner


def _socket_path(host: str) -> str:
    if host.startswith("unix://"):
        return host[len("unix://") :]
    if "://" in host:
        raise InvalidError(
            f"cannot use the host {host!r}: only unix sockets are spoken yet",
            hint="Give unix:///path/to/tare.sock.",
        )
    return host
