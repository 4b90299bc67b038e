"""Real packets between network namespaces: who reaches whom, and frames no honest host sends."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from harness.namespaces import Host

PATIENCE: Final = 30.0
REFUSAL: Final = 0.6
"""How long a packet that must not arrive is waited for; on a slow host a test may only miss it."""

ETH_P_ALL: Final = 0x0003
ARP: Final = 0x0806
IPV4: Final = 0x0800
IPV6: Final = 0x86DD


def family(address: str) -> socket.AddressFamily:
    """Of an address as text."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


@contextlib.contextmanager
def _where(host: Host | None) -> Iterator[None]:
    if host is None:
        yield
    else:
        with host.inside():
            yield


def listen(host: Host | None, port: int, address: str = "::") -> socket.socket:
    """A TCP socket that listens in *host*, or here; of both families unless *address* says one."""
    with _where(host):
        server = socket.socket(family(address))
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, port))
        server.listen(64)
        server.settimeout(PATIENCE)
        return server


def bound(host: Host | None, port: int = 0, address: str = "::") -> socket.socket:
    """A UDP socket in *host*, or here."""
    with _where(host):
        made = socket.socket(family(address), socket.SOCK_DGRAM)
        made.bind((address, port))
        made.settimeout(PATIENCE)
        return made


def reach(server: socket.socket, host: Host | None, address: str, port: int) -> str:
    """Connect from *host* to *address*: who the server sees, after words went both ways."""
    with _where(host):
        client = socket.socket(family(address))
    with client:
        client.settimeout(PATIENCE)
        client.connect((address, port))
        accepted, peer = server.accept()
        with accepted:
            accepted.sendall(b"hello")
            assert client.recv(5) == b"hello"
            client.sendall(b"thanks")
            assert accepted.recv(6) == b"thanks"
    return str(peer[0]).removeprefix("::ffff:")


def refused(host: Host | None, address: str, port: int) -> str:
    """Why a connection from *host* does not come about; "" when it does."""
    with _where(host):
        client = socket.socket(family(address))
    with client:
        client.settimeout(REFUSAL)
        try:
            client.connect((address, port))
        except OSError as error:
            return str(error)
    return ""


@dataclass
class Wire:
    """A packet socket on one interface of a host: sends and sees whole frames."""

    host: Host
    interface: str = "eth0"

    def __post_init__(self) -> None:
        with self.host.inside():
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            self.socket.bind((self.interface, 0))
            self.socket.settimeout(PATIENCE)
            self.mac: bytes = self.socket.getsockname()[4]

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, frame: bytes) -> None:
        """Put a frame on the link as it is."""
        self.socket.send(frame)

    def until(self, mark: bytes) -> list[bytes]:
        """All incoming frames up to the one that holds *mark*."""
        seen = []
        while True:
            frame, where = self.socket.recvfrom(65536)
            if where[2] == socket.PACKET_OUTGOING:
                continue
            seen.append(frame)
            if mark in frame:
                return seen


def mac(text: str) -> bytes:
    """The bytes of a MAC address."""
    return bytes.fromhex(text.replace(":", ""))


BROADCAST: Final = b"\xff" * 6


def ethernet(to: bytes, sender: bytes, kind: int, payload: bytes) -> bytes:
    """A frame, filled up to its least length."""
    return (to + sender + struct.pack(">H", kind) + payload).ljust(60, b"\0")


def arp(operation: int, sender: bytes, sender_ip: str, target: bytes, target_ip: str) -> bytes:
    """RFC 826; operation 1 asks, 2 answers."""
    return (
        struct.pack(">HHBBH", 1, IPV4, 6, 4, operation)
        + sender + socket.inet_aton(sender_ip) + target + socket.inet_aton(target_ip)
    )  # fmt: skip


def checksum(data: bytes) -> int:
    """RFC 1071."""
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(~total & 0xFFFF)


def udp4(source: str, to: str, sport: int, dport: int, payload: bytes) -> bytes:
    """An IPv4 packet with a datagram without checksum."""
    datagram = struct.pack(">HHHH", sport, dport, 8 + len(payload), 0) + payload
    head = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, 20 + len(datagram), 1, 0, 64, 17, 0,
        socket.inet_aton(source), socket.inet_aton(to),
    )  # fmt: skip
    head = head[:10] + struct.pack(">H", checksum(head)) + head[12:]
    return head + datagram


def icmp6(source: str, to: str, body: bytes, *, before: bytes = b"", kind: int = 58) -> bytes:
    """An IPv6 packet with an ICMPv6 message, its checksum filled in; *before* is inserted ahead.

    *kind* is the number of the first header of *before*.
    """
    ends = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, to)
    total = checksum(ends + struct.pack(">II", len(body), 58) + body)
    message = body[:2] + struct.pack(">H", total) + body[4:]
    length = len(before) + len(message)
    return struct.pack(">IHBB", 6 << 28, length, kind, 255) + ends + before + message


def advertisement(target: str, sender: bytes) -> bytes:
    """A neighbour advertisement (RFC 4861, 4.4): solicited, override."""
    packed = socket.inet_pton(socket.AF_INET6, target)
    return struct.pack(">BBHI", 136, 0, 0, 0x60000000) + packed + b"\x02\x01" + sender


def router_advertisement(prefix: str) -> bytes:
    """A router advertisement (RFC 4861, 4.2) with one prefix to take an address from."""
    packed = socket.inet_pton(socket.AF_INET6, prefix)
    head = struct.pack(">BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
    return head + struct.pack(">BBBBIII", 3, 4, 64, 0xC0, 86400, 86400, 0) + packed
