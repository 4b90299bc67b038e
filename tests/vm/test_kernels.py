"""Debian's kernel made ready once, whole or not at all."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tare.errors import MissingError
from tare.vm import disks
from tare.vm.kernels import Kernels


def test_a_kernel_that_is_ready_is_not_fetched_again(
    kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Kernels, "_fetch", lambda _: pytest.fail("it was fetched"))

    ready = kernels.prepare()

    assert ready.vmlinux.read_bytes()[:4] == b"\x7fELF"
    assert ready.initramfs.read_bytes()[:6] == b"070701"
    assert len(ready.sha256) == 64
    assert kernels.ready()[-1] == ready


def test_what_a_crash_left_half_made_goes(kernels: Kernels) -> None:
    (kernels.directory / ".tmp-kernel").mkdir()
    (kernels.directory / ".tmp-kernel/part").write_text("x")
    (kernels.directory / ".tmp-init-1").write_text("x")

    kernels.prepare()

    assert not list(kernels.directory.glob(".tmp-*"))


def test_a_directory_without_its_last_file_is_not_a_kernel(tmp_path: Path) -> None:
    (tmp_path / "6.1").mkdir()
    (tmp_path / "6.1/vmlinux").write_bytes(b"\x7fELF")

    assert Kernels(tmp_path).ready() == []


def test_without_a_compiler_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)

    with pytest.raises(MissingError) as failed:
        Kernels(tmp_path).init()

    assert failed.value.hint == "apt-get install gcc libc6-dev"


def test_an_empty_disk_is_sparse_and_so_is_its_copy(kernels: Kernels, tmp_path: Path) -> None:
    blank = kernels.blank(disks.SIZE)
    disks.copy_sparse(blank, tmp_path / "copy")

    copy = (tmp_path / "copy").stat()
    assert copy.st_size == disks.SIZE
    assert copy.st_blocks * 512 < 16 << 20
    assert copy.st_mode & 0o777 == 0o600
    fsck = shutil.which("fsck.ext4", path="/usr/sbin:/sbin")
    assert fsck is not None
    subprocess.run([fsck, "-fn", tmp_path / "copy"], check=True, capture_output=True)


def test_a_copy_is_whole_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        disks.copy_sparse(tmp_path / "none", tmp_path / "copy")

    assert os.listdir(tmp_path) == []
