"""logs: what a container has printed.

Pipes and files get the bytes as they are. On a terminal everything but text, line ends and
colours is shown as escapes (attack A19); --raw gives the bytes there too.
"""

from __future__ import annotations

from tare.client import document, streams, terminal, units
from tare.client.options import Command, Flags
from tare.client.tables import shown, write_out
from tare.client.transport import Daemon, segment, target
from tare.errors import InvalidError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.client.streams import Sink


def run(daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    """`tare logs`."""
    tail = flags.text("tail", "all")
    if tail != "all" and not tail.removeprefix("-").isdecimal():
        raise InvalidError(f"invalid value {tail!r} for --tail", hint="Give a number or `all`.")
    details = daemon.call("GET", f"/containers/{segment(arguments[0])}/json")
    query: dict[str, str | int | bool] = {
        "stdout": True,
        "stderr": True,
        "details": flags.flag("details"),
        "follow": flags.flag("follow"),
        "since": units.moment(flags.text("since")),
        "until": units.moment(flags.text("until")),
        "tail": tail,
        "timestamps": flags.flag("timestamps"),
    }
    where = target(f"/containers/{document.text(details, 'Id')}/logs", query)
    response = daemon.open("GET", where)
    raw = flags.flag("raw")
    if document.flag(details, "Config", "Tty"):
        take = sink(1, raw=raw)
    else:
        take = streams.Frames({1: sink(1, raw=raw), 2: sink(2, raw=raw)}).feed
    for piece in response.pieces():
        take(piece)
    return 0


def sink(descriptor: int, *, raw: bool) -> Sink:
    """Where a stream's bytes go: escaped when that is a terminal."""
    if raw or not terminal.is_terminal(descriptor):
        return streams.to_descriptor(descriptor)
    import codecs

    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    def take(piece: bytes) -> None:
        write_out(harmless(decoder.decode(piece)).encode("utf-8", "replace"), descriptor)

    return take


def harmless(text: str) -> str:
    """*text* with all that a terminal obeys escaped, but line ends, tabs and colours."""
    first, *rest = text.replace("\r\n", "\n").split("\x1b[")
    out = shown(first, "\n\t")
    for part in rest:
        digits = len(part) - len(part.lstrip("0123456789;:"))
        if part[digits : digits + 1] == "m":
            out += f"\x1b[{part[: digits + 1]}{shown(part[digits + 1 :], chr(10) + chr(9))}"
        else:
            out += shown(f"\x1b[{part}", "\n\t")
    return out


COMMANDS = {
    "logs": Command(
        "[OPTIONS] CONTAINER",
        "Show what a container has printed",
        run,
        {
            "details": ("", "bool", "Show what log options added"),
            "follow": ("f", "bool", "Go on as it prints more"),
            "raw": ("", "bool", "Give a terminal the bytes as they are"),
            "since": (
                "",
                "string",
                "From this time on (2013-01-02T13:23:37Z, or 42m: 42 minutes ago)",
            ),
            "tail": ("n", "string", 'How many lines from the end (default "all")'),
            "timestamps": ("t", "bool", "Show when each line was printed"),
            "until": ("", "string", "Up to this time (2013-01-02T13:23:37Z, or 42m)"),
        },
        least=1,
        most=1,
    ),
}
