"""Looking at real containers: a table that is redrawn, figures for Prometheus, and explanations."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.engines import Engine

pytestmark = [pytest.mark.system, pytest.mark.needs("root", "overlay", "cgroup", "busybox")]

_SERIES = re.compile(r"([a-z_]+)(?:\{([^}]*)\})? (-?[0-9.e+-]+)")


@pytest.fixture(scope="module")
def engine(session_directory: Path, busybox_archive: Path) -> Iterator[Engine]:
    found = Engine(session_directory / "seeing")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = found.directory / "c"
    config.mkdir(parents=True, exist_ok=True)
    with open(config / "config.toml", "a") as file:
        file.write(f'\n[metrics]\nlisten = "127.0.0.1:{port}"\n')
    found.more["port"] = str(port)
    try:
        found.out("load", "-q", "-i", str(busybox_archive))
        found.out(
            "run", "-d", "--name", "busy", "--network", "none", "-m", "64m", "-v", "kept:/v",
            "busybox", "sh", "-c", "dd if=/dev/zero of=/v/f bs=1M count=8; while :; do :; done",
        )  # fmt: skip
        yield found
    finally:
        found.end()


class Unix(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


def page(connection: http.client.HTTPConnection) -> dict[str, float]:
    connection.request("GET", "/metrics")
    answer = connection.getresponse()
    text = answer.read().decode()
    assert answer.status == 200
    assert (answer.getheader("Content-Type") or "").startswith("text/plain; version=0.0.4")
    found = {}
    for line in text.splitlines():
        if line.startswith("#"):
            assert re.fullmatch(r"# (HELP|TYPE) tare_[a-z_]+ .+", line)
            continue
        match = _SERIES.fullmatch(line)
        assert match, line
        found[f"{match[1]}{{{match[2] or ''}}}"] = float(match[3])
    connection.close()
    return found


def test_figures_for_prometheus_on_the_socket_and_by_tcp(engine: Engine) -> None:
    by_socket = page(Unix(engine.run_dir / "tare.sock"))
    tcp = http.client.HTTPConnection("127.0.0.1", int(engine.more["port"]), timeout=30)
    by_tcp = page(tcp)

    identity = engine.all()["busy"].id[:12]
    labels = f'{{id="{identity}",name="busy",image="busybox"}}'
    for found in (by_socket, by_tcp):
        assert found[f"tare_container_cpu_seconds_total{labels}"] > 0
        assert found[f"tare_container_memory_limit_bytes{labels}"] == 64 << 20
        assert found[f"tare_container_pids{labels}"] >= 1
        assert found['tare_containers{state="running"}'] == 1
        assert found["tare_budget_reserved_bytes{}"] == 64 << 20
        assert found["tare_volumes{}"] == 1


@pytest.mark.attack("A44")
@pytest.mark.parametrize("path", ["/", "/info", "/containers/json", "/v1.45/version", "/tare/run"])
def test_by_tcp_nothing_but_the_figures_is_served(engine: Engine, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", int(engine.more["port"]), timeout=30)
    connection.request("POST" if path == "/tare/run" else "GET", path, body=b"{}")

    assert connection.getresponse().status in (404, 405)
    connection.close()


def test_stats_once_shows_cache_and_limit(engine: Engine) -> None:
    line = engine.out("stats", "--no-stream", "--format", "{{json .}}", "busy")
    whole = engine.out("stats", "--no-stream").splitlines()

    found = json.loads(line)
    assert found["Name"] == "busy"
    assert found["MemUsage"].endswith(" / 64MiB")
    assert found["Cache"].endswith("MiB")  # of the 8 MiB that were written
    assert float(found["CPUPerc"].rstrip("%")) > 0
    assert whole[0].split()[-2:] == ["CACHE", "PRESSURE"]
    assert len(whole) == 2


def test_stats_on_a_terminal_is_redrawn_in_place(engine: Engine) -> None:
    pid, master = pty.fork()
    if pid == 0:
        command = engine.command("stats")
        os.execve(command[0], command, engine.environment)
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    screen = bytearray()
    end = time.monotonic() + 60
    try:
        while screen.count(b"\x1b[H") < 4 and time.monotonic() < end:
            if select.select([master], [], [], 1.0)[0]:
                screen += os.read(master, 65536)
    finally:
        os.kill(pid, signal.SIGINT)
        with contextlib.suppress(OSError):
            while os.read(master, 65536):
                pass
        os.close(master)
        _, status = os.waitpid(pid, 0)

    frames = bytes(screen).split(b"\x1b[H")[1:-1]
    assert len(frames) >= 3
    assert os.waitstatus_to_exitcode(status) in (130, -signal.SIGINT)
    for frame in frames:
        rows = frame.split(b"\x1b[K")
        assert rows[0].startswith(b"CONTAINER ID")
        assert rows[1].strip().split()[1] == b"busy"
        assert frame.endswith(b"\x1b[J")  # what was longer before is gone
        assert b"\x1b[2J" not in frame  # cleared first, it would flicker
        assert all(len(row.strip(b"\r\n")) <= 60 for row in rows[:-1])


def test_top_is_dockers(engine: Engine) -> None:
    lines = engine.out("top", "busy").splitlines()
    chosen = engine.out("top", "busy", "-o", "pid,comm").splitlines()

    assert lines[0].split() == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    assert "while" in lines[1]
    assert chosen[0].split() == ["PID", "COMMAND"]


def explained(engine: Engine, name: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads(engine.out("explain", "--format", "json", name))
    return found


def test_explain_names_the_limit_that_killed(engine: Engine) -> None:
    engine.tare(
        "run", "--network", "none", "--name", "greedy", "-m", "16m", "busybox",
        "dd", "if=/dev/zero", "of=/dev/null", "bs=60M", "count=1",
    )  # fmt: skip

    found = explained(engine, "greedy")

    assert "killed by the kernel's OOM killer" in found["Why"][0]
    assert "its memory limit of 16 MiB" in found["Why"][0]
    assert "give it more: tare update --memory 32m greedy" in found["Advice"]
    limits = json.loads(engine.out("explain", "--format", "json", "greedy"))["Limits"]
    assert {"What": "memory", "Value": "16 MiB", "Source": "--memory"} in limits


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exit 7", "exit code 7: it ended by itself"),
        (
            "sh -c 'kill -SEGV $$'; exit $?",
            "it was ended by SIGSEGV: it touched memory that is not its own",
        ),
        ("nothing-there", "exit code 127: its program was not found"),
    ],
)
def test_explain_reads_an_exit_code(engine: Engine, script: str, words: str) -> None:
    engine.tare("run", "--network", "none", "--name", "ended", "busybox", "sh", "-c", script)

    found = explained(engine, "ended")
    engine.out("rm", "ended")

    assert words in found["Why"][0]


def test_explain_says_that_somebody_stopped_it_and_that_a_program_is_missing(
    engine: Engine,
) -> None:
    engine.out("run", "-d", "--name", "asked", "--network", "none", "busybox", "sleep", "1000")
    engine.out("stop", "-t", "0", "asked")
    engine.tare("run", "--network", "none", "--name", "typo", "busybox", "no-such-program")

    asked, typo = explained(engine, "asked"), explained(engine, "typo")

    assert "somebody had asked it to stop" in asked["Why"]
    assert "it could not be started" in typo["Why"][0]
    assert "no-such-program" in typo["Why"][0]


def test_explain_tells_walls_files_and_networks(engine: Engine) -> None:
    found = explained(engine, "busy")
    words = engine.out("explain", "busy")

    assert any("its root is nobody there" in line for line in found["Isolation"])
    assert any("no_new_privs: on" in line for line in found["Isolation"])
    assert "/v: volume kept, read and write" in found["Volumes"]
    assert found["Networks"] == ["none: it has loopback only, and nobody reaches it"]
    assert "busy (" in words.splitlines()[0]
    assert "Limits" in words
    assert engine.tare("explain", "nobody").returncode == 1
