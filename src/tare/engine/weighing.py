"""What a running workload takes of this host, and what of the host it can still reach.

Every figure is read from the kernel at the moment of the question: memory from smaps_rollup, disk
from the blocks that its directory holds, system calls from the filters that its processes have.

Not for: running anything in order to weigh it (client.weigh does that, as any user would).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tare.engine.core import Core
from tare.errors import ConflictError, InvalidError
from tare.kernel import tracing
from tare.model import reach
from tare.model.record import Record
from tare.model.spec import Isolation
from tare.model.syscalls import numbers

_FIELDS: Final = {"Pss": "pss", "Pss_Anon": "anonymous", "Pss_File": "file", "Pss_Shmem": "shared"}
_ABIS: Final = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
_MOST_PROCESSES: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Proportional set sizes in bytes, over all processes of a workload."""

    pss: int = 0
    anonymous: int = 0
    file: int = 0
    shared: int = 0
    processes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Surface:
    """What of the host's kernel the workload's code meets; None is: not known here."""

    calls: reach.Reach | None
    why_unknown: str
    capabilities: int
    user_namespace: bool
    no_new_privileges: bool
    emulator: bool
    """It is a machine: a guest reaches this only after it has taken over QEMU."""
    accelerated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """What one workload takes, now."""

    memory: Memory
    disk: int
    surface: Surface | None


async def weigh(core: Core, ref: str, *, surface: bool) -> Weight:
    """The weight of a running workload; *surface* stops its main thread for some microseconds."""
    record = core.store.get(ref)
    if not record.alive or not record.pid:
        raise ConflictError(f"container {record.id} is not running")
    pids = list(core.driver.pids(record))[:_MOST_PROCESSES]
    directory = core.paths.workload(record.id)
    return await asyncio.to_thread(_weigh, record, pids, directory, surface=surface)


async def cool(core: Core, ref: str) -> int:
    """Drop what the page cache has of an image's layers; how many files that were."""
    image = await core.images.get(ref)
    paths = await core.images.layers(str(image.id))
    return await asyncio.to_thread(_cool, paths)


def _weigh(record: Record, pids: Sequence[int], directory: Path, *, surface: bool) -> Weight:
    return Weight(
        memory=memory_of(pids),
        disk=blocks_of(directory),
        surface=_surface(record, pids) if surface else None,
    )


# --- memory and disk --------------------------------------------------------------------------


def memory_of(pids: Sequence[int]) -> Memory:
    """The sums over *pids*; those that ended meanwhile count for nothing."""
    sums, processes = dict.fromkeys(_FIELDS.values(), 0), 0
    for pid in pids:
        try:
            content = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        processes += 1
        for line in content.splitlines()[1:]:
            name, _, rest = line.partition(":")
            if name in _FIELDS:
                sums[_FIELDS[name]] += int(rest.split()[0]) << 10
    return Memory(**sums, processes=processes)


def blocks_of(directory: Path) -> int:
    """The bytes that the files below *directory* occupy on their disk, holes left out."""
    total = 0
    for where, _, names in os.walk(directory):  # which does not follow links
        with contextlib.suppress(OSError):
            total += os.lstat(where).st_blocks
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(where, name)).st_blocks
    return total * 512


def _cool(paths: Sequence[Path]) -> int:
    count = 0
    for path in paths:
        if not path.is_file():
            continue  # extracted into a directory
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
        count += 1
    return count


# --- the surface ------------------------------------------------------------------------------


def _surface(record: Record, pids: Sequence[int]) -> Surface:
    machine = record.spec.isolation is Isolation.VM
    pid = _emulator(pids) if machine else record.pid
    if not pid:
        raise ConflictError(f"the machine {record.id[:12]} has just ended")
    calls, why = _calls(pid)
    status = _status(pid)
    return Surface(
        calls=calls,
        why_unknown=why,
        capabilities=int(status.get("CapBnd", "0"), 16),
        user_namespace=not _same_namespace(pid),
        no_new_privileges=status.get("NoNewPrivs") == "1",
        emulator=machine,
        accelerated=machine and b"kvm" in _words(pid),
    )


def _calls(pid: int) -> tuple[reach.Reach | None, str]:
    name = os.uname().machine
    if name not in _ABIS:
        return None, f"the system calls of {name} are not counted"
    known = sorted(set(numbers(name).values()))
    try:
        programs = [reach.load(program) for program in tracing.filters(pid)]
        return reach.reach(programs, _ABIS[name], known), ""
    except (OSError, InvalidError) as error:
        return None, f"its filter cannot be read here: {error}"


def _emulator(pids: Sequence[int]) -> int:
    return next((pid for pid in pids if any(b"qemu-system" in w for w in _words(pid)[:1])), 0)


def _words(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def _status(pid: int) -> dict[str, str]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {name: rest.strip() for name, _, rest in (line.partition(":") for line in lines)}


def _same_namespace(pid: int) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/ns/user") == os.readlink("/proc/self/ns/user")
    except OSError:
        return False
