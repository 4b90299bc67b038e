"""The SDK's volumes: ``client.volumes``.

Not for: containers and images (client.sdk).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tare.client import document
from tare.client.cli.ps import filters as encoded_filters
from tare.client.document import mapping, number, text
from tare.client.transport import Daemon, segment, target

if TYPE_CHECKING:
    from tare.client.document import Json

_TAR = "application/x-tar"
_PIECE = 256 << 10


@dataclass(frozen=True, slots=True)
class VolumeSummary:
    """A volume as a list shows it; ``missing`` says that somebody deleted its directory."""

    name: str
    path: str
    labels: Mapping[str, str]
    options: Mapping[str, str]
    users: tuple[str, ...]
    missing: bool


class Volumes:
    """The volumes of one engine."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def create(
        self,
        name: str = "",
        *,
        labels: Mapping[str, str] | None = None,
        options: Mapping[str, str] | None = None,
    ) -> VolumeSummary:
        """Make a volume, or find the one of that name; "" makes an anonymous one.

        *options* are those of ``--opt``: ``{"size": "10G"}``, ``{"type": "tmpfs"}``.
        """
        body: dict[str, Json] = {
            "Name": name,
            "Driver": "local",
            "DriverOpts": {**(options or {})},
            "Labels": {**(labels or {})},
        }
        return _summary(self._daemon.call("POST", "/volumes/create", body))

    def list(self, *, filters: Sequence[str] = ()) -> list[VolumeSummary]:
        """All volumes, or those for which *filters* hold (``dangling=true``, ``label=a=b``)."""
        query = {"filters": encoded_filters([*filters])}
        found = document.items(self._daemon.call("GET", target("/volumes", query)), "Volumes")
        return [_summary(each) for each in found]

    def get(self, name: str) -> VolumeSummary:
        """One volume; MissingError when it is not there."""
        return _summary(self._daemon.call("GET", f"/volumes/{segment(name)}"))

    def remove(self, name: str, *, force: bool = False) -> None:
        """Remove it; ConflictError, which names them, while containers have it."""
        self._daemon.call("DELETE", target(f"/volumes/{segment(name)}", {"force": force}))

    def prune(self, *, all: bool = False) -> int:
        """Remove anonymous volumes (or all) that no container has; the bytes that were freed."""
        query = {"filters": encoded_filters(["all=true"] if all else [])}
        answer = self._daemon.call("POST", target("/volumes/prune", query))
        return number(answer, "SpaceReclaimed")

    def export(self, name: str, path: str | os.PathLike[str], *, pause: bool = False) -> str:
        """Write it to a tar archive; how consistent that is: idle, snapshot, paused, live ..."""
        query: dict[str, str | int | bool] = {"name": name, "pause": pause}
        response = self._daemon.open("GET", target("/tare/volumes/export", query))
        with open(path, "wb") as file:
            for piece in response.pieces():
                file.write(piece)
        return response.headers.get("tare-consistency", "")

    def bring(
        self, name: str, path: str | os.PathLike[str], *, replace: bool = False
    ) -> VolumeSummary:
        """Make it of an archive, whole or not at all; *replace* deletes what is in it."""
        query: dict[str, str | int | bool] = {"name": name, "replace": replace}
        with open(path, "rb") as file:
            pieces = iter(lambda: file.read(_PIECE), b"")
            where = target("/tare/volumes/import", query)
            response = self._daemon.open("POST", where, pieces, kind=_TAR)
            return _summary(document.decode(response.read()))


def _summary(each: Json) -> VolumeSummary:
    return VolumeSummary(
        name=text(each, "Name"),
        path=text(each, "Mountpoint"),
        labels=_texts(each, "Labels"),
        options=_texts(each, "Options"),
        users=tuple(mapping(each, "Status", "UsedBy")),
        missing="Missing" in mapping(each, "Status"),
    )


def _texts(each: Json, key: str) -> dict[str, str]:
    return {name: str(value) for name, value in mapping(each, key).items()}
