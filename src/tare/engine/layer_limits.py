"""Limits of the disk: a container's own layer with a size of its own, and a reserve for the host.

::

    STATE/workloads/ID/disk/     only with ``--storage-opt size=``
        image                    a sparse file with an ext4 of that size
        _data/                   where it is mounted: upper/ and work/ of the overlay are in it

The daemon keeps it mounted as long as the container is there, so that what looks at a stopped
one (cp, diff, commit) finds its files where it would. A running container has its own clone of the
mount: it goes on when the daemon ends.

A container is not started when less than the reserve is free on the disk of the state: what runs
there already, and the engine's own records, shall not be the next to fail (attack A48).

Not for: volumes (engine.volume_mounts), images (engine.keeping).
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tare.engine import volume_mounts
from tare.engine.volume_mounts import Own
from tare.errors import FailedError, InvalidError, TareError, UnsupportedError
from tare.model.record import Record
from tare.model.spec import ContainerSpec, Isolation

log = logging.getLogger("tare.limits")

SMALLEST: Final = 8 << 20
_DISK: Final = "disk"


def check(spec: ContainerSpec, *, rootless: bool) -> None:
    """Whether the layer's size, if one is asked for, can be had here: else it says why not."""
    if not spec.storage_size:
        return
    if spec.storage_size < SMALLEST:
        raise InvalidError("--storage-opt size is at least 8 MiB")
    if rootless:
        raise UnsupportedError(
            "--storage-opt size needs root's engine: others cannot mount a file system",
            hint="--read-only with --tmpfs bounds what a container can write",
        )
    if spec.isolation is Isolation.VM:
        raise UnsupportedError("--storage-opt size is for containers: a machine's disk has a size")


def make(record: Record) -> None:
    """Make and mount the disk of a new container that wants one; in a thread."""
    if not record.spec.storage_size:
        return
    place = Path(record.workload_dir, _DISK)
    shutil.rmtree(place, ignore_errors=True)
    (place / "_data").mkdir(parents=True)
    volume_mounts.make_image(str(place), record.spec.storage_size, rootless=False)
    attach(record)


def attach(record: Record) -> None:
    """Mount it, unless it is mounted; in a thread. FailedError when that cannot be."""
    size = record.spec.storage_size
    if not size or os.path.ismount(record.layer_dir):
        return
    words = (("discard", None),)  # what is deleted inside is free outside
    volume_mounts.attach(Own("ext4", words=words, size=size), f"{record.workload_dir}/{_DISK}")


def attach_all(records: Iterable[Record]) -> None:
    """Mount those of all containers, at the daemon's start; one that fails is told and left."""
    for record in records:
        try:
            attach(record)
        except (TareError, OSError) as error:
            log.warning("the disk of %s is not mounted: %s", record.name, error)


def detach_all(records: Iterable[Record]) -> None:
    """Take them down at the daemon's end; running containers keep theirs."""
    for record in records:
        if record.spec.storage_size:
            detach(record.workload_dir)


def detach(workload_dir: str) -> None:
    """Take down what is mounted for a container, if anything is."""
    volume_mounts.detach(f"{workload_dir}/{_DISK}")


def check_reserve(state: Path, reserve: int) -> None:
    """FailedError with the figures when less than *reserve* bytes are free for the state."""
    found = os.statvfs(state)
    free = found.f_bavail * found.f_frsize
    if free < reserve:
        raise FailedError(
            f"only {_mib(free)} are free on the disk of {state}, and {_mib(reserve)} are kept free:"
            " no container is started",
            hint="tare system df shows what takes space, tare system prune frees it;"
            ' [images] reserve = "..." in config.toml changes the bound',
        )


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"
