"""Filters at work: installed in a forked child, then tried by raw system calls on each ABI."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from fakes.seccomp_oracle import evaluate
from security.sysrun import DATA, Call, hello_i386, program, results
from tare.kernel import seccomp
from tare.model import syscalls
from tare.model.seccomp import EPERM, Comparison, Op, Profile, Ret, Rule
from tare.model.seccomp_filter import compile_filter
from tare.model.seccomp_profiles import (
    docker_compat_profile,
    hardened_profile,
    standard_profile,
)

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="sysrun: writes machine code for x86_64 only"
)

AF_VSOCK, TIOCSTI, TIOCLINUX = 40, 0x5412, 0x541C
CLONE_NEWUSER = 0x1000_0000
PR_SET_NO_NEW_PRIVS = 38
_UNSHARED = 0x0002_0000 | 0x0400_0000 | 0x0800_0000 | 0x4000_0000  # mounts, uts, ipc, net
_LIBC = ctypes.CDLL(None, use_errno=True)

# Ends, stops, doubles or blinds the program, or makes the whole host wait.
UNTRIED = """
exit exit_group pause fork vfork clone rt_sigreturn sigreturn rt_sigsuspend uretprobe uprobe sync
restart_syscall
"""


def compiled(profile: Profile, caps: frozenset[str] = frozenset()) -> bytes:
    release = platform.release().split(".")
    kernel = (int(release[0]), int(release[1]))
    return compile_filter(profile, capabilities=caps, kernel=kernel, machine="x86_64")


def no_new_privileges() -> None:
    assert _LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0


Run = Callable[..., list[int]]


@pytest.fixture
def sysrun(tmp_path: Path) -> Run:
    """Make calls in a child under a profile (None: no filter); what each answered."""

    def run(profile: Profile | None, calls: Iterable[Call], data: bytes = b"") -> list[int]:
        file = tmp_path / "sysrun"
        file.write_bytes(program(calls := list(calls), data))
        file.chmod(0o700)
        code = compiled(profile) if profile else b""

        def confine() -> None:
            # What a call leaves behind (a queue, a name) goes away with the child.
            if os.geteuid() == 0:
                _LIBC.unshare(_UNSHARED)
            no_new_privileges()
            if code:
                seccomp.install(code)

        done = subprocess.run(
            [file], stdin=subprocess.DEVNULL, capture_output=True, preexec_fn=confine, timeout=60
        )
        answers = results(done.stdout)
        assert done.returncode == 0, (done, calls[len(answers)] if answers else calls[0])
        assert len(answers) == len(calls)
        return answers

    return run


def in_child(work: Callable[[], None]) -> int:
    """Run *work* in a forked child; its exit status, 0 if it came back."""
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_filter_is_installed_in_a_forked_child_and_holds() -> None:
    code = compiled(Profile(Ret.ALLOW, (Rule(("uname",), Ret.ERRNO | errno.EXDEV),)))

    def work() -> None:
        no_new_privileges()
        seccomp.install(code)
        with pytest.raises(OSError) as caught:
            os.uname()
        assert caught.value.errno == errno.EXDEV
        status = Path("/proc/self/status").read_text()
        assert "Seccomp:\t2\n" in status

    assert in_child(work) == 0


def test_installing_needs_no_import() -> None:
    code = compiled(Profile(Ret.ALLOW, ()))

    def work() -> None:
        no_new_privileges()
        before = set(sys.modules)
        sys.meta_path.clear()
        seccomp.install(code)
        assert set(sys.modules) == before

    assert in_child(work) == 0


@pytest.mark.parametrize("code", [b"", b"\0" * 7, bytes(8), b"\x06\0\0\0\0\0\0\0" * 4097])
def test_what_is_no_program_is_refused_by_the_kernel(code: bytes) -> None:
    def work() -> None:
        no_new_privileges()
        with pytest.raises(OSError, match="seccomp") as caught:
            seccomp.install(code)
        assert caught.value.errno == errno.EINVAL

    assert in_child(work) == 0


def test_without_privilege_and_no_new_privs_it_is_refused() -> None:
    if os.geteuid() != 0:
        pytest.skip("root: needs a privilege to give up")
    code = compiled(Profile(Ret.ALLOW, ()))

    def work() -> None:
        os.setresuid(65534, 65534, 65534)
        with pytest.raises(PermissionError, match="seccomp"):
            seccomp.install(code)

    assert in_child(work) == 0


def test_the_kernel_says_which_actions_it_has() -> None:
    assert seccomp.available(Ret.KILL_PROCESS)
    assert not seccomp.available(0x1234_0000)


def sweep(abi: str) -> list[Call]:
    """Every number up to 600 with arguments that no call accepts."""
    names = {number: name for name, number in syscalls.numbers(abi).items()}
    untried = UNTRIED.split()
    return [
        Call(abi, number, (-1,) * 6) for number in range(601) if names.get(number) not in untried
    ]


@pytest.mark.attack("A14")
@pytest.mark.parametrize("abi", ["x86_64", "i386", "x32"])
@pytest.mark.parametrize(
    "make", [standard_profile, hardened_profile, docker_compat_profile], ids=lambda f: f.__name__
)
def test_a_sweep_of_all_calls_finds_what_the_profile_says(
    sysrun: Run, make: Callable[[], Profile], abi: str
) -> None:
    profile, calls = make(), sweep(abi)
    expected = [evaluate(profile, abi, call.number, call.args) for call in calls]
    allowed = [call for call, verdict in zip(calls, expected, strict=True) if verdict == Ret.ALLOW]
    free = dict(zip(allowed, sysrun(None, allowed) if allowed else [], strict=True))

    answers = sysrun(profile, calls)

    for call, verdict, answer in zip(calls, expected, answers, strict=True):
        if verdict != Ret.ALLOW:
            assert answer == -(verdict & 0xFFFF), call
        else:
            # The same refusal as without a filter, or success in both cases.
            assert min(answer, 0) == min(free[call], 0), call


@pytest.mark.attack("A14")
def test_the_filter_answers_before_the_kernel_can(sysrun: Run) -> None:
    # Without a filter these succeed or fail otherwise here, so EPERM is the filter's.
    calls = [
        Call("x86_64", 41, (AF_VSOCK, 1, 0)),
        Call("x86_64", 41, (1 << 32 | AF_VSOCK, 1, 0)),
        Call("x86_64", 16, (-1, TIOCSTI, 0)),
        Call("x86_64", 16, (-1, 1 << 32 | TIOCSTI, 0)),
        Call("x86_64", 16, (-1, 0xFFFF_FFFF << 32 | TIOCLINUX, 0)),
        Call("i386", 54, (-1, TIOCSTI, 0)),
        Call("i386", 359, (AF_VSOCK, 1, 0)),
        Call("i386", 102, (1, DATA)),
        Call("x86_64", 272, (CLONE_NEWUSER,)),
        Call("i386", 346, (-1, 0)),  # setns
        Call("i386", 288, (0, -3)),
        Call("x86_64", 250, (0, -3)),
    ]
    vsock = struct.pack("<III", AF_VSOCK, 1, 0)

    naive = sysrun(None, calls, vsock)
    answers = sysrun(standard_profile(), calls, vsock)

    assert answers == [-errno.EPERM] * len(calls)
    assert -errno.EPERM not in naive


@pytest.mark.attack("A14")
def test_unknown_numbers_and_clone3_are_absent(sysrun: Run) -> None:
    absent = [Call("x86_64", number) for number in (435, 425, 426, 427, *range(470, 1001))]

    answers = sysrun(standard_profile(), absent)

    assert set(answers) == {-errno.ENOSYS}


@pytest.mark.attack("A14")
def test_a_terminal_takes_no_input_from_the_filtered(tmp_path: Path) -> None:
    code = compiled(standard_profile())

    def work() -> None:
        _, terminal = os.openpty()
        no_new_privileges()
        seccomp.install(code)
        with pytest.raises(PermissionError):
            fcntl.ioctl(terminal, TIOCSTI, b"x")
        fcntl.ioctl(terminal, 0x5413, bytes(8))  # TIOCGWINSZ

    assert in_child(work) == 0


@pytest.mark.attack("A15")
@pytest.mark.parametrize(
    ("make", "runs"), [(standard_profile, True), (hardened_profile, False)], ids=["std", "hard"]
)
def test_a_32_bit_program_runs_where_the_profile_has_its_abi(
    tmp_path: Path, make: Callable[[], Profile], *, runs: bool
) -> None:
    file = tmp_path / "hello"
    file.write_bytes(hello_i386())
    file.chmod(0o700)
    if subprocess.run([file], capture_output=True, check=False).returncode:
        pytest.skip("ia32: the kernel runs no 32-bit programs")
    code = compiled(make())

    def confine() -> None:
        no_new_privileges()
        seccomp.install(code)

    done = subprocess.run([file], capture_output=True, preexec_fn=confine, check=False)

    assert (done.stdout == b"hello from i386\n" and done.returncode == 0) == runs


@pytest.mark.attack("A15")
def test_socketcall_is_there_only_when_asked_for(sysrun: Run) -> None:
    unix = struct.pack("<III", 1, 1, 0)
    calls = [Call("i386", 102, (1, DATA)), Call("i386", 359, (AF_VSOCK, 1, 0))]

    closed = sysrun(standard_profile(), calls, unix)
    opened = sysrun(standard_profile(allow_abi_ia32=True), calls, unix)

    assert closed == [-errno.EPERM, -errno.EPERM]
    assert opened[0] >= 0
    assert opened[1] == -errno.EPERM


def test_ordinary_programs_run_under_each_profile(tmp_path: Path) -> None:
    script = """
import socket, subprocess, threading, tempfile, multiprocessing, os
done = []
threading.Thread(target=lambda: done.append(1)).start()
assert subprocess.run(["sh", "-c", "exit 3"]).returncode == 3
socket.socketpair(); socket.socket(socket.AF_INET6)
socket.getaddrinfo("localhost", 80)
assert os.getrandom(4)
print("fine", len(done))
"""
    for make in (standard_profile, hardened_profile, docker_compat_profile):
        code = compiled(make())

        def confine(code: bytes = code) -> None:
            no_new_privileges()
            seccomp.install(code)

        done = subprocess.run(
            ["/usr/bin/python3", "-I", "-c", script],
            capture_output=True,
            text=True,
            preexec_fn=confine,
            check=False,
        )
        assert (done.stdout, done.returncode) == ("fine 1\n", 0), done.stderr


def test_64_bit_comparisons_hold_in_the_kernel_too(sysrun: Run) -> None:
    # lseek(-1, offset): EBADF where allowed.
    numbers = (0, 4, 5, 6, 2**32, 2**32 + 4, 2**32 + 5, 2**32 + 6, 2**33, 2**63)
    calls = [Call("x86_64", 8, (-1, number, 0)) for number in numbers]
    for op in Op:
        comparison = Comparison(1, op, 2**32 + 5, 5 if op is Op.MASKED_EQ else 0)
        profile = Profile(Ret.ALLOW, (Rule(("lseek",), Ret.ERRNO | errno.EXDEV, (comparison,)),))

        answers = sysrun(profile, calls)

        for call, answer in zip(calls, answers, strict=True):
            verdict = evaluate(profile, "x86_64", 8, call.args)
            assert answer == (-errno.EBADF if verdict == Ret.ALLOW else -errno.EXDEV), (op, call)


def test_importing_is_cheap() -> None:
    if shutil.which("/usr/bin/python3") is None:
        pytest.skip("python3: not installed")
    source = Path(seccomp.__file__).parent.parent.parent
    script = (
        f"import sys; sys.path.insert(0, {str(source)!r}); import tare.kernel.libc\n"
        "before = set(sys.modules); import tare.kernel.seccomp\n"
        "print(sorted(set(sys.modules) - before))"
    )

    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-S", "-c", script], capture_output=True, text=True, check=True
    )

    assert "tare.model" not in done.stdout
    assert "json" not in done.stdout


def test_a_verdict_with_an_errno_reaches_the_program(sysrun: Run) -> None:
    rules = (Rule(("getpid",), Ret.ERRNO | 4095), Rule(("getppid",), EPERM))

    answers = sysrun(Profile(Ret.ALLOW, rules), [Call("x86_64", 39), Call("x86_64", 110)])

    assert answers == [-4095, -1]
