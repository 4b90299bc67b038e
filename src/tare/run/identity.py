"""Who a program runs as: ``USER[:GROUP]`` against the image's own passwd(5) and group(5).

Pure but for `read_account_file`. Names are looked up in the image's files by this parser, never
by NSS, which would load the image's libraries into tare. Rules (attack A11): only ASCII digits
are a number, at most 2**32 - 2; a number is never looked up as a name; what is neither a number
nor a known name is an error, never a fallback.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tare.errors import InvalidError
from tare.kernel import files

MAXIMUM_ID: Final = 2**32 - 2
_MAXIMUM_FILE: Final = 1 << 20
_MAXIMUM_LINES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Identity:
    """What `confine.become` needs, and the home directory for ``HOME``."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


def read_account_file(root: int, path: str) -> bytes:
    """The regular file *path* below the directory *root*; empty if there is none.

    A device, FIFO or file of over 1 MiB is refused: nothing an image ships can hang this.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
    try:
        descriptor = files.open_in_root(root, path, flags)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as error:
        raise InvalidError(f"cannot read /{path} of the image: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InvalidError(f"/{path} of the image is not a regular file")
        if status.st_size > _MAXIMUM_FILE:
            raise InvalidError(f"/{path} of the image is larger than 1 MiB")
        return os.read(descriptor, status.st_size)
    finally:
        os.close(descriptor)


def number(text: str) -> int | None:
    """The id that *text* spells, None if it is a name; out of range is InvalidError."""
    if not (text.isascii() and text.isdigit()):
        return None
    if len(text) > 10 or int(text) > MAXIMUM_ID:
        raise InvalidError(f"user or group id {text[:40]!r} is out of range (0 to {MAXIMUM_ID})")
    return int(text)


def _records(content: bytes, fields: int) -> Iterator[list[str]]:
    for line in content.split(b"\n", _MAXIMUM_LINES)[:_MAXIMUM_LINES]:
        parts = line.decode("utf-8", "surrogateescape").split(":")
        if len(parts) >= fields and not parts[0].startswith("#"):
            yield parts


def _small(text: str) -> int | None:
    try:
        return number(text)
    except InvalidError:
        return None


def resolve(user: str, extra: tuple[str, ...], passwd: bytes, group: bytes) -> Identity:
    """The identity for *user* (``""`` is root) with *extra* groups, or InvalidError.

    As Docker: a uid without a passwd entry gets group 0 and home ``/``; the supplementary
    groups of the group file apply only when no group was named.
    """
    name, colon, group_name = user.partition(":")
    if colon and not group_name:
        raise InvalidError(f"user {user!r} names no group after the colon")
    uid = number(name or "0")
    gid, home, login = 0, "/", ""
    for parts in _records(passwd, 6):
        entry = _small(parts[2])
        if entry is None or (entry != uid if uid is not None else parts[0] != name):
            continue
        primary = _small(parts[3])
        if primary is None:
            raise InvalidError(
                f"user {parts[0][:40]!r} has the group {parts[3][:40]!r} in the image's passwd "
                "file, which is no group id"
            )
        uid, gid, home, login = entry, primary, parts[5] or "/", parts[0]
        break
    if uid is None:
        raise InvalidError(
            f"unable to find user {name}: no matching entries in passwd file",
            hint="use a numeric id, or a user that the image's /etc/passwd has",
        )
    groups: list[int] = []
    if group_name:
        gid = _group_id(group_name, group)
    elif login:
        for parts in _records(group, 4):
            member = _small(parts[2])
            if member is not None and login in parts[3].split(","):
                groups.append(member)
    groups += [_group_id(wanted, group) for wanted in extra]
    return Identity(uid, gid, tuple(dict.fromkeys(groups)), home)


def _group_id(name: str, content: bytes) -> int:
    gid = number(name)
    if gid is not None:
        return gid
    for parts in _records(content, 3):
        if parts[0] == name and (found := _small(parts[2])) is not None:
            return found
    raise InvalidError(
        f"unable to find group {name}: no matching entries in group file",
        hint="use a numeric id, or a group that the image's /etc/group has",
    )
