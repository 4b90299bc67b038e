"""The rules of a layer: any maker of layers must pass. The kernel is the judge of the result."""

from __future__ import annotations

import io
import os
import shutil
import stat
import struct
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.trees import Node, erofs_tree, overlay_tree, snapshot
from security import rawtar
from security.rawtar import archive, directory, hardlink, member, pax, symlink
from tare.errors import InvalidError
from tare.image import erofs, extract, tar
from tare.image.entry import Limits
from tare.image.whiteout import LayerSummary

pytestmark = pytest.mark.needs("root", "erofs", "overlay")

Make = Callable[[bytes, Path], LayerSummary]
OPAQUE = (("trusted.overlay.opaque", b"y"),)


def make_erofs(data: bytes, out: Path) -> LayerSummary:
    with open(out, "wb", buffering=0) as file:
        summary = erofs.convert(tar.read(io.BytesIO(data)), file)
    if shutil.which("fsck.erofs"):
        subprocess.run(["fsck.erofs", out], check=True, capture_output=True)
    return summary


def make_directory(data: bytes, out: Path) -> LayerSummary:
    out.mkdir()
    root = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return extract.extract(tar.read(io.BytesIO(data)), root)
    finally:
        os.close(root)


MAKERS: dict[str, Make] = {"erofs": make_erofs, "extract": make_directory}


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Make:
    return MAKERS[request.param]


def tree(path: Path) -> dict[bytes, Node]:
    return erofs_tree(path) if path.is_file() else snapshot(path)


def test_everything_a_layer_can_hold(make: Make, tmp_path: Path) -> None:
    capability = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
    data = archive(
        directory(b"./", mode=0o750, uid=3, mtime=77),
        directory(b"d/", mode=0o1777, uid=5, gid=6, mtime=1_000_000_000),
        pax((b"mtime", b"1.000000007"), (b"SCHILY.xattr.security.capability", capability)),
        member(b"d/f", b"x" * 5000, mode=0o4755),
        pax((b"uid", b"4294967294"), (b"gid", b"70000"), (b"SCHILY.xattr.user.k", b"v\0")),
        member(b"d/\xff\xfe", b""),
        hardlink(b"h", b"d/f"),
        symlink(b"s", b"/etc/passwd"),
        pax((b"linkpath", b"t/" * 2000)),
        symlink(b"long", b"x"),
        hardlink(b"s2", b"s"),
        rawtar.header(b"c", type_=b"3", device=(1, 3), mode=0o666),
        rawtar.header(b"b", type_=b"4", device=(259, 70000), mode=0o600),
        rawtar.header(b"p", type_=b"6", mode=0o622),
        pax((b"path", b"n" * 255)),
        member(b"x", b"1"),
        member(b"implied/parent/f", b"2"),
    )

    summary = make(data, tmp_path / "layer")
    seen = tree(tmp_path / "layer")

    def sha(content: bytes) -> str:
        import hashlib

        return f"{len(content)}:{hashlib.sha256(content).hexdigest()}"

    caps = (("security.capability", capability),)
    shared = Node("-", 0o4755, 0, 0, 1_000_000_007, sha(b"x" * 5000), 2, caps)
    link = Node("l", 0o777, 0, 0, 0, "/etc/passwd", 2)
    plain = Node("d", 0o755, 0, 0, 0)
    for name in (b"implied", b"implied/parent"):  # their times are the maker's
        seen[name] = seen[name]._replace(mtime_ns=0)
    assert seen == {
        b"": Node("d", 0o750, 3, 0, 77 * 10**9),
        b"d": Node("d", 0o1777, 5, 6, 10**18),
        b"d/f": shared,
        b"h": shared,
        b"d/\xff\xfe": Node("-", 0o644, 4294967294, 70000, 0, sha(b""), 1, (("user.k", b"v\0"),)),
        b"s": link,
        b"s2": link,
        b"long": Node("l", 0o777, 0, 0, 0, "t/" * 2000, 1),
        b"c": Node("c", 0o666, 0, 0, 0, "1:3", 1),
        b"b": Node("b", 0o600, 0, 0, 0, "259:70000", 1),
        b"p": Node("p", 0o622, 0, 0, 0, "", 1),
        b"n" * 255: Node("-", 0o644, 0, 0, 0, sha(b"1"), 1),
        b"implied": plain,
        b"implied/parent": plain,
        b"implied/parent/f": Node("-", 0o644, 0, 0, 0, sha(b"2"), 1),
    }
    assert summary.implied == 2
    assert summary.max_id == 4294967294
    assert summary.size == 5002


def test_later_entries_take_the_place_of_earlier_ones(make: Make, tmp_path: Path) -> None:
    data = archive(
        directory(b"dd", mode=0o700),
        member(b"dd/kept"),
        directory(b"dd", mode=0o711),
        member(b"ff", b"old"),
        member(b"ff", b"new"),
        directory(b"df"),
        member(b"df/sub/gone"),
        member(b"df", b"file now"),
        member(b"fd"),
        directory(b"fd"),
        member(b"fd/in"),
        symlink(b"sd", b"/"),
        directory(b"sd"),
        member(b"sd/in"),
        symlink(b"sf", b"/etc/passwd"),
        member(b"sf", b"file"),
        member(b"a", b"linked"),
        hardlink(b"b", b"a"),
        member(b"a", b"other"),
        hardlink(b"b", b"b"),
    )

    make(data, tmp_path / "layer")
    seen = tree(tmp_path / "layer")

    assert {path: node.kind for path, node in seen.items() if path} == {
        b"dd": "d",
        b"dd/kept": "-",
        b"ff": "-",
        b"df": "-",
        b"fd": "d",
        b"fd/in": "-",
        b"sd": "d",
        b"sd/in": "-",
        b"sf": "-",
        b"a": "-",
        b"b": "-",
    }
    assert seen[b"dd"].mode == 0o711
    assert seen[b"ff"].content.startswith("3:")
    assert (seen[b"b"].content[:2], seen[b"a"].content[:2]) == ("6:", "5:")
    assert seen[b"b"].links == 1


def test_whiteouts_and_opaque_directories_are_overlayfs_own(make: Make, tmp_path: Path) -> None:
    data = archive(
        member(b".wh.gone"),
        member(b"d/.wh.gone"),
        member(b"o/.wh..wh..opq"),
        member(b"o/new"),
        # What the layer has of a hidden name stays, in either order.
        member(b"e1/f"),
        member(b".wh.e1"),
        member(b".wh.e2"),
        directory(b"e2"),
        member(b".wh.e3"),
        member(b"e3/f"),
        member(b".wh.f"),
        member(b"f", b"x"),
        member(b"g", b"x"),
        member(b".wh.g"),
        member(b".wh..wh.plnk/1.2"),
        directory(b".wh..wh.aufs"),
    )

    summary = make(data, tmp_path / "layer")
    seen = tree(tmp_path / "layer")

    whiteout = {path for path, node in seen.items() if (node.kind, node.content) == ("c", "0:0")}
    assert whiteout == {b"gone", b"d/gone"}
    assert {path for path, node in seen.items() if node.xattrs == OPAQUE} == {
        b"o",
        b"e1",
        b"e2",
        b"e3",
    }
    assert seen[b"f"].kind == seen[b"g"].kind == "-"
    assert not any(b".wh." in path for path in seen)
    assert summary.whiteouts == 7
    assert not summary.opaque_root


LOWER = archive(
    member(b"gone", b"1"),
    member(b"kept", b"2"),
    member(b"d/gone/deep", b"3"),
    member(b"d/kept", b"4"),
    member(b"o/old", b"5"),
    member(b"e/old", b"6"),
    member(b"x/hidden", b"7"),
)
UPPER = archive(
    member(b".wh.gone"),
    member(b"d/.wh.gone"),
    member(b"o/.wh..wh..opq"),
    member(b"o/new", b"8"),
    member(b"o/.wh.old"),
    member(b".wh.e"),
    member(b"e/new", b"9"),
    member(b"x/.wh.hidden"),
    member(b"x/.wh..wh..opq"),
    member(b"y/.wh.nothing"),
    member(b"y/z"),
)
MERGED = {b"y", b"y/z", b"kept", b"d", b"d/kept", b"o", b"o/new", b"e", b"e/new", b"x"}


def test_overlayfs_hides_what_the_upper_layer_hides(make: Make, tmp_path: Path) -> None:
    make(LOWER, tmp_path / "lower")
    make(UPPER, tmp_path / "upper")

    merged = overlay_tree(tmp_path / "lower", tmp_path / "upper")

    assert set(merged) - {b""} == MERGED


@pytest.mark.parametrize("userxattr", [False, True])
def test_whiteouts_by_attribute_where_mknod_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, userxattr: bool
) -> None:
    if userxattr and os.statvfs(tmp_path).f_namemax == 0:
        pytest.skip("no user attributes")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "mknod", refuse)
    make_directory(LOWER, tmp_path / "lower")
    (tmp_path / "upper").mkdir()
    root = os.open(tmp_path / "upper", os.O_RDONLY)
    rules = extract.Rules(userxattr=userxattr)
    extract.extract(tar.read(io.BytesIO(UPPER)), root, rules=rules)
    os.close(root)

    options = ",userxattr" if userxattr else ""
    merged = overlay_tree(tmp_path / "lower", tmp_path / "upper", options=options)

    assert set(merged) - {b""} == MERGED


def test_an_opaque_root_is_told_because_overlayfs_ignores_it(make: Make, tmp_path: Path) -> None:
    summary = make(archive(member(b"new"), member(b".wh..wh..opq")), tmp_path / "layer")

    assert summary.opaque_root
    assert set(tree(tmp_path / "layer")) == {b"", b"new"}


def test_sparse_files_keep_content_and_holes(make: Make, tmp_path: Path) -> None:
    size = 50_000_000
    pieces = ((4096, 4096), (10_000 * 512, 1024), (size - 100, 100))
    content = b"".join(bytes([65 + n]) * length for n, (_, length) in enumerate(pieces))
    mapping = b",".join(b"%d,%d" % piece for piece in pieces)
    data = archive(
        pax((b"GNU.sparse.map", mapping), (b"GNU.sparse.size", b"%d" % size)),
        member(b"sparse", content),
        pax((b"GNU.sparse.map", b""), (b"GNU.sparse.size", b"%d" % (1 << 40))),
        member(b"all-hole", b""),
        pax((b"GNU.sparse.map", b""), (b"GNU.sparse.size", b"0")),
        member(b"empty", b""),
    )
    make(data, tmp_path / "layer")

    import hashlib

    expected = bytearray(size)
    position = 0
    for offset, length in pieces:
        expected[offset : offset + length] = content[position : position + length]
        position += length
    digest = f"{size}:{hashlib.sha256(expected).hexdigest()}"
    if (tmp_path / "layer").is_file():
        assert (tmp_path / "layer").stat().st_size < 200_000
        script = "stat -c %s /mnt/all-hole; head -c 10000 /mnt/all-hole | tr -d '\\0' | wc -c;"
        script += "sha256sum < /mnt/sparse; stat -c %s /mnt/sparse /mnt/empty"
        out = subprocess.run(
            [
                "unshare",
                "-m",
                "sh",
                "-ec",
                f"mount -t erofs -o ro {tmp_path}/layer /mnt; {script}",
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        assert out == [str(1 << 40), "0", digest.partition(":")[2], "-", str(size), "0"]
    else:
        found = os.stat(tmp_path / "layer" / "sparse")
        assert found.st_blocks * 512 < 100_000
        with open(tmp_path / "layer" / "sparse", "rb") as file:
            assert file.read() == expected
        assert os.stat(tmp_path / "layer" / "all-hole").st_size == 1 << 40


def test_directories_of_every_size(make: Make, tmp_path: Path) -> None:
    members = []
    for count in (0, 1, 150, 151, 160, 170, 400, 3000):
        members.append(directory(b"d%d" % count))
        members += [member(b"d%d/%s" % (count, b"name-%06d-!" % n)) for n in range(count)]
    members += [member(b"order/" + bytes([n])) for n in range(1, 256) if n not in b"/."]
    data = archive(*members)

    make(data, tmp_path / "layer")
    seen = tree(tmp_path / "layer")

    assert len(seen) == 1 + 8 + sum((0, 1, 150, 151, 160, 170, 400, 3000)) + 1 + 253


REFUSED = {
    "parent-is-a-link": (symlink(b"a", b"/run") + member(b"a/canary"), "not a directory"),
    "parent-is-a-file": (member(b"a") + member(b"a/b/c"), "not a directory"),
    "opaque-through-link": (symlink(b"a", b"/run") + member(b"a/.wh..wh..opq"), "not a directory"),
    "root-is-a-file": (member(b"./"[:1]), "root is not a directory"),
    "hardlink-to-nothing": (hardlink(b"h", b"nothing"), "hard link to 'nothing'"),
    "hardlink-to-directory": (directory(b"d") + hardlink(b"h", b"d"), "is a directory"),
    "hardlink-through-link": (
        symlink(b"a", b"/etc") + hardlink(b"h", b"a/shadow"),
        "hard link to 'a/shadow'",
    ),
    "hardlink-into-itself": (
        member(b"d/f") + hardlink(b"d", b"d/f"),
        "inside what it replaces",
    ),
    "hardlink-to-whiteout": (member(b".wh.w") + hardlink(b"h", b"w"), "hard link to 'w'"),
    "hardlink-loop": (hardlink(b"a", b"b") + hardlink(b"b", b"a"), "hard link to 'b'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_in_a_layer_is_refused(make: Make, tmp_path: Path, case: str) -> None:
    data, reason = REFUSED[case]

    with pytest.raises(InvalidError, match=reason):
        make(archive(data), tmp_path / "layer")


def test_the_same_archive_gives_the_same_bytes(tmp_path: Path) -> None:
    make_erofs(UPPER, tmp_path / "one")
    make_erofs(UPPER, tmp_path / "two")

    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_devices_can_be_left_out(tmp_path: Path) -> None:
    data = archive(
        rawtar.header(b"c", type_=b"3", device=(1, 3)),
        hardlink(b"h", b"c"),
        member(b".wh.w"),
        member(b"f"),
    )
    with open(tmp_path / "layer", "wb") as file:
        summary = erofs.convert(tar.read(io.BytesIO(data)), file, devices=False)
    (tmp_path / "d").mkdir()
    root = os.open(tmp_path / "d", os.O_RDONLY)
    extracted = extract.extract(
        tar.read(io.BytesIO(data)), root, rules=extract.Rules(devices=False)
    )
    os.close(root)

    assert set(erofs_tree(tmp_path / "layer")) == set(snapshot(tmp_path / "d")) == {b"", b"w", b"f"}
    assert summary.skipped_devices == extracted.skipped_devices == 2


def test_limits_of_the_writers_memory_and_output_are_kept(tmp_path: Path) -> None:
    def convert(data: bytes, **limits: int) -> None:
        with open(tmp_path / "layer", "wb") as file:
            bounds = Limits(**limits)
            erofs.convert(tar.read(io.BytesIO(data), limits=bounds), file, limits=bounds)

    with pytest.raises(InvalidError, match="more than 5 files"):
        convert(archive(member(b"a/b/c/d/e/f/g/h")), files=5)
    with pytest.raises(InvalidError, match="names and attributes exceed"):
        convert(archive(*[member(b"%d" % n) for n in range(100)]), metadata=5000)
    many = b"".join(b"%d,512," % (n << 30) for n in range(200))[:-1]
    sparse = pax((b"GNU.sparse.map", many), (b"GNU.sparse.size", b"%d" % (1 << 38)))
    with pytest.raises(InvalidError, match="needs more than"):
        convert(archive(sparse, member(b"s", bytes(200 * 512))), total=1 << 20, metadata=8 << 20)


names = st.sampled_from([b"a", b"b", b"c", b".wh.a", b".wh.b", b".wh..wh..opq"])
paths = st.lists(names, min_size=1, max_size=3).map(b"/".join)
members = st.one_of(
    paths.map(directory),
    st.tuples(paths, st.binary(max_size=9)).map(lambda t: member(*t)),
    paths.map(lambda p: symlink(p, b"a")),
    st.tuples(paths, paths).map(lambda t: hardlink(*t)),
    paths.map(lambda p: rawtar.header(p, type_=b"6")),
)


@given(st.lists(members, max_size=12))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_both_makers_make_the_same_of_anything(
    tmp_path_factory: pytest.TempPathFactory, chosen: list[bytes]
) -> None:
    base = tmp_path_factory.mktemp("both")
    data = archive(*chosen)
    outcomes: list[str | dict[bytes, object]] = []
    for name, make in MAKERS.items():
        try:
            make(data, base / name)
            made = tree(base / name)
        except InvalidError as error:
            outcomes.append(str(error))
            continue
        outcomes.append(
            {path: (n.kind, n.mode, n.content, n.links, n.xattrs)
             for path, n in made.items() if n.kind != "c"}
            | {path: n.content for path, n in made.items() if n.kind == "c"}
        )  # fmt: skip
    shutil.rmtree(base)

    first, second = outcomes
    if isinstance(first, str):
        assert isinstance(second, str), f"only EROFS refused: {first}"
        assert first.split(":")[0].replace("layer", "") == second.split(":")[0].replace(
            "archive", ""
        ).replace("layer", "")
    else:
        first = {p: v for p, v in first.items() if p}
        assert isinstance(second, dict), f"only the extractor refused: {second}"
        second = {p: v for p, v in second.items() if p}
        assert first == second


@pytest.mark.needs("debian")
def test_a_real_debian_is_what_gnu_tar_makes_of_it(debian_tar: Path, tmp_path: Path) -> None:
    with open(debian_tar, "rb") as file, open(tmp_path / "layer", "wb", buffering=0) as out:
        summary = erofs.convert(tar.read(file), out)
    (tmp_path / "theirs").mkdir()
    subprocess.run(
        ["tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", debian_tar],
        cwd=tmp_path / "theirs",
        check=True,
    )

    ours = erofs_tree(tmp_path / "layer")
    theirs = snapshot(tmp_path / "theirs")

    with tarfile.open(debian_tar) as archive_:
        assert len(archive_.getnames()) == len(theirs)
    assert summary.entries == len(ours) - 1
    assert ours == theirs
    assert stat.S_ISREG(os.stat(tmp_path / "layer").st_mode)
