"""Images in and out of archives, and made from packages: import, load, save, bootstrap."""

from __future__ import annotations

import os

from tare.client import document, terminal
from tare.client.cli.images import split_name
from tare.client.document import text
from tare.client.options import Command, Flags
from tare.client.tables import say, shown, warn, write_out
from tare.client.transport import Daemon, Response, target
from tare.errors import FailedError, InvalidError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_TAR = "application/x-tar"
_PIECE = 256 << 10


def opened(path: str) -> int:
    """A descriptor to read *path* (``-`` is standard input); InvalidError says why not."""
    if path == "-":
        return 0
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidError(f"cannot read {path}: {error.strerror}") from None


def pieces(descriptor: int) -> Iterator[bytes]:
    """The bytes of a file to its end."""
    while piece := os.read(descriptor, _PIECE):
        yield piece


def save_stream(response: Response, path: str) -> None:
    """Write the body to *path*, whole or not at all; "" is standard output.

    The terminal is refused, as by Docker: an archive is not for reading.
    """
    if not path:
        if terminal.is_terminal(1):
            raise InvalidError(
                "cowardly refusing to save to a terminal", hint="Use the -o flag or redirect."
            )
        for piece in response.pieces():
            write_out(piece)
        return
    if os.path.isdir(path):
        raise InvalidError(f"cannot write to {path}: it is a directory")
    if os.path.exists(path) and not os.path.isfile(path):
        with open(path, "wb", buffering=0) as device:  # a device or FIFO is written as it is
            for piece in response.pieces():
                write_out(piece, device.fileno())
        return
    partial = f"{path}.{os.getpid()}.part"
    try:
        made = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise InvalidError(f"cannot write to {path}: {error.strerror}") from None
    try:
        for piece in response.pieces():
            write_out(piece, made)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise
    finally:
        os.close(made)


def progress(response: Response, *, quiet: bool) -> list[str]:
    """Show a JSON progress stream; the lines that tell results. FailedError when it tells one."""
    results = []
    live = terminal.is_terminal(2) and not quiet
    for line in response.lines():
        entry = document.decode(line)
        if failure := text(entry, "error") or text(entry, "errorDetail", "message"):
            if live:
                write_out(b"\r\x1b[K", 2)
            raise FailedError(failure, hint=text(entry, "hint"))
        if result := text(entry, "stream"):
            results.append(result.rstrip("\n"))
        elif status := text(entry, "status"):
            results.append(status)
            step = " ".join(filter(None, (text(entry, "id"), status, text(entry, "progress"))))
            if live:
                columns = (terminal.size(2)[1] or 80) - 1
                write_out(b"\r\x1b[K" + shown(step)[:columns].encode(), 2)
            elif not quiet:
                warn(step)
    if live:
        write_out(b"\r\x1b[K", 2)
    return results


def _import(daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    source = arguments[0]
    if "://" in source:
        raise InvalidError(
            f"tare does not download {source}",
            hint=f"Fetch it yourself: curl -fL {source} | tare import - NAME",
        )
    repository, tag = split_name(arguments[1]) if len(arguments) > 1 else ("", "")
    query: dict[str, str | int | bool] = {
        "fromSrc": "-",
        "repo": repository,
        "tag": tag,
        "message": flags.text("message"),
        "platform": flags.text("platform"),
    }
    where = target("/images/create", query)
    where += "".join(f"&{target('', {'changes': each})[1:]}" for each in flags.list("change"))
    response = daemon.open("POST", where, pieces(opened(source)), kind=_TAR)
    results = progress(response, quiet=True)
    if results:
        say(results[-1])
    return 0


def _load(daemon: Daemon, flags: Flags, _arguments: list[str]) -> int:
    path = flags.text("input")
    if not path and terminal.is_terminal(0):
        raise InvalidError(
            "requested load from stdin, but stdin is empty", hint="Use `tare load -i FILE`."
        )
    quiet = flags.flag("quiet") or not terminal.is_terminal(1)
    where = target("/images/load", {"quiet": "1" if quiet else "0"})
    response = daemon.open("POST", where, pieces(opened(path or "-")), kind=_TAR)
    results = [line for line in progress(response, quiet=quiet) if line.startswith("Loaded")]
    if results:
        say("\n".join(results))
    return 0


def _save(daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    if not flags.text("output") and terminal.is_terminal(1):
        raise InvalidError(
            "cowardly refusing to save to a terminal", hint="Use the -o flag or redirect."
        )
    where = target("/images/get", {"format": flags.text("format")})
    where += "&" if "?" in where else "?"
    where += "&".join(target("", {"names": name})[1:] for name in arguments)
    save_stream(daemon.open("GET", where), flags.text("output"))
    return 0


def _bootstrap(daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    reference = arguments[0]
    _, tag = split_name(reference)
    suite = flags.text("suite") or tag
    if not suite:
        raise InvalidError(
            f"which suite is {reference}?",
            hint="For example `tare image bootstrap debian:bookworm`.",
        )
    packages = [name for word in flags.list("package") for name in word.split(",") if name]
    query = {
        "suite": suite,
        "variant": flags.text("variant", "minbase"),
        "packages": ",".join(packages),
        "tag": reference,
        "mirror": flags.text("mirror"),
    }
    response = daemon.open("POST", target("/tare/images/bootstrap", query))
    progress(response, quiet=flags.flag("quiet"))
    say(reference)
    return 0


COMMANDS = {
    "import": Command(
        "[OPTIONS] FILE|- [REPOSITORY[:TAG]]",
        "Make an image of a tar archive of a file system",
        _import,
        {
            "change": ("c", "list", "Apply a Dockerfile instruction (CMD, ENV, ...)"),
            "message": ("m", "string", "What to write into its history"),
            "platform": ("", "string", "Platform of the image (linux/amd64)"),
        },
        least=1,
        most=2,
    ),
    "load": Command(
        "[OPTIONS]",
        "Load images from a tar archive (docker-archive or OCI; plain, gzip or zstd)",
        _load,
        {
            "input": ("i", "string", "Read this file instead of standard input"),
            "quiet": ("q", "bool", "Do not show how it goes"),
            "trust": ("", "bool", "Refuse images that are not verified"),
        },
        most=0,
    ),
    "save": Command(
        "[OPTIONS] IMAGE [IMAGE...]",
        "Write images as a tar archive",
        _save,
        {
            "format": ("", "string", "docker-archive (default) or oci"),
            "output": ("o", "string", "Write to this file instead of standard output"),
        },
        least=1,
    ),
    "image bootstrap": Command(
        "[OPTIONS] REPOSITORY:TAG",
        "Make a base image from Debian's signed packages",
        _bootstrap,
        {
            "mirror": ("", "string", "Where the packages come from"),
            "package": ("p", "list", "Further packages to install (may be repeated, or a,b,c)"),
            "quiet": ("q", "bool", "Do not show how it goes"),
            "suite": ("", "string", "Suite of Debian (default: the tag)"),
            "variant": (
                "",
                "string",
                'Which packages: essential, apt, minbase, ... (default "minbase")',
            ),
        },
        least=1,
        most=1,
    ),
}
