"""ps: the list of containers."""

from __future__ import annotations

from tare.client import document, units
from tare.client.document import number, text
from tare.client.options import Command, Flags
from tare.client.tables import render, shown, width, write_out
from tare.client.transport import Daemon, target

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.client.document import Json

HEADERS = {
    "ID": "CONTAINER ID",
    "Image": "IMAGE",
    "Command": "COMMAND",
    "CreatedAt": "CREATED AT",
    "RunningFor": "CREATED",
    "Status": "STATUS",
    "State": "STATE",
    "Ports": "PORTS",
    "Names": "NAMES",
    "Size": "SIZE",
    "Labels": "LABELS",
    "LocalVolumes": "LOCAL VOLUMES",
    "Mounts": "MOUNTS",
    "Networks": "NETWORKS",
    "Platform": "PLATFORM",
}
_COLUMNS = ("ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names")


def run(daemon: Daemon, flags: Flags, _arguments: list[str]) -> int:
    """`tare ps`."""
    limit = flags.number("last", -1)
    if flags.flag("latest") and limit == -1:
        limit = 1
    form = flags.text("format")
    sized = flags.flag("size") or ".Size" in form
    query: dict[str, str | int | bool] = {
        "all": flags.flag("all"),
        "limit": limit if limit > 0 else "",
        "size": sized,
        "filters": filters(flags.list("filter")),
    }
    listed = document.items(daemon.call("GET", target("/containers/json", query)))
    if flags.flag("quiet") and not form:
        length = 64 if flags.flag("no-trunc") else 12
        write_out("".join(f"{text(each, 'Id')[:length]}\n" for each in listed).encode())
        return 0
    rows = [row(each, whole=flags.flag("no-trunc")) for each in listed]
    columns = (*_COLUMNS, "Size") if flags.flag("size") else _COLUMNS
    write_out(render(form, columns, HEADERS, rows).encode("utf-8", "replace"))
    return 0


def filters(words: list[str]) -> str:
    """``--filter NAME=VALUE`` as the JSON of the API; "" for none."""
    if not words:
        return ""
    chosen: dict[str, Json] = {}
    for word in words:
        name, _, value = word.partition("=")
        values = chosen.setdefault(name.strip().lower(), {})
        assert isinstance(values, dict)
        values[value.strip()] = True
    return document.encode(chosen).decode()


def row(each: Json, *, whole: bool) -> dict[str, str]:
    """One container as the fields that --format knows."""
    identity, created = text(each, "Id"), number(each, "Created")
    names = sorted(
        (name.lstrip("/") for name in document.strings(each, "Names")),
        key=lambda name: name.count("/"),
    )
    command = text(each, "Command")
    labels = document.mapping(each, "Labels")
    mounts = [text(m, "Name") or text(m, "Source") for m in document.items(each, "Mounts")]
    return {
        "ID": identity if whole else identity[:12],
        "Image": _image(each, whole=whole),
        "Command": f'"{command if whole else ellipsis(command, 20)}"',
        "CreatedAt": units.local_stamp(created),
        "RunningFor": units.ago(created),
        "Status": text(each, "Status"),
        "State": text(each, "State"),
        "Ports": ports(document.items(each, "Ports")),
        "Names": ",".join(names if whole else [name for name in names if "/" not in name]),
        "Size": _size(each),
        "Labels": ",".join(f"{key}={labels[key]}" for key in sorted(labels)),
        "LocalVolumes": str(
            sum(text(m, "Driver") == "local" for m in document.items(each, "Mounts"))
        ),
        "Mounts": ",".join(mount if whole else ellipsis(mount, 15) for mount in mounts),
        "Networks": ",".join(sorted(document.mapping(each, "NetworkSettings", "Networks"))),
        "Platform": "",
    }


def _image(each: Json, *, whole: bool) -> str:
    image = text(each, "Image")
    if not image:
        return "<no image>"
    if not whole and image.startswith("sha256:") and text(each, "ImageID") == image:
        return image[7:19]
    return image


def _size(each: Json) -> str:
    own = units.human_size(number(each, "SizeRw"), 3)
    total = number(each, "SizeRootFs")
    return f"{own} (virtual {units.human_size(total, 3)})" if total > 0 else own


def ellipsis(words: str, most: int) -> str:
    """At most *most* columns of *words*, the last one a … when something is missing."""
    words = shown(words)
    if width(words) <= most:
        return words
    while width(words) > most - 1:
        words = words[:-1]
    return f"{words}…"


def ports(listed: list[Json]) -> str:
    """Ports as Docker lists them: neighbours as ranges, those with another host port last."""
    ranges: list[tuple[str, str, int, int]] = []
    open_range: dict[tuple[str, str], int] = {}
    mapped = []
    for port in sorted(listed, key=_port_order):
        inside, outside = number(port, "PrivatePort"), number(port, "PublicPort")
        address, protocol = text(port, "IP"), text(port, "Type")
        shown_address = f"[{address}]" if ":" in address else address
        if address and outside != inside:
            mapped.append(f"{shown_address}:{outside}->{inside}/{protocol}")
            continue
        key = (shown_address, protocol)
        at = open_range.get(key)
        if at is not None and ranges[at][3] + 1 == inside:
            ranges[at] = (*key, ranges[at][2], inside)
        else:
            open_range[key] = len(ranges)
            ranges.append((*key, inside, inside))
    words = []
    for address, protocol, first, last in ranges:
        span = str(first) if first == last else f"{first}-{last}"
        words.append(f"{address}:{span}->{span}/{protocol}" if address else f"{span}/{protocol}")
    return ", ".join(words + mapped)


def _port_order(port: Json) -> tuple[int, str, int, str]:
    return (
        number(port, "PrivatePort"),
        text(port, "IP"),
        number(port, "PublicPort"),
        text(port, "Type"),
    )


COMMANDS = {
    "ps": Command(
        "[OPTIONS]",
        "List containers",
        run,
        {
            "all": ("a", "bool", "Those that do not run, too"),
            "filter": ("f", "filter", "Only those for which NAME=VALUE (status=exited, label=a=b)"),
            "format": ("", "string", "Print by 'table', 'table TEMPLATE', 'json' or a Go template"),
            "last": ("n", "int", "The last N created, whatever their state (default -1)"),
            "latest": ("l", "bool", "The last created, whatever its state"),
            "no-trunc": ("", "bool", "Do not shorten"),
            "quiet": ("q", "bool", "Only ids"),
            "size": ("s", "bool", "Sizes, too"),
        },
        most=0,
    ),
}
