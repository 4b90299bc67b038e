"""What a user asks for: a container, an exec, their limits and walls.

Values only. `wire` makes them from Docker's JSON, `engine` keeps them, `run.plan` turns them
into operations. Every value is complete: the image's defaults are already merged in
(`model.oci.merge`). Sizes are bytes, times are nanoseconds unless a name says otherwise.
``None`` means *not asked for*.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from tare.model.networking import NetworkWish, PortWish


class SecurityProfile(StrEnum):
    """The named postures of docs/threat-model.md."""

    STANDARD = "standard"
    DOCKER_COMPAT = "docker-compat"
    HARDENED = "hardened"


class Isolation(StrEnum):
    """What stands between a workload and the host: the kernel's walls, or a kernel of its own."""

    CONTAINER = "container"
    VM = "vm"


class MountKind(StrEnum):
    """What is mounted."""

    BIND = "bind"
    TMPFS = "tmpfs"
    VOLUME = "volume"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One mount asked for with ``-v``, ``--mount`` or ``--tmpfs``, or by an image's VOLUME.

    ``options`` are the extra words of ``-v a:b:OPTIONS`` or ``--tmpfs a:OPTIONS`` that have no
    field here, already checked.
    """

    kind: MountKind
    target: str
    source: str = ""
    read_only: bool = False
    propagation: str = "rprivate"
    create_source: bool = False
    recursive: bool = True
    tmpfs_size: int | None = None
    tmpfs_mode: int | None = None
    options: tuple[str, ...] = ()
    subpath: str = ""
    no_copy: bool = False  # a volume is not filled from the image
    anonymous: bool = False  # a volume that nobody named; ``source`` is its name once it is made
    volume: VolumeWish | None = None  # how to make the volume if it is not there


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeWish:
    """What ``--mount type=volume`` says of a volume that may have to be made."""

    driver: str = ""
    options: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A host device made visible, with its cgroup permissions (``rwm``)."""

    host_path: str
    target: str
    permissions: str = "rwm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Throttle:
    """A block I/O rate (bytes or operations a second) for one host device path."""

    device: str
    rate: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ulimit:
    """A resource limit by its setrlimit(2) name in lower case (``nofile``); -1 is unlimited."""

    name: str
    soft: int
    hard: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Limits that the kernel enforces; None is not limited (or tare's default, see plan)."""

    memory: int | None = None
    memory_swap: int | None = None  # memory and swap together; -1 is unlimited
    memory_reservation: int | None = None
    memory_swappiness: int | None = None
    oom_kill_disable: bool = False
    nano_cpus: int | None = None
    cpu_shares: int | None = None
    cpu_quota_us: int | None = None
    cpu_period_us: int | None = None
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    pids: int | None = None  # -1 is unlimited
    blkio_weight: int | None = None
    blkio_weight_device: tuple[Throttle, ...] = ()
    read_bps: tuple[Throttle, ...] = ()
    write_bps: tuple[Throttle, ...] = ()
    read_iops: tuple[Throttle, ...] = ()
    write_iops: tuple[Throttle, ...] = ()
    device_cgroup_rules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheck:
    """How the engine probes a running container; an empty ``test`` or ``NONE`` is no check."""

    test: tuple[str, ...] = ()
    interval_ns: int = 30_000_000_000
    timeout_ns: int = 30_000_000_000
    start_period_ns: int = 0
    start_interval_ns: int = 5_000_000_000
    retries: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """``no``, ``always``, ``unless-stopped`` or ``on-failure`` (0 retries: no bound)."""

    name: str = "no"
    maximum_retries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """Driver ``json-file``, ``local`` (both our own rotated log) or ``none``; sizes in bytes."""

    driver: str = "json-file"
    max_size: int = 10 << 20
    max_files: int = 3
    options: tuple[tuple[str, str], ...] = ()  # as given, for inspect


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """The walls; defaults are those of the profile."""

    profile: SecurityProfile = SecurityProfile.STANDARD
    privileged: bool = False
    cap_add: tuple[str, ...] = ()  # without CAP_, upper case; ALL allowed
    cap_drop: tuple[str, ...] = ()
    no_new_privileges: bool | None = None
    seccomp: str = (
        ""  # "" the profile's own, "unconfined", "compat", or the JSON text of an OCI profile
    )
    abi_ia32: bool = False
    socket_families: tuple[str, ...] = ()
    unconfined_paths: bool = False
    masked_paths: tuple[str, ...] | None = None
    readonly_paths: tuple[str, ...] | None = None
    options: tuple[str, ...] = ()  # --security-opt as given, for inspect


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespaces:
    """Docker's words: ``""`` own, ``host``, ``container:ID``; network also ``none``.

    Which networks an own network namespace is linked to is in `ContainerSpec.networks`.
    """

    network: str = ""
    pid: str = ""
    ipc: str = ""  # "", private, shareable, none, host, container:ID
    uts: str = ""
    user: str = ""  # "", host, auto, auto:size=N
    cgroup: str = ""  # "", private, host


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """One program inside: the container's own or an exec'd one."""

    args: tuple[str, ...]
    env: tuple[str, ...] = ()  # NAME=value, in order
    cwd: str = ""  # "" is /
    user: str = ""  # USER[:GROUP], each a name or a number; "" is root
    groups: tuple[str, ...] = ()
    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False
    privileged: bool = False  # exec --privileged


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """A container as asked for, image defaults merged in."""

    image: str  # the reference as the user typed it
    image_id: str  # sha256:... of the image's configuration
    process: ProcessSpec
    entrypoint: tuple[str, ...] | None = None  # for inspect; process.args is what runs
    command: tuple[str, ...] | None = None
    hostname: str = ""
    domainname: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    devices: tuple[Device, ...] = ()
    resources: Resources = Resources()
    ulimits: tuple[Ulimit, ...] = ()
    security: Security = Security()
    namespaces: Namespaces = Namespaces()
    sysctls: dict[str, str] = field(default_factory=dict)
    shm_size: int = 64 << 20
    read_only: bool = False
    init: bool = False
    auto_remove: bool = False
    stop_signal: str = "SIGTERM"
    stop_timeout: int | None = None  # seconds; None is 10, -1 waits for ever
    restart: RestartPolicy = RestartPolicy()
    health: HealthCheck | None = None
    log: LogConfig = LogConfig()
    oom_score_adj: int | None = None
    extra_hosts: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    network_mode: str = ""  # as asked for, for inspect; "" is what `namespaces` says
    networks: tuple[NetworkWish, ...] = ()
    network_rate: int | None = None  # bytes a second, each direction
    ports: tuple[PortWish, ...] = ()
    publish_all: bool = False
    links: tuple[str, ...] = ()  # NAME[:ALIAS], as asked for
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()  # VOLUME targets of the image, and of ``-v /path``
    volumes_from: tuple[str, ...] = ()  # CONTAINER[:ro|rw], until create has resolved them
    attach_stdin: bool = False  # for inspect only
    attach_stdout: bool = True
    attach_stderr: bool = True
    cidfile: str = ""
    isolation: Isolation = Isolation.CONTAINER
    storage_size: int = 0  # bytes of the container's own layer; 0 is as much as the disk has


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecSpec:
    """A program to start inside a running container."""

    process: ProcessSpec
    attach_stdin: bool = False
    attach_stdout: bool = True
    attach_stderr: bool = True
    detach_keys: str = ""
