"""version, info, doctor and system df: the engine itself."""

from __future__ import annotations

from tare import __version__
from tare.client import document, units
from tare.client.document import number, text
from tare.client.options import Command, Flags
from tare.client.tables import aligned, render, say, shown, warn, write_out
from tare.client.transport import Daemon
from tare.errors import TareError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.client.document import Json


def _by_format(form: str, data: Json) -> bool:
    """Print *data* by --format if there is one."""
    if not form:
        return False
    if form == "json":
        write_out((document.compact(data) + "\n").encode())
        return True
    from tare.client.templates import Template

    write_out((shown(Template(form).render(data), "\n\t") + "\n").encode("utf-8", "replace"))
    return True


def _version(daemon: Daemon, flags: Flags, _arguments: list[str]) -> int:
    import os
    import sys

    client: dict[str, Json] = {
        "Version": __version__,
        "ApiVersion": "1.50",
        "PythonVersion": sys.version.split()[0],
        "Os": sys.platform,
        "Arch": {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine),
    }
    problem: TareError | None = None
    server: Json = None
    try:
        server = daemon.call("GET", "/version")
    except TareError as error:
        problem = error
    form = flags.text("format")
    if problem is not None and form:
        raise problem
    if not _by_format(form, {"Client": client, "Server": server}):
        say(_versions("Client", client))
        if problem is not None:
            raise problem
        say("\n" + _versions("Server", server))
    return 0


def _versions(side: str, facts: Json) -> str:
    lines = [f"{side}: tare"]
    for key, label in (
        ("Version", "Version"),
        ("ApiVersion", "API version"),
        ("MinAPIVersion", "Minimum API version"),
        ("PythonVersion", "Python version"),
        ("KernelVersion", "Kernel version"),
    ):
        if value := text(facts, key):
            lines.append(f" {label + ':':<20} {value}")
    lines.append(f" {'OS/Arch:':<20} {text(facts, 'Os')}/{text(facts, 'Arch')}")
    return "\n".join(lines)


_INFO = (
    ("ServerVersion", "Server Version"),
    ("Driver", "Storage Driver"),
    ("LoggingDriver", "Logging Driver"),
    ("CgroupDriver", "Cgroup Driver"),
    ("CgroupVersion", "Cgroup Version"),
    ("DefaultRuntime", "Default Runtime"),
    ("KernelVersion", "Kernel Version"),
    ("OperatingSystem", "Operating System"),
    ("OSType", "OSType"),
    ("Architecture", "Architecture"),
    ("NCPU", "CPUs"),
    ("MemTotal", "Total Memory"),
    ("Name", "Name"),
    ("ID", "ID"),
    ("DockerRootDir", "State Directory"),
)


def _info(daemon: Daemon, flags: Flags, _arguments: list[str]) -> int:
    facts = daemon.call("GET", "/info")
    if _by_format(flags.text("format"), facts):
        return 0
    lines = [f"Client: tare {__version__}", "", "Server:"]
    lines.append(f" Containers: {number(facts, 'Containers')}")
    for state in ("Running", "Paused", "Stopped"):
        lines.append(f"  {state}: {number(facts, f'Containers{state}')}")
    lines.append(f" Images: {number(facts, 'Images')}")
    for key, label in _INFO:
        value = document.field(facts, key)
        if key == "MemTotal":
            value = units.binary_size(number(facts, key))
        if value not in (None, ""):
            lines.append(f" {label}: {value}")
        if key == "Driver":
            for row in document.items(facts, "DriverStatus"):
                lines.append(f"  {': '.join(document.strings(row))}")
    if options := document.strings(facts, "SecurityOptions"):
        lines.append(" Security Options:")
        lines += [f"  {option.removeprefix('name=')}" for option in options]
    for key, value in document.mapping(facts, "Tare").items():
        lines.append(f" {key}: {document.compact(value) if not isinstance(value, str) else value}")
    say("\n".join(lines))
    for warning in document.strings(facts, "Warnings"):
        warn(warning)
    return 0


_SIGNS = {"ok": "ok", "warn": "WARN", "fail": "FAIL"}


def _doctor(daemon: Daemon, flags: Flags, _arguments: list[str]) -> int:
    found = document.items(daemon.call("GET", "/tare/doctor"))
    failed = any(text(each, "status") == "fail" for each in found)
    form = flags.text("format")
    if form:
        if form == "json":
            write_out((document.compact(found) + "\n").encode())
        else:
            for each in found:
                _by_format(form, each)
        return int(failed)
    rows = [
        [_SIGNS.get(text(each, "status"), "?"), text(each, "check"), text(each, "seen")]
        for each in found
    ]
    write_out(aligned(rows).encode("utf-8", "replace"))
    for each in found:
        if text(each, "status") in ("warn", "fail"):
            lines = [f"\n{text(each, 'check')}: {text(each, 'seen')}"]
            lines += [f"  costs: {cost}" for cost in (text(each, "cost"),) if cost]
            lines += [f"  remedy: {remedy}" for remedy in (text(each, "remedy"),) if remedy]
            say("\n".join(lines))
    return int(failed)


_DF_HEADERS = {
    "Type": "TYPE",
    "TotalCount": "TOTAL",
    "Active": "ACTIVE",
    "Size": "SIZE",
    "Reclaimable": "RECLAIMABLE",
}


def _df(daemon: Daemon, flags: Flags, _arguments: list[str]) -> int:
    usage = daemon.call("GET", "/system/df")
    if flags.flag("verbose"):
        from tare.client.cli import usage as tables

        if flags.text("format") == "json":
            write_out((document.pretty(usage) + "\n").encode())
        else:
            write_out(tables.verbose(usage).encode("utf-8", "replace"))
        return 0
    images, containers = document.items(usage, "Images"), document.items(usage, "Containers")
    size = number(usage, "LayersSize")
    active = [each for each in images if number(each, "Containers") > 0]
    used = sum(number(each, "Size") - max(number(each, "SharedSize"), 0) for each in active)
    own = sum(number(each, "SizeRw") for each in containers)
    running = [
        each for each in containers if text(each, "State") in ("running", "paused", "restarting")
    ]
    idle = own - sum(number(each, "SizeRw") for each in running)
    volumes = document.items(usage, "Volumes")
    used_volumes = [each for each in volumes if number(each, "UsageData", "RefCount") > 0]
    stored = sum(number(each, "UsageData", "Size") for each in volumes)
    unused = stored - sum(number(each, "UsageData", "Size") for each in used_volumes)
    kept = document.items(usage, "BuildCache")
    cached = sum(number(each, "Size") for each in kept)
    rows = [
        _usage("Images", len(images), len(active), (size, max(size - used, 0) if images else 0)),
        _usage("Containers", len(containers), len(running), (own, idle)),
        _usage("Local Volumes", len(volumes), len(used_volumes), (stored, unused)),
        _usage("Build Cache", len(kept), 0, (cached, cached)),
    ]
    columns = tuple(_DF_HEADERS)
    write_out(render(flags.text("format"), columns, _DF_HEADERS, rows).encode("utf-8", "replace"))
    return 0


def _usage(kind: str, count: int, active: int, sizes: tuple[int, int]) -> dict[str, str]:
    size, idle = sizes
    share = f" ({idle * 100 // size}%)" if size else ""
    return {
        "Type": kind,
        "TotalCount": str(count),
        "Active": str(active),
        "Size": units.human_size(size),
        "Reclaimable": f"{units.human_size(idle)}{share}",
    }


_FORMAT = ("f", "string", "Print by 'json' or a Go template, for example '{{.Server.Version}}'")

COMMANDS = {
    "version": Command(
        "[OPTIONS]",
        "Show the versions of client and daemon",
        _version,
        {"format": _FORMAT},
        most=0,
    ),
    "info": Command(
        "[OPTIONS]",
        "Show what the engine is, has and may use",
        _info,
        {"format": ("f", "string", "Print by 'json' or a Go template")},
        most=0,
    ),
    "doctor": Command(
        "[OPTIONS]",
        "Check the host and say what is missing and what it costs",
        _doctor,
        {"format": ("f", "string", "Print by 'json' or a Go template for each check")},
        most=0,
        notes="Exits with 1 when a check fails; a warning does not change the exit code.",
    ),
    "system df": Command(
        "[OPTIONS]",
        "Show how much disk is used",
        _df,
        {
            "format": ("", "string", "Print by 'table', 'table TEMPLATE', 'json' or a Go template"),
            "verbose": ("v", "bool", "Every image, container, volume and piece of build cache"),
        },
        most=0,
    ),
}
