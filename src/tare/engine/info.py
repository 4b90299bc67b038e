"""The host and the engine at a glance (``tare info``).

Not for: judging what is seen (engine.doctor).
"""

from __future__ import annotations

import os
import platform
import shlex

from tare import __version__
from tare.engine.core import Core
from tare.engine.stats import memory_total
from tare.kernel import cgroup
from tare.kernel.files import replace
from tare.model.record import Info
from tare.model.state import State


async def collect(core: Core) -> Info:
    """What there is now."""
    records = list(core.store.all())
    running = sum(r.running and r.state is not State.PAUSED for r in records)
    paused = sum(r.state is State.PAUSED for r in records)
    layout = cgroup.detect()
    can = core.abilities
    system = platform.uname()
    name, version = operating_system()
    return Info(
        id=engine_id(core),
        name=system.node,
        containers=len(records),
        running=running,
        paused=paused,
        stopped=len(records) - running - paused,
        images=len(await core.images.list()),
        cpus=can.cpus,
        memory_total=memory_total(),
        kernel=system.release,
        operating_system=name,
        os_version=version,
        architecture=system.machine,
        state_dir=os.fspath(core.paths.state),
        version=__version__,
        cgroup_version="2" if layout.mode is cgroup.Mode.V2 else "1",
        cgroup_driver="none" if layout.mode is cgroup.Mode.NONE else "cgroupfs",
        storage_driver="overlay-erofs" if not core.paths.rootless else "overlay",
        rootless=core.paths.rootless,
        memory_limit=can.memory,
        swap_limit=can.swap,
        cpu_limit=can.cpu,
        cpuset=can.cpuset,
        pids_limit=can.pids,
        oom_kill_disable=can.oom_kill_disable,
        security_options=_security(core),
        warnings=_warnings(core),
    )


def engine_id(core: Core) -> str:
    """A name of this engine that stays: made once, kept beside its records."""
    path = core.paths.state / "engine-id"
    try:
        found = path.read_text("ascii").strip()
    except FileNotFoundError:
        found = ""
    if not found:
        import uuid

        found = str(uuid.uuid4())
        replace(path, found.encode() + b"\n", mode=0o644)
    return found


def operating_system() -> tuple[str, str]:
    """PRETTY_NAME and VERSION_ID of os-release(5)."""
    found = {}
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        try:
            with open(path, encoding="utf-8") as file:
                for line in file:
                    key, _, value = line.strip().partition("=")
                    found[key] = "".join(shlex.split(value)[:1])
            break
        except (OSError, ValueError):
            continue
    return found.get("PRETTY_NAME", "Linux"), found.get("VERSION_ID", "")


def _security(core: Core) -> tuple[str, ...]:
    options = ["name=seccomp,profile=tare-standard", "name=no-new-privileges"]
    if core.paths.rootless:
        options.append("name=rootless")
    else:
        options.append("name=userns")
    return tuple(options)


def _warnings(core: Core) -> tuple[str, ...]:
    can = core.abilities
    missing = (
        (can.memory, "WARNING: No memory limit support"),
        (can.swap, "WARNING: No swap limit support"),
        (can.cpu, "WARNING: No cpu cfs quota support"),
        (can.cpuset, "WARNING: No cpuset support"),
        (can.pids, "WARNING: No pids limit support"),
        (can.blkio_weight, "WARNING: No blkio weight support"),
        (can.blkio_throttle, "WARNING: No blkio throttle support"),
    )
    troubles = tuple(f"WARNING: {one}" for one in core.networks.fabric.problems)
    return tuple(text for there, text in missing if not there) + troubles
