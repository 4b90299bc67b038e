"""What is done to containers by name: stop, kill, rm, wait, rename, update, top and such."""

from __future__ import annotations

from tare.client import document, runspec, units
from tare.client.cli import run_options
from tare.client.cli.each import for_each
from tare.client.options import Command, Flags, UsageError
from tare.client.tables import aligned, say, warn, write_out
from tare.client.transport import Daemon, segment, target
from tare.errors import InvalidError, MissingError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.client.document import Json
    from tare.client.options import Action, Table

_MANY = "[OPTIONS] CONTAINER [CONTAINER...]"


def _ending(verb: str) -> Action:
    def end(daemon: Daemon, flags: Flags, names: list[str]) -> int:
        query: dict[str, str | int | bool] = {"signal": flags.text("signal")}
        if flags.given("timeout"):
            query["t"] = str(flags.number("timeout"))

        def deed(name: str) -> str:
            daemon.call("POST", target(f"/containers/{segment(name)}/{verb}", query))
            return name

        return for_each(names, deed)

    return end


def _kill(daemon: Daemon, flags: Flags, names: list[str]) -> int:
    def deed(name: str) -> str:
        query = {"signal": flags.text("signal")}
        daemon.call("POST", target(f"/containers/{segment(name)}/kill", query))
        return name

    return for_each(names, deed)


def _plain(verb: str) -> Action:
    def act(daemon: Daemon, _flags: Flags, names: list[str]) -> int:
        def deed(name: str) -> str:
            daemon.call("POST", f"/containers/{segment(name)}/{verb}")
            return name

        return for_each(names, deed)

    return act


def _wait(daemon: Daemon, _flags: Flags, names: list[str]) -> int:
    def deed(name: str) -> str:
        answer = daemon.call("POST", f"/containers/{segment(name)}/wait")
        return str(document.number(answer, "StatusCode"))

    return for_each(names, deed)


def _rm(daemon: Daemon, flags: Flags, names: list[str]) -> int:
    query = {
        "v": flags.flag("volumes"),
        "link": flags.flag("link"),
        "force": flags.flag("force"),
    }

    def deed(name: str) -> str | None:
        if not name.strip("/"):
            raise InvalidError("container name cannot be empty")
        try:
            daemon.call("DELETE", target(f"/containers/{segment(name)}", query))
        except MissingError as error:
            # As in Docker, -f asks only that it is gone; the sentence stays.
            if not flags.flag("force"):
                raise
            warn(f"tare: {error}")
            return None
        return name

    return for_each(names, deed)


def _rename(daemon: Daemon, _flags: Flags, names: list[str]) -> int:
    old, new = names
    if not old.strip() or not new.strip():
        raise InvalidError("Neither old nor new names may be empty")
    daemon.call("POST", target(f"/containers/{segment(old)}/rename", {"name": new}))
    return 0


_UPDATE_NUMBERS = {
    "blkio-weight": "BlkioWeight",
    "cpu-period": "CpuPeriod",
    "cpu-quota": "CpuQuota",
    "cpu-rt-period": "CpuRealtimePeriod",
    "cpu-rt-runtime": "CpuRealtimeRuntime",
    "cpu-shares": "CpuShares",
    "pids-limit": "PidsLimit",
}
_UPDATE_SIZES = {
    "memory": "Memory",
    "memory-reservation": "MemoryReservation",
    "memory-swap": "MemorySwap",
}


def _update(daemon: Daemon, flags: Flags, names: list[str]) -> int:
    if not flags.values:
        raise UsageError(
            "you must provide one or more flags when using this command",
            hint="For example `tare update --memory 512m NAME`.",
        )
    body: dict[str, Json] = {
        key: flags.number(name) for name, key in _UPDATE_NUMBERS.items() if flags.given(name)
    }
    for name, key in _UPDATE_SIZES.items():
        if flags.given(name):
            body[key] = units.swap_size(flags.text(name))
    for name, key in (("cpuset-cpus", "CpusetCpus"), ("cpuset-mems", "CpusetMems")):
        if flags.given(name):
            body[key] = flags.text(name)
    if flags.given("cpus"):
        body["NanoCpus"] = units.nano_cpus(flags.text("cpus"))
    if flags.given("restart"):
        body["RestartPolicy"] = runspec.restart_policy(flags.text("restart"))

    def deed(name: str) -> str:
        answer = daemon.call("POST", f"/containers/{segment(name)}/update", body)
        for warning in document.strings(answer, "Warnings"):
            warn(warning)
        return name

    return for_each(names, deed)


def _top(daemon: Daemon, _flags: Flags, arguments: list[str]) -> int:
    where = target(f"/containers/{segment(arguments[0])}/top", {"ps_args": " ".join(arguments[1:])})
    answer = daemon.call("GET", where)
    rows = [document.strings(answer, "Titles")]
    rows += [document.strings(row) for row in document.items(answer, "Processes")]
    write_out(aligned_top(rows).encode("utf-8", "replace"))
    return 0


def aligned_top(rows: list[list[str]]) -> str:
    """The processes as Docker's client prints them: columns twenty wide."""
    titles = [row if row else [""] for row in rows]
    wide = [max(len(row[at]) for row in titles if at < len(row)) for at in range(len(titles[0]))]
    padded = [
        [
            cell.ljust(max(20, wide[at] + 3) - 3) if at < len(row) - 1 else cell
            for at, cell in enumerate(row)
        ]
        for row in titles
    ]
    return aligned(padded)


def _port(daemon: Daemon, _flags: Flags, arguments: list[str]) -> int:
    details = daemon.call("GET", f"/containers/{segment(arguments[0])}/json")
    published = document.mapping(details, "NetworkSettings", "Ports")
    wanted = arguments[1] if len(arguments) > 1 else ""
    if wanted and "/" not in wanted:
        wanted += "/tcp"
    lines: list[str] = []
    for port in sorted(published):
        for binding in document.items(published, port):
            address, number = document.text(binding, "HostIp"), document.text(binding, "HostPort")
            shown = f"[{address}]:{number}" if ":" in address else f"{address}:{number}"
            if not wanted:
                lines.append(f"{port} -> {shown}")
            elif port == wanted:
                lines.append(shown)
    if wanted and not lines:
        raise InvalidError(f"no public port '{arguments[1]}' published for {arguments[0]}")
    if lines:
        say("\n".join(lines))
    return 0


_STOPPING: Table = {
    "signal": ("s", "string", "Signal to send instead of the container's own"),
    "timeout": ("t", "int", "Seconds to wait before it is killed"),
}

COMMANDS = {
    "stop": Command(_MANY, "Stop running containers", _ending("stop"), _STOPPING, least=1),
    "restart": Command(
        _MANY, "Stop containers and start them again", _ending("restart"), _STOPPING, least=1
    ),
    "kill": Command(
        _MANY,
        "Kill running containers, or send them a signal",
        _kill,
        {"signal": ("s", "string", 'Signal to send (default "KILL")')},
        least=1,
    ),
    "pause": Command(
        "CONTAINER [CONTAINER...]", "Freeze all processes of containers", _plain("pause"), least=1
    ),
    "unpause": Command(
        "CONTAINER [CONTAINER...]", "Let frozen containers go on", _plain("unpause"), least=1
    ),
    "wait": Command(
        "CONTAINER [CONTAINER...]",
        "Wait until containers end and print their exit codes",
        _wait,
        least=1,
    ),
    "rm": Command(
        _MANY,
        "Remove containers",
        _rm,
        {
            "force": ("f", "bool", "Kill a running one first"),
            "link": ("l", "bool", "Remove the link of that name"),
            "volumes": ("v", "bool", "Remove its anonymous volumes too"),
        },
        least=1,
    ),
    "rename": Command(
        "CONTAINER NEW_NAME", "Give a container another name", _rename, least=2, most=2
    ),
    "update": Command(
        _MANY, "Change the limits of containers", _update, run_options.UPDATE, least=1
    ),
    "top": Command(
        "CONTAINER [ps OPTIONS]",
        "List the processes of a container",
        _top,
        least=1,
        interspersed=False,
    ),
    "port": Command(
        "CONTAINER [PORT[/PROTOCOL]]",
        "Show the published ports of a container",
        _port,
        least=1,
        most=2,
    ),
}
