"""Messages between daemon and keeper: JSON with descriptors, on a unix stream socket.

A message is a 4-byte length, then that many bytes of JSON. Descriptors go with its first byte
(SCM_RIGHTS, unix(7)); the kernel never merges two such writes in one read, so they arrive in
order. The JSON says in ``fds`` how many are its own.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
from collections import deque
from typing import Any, Final

_LENGTH: Final = struct.Struct("<I")
VERSION: Final = 4
"""Changes with what daemon and keeper say to each other; a keeper of another one is replaced."""

MAXIMUM: Final = 16 << 20
_READ: Final = 1 << 17
_MAXIMUM_FDS: Final = 250

Message = dict[str, Any]
"""One message; each reader checks the fields it takes."""


class Receiver:
    """Puts messages together from what a socket gives."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = bytearray()
        self._descriptors: deque[int] = deque()

    def receive(self) -> list[tuple[Message, list[int]]]:
        """The messages that are complete now; raises EOFError when the peer is gone."""
        space = socket.CMSG_LEN(_MAXIMUM_FDS * 4)
        try:
            data, ancillary, flags, _ = self._connection.recvmsg(
                _READ, space, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return []
        except ConnectionResetError:
            data, ancillary, flags = b"", [], 0
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
                self._descriptors.extend(numbers)
        if flags & socket.MSG_CTRUNC:
            raise EOFError("descriptors were lost")
        if not data:
            raise EOFError
        self._buffer += data
        return self._complete()

    def _complete(self) -> list[tuple[Message, list[int]]]:
        messages = []
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > MAXIMUM:
                raise EOFError("message too long")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                break
            message: Message = json.loads(bytes(self._buffer[_LENGTH.size : end]))
            del self._buffer[:end]
            fds = [self._descriptors.popleft() for _ in range(int(message.get("fds", 0)))]
            messages.append((message, fds))
        return messages

    def close(self) -> None:
        """Close descriptors that no message claimed."""
        while self._descriptors:
            os.close(self._descriptors.popleft())


def encode(message: Message) -> bytes:
    """The bytes of *message*."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return _LENGTH.pack(len(body)) + body


class Sender:
    """Sends messages; what does not fit waits for `flush` (when the socket is writable)."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._waiting: deque[tuple[bytes, list[int]]] = deque()

    @property
    def waiting(self) -> bool:
        """Whether something could not be sent yet."""
        return bool(self._waiting)

    def send(self, message: Message, descriptors: list[int]) -> None:
        """Send now, or as soon as possible; *descriptors* are duplicated, the caller's stay."""
        copies = [os.dup(descriptor) for descriptor in descriptors]
        self._waiting.append((encode(message | {"fds": len(copies)}), copies))
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as the socket takes it; raises OSError when the peer is gone."""
        while self._waiting:
            data, descriptors = self._waiting[0]
            ancillary = []
            if descriptors:
                rights = array.array("i", descriptors)
                ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
            try:
                sent = self._connection.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            for descriptor in descriptors:
                os.close(descriptor)
            if sent < len(data):
                self._waiting[0] = (data[sent:], [])
                return
            self._waiting.popleft()

    def close(self) -> None:
        """Drop what waits."""
        for _, descriptors in self._waiting:
            for descriptor in descriptors:
                os.close(descriptor)
        self._waiting.clear()
