"""A driver whose kernel is a dictionary that outlives the daemon, and a fuse that blows in it.

`Kernel` is the world: processes, cgroups, the keeper with its exits. `FakeDriver` is one daemon's
view of it; a test makes a new one for the next daemon. Every change of the world goes through the
fuse, a step before and a step after, so that crash points can be enumerated.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tare.engine.driver import Ended, Held, Pipes, Request, Started
from tare.errors import FailedError, TareError
from tare.model.record import ExecRecord, Record, Sample
from tare.model.spec import Resources
from tare.model.state import Fact


class Crash(BaseException):
    """The daemon is gone: a BaseException, so that no handler survives it."""


class Fuse:
    """Blows after so many steps and stays blown, so that no ``finally`` can act either."""

    def __init__(self, length: float = math.inf) -> None:
        self.blown = False
        self.burnt = 0
        self._length = length

    def around(self, effect: Callable[[], None]) -> None:
        """Count a step before *effect* and a step after it."""
        self._burn()
        effect()
        self._burn()

    def _burn(self) -> None:
        self.blown = self.blown or self.burnt >= self._length
        if self.blown:
            raise Crash
        self.burnt += 1


@dataclass
class Process:
    """A first process."""

    pid: int
    start_time: int
    frozen: bool = False
    deaf: bool = False  # to all signals but SIGKILL
    signals: list[int] = field(default_factory=list)


@dataclass
class Kernel:
    """What is true, whoever looks."""

    processes: dict[str, Process] = field(default_factory=dict)
    exits: dict[str, Ended] = field(default_factory=dict)  # kept by the keeper until acknowledged
    keeper_holds: set[str] = field(default_factory=set)
    groups: set[str] = field(default_factory=set)
    next_pid: int = 1000
    listener: Callable[[Ended], None] | None = None

    def end(self, identity: str, code: int = 0, *, oom: bool = False, known: bool = True) -> None:
        """The first process of *identity* ends."""
        process = self.processes.pop(identity, None)
        if process is None:
            return
        ended = Ended(identity, code, time.time_ns(), oom_killed=oom, known=known)
        if identity in self.keeper_holds:
            self.keeper_holds.discard(identity)
            self.exits[identity] = ended
            if self.listener is not None:
                self.listener(ended)

    def kill_keeper(self) -> None:
        """The keeper dies: what it held goes on, what it knew is lost."""
        self.keeper_holds.clear()
        self.exits.clear()


class FakeDriver:
    """Implements `engine.driver.Driver` on a `Kernel`."""

    def __init__(self, kernel: Kernel, fuse: Fuse | None = None) -> None:
        self.kernel = kernel
        self.fuse = fuse or Fuse()
        self.fail: TareError | None = None
        self.deaf = False
        self.lost: Callable[[], None] = lambda: None
        self.readers: dict[str, list[Pipes]] = {}
        self.executed: list[tuple[str, ExecRecord]] = []
        self.exec_result: tuple[int, bytes] | None = (0, b"")
        self._tell: Callable[[Ended], None] = lambda _: None

    async def open(
        self, on_end: Callable[[Ended], None], on_lost: Callable[[], None]
    ) -> Mapping[str, Held]:
        loop = asyncio.get_running_loop()
        self.lost = on_lost
        self._tell = on_end

        def listener(ended: Ended) -> None:
            loop.call_soon(on_end, ended)

        self.kernel.listener = listener
        for ended in list(self.kernel.exits.values()):
            on_end(ended)
        return {
            identity: Held(process.pid, process.start_time)
            for identity, process in self.kernel.processes.items()
            if identity in self.kernel.keeper_holds
        }

    async def start(self, request: Request) -> Started:
        for pipes in request.readers:
            for descriptor in (pipes.stdout, pipes.stderr):
                if descriptor >= 0:
                    os.close(descriptor)
        if self.fail is not None:
            raise self.fail
        identity = request.record.id
        self.fuse.around(lambda: self._begin(identity))
        process = self.kernel.processes.get(identity)
        if process is None:  # it ended at once
            return Started(self.kernel.next_pid, 7)
        return Started(process.pid, process.start_time)

    def _begin(self, identity: str) -> None:
        self.kernel.next_pid += 1
        self.kernel.processes[identity] = Process(self.kernel.next_pid, 7, deaf=self.deaf)
        self.kernel.keeper_holds.add(identity)
        self.kernel.groups.add(identity)

    def check(self, request: Request) -> Sequence[str]:
        return ()

    async def execute(
        self, record: Record, instance: ExecRecord, stdio: tuple[int, int, int]
    ) -> Started:
        self.executed.append((record.id, instance))
        result = self.exec_result
        if result is not None:
            os.write(stdio[1], result[1])
        for descriptor in stdio:
            if descriptor >= 0:
                os.close(descriptor)
        if self.fail is not None:
            raise self.fail
        if result is not None:
            ended = Ended(record.id, result[0], time.time_ns(), exec_id=instance.id)
            asyncio.get_running_loop().call_soon(self._tell, ended)
        return Started(999_999_999, 7)

    async def attach(self, identity: str, pipes: Pipes) -> None:
        self.readers.setdefault(identity, []).append(pipes)

    async def close_stdin(self, identity: str) -> None:
        return

    async def acknowledge(self, identity: str) -> None:
        def forget() -> None:
            self.kernel.exits.pop(identity, None)

        self.fuse.around(forget)

    async def close(self) -> None:
        self.kernel.listener = None

    def observe(self, record: Record) -> Fact:
        process = self.kernel.processes.get(record.id)
        if process is None or process.pid != record.pid:
            return Fact.DEAD if record.pid else Fact.ABSENT
        return Fact.FROZEN if process.frozen else Fact.ALIVE

    def leftover_end(self, record: Record) -> Ended | None:
        return None

    def watch(self, record: Record) -> Started:
        process = self.kernel.processes[record.id]
        self.kernel.keeper_holds.add(record.id)
        return Started(process.pid, process.start_time)

    def signal(self, record: Record, number: int) -> bool:
        process = self.kernel.processes.get(record.id)
        if process is None:
            return False
        self.fuse.around(lambda: self._signal(record.id, process, number))
        return True

    def _signal(self, identity: str, process: Process, number: int) -> None:
        process.signals.append(number)
        if number == 9 or (number == 15 and not process.deaf and not process.frozen):
            self.kernel.end(identity, 128 + number)

    def kill(self, record: Record) -> None:
        self.signal(record, 9)

    async def freeze(self, record: Record) -> None:
        self.fuse.around(lambda: self._freeze(record.id, frozen=True))

    async def thaw(self, record: Record) -> None:
        self.fuse.around(lambda: self._freeze(record.id, frozen=False))

    def _freeze(self, identity: str, *, frozen: bool) -> None:
        process = self.kernel.processes.get(identity)
        if process is None:
            return
        process.frozen = frozen
        if not frozen and 15 in process.signals and not process.deaf:
            self.kernel.end(identity, 143)

    def update(self, record: Record, resources: Resources) -> Sequence[str]:
        return ()

    def sample(self, record: Record) -> Sample:
        return Sample(read_ns=1)

    def pids(self, record: Record) -> Sequence[int]:
        return [record.pid]

    def discard(self, record: Record) -> None:
        self.fuse.around(lambda: self._discard(record.id))

    def _discard(self, identity: str) -> None:
        self.kernel.end(identity, 137)
        self.kernel.groups.discard(identity)

    def strays(self, expected: Callable[[str], bool]) -> Sequence[str]:
        found = [i for i in sorted(self.kernel.groups) if not expected(i)]
        for identity in found:
            self._discard(identity)
        return found


def refused(message: str = "cannot start", code: int = 127) -> FailedError:
    """A start that fails as a missing program does."""
    return FailedError(message, exit_code=code)
