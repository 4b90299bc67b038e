"""The shape of a sandbox: what `run.plan` decides and the keeper applies.

Plain JSON, because it crosses from the daemon to the keeper, which imports little; the types
below are checked by mypy and cost nothing at run time. Paths are the host's unless they are a
``target``. Bytes (the seccomp filter) are base64.
"""

from __future__ import annotations

from typing import NotRequired, TypedDict

from tare.kernel.interfaces import Plain

FileSystemOption = tuple[str, str | None]


class Operation(TypedDict):
    """One step inside the new namespaces, applied in order by `run.init`.

    ``op`` is one of

    * ``filesystem``: mount a new *kind* with *options* and *attributes* at *target*;
    * ``dev``: attach the /dev that the keeper made, with its links and pts;
    * ``bind``: attach the host tree number *index* at *target*;
    * ``mask``: hide each of *targets*; ``readonly``: make each of *targets* read-only;
    * ``sysctl``: write *values*; ``hostname``: *name*; ``loopback``: bring lo up;
    * ``console``: make the terminal, and bind it to /dev/console;
    * ``readonly_root``.
    """

    op: str
    target: NotRequired[str]
    kind: NotRequired[str]
    options: NotRequired[list[FileSystemOption]]
    attributes: NotRequired[int]
    index: NotRequired[int]
    targets: NotRequired[list[str]]
    values: NotRequired[dict[str, str]]
    name: NotRequired[str]
    optional: NotRequired[bool]
    copy_up: NotRequired[bool]


class Bind(TypedDict):
    """A host tree to clone for a ``bind`` operation."""

    source: str
    read_only: bool
    recursive: bool
    map_ids: bool
    propagation: str
    create: bool
    generated: bool  # a file of tare's own, e.g. /etc/hosts
    subpath: NotRequired[str]  # below the source; links in it lead nowhere else
    volume: NotRequired[str]  # the name of the volume that it is
    process: NotRequired[int]  # the source is in the mount namespace of this one


class DeviceNode(TypedDict):
    """A host device to show in /dev (*target* below it), or a directory of them."""

    source: str
    target: str
    permissions: str


class Root(TypedDict):
    """The overlay: layers bottom first (EROFS files or directories)."""

    layers: list[str]
    upper: str
    work: str
    attributes: int
    volatile: bool  # nothing of it is kept: do not sync it to disk


class Process(TypedDict):
    """The program, and what is left of its privileges."""

    args: list[str]
    env: list[str]
    cwd: str
    user: str
    groups: list[str]
    tty: bool
    stdin: bool
    capabilities: int
    no_new_privileges: bool
    seccomp: str  # base64 of the filter, "" for none
    id_limit: int  # ids must be below; 0 is no limit
    rlimits: list[tuple[int, int, int]]
    oom_score_adj: int | None


class Cgroup(TypedDict):
    """The group's path below each hierarchy, and the arguments of `cgroup.Limits`."""

    path: str
    limits: dict[str, int | str | bool | None]
    throttles: dict[str, list[tuple[str, int]]]  # a field of Limits -> (device path, rate)
    devices: list[str]  # rules "c 1:3 rwm" beyond the nodes shown
    all_devices: bool


class Log(TypedDict):
    """Where the output goes; an empty path keeps none."""

    path: str
    max_size: int
    max_files: int


class Sandbox(TypedDict):
    """Everything the keeper needs to start one container."""

    id: str
    run_dir: str
    flags: int  # CLONE_NEW* for clone3
    ordinary: bool  # a child prepared ahead of time (`run.spares`) will do
    id_map: tuple[int, int] | None  # base and size of the block, None: the host's ids
    join: dict[str, int]  # "network" | "ipc" | "pid" | "uts" -> pid whose namespace is joined
    cgroup_namespace: bool
    interfaces: list[Plain]  # of its network namespace, besides loopback
    root: Root
    binds: list[Bind]
    devices: list[DeviceNode]
    all_devices: bool
    operations: list[Operation]
    process: Process
    cgroup: Cgroup
    log: Log


class ExecPlan(TypedDict):
    """A program to start inside the sandbox of a running process."""

    id: str  # of the container
    exec_id: str
    pid: int
    start_time: int
    process: Process
    cgroup: str
    user_namespace: bool
