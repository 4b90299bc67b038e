"""A specification as the ordered list of operations that makes it true. Pure.

`plan` turns what a user asked for (`ContainerSpec`), where the engine put it (`Place`) and what
the host can do (`Host`) into a `Sandbox`; `describe` reads one out, for ``--dry-run`` and tests.
The walls of docs/threat-model.md are decided here and nowhere else.

Not for: touching the host. What must be looked at there (a device's number, a bind's source) is
named, and looked at by the keeper.
"""

from __future__ import annotations

import base64
import functools
from dataclasses import dataclass, field
from typing import Final

from tare.errors import InvalidError, UnsupportedError
from tare.kernel import confine, mount, process
from tare.kernel.interfaces import Interface
from tare.model import seccomp, seccomp_filter, seccomp_profiles
from tare.model.spec import (
    ContainerSpec,
    ExecSpec,
    Mount,
    MountKind,
    ProcessSpec,
    Resources,
    Security,
    SecurityProfile,
    Ulimit,
)
from tare.run import walls
from tare.run.sandbox import Bind, Cgroup, ExecPlan, Log, Operation, Process, Sandbox

DEFAULT_PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEVICE_NAMES: Final = ("null", "zero", "full", "random", "urandom", "tty")
SHARED_MEMORY: Final = "/dev/shm"  # noqa: S108
_ALWAYS_GROUPED: Final = frozenset(
    {"cpu", "cpuacct", "memory", "devices", "freezer", "blkio", "pids"}
)
"""The version 1 controllers in which every container has a group (`kernel.cgroup_v1`)."""
INIT_TARGET: Final = "/sbin/docker-init"
DEFAULT_PIDS: Final = 2048
HARDENED_PIDS: Final = 512

_STANDARD_CAPABILITIES: Final = frozenset(
    {
        "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETFCAP",
        "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
    }
)  # fmt: skip
_CAPABILITIES: Final = {
    SecurityProfile.STANDARD: _STANDARD_CAPABILITIES,
    SecurityProfile.DOCKER_COMPAT: _STANDARD_CAPABILITIES | {"NET_RAW", "MKNOD", "AUDIT_WRITE"},
    SecurityProfile.HARDENED: frozenset[str](),
}

# runtime-spec; runc allows the same files of /proc to be replaced by a mount.
_PROC_FILES: Final = frozenset(
    f"/proc/{name}"
    for name in (
        "cpuinfo", "diskstats", "meminfo", "stat", "swaps", "uptime", "loadavg", "slabinfo",
        "net/dev", "sys/kernel/ns_last_pid", "sys/crypto/fips_enabled",
    )
)  # fmt: skip

_SAFE_SYSCTLS: Final = (
    "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall",
    "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced",
)  # fmt: skip

_TMPFS_FLAGS: Final = {
    "ro": mount.RDONLY, "nosuid": mount.NOSUID, "nodev": mount.NODEV, "noexec": mount.NOEXEC,
    "noatime": mount.NOATIME,
}  # fmt: skip

RLIMITS: Final = {
    name: number
    for number, name in enumerate(
        (
            "cpu", "fsize", "data", "stack", "core", "rss", "nproc", "nofile", "memlock", "as",
            "locks", "sigpending", "msgqueue", "nice", "rtprio", "rttime",
        )
    )
}  # fmt: skip
"""setrlimit(2) numbers, asm-generic/resource.h (the same on x86 and arm)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What the plan must know of the host; `run.host.detect` looks."""

    kernel: tuple[int, int]
    machine: str
    last_capability: int
    cgroup_version: int  # 1, also for hybrid; 2
    cgroup_controllers: tuple[str, ...] = ()  # the v1 hierarchies, as mounted
    nofile_hard: int = 1 << 20
    user_namespaces: bool = True
    id_mapped_mounts: bool = True
    rootless: bool = False
    pids_limit: bool = True  # whether a limit on processes can be set
    init: str = ""  # a static init such as tini, for --init


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the engine put a container."""

    id: str
    name: str
    layers: tuple[str, ...]
    state_dir: str  # holds files/ log, and upper/ work/ unless they have a place of their own
    run_dir: str
    cgroup: str
    id_block: tuple[int, int] | None
    files: dict[str, str] = field(default_factory=dict)  # target -> generated host file
    joined: dict[str, int] = field(default_factory=dict)  # "network" ... -> pid of the other
    interfaces: tuple[Interface, ...] = ()  # of its own network namespace
    layer_dir: str = ""  # where upper/ work/ are, if not in state_dir
    volumes: str = ""  # the directory that holds the volumes' directories


def host_ids(spec: ContainerSpec) -> bool:
    """Whether the container runs with the host's user ids (no user namespace of its own).

    Asked for, or implied by what a user namespace forbids: privilege and the host's own
    process and network namespaces.
    """
    names = spec.namespaces
    return (
        names.user == "host"
        or spec.security.privileged
        or "host" in (names.pid, names.network, names.ipc)
    )


def capabilities(security: Security, last: int) -> frozenset[str]:
    """The bounding set for *security*; unknown names are InvalidError."""
    known = confine.CAPABILITIES[: last + 1]
    for name in (*security.cap_add, *security.cap_drop):
        if name != "ALL" and name not in confine.CAPABILITIES:
            raise InvalidError(
                f"unknown capability {name!r}",
                hint="capabilities(7) lists them; write NET_ADMIN or CAP_NET_ADMIN",
            )
    if security.privileged:
        return frozenset(known)
    start = _CAPABILITIES[security.profile]
    if "ALL" in security.cap_add:
        start = frozenset(known)
    if "ALL" in security.cap_drop:
        start = frozenset()
    added = frozenset(security.cap_add) - {"ALL"}
    dropped = frozenset(security.cap_drop) - {"ALL"}
    return ((start | added) - dropped) & frozenset(known)


@functools.lru_cache(maxsize=64)
def _filter(
    security_key: tuple[SecurityProfile, str, bool, tuple[str, ...]],
    caps: frozenset[str],
    kernel: tuple[int, int],
    machine: str,
) -> str:
    """The compiled seccomp filter in base64; compiled once for each distinct wish."""
    named, text, ia32, families = security_key
    if text == "compat":
        profile = seccomp_profiles.docker_compat_profile()
    elif text:
        profile = seccomp.parse_profile(text)
    elif named is SecurityProfile.HARDENED:
        profile = seccomp_profiles.hardened_profile(allow_abi_ia32=ia32, socket_families=families)
    elif named is SecurityProfile.DOCKER_COMPAT:
        profile = seccomp_profiles.docker_compat_profile()
    else:
        profile = seccomp_profiles.standard_profile(allow_abi_ia32=ia32, socket_families=families)
    compiled = seccomp_filter.compile_filter(
        profile, capabilities=caps, kernel=kernel, machine=machine
    )
    return base64.b64encode(compiled).decode()


def filter_for(security: Security, caps: frozenset[str], host: Host) -> str:
    """The filter for *security* in base64, or ``""`` when it is unconfined."""
    if security.privileged or security.seccomp == "unconfined":
        return ""
    key = (security.profile, security.seccomp, security.abi_ia32, security.socket_families)
    return _filter(key, caps, host.kernel, host.machine)


def plan(spec: ContainerSpec, place: Place, host: Host) -> Sandbox:
    """The whole sandbox, or an error that names what cannot be."""
    shares_ids = (host_ids(spec) and not host.rootless) or place.id_block is None
    flags = _clone_flags(spec, shares_ids=shares_ids)
    return Sandbox(
        id=place.id,
        run_dir=place.run_dir,
        flags=flags,
        ordinary=flags == walls.OWN_NAMESPACES and not host.rootless and _usual_walls(spec),
        id_map=None if shares_ids else place.id_block,
        join=_joins(place, shares_ids=shares_ids),
        cgroup_namespace=spec.namespaces.cgroup != "host",
        interfaces=[i.plain() for i in place.interfaces] if _own_network(spec) else [],
        root={
            "layers": list(place.layers),
            "upper": f"{place.layer_dir or place.state_dir}/upper",
            "work": f"{place.layer_dir or place.state_dir}/work",
            "attributes": _root_attributes(spec),
            "volatile": spec.auto_remove,
        },
        binds=_binds(spec, place, host, shares_ids=shares_ids),
        devices=[
            {"source": d.host_path, "target": d.target, "permissions": d.permissions}
            for d in spec.devices
        ],
        all_devices=spec.security.privileged,
        operations=_operations(spec, place, host),
        process=_first_process(spec, host, None if shares_ids else place.id_block),
        cgroup=_cgroup(spec, place, host),
        log=_log(spec, place),
    )


def plan_exec(spec: ContainerSpec, wish: ExecSpec, place: Place, host: Host) -> ExecPlan:
    """How to start another program in a running container; pid and start_time come later."""
    shares_ids = (host_ids(spec) and not host.rootless) or place.id_block is None
    block = None if shares_ids else place.id_block
    inherited = _merge(spec.process.env, wish.process.env)
    program = ProcessSpec(
        args=wish.process.args,
        env=inherited,
        cwd=wish.process.cwd or spec.process.cwd,
        user=wish.process.user or spec.process.user,
        groups=spec.process.groups,
        tty=wish.process.tty,
        open_stdin=wish.process.open_stdin,
        privileged=wish.process.privileged,
    )
    process_plan = _process(spec, program, host, id_block=block)
    return ExecPlan(
        id=place.id,
        exec_id="",
        pid=0,
        start_time=0,
        process=process_plan,
        cgroup=place.cgroup,
        user_namespace=not shares_ids,
    )


def _usual_walls(spec: ContainerSpec) -> bool:
    security = spec.security
    return (
        security.profile is not SecurityProfile.HARDENED
        and not security.unconfined_paths
        and security.masked_paths is None
        and security.readonly_paths is None
    )


def _own_network(spec: ContainerSpec) -> bool:
    """Whether it has a network namespace of its own: also with no network in it."""
    wanted = spec.namespaces.network
    return wanted != "host" and not wanted.startswith("container:")


def _clone_flags(spec: ContainerSpec, *, shares_ids: bool) -> int:
    names = spec.namespaces
    flags = process.CLONE_NEWNS
    joins = any(name.startswith("container:") for name in (names.network, names.pid, names.ipc))
    flags |= 0 if shares_ids or joins else process.CLONE_NEWUSER
    flags |= process.CLONE_NEWPID if names.pid == "" else 0
    flags |= process.CLONE_NEWUTS if names.uts == "" else 0
    flags |= process.CLONE_NEWIPC if names.ipc in ("", "private", "shareable", "none") else 0
    flags |= process.CLONE_NEWNET if _own_network(spec) else 0
    return flags


def no_new_privileges(security: Security) -> bool:
    """Whether exec may give privilege: on unless asked otherwise, privileged or docker-compat."""
    if security.no_new_privileges is not None:
        return security.no_new_privileges
    return not security.privileged and security.profile is not SecurityProfile.DOCKER_COMPAT


def _root_attributes(spec: ContainerSpec) -> int:
    attributes = 0 if spec.security.privileged else mount.NODEV
    if no_new_privileges(spec.security):
        attributes |= mount.NOSUID
    return attributes


# --- mounts -----------------------------------------------------------------------------------


def _joins(place: Place, *, shares_ids: bool) -> dict[str, int]:
    """The namespaces joined, with the user namespace that owns them."""
    joins = dict(place.joined)
    if joins and not shares_ids:
        joins["user"] = next(iter(joins.values()))
    return joins


def _binds(spec: ContainerSpec, place: Place, host: Host, *, shares_ids: bool) -> list[Bind]:
    binds = [
        Bind(
            source=source,
            read_only=False,
            recursive=False,
            map_ids=not shares_ids,
            propagation="private",
            create=False,
            generated=True,
        )
        for target, source in _generated(spec, place, host)
    ]
    shared = _joined_memory(spec, place)
    if shared is not None:
        binds.append(shared)
    for wanted in _user_mounts(spec):
        if wanted.kind is MountKind.BIND:
            binds.append(
                Bind(
                    source=wanted.source,
                    read_only=wanted.read_only,
                    recursive=wanted.recursive,
                    map_ids=not shares_ids,
                    propagation=wanted.propagation.removeprefix("r") or "private",
                    create=wanted.create_source,
                    generated=False,
                )
            )
        elif wanted.kind is MountKind.VOLUME:
            binds.append(_volume(wanted, place, map_ids=not shares_ids))
    return binds


def _volume(wanted: Mount, place: Place, *, map_ids: bool) -> Bind:
    """A volume's files: ids on disk are those inside, so they are mapped like a bind's."""
    bind = Bind(
        source=f"{place.volumes}/{wanted.source}/_data",
        read_only=wanted.read_only,
        recursive=True,
        map_ids=map_ids,
        propagation="private",
        create=False,
        generated=False,
        volume=wanted.source,
    )
    if wanted.subpath:
        bind["subpath"] = wanted.subpath
    return bind


def _joined_memory(spec: ContainerSpec, place: Place) -> Bind | None:
    """The /dev/shm of the host or of the container whose IPC namespace is joined."""
    ipc = spec.namespaces.ipc
    if SHARED_MEMORY in {m.target for m in spec.mounts}:
        return None
    if ipc != "host" and not ipc.startswith("container:"):
        return None
    bind = Bind(
        source=SHARED_MEMORY,
        read_only=False,
        recursive=False,
        map_ids=False,
        propagation="private",
        create=False,
        generated=False,
    )
    if ipc != "host":
        bind["process"] = place.joined.get("ipc", 0)
    return bind


def _generated(spec: ContainerSpec, place: Place, host: Host) -> list[tuple[str, str]]:
    """Files of tare's own that no mount of the user replaces."""
    taken = {m.target for m in spec.mounts}
    found = [(t, s) for t, s in place.files.items() if t not in taken]
    if spec.init:
        if not host.init:
            raise UnsupportedError(
                "--init needs a static init on the host", hint="apt-get install tini"
            )
        found.append((INIT_TARGET, host.init))
    return found


def _user_mounts(spec: ContainerSpec) -> list[Mount]:
    """The user's mounts, parents before children."""
    for wanted in spec.mounts:
        _check_target(wanted.target)
    return sorted(spec.mounts, key=lambda m: m.target.count("/") if m.target != "/" else 0)


def _check_target(target: str) -> None:
    parts = [part for part in target.split("/") if part]
    if not target.startswith("/") or ".." in parts or "\0" in target:
        raise InvalidError(
            f"invalid mount target {target[:200]!r}: it must be an absolute path without '..'"
        )
    if not parts:
        raise InvalidError("invalid mount target '/': a mount cannot replace the root")
    path = "/" + "/".join(parts)
    if parts[0] == "proc" and path not in _PROC_FILES:
        raise InvalidError(
            f"invalid mount target {path!r}: nothing may be mounted on /proc or below it",
            hint="a few files can be replaced: " + ", ".join(sorted(_PROC_FILES)[:4]) + " ...",
        )


def _filesystem(
    kind: str,
    target: str,
    attributes: int,
    *options: tuple[str, str | None],
    optional: bool = False,
) -> Operation:
    operation = Operation(
        op="filesystem",
        kind=kind,
        target=target,
        attributes=attributes,
        options=list(options),
    )
    if optional:
        operation["optional"] = True
    return operation


def _operations(spec: ContainerSpec, place: Place, host: Host) -> list[Operation]:
    security = spec.security
    privileged = security.privileged
    taken = {m.target.rstrip("/") for m in spec.mounts}
    quiet = mount.NOSUID | mount.NODEV | mount.NOEXEC
    operations: list[Operation] = []
    if spec.namespaces.uts == "":
        operations.append(Operation(op="hostname", name=spec.hostname or place.id[:12]))
    if _own_network(spec):
        operations.append(Operation(op="loopback"))
    operations.append(_filesystem("proc", "/proc", quiet))
    # sysfs shows the network: without privilege over that namespace it cannot be mounted.
    foreign = host.rootless and spec.namespaces.network == "host"
    sysfs = quiet if privileged else quiet | mount.RDONLY
    operations.append(_filesystem("sysfs", "/sys", sysfs, optional=foreign))
    dev = Operation(op="dev")
    if host.rootless:
        dev["targets"] = list(DEVICE_NAMES)
    operations.append(dev)
    operations += _shared_memory(spec, taken)
    operations += _cgroup_mounts(spec, host, taken)
    if security.profile is SecurityProfile.HARDENED:
        operations += [
            _filesystem("tmpfs", path, quiet, ("mode", mode), ("size", "64m"), optional=True)
            for path, mode in (("/run", "755"), ("/tmp", "1777"), ("/var/tmp", "1777"))  # noqa: S108
            if path not in taken
        ]
    operations += _user_operations(spec, place, host)
    sysctls = _sysctls(spec)
    if sysctls:
        operations.append(Operation(op="sysctl", values=sysctls))
    if spec.process.tty:
        operations.append(Operation(op="console"))
    if not (privileged or security.unconfined_paths):
        hardened = security.profile is SecurityProfile.HARDENED
        masked: tuple[str, ...] = walls.HARDENED_MASKED_PATHS if hardened else walls.MASKED_PATHS
        if security.masked_paths is not None:
            masked = security.masked_paths
        readonly: tuple[str, ...] = walls.READONLY_PATHS
        if security.readonly_paths is not None:
            readonly = security.readonly_paths
        operations.append(Operation(op="readonly", targets=list(readonly)))
        operations.append(Operation(op="mask", targets=list(masked)))
    if spec.read_only or security.profile is SecurityProfile.HARDENED:
        operations.append(Operation(op="readonly_root"))
    return operations


def _shared_memory(spec: ContainerSpec, taken: set[str]) -> list[Operation]:
    quiet = mount.NOSUID | mount.NODEV | mount.NOEXEC
    operations = []
    if spec.namespaces.ipc in ("", "private", "shareable") and SHARED_MEMORY not in taken:
        size = ("size", str(spec.shm_size))
        nodes = ("nr_inodes", str(max(1024, spec.shm_size >> 10)))
        operations.append(_filesystem("tmpfs", SHARED_MEMORY, quiet, ("mode", "1777"), size, nodes))
    if "/dev/mqueue" not in taken and spec.namespaces.ipc != "host":
        operations.append(_filesystem("mqueue", "/dev/mqueue", quiet, optional=True))
    return operations


def _cgroup_mounts(spec: ContainerSpec, host: Host, taken: set[str]) -> list[Operation]:
    if "/sys/fs/cgroup" in taken or host.rootless or spec.namespaces.cgroup == "host":
        return []
    attributes = mount.NOSUID | mount.NODEV | mount.NOEXEC
    attributes |= 0 if spec.security.privileged else mount.RDONLY
    if host.cgroup_version == 2:
        return [_filesystem("cgroup2", "/sys/fs/cgroup", attributes, optional=True)]
    # Only hierarchies that the container has a group in: of the others it would see the root,
    # and the names of all groups there.
    own = _ALWAYS_GROUPED
    if spec.resources.cpuset_cpus or spec.resources.cpuset_mems:
        own |= {"cpuset"}
    names = ",".join(name for name in host.cgroup_controllers if own & set(name.split("+")))
    return [Operation(op="cgroup_v1", target="/sys/fs/cgroup", attributes=attributes, name=names)]


def _user_operations(spec: ContainerSpec, place: Place, host: Host) -> list[Operation]:
    operations = [
        Operation(op="bind", target=target, index=index)
        for index, (target, _) in enumerate(_generated(spec, place, host))
    ]
    if _joined_memory(spec, place) is not None:
        operations.append(Operation(op="bind", target=SHARED_MEMORY, index=len(operations)))
    index = len(operations)
    for wanted in _user_mounts(spec):
        if wanted.kind is not MountKind.TMPFS:
            operations.append(Operation(op="bind", target=wanted.target, index=index))
            index += 1
        else:
            operations.append(_tmpfs(wanted))
    return operations


def _tmpfs(wanted: Mount) -> Operation:
    """Docker's defaults: nosuid, nodev, noexec unless said otherwise, mode 1777."""
    attributes = mount.NOSUID | mount.NODEV | mount.NOEXEC
    attributes |= mount.RDONLY if wanted.read_only else 0
    options: list[tuple[str, str | None]] = []
    for word in wanted.options:
        name, _, value = word.partition("=")
        if name in _TMPFS_FLAGS:
            attributes |= _TMPFS_FLAGS[name]
        elif name in ("rw", "suid", "dev", "exec", "atime"):
            opposite = "ro" if name == "rw" else f"no{name}"
            attributes &= ~_TMPFS_FLAGS[opposite]
        elif name in ("size", "mode", "uid", "gid", "nr_inodes", "nr_blocks") and value:
            options.append((name, value))
        elif name not in ("relatime", "rprivate", "private"):
            raise InvalidError(f"invalid tmpfs option {word!r} for {wanted.target}")
    if wanted.tmpfs_size is not None:
        options.append(("size", str(wanted.tmpfs_size)))
    names = {name for name, _ in options}
    if "mode" not in names:
        mode = 0o1777 if wanted.tmpfs_mode is None else wanted.tmpfs_mode
        options.append(("mode", f"{mode:o}"))
    operation = _filesystem("tmpfs", wanted.target, attributes, *options)
    operation["copy_up"] = True
    return operation


def _sysctls(spec: ContainerSpec) -> dict[str, str]:
    values: dict[str, str] = {}
    own_network = _own_network(spec)
    if own_network and not spec.security.privileged:
        values["net.ipv4.ip_unprivileged_port_start"] = "0"
        values["net.ipv4.ping_group_range"] = "0 MAXGID"  # the highest mapped gid, known by init
    for name, value in spec.sysctls.items():
        network = name.startswith("net.")
        ipc = name in _SAFE_SYSCTLS or name.startswith("fs.mqueue.")
        if name in ("kernel.hostname", "kernel.domainname") and spec.namespaces.uts == "":
            values[name] = value
            continue
        if not (network or ipc):
            raise InvalidError(
                f"sysctl {name!r} is not in a namespace, it would change the host",
                hint="allowed are net.*, fs.mqueue.* and " + ", ".join(_SAFE_SYSCTLS),
            )
        if (network and not own_network) or (ipc and spec.namespaces.ipc == "host"):
            raise InvalidError(f"sysctl {name!r} is not allowed with the host's namespace")
        values[name] = value
    return values


# --- process, limits, log ---------------------------------------------------------------------


def _merge(base: tuple[str, ...], more: tuple[str, ...]) -> tuple[str, ...]:
    """*more* over *base* by name, order kept; a name without ``=`` is removed."""
    merged: dict[str, str | None] = {}
    for item in (*base, *more):
        name, equals, _ = item.partition("=")
        merged[name] = item if equals else None
    return tuple(item for item in merged.values() if item is not None)


def _first_process(spec: ContainerSpec, host: Host, id_block: tuple[int, int] | None) -> Process:
    program = _process(spec, spec.process, host, id_block=id_block)
    if spec.init:
        program["args"] = [INIT_TARGET, "--", *program["args"]]
    return program


def _process(
    spec: ContainerSpec, program: ProcessSpec, host: Host, *, id_block: tuple[int, int] | None
) -> Process:
    if not program.args:
        raise InvalidError(
            "no command specified", hint="the image has none: say what to run after its name"
        )
    for text in (*program.args, *program.env, program.cwd, program.user):
        if "\0" in text:
            raise InvalidError("an argument, variable or name contains a NUL byte")
    security = spec.security
    if program.privileged:
        security = Security(privileged=True)
    names = capabilities(security, host.last_capability)
    defaults = (DEFAULT_PATH, f"HOSTNAME={spec.hostname}" if spec.hostname else "")
    terminal = ("TERM=xterm",) if program.tty else ()
    base = tuple(item for item in defaults if item) + terminal
    return Process(
        args=list(program.args),
        env=list(_merge(base, program.env)),
        cwd=program.cwd or "/",
        user=program.user,
        groups=list(program.groups),
        tty=program.tty,
        stdin=program.open_stdin,
        capabilities=confine.mask(names),
        no_new_privileges=no_new_privileges(security),
        seccomp=filter_for(security, names, host),
        id_limit=id_block[1] if id_block else 0,
        rlimits=_rlimits(spec, host),
        oom_score_adj=spec.oom_score_adj,
    )


def _rlimits(spec: ContainerSpec, host: Host) -> list[tuple[int, int, int]]:
    """Defaults under the user's; soft and hard bounded by what the engine itself may give."""
    hardened = spec.security.profile is SecurityProfile.HARDENED
    hard = 4096 if hardened else 524288
    wanted = {
        "nofile": Ulimit(name="nofile", soft=1024, hard=min(hard, host.nofile_hard)),
        "core": Ulimit(name="core", soft=0, hard=0),
        "memlock": Ulimit(name="memlock", soft=8 << 20, hard=8 << 20),
    }
    if spec.security.privileged or spec.security.profile is SecurityProfile.DOCKER_COMPAT:
        wanted.pop("memlock")
    for limit in spec.ulimits:
        if limit.name not in RLIMITS:
            raise InvalidError(
                f"invalid ulimit type: {limit.name}", hint="known are " + ", ".join(RLIMITS)
            )
        if limit.hard != -1 and (limit.soft == -1 or limit.soft > limit.hard):
            raise InvalidError(
                f"ulimit {limit.name}: soft limit must be less than or equal to hard limit: "
                f"{limit.soft} > {limit.hard}"
            )
        wanted[limit.name] = limit
    return [(RLIMITS[u.name], u.soft, u.hard) for u in wanted.values()]


def _cgroup(spec: ContainerSpec, place: Place, host: Host) -> Cgroup:
    resources = spec.resources
    pids = resources.pids
    if pids is None:
        hardened = spec.security.profile is SecurityProfile.HARDENED
        pids = HARDENED_PIDS if hardened else DEFAULT_PIDS
    limits = limit_values(resources)
    if host.pids_limit or resources.pids is not None:
        limits["pids"] = -1 if pids <= 0 else pids
    return Cgroup(
        path=place.cgroup,
        limits=limits,
        throttles=throttle_values(resources),
        devices=list(resources.device_cgroup_rules),
        all_devices=spec.security.privileged,
    )


def limit_values(resources: Resources) -> dict[str, int | str | bool | None]:
    """The plain arguments of `kernel.cgroup.Limits`; those not asked for are left out."""
    values: dict[str, int | str | bool | None] = {
        "memory": resources.memory,
        "memory_swap": resources.memory_swap,
        "memory_reservation": resources.memory_reservation,
        "memory_swappiness": resources.memory_swappiness,
        "oom_kill_disable": resources.oom_kill_disable or None,
        "nano_cpus": resources.nano_cpus,
        "cpu_shares": resources.cpu_shares,
        "cpu_quota_us": resources.cpu_quota_us,
        "cpu_period_us": resources.cpu_period_us,
        "cpuset_cpus": resources.cpuset_cpus or None,
        "cpuset_mems": resources.cpuset_mems or None,
        "pids": resources.pids,
        "blkio_weight": resources.blkio_weight,
    }
    return {name: value for name, value in values.items() if value is not None}


def throttle_values(resources: Resources) -> dict[str, list[tuple[str, int]]]:
    """The device throttles, by the field of `kernel.cgroup.Limits`, devices still as paths."""
    values = {
        "blkio_weight_device": resources.blkio_weight_device,
        "read_bps_device": resources.read_bps,
        "write_bps_device": resources.write_bps,
        "read_iops_device": resources.read_iops,
        "write_iops_device": resources.write_iops,
    }
    return {n: [(t.device, t.rate) for t in v] for n, v in values.items() if v}


def _log(spec: ContainerSpec, place: Place) -> Log:
    path = "" if spec.log.driver == "none" else f"{place.state_dir}/log"
    return Log(path=path, max_size=spec.log.max_size, max_files=spec.log.max_files)


# --- reading it out ---------------------------------------------------------------------------


def describe(sandbox: Sandbox) -> list[str]:
    """The sandbox in words, one line an operation, in the order they are applied."""
    block = sandbox["id_map"]
    lines = [
        f"user ids 0-{block[1] - 1} are {block[0]}-{block[0] + block[1] - 1} of the host"
        if block
        else "user ids are the host's",
        f"root is an overlay of {len(sandbox['root']['layers'])} layers",
    ]
    for operation in sandbox["operations"]:
        words = [operation["op"]]
        words += [str(operation[key]) for key in ("kind", "target", "name") if key in operation]
        if "targets" in operation:
            words.append(" ".join(operation["targets"]))
        if "values" in operation:
            words.append(" ".join(f"{k}={v}" for k, v in operation["values"].items()))
        lines.append(" ".join(words))
    program = sandbox["process"]
    kept = [
        name
        for number, name in enumerate(confine.CAPABILITIES)
        if program["capabilities"] >> number & 1
    ]
    lines.append(f"capabilities {' '.join(kept) or 'none'}")
    lines.append(f"seccomp {'on' if program['seccomp'] else 'off'}")
    lines.append(f"no_new_privs {'on' if program['no_new_privileges'] else 'off'}")
    lines.append("run " + " ".join(program["args"]))
    return lines
