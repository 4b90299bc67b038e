"""The tables of ``system df -v``, as Docker prints them. Not for the summary (``system``)."""

from __future__ import annotations

from tare.client import document, units
from tare.client.cli.ps import ellipsis
from tare.client.document import number, text
from tare.client.tables import aligned, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.client.document import Json

_NONE = "<none>"
_IMAGES = (
    "REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE", "SHARED SIZE", "UNIQUE SIZE", "CONTAINERS",
)  # fmt: skip
_CONTAINERS = (
    "CONTAINER ID", "IMAGE", "COMMAND", "LOCAL VOLUMES", "SIZE", "CREATED", "STATUS", "NAMES",
)  # fmt: skip
_VOLUMES = ("VOLUME NAME", "LINKS", "SIZE")
_CACHE = ("CACHE ID", "CACHE TYPE", "SIZE", "LAST USED", "DESCRIPTION")


def verbose(usage: Json) -> str:
    """Four tables of all that takes space."""
    cached = document.items(usage, "BuildCache")
    total = units.human_size(sum(number(each, "Size") for each in cached))
    sections = (
        ("Images space usage:", _IMAGES, _images(usage)),
        ("Containers space usage:", _CONTAINERS, _containers(usage)),
        ("Local Volumes space usage:", _VOLUMES, _volumes(usage)),
        (f"Build cache usage: {total}", _CACHE, [_kept(each) for each in cached]),
    )
    return "\n".join(f"{title}\n\n{aligned([list(head), *rows])}" for title, head, rows in sections)


def _images(usage: Json) -> list[list[str]]:
    rows = []
    for each in document.items(usage, "Images"):
        names = [name for name in document.strings(each, "RepoTags") if name != "<none>:<none>"]
        size, shared = number(each, "Size"), max(number(each, "SharedSize"), 0)
        rest = [
            text(each, "Id").removeprefix("sha256:")[:12],
            units.ago(number(each, "Created")),
            units.human_size(size, 3),
            units.human_size(shared, 3),
            units.human_size(max(size - shared, 0), 3),
            str(max(number(each, "Containers"), 0)),
        ]
        for name in names or [f"{_NONE}:{_NONE}"]:
            repository, _, tag = name.rpartition(":")
            rows.append([shown(repository), shown(tag), *rest])
    return rows


def _containers(usage: Json) -> list[list[str]]:
    rows = []
    for each in document.items(usage, "Containers"):
        mounts = [m for m in document.items(each, "Mounts") if text(m, "Type") == "volume"]
        names = ",".join(name.lstrip("/") for name in document.strings(each, "Names"))
        rows.append(
            [
                text(each, "Id")[:12],
                shown(text(each, "Image")),
                f'"{ellipsis(shown(text(each, "Command")), 20)}"',
                str(len(mounts)),
                units.human_size(number(each, "SizeRw"), 3),
                units.ago(number(each, "Created")),
                shown(text(each, "Status")),
                shown(names),
            ]
        )
    return rows


def _volumes(usage: Json) -> list[list[str]]:
    return [
        [
            shown(text(each, "Name")),
            str(max(number(each, "UsageData", "RefCount"), 0)),
            units.human_size(max(number(each, "UsageData", "Size"), 0), 3),
        ]
        for each in document.items(usage, "Volumes")
    ]


def _kept(each: Json) -> list[str]:
    return [
        text(each, "ID")[:12],
        text(each, "Type"),
        units.human_size(number(each, "Size"), 3),
        text(each, "LastUsedAt")[:19].replace("T", " "),
        ellipsis(shown(text(each, "Description")), 45),
    ]
