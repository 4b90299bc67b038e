"""tare's own profiles: every call is in one group, and what attacks A14 and A15 ask for."""

from __future__ import annotations

import errno
import gzip
import json
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from fakes import bpf
from fakes.seccomp_oracle import ARCH, ENOSYS, evaluate
from tare.errors import InvalidError
from tare.model import seccomp_profiles, syscalls
from tare.model.seccomp import EPERM, Profile, Ret, parse_profile, render_profile
from tare.model.seccomp_filter import compile_filter
from tare.model.seccomp_profiles import (
    docker_compat_profile,
    hardened_profile,
    standard_profile,
)

ALLOW, EINVAL = int(Ret.ALLOW), Ret.ERRNO | errno.EINVAL
AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET = 1, 2, 10, 16, 17
AF_CAN, AF_BLUETOOTH, AF_ALG, AF_VSOCK = 29, 31, 38, 40
TIOCSTI, TIOCLINUX, TCGETS = 0x5412, 0x541C, 0x5401
X32_BIT = 0x4000_0000
CLONE_NEW = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
HIGH = 1 << 32
NO_CAPS: frozenset[str] = frozenset()

PROFILES = {
    "standard": standard_profile(),
    "hardened": hardened_profile(),
    "docker-compat": docker_compat_profile(),
}


class Filter:
    """A compiled profile that is asked by name."""

    def __init__(
        self,
        profile: Profile,
        *caps: str,
        machine: str = "x86_64",
        kernel: tuple[int, int] = (6, 18),
    ) -> None:
        self._code = bpf.load(
            compile_filter(profile, capabilities=frozenset(caps), kernel=kernel, machine=machine)
        )
        self._native = machine

    def __call__(self, name: str | int, *args: int, abi: str = "") -> int:
        abi = abi or self._native
        number = name if isinstance(name, int) else syscalls.numbers(abi)[name]
        return bpf.run(self._code, ARCH[abi], number | (X32_BIT if abi == "x32" else 0), args)


def words(text: str) -> list[str]:
    return text.split()


def test_every_call_of_every_table_is_in_exactly_one_group() -> None:
    once = Counter(words(seccomp_profiles.ALLOWED))
    once.update(words(seccomp_profiles.REFUSED))
    once.update(words(seccomp_profiles.ABSENT))
    once.update(words(seccomp_profiles.BY_ARGUMENTS))
    once.update(words(f"{seccomp_profiles.LDT} {seccomp_profiles.TRACING}"))
    once.update({name for text in seccomp_profiles.ALLOWED_ON.values() for name in words(text)})
    capable = {name for text in seccomp_profiles.WITH_CAPABILITY.values() for name in words(text)}
    known = {name for abi in syscalls.ABIS for name in syscalls.numbers(abi)}

    assert {name for name, count in once.items() if count > 1} == set()
    # A call that needs a capability is refused without it, or in one of these two groups too.
    both = set(once) & capable
    assert both == set(words(seccomp_profiles.TRACING)) | {"clone3", "listmount", "statmount"}
    assert set(once) | capable == known


@pytest.mark.attack("A14")
@pytest.mark.parametrize(
    ("name", "abi"), [("standard", "x86_64"), ("standard", "i386"), ("hardened", "x86_64")]
)
def test_what_opened_hosts_before_is_refused(name: str, abi: str) -> None:
    ask = Filter(PROFILES[name])
    refused = """
        unshare setns mount umount2 pivot_root fsopen fsconfig fsmount fspick open_tree move_mount
        mount_setattr open_tree_attr keyctl add_key request_key bpf perf_event_open userfaultfd
        kexec_load init_module finit_module delete_module swapon swapoff quotactl quotactl_fd
        reboot acct settimeofday clock_settime ioperm iopl vmsplice move_pages mbind chroot
        open_by_handle_at syslog sethostname setdomainname kcmp pidfd_getfd fanotify_init vhangup
    """

    for call in words(refused):
        assert ask(call, abi=abi) == EPERM, call
    for call in words("clone3 io_uring_setup io_uring_enter io_uring_register"):
        assert ask(call, abi=abi) == ENOSYS, call
    for flag, high in product(CLONE_NEW, (0, HIGH)):
        assert ask("clone", high | flag | 17, abi=abi) == EPERM
    assert ask("clone", 0x7D0F00, abi=abi) == ALLOW, "a thread"
    assert ask("clone", 17, abi=abi) == ALLOW, "a fork"


@pytest.mark.attack("A14")
@pytest.mark.parametrize("name", ["standard", "hardened"])
def test_an_unknown_number_is_absent_not_refused(name: str) -> None:
    ask = Filter(PROFILES[name])

    for number in (*range(470, 1000), 336 + 1, 400, 0x3FFF_FFFF, 0xFFFF_FFFF):
        assert ask(number) == ENOSYS, number
        assert ask(number, abi="i386") == ENOSYS or number < 470


@pytest.mark.attack("A14")
@pytest.mark.parametrize("abi", ["x86_64", "i386"])
@pytest.mark.parametrize("call", ["socket", "socketpair"])
def test_only_five_socket_families_are_there(abi: str, call: str) -> None:
    ask = Filter(standard_profile())
    families = {AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET}

    for family, high in product(range(64), (0, HIGH, 0xFFFF_FFFF << 32)):
        expected = ALLOW if family in families else EPERM
        assert ask(call, high | family, 2, 0, abi=abi) == expected, family


@pytest.mark.attack("A14")
def test_audit_seems_not_to_be_in_the_kernel_unless_it_may_be_written() -> None:
    without, writer = Filter(standard_profile()), Filter(standard_profile(), "CAP_AUDIT_WRITE")

    assert without("socket", AF_NETLINK, 3, 9) == EINVAL
    assert without("socket", AF_NETLINK, 3, 9 | HIGH) == EINVAL
    assert without("socket", AF_NETLINK, 3, 0) == ALLOW
    assert writer("socket", AF_NETLINK, 3, 9) == ALLOW


@pytest.mark.attack("A14")
@pytest.mark.parametrize("abi", ["x86_64", "i386"])
def test_no_ioctl_types_into_a_terminal(abi: str) -> None:
    ask = Filter(standard_profile())

    for command, high in product((TIOCSTI, TIOCLINUX), (0, HIGH, 0xDEAD_BEEF << 32)):
        assert ask("ioctl", 0, high | command, abi=abi) == EPERM
    for command in (TCGETS, *range(TIOCSTI + 1, TIOCLINUX), TIOCLINUX + 1, 0x8004_5430):
        assert ask("ioctl", 0, command, abi=abi) == ALLOW


@pytest.mark.attack("A15")
def test_the_32_bit_abi_has_the_same_walls() -> None:
    ask, wide = Filter(standard_profile()), Filter(standard_profile(allow_abi_ia32=True))

    for number, expected in {288: EPERM, 310: EPERM, 102: EPERM, 425: ENOSYS, 117: ALLOW}.items():
        assert ask(number, abi="i386") == expected, number
    assert ask("socket", AF_VSOCK, abi="i386") == EPERM
    assert wide("socketcall", 1, abi="i386") == ALLOW
    assert wide("socket", AF_VSOCK, abi="i386") == EPERM


@pytest.mark.attack("A15")
@pytest.mark.parametrize("name", ["standard", "hardened"])
def test_x32_is_not_there(name: str) -> None:
    ask = Filter(PROFILES[name])

    assert all(ask(number, abi="x32") == ENOSYS for number in range(600))


def test_hardened_refuses_what_standard_leaves_to_ordinary_programs() -> None:
    ask, usual = Filter(hardened_profile()), Filter(standard_profile())

    for name in ("ptrace", "process_vm_readv", "modify_ldt"):
        assert (ask(name), usual(name)) == (EPERM, ALLOW)
    for protocol in range(1, 25):
        expected = EINVAL if protocol == 9 else EPERM
        assert ask("socket", AF_NETLINK, 3, protocol) == expected
    assert ask("socket", AF_NETLINK, 3, 0) == ALLOW
    assert ask("socket", AF_PACKET, 3, 0) == EPERM
    assert Filter(hardened_profile(), "NET_RAW")("socket", AF_PACKET, 3, 0) == ALLOW
    assert all(ask(number, abi="i386") == ENOSYS for number in range(600))
    assert Filter(hardened_profile(), "SYS_PTRACE")("ptrace") == ALLOW


@pytest.mark.parametrize("make", [standard_profile, hardened_profile])
def test_families_are_added_by_name_and_number(make: Callable[..., Profile]) -> None:
    ask = Filter(make(socket_families=("can", "Bluetooth", "21")))

    assert [ask("socket", family) for family in (AF_CAN, AF_BLUETOOTH, 21)] == [ALLOW] * 3
    assert ask("socket", AF_ALG) == EPERM
    assert ask("socket", AF_UNIX) == ALLOW


def test_a_family_that_is_asked_for_is_not_narrowed() -> None:
    ask = Filter(hardened_profile(socket_families=("netlink", "packet")))

    assert ask("socket", AF_NETLINK, 3, 12) == ALLOW
    assert ask("socket", AF_NETLINK, 3, 9) == EINVAL
    assert ask("socket", AF_PACKET) == ALLOW


@pytest.mark.parametrize("word", ["cann", "", "-1", "1000", "²"])
def test_a_family_that_is_none_is_refused(word: str) -> None:
    with pytest.raises(InvalidError, match="no socket family") as caught:
        standard_profile(socket_families=(word,))

    assert "bluetooth" in caught.value.hint


@pytest.mark.parametrize(
    ("cap", "names"),
    [(cap, words(text)) for cap, text in seccomp_profiles.WITH_CAPABILITY.items()],
    ids=list(seccomp_profiles.WITH_CAPABILITY),
)
@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_a_capability_brings_its_calls(profile: str, cap: str, names: list[str]) -> None:
    ask = Filter(PROFILES[profile], f"CAP_{cap}")
    compat_without = {"listmount", "open_tree_attr", "statmount"} if "docker" in profile else set()

    for name in set(names) & set(syscalls.numbers("x86_64")) - compat_without:
        assert ask(name) == ALLOW, name
    assert ask("clone", 0x10000000) == (ALLOW if cap == "SYS_ADMIN" else EPERM)


def test_tracing_waits_for_a_kernel_whose_filters_see_traced_calls() -> None:
    assert Filter(standard_profile(), kernel=(4, 7))("ptrace") == EPERM
    assert Filter(standard_profile(), kernel=(4, 8))("ptrace") == ALLOW


def test_on_arm_the_calls_of_arm_are_there() -> None:
    ask = Filter(standard_profile(), machine="aarch64")

    assert ask("openat") == ALLOW
    assert ask("unshare") == EPERM
    assert ask("set_tls", abi="arm") == ALLOW
    assert ask("usr26", abi="arm") == EPERM
    assert ask("ioctl", 0, TIOCSTI | HIGH) == EPERM
    assert ask("socket", AF_VSOCK, abi="arm") == EPERM
    assert ask(0x0F_0000, abi="arm") == ENOSYS


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_our_profiles_can_be_exported_and_used_as_files(name: str) -> None:
    assert parse_profile(render_profile(PROFILES[name])) == PROFILES[name]


@pytest.mark.parametrize("name", sorted(PROFILES))
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_of_our_profiles_is_the_profile(name: str, machine: str) -> None:
    profile, ask = PROFILES[name], Filter(PROFILES[name], machine=machine)

    for abi in ("x86_64", "i386", "x32") if machine == "x86_64" else ("aarch64", "arm"):
        for number, args in product(range(600), ((), (HIGH | 16, HIGH | TIOCSTI, 9))):
            expected = evaluate(profile, abi, number, args, native=machine)
            assert ask(number, *args, abi=abi) == expected, (abi, number)


def vectors() -> list[tuple[frozenset[str], Profile]]:
    file = Path(__file__).parent.parent / "data" / "seccomp-default.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
    return [
        (frozenset(row["q"]["caps"]), parse_profile(json.dumps(row["want"]["ok"]))) for row in rows
    ]


BY_ARGUMENTS = words(seccomp_profiles.BY_ARGUMENTS)
ARGUMENTS = (
    *((family, 1, 0) for family in (*range(48), 2**32 - 1)),
    *((flag,) for flag in (*CLONE_NEW, 17, 0x7D0F00, 0x20000 | 17)),
    *((value,) for value in (8, 0x20000, 0x20008, 0x40000, 0xFFFFFFFF)),
    (0, TIOCSTI),
)


@pytest.mark.parametrize(("caps", "docker"), vectors(), ids=lambda value: None)
def test_docker_compat_is_what_docker_makes_of_its_default(
    caps: frozenset[str], docker: Profile
) -> None:
    ours = Filter(docker_compat_profile(), *caps)
    theirs = Filter(docker, *caps)
    differences = set()

    for abi in ("x86_64", "i386", "x32"):
        for name in syscalls.numbers(abi):
            for args in ARGUMENTS if name in BY_ARGUMENTS else ((),):
                if (mine := ours(name, *args, abi=abi)) != theirs(name, *args, abi=abi):
                    differences.add((name, *args[:1], mine))

    # Stricter in one place, as Docker's own newest release is.
    assert differences == {("socket", AF_ALG, EPERM)}


@pytest.mark.parametrize(("caps", "docker"), vectors(), ids=lambda value: None)
def test_standard_allows_nothing_that_docker_refuses_but_what_is_listed(
    caps: frozenset[str], docker: Profile
) -> None:
    ours, theirs = Filter(standard_profile(), *caps), Filter(docker, *caps)
    wider, stricter = set(), set()

    for abi in ("x86_64", "i386"):
        for name in syscalls.numbers(abi):
            for args in ARGUMENTS if name in BY_ARGUMENTS else ((),):
                pair = ours(name, *args, abi=abi), theirs(name, *args, abi=abi)
                if pair[0] == ALLOW != pair[1]:
                    wider.add(name)
                elif pair[0] != ALLOW == pair[1]:
                    stricter.add(name)

    # Newer than Docker's list and no more than what older calls give.
    newer = """getxattrat setxattrat listxattrat removexattrat file_getattr file_setattr mseal
    uprobe uretprobe"""
    admin = "open_tree_attr listmount statmount" if "CAP_SYS_ADMIN" in caps else ""
    assert wider == set(words(f"{newer} {admin}"))
    assert stricter == set(
        words("epoll_ctl_old epoll_wait_old ioctl socket socketcall socketpair vmsplice")
    )
