"""socket(7), SO_ATTACH_FILTER: datagrams of some senders are dropped before they are queued.

Not for: firewalls. This keeps one sender from filling one socket's queue, nothing more.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Sequence
from ctypes import c_int, c_uint, c_void_p
from typing import Final

from tare.kernel.libc import Libc

MOST: Final = 64
"""How many senders one filter names."""

_SO_ATTACH_FILTER: Final = 26
_SO_DETACH_FILTER: Final = 27
_NETWORK_HEADER: Final = 0xFFF00000  # SKF_NET_OFF: loads count from the IP header
_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K
_ALL: Final = 0xFFFFFFFF
_SOURCE: Final = {4: 12, 16: 8}  # where the sender's address lies in the header, by its length


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", c_void_p))


_setsockopt = Libc("setsockopt", c_int, c_int, c_int, c_void_p, c_uint)


def _instruction(code: int, value: int, true: int = 0, false: int = 0) -> bytes:
    """struct sock_filter."""
    return struct.pack("=HBBI", code, true, false, value)


def program(senders: Sequence[bytes]) -> bytes:
    """A classic BPF program that drops what comes from *senders* (4 or 16 bytes each)."""
    code = b""
    for sender in senders[:MOST]:
        words = struct.unpack(f"!{len(sender) // 4}I", sender)
        for at, word in enumerate(words):
            code += _instruction(_LOAD, _NETWORK_HEADER + _SOURCE[len(sender)] + 4 * at)
            # A difference skips the words left (two instructions each) and the drop.
            code += _instruction(_JUMP_EQUAL, word, 0, 2 * (len(words) - at - 1) + 1)
        code += _instruction(_RETURN, 0)
    return code + _instruction(_RETURN, _ALL)


def drop(receiver: socket.socket, senders: Sequence[bytes]) -> None:
    """Let nothing from *senders* into the queue of *receiver*; none at all lifts the filter."""
    if not senders:
        receiver.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
        return
    content = program(senders)
    # SAFETY: `code` and `argument` live until the call returns; the kernel copies both.
    code = ctypes.create_string_buffer(content, len(content))
    argument = _Program(len(content) // 8, ctypes.addressof(code))
    _setsockopt(
        receiver.fileno(),
        socket.SOL_SOCKET,
        _SO_ATTACH_FILTER,
        ctypes.byref(argument),
        ctypes.sizeof(argument),
    )
