"""Giving up privilege: capabilities(7), no_new_privs, ids.

The order that callers keep: bounding set, groups and ids, effective set, seccomp,
no_new_privs, exec (docs/threat-model.md, "Construction").
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from ctypes import c_int, c_uint32, c_ulong
from typing import Final

from tare.kernel.libc import Libc, Syscall, number

# linux/capability.h, in order.
CAPABILITIES: Final = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID",
    "SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW",
    "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT",
    "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD",
    "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG",
    "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
)  # fmt: skip

_PR_SET_KEEPCAPS: Final = 8
_PR_SET_SECUREBITS: Final = 28
_SECBIT_NO_SETUID_FIXUP: Final = 1 << 2
_PR_CAPBSET_READ: Final = 23
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_CAPABILITY_VERSION_3: Final = 0x20080522


class _Header(ctypes.Structure):
    _fields_ = (("version", c_uint32), ("pid", c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", c_uint32), ("permitted", c_uint32), ("inheritable", c_uint32))


_prctl = Libc("prctl", c_int, c_ulong, c_ulong, c_ulong, c_ulong)
_capset = Syscall(
    "capset",
    number(x86_64=126, aarch64=91),
    ctypes.POINTER(_Header),
    ctypes.POINTER(_Data),
)
_capget = Syscall(
    "capget",
    number(x86_64=125, aarch64=90),
    ctypes.POINTER(_Header),
    ctypes.POINTER(_Data),
)


_setfsuid = Syscall("setfsuid", number(x86_64=122, aarch64=151), c_uint32)
_setfsgid = Syscall("setfsgid", number(x86_64=123, aarch64=152), c_uint32)


def last_capability() -> int:
    """The highest capability number that the running kernel knows."""
    with open("/proc/sys/kernel/cap_last_cap", "rb") as file:
        return int(file.read())


def mask(names: frozenset[str]) -> int:
    """The bit mask of capability *names* (upper case, without ``CAP_``)."""
    return sum(1 << CAPABILITIES.index(name) for name in names)


def drop_bounding(keep: int, last: int) -> None:
    """Drop from the bounding set every capability up to *last* that is not in *keep*."""
    for capability in range(last + 1):
        if not keep >> capability & 1:
            _prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


def bounding(last: int) -> int:
    """The mask of the calling thread's bounding set."""
    return sum(_prctl(_PR_CAPBSET_READ, c, 0, 0, 0) << c for c in range(last + 1))


def effective() -> int:
    """The mask of the calling thread's effective set."""
    header = _Header(_CAPABILITY_VERSION_3, 0)
    data = (_Data * 2)()
    # SAFETY: version 3 reads two data elements.
    _capget(ctypes.byref(header), data)
    low: int = data[0].effective
    high: int = data[1].effective
    return low | high << 32


def set_capabilities(effective: int) -> None:
    """capset(2): effective and permitted become *effective*, inheritable becomes empty."""
    header = _Header(_CAPABILITY_VERSION_3, 0)
    low, high = effective & 0xFFFFFFFF, effective >> 32
    data = (_Data * 2)(_Data(low, low, 0), _Data(high, high, 0))
    # SAFETY: version 3 reads two data elements.
    _capset(ctypes.byref(header), data)


def clear_ambient() -> None:
    """PR_CAP_AMBIENT_CLEAR_ALL."""
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)


def become(uid: int, gid: int, groups: list[int], capabilities: int) -> None:
    """Take on the identity; only uid 0 keeps *capabilities*, as with Docker.

    Groups before gid before uid: each needs a privilege that a later one gives up. Reads the
    result back and raises PermissionError if the kernel did not do it.
    """
    # The engine may lack some itself; what it has not got, nobody gets.
    kept = capabilities & effective() if uid == 0 else 0
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    _prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setresuid(uid, uid, uid)
    _prctl(_PR_SET_KEEPCAPS, 0, 0, 0, 0)
    set_capabilities(kept)
    clear_ambient()
    if os.getresuid() != (uid,) * 3 or os.getresgid() != (gid,) * 3:
        raise PermissionError("the kernel did not change the ids")
    if effective() != kept:
        raise PermissionError("the kernel did not change the capabilities")


@contextlib.contextmanager
def acting_as(uid: int, gid: int) -> Iterator[None]:
    """setfsuid(2), setfsgid(2): make files as *uid*, with all capabilities; this thread only.

    The system calls themselves, because the C library's setters act on every thread.
    """
    if (uid, gid) == (0, 0):
        yield
        return
    _prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
    try:
        _setfsgid(gid)
        _setfsuid(uid)
        yield
    finally:
        _setfsuid(0)
        _setfsgid(0)
        _prctl(_PR_SET_SECUREBITS, 0, 0, 0, 0)


def no_new_privileges() -> None:
    """PR_SET_NO_NEW_PRIVS: no exec from here on gives privilege."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
