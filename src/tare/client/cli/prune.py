"""prune: what nobody uses any more is removed, after a question."""

from __future__ import annotations

from tare.client import document, units
from tare.client.cli.each import confirmed
from tare.client.cli.ps import filters
from tare.client.document import number, text
from tare.client.options import Command, Flags
from tare.client.tables import say
from tare.client.transport import Daemon, target


def _containers(daemon: Daemon, words: list[str]) -> int:
    answer = daemon.call("POST", target("/containers/prune", {"filters": filters(words)}))
    deleted = document.strings(answer, "ContainersDeleted")
    if deleted:
        say("Deleted Containers:\n" + "\n".join(deleted) + "\n")
    return number(answer, "SpaceReclaimed")


def _images(daemon: Daemon, words: list[str], *, everything: bool) -> int:
    chosen = [f"dangling={'false' if everything else 'true'}", *words]
    answer = daemon.call("POST", target("/images/prune", {"filters": filters(chosen)}))
    lines = []
    for each in document.items(answer, "ImagesDeleted"):
        if untagged := text(each, "Untagged"):
            lines.append(f"untagged: {untagged}")
        if deleted := text(each, "Deleted"):
            lines.append(f"deleted: {deleted}")
    if lines:
        say("Deleted Images:\n" + "\n".join(lines) + "\n")
    return number(answer, "SpaceReclaimed")


def _reclaimed(size: int) -> int:
    say(f"Total reclaimed space: {units.human_size(size)}")
    return 0


def _container_prune(daemon: Daemon, flags: Flags, _arguments: list[str]) -> int:
    if not flags.flag("force") and not confirmed(
        "WARNING! This will remove all stopped containers."
    ):
        say("Nothing was removed.")
        return 1
    return _reclaimed(_containers(daemon, flags.list("filter")))


def _image_prune(daemon: Daemon, flags: Flags, _arguments: list[str]) -> int:
    everything = flags.flag("all")
    which = (
        "images without at least one container associated to them"
        if everything
        else "dangling images"
    )
    if not flags.flag("force") and not confirmed(f"WARNING! This will remove all {which}."):
        say("Nothing was removed.")
        return 1
    return _reclaimed(_images(daemon, flags.list("filter"), everything=everything))


def _system_prune(daemon: Daemon, flags: Flags, _arguments: list[str]) -> int:
    everything = flags.flag("all")
    kind = (
        "images without at least one container associated to them"
        if everything
        else "dangling images"
    )
    volumes = flags.flag("volumes")
    question = "WARNING! This will remove:\n  - all stopped containers\n"
    question += "  - all networks not used by at least one container\n"
    if volumes:
        question += "  - all anonymous volumes not used by at least one container\n"
    question += f"  - all {kind}\n"
    if not flags.flag("force") and not confirmed(question):
        say("Nothing was removed.")
        return 1
    words = flags.list("filter")
    size = _containers(daemon, words)
    from tare.client.cli import networks

    networks.prune(daemon, words)
    if volumes:
        from tare.client.cli.volumes import prune

        size += prune(daemon, [w for w in words if w.startswith("label")], everything=False)
    return _reclaimed(size + _images(daemon, words, everything=everything))


_FORCE = ("f", "bool", "Do not ask")
_FILTER = ("", "filter", "Only those for which NAME=VALUE (until=24h, label=a=b)")

COMMANDS = {
    "container prune": Command(
        "[OPTIONS]",
        "Remove all stopped containers",
        _container_prune,
        {"filter": _FILTER, "force": _FORCE},
        most=0,
    ),
    "image prune": Command(
        "[OPTIONS]",
        "Remove images that nothing uses",
        _image_prune,
        {
            "all": ("a", "bool", "All that no container uses, not only those without a name"),
            "filter": _FILTER,
            "force": _FORCE,
        },
        most=0,
    ),
    "system prune": Command(
        "[OPTIONS]",
        "Remove stopped containers, unused networks and images",
        _system_prune,
        {
            "all": (
                "a",
                "bool",
                "All images that no container uses, not only those without a name",
            ),
            "filter": _FILTER,
            "force": _FORCE,
            "volumes": ("", "bool", "Anonymous volumes that no container has, too"),
        },
        most=0,
    ),
}
