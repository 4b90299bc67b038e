"""Packages as values, and the bounded, read-only look at an image's files that finds them.

An image is whoever's who made it: names are looked up below its own root (openat2, RESOLVE_IN_ROOT:
no link leads out), only regular files are read, and every size and count has a bound. What was cut
short or cannot be read is told in `Inventory.notes`, never silently left out.

Not for: what the files mean (``system``, ``languages``), or how a bill is written (``documents``).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from tare.kernel import files

FILE_MAX: Final = 64 << 20
SMALL_MAX: Final = 1 << 20
PACKAGES_MAX: Final = 200_000
_TEXT_MAX: Final = 512
_ENTRIES_MAX: Final = 3_000_000
_DEPTH_MAX: Final = 64
_NOTES_MAX: Final = 100
_NOT_WALKED: Final = frozenset((b"proc", b"sys", b"dev"))


class Kind(StrEnum):
    """Whose package it is: the type of its package URL."""

    DEB = "deb"
    APK = "apk"
    RPM = "rpm"
    PYPI = "pypi"
    NPM = "npm"


@dataclass(frozen=True, slots=True, order=True, kw_only=True)
class Package:
    """One package that is installed. ``where`` is the file that says so, from the root."""

    kind: Kind
    name: str
    version: str
    architecture: str = ""
    license: str = ""
    supplier: str = ""
    source: str = ""
    """``NAME VERSION`` of the source package, where that is another."""
    integrity: str = ""
    where: str = ""


@dataclass(frozen=True, slots=True)
class System:
    """What ``os-release`` calls the image's system; empty where there is none."""

    id: str = ""
    version: str = ""
    pretty: str = ""


@dataclass(slots=True)
class Inventory:
    """All that was found, and in ``notes`` what could not be."""

    system: System = field(default_factory=System)
    packages: set[Package] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def add(self, package: Package) -> None:
        """Count a package, if it has a name and there are not too many."""
        if not package.name or not package.version:
            return
        if len(self.packages) >= PACKAGES_MAX:
            self.note(f"more than {PACKAGES_MAX} packages: the rest is left out")
            return
        self.packages.add(package)

    def note(self, text: str) -> None:
        """Say what is missing, once."""
        if text not in self.notes and len(self.notes) < _NOTES_MAX:
            self.notes.append(text)


def clean(text: object) -> str:
    """*text* on one line, of sane length, nothing unprintable in it; "" of what is no text."""
    if not isinstance(text, str):
        return ""
    words = " ".join(text[: 4 * _TEXT_MAX].split())
    return "".join(c for c in words if c.isprintable())[:_TEXT_MAX]


class Files:
    """The files below the directory *root*, which it does not own."""

    def __init__(self, root: int, inventory: Inventory) -> None:
        self._root = root
        self._inventory = inventory

    def _open(self, path: bytes) -> int | None:
        try:
            return files.openat2(
                self._root,
                path or b".",
                os.O_PATH,
                resolve=files.RESOLVE_IN_ROOT | files.RESOLVE_NO_MAGICLINKS,
            )
        except OSError:
            return None

    def read(self, path: bytes, limit: int = SMALL_MAX) -> bytes | None:
        """A regular file, links followed inside the image; None if there is none."""
        handle = self._open(path)
        if handle is None:
            return None
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                return None
            if status.st_size > limit:
                self._inventory.note(f"{_shown(path)} is larger than {limit >> 20} MiB: not read")
                return None
            with open(f"/proc/self/fd/{handle}", "rb", buffering=0) as file:
                found = bytearray()
                while len(found) <= limit and (piece := file.read(1 << 20)):
                    found += piece
                return bytes(found[:limit])
        except OSError as error:
            self._inventory.note(f"{_shown(path)} cannot be read: {error.strerror}")
            return None
        finally:
            os.close(handle)

    def text(self, path: bytes, limit: int = SMALL_MAX) -> str | None:
        """The same as text; bytes that are no UTF-8 are replaced."""
        content = self.read(path, limit)
        return None if content is None else content.decode("utf-8", "replace")

    def names(self, path: bytes) -> list[tuple[bytes, bool]]:
        """The names in a directory, sorted, and whether each is a directory itself (no link)."""
        handle = self._open(path)
        if handle is None:
            return []
        try:
            with os.scandir(f"/proc/self/fd/{handle}") as listed:
                return sorted(
                    (os.fsencode(entry.name), entry.is_dir(follow_symlinks=False))
                    for entry in listed
                )
        except OSError:
            return []
        finally:
            os.close(handle)

    def walk(self) -> Iterator[tuple[bytes, list[tuple[bytes, bool]]]]:
        """Every directory and what is in it, as far as the bounds go; links are not followed."""
        stack: list[bytes] = [b""]
        count = 0
        while stack:
            here = stack.pop()
            listed = self.names(here)
            count += len(listed) + 1
            if count > _ENTRIES_MAX:
                self._inventory.note(f"more than {_ENTRIES_MAX} files: not all were looked at")
                return
            yield here, listed
            if here.count(b"/") >= _DEPTH_MAX:
                self._inventory.note("directories more than 64 deep were not looked into")
                continue
            for name, directory in reversed(listed):
                if directory and (here or name not in _NOT_WALKED):
                    stack.append(here + b"/" + name if here else name)


def _shown(path: bytes) -> str:
    return clean("/" + path.decode("utf-8", "replace"))
