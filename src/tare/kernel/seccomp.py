"""seccomp(2): a filter of system calls for the calling process.

Not for: what a filter says. `model.seccomp_filter` compiles profiles.
"""

from __future__ import annotations

import ctypes
import errno
import os
from ctypes import c_uint, c_void_p
from enum import IntFlag
from typing import Final

from tare.kernel.libc import Syscall, number

_SET_MODE_FILTER: Final = 1
_GET_ACTION_AVAIL: Final = 2
_INSTRUCTION: Final = 8  # sizeof(struct sock_filter)
_MAX_INSTRUCTIONS: Final = 4096  # BPF_MAXINSNS


class FilterFlag(IntFlag):
    """SECCOMP_FILTER_FLAG_*."""

    LOG = 2
    SPEC_ALLOW = 4


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", c_void_p))


_seccomp = Syscall("seccomp", number(x86_64=317, aarch64=277), c_uint, c_uint, c_void_p)


def install(program: bytes, *, log: bool = False) -> None:
    """Filter this thread and all it starts from now on; there is no way back.

    *program* is an array of ``struct sock_filter``. Needs no_new_privs or CAP_SYS_ADMIN in the
    user namespace, else EACCES. *log* lets the audit log name what is refused. SPEC_ALLOW: the
    speculation mitigations are the administrator's choice, not made slower by the filter. Makes
    no import and opens nothing, so it also works as the last step before execve(2).
    """
    if len(program) % _INSTRUCTION or len(program) // _INSTRUCTION > _MAX_INSTRUCTIONS:
        # A longer count would wrap in sock_fprog.len, and a part of the program be installed.
        raise OSError(errno.EINVAL, f"seccomp: {os.strerror(errno.EINVAL)}")
    flags = FilterFlag.SPEC_ALLOW | (FilterFlag.LOG if log else 0)
    # SAFETY: `code` and `argument` live until the call returns; the kernel copies both.
    code = ctypes.create_string_buffer(program, len(program))
    argument = _Program(len(program) // _INSTRUCTION, ctypes.addressof(code))
    _seccomp(_SET_MODE_FILTER, flags, ctypes.byref(argument))


def available(action: int) -> bool:
    """Whether this kernel knows the SECCOMP_RET_* *action*."""
    word = ctypes.c_uint32(action)
    try:
        _seccomp(_GET_ACTION_AVAIL, 0, ctypes.byref(word))
    except OSError:
        return False
    return True
