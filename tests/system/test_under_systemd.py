"""The engine where systemd owns the control groups: in a unit of its own, and from a shell.

Runs on hosts that systemd has booted with control groups of version 2; test_other_hosts.py boots
one. Units are made in /run/systemd/system, with names of the test's own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from harness.engines import Engine
from harness.needs import needs
from tare.kernel import cgroup

pytestmark = pytest.mark.system

_SOURCE: Final = Path(__file__).resolve().parents[2] / "src"
_TOP: Final = Path("/sys/fs/cgroup")
_MEMORY: Final = 48 << 20


def systemctl(*words: str) -> str:
    """Run it; what it printed."""
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout.strip()


@pytest.fixture
def engine(session_directory: Path, busybox_archive: Path) -> Iterator[Engine]:
    """An engine that nobody has started yet."""
    needs("root", "cgroup", "busybox")
    if not os.path.isdir("/run/systemd/system"):
        pytest.skip("systemd: this host was booted by another init")
    if cgroup.detect().mode is not cgroup.Mode.V2:
        pytest.skip("cgroup: this host has version 1 controllers")
    made = Engine(session_directory / f"sd{os.urandom(2).hex()}")
    made.directory.joinpath("archive").symlink_to(busybox_archive)
    yield made
    left = made.end()
    assert left == []


@pytest.fixture
def unit(engine: Engine) -> Iterator[str]:
    """The name of a unit that runs the engine's daemon, as the one that is shipped."""
    shipped = (_SOURCE.parent / "packaging/systemd/tare.service").read_text()
    name = f"tare-test-{engine.mark}.service"
    boot = f"import sys; sys.path.insert(0, '{_SOURCE}'); from tare.daemon import script; script()"
    command = f'ExecStart={sys.executable} -c "{boot}" --foreground'
    # No socket here, and no limits above those of the host the tests run on.
    text = re.sub(r"^(Requires|After|Wants|Limit\w+|OOMScoreAdjust)=.*\n", "", shipped, flags=re.M)
    text = re.sub(r"^ExecStart=.*$", lambda _: command, text, flags=re.M)
    variables = "".join(
        f'Environment="{key}={value}"\n'
        for key, value in engine.environment.items()
        if key.startswith("TARE_")
    )
    text = text.replace("[Service]\n", f"[Service]\n{variables}")
    path = Path("/run/systemd/system") / name
    path.write_text(text)
    systemctl("daemon-reload")
    yield name
    subprocess.run(["systemctl", "stop", name], check=False)
    engine.stop()
    path.unlink()
    systemctl("daemon-reload")


def group_of(pid: int) -> Path:
    """The version 2 group of a process, in the tree as the host sees it."""
    return _TOP / Path(f"/proc/{pid}/cgroup").read_text().strip().partition("::/")[2]


def begin(engine: Engine) -> tuple[str, Path]:
    """A container with limits: its id, and its group."""
    engine.out("load", "-q", "-i", str(engine.directory / "archive"))
    limits = ("--memory", str(_MEMORY), "--pids-limit", "33", "--cpus", "0.5")
    identity = engine.out("run", "-d", *limits, "busybox:latest", "sleep", "1000")
    (shown,) = engine.all().values()
    return identity, group_of(shown.pid)


def check(group: Path) -> None:
    """Whether the limits are in force, by the kernel's own files."""
    assert (group / "memory.max").read_text().strip() == str(_MEMORY)
    assert (group / "pids.max").read_text().strip() == "33"
    assert (group / "cpu.max").read_text().split()[0] == "50000"


def test_what_is_started_from_a_shell_keeps_its_limits_when_systemd_reads_its_units(
    engine: Engine,
) -> None:
    identity, group = begin(engine)
    check(group)
    assert engine.parent in group.parts

    systemctl("daemon-reload")
    systemctl("daemon-reexec")

    check(group)
    assert engine.out("exec", identity, "echo", "here") == "here"
    hungry = engine.tare("run", "--rm", "-m", "16m", "busybox", "sh", "-c", "tail /dev/zero")
    assert hungry.returncode == 137


def test_a_restart_of_its_unit_ends_nothing_and_the_daemon_comes_back(
    engine: Engine, unit: str
) -> None:
    systemctl("start", unit)
    identity, group = begin(engine)
    pid = engine.all().popitem()[1].pid
    check(group)
    # Below the unit, systemd could not put the next daemon into the unit's own group.
    assert unit not in group.parts

    systemctl("daemon-reload")
    check(group)
    daemon = engine.daemon()
    systemctl("restart", unit)

    assert engine.daemon() not in (0, daemon)
    assert group_of(pid) == group
    check(group)
    assert engine.out("exec", identity, "echo", "here") == "here"
    assert engine.out("run", "--rm", "-m", "32m", "busybox", "echo", "another") == "another"
