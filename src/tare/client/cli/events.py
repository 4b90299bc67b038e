"""events: what happens, as it happens."""

from __future__ import annotations

from tare.client import document, units
from tare.client.cli.ps import filters
from tare.client.document import number, text
from tare.client.options import Command, Flags
from tare.client.tables import shown, write_out
from tare.client.transport import Daemon, target

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.client.document import Json


def run(daemon: Daemon, flags: Flags, _arguments: list[str]) -> int:
    """`tare events`."""
    form = flags.text("format")
    template = None
    if form not in ("", "json", "{{json .}}"):
        from tare.client.templates import Template

        template = Template(form)
    query = {
        "since": units.moment(flags.text("since")),
        "until": units.moment(flags.text("until")),
        "filters": filters(flags.list("filter")),
    }
    for raw in daemon.open("GET", target("/events", query)).lines():
        event = document.decode(raw)
        if template is not None:
            line = shown(template.render(event), "\n\t")
        else:
            line = document.compact(event) if form else shown(sentence(event))
        write_out(line.encode("utf-8", "replace") + b"\n")
    return 0


def sentence(event: Json) -> str:
    """One event as Docker prints it: time, kind, action, id and attributes."""
    attributes = document.mapping(event, "Actor", "Attributes")
    shown_ = ", ".join(f"{key}={attributes[key]}" for key in sorted(attributes))
    when = number(event, "timeNano") or number(event, "time") * 1_000_000_000
    line = f"{units.nano_stamp(when)} {text(event, 'Type')} {text(event, 'Action')}"
    line += f" {text(event, 'Actor', 'ID')}"
    return f"{line} ({shown_})" if attributes else line


COMMANDS = {
    "events": Command(
        "[OPTIONS]",
        "Show what happens, as it happens",
        run,
        {
            "filter": ("f", "filter", "Only those for which NAME=VALUE (event=die, container=web)"),
            "format": ("", "string", "Print by 'json' or a Go template"),
            "since": ("", "string", "Begin with those after this time"),
            "until": ("", "string", "End at this time"),
        },
        most=0,
    ),
}
