"""The file server against guests that lie; what goes well is tried by a real guest in test_life."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tare.vm import fuse
from tare.vm.fuse import Op
from tare.vm.sharing import ROOT, Share


class Guest:
    """The kernel's side of FUSE, as far as the tests need it."""

    def __init__(self, share: Share) -> None:
        self.share = share

    def ask(self, op: int, node: int, body: bytes = b"", uid: int = 0) -> tuple[int, bytes]:
        """The errno (0: none) and the body of the answer."""
        length = fuse.REQUEST.size + len(body)
        message = fuse.REQUEST.pack(length, op, 7, node, uid, uid, 1, 0) + body
        answer = self.share.answer(message)
        assert answer is not None
        size, wrong, unique = struct.unpack_from("<IiQ", answer)
        assert (size, unique) == (len(answer), 7)
        return -wrong, answer[16:]

    def lookup(self, name: bytes, node: int = ROOT) -> int:
        """The node of *name*; OSError with the errno that was answered."""
        wrong, body = self.ask(Op.LOOKUP, node, name + b"\0")
        if wrong:
            raise OSError(wrong, name.decode("latin-1"))
        return int(struct.unpack_from("<Q", body)[0])


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file beside the share that nobody below it may reach."""
    found = tmp_path / "canary"
    found.write_text("canary")
    return found


@pytest.fixture
def guest(tmp_path: Path, outside: Path) -> Iterator[Guest]:
    """A guest with a share that holds a file, a directory, and symlinks out of it."""
    root = tmp_path / "share"
    (root / "directory").mkdir(parents=True)
    (root / "file").write_text("content")
    (root / "out").symlink_to(outside)
    (root / "up").symlink_to("..")
    share = Share(str(root))
    yield Guest(share)
    share.close()


@pytest.mark.attack("A50")
@pytest.mark.parametrize(
    "name", [b"..", b".", b"", b"../canary", b"directory/../../canary", b"/etc/passwd", b"a/b"]
)
@pytest.mark.parametrize("op", [Op.LOOKUP, Op.UNLINK, Op.RMDIR, Op.MKDIR, Op.CREATE, Op.RENAME])
def test_a_name_that_is_a_path_is_refused(guest: Guest, outside: Path, op: Op, name: bytes) -> None:
    head = {
        Op.MKDIR: struct.pack("<II", 0o755, 0),
        Op.CREATE: struct.pack("<IIII", os.O_WRONLY | os.O_TRUNC, 0o644, 0, 0),
        Op.RENAME: struct.pack("<Q", ROOT) + b"file\0",
    }.get(op, b"")

    wrong, _ = guest.ask(op, ROOT, head + name + b"\0")

    assert wrong == errno.EINVAL
    assert outside.read_text() == "canary"


@pytest.mark.attack("A50")
def test_a_symlink_is_a_symlink_and_never_a_way_out(guest: Guest, outside: Path) -> None:
    for name in (b"out", b"up"):
        link = guest.lookup(name)
        assert guest.ask(Op.OPEN, link, struct.pack("<II", os.O_RDWR, 0))[0] == errno.EACCES
        assert guest.ask(Op.OPENDIR, link, bytes(8))[0] in (errno.ENOTDIR, errno.ELOOP)
        assert guest.ask(Op.LOOKUP, link, b"canary\0")[0] in (errno.ENOTDIR, errno.ELOOP)
        set_size = struct.pack("<IIQQ", 1 << 3, 0, 0, 0) + bytes(64)
        assert guest.ask(Op.SETATTR, link, set_size)[0] == errno.EACCES
        mode = struct.pack("<IIQQQQQQIIIIIIII", 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0o777, 0, 0, 0, 0)
        assert guest.ask(Op.SETATTR, link, mode)[0] == errno.EOPNOTSUPP

    assert outside.read_text() == "canary"


@pytest.mark.attack("A50")
def test_a_directory_that_becomes_a_symlink_is_not_followed(guest: Guest, tmp_path: Path) -> None:
    directory = guest.lookup(b"directory")
    (tmp_path / "share/directory").rmdir()
    (tmp_path / "share/directory").symlink_to(tmp_path)

    assert guest.ask(Op.LOOKUP, directory, b"canary\0")[0] in (errno.ELOOP, errno.ENOTDIR)


@pytest.mark.attack("A50")
def test_device_nodes_are_never_made_nor_opened(guest: Guest, tmp_path: Path) -> None:
    device = struct.pack("<IIII", 0o020666, 0x103, 0, 0)
    assert guest.ask(Op.MKNOD, ROOT, device + b"null\0")[0] == errno.EPERM
    os.mkfifo(tmp_path / "share/fifo")
    fifo = guest.lookup(b"fifo")

    assert guest.ask(Op.OPEN, fifo, struct.pack("<II", os.O_RDWR, 0))[0] == errno.EACCES


@pytest.mark.attack("A50")
@pytest.mark.parametrize("number", [0, 2, 99, 2**64 - 1])
def test_handles_and_nodes_that_were_not_given_are_refused(guest: Guest, number: int) -> None:
    handle = struct.pack("<QQI", number, 0, 4096) + bytes(20)
    for op in (Op.READ, Op.WRITE, Op.READDIR, Op.RELEASE, Op.FSYNC, Op.LSEEK):
        assert guest.ask(op, ROOT, handle)[0] == errno.EINVAL
    assert guest.ask(Op.GETATTR, number, bytes(16))[0] == errno.EINVAL


@pytest.mark.attack("A50")
def test_attributes_of_the_host_s_security_are_out_of_reach(guest: Guest) -> None:
    file = guest.lookup(b"file")
    for name in (b"security.capability", b"trusted.overlay.opaque", b"system.posix_acl_access"):
        body = struct.pack("<II", 4, 0) + name + b"\0" + b"evil"
        assert guest.ask(Op.SETXATTR, file, body)[0] == errno.EOPNOTSUPP
        assert guest.ask(Op.GETXATTR, file, bytes(8) + name + b"\0")[0] == errno.EOPNOTSUPP


@pytest.mark.attack("A50")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.integers(0, 60), st.integers(0, 5), st.binary(max_size=120))
def test_noise_is_answered_with_an_errno_and_harms_nothing(
    guest: Guest, outside: Path, op: int, node: int, body: bytes
) -> None:
    if op in (Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT):
        return
    wrong, _ = guest.ask(op, node, body)

    assert 0 <= wrong < 134
    assert outside.read_text() == "canary"


def test_a_file_that_is_deleted_while_open_can_be_used_on(guest: Guest, tmp_path: Path) -> None:
    file = guest.lookup(b"file")
    _, body = guest.ask(Op.OPEN, file, struct.pack("<II", os.O_RDWR, 0))
    (handle,) = struct.unpack_from("<Q", body)
    assert guest.ask(Op.UNLINK, ROOT, b"file\0")[0] == 0

    wrong, status = guest.ask(Op.GETATTR, file, bytes(16))
    read = guest.ask(Op.READ, file, struct.pack("<QQI", handle, 0, 100) + bytes(20))

    assert wrong == 0
    assert struct.unpack_from("<Q", status, 24)[0] == 7  # its size
    assert read == (0, b"content")
    assert not (tmp_path / "share/file").exists()


def test_a_renamed_directory_keeps_what_the_guest_knows_of_it(guest: Guest, tmp_path: Path) -> None:
    directory = guest.lookup(b"directory")
    (tmp_path / "share/directory/inner").write_text("x")
    inner = guest.lookup(b"inner", directory)
    moved = struct.pack("<Q", ROOT) + b"directory\0" + b"renamed\0"
    assert guest.ask(Op.RENAME, ROOT, moved)[0] == 0

    assert guest.ask(Op.GETATTR, inner, bytes(16))[0] == 0
    assert (tmp_path / "share/renamed/inner").exists()
