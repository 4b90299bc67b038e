"""Ports of the host: which are free, and holding them for what is published.

The packet filter takes a published port's packets before any program of the host sees them, and
a program that wants the same port would never know. So the port is held by a socket that is
bound and never listens: both sides hear of a conflict at once, by name.

Not for: what is published where (engine), or the translation (`firewall`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
from collections.abc import Collection, Iterator
from typing import Final

from tare.errors import ConflictError, DeniedError, FailedError, InvalidError, UnsupportedError
from tare.network.values import Address, Port, Protocol

_EPHEMERAL: Final = range(49153, 65536)
_TRIES: Final = 2000
_LISTEN: Final = "0A"
_KINDS: Final = {
    Protocol.TCP: (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    Protocol.UDP: (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    Protocol.SCTP: (socket.SOCK_STREAM, 132),
}


def reserve(port: Port) -> socket.socket:
    """A socket bound to the host's side of *port*, so that nobody else takes it.

    Close it to let go. ConflictError names the process that has it, as far as can be seen.
    """
    address, number, protocol = port.host_address, port.host_port, port.protocol
    try:
        return _bind(address, number, protocol, reuse=False)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise _explained(error, address, number, protocol) from error
    holder = _holder(number, protocol)
    if not holder and protocol is Protocol.TCP:
        # Only connections that are over may hold it still, for a minute.
        with contextlib.suppress(OSError):
            return _bind(address, number, protocol, reuse=True)
    raise ConflictError(
        f"port {number}/{protocol} of {address} is in use" + (f" by {holder}" if holder else ""),
        hint="publish another port of the host, or stop who uses this one",
    )


def choose(
    host_address: Address, protocol: Protocol, wanted: range | None, taken: Collection[int]
) -> socket.socket:
    """Reserve a free port: the first of *wanted*, or any of the ephemeral ones (49153 to 65535).

    Those in *taken* are left out. ConflictError when none is free.
    """
    any_of = random.sample(_EPHEMERAL, _TRIES)
    candidates = any_of if wanted is None else list(wanted)
    for number in candidates:
        if number in taken:
            continue
        try:
            return _bind(host_address, number, protocol, reuse=False)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise _explained(error, host_address, number, protocol) from error
    words = "any port" if wanted is None else f"a port from {wanted[0]} to {wanted[-1]}"
    raise ConflictError(
        f"{words} of {host_address} was wanted, and all are in use",
        hint="publish a larger range, or stop who uses them",
    )


def _bind(address: Address, number: int, protocol: Protocol, *, reuse: bool) -> socket.socket:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    kind, wire = _KINDS[protocol]
    held = socket.socket(family, kind | socket.SOCK_CLOEXEC, wire)
    try:
        if family == socket.AF_INET6:
            held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if reuse:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if protocol is Protocol.UDP:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)  # nobody reads it
        held.bind((str(address), number))
    except BaseException:
        held.close()
        raise
    return held


def _explained(
    error: OSError, address: Address, number: int, protocol: Protocol
) -> ConflictError | InvalidError | DeniedError | UnsupportedError | FailedError:
    match error.errno:
        case errno.EADDRNOTAVAIL:
            return InvalidError(
                f"cannot publish a port on {address}: the host has no such address",
                hint="`ip address` lists those it has; 0.0.0.0 stands for all",
            )
        case errno.EACCES | errno.EPERM:
            return DeniedError(
                f"port {number} of the host may only be used with more privilege",
                hint="publish one from 1024 on: -p 8080:80",
            )
        case errno.EPROTONOSUPPORT | errno.ESOCKTNOSUPPORT:
            return UnsupportedError(f"this host has no {protocol.upper()}")
        case errno.EAFNOSUPPORT:
            return UnsupportedError(f"this host has no IPv{address.version}")
        case _:
            return FailedError(
                f"cannot hold port {number}/{protocol} of {address}: {error.strerror}"
            )


def _holder(number: int, protocol: Protocol) -> str:
    """Who has a socket on a port, as ``NAME (process PID)``; "" when that cannot be seen."""
    inodes = set(_inodes(number, protocol))
    if not inodes:
        return ""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            for name in os.listdir(f"/proc/{pid}/fd"):
                link = os.readlink(f"/proc/{pid}/fd/{name}")
                if link.startswith("socket:[") and link[8:-1] in inodes:
                    with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
                        return f"{file.read().strip()} (process {pid})"
        except OSError:
            continue
    return "a process that cannot be seen from here"


def _inodes(number: int, protocol: Protocol) -> Iterator[str]:
    """The sockets on a port that forbid another: listening or bound ones (proc_net_tcp(5))."""
    for name in (protocol.value, f"{protocol.value}6"):
        try:
            with open(f"/proc/net/{name}", encoding="ascii") as file:
                lines = file.readlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            port = int(fields[1].rpartition(":")[2], 16)
            if port == number and (protocol is not Protocol.TCP or fields[3] == _LISTEN):
                yield fields[9]
