"""A directory as the archive that a build context is sent as.

Owners are left out (a build gives its own), names are sorted, and nothing but files, directories
and links is sent. ``.dockerignore`` leaves files out here so that they are not read and carried;
the builder leaves out what it names once more, so a small context goes as it is and the matcher,
which is dear to import, is not.

tarfile costs more to import than a small context to pack. Not for: what comes back (archive).
"""

from __future__ import annotations

import os
import stat

from tare.errors import InvalidError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from tare.model.ignore import IgnoreRules

_BLOCK = 512
_PIECE = 256 << 10
_SMALL_FILES = 300
_SMALL_BYTES = 1 << 20
_OCTAL = 0o77777777777


class Entry:
    """One file to send: its name in the archive, where it is, and what it is."""

    __slots__ = ("name", "path", "status")

    def __init__(self, name: str, path: str, status: os.stat_result) -> None:
        self.name = name
        self.path = path
        self.status = status


def entries(directory: str, rules: IgnoreRules | None) -> Iterator[Entry]:
    """What is below *directory* and not left out, parents first, sorted."""
    stack = [("", directory)]
    while stack:
        prefix, path = stack.pop()
        try:
            with os.scandir(path) as found:
                names = sorted(found, key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            raise InvalidError(f"cannot read {path}: {error.strerror}") from None
        deeper: list[tuple[str, str]] = []
        for entry in reversed(names):
            name = prefix + entry.name
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # deleted since it was listed
            directory_too = stat.S_ISDIR(status.st_mode)
            if rules is not None and rules.ignores(name):
                if directory_too and rules.takes_back and rules.may_take_back_below(name):
                    deeper.append((f"{name}/", entry.path))
                continue
            if directory_too or stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
                yield Entry(name, entry.path, status)
            if directory_too:
                deeper.append((f"{name}/", entry.path))
        stack += reversed(deeper)


def pack(directory: str, ignore: str) -> Iterator[bytes]:
    """The archive of *directory* in pieces; *ignore* is the ignore file to use, if it exists."""
    chosen = entries(directory, None)
    if os.path.exists(ignore):
        small = _small(directory)
        chosen = iter(small) if small is not None else entries(directory, _rules(ignore))
    gathered = bytearray()
    for entry in chosen:
        for piece in _archived(entry):
            gathered += piece
            if len(gathered) >= _PIECE:
                yield bytes(gathered)
                gathered.clear()
    gathered += bytes(2 * _BLOCK)
    yield bytes(gathered)


def _small(directory: str) -> list[Entry] | None:
    """All of a small directory; None of one that is not."""
    found: list[Entry] = []
    total = 0
    for entry in entries(directory, None):
        found.append(entry)
        total += entry.status.st_size
        if len(found) > _SMALL_FILES or total > _SMALL_BYTES:
            return None
    return found


def _rules(path: str) -> IgnoreRules:
    from tare.model.ignore import IgnoreRules

    try:
        with open(path, "rb") as file:
            return IgnoreRules.parse(file.read(2 << 20), name=path)
    except OSError as error:
        raise InvalidError(f"cannot read {path}: {error.strerror}") from None


def _archived(entry: Entry) -> Iterator[bytes]:
    status = entry.status
    name = os.fsencode(entry.name)
    if stat.S_ISDIR(status.st_mode):
        yield from _header(name + b"/", status, b"5")
    elif stat.S_ISLNK(status.st_mode):
        yield from _header(name, status, b"2", link=os.fsencode(os.readlink(entry.path)))
    else:
        yield from _file(name, entry)


def _file(name: bytes, entry: Entry) -> Iterator[bytes]:
    try:
        descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidError(f"cannot read {entry.path}: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        size = status.st_size
        yield from _header(name, status, b"0", size=size, xattrs=_attributes(descriptor))
        left = size
        while left:
            piece = os.read(descriptor, min(left, _PIECE))
            if not piece:
                raise InvalidError(f"{entry.path} shrank while it was read")
            left -= len(piece)
            yield piece
        yield bytes(-size % _BLOCK)
    finally:
        os.close(descriptor)


def _attributes(descriptor: int) -> dict[bytes, bytes]:
    try:
        names = os.listxattr(descriptor)
    except OSError:
        return {}
    return {
        os.fsencode(name): os.getxattr(descriptor, name)
        for name in names
        if name == "security.capability" or name.startswith("user.")
    }


def _header(
    name: bytes,
    status: os.stat_result,
    kind: bytes,
    *,
    size: int = 0,
    link: bytes = b"",
    xattrs: dict[bytes, bytes] | None = None,
) -> Iterator[bytes]:
    records = {b"SCHILY.xattr." + key: value for key, value in (xattrs or {}).items()}
    if len(name) > 100:
        records[b"path"] = name
    if len(link) > 100:
        records[b"linkpath"] = link
    if size > _OCTAL:
        records[b"size"] = b"%d" % size
    if records:
        body = b"".join(_record(key, value) for key, value in sorted(records.items()))
        yield _block(b"PaxHeader", 0o644, len(body), 0, kind=b"x")
        yield body + bytes(-len(body) % _BLOCK)
    mode = stat.S_IMODE(status.st_mode)
    mtime = min(max(int(status.st_mtime), 0), _OCTAL)
    yield _block(name[:100], mode, size if size <= _OCTAL else 0, mtime, kind=kind, link=link[:100])


def _record(key: bytes, value: bytes) -> bytes:
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) != len(str(rest)):
        length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _block(
    name: bytes, mode: int, size: int, mtime: int, *, kind: bytes, link: bytes = b""
) -> bytes:
    front = b"%s%07o\0%07o\0%07o\0%011o\0%011o\0" % (
        name.ljust(100, b"\0"), mode, 0, 0, size, mtime,
    )  # fmt: skip
    back = b"%s%s%s%s" % (kind, link.ljust(100, b"\0"), b"ustar\x0000", bytes(247))
    total = sum(front) + sum(back) + 8 * 0x20
    return b"%s%06o\0 %s" % (front, total, back)
