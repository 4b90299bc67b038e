"""The bytes of a container: from its hijacked connection to our descriptors and back.

Not for what they mean, nor for the requests that open the connection.
"""

from __future__ import annotations

import os
import select

from tare.client import document
from tare.client.tables import write_out

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tare.client.document import Json
    from tare.client.terminal import Escape
    from tare.client.transport import Connection, Response

    Sink = Callable[[bytes], None]

_PIECE = 64 << 10
_REPORT_LIMIT = 1 << 20
_IN = select.POLLIN | select.POLLHUP | select.POLLERR
_REPORT = 3  # our own stream: JSON about the run, see docs/api-extensions.md


class Frames:
    """Takes Docker's multiplexed stream apart: 8 bytes of head, then a piece of one stream."""

    __slots__ = ("_head", "_left", "_report", "_stream", "report", "sinks")

    def __init__(self, sinks: Mapping[int, Sink]) -> None:
        """*sinks* take the pieces of streams 1 and 2 as they come; others are dropped.

        ``report`` is what the engine's own frames say.
        """
        self.sinks = sinks
        self.report: dict[str, Json] = {}
        self._head = b""
        self._left = 0
        self._stream = 0
        self._report = b""

    def feed(self, data: bytes) -> None:
        """Take what has arrived, however it is cut."""
        at, end = 0, len(data)
        while at < end:
            if not self._left:
                need = 8 - len(self._head)
                self._head += data[at : at + need]
                at += need
                if len(self._head) < 8:
                    return
                self._stream = self._head[0]
                self._left = int.from_bytes(self._head[4:], "big")
                self._head = b""
                continue
            piece = data[at : at + self._left]
            at += len(piece)
            self._left -= len(piece)
            self._take(piece)

    def _take(self, piece: bytes) -> None:
        if self._stream != _REPORT:
            sink = self.sinks.get(self._stream)
            if sink is not None:
                sink(piece)
            return
        self._report += piece
        if len(self._report) > _REPORT_LIMIT:
            self._report = b""
        if not self._left:
            self.report.update(document.mapping(document.decode(self._report)))
            self._report = b""


def warnings(response: Response) -> list[str]:
    """What the daemon warned of when it made the container of a run."""
    raw = response.headers.get("tare-warnings", "")
    return document.strings(document.decode(raw.encode())) if raw else []


def to_descriptor(descriptor: int) -> Sink:
    """A sink that writes there."""
    return lambda piece: write_out(piece, descriptor)


def pump(
    connection: Connection,
    take: Sink,
    *,
    stdin: int | None = None,
    escape: Escape | None = None,
    deadline: Callable[[], float] | None = None,
) -> bool:
    """Move bytes until the other side ends; False when the detach keys were pressed first.

    *take* gets what arrives. End of *stdin* half-closes the connection. While the daemon does not
    take input, output goes on, so no pipe can lock another. *deadline* gives the seconds left;
    TimeoutError when none are.
    """
    socket = connection.socket
    socket.setblocking(False)
    if data := connection.leftover():
        take(data)
    poller = select.poll()
    poller.register(socket.fileno(), _IN)
    if stdin is not None:
        poller.register(stdin, _IN)
    pending = b""
    while True:
        left = None if deadline is None else deadline()
        if left is not None and left <= 0:
            raise TimeoutError
        for descriptor, events in poller.poll(None if left is None else int(left * 1000) + 1):
            if descriptor == stdin:
                poller.unregister(stdin)
                pending = _input(stdin, escape)
                if escape is not None and escape.found:
                    if pending:
                        socket.setblocking(True)
                        socket.sendall(pending)
                    return False
                if not pending and not (escape is not None and escape.held()):
                    stdin = None
                    connection.half_close()
                elif not pending:
                    poller.register(descriptor, _IN)
                else:
                    poller.register(socket.fileno(), _IN | select.POLLOUT)
                continue
            if events & select.POLLOUT and pending:
                pending = _sent(connection, pending)
                if not pending:
                    poller.register(socket.fileno(), _IN)
                    if stdin is not None:
                        poller.register(stdin, _IN)
            if events & _IN:
                try:
                    data = socket.recv(_PIECE)
                except BlockingIOError:
                    continue
                except ConnectionResetError:
                    return True
                if not data:
                    return True
                take(data)


def _input(stdin: int, escape: Escape | None) -> bytes:
    try:
        data = os.read(stdin, _PIECE)
    except OSError:
        return b""  # a terminal that went away, or stdin was never open
    return escape.feed(data) if escape is not None and data else data


def _sent(connection: Connection, pending: bytes) -> bytes:
    try:
        return pending[connection.socket.send(pending) :]
    except BlockingIOError:
        return pending
    except (BrokenPipeError, ConnectionResetError):
        return b""  # the program no longer reads; its output and end still come
