"""Checks what a user asks for against what this host can enforce, in Docker's words.

`check` raises InvalidError for what makes no sense and returns warnings for what Docker accepts
with a warning and leaves out. The result tells which values to drop, so that nothing is silently
ignored: each dropped value has its warning.

Not for: applying limits (kernel.cgroup, by the keeper).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from tare.errors import InvalidError, UnsupportedError
from tare.model.spec import ContainerSpec, Device, Resources, SecurityProfile, Throttle

HARDENED_MEMORY: Final = 1 << 30
MINIMUM_MEMORY: Final = 6 << 20  # Docker's: below it runc could not start; here it keeps scripts


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What the host's control groups can do, and its size."""

    memory: bool = True
    swap: bool = True
    reservation: bool = True
    swappiness: bool = True
    oom_kill_disable: bool = True
    cpu: bool = True
    cpuset: bool = True
    pids: bool = True
    blkio_weight: bool = True
    blkio_throttle: bool = True
    cpus: int = 1
    online_cpus: str = "0"
    online_mems: str = "0"
    hint: str = ""  # what to do when a controller is missing


def with_defaults(spec: ContainerSpec, can: Abilities) -> Resources:
    """The limits asked for, and a hardened container's 1 GiB of memory where none was."""
    wanted = spec.resources
    hardened = spec.security.profile is SecurityProfile.HARDENED
    if not hardened or wanted.memory or not can.memory:
        return wanted
    return replace(wanted, memory=max(HARDENED_MEMORY, wanted.memory_reservation or 0))


def check(wanted: Resources, can: Abilities) -> tuple[Resources, list[str]]:
    """The limits that will be applied, and warnings for those that will not."""
    warnings: list[str] = []
    wanted = _memory(wanted, can, warnings)
    wanted = _pids(wanted, can, warnings)
    _cpu(wanted, can)
    wanted = _blkio(wanted, can, warnings)
    return wanted, warnings


def check_update(old: Resources, new: Resources, can: Abilities) -> tuple[Resources, list[str]]:
    """*new* over *old* (None and empty mean unchanged), checked together."""
    changes = {
        name: value
        for name in Resources.__dataclass_fields__
        if (value := getattr(new, name)) not in (None, "", (), False)
    }
    if "nano_cpus" in changes:
        changes |= {"cpu_quota_us": None, "cpu_period_us": None}
    elif old.nano_cpus and ("cpu_quota_us" in changes or "cpu_period_us" in changes):
        raise InvalidError(
            "Conflicting options: CPU Quota cannot be updated as NanoCPUs has already been set"
        )
    if "memory" in changes and "memory_swap" not in changes:
        swap = old.memory_swap
        if swap is not None and 0 < swap < changes["memory"]:
            raise InvalidError(
                "Memory limit should be smaller than already set memoryswap limit, "
                "update the memoryswap at the same time"
            )
    return check(replace(old, **changes), can)


def check_devices(devices: Iterable[Device]) -> None:
    """Refuse devices that are not there, and permissions that do not exist."""
    for device in devices:
        if not device.permissions or set(device.permissions) - set("rwm"):
            raise InvalidError(f"invalid device mode: {device.permissions[:20]}")
        try:
            mode = os.stat(device.host_path).st_mode
        except OSError as error:
            raise InvalidError(
                f'error gathering device information while adding custom device "'
                f'{device.host_path}": {os.strerror(error.errno or 0).lower()}'
            ) from None
        if not (stat.S_ISBLK(mode) or stat.S_ISCHR(mode) or stat.S_ISDIR(mode)):
            raise InvalidError(
                f'error gathering device information while adding custom device "'
                f'{device.host_path}": not a device node'
            )


def check_spec(spec: ContainerSpec) -> None:
    """The bounds of what is not a cgroup limit: shared memory, scores, time-outs."""
    if spec.shm_size < 0:
        raise InvalidError("SHM size can not be less than 0")
    if spec.oom_score_adj is not None and not -1000 <= spec.oom_score_adj <= 1000:
        raise InvalidError(
            f"Invalid value {spec.oom_score_adj}, range for oom score adj is [-1000, 1000]"
        )
    if spec.stop_timeout is not None and spec.stop_timeout < -1:
        raise InvalidError(f"invalid stop timeout: {spec.stop_timeout}")
    if len(spec.hostname) > 64:
        raise InvalidError(
            f"invalid hostname: {len(spec.hostname)} characters, and the kernel allows 64"
        )
    health = spec.health
    if health is not None:
        bounds = (
            ("Interval", health.interval_ns),
            ("Timeout", health.timeout_ns),
            ("StartPeriod", health.start_period_ns),
            ("StartInterval", health.start_interval_ns),
        )
        for name, value in bounds:
            if value and value < 1_000_000:
                raise InvalidError(f"{name} in Healthcheck cannot be less than 1ms")
        if health.retries < 0:
            raise InvalidError("Retries in Healthcheck cannot be negative")


def _memory(wanted: Resources, can: Abilities, warnings: list[str]) -> Resources:
    memory, swap = wanted.memory or 0, wanted.memory_swap or 0
    if memory < 0 or (memory and memory < MINIMUM_MEMORY):
        raise InvalidError("Minimum memory limit allowed is 6MB")
    if memory and not can.memory:
        raise _missing("a memory limit", "memory", can)
    if swap > 0 and not memory:
        raise InvalidError(
            "You should always set the Memory limit when using Memoryswap limit, see usage"
        )
    if memory and 0 < swap < memory:
        raise InvalidError("Minimum memoryswap limit should be larger than memory limit, see usage")
    if memory and swap and not can.swap:
        warnings.append(
            "Your kernel does not support swap limit capabilities or the cgroup is not mounted. "
            "Memory limited without swap."
        )
        wanted = replace(wanted, memory_swap=None)
    wanted = _reservation(wanted, can, warnings)
    swappiness = wanted.memory_swappiness
    if swappiness is not None and swappiness != -1:
        if not 0 <= swappiness <= 100:
            raise InvalidError(
                f"Invalid value: {swappiness}, valid memory swappiness range is 0-100"
            )
        if not can.swappiness:
            warnings.append(
                "Your kernel does not support memory swappiness capabilities or the cgroup is not "
                "mounted. Memory swappiness discarded."
            )
            wanted = replace(wanted, memory_swappiness=None)
    elif swappiness == -1:
        wanted = replace(wanted, memory_swappiness=None)
    if wanted.oom_kill_disable:
        wanted = _oom_kill_disable(wanted, can, warnings)
    return wanted


def _reservation(wanted: Resources, can: Abilities, warnings: list[str]) -> Resources:
    reservation = wanted.memory_reservation or 0
    if not reservation:
        return wanted
    if reservation < MINIMUM_MEMORY:
        raise InvalidError("Minimum memory reservation allowed is 6MB")
    if wanted.memory and wanted.memory < reservation:
        raise InvalidError(
            "Minimum memory limit can not be less than memory reservation limit, see usage"
        )
    if not can.reservation:
        warnings.append(
            "Your kernel does not support memory soft limit capabilities or the cgroup is not "
            "mounted. Limitation discarded."
        )
        return replace(wanted, memory_reservation=None)
    return wanted


def _oom_kill_disable(wanted: Resources, can: Abilities, warnings: list[str]) -> Resources:
    if not can.oom_kill_disable:
        warnings.append("Your kernel does not support OomKillDisable. OomKillDisable discarded.")
        return replace(wanted, oom_kill_disable=False)
    if not wanted.memory:
        warnings.append(
            "OOM killer is disabled for the container, but no memory limit is set, this can "
            "result in the system running out of resources."
        )
    return wanted


def _pids(wanted: Resources, can: Abilities, warnings: list[str]) -> Resources:
    if wanted.pids is not None and wanted.pids < -1:
        raise InvalidError(f"invalid pids limit: {wanted.pids}")
    if wanted.pids is not None and wanted.pids > 0 and not can.pids:
        warnings.append(
            "Your kernel does not support PIDs limit capabilities or the cgroup is not mounted. "
            "PIDs limit discarded."
        )
        return replace(wanted, pids=None)
    return wanted


def _cpu(wanted: Resources, can: Abilities) -> None:
    nano, quota, period = wanted.nano_cpus or 0, wanted.cpu_quota_us or 0, wanted.cpu_period_us or 0
    if nano and period:
        raise InvalidError("Conflicting options: Nano CPUs and CPU Period cannot both be set")
    if nano and quota:
        raise InvalidError("Conflicting options: Nano CPUs and CPU Quota cannot both be set")
    if nano < 0 or nano > can.cpus * 1_000_000_000 or 0 < nano < 10_000_000:
        raise InvalidError(
            f"range of CPUs is from 0.01 to {can.cpus}.00, "
            f"as there are only {can.cpus} CPUs available"
        )
    if period and not 1000 <= period <= 1_000_000:
        raise InvalidError(
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)"
        )
    if 0 < quota < 1000:
        raise InvalidError("CPU cfs quota can not be less than 1ms (i.e. 1000)")
    shares = wanted.cpu_shares or 0
    if shares < 0:
        raise InvalidError(f"invalid CPU shares ({shares}): value must be a positive integer")
    if (nano or quota > 0 or shares) and not can.cpu:
        raise _missing("a CPU limit", "cpu", can)
    for kind, text, online in (
        ("cpuset.cpus", wanted.cpuset_cpus, can.online_cpus),
        ("cpuset.mems", wanted.cpuset_mems, can.online_mems),
    ):
        if text:
            _cpuset(kind, text, online)
            if not can.cpuset:
                raise _missing("a cpuset", "cpuset", can)


def _cpuset(kind: str, text: str, online: str) -> None:
    short = kind.partition(".")[2]
    wanted = _numbers(text)
    if wanted is None:
        raise InvalidError(f"invalid cpuset {short} value: {text[:80]!r}")
    if not wanted <= (_numbers(online) or frozenset()):
        what = "CPUs" if short == "cpus" else "memory nodes"
        raise InvalidError(
            f"Requested {what} are not available - requested {text}, available: {online}"
        )


def _numbers(text: str) -> frozenset[int] | None:
    """The numbers of a list such as ``0-2,5``, or None if it is none."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isascii() and first.isdigit() and len(first) <= 5):
            return None
        if dash and not (last.isascii() and last.isdigit() and len(last) <= 5):
            return None
        low, high = int(first), int(last) if dash else int(first)
        if high < low:
            return None
        found.update(range(low, high + 1))
    return frozenset(found)


def _blkio(wanted: Resources, can: Abilities, warnings: list[str]) -> Resources:
    weight = wanted.blkio_weight or 0
    if weight and not 10 <= weight <= 1000:
        raise InvalidError("Range of blkio weight is from 10 to 1000")
    for entry in wanted.blkio_weight_device:
        if not 10 <= entry.rate <= 1000:
            raise InvalidError("Range of blkio weight is from 10 to 1000")
    if (weight or wanted.blkio_weight_device) and not can.blkio_weight:
        warnings.append(
            "Your kernel does not support Block I/O weight or the cgroup is not mounted. "
            "Weight discarded."
        )
        wanted = replace(wanted, blkio_weight=None, blkio_weight_device=())
    throttles = (*wanted.read_bps, *wanted.write_bps, *wanted.read_iops, *wanted.write_iops)
    if throttles and not can.blkio_throttle:
        raise _missing("a block I/O limit", "blkio", can)
    for entry in (*throttles, *wanted.blkio_weight_device):
        _block_device(entry)
    return wanted


def _block_device(entry: Throttle) -> None:
    try:
        mode = os.stat(entry.device).st_mode
    except OSError as error:
        raise InvalidError(
            f"cannot limit {entry.device}: {os.strerror(error.errno or 0).lower()}",
            hint="name a block device of the host, such as /dev/sda (lsblk lists them)",
        ) from None
    if not stat.S_ISBLK(mode):
        raise InvalidError(f"cannot limit {entry.device}: it is not a block device")
    if entry.rate <= 0:
        raise InvalidError(f"invalid rate for device {entry.device}: {entry.rate}")


def _missing(what: str, controller: str, can: Abilities) -> UnsupportedError:
    return UnsupportedError(
        f"{what} cannot be enforced: this engine has no {controller} controller to use",
        hint=can.hint or f"mount the {controller} control group controller",
    )
