"""ptrace(2), for one purpose: the seccomp filters that a process really has.

The process is seized, stopped for some microseconds and let go. Needs CAP_SYS_ADMIN in the first
user namespace and a kernel with CONFIG_CHECKPOINT_RESTORE.

Not for: what a filter lets through (model.reach).
"""

from __future__ import annotations

import ctypes
import errno
import os
from ctypes import c_int, c_long, c_void_p
from typing import Final

from tare.kernel.libc import Syscall, number

_DETACH: Final = 17
_SEIZE: Final = 0x4206
_INTERRUPT: Final = 0x4207
_GET_FILTER: Final = 0x420C
_WALL: Final = 0x4000_0000
_INSTRUCTION: Final = 8
_MOST_FILTERS: Final = 64

_ptrace = Syscall("ptrace", number(x86_64=101, aarch64=117), c_long, c_int, c_void_p, c_void_p)


def filters(pid: int) -> list[bytes]:
    """The filters of *pid*'s main thread, each an array of ``struct sock_filter``.

    OSError where the kernel or our rights do not let them be read, or the process has gone. The
    caller's thread is the tracer: no other thread may wait for *pid*.
    """
    subject = f"process {pid}"
    _ptrace(_SEIZE, pid, None, None, subject=subject)
    try:
        _ptrace(_INTERRUPT, pid, None, None, subject=subject)
        _, status = os.waitpid(pid, _WALL)
        if not os.WIFSTOPPED(status):
            raise ProcessLookupError(errno.ESRCH, "ptrace: it ended meanwhile", subject)
        return _read(pid, subject)
    finally:
        try:
            _ptrace(_DETACH, pid, None, None)
        except ProcessLookupError:
            pass  # it ended, or was killed while it stood still


def _read(pid: int, subject: str) -> list[bytes]:
    found: list[bytes] = []
    for index in range(_MOST_FILTERS):
        try:
            length = _ptrace(_GET_FILTER, pid, index, None, subject=subject)
            # SAFETY: the kernel copies `length` instructions; the filter cannot change meanwhile.
            code = ctypes.create_string_buffer(length * _INSTRUCTION)
            _ptrace(_GET_FILTER, pid, index, ctypes.byref(code), subject=subject)
        except FileNotFoundError:
            break  # there are no more
        except OSError as error:
            if error.errno == errno.EINVAL and not found:
                return []  # it has no filter at all
            raise
        found.append(code.raw)
    return found
