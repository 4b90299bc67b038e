"""From the options of ``run`` and ``create`` to the body of the create request.

Everything that is read on the client's side is read here: environment, env and label files,
seccomp profiles, relative paths. Whether the host can do it is the daemon's to say. Only what
was asked for is sent.
"""

from __future__ import annotations

import os

from tare.client import mounts, units
from tare.errors import InvalidError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tare.client.document import Json
    from tare.client.options import Flags

# Options whose value goes as it is into one field of the configuration or of HostConfig.
_CONFIG = {
    "domainname": "Domainname",
    "hostname": "Hostname",
    "interactive": "OpenStdin",
    "stop-signal": "StopSignal",
    "stop-timeout": "StopTimeout",
    "tty": "Tty",
    "user": "User",
    "workdir": "WorkingDir",
}
_HOST = {
    "blkio-weight": "BlkioWeight",
    "cgroup-parent": "CgroupParent",
    "cidfile": "ContainerIDFile",
    "cpu-period": "CpuPeriod",
    "cpu-quota": "CpuQuota",
    "cpu-rt-period": "CpuRealtimePeriod",
    "cpu-rt-runtime": "CpuRealtimeRuntime",
    "cpu-shares": "CpuShares",
    "cpuset-cpus": "CpusetCpus",
    "cpuset-mems": "CpusetMems",
    "device-cgroup-rule": "DeviceCgroupRules",
    "dns": "Dns",
    "dns-option": "DnsOptions",
    "dns-search": "DnsSearch",
    "group-add": "GroupAdd",
    "init": "Init",
    "isolation": "Isolation",
    "link": "Links",
    "oom-kill-disable": "OomKillDisable",
    "oom-score-adj": "OomScoreAdj",
    "pids-limit": "PidsLimit",
    "privileged": "Privileged",
    "publish-all": "PublishAllPorts",
    "read-only": "ReadonlyRootfs",
    "rm": "AutoRemove",
    "runtime": "Runtime",
    "volume-driver": "VolumeDriver",
    "volumes-from": "VolumesFrom",
}
_CAPABILITIES = {"cap-add": "CapAdd", "cap-drop": "CapDrop"}
_SIZES = {
    "memory": "Memory",
    "memory-reservation": "MemoryReservation",
    "memory-swap": "MemorySwap",
    "shm-size": "ShmSize",
}
_MAPS = {"annotation": "Annotations", "storage-opt": "StorageOpt", "sysctl": "Sysctls"}
_MODES = {
    "cgroupns": ("CgroupnsMode", "CGROUP", ("host", "private")),
    "ipc": ("IpcMode", "IPC", ("host", "private", "shareable", "none", "container:")),
    "pid": ("PidMode", "PID", ("host", "private", "container:")),
    "userns": ("UsernsMode", "USER", ("host", "private", "auto", "auto:")),
    "uts": ("UTSMode", "UTS", ("host", "private", "container:")),
}
_RATES: dict[str, tuple[str, Callable[[str], int]]] = {
    "blkio-weight-device": ("BlkioWeightDevice", int),
    "device-read-bps": ("BlkioDeviceReadBps", units.size),
    "device-write-bps": ("BlkioDeviceWriteBps", units.size),
    "device-read-iops": ("BlkioDeviceReadIOps", int),
    "device-write-iops": ("BlkioDeviceWriteIOps", int),
}


def create_body(flags: Flags, arguments: list[str], *, detached: bool) -> dict[str, Json]:
    """The body for IMAGE [COMMAND...] with these options; InvalidError names the wrong one."""
    body: dict[str, Json] = {"Image": arguments[0]}
    host: dict[str, Json] = {}
    if len(arguments) > 1:
        body["Cmd"] = list(arguments[1:])
    for name, value in flags.values.items():
        if name in _CONFIG:
            body[_CONFIG[name]] = _plain(value)
        elif name in _HOST:
            host[_HOST[name]] = _plain(value)
        elif name in _SIZES and isinstance(value, str):
            host[_SIZES[name]] = units.swap_size(value)
        elif name in _CAPABILITIES:
            host[_CAPABILITIES[name]] = [*_capabilities(flags.list(name))]
        elif name in _MAPS:
            host[_MAPS[name]] = dict(pairs(flags.list(name)))
    _attach(flags, body, detached)
    _environment(flags, body)
    _limits(flags, host)
    _walls(flags, host)
    _lifecycle(flags, body, host)
    if flags.given("volume") or flags.given("mount") or flags.given("tmpfs"):
        mounts.add(flags, body, host)
    if flags.given("publish") or flags.given("expose"):
        from tare.client import ports

        body["ExposedPorts"], host["PortBindings"] = ports.parse(
            flags.list("publish"), flags.list("expose")
        )
    _network(flags, body, host)
    if host:
        body["HostConfig"] = host
    return body


def _plain(value: bool | int | str | list[str]) -> Json:
    return list(value) if isinstance(value, list) else value


def _capabilities(names: list[str]) -> list[str]:
    upper = {name.strip().upper() for name in names}
    return sorted(n if n == "ALL" or n.startswith("CAP_") else f"CAP_{n}" for n in upper if n)


def _attach(flags: Flags, body: dict[str, Json], detached: bool) -> None:
    streams = [stream.lower() for stream in flags.list("attach")]
    for stream in streams:
        if stream not in ("stdin", "stdout", "stderr"):
            raise InvalidError(
                f"invalid stream {stream!r} for --attach", hint="Use stdin, stdout or stderr."
            )
    if detached:
        return
    interactive = flags.flag("interactive")
    body["AttachStdin"] = "stdin" in streams if streams else interactive
    body["AttachStdout"] = "stdout" in streams if streams else True
    body["AttachStderr"] = "stderr" in streams if streams else True
    if interactive and body["AttachStdin"]:
        body["StdinOnce"] = True


def _environment(flags: Flags, body: dict[str, Json]) -> None:
    env: list[Json] = [*environment(flags.list("env"), flags.list("env-file"))]
    if env:
        body["Env"] = env
    labels = [line for path in flags.list("label-file") for line in lines_of(path, "label")]
    if labels or flags.given("label"):
        body["Labels"] = dict(pairs(labels + flags.list("label")))
    if flags.given("entrypoint"):
        body["Entrypoint"] = [flags.text("entrypoint")]


def environment(given: list[str], files: list[str]) -> list[str]:
    """``-e`` and ``--env-file``: NAME alone takes the caller's value.

    An unset NAME is left out of a file; from ``-e`` it goes as it is and unsets the image's.
    """
    env: list[str] = []
    for path in files:
        for line in lines_of(path, "environment"):
            name, equals, _ = line.partition("=")
            if equals:
                env.append(line)
            elif name in os.environ:
                env.append(f"{name}={os.environ[name]}")
    for word in given:
        name, equals, _ = word.partition("=")
        if not name:
            raise InvalidError(f"invalid environment variable: {word}", exit_code=125)
        inherited = not equals and name in os.environ
        env.append(f"{name}={os.environ[name]}" if inherited else word)
    return env


def lines_of(path: str, what: str) -> list[str]:
    """The lines of an env or label file: no comments, no blank lines, names checked."""
    try:
        with open(path, "rb") as file:
            raw = file.read(16 << 20)
        content = raw.decode("utf-8-sig")
    except OSError as error:
        raise InvalidError(f"cannot read the {what} file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidError(f"the {what} file {path} is not UTF-8 text") from None
    lines: list[str] = []
    for number, line in enumerate(content.split("\n"), 1):
        entry = line.removesuffix("\r").lstrip()
        if not entry or entry.startswith("#"):
            continue
        name = entry.partition("=")[0]
        if not name:
            raise InvalidError(f"{path}, line {number}: no variable name before '='")
        if any(letter.isspace() for letter in name):
            raise InvalidError(f"{path}, line {number}: variable '{name}' contains white spaces")
        lines.append(entry)
    return lines


def pairs(words: list[str]) -> list[tuple[str, str]]:
    """KEY=VALUE words; a KEY alone has the value ""."""
    split = [word.partition("=") for word in words]
    for key, _, _ in split:
        if not key:
            raise InvalidError("a name is missing before '='", hint="Write KEY=VALUE.")
    return [(key, value) for key, _, value in split]


def _limits(flags: Flags, host: dict[str, Json]) -> None:
    if flags.given("cpus"):
        host["NanoCpus"] = units.nano_cpus(flags.text("cpus"))
    swappiness = flags.number("memory-swappiness", -1)
    if swappiness != -1:
        if not 0 <= swappiness <= 100:
            raise InvalidError(
                f"invalid value: {swappiness}. Valid memory swappiness range is 0-100"
            )
        host["MemorySwappiness"] = swappiness
    for name, (key, read) in _RATES.items():
        if flags.given(name):
            unit = "Weight" if name == "blkio-weight-device" else "Rate"
            host[key] = [_rate(name, word, unit, read) for word in flags.list(name)]
    if flags.given("ulimit"):
        by_name = {str(limit["Name"]): limit for limit in map(ulimit, flags.list("ulimit"))}
        host["Ulimits"] = [by_name[name] for name in sorted(by_name)]
    if flags.given("device"):
        mounts.add_devices(flags.list("device"), host)
    if flags.given("gpus"):
        raise InvalidError("--gpus is not supported", hint="Give the devices with --device.")


def _rate(name: str, word: str, unit: str, read: Callable[[str], int]) -> dict[str, Json]:
    path, _, figure = word.rpartition(":")
    try:
        value = read(figure)
        if not path.startswith("/dev/") or value < 0:
            raise ValueError
    except (ValueError, InvalidError):
        example = "500" if "bps" not in name else "1mb"
        raise InvalidError(
            f"invalid value {word!r} for --{name}", hint=f"Write /dev/sda:{example}."
        ) from None
    return {"Path": path, unit: value}


def ulimit(word: str) -> dict[str, Json]:
    """NAME=SOFT[:HARD]; -1 is no limit."""
    name, equals, values = word.partition("=")
    soft, colon, hard = values.partition(":")
    try:
        low, high = int(soft), int(hard) if colon else int(soft)
    except ValueError:
        raise InvalidError(
            f"invalid ulimit argument: {word}", hint="Write NAME=SOFT[:HARD], as nofile=1024:2048."
        ) from None
    if not equals or not name or (high != -1 and (low == -1 or low > high)):
        raise InvalidError(f"ulimit soft limit must be less than or equal to hard limit: {word}")
    return {"Name": name, "Soft": low, "Hard": high}


def _walls(flags: Flags, host: dict[str, Json]) -> None:
    if flags.given("vm") and flags.values["vm"]:
        if host.get("Isolation", "vm") != "vm":
            raise InvalidError("--vm contradicts the --isolation given")
        host["Isolation"] = "vm"
    for name, (key, kind, known) in _MODES.items():
        if not flags.given(name):
            continue
        mode = flags.text(name)
        if mode and not any(mode == k or (k[-1] == ":" and mode.startswith(k)) for k in known):
            words = ", ".join(k + "NAME" if k == "container:" else k for k in known)
            raise InvalidError(f"--{name}: invalid {kind} mode {mode!r}", hint=f"Known: {words}.")
        host[key] = mode
    options: list[Json] = []
    for option in flags.list("security-opt"):
        key, separator, value = option.partition("=")
        if not separator:
            key, separator, value = option.partition(":")
        if not separator and key != "no-new-privileges":
            raise InvalidError(
                f"invalid --security-opt: {option!r}",
                hint="For example seccomp=profile.json or no-new-privileges=false.",
            )
        if key == "systempaths" and value == "unconfined":
            host["MaskedPaths"], host["ReadonlyPaths"] = [], []
        elif key == "seccomp" and value not in ("unconfined", "builtin", "compat"):
            options.append(f"seccomp={_profile(value)}")
        else:
            options.append(option)
    if flags.given("security-profile"):
        options.append(f"tare.profile={flags.text('security-profile')}")
    if options:
        host["SecurityOpt"] = options


def _profile(path: str) -> str:
    from tare.client import document
    from tare.errors import TareError

    try:
        with open(path, "rb") as file:
            raw = file.read(4 << 20)
    except OSError as error:
        raise InvalidError(
            f"opening seccomp profile ({path}) failed: {error.strerror}",
            hint="Give a file with an OCI seccomp profile, `unconfined` or `compat`.",
        ) from None
    try:
        return document.encode(document.decode(raw)).decode()
    except TareError:
        raise InvalidError(f"the seccomp profile {path} is not JSON") from None


def _lifecycle(flags: Flags, body: dict[str, Json], host: dict[str, Json]) -> None:
    if flags.given("restart"):
        host["RestartPolicy"] = restart_policy(flags.text("restart"))
        if flags.flag("rm") and flags.text("restart") not in ("", "no"):
            raise InvalidError(
                "conflicting options: cannot specify both --restart and --rm", exit_code=125
            )
    if flags.given("log-driver") or flags.given("log-opt"):
        driver = flags.text("log-driver")
        if driver == "none" and flags.given("log-opt"):
            raise InvalidError("invalid logging opts for driver none")
        host["LogConfig"] = {"Type": driver, "Config": dict(pairs(flags.list("log-opt")))}
    health: dict[str, Json] = {}
    if flags.text("health-cmd"):
        health["Test"] = ["CMD-SHELL", flags.text("health-cmd")]
    for name in ("interval", "timeout", "start-period", "start-interval"):
        if flags.given(f"health-{name}"):
            value = units.duration(flags.text(f"health-{name}"))
            if value < 0:
                raise InvalidError(f"--health-{name} cannot be negative")
            health[name.title().replace("-", "")] = value
    if flags.given("health-retries"):
        if flags.number("health-retries") < 0:
            raise InvalidError("--health-retries cannot be negative")
        health["Retries"] = flags.number("health-retries")
    if flags.flag("no-healthcheck"):
        if health:
            raise InvalidError("--no-healthcheck conflicts with --health-* options")
        health["Test"] = ["NONE"]
    if health:
        body["Healthcheck"] = health


def restart_policy(text: str) -> dict[str, Json]:
    """NAME[:MAXIMUM-RETRIES]."""
    name, colon, count = text.partition(":")
    known = ("", "no", "always", "unless-stopped", "on-failure")
    if name not in known or (colon and name != "on-failure") or (colon and not count.isdecimal()):
        raise InvalidError(
            f"invalid restart policy: {text!r}",
            hint="Use no, always, unless-stopped, on-failure or on-failure:TIMES.",
        )
    return {"Name": name or "no", "MaximumRetryCount": int(count) if colon else 0}


def _network(flags: Flags, body: dict[str, Json], host: dict[str, Json]) -> None:
    if flags.given("add-host"):
        host["ExtraHosts"] = [_extra_host(word) for word in flags.list("add-host")]
    if flags.given("network-rate"):
        host["NetworkRate"] = units.size(flags.text("network-rate"))
    named = [_named_network(word) for word in flags.list("network")]
    if named:
        host["NetworkMode"] = named[0][0]
    first = endpoint(
        aliases=flags.list("network-alias"),
        addresses={"IPv4Address": flags.text("ip"), "IPv6Address": flags.text("ip6")},
        link_local=flags.list("link-local-ip"),
        mac=flags.text("mac-address"),
    )
    if not named:
        named = [("default", {})]
    name, given = named[0]
    twice = [key for key in first if key in given]
    if twice:
        raise InvalidError(
            f"conflicting options: {twice[0]} of the network {name} is said twice", exit_code=125
        )
    named[0] = (name, {**given, **first})
    endpoints: dict[str, Json] = {}
    for name, one in named:
        if name in endpoints:
            raise InvalidError(f"network {name!r} is specified multiple times", exit_code=125)
        endpoints[name] = one
    if len(endpoints) > 1 or any(endpoints.values()):
        body["NetworkingConfig"] = {"EndpointsConfig": endpoints}


def endpoint(
    *,
    aliases: list[str],
    links: list[str] | None = None,
    addresses: dict[str, str] | None = None,
    link_local: list[str] | None = None,
    mac: str = "",
    priority: int = 0,
    options: dict[str, Json] | None = None,
) -> dict[str, Json]:
    """``EndpointSettings``, only of what was asked for."""
    ipam: dict[str, Json] = {key: value for key, value in (addresses or {}).items() if value}
    if link_local:
        ipam["LinkLocalIPs"] = [*link_local]
    fields: dict[str, Json] = {
        "Aliases": [*aliases],
        "Links": [*(links or ())],
        "MacAddress": mac,
        "IPAMConfig": ipam,
        "GwPriority": priority,
        "DriverOpts": options or {},
    }
    return {key: value for key, value in fields.items() if value}


_NETWORK_FIELDS = (
    "alias",
    "driver-opt",
    "gw-priority",
    "ip",
    "ip6",
    "link-local-ip",
    "mac-address",
)


def _named_network(word: str) -> tuple[str, dict[str, Json]]:
    """``NAME`` or ``name=NAME,alias=A,ip=10.0.0.2`` of --network."""
    if "=" not in word:
        return word, {}
    given: dict[str, list[str]] = {}
    for part in word.split(","):
        key, equals, value = part.partition("=")
        key = key.strip().lower()
        if not equals or (key != "name" and key not in _NETWORK_FIELDS):
            raise InvalidError(
                f"invalid field {part!r} of --network {word!r}",
                hint=f"Write name=NAME and any of: {', '.join(_NETWORK_FIELDS)}.",
                exit_code=125,
            )
        given.setdefault(key, []).append(value.strip())
    if len(given.get("name", ())) != 1:
        raise InvalidError(f"--network {word!r} names no network: name=...", exit_code=125)

    def last(key: str) -> str:
        return given.get(key, [""])[-1]

    priority = last("gw-priority") or "0"
    try:
        number = int(priority)
    except ValueError:
        raise InvalidError(f"invalid gw-priority: {priority!r}", exit_code=125) from None
    return last("name"), endpoint(
        aliases=given.get("alias", []),
        addresses={"IPv4Address": last("ip"), "IPv6Address": last("ip6")},
        link_local=given.get("link-local-ip"),
        mac=last("mac-address"),
        priority=number,
        options=dict(pairs(given.get("driver-opt", []))),
    )


def _extra_host(word: str) -> str:
    for separator in ("=", ":"):
        name, found, address = word.partition(separator)
        if found and name and address:
            return f"{name}:{address.removeprefix('[').removesuffix(']')}"
    raise InvalidError(f'bad format for add-host: "{word}"', hint="Write HOST:ADDRESS.")
