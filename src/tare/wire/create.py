"""``POST /containers/create``: Docker's body and the image's defaults to a `ContainerSpec`.

Pure. Defaults are merged as Docker merges them: the user's environment first and the image's
for the names that are missing, an entrypoint of the user's own drops the image's command, labels
and ports are united, an unset stop signal, user, directory or health check is the image's.
What tare does not have yet is UnsupportedError, what makes no difference here is a warning.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from tare.errors import InvalidError, MissingError, UnsupportedError
from tare.model.merge import merge_command, merge_env
from tare.model.oci import ImageConfig
from tare.model.signals import signal_number
from tare.model.spec import (
    ContainerSpec,
    Device,
    HealthCheck,
    Isolation,
    LogConfig,
    Namespaces,
    ProcessSpec,
    SecurityProfile,
)
from tare.wire import mounts, network, values
from tare.wire.body import ConfigBody, CreateBody, Healthcheck, HostConfig, LogConfigBody, words
from tare.wire.resources import resources, restart_policy, ulimits
from tare.wire.security import security

NAME: Final = re.compile(r"/?[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_HOST: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,62}[A-Za-z0-9_])?")
_PORT: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?(?:/(tcp|udp|sctp))?", re.I)
_SYSCTL: Final = re.compile(r"[a-z0-9_]+([./][A-Za-z0-9_*-]+)+")
_LOG_OPTIONS: Final = frozenset(
    [
        "max-size",
        "max-file",
        "compress",
        "labels",
        "labels-regex",
        "env",
        "env-regex",
        "tag",
        "mode",
        "max-buffer-size",
    ]
)
_MILLISECOND: Final = 1_000_000
_YEAR_NS: Final = 366 * 86_400 * 10**9


def container_name(text: str) -> str:
    """A container's name without Docker's leading slash; "" asks for a generated one."""
    if not text:
        return ""
    if len(text) > 255 or not NAME.fullmatch(text):
        raise InvalidError(
            f"Invalid container name ({text[:80]}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
        )
    return text.removeprefix("/")


def check_platform(asked: str, reference: str, image: ImageConfig) -> None:
    """MissingError when *image* is for another platform than *asked* (``linux/arm64/v8``)."""
    wanted = asked.lower().split("/")
    found = [image.os, image.architecture, image.variant]
    if asked and (len(wanted) > 3 or wanted != found[: len(wanted)]):
        raise MissingError(
            f"image with reference {reference} was found but does not provide the specified"
            f" platform ({asked[:60]}): it is for {image.platform}"
        )


def _environment(body: ConfigBody, image: ImageConfig) -> tuple[str, ...]:
    # A name alone says that the image's variable is not wanted.
    return tuple(e for e in merge_env(image.env, values.environment(body.env)) if "=" in e)


def _program(
    body: ConfigBody, image: ImageConfig
) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    entrypoint, command = merge_command(image, words(body.entrypoint), words(body.cmd))
    if not entrypoint and not command:
        raise InvalidError(
            "no command specified",
            hint="name one: the image has neither ENTRYPOINT nor CMD",
            exit_code=125,
        )
    for word in (*(entrypoint or ()), *(command or ())):
        values.checked_text("command", word, limit=131_072)
    return entrypoint or None, command


def health_check(body: Healthcheck | None, image: HealthCheck | None) -> HealthCheck | None:
    """The user's health check with the image's for what it leaves out."""
    if body is None:
        return image
    for what, value in (
        ("Interval", body.interval),
        ("Timeout", body.timeout),
        ("StartPeriod", body.start_period),
        ("StartInterval", body.start_interval),
    ):
        if value and not _MILLISECOND <= value <= _YEAR_NS:
            raise InvalidError(f"{what} in Healthcheck cannot be less than 1ms")
    if (body.retries or 0) < 0:
        raise InvalidError("Retries in Healthcheck cannot be negative")
    test = tuple(body.test or ()) or (image.test if image else ())
    if test and test[0] not in ("NONE", "CMD", "CMD-SHELL"):
        raise InvalidError(f"Unknown type {test[0][:40]!r} in Healthcheck (try 'CMD')")
    for word in test:
        values.checked_text("health check", word)
    base = image or HealthCheck()
    return HealthCheck(
        test=test,
        interval_ns=body.interval or base.interval_ns,
        timeout_ns=body.timeout or base.timeout_ns,
        start_period_ns=body.start_period or base.start_period_ns,
        start_interval_ns=body.start_interval or base.start_interval_ns,
        retries=body.retries or base.retries,
    )


def exposed_ports(names: dict[str, dict[str, object] | None] | None) -> tuple[str, ...]:
    """``80``, ``80/udp``, ``7000-7010/tcp`` as ``NUMBER/PROTOCOL``; ranges are spread out."""
    found: dict[str, None] = {}
    for name in names or ():
        match = _PORT.fullmatch(name)
        first = int(match[1]) if match else 0
        last = int(match[2] or match[1]) if match else 0
        if match is None or not 1 <= first <= last <= 65_535:
            raise InvalidError(f"invalid port specification: {name[:40]!r}")
        for port in range(first, last + 1):
            found[f"{port}/{(match[3] or 'tcp').lower()}"] = None
    return tuple(found)


def _ports(body: CreateBody, host: HostConfig, image: ImageConfig) -> tuple[str, ...]:
    """Exposed are those named, the image's, and what is published."""
    published = (
        f"{one.container_port}/{one.protocol}" for one in network.ports(host.port_bindings)
    )
    return tuple(
        dict.fromkeys((*exposed_ports(body.exposed_ports), *image.exposed_ports, *published))
    )


def _log(body: LogConfigBody | None) -> LogConfig:
    driver = (body.type if body else None) or "json-file"
    options = (body.config if body else None) or {}
    if driver not in ("json-file", "local", "none"):
        raise InvalidError(
            f"logger: no log driver named '{driver[:40]}' is registered",
            hint="json-file, local and none are there",
        )
    for name, value in options.items():
        if name not in _LOG_OPTIONS:
            raise InvalidError(f"unknown log opt '{name[:40]}' for {driver} log driver")
        values.checked_text("log option", value)
    default = LogConfig()
    max_size, max_files = default.max_size, default.max_files
    if given := options.get("max-size"):
        max_size = values.size(given)
        if max_size < 4096:
            raise InvalidError(f"invalid max-size {given!r}: less than 4k cannot be rotated")
    if given := options.get("max-file"):
        if not (given.isascii() and given.isdigit() and 1 <= int(given[:9]) <= 1000):
            raise InvalidError(f"invalid max-file {given[:20]!r}: it is 1 to 1000")
        max_files = int(given)
    return LogConfig(
        driver=driver, max_size=max_size, max_files=max_files, options=tuple(options.items())
    )


def _devices(host: HostConfig) -> tuple[Device, ...]:
    if host.device_requests:
        raise UnsupportedError("could not select device driver: device requests are not supported")
    found = []
    for body in host.devices or ():
        source = body.path_on_host or ""
        target = body.path_in_container or source
        permissions = body.cgroup_permissions or "rwm"
        for path in (source, target):
            values.checked_text("device path", path, limit=4096)
            if not path.startswith("/"):
                raise InvalidError(f"invalid device path {path[:80]!r}: it must be absolute")
        if not set(permissions) <= set("rwm"):
            raise InvalidError(f"invalid device mode: {permissions[:20]}")
        found.append(Device(host_path=source, target=target, permissions=permissions))
    return tuple(found)


def _mode(what: str, text: str | None, known: tuple[str, ...], *, joins: bool = True) -> str:
    word = text or ""
    if word in known or not word:
        return word
    if joins and word.startswith("container:") and len(word) > 10:
        return "container:" + values.one_line(what, word[10:], limit=255)
    raise InvalidError(f"invalid {what} mode: {word[:80]}")


def _namespaces(body: CreateBody, host: HostConfig) -> Namespaces:
    users = host.userns_mode or ""
    if not re.fullmatch(r"|host|private|auto(:size=[0-9]{1,10})?", users):
        raise InvalidError(f"invalid user namespace mode: {users[:80]}")
    return Namespaces(
        network=network.mode(body, host),
        pid=_mode("PID", host.pid_mode, ("host", "private")).removeprefix("private"),
        ipc=_mode("IPC", host.ipc_mode, ("private", "shareable", "none", "host")),
        uts=_mode("UTS", host.uts_mode, ("host", "private"), joins=False).removeprefix("private"),
        user=users.removeprefix("private"),
        cgroup=_mode("cgroup namespace", host.cgroupns_mode, ("private", "host"), joins=False),
    )


def _volumes(body: ConfigBody, image: ImageConfig) -> tuple[str, ...]:
    """Where anonymous volumes go unless something else is mounted there."""
    targets = (*(body.volumes or ()), *image.volumes)
    clean = (mounts.container_path("volume path", target) for target in targets)
    return tuple(dict.fromkeys(clean))


def _volumes_from(host: HostConfig) -> tuple[str, ...]:
    for text in host.volumes_from or ():
        name, _, mode = text.partition(":")
        if not NAME.fullmatch(name) or mode not in ("", "ro", "rw", "z", "Z"):
            raise InvalidError(
                f"invalid volumes-from specification: {text[:80]!r}",
                hint="the form is CONTAINER[:ro|rw]",
            )
    return tuple(host.volumes_from or ())


def _hosts_and_names(host: HostConfig) -> None:
    for entry in host.extra_hosts or ():
        name, separator, address = entry.partition(":" if ":" in entry else "=")
        values.one_line("extra host", entry, limit=512)
        if not separator or not name or any(letter.isspace() for letter in entry):
            raise InvalidError(f'bad format for add-host: "{entry[:80]}"')
        if address != "host-gateway":
            _address("add-host", address.strip("[]"))
    for address in host.dns or ():
        _address("DNS server", address)
    for word in (*(host.dns_search or ()), *(host.dns_options or ())):
        if not re.fullmatch(r"[A-Za-z0-9_.:-]{1,255}", word):
            raise InvalidError(f"invalid DNS search domain or option: {word[:80]!r}")


def _address(what: str, text: str) -> None:
    try:
        ipaddress.ip_address(text)
    except ValueError as error:
        raise InvalidError(f'invalid IP address in {what}: "{text[:80]}"') from error


def _host_name(what: str, text: str | None) -> str:
    if text and not _HOST.fullmatch(text):
        raise InvalidError(
            f"invalid {what} format: {text[:80]!r}",
            hint="letters, digits, '-', '_' and '.', 64 at most",
        )
    return text or ""


def _pairs(what: str, pairs: dict[str, str] | None) -> dict[str, str]:
    for name, value in (pairs or {}).items():
        values.checked_text(what, name, limit=4096)
        values.checked_text(what, value, limit=1 << 20)
    return dict(pairs or {})


def _sysctls(host: HostConfig) -> dict[str, str]:
    for name, value in (host.sysctls or {}).items():
        if not _SYSCTL.fullmatch(name):
            raise InvalidError(f"invalid sysctl name: {name[:80]!r}")
        values.one_line("sysctl", value)
    return dict(host.sysctls or {})


def _storage_size(host: HostConfig) -> int:
    text = (host.storage_opt or {}).get("size", "")
    return values.size(text) if text else 0


def _check_host(host: HostConfig) -> list[str]:
    """Refuse or warn of what has no place in a `ContainerSpec`."""
    warnings = []
    for name in host.storage_opt or {}:
        if name != "size":
            raise UnsupportedError(
                f"--storage-opt {name[:40]} is not supported: size is, the layer's largest size"
            )
    if host.volume_driver not in (None, "", "local"):
        raise UnsupportedError(f"volume driver {host.volume_driver!r} is not supported")
    if host.cgroup_parent:
        warnings.append(
            "--cgroup-parent has no effect: this engine keeps its workloads in a cgroup of its own"
        )
    if not 0 <= (host.network_rate or 0) < 1 << 40:
        raise InvalidError(f"invalid network rate: {host.network_rate} bytes a second")
    if host.network_mode == "host" and (any(host.port_bindings or {}) or host.publish_all_ports):
        warnings.append("Published ports are discarded when using host network mode")
    if (host.shm_size or 0) < 0:
        raise InvalidError("SHM size can not be less than 0")
    score = host.oom_score_adj or 0
    if not -1000 <= score <= 1000:
        raise InvalidError(f"Invalid value {score}, range for oom score adj is [-1000, 1000]")
    for group in host.group_add or ():
        if not group:
            raise InvalidError("invalid group: it is empty")
        values.user(f"0:{group}")
    return warnings


def isolation(host: HostConfig) -> Isolation:
    """Container or machine: by ``--isolation``, or by the runtime's name from any client."""
    runtime, asked = host.runtime or "", host.isolation or ""
    if runtime not in ("", values.MACHINE_RUNTIME, "tare", "runc", "io.containerd.runc.v2"):
        raise InvalidError(f"unknown or invalid runtime name: {runtime[:80]}")
    if asked not in ("", "default", *Isolation):
        raise InvalidError(f"invalid isolation: {asked[:40]!r}", hint="there are container and vm")
    if runtime == values.MACHINE_RUNTIME and asked == Isolation.CONTAINER:
        raise InvalidError(f"--runtime {values.MACHINE_RUNTIME} contradicts --isolation container")
    machine = runtime == values.MACHINE_RUNTIME or asked == Isolation.VM
    return Isolation.VM if machine else Isolation.CONTAINER


def stop_signal(text: str) -> str:
    """The signal as given when it is one, in upper case with ``SIG`` before a name."""
    number = signal_number(text)
    word = text.upper()
    return str(number) if word.isdigit() else f"SIG{word.removeprefix('SIG')}"


def _process(body: CreateBody, host: HostConfig, image: ImageConfig) -> ProcessSpec:
    entrypoint, command = _program(body, image)
    cwd = body.working_dir or image.cwd
    values.checked_text("working directory", cwd, limit=4096)
    if cwd and not cwd.startswith("/"):
        raise InvalidError(
            f"the working directory '{cwd[:80]}' is invalid, it needs to be an absolute path"
        )
    return ProcessSpec(
        args=(*(entrypoint or ()), *(command or ())),
        env=_environment(body, image),
        cwd=cwd,
        user=values.user(body.user or image.user),
        groups=tuple(host.group_add or ()),
        tty=bool(body.tty),
        open_stdin=bool(body.open_stdin),
        stdin_once=bool(body.stdin_once),
    )


def create(body: CreateBody, image_id: str, image: ImageConfig) -> tuple[ContainerSpec, list[str]]:
    """The container asked for, its image's defaults merged in, and warnings for the user."""
    host = body.host_config or HostConfig()
    warnings = _check_host(host)
    walls, more = security(host)
    limits = resources(host)
    entrypoint, command = _program(body, image)
    kept = mounts.together(host.binds or (), host.mounts or (), host.tmpfs or {})
    _hosts_and_names(host)
    timeout = body.stop_timeout
    if timeout is not None and not -1 <= timeout <= 2**31 - 1:
        raise InvalidError(f"invalid stop timeout: {timeout}")
    # The docker client always sends false, so only an option of its own says "writable".
    hardened = walls.profile is SecurityProfile.HARDENED
    read_only = hardened and "tare.read-only=false" not in walls.options
    return ContainerSpec(
        image=body.image or "",
        image_id=image_id,
        process=_process(body, host, image),
        entrypoint=entrypoint,
        command=command,
        hostname=_host_name("hostname", body.hostname),
        domainname=_host_name("domainname", body.domainname),
        labels={**image.labels, **_pairs("label", body.labels)},
        annotations=_pairs("annotation", host.annotations),
        mounts=kept,
        devices=_devices(host),
        resources=limits,
        ulimits=ulimits(host.ulimits),
        security=walls,
        namespaces=_namespaces(body, host),
        sysctls=_sysctls(host),
        shm_size=host.shm_size or 64 << 20,
        read_only=bool(host.readonly_rootfs) or read_only,
        init=bool(host.init),
        auto_remove=bool(host.auto_remove),
        stop_signal=stop_signal(body.stop_signal or image.stop_signal or "SIGTERM"),
        stop_timeout=timeout,
        restart=restart_policy(host.restart_policy, auto_remove=bool(host.auto_remove)),
        health=health_check(body.healthcheck, image.health),
        log=_log(host.log_config),
        oom_score_adj=host.oom_score_adj or None,
        extra_hosts=tuple(host.extra_hosts or ()),
        dns=tuple(host.dns or ()),
        dns_search=tuple(host.dns_search or ()),
        dns_options=tuple(host.dns_options or ()),
        network_mode="" if host.network_mode in (None, "default") else host.network_mode,
        networks=network.wishes(body, host),
        network_rate=host.network_rate or None,
        ports=network.ports(host.port_bindings),
        publish_all=bool(host.publish_all_ports),
        links=tuple(host.links or ()),
        exposed_ports=_ports(body, host, image),
        volumes=_volumes(body, image),
        volumes_from=_volumes_from(host),
        attach_stdin=bool(body.attach_stdin),
        attach_stdout=bool(body.attach_stdout),
        attach_stderr=bool(body.attach_stderr),
        isolation=isolation(host),
        storage_size=_storage_size(host),
        cidfile=values.checked_text("cidfile", host.container_id_file or ""),
    ), warnings + more
