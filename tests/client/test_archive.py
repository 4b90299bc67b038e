"""Unpacking what a hostile container hands out (attack A23), and packing."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tare.client.archive import Pieces, Unpacker, packed
from tare.errors import TareError

Entry = tuple[str, dict[str, object]]


def _tar(entries: list[Entry]) -> Iterator[bytes]:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, fields in entries:
            info = tarfile.TarInfo(name)
            content = fields.pop("content", b"")
            assert isinstance(content, bytes)
            info.size = len(content)
            for key, value in fields.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content))
    return iter([out.getvalue()])


def _unpack(entries: list[Entry], where: Path, rename: str = "") -> Unpacker:
    unpacker = Unpacker(str(where), rename=rename)
    try:
        unpacker.unpack(Pieces(_tar(entries)))
    finally:
        unpacker.close()
    return unpacker


def _link(name: str, to: str) -> Entry:
    return name, {"type": tarfile.SYMTYPE, "linkname": to}


OUTSIDE: dict[str, Callable[[Path], list[Entry]]] = {
    "dotdot": lambda _: [("../canary", {"content": b"x"})],
    "inner dotdot": lambda _: [("a/../../canary", {"content": b"x"})],
    "absolute": lambda p: [(f"{p}/canary", {"content": b"x"})],
    "through a link": lambda p: [_link("a", str(p)), ("a/canary", {"content": b"x"})],
    "through a chain": lambda _: [_link("b", ".."), _link("a", "b"),
        ("a/canary", {"content": b"x"})],
    "hard link out": lambda p: [
        ("a", {"type": tarfile.LNKTYPE, "linkname": f"{p}/canary"}), ("a", {"content": b"x"})],
    "hard link up": lambda _: [("a", {"type": tarfile.LNKTYPE, "linkname": "../canary"})],
    "hard link to a link": lambda p: [
        _link("l", f"{p}/canary"), ("a", {"type": tarfile.LNKTYPE, "linkname": "l"})],
    "directory over a link": lambda p: [
        _link("a", str(p)), ("a", {"type": tarfile.DIRTYPE, "mode": 0o777})],
    "deep": lambda _: [("/".join("d" * 5000), {"content": b"x"})],
}  # fmt: skip


@pytest.mark.attack("A23")
@pytest.mark.parametrize("name", OUTSIDE)
def test_nothing_lands_outside(name: str, tmp_path: Path) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    canary = tmp_path / "canary"
    canary.write_text("alive")
    before = stat.S_IMODE(tmp_path.stat().st_mode)

    with pytest.raises(TareError):
        _unpack(OUTSIDE[name](tmp_path), inside)

    assert canary.read_text() == "alive"
    assert stat.S_IMODE(tmp_path.stat().st_mode) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["canary", "in"]


@pytest.mark.attack("A23")
def test_a_file_replaces_a_link_and_not_what_it_points_to(tmp_path: Path) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    (tmp_path / "canary").write_text("alive")

    _unpack([_link("a", "../canary"), ("a", {"content": b"x"})], inside)

    assert (tmp_path / "canary").read_text() == "alive"
    assert (inside / "a").read_bytes() == b"x"
    assert not (inside / "a").is_symlink()


@pytest.mark.attack("A23")
def test_modes_lose_setuid_and_obey_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        _unpack(
            [("d", {"type": tarfile.DIRTYPE, "mode": 0o7777}), ("d/f", {"mode": 0o6777})], tmp_path
        )
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "d/f").stat().st_mode) == 0o750


@pytest.mark.attack("A23")
def test_devices_and_fifos_are_left_out_and_named(tmp_path: Path) -> None:
    unpacker = _unpack(
        [("dev", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}),
         ("fifo", {"type": tarfile.FIFOTYPE}), ("ok", {"content": b"x"})],
        tmp_path,
    )  # fmt: skip

    assert unpacker.skipped == ["dev", "fifo"]
    assert [p.name for p in tmp_path.iterdir()] == ["ok"]


def test_a_truncated_archive_is_an_error(tmp_path: Path) -> None:
    whole = b"".join(_tar([("f", {"content": b"x" * 5000})]))
    unpacker = Unpacker(str(tmp_path))

    with pytest.raises(TareError):
        unpacker.unpack(Pieces(iter([whole[:2000]])))
    unpacker.close()


def test_what_is_packed_comes_out_the_same(tmp_path: Path) -> None:
    source = tmp_path / "src"
    (source / "sub").mkdir(parents=True)
    (source / "sub/file").write_bytes(b"x" * 700_000)
    (source / "empty").write_bytes(b"")
    (source / "link").symlink_to("sub/file")
    (source / "ro").mkdir(mode=0o555)
    out = tmp_path / "out"
    out.mkdir()
    unpacker = Unpacker(str(out), rename="new")

    unpacker.unpack(Pieces(packed(str(source), "top")))
    unpacker.close()

    assert (out / "new/sub/file").read_bytes() == b"x" * 700_000
    assert (out / "new/link").readlink() == Path("sub/file")
    assert stat.S_IMODE((out / "new/ro").stat().st_mode) == 0o555
    assert unpacker.size == 700_000
