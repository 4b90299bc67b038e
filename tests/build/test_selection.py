"""What COPY takes: names, patterns, links and exclusions, and what a key knows of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tare.build.context import Context, Ignoring, read_small
from tare.build.selection import Selection, select
from tare.errors import InvalidError, MissingError
from tare.image.entry import Entry, Kind
from tare.image.tar_writer import TarWriter
from tare.model.ignore import IgnoreRules

FILES = ("a", "d/b", "d/e/c", "x y", "[z]/f", "n?p/f", "nop/f")


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    found = Context(tmp_path)
    for name in FILES:
        found.put(name.encode(), name.encode())
    yield found
    found.close()


def add(context: Context, *entries: Entry) -> None:
    """Entries, as an archive brings them."""

    class Pieces:
        def __init__(self) -> None:
            self.data = b""

        def write(self, data: bytes | memoryview, /) -> None:
            self.data += bytes(data)

        def read(self, n: int = -1, /) -> bytes:
            piece, self.data = (
                self.data[: n if n >= 0 else None],
                self.data[n:] if n >= 0 else b"",
            )
            return piece

    pieces = Pieces()
    writer = TarWriter(pieces)
    for entry in entries:
        writer.add(entry, (b"x" * entry.size,))
    writer.close()
    context.take(pieces)


def names(selection: Selection) -> list[str]:
    return [
        os.fsdecode(name)
        for source in selection.sources
        for name in ([item.name for item in source.items] if source.directory else [source.name])
    ]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a", ["a"]),
        ("/a", ["a"]),
        ("../../a", ["a"]),
        ("./d/../a", ["a"]),
        ("d", ["b", "e", "e/c"]),
        ("d/*", ["b", "c"]),
        ("d/[a-c]", ["b"]),
        ("d/[^a-c]", ["c"]),
        ("*", [*["f"], "a", *["b", "e", "e/c"], *["f"], *["f"], "x y"]),
        ("x*y", ["x y"]),
        ("[[]z]/f", ["f"]),
        (r"n\?p/f", ["f"]),
        ("n?p/f", ["f", "f"]),
        ("*/b", ["b"]),
        (
            ".",
            [
                "[z]", "[z]/f", "a", "d", "d/b", "d/e", "d/e/c", "n?p", "n?p/f", "nop", "nop/f",
                "x y",
            ],
        ),
    ],
)  # fmt: skip
def test_a_source_means_these_files(context: Context, source: str, expected: list[str]) -> None:
    assert names(select(context, (source,))) == expected


@pytest.mark.parametrize("source", ["none", "d/none", "a/b", "none*"])
def test_what_is_not_there_is_said(context: Context, source: str) -> None:
    with pytest.raises(MissingError):
        select(context, (source,))


def test_a_pattern_may_match_nothing_beside_something_else(context: Context) -> None:
    assert names(select(context, ("a", "none*"))) == ["a"]


@pytest.mark.parametrize("source", ["[", "[a", "[]", "a\\", "[-]"])
def test_a_bad_pattern_is_said(context: Context, source: str) -> None:
    with pytest.raises((InvalidError, MissingError)):
        select(context, (source, "a*["))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("d/e/c", ["d", "d/e", "d/e/c"]),
        ("d/./e/c", ["e", "e/c"]),
        ("d/e", ["d", "d/e", "d/e/c"]),
        ("*/b", ["d", "d/b"]),
        ("**/c", ["d", "d/e", "d/e/c"]),
        ("d/./**", ["b", "e", "e/c"]),
    ],
)
def test_parents_are_kept_from_the_pivot_on(
    context: Context, source: str, expected: list[str]
) -> None:
    assert names(select(context, (source,), parents=True)) == expected


def test_exclusions_are_relative_to_their_directory_and_may_be_taken_back(
    context: Context,
) -> None:
    rules = IgnoreRules(["e", "!e/c", "b"])

    found = select(context, ("d",), excludes=lambda path: rules.ignores(os.fsdecode(path)))

    assert names(found) == ["e", "e/c"]


def test_links_that_are_named_are_followed_inside_and_others_are_kept(context: Context) -> None:
    add(
        context,
        Entry(b"up", Kind.SYMLINK, linkname=b"../../../d"),
        Entry(b"abs", Kind.SYMLINK, linkname=b"/d/e"),
        Entry(b"d/out", Kind.SYMLINK, linkname=b"/etc/passwd"),
        Entry(b"loop", Kind.SYMLINK, linkname=b"loop"),
    )

    assert names(select(context, ("up",))) == ["b", "e", "e/c", "out"]
    assert names(select(context, ("abs/c",))) == ["c"]
    with pytest.raises(MissingError):
        select(context, ("d/out",))
    with pytest.raises(InvalidError, match="too many levels"):
        select(context, ("loop",))


def test_a_digest_knows_names_content_and_modes_and_no_times(tmp_path: Path) -> None:
    def digest(name: bytes, mode: int, size: int, mtime_ns: int) -> str:
        context = Context(tmp_path)
        add(context, Entry(name, Kind.FILE, mode=mode, size=size, mtime_ns=mtime_ns))
        found = select(context, ("/",)).digest()
        context.close()
        return found

    first = digest(b"a", 0o644, 3, 0)

    assert digest(b"a", 0o644, 3, 10**9) == first
    others = {digest(b"b", 0o644, 3, 0), digest(b"a", 0o755, 3, 0), digest(b"a", 0o644, 4, 0)}
    assert len(others | {first}) == 4


def test_an_ignored_file_is_not_there(context: Context) -> None:
    seen = Ignoring(context, IgnoreRules(["d", "!d/e", "a"]))

    assert names(select(seen, ("d",))) == ["e", "e/c"]
    with pytest.raises(MissingError):
        select(seen, ("a",))


def test_later_entries_take_the_place_of_earlier_ones(context: Context) -> None:
    add(
        context,
        Entry(b"d", Kind.FILE, size=2),
        Entry(b"a", Kind.DIR),
        Entry(b"a/new", Kind.FILE, size=1),
    )

    assert names(select(context, ("a",))) == ["new"]
    assert read_small(context, "d", limit=10, what="x") == b"xx"
    assert context.node(b"d/b") is None


def test_small_files_are_bounded(context: Context) -> None:
    with pytest.raises(InvalidError, match="larger"):
        read_small(context, "d/e/c", limit=2, what="the file")
    with pytest.raises(InvalidError, match="not a regular file"):
        read_small(context, "d", limit=2, what="the file")
    assert read_small(context, "none", limit=2, what="the file") is None
