"""The tar writer: what it writes is read back the same, by us, by tarfile and by GNU tar."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tare.errors import FailedError, InvalidError
from tare.image import tar
from tare.image.tar import Entry, Kind, TarWriter

component = st.binary(min_size=1, max_size=120).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
path = st.lists(component, min_size=1, max_size=4).map(b"/".join)
number = st.one_of(st.integers(0, 5000), st.integers(0, 2**32 - 2))
xattr_name = st.binary(min_size=1, max_size=30).filter(lambda k: b"=" not in k and b"\0" not in k)


@st.composite
def an_entry(draw: st.DrawFn) -> tuple[Entry, bytes]:
    kind = draw(st.sampled_from(list(Kind)))
    data = draw(st.binary(max_size=1500)) if kind is Kind.FILE else b""
    linkname = b""
    if kind is Kind.HARDLINK:
        linkname = draw(path)
    elif kind is Kind.SYMLINK:
        linkname = draw(st.one_of(path, path.map(lambda p: b"../" + p)))
    device = kind in (Kind.CHAR, Kind.BLOCK)
    entry = Entry(
        path=draw(path),
        kind=kind,
        mode=draw(st.integers(0, 0o7777)),
        uid=draw(number),
        gid=draw(number),
        mtime_ns=draw(st.integers(-(10**18), 10**19)),
        size=len(data),
        linkname=linkname,
        major=draw(st.integers(0, 0xFFF)) if device else 0,
        minor=draw(st.integers(0, 0xFFFFF)) if device else 0,
        xattrs=draw(st.dictionaries(xattr_name, st.binary(max_size=50), max_size=3)),
    )
    return entry, data


def written(*members: tuple[Entry, bytes]) -> bytes:
    out = io.BytesIO()
    writer = TarWriter(out)
    for entry, data in members:
        writer.add(entry, [data])
    writer.close()
    return out.getvalue()


@given(st.lists(an_entry(), max_size=4))
@settings(max_examples=200, deadline=None)
def test_what_is_written_is_read_back_the_same(members: list[tuple[Entry, bytes]]) -> None:
    data = written(*members)

    read = [(entry, content.read()) for entry, content in tar.read(io.BytesIO(data))]

    assert read == members
    assert data == written(*members), "not deterministic"
    with tarfile.open(fileobj=io.BytesIO(data)) as theirs:
        names = [m.name.encode("utf-8", "surrogateescape") for m in theirs]
    assert names == [entry.path for entry, _ in members]


def test_gnu_tar_extracts_it(tmp_path: Path) -> None:
    names = [b"plain", b"\xe9\xff", b"d/" + b"x" * 150, b"/".join([b"y" * 90] * 3), "ü".encode()]
    data = written(
        *[(Entry(n, Kind.FILE, size=3, mtime_ns=1_500_000_000_250_000_000), b"abc") for n in names],
        (Entry(b"link", Kind.SYMLINK, linkname=b"t/" * 150), b""),
    )

    subprocess.run(["tar", "-C", tmp_path, "-x"], input=data, check=True, capture_output=True)

    for name in names:
        full = os.path.join(os.fsencode(tmp_path), name)
        with open(full, "rb") as file:
            assert file.read() == b"abc"
        assert os.stat(full).st_mtime_ns == 1_500_000_000_250_000_000
    assert os.readlink(tmp_path / "link") == "t/" * 150


def test_a_sparse_file_takes_little_room_and_gnu_tar_restores_it(tmp_path: Path) -> None:
    entry = Entry(b"s", Kind.FILE, size=10_000_000, sparse=((4096, 512), (9_000_000, 4)))
    stored = b"abc" + bytes(509) + b"defg"
    data = written((entry, stored))

    subprocess.run(["tar", "-C", tmp_path, "-x"], input=data, check=True, capture_output=True)
    ((read, content),) = [(e, c.read()) for e, c in tar.read(io.BytesIO(data))]

    assert len(data) < 8000
    restored = (tmp_path / "s").read_bytes()
    assert len(restored) == 10_000_000
    assert (restored[4096:4099], restored[9_000_000:9_000_004]) == (b"abc", b"defg")
    assert restored.count(b"\0") == 10_000_000 - 7
    assert (read, content) == (entry, stored)


def test_the_size_of_a_huge_file_is_announced(tmp_path: Path) -> None:
    class Head(Exception):
        pass

    out = io.BytesIO()
    with pytest.raises(FailedError, match="changed while"):
        TarWriter(out).add(Entry(b"big", Kind.FILE, size=9 << 30), [b"x"])

    entry, _ = next(tar.read(io.BytesIO(out.getvalue())))
    assert entry.size == 9 << 30


@pytest.mark.parametrize("data", [b"", b"1", b"123"])
def test_a_file_that_changed_its_size_is_an_error(data: bytes) -> None:
    with pytest.raises(FailedError, match="changed while it was archived"):
        TarWriter(io.BytesIO()).add(Entry(b"f", Kind.FILE, size=2), [data])


def test_an_attribute_that_pax_cannot_hold_is_refused() -> None:
    with pytest.raises(InvalidError, match="cannot be archived"):
        TarWriter(io.BytesIO()).add(Entry(b"f", Kind.FILE, xattrs={b"user.a=b": b""}))
