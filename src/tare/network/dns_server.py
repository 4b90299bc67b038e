"""The name server of an engine: one small process, apart from the daemon.

It listens on the gateway addresses of the engine's networks, on their devices only, and answers
by who asks: a container finds the names in its own networks, and no others. What is not a name
there is asked of the container's own servers or the host's, except for single words and from
internal networks. Why so: docs/adr/0014.

::

    RUN/dns.lock     held as long as it lives, with its pid: there is one
    RUN/dns.json     the table (network.dns_table), the daemon's; read at the start and on request
    RUN/dns.sock     packets: "read" (answered when the table is in force) and "end"

It goes on without the daemon, and ends by itself when no daemon is connected and the table names
no container. It runs with the right to bind low ports and no other privilege.

A sender that asks too much is shut out in the kernel for a second, so that its packets do not
even reach the queue that it shares with others. Not for: starting it (network.dns_link).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final

from tare.kernel import confine, packet_filter
from tare.network import dns_table, dns_wire
from tare.network.dns_forward import PORT, Forwarder, HostServers

VERSION: Final = 1
"""Of the conversation with the daemon."""
_BURST: Final = 64
"""Datagrams taken from one socket before the others have their turn."""
_RATE: Final = 2000
"""Questions a second that one sender may ask."""
_STREAMS: Final = 256
_STREAMS_EACH: Final = 16
_STREAM_PENDING: Final = 16
_STREAM_PATIENCE: Final = 10.0
_OUTPUT: Final = 1 << 18
_FILES: Final = 8192
_SO_BINDTODEVICE: Final = 25
_IP_FREEBIND: Final = 15
_IPV6_FREEBIND: Final = 78

Ready = Callable[[int], None]


class Loop:
    """Readiness of descriptors, and who wants to know it."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._ready: dict[int, Ready] = {}

    def watch(self, fileno: int, events: int, ready: Ready) -> None:
        """Call *ready* when *fileno* is ready for *events*; again to change them."""
        if fileno in self._ready:
            self._epoll.modify(fileno, events)
        else:
            self._epoll.register(fileno, events)
        self._ready[fileno] = ready

    def forget(self, fileno: int) -> None:
        """Watch it no longer."""
        if self._ready.pop(fileno, None) is not None:
            self._epoll.unregister(fileno)

    def turn(self, timeout: float) -> None:
        """Wait for one round of readiness and tell it."""
        for fileno, events in self._epoll.poll(timeout):
            ready = self._ready.get(fileno)
            if ready is not None:  # an earlier one of this round may have closed it
                ready(events)


class _Doors:
    """The sockets of one address of one network, and who is shut out there."""

    def __init__(self, zone: str, device: str, address: str, port: int) -> None:
        self.zone = zone
        self.muted: dict[str, float] = {}
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.datagrams = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.streams = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            for one in (self.datagrams, self.streams):
                # Only the network's own containers and this host reach it, whatever the routes are.
                one.setsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, device.encode() + b"\0")
                # The address may come after us: a bridge may be made anew.
                if family == socket.AF_INET6:
                    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    one.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
                else:
                    one.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
            self.streams.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.datagrams.bind((address, port))
            self.streams.bind((address, port))
            self.streams.listen(64)
        except BaseException:
            self.close()
            raise

    def shut_out(self) -> None:
        """Put the filter in force that `muted` asks for."""
        with contextlib.suppress(OSError):
            packet_filter.drop(self.datagrams, [dns_table.packed(a) for a in self.muted])

    def close(self) -> None:
        """Answer no more."""
        self.datagrams.close()
        self.streams.close()


class _Stream:
    """One TCP connection of a container."""

    def __init__(self, server: Server, connection: socket.socket, zone: str, client: str) -> None:
        self._server, self._connection = server, connection
        self.zone, self.client = zone, client
        self._input, self._output = bytearray(), bytearray()
        self._pending = 0
        self._ended = False
        self.deadline = time.monotonic() + _STREAM_PATIENCE
        server.loop.watch(connection.fileno(), select.EPOLLIN, self._ready)

    def _ready(self, events: int) -> None:
        try:
            if events & select.EPOLLOUT:
                self._flush()
            if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                received = self._connection.recv(dns_wire.MAXIMUM)
                self._ended = self._ended or not received
                self._input += received
            self._take()
            self._settle()
        except BlockingIOError:
            pass
        except OSError:
            self.close()

    def _take(self) -> None:
        """Answer the whole messages that have come, as many as may be under way at once."""
        while len(self._input) >= 2 and self._pending < _STREAM_PENDING:
            length = int.from_bytes(self._input[:2], "big")
            if len(self._input) < 2 + length:
                return
            message = bytes(self._input[2 : 2 + length])
            del self._input[: 2 + length]
            self._pending += 1
            self.deadline = time.monotonic() + _STREAM_PATIENCE
            self._server.respond(self.zone, self.client, message, self._reply, stream=True)

    def _reply(self, response: bytes) -> None:
        self._pending -= 1
        if self._connection.fileno() < 0 or not response:
            return
        self._output += len(response).to_bytes(2, "big") + response
        try:
            self._flush()
            self._take()
            self._settle()
        except OSError:
            self.close()

    def _flush(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._output:
                del self._output[: self._connection.send(self._output)]

    def _settle(self) -> None:
        """Watch for what can go on now; one who reads too slowly is let go."""
        if self._connection.fileno() < 0:
            return
        if len(self._output) > _OUTPUT or (self._ended and not self._output and not self._pending):
            self.close()
            return
        reading = not self._ended and self._pending < _STREAM_PENDING and not self._output
        events = (select.EPOLLIN if reading else 0) | (select.EPOLLOUT if self._output else 0)
        self._server.loop.watch(self._connection.fileno(), events, self._ready)

    def close(self) -> None:
        """Let go of the connection."""
        if self._connection.fileno() >= 0:
            self._server.loop.forget(self._connection.fileno())
            self._connection.close()
            self._server.left(self)


class Server:
    """The sockets, the table, and what is under way; `run` ends when it is no longer needed."""

    def __init__(self, directory: str, *, port: int = PORT, upstream: int = PORT) -> None:
        self.loop = Loop()
        self._directory = directory
        self._port = port
        self._forwarder = Forwarder(self.loop, upstream)
        self._host = HostServers()
        self._names = dns_table.Directory(dns_table.Table())
        self._zones: tuple[dns_table.Zone, ...] = ()
        self._clients = 0
        self._doors: dict[tuple[str, str, str], _Doors] = {}
        self._problems: dict[tuple[str, str, str], str] = {}
        self._streams: set[_Stream] = set()
        self._asked: dict[str, int] = {}
        self._second = 0
        self._turn = 0
        self._daemons: set[socket.socket] = set()
        self._control = _control_socket(f"{directory}/dns.sock")
        self._ending = False

    # --- the daemon ---------------------------------------------------------------------------

    def run(self) -> None:
        """Answer until there is nobody left to answer, or until told to end."""
        self.loop.watch(self._control.fileno(), select.EPOLLIN, self._on_daemon)
        self.read_table()
        # A daemon that has just started us needs a moment to connect.
        alone_since = time.monotonic()
        while not self._ending:
            self.loop.turn(min(self._forwarder.expire(), self._keep_house()))
            if self._daemons or self._clients:
                alone_since = time.monotonic()
            elif time.monotonic() - alone_since > 10.0:
                self._ending = True

    def _on_daemon(self, events: int) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._control.accept()
            connection.setblocking(False)
            self._daemons.add(connection)
            self.loop.watch(
                connection.fileno(), select.EPOLLIN, lambda found: self._on_word(connection)
            )

    def _on_word(self, connection: socket.socket) -> None:
        try:
            word = connection.recv(64)
        except BlockingIOError:
            return
        except OSError:
            word = b""
        if word == b"end":
            self._ending = True
        if word == b"read":
            self.read_table()
            told = {
                "version": VERSION, "pid": os.getpid(), "problems": list(self._problems.values()),
            }  # fmt: skip
            with contextlib.suppress(OSError):
                connection.send(json.dumps(told).encode())
            return
        self.loop.forget(connection.fileno())
        connection.close()
        self._daemons.discard(connection)

    def read_table(self) -> None:
        """Put the table on disk in force; one that cannot be read changes nothing."""
        try:
            with open(f"{self._directory}/dns.json", "rb") as file:
                table = dns_table.decode(file.read())
        except FileNotFoundError:
            table = dns_table.Table()
        except (OSError, ValueError) as error:
            self._problems["", "", ""] = f"the table of names cannot be read: {error}"
            return
        self._problems.pop(("", "", ""), None)
        self._names = dns_table.Directory(table)
        self._clients = len(table.clients)
        self._zones = table.zones
        self._open_doors()

    def _open_doors(self) -> None:
        wanted = {
            (zone.id, zone.device, address) for zone in self._zones for address in zone.listen
        }
        for key in self._doors.keys() - wanted:
            self._close_doors(key)
        self._problems = {key: self._problems[key] for key in self._problems.keys() & wanted}
        for key in wanted - self._doors.keys():
            zone, device, address = key
            try:
                doors = _Doors(zone, device, address, self._port)
            except OSError as error:
                self._problems[key] = _problem(address, device, self._port, error)
                continue
            self._problems.pop(key, None)
            self._doors[key] = doors
            self._watch_doors(doors)

    def _watch_doors(self, doors: _Doors) -> None:
        self.loop.watch(
            doors.datagrams.fileno(), select.EPOLLIN, lambda events: self._on_datagrams(doors)
        )
        self.loop.watch(
            doors.streams.fileno(), select.EPOLLIN, lambda events: self._on_stream(doors)
        )

    def _close_doors(self, key: tuple[str, str, str]) -> None:
        doors = self._doors.pop(key)
        self.loop.forget(doors.datagrams.fileno())
        self.loop.forget(doors.streams.fileno())
        doors.close()

    def _keep_house(self) -> float:
        """What time brings: the seconds until it must be done again."""
        now = time.monotonic()
        if self._problems:
            self._open_doors()
        for stream in [one for one in self._streams if one.deadline < now]:
            stream.close()
        for doors in self._doors.values():
            if doors.muted and any(until <= now for until in doors.muted.values()):
                doors.muted = {a: until for a, until in doors.muted.items() if until > now}
                doors.shut_out()
        restless = self._problems or self._streams or any(d.muted for d in self._doors.values())
        return 1.0 if restless else 10.0

    # --- containers ---------------------------------------------------------------------------

    def _on_datagrams(self, doors: _Doors) -> None:
        receive, zone = doors.datagrams.recvfrom, doors.zone
        for _ in range(_BURST):
            try:
                message, sender = receive(dns_wire.MAXIMUM)
            except OSError:
                return
            address: str = sender[0]
            if not self._may_ask(doors, address):
                continue

            def reply(response: bytes, to: tuple[str, int] = sender) -> None:
                if response and doors.datagrams.fileno() >= 0:
                    doors.datagrams.sendto(response, to)

            with contextlib.suppress(OSError):
                self.respond(zone, address, message, reply)

    def _may_ask(self, doors: _Doors, address: str) -> bool:
        """Count a question; False for a sender that has asked too much in this second."""
        second = int(time.monotonic())
        if second != self._second:
            self._second = second
            self._asked.clear()
        count = self._asked.get(address, 0) + 1
        self._asked[address] = count
        if count <= _RATE:
            return True
        if address not in doors.muted and len(doors.muted) < packet_filter.MOST:
            doors.muted[address] = time.monotonic() + 1.0
            doors.shut_out()
        return False

    def _on_stream(self, doors: _Doors) -> None:
        try:
            connection, sender = doors.streams.accept()
        except OSError:
            return
        address: str = sender[0]
        mine = sum(1 for stream in self._streams if stream.client == address)
        if len(self._streams) >= _STREAMS or mine >= _STREAMS_EACH:
            connection.close()
            return
        connection.setblocking(False)
        self._streams.add(_Stream(self, connection, doors.zone, address))

    def left(self, stream: _Stream) -> None:
        """*stream* has been closed."""
        self._streams.discard(stream)

    def respond(
        self,
        zone: str,
        address: str,
        message: bytes,
        reply: Callable[[bytes], None],
        *,
        stream: bool = False,
    ) -> None:
        """Answer *message* from *address*, at once or later; b"" is for no answer at all."""
        try:
            query = dns_wire.read(message)
        except dns_wire.MalformedError as error:
            reply(b"" if error.code < 0 else dns_wire.refusal(message, error.code))
            return
        limit = dns_wire.MAXIMUM if stream else min(query.size, dns_wire.OURS)
        client = self._names.client(zone, address)
        records = self._records(client, query)
        if records is not None:
            reply(dns_wire.answer(query, records, limit=limit))
        elif "." not in query.name and query.name:
            # A word without a dot is the name of a container that is not there. Asking the world
            # would tell it our names, and let it choose their addresses.
            reply(dns_wire.answer(query, (), limit=limit, code=dns_wire.NO_SUCH_NAME))
        elif not self._names.forwards(client):
            reply(dns_wire.answer(query, (), limit=limit, code=dns_wire.SERVER_FAILURE))
        else:
            servers = client.servers or self._host.get()
            self._forwarder.ask(
                query, message, client=address, servers=servers, reply=reply, stream=stream
            )

    def _records(
        self, client: dns_table.Client, query: dns_wire.Query
    ) -> list[tuple[int, bytes]] | None:
        """What this server itself knows; None for nothing, an empty list for no such type."""
        if query.type == dns_wire.PTR:
            return self._reverse(client, query.name)
        found = self._names.find(client, query.name)
        if found is None and (query.name == "localhost" or query.name.endswith(".localhost")):
            found = ["127.0.0.1", "::1"]  # RFC 6761, section 6.3
        if found is None:
            return None
        kinds = {
            dns_wire.A: (dns_wire.A,),
            dns_wire.AAAA: (dns_wire.AAAA,),
            dns_wire.ANY: (dns_wire.A, dns_wire.AAAA),
        }.get(query.type, ())
        records = []
        for address in found:
            kind = dns_wire.AAAA if ":" in address else dns_wire.A
            if kind in kinds:
                records.append((kind, dns_table.packed(address)))
        if len(records) > 1:  # those that share a name share the work
            self._turn += 1
            first = self._turn % len(records)
            records = records[first:] + records[:first]
        return records

    def _reverse(self, client: dns_table.Client, name: str) -> list[tuple[int, bytes]] | None:
        address = dns_wire.reversed_address(name)
        found = self._names.reverse(client, address) if address is not None else None
        if found is None:
            return None
        with contextlib.suppress(dns_wire.MalformedError):
            return [(dns_wire.PTR, dns_wire.name_data(found))]
        return []


def _problem(address: str, device: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"names cannot be answered on {address} port {port}: another server of this host"
            " listens there (on all addresses, or on this one)"
        )
    return f"names cannot be answered on {address} port {port} of {device}: {error.strerror}"


def _control_socket(path: str) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    before = os.umask(0o077)
    try:
        control.bind(path)
    finally:
        os.umask(before)
    control.listen(8)
    return control


def _lock(path: str) -> int | None:
    """A descriptor that holds the lock until this process ends; None when another holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _give_up_privilege() -> None:
    """Keep the right to bind port 53; nothing that a container sends can use any other."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    confine.no_new_privileges()
    keep = confine.mask(frozenset(("NET_BIND_SERVICE",)))
    with contextlib.suppress(PermissionError):  # a user's own engine has none to give up
        confine.drop_bounding(keep, confine.last_capability())
    confine.set_capabilities(keep & confine.effective())
    confine.clear_ambient()


def main(arguments: Sequence[str]) -> int:
    """``DIRECTORY``: serve there; 0 also when another one does already."""
    os.umask(0o077)
    os.chdir("/")
    directory = arguments[0]
    held = _lock(f"{directory}/dns.lock")
    if held is None:
        return 0
    _give_up_privilege()
    server = Server(directory)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    server.run()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{directory}/dns.sock")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
