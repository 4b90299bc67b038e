"""What an audit knows of the host before it looks at workloads: namespaces, mounts, sockets.

Collected once for each audit, so that a hundred containers cost a hundred times next to nothing.

Not for: judging the host (`host`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tare.audit import procfs
from tare.audit.procfs import MountLine, Place
from tare.engine.paths import Paths

SENSITIVE: Final = (
    "/", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/root", "/run", "/sys", "/usr",
    "/var/lib/docker", "/var/lib/containers", "/var/spool/cron",
)  # fmt: skip
"""Directories whose writer has the host; the first eight are the benchmark's."""
_SOCKETS: Final = (
    "/run/docker.sock", "/var/run/docker.sock", "/run/containerd/containerd.sock",
    "/run/podman/podman.sock", "/run/crio/crio.sock", "/run/buildkit/buildkitd.sock",
    "/run/tare/tare.sock", "/run/tare/keeper.sock", "/run/systemd/private",
    "/run/dbus/system_bus_socket",
)  # fmt: skip
SOCKET_NAMES: Final = frozenset(
    ("docker.sock", "tare.sock", "podman.sock", "containerd.sock", "crio.sock", "buildkitd.sock")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """The host, as the walls of a container are compared with it."""

    namespaces: Mapping[str, frozenset[int]]  # the inodes that are the host's, by kind
    mounts: list[MountLine]
    shared_groups: frozenset[int]  # peer groups that the host's own mounts are in
    sockets: Mapping[str, Place]  # engines' sockets that are there, by path
    sensitive: Mapping[str, Place]
    state: Place | None  # the engine's own directories
    run: Place | None
    apparmor: bool
    selinux: bool
    own_root: bool  # whether user id 0 here is the host's own
    cgroup_parent: str


def look(paths: Paths, proc: Path = Path("/proc")) -> Surroundings:
    """Collect them now, as the daemon's process sees them."""
    table = procfs.mounts(procfs.text(proc / "self/mountinfo"))
    own_root = not procfs.own_ids(proc / "self")
    own, first = procfs.namespaces(proc / "self"), procfs.namespaces(proc / "1")
    kinds = {
        kind: frozenset(found[kind] for found in (own, first) if kind in found)
        for kind in procfs.NAMESPACES
    }
    if not own_root:  # an ordinary user's engine: its own user namespace is a wall already
        kinds["user"] = frozenset({first["user"]}) if "user" in first else frozenset()
    sockets = (*_SOCKETS, str(paths.socket), str(paths.run / "keeper.sock"))
    sensitive = (*SENSITIVE, str(paths.config), str(paths.run))
    return Surroundings(
        namespaces=kinds,
        mounts=table,
        shared_groups=frozenset(m.shared for m in table if m.shared),
        sockets=_placed(sockets, table, need_socket=True),
        sensitive=_placed(sensitive, table, need_socket=False),
        state=procfs.place(os.path.realpath(paths.state), table),
        run=procfs.place(os.path.realpath(paths.run), table),
        apparmor=procfs.text("/sys/module/apparmor/parameters/enabled").strip() == "Y",
        selinux=procfs.text("/sys/fs/selinux/enforce").strip() == "1",
        own_root=own_root,
        cgroup_parent=paths.cgroup_parent,
    )


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:  # also where an ordinary user's engine may not look
        return False


def _placed(
    wanted: tuple[str, ...], table: list[MountLine], *, need_socket: bool
) -> dict[str, Place]:
    found: dict[str, Place] = {}
    for path in dict.fromkeys(wanted):
        real = os.path.realpath(path)
        if not (_is_socket(real) if need_socket else os.path.isdir(real)):
            continue
        where = procfs.place(real, table)
        if where is not None and where not in found.values():
            found[path] = where
    return found
