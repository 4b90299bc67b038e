"""A26 to A29 as far as layers go: archives that want to write, hide, or use up what is not theirs.

Each archive goes to both makers of layers and, where the attack list asks for it, to a naive twin
(`tarfile` without its filters), on which the payload must win: else the test proves nothing.
"""

from __future__ import annotations

import io
import os
import resource
import shutil
import struct
import subprocess
import sys
import tarfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.trees import erofs_tree, overlay_tree, snapshot
from security import rawtar
from security.rawtar import archive, directory, gnu_long, hardlink, member, pax, symlink
from tare.errors import ConflictError, FailedError, InvalidError
from tare.image import erofs, extract, tar
from tare.image.extract import Rules

SECRET = b"secret of the host\n"


@dataclass(frozen=True)
class Host:
    """A directory to extract into, and beside it what must not change."""

    base: Path

    @property
    def inside(self) -> Path:
        return self.base / "inside"

    @property
    def outside(self) -> Path:
        return self.base / "outside"

    def state(self) -> object:
        return {
            path: node
            for path, node in snapshot(self.base).items()
            if not (path + b"/").startswith(b"inside/")
        }


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path / "host")
    host.outside.mkdir(parents=True)
    (host.outside / "canary").write_bytes(SECRET)
    (host.outside / "dir").mkdir()
    os.chmod(host.outside / "canary", 0o600)
    host.inside.mkdir()
    yield host
    shutil.rmtree(host.base)


def tare_extract(data: bytes, host: Host, rules: Rules) -> None:
    root = os.open(host.inside, os.O_RDONLY | os.O_DIRECTORY)
    try:
        extract.extract(tar.read(io.BytesIO(data)), root, rules=rules)
    finally:
        os.close(root)


def tare_erofs(data: bytes, host: Host) -> None:
    with open(host.inside / "layer", "wb", buffering=0) as out:
        erofs.convert(tar.read(io.BytesIO(data)), out)


def naive(data: bytes, host: Host) -> None:
    """What a program does that trusts archives."""
    with warnings.catch_warnings(), tarfile.open(fileobj=io.BytesIO(data)) as reader:
        warnings.simplefilter("ignore")
        if hasattr(tarfile, "fully_trusted_filter"):
            reader.extraction_filter = tarfile.fully_trusted_filter
        reader.extractall(host.inside)


MAKERS: dict[str, Callable[[bytes, Host], None]] = {
    "erofs": tare_erofs,
    "layer": lambda data, host: tare_extract(data, host, Rules()),
    "plain": lambda data, host: tare_extract(data, host, Rules(layer=False)),
    "strict": lambda data, host: tare_extract(data, host, Rules(layer=False, replace_types=False)),
}


def out(host: Host, *parts: str) -> bytes:
    return os.fsencode(host.outside.joinpath(*parts))


def traversals(host: Host) -> dict[str, bytes]:
    """Archives that win against the naive twin: they change something outside."""
    canary, directory_ = out(host, "canary"), out(host)
    evil = member(b"x", b"evil")
    chain = b"".join(symlink(b"l%d" % n, b"l%d" % (n + 1)) for n in range(20))
    return {
        "dotdot": member(b"../outside/canary", b"evil"),
        "dot-dotdot": member(b"./../outside/./canary", b"evil"),
        "inner": directory(b"a") + member(b"a/../../outside/canary", b"evil"),
        "absolute": pax((b"path", canary)) + evil,
        "absolute-slashes": pax((b"path", b"//" + canary)) + evil,
        "dotdot-by-pax": pax((b"path", b"../outside/canary")) + evil,
        "dotdot-by-gnu": gnu_long(b"../outside/canary") + evil,
        "dotdot-by-prefix": member(b"canary", b"evil", prefix=b"../outside"),
        "dotdot-by-global": pax((b"path", b"../outside/canary"), type_=b"g") + evil,
        "new-file": member(b"../outside/new", b"evil"),
        "new-directory": directory(b"../outside/new"),
        "new-link": symlink(b"../outside/new", b"x"),
        "new-hardlink": member(b"f") + hardlink(b"../outside/new", b"f"),
        "new-fifo": rawtar.header(b"../outside/fifo", type_=b"6"),
        "through-link": pax((b"linkpath", directory_)) + symlink(b"a", b"x") + member(b"a/canary"),
        "through-relative-link": symlink(b"a", b"../outside") + member(b"a/canary", b"evil"),
        "through-link-deep": symlink(b"d/a", b"../../outside") + member(b"d/a/dir/new", b"evil"),
        "through-chain": chain + symlink(b"l20", b"../outside") + member(b"l0/canary", b"evil"),
        "through-chain-up": symlink(b"a", b"b/..")
        + symlink(b"b", b".")
        + member(b"a/outside/canary", b"evil"),
        "through-self": symlink(b"a", b".") + symlink(b"a/b", b"..") + member(b"b/outside/canary"),
        "link-then-directory-in-it": symlink(b"a", b"../outside") + directory(b"a/new"),
        "link-then-link-in-it": symlink(b"a", b"../outside") + symlink(b"a/new", b"x"),
        "link-then-fifo-in-it": symlink(b"a", b"../outside") + rawtar.header(b"a/new", type_=b"6"),
        "link-then-hardlink-in-it": symlink(b"a", b"../outside")
        + member(b"f")
        + hardlink(b"a/new", b"f"),
        "hardlink-to-outside-then-write": hardlink(b"h", b"../outside/canary")
        + member(b"h", b"evil"),
        "hardlink-absolute": pax((b"linkpath", canary)) + hardlink(b"h", b"x") + member(b"h", b"e"),
        "hardlink-through-link": symlink(b"a", b"../outside")
        + hardlink(b"h", b"a/canary")
        + rawtar.header(b"h", mode=0o666),
        "chmod-outside": directory(b"../outside", mode=0o777),
        "utime-outside": directory(b"../outside/dir", mtime=1),
        "chmod-through-link": symlink(b"a", b"../outside") + directory(b"a/dir", mode=0o777),
        "directory-over-link": symlink(b"a", b"../outside/dir") + directory(b"a", mode=0o777),
        "file-over-link": symlink(b"a", b"../outside/canary") + member(b"a", b"evil"),
        "sparse-dotdot": pax(
            (b"GNU.sparse.name", b"../outside/canary"),
            (b"GNU.sparse.map", b"0,4"),
            (b"GNU.sparse.size", b"4"),
        )
        + evil,
        "old-format": member(b"../outside/canary", b"evil", magic=b"", type_=b"\0"),
        "contiguous": member(b"../outside/canary", b"evil", type_=b"7"),
        "link-by-pax-linkpath": pax((b"linkpath", b"../outside"))
        + symlink(b"a", b"harmless")
        + member(b"a/canary", b"evil"),
        "link-by-gnu-long": gnu_long(b"../outside", link=True)
        + symlink(b"a", b"harmless")
        + member(b"a/canary", b"evil"),
        "newline": symlink(b"a\nb", b"../outside") + member(b"a\nb/canary", b"evil"),
        "not-utf8": symlink(b"\xff", b"../outside") + member(b"\xff/canary", b"evil"),
        "duplicate-flips": directory(b"a")
        + member(b"a/x")
        + symlink(b"b", b"../outside")
        + directory(b"c")
        + member(b"b/canary", b"evil"),
        "long-name-traversal": gnu_long(b"./" * 200 + b"../outside/canary") + evil,
    }


# Contained or refused; a naive program is not always caught by them.
ODD = {
    "dotdot-by-gnu-after-pax": pax((b"path", b"ok"))
    + gnu_long(b"../outside/canary")
    + member(b"x", b"evil"),
    "nul-in-name": pax((b"path", b"ok\0/../../outside/canary")) + member(b"x", b"evil"),
    "nul-in-link": pax((b"linkpath", b"x\0y")) + symlink(b"a", b"x"),
    "dots": member(b"...", b"x") + member(b"..a/..b", b"x"),
    "dotdot-slash": directory(b"../"),
    "only-dotdot": member(b".."),
    "root-link": symlink(b"./", b"../outside") + member(b"canary", b"evil"),
    "root-link-dot": symlink(b".", b"../outside") + member(b"canary", b"evil"),
    "root-file": member(b".", b"evil"),
    "long": gnu_long(b"n" * 5000) + member(b"x"),
    "deep": gnu_long(b"d/" * 2000 + b"f") + member(b"x"),
    "after-the-end": bytes(1024) + member(b"../outside/canary", b"evil"),
    "case": symlink(b"A", b"../outside") + member(b"a/canary", b"evil"),
    "backslash": member(b"..\\outside\\canary", b"evil"),
    "fullwidth": member("．．/outside/canary".encode(), b"evil"),
    "percent": member(b"%2e%2e/outside/canary", b"evil"),
    "hardlink-to-symlink": symlink(b"a", b"../outside/canary")
    + hardlink(b"h", b"a")
    + member(b"h", b"evil"),
    "xattr-on-link": symlink(b"a", b"../outside/canary")
    + pax((b"SCHILY.xattr.user.evil", b"1"))
    + symlink(b"a", b"../outside/canary"),
    "proc": symlink(b"p", b"/proc/self/cwd") + member(b"p/new", b"evil"),
    "magic": symlink(b"p", b"/proc/self/fd/3") + member(b"p/new", b"evil"),
    "link-to-itself": symlink(b"a", b"a") + member(b"a/x"),
    "fifo-then-file": rawtar.header(b"a", type_=b"6") + member(b"a", b"x"),
    "device-then-file": rawtar.header(b"a", type_=b"3", device=(1, 5)) + member(b"a", b"x"),
}


@pytest.mark.attack("A26")
@pytest.mark.parametrize("maker", MAKERS)
def test_no_archive_reaches_outside(maker: str, host: Host) -> None:
    before = host.state()

    for data in (*traversals(host).values(), *ODD.values()):
        try:
            MAKERS[maker](archive(data), host)
        except (InvalidError, ConflictError, FailedError) as error:
            assert str(error).isprintable()
        assert host.state() == before
        for child in host.inside.iterdir():
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child)
            else:
                child.unlink()


@pytest.mark.attack("A26")
@pytest.mark.parametrize("case", sorted(traversals(Host(Path("/nowhere")))))
def test_control_a_naive_extractor_is_caught_by_it(case: str, host: Host) -> None:
    before = host.state()

    try:
        naive(archive(traversals(host)[case]), host)
    except (OSError, tarfile.TarError):
        pass

    assert host.state() != before


@pytest.mark.attack("A26")
@pytest.mark.needs("root", "erofs")
def test_absolute_links_stay_as_text(host: Host) -> None:
    tare_erofs(archive(symlink(b"a", b"/etc/passwd")), host)

    assert erofs_tree(host.inside / "layer")[b"a"].content == "/etc/passwd"


TRAPS = {
    "dot": member(b".wh.."),
    "dotdot": member(b".wh..."),
    "nothing": member(b".wh."),
    "inside": member(b"d/.wh./x"),
    "inside-name": member(b"d/.wh.a/x"),
    "of-whiteout": member(b".wh..wh.x"),
    "of-opaque": member(b"d/.wh..wh..wh..opq"),
    "aufs-below": member(b"d/.wh..wh.plnk"),
    "as-directory": directory(b".wh.d"),
    "as-link": symlink(b".wh.d", b"/"),
    "as-device": rawtar.header(b".wh.d", type_=b"3", device=(1, 3)),
    "through-link": symlink(b"a", b"../outside") + member(b"a/.wh.canary"),
    "opaque-through-link": symlink(b"a", b"../outside") + member(b"a/.wh..wh..opq"),
    "through-file": member(b"a") + member(b"a/.wh.x"),
    "smuggled-device": rawtar.header(b"passwd", type_=b"3", device=(0, 0)),
    "hardlink-to-it": member(b".wh.a") + hardlink(b"b", b"a"),
}


@pytest.mark.attack("A27")
@pytest.mark.parametrize("maker", ["erofs", "layer"])
@pytest.mark.parametrize("case", TRAPS)
def test_a_whiteout_that_is_none_is_refused(case: str, maker: str, host: Host) -> None:
    before = host.state()

    with pytest.raises(InvalidError, match=r"layer entry|archive entry"):
        MAKERS[maker](archive(TRAPS[case]), host)

    assert host.state() == before


@pytest.mark.attack("A27")
@pytest.mark.needs("root", "erofs", "overlay")
@pytest.mark.parametrize("maker", ["erofs", "layer"])
def test_attributes_that_steer_the_kernel_are_stripped(maker: str, host: Host) -> None:
    steering = [
        b"%s.overlay.%s" % (space, name)
        for space in (b"trusted", b"user")
        for name in (
            b"redirect",
            b"opaque",
            b"metacopy",
            b"origin",
            b"upper",
            b"nlink",
            b"whiteout",
        )
    ] + [
        b"trusted.overlay.overlay.opaque",
        b"trusted.anything",
        b"security.selinux",
        b"security.ima",
        b"security.apparmor",
        b"security.evm",
        b"system.posix_acl_access",
        b"system.posix_acl_default",
        b"user.",
        b"nonsense",
    ]
    records = [(b"SCHILY.xattr." + key, b"y") for key in steering]
    records.append((b"SCHILY.xattr.user.fine", b"kept"))
    data = archive(pax(*records), directory(b"d"), pax(*records), member(b"d/f", b"x"))

    MAKERS[maker](data, host)
    layer = host.inside / "layer" if maker == "erofs" else host.inside
    seen = erofs_tree(layer) if maker == "erofs" else snapshot(layer)

    assert seen[b"d"].xattrs == seen[b"d/f"].xattrs == (("user.fine", b"kept"),)


@pytest.mark.attack("A27")
@pytest.mark.needs("root", "erofs")
@pytest.mark.parametrize("maker", ["erofs", "layer"])
def test_capabilities_are_kept_without_a_foreign_root_and_nonsense_is_not(
    maker: str, host: Host
) -> None:
    key = b"SCHILY.xattr.security.capability"
    v2 = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
    v3 = struct.pack("<6I", 0x03000001, 1 << 13, 0, 0, 0, 100000)
    data = archive(
        pax((key, v2)), member(b"v2"),
        pax((key, v3)), member(b"v3"),
        pax((key, v2[:-1])), member(b"short"),
        pax((key, b"\xff" * 20)), member(b"nonsense"),
        pax((key, v2)), directory(b"directory"),
    )  # fmt: skip

    MAKERS[maker](data, host)
    layer = host.inside / "layer" if maker == "erofs" else host.inside
    seen = erofs_tree(layer) if maker == "erofs" else snapshot(layer)

    for name in (b"v2", b"v3"):
        assert seen[name].xattrs == (("security.capability", v2),)
    for name in (b"short", b"nonsense", b"directory"):
        assert seen[name].xattrs == ()


@pytest.mark.attack("A27")
@pytest.mark.needs("root", "erofs", "overlay")
def test_a_smuggled_redirect_does_not_show_other_directories(host: Host) -> None:
    key = b"SCHILY.xattr.trusted.overlay.redirect"
    layers = []
    for name, data in (
        ("lower", archive(member(b"private/key", b"1"))),
        ("upper", archive(pax((key, b"/private")), directory(b"public"))),
    ):
        layers.append(host.inside / name)
        with open(layers[-1], "wb", buffering=0) as out_:
            erofs.convert(tar.read(io.BytesIO(data)), out_)

    merged = overlay_tree(*layers, options=",redirect_dir=follow")

    assert b"public/key" not in merged


SPECIAL = {
    "negative-size": rawtar.header(b"f", size=b"\xff" * 12) + bytes(512),
    "negative-size-pax": pax((b"size", b"-512")) + member(b"f"),
    "size-beyond": rawtar.header(b"f", size=1 << 32),
    "huge-size": rawtar.header(b"f", size=b"\x80" + b"\xff" * 11),
    "uid-max": pax((b"uid", b"4294967295")) + member(b"f"),
    "gid-base256": member(b"f", gid=b"\x80\0\0\0\xff\xff\xff\xff"),
    "mtime-year-10e12": pax((b"mtime", b"31556952000000000000")) + member(b"f"),
    "mtime-base256": member(b"f", mtime=b"\x80" + b"\x7f" * 11),
    "socket": rawtar.header(b"s", type_=b"s"),
    "hardlink-loop": hardlink(b"a", b"b") + hardlink(b"b", b"a"),
    "deep": gnu_long(b"d/" * 10_000 + b"f") + member(b"x"),
    "device-number": rawtar.header(b"d", type_=b"4", device=(b"\x80\0\0\0\0\0\xff\xff", 0)),
    "sparse-huge": pax((b"GNU.sparse.map", b""), (b"GNU.sparse.size", b"9" * 20)) + member(b"s"),
}


@pytest.mark.attack("A28")
@pytest.mark.parametrize("maker", ["erofs", "layer"])
@pytest.mark.parametrize("case", SPECIAL)
def test_impossible_entries_are_refused_at_once(case: str, maker: str, host: Host) -> None:
    started = time.monotonic()

    with pytest.raises(InvalidError, match=r"archive|layer"):
        MAKERS[maker](archive(SPECIAL[case], end=False), host)

    assert time.monotonic() - started < 5


@pytest.mark.attack("A28")
@pytest.mark.needs("root", "erofs")
def test_odd_but_possible_entries_are_made(host: Host) -> None:
    data = archive(
        member(b"high-id", uid=b"\x80\0\0\0\x80\0\0\0"),
        member(b"all-modes", mode=b"7777777\0"),
        rawtar.header(b"block", type_=b"4", device=(254, 0)),
        rawtar.header(b"fifo", type_=b"6"),
    )

    tare_erofs(data, host)
    seen = erofs_tree(host.inside / "layer")

    assert seen[b"high-id"].uid == 2**31
    assert seen[b"all-modes"].mode == 0o7777
    assert (seen[b"block"].kind, seen[b"fifo"].kind) == ("b", "p")


MANY = """
import resource, sys
from security import rawtar
from tare.image import erofs, tar
NAME = b"d0000/f0000000"
block = rawtar.header(NAME)
middle, end, base = block[len(NAME):148], block[156:], int(block[148:154], 8) - sum(NAME)
def header(number):
    name = b"d%04d/f%07d" % (number // 1000, number)
    return b"%s%s%06o\\0 %s" % (name, middle, base + sum(name), end)
class Stream:
    made = 0
    def read(self, size):
        count = min(size // 512, 1_000_000 - self.made)
        part = [header(number) for number in range(self.made, self.made + count)]
        self.made += count
        return b"".join(part)
with open(sys.argv[1], "wb", buffering=0) as out:
    summary = erofs.convert(tar.read(Stream()), out)
print(summary.entries, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.attack("A28")
@pytest.mark.attack("A29")
def test_a_million_files_fit_into_the_memory_allowed(host: Host) -> None:
    search = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", MANY, host.inside / "layer"],
        env={**os.environ, "PYTHONPATH": search},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (120, 120)),
    )

    assert done.returncode == 0, done.stderr
    entries, megabytes = map(int, done.stdout.split())
    assert entries == 1_001_000
    assert megabytes < 512


@pytest.mark.attack("A29")
def test_control_a_naive_extractor_writes_the_sparse_bomb(host: Host) -> None:
    bomb = archive(
        pax((b"GNU.sparse.map", b"0,512"), (b"GNU.sparse.size", b"%d" % (1 << 40))),
        member(b"bomb", bytes(512)),
    )

    naive(bomb, host)
    assert os.stat(host.inside / "bomb").st_size == 1 << 40
    os.unlink(host.inside / "bomb")
    tare_erofs(bomb, host)

    assert os.stat(host.inside / "layer").st_size < 16 << 20


@pytest.mark.attack("A29")
def test_attributes_and_headers_cannot_fill_the_memory() -> None:
    def stream() -> Iterator[bytes]:
        for number in range(100_000):
            value = b"%08d" % number * 7000
            yield pax((b"SCHILY.xattr.user.a", value)) + member(b"f%d" % number)

    class Endless:
        def __init__(self) -> None:
            self._parts, self._rest = stream(), b""

        def read(self, n: int, /) -> bytes:
            while len(self._rest) < n and (part := next(self._parts, None)):
                self._rest += part
            data, self._rest = self._rest[:n], self._rest[n:]
            return data

    limits = tar.Limits(metadata=16 << 20)
    with pytest.raises(InvalidError, match=r"exceed|too large"):
        erofs.convert(tar.read(Endless(), limits=limits), io.BytesIO(), limits=limits)
