"""run, exec, attach and start: streams, exit codes, signals and terminals."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from client.conftest import Tare
from fakes.engine_http import ID, Answer, FakeEngine, Request, frame
from tare.client.streams import Frames
from tare.client.terminal import Escape, keys
from tare.errors import InvalidError

_SOURCE = str(Path(__file__).resolve().parents[2] / "src")
_CODE = "import sys; from tare.client.cli.main import main; sys.exit(main(sys.argv[1:]))"


def _report(code: int = 0, **more: object) -> bytes:
    import json

    return frame(3, json.dumps({"Id": ID, "StatusCode": code, **more}).encode())


def test_both_streams_and_the_exit_code_come_through(tare: Tare, engine: FakeEngine) -> None:
    stream = frame(1, b"out\n") + frame(2, b"err\n") + _report(42)
    engine.answers["POST /tare/run"] = Answer(stream=stream)

    said = tare("run", "--rm", "--name", "x", "debian", "true")

    assert (said.code, said.out, said.err) == (42, "out\n", "err\n")
    asked = engine.of("POST", "/tare/run")[0].json()
    assert asked["Name"] == "x"
    assert asked["HostConfig"] == {"AutoRemove": True}


@pytest.mark.parametrize(
    ("message", "status", "code"),
    [
        ('exec: "x": executable file not found in $PATH', 400, 127),
        ("stat /x: no such file or directory", 400, 127),
        ('exec: "/etc": permission denied', 400, 126),
        ('exec: "/etc": is a directory', 400, 126),
        ("Conflict. The container name is in use", 409, 125),
        ("something broke", 500, 125),
    ],
)
def test_a_failed_start_exits_with_dockers_code(
    message: str, status: int, code: int, tare: Tare, engine: FakeEngine
) -> None:
    engine.answers["POST /tare/run"] = Answer(status, {"message": message, "hint": "do that"})

    said = tare("run", "debian", "x")

    assert said.code == code
    assert said.err == f"tare: {message}\n  do that\n"


def test_the_daemon_may_say_the_exit_code(tare: Tare, engine: FakeEngine) -> None:
    engine.answers["POST /tare/run"] = Answer(500, {"message": "no", "exitCode": 126})

    assert tare("run", "debian", "x").code == 126


def test_a_missing_image_names_the_remedy(tare: Tare, engine: FakeEngine) -> None:
    engine.answers["POST /tare/run"] = Answer(404, {"message": "No such image: debian:latest"})

    said = tare("run", "--pull", "never", "debian")

    assert said.code == 125
    assert said.err.startswith("tare: unable to find image 'debian:latest' locally\n  Make it")
    assert "tare image bootstrap" in said.err


def test_a_missing_image_is_pulled_and_a_failed_pull_is_the_error(
    tare: Tare, engine: FakeEngine
) -> None:
    engine.answers["POST /tare/run"] = Answer(404, {"message": "No such image: debian:latest"})
    engine.answers["POST /images/create"] = Answer(404, {"message": "manifest unknown"})

    said = tare("run", "debian")

    assert said.code == 125
    assert said.err.startswith(
        "Unable to find image 'debian:latest' locally\ntare: manifest unknown"
    )
    assert "tare image bootstrap debian" in said.err
    assert engine.of("POST", "/images/create")[0].query == {
        "fromImage": "docker.io/library/debian",
        "tag": "latest",
    }


def test_a_daemon_that_dies_is_not_taken_for_an_exit(tare: Tare, engine: FakeEngine) -> None:
    engine.answers["POST /tare/run"] = Answer(stream=frame(1, b"half"))

    said = tare("run", "debian")

    assert said.code == 125
    assert "the daemon ended while the container ran" in said.err


def test_an_oom_kill_is_said_with_the_limit(tare: Tare, engine: FakeEngine) -> None:
    engine.answers["POST /tare/run"] = Answer(stream=_report(137, OOMKilled=True))

    said = tare("run", "-m", "64m", "debian")

    assert said.code == 137
    assert "more memory than its limit (--memory 64MiB)" in said.err


def test_warnings_and_the_id_come_with_the_head(
    tare: Tare, engine: FakeEngine, tmp_path: Path
) -> None:
    headers = {"Tare-Id": "abc", "Tare-Warnings": '["no swap"]'}
    engine.answers["POST /tare/run"] = Answer(stream=_report(), headers=headers)

    said = tare("run", "--cidfile", str(tmp_path / "cid"), "debian")

    assert said.err == "WARNING: no swap\n"
    assert (tmp_path / "cid").read_text() == "abc"


def test_an_existing_cidfile_stops_before_anything_is_asked(
    tare: Tare, engine: FakeEngine, tmp_path: Path
) -> None:
    (tmp_path / "cid").touch()

    said = tare("run", "--cidfile", str(tmp_path / "cid"), "debian")

    assert said.code == 125
    assert "container ID file found" in said.err
    assert not engine.asked


def _spawn(engine: FakeEngine, *words: str, **more: object) -> subprocess.Popen[bytes]:
    env = {**os.environ, "TARE_HOST": str(engine.socket), "PYTHONPATH": _SOURCE}
    streams = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        **more,
    }
    return subprocess.Popen([sys.executable, "-c", _CODE, *words], env=env, **streams)  # type: ignore[call-overload, no-any-return]


def test_input_of_any_size_goes_in_while_output_comes_out(engine: FakeEngine) -> None:
    # More both ways than all buffers hold: either side alone would block.
    data = os.urandom(3 << 20)
    engine.answers["POST /tare/run"] = Answer(stream=b"", echo=True, last=_report())

    process = _spawn(engine, "run", "-i", "debian", "cat")
    out, err = process.communicate(data, timeout=30)

    assert out == data
    assert (process.returncode, err) == (0, b"")


def test_signals_are_sent_to_the_container(engine: FakeEngine) -> None:
    import threading

    killed = threading.Event()
    signals: list[str] = []

    def kill(request: Request) -> Answer:
        signals.append(request.query["signal"])
        killed.set()
        return Answer(204)

    class Held(Answer):
        """The program ends when it is killed."""

        @property
        def last(self) -> bytes:
            killed.wait(10)
            return _report(143)

        @last.setter
        def last(self, _: bytes) -> None: ...

    engine.answers[f"POST /containers/{ID}/kill"] = kill
    engine.answers["POST /tare/run"] = Held(stream=frame(1, b"ready\n"), headers={"Tare-Id": ID})
    process = _spawn(engine, "run", "debian")
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"

    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)

    assert signals == ["SIGTERM"]
    assert process.returncode == 143


def test_exec_gives_the_exit_code_of_the_program(tare: Tare, engine: FakeEngine) -> None:
    engine.answers["POST /containers/c/exec"] = Answer(201, {"Id": "e"})
    engine.answers["POST /exec/e/start"] = Answer(stream=frame(2, b"oops\n"))
    engine.answers["GET /exec/e/json"] = Answer(200, {"ExitCode": 9})

    said = tare("exec", "-e", "A=1", "c", "sh", "-c", "exit 9")

    assert (said.code, said.err) == (9, "oops\n")
    assert engine.of("POST", "/containers/c/exec")[0].json()["Cmd"] == ["sh", "-c", "exit 9"]


def test_exec_of_a_missing_program_exits_127(tare: Tare, engine: FakeEngine) -> None:
    engine.answers["POST /containers/c/exec"] = Answer(201, {"Id": "e"})
    message = {"message": 'exec: "x": executable file not found in $PATH'}
    engine.answers["POST /exec/e/start"] = Answer(400, message)

    assert tare("exec", "c", "x").code == 127


def test_a_terminal_is_raw_sized_and_detachable(engine: FakeEngine) -> None:
    raw_stream = {"Content-Type": "application/vnd.docker.raw-stream"}
    engine.answers.update({
        "POST /containers/create": Answer(201, {"Id": ID, "Warnings": []}),
        f"POST /containers/{ID}/attach": Answer(stream=b"prompt# ", headers=raw_stream, echo=True),
        f"POST /containers/{ID}/wait": Answer(200, {"StatusCode": 0}),
        f"POST /containers/{ID}/start": Answer(204),
        f"POST /containers/{ID}/resize": Answer(200),
    })  # fmt: skip
    ours, theirs = pty.openpty()
    import fcntl
    import struct
    import termios

    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
    before = termios.tcgetattr(theirs)
    process = _spawn(
        engine, "run", "-it", "debian", "sh", stdin=theirs, stdout=theirs, stderr=theirs
    )
    try:
        seen = _until(ours, b"prompt# ")
        os.write(ours, b"\x10\x11")  # ctrl-p ctrl-q
        seen += _until(ours, b"read escape sequence")
        assert process.wait(10) == 0
        assert termios.tcgetattr(theirs) == before
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)

    assert b"prompt# " in seen
    created = engine.of("POST", "/containers/create")[0].json()
    assert created["HostConfig"] == {"ConsoleSize": [33, 99]}
    assert engine.of("POST", f"/containers/{ID}/resize")[0].query == {"h": "33", "w": "99"}


def _until(descriptor: int, wanted: bytes) -> bytes:
    seen = b""
    while wanted not in seen:
        ready, _, _ = select.select([descriptor], [], [], 10)
        assert ready, seen
        seen += os.read(descriptor, 4096)
    return seen


def test_it_without_a_terminal_is_refused(tare: Tare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tare.client.terminal.is_terminal", lambda _: False)

    said = tare("run", "-it", "debian")

    assert (said.code, said.err.splitlines()[0]) == (1, "tare: the input device is not a TTY")


def test_frames_may_be_cut_anywhere() -> None:
    whole = frame(1, b"hello") + frame(2, b"") + frame(2, b"err") + _report(3)
    for step in range(1, len(whole)):
        out: list[bytes] = []
        err: list[bytes] = []
        frames = Frames({1: out.append, 2: err.append})
        for at in range(0, len(whole), step):
            frames.feed(whole[at : at + step])
        assert (b"".join(out), b"".join(err), frames.report["StatusCode"]) == (b"hello", b"err", 3)


def test_detach_keys_may_come_one_by_one_and_false_starts_go_through() -> None:
    escape = Escape(keys("ctrl-p,ctrl-q"))

    passed = b"".join(escape.feed(bytes((key,))) for key in b"a\x10b\x10\x10\x11c")

    assert escape.found
    assert passed.startswith(b"a\x10b\x10")


@pytest.mark.parametrize("text", ["ctrl-é", "ctrl-", "ab", "ctrl-1", ""])
def test_wrong_detach_keys_are_refused(text: str) -> None:
    with pytest.raises(InvalidError, match="invalid detach keys"):
        keys(text)
