"""What the engine asks of whatever runs a workload, and the values they exchange.

`engine.sandbox.Sandboxes` does it for containers by the keeper, cgroups and pidfds; the tests'
fake keeps a kernel in memory; a driver of machines comes with `vm`. Everything here speaks of
facts: a driver never consults the engine's records for what is true.

Methods that are not async take well below a millisecond.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tare.kernel.interfaces import Interface
from tare.model.record import ExecRecord, Record, Sample
from tare.model.spec import Resources
from tare.model.state import Fact


@dataclass(frozen=True, slots=True)
class Started:
    """A first process or an exec'd one that runs; the descriptors are the receiver's to close.

    ``stdin`` is the write end of its standard input, or the master of its terminal.
    """

    pid: int
    start_time: int
    pidfd: int = -1
    stdin: int = -1
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """How a first process (or exec *exec_id*) ended; not *known*: nobody saw its exit code."""

    id: str
    code: int
    at_ns: int
    exec_id: str | None = None
    oom_killed: bool = False
    known: bool = True
    reaped: bool = False  # the driver itself has removed its cgroup already
    cpu_ns: int | None = None
    memory_peak: int | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """A workload that runs already when the driver is opened."""

    pid: int
    start_time: int
    pidfd: int = -1
    stdin: int = -1


@dataclass(frozen=True, slots=True)
class Pipes:
    """The write ends of one reader of a workload's output, -1 where it does not want it.

    The driver passes them on and closes its copies, whatever the outcome.
    """

    stdout: int = -1
    stderr: int = -1


@dataclass(frozen=True, slots=True)
class Request:
    """All that a start needs besides the record."""

    record: Record
    layers: Sequence[Path]
    joined: Mapping[str, Record] = field(default_factory=dict)  # pid, ipc, network -> container
    readers: Sequence[Pipes] = ()
    interfaces: tuple[Interface, ...] = ()  # of its network namespace, if it has its own


class Driver(Protocol):
    """Starts workloads, tells their ends, and shows what the kernel knows of them."""

    async def open(
        self, on_end: Callable[[Ended], None], on_lost: Callable[[], None]
    ) -> Mapping[str, Held]:
        """Connect and return what runs; ends come by *on_end*, those missed meanwhile too.

        *on_lost* is called when the connection breaks; `open` may then be called again.
        """
        ...

    def check(self, request: Request) -> Sequence[str]:
        """Refuse now what could never start; the warnings."""
        ...

    async def start(self, request: Request) -> Started:
        """Start the workload's first process; on a TareError nothing is left of it."""
        ...

    async def execute(
        self, record: Record, instance: ExecRecord, stdio: tuple[int, int, int]
    ) -> Started:
        """Start a process inside; *stdio* are its ends, closed here; a tty ignores them.

        With a tty ``Started.stdin`` is the terminal's master.
        """
        ...

    async def attach(self, identity: str, pipes: Pipes) -> None:
        """Copy the output from now on to *pipes* as well."""
        ...

    async def close_stdin(self, identity: str) -> None:
        """Let go of the driver's own copy of the input's write end."""
        ...

    async def acknowledge(self, identity: str) -> None:
        """The end is recorded for good; what the driver keeps to tell it may go."""
        ...

    async def close(self) -> None:
        """Disconnect; what runs goes on."""
        ...

    def observe(self, record: Record) -> Fact:
        """What the kernel shows of the record's first process."""
        ...

    def leftover_end(self, record: Record) -> Ended | None:
        """The end that a dead keeper left on disk, if it managed to."""
        ...

    def watch(self, record: Record) -> Started:
        """Watch a first process that no keeper holds; its end comes by *on_end* as well."""
        ...

    def signal(self, record: Record, number: int) -> bool:
        """Send a signal to the first process; False when it is gone."""
        ...

    def kill(self, record: Record) -> None:
        """SIGKILL every process of the workload, frozen ones too."""
        ...

    async def freeze(self, record: Record) -> None:
        """Freeze all its processes; FailedError when that did not take effect."""
        ...

    async def thaw(self, record: Record) -> None:
        """Let them go on."""
        ...

    def update(self, record: Record, resources: Resources) -> Sequence[str]:
        """Change the limits of a running workload; the warnings. InvalidError if refused."""
        ...

    def sample(self, record: Record) -> Sample:
        """What it uses now."""
        ...

    def pids(self, record: Record) -> Sequence[int]:
        """The host's ids of all its processes."""
        ...

    def discard(self, record: Record) -> None:
        """Remove what an ended workload left in the kernel: processes, cgroup, run directory."""
        ...

    def strays(self, expected: Callable[[str], bool]) -> Sequence[str]:
        """Kill and remove workloads that are there and not *expected*; their ids."""
        ...
