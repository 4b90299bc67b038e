"""A directory as a build context: what is sent, read back by another reader of archives."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from tare.client.packing import pack
from tare.errors import InvalidError


def packed(directory: Path, ignore: str = "none") -> dict[str, tarfile.TarInfo]:
    data = b"".join(pack(str(directory), str(directory / ignore)))
    assert len(data) % 512 == 0
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {entry.name: entry for entry in archive}


def test_files_directories_and_links_are_sent_with_their_modes(tmp_path: Path) -> None:
    (tmp_path / "d/e").mkdir(parents=True)
    (tmp_path / "d/e/f").write_bytes(b"x" * 1000)
    (tmp_path / "d/e/f").chmod(0o4750)
    (tmp_path / "d/link").symlink_to("../../outside")
    os.mkfifo(tmp_path / "fifo")
    os.utime(tmp_path / "d/e/f", (1_000_000_000, 1_000_000_000))

    found = packed(tmp_path)

    assert list(found) == ["d", "d/e", "d/link", "d/e/f"]
    assert found["d/e/f"].size == 1000 and found["d/e/f"].mode == 0o4750
    assert found["d/e/f"].mtime == 1_000_000_000
    assert found["d/link"].linkname == "../../outside"
    assert {entry.uid for entry in found.values()} == {0}


@pytest.mark.parametrize("length", [99, 100, 101, 200, 255])
def test_names_of_any_length_come_through(tmp_path: Path, length: int) -> None:
    name = "n" * length
    (tmp_path / name).write_text("x")
    (tmp_path / "l").symlink_to("t" * length)

    found = packed(tmp_path)

    assert set(found) == {name, "l"}
    assert found["l"].linkname == "t" * length


def test_names_are_bytes(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\xfe")
    (tmp_path / name).write_text("x")

    assert list(packed(tmp_path)) == [name]


def test_large_contexts_leave_out_what_the_ignore_file_names(tmp_path: Path) -> None:
    (tmp_path / ".dockerignore").write_text("out\nd\n!d/kept\n")
    for name in ("out/f", "d/f", "d/kept", "in"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "large").write_bytes(bytes(2 << 20))

    assert set(packed(tmp_path, ".dockerignore")) == {".dockerignore", "in", "large", "d/kept"}


def test_small_ones_are_sent_whole_since_the_builder_leaves_out_too(tmp_path: Path) -> None:
    (tmp_path / ".dockerignore").write_text("out\n")
    (tmp_path / "out").write_text("x")

    assert set(packed(tmp_path, ".dockerignore")) == {".dockerignore", "out"}


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="cannot read"):
        packed(tmp_path / "none")
