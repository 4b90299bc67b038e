"""Payloads of A12, A13, A19 and A46 to A48 on a runtime without walls: there they win.

What the other files of this folder show to fail in a container would prove nothing if it failed
everywhere. Here is nothing that harms the host: values are written back as they were, and what
is used up is used up for a second.
"""

from __future__ import annotations

import os
import platform
import pty
import stat
import subprocess
import termios
from pathlib import Path

import pytest

from security import naive
from security.sysrun import DATA, Call, program, results
from tare.run.walls import MASKED_PATHS

pytestmark = [pytest.mark.needs("root", "busybox")]

_ENOUGH_PIDS = 2500  # more than the limit that containers have without asking
_ENOUGH_MEMORY = 100 << 20


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = naive.lay(tmp_path / "root", {})
    (made / "dev/null").write_bytes(b"")  # a background job's input
    return made


@pytest.mark.attack("A12")
def test_control_a_naive_runtime_shows_what_should_be_masked(root: Path) -> None:
    paths = " ".join(p for p in MASKED_PATHS if p.startswith("/proc/"))
    script = f"for p in {paths}; do [ -f $p ] && head -c 1 $p >/dev/null 2>&1 && echo $p; done"

    _, output, _ = naive.run(root, "sh", "-c", script, proc=True)

    assert output.split()


@pytest.mark.attack("A12")
def test_control_a_naive_runtime_lets_the_kernel_be_told(root: Path) -> None:
    names = ("kernel/core_pattern", "kernel/msgmax", "vm/panic_on_oom")
    script = "; ".join(
        f'v=$(cat /proc/sys/{n}); echo "$v" >/proc/sys/{n} && echo written' for n in names
    )

    _, output, _ = naive.run(root, "sh", "-c", script, proc=True)

    assert output.split() == ["written"] * len(names)


@pytest.mark.attack("A12")
def test_control_a_naive_runtime_lets_a_mask_be_taken_off(root: Path) -> None:
    script = "head -c 1 /proc/timer_list | wc -c; umount /proc/timer_list && cat /proc/timer_list"

    _, output, _ = naive.run(root, "sh", "-c", script, proc=True, masks=("/proc/timer_list",))

    assert output.startswith("0\n")
    assert len(output) > 100


@pytest.mark.attack("A13")
def test_control_a_naive_runtime_makes_and_opens_devices(root: Path) -> None:
    os.mknod(root / "n5", 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    script = (
        "mknod /x c 1 5 && head -c 3 /x | wc -c; head -c 3 /n5 | wc -c; mknod /k c 1 11 && echo"
    )

    _, output, _ = naive.run(root, "sh", "-c", script)

    assert output.split() == ["3", "3"]
    assert stat.S_ISCHR((root / "k").stat().st_mode)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="sysrun: x86_64 only")
@pytest.mark.attack("A19")
def test_control_a_program_on_the_callers_terminal_types_into_it(tmp_path: Path) -> None:
    legacy = Path("/proc/sys/dev/tty/legacy_tiocsti")
    if legacy.exists() and legacy.read_text().strip() == "0":
        pytest.skip("this kernel has no TIOCSTI for anybody")
    file = tmp_path / "sysrun"
    file.write_bytes(program([Call("x86_64", 16, (0, termios.TIOCSTI, DATA))], b"\n"))
    file.chmod(0o755)
    master, slave = pty.openpty()
    try:
        command = ["setsid", "--ctty", "--wait", str(file)]
        done = subprocess.run(command, stdin=slave, stdout=subprocess.PIPE, check=True)

        assert results(done.stdout) == [0]
        assert os.read(slave, 10) == b"\n"
    finally:
        os.close(master)
        os.close(slave)


@pytest.mark.attack("A46")
def test_control_a_naive_runtime_lets_processes_be_made_without_end(root: Path) -> None:
    script = (
        f"i=0; while [ $i -lt {_ENOUGH_PIDS} ]; do sleep 1000 & i=$((i+1)); done;"
        " ls /proc | grep -c '^[0-9]'"
    )

    _, output, _ = naive.run(root, "sh", "-c", script, proc=True)

    assert int(output.split()[-1]) > _ENOUGH_PIDS


@pytest.mark.attack("A47")
def test_control_a_naive_runtime_gives_whatever_memory_is_wanted(root: Path) -> None:
    script = f"dd if=/dev/zero of=/dev/null bs={_ENOUGH_MEMORY} count=1 2>&1; echo alive"

    code, output, _ = naive.run(root, "sh", "-c", script)

    assert code == 0
    assert output.endswith("alive\n")


@pytest.mark.attack("A48")
def test_control_a_naive_runtime_keeps_all_that_is_printed(root: Path) -> None:
    _, output, _ = naive.run(root, "sh", "-c", "yes | head -c 45000000")

    assert len(output) == 45_000_000
