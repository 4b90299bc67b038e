"""Limits: Docker's numbers to `Resources`, for create and for update.

Pure but for the number of CPUs. Whether this host can enforce a limit is decided at create by
the engine; here only what makes no sense on any host is refused.
"""

from __future__ import annotations

import os
import re
from typing import Final

from tare.errors import InvalidError
from tare.model.spec import Resources, RestartPolicy, Throttle, Ulimit
from tare.wire.body import ResourcesBody, RestartPolicyBody, ThrottleBody, UlimitBody, WeightBody

MEMORY_MINIMUM: Final = 6 << 20
_BOUND: Final = 2**63 - 1
_CPUSET: Final = re.compile(r"[0-9]{1,5}(-[0-9]{1,5})?(,[0-9]{1,5}(-[0-9]{1,5})?)*")
_DEVICE_RULE: Final = re.compile(r"[acb] ([0-9]{1,9}|\*):([0-9]{1,9}|\*) [rwm]{1,3}")
_ULIMITS: Final = frozenset(
    [
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ]
)
_RESTARTS: Final = ("no", "always", "unless-stopped", "on-failure")


def _positive(what: str, value: int | None) -> int | None:
    """None for 0 and null, which Docker's clients send for *not asked for*."""
    if not value:
        return None
    if not 0 < value <= _BOUND:
        raise InvalidError(f"invalid {what}: {value} is out of range")
    return value


def _cpuset(what: str, text: str | None) -> str:
    if not text:
        return ""
    if not _CPUSET.fullmatch(text):
        raise InvalidError(f"Invalid value {text[:80]} for {what}")
    return text


def _throttles(bodies: list[ThrottleBody] | None) -> tuple[Throttle, ...]:
    for body in bodies or ():
        if not (body.path or "").startswith("/"):
            raise InvalidError(f"invalid device path for a throttle: {body.path!r}")
        if (body.rate or 0) < 0:
            raise InvalidError(f"invalid rate for device {body.path}: {body.rate}")
    return tuple(Throttle(device=b.path or "", rate=b.rate or 0) for b in bodies or ())


def _weights(bodies: list[WeightBody] | None) -> tuple[Throttle, ...]:
    for body in bodies or ():
        if not (body.path or "").startswith("/"):
            raise InvalidError(f"invalid device path for a weight: {body.path!r}")
        if not 10 <= (body.weight or 0) <= 1000:
            raise InvalidError(f"Invalid block I/O weight of {body.path}: it is 10 to 1000")
    return tuple(Throttle(device=b.path or "", rate=b.weight or 0) for b in bodies or ())


def _check_memory(body: ResourcesBody, *, updating: bool) -> None:
    memory, swap = body.memory or 0, body.memory_swap or 0
    if 0 < memory < MEMORY_MINIMUM:
        raise InvalidError("Minimum memory limit allowed is 6MB")
    if swap < -1:
        raise InvalidError(f"invalid memory swap limit: {swap}")
    # An update may change swap alone; the engine knows the memory limit then.
    if swap > 0 and not memory and not updating:
        raise InvalidError(
            "You should always set the Memory limit when using Memoryswap limit, see usage"
        )
    if 0 < swap < memory:
        raise InvalidError("Minimum memoryswap limit should be larger than memory limit, see usage")
    reservation = body.memory_reservation or 0
    if 0 < reservation < MEMORY_MINIMUM:
        raise InvalidError("Minimum memory reservation allowed is 6MB")
    if memory and reservation > memory:
        raise InvalidError(
            "Minimum memory limit can not be less than memory reservation limit, see usage"
        )
    swappiness = body.memory_swappiness
    if swappiness is not None and not -1 <= swappiness <= 100:
        raise InvalidError(f"Invalid value: {swappiness}, valid memory swappiness range is 0-100")


def _check_cpu(body: ResourcesBody) -> None:
    nano, quota, period = body.nano_cpus or 0, body.cpu_quota or 0, body.cpu_period or 0
    cpus = os.cpu_count() or 1
    if nano < 0 or nano > cpus * 10**9:
        raise InvalidError(
            f"Range of CPUs is from 0.01 to {cpus}.00, as there are only {cpus} CPUs available"
        )
    if 0 < nano < 10**7:
        raise InvalidError(f"Range of CPUs is from 0.01 to {cpus}.00: less is not a share")
    if nano and period:
        raise InvalidError("Conflicting options: Nano CPUs and CPU Period cannot both be set.")
    if nano and quota:
        raise InvalidError("Conflicting options: Nano CPUs and CPU Quota cannot both be set.")
    if period and not 1_000 <= period <= 1_000_000:
        raise InvalidError(
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)"
        )
    if 0 < quota < 1_000:
        raise InvalidError("CPU cfs quota can not be less than 1ms (i.e. 1000)")
    if (body.cpu_shares or 0) < 0 or (body.cpu_shares or 0) > 262_144:
        raise InvalidError(f"invalid CPU shares ({body.cpu_shares}): they are 2 to 262144")
    weight = body.blkio_weight or 0
    if weight and not 10 <= weight <= 1000:
        raise InvalidError("Range of blkio weight is from 10 to 1000")


def ulimits(bodies: list[UlimitBody] | None) -> tuple[Ulimit, ...]:
    """``HostConfig.Ulimits``; an unknown name or a soft limit above the hard one is refused."""
    found: dict[str, Ulimit] = {}
    for body in bodies or ():
        name, soft, hard = (body.name or "").lower(), body.soft or 0, body.hard or 0
        if name not in _ULIMITS:
            raise InvalidError(f"invalid ulimit type: {name[:40]!r}")
        if not (-1 <= soft <= _BOUND and -1 <= hard <= _BOUND):
            raise InvalidError(f"invalid ulimit {name}: a limit is -1 (none) or more")
        if hard != -1 and (soft == -1 or soft > hard):
            raise InvalidError(
                f"ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}"
            )
        found[name] = Ulimit(name=name, soft=soft, hard=hard)
    return tuple(found.values())


def resources(body: ResourcesBody, *, updating: bool = False) -> Resources:
    """The limits of *body*; 0, null and (for pids) 0 are *not asked for*, -1 is unlimited."""
    _check_memory(body, updating=updating)
    _check_cpu(body)
    if body.kernel_memory:
        raise InvalidError("kernel memory limits are gone from the kernel (since 5.16)")
    if body.cpu_realtime_period or body.cpu_realtime_runtime:
        raise InvalidError("CPU real-time limits are not supported by this engine")
    for rule in body.device_cgroup_rules or ():
        if not _DEVICE_RULE.fullmatch(rule):
            raise InvalidError(f"invalid device cgroup rule: {rule[:80]!r}")
    pids = body.pids_limit
    swappiness = body.memory_swappiness
    return Resources(
        memory=_positive("memory limit", body.memory),
        memory_swap=body.memory_swap or None,
        memory_reservation=_positive("memory reservation", body.memory_reservation),
        memory_swappiness=None if swappiness in (None, -1) else swappiness,
        oom_kill_disable=bool(body.oom_kill_disable),
        nano_cpus=_positive("number of CPUs", body.nano_cpus),
        cpu_shares=_positive("CPU shares", body.cpu_shares),
        cpu_quota_us=body.cpu_quota if (body.cpu_quota or 0) > 0 else None,
        cpu_period_us=_positive("CPU period", body.cpu_period),
        cpuset_cpus=_cpuset("cpuset cpus", body.cpuset_cpus),
        cpuset_mems=_cpuset("cpuset mems", body.cpuset_mems),
        pids=None if not pids else max(pids, -1),
        blkio_weight=_positive("blkio weight", body.blkio_weight),
        blkio_weight_device=_weights(body.blkio_weight_device),
        read_bps=_throttles(body.blkio_device_read_bps),
        write_bps=_throttles(body.blkio_device_write_bps),
        read_iops=_throttles(body.blkio_device_read_iops),
        write_iops=_throttles(body.blkio_device_write_iops),
        device_cgroup_rules=tuple(body.device_cgroup_rules or ()),
    )


def restart_policy(body: RestartPolicyBody | None, *, auto_remove: bool = False) -> RestartPolicy:
    """``RestartPolicy``; with ``--rm`` only ``no`` makes sense."""
    name = (body.name if body else None) or "no"
    retries = (body.maximum_retry_count if body else None) or 0
    if name not in _RESTARTS:
        raise InvalidError(
            f"invalid restart policy: unknown policy '{name[:40]}'; use one of 'no', 'always',"
            " 'on-failure', or 'unless-stopped'"
        )
    if retries < 0 or retries > 2**31 - 1:
        raise InvalidError("invalid restart policy: maximum retry count cannot be negative")
    if retries and name != "on-failure":
        raise InvalidError(
            "invalid restart policy: maximum retry count can only be used with 'on-failure'"
        )
    if auto_remove and name != "no":
        raise InvalidError("can't create 'AutoRemove' container with restart policy")
    return RestartPolicy(name=name, maximum_retries=retries)
