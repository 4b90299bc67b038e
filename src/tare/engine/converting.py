"""From container to virtual machine and back: the same record with another isolation.

Name, id, volumes, networks, ports, limits and log stay. What it wrote outside its volumes does
not: a container keeps that in a directory, a machine on a disk that only its guest may read. So
it is given up only when the user says so.

Not for: what either is made of (engine.sandboxes, engine.machines).
"""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tare.engine import layer_limits
from tare.engine.driver import Request
from tare.errors import ConflictError, InvalidError
from tare.model.record import Record, changed
from tare.model.spec import Isolation
from tare.model.state import State

if TYPE_CHECKING:
    from tare.engine.containers import Containers
    from tare.engine.core import Core


async def convert(
    core: Core, containers: Containers, ref: str, isolation: Isolation, *, discard: bool
) -> list[str]:
    """Give it another isolation; one that runs is stopped before and started after. Warnings.

    InvalidError and ConflictError say why it stays what it is: nothing is changed then.
    """
    record = core.store.get(ref)
    if record.spec.isolation is isolation:
        raise InvalidError(f"{record.name} is a {_word(isolation)} already")
    if record.spec.auto_remove and record.running:
        raise ConflictError(
            f"{record.name} would be removed when it is stopped for this (--rm)",
            hint="start it without --rm",
        )
    spec = replace(record.spec, isolation=isolation)
    layer_limits.check(spec, rootless=core.paths.rootless)
    layers = await core.images.layers(spec.image_id)
    # What cannot be is refused while everything is as it was.
    core.driver.check(Request(record=changed(record, spec=spec), layers=layers))
    if not discard and await _has_written(containers, record):
        raise ConflictError(
            f"{record.name} has written outside its volumes, and a {_word(isolation)} cannot take"
            " that over yet",
            hint="--discard gives it up; tare diff shows a container's, tare commit keeps it",
        )
    ran = record.running
    if ran:
        await containers.stop(record.id)
    async with core.lifecycle.live(record.id).lock:
        record = core.store.get(record.id)
        if record.running or record.state in (State.REMOVING, State.DEAD, State.STARTING):
            raise ConflictError(f"{record.name} is {record.state}: it was not converted")
        block = containers.block_for(spec)
        old = record.id_block
        await asyncio.to_thread(_forget_written, record)
        core.store.put(changed(record, spec=spec, id_block=block))
        if old is not None:
            core.blocks.release(old)
    core.lifecycle.emit(core.store.get(record.id), "update")
    if ran:
        await containers.start(record.id)
    return []


async def _has_written(containers: Containers, record: Record) -> bool:
    """Whether there is anything that a new isolation would not see; of a disk nobody knows."""
    if record.spec.isolation is Isolation.VM:
        return Path(record.workload_dir, "machine", "upper").exists()
    # Places to mount on, made where the image has none, are made again.
    places = {f"{mount.target.rstrip('/')}/" for mount in record.spec.mounts}
    return any(
        not any(place.startswith(f"{change.path}/") for place in places)
        for change in await containers.changes(record.id)
    )


def _word(isolation: Isolation) -> str:
    return "virtual machine" if isolation is Isolation.VM else "container"


def _forget_written(record: Record) -> None:
    for name in ("upper", "work", "machine"):
        shutil.rmtree(f"{record.workload_dir}/{name}", ignore_errors=True)
