"""What a container changed, seen through a real overlay: the list, and the layer made of it."""

from __future__ import annotations

import io
import os
import stat
import struct
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tare.errors import FailedError
from tare.image import tar
from tare.image.changes import changes, open_layer, write_layer
from tare.image.entry import Kind
from tare.image.store import ImageStore


@dataclass
class Overlay:
    """A mounted overlay; the parts may be looked at while it is mounted."""

    lower: Path
    upper: Path
    merged: Path

    def changed(self, **options: bool) -> dict[str, str]:
        with opened(self.upper) as upper, opened(self.lower) as lower:
            return {c.path: str(c.kind) for c in changes(upper.fd, lower.fd, **options)}

    def layer(
        self,
        unshift: Callable[[int], int] = lambda i: i,
        *,
        devices: bool = True,
        userxattr: bool = False,
    ) -> bytes:
        out = io.BytesIO()
        with opened(self.upper) as upper:
            write_layer(upper.fd, out, unshift=unshift, devices=devices, userxattr=userxattr)
        return out.getvalue()


class opened:
    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def __enter__(self) -> opened:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def mount(*arguments: str | Path) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")


@pytest.fixture
def overlay(tmp_path: Path) -> Iterator[Overlay]:
    parts = {name: tmp_path / name for name in ("lower", "upper", "work", "merged")}
    for path in parts.values():
        path.mkdir()
    lower = parts["lower"]
    for name in ("etc", "gone", "again", "kept", "dir/deep"):
        (lower / name).mkdir(parents=True)
    for name in ("etc/a", "etc/b", "gone/x", "again/old", "kept/k", "dir/deep/f", "file", "typed"):
        (lower / name).write_text(name)
    options = ",".join(
        [
            *(f"{n}dir={parts[n]}" for n in ("lower", "upper", "work")),
            "metacopy=off",
            "redirect_dir=off",
        ]
    )
    mount("-t", "overlay", "overlay", "-o", options, parts["merged"])
    try:
        yield Overlay(lower, parts["upper"], parts["merged"])
    finally:
        subprocess.run(["umount", parts["merged"]], check=True)


def change_everything(root: Path) -> None:
    (root / "etc/a").write_text("changed")
    (root / "etc/b").unlink()
    subprocess.run(["rm", "-r", root / "gone"], check=True)
    subprocess.run(["rm", "-r", root / "again"], check=True)
    (root / "again").mkdir()
    (root / "again/new").write_bytes(b"new")
    (root / "typed").unlink()
    (root / "typed").mkdir()
    (root / "new/deep").mkdir(parents=True)
    (root / "new/deep/one").write_bytes(os.urandom(70_000))
    os.link(root / "new/deep/one", root / "new/two")
    (root / "new/link").symlink_to("/nowhere")
    os.mkfifo(root / "new/fifo")
    os.mknod(root / "new/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    (root / os.fsdecode(b"new/\xff\xfe")).write_bytes(b"name")
    with open(root / "new/sparse", "wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    os.setxattr(root / "etc/a", "user.mine", b"x")
    os.setxattr(root / "etc/a", "user.overlay.opaque", b"y")
    os.chown(root / "etc/a", 1000, 1001)
    os.chmod(root / "etc/a", 0o4755)


def tree(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for directory, names, files in os.walk(root):
        for name in [*names, *files]:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            content: object = None
            if stat.S_ISREG(status.st_mode):
                content = Path(path).read_bytes()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            linked = status.st_nlink if not stat.S_ISDIR(status.st_mode) else 0
            found[os.path.relpath(path, root)] = (
                status.st_mode,
                status.st_uid,
                status.st_gid,
                status.st_rdev,
                linked,
                content,
            )
    return found


def test_the_list_is_what_docker_diff_shows(overlay: Overlay) -> None:
    change_everything(overlay.merged)
    (overlay.merged / "kept").chmod(0o700)

    assert overlay.changed() == {
        "/etc": "C",
        "/etc/a": "C",
        "/etc/b": "D",
        "/gone": "D",
        "/again": "C",
        "/again/old": "D",
        "/again/new": "A",
        "/typed": "C",
        "/kept": "C",
        "/new": "A",
        "/new/deep": "A",
        "/new/deep/one": "A",
        "/new/two": "A",
        "/new/link": "A",
        "/new/fifo": "A",
        "/new/null": "A",
        "/new/sparse": "A",
        os.fsdecode(b"/new/\xff\xfe"): "A",
    }


def test_a_directory_that_was_only_looked_into_is_not_listed(overlay: Overlay) -> None:
    os.utime(overlay.merged / "dir/deep", ns=(0, os.stat(overlay.merged / "dir/deep").st_mtime_ns))
    with open(overlay.merged / "etc/a", "a"):
        pass

    assert set(overlay.changed()) <= {"/etc", "/etc/a"}


def test_the_layer_on_the_lower_one_gives_the_same_tree(overlay: Overlay, tmp_path: Path) -> None:
    change_everything(overlay.merged)
    store = ImageStore(tmp_path / "state", extract=False)

    info = store.add_layer(io.BytesIO(overlay.layer()))

    point, again = tmp_path / "point", tmp_path / "again"
    point.mkdir()
    again.mkdir()
    mount("-t", "erofs", info.path, point)
    try:
        mount("-t", "overlay", "overlay", "-o", f"lowerdir={point}:{overlay.lower}", again)
        try:
            assert tree(again) == tree(overlay.merged)
            with pytest.raises(OSError):
                os.getxattr(again / "etc/a", "user.overlay.opaque")
            assert os.getxattr(again / "etc/a", "user.mine") == b"x"
        finally:
            subprocess.run(["umount", again], check=True)
    finally:
        subprocess.run(["umount", point], check=True)


def test_whiteouts_and_opaque_directories_are_written_as_oci_has_them(overlay: Overlay) -> None:
    change_everything(overlay.merged)

    names = [entry.path for entry, _ in tar.read(io.BytesIO(overlay.layer()))]

    assert b"etc/.wh.b" in names
    assert b".wh.gone" in names
    assert names.index(b"again") < names.index(b"again/.wh..wh..opq") < names.index(b"again/new")
    assert b"etc/b" not in names


def test_the_same_tree_gives_the_same_bytes_and_a_second_name_is_a_link(overlay: Overlay) -> None:
    change_everything(overlay.merged)

    first = overlay.layer()

    assert overlay.layer() == first
    entries = {e.path: e for e, _ in tar.read(io.BytesIO(first))}
    assert entries[b"new/two"].kind is Kind.HARDLINK
    assert entries[b"new/two"].linkname == b"new/deep/one"
    assert entries[b"new/sparse"].stored < entries[b"new/sparse"].size == (1 << 20) + 3


def test_ids_come_back_out_of_their_block(overlay: Overlay) -> None:
    base = 200_000
    path = overlay.merged / "new"
    path.write_text("x")
    os.chown(path, base + 33, base + 44)
    revision_3 = struct.pack("<IIIIII", 0x03000001, 1 << 10, 0, 0, 0, base)
    (overlay.merged / "capable").write_text("x")
    os.chown(overlay.merged / "capable", base, base)
    os.setxattr(overlay.merged / "capable", "security.capability", revision_3)

    entries = {e.path: e for e, _ in tar.read(io.BytesIO(overlay.layer(lambda i: i - base)))}

    assert (entries[b"new"].uid, entries[b"new"].gid) == (33, 44)
    assert entries[b"capable"].xattrs[b"security.capability"] == struct.pack(
        "<IIIII", 0x02000001, 1 << 10, 0, 0, 0
    )


@pytest.mark.attack("A27")
def test_a_container_cannot_fake_overlays_marks(overlay: Overlay) -> None:
    (overlay.merged / "etc/.wh.a").write_text("x")
    (overlay.merged / "etc/.wh..wh..opq").write_text("")
    os.setxattr(overlay.merged / "dir", "user.overlay.opaque", b"y")
    (overlay.merged / "white").write_text("")
    os.setxattr(overlay.merged / "white", "user.overlay.whiteout", b"y")

    names = [entry.path for entry, _ in tar.read(io.BytesIO(overlay.layer()))]

    assert not [name for name in names if b".wh." in name]
    assert "/dir/deep" not in overlay.changed()
    assert b"white" in names


def test_marks_of_unprivileged_mounts_are_read_when_asked_for(tmp_path: Path) -> None:
    upper, lower = tmp_path / "upper", tmp_path / "lower"
    for path in (upper / "d", lower / "d"):
        path.mkdir(parents=True)
    (lower / "d/old").write_text("old")
    (lower / "w").write_text("w")
    (upper / "w").write_text("")
    os.setxattr(upper / "d", "user.overlay.opaque", b"y")
    os.setxattr(upper / "w", "user.overlay.whiteout", b"y")
    overlay = Overlay(lower, upper, upper)

    names = [e.path for e, _ in tar.read(io.BytesIO(overlay.layer(userxattr=True)))]

    assert names == [b"d", b"d/.wh..wh..opq", b".wh.w"]
    assert overlay.changed(userxattr=True) == {"/d": "C", "/d/old": "D", "/w": "D"}


@pytest.mark.attack("A28")
def test_a_bottomless_directory_is_refused(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    for _ in range(400):
        os.mkdir("d", dir_fd=directory)
        inner = os.open("d", os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = inner
    os.close(directory)

    with opened(tmp_path) as upper, opened(Path("/")) as lower:
        with pytest.raises(FailedError, match="deeper than"):
            write_layer(upper.fd, io.BytesIO())
        with pytest.raises(FailedError, match="deeper than"):
            changes(upper.fd, lower.fd)
        with open_layer(upper.fd) as stream, pytest.raises(FailedError, match="deeper than"):
            while stream.read(1 << 16):
                pass


def test_a_layer_can_be_read_as_a_stream_and_given_up(overlay: Overlay) -> None:
    change_everything(overlay.merged)
    with opened(overlay.upper) as upper:
        with open_layer(upper.fd) as stream:
            whole = b""
            while data := stream.read(10_000):
                whole += data
        with open_layer(upper.fd) as stream:
            stream.read(100)

    assert whole == overlay.layer()


def test_empty_stubs_of_the_engines_mounts_are_no_part_of_a_layer(overlay: Overlay) -> None:
    (overlay.merged / "etc").mkdir(exist_ok=True)
    for name in ("hosts", "hostname", "resolv.conf"):
        (overlay.merged / "etc" / name).touch()
    (overlay.merged / "proc").mkdir()
    (overlay.merged / "etc/motd").write_text("kept")
    (overlay.merged / "hosts").touch()

    names = [name.rstrip("/") for name in tarnames(overlay.layer())]

    assert names == ["etc", "etc/motd", "hosts"]


def test_a_directory_copied_up_for_stubs_alone_is_left_out_and_a_changed_one_is_not(
    tmp_path: Path,
) -> None:
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    (lower / "etc").mkdir(parents=True)
    (upper / "etc").mkdir(parents=True)
    (upper / "etc/hosts").touch()

    def names() -> list[str]:
        out = io.BytesIO()
        with opened(upper) as above, opened(lower) as below:
            write_layer(above.fd, out, lower=below.fd)
        return tarnames(out.getvalue())

    same = names()
    (upper / "etc").chmod(0o700)
    changed = names()

    assert same == []
    assert changed == ["etc/"]


def test_a_filled_file_in_the_place_of_a_stub_is_kept(overlay: Overlay) -> None:
    (overlay.merged / "etc").mkdir(exist_ok=True)
    (overlay.merged / "etc/hosts").write_text("127.0.0.1 here\n")

    assert "etc/hosts" in tarnames(overlay.layer())


def tarnames(content: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return [m.name + "/" * m.isdir() for m in archive]
