"""What the client's tests share: a fake engine, and the command line run in this process."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fakes.engine_http import FakeEngine
from tare.client.cli.main import main


@dataclass
class Said:
    code: int
    out: str
    err: str


Tare = Callable[..., Said]
Docker = Callable[..., Said]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FakeEngine]:
    with FakeEngine(tmp_path / "s") as fake:
        yield fake


@pytest.fixture
def tare(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Tare]:
    """Run a command line in this process against the fake."""
    monkeypatch.setenv("TARE_HOST", str(engine.socket))
    before = {number: signal.getsignal(number) for number in signal.Signals if number != 0}

    def run(*words: str) -> Said:
        capfd.readouterr()
        code = main(list(words))
        said = capfd.readouterr()
        return Said(code, said.out, said.err)

    yield run
    for number, handler in before.items():
        if signal.getsignal(number) is not handler and handler is not None:
            signal.signal(number, handler)


@pytest.fixture
def docker(engine: FakeEngine, tmp_path: Path) -> Docker:
    """Run the real Docker client against the fake; skipped where there is none."""

    def run(*words: str) -> Said:
        env = {
            **os.environ,
            "DOCKER_HOST": f"unix://{engine.socket}",
            "DOCKER_CONFIG": str(tmp_path / "docker"),
        }
        done = subprocess.run(
            ["docker", *words], env=env, capture_output=True, text=True, timeout=20, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return Said(done.returncode, done.stdout, done.stderr)

    try:
        version = subprocess.run(
            ["docker", "--version"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no docker client to compare with")
    if " 28." not in version.stdout:
        pytest.skip(f"another docker client: {version.stdout.strip()}")
    return run
