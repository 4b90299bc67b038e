"""Limits of a control group: the values, the errors, and the grammar of device and CPU lists.

Not for: putting them in force (`cgroup`), defaults, or Docker's spelling of them.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from typing import Final

ANY: Final = -1
UNLIMITED: Final = -1

DeviceLimit = tuple[int, int, int]
"""Major, minor, and a number for that block device."""

KERNEL_MEMORY_WARNING: Final = "Linux has dropped the kernel memory limit. Limitation discarded."


# --- errors -----------------------------------------------------------------------------------


class LimitError(OSError):
    """A limit is not in force: which one, of which controller, and what to do (``hint``)."""

    def __init__(
        self, number: int, message: str, *, limit: str, controller: str, hint: str = ""
    ) -> None:
        super().__init__(number, message)
        self.limit = limit
        self.controller = controller
        self.hint = hint


class UnsupportedLimitError(LimitError):
    """This host, or what is delegated of it, cannot enforce the limit."""


class RefusedLimitError(LimitError):
    """The controller is there, but the value makes no sense to it, or not now."""


def refused(error: OSError, limit: str, controller: str, value: object) -> RefusedLimitError:
    """The error for a value that the kernel did not take, from what it said."""
    number = error.errno or errno.EINVAL
    return RefusedLimitError(
        number,
        f"{limit} {value}: {os.strerror(number)} ({controller} controller)",
        limit=limit,
        controller=controller,
        hint=_REFUSAL_HINTS.get(number, ""),
    )


_REFUSAL_HINTS: Final = {
    errno.EBUSY: "more than that is in use now",
    errno.EINVAL: "the value is out of the controller's range",
    errno.ERANGE: "the value is out of the controller's range",
    errno.ENODEV: "name a whole disk of this host, not a partition",
    errno.EPERM: "a parent group does not allow that",
    errno.EACCES: "this user may not write the limit",
}


# --- values -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeviceRule:
    """Allow or deny opening (``r``, ``w``) and making (``m``) device nodes; `ANY` is a wildcard."""

    allow: bool
    type: str
    major: int = ANY
    minor: int = ANY
    access: str = "rwm"

    def __post_init__(self) -> None:
        wrong = (
            self.type not in ("a", "b", "c")
            or not ANY <= self.major < 1 << 12
            or not ANY <= self.minor < 1 << 20
            or not self.access
            or not set(self.access) <= set("rwm")
        )
        if wrong:
            raise RefusedLimitError(
                errno.EINVAL, f"no device rule: {self}", limit="devices", controller="devices"
            )

    def __str__(self) -> str:
        major = "*" if self.major == ANY else str(self.major)
        minor = "*" if self.minor == ANY else str(self.minor)
        return f"{self.type} {major}:{minor} {self.access}"


def _allow(*rules: tuple[str, int, int, str]) -> tuple[DeviceRule, ...]:
    return tuple(DeviceRule(True, *rule) for rule in rules)


DEFAULT_DEVICES: Final = (
    DeviceRule(False, "a"),
    *_allow(
        ("c", ANY, ANY, "m"),  # nodes may be made; opening them is another matter
        ("b", ANY, ANY, "m"),
        ("c", 1, 3, "rwm"),  # null
        ("c", 1, 5, "rwm"),  # zero
        ("c", 1, 7, "rwm"),  # full
        ("c", 1, 8, "rwm"),  # random
        ("c", 1, 9, "rwm"),  # urandom
        ("c", 5, 0, "rwm"),  # tty
        ("c", 5, 1, "rwm"),  # console
        ("c", 5, 2, "rwm"),  # ptmx
        ("c", 136, ANY, "rwm"),  # pts
    ),
)
"""Deny everything but the devices that every container has."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a group may use; None leaves a limit as it is, -1 lifts it where that makes sense."""

    memory: int | None = None
    memory_swap: int | None = None
    """Memory and swap together; -1 unlimited."""
    memory_reservation: int | None = None
    memory_swappiness: int | None = None
    kernel_memory: int | None = None
    """Ignored with a warning: Linux has dropped it."""
    oom_kill_disable: bool | None = None
    cpu_quota_us: int | None = None
    cpu_period_us: int | None = None
    nano_cpus: int | None = None
    cpu_shares: int | None = None
    cpuset_cpus: str | None = None
    cpuset_mems: str | None = None
    pids: int | None = None
    blkio_weight: int | None = None
    blkio_weight_device: tuple[DeviceLimit, ...] = ()
    read_bps_device: tuple[DeviceLimit, ...] = ()
    write_bps_device: tuple[DeviceLimit, ...] = ()
    read_iops_device: tuple[DeviceLimit, ...] = ()
    write_iops_device: tuple[DeviceLimit, ...] = ()
    devices: tuple[DeviceRule, ...] = ()
    hugetlb: tuple[tuple[str, int], ...] = ()
    """Page size as the kernel spells it ("2MB"), and bytes."""

    def __post_init__(self) -> None:
        if self.nano_cpus is not None and (self.cpu_quota_us, self.cpu_period_us) != (None, None):
            raise RefusedLimitError(
                errno.EINVAL,
                "nano_cpus and a CPU quota or period say the same thing: give one of them",
                limit="nano_cpus",
                controller="cpu",
            )
        if (
            self.memory is not None
            and self.memory_swap is not None
            and 0 < self.memory_swap < self.memory
        ):
            raise RefusedLimitError(
                errno.EINVAL,
                "memory_swap counts memory and swap together: it cannot be less than memory",
                limit="memory_swap",
                controller="memory",
            )

    @property
    def cpu_bandwidth(self) -> tuple[int | None, int | None]:
        """Quota and period in microseconds, from whichever fields say so."""
        if self.nano_cpus is None:
            return self.cpu_quota_us, self.cpu_period_us
        if self.nano_cpus <= 0:
            return UNLIMITED, None
        return self.nano_cpus * 100_000 // 1_000_000_000, 100_000

    @property
    def throttles(self) -> tuple[tuple[str, str, tuple[DeviceLimit, ...]], ...]:
        """The four block I/O throttles that are set: version 1 name, version 2 key, values."""
        every = (
            ("read_bps_device", "rbps", self.read_bps_device),
            ("write_bps_device", "wbps", self.write_bps_device),
            ("read_iops_device", "riops", self.read_iops_device),
            ("write_iops_device", "wiops", self.write_iops_device),
        )
        return tuple(entry for entry in every if entry[2])

    def first_of(self, controller: str) -> str | None:
        """The first limit set here that needs *controller*, by field name."""
        for name in FIELDS_OF.get(controller, ()):
            if getattr(self, name) not in (None, ()):
                return name
        return None


FIELDS_OF: Final[dict[str, tuple[str, ...]]] = {
    "memory": (
        "memory",
        "memory_swap",
        "memory_reservation",
        "memory_swappiness",
        "oom_kill_disable",
    ),
    "cpu": ("nano_cpus", "cpu_quota_us", "cpu_period_us", "cpu_shares"),
    "cpuset": ("cpuset_cpus", "cpuset_mems"),
    "pids": ("pids",),
    "blkio": (
        "read_bps_device",
        "write_bps_device",
        "read_iops_device",
        "write_iops_device",
        "blkio_weight_device",
        "blkio_weight",
    ),
    "devices": ("devices",),
    "hugetlb": ("hugetlb",),
}


def parse_cpu_list(text: str) -> frozenset[int]:
    """The numbers of a list such as ``0-3,7`` (cpuset(7), "List format"), or ValueError."""
    numbers: set[int] = set()
    for part in text.strip().split(","):
        matched = re.fullmatch(r"\s*(\d{1,5})(?:-(\d{1,5}))?\s*", part, re.ASCII)
        if matched is None:
            raise ValueError(f"not a list of numbers and ranges: {text!r}")
        low = int(matched[1])
        high = int(matched[2] or low)
        if high < low:
            raise ValueError(f"a range ends before it starts: {text!r}")
        numbers.update(range(low, high + 1))
    return frozenset(numbers)


def check_cpu_list(name: str, wanted: str, available: str) -> None:
    """Refuse a CPU or memory node list that is malformed or not within *available*."""
    try:
        missing = parse_cpu_list(wanted) - parse_cpu_list(available)
    except ValueError as error:
        raise RefusedLimitError(
            errno.EINVAL, f"{name}: {error}", limit=name, controller="cpuset"
        ) from error
    if missing:
        what = "CPUs" if name == "cpuset_cpus" else "memory nodes"
        raise RefusedLimitError(
            errno.EINVAL,
            f"Requested {what} are not available - requested {wanted}, "
            f"available: {available.strip()}",
            limit=name,
            controller="cpuset",
        )
