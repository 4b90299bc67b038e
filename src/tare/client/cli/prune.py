"""prune: what nobody uses any more is removed, after a question; or only named, with --dry-run."""

from __future__ import annotations

from tare.client import document, units
from tare.client.cli.each import confirmed
from tare.client.cli.ps import filters
from tare.client.document import number, text
from tare.client.options import Command, Flags
from tare.client.tables import say
from tare.client.transport import Daemon, target

_ALL_IMAGES = "images without at least one container associated to them"
_DANGLING = "dangling images"


def _containers(daemon: Daemon, words: list[str], *, dry: bool) -> tuple[list[str], int]:
    query: dict[str, str | int | bool] = {"filters": filters(words), "dry-run": dry}
    answer = daemon.call("POST", target("/containers/prune", query))
    deleted = document.strings(answer, "ContainersDeleted")
    if deleted:
        head = "Containers that would go" if dry else "Deleted Containers"
        say(f"{head}:\n" + "\n".join(deleted) + "\n")
    return deleted, number(answer, "SpaceReclaimed")


def _images(
    daemon: Daemon,
    words: list[str],
    *,
    everything: bool,
    dry: bool,
    without: list[str] | None = None,
) -> int:
    """*without* are containers that would be gone by then."""
    chosen = [f"dangling={'false' if everything else 'true'}", *words]
    query: dict[str, str | int | bool] = {"filters": filters(chosen), "dry-run": dry}
    query["without"] = ",".join(without or ())
    answer = daemon.call("POST", target("/images/prune", query))
    lines = []
    for each in document.items(answer, "ImagesDeleted"):
        if untagged := text(each, "Untagged"):
            lines.append(f"untagged: {untagged}")
        if deleted := text(each, "Deleted"):
            lines.append(f"deleted: {deleted}")
    if lines:
        head = "Images that would go" if dry else "Deleted Images"
        say(f"{head}:\n" + "\n".join(lines) + "\n")
    return number(answer, "SpaceReclaimed")


def _cache(daemon: Daemon, *, everything: bool, dry: bool) -> int:
    query: dict[str, str | int | bool] = {"all": everything, "dry-run": dry}
    answer = daemon.call("POST", target("/build/prune", query))
    deleted = document.strings(answer, "CachesDeleted")
    if deleted:
        head = "Build cache that would go" if dry else "Deleted build cache"
        say(f"{head}:\n" + "\n".join(deleted) + "\n")
    return number(answer, "SpaceReclaimed")


def _reclaimed(size: int, *, dry: bool) -> int:
    word = "that would be reclaimed" if dry else "reclaimed space"
    say(f"Total {word}: {units.human_size(size)}")
    return 0


def _wanted(flags: Flags, question: str) -> bool:
    """Whether to go on: a dry run asks nothing."""
    if flags.flag("dry-run") or flags.flag("force") or confirmed(question):
        return True
    say("Nothing was removed.")
    return False


def _container_prune(daemon: Daemon, flags: Flags, _arguments: list[str]) -> int:
    if not _wanted(flags, "WARNING! This will remove all stopped containers."):
        return 1
    dry = flags.flag("dry-run")
    return _reclaimed(_containers(daemon, flags.list("filter"), dry=dry)[1], dry=dry)


def _image_prune(daemon: Daemon, flags: Flags, _arguments: list[str]) -> int:
    everything, dry = flags.flag("all"), flags.flag("dry-run")
    which = _ALL_IMAGES if everything else _DANGLING
    if not _wanted(flags, f"WARNING! This will remove all {which}."):
        return 1
    size = _images(daemon, flags.list("filter"), everything=everything, dry=dry)
    return _reclaimed(size, dry=dry)


def _system_prune(daemon: Daemon, flags: Flags, _arguments: list[str]) -> int:
    everything, dry, volumes = flags.flag("all"), flags.flag("dry-run"), flags.flag("volumes")
    words = flags.list("filter")
    question = "WARNING! This will remove:\n  - all stopped containers\n"
    question += "  - all networks not used by at least one container\n"
    if volumes:
        question += "  - all anonymous volumes not used by at least one container\n"
    question += f"  - all {_ALL_IMAGES if everything else _DANGLING}\n"
    question += "  - unused build cache\n"
    if not _wanted(flags, question):
        return 1
    gone, size = _containers(daemon, words, dry=dry)
    from tare.client.cli import networks

    networks.prune(daemon, words, dry=dry)
    if volumes:
        from tare.client.cli.volumes import prune

        labels = [word for word in words if word.startswith("label")]
        size += prune(daemon, labels, everything=False, dry=dry)
    size += _images(daemon, words, everything=everything, dry=dry, without=gone if dry else None)
    if not words:  # what is cached has neither labels nor an age that images share
        size += _cache(daemon, everything=everything, dry=dry)
    return _reclaimed(size, dry=dry)


_FORCE = ("f", "bool", "Do not ask")
_DRY = ("n", "bool", "Only say what would go, and how much that is")
_FILTER = ("", "filter", "Only those for which NAME=VALUE (until=24h, label=a=b)")

COMMANDS = {
    "container prune": Command(
        "[OPTIONS]",
        "Remove all stopped containers",
        _container_prune,
        {"dry-run": _DRY, "filter": _FILTER, "force": _FORCE},
        most=0,
    ),
    "image prune": Command(
        "[OPTIONS]",
        "Remove images that nothing uses",
        _image_prune,
        {
            "all": ("a", "bool", "All that no container uses, not only those without a name"),
            "dry-run": _DRY,
            "filter": _FILTER,
            "force": _FORCE,
        },
        most=0,
        notes="Pinned names (tare image pin) stay.",
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
            "dry-run": _DRY,
            "filter": _FILTER,
            "force": _FORCE,
            "volumes": ("", "bool", "Anonymous volumes that no container has, too"),
        },
        most=0,
        notes="Pinned names (tare image pin) stay. A dry run counts networks and volumes of"
        " containers that would go as used.",
    ),
}
