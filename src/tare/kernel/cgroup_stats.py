"""What a control group uses: the values, and the kernel's text formats that carry them.

Not for: reading files, and rates or percentages; a counter is given as the kernel counts it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

# Version 1 says "unlimited" as the largest page-aligned signed number, whatever the page size.
_V1_UNLIMITED: Final = (1 << 63) - (1 << 17)


@dataclass(frozen=True, slots=True)
class CpuStats:
    """Time used, in nanoseconds, and how often the quota held the group back."""

    total_ns: int = 0
    user_ns: int = 0
    system_ns: int = 0
    per_cpu_ns: tuple[int, ...] = ()
    """Version 1 only."""
    periods: int = 0
    throttled_periods: int = 0
    throttled_ns: int = 0


@dataclass(frozen=True, slots=True)
class MemoryStats:
    """Bytes in use; ``limit`` and ``swap_limit`` are None where there is none."""

    usage: int = 0
    limit: int | None = None
    max_usage: int = 0
    failcnt: int = 0
    cache: int = 0
    rss: int = 0
    inactive_file: int = 0
    swap: int = 0
    swap_limit: int | None = None
    """Version 1: memory and swap together; version 2: swap alone."""
    oom_kills: int = 0
    raw: Mapping[str, int] = field(default_factory=dict)
    """``memory.stat`` as the kernel gives it."""


@dataclass(frozen=True, slots=True)
class PidsStats:
    """Tasks now, and the limit, None where there is none."""

    current: int = 0
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class DeviceIo:
    """What the group read from and wrote to one block device."""

    major: int
    minor: int
    read_bytes: int = 0
    write_bytes: int = 0
    read_ios: int = 0
    write_ios: int = 0


@dataclass(frozen=True, slots=True)
class Stall:
    """A line of pressure: percent of time over 10, 60 and 300 seconds, and microseconds so far."""

    avg10: float = 0.0
    avg60: float = 0.0
    avg300: float = 0.0
    total_us: int = 0


@dataclass(frozen=True, slots=True)
class Pressure:
    """Pressure stall information: some tasks waited, or all of them did."""

    some: Stall = Stall()
    full: Stall = Stall()


@dataclass(frozen=True, slots=True)
class Stats:
    """All of it, at about one moment; what the host does not count is 0 or empty."""

    cpu: CpuStats = CpuStats()
    memory: MemoryStats = MemoryStats()
    pids: PidsStats = PidsStats()
    io: tuple[DeviceIo, ...] = ()
    pressure: Mapping[str, Pressure] = field(default_factory=dict)
    """By ``cpu``, ``memory``, ``io``."""


def parse_flat(content: bytes | None) -> dict[str, int]:
    """Lines of a name and a number, such as ``memory.stat``; other lines are passed over."""
    found: dict[str, int] = {}
    for line in (content or b"").splitlines():
        name, _, value = line.partition(b" ")
        if value.isdigit():
            found[name.decode()] = int(value)
    return found


def parse_number(content: bytes | None) -> int:
    """A file of one number; 0 where it is missing or says ``max``."""
    text = (content or b"").strip()
    return int(text) if text.isdigit() else 0


def parse_limit(content: bytes | None) -> int | None:
    """A file of one limit; None for ``max``, version 1's largest number, or a missing file."""
    text = (content or b"").strip()
    if not text.isdigit():
        return None
    value = int(text)
    return None if value >= _V1_UNLIMITED else value


def parse_blkio(content: bytes | None) -> dict[tuple[int, int], tuple[int, int]]:
    """Version 1's ``MAJOR:MINOR Read N`` and ``Write N`` lines, to reads and writes by device."""
    found: dict[tuple[int, int], tuple[int, int]] = {}
    for line in (content or b"").splitlines():
        words = line.split()
        if len(words) != 3 or words[1] not in (b"Read", b"Write"):
            continue
        major, _, minor = words[0].partition(b":")
        key = (int(major), int(minor))
        read, write = found.get(key, (0, 0))
        number = int(words[2])
        found[key] = (number, write) if words[1] == b"Read" else (read, number)
    return found


def join_blkio(content: bytes | None, operations: bytes | None) -> tuple[DeviceIo, ...]:
    """Version 1's bytes and operations files as one table."""
    sizes, counts = parse_blkio(content), parse_blkio(operations)
    return tuple(
        DeviceIo(*key, *sizes.get(key, (0, 0)), *counts.get(key, (0, 0)))
        for key in sorted(sizes.keys() | counts.keys())
    )


def parse_io_stat(content: bytes | None) -> tuple[DeviceIo, ...]:
    """Version 2's ``io.stat``."""
    found = []
    for line in (content or b"").splitlines():
        device, *pairs = line.split()
        major, colon, minor = device.partition(b":")
        if not colon:
            continue
        values = {key: int(n) for key, _, n in (p.partition(b"=") for p in pairs) if n.isdigit()}
        found.append(
            DeviceIo(
                int(major),
                int(minor),
                values.get(b"rbytes", 0),
                values.get(b"wbytes", 0),
                values.get(b"rios", 0),
                values.get(b"wios", 0),
            )
        )
    return tuple(found)


def parse_pressure(content: bytes) -> Pressure:
    """A pressure file (kernel accounting/psi.rst)."""
    lines: dict[bytes, Stall] = {}
    for line in content.splitlines():
        kind, *pairs = line.split()
        values = dict(pair.partition(b"=")[::2] for pair in pairs)
        lines[kind] = Stall(
            float(values.get(b"avg10", 0)),
            float(values.get(b"avg60", 0)),
            float(values.get(b"avg300", 0)),
            int(values.get(b"total", 0)),
        )
    return Pressure(lines.get(b"some", Stall()), lines.get(b"full", Stall()))
