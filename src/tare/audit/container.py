"""A running workload as the kernel has it: its processes, namespaces, mounts and limits.

Everything is read from the host's side: nothing is run in the container, and no file of it is
opened. What cannot be read (a process that has just ended) is empty, and its checks say so.

Not for: judging (`workload`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tare.audit import procfs
from tare.audit.procfs import MountLine, Process
from tare.audit.surroundings import Surroundings
from tare.kernel import cgroup_tree
from tare.kernel.cgroup_stats import parse_limit
from tare.model.record import ExecRecord, Record
from tare.model.spec import Isolation

PROCESSES_MAX: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the kernel enforces for the whole workload; None is no limit."""

    memory: int | None = None
    pids: int | None = None
    cpu_quota: str = ""  # "" none, else as the kernel has it
    cpu_weight: str = ""  # "" the default
    all_devices: bool = False
    directory: str = ""  # where it was read, one of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One running container or machine, seen from the host."""

    record: Record
    processes: tuple[Process, ...]  # the first is the container's own
    shared: frozenset[str]  # kinds of namespaces that are the host's
    own_ids: bool
    mounts: tuple[MountLine, ...]
    limits: Limits
    groups: Mapping[str, str]  # control group by controller
    label: str  # of AppArmor or SELinux
    rlimits: Mapping[str, tuple[str, str]]
    listening: tuple[tuple[str, int, str], ...]
    execs: tuple[ExecRecord, ...]
    newer_image: str  # the id that the name of its image has by now, if that is another one
    image_ports: tuple[str, ...]

    @property
    def machine(self) -> bool:
        """Whether it is a virtual machine."""
        return self.record.spec.isolation is Isolation.VM

    @property
    def first(self) -> Process | None:
        """Its first process, if that was still there."""
        return self.processes[0] if self.processes else None

    @property
    def root(self) -> MountLine | None:
        """Its root file system's mount."""
        return next((m for m in reversed(self.mounts) if m.point == "/"), None)


def look(
    record: Record,
    around: Surroundings,
    *,
    execs: Sequence[ExecRecord] = (),
    newer_image: str = "",
    image_ports: Sequence[str] = (),
    proc: Path = Path("/proc"),
) -> Workload:
    """Read everything about *record*'s processes now."""
    directory = proc / str(record.pid)
    groups = procfs.group_paths(directory)
    # A group that is not the workload's own holds others too: what is there is not about it.
    cut = {name: _cut(path, record.id) for name, path in groups.items() if record.id in path}
    places = procfs.group_directories(cut, around.mounts)
    spaces = procfs.namespaces(directory)
    shared = {k for k, inode in spaces.items() if inode in around.namespaces.get(k, ())}
    return Workload(
        record=record,
        processes=tuple(_processes(record.pid, places, proc)),
        shared=frozenset(shared),
        own_ids=procfs.own_ids(directory),
        mounts=tuple(procfs.mounts(procfs.text(directory / "mountinfo"))),
        limits=_limits(places),
        groups=groups,
        label=procfs.text(directory / "attr/current").strip("\0\n "),
        rlimits=_rlimits(procfs.text(directory / "limits")),
        listening=tuple(procfs.listening(directory)) if "net" not in shared else (),
        execs=tuple(execs),
        newer_image=newer_image,
        image_ports=tuple(image_ports),
    )


def _cut(path: str, identity: str) -> str:
    """The workload's own group, when its process is in one below it."""
    return path.partition(identity)[0] + identity


def _processes(first: int, places: Mapping[str, str], proc: Path) -> list[Process]:
    pids: set[int] = set()
    for name in ("pids", "", "memory", "freezer"):
        if name in places and first:
            with contextlib.suppress(OSError):
                pids.update(cgroup_tree.members(places[name]))
            if first in pids:
                break
            pids.clear()
    if first and not pids:
        pids = _same_namespace(first, proc)
    pids.discard(first)
    ordered = [first, *sorted(pids)[:PROCESSES_MAX]]
    found = (procfs.process(proc / str(pid)) for pid in ordered if pid)
    return [one for one in found if one is not None]


def _same_namespace(first: int, proc: Path) -> set[int]:
    """The processes that share *first*'s process namespace, where it has one of its own."""
    own = procfs.namespaces(proc / str(first)).get("pid")
    if own is None or own == procfs.namespaces(proc / "self").get("pid"):
        return {first}
    names = (name for name in os.listdir(proc) if name.isdigit())
    return {int(n) for n in names if procfs.namespaces(proc / n).get("pid") == own} | {first}


def _limits(places: Mapping[str, str]) -> Limits:
    def read(controller: str, name: str) -> str:
        return procfs.text(f"{places[controller]}/{name}").strip() if controller in places else ""

    if "memory" in places or "pids" in places:
        quota, shares = read("cpu", "cpu.cfs_quota_us"), read("cpu", "cpu.shares")
        return Limits(
            memory=_number(read("memory", "memory.limit_in_bytes")),
            pids=_number(read("pids", "pids.max")),
            cpu_quota="" if quota.startswith("-") else quota,
            cpu_weight="" if shares == "1024" else shares,
            all_devices=read("devices", "devices.list").startswith("a"),
            directory=places.get("memory", places.get("pids", "")),
        )
    quota, weight = read("", "cpu.max"), read("", "cpu.weight")
    return Limits(
        memory=_number(read("", "memory.max")),
        pids=_number(read("", "pids.max")),
        cpu_quota="" if quota.startswith("max") else quota,
        cpu_weight="" if weight == "100" else weight,
        directory=places.get("", ""),
    )


def _number(content: str) -> int | None:
    return parse_limit(content.encode()) if content else None


def _rlimits(content: str) -> dict[str, tuple[str, str]]:
    found = {}
    for line in content.splitlines()[1:]:
        name, rest = line[:26].strip(), line[26:].split()
        if len(rest) >= 2:
            found[name] = rest[0], rest[1]
    return found
