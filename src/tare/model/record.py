"""What the engine knows: records of workloads and execs, events, samples, findings.

Values only. `engine` makes and keeps them, `wire` turns them into Docker's JSON. Sizes are
bytes, times nanoseconds since the epoch (0: never) unless a name says otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from operator import attrgetter
from typing import TYPE_CHECKING

from tare.model.networking import Joined
from tare.model.spec import ContainerSpec, ExecSpec
from tare.model.state import State


class HealthStatus(StrEnum):
    """Docker's words for what the health check last said."""

    NONE = "none"
    STARTING = "starting"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One run of a health check; ``exit_code`` -1 is a timeout or a failure to start it."""

    start_ns: int
    end_ns: int
    exit_code: int
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What the health checks of one run of a container have shown, the last five kept."""

    status: HealthStatus = HealthStatus.NONE
    failing_streak: int = 0
    log: tuple[Probe, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class IdBlock:
    """A range of host ids that one container's ids are mapped to."""

    base: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A container: what was asked for, and what was last observed of it.

    ``pid`` and ``pid_start`` (/proc/PID/stat, field 22) name its first process while it runs.
    ``log_path``, ``workload_dir`` and ``files_dir`` are for inspect. ``manually_stopped`` is
    Docker's: a user asked it to end, so ``unless-stopped`` leaves it alone.
    """

    id: str
    name: str
    spec: ContainerSpec
    created_ns: int
    state: State = State.CREATED
    started_ns: int = 0
    finished_ns: int = 0
    pid: int = 0
    pid_start: int = 0
    exit_code: int = 0
    oom_killed: bool = False
    error: str = ""
    restart_count: int = 0
    manually_stopped: bool = False
    health: Health | None = None
    id_block: IdBlock | None = None
    layers: tuple[str, ...] = ()  # diff_ids (hex) of the image, bottom first, pinned at create
    cgroup: str = ""  # the workload's cgroup below the hierarchy's mount point
    workload_dir: str = ""
    files_dir: str = ""
    log_path: str = ""
    warnings: tuple[str, ...] = ()
    networks: tuple[Joined, ...] = ()

    @property
    def image_id(self) -> str:
        """``sha256:...`` of the image it was made from."""
        return self.spec.image_id

    @property
    def layer_dir(self) -> str:
        """Where its own layer is: the directory of overlay's ``upper`` and ``work``."""
        limited = f"{self.workload_dir}/disk/_data"
        return limited if self.spec.storage_size else self.workload_dir

    @property
    def running(self) -> bool:
        """True as long as Docker calls it running: paused, stopping and restarting too."""
        return self.state in _RUNNING

    @property
    def alive(self) -> bool:
        """True while a first process is known to exist."""
        return self.state in _ALIVE


if TYPE_CHECKING:
    changed = dataclasses.replace
else:
    _NAMES = tuple(Record.__dataclass_fields__)
    _values = attrgetter(*_NAMES)

    def changed(record: Record, **changes: object) -> Record:
        """`dataclasses.replace` for a Record, five times faster: every transition pays for it."""
        values = dict(zip(_NAMES, _values(record), strict=True))
        values.update(changes)
        return Record(**values)


_ALIVE = frozenset((State.RUNNING, State.PAUSED, State.STOPPING))
_RUNNING = _ALIVE | {State.RESTARTING}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitInfo:
    """How a container ended: the answer of wait."""

    code: int
    error: str = ""
    oom_killed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecRecord:
    """One exec instance; ``exit_code`` is None until it has ended."""

    id: str
    container: str
    spec: ExecSpec
    running: bool = False
    started: bool = False
    exit_code: int | None = None
    pid: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened, in Docker's words (``container`` ``exec_start: true``)."""

    type: str
    action: str
    id: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    time_ns: int = 0
    scope: str = "local"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockCount:
    """A count for one block device and operation (``read``, ``write`` ...)."""

    major: int
    minor: int
    op: str
    value: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkCount:
    """What passed through one interface of a container, counted from its side."""

    rx_bytes: int = 0
    rx_packets: int = 0
    rx_errors: int = 0
    rx_dropped: int = 0
    tx_bytes: int = 0
    tx_packets: int = 0
    tx_errors: int = 0
    tx_dropped: int = 0


@dataclass(frozen=True, slots=True)
class PressureShare:
    """Percent of the last 10 and 60 s in which some, or all, tasks waited; and us so far."""

    some10: float = 0.0
    some60: float = 0.0
    full10: float = 0.0
    full60: float = 0.0
    some_us: int = 0
    full_us: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What a container used, read from its cgroup once; CPU times are totals in ns.

    ``system_cpu_ns`` is the host's, so two samples give a share. ``memory_limit`` is the host's
    memory when the container has no limit. ``memory_stats`` are the kernel's own names.
    """

    read_ns: int
    cpu_ns: int = 0
    cpu_user_ns: int = 0
    cpu_system_ns: int = 0
    system_cpu_ns: int = 0
    online_cpus: int = 1
    per_cpu_ns: tuple[int, ...] = ()
    periods: int = 0
    throttled_periods: int = 0
    throttled_ns: int = 0
    memory: int = 0
    memory_max: int = 0
    memory_failures: int = 0
    memory_limit: int = 0
    memory_stats: Mapping[str, int] = field(default_factory=dict)
    cache: int = 0  # of the memory: pages of files, which can be dropped
    oom_kills: int = 0
    pids: int = 0
    pids_limit: int = 0  # 0: none
    block_bytes: tuple[BlockCount, ...] = ()
    block_ops: tuple[BlockCount, ...] = ()
    networks: Mapping[str, NetworkCount] = field(default_factory=dict)  # by interface
    pressure: Mapping[str, PressureShare] = field(default_factory=dict)  # cpu, memory, io


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one finished (or running) container used, for ``tare.run``; None is not known."""

    wall_ns: int
    cpu_ns: int | None = None
    memory_peak: int | None = None
    pids_peak: int | None = None
    block_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogQuery:
    """Which lines of a log are wanted; ``tail`` is the last so many of them, None all."""

    stdout: bool = True
    stderr: bool = True
    follow: bool = False
    since_ns: int | None = None
    until_ns: int | None = None
    tail: int | None = None


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of output with its newline; ``stream`` is 1 (stdout) or 2 (stderr)."""

    stream: int
    time_ns: int
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PathStat:
    """A file of a container as ``cp`` shows it; ``mode`` is st_mode."""

    name: str
    size: int
    mode: int
    mtime_ns: int
    link_target: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Top:
    """The processes of a container, as ps prints them."""

    titles: tuple[str, ...]
    processes: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What a prune deleted, and the bytes that came free."""

    deleted: tuple[str, ...]
    reclaimed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One finding of doctor: ``status`` is ok, warn or fail."""

    check: str
    status: str
    seen: str
    cost: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """The host and the engine at a glance: ``GET /info`` and ``tare info``."""

    id: str
    name: str
    containers: int
    running: int
    paused: int
    stopped: int
    images: int
    cpus: int
    memory_total: int
    kernel: str
    operating_system: str
    os_version: str
    architecture: str
    state_dir: str
    version: str
    cgroup_version: str  # "1" or "2"
    cgroup_driver: str
    storage_driver: str
    rootless: bool
    memory_limit: bool
    swap_limit: bool
    cpu_limit: bool
    cpuset: bool
    pids_limit: bool
    oom_kill_disable: bool
    security_options: tuple[str, ...]
    warnings: tuple[str, ...] = ()
