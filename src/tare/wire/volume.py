"""Volumes as Docker shows them and asks for them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Struct

from tare.errors import InvalidError, UnsupportedError
from tare.model.volume import Volume, VolumeStatus, checked_name
from tare.wire.values import checked_text, rfc3339

Json = dict[str, object]


class VolumeBody(Struct, rename="pascal"):
    """``POST /volumes/create``."""

    name: str | None = None
    driver: str | None = None
    driver_opts: dict[str, str] | None = None
    labels: dict[str, str] | None = None
    cluster_volume_spec: dict[str, object] | None = None


CREATE: Final = msgspec.json.Decoder(VolumeBody)


def wanted(body: VolumeBody) -> tuple[str, str, dict[str, str], dict[str, str]]:
    """Name ("" for an anonymous one), driver, options and labels, checked."""
    if body.cluster_volume_spec is not None:
        raise UnsupportedError("cluster volumes are not supported: this engine is one host's")
    name = body.name or ""
    if name:
        checked_name(name)
    return (
        name,
        driver(body.driver or ""),
        _pairs("driver option", body.driver_opts),
        _pairs("label", body.labels),
    )


def driver(text: str) -> str:
    """The one driver there is; UnsupportedError for another."""
    if text not in ("", "local"):
        raise UnsupportedError(
            f"volume driver {text[:80]!r} is not there",
            hint="the driver is local: type=nfs, tmpfs and others go by --opt",
        )
    return "local"


def _pairs(what: str, pairs: Mapping[str, str] | None) -> dict[str, str]:
    for name, value in (pairs or {}).items():
        checked_text(what, name, limit=4096)
        checked_text(what, value, limit=1 << 16)
        if not name:
            raise InvalidError(f"invalid {what}: its name is empty")
    return dict(pairs or {})


def volume(found: Volume, path: str) -> Json:
    """A volume as create answers it."""
    return {
        "CreatedAt": rfc3339(found.created_ns),
        "Driver": found.driver,
        "Labels": dict(found.labels) or None,
        "Mountpoint": path,
        "Name": found.name,
        "Options": dict(found.options) or None,
        "Scope": "local",
    }


def status(found: VolumeStatus) -> Json:
    """A volume as inspect and list answer it; ``Status`` has what is tare's own."""
    answer = volume(found.volume, found.path)
    told: Json = {}
    if found.missing:
        told["Missing"] = {"Reason": "its directory was deleted by hand: what was in it is lost"}
    if found.users:
        told["UsedBy"] = {name: {} for name in found.users}
    if told:
        answer["Status"] = told  # Docker's description wants objects in it
    if found.size >= 0:
        answer["UsageData"] = {"Size": found.size, "RefCount": len(found.users)}
    return answer
