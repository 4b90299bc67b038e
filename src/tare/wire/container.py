"""Containers as Docker shows them: inspect, list, mounts, host configuration. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final

from tare.model.record import Health, Record
from tare.model.spec import (
    ContainerSpec,
    HealthCheck,
    Isolation,
    Mount,
    MountKind,
    Resources,
    Throttle,
    Ulimit,
)
from tare.model.state import STATUS, State
from tare.wire import network
from tare.wire.values import MACHINE_RUNTIME, rfc3339

Json = dict[str, object]

DRIVER: Final = "overlayfs"


def _ago(seconds: float) -> str:
    """Go's units.HumanDuration."""
    whole = int(seconds)
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if whole < 60:
        return f"{whole} seconds"
    minutes = whole // 60
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    hours = (whole + 1800) // 3600
    if hours == 1:
        return "About an hour"
    for bound, unit in ((48, 1), (24 * 14, 24), (24 * 60, 24 * 7), (24 * 365 * 2, 24 * 30)):
        if hours < bound:
            name = {1: "hours", 24: "days", 24 * 7: "weeks", 24 * 30: "months"}[unit]
            return f"{hours // unit} {name}"
    return f"{hours // (24 * 365)} years"


def status_line(record: Record, now_ns: int) -> str:
    """The STATUS column: ``Up 2 minutes (healthy)``, ``Exited (0) 3 seconds ago``."""
    match record.state:
        case State.RUNNING | State.STOPPING | State.PAUSED:
            up = f"Up {_ago((now_ns - record.started_ns) / 1e9)}"
            if record.state is State.PAUSED:
                return f"{up} (Paused)"
            health = record.health
            if health is None or health.status == "none":
                return up
            word = "health: starting" if health.status == "starting" else str(health.status)
            return f"{up} ({word})"
        case State.RESTARTING:
            ended = _ago((now_ns - record.finished_ns) / 1e9)
            return f"Restarting ({record.exit_code}) {ended} ago"
        case State.REMOVING:
            return "Removal In Progress"
        case State.DEAD:
            return "Dead"
        case State.CREATED | State.STARTING:
            return "Created"
        case State.EXITED:
            if not record.finished_ns:
                return "Created"
            return f"Exited ({record.exit_code}) {_ago((now_ns - record.finished_ns) / 1e9)} ago"


def _command_line(args: tuple[str, ...]) -> str:
    return " ".join(f"'{a}'" if i and " " in a else a for i, a in enumerate(args))


def _volume_point(mount: Mount, workload_dir: str) -> Json:
    root = workload_dir.rpartition("/workloads/")[0]
    mode = ",".join(word for word in mount.options if word != "nocopy")
    return {
        "Type": "volume",
        "Name": mount.source,
        "Source": f"{root}/volumes/{mount.source}/_data",
        "Destination": mount.target,
        "Driver": "local",
        "Mode": mode,
        "RW": not mount.read_only,
        "Propagation": "",
    }


def mount_point(mount: Mount, workload_dir: str = "") -> Json:
    """One of ``Mounts``; *workload_dir* is that of the record, beside which the volumes lie."""
    if mount.kind is MountKind.VOLUME:
        return _volume_point(mount, workload_dir)
    return {
        "Type": str(mount.kind),
        "Source": mount.source,
        "Destination": mount.target,
        "Mode": "",
        "RW": not mount.read_only,
        "Propagation": mount.propagation if mount.kind is MountKind.BIND else "",
    }


def summary(record: Record, now_ns: int | None = None) -> Json:
    """One entry of ``GET /containers/json``."""
    spec = record.spec
    return {
        "Id": record.id,
        "Names": [f"/{record.name}"],
        "Image": spec.image,
        "ImageID": spec.image_id,
        "Command": _command_line(spec.process.args),
        "Created": record.created_ns // 10**9,
        "Ports": network.port_list(record),
        "Labels": spec.labels,
        "State": STATUS[record.state],
        "Status": status_line(record, time.time_ns() if now_ns is None else now_ns),
        "HostConfig": {"NetworkMode": network.network_mode(spec)},
        "NetworkSettings": {"Networks": network.networks(record)},
        "Mounts": [mount_point(mount, record.workload_dir) for mount in spec.mounts],
    }


def _throttles(throttles: Iterable[Throttle], amount: str = "Rate") -> list[Json]:
    return [{"Path": one.device, amount: one.rate} for one in throttles]


def _ulimits(limits: Iterable[Ulimit]) -> list[Json]:
    return [{"Name": one.name, "Hard": one.hard, "Soft": one.soft} for one in limits]


def _resources(limits: Resources) -> Json:
    return {
        "Memory": limits.memory or 0,
        "MemorySwap": limits.memory_swap or 0,
        "MemoryReservation": limits.memory_reservation or 0,
        "MemorySwappiness": limits.memory_swappiness,
        "OomKillDisable": limits.oom_kill_disable,
        "NanoCpus": limits.nano_cpus or 0,
        "CpuShares": limits.cpu_shares or 0,
        "CpuQuota": limits.cpu_quota_us or 0,
        "CpuPeriod": limits.cpu_period_us or 0,
        "CpuRealtimePeriod": 0,
        "CpuRealtimeRuntime": 0,
        "CpusetCpus": limits.cpuset_cpus,
        "CpusetMems": limits.cpuset_mems,
        "PidsLimit": limits.pids,
        "BlkioWeight": limits.blkio_weight or 0,
        "BlkioWeightDevice": _throttles(limits.blkio_weight_device, "Weight"),
        "BlkioDeviceReadBps": _throttles(limits.read_bps),
        "BlkioDeviceWriteBps": _throttles(limits.write_bps),
        "BlkioDeviceReadIOps": _throttles(limits.read_iops),
        "BlkioDeviceWriteIOps": _throttles(limits.write_iops),
        "DeviceCgroupRules": list(limits.device_cgroup_rules) or None,
        "CgroupParent": "",
        "CpuCount": 0,
        "CpuPercent": 0,
        "IOMaximumIOps": 0,
        "IOMaximumBandwidth": 0,
    }


def _bind_text(mount: Mount) -> str:
    words = ["ro"] if mount.read_only else []
    words += mount.options
    if mount.propagation != "rprivate" and mount.kind is MountKind.BIND:
        words.append(mount.propagation)
    return ":".join([mount.source, mount.target, *([",".join(words)] if words else [])])


def _tmpfs_text(mount: Mount) -> str:
    words = ["ro"] if mount.read_only else []
    words += mount.options
    if mount.tmpfs_size:
        words.append(f"size={mount.tmpfs_size}")
    if mount.tmpfs_mode is not None:
        words.append(f"mode={mount.tmpfs_mode:o}")
    return ",".join(words)


def _volume_body(mount: Mount) -> Json:
    options: Json = {}
    if mount.no_copy:
        options["NoCopy"] = True
    if mount.subpath:
        options["Subpath"] = mount.subpath
    wish = mount.volume
    if wish is not None:
        if wish.labels:
            options["Labels"] = wish.labels
        if wish.driver or wish.options:
            options["DriverConfig"] = {"Name": wish.driver, "Options": wish.options}
    body: Json = {
        "Type": "volume",
        "Source": "" if mount.anonymous else mount.source,
        "Target": mount.target,
    }
    if mount.read_only:
        body["ReadOnly"] = True
    return {**body, "VolumeOptions": options} if options else body


def _mount_body(mount: Mount) -> Json:
    if mount.kind is MountKind.VOLUME:
        return _volume_body(mount)
    options: Json = {}
    if mount.propagation != "rprivate":
        options["Propagation"] = mount.propagation
    if not mount.recursive:
        options["NonRecursive"] = True
    body: Json = {"Type": str(mount.kind), "Source": mount.source, "Target": mount.target}
    if mount.read_only:
        body["ReadOnly"] = True
    return {**body, "BindOptions": options} if options else body


def host_config(spec: ContainerSpec) -> Json:
    """``HostConfig``, as a create body would say it again."""
    walls, names = spec.security, spec.namespaces
    binds = [_bind_text(m) for m in spec.mounts if m.create_source and not m.anonymous]
    bodies = [
        _mount_body(m) for m in spec.mounts if m.kind is not MountKind.TMPFS and not m.create_source
    ]
    config: Json = {
        **_resources(spec.resources),
        "Binds": binds or None,
        "ContainerIDFile": spec.cidfile,
        "LogConfig": {"Type": spec.log.driver, "Config": dict(spec.log.options)},
        "NetworkMode": network.network_mode(spec),
        "PortBindings": network.port_bindings(spec),
        "RestartPolicy": {
            "Name": spec.restart.name,
            "MaximumRetryCount": spec.restart.maximum_retries,
        },
        "AutoRemove": spec.auto_remove,
        "VolumeDriver": "",
        "VolumesFrom": list(spec.volumes_from) or None,
        "ConsoleSize": [0, 0],
        "CapAdd": list(walls.cap_add) or None,
        "CapDrop": list(walls.cap_drop) or None,
        "CgroupnsMode": names.cgroup or "private",
        "Dns": list(spec.dns),
        "DnsOptions": list(spec.dns_options),
        "DnsSearch": list(spec.dns_search),
        "ExtraHosts": list(spec.extra_hosts) or None,
        "GroupAdd": list(spec.process.groups) or None,
        "IpcMode": names.ipc or "private",
        "Cgroup": "",
        "Links": list(spec.links) or None,
        **({"StorageOpt": {"size": str(spec.storage_size)}} if spec.storage_size else {}),
        "OomScoreAdj": spec.oom_score_adj or 0,
        "PidMode": names.pid,
        "Privileged": walls.privileged,
        "PublishAllPorts": spec.publish_all,
        "ReadonlyRootfs": spec.read_only,
        "SecurityOpt": list(walls.options) or None,
        "UTSMode": names.uts,
        "UsernsMode": names.user,
        "ShmSize": spec.shm_size,
        "Runtime": "tare" if spec.isolation is Isolation.CONTAINER else MACHINE_RUNTIME,
        "Isolation": "",
        "Devices": [
            {
                "PathOnHost": device.host_path,
                "PathInContainer": device.target,
                "CgroupPermissions": device.permissions,
            }
            for device in spec.devices
        ],
        "DeviceRequests": None,
        "Ulimits": _ulimits(spec.ulimits),
        "MaskedPaths": None if walls.masked_paths is None else list(walls.masked_paths),
        "ReadonlyPaths": None if walls.readonly_paths is None else list(walls.readonly_paths),
    }
    if spec.init:
        config["Init"] = True
    if spec.network_rate:
        config["NetworkRate"] = spec.network_rate
    if bodies:
        config["Mounts"] = bodies
    tmpfs = {m.target: _tmpfs_text(m) for m in spec.mounts if m.kind is MountKind.TMPFS}
    for name, pairs in (
        ("Tmpfs", tmpfs),
        ("Sysctls", spec.sysctls),
        ("Annotations", spec.annotations),
    ):
        if pairs:
            config[name] = pairs
    return config


def healthcheck(check: HealthCheck) -> Json:
    """``Config.Healthcheck``."""
    return {
        "Test": list(check.test),
        "Interval": check.interval_ns,
        "Timeout": check.timeout_ns,
        "StartPeriod": check.start_period_ns,
        "StartInterval": check.start_interval_ns,
        "Retries": check.retries,
    }


def config(record: Record) -> Json:
    """``Config``: the portable part."""
    spec, process = record.spec, record.spec.process
    found: Json = {
        "Hostname": spec.hostname or record.id[:12],
        "Domainname": spec.domainname,
        "User": process.user,
        "AttachStdin": spec.attach_stdin,
        "AttachStdout": spec.attach_stdout,
        "AttachStderr": spec.attach_stderr,
        "Tty": process.tty,
        "OpenStdin": process.open_stdin,
        "StdinOnce": process.stdin_once,
        "Env": list(process.env),
        "Cmd": None if spec.command is None else list(spec.command),
        "Image": spec.image,
        "Volumes": dict.fromkeys(spec.volumes, _EMPTY) or None,
        "WorkingDir": process.cwd,
        "Entrypoint": None if spec.entrypoint is None else list(spec.entrypoint),
        "OnBuild": None,
        "Labels": spec.labels,
        "StopSignal": spec.stop_signal,
    }
    if spec.stop_timeout is not None:
        found["StopTimeout"] = spec.stop_timeout
    if spec.exposed_ports:
        found["ExposedPorts"] = dict.fromkeys(spec.exposed_ports, _EMPTY)
    if spec.health is not None:
        found["Healthcheck"] = healthcheck(spec.health)
    return found


_EMPTY: Final[Json] = {}


def _health(health: Health) -> Json:
    return {
        "Status": str(health.status),
        "FailingStreak": health.failing_streak,
        "Log": [
            {
                "Start": rfc3339(probe.start_ns),
                "End": rfc3339(probe.end_ns),
                "ExitCode": probe.exit_code,
                "Output": probe.output,
            }
            for probe in health.log
        ],
    }


def state(record: Record) -> Json:
    """``State``."""
    now = record.state
    found: Json = {
        "Status": STATUS[now],
        "Running": record.running,
        "Paused": now is State.PAUSED,
        "Restarting": now is State.RESTARTING,
        "OOMKilled": record.oom_killed,
        "Dead": now is State.DEAD,
        "Pid": record.pid if record.alive else 0,
        "ExitCode": record.exit_code,
        "Error": record.error,
        "StartedAt": rfc3339(record.started_ns),
        "FinishedAt": rfc3339(record.finished_ns),
    }
    if record.health is not None:
        found["Health"] = _health(record.health)
    return found


def inspect(
    record: Record, exec_ids: Iterable[str] = (), sizes: tuple[int, int] | None = None
) -> Json:
    """``GET /containers/ID/json``; *sizes* are those of the writable layer and of all."""
    spec = record.spec
    args = spec.process.args
    files = record.files_dir
    block = record.id_block
    found: Json = {
        "Id": record.id,
        "Created": rfc3339(record.created_ns),
        "Path": args[0] if args else "",
        "Args": list(args[1:]),
        "State": state(record),
        "Image": spec.image_id,
        "ResolvConfPath": f"{files}/resolv.conf" if files else "",
        "HostnamePath": f"{files}/hostname" if files else "",
        "HostsPath": f"{files}/hosts" if files else "",
        "LogPath": record.log_path,
        "Name": f"/{record.name}",
        "RestartCount": record.restart_count,
        "Driver": DRIVER,
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": list(exec_ids) or None,
        "HostConfig": host_config(spec),
        "GraphDriver": {"Name": DRIVER, "Data": {}},
        "Mounts": [mount_point(mount, record.workload_dir) for mount in spec.mounts],
        "Config": config(record),
        "NetworkSettings": network.settings(record),
        "Tare": {
            "Isolation": str(spec.isolation),
            "SecurityProfile": str(spec.security.profile),
            "IdBlock": None if block is None else {"Base": block.base, "Size": block.size},
            "Cgroup": record.cgroup,
            "Warnings": list(record.warnings),
        },
    }
    if sizes is not None:
        found["SizeRw"], found["SizeRootFs"] = sizes
    return found
