"""What the plan must know of the host, looked up once by the daemon."""

from __future__ import annotations

import os
import platform
import resource
from typing import Final

from tare.kernel import cgroup, confine, process
from tare.run.plan import Host

_INITS: Final = (
    "/usr/bin/tini-static", "/usr/libexec/podman/catatonit", "/usr/bin/catatonit",
    "/usr/bin/docker-init", "/usr/libexec/docker/docker-init",
)  # fmt: skip


def detect() -> Host:
    """The host's facts; raises nothing that a Linux with /proc does not raise."""
    release = platform.release().split("-")[0].split(".")
    rootless = os.geteuid() != 0 or process.in_user_namespace()
    layout = cgroup.detect(privileged=False if rootless else None).plain()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Host(
        kernel=(int(release[0]), int(release[1])),
        machine=platform.machine(),
        last_capability=confine.last_capability(),
        cgroup_version=2 if layout.mode is cgroup.Mode.V2 else 1,
        cgroup_controllers=v1_hierarchies(),
        nofile_hard=1 << 20 if hard == resource.RLIM_INFINITY else hard,
        init=next((path for path in _INITS if os.access(path, os.X_OK)), ""),
        rootless=rootless,
        pids_limit="pids" in layout.controllers,
    )


def v1_hierarchies() -> tuple[str, ...]:
    """The version 1 hierarchies, as mounted: ``cpu``, ``cpu+cpuacct``, ``name=systemd``."""
    names = []
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        for line in file:
            _, controllers, _ = line.rstrip("\n").split(":", 2)
            if controllers:
                names.append(controllers.replace(",", "+"))
    return tuple(reversed(names))
