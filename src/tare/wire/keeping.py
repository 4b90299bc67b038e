"""How images stand, on the wire. Not for deciding it (engine.updates)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tare.model.updates import Standing

Json = dict[str, object]


def standing(one: Standing) -> Json:
    """One entry of ``GET /tare/images/outdated``."""
    return {
        "Name": one.name,
        "Id": one.id,
        "Kind": str(one.kind),
        "Status": str(one.verdict),
        "Base": one.base,
        "Reasons": list(one.reasons),
        "Packages": [
            {"Name": name, "Installed": old, "Available": new} for name, old, new in one.packages
        ],
        "Pulls": list(one.pulls),
        "Recipe": one.client,
        "Bootstrap": dict(one.bootstrap),
    }
