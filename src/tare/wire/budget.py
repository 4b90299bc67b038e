"""``/tare/budget``: what is asked for and what is shown. Pure."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct

from tare.model.budget import Amount, Budget, cpu_limit
from tare.model.record import Record

Json = dict[str, object]


class BudgetBody(Struct, rename="pascal"):
    """``POST /tare/budget``: what is left out stays as it is."""

    project: str | None = None
    memory: int | None = None
    nano_cpus: int | None = None
    pids: int | None = None
    disk: int | None = None
    reservable_memory: int | None = None
    reservable_nano_cpus: int | None = None
    default_memory: int | None = None
    default_nano_cpus: int | None = None


SET: Final = msgspec.json.Decoder(BudgetBody)


def wanted(body: BudgetBody) -> Budget:
    """What to set."""
    return Budget(
        memory=body.memory,
        nano_cpus=body.nano_cpus,
        pids=body.pids,
        disk=body.disk,
        reservable_memory=body.reservable_memory,
        reservable_nano_cpus=body.reservable_nano_cpus,
        default_memory=body.default_memory,
        default_nano_cpus=body.default_nano_cpus,
    )


def _resource(cap: int | None, used: int, bound: int | None, reserved: int) -> Json:
    return {
        "Limit": cap,
        "Used": None if used < 0 else used,
        "Reservable": bound,
        "Reserved": reserved,
        "Free": None if bound is None else max(bound - reserved, 0),
    }


def view(
    project: str,
    budget: Budget,
    reserved: Amount,
    bounds: tuple[int | None, int | None],
    used: dict[str, int],
) -> Json:
    """One budget; *used* has ``memory``, ``pids``, ``cpu_ns``, ``disk``, ``disk_free`` or -1."""
    found: Json = {
        "Project": project,
        "Memory": _resource(budget.memory, used["memory"], bounds[0], reserved.memory),
        "NanoCpus": {
            **_resource(budget.nano_cpus, -1, bounds[1], reserved.nano_cpus),
            "UsedTime": None if used["cpu_ns"] < 0 else used["cpu_ns"],
        },
        "Pids": {"Limit": budget.pids, "Used": None if used["pids"] < 0 else used["pids"]},
    }
    if not project:
        found["Disk"] = {"Limit": budget.disk, "Used": used["disk"], "Free": used["disk_free"]}
        found["Defaults"] = {
            "Memory": budget.default_memory or 0,
            "NanoCpus": budget.default_nano_cpus or 0,
        }
    return found


def holder(record: Record, project: str, holds: Amount) -> Json:
    """One container and what it holds."""
    limits = record.spec.resources
    return {
        "Id": record.id,
        "Name": record.name,
        "Project": project,
        "Memory": holds.memory,
        "NanoCpus": holds.nano_cpus,
        "MemoryLimit": limits.memory or 0,
        "NanoCpusLimit": cpu_limit(limits),
    }
