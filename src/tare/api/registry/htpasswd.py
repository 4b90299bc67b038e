"""Who may use the registry: names and hashed passwords out of a file, as `htpasswd -B` writes it.

bcrypt is what registries expect; whatever else the host's crypt(3) takes and nobody has broken is
accepted too. A hash is slow on purpose, so:

1. a pair that was right is remembered (as a keyed hash, never itself) until the file changes;
2. at most two are computed at a time, and only a bounded number waits;
3. an unknown name costs the same time as a known one.

Not for: what a user may do; who is let in may do all that the server does.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import os
import re
import secrets
import stat
from pathlib import Path
from typing import Final

from tare.errors import InvalidError
from tare.kernel import crypt, files
from tare.model.distribution import Code, DistributionError

_SIZE_MAX: Final = 4 << 20
_KEPT: Final = 1024
_WAITING_MAX: Final = 64
_AT_ONCE: Final = 2
_CREDENTIALS_MAX: Final = 1024
_HASH: Final = re.compile(
    r"\$2[aby]\$(?:0[4-9]|1[0-6])\$[./A-Za-z0-9]{53}|\$(?:y|gy|7|5|6)\$[!-9;-~]{8,400}"
)
_NAME: Final = re.compile(r"[^\s:\x00-\x1f\x7f]{1,255}")
_DUMMY: Final = "$2y$10$" + "." * 53


class Htpasswd:
    """The users of one file, read again when it changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._key = secrets.token_bytes(32)
        self._right: set[bytes] = set()
        self._stamp: tuple[int, ...] = ()
        self._users: dict[str, str] = {}
        self._turn = asyncio.Semaphore(_AT_ONCE)
        self._waiting = 0
        self._refresh()

    async def check(self, authorization: str) -> str:
        """The name of the user whom the header proves; else UNAUTHORIZED."""
        name, password = _credentials(authorization)
        try:
            self._refresh()
        except InvalidError as error:
            # A file that is being edited lets nobody in, and says so to the administrator only.
            raise _unauthorized() from error
        mark = hmac.digest(self._key, f"{name}\0{password}".encode(), hashlib.sha256)
        if mark in self._right:
            return name
        if self._waiting >= _WAITING_MAX:
            raise DistributionError(Code.TOOMANYREQUESTS, "too many passwords wait to be checked")
        known, users = self._users.get(name, _DUMMY), self._users
        self._waiting += 1
        try:
            async with self._turn:
                right = await asyncio.to_thread(crypt.matches, password.encode(), known)
        finally:
            self._waiting -= 1
        if not right or name not in users:
            raise _unauthorized()
        if users is self._users:  # not read anew meanwhile
            if len(self._right) >= _KEPT:
                self._right.clear()
            self._right.add(mark)
        return name

    def _refresh(self) -> None:
        try:
            status = self._path.stat()
        except OSError as error:
            raise InvalidError(f"{self._path} cannot be read: {error.strerror}") from None
        stamp = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)
        if stamp != self._stamp:
            self._users = read(self._path)
            self._right.clear()
            self._stamp = stamp


def read(path: Path) -> dict[str, str]:
    """The users of a file and their hashes; InvalidError names the line that is wrong."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise InvalidError(f"{path} cannot be read: {error.strerror}") from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _SIZE_MAX:
            raise InvalidError(f"{path} is not a file of names and passwords")
        if status.st_mode & 0o022:
            raise InvalidError(f"{path} may be changed by others", hint=f"chmod go-w {path}")
        text = file.read(_SIZE_MAX).decode("utf-8", "replace")
    users: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, known = line.strip().partition(":")
        if not _NAME.fullmatch(name) or not _HASH.fullmatch(known):
            raise InvalidError(
                f"{path}: line {number} is not NAME:HASH with a hash that is safe to use",
                hint="write the file with `tare registry passwd FILE NAME` or `htpasswd -B`",
            )
        users[name] = known
    return users


def put(path: Path, name: str, password: str) -> None:
    """Give *name* a password in *path*, which is made if it is not there."""
    if not _NAME.fullmatch(name):
        raise InvalidError(f"not a user's name: {name[:100]!a} (no colon, no space)")
    if not password or "\0" in password or len(password.encode()) > 72:
        raise InvalidError("a password has from 1 to 72 bytes (bcrypt ignores what follows)")
    users = read(path) if path.exists() else {}
    known = crypt.hashed(password.encode(), crypt.bcrypt_salt())
    if known is None:
        raise InvalidError("this host's libcrypt has no bcrypt")
    users[name] = known
    content = "".join(f"{user}:{each}\n" for user, each in users.items())
    files.replace(path, content.encode(), mode=0o600)


def _credentials(header: str) -> tuple[str, str]:
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic" or len(encoded) > _CREDENTIALS_MAX:
        raise _unauthorized()
    try:
        name, colon, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        raise _unauthorized() from None
    if not colon or "\0" in name + password:
        raise _unauthorized()
    return name, password


def _unauthorized() -> DistributionError:
    return DistributionError(
        Code.UNAUTHORIZED,
        "authentication required",
        headers={"WWW-Authenticate": 'Basic realm="tare registry", charset="UTF-8"'},
    )
