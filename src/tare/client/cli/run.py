"""run, create, start and attach: a container's life from the terminal it was called in.

A plain `run` is one request (POST /tare/run): create, attach, start, wait and remove. With a
terminal it is Docker's five, since the size is set while it runs.
"""

from __future__ import annotations

import os

from tare.client import document, runspec, streams, terminal
from tare.client.cli import run_options
from tare.client.options import Command, Flags, UsageError
from tare.client.tables import say, warn, write_out
from tare.client.transport import Daemon, Response, segment, target
from tare.errors import InvalidError, MissingError, TareError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from tare.client.document import Json

    Made = TypeVar("Made")


def create(daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    """`tare create`."""
    body = _body(flags, arguments, detached=False)
    identity = _created(daemon, flags, body)
    say(identity)
    return 0


def run(daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    """`tare run`."""
    detached = flags.flag("detach")
    if detached and flags.given("attach"):
        raise UsageError("conflicting options: cannot specify both --attach and --detach")
    if flags.flag("tty") and flags.flag("interactive") and not detached:
        needs_terminal()
    body = _body(flags, arguments, detached=detached)
    _check_cidfile(flags)
    if detached:
        identity = _created(daemon, flags, body)
        _start(daemon, identity)
        say(identity)
        return 0
    if flags.flag("tty"):
        return _run_with_terminal(daemon, flags, body)
    return _run_at_once(daemon, flags, body)


def needs_terminal() -> None:
    """Refuse -it when standard input is no terminal, as Docker does."""
    if not terminal.is_terminal(0):
        raise InvalidError(
            "the input device is not a TTY",
            hint="Leave out -t when input comes from a pipe or a file.",
            exit_code=1,
        )


def _body(flags: Flags, arguments: list[str], *, detached: bool) -> dict[str, Json]:
    pull = flags.text("pull", "missing")
    if pull not in ("always", "missing", "never"):
        raise InvalidError(
            f"invalid pull option: {pull!r}: must be one of always, missing or never", exit_code=125
        )
    try:
        body = runspec.create_body(flags, arguments, detached=detached)
    except TareError as error:
        error.exit_code = 125
        raise
    if flags.flag("tty") and not detached:
        rows, columns = terminal.size()
        if rows:
            host = body.setdefault("HostConfig", {})
            assert isinstance(host, dict)
            host["ConsoleSize"] = [rows, columns]
    return body


def _check_cidfile(flags: Flags) -> None:
    path = flags.text("cidfile")
    if path and os.path.lexists(path):
        raise InvalidError(
            f"container ID file found, make sure the other container "
            f"isn't running or delete {path}",
            exit_code=125,
        )


def _write_cidfile(flags: Flags, identity: str) -> None:
    if path := flags.text("cidfile"):
        try:
            made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise InvalidError(
                f"failed to create the container ID file {path}: {error.strerror}", exit_code=125
            ) from None
        write_out(identity.encode(), made)
        os.close(made)


def _created(daemon: Daemon, flags: Flags, body: dict[str, Json]) -> str:
    _check_cidfile(flags)
    query = {"name": flags.text("name"), "platform": flags.text("platform")}
    where = target("/containers/create", query)
    answer = _with_image(daemon, flags, body, lambda: daemon.call("POST", where, body))
    _warnings(answer)
    identity = document.text(answer, "Id")
    _write_cidfile(flags, identity)
    return identity


def _with_image(
    daemon: Daemon,
    flags: Flags,
    body: dict[str, Json],
    deed: Callable[[], Made],
    *,
    started: bool = False,
) -> Made:
    """Do *deed*, which needs the image: pulled before, or when it is missing, as --pull says."""
    pull = flags.text("pull", "missing")
    image, platform = document.text(body, "Image"), flags.text("platform")
    quiet = flags.flag("quiet")
    if pull == "always":
        from tare.client.cli import transfers

        transfers.bring(daemon, image, platform=platform, quiet=quiet)
    try:
        return deed()
    except TareError as error:
        if pull != "missing" or not _no_image(error) or not _pullable(image):
            raise _refused(error, body, started=started) from None
    from tare.client.cli import transfers

    transfers.bring_missing(daemon, image, platform=platform, quiet=quiet)
    try:
        return deed()
    except TareError as error:
        raise _refused(error, body, started=started) from None


def _no_image(error: TareError) -> bool:
    return isinstance(error, MissingError) and "o such image" in str(error)


def _pullable(image: str) -> bool:
    """An id is nothing that a registry could be asked for."""
    return not image.startswith("sha256:")


def _warnings(answer: Json) -> None:
    for warning in document.strings(answer, "Warnings"):
        warn(f"WARNING: {warning}")


def _refused(error: TareError, body: dict[str, Json], *, started: bool = False) -> TareError:
    """*error* with Docker's exit code: 127 no such program, 126 not executable, else 125."""
    text = str(error)
    known = error.exit_code  # the daemon may have said it
    error.exit_code = known if known > 1 else 125
    if _no_image(error):
        image = document.text(body, "Image")
        unknown = MissingError(f"unable to find image '{_tagged(image)}' locally", exit_code=125)
        unknown.hint = (
            f"Make it from Debian's packages (`tare image bootstrap {image}`), or load it "
            "(`tare load -i FILE`).\n`tare images` lists what is there."
            if image.partition(":")[0] in ("debian", "ubuntu")
            else "Load it (`tare load -i FILE`), or make a base image with "
            "`tare image bootstrap debian:bookworm`.\n`tare images` lists what is there."
        )
        return unknown
    if started and known == 1:
        error.exit_code = start_code(text)
    return error


def start_code(text: str) -> int:
    """The exit code that Docker's clients choose by the words of a failed start."""
    if "executable file not found" in text or "no such file or directory" in text:
        return 127
    if "permission denied" in text or "is a directory" in text:
        return 126
    return 125


def _tagged(image: str) -> str:
    if "@" in image or ":" in image.rpartition("/")[2]:
        return image
    return f"{image}:latest"


def _start(daemon: Daemon, identity: str, detach_keys: str = "") -> None:
    try:
        daemon.call(
            "POST", target(f"/containers/{segment(identity)}/start", {"detachKeys": detach_keys})
        )
    except TareError as error:
        raise _refused(error, {}, started=True) from None


def _run_at_once(daemon: Daemon, flags: Flags, body: dict[str, Json]) -> int:
    """One request: the last frame of the stream is the result."""
    if flags.given("name"):
        body["Name"] = flags.text("name")
    if flags.given("platform"):
        body["Platform"] = flags.text("platform")
    response = _with_image(
        daemon,
        flags,
        body,
        lambda: daemon.open("POST", "/tare/run", body, upgrade=True),
        started=True,
    )
    for warning in streams.warnings(response):
        warn(f"WARNING: {warning}")
    identity = response.headers.get("tare-id", "")
    _write_cidfile(flags, identity)
    if flags.flag("sig-proxy", True):
        _proxy(daemon, identity)
    frames = streams.Frames({1: streams.to_descriptor(1), 2: streams.to_descriptor(2)})
    stdin = 0 if body.get("AttachStdin") else None
    streams.pump(response.connection, frames.feed, stdin=stdin)
    if "StatusCode" not in frames.report:
        raise TareError(
            "the daemon ended while the container ran",
            hint="The container goes on: see `tare ps`, `tare attach` and `tare logs`.",
            exit_code=125,
        )
    # It ran: whatever there is to say of its end, its exit code is its own.
    if words := document.text(frames.report, "Error"):
        warn(f"tare: {words}")
    elif document.flag(frames.report, "OOMKilled"):
        warn(f"tare: {_oom_line(body)}")
    return document.number(frames.report, "StatusCode")


def _oom_line(body: dict[str, Json]) -> str:
    from tare.client.units import binary_size

    limit = document.number(body, "HostConfig", "Memory")
    named = f" (--memory {binary_size(limit)})" if limit else ""
    return f"the container was killed because it needed more memory than its limit{named}"


def _proxy(daemon: Daemon, identity: str) -> None:
    def send(name: str) -> None:
        where = target(f"/containers/{segment(identity)}/kill", {"signal": f"SIG{name}"})
        try:
            connection = daemon.connect()
            connection.send("POST", where).read()
            connection.close()
        except (TareError, OSError):
            pass  # it has just ended; its exit is on the way

    terminal.proxy_signals(send)


def _resizes(daemon: Daemon, path: str) -> None:
    """Give the terminal's size to *path* now and whenever it changes."""

    def resize() -> None:
        rows, columns = terminal.size()
        if rows:
            try:
                connection = daemon.connect()
                connection.send("POST", target(f"{path}/resize", {"h": rows, "w": columns})).read()
                connection.close()
            except (TareError, OSError):
                pass  # ended meanwhile, or not yet started; the next change is told again

    resize()
    terminal.on_signal("WINCH", resize)


def _run_with_terminal(daemon: Daemon, flags: Flags, body: dict[str, Json]) -> int:
    keys = flags.text("detach-keys", terminal.DETACH_KEYS)
    terminal.keys(keys)
    identity = _created(daemon, flags, body)
    attached = _attach(daemon, identity, stdin=bool(body.get("AttachStdin")), keys=keys)
    removed = flags.flag("rm")
    waiting = _wait(daemon, identity, "removed" if removed else "next-exit")
    try:
        _start(daemon, identity, keys)
    except TareError:
        if removed:
            _remove_quietly(daemon, identity)
        raise
    if not converse(
        daemon, attached, f"/containers/{identity}", stdin=bool(body.get("AttachStdin")), keys=keys
    ):
        warn("read escape sequence")
        return 0
    return _exit_code(waiting)


def _remove_quietly(daemon: Daemon, identity: str) -> None:
    try:
        daemon.call("DELETE", f"/containers/{identity}?force=1&v=1")
    except TareError:
        pass  # --rm has removed it


def _attach(daemon: Daemon, name: str, *, stdin: bool, keys: str, logs: bool = False) -> Response:
    query = {"stream": True, "stdin": stdin, "stdout": True, "stderr": True}
    where = target(
        f"/containers/{segment(name)}/attach", {**query, "logs": logs, "detachKeys": keys}
    )
    return daemon.open("POST", where, upgrade=True)


def _wait(daemon: Daemon, name: str, condition: str) -> Response:
    """The head of the answer says that the wait has begun; its body comes at the end."""
    where = target(f"/containers/{segment(name)}/wait", {"condition": condition})
    connection = daemon.connect()
    response = connection.send("POST", where)
    if response.status >= 400:
        raise response.error()
    return response


def _exit_code(waiting: Response) -> int:
    answer = document.decode(waiting.read())
    waiting.connection.close()
    if failure := document.text(answer, "Error", "Message"):
        raise TareError(failure, exit_code=125)
    return document.number(answer, "StatusCode")


def converse(daemon: Daemon, attached: Response, path: str, *, stdin: bool, keys: str) -> bool:
    """Join our terminal to a container's (or an exec's); False when the keys detached."""
    escape = terminal.Escape(terminal.keys(keys)) if stdin and terminal.is_terminal(0) else None
    take = streams.to_descriptor(1)
    _resizes(daemon, path)
    if stdin and terminal.is_terminal(0):
        with terminal.Raw(0):
            return streams.pump(attached.connection, take, stdin=0, escape=escape)
    return streams.pump(attached.connection, take, stdin=0 if stdin else None)


def start(daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    """`tare start`."""
    if flags.flag("attach") or flags.flag("interactive"):
        if len(arguments) > 1:
            raise UsageError("you cannot start and attach multiple containers at once")
        return _start_attached(daemon, flags, arguments[0])
    code = 0
    for name in arguments:
        try:
            daemon.call("POST", f"/containers/{segment(name)}/start")
            say(name)
        except TareError as error:
            warn(f"tare: {error}" + (f"\n  {error.hint}" if error.hint else ""))
            code = 1
    return code


def _start_attached(daemon: Daemon, flags: Flags, name: str) -> int:
    details = daemon.call("GET", f"/containers/{segment(name)}/json")
    identity = document.text(details, "Id")
    tty = document.flag(details, "Config", "Tty")
    stdin = flags.flag("interactive") and document.flag(details, "Config", "OpenStdin")
    keys = flags.text("detach-keys", terminal.DETACH_KEYS)
    attached = _attach(daemon, identity, stdin=stdin, keys=keys)
    removed = document.flag(details, "HostConfig", "AutoRemove")
    waiting = _wait(daemon, identity, "removed" if removed else "next-exit")
    daemon.call("POST", f"/containers/{identity}/start")
    return _follow(daemon, attached, waiting, (identity, tty, stdin, keys), proxied=not tty)


def _follow(
    daemon: Daemon,
    attached: Response,
    waiting: Response,
    what: tuple[str, bool, bool, str],
    *,
    proxied: bool,
) -> int:
    identity, tty, stdin, keys = what
    if proxied:
        _proxy(daemon, identity)
    if tty:
        ended = converse(daemon, attached, f"/containers/{identity}", stdin=stdin, keys=keys)
    else:
        frames = streams.Frames({1: streams.to_descriptor(1), 2: streams.to_descriptor(2)})
        ended = streams.pump(attached.connection, frames.feed, stdin=0 if stdin else None)
    if not ended:
        warn("read escape sequence")
        return 0
    return _exit_code(waiting)


def attach(daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    """`tare attach`."""
    details = daemon.call("GET", f"/containers/{segment(arguments[0])}/json")
    for state, words in (("Paused", "unpause it first"), ("Restarting", "wait until it runs")):
        if document.flag(details, "State", state):
            raise InvalidError(f"cannot attach to a {state.lower()} container, {words}")
    if not document.flag(details, "State", "Running"):
        raise InvalidError(
            "cannot attach to a stopped container, start it first",
            hint=f"`tare start -ai {arguments[0]}` does both.",
        )
    identity = document.text(details, "Id")
    tty = document.flag(details, "Config", "Tty")
    stdin = not flags.flag("no-stdin") and document.flag(details, "Config", "OpenStdin")
    if tty and stdin:
        needs_terminal()
    keys = flags.text("detach-keys", terminal.DETACH_KEYS)
    waiting = _wait(daemon, identity, "not-running")
    attached = _attach(daemon, identity, stdin=stdin, keys=keys)
    proxied = flags.flag("sig-proxy", True) and not tty
    return _follow(daemon, attached, waiting, (identity, tty, stdin, keys), proxied=proxied)


_KEYS = ("", "string", 'Keys that detach from it (default "ctrl-p,ctrl-q")')

COMMANDS = {
    "run": Command(
        "[OPTIONS] IMAGE [COMMAND] [ARG...]",
        "Create a container from an image and run it",
        run,
        run_options.RUN,
        least=1,
        interspersed=False,
    ),
    "create": Command(
        "[OPTIONS] IMAGE [COMMAND] [ARG...]",
        "Create a container without starting it",
        create,
        run_options.CREATE,
        least=1,
        interspersed=False,
    ),
    "start": Command(
        "[OPTIONS] CONTAINER [CONTAINER...]",
        "Start containers that are stopped",
        start,
        {
            "attach": ("a", "bool", "Show its output and forward signals"),
            "detach-keys": _KEYS,
            "interactive": ("i", "bool", "Give it our standard input"),
        },
        least=1,
    ),
    "attach": Command(
        "[OPTIONS] CONTAINER",
        "Attach to a running container's input and output",
        attach,
        {
            "detach-keys": _KEYS,
            "no-stdin": ("", "bool", "Do not give it our standard input"),
            "sig-proxy": ("", "bool", "Forward signals to it (default true)"),
        },
        least=1,
        most=1,
    ),
}
