"""System calls with a fixed C signature and named failures.

Not for: policy. Each module of ``kernel`` declares the calls of its own man pages with
`Syscall` (by number) or `Libc` (by name). Numbers are those of the architecture at hand.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

# PyDLL keeps the GIL during a call: clone3 in a child that must not wait for another thread's
# lock needs that. Calls that may block for long go through ``os`` instead.
_LIBC: Final = ctypes.PyDLL(None, use_errno=True)

MACHINE: Final = os.uname().machine


def _fail(name: str, subject: str) -> OSError:
    errno = ctypes.get_errno()
    return OSError(errno, f"{name}: {os.strerror(errno)}", subject or None)


class Syscall:
    """One system call by number, its C signature fixed once, its failures named."""

    __slots__ = ("_call", "_name", "_number")

    def __init__(self, name: str, number: int, *argtypes: type) -> None:
        # Item access makes a fresh function object.  Attribute access would hand out one
        # shared object, and the next Syscall would overwrite its argtypes.
        self._call = _LIBC["syscall"]
        self._call.argtypes = (ctypes.c_long, *argtypes)
        self._call.restype = ctypes.c_long
        self._name, self._number = name, number

    def __call__(self, *arguments: object, subject: str = "") -> int:
        """Make the call; on failure raise OSError naming the call and its *subject*."""
        result: int = self._call(self._number, *arguments)
        if result == -1:
            raise _fail(self._name, subject)
        return result


class Libc:
    """One function of the C library that returns an int and sets errno on -1."""

    __slots__ = ("_call", "_name")

    def __init__(self, name: str, *argtypes: type) -> None:
        self._call = _LIBC[name]
        self._call.argtypes = argtypes
        self._call.restype = ctypes.c_int
        self._name = name

    def __call__(self, *arguments: object, subject: str = "") -> int:
        """Make the call; on failure raise OSError naming the call and its *subject*."""
        result: int = self._call(*arguments)
        if result == -1:
            raise _fail(self._name, subject)
        return result


def number(*, x86_64: int, aarch64: int) -> int:
    """The number of a call that differs between architectures."""
    return aarch64 if MACHINE == "aarch64" else x86_64
