"""What host and guest say to each other over a machine's serial port: frames and their fields.

::

    frame    length u32, type u8, stream u8, 0 u16, channel u32, then *length* bytes
    fields   key u8, length u32, value; the payload of CONFIGURE and START is a list of them

A channel is one program in the guest: 0 the first one, others are numbered by the host. What a
program writes goes to the host as OUTPUT, as far as the host has granted (GRANT); what it reads
comes as INPUT, as far as the guest has (CREDIT). Each stream begins with `WINDOW`.

The guest is hostile: `Decoder` refuses what is too long or unknown, and `Windows` what was not
granted. Nothing a guest says is ever a path or a number that the host uses.

The other end is vm/guest/; a change here is a change there. Imports next to nothing, for the
relay's sake.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

VERSION: Final = 1
HEADER: Final = struct.Struct("<IBBHI")
MAXIMUM: Final = 1 << 17
"""The longest payload of the guest; CONFIGURE and START, from the host, may be longer."""
CHUNK: Final = 1 << 15
WINDOW: Final = 1 << 18


class ToGuest(IntEnum):
    """What the host says."""

    CONFIGURE = 1
    START = 2
    INPUT = 3
    GRANT = 4
    SIGNAL = 5
    RESIZE = 6
    CLOCK = 7
    STOP = 8
    LIST = 9
    FILES = 10  # an answer to FILES; the channel is the share's number


class ToHost(IntEnum):
    """What the guest says."""

    HELLO = 1
    READY = 2
    STARTED = 3
    FAILED = 4
    OUTPUT = 5
    CREDIT = 6
    EXITED = 7
    BROKEN = 8
    LISTED = 9
    FILES = 10  # a request of FUSE; the channel is the share's number


class Setting(IntEnum):
    """Keys of CONFIGURE."""

    HOSTNAME = 1
    DOMAIN = 2
    LAYERS = 3
    FLAGS = 4
    FILE = 5
    CLOCK = 6
    ENTROPY = 7
    SHM = 8
    SYSCTL = 9
    TMPFS = 10
    NETWORK = 11
    SHARE = 12


class MachineFlag(IntFlag):
    """Bits of `Setting.FLAGS`."""

    VOLATILE = 1
    READ_ONLY = 2
    PRIVILEGED = 4


class Wish(IntEnum):
    """Keys of START."""

    ARG = 1
    ENV = 2
    CWD = 3
    USER = 4
    GROUP = 5
    FLAGS = 6
    CAPABILITIES = 7
    RLIMIT = 8
    SIZE = 9


class ProgramFlag(IntFlag):
    """Bits of `Wish.FLAGS`."""

    TTY = 1
    STDIN = 2
    NO_NEW_PRIVILEGES = 4


class ProtocolError(Exception):
    """The other side said what it may not say; nothing more of it is believed."""


class Frame(NamedTuple):
    """One frame as it came."""

    type: int
    stream: int
    channel: int
    payload: bytes

    def number(self) -> int:
        """The payload as one unsigned number; ProtocolError when it is none."""
        if len(self.payload) != 4:
            raise ProtocolError(f"frame {self.type} without a number")
        return int.from_bytes(self.payload, "little")


def frame(kind: int, payload: bytes = b"", *, channel: int = 0, stream: int = 0) -> bytes:
    """The bytes of one frame."""
    return HEADER.pack(len(payload), kind, stream, 0, channel) + payload


def numbered(kind: int, number: int, *, channel: int = 0, stream: int = 0) -> bytes:
    """A frame whose payload is one number."""
    return frame(kind, number.to_bytes(4, "little"), channel=channel, stream=stream)


def field(key: int, value: bytes | str | int) -> bytes:
    """One field; a number is eight bytes."""
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogateescape")
    elif isinstance(value, int):
        value = value.to_bytes(8, "little")
    return struct.pack("<BI", key, len(value)) + value


class Decoder:
    """Takes bytes as they come, gives whole frames; ProtocolError for what cannot be one."""

    def __init__(self, kinds: type[IntEnum], most: int = MAXIMUM) -> None:
        self._kinds = frozenset(int(kind) for kind in kinds)
        self._most = most
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are complete now."""
        self._buffer += data
        found = []
        while len(self._buffer) >= HEADER.size:
            length, kind, stream, zero, channel = HEADER.unpack_from(self._buffer)
            if length > self._most or kind not in self._kinds or zero:
                raise ProtocolError(f"no frame: type {kind}, {length} bytes")
            end = HEADER.size + length
            if len(self._buffer) < end:
                break
            found.append(Frame(kind, stream, channel, bytes(self._buffer[HEADER.size : end])))
            del self._buffer[:end]
        return found


class Windows:
    """How much a guest may still send on each stream of one channel."""

    def __init__(self) -> None:
        self._left = [WINDOW, WINDOW]

    def take(self, stream: int, length: int) -> None:
        """Account for output; ProtocolError when it is more than was granted."""
        if stream not in (1, 2) or length > self._left[stream - 1]:
            raise ProtocolError("the guest sends more than was granted")
        self._left[stream - 1] -= length

    def grant(self, stream: int, length: int) -> None:
        """Account for what was granted anew."""
        self._left[stream - 1] += length
