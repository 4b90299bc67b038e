"""The process around the engine: socket activation, readiness, what it inherits and leaves."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.engines import without_networks

pytestmark = pytest.mark.system

_PING = b"GET /_ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
_ACTIVATE = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.set_inheritable(3, True);"
    " os.environ['LISTEN_PID'] = str(os.getpid()); os.environ['LISTEN_FDS'] = '1';"
    " os.execv(sys.executable, [sys.executable, '-m', 'tare.daemon', '--foreground'])"
)
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def notices(tmp_path: Path) -> Iterator[socket.socket]:
    """Where the daemon says that it is ready (sd_notify(3))."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as found:
        found.bind(str(tmp_path / "notify"))
        found.settimeout(20)
        yield found


@pytest.fixture
def start(tmp_path: Path, notices: socket.socket) -> Iterator[Start]:
    """Start a daemon on this test's directories; it is ready when this returns."""
    environment = {
        **os.environ,
        "TARE_STATE_DIR": str(tmp_path / "s"),
        "TARE_RUN_DIR": str(tmp_path / "r"),
        "TARE_CONFIG_DIR": str(without_networks(tmp_path / "c")),
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
    }
    started: list[subprocess.Popen[bytes]] = []

    def begin(*words: str, pass_fds: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
        daemon = subprocess.Popen(
            [sys.executable, *(words or ("-m", "tare.daemon", "--foreground"))],
            env=environment,
            stdin=subprocess.DEVNULL,
            pass_fds=pass_fds,
        )
        started.append(daemon)
        assert notices.recv(100).startswith(b"READY=1")
        return daemon

    yield begin
    for daemon in started:
        daemon.terminate()
        daemon.wait(20)
    with contextlib.suppress(OSError, ValueError, IndexError):
        keeper = (tmp_path / "r" / "keeper.lock").read_text().split()[0]
        os.kill(int(keeper), signal.SIGTERM)


def ping(path: Path) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(path))
        client.sendall(_PING)
        return client.recv(4096)


def test_it_answers_on_a_socket_that_systemd_made(tmp_path: Path, start: Start) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "a.sock"))
        listening.listen()
        daemon = start("-c", _ACTIVATE, str(listening.fileno()), pass_fds=(listening.fileno(),))

        assert ping(tmp_path / "a.sock").startswith(b"HTTP/1.1 200")

    daemon.terminate()
    assert daemon.wait(20) == 0
    assert (tmp_path / "a.sock").exists()  # systemd's to remove


def test_its_end_removes_its_socket_and_its_death_does_no_harm(
    tmp_path: Path, start: Start
) -> None:
    path = tmp_path / "r" / "tare.sock"
    first = start()
    first.kill()
    first.wait(20)

    second = start()

    assert ping(path).startswith(b"HTTP/1.1 200")
    second.terminate()
    assert second.wait(20) == 0
    assert not path.exists()
    assert not (tmp_path / "r" / "daemon.pid").exists()


@pytest.mark.attack("A02")
def test_descriptors_that_it_inherited_are_closed(tmp_path: Path, start: Start) -> None:
    with contextlib.ExitStack() as stack:
        secret = tmp_path / "secret"
        secret.touch()
        strays = [stack.enter_context(open(secret)).fileno() for _ in range(20)]
        daemon = start(pass_fds=tuple(strays))

        held = []
        for name in os.listdir(f"/proc/{daemon.pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                held.append(os.readlink(f"/proc/{daemon.pid}/fd/{name}"))

        assert str(secret) not in held


def test_a_state_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "format").write_text("99\n")

    found = subprocess.run(
        [sys.executable, "-m", "tare.daemon"],
        env={**os.environ, "TARE_STATE_DIR": str(tmp_path / "s"), "TARE_RUN_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )

    assert found.returncode == 1
    assert "format '99'" in found.stderr
    assert "Traceback" not in found.stderr
