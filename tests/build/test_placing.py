"""The layer that COPY makes: where files go, whose they are, and what of the base is repeated."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tare.build.context import Context
from tare.build.placing import Manner, Placement, changed_mode
from tare.build.selection import select
from tare.errors import InvalidError
from tare.image import tar
from tare.image.entry import Entry, Kind
from tare.image.tar_writer import END, archived

BASE = (
    Entry(b"", Kind.DIR, mode=0o750),
    Entry(b"tmp", Kind.DIR, mode=0o1777),
    Entry(b"usr", Kind.DIR, mode=0o755, uid=3),
    Entry(b"usr/bin", Kind.DIR, mode=0o711),
    Entry(b"bin", Kind.SYMLINK, linkname=b"usr/bin"),
    Entry(b"out", Kind.SYMLINK, linkname=b"../../../tmp"),
    Entry(b"file", Kind.FILE, size=1),
)
SOURCE = (
    Entry(b"f", Kind.FILE, mode=0o640, uid=9, size=3, mtime_ns=5 * 10**9),
    Entry(b"d", Kind.DIR, mode=0o700),
    Entry(b"d/g", Kind.FILE, mode=0o755, size=1),
    Entry(b"d/s", Kind.DIR, mode=0o711),
    Entry(b"d/l", Kind.SYMLINK, linkname=b"g"),
    Entry(b"d/h", Kind.HARDLINK, linkname=b"d/g"),
)


class Stream:
    """An archive of entries."""

    def __init__(self, *entries: Entry) -> None:
        pieces = [bytes(p) for e in entries for p in archived(e, (b"x" * e.size,))]
        self._data = b"".join(pieces) + END

    def read(self, n: int = -1, /) -> bytes:
        end = len(self._data) if n < 0 else n
        piece, self._data = self._data[:end], self._data[end:]
        return piece


@contextlib.contextmanager
def tree(directory: Path, *entries: Entry, owned: bool = False) -> Iterator[Context]:
    context = Context(directory, owned=owned)
    try:
        context.take(Stream(*entries))
        yield context
    finally:
        context.close()


def layer(placement: Placement) -> dict[str, Entry]:
    return {e.path.decode(): e for e, _ in tar.read(placement.stream())}


def copied(
    directory: Path, source: str, destination: str, *, into: bool = False, **manner: object
) -> dict[str, Entry]:
    """The layer of one COPY above BASE."""
    with tree(directory, *BASE, owned=True) as base, tree(directory, *SOURCE) as context:
        placement = Placement(base, Manner(**manner))  # type: ignore[arg-type]  # its own fields
        placement.copy(select(context, (source,)), destination, into=into)
        return layer(placement)


def test_directories_of_the_base_keep_what_they_are(tmp_path: Path) -> None:
    found = copied(tmp_path, "f", "/usr/bin/f")

    assert {name: oct(entry.mode) for name, entry in found.items()} == {
        "": "0o750", "usr": "0o755", "usr/bin": "0o711", "usr/bin/f": "0o640",
    }  # fmt: skip
    assert found["usr"].uid == 3
    assert found["usr/bin/f"].uid == 0, "owners of a context mean nothing"


@pytest.mark.parametrize(
    ("destination", "expected"),
    [("/bin/f", "usr/bin/f"), ("/bin", "usr/bin/f"), ("/out/new/f", "tmp/new/f"), ("/n", "n")],
)
def test_links_of_the_base_are_followed_inside_it(
    tmp_path: Path, destination: str, expected: str
) -> None:
    assert expected in copied(tmp_path, "f", destination)


def test_a_directory_is_what_is_in_it(tmp_path: Path) -> None:
    found = copied(tmp_path, "d", "/new", now_ns=7 * 10**9)

    assert {"new/g", "new/s", "new/l", "new/h"} < set(found)
    assert found["new"].mode == 0o755 and found["new"].mtime_ns == 7 * 10**9
    assert found["new/s"].mode == 0o711
    assert found["new/h"].kind is Kind.HARDLINK and found["new/h"].linkname == b"new/g"


def test_owner_mode_and_latest_time_hold_for_all_that_is_made(tmp_path: Path) -> None:
    found = copied(tmp_path, "f", "/a/b/", into=True, owner=(5, 6), mode="0751", latest_ns=10**9)

    assert (found["a"].uid, found["a/b"].gid, found["a/b/f"].uid) == (5, 6, 5)
    assert found["a/b/f"].mode == 0o751
    assert found["a/b/f"].mtime_ns == 10**9


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="not a directory"):
        copied(tmp_path, "f", "/file/f")
    with pytest.raises(InvalidError, match="not a directory"):
        copied(tmp_path, "f", "/file", into=True)


def test_archives_replace_what_is_there_and_follow_links_inside_their_root(tmp_path: Path) -> None:
    entries = (
        Entry(b"link", Kind.SYMLINK, linkname=b"../../tmp"),
        Entry(b"link/f", Kind.FILE, size=1, uid=7),
        Entry(b"file/g", Kind.FILE, size=1),
    )
    with (
        tree(tmp_path, *BASE, owned=True) as base,
        tree(tmp_path, *entries, owned=True) as archive,
    ):
        placement = Placement(base, Manner())
        placement.unpack(archive, b"usr")
        found = layer(placement)

    assert {"usr/link", "usr/tmp/f", "usr/file/g"} < set(found)
    assert found["usr/tmp/f"].uid == 7
    assert not any(name.startswith("tmp") for name in found)


def test_the_order_of_copies_decides(tmp_path: Path) -> None:
    with tree(tmp_path, *SOURCE) as context:
        placement = Placement(None, Manner())
        placement.copy(select(context, ("d",)), "/x", into=True)
        placement.copy(select(context, ("f",)), "/x/g", into=False)
        found = layer(placement)

    assert found["x/g"].size == 3
    assert list(found) == sorted(found)


@pytest.mark.parametrize(
    ("text", "before", "directory", "after"),
    [
        ("644", 0o777, False, 0o644),
        ("04755", 0, False, 0o4755),
        ("u=rwX,go=rX", 0o644, False, 0o644),
        ("u=rwX,go=rX", 0o600, True, 0o755),
        ("+x", 0o644, False, 0o755),
        ("o-rwx", 0o777, False, 0o770),
        ("u+s,g+s", 0o755, False, 0o6755),
        ("a=", 0o755, False, 0),
    ],
)
def test_modes_are_changed_as_by_chmod(text: str, before: int, directory: bool, after: int) -> None:
    assert changed_mode(text, before, directory=directory) == after


@pytest.mark.parametrize("text", ["8", "77777", "u=q", "x", "rw", "0o644", "u", "٧"])
def test_a_bad_mode_is_said(text: str) -> None:
    with pytest.raises(InvalidError, match="invalid chmod"):
        changed_mode(text, 0o644, directory=False)
