"""The shapes of request bodies, as msgspec reads them.

Only names and types: what the values mean, and whether they make sense, is decided by the
modules that turn them into `model` values. Every field may be missing or ``null``; fields that
are not here are ignored, as Docker does.
"""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec
from msgspec import Struct, field

from tare.errors import InvalidError

_T = TypeVar("_T")

Strings = str | list[str] | None


class Healthcheck(Struct, rename="pascal"):
    """``HealthConfig``: durations are nanoseconds, 0 is inherit."""

    test: list[str] | None = None
    interval: int | None = None
    timeout: int | None = None
    start_period: int | None = None
    start_interval: int | None = None
    retries: int | None = None


class BindOptions(Struct, rename="pascal"):
    """``Mounts[].BindOptions``."""

    propagation: str | None = None
    non_recursive: bool | None = None
    create_mountpoint: bool | None = None
    read_only_non_recursive: bool | None = None
    read_only_force_recursive: bool | None = None


class DriverConfig(Struct, rename="pascal"):
    """``Mounts[].VolumeOptions.DriverConfig``."""

    name: str | None = None
    options: dict[str, str] | None = None


class VolumeOptions(Struct, rename="pascal"):
    """``Mounts[].VolumeOptions``."""

    no_copy: bool | None = None
    subpath: str | None = None
    labels: dict[str, str] | None = None
    driver_config: DriverConfig | None = None


class TmpfsOptions(Struct, rename="pascal"):
    """``Mounts[].TmpfsOptions``; each option is a word or a pair."""

    size_bytes: int | None = None
    mode: int | None = None
    options: list[list[str]] | None = None


class MountBody(Struct, rename="pascal"):
    """One of ``HostConfig.Mounts``."""

    type: str | None = None
    source: str | None = None
    target: str | None = None
    read_only: bool | None = None
    bind_options: BindOptions | None = None
    volume_options: VolumeOptions | None = None
    tmpfs_options: TmpfsOptions | None = None


class DeviceBody(Struct, rename="pascal"):
    """One of ``HostConfig.Devices``."""

    path_on_host: str | None = None
    path_in_container: str | None = None
    cgroup_permissions: str | None = None


class ThrottleBody(Struct, rename="pascal"):
    """One of ``BlkioDevice*Bps`` and ``BlkioDevice*IOps``."""

    path: str | None = None
    rate: int | None = None


class WeightBody(Struct, rename="pascal"):
    """One of ``BlkioWeightDevice``."""

    path: str | None = None
    weight: int | None = None


class UlimitBody(Struct, rename="pascal"):
    """One of ``HostConfig.Ulimits``."""

    name: str | None = None
    soft: int | None = None
    hard: int | None = None


class RestartPolicyBody(Struct, rename="pascal"):
    """``HostConfig.RestartPolicy``."""

    name: str | None = None
    maximum_retry_count: int | None = None


class LogConfigBody(Struct, rename="pascal"):
    """``HostConfig.LogConfig``."""

    type: str | None = None
    config: dict[str, str] | None = None


class ResourcesBody(Struct, rename="pascal"):
    """The limits that create and update share (Docker's ``container.Resources``)."""

    memory: int | None = None
    memory_swap: int | None = None
    memory_reservation: int | None = None
    memory_swappiness: int | None = None
    kernel_memory: int | None = None
    oom_kill_disable: bool | None = None
    nano_cpus: int | None = None
    cpu_shares: int | None = None
    cpu_quota: int | None = None
    cpu_period: int | None = None
    cpu_realtime_period: int | None = None
    cpu_realtime_runtime: int | None = None
    cpuset_cpus: str | None = None
    cpuset_mems: str | None = None
    pids_limit: int | None = None
    blkio_weight: int | None = None
    blkio_weight_device: list[WeightBody] | None = None
    blkio_device_read_bps: list[ThrottleBody] | None = None
    blkio_device_write_bps: list[ThrottleBody] | None = None
    blkio_device_read_iops: list[ThrottleBody] | None = field(
        default=None, name="BlkioDeviceReadIOps"
    )
    blkio_device_write_iops: list[ThrottleBody] | None = field(
        default=None, name="BlkioDeviceWriteIOps"
    )
    device_cgroup_rules: list[str] | None = None
    cgroup_parent: str | None = None
    devices: list[DeviceBody] | None = None
    device_requests: list[dict[str, object]] | None = None
    ulimits: list[UlimitBody] | None = None
    restart_policy: RestartPolicyBody | None = None


class HostConfig(ResourcesBody, rename="pascal"):
    """``HostConfig``: how a container meets its host."""

    binds: list[str] | None = None
    mounts: list[MountBody] | None = None
    tmpfs: dict[str, str] | None = None
    volumes_from: list[str] | None = None
    volume_driver: str | None = None
    links: list[str] | None = None
    port_bindings: dict[str, list[dict[str, str | None]] | None] | None = None
    publish_all_ports: bool | None = None
    network_mode: str | None = None
    network_rate: int | None = None  # tare's own: bytes a second, each direction
    pid_mode: str | None = None
    ipc_mode: str | None = None
    isolation: str | None = None
    uts_mode: str | None = field(default=None, name="UTSMode")
    userns_mode: str | None = None
    cgroupns_mode: str | None = None
    cap_add: Strings = None
    cap_drop: Strings = None
    security_opt: list[str] | None = None
    privileged: bool | None = None
    readonly_rootfs: bool | None = None
    masked_paths: list[str] | None = None
    readonly_paths: list[str] | None = None
    group_add: list[str] | None = None
    sysctls: dict[str, str] | None = None
    shm_size: int | None = None
    init: bool | None = None
    auto_remove: bool | None = None
    log_config: LogConfigBody | None = None
    oom_score_adj: int | None = None
    extra_hosts: list[str] | None = None
    dns: list[str] | None = None
    dns_search: list[str] | None = None
    dns_options: list[str] | None = None
    runtime: str | None = None
    storage_opt: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    container_id_file: str | None = field(default=None, name="ContainerIDFile")


class EndpointIpam(Struct, rename="pascal"):
    """``EndpointSettings.IPAMConfig``."""

    ipv4_address: str | None = field(default=None, name="IPv4Address")
    ipv6_address: str | None = field(default=None, name="IPv6Address")
    link_local_ips: list[str] | None = field(default=None, name="LinkLocalIPs")


class EndpointBody(Struct, rename="pascal"):
    """``EndpointSettings``, as far as it says what is wanted."""

    ipam_config: EndpointIpam | None = field(default=None, name="IPAMConfig")
    links: list[str] | None = None
    aliases: list[str] | None = None
    mac_address: str | None = None
    driver_opts: dict[str, str] | None = None
    gw_priority: int | None = None


class NetworkingConfig(Struct, rename="pascal"):
    """``NetworkingConfig``: the networks by name."""

    endpoints_config: dict[str, EndpointBody | None] | None = None


class ConfigBody(Struct, rename="pascal"):
    """``ContainerConfig``: what create and commit share."""

    hostname: str | None = None
    domainname: str | None = None
    user: str | None = None
    attach_stdin: bool | None = None
    attach_stdout: bool | None = None
    attach_stderr: bool | None = None
    exposed_ports: dict[str, dict[str, object] | None] | None = None
    tty: bool | None = None
    open_stdin: bool | None = None
    stdin_once: bool | None = None
    env: list[str] | None = None
    cmd: Strings = None
    entrypoint: Strings = None
    healthcheck: Healthcheck | None = None
    image: str | None = None
    volumes: dict[str, dict[str, object] | None] | None = None
    working_dir: str | None = None
    network_disabled: bool | None = None
    mac_address: str | None = None
    on_build: list[str] | None = None
    labels: dict[str, str] | None = None
    stop_signal: str | None = None
    stop_timeout: int | None = None
    shell: list[str] | None = None


class CreateBody(ConfigBody, rename="pascal"):
    """``POST /containers/create``."""

    host_config: HostConfig | None = None
    networking_config: NetworkingConfig | None = None


class RunOptions(Struct, rename="pascal"):
    """The ``Tare`` object of ``POST /tare/run`` (docs/api-extensions.md)."""

    detach_keys: str | None = None
    timeout: float | None = None  # seconds; then the container is killed


class RunBody(CreateBody, rename="pascal"):
    """``POST /tare/run``: a create body, the name, and what is tare's own."""

    name: str | None = None
    platform: str | None = None
    tare: RunOptions | None = None


class ExecBody(Struct, rename="pascal"):
    """``POST /containers/ID/exec``."""

    attach_stdin: bool | None = None
    attach_stdout: bool | None = None
    attach_stderr: bool | None = None
    detach_keys: str | None = None
    tty: bool | None = None
    env: list[str] | None = None
    cmd: Strings = None
    privileged: bool | None = None
    user: str | None = None
    working_dir: str | None = None


class ExecStartBody(Struct, rename="pascal"):
    """``POST /exec/ID/start``."""

    detach: bool | None = None
    tty: bool | None = None
    console_size: list[int] | None = None


CREATE: Final = msgspec.json.Decoder(CreateBody)
RUN: Final = msgspec.json.Decoder(RunBody)
CONFIG: Final = msgspec.json.Decoder(ConfigBody)
UPDATE: Final = msgspec.json.Decoder(ResourcesBody)
EXEC: Final = msgspec.json.Decoder(ExecBody)
EXEC_START: Final = msgspec.json.Decoder(ExecStartBody)


def read(decoder: msgspec.json.Decoder[_T], content: bytes) -> _T:
    """Decode *content*; InvalidError with the place and the reason when it does not fit."""
    try:
        return decoder.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidError(f"the request body is not what is expected: {error}") from error


def words(value: Strings) -> tuple[str, ...] | None:
    """Docker takes one string where it takes a list of them."""
    if value is None:
        return None
    return (value,) if isinstance(value, str) else tuple(value)
