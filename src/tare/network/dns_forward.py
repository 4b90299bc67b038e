"""Asks other servers for what is not ours to answer, and never waits: `Forwarder` lives in a loop.

A question goes on as it came, under an id and from a port of our own that cannot be guessed, and
the answer goes back as it came. Over UDP the servers are asked one after the other; over TCP the
first that takes the connection. Nothing is kept: the servers asked keep caches themselves.

Not for: deciding whether a question may leave the host (network.dns_server).
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import os
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from tare.network import dns_wire

PORT: Final = 53
PATIENCE: Final = 2.0
"""Seconds for one server; then the next is asked."""
_SERVERS: Final = 3
_PENDING: Final = 1024
_PENDING_EACH: Final = 64
_RESOLV_CONF: Final = "/etc/resolv.conf"
_UNKIND: Final = (dns_wire.SERVER_FAILURE, dns_wire.NOT_IMPLEMENTED, dns_wire.REFUSED)


class Loop(Protocol):
    """What a forwarder needs of the loop it lives in."""

    def watch(self, fileno: int, events: int, ready: Callable[[int], None]) -> None:
        """Call *ready* when *fileno* is ready for *events*; again to change them."""
        ...

    def forget(self, fileno: int) -> None:
        """Watch it no longer."""
        ...


def servers_of(text: str) -> tuple[str, ...]:
    """The name servers of a resolv.conf(5), in order."""
    found = []
    for line in text.splitlines():
        words = line.split("#")[0].split()
        if len(words) > 1 and words[0] == "nameserver" and _socket_address(words[1]) is not None:
            found.append(words[1])
    return tuple(dict.fromkeys(found))


class HostServers:
    """The servers of the host's own resolv.conf, read again when that has changed."""

    def __init__(self, path: str = _RESOLV_CONF) -> None:
        self._path = path
        self._checked = 0.0
        self._seen: tuple[int, int, int] | None = None
        self._servers: tuple[str, ...] = ()

    def get(self) -> tuple[str, ...]:
        """Those known now; looked at once a second at most."""
        now = time.monotonic()
        if now - self._checked < 1.0 and self._seen is not None:
            return self._servers
        self._checked = now
        try:
            with open(self._path, encoding="utf-8", errors="replace") as file:
                status = os.fstat(file.fileno())
                seen = (status.st_ino, status.st_mtime_ns, status.st_size)
                if seen != self._seen:
                    self._servers = servers_of(file.read(1 << 16))
                    self._seen = seen
        except OSError:
            self._servers, self._seen = (), (0, 0, 0)
        # resolv.conf(5): without any, the name server of this host is asked.
        return self._servers or ("127.0.0.1",)


@dataclass(eq=False, slots=True)
class _Pending:
    """One question on its way."""

    query: dns_wire.Query
    message: bytes
    client: str
    servers: list[str]
    reply: Callable[[bytes], None]
    stream: bool
    id: int = 0
    connection: socket.socket | None = None
    received: bytearray | None = None
    last: bytes = b""


class Forwarder:
    """The questions under way; their number is bounded, for each client and in all."""

    def __init__(self, loop: Loop, port: int = PORT) -> None:
        self._loop = loop
        self._port = port
        self._count = 0
        self._by_client: dict[str, int] = {}
        self._deadlines: list[tuple[float, int, _Pending, socket.socket]] = []
        self._sequence = 0

    def ask(
        self,
        query: dns_wire.Query,
        message: bytes,
        *,
        client: str,
        servers: tuple[str, ...],
        reply: Callable[[bytes], None],
        stream: bool = False,
    ) -> None:
        """Pass *message* on to *servers*; *reply* is called once, with an answer or a failure."""
        mine = self._by_client.get(client, 0)
        if self._count >= _PENDING or mine >= _PENDING_EACH:
            reply(_failed(query))
            return
        self._count += 1
        self._by_client[client] = mine + 1
        chosen = list(servers[:_SERVERS])
        self._next(_Pending(query, message, client, chosen, reply, stream))

    def expire(self) -> float:
        """Give up what has waited too long; the seconds until the next, at most one minute."""
        now = time.monotonic()
        while self._deadlines:
            deadline, _, pending, connection = self._deadlines[0]
            if pending.connection is not connection:
                heapq.heappop(self._deadlines)  # answered, or another server's turn
            elif deadline > now:
                return min(deadline - now, 60.0)
            else:
                heapq.heappop(self._deadlines)
                self._next(pending)
        return 60.0

    def _next(self, pending: _Pending) -> None:
        """Ask the next server; without one the question has failed."""
        self._drop(pending)
        while pending.servers:
            address = _socket_address(pending.servers.pop(0), self._port)
            if address is None:
                continue
            kind = socket.SOCK_STREAM if pending.stream else socket.SOCK_DGRAM
            family = socket.AF_INET if len(address) == 2 else socket.AF_INET6
            try:
                connection = socket.socket(family, kind | socket.SOCK_NONBLOCK)
            except OSError:
                break  # out of descriptors: another server does not help
            code = connection.connect_ex(address)
            if code not in (0, errno.EINPROGRESS):
                connection.close()
                continue
            self._send(pending, connection)
            if pending.connection is not None:
                return
        self._finish(pending, pending.last or _failed(pending.query))

    def _send(self, pending: _Pending, connection: socket.socket) -> None:
        pending.id = int.from_bytes(os.urandom(2), "big")
        message = dns_wire.renumbered(pending.message, pending.id)
        ready: Callable[[int], None]
        if pending.stream:
            framed = len(message).to_bytes(2, "big") + message
            pending.received = bytearray()
            events = select.EPOLLOUT

            def ready(found: int) -> None:
                self._on_stream(pending, connection, framed, found)
        else:
            events = select.EPOLLIN
            try:
                connection.send(message)
            except OSError:
                connection.close()
                return

            def ready(found: int) -> None:
                self._on_datagram(pending, connection)

        pending.connection = connection
        self._loop.watch(connection.fileno(), events, ready)
        self._sequence += 1
        entry = (time.monotonic() + PATIENCE, self._sequence, pending, connection)
        heapq.heappush(self._deadlines, entry)

    def _on_datagram(self, pending: _Pending, connection: socket.socket) -> None:
        try:
            response = connection.recv(dns_wire.MAXIMUM)
        except BlockingIOError:
            return
        except OSError:  # nobody listens there
            self._next(pending)
            return
        self._consider(pending, response)

    def _on_stream(
        self, pending: _Pending, connection: socket.socket, framed: bytes, events: int
    ) -> None:
        received = pending.received
        assert received is not None
        try:
            if events & select.EPOLLOUT and not received:
                # A fresh connection takes this much at once.
                if connection.send(framed) != len(framed):
                    raise OSError(errno.EMSGSIZE, "a short write")
                self._loop.watch(
                    connection.fileno(),
                    select.EPOLLIN,
                    lambda found: self._on_stream(pending, connection, framed, found),
                )
                return
            more = connection.recv(dns_wire.MAXIMUM)
            if not more:
                raise OSError(errno.ECONNRESET, "it ended too early")
            received += more
        except BlockingIOError:
            return
        except OSError:
            self._next(pending)
            return
        length = int.from_bytes(received[:2], "big")
        if len(received) >= 2 and len(received) >= 2 + length:
            self._consider(pending, bytes(received[2 : 2 + length]))

    def _consider(self, pending: _Pending, response: bytes) -> None:
        if not dns_wire.belongs(response, pending.id, pending.query.question):
            return  # forged, or late: the right one may still come
        answer = dns_wire.renumbered(response, pending.query.id)
        if response[3] & 0xF in _UNKIND and pending.servers:
            pending.last = answer
            self._next(pending)
            return
        self._finish(pending, answer)

    def _drop(self, pending: _Pending) -> None:
        connection, pending.connection = pending.connection, None
        if connection is not None:
            self._loop.forget(connection.fileno())
            connection.close()

    def _finish(self, pending: _Pending, response: bytes) -> None:
        self._drop(pending)
        self._count -= 1
        left = self._by_client[pending.client] - 1
        if left:
            self._by_client[pending.client] = left
        else:
            del self._by_client[pending.client]
        with contextlib.suppress(OSError):
            pending.reply(response)


def _failed(query: dns_wire.Query) -> bytes:
    return dns_wire.answer(query, (), limit=dns_wire.PLAIN, code=dns_wire.SERVER_FAILURE)


def _socket_address(
    text: str, port: int = PORT
) -> tuple[str, int] | tuple[str, int, int, int] | None:
    """What connect(2) takes for an address with an optional ``%device``; None if it is none."""
    bare, percent, device = text.partition("%")
    with contextlib.suppress(OSError, ValueError):
        if ":" not in bare:
            socket.inet_pton(socket.AF_INET, bare)
            return bare, port
        socket.inet_pton(socket.AF_INET6, bare)
        return bare, port, 0, socket.if_nametoindex(device) if percent else 0
    return None
