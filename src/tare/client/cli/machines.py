"""vm kernels, convert: what virtual machines boot, and from one isolation to the other."""

from __future__ import annotations

from tare.client import document, units
from tare.client.document import number, text
from tare.client.options import Command, Flags
from tare.client.tables import aligned, write_out
from tare.client.transport import Daemon, target
from tare.errors import InvalidError


def _kernels(daemon: Daemon, flags: Flags, _arguments: list[str]) -> int:
    if flags.flag("fetch"):
        daemon.call("POST", "/tare/vm/kernels")
    found = daemon.call("GET", "/tare/vm/kernels")
    form = flags.text("format")
    if form == "json":
        write_out((document.compact(found) + "\n").encode())
        return 0
    if form:
        raise InvalidError("--format takes json here")
    rows = [["VERSION", "PACKAGE VERSION", "SHA256", "SIZE"]]
    rows += [
        [
            text(each, "Version"),
            text(each, "PackageVersion"),
            text(each, "Sha256")[:16],
            units.human_size(number(each, "Size")),
        ]
        for each in document.items(found)
    ]
    write_out(aligned(rows).encode("utf-8", "replace"))
    return 0


def _convert(daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    if flags.flag("vm") == flags.flag("container"):
        raise InvalidError("say into what: --vm or --container")
    query = {
        "container": arguments[0],
        "isolation": "vm" if flags.flag("vm") else "container",
        "discard": "1" if flags.flag("discard") else "0",
    }
    daemon.call("POST", target("/tare/convert", query))
    write_out(f"{arguments[0]}\n".encode())
    return 0


COMMANDS = {
    "convert": Command(
        "[OPTIONS] CONTAINER",
        "Make a virtual machine of a container, or the other way round",
        _convert,
        {
            "container": ("", "bool", "It becomes a container"),
            "discard": ("", "bool", "Give up what it wrote outside its volumes"),
            "vm": ("", "bool", "It becomes a virtual machine"),
        },
        least=1,
        most=1,
        notes=(
            "Name, volumes, networks, ports and limits stay. One that runs is stopped and started."
        ),
    ),
    "vm kernels": Command(
        "[OPTIONS]",
        "Show the kernels that virtual machines boot",
        _kernels,
        {
            "fetch": ("", "bool", "Fetch the newest from Debian first, verified by apt"),
            "format": ("", "string", "Print by 'json'"),
        },
        most=0,
        notes=(
            "The first virtual machine fetches a kernel by itself. It is Debian's cloud kernel,\n"
            "downloaded and verified by apt, and nothing is installed."
        ),
    ),
}
