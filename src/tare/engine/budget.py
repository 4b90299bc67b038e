"""The server's budget: caps that the control groups enforce, and reservations that gate starts.

The engine has a budget, and so may each project (containers with a certain label). Caps are limits
of the engine's parent group and of a group of the project's own below it; a container is placed in
its project's group when it starts. A workload that does not fit is refused with the arithmetic.

`admit` runs between two steps of the event loop that nothing can come between: the sum it looks
at is over the records that run or are being started, and the start it allows is written before
anybody else is asked. So no ledger could disagree with the records, and nothing is to recover.

Disk is counted, not enforced by the kernel: a count at most 30 s old decides whether new
containers, volumes and starts are let in.

Not for: the arithmetic itself (model.budget).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tare.engine import trees
from tare.engine.documents import Documents
from tare.engine.paths import Paths
from tare.engine.stats import memory_total
from tare.engine.store import Store
from tare.engine.volume_mounts import mounted_below
from tare.errors import ConflictError, InvalidError, MissingError, UnsupportedError
from tare.kernel import cgroup
from tare.model import budget as arithmetic
from tare.model.budget import Amount, Budget, Holder
from tare.model.record import Record, changed
from tare.model.spec import ContainerSpec, Isolation, Resources
from tare.model.state import State

_HOLDING: Final = frozenset((State.STARTING, State.RUNNING, State.PAUSED, State.STOPPING))
_DISK_SECONDS: Final = 30.0
_TIDY_SECONDS: Final = 5.0
_NOTHING: Final = Budget()
GROUP_PREFIX: Final = "project-"
Groups = Callable[[str], cgroup.Group]


@dataclass(frozen=True, slots=True)
class Share:
    """What one container holds of the budget."""

    record: Record
    project: str
    holds: Amount


@dataclass(frozen=True, slots=True)
class View:
    """A budget as it stands; ``project`` "" is the engine's. Uses are -1 where not known."""

    project: str
    budget: Budget
    reserved: Amount
    reservable_memory: int | None
    reservable_nano_cpus: int | None
    memory_used: int = -1
    pids_used: int = -1
    cpu_ns: int = -1
    disk_used: int = -1
    disk_free: int = -1


class Budgets:
    """The budgets of one engine."""

    def __init__(self, paths: Paths, store: Store, groups: Groups | None) -> None:
        self._paths = paths
        self._store = store
        self._groups = groups
        self._set = Documents(store, "budgets", Budget)
        self._defaults = arithmetic.defaults(memory_total(), _pid_max())
        self._disk = (-1, 0.0)
        self._counting: asyncio.Task[int] | None = None

    # --- what is in force -----------------------------------------------------------------------

    @property
    def engine(self) -> Budget:
        """The engine's own budget, defaults filled in."""
        found = self._set.get("")
        return arithmetic.merged(self._defaults, found) if found else self._defaults

    def projects(self) -> list[str]:
        """The labels that have a budget."""
        return [name for name in self._set if name]

    def of(self, project: str) -> Budget:
        """A project's budget; MissingError."""
        found = self._set.get(project)
        if found is None:
            raise MissingError(f"no budget is set for the project {project[:80]}")
        return found

    def project_of(self, spec: ContainerSpec) -> str:
        """The project with a budget that a container belongs to; "" for none."""
        for project in self._set:
            name, _, value = project.partition("=")
            if project and spec.labels.get(name) == value:
                return project
        return ""

    def apply(self) -> list[str]:
        """Put all caps in force, as at the engine's start; what cannot be is said."""
        said = []
        for project in ["", *self.projects()]:
            try:
                self._bound(project, self.engine if not project else self.of(project))
            except OSError as error:
                said.append(f"the caps of {project or 'the engine'} cannot be set: {error}")
        return said

    def _bound(self, project: str, budget: Budget, wish: Budget = _NOTHING) -> None:
        if self._groups is None:
            return
        group = self._groups(self.group_path(project))
        if not group.exists():
            group.create()
        _lift(group, budget)
        said = self._set.get(project) or Budget()
        explicit = {said.memory, said.nano_cpus, said.pids, wish.memory, wish.nano_cpus, wish.pids}
        for limits, wanted in (
            (cgroup.Limits(memory=budget.memory), budget.memory),
            (cgroup.Limits(nano_cpus=budget.nano_cpus), budget.nano_cpus),
            (cgroup.Limits(pids=budget.pids), budget.pids),
        ):
            if wanted is None:
                continue
            try:
                group.update(limits)
            except cgroup.UnsupportedLimitError:
                if wanted in explicit:
                    raise
                # A default that this host cannot keep: `doctor` says so.

    def group_path(self, project: str) -> str:
        """The control group of the engine, or of a project below it."""
        parent = self._paths.cgroup_parent
        if not project:
            return parent
        return f"{parent}/{GROUP_PREFIX}{hashlib.sha256(project.encode()).hexdigest()[:12]}"

    # --- change ---------------------------------------------------------------------------------

    def set(self, wanted: Budget, project: str = "") -> None:
        """Change what *wanted* says of a budget; ConflictError if more is held than it allows."""
        base = self._set.get(project) or Budget()
        new = arithmetic.merged(base, wanted)
        online = os.cpu_count() or 1
        arithmetic.checked(new, total_memory=memory_total(), online_cpus=online)
        self._check_project(new, project)
        whole = arithmetic.merged(self._defaults, new) if not project else new
        self._check_held(whole, project)
        try:
            self._bound(project, whole, wanted)
        except cgroup.UnsupportedLimitError as error:
            raise UnsupportedError(error.strerror or str(error), hint=error.hint) from error
        except OSError as error:
            with contextlib.suppress(OSError):
                before = self._set.get(project) or Budget()
                self._bound(project, before if project else self.engine)
            raise ConflictError(
                f"the kernel refuses these caps: {error.strerror or error}",
                hint="memory cannot go below what is in use, nor CPUs below what one container has",
            ) from error
        self._set.put(project, new)

    def _check_project(self, new: Budget, project: str) -> None:
        if project and new.disk is not None:
            raise InvalidError("a project has no disk budget of its own: only the engine has")
        if project and (new.default_memory is not None or new.default_nano_cpus is not None):
            raise InvalidError("defaults are the engine's, not a project's")

    def _check_held(self, whole: Budget, project: str) -> None:
        defaults = whole if not project else self.engine
        held = sum(
            (
                counted(share.record.spec, share.record.spec.resources, defaults)
                for share in self.shares()
                if not project or share.project == project or _labelled(share.record, project)
            ),
            Amount(),
        )
        memory, nano_cpus = arithmetic.reservable(whole)
        for what, bound, taken, show in (
            ("memory", memory, held.memory, arithmetic.size),
            ("CPUs", nano_cpus, held.nano_cpus, arithmetic.cpus),
        ):
            if bound is not None and taken > bound:
                raise ConflictError(
                    f"{show(taken)} {what} are reserved already, more than {show(bound)}",
                    hint="stop containers first, or let more be reserved than the cap:"
                    f" --reserve-{'memory' if what == 'memory' else 'cpus'}",
                )

    def forget(self, project: str) -> None:
        """Take a budget away: a project has none then, the engine its defaults."""
        if project not in self._set:
            raise MissingError(f"no budget is set for {project[:80] or 'the engine'}")
        if not project:
            with contextlib.suppress(OSError):
                self._bound("", self._defaults)
            self._set.delete("")
            return
        self._set.delete(project)
        if self._groups is not None:
            group = self._groups(self.group_path(project))
            _lift(group, Budget())
            with contextlib.suppress(OSError):
                if not group.pids():
                    group.remove()

    # --- admission ------------------------------------------------------------------------------

    def shares(self, *, without: str = "") -> list[Share]:
        """What everything that runs, or is being started, holds; without one container."""
        engine = self.engine
        return [
            Share(
                record,
                self.project_of(record.spec),
                counted(record.spec, record.spec.resources, engine),
            )
            for record in self._store.active()
            if record.state in _HOLDING and record.id != without
        ]

    def check(self, spec: ContainerSpec, name: str) -> None:
        """Refuse what could never start, however empty the server is."""
        self._check_disk()
        self._fit(spec, spec.resources, name, [])

    def admit(self, record: Record) -> Record:
        """Let *record* start, in the group where it belongs; ConflictError with the arithmetic.

        The caller writes the record as starting before it awaits anything.
        """
        self._check_disk()
        self._admit(record, record.spec.resources)
        path = f"{self.group_path(self.project_of(record.spec))}/{record.id}"
        return record if record.cgroup in (path, "") else changed(record, cgroup=path)

    def admit_update(self, record: Record, resources: Resources) -> None:
        """Let a running container have other limits; ConflictError with the arithmetic."""
        if record.state in _HOLDING:
            self._admit(record, resources)
        else:
            self._fit(record.spec, resources, record.name, [])

    def _admit(self, record: Record, resources: Resources) -> None:
        self._check_cpus(resources, self.project_of(record.spec), record.name)
        wanted = counted(record.spec, resources, self.engine)
        if not (wanted.memory or wanted.nano_cpus):
            return  # it counts on nothing: no sum over all that run is needed
        self._fit(record.spec, resources, record.name, self.shares(without=record.id))

    def _fit(
        self, spec: ContainerSpec, resources: Resources, name: str, shares: list[Share]
    ) -> None:
        engine, project = self.engine, self.project_of(spec)
        wanted = counted(spec, resources, engine)
        self._check_cpus(resources, project, name)
        said = arithmetic.refusal(
            name, wanted, engine, [Holder(s.record.name, s.holds) for s in shares]
        )
        if not said and project:
            of_it = [Holder(s.record.name, s.holds) for s in shares if s.project == project]
            said = arithmetic.refusal(name, wanted, self.of(project), of_it, of=project)
        if said:
            raise ConflictError(
                said,
                hint="reserve less (--memory-reservation, --memory, --cpus), stop something, or"
                " change the budget: `tare budget` shows it",
                exit_code=125,
            )

    def _check_cpus(self, resources: Resources, project: str, name: str) -> None:
        """A group cannot give more CPUs than its parent has: version 1 refuses to even try."""
        limit = arithmetic.cpu_limit(resources)
        caps = [self.engine.nano_cpus]
        caps += [self.of(project).nano_cpus] if project else []
        for cap in caps:
            if cap is not None and limit > cap:
                raise ConflictError(
                    f"{name} asks for {arithmetic.cpus(limit)} CPUs, and the budget caps all"
                    f" together at {arithmetic.cpus(cap)}",
                    hint="use fewer --cpus, or raise the budget: tare budget set --cpus",
                    exit_code=125,
                )

    # --- disk -----------------------------------------------------------------------------------

    def _check_disk(self) -> None:
        cap = self.engine.disk
        if cap is None:
            return
        used, counted = self._disk
        if used > cap:
            raise ConflictError(
                f"the engine's disk budget is used up: {arithmetic.size(used)} of"
                f" {arithmetic.size(cap)} (counted {time.monotonic() - counted:.0f} s ago)",
                hint="tare system prune, tare volume prune, or tare budget set --disk",
                exit_code=125,
            )

    def admit_disk(self) -> None:
        """Refuse what would take disk when the budget for it is used up."""
        self._check_disk()

    async def count_disk(self, *, fresh: float = _TIDY_SECONDS) -> int:
        """Bytes that the engine takes on its disk, counted again if older than *fresh* seconds."""
        used, when = self._disk
        if used >= 0 and time.monotonic() - when < fresh:
            return used
        if self._counting is None:
            self._counting = asyncio.create_task(self._count())
            self._counting.add_done_callback(self._counted)
        return await asyncio.shield(self._counting)

    async def _count(self) -> int:
        state = os.fspath(self._paths.state)

        def walk() -> int:
            return trees.usage(state, without=mounted_below(state))

        used = await asyncio.to_thread(walk)
        self._disk = (used, time.monotonic())
        return used

    def _counted(self, _: asyncio.Task[int]) -> None:
        self._counting = None

    async def _disk_used(self) -> int:
        """The last count, at once; a new one is made meanwhile if it has grown old."""
        used, when = self._disk
        if used < 0:
            return await self.count_disk()
        if self._counting is None and time.monotonic() - when > _TIDY_SECONDS:
            self._counting = asyncio.create_task(self._count())
            self._counting.add_done_callback(self._counted)
        return used

    async def keep_house(self) -> None:
        """Now and then: count the disk if there is a budget for it."""
        if self.engine.disk is not None:
            await self.count_disk(fresh=_DISK_SECONDS)

    # --- look -----------------------------------------------------------------------------------

    def summary(self) -> View:
        """The engine's budget without what must be counted."""
        shares = self.shares()
        reserved = sum((share.holds for share in shares), Amount())
        memory, nano_cpus = arithmetic.reservable(self.engine)
        return View("", self.engine, reserved, memory, nano_cpus)

    async def views(self) -> list[View]:
        """The engine's budget and those of the projects, as they stand."""
        used = await self._disk_used()
        shares = self.shares()
        whole = self._view("", self.engine, shares)
        found = [replace(whole, disk_used=used, disk_free=_free(self._paths))]
        for project in self.projects():
            own = [share for share in shares if share.project == project]
            found.append(self._view(project, self.of(project), own))
        return found

    def _view(self, project: str, budget: Budget, shares: list[Share]) -> View:
        reserved = sum((share.holds for share in shares), Amount())
        memory, nano_cpus = arithmetic.reservable(budget)
        view = View(project, budget, reserved, memory, nano_cpus)
        if self._groups is None:
            return view
        try:
            stats = self._groups(self.group_path(project)).stats()
        except OSError:
            return view
        return replace(
            view,
            memory_used=stats.memory.usage,
            pids_used=stats.pids.current,
            cpu_ns=stats.cpu.total_ns,
        )


def counted(spec: ContainerSpec, resources: Resources, engine: Budget) -> Amount:
    """What a workload with *resources* counts; a machine without a limit, its default memory."""
    if spec.isolation is Isolation.VM and not resources.memory:
        from tare.vm.machine import DEFAULT_MEMORY

        resources = replace(resources, memory=DEFAULT_MEMORY)
    return arithmetic.reservation(resources, engine)


def _lift(group: cgroup.Group, but: Budget) -> None:
    """No cap where *but* has none; one that this host has no controller for was never there."""
    for limits, kept in (
        (cgroup.Limits(memory=cgroup.UNLIMITED), but.memory),
        (cgroup.Limits(nano_cpus=cgroup.UNLIMITED), but.nano_cpus),
        (cgroup.Limits(pids=cgroup.UNLIMITED), but.pids),
    ):
        if kept is None:
            with contextlib.suppress(OSError):
                group.update(limits)


def _labelled(record: Record, project: str) -> bool:
    name, _, value = project.partition("=")
    return record.spec.labels.get(name) == value


def _pid_max() -> int:
    return int(Path("/proc/sys/kernel/pid_max").read_text("ascii"))


def _free(paths: Paths) -> int:
    found = os.statvfs(paths.state)
    return found.f_bavail * found.f_frsize
