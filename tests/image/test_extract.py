"""The extractor beyond what all makers of layers share: plain archives, namespaces, full disks."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.trees import in_private_mounts, mount, snapshot
from security import rawtar
from security.rawtar import archive, directory, hardlink, member, symlink
from tare.errors import ConflictError, FailedError, InvalidError
from tare.image import erofs, extract, tar
from tare.image.extract import Rules
from tare.image.whiteout import LayerSummary

Isolated = Callable[[Callable[[], None]], None]
PLAIN = Rules(layer=False, owner=None)


def put(data: bytes, out: Path, rules: Rules) -> LayerSummary:
    out.mkdir(exist_ok=True)
    root = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    before = len(os.listdir("/proc/self/fd"))
    try:
        return extract.extract(tar.read(io.BytesIO(data)), root, rules=rules)
    finally:
        assert len(os.listdir("/proc/self/fd")) == before, "a descriptor was left open"
        os.close(root)


def test_a_plain_archive_may_hold_names_that_look_like_whiteouts(tmp_path: Path) -> None:
    data = archive(member(b".wh.x", b"1"), member(b"d/.wh..wh..opq", b"2"))

    put(data, tmp_path / "out", PLAIN)

    assert (tmp_path / "out" / ".wh.x").read_bytes() == b"1"
    assert (tmp_path / "out" / "d" / ".wh..wh..opq").read_bytes() == b"2"


def test_what_was_there_stays_beside_what_comes(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "old").write_text("old")

    put(archive(directory(b"d", mode=0o700), member(b"d/new", b"new")), tmp_path, PLAIN)

    assert sorted(os.listdir(tmp_path / "d")) == ["new", "old"]
    assert stat.S_IMODE(os.stat(tmp_path / "d").st_mode) == 0o700


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (archive(directory(b"file")), "cannot overwrite non-directory 'file'"),
        (archive(directory(b"link")), "cannot overwrite non-directory 'link'"),
        (archive(member(b"dir")), "cannot overwrite directory 'dir'"),
        (archive(symlink(b"dir", b"x")), "cannot overwrite directory 'dir'"),
    ],
)
def test_kinds_are_not_replaced_when_that_is_not_wanted(
    tmp_path: Path, data: bytes, words: str
) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "in").touch()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("dir")
    before = set(snapshot(tmp_path))

    with pytest.raises(ConflictError, match=words):
        put(data, tmp_path, Rules(layer=False, owner=None, replace_types=False))

    assert set(snapshot(tmp_path)) == before


def test_a_deep_tree_in_the_way_is_removed_without_recursion(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    os.mkdir("top", dir_fd=here)
    current = os.open("top", os.O_RDONLY, dir_fd=here)
    for _ in range(600):
        os.mkdir("d", dir_fd=current)
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=current))
        below = os.open("d", os.O_RDONLY, dir_fd=current)
        os.close(current)
        current = below
    os.close(current)
    os.close(here)

    put(archive(member(b"top", b"x")), tmp_path, PLAIN)

    assert (tmp_path / "top").read_bytes() == b"x"


@pytest.mark.needs("root")
def test_owners_are_mapped_or_left_to_the_caller(tmp_path: Path) -> None:
    data = archive(directory(b"d", uid=1, gid=2), member(b"f", uid=1, gid=2), symlink(b"l", b"x"))

    put(data, tmp_path / "moved", Rules(owner=lambda uid, gid: (uid + 1000, gid + 2000)))
    put(data, tmp_path / "ours", PLAIN)

    moved, ours = snapshot(tmp_path / "moved"), snapshot(tmp_path / "ours")
    assert {(moved[n].uid, moved[n].gid) for n in (b"d", b"f")} == {(1001, 2002)}
    assert (moved[b"l"].uid, moved[b"l"].gid) == (1000, 2000)
    assert {(node.uid, node.gid) for node in ours.values()} == {(os.geteuid(), os.getegid())}


def test_modes_can_be_masked(tmp_path: Path) -> None:
    data = archive(member(b"f", mode=0o6777), directory(b"d", mode=0o7777))

    put(data, tmp_path, Rules(layer=False, owner=None, mode_mask=0o755))

    assert {stat.S_IMODE(os.stat(tmp_path / n).st_mode) for n in "fd"} == {0o755}


def test_a_directory_without_permissions_is_filled_all_the_same(tmp_path: Path) -> None:
    put(archive(directory(b"d", mode=0, mtime=5), member(b"d/f", b"x")), tmp_path, PLAIN)

    found = os.stat(tmp_path / "d")
    assert (stat.S_IMODE(found.st_mode), found.st_mtime) == (0, 5)


def test_a_replaced_directory_does_not_hand_on_its_time(tmp_path: Path) -> None:
    data = archive(
        directory(b"d", mode=0o711, mtime=5), member(b"d"), member(b"d"), directory(b"e", mtime=6)
    )

    put(data, tmp_path, PLAIN)

    assert (tmp_path / "d").is_file()
    assert os.stat(tmp_path / "e").st_mtime == 6


@pytest.mark.needs("root")
def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    data = archive(*[member(b"f%d" % n, b"x" * 100_000) for n in range(30)])

    def work() -> list[str]:
        told = []
        mount("-t", "tmpfs", "-o", "size=1m", "none", "/mnt")
        with pytest.raises(FailedError, match=r"cannot write 'f.*No space left") as caught:
            put(data, Path("/mnt"), PLAIN)
        told.append(caught.value.hint)
        for name in os.listdir("/mnt"):
            os.unlink(f"/mnt/{name}")
        with (
            pytest.raises(FailedError, match="cannot write the layer: No space left") as caught,
            open("/mnt/layer", "wb", buffering=0) as out,
        ):
            erofs.convert(tar.read(io.BytesIO(data)), out)
        return [*told, caught.value.hint]

    assert all("prune" in hint for hint in in_private_mounts(work))


@pytest.mark.needs("userns", "overlay")
def test_a_layer_is_extracted_and_mounted_without_root(isolated: Isolated, tmp_path: Path) -> None:
    lower = archive(member(b"gone"), member(b"kept"), member(b"o/old"), member(b"e/old"))
    upper = archive(
        member(b".wh.gone"),
        member(b"o/.wh..wh..opq"),
        member(b"o/new"),
        member(b".wh.e"),
        directory(b"e"),
        rawtar.header(b"null", type_=b"3", device=(1, 3)),
    )

    def work() -> None:
        rules = Rules(userxattr=True, devices=False)
        for name, data in (("lower", lower), ("upper", upper)):
            summary = put(data, tmp_path / name, rules)
        assert summary.skipped_devices == 1
        (tmp_path / "merged").mkdir()
        lowers = f"lowerdir={tmp_path}/upper:{tmp_path}/lower,userxattr"
        mount("-t", "overlay", "-o", lowers, "none", tmp_path / "merged")
        assert set(snapshot(tmp_path / "merged")) == {b"", b"kept", b"o", b"o/new", b"e"}

    isolated(work)


def test_a_link_may_not_lead_out_by_a_directory_that_was_there(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "out" / "way").symlink_to("..")

    for data in (
        archive(hardlink(b"h", b"way/secret")),
        archive(member(b"way/new")),
        archive(directory(b"way/new")),
    ):
        with pytest.raises(InvalidError, match=r"not in the archive|not a directory"):
            put(data, tmp_path / "out", PLAIN)

    assert sorted(os.listdir(tmp_path)) == ["out", "secret"]
