"""./dev, as a first-time user types it; not the set-up itself: tools/fresh-machine proves that."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from harness.needs import needs

ROOT = Path(__file__).parent.parent
DEV = ROOT / "dev"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(DEV), *arguments], capture_output=True, text=True, check=False, cwd=str(ROOT)
    )


@pytest.fixture(autouse=True)
def set_up() -> None:
    if not (ROOT / ".venv/.tare-run").exists():
        pytest.skip("the checkout was not set up by ./dev")


def test_an_unknown_command_lists_those_there_are() -> None:
    done = run("frobnicate")

    assert done.returncode == 2
    assert "no command 'frobnicate'" in done.stderr
    assert "demo" in done.stderr
    assert done.stdout == ""


def test_an_unknown_set_up_names_the_known() -> None:
    done = run("setup", "everything")

    assert done.returncode == 1
    assert "There are: run, test, bench." in done.stderr


def test_a_second_set_up_says_and_does_nothing() -> None:
    done = run("setup")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_door_adds_little_to_the_client() -> None:
    # Whatever the client answers: the same both ways, so the difference is the door.
    launcher = str(ROOT / ".venv/bin/tare")
    through = min(_took(str(DEV), "tare", "--version") for _ in range(15))
    direct = min(_took(launcher, "--version") for _ in range(15))

    assert through - direct < 0.010


def _took(*command: str) -> float:
    began = time.perf_counter()
    subprocess.run(command, capture_output=True, check=False)
    return time.perf_counter() - began


def test_without_root_the_missing_packages_are_named(tmp_path: Path) -> None:
    needs("root", "userns")
    # A copy that was never set up, on a host whose dpkg knows of nothing, by an ordinary user.
    tmp_path.chmod(0o755)
    for name in ("dev", "requirements"):
        subprocess.run(["cp", "-r", str(ROOT / name), str(tmp_path)], check=True)
    os.chown(tmp_path, 65534, 65534)
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "dpkg-query").write_text("#!/bin/sh\nexit 1\n")
    (tools / "dpkg-query").chmod(0o755)
    _open_the_way(tmp_path)

    done = subprocess.run(
        ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "./dev", "setup"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={"PATH": f"{tools}:/usr/sbin:/usr/bin:/sbin:/bin"},
    )  # fmt: skip

    assert done.returncode == 1
    assert "mmdebstrap" in done.stderr
    assert "sudo ./dev setup run" in done.stderr


def _open_the_way(path: Path) -> None:
    # pytest's own directories are for their owner only; this user must get through.
    for parent in path.parents:
        if parent.stat().st_uid == os.geteuid() and parent.stat().st_mode & 0o077 == 0:
            parent.chmod(0o711)
