"""Section 5: the walls around one running workload, as the kernel shows them.

Each function judges one `Workload` and gives one item or several. What a container was asked to
be is looked at only where the kernel has no word for it (restart policy, published ports).

A virtual machine satisfies some checks by what it is: its program runs on a kernel of its own,
so no namespace, device or process of the host's is there to be shared. Those say so and are not
probed; limits, ports, mounts and the like are probed as those of any workload.

Not for: collecting (`container`), or the section's checks of processes (`workload_process`).
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from tare.audit import finding, procfs
from tare.audit.container import Workload
from tare.audit.finding import Evidence, Item
from tare.audit.procfs import MountLine, Place
from tare.audit.surroundings import SOCKET_NAMES, Surroundings
from tare.model.networking import BRIDGE
from tare.model.record import HealthStatus
from tare.model.spec import MountKind

Judge = Callable[[Workload, "Context"], "Item | Iterable[Item]"]

_HARMLESS_DEVICES: Final = frozenset(
    ("null", "zero", "full", "random", "urandom", "tty", "console", "ptmx", "fuse", "net/tun")
)
_PRIVILEGED: Final = 1024
_RETRIES: Final = 5
_MANY_FILES: Final = 1 << 20
_HIDDEN: Final = ("/proc/sys", "/sys/firmware")
_HIDDEN_FROM_ROOT: Final = (*_HIDDEN, "/proc/sysrq-trigger", "/proc/kcore")
"""Of the masked and read-only paths, those whose loss matters most; the latter two are closed by
their owner, root of the host, to everybody who has other ids."""

_OWN_KERNEL: Final = "the machine has a kernel of its own, so nothing of the host's is shared"
MACHINE: Final[Mapping[str, str]] = {
    "workload-apparmor": "the program runs on the machine's own kernel, outside the host's",
    "workload-selinux": "the program runs on the machine's own kernel, outside the host's",
    "workload-capabilities": "capabilities in the machine are over its own kernel only",
    "workload-privileged": "root in the machine is root of its own kernel only",
    "workload-host-network": _OWN_KERNEL,
    "workload-host-pid": _OWN_KERNEL,
    "workload-host-ipc": _OWN_KERNEL,
    "workload-host-uts": _OWN_KERNEL,
    "workload-user-namespace": "user ids in the machine are its own kernel's",
    "workload-devices": "the machine has virtio devices that QEMU makes, none of the host's",
    "workload-propagation": "mounts in the machine are its own kernel's",
    "workload-seccomp": "the program's system calls go to the machine's own kernel",
    "workload-new-privileges": "privileges in the machine are over its own kernel only",
    "workload-masked-paths": "/proc and /sys in the machine are its own kernel's",
    "workload-exec-privileged": "an exec has what the machine has: its own kernel",
}
"""Why a machine satisfies a check by construction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What judging needs beside the workload."""

    around: Surroundings
    allowed_ports: Collection[int] = ()


def judge(workload: Workload, name: str, context: Context) -> tuple[Item, ...]:
    """What the check *name* says of *workload*; () for a check that is not of this part."""
    from tare.audit import workload_process

    if workload.machine and name in MACHINE:
        found: Item | Iterable[Item] = finding.ok(MACHINE[name], Evidence("isolation", "vm"))
    else:
        function = _JUDGES.get(name) or workload_process.JUDGES.get(name)
        if function is None:
            return ()
        found = function(workload, context)
    items = (found,) if isinstance(found, Item) else tuple(found)
    return finding.about(workload.record.name, items)


# --- mounts -----------------------------------------------------------------------------------


def _at(mount: MountLine) -> Evidence:
    word = "ro" if mount.read_only else "rw"
    return Evidence(f"mount {mount.point}", f"{mount.source}{mount.root} {word}")


def _foreign(workload: Workload, around: Surroundings) -> list[MountLine]:
    """Mounts that show something of the host: not the engine's own, not the kernel's views."""
    found = []
    spec = workload.record.spec
    devices = {os.path.realpath(d.host_path) for d in spec.devices}
    for mount in workload.mounts:
        # What nobody bind-mounted: the container's own /proc and /sys, and groups below it.
        if mount.kind in ("proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue") and (
            procfs.below(mount.point, "/proc") or procfs.below(mount.point, "/sys")
            or procfs.below(mount.point, "/dev")
        ):  # fmt: skip
            continue
        if mount.kind == "devtmpfs" and (
            mount.root.lstrip("/") in _HARMLESS_DEVICES or f"/dev{mount.root}" in devices
        ):
            continue
        if _engines_own(mount, workload, around):
            continue
        found.append(mount)
    return found


def _engines_own(mount: MountLine, workload: Workload, around: Surroundings) -> bool:
    """Whether it is a file that the engine made for this workload, or a volume."""
    identity = workload.record.id
    own = [
        Place(place.device, f"{place.path.rstrip('/')}/{name}")
        for place, names in (
            (around.state, (f"workloads/{identity}", "volumes")),
            (around.run, (f"workloads/{identity}", f"files/{identity}")),
        )
        if place is not None
        for name in names
    ]
    return any(place.holds(mount) and mount.root != place.path for place in own)


def _sensitive(workload: Workload, context: Context) -> Iterable[Item]:
    if workload.machine:
        return _sensitive_by_name(workload, context)
    found = []
    for mount in _foreign(workload, context.around):
        name = next((n for n, p in context.around.sensitive.items() if _is_of(n, p, mount)), "")
        if not name:
            continue
        seen = f"{mount.root} of the host's {name} is mounted on {mount.point}"
        if mount.read_only:
            found.append(finding.info(f"{seen}, read-only", _at(mount)))
        else:
            found.append(finding.fail(f"{seen}, writable", _at(mount)))
    return found or finding.ok("no directory of the host's system is mounted")  # type: ignore[return-value]


def _is_of(name: str, place: Place, mount: MountLine) -> bool:
    if mount.kind == "overlay" and mount.point == "/":
        return False
    # A directory of data may well lie on the root file system: only / itself is the root.
    if name == "/":
        return mount.device == place.device and mount.root == place.path
    return place.holds(mount)


def _sensitive_by_name(workload: Workload, context: Context) -> list[Item]:
    found = []
    for mount in workload.record.spec.mounts:
        if mount.kind is not MountKind.BIND:
            continue
        real = os.path.realpath(mount.source)
        name = next(
            (
                n
                for n in context.around.sensitive
                if real == n or (n != "/" and procfs.below(real, n))
            ),
            "",
        )
        if name:
            seen = f"{real} of the host is shared with the machine on {mount.target}"
            at = Evidence("share", "ro" if mount.read_only else "rw")
            found.append(
                finding.info(f"{seen}, read-only", at)
                if mount.read_only
                else finding.fail(f"{seen}, writable", at)
            )
    return found or [finding.ok("no directory of the host's system is shared")]


def _sockets(workload: Workload, context: Context) -> list[Item]:
    found = []
    if not workload.machine:
        for mount in workload.mounts:
            for path, place in context.around.sockets.items():
                if place.within(mount) and not (mount.kind == "overlay" and mount.point == "/"):
                    found.append(finding.fail(f"{path} is reachable on {mount.point}", _at(mount)))
    points = {mount.point for mount in workload.mounts if not workload.machine}
    shown = {e.where.removeprefix("mount ") for item in found for e in item.evidence}
    for wanted in workload.record.spec.mounts:
        real = os.path.realpath(wanted.source) if wanted.kind is MountKind.BIND else ""
        if os.path.basename(real) in SOCKET_NAMES and not shown & points & {
            wanted.target,
            os.path.realpath(wanted.target),
        }:
            found.append(finding.fail(f"{real} is mounted on {wanted.target}"))
        elif real and workload.machine:
            held = [p for p in context.around.sockets if procfs.below(os.path.realpath(p), real)]
            found += [finding.warn(f"{p} is in what is shared on {wanted.target}") for p in held]
    for entry in workload.record.spec.process.env:
        name, _, value = entry.partition("=")
        if name in ("DOCKER_HOST", "CONTAINER_HOST", "TARE_HOST") and value:
            found.append(finding.warn(f"{name} names an engine", Evidence("environment", value)))
    return found or [finding.ok("no engine's socket is reachable")]


def _propagation(workload: Workload, context: Context) -> list[Item]:
    found = [
        finding.warn(
            f"what is mounted below {mount.point} appears on the host",
            Evidence(f"mountinfo {mount.point}", f"shared:{mount.shared}"),
        )
        for mount in workload.mounts
        if mount.shared and mount.shared in context.around.shared_groups
    ]
    return found or [finding.ok("no mount propagates to the host")]


def _read_only(workload: Workload, _: Context) -> Item:
    root = workload.root
    if workload.machine:
        if workload.record.spec.read_only:
            return finding.ok("the machine's root file system is read-only")
        return finding.warn("the machine's root file system can be written")
    if root is None:
        return finding.note("its mounts could not be read")
    if "ro" in root.options:
        return finding.ok("the root file system is read-only", _at(root))
    return finding.warn("the root file system can be written", _at(root))


def _masked(workload: Workload, _: Context) -> Item:
    """A path is covered by a mount of its own, or below one that is read-only."""
    hidden = _HIDDEN if workload.own_ids else _HIDDEN_FROM_ROOT
    bare = []
    for path in hidden:
        covering = [m for m in workload.mounts if procfs.below(path, m.point) and m.point != "/"]
        last = max(covering, key=lambda m: len(m.point), default=None)
        if last is None or (last.point != path and not last.read_only):
            bare.append(path)
    if bare:
        return finding.warn(f"not covered: {', '.join(bare)}", Evidence("mountinfo", "no mount"))
    return finding.ok(f"covered: {', '.join(hidden)}")


def _devices(workload: Workload, _: Context) -> list[Item]:
    spec = workload.record.spec
    found = [
        finding.warn(
            f"{d.host_path} is there as {d.target}", Evidence("permissions", d.permissions)
        )
        for d in spec.devices
    ]
    found += [
        finding.warn("devices are allowed by rule", Evidence("rule", rule))
        for rule in spec.resources.device_cgroup_rules
    ]
    if workload.limits.all_devices:
        found.append(
            finding.warn("every device may be used", Evidence("devices.list", "a *:* rwm"))
        )
    return found or [finding.ok("no device of the host beyond the usual ones")]


# --- limits -----------------------------------------------------------------------------------


def _memory(workload: Workload, _: Context) -> Item:
    limit = workload.limits.memory
    at = Evidence(workload.limits.directory or "control group", str(limit or "no limit"))
    if limit:
        return finding.ok(f"at most {limit >> 20} MiB", at)
    if workload.machine:
        return finding.ok("the machine has the memory that it was made with, and no more", at)
    return finding.warn("no limit on memory", at)


def _cpu(workload: Workload, _: Context) -> Item:
    limits = workload.limits
    if limits.cpu_quota:
        return finding.ok("a quota is set", Evidence("CPU quota", limits.cpu_quota))
    if limits.cpu_weight:
        return finding.ok("a share is set", Evidence("CPU weight", limits.cpu_weight))
    if workload.record.spec.resources.cpu_shares:
        return finding.info("a share was asked for, and it is the default one")
    return finding.warn("no quota, and the default share")


def _pids(workload: Workload, _: Context) -> Item:
    limit = workload.limits.pids
    at = Evidence("pids.max", str(limit or "max"))
    if limit:
        return finding.ok(f"at most {limit} processes and threads", at)
    return finding.warn("no limit on processes", at)


def _ulimits(workload: Workload, _: Context) -> Item:
    soft, hard = workload.rlimits.get("Max open files", ("", ""))
    core = workload.rlimits.get("Max core file size", ("", ""))[0]
    at = (Evidence("open files", f"{soft}:{hard}"), Evidence("core file size", core))
    if not soft:
        return finding.note("its limits could not be read")
    if not soft.isdigit() or int(soft) >= _MANY_FILES:
        return finding.info("the limit on open files is none, or a million and more", *at)
    own = ", ".join(u.name for u in workload.record.spec.ulimits)
    return finding.ok(f"its own: {own}" if own else "the engine's limits are in force", *at)


def _group(workload: Workload, context: Context) -> Item:
    paths = set(workload.groups.values())
    expected = workload.record.cgroup.strip("/")
    seen = sorted(path for path in paths if expected and expected in path)
    if not expected or not workload.groups:
        return finding.info("it has no control group: this host gives the engine none")
    if not seen:
        return finding.warn(
            "its process is in a control group elsewhere",
            Evidence("cgroup", ", ".join(sorted(paths))[:200]),
        )
    at = Evidence("cgroup", seen[0])
    if not procfs.below("/" + expected, "/" + context.around.cgroup_parent.strip("/")):
        return finding.warn("another parent than the engine's was asked for", at)
    return finding.ok("in the engine's own group", at)


# --- ports ------------------------------------------------------------------------------------


def _published(workload: Workload) -> list[tuple[str, int, int, str]]:
    return [
        (port.host_address, port.host_port, port.container_port, port.protocol)
        for joined in workload.record.networks
        for port in joined.ports
    ]


def _privileged_ports(workload: Workload, context: Context) -> list[Item]:
    found = []
    for address, host, inside, protocol in _published(workload):
        if 0 < host < _PRIVILEGED:
            at = Evidence("published", f"{address}:{host} -> {inside}/{protocol}")
            found.append(
                finding.info(f"port {host} is published, as was allowed", at)
                if host in context.allowed_ports
                else finding.warn(f"port {host} is published", at)
            )
    return found or [finding.ok("no port below 1024 is published")]


def _needed_ports(workload: Workload, _: Context) -> list[Item]:
    declared = {port.partition("/")[0] for port in workload.image_ports}
    heard = {port for _, port, _ in workload.listening}
    found = []
    for _address, host, inside, protocol in _published(workload):
        name = f"{inside}/{protocol}"
        if declared and str(inside) not in declared:
            found.append(finding.warn(f"{name} is published, and the image does not declare it"))
        elif workload.listening and protocol != "sctp" and inside not in heard:
            found.append(finding.info(f"{name} is published as {host}, and nothing listens on it"))
        else:
            found.append(finding.note(f"{name} is published as {host}; is it needed?"))
    return found or [finding.ok("no port is published")]


def _bound(workload: Workload, _: Context) -> list[Item]:
    found = []
    for address, host, inside, protocol in _published(workload):
        try:
            wide = ipaddress.ip_address(address or "0.0.0.0").is_unspecified  # noqa: S104
        except ValueError:
            wide = False
        if wide:
            at = Evidence("published", f"{address or '*'}:{host} -> {inside}/{protocol}")
            found.append(finding.warn(f"port {host} is open on every address of the host", at))
    return found or [finding.ok("no port is open on all addresses")]


# --- what only the record knows -----------------------------------------------------------------


def _restart(workload: Workload, _: Context) -> Item:
    policy = workload.record.spec.restart
    at = Evidence("restart policy", f"{policy.name}:{policy.maximum_retries}")
    if policy.name in ("", "no"):
        return finding.ok("it is not started again", at)
    if policy.name == "on-failure" and 0 < policy.maximum_retries <= _RETRIES:
        return finding.ok(f"at most {policy.maximum_retries} times", at)
    return finding.warn("it is started again without end", at)


def _health(workload: Workload, _: Context) -> Item:
    health = workload.record.health
    if health is None or health.status is HealthStatus.NONE:
        return finding.warn("no health check runs")
    at = Evidence("health", str(health.status))
    if health.status is HealthStatus.UNHEALTHY:
        return finding.warn("its health check fails", at)
    return finding.ok("its health is checked", at)


def _latest(workload: Workload, _: Context) -> Item:
    record = workload.record
    at = (Evidence("image", record.spec.image), Evidence("runs", record.image_id))
    if workload.newer_image:
        return finding.warn(
            f"{record.spec.image} names another image by now", *at,
            Evidence("named now", workload.newer_image),
        )  # fmt: skip
    return finding.note(
        f"{record.spec.image} is the newest that this host has; the registry was not asked", *at
    )


def _default_bridge(workload: Workload, _: Context) -> Item:
    names = [joined.network for joined in workload.record.networks]
    if BRIDGE in names:
        return finding.info("it is on the default network", Evidence("networks", ", ".join(names)))
    return finding.ok(
        "not on the default network", Evidence("networks", ", ".join(names) or "none")
    )


def _pinned(workload: Workload, _: Context) -> Item:
    name = workload.record.spec.image
    if "@sha256:" in name or name.startswith("sha256:"):
        return finding.ok("its image is named by digest", Evidence("image", name))
    tag = name.rpartition("/")[2].partition(":")[2]
    if tag in ("", "latest"):
        return finding.warn("its image is named by a tag that moves", Evidence("image", name))
    return finding.ok("its image is named by a version", Evidence("image", name))


_JUDGES: Final[Mapping[str, Judge]] = {
    "workload-sensitive-mounts": _sensitive,
    "workload-engine-socket": _sockets,
    "workload-propagation": _propagation,
    "workload-read-only": _read_only,
    "workload-masked-paths": _masked,
    "workload-devices": _devices,
    "workload-memory": _memory,
    "workload-cpu": _cpu,
    "workload-pids": _pids,
    "workload-ulimits": _ulimits,
    "workload-cgroup": _group,
    "workload-privileged-ports": _privileged_ports,
    "workload-needed-ports": _needed_ports,
    "workload-bound-address": _bound,
    "workload-restart": _restart,
    "workload-health": _health,
    "workload-latest-image": _latest,
    "workload-default-bridge": _default_bridge,
    "workload-pinned-image": _pinned,
}
