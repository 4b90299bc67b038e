"""netlink(7): messages, attributes, requests in batches, and the kernel's own words for a failure.

`Connection` is what `rtnetlink` (links, addresses, routes) and `nfnetlink` (sets of the packet
filter) are made with. Several messages go over with one system call; each is acknowledged, and
the first that failed is raised as OSError with the text of its extended acknowledgement.

A connection belongs to the network namespace that it was opened in, and stays there.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Collection, Iterable, Iterator
from typing import Final, Self

from tare.kernel import process

NETLINK_ROUTE: Final = 0
NETLINK_NETFILTER: Final = 12

NLM_F_REQUEST: Final = 0x1
NLM_F_ACK: Final = 0x4
NLM_F_REPLACE: Final = 0x100
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400
NLM_F_APPEND: Final = 0x800
NLM_F_DUMP: Final = 0x300
_NLM_F_DUMP_INTR: Final = 0x10
_NLM_F_CAPPED: Final = 0x100
_NLM_F_ACK_TLVS: Final = 0x200

NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_NLMSGERR_ATTR_MSG: Final = 1
_NLA_F_NESTED: Final = 0x8000
_NLA_TYPE_MASK: Final = 0x3FFF

_SOL_NETLINK: Final = 270
_NETLINK_ADD_MEMBERSHIP: Final = 1
_NETLINK_CAP_ACK: Final = 10
_NETLINK_EXT_ACK: Final = 11
_SO_RCVBUFFORCE: Final = 33

_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_BUFFER: Final = 1 << 18

Attributes = dict[int, bytes]


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    length = 4 + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def nested(kind: int, *parts: bytes) -> bytes:
    """An attribute made of attributes."""
    return attribute(kind | _NLA_F_NESTED, b"".join(parts))


def text(kind: int, value: str) -> bytes:
    """An attribute that is a string with its NUL."""
    return attribute(kind, value.encode() + b"\0")


def u8(kind: int, value: int) -> bytes:
    """An attribute of one byte."""
    return attribute(kind, struct.pack("=B", value))


def u16(kind: int, value: int) -> bytes:
    """An attribute of two bytes in the host's order."""
    return attribute(kind, struct.pack("=H", value))


def u32(kind: int, value: int) -> bytes:
    """An attribute of four bytes in the host's order."""
    return attribute(kind, struct.pack("=I", value))


def be32(kind: int, value: int) -> bytes:
    """An attribute of four bytes in network order."""
    return attribute(kind, struct.pack(">I", value))


def parse(data: bytes) -> Attributes:
    """The attributes in *data*; of those with one number the last. Ends at what is malformed."""
    return dict(parse_all(data))


def parse_all(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes in *data* in order, numbers without their flags."""
    offset = 0
    while offset + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4 or offset + length > len(data):
            return
        yield kind & _NLA_TYPE_MASK, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


class Message:
    """One request: its type, flags, fixed part and attributes; *subject* names it in errors."""

    __slots__ = ("body", "flags", "kind", "subject")

    def __init__(self, kind: int, flags: int, body: bytes, subject: str) -> None:
        self.kind, self.flags, self.body, self.subject = kind, flags, body, subject

    def pack(self, sequence: int, extra: int) -> bytes:
        """The bytes that go over."""
        flags = self.flags | NLM_F_REQUEST | extra
        return (
            _HEADER.pack(_HEADER.size + len(self.body), self.kind, flags, sequence, 0)
            + self.body
            + bytes(-len(self.body) % 4)
        )


class Connection:
    """A netlink socket of one protocol, in the namespace where it was made."""

    def __init__(self, protocol: int, *, namespace: int | None = None) -> None:
        """Open one; with *namespace*, a descriptor of a network namespace, in that one."""
        if namespace is None:
            self._socket = _open(protocol)
        else:
            with visiting(namespace):
                self._socket = _open(protocol)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def fileno(self) -> int:
        """Its descriptor."""
        return self._socket.fileno()

    def join(self, group: int) -> None:
        """Receive the notifications of a multicast group from now on."""
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)

    def request(self, *messages: Message, ignore: Collection[int] = ()) -> None:
        """Send *messages* at once and wait for all answers.

        The kernel works them off in order and goes on after a failure. Raises the first failure
        whose errno is not in *ignore*.
        """
        for _, error in self.attempt(messages):
            if error is not None and error.errno not in ignore:
                raise error

    def attempt(self, messages: Iterable[Message]) -> list[tuple[Message, OSError | None]]:
        """Send *messages* at once; each with its failure or None, in order."""
        wanted = list(messages)
        if not wanted:
            return []
        first = self._sequence + 1
        self._sequence += len(wanted)
        self._socket.send(b"".join(m.pack(first + n, NLM_F_ACK) for n, m in enumerate(wanted)))
        answers: list[OSError | None] = [None] * len(wanted)
        left = len(wanted)
        while left:
            for kind, flags, sequence, body in self._receive():
                index = sequence - first
                if kind == NLMSG_ERROR and 0 <= index < len(wanted):
                    answers[index] = failure(body, flags, wanted[index])
                    left -= 1
        return list(zip(wanted, answers, strict=True))

    def dump(self, kind: int, body: bytes, *, subject: str) -> list[tuple[int, bytes]]:
        """All that the kernel lists for a dump request: type and payload of each message."""
        while True:
            self._sequence += 1
            message = Message(kind, 0, body, subject)
            self._socket.send(message.pack(self._sequence, NLM_F_DUMP))
            found, interrupted = self._collect(message)
            if not interrupted:
                return found

    def _collect(self, message: Message) -> tuple[list[tuple[int, bytes]], bool]:
        found: list[tuple[int, bytes]] = []
        interrupted = False
        while True:
            for kind, flags, sequence, body in self._receive():
                if sequence != self._sequence:
                    continue
                interrupted |= bool(flags & _NLM_F_DUMP_INTR)
                if kind == _NLMSG_DONE:
                    return found, interrupted
                if kind == NLMSG_ERROR:
                    error = failure(body, flags, message)
                    if error is not None:
                        raise error
                    return found, interrupted
                found.append((kind, body))

    def notifications(self) -> list[tuple[int, bytes]]:
        """What has come for the groups joined, without waiting; OSError ENOBUFS if some is lost."""
        found: list[tuple[int, bytes]] = []
        while True:
            try:
                data = self._socket.recv(_BUFFER, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return found
            found += [(kind, body) for kind, _, _, body in _messages(data)]

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        return _messages(self._socket.recv(_BUFFER))


def _open(protocol: int) -> socket.socket:
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    opened.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
    opened.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
    try:  # answers to large batches must not be lost
        opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 20)
    except OSError:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    opened.bind((0, 0))
    return opened


@contextlib.contextmanager
def visiting(namespace: int) -> Iterator[None]:
    """Be in the network namespace of that descriptor; only the calling thread goes there.

    What is opened meanwhile stays there: sockets, and the files of /proc/sys/net.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        process.join_namespaces(namespace, process.CLONE_NEWNET)
        try:
            yield
        finally:
            process.join_namespaces(home, process.CLONE_NEWNET)
    finally:
        os.close(home)


def _messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Type, flags, sequence and payload of each message in a datagram."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > len(data):
            return
        yield kind, flags, sequence, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def failure(body: bytes, flags: int, message: Message) -> OSError | None:
    """The error that an acknowledgement carries; None when it says that all is well."""
    (number,) = struct.unpack_from("=i", body)
    if number == 0:
        return None
    words = os.strerror(-number)
    if flags & _NLM_F_ACK_TLVS:
        skip = 4 + _HEADER.size
        if not flags & _NLM_F_CAPPED:
            (length,) = struct.unpack_from("=I", body, 4)
            skip = 4 + ((length + 3) & ~3)
        said = (
            parse(body[skip:]).get(_NLMSGERR_ATTR_MSG, b"").rstrip(b"\0").decode("utf-8", "replace")
        )
        words = f"{words}: {said}" if said else words
    return OSError(-number, f"netlink: {words}", message.subject)
