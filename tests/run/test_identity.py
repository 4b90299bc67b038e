"""Users and groups as the image's own files name them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tare.errors import InvalidError
from tare.run import identity

PASSWD = b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/var/www:/bin/sh\n1000:x:0:0::/evil:/\n"
GROUP = b"root:x:0:\nwww:x:34:\nlogs:x:50:web,other\nadm:x:4:root,web\n"


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", (0, 0, (4,), "/root")),
        ("root", (0, 0, (4,), "/root")),
        ("web", (33, 34, (50, 4), "/var/www")),
        ("33", (33, 34, (50, 4), "/var/www")),
        ("web:logs", (33, 50, (), "/var/www")),
        ("web:7", (33, 7, (), "/var/www")),
        ("777", (777, 0, (), "/")),
        ("777:www", (777, 34, (), "/")),
    ],
)
def test_a_user_gets_the_ids_groups_and_home_that_docker_gives(
    user: str, expected: tuple[int, int, tuple[int, ...], str]
) -> None:
    found = identity.resolve(user, (), PASSWD, GROUP)

    assert (found.uid, found.gid, found.groups, found.home) == expected


@pytest.mark.attack("A11")
@pytest.mark.parametrize(
    "user",
    [
        "4294967295", "4294967296", "-1", "99999999999", "0x0", " 1000", "1000 ", "٣", "web:",
        "1.0", "nobody", "web:none", "+1", "1_000",
    ],
)  # fmt: skip
def test_what_is_neither_a_number_in_range_nor_a_known_name_is_refused(user: str) -> None:
    with pytest.raises(InvalidError):
        identity.resolve(user, (), PASSWD, GROUP)


@pytest.mark.attack("A11")
def test_a_user_whose_name_is_a_number_never_stands_for_it() -> None:
    found = identity.resolve("1000", (), PASSWD, GROUP)

    assert found.uid == 1000
    assert found.home == "/"


@given(st.text(max_size=30), st.binary(max_size=300), st.binary(max_size=300))
def test_whatever_the_files_hold_ids_stay_in_range(user: str, passwd: bytes, group: bytes) -> None:
    try:
        found = identity.resolve(user, (), passwd, group)
    except InvalidError:
        return

    assert all(0 <= n <= identity.MAXIMUM_ID for n in (found.uid, found.gid, *found.groups))


def test_extra_groups_are_added_once() -> None:
    found = identity.resolve("web", ("logs", "7", "7"), PASSWD, GROUP)

    assert found.groups == (50, 4, 7)


def _root(path: Path) -> int:
    return os.open(path, os.O_PATH | os.O_DIRECTORY)


@pytest.mark.attack("A23")
def test_an_account_file_that_is_a_fifo_does_not_hang(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    os.mkfifo(tmp_path / "etc/passwd")
    root = _root(tmp_path)

    with pytest.raises(InvalidError, match="not a regular file"):
        identity.read_account_file(root, "etc/passwd")
    os.close(root)


@pytest.mark.attack("A23")
def test_a_huge_account_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    with (tmp_path / "etc/group").open("wb") as file:
        file.truncate(2 << 30)
    root = _root(tmp_path)

    with pytest.raises(InvalidError, match="larger than 1 MiB"):
        identity.read_account_file(root, "etc/group")
    os.close(root)


def test_a_symlink_stays_inside_the_root(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").symlink_to("/etc/hostname")
    root = _root(tmp_path)

    assert identity.read_account_file(root, "etc/passwd") == b""
    os.close(root)
