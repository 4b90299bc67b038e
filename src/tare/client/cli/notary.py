"""trust notary: what Docker Content Trust's metadata says, verified here, and pinned if wished.

Reads the files that docker and notary keep below ~/.docker/trust, or a copy of them: no server is
asked. Pins are what stays of it when Notary is gone.
"""

from __future__ import annotations

import os
import re
import time
from datetime import UTC, datetime

from tare.client import document
from tare.client.cli.transfers import parsed
from tare.client.options import Command, Flags, UsageError
from tare.client.tables import aligned, say, shown, warn, write_out
from tare.client.transport import Daemon
from tare.errors import InvalidError, MissingError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.client.document import Json

_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_ROLES = ("root", "timestamp", "snapshot", "targets", "targets/releases")


def _run(daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    from tare.trust import notary

    name = parsed(arguments[0])
    if name.tag is not None or name.digest is not None:
        raise InvalidError(f"{arguments[0]}: name a repository, without a tag")
    form = flags.text("format")
    if form not in ("", "json"):
        raise InvalidError("--format takes json here")
    gun = name.name
    roots = flags.list("root")
    if not roots and not flags.flag("first-use"):
        raise UsageError(
            "whose root is trusted? --root ID names its key, --first-use takes the one found",
            hint="docker trust inspect --pretty NAME shows the id of the root key.",
        )
    directory = flags.text("dir") or os.path.expanduser(f"~/.docker/trust/tuf/{gun}/metadata")
    found = notary.verified(_files(directory), gun, roots=roots, now=_moment(flags))
    if form:
        listed: dict[str, Json] = {
            tag: {"Digest": str(one.digest), "Size": one.size, "Role": one.role}
            for tag, one in found.tags.items()
        }
        write_out((document.compact({"Name": gun, "Roots": list(found.roots),
                                     "Tags": listed}) + "\n").encode())  # fmt: skip
    else:
        rows = [["TAG", "DIGEST", "SIGNED BY"]]
        rows += [[shown(tag), str(one.digest), one.role] for tag, one in found.tags.items()]
        write_out(aligned(rows).encode())
    if not roots:
        warn(f"the root was taken as it was found; it is signed by {', '.join(found.roots)}")
    if flags.flag("pin"):
        for tag, one in found.tags.items():
            body: dict[str, Json] = {
                "Ref": f"{gun}:{tag}",
                "Digest": str(one.digest),
                "Replace": flags.flag("replace"),
            }
            daemon.call("POST", "/tare/trust/pins", body)
        if not form:
            say(f"pinned {len(found.tags)} tags")
    return 0


def _files(directory: str) -> dict[str, bytes]:
    from tare.trust.notary import FILE_MAX

    files = {}
    for role in _ROLES:
        try:
            with open(os.path.join(directory, f"{role}.json"), "rb") as file:
                files[role] = file.read(FILE_MAX + 1)
        except FileNotFoundError:
            continue
    if not files:
        raise MissingError(
            f"there is no Notary metadata in {directory}",
            hint="--dir names the directory that holds root.json, targets.json and the others",
        )
    return files


def _moment(flags: Flags) -> int:
    """Now, or the day that the caller answers for: metadata of a server that is gone expires."""
    written = flags.text("as-of")
    if not written:
        return int(time.time())
    try:
        if not _DATE.fullmatch(written):
            raise ValueError
        return int(datetime.fromisoformat(written).replace(tzinfo=UTC).timestamp())
    except ValueError:
        raise InvalidError(f"invalid --as-of {written!r}: write it as 2026-08-01") from None


COMMANDS = {
    "trust notary": Command(
        "[OPTIONS] REPOSITORY",
        "Verify metadata of Docker Content Trust, and pin what it says",
        _run,
        {
            "as-of": ("", "string", "Judge times as on this day (2026-08-01)"),
            "dir": ("", "string", "Where root.json is (default: in ~/.docker/trust)"),
            "first-use": ("", "bool", "Trust the root that is found, and say which it is"),
            "format": ("", "string", "Print by 'json'"),
            "pin": ("", "bool", "Pin every tag to the digest that was signed"),
            "replace": ("", "bool", "Also where a tag is pinned to another digest"),
            "root": ("", "list", "The id of a key of the root that is trusted"),
        },
        least=1,
        most=1,
        notes="No server is asked. Expired metadata needs --as-of: you answer for what was"
        " signed since then and is not seen here.",
    ),
}
