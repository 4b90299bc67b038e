"""images, rmi, tag and history: what images there are and what they are called."""

from __future__ import annotations

from tare.client import document, units
from tare.client.cli.each import for_each
from tare.client.cli.ps import ellipsis, filters
from tare.client.document import number, text
from tare.client.options import Command, Flags
from tare.client.tables import render, say, write_out
from tare.client.transport import Daemon, quoted, target
from tare.errors import InvalidError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.client.document import Json

HEADERS = {
    "Repository": "REPOSITORY",
    "Tag": "TAG",
    "Digest": "DIGEST",
    "ID": "IMAGE ID",
    "CreatedSince": "CREATED",
    "CreatedAt": "CREATED AT",
    "Size": "SIZE",
    "Containers": "CONTAINERS",
    "SharedSize": "SHARED SIZE",
    "UniqueSize": "UNIQUE SIZE",
    "VirtualSize": "VIRTUAL SIZE",
    "Trust": "TRUST",
}
_NONE = "<none>"
_HISTORY_HEADERS = {
    "ID": "IMAGE",
    "CreatedSince": "CREATED",
    "CreatedAt": "CREATED AT",
    "CreatedBy": "CREATED BY",
    "Size": "SIZE",
    "Comment": "COMMENT",
}


def _images(daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    words = flags.list("filter")
    if arguments:
        words = [*words, f"reference={arguments[0]}"]
    query: dict[str, str | int | bool] = {"all": flags.flag("all"), "filters": filters(words)}
    listed = document.items(daemon.call("GET", target("/images/json", query)))
    whole = flags.flag("no-trunc")
    wanted = arguments[0] if arguments else ""
    rows = [
        row
        for each in listed
        for row in _rows(each, wanted, whole=whole, digests=flags.flag("digests"))
    ]
    if flags.flag("quiet") and not flags.text("format"):
        write_out("".join(f"{row['ID']}\n" for row in rows).encode())
        return 0
    columns = ["Repository", "Tag", "ID", "CreatedSince", "Size"]
    if flags.flag("digests"):
        columns.insert(2, "Digest")
    if any("Trust" in row for row in rows):  # somebody has set trust up: it matters to them
        columns.append("Trust")
    write_out(render(flags.text("format"), columns, HEADERS, rows).encode("utf-8", "replace"))
    return 0


def _rows(each: Json, wanted: str, *, whole: bool, digests: bool) -> list[dict[str, str]]:
    created = number(each, "Created")
    identity = text(each, "Id")
    base = {
        "ID": identity if whole else identity.removeprefix("sha256:")[:12],
        "CreatedSince": units.ago(created),
        "CreatedAt": units.local_stamp(created),
        "Size": units.human_size(number(each, "Size"), 3),
        "Containers": _count(each, "Containers"),
        "SharedSize": _measure(each, "SharedSize"),
        "UniqueSize": "N/A",
        "VirtualSize": units.human_size(number(each, "Size")),
    }
    if verdict := text(each, "Tare", "Trust"):
        base["Trust"] = verdict
    by_repository = {}
    for reference in document.strings(each, "RepoDigests"):
        repository, _, digest = reference.partition("@")
        by_repository[repository] = digest
    names = [name for name in document.strings(each, "RepoTags") if name != "<none>:<none>"]
    rows = []
    for name in names:
        repository, _, tag = name.rpartition(":")
        digest = by_repository.get(repository, _NONE) if digests else _NONE
        rows.append({"Repository": repository, "Tag": tag, "Digest": digest, **base})
    if not rows:
        repository = next(iter(by_repository), _NONE)
        digest = by_repository.get(repository, _NONE)
        rows.append({"Repository": repository, "Tag": _NONE, "Digest": digest, **base})
    return rows


def _count(each: Json, key: str) -> str:
    value = number(each, key)
    return str(value) if value >= 0 and document.field(each, key) is not None else "N/A"


def _measure(each: Json, key: str) -> str:
    value = number(each, key)
    known = value >= 0 and document.field(each, key) is not None
    return units.human_size(value, 3) if known else "N/A"


def _rmi(daemon: Daemon, flags: Flags, names: list[str]) -> int:
    query = {"force": flags.flag("force"), "noprune": flags.flag("no-prune")}

    def deed(name: str) -> str | None:
        answer = daemon.call("DELETE", target(f"/images/{quoted(name)}", query))
        lines = []
        for removed in document.items(answer):
            if untagged := text(removed, "Untagged"):
                lines.append(f"Untagged: {untagged}")
            if deleted := text(removed, "Deleted"):
                lines.append(f"Deleted: {deleted}")
        return "\n".join(lines) if lines else None

    return for_each(names, deed)


def split_name(name: str) -> tuple[str, str]:
    """Repository and tag of ``host:5000/a/b:tag``; "" for no tag. A digest is InvalidError."""
    if "@" in name:
        raise InvalidError(f"refusing to create a tag with a digest reference: {name}")
    head, slash, last = name.rpartition("/")
    base, _, tag = last.partition(":")
    return head + slash + base, tag


def _tag(daemon: Daemon, _flags: Flags, arguments: list[str]) -> int:
    repository, tag = split_name(arguments[1])
    query = {"repo": repository, "tag": tag or "latest"}
    daemon.call("POST", target(f"/images/{quoted(arguments[0])}/tag", query))
    return 0


def _history(daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    listed = document.items(daemon.call("GET", f"/images/{quoted(arguments[0])}/history"))
    whole, human = flags.flag("no-trunc"), flags.flag("human", True)
    rows = []
    for each in listed:
        identity, created = text(each, "Id"), number(each, "Created")
        by = text(each, "CreatedBy").replace("\t", " ")
        size = number(each, "Size")
        rows.append(
            {
                "ID": identity if whole else identity.removeprefix("sha256:")[:12],
                "CreatedSince": units.ago(created) if human else _utc(created),
                "CreatedAt": _utc(created),
                "CreatedBy": by if whole else ellipsis(by, 45),
                "Size": units.human_size(size, 3) if human else str(size),
                "Comment": text(each, "Comment"),
            }
        )
    if flags.flag("quiet") and not flags.text("format"):
        say("\n".join(row["ID"] for row in rows))
        return 0
    columns = ("ID", "CreatedSince" if human else "CreatedAt", "CreatedBy", "Size", "Comment")
    table = render(flags.text("format"), columns, _HISTORY_HEADERS, rows)
    write_out(table.encode("utf-8", "replace"))
    return 0


def _utc(created: int) -> str:
    import time

    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(created))


_FORMAT = ("", "string", "Print by 'table', 'table TEMPLATE', 'json' or a Go template")

COMMANDS = {
    "images": Command(
        "[OPTIONS] [REPOSITORY[:TAG]]",
        "List images",
        _images,
        {
            "all": ("a", "bool", "Intermediate images, too"),
            "digests": ("", "bool", "Digests, too"),
            "filter": ("f", "filter", "Only those for which NAME=VALUE (dangling=true, label=a=b)"),
            "format": _FORMAT,
            "no-trunc": ("", "bool", "Do not shorten"),
            "quiet": ("q", "bool", "Only ids"),
        },
        most=1,
    ),
    "rmi": Command(
        "[OPTIONS] IMAGE [IMAGE...]",
        "Remove images",
        _rmi,
        {
            "force": ("f", "bool", "Although it has several names or stopped containers"),
            "no-prune": ("", "bool", "Keep parents that have no name"),
        },
        least=1,
    ),
    "tag": Command(
        "SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]", "Give an image another name", _tag, least=2, most=2
    ),
    "history": Command(
        "[OPTIONS] IMAGE",
        "Show how an image was made",
        _history,
        {
            "format": _FORMAT,
            "human": ("H", "bool", "Sizes and dates for people (default true)"),
            "no-trunc": ("", "bool", "Do not shorten"),
            "quiet": ("q", "bool", "Only ids"),
        },
        least=1,
        most=1,
    ),
}
