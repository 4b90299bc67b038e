"""``tare doctor``: what this host lacks, what that costs, and what to do about it.

Every check looks (or tries), never assumes, and leaves nothing behind. It works without an
engine, so it can say why one does not start.

Not for: whether KVM really boots a guest; that takes a boot, and `vm` will do it.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import resource
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from tare.engine.paths import Paths
from tare.kernel import cgroup
from tare.model.record import Check

_GIB: Final = 1 << 30
_SYS_RESOURCE: Final = 24
_LOW_SPACE: Final = 2 * _GIB
_FEW_FILES: Final = 65536


def examine(paths: Paths) -> list[Check]:
    """All findings, in the order a reader needs them."""
    checks: Sequence[Callable[[Paths], Check]] = (
        _kernel, _control_groups, _limits, _user_namespaces, _id_maps, _overlay, _erofs, _seccomp,
        _modules, _privilege, _descriptors, _space, _bootstrap, _init, _kvm, _volumes,
        _networks,
    )  # fmt: skip
    found = []
    for check in checks:
        try:
            found.append(check(paths))
        except OSError as error:
            name = check.__name__.strip("_").replace("_", " ")
            found.append(Check(check=name, status="warn", seen=f"could not be looked at: {error}"))
    return found


def _volumes(paths: Paths) -> Check:
    """Volumes that the database knows and whose directory somebody deleted."""
    names: list[str] = []
    with contextlib.suppress(sqlite3.Error):
        db = sqlite3.connect(f"file:{paths.database}?mode=ro", uri=True)
        try:
            names = [row[0].decode() for row in db.execute("SELECT name FROM volumes")]
        finally:
            db.close()
    missing = [n for n in names if not os.path.isdir(paths.state / "volumes" / n / "_data")]
    if missing:
        return _warn(
            "volumes", f"deleted by hand: {', '.join(sorted(missing)[:5])}",
            "containers that have them cannot start; what was in them is lost",
            "bring back an export (tare volume import NAME FILE), make them anew (tare volume"
            " create NAME), or forget them (tare volume rm NAME)",
        )  # fmt: skip
    return _ok("volumes", f"{len(names)}, all there")


def _networks(paths: Paths) -> Check:
    """Whether there can be bridge networks, and whether another firewall stands in their way."""
    from tare.engine.fabric import fabric_of

    lacking = fabric_of(paths).unavailable
    if lacking:
        return _warn(
            "networks", lacking, "containers have loopback only, --network host, or another's",
            "run the engine as root, with the package nftables installed",
        )  # fmt: skip
    from tare.network.firewall import foreign_walls

    walls = {hook: found for hook in ("input", "forward") if (found := foreign_walls(hook))}
    if walls:
        closed = "; ".join(f"{hook}: {', '.join(found)}" for hook, found in walls.items())
        costs = {
            "input": "containers' questions for names do not reach the name server",
            "forward": "containers reach nothing outside, and nobody their published ports",
        }
        return _warn(
            "networks", f"the host's own firewall closes what it does not know ({closed})",
            ", and ".join(costs[hook] for hook in walls) + ", unless it lets them",
            _LET_THROUGH,
        )  # fmt: skip
    return _ok("networks", "bridges, the packet filter and published ports are possible")


_LET_THROUGH: Final = (
    "for each bridge that `ip -br link` shows (tb...): with ufw `ufw allow in on BRIDGE to any port"
    " 53`, `ufw route allow in on BRIDGE` and `ufw route allow out on BRIDGE`; with firewalld"
    " `firewall-cmd --permanent --zone=trusted --add-interface=BRIDGE` and `firewall-cmd --reload`"
)


def _ok(check: str, seen: str) -> Check:
    return Check(check=check, status="ok", seen=seen)


def _warn(check: str, seen: str, cost: str, remedy: str) -> Check:
    return Check(check=check, status="warn", seen=seen, cost=cost, remedy=remedy)


def _fail(check: str, seen: str, cost: str, remedy: str) -> Check:
    return Check(check=check, status="fail", seen=seen, cost=cost, remedy=remedy)


def _kernel(_: Paths) -> Check:
    release = os.uname().release
    major, minor = (int(part.split("-")[0]) for part in release.split(".")[:2])
    if (major, minor) < (5, 19):
        return _fail(
            "kernel", release, "id-mapped overlays do not exist, containers cannot start as meant",
            "use Linux 5.19 or later; 6.12 or later mounts layers without extracting them",
        )  # fmt: skip
    if (major, minor) < (6, 12):
        return _warn(
            "kernel", release, "layers are extracted into directories, which takes time and space",
            "Linux 6.12 or later mounts them from files",
        )  # fmt: skip
    return _ok("kernel", release)


def _control_groups(_: Paths) -> Check:
    layout = cgroup.detect()
    controllers = " ".join(sorted(layout.controllers))
    seen = f"{layout.mode.value}: {controllers or 'no controllers'}"
    if layout.mode is cgroup.Mode.NONE or not layout.controllers:
        return _fail(
            "control groups", seen, "no limit can be enforced, and nothing is measured",
            "mount them: mount -t cgroup2 none /sys/fs/cgroup"
            if layout.privileged else cgroup.DELEGATE_HINT,
        )  # fmt: skip
    if layout.mode is not cgroup.Mode.V2:
        return _warn(
            "control groups", seen, "version 1: no pressure figures, an OOM kill takes one process "
            "and not the container", "boot with systemd.unified_cgroup_hierarchy=1",
        )  # fmt: skip
    return _ok("control groups", seen)


def _limits(_: Paths) -> Check:
    from tare.engine.abilities import detect

    can = detect(cgroup.detect())
    wanted = {
        "memory": can.memory, "swap": can.swap, "CPU": can.cpu, "cpuset": can.cpuset,
        "pids": can.pids, "block I/O rate": can.blkio_throttle,
    }  # fmt: skip
    missing = [name for name, there in wanted.items() if not there]
    if missing:
        return _warn(
            "limits", "not enforceable: " + ", ".join(missing),
            "options that ask for them are refused, or warned about as Docker does",
            can.hint or "enable the controllers in the kernel and mount them",
        )  # fmt: skip
    return _ok("limits", "memory, swap, CPU, cpuset, pids and block I/O can be limited")


def _user_namespaces(_: Paths) -> Check:
    maximum = _number("/proc/sys/user/max_user_namespaces")
    clone = _number("/proc/sys/kernel/unprivileged_userns_clone", missing=1)
    if not os.path.exists("/proc/self/ns/user") or maximum == 0:
        return _fail(
            "user namespaces", "switched off",
            "root in a container is root of the host: only --userns=host works",
            "sysctl user.max_user_namespaces=65536",
        )  # fmt: skip
    if clone == 0 and os.geteuid() != 0:
        return _fail(
            "user namespaces", "forbidden to ordinary users", "no rootless engine",
            "sysctl kernel.unprivileged_userns_clone=1",
        )  # fmt: skip
    return _ok("user namespaces", f"up to {maximum}")


def _id_maps(paths: Paths) -> Check:
    if not paths.rootless:
        return _ok("subordinate ids", "not needed: the engine runs as root")
    user = pwd.getpwuid(os.geteuid()).pw_name
    if shutil.which("newuidmap") is None:
        return _fail(
            "subordinate ids", "newuidmap is not installed", "no rootless containers",
            "apt install uidmap",
        )  # fmt: skip
    for path in ("/etc/subuid", "/etc/subgid"):
        if _subordinate(path, user) < 65536:
            return _fail(
                "subordinate ids", f"{path} gives {user} fewer than 65536 ids",
                "no rootless containers",
                f"usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}",
            )  # fmt: skip
    return _ok("subordinate ids", f"{user} has at least 65536")


def _subordinate(path: str, user: str) -> int:
    total = 0
    with contextlib.suppress(OSError, ValueError):
        for line in Path(path).read_text("utf-8").splitlines():
            name, _, count = line.split(":")
            if name in (user, str(os.geteuid())):
                total += int(count)
    return total


def _overlay(_: Paths) -> Check:
    if "overlay" not in _file_systems():
        return _fail(
            "overlayfs", "not in this kernel", "no container can start", "modprobe overlay"
        )
    return _ok("overlayfs", "available")


def _erofs(_: Paths) -> Check:
    from tare.engine.engine import erofs_from_files

    if not erofs_from_files():
        return _warn(
            "EROFS", "not mountable from a plain file", "layers are extracted into directories",
            "modprobe erofs, on Linux 6.12 or later",
        )  # fmt: skip
    return _ok("EROFS", "mounted from plain files")


def _seccomp(_: Paths) -> Check:
    actions = _text("/proc/sys/kernel/seccomp/actions_avail")
    if "errno" not in actions:
        return _fail(
            "seccomp", "not in this kernel", "system calls cannot be filtered",
            "use a kernel with CONFIG_SECCOMP_FILTER",
        )  # fmt: skip
    return _ok("seccomp", actions)


def _modules(_: Paths) -> Check:
    active = _text("/sys/kernel/security/lsm") or "not known"
    if not {"apparmor", "selinux"} & set(active.split(",")):
        return _warn(
            "security modules", active, "one wall less: neither AppArmor nor SELinux confines "
            "containers; the others stand", "boot with apparmor=1 security=apparmor",
        )  # fmt: skip
    return _ok("security modules", active)


def _privilege(_paths: Paths) -> Check:
    effective = 0
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("CapEff:"):
            effective = int(line.split()[1], 16)
    if not effective >> _SYS_RESOURCE & 1:
        return _warn(
            "CAP_SYS_RESOURCE", "missing",
            "ulimits cannot be raised and OOM scores not lowered: they are clamped, with a warning",
            "run the daemon with the capability, as root of the host",
        )  # fmt: skip
    return _ok("CAP_SYS_RESOURCE", "there")


def _descriptors(_paths: Paths) -> Check:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _FEW_FILES:
        return _warn(
            "open files", f"hard limit {hard}",
            f"containers get at most that many; about {hard // 12} containers at once",
            "raise LimitNOFILE of the daemon's unit",
        )  # fmt: skip
    return _ok("open files", f"hard limit {hard}")


def _space(paths: Paths) -> Check:
    place = paths.state
    while not place.exists() and place != place.parent:
        place = place.parent
    status = os.statvfs(place)
    free = status.f_bavail * status.f_frsize
    seen = f"{free / _GIB:.1f} GiB free for {paths.state}"
    if status.f_files and status.f_favail < 10_000:
        return _warn(
            "disk", f"{status.f_favail} inodes free", "containers soon cannot be created",
            "tare image prune, tare container prune",
        )  # fmt: skip
    if free < _LOW_SPACE:
        return _warn(
            "disk", seen, "images soon do not fit", "tare image prune, or another TARE_STATE_DIR"
        )
    return _ok("disk", seen)


def _bootstrap(_: Paths) -> Check:
    found = shutil.which("mmdebstrap")
    if found is None:
        return _warn(
            "mmdebstrap", "not installed",
            "no images from Debian's packages; load and import work",
            "apt install mmdebstrap",
        )  # fmt: skip
    return _ok("mmdebstrap", found)


def _init(_: Paths) -> Check:
    found = shutil.which("tini") or shutil.which("docker-init") or shutil.which("catatonit")
    if found is None:
        return _warn("tini", "not installed", "--init does not work", "apt install tini")
    return _ok("tini", found)


def _kvm(paths: Paths) -> Check:
    if not os.path.exists("/dev/kvm"):
        return _warn(
            "KVM", "no /dev/kvm", "virtual machines will be emulated, which is slow",
            "enable virtualisation in the firmware, or nested virtualisation",
        )  # fmt: skip
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return _warn(
            "KVM", "/dev/kvm is not yours to open", "virtual machines will be emulated",
            "add the engine's user to the group kvm",
        )  # fmt: skip
    from tare.vm import machine, probe
    from tare.vm.kernels import Kernels

    kernels = Kernels(paths.state / "kernels")
    ready = kernels.ready()
    if not ready or not os.access(machine.QEMU, os.X_OK):
        return _ok("KVM", "/dev/kvm is there; the first virtual machine will see whether it boots")
    boot = machine.Boot(
        kernel=os.fspath(ready[-1].vmlinux), initramfs=os.fspath(ready[-1].initramfs), tsc_khz=0
    )
    found = probe.kvm(kernels.directory, boot)
    if found.works:
        return _ok("KVM", "a guest was booted with it")
    return _warn(
        "KVM", f"/dev/kvm opens, and boots no guest: {found.why}",
        "virtual machines are emulated, which is slow", "a host that offers real virtualisation",
    )  # fmt: skip


def _file_systems() -> set[str]:
    return {line.split()[-1] for line in _text("/proc/filesystems").splitlines() if line.strip()}


def _text(path: str) -> str:
    try:
        return Path(path).read_text("utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(path: str, *, missing: int = 0) -> int:
    text = _text(path)
    return int(text) if text.isdigit() else missing
