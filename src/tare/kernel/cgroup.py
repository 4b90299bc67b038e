"""Control groups (cgroups(7)): what this host offers, and one interface to version 1, 2 and both.

`detect` reads the mounts once and gives a `Layout`; `Layout.group` gives a `Group`, which is a
directory in every hierarchy that matters and is used the same way whatever the version:
`cgroup_v1` and `cgroup_v2` implement it, `Ungrouped` stands in where nothing may be written.

Where groups are placed (`Hierarchy.base`), which is all that a path is relative to:

* root: the top of the hierarchy, as seen in the mount. Not the engine's own unit, delegated or
  not: with workloads in groups below it version 2 lets no process into it, so systemd could not
  start the daemon again while anything runs.
* anyone else: the unit (``.service`` or ``.scope``) the process is in, or its own group, if that
  is writable. Nothing is moved between systemd's units, which only systemd may do.

On a hybrid host the limits live in version 1 and the group has a version 2 directory beside them,
for ``cgroup.kill``, ``cgroup.freeze``, pressure, and the controllers that are found only there.

Not for: choosing limits or defaults, or Docker's spelling of them.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Self

from tare.kernel.cgroup_limits import (
    ANY,
    DEFAULT_DEVICES,
    FIELDS_OF,
    UNLIMITED,
    DeviceLimit,
    DeviceRule,
    LimitError,
    Limits,
    RefusedLimitError,
    UnsupportedLimitError,
)
from tare.kernel.cgroup_tree import read_optional, read_value, write_value

if TYPE_CHECKING:
    from tare.kernel.cgroup_stats import Stats

__all__ = [
    "ANY",
    "DEFAULT_DEVICES",
    "DELEGATE_HINT",
    "UNLIMITED",
    "DeviceLimit",
    "DeviceRule",
    "Group",
    "Hierarchy",
    "Layout",
    "LimitError",
    "Limits",
    "Mode",
    "RefusedLimitError",
    "Ungrouped",
    "UnsupportedLimitError",
    "detect",
    "unprivileged_devices",
]

DELEGATE_HINT: Final = (
    "let systemd delegate it: put '[Service]' and 'Delegate=cpu cpuset io memory pids' in "
    "/etc/systemd/system/user@.service.d/delegate.conf, run 'systemctl daemon-reload', log in "
    "again, and start the engine with 'systemd-run --user --scope -p Delegate=yes'"
)

_LIMIT_CONTROLLERS: Final = frozenset(
    {"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "hugetlb"}
)
_SEGMENT: Final = re.compile(r"[A-Za-z0-9_@:-][A-Za-z0-9_.@:-]{0,254}")
_UNIT: Final = (".service", ".scope")


# --- the group --------------------------------------------------------------------------------


class Group(ABC):
    """One control group in every hierarchy that matters; the object holds no descriptor.

    A `Group` is a name, not a resource: making the object does nothing, and after a restart
    ``layout.group(path)`` is the same group again. Methods raise OSError.
    """

    def __init__(self, layout: Layout, path: str) -> None:
        self.layout = layout
        self.path = path

    @abstractmethod
    def create(self) -> None:
        """Make the group, and its parents where missing; an empty leftover is made anew.

        FileExistsError if it has processes; on failure nothing new is left behind.
        """

    def rename(self, path: str) -> None:
        """Be called *path* from now on, below the same parent; only version 1 can.

        On failure it may be found under both names in part; `remove` of both clears that.
        """
        raise OSError(errno.EOPNOTSUPP, "this control group cannot be renamed", path)

    @abstractmethod
    def apply(self, limits: Limits) -> list[str]:
        """Put *limits* in force; the answer is warnings, for what is accepted but without effect.

        UnsupportedLimitError before anything is written if a controller is missing.
        """

    @abstractmethod
    def update(self, limits: Limits) -> list[str]:
        """`apply` to a group in use: in a safe order, refusing memory below what is in use."""

    @abstractmethod
    def exists(self) -> bool:
        """Whether any part of the group is there."""

    @abstractmethod
    def subgroups(self) -> list[str]:
        """Names of the groups directly below, in any hierarchy."""

    @abstractmethod
    def remove(self) -> None:
        """Remove the group and those below it; it may be gone. OSError(EBUSY) if not empty."""

    @abstractmethod
    def open_join(self) -> list[int]:
        """Descriptors to which a child writes ``b"0"`` to be in the group; the caller closes."""

    def open_tasks(self) -> list[int]:
        """Descriptors that a child born in `open_directory` writes ``0`` to, to be in it all."""
        return []

    def open_directory(self) -> int | None:
        """The version 2 directory for clone3's CLONE_INTO_CGROUP, if there is one."""
        return None

    @abstractmethod
    def add(self, pid: int) -> None:
        """Move a process into the group."""

    @abstractmethod
    def pids(self) -> list[int]:
        """Processes in the group and below; empty if it is gone."""

    @abstractmethod
    def kill(self) -> None:
        """SIGKILL everything in the group and below, also what forks meanwhile.

        Does not wait for the exits, and is no error if the group is gone.
        """

    @abstractmethod
    def freeze(self, timeout: float = 2.0) -> None:
        """Stop every process in the group; TimeoutError, and thawed again, if one will not."""

    @abstractmethod
    def thaw(self) -> None:
        """Let the group run again."""

    @abstractmethod
    def frozen(self) -> bool:
        """Whether every process in the group is stopped."""

    @abstractmethod
    def stats(self) -> Stats:
        """What the group uses and has used."""

    def totals(self) -> tuple[int, int]:
        """CPU time used in nanoseconds, and the highest memory use in bytes; `stats` in short."""
        stats = self.stats()
        return stats.cpu.total_ns, stats.memory.max_usage

    @abstractmethod
    def oom_kills(self) -> int:
        """How many processes of the group the OOM killer has taken; 0 if not known."""

    def open_oom_events(self) -> int | None:
        """A descriptor that becomes readable at an OOM, or None; read it empty, then `oom_kills`.

        It also becomes readable when the group is removed, so it proves nothing by itself.
        """
        return None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path}>"


class Ungrouped(Group):
    """Stands in where no hierarchy is writable: holds nothing, and refuses every limit."""

    def create(self) -> None:
        """Do nothing."""

    def apply(self, limits: Limits) -> list[str]:
        """Refuse what is set; device rules only warn, for they need privilege to matter."""
        self.layout.require(limits, set())
        return unprivileged_devices(limits)

    def update(self, limits: Limits) -> list[str]:
        """As `apply`."""
        return self.apply(limits)

    def exists(self) -> bool:
        """Never."""
        return False

    def subgroups(self) -> list[str]:
        """None."""
        return []

    def remove(self) -> None:
        """Do nothing."""

    def open_join(self) -> list[int]:
        """Nothing to join."""
        return []

    def add(self, pid: int) -> None:
        """Do nothing."""

    def pids(self) -> list[int]:
        """Not known, so none."""
        return []

    def kill(self) -> None:
        """Do nothing: the caller's pid namespace is what ends the processes here."""

    def freeze(self, timeout: float = 2.0) -> None:
        """Refuse."""
        raise self.layout.unsupported("freeze", "freezer")

    def thaw(self) -> None:
        """Refuse."""
        raise self.layout.unsupported("thaw", "freezer")

    def frozen(self) -> bool:
        """Never."""
        return False

    def stats(self) -> Stats:
        """All zero."""
        from tare.kernel.cgroup_stats import Stats

        return Stats()

    def oom_kills(self) -> int:
        """Not known, so 0."""
        return 0


def unprivileged_devices(limits: Limits) -> list[str]:
    """The warning for device rules where only root could enforce them."""
    if not limits.devices:
        return []
    return ["Device rules are not enforced without privilege; file permissions still are."]


# --- the host ---------------------------------------------------------------------------------


class Mode(StrEnum):
    """Which version carries the limits."""

    NONE = "none"
    V1 = "v1"
    V2 = "v2"
    HYBRID = "hybrid"


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One mounted tree: where, what it controls, and the directory our groups are placed in."""

    mount: str
    base: str
    controllers: frozenset[str]
    writable: bool


@dataclass(frozen=True)
class Layout:
    """What this host offers to this user; made by `detect`, read-only but for what it remembers."""

    mode: Mode
    hierarchies: tuple[Hierarchy, ...] = ()
    """The version 1 hierarchies."""
    unified: Hierarchy | None = None
    """The version 2 hierarchy."""
    systemd: bool = False
    privileged: bool = True
    prepared: set[str] = field(default_factory=set, compare=False, repr=False)
    """Parent paths known to be set up; a group that finds one missing sets it up again."""

    @property
    def writable(self) -> bool:
        """Whether groups can be made at all."""
        return any(h.writable for h in self.hierarchies) or self._unified_writable

    @property
    def _unified_writable(self) -> bool:
        return self.unified is not None and self.unified.writable

    @functools.cached_property
    def controllers(self) -> frozenset[str]:
        """What can be limited here, by version 1's names (blkio also stands for version 2's io).

        ``freezer``, ``kill`` and ``devices`` are in it where version 2 itself does them.
        """
        found: set[str] = set()
        for hierarchy in self.hierarchies:
            if hierarchy.writable:
                found |= hierarchy.controllers & _LIMIT_CONTROLLERS
        if self.unified is not None and self.unified.writable:
            found |= {"freezer", "kill"} | (self.unified.controllers & {"hugetlb"})
            if self.mode is Mode.V2:
                found |= self.unified.controllers & _LIMIT_CONTROLLERS
                found |= {"blkio"} if "io" in self.unified.controllers else set()
                found |= {"devices"} if self.privileged else set()
        return frozenset(found)

    def plain(self) -> Layout:
        """A hybrid layout without its version 2 part, where version 1 can do all of it.

        Moving oneself is fast in version 1 only, so a process made ahead of time can join there.
        """
        if self.mode is not Mode.HYBRID or self.v1("freezer") is None:
            return self
        return replace(self, mode=Mode.V1, unified=None, prepared=set())

    def v1(self, controller: str) -> Hierarchy | None:
        """The version 1 hierarchy of a controller, if it can be used."""
        for hierarchy in self.hierarchies:
            if controller in hierarchy.controllers and hierarchy.writable:
                return hierarchy
        return None

    def group(self, path: str) -> Group:
        """The group at *path* below the base; ValueError for a path that is not plain names."""
        segments = path.strip("/").split("/")
        if not all(_SEGMENT.fullmatch(s) for s in segments):
            raise ValueError(f"not a control group path: {path!r}")
        path = "/" + "/".join(segments)
        # Late imports: a host has one of the two, and the other's code stays unread.
        if not self.writable:
            return Ungrouped(self, path)
        if self.mode is Mode.V2:
            from tare.kernel.cgroup_v2 import GroupV2

            return GroupV2(self, path)
        from tare.kernel.cgroup_v1 import GroupV1

        return GroupV1(self, path)

    def unsupported(self, limit: str, controller: str) -> UnsupportedLimitError:
        """The error for a limit whose controller is missing, with what to do about it."""
        if self.privileged:
            hint = f"enable the {controller} controller of this kernel and mount it"
            why = f"this host has no usable {controller} controller"
        else:
            hint = DELEGATE_HINT
            why = f"the {controller} controller is not delegated to this user"
        return UnsupportedLimitError(
            errno.EOPNOTSUPP,
            f"{limit} cannot be enforced: {why}",
            limit=limit,
            controller=controller,
            hint=hint,
        )

    def require(self, limits: Limits, available: Iterable[str]) -> None:
        """Raise UnsupportedLimitError for the first limit whose controller is not *available*."""
        for controller in FIELDS_OF.keys() - set(available):
            limit = limits.first_of(controller)
            if limit is None or (controller == "devices" and not self.privileged):
                continue
            raise self.unsupported(limit, controller)

    def make_room(self, leaf: str = "engine") -> None:
        """Move the processes in the base itself into *leaf* below it (version 2 only).

        A version 2 group has processes or hands controllers on, not both ("no internal processes",
        kernel cgroup-v2.rst). Needed in a delegated unit and in a cgroup namespace; the engine
        calls it once at its start. Does nothing where it is not needed.
        """
        tree = self.unified
        if self.mode is not Mode.V2 or tree is None or not tree.writable:
            return
        # The true root has no cgroup.type, and is exempt from the rule.
        if not os.path.exists(f"{tree.base}/cgroup.type"):
            return
        directory = f"{tree.base}/{leaf}"
        for _ in range(16):
            pids = read_value(f"{tree.base}/cgroup.procs").split()
            if not pids:
                return
            with contextlib.suppress(FileExistsError):
                os.mkdir(directory)
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    write_value(f"{directory}/cgroup.procs", pid)
        raise OSError(errno.EBUSY, "processes keep appearing in", tree.base)

    @classmethod
    def none(cls, *, privileged: bool) -> Self:
        """A host without control groups."""
        return cls(Mode.NONE, privileged=privileged)


# --- detection --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Mount:
    """A line of proc_pid_mountinfo(5) that is about control groups."""

    root: str
    point: str
    version: int
    options: frozenset[str]


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), text)


def _mounts(text: str, below: str) -> list[_Mount]:
    found = []
    for line in text.splitlines():
        left, separator, right = line.partition(" - ")
        mounted, tail = left.split(" "), right.split(" ")
        if not separator or tail[0] not in ("cgroup", "cgroup2") or len(mounted) < 5:
            continue
        point = _unescape(mounted[4])
        if point == below or point.startswith(below + "/"):
            version = 2 if tail[0] == "cgroup2" else 1
            options = frozenset(tail[2].split(",")) if len(tail) > 2 else frozenset[str]()
            found.append(_Mount(_unescape(mounted[3]), point, version, options))
    return found


def _positions(text: str) -> dict[str, str]:
    """Controller (or ``name=...``, or an empty string for version 2) to the own path."""
    own: dict[str, str] = {}
    for line in text.splitlines():
        _, first, rest = line.partition(":")
        names, second, path = rest.partition(":")
        if first and second:
            for name in names.split(","):
                own[name] = path
    return own


def _may_write(directory: str) -> bool:
    # effective_ids: the engine may run with other effective ids than real ones.
    return os.access(directory, os.W_OK | os.X_OK, effective_ids=True) and os.access(
        f"{directory}/cgroup.procs", os.W_OK, effective_ids=True
    )


def _own_directory(mount: _Mount, position: str | None) -> str | None:
    """The directory of this process's own group in the mount, if the mount shows it."""
    if position is None or position.startswith("/.."):
        return None
    root = mount.root.rstrip("/")
    if position != root and not position.startswith(root + "/"):
        # A mount of another cgroup namespace's subtree: we are at its top.
        return None
    return (mount.point + position[len(root) :]).rstrip("/")


def _unit_of(directory: str, mount: str) -> str | None:
    """The nearest systemd unit at or above *directory* within *mount*."""
    while directory.startswith(mount + "/"):
        if directory.endswith(_UNIT):
            return directory
        directory = os.path.dirname(directory)
    return None


def _base(mount: _Mount, position: str | None, *, privileged: bool) -> str | None:
    """Where our groups are placed (the rule in the module's docstring), or None."""
    own = _own_directory(mount, position)
    unit = _unit_of(own, mount.point) if own else None
    if privileged and _may_write(mount.point):
        return mount.point
    for candidate in (unit, own):
        if candidate and _may_write(candidate):
            return candidate
    return None


def detect(
    root: str = "/sys/fs/cgroup",
    proc: str = "/proc",
    *,
    run: str = "/run",
    privileged: bool | None = None,
) -> Layout:
    """Read what this host offers; *privileged* defaults to whether this process is root.

    Costs a few file reads; do it once. A host without control groups gives `Mode.NONE`.
    """
    if privileged is None:
        privileged = os.geteuid() == 0
    systemd = os.path.isdir(f"{run}/systemd/system")
    try:
        mounts = _mounts(os.fsdecode(read_value(f"{proc}/self/mountinfo")), root.rstrip("/"))
        positions = _positions(os.fsdecode(read_value(f"{proc}/self/cgroup")))
    except FileNotFoundError:
        return Layout.none(privileged=privileged)
    v1: list[Hierarchy] = []
    unified: Hierarchy | None = None
    seen: set[str] = set()
    for mount in mounts:
        names = frozenset(positions) & mount.options if mount.version == 1 else frozenset({""})
        if not names or names & seen:
            continue  # mounted twice: the first one serves
        seen |= names
        position = positions.get(next(iter(names)))
        base = _base(mount, position, privileged=privileged)
        if mount.version == 1:
            v1.append(Hierarchy(mount.point, base or mount.point, names, base is not None))
            continue
        listed = read_optional(f"{base or mount.point}/cgroup.controllers") or b""
        found = frozenset(os.fsdecode(listed).split())
        unified = Hierarchy(mount.point, base or mount.point, found, base is not None)
    carries = any(h.controllers & _LIMIT_CONTROLLERS for h in v1)
    if unified is None:
        mode = Mode.V1 if carries else Mode.NONE
    else:
        mode = Mode.HYBRID if carries else Mode.V2
    return Layout(mode, tuple(v1), unified, systemd, privileged)
