"""explain: why a container is as it is, what limits it, who reaches it, what isolates it."""

from __future__ import annotations

from tare.client import document
from tare.client.document import text
from tare.client.options import Command, Flags
from tare.client.tables import aligned, shown, write_out
from tare.client.transport import Daemon, target
from tare.errors import InvalidError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.client.document import Json


def _run(daemon: Daemon, flags: Flags, names: list[str]) -> int:
    form = flags.text("format")
    if form not in ("", "json"):
        raise InvalidError("--format takes json here")
    parts = []
    for name in names:
        found = daemon.call("GET", target("/tare/explain", {"name": name}))
        parts.append(document.compact(found) + "\n" if form else _words(found))
    write_out(("" if form else "\n").join(parts).encode("utf-8", "replace"))
    return 0


def _words(found: Json) -> str:
    lines = [f"{text(found, 'Name')} ({text(found, 'Id')[:12]}) is {text(found, 'State')}"]
    lines += [f"  {line}" for line in document.strings(found, "Why")]
    lines += [f"  try: {line}" for line in document.strings(found, "Advice")]
    rows = [
        [f"  {text(each, 'What')}", text(each, "Value"), text(each, "Source")]
        for each in document.items(found, "Limits")
    ]
    parts = ["\n".join(shown(line) for line in lines), "Limits\n" + aligned(rows).rstrip("\n")]
    ports = [
        f"  {text(each, 'Port')}\n    reached by: {text(each, 'Reach')}\n"
        f"    rule: {text(each, 'Rule')}"
        for each in document.items(found, "Ports")
    ]
    parts.append("\n".join(["Ports", *(ports or ["  none is published"])]))
    for title, key in (("Networks", "Networks"), ("Isolation", "Isolation"), ("Files", "Volumes")):
        said = document.strings(found, key)
        if said:
            parts.append("\n".join([title, *(f"  {shown(line)}" for line in said)]))
    return "\n".join(shown(part, "\n") for part in parts) + "\n"


COMMANDS = {
    "explain": Command(
        "[OPTIONS] CONTAINER [CONTAINER...]",
        "Say why a container is as it is: its end, limits, ports, walls",
        _run,
        {"format": ("", "string", "Print by 'json'")},
        least=1,
    ),
}
