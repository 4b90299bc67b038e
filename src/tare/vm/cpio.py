"""A small writer of cpio archives in the "newc" format, for an initramfs.

Pure. Documentation/driver-api/early-userspace/buffer-format.rst of Linux is the format.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

_DIRECTORY: Final = 0o040755
_FILE: Final = 0o100755
_DEVICE: Final = 0o020600


@dataclass(frozen=True, slots=True)
class Entry:
    """A file with *content*, a directory (None), or a character device (*device*)."""

    path: str
    content: bytes | None = None
    device: tuple[int, int] | None = None


def archive(entries: Iterable[Entry]) -> bytes:
    """The archive of *entries*, in their order, all owned by root and without a time."""
    out = bytearray()
    number = 0
    for number, entry in enumerate(entries, 1):
        mode = _FILE if entry.content is not None else _DIRECTORY
        mode = _DEVICE if entry.device is not None else mode
        out += _record(number, entry.path, mode, entry.content or b"", entry.device or (0, 0))
    out += _record(number + 1, "TRAILER!!!", 0, b"", (0, 0))
    return bytes(out)


def _record(number: int, path: str, mode: int, content: bytes, device: tuple[int, int]) -> bytes:
    name = path.encode() + b"\0"
    fields = (
        number, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name), 0,
    )  # fmt: skip
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    header += bytes(-len(header) % 4)
    return header + content + bytes(-len(content) % 4)
