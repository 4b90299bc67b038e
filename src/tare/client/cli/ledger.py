"""ledger: who did what to which digest with which verdict, and whether that was changed."""

from __future__ import annotations

import json
import re
import sys
from datetime import UTC, datetime

from tare.client import document
from tare.client.document import number, text
from tare.client.options import Command, Flags
from tare.client.tables import aligned, say, shown, write_out
from tare.client.transport import Daemon, target
from tare.errors import FailedError, InvalidError

_HEAD = re.compile(r"(\d{1,18}):([0-9a-f]{64})")


def _show(daemon: Daemon, flags: Flags, _arguments: list[str]) -> int:
    form = flags.text("format")
    if form not in ("", "json"):
        raise InvalidError("--format takes json here")
    query: dict[str, str | int | bool] = {}
    if flags.given("tail"):
        query["tail"] = flags.number("tail")
    response = daemon.open("GET", target("/tare/ledger", query))
    rows = [["NO", "TIME", "WHO", "DID", "WHAT", "DIGEST", "VERDICT"]]
    for line in response.lines():
        if form:
            write_out(line + b"\n")
            continue
        each = document.decode(line)
        moment = datetime.fromtimestamp(number(each, "time") / 1e9, UTC)
        digest = text(each, "digest").removeprefix("sha256:")[:12]
        cells = [text(each, "who"), text(each, "did"), text(each, "what"), digest or "-"]
        rows.append(
            [
                str(number(each, "number")),
                moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
                *(shown(cell) for cell in cells),
                shown(text(each, "verdict")) or "-",
            ]
        )
    response.connection.close()
    if not form:
        write_out(aligned(rows).encode())
    return 0


def _verify(daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    noted = flags.text("head")
    match = _HEAD.fullmatch(noted)
    if noted and match is None:
        raise InvalidError(f"invalid --head {noted[:80]!r}: NUMBER:HASH, as this command prints it")
    head = (int(match[1]), match[2]) if match else None
    if arguments or head is not None:
        from tare.model.ledger import check

        if arguments:
            with open(arguments[0], "rb") as file:
                found = check((line.rstrip(b"\n") for line in file), head)
        else:
            response = daemon.open("GET", "/tare/ledger")
            found = check(response.lines(), head)
            response.connection.close()
        entries, last, chain, fault = found.entries, found.number, found.head, found.fault
    else:
        told = daemon.call("GET", "/tare/ledger/verify")
        entries, last = number(told, "Entries"), number(told, "Number")
        chain, fault = text(told, "Head"), text(told, "Fault")
    if flags.text("format") == "json":
        body = {"entries": entries, "head": f"{last}:{chain}", "fault": fault}
        write_out((json.dumps(body) + "\n").encode())
        return 1 if fault else 0
    if fault:
        raise FailedError(f"the ledger does not hold: {fault}")
    say(f"{entries} entries hold; head {last}:{chain}")
    return 0


def _export(daemon: Daemon, flags: Flags, _arguments: list[str]) -> int:
    response = daemon.open("GET", "/tare/ledger")
    path = flags.text("output")
    out = open(path, "wb") if path else sys.stdout.buffer  # closed below
    try:
        for piece in response.pieces():
            out.write(piece)
        out.flush()
    finally:
        if path:
            out.close()
    response.connection.close()
    return 0


_FORMAT = ("", "string", "Print by 'json'")
_SHOWN = {
    "format": _FORMAT,
    "tail": ("n", "int", "Only so many, the latest"),
}

COMMANDS = {
    "ledger": Command(
        "[OPTIONS]", "Show who did what to which image with which verdict", _show, _SHOWN, most=0
    ),
    "ledger show": Command(
        "[OPTIONS]", "Show who did what to which image with which verdict", _show, _SHOWN, most=0
    ),
    "ledger verify": Command(
        "[OPTIONS] [FILE]",
        "Check that no entry was changed, left out or cut off",
        _verify,
        {
            "format": _FORMAT,
            "head": ("", "string", "It must have passed this NUMBER:HASH, noted before"),
        },
        most=1,
        notes="With FILE, an export is checked, without an engine's word. Note the head elsewhere\n"
        "now and then: whoever writes as the engine's user could write another chain.",
    ),
    "ledger export": Command(
        "[OPTIONS]",
        "Write all entries as lines of JSON",
        _export,
        {"output": ("o", "string", "Write to this file instead of standard output")},
        most=0,
    ),
}
