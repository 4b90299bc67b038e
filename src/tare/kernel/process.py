"""Processes: clone3(2), namespaces, pidfds, exec by descriptor.

`spawn` is only safe in a single-threaded process: the child goes on in the same Python
interpreter with the GIL held, so no other thread may hold any lock.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import struct
from collections.abc import Iterator
from ctypes import c_char_p, c_int, c_size_t, c_uint, c_uint64, c_ulong
from typing import Final

from tare.kernel.libc import Libc, Syscall, number

CLONE_NEWTIME: Final = 0x00000080
CLONE_PARENT: Final = 0x00008000
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000
_CLONE_PIDFD: Final = 0x00001000
_CLONE_INTO_CGROUP: Final = 0x200000000

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NAME: Final = 15
_PR_SET_SECUREBITS: Final = 28
_SECBIT_NO_SETUID_FIXUP: Final = 1 << 2

_CLOSE_RANGE_CLOEXEC: Final = 4
_KEYCTL_JOIN_SESSION_KEYRING: Final = 1

# linux/pidfd.h, PIDFD_GET_INFO: _IOWR(0xFF, 11, struct pidfd_info), kernel 6.13; EXIT 6.15.
_PIDFD_INFO_SIZE: Final = 64
_PIDFD_GET_INFO: Final = (3 << 30) | (_PIDFD_INFO_SIZE << 16) | (0xFF << 8) | 11
_PIDFD_INFO_EXIT: Final = 1 << 3


class _CloneArgs(ctypes.Structure):
    _fields_ = tuple(
        (name, c_uint64)
        for name in (
            "flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size",
            "tls", "set_tid", "set_tid_size", "cgroup",
        )
    )  # fmt: skip


_clone3 = Syscall("clone3", 435, ctypes.POINTER(_CloneArgs), c_size_t)
_setns = Libc("setns", c_int, c_int)
_unshare = Libc("unshare", c_int)
_prctl = Libc("prctl", c_int, c_ulong, c_ulong, c_ulong, c_ulong)
_prctl_name = Libc("prctl", c_int, c_char_p, c_ulong, c_ulong, c_ulong)
_close_range = Syscall("close_range", 436, c_uint, c_uint, c_uint)
_execveat = Syscall(
    "execveat",
    number(x86_64=322, aarch64=281),
    c_int, c_char_p, ctypes.POINTER(c_char_p), ctypes.POINTER(c_char_p), c_int,
)  # fmt: skip
_keyctl = Syscall("keyctl", number(x86_64=250, aarch64=219), c_int, c_char_p)


def spawn(flags: int, *, cgroup: int | None = None) -> tuple[int, int]:
    """clone3(2) as fork: (0, -1) in the child, (pid, pidfd) in the parent.

    *cgroup* is the descriptor of a v2 group to be born in.
    """
    pidfd = c_int(-1)
    # clone3(2): with CLONE_PARENT the exit signal is the parent's own and must not be given.
    exit_signal = 0 if flags & CLONE_PARENT else signal.SIGCHLD
    arguments = _CloneArgs(flags=flags | _CLONE_PIDFD, exit_signal=exit_signal)
    arguments.pidfd = ctypes.addressof(pidfd)
    if cgroup is not None:
        arguments.flags |= _CLONE_INTO_CGROUP
        arguments.cgroup = cgroup
    # SAFETY: no CLONE_VM, so the child has its own copy of everything; both structures live
    # until the call returns. PyDLL keeps the GIL, and this process has one thread.
    pid = _clone3(ctypes.byref(arguments), ctypes.sizeof(arguments))
    return (pid, pidfd.value) if pid else (0, -1)


@contextlib.contextmanager
def owning(uid: int) -> Iterator[None]:
    """Act as *uid*, with the caller's capabilities; 0 changes nothing.

    A user namespace made meanwhile belongs to *uid*, so what its processes use of per-user limits
    (inotify instances, keys, namespaces) counts against *uid* and not the caller (attack A48).
    """
    caller = os.geteuid()
    if uid == 0:
        yield
        return
    try:
        _prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
    except PermissionError:  # no CAP_SETPCAP: the limits stay shared, nothing else changes
        yield
        return
    try:
        os.setresuid(-1, uid, -1)
        yield
    finally:
        os.setresuid(-1, caller, -1)
        _prctl(_PR_SET_SECUREBITS, 0, 0, 0, 0)


def join_namespaces(descriptor: int, kinds: int) -> None:
    """setns(2) with a pidfd (*kinds* a mask of CLONE_NEW*) or a namespace descriptor."""
    _setns(descriptor, kinds)


def unshare(kinds: int) -> None:
    """unshare(2)."""
    _unshare(kinds)


def die_with_parent() -> None:
    """PR_SET_PDEATHSIG SIGKILL."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def set_dumpable(*, dumpable: bool) -> None:
    """PR_SET_DUMPABLE: off, no other process may look into this one."""
    _prctl(_PR_SET_DUMPABLE, int(dumpable), 0, 0, 0)


def set_name(name: str) -> None:
    """PR_SET_NAME: what ps shows as the command."""
    _prctl_name(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def close_on_exec_from(first: int) -> None:
    """close_range(2): mark every descriptor from *first* up close-on-exec."""
    _close_range(first, 0xFFFFFFFF, _CLOSE_RANGE_CLOEXEC)


def new_session_keyring() -> None:
    """keyctl(2) KEYCTL_JOIN_SESSION_KEYRING: an own, empty, anonymous session keyring."""
    _keyctl(_KEYCTL_JOIN_SESSION_KEYRING, None)


def execute(descriptor: int, arguments: list[bytes], environment: list[bytes]) -> None:
    """execveat(2) with AT_EMPTY_PATH; returns only by OSError."""
    argv = (c_char_p * (len(arguments) + 1))(*arguments, None)
    envp = (c_char_p * (len(environment) + 1))(*environment, None)
    # SAFETY: both arrays end in NULL and live until the call replaces this process or fails.
    _execveat(descriptor, b"", argv, envp, 0x1000)


def start_time(pid: int) -> int:
    """Clock ticks after boot at which *pid* started, proc_pid_stat(5) field 22.

    With the pid it names a process for ever. ProcessLookupError if there is none.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except FileNotFoundError as error:
        raise ProcessLookupError(f"no process {pid}") from error
    return int(stat[stat.rindex(b")") + 2 :].split()[19])


def exit_status(pidfd: int) -> int | None:
    """The wait status of the ended process behind *pidfd*, whoever is its parent.

    None when it still runs, or the kernel (before 6.15) forgot it when it was reaped.
    """
    buffer = bytearray(struct.pack("=Q", _PIDFD_INFO_EXIT) + bytes(_PIDFD_INFO_SIZE - 8))
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, buffer)
    except OSError:
        return _zombie_status(pidfd)
    mask: int = struct.unpack_from("=Q", buffer)[0]
    if not mask & _PIDFD_INFO_EXIT:
        return _zombie_status(pidfd)
    # struct pidfd_info: mask, cgroupid (8 each), pid, tgid, ppid, eight ids (4 each), exit_code
    code: int = struct.unpack_from("=i", buffer, 16 + 11 * 4)[0]
    return code


def _zombie_status(pidfd: int) -> int | None:
    """The status of one that nobody has reaped yet: proc_pid_stat(5), field 52."""
    try:
        with open(f"/proc/self/fdinfo/{pidfd}", "rb") as file:
            words = file.read().split()
        pid = int(words[words.index(b"Pid:") + 1])
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (OSError, ValueError):
        return None
    return int(fields[49]) if fields[0] == b"Z" else None


def exit_code(status: int) -> int:
    """The shell's number for a wait status: the exit code, or 128 and the signal."""
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def in_user_namespace() -> bool:
    """Whether this process's ids are mapped: it runs in a user namespace that is not the first."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        return file.read().split() != ["0", "0", "4294967295"]
