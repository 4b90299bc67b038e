"""What the use cases share: one value holding the parts of an engine.

Not for: any verb; containers, execs and images have those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tare.engine.driver import Driver, Request
from tare.engine.events import Events
from tare.engine.ids import Blocks
from tare.engine.lifecycle import Lifecycle
from tare.engine.limits import Abilities
from tare.engine.paths import Paths
from tare.engine.store import Store
from tare.engine.workloads import Workloads
from tare.errors import ConflictError, UnsupportedError
from tare.model.record import Record
from tare.model.spec import Isolation

if TYPE_CHECKING:
    from tare.engine.attachments import Attachments
    from tare.engine.budget import Budgets
    from tare.engine.images import Images
    from tare.engine.networks import Networks
    from tare.engine.trust import Trust
    from tare.engine.volumes import Volumes

JOINABLE: Final = ("network", "pid", "ipc", "uts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """The parts of one engine, made by `engine.engine.Engine`."""

    paths: Paths
    store: Store
    events: Events
    blocks: Blocks
    workloads: Workloads
    driver: Driver
    lifecycle: Lifecycle
    images: Images
    volumes: Volumes
    budgets: Budgets
    abilities: Abilities
    networks: Networks
    attachments: Attachments
    trust: Trust


def joined(record: Record) -> dict[str, str]:
    """The containers (ids) whose namespaces *record* joins, by kind."""
    names = record.spec.namespaces
    kinds = {"network": names.network, "pid": names.pid, "ipc": names.ipc, "uts": names.uts}
    return {
        kind: value.removeprefix("container:")
        for kind, value in kinds.items()
        if value.startswith("container:")
    }


def only_container(record: Record, what: str) -> None:
    """UnsupportedError when *what* is asked of a virtual machine, which does not have it yet."""
    if record.spec.isolation is Isolation.VM:
        raise UnsupportedError(
            f"{what}: virtual machines do not have that yet, and {record.name} is one",
            hint="tare exec can read and write files in it",
        )


def request(record: Record, store: Store, layers: Sequence[Path]) -> Request:
    """What the driver needs to start *record*; ConflictError when a joined one is not running."""
    others: dict[str, Record] = {}
    for kind, identity in joined(record).items():
        other = store.get(identity)
        if not other.alive:
            raise ConflictError(
                f"cannot join {kind} namespace of a non running container: {identity}"
            )
        others[kind] = other
    return Request(record=record, layers=layers, joined=others)
