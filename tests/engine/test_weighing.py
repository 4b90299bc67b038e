"""The figures of the engine about processes and directories, against what the kernel says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tare.engine import weighing

_HOLD = "data = b'x' * (32 << 20); print('ready', flush=True); input()"


def test_memory_grows_by_what_a_process_holds_and_counts_those_that_live() -> None:
    before = weighing.memory_of([os.getpid()])
    child = subprocess.Popen(
        [sys.executable, "-c", _HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert child.stdout is not None
        child.stdout.readline()
        both = weighing.memory_of([os.getpid(), child.pid])
    finally:
        child.kill()
        child.communicate()

    after = weighing.memory_of([os.getpid(), child.pid])
    assert both.processes == 2
    assert both.anonymous - before.anonymous > 30 << 20
    assert both.pss >= both.anonymous
    assert after.processes == 1


def test_a_hole_occupies_nothing_and_links_are_not_followed(tmp_path: Path) -> None:
    directory = tmp_path / "measured"
    (directory / "below").mkdir(parents=True)
    empty = weighing.blocks_of(directory)
    with open(directory / "sparse", "wb") as file:
        file.truncate(1 << 30)
    with open(directory / "below" / "full", "wb") as file:
        file.write(b"x" * (1 << 20))
        os.fsync(file.fileno())
    (tmp_path / "outside").write_bytes(b"x" * (4 << 20))
    (directory / "link").symlink_to(tmp_path / "outside")

    grown = weighing.blocks_of(directory) - empty

    assert 1 << 20 <= grown < 2 << 20
