"""stats: what containers use, once or as a table that is redrawn every second."""

from __future__ import annotations

import time

from tare.client import document, terminal, units
from tare.client.document import number, text
from tare.client.options import Command, Flags
from tare.client.tables import render, write_out
from tare.client.transport import Daemon, segment, target
from tare.errors import InvalidError, MissingError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.client.document import Json

HEADERS = {
    "ID": "CONTAINER ID",
    "Name": "NAME",
    "Container": "CONTAINER",
    "CPUPerc": "CPU %",
    "MemUsage": "MEM USAGE / LIMIT",
    "MemPerc": "MEM %",
    "NetIO": "NET I/O",
    "BlockIO": "BLOCK I/O",
    "PIDs": "PIDS",
    "Cache": "CACHE",
    "Pressure": "PRESSURE",
}
_COLUMNS = ("ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs")
_OWN = ("Cache", "Pressure")  # in the table, behind Docker's
_FIRST_SECONDS = 0.5  # between the two samples that make the first CPU figure
_SECONDS = 1.0


def run(daemon: Daemon, flags: Flags, names: list[str]) -> int:
    """`tare stats`."""
    once = flags.flag("no-stream")
    for name in names:
        daemon.call("GET", f"/containers/{segment(name)}/json")  # a wrong name is an error, once
    form, whole = flags.text("format"), flags.flag("no-trunc")
    before = _samples(daemon, names, everything=flags.flag("all"))
    pause = _FIRST_SECONDS
    redrawn = terminal.is_terminal(1)
    while True:
        time.sleep(pause)
        now = _samples(daemon, names, everything=flags.flag("all"))
        rows = [_row(name, sample, before.get(name), whole=whole) for name, sample in now.items()]
        table = render(form, (*_COLUMNS, *_OWN), HEADERS, rows).encode("utf-8", "replace")
        if redrawn and not once:
            table = frame(table)
        write_out(table)
        if once:
            return 0
        before, pause = now, _SECONDS


def _samples(daemon: Daemon, names: list[str], *, everything: bool) -> dict[str, Json]:
    samples: dict[str, Json] = {}
    wanted = names
    if not names:
        # All that run come in one answer, however many there are.
        running = document.items(daemon.call("GET", "/tare/stats"))
        samples = {text(each, "id"): each for each in running}
        if not everything:
            return samples
        listed = document.items(daemon.call("GET", target("/containers/json", {"all": True})))
        wanted = [name for each in listed if (name := text(each, "Id")) not in samples]
    for name in wanted:
        where = f"/containers/{segment(name)}/stats?stream=0&one-shot=1"
        try:
            samples[name] = daemon.call("GET", where)
        except MissingError:
            continue  # removed since the list was made
    return samples


def _row(name: str, sample: Json, before: Json, *, whole: bool) -> dict[str, str]:
    used, limit = memory(sample)
    share = used / limit * 100 if limit else 0.0
    networks = document.mapping(sample, "networks")
    received = sum(number(each, "rx_bytes") for each in networks.values())
    sent = sum(number(each, "tx_bytes") for each in networks.values())
    read, written = _block(sample)
    identity = text(sample, "id")
    return {
        "ID": identity if whole else identity[:12],
        "Container": name if whole else name[:12],
        "Name": text(sample, "name").lstrip("/"),
        "CPUPerc": f"{cpu_percent(sample, before):.2f}%",
        "MemUsage": f"{units.binary_size(used)} / {units.binary_size(limit)}",
        "MemPerc": f"{share:.2f}%",
        "NetIO": f"{units.human_size(received, 3)} / {units.human_size(sent, 3)}",
        "BlockIO": f"{units.human_size(read, 3)} / {units.human_size(written, 3)}",
        "PIDs": str(number(sample, "pids_stats", "current")),
        "Cache": units.binary_size(number(sample, "Tare", "Cache")),
        "Pressure": _pressure(sample),
    }


def frame(table: bytes) -> bytes:
    """*table* as one redraw: each line over the old one, what is left below is cleared.

    Clearing first would flicker. What does not fit on the screen is left out: a terminal that
    scrolls keeps a copy of every second.
    """
    lines = table.splitlines()
    height, width = terminal.size(1)
    if height and len(lines) >= height:
        hidden = len(lines) - height + 2
        lines = [*lines[: height - 2], b"... and %d more" % hidden]
    if width:
        lines = [_cut(line, width) for line in lines]
    return b"\x1b[H" + b"".join(line + b"\x1b[K\r\n" for line in lines) + b"\x1b[J"


def _cut(line: bytes, width: int) -> bytes:
    text_ = line.decode("utf-8", "replace")
    return text_[:width].rstrip().encode()


def _pressure(sample: Json) -> str:
    """``cpu 12% io 3%``: how much of the last 10 s something waited; - where it is not told."""
    found = document.mapping(sample, "Tare", "Pressure")
    if not found:
        return "-"
    words = []
    for name in ("cpu", "memory", "io"):
        value = document.field(found, name, "Some10")
        if isinstance(value, (int, float)) and value >= 0.5:
            words.append(f"{'mem' if name == 'memory' else name} {value:.0f}%")
    return " ".join(words) or "0%"


def cpu_percent(sample: Json, before: Json) -> float:
    """Share of one processor in percent, between two samples by their own clocks."""
    used = number(sample, "cpu_stats", "cpu_usage", "total_usage") - number(
        before, "cpu_stats", "cpu_usage", "total_usage"
    )
    try:
        elapsed = units.rfc3339(text(sample, "read")) - units.rfc3339(text(before, "read"))
    except InvalidError:
        return 0.0
    return max(used, 0) / elapsed * 100 if elapsed > 0 else 0.0


def memory(sample: Json) -> tuple[int, int]:
    """Bytes used, without page cache that can be dropped, and the limit."""
    stats = document.mapping(sample, "memory_stats", "stats")
    used = number(sample, "memory_stats", "usage")
    idle = number(stats, "total_inactive_file") or number(stats, "inactive_file")
    return (used - idle if idle < used else used), number(sample, "memory_stats", "limit")


def _block(sample: Json) -> tuple[int, int]:
    read = written = 0
    for entry in document.items(sample, "blkio_stats", "io_service_bytes_recursive"):
        match text(entry, "op").lower():
            case "read":
                read += number(entry, "value")
            case "write":
                written += number(entry, "value")
    return read, written


COMMANDS = {
    "stats": Command(
        "[OPTIONS] [CONTAINER...]",
        "Show what containers use, as they use it",
        run,
        {
            "all": ("a", "bool", "Those that do not run, too"),
            "format": ("", "string", "Print by 'table', 'table TEMPLATE', 'json' or a Go template"),
            "no-stream": ("", "bool", "Print once"),
            "no-trunc": ("", "bool", "Do not shorten"),
        },
    ),
}
