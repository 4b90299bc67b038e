"""/proc as typed values: what a process is, where its mounts lead, which namespaces it is in.

proc(5). Everything takes the directory of one process or the text of one file, so that tests
give what they like. A process that has gone gives None or empty values, never an error.

Not for: judging (`workload`, `host`), and files inside a container: those are never opened here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")
NAMESPACES: Final = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
_LISTENING: Final = "0A"
_WHOLE: Final = 4294967295


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process as ``/proc/PID/status`` shows it; ids are those of the reader's namespace."""

    pid: int
    name: str
    parent: int
    uids: tuple[int, ...]  # real, effective, saved, file system
    effective: int  # capability masks
    bounding: int
    no_new_privileges: bool
    seccomp: int  # 0 none, 1 strict, 2 filter


@dataclass(frozen=True, slots=True)
class MountLine:
    """One line of mountinfo: ``root`` is where in the file system *device* the mount begins."""

    device: str  # major:minor
    root: str
    point: str
    options: frozenset[str]
    shared: int  # its peer group, 0: none
    kind: str
    source: str
    super_options: frozenset[str]

    @property
    def read_only(self) -> bool:
        """Whether nothing can be written through it."""
        return "ro" in self.options or "ro" in self.super_options


def text(path: Path | str) -> str:
    """The text of a file; "" when it cannot be read."""
    try:
        return Path(path).read_text("utf-8", errors="surrogateescape")
    except OSError:
        return ""


def process(directory: Path) -> Process | None:
    """The process of a directory of /proc; None when it has gone."""
    fields: dict[str, str] = {}
    for line in text(directory / "status").splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields[key] = value.strip()
    try:
        return Process(
            pid=int(directory.name),
            name=fields["Name"],
            parent=int(fields["PPid"]),
            uids=tuple(int(word) for word in fields["Uid"].split()),
            effective=int(fields["CapEff"], 16),
            bounding=int(fields["CapBnd"], 16),
            no_new_privileges=fields.get("NoNewPrivs", "0") == "1",
            seccomp=int(fields.get("Seccomp", "0")),
        )
    except (KeyError, ValueError):
        return None


def namespaces(directory: Path) -> dict[str, int]:
    """The inode of each namespace that can be seen."""
    found = {}
    for kind in NAMESPACES:
        try:
            found[kind] = os.stat(directory / "ns" / kind).st_ino
        except OSError:
            continue
    return found


def own_ids(directory: Path) -> bool:
    """Whether user ids inside are other ids outside (the map is not the identity)."""
    lines = text(directory / "uid_map").split()
    return lines not in ([], ["0", "0", str(_WHOLE)])


def mounts(content: str) -> list[MountLine]:
    """The lines of a mountinfo file."""
    found = []
    for line in content.splitlines():
        head, _, tail = line.partition(" - ")
        words, kinds = head.split(" "), tail.split(" ")
        if len(words) < 6 or len(kinds) < 3:
            continue
        shared = next((w[7:] for w in words[6:] if w.startswith("shared:")), "0")
        found.append(
            MountLine(
                device=words[2],
                root=unescaped(words[3]),
                point=unescaped(words[4]),
                options=frozenset(words[5].split(",")),
                shared=int(shared) if shared.isdigit() else 0,
                kind=kinds[0],
                source=unescaped(kinds[1]),
                super_options=frozenset(kinds[2].split(",")),
            )
        )
    return found


def unescaped(word: str) -> str:
    r"""A word of mountinfo with ``\040`` and its like as the characters they stand for."""
    raw = word.encode("utf-8", "surrogateescape")
    return _ESCAPE.sub(lambda m: bytes([int(m[1], 8) & 0xFF]), raw).decode(
        "utf-8", "surrogateescape"
    )


@dataclass(frozen=True, slots=True)
class Place:
    """Where a path really is: a file system and a path within it."""

    device: str
    path: str

    def within(self, mount: MountLine) -> bool:
        """Whether *mount* shows this place, or a directory above it."""
        return self.device == mount.device and below(self.path, mount.root)

    def holds(self, mount: MountLine) -> bool:
        """Whether *mount* begins at this place or below it."""
        return self.device == mount.device and below(mount.root, self.path)


def below(path: str, directory: str) -> bool:
    """Whether *path* is *directory* or lies under it; both are absolute and without dots."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def place(path: str, table: list[MountLine]) -> Place | None:
    """Where the absolute *path*, free of links, lies by the mounts of *table*."""
    best: MountLine | None = None
    for mount in table:  # of two at one point the later covers the earlier
        if below(path, mount.point) and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    if best is None:
        return None
    rest = path[len(best.point.rstrip("/")) :].lstrip("/")
    root = best.root.rstrip("/")
    return Place(best.device, f"{root}/{rest}" if rest else root or "/")


def group_paths(directory: Path) -> dict[str, str]:
    """The control group of a process in each hierarchy, by controller ("" is version 2)."""
    found = {}
    for line in text(directory / "cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):
            found[controller] = path
    return found


def group_directories(paths: dict[str, str], table: list[MountLine]) -> dict[str, str]:
    """The directories of `group_paths` on this host, where their hierarchies are mounted."""
    found: dict[str, str] = {}
    for mount in table:
        if mount.kind == "cgroup2":
            names = [""]
        elif mount.kind == "cgroup":
            names = [name for name in paths if name and name in mount.super_options]
        else:
            continue
        for name in names:
            path = paths.get(name)
            if path is not None and below(path, mount.root):
                rest = path[len(mount.root.rstrip("/")) :]
                found.setdefault(name, mount.point + (rest if rest != "/" else ""))
    return found


def listening(directory: Path) -> list[tuple[str, int, str]]:
    """The ports that something listens on in a process's network: protocol, port, address."""
    found = set()
    for name in ("tcp", "tcp6", "udp", "udp6"):
        for line in text(directory / "net" / name).splitlines()[1:]:
            words = line.split()
            if len(words) < 10:
                continue
            # An unconnected UDP socket has no state of its own: 07, and no peer.
            if words[3] != _LISTENING and not (name.startswith("udp") and words[3] == "07"):
                continue
            address, _, port = words[1].rpartition(":")
            found.add((name[:3], int(port, 16), _address(address)))
    return sorted(found)


def _address(words: str) -> str:
    import socket

    raw = b"".join(bytes.fromhex(words[at : at + 8])[::-1] for at in range(0, len(words), 8))
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)


def listening_inodes(directory: Path) -> dict[int, tuple[int, str]]:
    """Listening TCP sockets of a network by their inode: port and address."""
    found = {}
    for name in ("tcp", "tcp6"):
        for line in text(directory / "net" / name).splitlines()[1:]:
            words = line.split()
            if len(words) >= 10 and words[3] == _LISTENING:
                address, _, port = words[1].rpartition(":")
                found[int(words[9])] = int(port, 16), _address(address)
    return found


def socket_inodes(directory: Path) -> Iterator[int]:
    """The inodes of the sockets that a process has open."""
    try:
        names = os.listdir(directory / "fd")
    except OSError:
        return
    for name in names:
        try:
            link = os.readlink(directory / "fd" / name)
        except OSError:
            continue
        if link.startswith("socket:["):
            yield int(link[8:-1])
