"""The relay against guests that lie: in place of QEMU a program that says what the test wants."""

from __future__ import annotations

import os
import sys
import textwrap
from pathlib import Path

import pytest

from tare.vm import protocol, relay
from tare.vm.protocol import ToHost

_GUEST = """
import os, socket, struct, sys, time
agent = socket.socket(fileno=int(sys.argv[1]))
console = socket.socket(fileno=int(sys.argv[2]))
def frame(kind, payload=b"", channel=0, stream=0):
    return struct.pack("<IBBHI", len(payload), kind, stream, 0, channel) + payload
def number(n): return struct.pack("<I", n)
agent.sendall(frame(1, number(1)))
beginning = agent.recv(100)
"""


class Ran:
    """What came of a relay: its exit code and what it wrote."""

    def __init__(self, code: int, out: bytes, err: str) -> None:
        self.code, self.out, self.err = code, out, err


def run(tmp_path: Path, guest: str) -> Ran:
    """A relay in a child process, with *guest* (Python) where QEMU would be."""
    program = tmp_path / "guest.py"
    program.write_text(_GUEST + textwrap.dedent(guest))
    out, err = tmp_path / "out", tmp_path / "err"
    pid = os.fork()
    if pid == 0:
        try:
            for number, path in ((1, out), (2, err)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            relay.CONTROL = str(tmp_path / "control")  # type: ignore[misc]  # the test's own place
            words = [sys.executable, "-I", "-S", str(program), "@agent", "@console"]
            os._exit(relay.Machine(words, b"begin", relay.Door(), tty=False, stdin=False).run())
        except BaseException as error:
            os.write(2, repr(error).encode())
        finally:
            os._exit(99)
    _, status = os.waitpid(pid, 0)
    return Ran(os.waitstatus_to_exitcode(status), out.read_bytes(), err.read_text())


def test_streams_and_exit_code_are_the_programs(tmp_path: Path) -> None:
    found = run(
        tmp_path,
        """
        assert beginning == b"begin"
        agent.sendall(frame(3, number(7)) + frame(5, b"out", stream=1) + frame(5, b"er", stream=2))
        agent.sendall(frame(7, number(42)))
        time.sleep(60)
        """,
    )

    assert (found.code, found.out, found.err) == (42, b"out", "er")


def test_a_program_that_is_not_found_ends_with_docker_s_code_and_words(tmp_path: Path) -> None:
    found = run(
        tmp_path,
        """
        agent.sendall(frame(4, bytes([127]) + b'exec: "nope": not found'))
        time.sleep(60)
        """,
    )

    assert found.code == 127
    assert found.err == 'exec: "nope": not found\n'


@pytest.mark.parametrize(
    ("guest", "words"),
    [
        ("sys.exit(3)", "QEMU ended"),
        ("sys.stderr.write('no such machine'); sys.stderr.flush(); sys.exit(1)", "no such machine"),
        ("console.sendall(b'[ 1.0] Kernel panic - not syncing: x\\n'); sys.exit(0)", "panic"),
        ("agent.sendall(frame(8, b'disk L0 is missing')); time.sleep(60)", "disk L0 is missing"),
        ("agent.sendall(frame(1, number(99))); time.sleep(60)", "another version"),
    ],
)
def test_a_machine_that_fails_says_why_in_one_sentence(
    tmp_path: Path, guest: str, words: str
) -> None:
    found = run(tmp_path, guest)

    assert found.code == relay.CANNOT
    assert words in found.err
    assert found.err.count("\n") == 1


@pytest.mark.attack("A50")
@pytest.mark.parametrize(
    "lie",
    [
        f"agent.sendall(struct.pack('<IBBHI', {protocol.MAXIMUM + 1}, 5, 1, 0, 0))",
        "agent.sendall(b'\\xff' * 4000)",
        "agent.sendall(os.urandom(1 << 16))",
        "agent.sendall(frame(3, number(1)) + frame(6, number(1 << 31)))",
        "agent.sendall(frame(3, number(1)) + frame(5, b'x', stream=7))",
        "agent.sendall(frame(7, b'not a number'))",
        "agent.sendall(frame(1, b''))",
    ],
    ids=["oversize", "ff", "noise", "credit", "stream", "exit", "hello"],
)
def test_a_guest_that_breaks_the_protocol_ends_its_machine_only(tmp_path: Path, lie: str) -> None:
    found = run(tmp_path, f"{lie}\ntime.sleep(60)")

    assert found.code == relay.CANNOT
    assert "does not keep to the protocol" in found.err


@pytest.mark.attack("A50")
def test_output_that_was_not_granted_ends_the_machine(tmp_path: Path) -> None:
    # Nobody reads the pipe: what is written is not granted again.
    reading, writing = os.pipe()
    try:
        pid = os.fork()
        if pid == 0:
            os.dup2(writing, 1)
            os.dup2(os.open(tmp_path / "err", os.O_WRONLY | os.O_CREAT), 2)
            relay.CONTROL = str(tmp_path / "control")  # type: ignore[misc]  # the test's own place
            program = tmp_path / "guest.py"
            flood = "agent.sendall(frame(3, number(1)))\nwhile True: agent.sendall(chunk)\n"
            program.write_text(_GUEST + "chunk = frame(5, bytes(1 << 15), stream=1)\n" + flood)
            words = [sys.executable, "-I", "-S", str(program), "@agent"]
            found = relay.Machine([*words, "@console"], b"x", relay.Door(), tty=False, stdin=False)
            try:
                while found._code is None:
                    found._loop.turn()
            finally:
                os.kill(found._qemu, 9)
                os._exit(found._code or 0)
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(reading)
        os.close(writing)

    assert os.waitstatus_to_exitcode(status) == relay.CANNOT


@pytest.mark.attack("A50")
def test_frames_for_execs_that_nobody_asked_for_are_dropped(tmp_path: Path) -> None:
    found = run(
        tmp_path,
        """
        agent.sendall(frame(3, number(1)))
        for channel in (1, 5, 0xffffffff):
            agent.sendall(frame(5, b"stray", channel=channel, stream=1))
            agent.sendall(frame(7, number(0), channel=channel))
        agent.sendall(frame(7, number(6)))
        time.sleep(60)
        """,
    )

    assert (found.code, found.out, found.err) == (6, b"", "")


@pytest.mark.attack("A50")
def test_a_flooded_console_is_kept_short(tmp_path: Path) -> None:
    found = run(
        tmp_path,
        """
        console.settimeout(60)
        def pages():
            return int(open(f"/proc/{os.getppid()}/statm").read().split()[1])
        before = pages()
        for _ in range(400):
            console.sendall(b"[ 0.0] Kernel panic " + b"A" * 60000 + b"\\n")
        agent.sendall(frame(3, number(1)) + frame(7, number(pages() - before > 2000)))
        time.sleep(60)
        """,
    )

    assert found.code == 0, "the relay has grown by more than 8 MB of 24"


def test_the_kinds_of_frames_are_those_of_the_guest_s_header() -> None:
    header = (Path(relay.__file__).parent / "guest/guest.h").read_text()
    names = header[header.index("enum to_host") :].split("{")[1].split("}")[0]
    listed = [name.split("=")[0].strip() for name in names.split(",")]

    assert listed == [kind.name for kind in ToHost]
