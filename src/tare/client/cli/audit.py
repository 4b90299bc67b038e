"""audit: checks of host, engine, images, workloads and Dockerfiles, and what they have found."""

from __future__ import annotations

from tare.audit import finding
from tare.audit.formats import text
from tare.client import document
from tare.client.options import Command, Flags
from tare.client.tables import shown, write_out
from tare.client.transport import Daemon
from tare.errors import InvalidError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.client.document import Json


def _run(daemon: Daemon, flags: Flags, words: list[str]) -> int:
    body: dict[str, Json] = {"What": [*words[:1]], "Names": [*words[1:]]}
    body["Benchmark"] = flags.text("benchmark")
    answer = daemon.call("POST", "/tare/audit", body)
    form = flags.text("format", "text")
    if form == "json":
        write_out((document.pretty(answer) + "\n").encode())
        return 0
    if form != "text":
        raise InvalidError("--format takes text or json here")
    report = finding.from_plain(answer)
    write_out(shown(text.render(report), "\n").encode("utf-8", "replace"))
    return 0


COMMANDS = {
    "audit": Command(
        "[OPTIONS] [host|engine|image|workload|dockerfile|all] [NAME...]",
        "Check host, engine, images and workloads against the CIS Docker Benchmark",
        _run,
        {
            "benchmark": ("", "string", "CIS Docker Benchmark 1.2 (default), 1.6, 1.7 or 1.8"),
            "format": ("", "string", "Print as 'text' or 'json'"),
        },
    ),
}
