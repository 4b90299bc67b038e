"""budget: what the engine may use of this server, who holds what, and changing it."""

from __future__ import annotations

from tare.client import document, units
from tare.client.document import number, text
from tare.client.options import Command, Flags
from tare.client.tables import aligned, say, write_out
from tare.client.transport import Daemon, target
from tare.errors import InvalidError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tare.client.document import Json

_BAR = 24
_SIZES = {
    "memory": "Memory",
    "disk": "Disk",
    "reserve-memory": "ReservableMemory",
    "default-memory": "DefaultMemory",
}
_CPUS = {
    "cpus": "NanoCpus",
    "reserve-cpus": "ReservableNanoCpus",
    "default-cpus": "DefaultNanoCpus",
}


def bar(part: float, whole: float, width: int = _BAR) -> str:
    """``[#####-----]``: how much of *whole* is taken; anything at all shows at least one."""
    if whole <= 0:
        return "[" + "?" * width + "]"
    filled = min(int(part / whole * width + 0.5), width)
    filled = max(filled, 1) if part > 0 else 0
    return f"[{'#' * filled}{'-' * (width - filled)}]"


def _cpus(nano: int) -> str:
    return f"{nano / 1e9:.4g}"


def _known(found: Json, *keys: str) -> int | None:
    return number(found, *keys) if document.field(found, *keys) is not None else None


def _show(daemon: Daemon, flags: Flags, _arguments: list[str]) -> int:
    found = daemon.call("GET", "/tare/budget")
    form = flags.text("format")
    if form == "json":
        write_out((document.compact(found) + "\n").encode())
        return 0
    if form:
        raise InvalidError("--format takes json here")
    parts = [
        _one(each, found, bars=flags.flag("bars")) for each in document.items(found, "Budgets")
    ]
    holders = document.items(found, "Holders")
    if holders:
        parts.append(_holders(holders))
    write_out("\n".join(parts).encode("utf-8", "replace"))
    return 0


def _one(each: Json, found: Json, *, bars: bool) -> str:
    project = text(each, "Project")
    title = f"Project {project}" if project else "Engine"
    rows = [["RESOURCE", "LIMIT", "IN USE", "RESERVABLE", "RESERVED", "FREE"]]
    lines: list[list[str]] = []
    host_cpus = number(found, "Host", "Cpus") * 10**9
    for name, key, show, whole in (
        ("memory", "Memory", units.binary_size, number(found, "Host", "Memory")),
        ("cpus", "NanoCpus", _cpus, host_cpus),
    ):
        limit, used = _known(each, key, "Limit"), _known(each, key, "Used")
        bound, reserved = _known(each, key, "Reservable"), number(each, key, "Reserved")
        rows.append(
            [
                name,
                _or_none(limit, show),
                _or_none(used, show),
                _or_none(bound, show),
                show(reserved),
                _or_none(_known(each, key, "Free"), show),
            ]
        )
        if used is not None:
            most = limit or whole
            lines.append([f"{name} used", bar(used, most), f"{show(used)} of {show(most)}"])
        most = bound if bound is not None else whole
        lines.append([f"{name} reserved", bar(reserved, most), f"{show(reserved)} of {show(most)}"])
    limit, used = _known(each, "Pids", "Limit"), _known(each, "Pids", "Used")
    rows.append(["pids", _or_none(limit, str), _or_none(used, str), "-", "-", "-"])
    if used is not None and limit:
        lines.append(["pids used", bar(used, limit), f"{used} of {limit}"])
    if not project:
        limit, used = _known(each, "Disk", "Limit"), number(each, "Disk", "Used")
        free = number(each, "Disk", "Free")
        rows.append(
            ["disk", _or_none(limit, units.binary_size), units.binary_size(used), "-", "-", "-"]
        )
        most = limit if limit is not None else used + free
        said = f"{units.binary_size(used)} of {units.binary_size(most)}"
        lines.append(["disk used", bar(used, most), said])
    return f"{title}\n{aligned(lines if bars else rows)}"


def _or_none(value: int | None, show: Callable[[int], str]) -> str:
    return "-" if value is None else show(value)


def _holders(holders: list[Json]) -> str:
    rows = [["CONTAINER", "PROJECT", "MEMORY RESERVED", "LIMIT", "CPUS RESERVED", "LIMIT"]]
    ordered = sorted(holders, key=lambda each: (-number(each, "Memory"), text(each, "Name")))
    for each in ordered:
        memory, cpus = number(each, "MemoryLimit"), number(each, "NanoCpusLimit")
        rows.append(
            [
                text(each, "Name"),
                text(each, "Project").rpartition("=")[2] or "-",
                units.binary_size(number(each, "Memory")),
                units.binary_size(memory) if memory else "-",
                _cpus(number(each, "NanoCpus")),
                _cpus(cpus) if cpus else "-",
            ]
        )
    return aligned(rows)


def _set(daemon: Daemon, flags: Flags, _arguments: list[str]) -> int:
    body: dict[str, Json] = {}
    for option, field in _SIZES.items():
        if flags.given(option):
            body[field] = units.size(flags.text(option))
    for option, field in _CPUS.items():
        if flags.given(option):
            body[field] = units.nano_cpus(flags.text(option))
    if flags.given("pids"):
        body["Pids"] = flags.number("pids")
    if not body:
        raise InvalidError(
            "nothing to set", hint="For example `tare budget set --memory 8g --cpus 3`."
        )
    body["Project"] = flags.text("project")
    daemon.call("POST", "/tare/budget", body)
    return 0


def _forget(daemon: Daemon, flags: Flags, _arguments: list[str]) -> int:
    project = flags.text("project")
    daemon.call("DELETE", target("/tare/budget", {"project": project}))
    say(f"{project or 'The engine'} has the default budget.")
    return 0


_PROJECT = (
    "", "string", "Of the containers with this label NAME=VALUE, or of this compose project",
)  # fmt: skip

COMMANDS = {
    "budget": Command(
        "[OPTIONS]",
        "Show what the engine may use of this server, and who holds what",
        _show,
        {
            "bars": ("b", "bool", "As bars"),
            "format": ("", "string", "Print by 'json'"),
        },
        most=0,
        notes=(
            "A limit caps use, and the kernel enforces it. A reservation gates starts: a\n"
            "container counts with --memory-reservation, else --memory, else the default, and\n"
            "--cpus; one that does not fit is refused, with the arithmetic."
        ),
    ),
    "budget set": Command(
        "[OPTIONS]",
        "Change what the engine, or a project, may use",
        _set,
        {
            "cpus": ("", "string", "All containers together use no more CPUs"),
            "default-cpus": ("", "string", "What a container without --cpus reserves"),
            "default-memory": ("", "string", "What a container without --memory reserves"),
            "disk": ("", "string", "Nothing new is let in beyond this"),
            "memory": ("", "string", "All containers together use no more memory"),
            "pids": ("", "int", "All containers together have no more processes"),
            "project": _PROJECT,
            "reserve-cpus": ("", "string", "How many may be reserved (default: the limit)"),
            "reserve-memory": ("", "string", "How much may be reserved (default: the limit)"),
        },
        most=0,
    ),
    "budget rm": Command(
        "[OPTIONS]",
        "Forget what was set",
        _forget,
        {"project": _PROJECT},
        most=0,
    ),
}
