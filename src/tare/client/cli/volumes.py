"""volume: create, ls, inspect, rm, prune, export, import."""

from __future__ import annotations

from tare.client import document, terminal, units
from tare.client.cli.archives import opened, pieces, save_stream
from tare.client.cli.each import confirmed, for_each
from tare.client.cli.inspect import print_each
from tare.client.cli.ps import filters
from tare.client.document import number, text
from tare.client.options import Command, Flags
from tare.client.tables import render, say, shown, warn, write_out
from tare.client.transport import Daemon, segment, target
from tare.errors import InvalidError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.client.document import Json

HEADERS = {
    "Driver": "DRIVER",
    "Name": "VOLUME NAME",
    "Labels": "LABELS",
    "Mountpoint": "MOUNTPOINT",
    "Scope": "SCOPE",
    "Size": "SIZE",
    "Links": "LINKS",
    "Status": "STATUS",
}
_TAR = "application/x-tar"


def _pairs(what: str, words: list[str]) -> dict[str, Json]:
    found: dict[str, Json] = {}
    for word in words:
        name, _, value = word.partition("=")
        if not name:
            raise InvalidError(f"invalid {what}: {word!r}", hint="Write NAME=VALUE.")
        found[name] = value
    return found


def _create(daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    named = flags.text("name")
    if named and arguments:
        raise InvalidError("conflicting options: cannot specify a volume-name through both --name")
    body: dict[str, Json] = {
        "Name": arguments[0] if arguments else named,
        "Driver": flags.text("driver", "local"),
        "DriverOpts": _pairs("option", flags.list("opt")),
        "Labels": _pairs("label", flags.list("label")),
    }
    say(text(daemon.call("POST", "/volumes/create", body), "Name"))
    return 0


def _row(each: Json, sizes: dict[str, Json]) -> dict[str, str]:
    name = text(each, "Name")
    usage = sizes.get(name)
    labels = document.mapping(each, "Labels")
    status = document.mapping(each, "Status")
    return {
        "Driver": text(each, "Driver"),
        "Name": name,
        "Labels": ",".join(f"{key}={value}" for key, value in labels.items()),
        "Mountpoint": text(each, "Mountpoint"),
        "Scope": text(each, "Scope"),
        "Size": "N/A" if usage is None else units.human_size(number(usage, "UsageData", "Size"), 3),
        "Links": "N/A" if usage is None else str(number(usage, "UsageData", "RefCount")),
        "Status": "deleted by hand" if "Missing" in status else "",
        "Availability": "N/A",
        "Group": "N/A",
    }


def _ls(daemon: Daemon, flags: Flags, _arguments: list[str]) -> int:
    query = {"filters": filters(flags.list("filter"))}
    found = document.items(daemon.call("GET", target("/volumes", query)), "Volumes")
    form, sized = flags.text("format"), flags.flag("size")
    if flags.flag("quiet") and not form:
        write_out("".join(f"{shown(text(each, 'Name'))}\n" for each in found).encode())
        return 0
    sizes: dict[str, Json] = {}
    if sized or ".Size" in form or ".Links" in form:
        usage = daemon.call("GET", "/system/df?type=volume")
        sizes = {text(each, "Name"): each for each in document.items(usage, "Volumes")}
    rows = [_row(each, sizes) for each in found]
    columns = ["Driver", "Name"] + (["Links", "Size"] if sized else [])
    if any(row["Status"] for row in rows):
        columns.append("Status")
    write_out(render(form, columns, HEADERS, rows).encode("utf-8", "replace"))
    return 0


def _inspect(daemon: Daemon, flags: Flags, names: list[str]) -> int:
    return print_each(flags, names, lambda name: daemon.call("GET", f"/volumes/{segment(name)}"))


def _rm(daemon: Daemon, flags: Flags, names: list[str]) -> int:
    force = flags.flag("force")

    def deed(name: str) -> str:
        daemon.call("DELETE", target(f"/volumes/{segment(name)}", {"force": force}))
        return name

    return for_each(names, deed)


def prune(daemon: Daemon, words: list[str], *, everything: bool, dry: bool = False) -> int:
    """Remove volumes that no container has and say which; the bytes that came free.

    *dry* only says it.
    """
    chosen = [*words, "all=true"] if everything else words
    query: dict[str, str | int | bool] = {"filters": filters(chosen), "dry-run": dry}
    answer = daemon.call("POST", target("/volumes/prune", query))
    deleted = document.strings(answer, "VolumesDeleted")
    if deleted:
        say(
            ("Volumes that would go:\n" if dry else "Deleted Volumes:\n")
            + "\n".join(deleted)
            + "\n"
        )
    return number(answer, "SpaceReclaimed")


def _prune(daemon: Daemon, flags: Flags, _arguments: list[str]) -> int:
    everything = flags.flag("all")
    which = "all" if everything else "anonymous"
    dry = flags.flag("dry-run")
    if not (dry or flags.flag("force")) and not confirmed(
        f"WARNING! This will remove {which} local volumes not used by at least one container."
    ):
        say("Nothing was removed.")
        return 1
    size = prune(daemon, flags.list("filter"), everything=everything, dry=dry)
    word = "that would be reclaimed" if dry else "reclaimed space"
    say(f"Total {word}: {units.human_size(size)}")
    return 0


def _export(daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    path = flags.text("output")
    path = "" if path == "-" else path
    if not path and terminal.is_terminal(1):
        raise InvalidError(
            "cowardly refusing to save to a terminal", hint="Use the -o flag or redirect."
        )
    query: dict[str, str | int | bool] = {"name": arguments[0], "pause": flags.flag("pause")}
    response = daemon.open("GET", target("/tare/volumes/export", query))
    consistency, note = (
        response.headers.get("tare-consistency", ""),
        response.headers.get("tare-note", ""),
    )
    save_stream(response, path)
    if consistency == "live" or not flags.flag("quiet"):
        warn(f"{arguments[0]}: {consistency}: {note}")
    return 0


def _import(daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    source = arguments[1] if len(arguments) > 1 else flags.text("input") or "-"
    if source == "-" and terminal.is_terminal(0):
        raise InvalidError("there is no archive to read", hint="Name a file, or redirect one.")
    query: dict[str, str | int | bool] = {
        "name": arguments[0],
        "replace": flags.flag("replace"),
    }
    where = target("/tare/volumes/import", query)
    response = daemon.open("POST", where, pieces(opened(source)), kind=_TAR)
    say(text(document.decode(response.read()), "Name"))
    return 0


_FORCE = ("f", "bool", "Do not ask")

COMMANDS = {
    "volume create": Command(
        "[OPTIONS] [VOLUME]",
        "Make a volume",
        _create,
        {
            "driver": ("d", "string", 'The driver (default and only one: "local")'),
            "label": ("", "list", "A label of it: NAME=VALUE (may be repeated)"),
            "name": ("", "string", "Its name"),
            "opt": ("o", "list", "An option of the driver: type=, device=, o=, size= (repeated)"),
        },
        most=1,
        notes=(
            "Options of the driver local:\n"
            "  size=10G                                 no more than that, in a file of its own\n"
            "  type=tmpfs o=size=100m,mode=700          in memory, gone when the last user ends\n"
            "  type=none o=bind device=/srv/data        a directory of the host\n"
            "  type=nfs o=addr=HOST,rw device=:/export  a directory of another host"
        ),
    ),
    "volume ls": Command(
        "[OPTIONS]",
        "List volumes",
        _ls,
        {
            "filter": ("", "filter", "Only those for which NAME=VALUE (dangling=true, label=a)"),
            "format": ("", "string", "Print by 'table', 'table TEMPLATE', 'json' or a Go template"),
            "quiet": ("q", "bool", "Names only"),
            "size": ("s", "bool", "How much each takes and how many containers have it"),
        },
        most=0,
    ),
    "volume inspect": Command(
        "[OPTIONS] VOLUME [VOLUME...]",
        "Show all details of volumes",
        _inspect,
        {"format": ("f", "string", "Print by 'json' or a Go template")},
        least=1,
    ),
    "volume rm": Command(
        "[OPTIONS] VOLUME [VOLUME...]",
        "Remove volumes and what is in them",
        _rm,
        {"force": ("f", "bool", "One that is not there is no error")},
        least=1,
    ),
    "volume prune": Command(
        "[OPTIONS]",
        "Remove anonymous volumes that no container has",
        _prune,
        {
            "all": ("a", "bool", "Those with a name, too"),
            "dry-run": ("n", "bool", "Only say what would go"),
            "filter": ("", "filter", "Only those for which NAME=VALUE (label=a=b)"),
            "force": _FORCE,
        },
        most=0,
    ),
    "volume export": Command(
        "[OPTIONS] VOLUME",
        "Write a volume as a tar archive, bit for bit",
        _export,
        {
            "output": ("o", "string", "Write to this file instead of standard output"),
            "pause": ("", "bool", "Freeze the containers that write to it until it is done"),
            "quiet": ("q", "bool", "Do not say how consistent it is, unless it is not"),
        },
        least=1,
        most=1,
        notes=(
            "A volume in use is copied from a snapshot where the file system shares extents (btrfs,"
            " xfs);\nelse --pause freezes its writers meanwhile. What was done is said at the end."
        ),
    ),
    "volume import": Command(
        "[OPTIONS] VOLUME [FILE|-]",
        "Make a volume of an archive",
        _import,
        {
            "input": ("i", "string", "Read this file instead of standard input"),
            "replace": ("", "bool", "Delete what is in the volume"),
        },
        least=1,
        most=2,
    ),
}
