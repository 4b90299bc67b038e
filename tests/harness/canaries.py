"""What on the host must be the same after a test as before: canaries, and things left behind.

Two sizes. `Canaries` is cheap (a few reads of /proc) and surrounds every system and attack test.
`Leftovers` looks at processes, cgroups and directories, and surrounds the whole session. A
finding is one line of text. Some findings are surely of this session: a canary changed, a mount
below our own temporary directory, a process that carries our mark. Others could be the doing of
someone else on a shared host (a link, a mount elsewhere); those count only where the session is
alone, which ``TARE_TEST_REQUIRE=alone`` says.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CONTENT: Final = b"nobody but its owner may read or change this line\n"
MARK: Final = "TARE_TEST_SESSION"
_OTHERS: Final = re.compile(r" /var/tmp/tt-\d+-")
"""Mount points of test sessions, which may run side by side."""
_PREPARED: Final = re.compile(r"tp[0-9a-f]{12}")
"""Links that keepers make ahead of time: they come and go with spares, of whatever engine."""
_CGROUPS: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that differs; *ours* when no one else can have done it."""

    text: str
    ours: bool


def plant(directory: Path) -> Path:
    """Lay the canary file, readable by its owner only, and return its path."""
    path = directory / f"tare-canary-{os.getpid()}"
    path.write_bytes(CONTENT)
    path.chmod(0o600)
    return path


def _facts(path: Path) -> tuple[int, int, int, int, int, int]:
    seen = os.stat(path)
    return (seen.st_ino, seen.st_mode, seen.st_uid, seen.st_gid, seen.st_size, seen.st_mtime_ns)


def _mounts(own: str) -> frozenset[str]:
    # Fields from the device on: the ids before it change when a namespace is made anew.
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return frozenset(
        line.split(" ", 2)[2] for line in lines if own in line or not _OTHERS.search(line)
    )


def mounts_below(directory: Path) -> list[str]:
    """The mount points at and below *directory*, in the order in which they were made."""
    # mountinfo writes a blank in a path as \\040; paths of tests hold none.
    points = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    prefix = f"{directory}/"
    return [point for point in points if point == str(directory) or point.startswith(prefix)]


def _names(directory: str) -> frozenset[str]:
    try:
        return frozenset(os.listdir(directory))
    except OSError:
        return frozenset()


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


class Canaries:
    """The state of the host that no test may change, as it was when this was made."""

    _SETTINGS: Final = (
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/net/ipv4/ip_unprivileged_port_start",
        "/proc/sys/net/ipv4/ping_group_range",
        *(f"/sys/fs/cgroup/{name}/release_agent" for name in ("pids", "memory", "systemd")),
    )

    def __init__(self, canary: Path, own: Path) -> None:
        self._canary, self._own = canary, str(own)
        self._watched = (canary, Path("/etc/passwd"), Path("/etc/shadow"), Path(sys.executable))
        self._before = self._look()

    def _look(self) -> tuple[dict[str, object], frozenset[str], frozenset[str], frozenset[str]]:
        files: dict[str, object] = {str(path): self._fact(path) for path in self._watched}
        files["the canary's content"] = self._content()
        files.update((name, _text(name)) for name in self._SETTINGS)
        links = frozenset(n for n in _names("/sys/class/net") if not _PREPARED.fullmatch(n))
        return files, _mounts(self._own), links, _names("/run/netns")

    def _fact(self, path: Path) -> object:
        try:
            return _facts(path)
        except OSError as error:
            return error.strerror

    def _content(self) -> object:
        try:
            return self._canary.read_bytes()
        except OSError as error:
            return error.strerror

    def findings(self) -> list[Finding]:
        """What differs now from what was seen at first; empty if nothing."""
        files, mounts, links, netns = self._look()
        before, mounts_before, links_before, netns_before = self._before
        found = [
            Finding(f"{name} changed from {before[name]!r} to {seen!r}", ours=True)
            for name, seen in files.items()
            if seen != before[name]
        ]
        for line in sorted(mounts - mounts_before):
            found.append(Finding(f"mount left: {line}", ours=self._own in line))
        for line in sorted(mounts_before - mounts):
            found.append(Finding(f"mount gone: {line}", ours=False))
        for what, now, then in (("link", links, links_before), ("netns", netns, netns_before)):
            found += [Finding(f"{what} left: {name}", ours=False) for name in sorted(now - then)]
            found += [Finding(f"{what} gone: {name}", ours=False) for name in sorted(then - now)]
        return found


def remove_parent(path: Path) -> None:
    """Remove the cgroup of an engine that has ended, and the groups its keeper kept ready.

    A keeper that is killed leaves those; the next one would remove them (`tare.run.stock`).
    """
    with contextlib.suppress(OSError):
        for spare in path.glob("spare-*"):
            spare.rmdir()
        path.rmdir()


class Leftovers:
    """Processes, cgroups, directories and firewall rules that the session found and must leave."""

    # Where tare, or a test of it, could leave something.
    _DIRECTORIES: Final = ("/run", "/var/lib", "/etc", "/tmp", "/dev/shm")

    def __init__(self, mark: str, cgroup_parent: str) -> None:
        self._mark, self._parent = mark, cgroup_parent
        self._directories = self._tare_directories()
        self._cgroups = self._tare_cgroups()
        self._firewall = _firewall()
        self._interpreter = _hash(Path(sys.executable))

    def findings(self, patience: float = 5.0) -> list[Finding]:
        """What is left now. A process that is on its way out gets *patience* seconds to go."""
        found = _until_empty(self._processes, patience)
        self._remove_parent()
        found += self._own_cgroups()
        found += [
            Finding(f"cgroup left: {path}", ours=False)
            for path in sorted(self._tare_cgroups() - self._cgroups)
            if self._parent not in path
        ]
        found += [
            Finding(f"directory or file left: {path}", ours=False)
            for path in sorted(self._tare_directories() - self._directories)
        ]
        if _firewall() != self._firewall:
            found.append(Finding("the nftables rules changed", ours=False))
        if _hash(Path(sys.executable)) != self._interpreter:
            found.append(Finding(f"{sys.executable} changed", ours=True))
        return found

    def _processes(self) -> list[Finding]:
        mark = f"{MARK}={self._mark}".encode()
        found = []
        for pid in _pids():
            if pid == os.getpid():
                continue
            try:
                environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                cgroups = Path(f"/proc/{pid}/cgroup").read_text()
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue  # gone meanwhile, or not ours to see
            if mark in environment or f"/{self._parent}" in cgroups:
                found.append(Finding(f"process left: {pid} {command[:120]}", ours=True))
        return found

    def _remove_parent(self) -> None:
        # Its name came from us, so an engine may leave it; not what it made below it.
        for path in self._tare_cgroups():
            if path.endswith(f"/{self._parent}"):
                remove_parent(Path(path))

    def _own_cgroups(self) -> list[Finding]:
        return [
            Finding(f"cgroup left: {path}", ours=True)
            for path in sorted(self._tare_cgroups())
            if self._parent in path
        ]

    def _tare_cgroups(self) -> frozenset[str]:
        found: set[str] = set()
        for directory, names, _ in os.walk(_CGROUPS):
            found.update(f"{directory}/{name}" for name in names if "tare" in name)
        return frozenset(found)

    def _tare_directories(self) -> frozenset[str]:
        return frozenset(
            f"{base}/{name}"
            for base in self._DIRECTORIES
            for name in _names(base)
            # Another session's canary is its own affair.
            if name.startswith("tare") and not name.startswith("tare-canary-")
        )


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _until_empty(look: Callable[[], list[Finding]], patience: float) -> list[Finding]:
    # Nothing tells when a stranger's child has been reaped, so this one place looks again.
    end = time.monotonic() + patience
    while (found := look()) and time.monotonic() < end:
        time.sleep(0.05)
    return found


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _firewall() -> str:
    if os.geteuid() != 0 or shutil.which("nft") is None:
        return ""
    done = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=False)
    return done.stdout
