"""The own initramfs writer, read by another program."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tare.vm.cpio import Entry, archive


def test_another_reader_finds_what_was_written(tmp_path: Path) -> None:
    program = shutil.which("busybox")
    if program is None:
        pytest.skip("no busybox to read the archive with")
    entries = [Entry("a"), Entry("a/file", b"content\n" * 99), Entry("empty", b"")]
    written = archive([*entries, Entry("null", device=(1, 3))])

    subprocess.run(
        [program, "cpio", "-idm"], cwd=tmp_path, input=written, check=True, capture_output=True
    )

    assert (tmp_path / "a/file").read_bytes() == b"content\n" * 99
    assert (tmp_path / "a/file").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "empty").read_bytes() == b""
    node = (tmp_path / "null").stat()
    assert stat.S_ISCHR(node.st_mode)
    assert node.st_rdev == 0x103


def test_each_record_begins_at_a_multiple_of_four() -> None:
    written = archive([Entry("x" * length, b"y" * length) for length in range(1, 9)])

    assert len(written) % 4 == 0
    assert written.count(b"070701") == 9
