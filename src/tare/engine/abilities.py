"""What limits this host can enforce, read once from its control groups.

Not for: the checks themselves (engine.limits).
"""

from __future__ import annotations

import os
from pathlib import Path

from tare.engine.limits import Abilities
from tare.kernel import cgroup


def detect(layout: cgroup.Layout) -> Abilities:
    """The abilities of *layout*'s host."""
    has = layout.controllers.__contains__
    unified = layout.mode is cgroup.Mode.V2
    memory = layout.v1("memory")
    weight = "io.weight" if unified else "blkio.bfq.weight"
    return Abilities(
        memory=has("memory"),
        swap=_swap(layout),
        reservation=has("memory"),
        swappiness=has("memory") and not unified,
        oom_kill_disable=memory is not None,
        cpu=has("cpu"),
        cpuset=has("cpuset"),
        pids=has("pids"),
        blkio_weight=has("io" if unified else "blkio") and _somewhere(layout, weight),
        blkio_throttle=has("io" if unified else "blkio"),
        cpus=len(os.sched_getaffinity(0)),
        online_cpus=_read("/sys/devices/system/cpu/online") or "0",
        online_mems=_read("/sys/devices/system/node/online") or "0",
        hint="" if layout.privileged else cgroup.DELEGATE_HINT,
    )


def _swap(layout: cgroup.Layout) -> bool:
    memory = layout.v1("memory")
    if memory is not None:
        return os.path.exists(f"{memory.base}/memory.memsw.limit_in_bytes")
    return "memory" in layout.controllers and os.path.exists("/proc/swaps")


def _somewhere(layout: cgroup.Layout, name: str) -> bool:
    """Whether the file is in any group of the hierarchy (the root group has fewer)."""
    blkio = layout.v1("blkio")
    bases = [blkio.base] if blkio is not None else []
    if layout.unified is not None:
        bases.append(layout.unified.base)
    for base in bases:
        if os.path.exists(f"{base}/{name}") or os.path.exists(f"{base}/blkio.weight"):
            return True
        try:
            with os.scandir(base) as entries:
                for entry in entries:
                    if entry.is_dir() and os.path.exists(f"{entry.path}/{name}"):
                        return True
        except OSError:
            continue
    return False


def _read(path: str) -> str:
    try:
        return Path(path).read_text("ascii").strip()
    except OSError:
        return ""
