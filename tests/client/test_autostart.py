"""Starting the daemon when none answers: real processes stand in for it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tare.client import autostart
from tare.client.transport import Daemon, run_directory
from tare.errors import DeniedError, FailedError

_SERVER = """
import os, signal, socket
signal.alarm(20)  # ends by itself whatever happens to the test
run = os.environ["TARE_RUN_DIR"]
open(run + "/pid", "w").write(str(os.getpid()))
server = socket.socket(socket.AF_UNIX)
server.bind(run + "/tare.sock")
server.listen()
body = b'{"Version":"9"}'
while True:
    client, _ = server.accept()
    while client.recv(65536):
        client.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
"""


@pytest.fixture
def interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A stand-in for Python whose ``-m tare.daemon`` is what the test writes into it."""
    monkeypatch.delenv("TARE_HOST", raising=False)
    monkeypatch.setenv("TARE_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("TARE_PYTHON", str(tmp_path / "python"))
    yield tmp_path / "python"
    pid = tmp_path / "run/pid"
    if pid.exists():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid.read_text()), signal.SIGKILL)


def _is(script: Path, content: str) -> None:
    script.write_text(content)
    script.chmod(0o755)


def test_the_daemon_is_started_and_answers(interpreter: Path) -> None:
    _is(interpreter, f"#!{sys.executable}\n{_SERVER}")

    answer = Daemon().call("GET", "/version")

    assert answer == {"Version": "9"}
    pid = int((interpreter.parent / "run/pid").read_text())
    assert os.getsid(pid) == pid  # a session of its own: our terminal's ctrl-C does not reach it


def test_a_daemon_that_dies_is_reported_with_its_last_words(interpreter: Path) -> None:
    _is(interpreter, "#!/bin/sh\necho no such kernel feature >&2\nexit 3\n")

    with pytest.raises(FailedError, match=r"ended at once \(exit code 3\)") as caught:
        Daemon().connect()

    assert "no such kernel feature" in caught.value.hint


def test_a_daemon_that_takes_its_socket_and_dies_is_reported_too(interpreter: Path) -> None:
    dying = _SERVER.partition("while True:")[0] + "server.accept()\nprint('bad config')\nexit(4)\n"
    _is(interpreter, f"#!{sys.executable}\n{dying}".replace("import os,", "import os, sys,"))

    with pytest.raises(FailedError, match=r"ended at once \(exit code 4\)") as caught:
        Daemon().connect()

    assert "bad config" in caught.value.hint


def test_a_daemon_that_says_nothing_is_reported_too(interpreter: Path) -> None:
    _is(interpreter, "#!/bin/sh\nexit 1\n")

    with pytest.raises(FailedError) as caught:
        Daemon().connect()

    assert "says nothing about it" in caught.value.hint


def test_one_that_somebody_else_starts_at_that_moment_is_waited_for(
    interpreter: Path, tmp_path: Path
) -> None:
    # The first loses the lock (75) while the other one is still on its way to its socket.
    _is(
        interpreter,
        f"#!/bin/sh\n(sleep 0.3; exec {sys.executable} - <<'END'\n{_SERVER}\nEND\n) &\nexit 75\n",
    )

    assert Daemon().call("GET", "/version") == {"Version": "9"}


def test_a_missing_interpreter_is_reported(interpreter: Path) -> None:
    with pytest.raises(FailedError, match="cannot start the daemon"):
        Daemon().connect()


def test_a_run_directory_that_cannot_be_made_names_the_remedy(
    interpreter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TARE_RUN_DIR", "/proc/nosuch/run")

    with pytest.raises(FailedError, match="cannot start the daemon: /proc/nosuch/run") as caught:
        Daemon().connect()

    assert "TARE_RUN_DIR" in caught.value.hint


def test_a_named_daemon_is_never_started(interpreter: Path, tmp_path: Path) -> None:
    with pytest.raises(FailedError, match="no tare daemon answers"):
        Daemon(str(tmp_path / "other.sock")).connect()

    assert not (tmp_path / "run").exists()


def test_a_socket_that_may_not_be_used_is_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tare.client.transport.Connection", refused)

    with pytest.raises(DeniedError, match="permission denied at the daemon's socket"):
        Daemon("/x").connect()


def test_the_run_directory_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TARE_RUN_DIR", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1234")
    assert run_directory() == "/run/user/1234/tare"

    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert run_directory() == "/tmp/tare-1234"


def test_the_interpreter_of_the_checkout_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TARE_PYTHON", raising=False)

    assert os.access(autostart.interpreter(), os.X_OK)
