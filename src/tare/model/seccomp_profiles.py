"""tare's own seccomp profiles: every system call of Linux in exactly one readable group.

Not for: profiles of users (`seccomp.parse_profile`), or numbers (`syscalls`).

=============  ====================================================================
standard       the default: what Docker allows, minus what docs/threat-model.md names
hardened       standard without ptrace, modify_ldt, 32-bit programs, most of netlink
docker-compat  Docker's own default, for images that need exactly that
=============  ====================================================================

The groups of ``standard``:

* allowed: harmless, or the kernel itself checks well enough;
* allowed with a capability;
* refused with EPERM: they exist, and a container is not to have them;
* absent, ENOSYS: gone from the kernel, or so new or so risky that programs do better with their
  fall-back (clone3, whose flags a filter cannot see; io_uring, which passes by every filter);
* decided by arguments (`_by_arguments`).

A call in none of them is one that this table does not know; it answers ENOSYS too.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from functools import cache
from typing import Final

from tare.errors import InvalidError
from tare.model.seccomp import ENOSYS, EPERM, Comparison, Condition, Op, Profile, Ret, Rule

ALLOWED: Final = """
accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32
clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64
clock_nanosleep clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2
dup3 epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2
execve execveat exit exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate
fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync
fgetxattr file_getattr file_setattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64
fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64
futex_wait futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu getcwd
getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32
getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32
getresuid getresuid32 getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday
getuid getuid32 getxattr getxattrat inotify_add_watch inotify_init inotify_init1
inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup
io_submit ioprio_get ioprio_set ipc kill landlock_add_rule landlock_create_ruleset
landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listxattr listxattrat
llistxattr _llseek lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack membarrier
memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2
mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend
mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall
munmap name_to_handle_at nanosleep newfstatat _newselect open openat openat2 pause pidfd_open
pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl
pread64 preadv preadv2 prlimit64 process_mrelease pselect6 pselect6_time64 pwrite64 pwritev
pwritev2 read readahead readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg
remap_file_pages removexattr removexattrat rename renameat renameat2 restart_syscall rmdir rseq
rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max
sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler
sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr
sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop
semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto set_robust_list
set_thread_area set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups
setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid
setresuid32 setreuid setreuid32 setrlimit setsid setsockopt setuid setuid32 setxattr setxattrat
shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 sigprocmask sigreturn splice
stat stat64 statfs statfs64 statx symlink symlinkat sync sync_file_range sync_file_range2 syncfs
sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64
timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime
timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat
uprobe uretprobe utime utimensat utimensat_time64 utimes vfork wait4 waitid waitpid write writev
"""

# Calls that only one family of processors has, by Docker's name for it.
ALLOWED_ON: Final = {
    "amd64": "arch_prctl",
    "arm": "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush get_tls set_tls",
    "arm64": "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush get_tls set_tls",
}
LDT: Final = "modify_ldt"
TRACING: Final = "process_vm_readv process_vm_writev ptrace"

WITH_CAPABILITY: Final = {
    "SYS_ADMIN": "bpf clone3 fanotify_init fsconfig fsmount fsopen fspick listmount "
    "lookup_dcookie mount mount_setattr move_mount open_tree open_tree_attr perf_event_open "
    "quotactl quotactl_fd setdomainname sethostname setns statmount syslog umount umount2 unshare",
    "BPF": "bpf",
    "DAC_READ_SEARCH": "open_by_handle_at",
    "PERFMON": "perf_event_open",
    "SYS_BOOT": "reboot",
    "SYS_CHROOT": "chroot",
    "SYS_MODULE": "delete_module finit_module init_module",
    "SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "SYS_PACCT": "acct",
    "SYS_PTRACE": "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    "SYS_RAWIO": "ioperm iopl",
    "SYS_TIME": "clock_settime clock_settime64 settimeofday stime",
    "SYS_TTY_CONFIG": "vhangup",
    "SYSLOG": "syslog",
}

REFUSED: Final = """
add_key keyctl request_key
kexec_file_load kexec_load
migrate_pages move_pages
nice oldfstat oldlstat oldolduname oldstat olduname readdir sgetmask sigaction signal sigpending
sigsuspend ssetmask
pciconfig_iobase pciconfig_read pciconfig_write usr26 usr32 vm86 vm86old
pivot_root swapoff swapon
sysfs ustat userfaultfd vmsplice
"""

ABSENT: Final = """
clone3
io_uring_enter io_uring_register io_uring_setup
_sysctl afs_syscall bdflush break create_module epoll_ctl_old epoll_wait_old ftime
get_kernel_syms getpmsg gtty idle lock mpx nfsservctl prof profil putpmsg query_module security
stty tuxcall ulimit uselib vserver
fchroot listmount listns lsm_get_self_attr lsm_list_modules lsm_set_self_attr rseq_slice_yield
statmount
"""

BY_ARGUMENTS: Final = "clone ioctl personality socket socketcall socketpair"

# Address families, linux/socket.h. The first five are for everyone; others are asked for by name.
FAMILIES: Final = {
    "unix": 1,
    "inet": 2,
    "inet6": 10,
    "netlink": 16,
    "packet": 17,
    "ax25": 3,
    "ipx": 4,
    "appletalk": 5,
    "netrom": 6,
    "atmpvc": 8,
    "x25": 9,
    "rose": 11,
    "key": 15,
    "atmsvc": 20,
    "rds": 21,
    "pppox": 24,
    "llc": 26,
    "ib": 27,
    "mpls": 28,
    "can": 29,
    "tipc": 30,
    "bluetooth": 31,
    "rxrpc": 33,
    "phonet": 35,
    "ieee802154": 36,
    "caif": 37,
    "alg": 38,
    "nfc": 39,
    "vsock": 40,
    "kcm": 41,
    "qipcrtr": 42,
    "smc": 43,
    "xdp": 44,
    "mctp": 45,
}
_EVERYONES: Final = ("unix", "inet", "inet6", "netlink", "packet")
_NETLINK_ROUTE: Final = 0
_NETLINK_AUDIT: Final = 9

_CLONE_NEW: Final = 0x7E02_0000  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}
# PER_LINUX and PER_LINUX32, each also with UNAME26; and the question which one is set.
_PERSONALITIES: Final = (0, 8, 0x2_0000, 0x2_0008, 0xFFFF_FFFF)
# Both put words into the mouth of the terminal's owner.
_TIOCSTI: Final = 0x5412
_TIOCLINUX: Final = 0x541C

_ARCHITECTURES: Final = (("x86_64", ("i386",)), ("aarch64", ("arm",)))
_COMPAT_ARCHITECTURES: Final = (("x86_64", ("i386", "x32")), ("aarch64", ("arm",)))
_NATIVE_ONLY: Final = (("x86_64", ()), ("aarch64", ()))


_ALWAYS: Final = Condition()


def _caps(*names: str) -> Condition:
    return Condition(caps=frozenset(names))


def _allow(
    names: str,
    *args: Comparison,
    includes: Condition = _ALWAYS,
    excludes: Condition = _ALWAYS,
) -> Rule:
    return Rule(tuple(names.split()), Ret.ALLOW, args, includes, excludes)


def _equal(index: int, value: int) -> Comparison:
    return Comparison(index, Op.EQ, value)


def family_numbers(families: Iterable[str]) -> tuple[int, ...]:
    """The numbers of address families given by name or number; InvalidError for another word."""
    result: list[int] = []
    for word in families:
        number = int(word) if word.isdecimal() and len(word) < 4 else FAMILIES.get(word.lower())
        if number is None:
            raise InvalidError(
                f"there is no socket family {word[:40]!r}",
                hint="Known are " + ", ".join(sorted(FAMILIES)) + ", or a number.",
            )
        result.append(number)
    return tuple(sorted(set(result)))


def _netlink(*, route_only: bool) -> list[Rule]:
    """Rules for AF_NETLINK.

    Without CAP_AUDIT_WRITE the audit protocol answers EINVAL, which PAM and sshd take to mean
    that the kernel has no audit; EPERM would end a login. The comparisons exclude each other, so
    that the rules mean the same to libseccomp, which has no order.
    """
    netlink, audit = _equal(0, FAMILIES["netlink"]), _equal(2, _NETLINK_AUDIT)
    rest = _equal(2, _NETLINK_ROUTE) if route_only else Comparison(2, Op.NE, _NETLINK_AUDIT)
    writer = _caps("AUDIT_WRITE")
    return [
        _allow("socket", netlink, rest),
        _allow("socket", netlink, audit, includes=writer),
        Rule(("socket",), Ret.ERRNO | errno.EINVAL, (netlink, audit), excludes=writer),
    ]


def _sockets(families: tuple[int, ...], *, hardened: bool) -> list[Rule]:
    """Rules for socket(2) and socketpair(2), which both create sockets of their family."""
    netlink, packet = FAMILIES["netlink"], FAMILIES["packet"]
    rules: list[Rule] = []
    everyones = {FAMILIES[name] for name in _EVERYONES}
    for family in sorted(everyones.union(families)):
        needs_raw = hardened and family == packet and family not in families
        condition = _caps("NET_RAW") if needs_raw else _ALWAYS
        names = "socketpair" if family == netlink else "socket socketpair"
        rules.append(_allow(names, _equal(0, family), includes=condition))
    # Last: libseccomp refuses a second verdict for socket(2) of i386 before the others are there.
    return rules + _netlink(route_only=hardened and netlink not in families)


def _by_arguments(families: tuple[int, ...], *, hardened: bool) -> list[Rule]:
    """Rules for the calls whose arguments decide."""
    admin = _caps("SYS_ADMIN")
    no_namespaces = Comparison(0, Op.MASKED_EQ, _CLONE_NEW, 0)
    between = range(_TIOCSTI + 1, _TIOCLINUX)
    return [
        _allow("clone", no_namespaces, excludes=admin),
        _allow("clone", includes=admin),
        *(_allow("personality", _equal(0, value)) for value in _PERSONALITIES),
        *_sockets(families, hardened=hardened),
        _allow("ioctl", Comparison(1, Op.LT, _TIOCSTI)),
        _allow("ioctl", Comparison(1, Op.GT, _TIOCLINUX)),
        # One rule each: two bounds in one rule are alternatives to other OCI runtimes.
        *(_allow("ioctl", _equal(1, command)) for command in between),
    ]


def _own(*, hardened: bool, ia32: bool, families: tuple[int, ...]) -> Profile:
    rules = [_allow(ALLOWED)]
    rules += [
        _allow(names, includes=Condition(arches=frozenset({arch})))
        for arch, names in ALLOWED_ON.items()
    ]
    if not hardened:
        # Before 4.8 a tracer could change a call after the filter had passed it.
        rules.append(_allow(TRACING, includes=Condition(min_kernel=(4, 8))))
        rules.append(_allow(LDT, includes=Condition(arches=frozenset({"amd64"}))))
    rules += _by_arguments(families, hardened=hardened)
    if ia32:
        rules.append(_allow("socketcall"))
    admin = frozenset(WITH_CAPABILITY["SYS_ADMIN"].split())
    absent = ABSENT.split()
    rules.append(Rule(tuple(name for name in absent if name not in admin), ENOSYS))
    unless_admin = tuple(name for name in absent if name in admin)
    rules.append(Rule(unless_admin, ENOSYS, excludes=_caps("SYS_ADMIN")))
    rules += [_allow(names, includes=_caps(cap)) for cap, names in WITH_CAPABILITY.items()]
    # The default says the same; naming them says that this table knows them.
    rules.append(Rule(tuple(f"{REFUSED} {LDT} {TRACING} {BY_ARGUMENTS}".split()), EPERM))
    return Profile(EPERM, tuple(rules), _NATIVE_ONLY if hardened and not ia32 else _ARCHITECTURES)


@cache
def standard_profile(
    *, allow_abi_ia32: bool = False, socket_families: tuple[str, ...] = ()
) -> Profile:
    """The default profile.

    *allow_abi_ia32* also allows socketcall(2), whose arguments a filter cannot see: old 32-bit
    programs need it, and it opens every socket family to all. *socket_families* are names of
    `FAMILIES` or numbers.
    """
    families = family_numbers(socket_families)
    return _own(hardened=False, ia32=allow_abi_ia32, families=families)


@cache
def hardened_profile(
    *, allow_abi_ia32: bool = False, socket_families: tuple[str, ...] = ()
) -> Profile:
    """Less than `standard_profile`: no ptrace, LDT, 32-bit programs; of netlink only ROUTE."""
    families = family_numbers(socket_families)
    return _own(hardened=True, ia32=allow_abi_ia32, families=families)


_COMPAT_WITHOUT: Final = """
file_getattr file_setattr getxattrat listxattrat mseal removexattrat setxattrat sync_file_range2
uprobe uretprobe
"""
_COMPAT_ONLY: Final = "epoll_ctl_old epoll_wait_old ioctl socketcall socketpair vmsplice"
_COMPAT_ADMIN_WITHOUT: Final = frozenset({"listmount", "open_tree_attr", "statmount"})


@cache
def docker_compat_profile() -> Profile:
    """Docker's default, with AF_ALG refused as its newest release has it."""
    allowed = [name for name in ALLOWED.split() if name not in _COMPAT_WITHOUT.split()]
    admin = _caps("SYS_ADMIN")
    intel = Condition(arches=frozenset({"amd64"}))
    rules = [
        _allow(" ".join([*allowed, _COMPAT_ONLY])),
        _allow(TRACING, includes=Condition(min_kernel=(4, 8))),
        _allow("socket", Comparison(0, Op.LT, FAMILIES["alg"])),
        _allow("socket", _equal(0, FAMILIES["nfc"])),
        _allow("socket", Comparison(0, Op.GT, FAMILIES["vsock"])),
        *(_allow("personality", _equal(0, value)) for value in _PERSONALITIES),
        _allow(f"{ALLOWED_ON['amd64']} {LDT}", includes=intel),
        _allow(
            f"{ALLOWED_ON['arm64']} sync_file_range2",
            includes=Condition(arches=frozenset({"arm", "arm64"})),
        ),
        _allow("clone", Comparison(0, Op.MASKED_EQ, _CLONE_NEW, 0), excludes=admin),
        Rule(("clone3",), ENOSYS, excludes=admin),
        _allow("clone", includes=admin),
    ]
    for cap, text in WITH_CAPABILITY.items():
        names = [name for name in text.split() if name not in _COMPAT_ADMIN_WITHOUT]
        rules.append(_allow(" ".join(names), includes=_caps(cap)))
    return Profile(EPERM, tuple(rules), _COMPAT_ARCHITECTURES)
