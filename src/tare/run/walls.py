"""What every container is kept from: paths, and the namespaces it has of its own.

Data that the plan decides with and that the keeper prepares sandboxes by, ahead of time. Its
sources are moby's and podman's lists and what both leave open (docs/threat-model.md).
"""

from __future__ import annotations

from typing import Final

from tare.kernel import process

MASKED_PATHS: Final = (
    *(
        f"/proc/{name}"
        for name in (
            "acpi", "asound", "interrupts", "kcore", "keys", "key-users", "latency_stats",
            "sched_debug", "scsi", "timer_list", "timer_stats", "kpagecount", "kpageflags",
            "kpagecgroup", "vmallocinfo", "dynamic_debug",
        )
    ),
    "/sys/firmware", "/sys/kernel/debug", "/sys/kernel/tracing", "/sys/kernel/security",
    "/sys/fs/selinux", "/sys/fs/bpf", "/sys/fs/pstore", "/sys/power",
    "/sys/devices/virtual/powercap", "/sys/kernel/notes", "/sys/kernel/vmcoreinfo",
)  # fmt: skip
HARDENED_MASKED_PATHS: Final = (
    *MASKED_PATHS,
    "/proc/kallsyms", "/proc/modules", "/proc/config.gz", "/proc/cmdline", "/proc/pressure",
    "/proc/swaps", "/proc/partitions", "/proc/diskstats", "/sys/kernel", "/sys/class/dmi",
    "/sys/module",
)  # fmt: skip
READONLY_PATHS: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

OWN_NAMESPACES: Final = (
    process.CLONE_NEWUSER | process.CLONE_NEWNS | process.CLONE_NEWPID | process.CLONE_NEWUTS
    | process.CLONE_NEWIPC | process.CLONE_NEWNET
)  # fmt: skip
"""Those of a container for which nothing else was asked; the cgroup namespace comes later."""
