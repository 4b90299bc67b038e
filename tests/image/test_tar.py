"""The tar reader: what it accepts, against tarfile and GNU tar; what it refuses, and how."""

from __future__ import annotations

import io
import os
import random
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from security import rawtar
from tare.errors import InvalidError
from tare.image import tar
from tare.image.tar import Entry, Kind, Limits


def entries(data: bytes, **limits: int) -> list[tuple[Entry, bytes]]:
    stream = io.BytesIO(data)
    return [(e, c.read()) for e, c in tar.read(stream, limits=Limits(**limits))]


class Trickle:
    """A stream that gives one byte after the other, as a slow pipe may."""

    def __init__(self, data: bytes) -> None:
        self._stream = io.BytesIO(data)

    def read(self, n: int, /) -> bytes:
        return self._stream.read(min(n, 1))


def sample_tree(root: Path) -> None:
    (root / "dir" / "sub").mkdir(parents=True)
    (root / "dir" / "file").write_bytes(b"hello" * 1000)
    (root / "empty").touch()
    (root / "dir" / ("n" * 120)).write_text("long")
    (root / "link").symlink_to("dir/file")
    os.link(root / "dir" / "file", root / "hard")
    os.mkfifo(root / "pipe")
    (root / os.fsdecode(b"latin-\xe9")).write_text("x")
    os.utime(root / "empty", ns=(1, 1_600_000_000_123_456_789))


@pytest.mark.parametrize("format_", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_archives_of_gnu_tar_are_read_as_tarfile_reads_them(tmp_path: Path, format_: str) -> None:
    sample_tree(tmp_path)
    if format_ in ("v7", "ustar"):  # neither long names nor, in v7, FIFOs
        next(tmp_path.glob("dir/n*")).unlink()
        (tmp_path / "pipe").unlink()
    made = subprocess.run(
        ["tar", "--numeric-owner", f"--format={format_}", "-C", tmp_path, "-c", "."],
        capture_output=True,
        check=True,
    ).stdout

    ours = {e.path: (e.mode, e.size, e.mtime_ns // 10**9, data) for e, data in entries(made)}

    theirs = {}
    with tarfile.open(fileobj=io.BytesIO(made)) as reader:
        for member in reader:
            name = os.fsencode(os.path.normpath(member.name)).removeprefix(b".")
            data = b""
            if member.isreg():
                file = reader.extractfile(member)
                assert file is not None
                data = file.read()
            size = member.size if member.isreg() else 0
            theirs[name] = (member.mode, size, int(member.mtime), data)
    assert ours == theirs


@pytest.mark.parametrize(
    "options",
    [
        ["--format=gnu"],
        ["--format=posix", "--sparse-version=0.0"],
        ["--format=posix", "--sparse-version=0.1"],
        ["--format=posix", "--sparse-version=1.0"],
    ],
    ids=" ".join,
)
def test_sparse_files_of_gnu_tar_come_out_whole(tmp_path: Path, options: list[str]) -> None:
    expected = bytearray(3_000_000)
    with open(tmp_path / "sparse", "wb") as file:
        for number in range(40):  # more pieces than one header holds
            offset = number * 65536 + 4096
            piece = b"%04d" % number * 1024
            expected[offset : offset + len(piece)] = piece
            os.pwrite(file.fileno(), piece, offset)
        file.truncate(len(expected))
    made = subprocess.run(
        ["tar", "-S", "--hole-detection=raw", *options, "-C", tmp_path, "-c", "sparse"],
        capture_output=True,
        check=True,
    ).stdout

    rebuilt = bytearray(len(expected))
    for entry, content in tar.read(io.BytesIO(made)):  # noqa: B007 - the only one
        for offset, data in content.pieces():
            rebuilt[offset : offset + len(data)] = data

    assert entry.path == b"sparse"
    assert entry.size == len(expected)
    assert entry.sparse is not None and len(entry.sparse) == 40
    assert rebuilt == expected


def test_a_stream_that_trickles_gives_the_same(tmp_path: Path) -> None:
    data = rawtar.archive(
        rawtar.directory(b"d/"),
        rawtar.gnu_long(b"d/" + b"n" * 200),
        rawtar.member(b"x", b"data" * 300),
    )

    slow = [(e, c.read()) for e, c in tar.read(Trickle(data))]

    assert slow == entries(data)


def test_names_are_told_by_every_way_there_is() -> None:
    long = b"d/" + b"n" * 200
    data = rawtar.archive(
        rawtar.gnu_long(long),
        rawtar.member(b"short"),
        rawtar.pax((b"path", b"p/ax"), (b"linkpath", b"to/it")),
        rawtar.symlink(b"a", b"b"),
        rawtar.member(b"name", prefix=b"pre/fix"),
        rawtar.gnu_long(b"t" * 150, link=True),
        rawtar.symlink(b"l", b"t"),
        rawtar.header(b"old/", magic=b"", type_=b"\0"),
    )

    read = [(e.path, e.kind, e.linkname) for e, _ in entries(data)]

    assert read == [
        (long, Kind.FILE, b""),
        (b"p/ax", Kind.SYMLINK, b"to/it"),
        (b"pre/fix/name", Kind.FILE, b""),
        (b"l", Kind.SYMLINK, b"t" * 150),
        (b"old", Kind.DIR, b""),
    ]


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        (b"./", b""),
        (b"/", b""),
        (b".", b""),
        (b"./a", b"a"),
        (b"/abs/b", b"abs/b"),
        (b"a//b/./c/", b"a/b/c"),
        (b".hidden", b".hidden"),
        (b"..a/b..", b"..a/b.."),
        (b"a/...", b"a/..."),
        (b"\xff\xfe/\n\x1b", b"\xff\xfe/\n\x1b"),
    ],
)
def test_names_are_made_relative_and_plain(raw: bytes, clean: bytes) -> None:
    assert tar.clean_path(raw) == clean


def test_pax_numbers_times_and_attributes_are_taken() -> None:
    data = rawtar.archive(
        rawtar.pax(
            (b"uid", b"4294967294"),
            (b"gid", b"3000000000"),
            (b"mtime", b"-1.5"),
            (b"size", b"3"),
            (b"SCHILY.xattr.user.a", b"\0=\n"),
            (b"LIBARCHIVE.xattr.user.b%20c", b"AAEC"),
        ),
        rawtar.member(b"f", b"abc", size=0),
    )

    ((entry, content),) = entries(data)

    assert (entry.uid, entry.gid, entry.mtime_ns) == (4294967294, 3000000000, -1_500_000_000)
    assert entry.xattrs == {b"user.a": b"\0=\n", b"user.b c": b"\0\1\2"}
    assert content == b"abc"


def test_base_256_numbers_are_taken() -> None:
    data = rawtar.archive(
        rawtar.member(
            b"f",
            b"abc",
            size=b"\x80" + (3).to_bytes(11, "big"),
            mtime=b"\xff" * 12,
            uid=b"\x80" + (70000000).to_bytes(7, "big"),
        )
    )

    ((entry, _),) = entries(data)

    assert (entry.size, entry.mtime_ns, entry.uid) == (3, -1_000_000_000, 70000000)


def test_links_and_directories_never_have_data() -> None:
    data = rawtar.archive(
        rawtar.header(b"d/", type_=b"5", size=512),
        rawtar.header(b"l", type_=b"2", link=b"t", size=512),
        rawtar.member(b"f", b"x"),
    )

    assert [(e.path, e.size) for e, _ in entries(data)] == [(b"d", 0), (b"l", 0), (b"f", 1)]


def test_what_follows_the_end_is_read_but_ignored() -> None:
    stream = io.BytesIO(rawtar.archive(rawtar.member(b"a")) + rawtar.archive(rawtar.member(b"b")))

    names = [e.path for e, _ in tar.read(stream)]

    assert names == [b"a"]
    assert stream.read() == b"", "a digest of the stream would miss the rest"


def test_an_archive_without_its_end_is_accepted_between_entries() -> None:
    assert len(entries(rawtar.archive(rawtar.member(b"a", b"x"), end=False))) == 1
    assert entries(b"") == []


GOOD = rawtar.member(b"ok", b"x" * 600)
REFUSED = {
    "garbage": (b"\x7fELF" * 200, "not a tar archive"),
    "checksum": (rawtar.header(b"f", checksum=b"000001\0 "), "checksum"),
    "lone-zero-block": (bytes(512) + GOOD, "goes on after a zero block"),
    "cut-header": (GOOD + b"x" * 100, "truncated"),
    "cut-data": (rawtar.header(b"f", size=5000) + bytes(600), "truncated"),
    "dangling-pax": (rawtar.pax((b"path", b"a")), "describes a next entry"),
    "dotdot": (rawtar.member(b"../x"), r"'\.\./x'.*'\.\.'"),
    "inner-dotdot": (rawtar.member(b"a/../x"), r"\.\."),
    "nul-name": (rawtar.pax((b"path", b"a\0b")) + GOOD, "NUL"),
    "no-name": (rawtar.header(b""), "no name"),
    "negative-size": (rawtar.header(b"f", size=b"\xff" * 12), "negative"),
    "bad-octal": (rawtar.header(b"f", size=b"00000000_12"), "no number"),
    "pax-signed-size": (rawtar.pax((b"size", b"+1")) + GOOD, "no number"),
    "pax-underscore": (rawtar.pax((b"uid", b"1_0")) + GOOD, "no number"),
    "pax-unicode-digit": (rawtar.pax((b"uid", "٣".encode())) + GOOD, "no number"),
    "huge-size": (rawtar.header(b"f", size=b"\x80" + b"\x7f" * 11), "exceeds"),
    "uid-minus-one": (rawtar.pax((b"uid", b"4294967295")) + GOOD, "out of range"),
    "mtime": (rawtar.pax((b"mtime", b"31556952000000000000")) + GOOD, "out of range"),
    "pax-length": (rawtar.member(b"p", b"99 path=a\n", type_=b"x") + GOOD, "length is wrong"),
    "pax-zero": (rawtar.member(b"p", b"0 path=a\n", type_=b"x") + GOOD, "length is wrong"),
    "pax-key": (rawtar.member(b"p", b"5 ab\n", type_=b"x") + GOOD, "no key"),
    "pax-huge": (rawtar.header(b"p", size=1 << 30, type_=b"x"), "at most"),
    "global-path": (rawtar.pax((b"path", b"a"), type_=b"g") + GOOD, "for every entry"),
    "directory-with-data": (rawtar.member(b"d/", b"x"), "directory with data"),
    "type": (rawtar.header(b"f", type_=b"M"), "not supported"),
    "socket": (rawtar.header(b"s", type_=b"s"), "not supported"),
    "long-component": (rawtar.gnu_long(b"n" * 256) + GOOD, "component"),
    "long-path": (rawtar.gnu_long(b"/".join([b"n" * 100] * 50)) + GOOD, "at most 4096"),
    "deep": (rawtar.gnu_long(b"/".join([b"n"] * 600)) + GOOD, "deeper"),
    "link-to-nothing": (rawtar.symlink(b"l", b""), "without a target"),
    "link-too-long": (rawtar.gnu_long(b"t" * 5000, link=True) + rawtar.symlink(b"l", b"t"), "long"),
    "hardlink-out": (rawtar.hardlink(b"h", b"../../etc/shadow"), r"\.\."),
    "hardlink-root": (rawtar.hardlink(b"h", b"/"), "root"),
    "device": (rawtar.header(b"c", type_=b"3", device=(0o17777, 0)), "does not exist"),
    "xattr-value": (
        rawtar.pax((b"SCHILY.xattr.user.a", b"v" * 70000)) + GOOD,
        "at most 65536",
    ),
    "xattr-base64": (rawtar.pax((b"LIBARCHIVE.xattr.user.a", b"!")) + GOOD, "malformed"),
    "sparse-order": (
        rawtar.pax((b"GNU.sparse.map", b"512,1,0,1"), (b"GNU.sparse.size", b"600")) + GOOD,
        "inconsistent",
    ),
    "sparse-odd": (
        rawtar.pax((b"GNU.sparse.map", b"512"), (b"GNU.sparse.size", b"600")) + GOOD,
        "inconsistent",
    ),
    "sparse-odd-piece": (
        rawtar.pax((b"GNU.sparse.map", b"0,1,512,599"), (b"GNU.sparse.size", b"2000")) + GOOD,
        "not in blocks",
    ),
    "sparse-beyond": (
        rawtar.pax((b"GNU.sparse.map", b"0,600"), (b"GNU.sparse.size", b"5")) + GOOD,
        "inconsistent",
    ),
    "sparse-endless": (
        rawtar.header(b"s", type_=b"S", patch={482: b"\1", 483: b"00000000010\0"}),
        "truncated",
    ),
    "sparse-1.0-cut": (
        rawtar.pax(
            (b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9")
        )
        + rawtar.member(b"f", b"9\n0\n"),
        "cut off",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_archive_is_refused_with_the_reason(case: str) -> None:
    data, reason = REFUSED[case]

    with pytest.raises(InvalidError, match=reason):
        entries(data)


def test_limits_are_kept() -> None:
    many = rawtar.archive(*[rawtar.header(b"f%d" % n) for n in range(50)])
    with pytest.raises(InvalidError, match="more than 10 entries"):
        entries(many, files=10)
    with pytest.raises(InvalidError, match="exceeds 1000 bytes"):
        entries(rawtar.archive(GOOD, GOOD), total=1000)
    headers = rawtar.archive(*[rawtar.gnu_long(b"n")] * 100, GOOD)
    with pytest.raises(InvalidError, match="more than 10 entries"):
        entries(headers, files=10)


def test_what_follows_the_end_has_an_end() -> None:
    with pytest.raises(InvalidError, match="without end"):
        entries(rawtar.archive(GOOD) + bytes(3 << 20), total=1 << 20)


def test_errors_show_hostile_names_harmlessly() -> None:
    with pytest.raises(InvalidError) as caught:
        entries(rawtar.archive(rawtar.member(b"../\x1b]0;x\x07\xff\n")))

    assert str(caught.value).isprintable()


VALID = rawtar.archive(
    rawtar.directory(b"d/"),
    rawtar.pax((b"path", b"d/x"), (b"SCHILY.xattr.user.a", b"1"), (b"mtime", b"1.5")),
    rawtar.member(b"x", b"data" * 200),
    rawtar.gnu_long(b"n" * 120),
    rawtar.symlink(b"l", b"t"),
    rawtar.pax((b"GNU.sparse.map", b"0,512,1024,3"), (b"GNU.sparse.size", b"2000")),
    rawtar.member(b"s", b"abcd" * 128 + b"efg"),
    rawtar.hardlink(b"h", b"d/x"),
)


@given(st.integers(0, len(VALID)))
@settings(max_examples=100, deadline=None)
def test_a_truncated_archive_never_breaks_the_reader(length: int) -> None:
    try:
        assert len(entries(VALID[:length])) <= 6
    except InvalidError as error:
        assert "truncated" in str(error) or "describes" in str(error)


@given(st.randoms(use_true_random=False), st.integers(1, 6))
@settings(max_examples=300, deadline=None)
def test_a_damaged_archive_is_read_or_refused(source: random.Random, count: int) -> None:
    data = bytearray(VALID)
    for _ in range(count):
        position = source.randrange(len(data))
        data[position] = source.choice(b"\0\xff 0179=/.\n" + bytes([source.randrange(256)]))
        # Make the checksum right again, or nothing behind it would ever be tried.
        block = position - position % 512
        field = data[block + 148 : block + 156]
        if data[block + 257 : block + 262] == b"ustar" and not 148 <= position - block < 156:
            total = sum(data[block : block + 512]) - sum(field) + 256
            data[block + 148 : block + 156] = b"%06o\0 " % total
    try:
        for entry, content in tar.read(io.BytesIO(bytes(data))):
            assert b".." not in entry.path.split(b"/")
            assert not entry.path.startswith(b"/")
            for _ in content.pieces():
                pass
    except InvalidError:
        pass
