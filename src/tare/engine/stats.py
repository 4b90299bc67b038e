"""Usage of containers: the kernel's counters as a `Sample`, and shares from two of them.

Not for: reading control groups (kernel.cgroup).
"""

from __future__ import annotations

import functools
import os
import time
from typing import Final

from tare.kernel.cgroup_stats import Pressure, Stats
from tare.model.record import BlockCount, NetworkCount, PressureShare, Sample

_TICK_NS: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


@functools.cache
def memory_total() -> int:
    """The host's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def host_cpu_ns() -> int:
    """CPU time of the whole host since boot, all CPUs together, proc(5) "/proc/stat"."""
    with open("/proc/stat", "rb") as file:
        fields = file.readline().split()
    # user nice system idle iowait irq softirq steal: guest time is in user already.
    return sum(int(field) for field in fields[1:9]) * _TICK_NS


def network_counts(pid: int) -> dict[str, NetworkCount]:
    """The interfaces of the network that *pid* is in, but loopback; empty when it is gone.

    proc(5), "/proc/pid/net/dev".
    """
    found = {}
    try:
        with open(f"/proc/{pid}/net/dev", "rb") as file:
            lines = file.read().splitlines()[2:]
    except OSError:
        return {}
    for line in lines:
        name, _, rest = line.partition(b":")
        values = [int(word) for word in rest.split()]
        if name.strip() != b"lo" and len(values) >= 12:
            # The eight of receiving come first, the eight of sending after them.
            found[name.strip().decode("utf-8", "replace")] = NetworkCount(
                rx_bytes=values[0],
                rx_packets=values[1],
                rx_errors=values[2],
                rx_dropped=values[3],
                tx_bytes=values[8],
                tx_packets=values[9],
                tx_errors=values[10],
                tx_dropped=values[11],
            )
    return found


def pressure_shares(found: Pressure) -> PressureShare:
    """A kernel's pressure lines as a value."""
    some, full = found.some, found.full
    return PressureShare(
        some.avg10, some.avg60, full.avg10, full.avg60, some.total_us, full.total_us
    )


def sample_of(stats: Stats, *, cgroup_v2: bool, networks_of: int = 0) -> Sample:
    """One reading as a value; ``memory_limit`` is the host's memory where there is no limit.

    *networks_of* is the process whose interfaces are counted; 0 counts none.
    """
    cpu, memory = stats.cpu, stats.memory
    raw = dict(memory.raw)
    if not cgroup_v2:
        # Docker's clients subtract this name on version 1 hosts.
        raw.setdefault("total_inactive_file", memory.inactive_file)
    return Sample(
        read_ns=time.time_ns(),
        cpu_ns=cpu.total_ns,
        cpu_user_ns=cpu.user_ns,
        cpu_system_ns=cpu.system_ns,
        system_cpu_ns=host_cpu_ns(),
        online_cpus=os.cpu_count() or 1,
        per_cpu_ns=tuple(cpu.per_cpu_ns),
        periods=cpu.periods,
        throttled_periods=cpu.throttled_periods,
        throttled_ns=cpu.throttled_ns,
        memory=memory.usage,
        memory_max=memory.max_usage,
        memory_failures=memory.failcnt,
        memory_limit=min(memory.limit or memory_total(), memory_total()),
        memory_stats=raw,
        cache=memory.cache,
        oom_kills=memory.oom_kills,
        networks=network_counts(networks_of) if networks_of else {},
        pressure={name: pressure_shares(found) for name, found in stats.pressure.items()},
        pids=stats.pids.current,
        pids_limit=stats.pids.limit or 0,
        block_bytes=tuple(
            BlockCount(major=d.major, minor=d.minor, op=op, value=value)
            for d in stats.io
            for op, value in (("read", d.read_bytes), ("write", d.write_bytes))
        ),
        block_ops=tuple(
            BlockCount(major=d.major, minor=d.minor, op=op, value=value)
            for d in stats.io
            for op, value in (("read", d.read_ios), ("write", d.write_ios))
        ),
    )


def cpu_percent(before: Sample, now: Sample) -> float:
    """Docker's CPU %: 100 is one CPU fully used between two samples."""
    used, host = now.cpu_ns - before.cpu_ns, now.system_cpu_ns - before.system_cpu_ns
    if used <= 0 or host <= 0:
        return 0.0
    return used / host * now.online_cpus * 100.0
