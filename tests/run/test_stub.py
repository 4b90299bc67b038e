"""The sealed stub, run for real."""

from __future__ import annotations

import errno
import os

import pytest

from tare.kernel import process
from tare.run import stub


def _execute(made: stub.Stub, *arguments: bytes) -> tuple[bytes, int]:
    """What the stub wrote on its report descriptor, and the exit code."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(writing, stub.REPORT, inheritable=True)
        process.execute(made.descriptor, list(arguments), [])
        os._exit(99)
    os.close(writing)
    try:
        report = os.read(reading, 16)
    finally:
        os.close(reading)
    return report, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_it_runs_the_program_with_its_arguments_and_reports_nothing() -> None:
    made = stub.Stub.make()

    report, code = _execute(made, made.cookie, b"/bin/sh", b"sh", b"-c", b"exit 7")

    assert (report, code) == (b"", 7)


def test_a_failed_exec_is_reported_as_errno() -> None:
    made = stub.Stub.make()

    report, code = _execute(made, made.cookie, b"/no/such/program", b"x")

    assert (int.from_bytes(report, "little"), code) == (errno.ENOENT, 126)


@pytest.mark.attack("A01")
@pytest.mark.parametrize("arguments", [(), (b"x" * 32, b"/bin/true", b"true")])
def test_without_the_cookie_it_refuses_to_run(arguments: tuple[bytes, ...]) -> None:
    made = stub.Stub.make()

    report, code = _execute(made, *arguments)

    assert (report, code) == (b"", 126)


@pytest.mark.attack("A01")
def test_nobody_can_write_to_it() -> None:
    made = stub.Stub.make()

    again = os.open(f"/proc/self/fd/{made.descriptor}", os.O_RDWR)
    with pytest.raises(PermissionError):
        os.write(again, b"evil")
    with pytest.raises(PermissionError):
        os.ftruncate(again, 0)
    os.close(again)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_it_is_small_static_elf(machine: str) -> None:
    content = stub.image(b"c" * stub.COOKIE_SIZE, machine)

    assert content.startswith(b"\x7fELF\x02\x01")
    assert content.endswith(b"c" * stub.COOKIE_SIZE)
    assert len(content) < 512
