"""The host's files below a root, so that an audit can look at a host that is only a directory.

The daemon looks at ``/``; a test, or an audit of a host's disk, at another root. Nothing is
followed out of it by us: paths are joined, and links among the last steps are the kernel's.

Not for: the files of images and containers, which strangers wrote (`image`).
"""

from __future__ import annotations

import glob
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tare.audit import procfs
from tare.audit.procfs import MountLine

_LIMIT: Final = 1 << 20  # sysctl files refuse to be read in larger pieces


def _regular(path: str) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class View:
    """The host as files below *root*."""

    root: Path = Path("/")

    def path(self, name: str) -> Path:
        """Where the absolute *name* is."""
        return self.root / name.lstrip("/")

    def text(self, name: str) -> str:
        """A file's text; "" when it cannot be read."""
        try:
            with open(self.path(name), "rb") as file:
                return file.read(_LIMIT).decode("utf-8", "surrogateescape")
        except OSError:
            return ""

    def lines(self, name: str) -> list[str]:
        """The lines that say something: not empty, no comment."""
        found = (line.strip() for line in self.text(name).splitlines())
        return [line for line in found if line and not line.startswith("#")]

    def status(self, name: str) -> os.stat_result | None:
        """stat(2), the last link followed; None when it is not there."""
        try:
            return os.stat(self.path(name))
        except OSError:
            return None

    def exists(self, name: str) -> bool:
        """Whether something is there."""
        return self.status(name) is not None

    def listed(self, directory: str) -> list[str]:
        """The names in a directory, sorted; none when it cannot be read."""
        try:
            return sorted(os.listdir(self.path(directory)))
        except OSError:
            return []

    def matches(self, pattern: str) -> list[str]:
        """Absolute names (in the view) that match a glob pattern, sorted."""
        prefix = str(self.root).rstrip("/")
        found = glob.glob(prefix + pattern, recursive=True)
        return sorted(name[len(prefix) :] for name in found)

    def setting(self, name: str) -> str:
        """A kernel parameter by its dotted name; "" when this kernel does not have it."""
        return self.text(f"/proc/sys/{name.replace('.', '/')}").strip()

    def mounts(self) -> list[MountLine]:
        """The mounts of the host."""
        return procfs.mounts(self.text("/proc/self/mountinfo"))

    def files_below(self, directory: str) -> list[str]:
        """Regular files in a directory and below it, at most a few thousand."""
        found: list[str] = []
        top = str(self.path(directory))
        for base, _, names in os.walk(top):
            for name in names:
                full = os.path.join(base, name)
                if _regular(full):
                    found.append(full[len(str(self.root).rstrip("/")) :])
            if len(found) > 4000:
                break
        return sorted(found)

    def groups(self) -> dict[str, tuple[int, tuple[str, ...]]]:
        """group(5): number and members by name."""
        found = {}
        for line in self.lines("/etc/group"):
            words = line.split(":")
            if len(words) >= 4 and words[2].isdigit():
                members = tuple(name for name in words[3].split(",") if name)
                found[words[0]] = int(words[2]), members
        return found

    def accounts(self) -> list[tuple[str, int, int]]:
        """passwd(5): name, user id, group id."""
        found = []
        for line in self.lines("/etc/passwd"):
            words = line.split(":")
            if len(words) >= 4 and words[2].isdigit() and words[3].isdigit():
                found.append((words[0], int(words[2]), int(words[3])))
        return found

    def user_name(self, number: int) -> str:
        """A user's name, or the number."""
        return next((name for name, uid, _ in self.accounts() if uid == number), str(number))

    def group_name(self, number: int) -> str:
        """A group's name, or the number."""
        found = (name for name, (gid, _) in self.groups().items() if gid == number)
        return next(found, str(number))
