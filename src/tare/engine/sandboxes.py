"""The driver of containers: plans for the keeper, and the kernel's facts from cgroups and /proc.

Not for: records (engine.lifecycle) or what a sandbox is made of (run.plan).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from tare.engine.budget import GROUP_PREFIX
from tare.engine.driver import Ended, Held, Pipes, Request, Started
from tare.engine.paths import Paths
from tare.engine.stats import sample_of
from tare.errors import FailedError, InvalidError, UnsupportedError
from tare.kernel import cgroup, process
from tare.model.record import ExecRecord, IdBlock, Record, Sample
from tare.model.spec import Resources
from tare.model.state import Fact
from tare.run import link, rootless
from tare.run.launching import limits_of
from tare.run.plan import Host, Place, limit_values, plan, plan_exec, throttle_values
from tare.run.rootfs import make_skeleton
from tare.run.sandbox import ExecPlan, Sandbox

_PLANNED: Final = 64


class Sandboxes:
    """Implements `engine.driver.Driver` with `run.link.Keeper`."""

    def __init__(self, paths: Paths, host: Host, layout: cgroup.Layout) -> None:
        self._paths = paths
        self._skeleton = make_skeleton(os.fspath(paths.state / "skeleton"))
        self._host = host
        self._layout = layout
        self._keeper: link.Keeper | None = None
        self._planned: dict[str, Sandbox] = {}
        self._watched: dict[str, int] = {}
        self._on_end: Callable[[Ended], None] = lambda _: None

    # --- keeper -------------------------------------------------------------------------------

    async def open(
        self, on_end: Callable[[Ended], None], on_lost: Callable[[], None]
    ) -> Mapping[str, Held]:
        """Connect, or after a loss see what the new keeper has adopted."""
        self._on_end = on_end
        if self._keeper is None:
            self._keeper = await link.Keeper.connect(
                self._paths.run, lambda exited: on_end(_ended(exited)), on_lost
            )
            await self._keeper.ping()  # the handles of what it holds have come by then
        held = {}
        for identity, adopted in self._keeper.running.items():
            stdin = _copy(adopted.stdin)
            held[identity] = Held(adopted.pid, adopted.start_time, stdin=stdin)
        return held

    async def close(self) -> None:
        """Leave the keeper to itself."""
        for pidfd in self._watched.values():
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)
        self._watched.clear()
        if self._keeper is not None:
            await self._keeper.close()
            self._keeper = None

    def check(self, request: Request) -> Sequence[str]:
        """Plan it now, so that what can never start is refused at create."""
        identity = request.record.id
        sandbox = self._sandbox(request)
        if not request.joined and not _joins(request.record):
            if len(self._planned) >= _PLANNED:
                del self._planned[next(iter(self._planned))]
            self._planned[identity] = sandbox
        return ()

    async def start(self, request: Request) -> Started:
        """Start by the keeper; the readers after the first are attached right afterwards."""
        readers = list(request.readers)
        try:
            sandbox = self._planned.pop(request.record.id, None)
            if sandbox is not None and sandbox["cgroup"]["path"] != request.record.cgroup:
                sandbox = None  # it is in another project's budget by now
            if sandbox is None:
                sandbox = self._sandbox(request)
            elif request.interfaces:  # not known yet when it was planned
                sandbox["interfaces"] = [one.plain() for one in request.interfaces]
            keeper = self._connected()
        except BaseException:
            _close_all(readers)
            raise
        first = _tees(readers.pop(0)) if readers else None
        try:
            started = await keeper.start(sandbox, first)
        except BaseException:
            _close_all(readers)
            raise
        for pipes in readers:
            with contextlib.suppress(FailedError):
                await self.attach(request.record.id, pipes)
        stdin = _copy(started.stdin) if started.stdin is not None else -1
        return Started(started.pid, started.start_time, stdin=stdin, warnings=started.warnings)

    async def execute(
        self, record: Record, instance: ExecRecord, stdio: tuple[int, int, int]
    ) -> Started:
        """Start a program inside."""
        try:
            wanted = self._program(record, instance)
            wanted["exec_id"] = instance.id
            wanted["pid"], wanted["start_time"] = record.pid, record.pid_start
            keeper = self._connected()
        except BaseException:
            _close_all([Pipes(*stdio[1:]), Pipes(stdio[0])])
            raise
        tty = instance.spec.process.tty
        if tty:
            _close_all([Pipes(*stdio[1:]), Pipes(stdio[0])])
        execed = await keeper.exec(wanted, None if tty else stdio)
        terminal = -1 if execed.terminal is None else execed.terminal
        return Started(execed.pid, 0, pidfd=execed.pidfd, stdin=terminal)

    async def attach(self, identity: str, pipes: Pipes) -> None:
        """Copy the output from now on; a container that nobody keeps gives none."""
        try:
            keeper = self._connected()
        except FailedError:
            _close_all([pipes])
            raise
        await keeper.attach(identity, _tees(pipes))

    async def close_stdin(self, identity: str) -> None:
        """Let the keeper close its copy."""
        if self._keeper is not None:
            await self._keeper.close_stdin(identity)

    async def acknowledge(self, identity: str) -> None:
        """The keeper may forget the exit."""
        if self._keeper is not None:
            self._keeper.acknowledge(identity)

    # --- facts --------------------------------------------------------------------------------

    def observe(self, record: Record) -> Fact:
        """By pid and start time; a zombie is dead."""
        if not record.pid:
            return Fact.ABSENT
        if not _lives(record.pid, record.pid_start):
            return Fact.DEAD
        with contextlib.suppress(OSError):
            if self._group(record).frozen():
                return Fact.FROZEN
        return Fact.ALIVE

    def leftover_end(self, record: Record) -> Ended | None:
        """The exit file of a keeper that died before it could report."""
        found = link.read_exit(self._paths.run, record.id)
        if found is None or found.at_ns < record.started_ns:
            return None  # of an earlier run
        return _ended(found, reaped=False)

    def watch(self, record: Record) -> Started:
        """By a pidfd of our own."""
        pidfd = os.pidfd_open(record.pid)
        if not _lives(record.pid, record.pid_start):
            os.close(pidfd)
            raise ProcessLookupError(record.pid)
        loop = asyncio.get_running_loop()

        def ended() -> None:
            loop.remove_reader(pidfd)
            self._watched.pop(record.id, None)
            status = process.exit_status(pidfd)
            os.close(pidfd)
            code = 255 if status is None else process.exit_code(status)
            self._on_end(Ended(record.id, code, time.time_ns(), known=status is not None))

        old = self._watched.pop(record.id, None)
        if old is not None:
            loop.remove_reader(old)
            os.close(old)
        self._watched[record.id] = pidfd
        loop.add_reader(pidfd, ended)
        return Started(record.pid, record.pid_start)

    def signal(self, record: Record, number: int) -> bool:
        """By pidfd, so that a recycled pid is never hit."""
        adopted = self._keeper.running.get(record.id) if self._keeper is not None else None
        try:
            if adopted is not None and adopted.pidfd >= 0:
                signal.pidfd_send_signal(adopted.pidfd, number)
                return True
            pidfd = os.pidfd_open(record.pid)
            try:
                if not _lives(record.pid, record.pid_start):
                    return False
                signal.pidfd_send_signal(pidfd, number)
            finally:
                os.close(pidfd)
        except ProcessLookupError:
            return False
        return True

    def kill(self, record: Record) -> None:
        """The first process takes its pid namespace along; without one the cgroup goes."""
        self.signal(record, signal.SIGKILL)
        if record.spec.namespaces.pid:
            with contextlib.suppress(OSError):
                self._group(record).kill()

    async def freeze(self, record: Record) -> None:
        """Freeze the cgroup; what will not freeze is thawed again and FailedError."""
        group = self._group(record)
        try:
            await asyncio.to_thread(group.freeze)
        except (OSError, TimeoutError) as error:
            raise _unfreezable(record, error) from error

    async def thaw(self, record: Record) -> None:
        """Thaw the cgroup."""
        try:
            self._group(record).thaw()
        except OSError as error:
            raise _unfreezable(record, error) from error

    def update(self, record: Record, resources: Resources) -> Sequence[str]:
        """Write the limits to the cgroup."""
        try:
            limits = limits_of(limit_values(resources), throttle_values(resources))
            return self._group(record).update(limits)
        except cgroup.UnsupportedLimitError as error:
            raise UnsupportedError(error.strerror or str(error), hint=error.hint) from error
        except OSError as error:
            why = error.strerror or str(error)
            raise InvalidError(
                f"the kernel refuses the new limits of {record.id[:12]}: {why}",
                hint="a memory limit cannot go below what is in use",
            ) from error

    def sample(self, record: Record) -> Sample:
        """From the cgroup's files and the host's /proc/stat."""
        # The host's interfaces are nobody's own.
        own = record.spec.namespaces.network != "host"
        return sample_of(
            self._group(record).stats(),
            cgroup_v2=self._layout.mode is cgroup.Mode.V2,
            networks_of=record.pid if own else 0,
        )

    def pids(self, record: Record) -> Sequence[int]:
        """From the cgroup; at least the first process."""
        return self._group(record).pids() or [record.pid]

    # --- leftovers ----------------------------------------------------------------------------

    def discard(self, record: Record) -> None:
        """Kill what is left in the cgroup and remove it; a run directory is the keeper's."""
        self._planned.pop(record.id, None)
        with contextlib.suppress(OSError, ValueError):
            self._remove(record.cgroup)

    def strays(self, expected: Callable[[str], bool]) -> Sequence[str]:
        """Groups below our parent, and run directories, of containers that should not run."""
        found = []
        keeper = self._keeper
        held = keeper.running if keeper is not None else {}
        with contextlib.suppress(OSError, ValueError):
            for path in self._groups_below(self._paths.cgroup_parent):
                identity = path.rpartition("/")[2]
                if expected(identity):
                    continue
                found.append(identity)
                with contextlib.suppress(OSError):
                    self._remove(path)
        directory = self._paths.run / "workloads"
        for identity in os.listdir(directory) if directory.is_dir() else ():
            if not expected(identity) and identity not in held and _is_id(identity):
                from tare.run.launching import remove_run_directory

                remove_run_directory(str(directory / identity))
        return found

    def _groups_below(self, parent: str) -> list[str]:
        """The paths of containers' groups, those in the groups of projects too."""
        found = []
        for name in self._layout.group(parent).subgroups():
            path = f"{parent}/{name.rstrip('/').rpartition('/')[2]}"
            if _is_id(path.rpartition("/")[2]):
                found.append(path)
            elif GROUP_PREFIX in path.rpartition("/")[2]:
                found += self._groups_below(path)
        return found

    def _remove(self, path: str) -> None:
        group = self._layout.group(path)
        if not group.exists():
            return
        group.kill()
        for _ in range(50):
            try:
                group.remove()
            except OSError:
                time.sleep(0.002)  # the killed are still being taken down by the kernel
            else:
                return

    # --- inside -------------------------------------------------------------------------------

    def _connected(self) -> link.Keeper:
        if self._keeper is None:
            raise FailedError("the keeper is not connected", hint="try again")
        return self._keeper

    def _sandbox(self, request: Request) -> Sandbox:
        """What the keeper is to start for a workload."""
        return plan(request.record.spec, self._place(request), self._host)

    def _program(self, record: Record, instance: ExecRecord) -> ExecPlan:
        """What the keeper is to start for an exec."""
        return plan_exec(record.spec, instance.spec, self._place(Request(record, ())), self._host)

    def _group(self, record: Record) -> cgroup.Group:
        return self._layout.group(record.cgroup)

    def _place(self, request: Request) -> Place:
        record = request.record
        files = record.files_dir
        block = record.id_block
        if self._host.rootless:
            block = IdBlock(base=0, size=rootless.IDS)  # those of the user's own namespace
        return Place(
            id=record.id,
            name=record.name,
            layers=(self._skeleton, *(os.fspath(path) for path in request.layers)),
            state_dir=record.workload_dir,
            layer_dir=record.layer_dir,
            run_dir=f"{self._paths.run}/workloads/{record.id}",
            cgroup=record.cgroup,
            id_block=(block.base, block.size) if block is not None else None,
            files={
                f"/etc/{name}": f"{files}/{name}" for name in ("hosts", "hostname", "resolv.conf")
            },
            joined={kind: other.pid for kind, other in request.joined.items()},
            interfaces=request.interfaces,
            volumes=f"{self._paths.state}/volumes",
        )


def _ended(exited: link.Exited, *, reaped: bool = True) -> Ended:
    return Ended(
        exited.id,
        exited.code,
        exited.at_ns,
        exec_id=exited.exec_id,
        oom_killed=exited.oom_killed,
        known=exited.known,
        reaped=reaped and exited.known,
        cpu_ns=exited.cpu_ns or None,
        memory_peak=exited.memory_peak or None,
    )


def _lives(pid: int, start: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return int(fields[19]) == start and fields[0] not in (b"Z", b"X")


def _joins(record: Record) -> bool:
    names = record.spec.namespaces
    return any(
        value.startswith("container:") for value in (names.network, names.pid, names.ipc, names.uts)
    )


def _is_id(name: str) -> bool:
    return len(name) == 64 and not set(name) - set("0123456789abcdef")


def _copy(descriptor: int) -> int:
    """A close-on-exec copy that this side owns; -1 of -1."""
    return os.dup(descriptor) if descriptor >= 0 else -1


def _tees(pipes: Pipes) -> link.AttachPipes:
    return link.AttachPipes(
        stdout=pipes.stdout if pipes.stdout >= 0 else None,
        stderr=pipes.stderr if pipes.stderr >= 0 else None,
    )


def _close_all(readers: Sequence[Pipes]) -> None:
    for pipes in readers:
        for descriptor in (pipes.stdout, pipes.stderr):
            if descriptor >= 0:
                os.close(descriptor)


def _unfreezable(record: Record, error: OSError) -> FailedError:
    hint = error.hint if isinstance(error, cgroup.LimitError) else ""
    return FailedError(f"cannot freeze container {record.id[:12]}: {error}", hint=hint)
