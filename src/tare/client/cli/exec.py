"""exec: one more program inside a running container."""

from __future__ import annotations

from tare.client import document, runspec, streams, terminal
from tare.client.cli.run import converse, needs_terminal, start_code
from tare.client.options import Command, Flags
from tare.client.transport import Daemon, segment
from tare.errors import InvalidError, TareError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.client.document import Json


def run(daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    """`tare exec`."""
    detached, tty, stdin = flags.flag("detach"), flags.flag("tty"), flags.flag("interactive")
    if tty and stdin and not detached:
        needs_terminal()
    keys = flags.text("detach-keys", terminal.DETACH_KEYS)
    body: dict[str, Json] = {
        "AttachStdin": stdin and not detached,
        "AttachStdout": not detached,
        "AttachStderr": not detached,
        "Cmd": list(arguments[1:]),
    }
    if tty:
        body["Tty"] = True
        rows, columns = terminal.size()
        if rows:
            body["ConsoleSize"] = [rows, columns]
    for option, key in (("user", "User"), ("workdir", "WorkingDir"), ("privileged", "Privileged")):
        if flags.given(option):
            body[key] = flags.flag(option) if option == "privileged" else flags.text(option)
    if flags.given("detach-keys"):
        terminal.keys(keys)
        body["DetachKeys"] = keys
    if flags.given("env") or flags.given("env-file"):
        body["Env"] = [*runspec.environment(flags.list("env"), flags.list("env-file"))]
    made = daemon.call("POST", f"/containers/{segment(arguments[0])}/exec", body)
    identity = document.text(made, "Id")
    if not identity:
        raise InvalidError("the daemon gave no exec id")
    return _started(daemon, f"/exec/{identity}", (detached, tty, stdin), keys)


def _started(daemon: Daemon, path: str, how: tuple[bool, bool, bool], keys: str) -> int:
    detached, tty, stdin = how
    order: dict[str, Json] = {"Detach": detached, "Tty": tty}
    try:
        if detached:
            daemon.call("POST", f"{path}/start", order)
            return 0
        attached = daemon.open("POST", f"{path}/start", order, upgrade=True)
    except TareError as error:
        code = start_code(str(error))
        error.exit_code = 1 if code == 125 else code
        raise
    if tty:
        if not converse(daemon, attached, path, stdin=stdin, keys=keys):
            return 0
    else:
        frames = streams.Frames({1: streams.to_descriptor(1), 2: streams.to_descriptor(2)})
        streams.pump(attached.connection, frames.feed, stdin=0 if stdin else None)
        if "StatusCode" in frames.report:
            return document.number(frames.report, "StatusCode")
    return document.number(daemon.call("GET", f"{path}/json"), "ExitCode")


COMMANDS = {
    "exec": Command(
        "[OPTIONS] CONTAINER COMMAND [ARG...]",
        "Run a command in a running container",
        run,
        {
            "detach": ("d", "bool", "Run in the background"),
            "detach-keys": ("", "string", 'Keys that detach (default "ctrl-p,ctrl-q")'),
            "env": ("e", "list", "Set NAME=VALUE; NAME alone takes the value it has here"),
            "env-file": ("", "list", "Read environment variables from a file"),
            "interactive": ("i", "bool", "Give it our standard input"),
            "privileged": ("", "bool", "Give it all capabilities"),
            "tty": ("t", "bool", "Give it a terminal"),
            "user": ("u", "string", "Run as USER[:GROUP], names or numbers"),
            "workdir": ("w", "string", "Directory in which it starts"),
        },
        least=2,
        interspersed=False,
    ),
}
