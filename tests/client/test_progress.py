"""Progress of pulls and pushes: bars on a terminal, lines elsewhere, and nothing that moves it."""

from __future__ import annotations

import os
import pty
import select
import termios

import pytest

from fakes.engine_http import Answer, FakeEngine
from tare.client import progress
from tare.client.transport import Daemon
from tare.errors import FailedError

LINES = (
    b'{"status":"Pulling from a","id":"1"}\n'
    b'{"status":"Pulling fs layer","progressDetail":{},"id":"aaa"}\n'
    b'{"status":"Pulling fs layer","progressDetail":{},"id":"bbb"}\n'
    b'{"status":"Downloading","progressDetail":{"current":500000,"total":1000000},"id":"aaa"}\n'
    b'{"status":"Pull complete","progressDetail":{},"id":"aaa"}\n'
    b'{"progressDetail":{},"aux":{"Tag":"1"}}\n'
    b'{"status":"Status: \\u001b[2J done"}\n'
)


def shown(engine: FakeEngine, descriptor: int, **more: bool) -> list[object]:
    engine.answers["POST /images/create"] = Answer(body=LINES)
    daemon = Daemon(str(engine.socket))
    try:
        return list(
            progress.display(daemon.open("POST", "/images/create"), descriptor=descriptor, **more)
        )
    finally:
        daemon.close()


def test_a_pipe_gets_plain_lines(engine: FakeEngine) -> None:
    read, write = os.pipe()

    aux = shown(engine, write)

    os.close(write)
    with open(read, "rb") as file:
        assert file.read().decode().splitlines() == [
            "1: Pulling from a",
            "aaa: Pulling fs layer",
            "bbb: Pulling fs layer",
            "aaa: Pull complete",
            "Status: \\x1b[2J done",
        ]
    assert aux == [{"Tag": "1"}]


def test_quiet_shows_nothing(engine: FakeEngine) -> None:
    read, write = os.pipe()

    shown(engine, write, quiet=True)

    os.close(write)
    with open(read, "rb") as file:
        assert file.read() == b""


def test_a_terminal_gets_a_line_for_each_layer(engine: FakeEngine) -> None:
    master, slave = pty.openpty()
    try:
        termios.tcsetwinsize(slave, (30, 100))
        shown(engine, slave)
        said = b""
        while select.select([master], [], [], 0.2)[0]:
            said += os.read(master, 65536)
    finally:
        os.close(master)
        os.close(slave)
    text = said.decode()

    # Each layer's line is reached from below, rewritten, and left below again.
    assert "\x1b[1A\x1b[2K\raaa: Pulling fs layer\r\x1b[1B" in text
    assert "\x1b[2A\x1b[2K\raaa: Downloading    500kB/1MB\r\x1b[2B" in text
    assert "\x1b[2J" not in text


@pytest.mark.parametrize(
    ("current", "total", "columns", "expected"),
    [
        (0, 0, 200, ""),
        (5, 0, 200, "      5B"),
        (500_000, 1_000_000, 80, "   500kB/1MB"),
        (500_000, 1_000_000, 200, "[" + "=" * 25 + ">" + " " * 25 + "]    500kB/1MB"),
        (1_000_000, 1_000_000, 200, "[" + "=" * 50 + ">]      1MB/1MB"),
    ],
)
def test_bars_are_dockers(current: int, total: int, columns: int, expected: str) -> None:
    assert progress.progress(current, total, columns) == expected


def test_an_error_line_is_the_error(engine: FakeEngine) -> None:
    line = b'{"errorDetail":{"message":"no such thing"},"error":"no such thing","hint":"look"}\n'
    engine.answers["POST /images/create"] = Answer(body=line)

    with pytest.raises(FailedError, match="no such thing") as caught:
        progress.display(Daemon(str(engine.socket)).open("POST", "/images/create"))

    assert caught.value.hint == "look"
