"""Section 5, the processes: capabilities, filters, flags, namespaces, ids. See `workload`.

Every process of the workload is looked at, so one that an exec has started with more than the
container's own counts too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from tare.audit import finding
from tare.audit.container import Workload
from tare.audit.finding import Evidence, Item
from tare.audit.procfs import Process
from tare.kernel.confine import CAPABILITIES
from tare.model.spec import SecurityProfile

if TYPE_CHECKING:
    from tare.audit.workload import Context, Judge

_USUAL: Final = frozenset((
    "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETFCAP", "SETGID",
    "SETPCAP", "SETUID", "SYS_CHROOT",
))  # fmt: skip
_POWERFUL: Final = frozenset((
    "BPF", "DAC_READ_SEARCH", "MAC_ADMIN", "PERFMON", "SYS_ADMIN", "SYS_MODULE", "SYS_PTRACE",
    "SYS_RAWIO", "SYS_BOOT", "NET_ADMIN",
))  # fmt: skip
"""With the host's user ids each of these leads out of the container, or to the host's network."""
_FILTER: Final = 2
_GONE: Final = "its processes ended while they were looked at"


def names(mask: int) -> list[str]:
    """The capabilities of a mask, without CAP_."""
    return [name for bit, name in enumerate(CAPABILITIES) if mask >> bit & 1]


def _of(process: Process, field: str, value: str) -> Evidence:
    return Evidence(f"/proc/{process.pid}/status {field}", value)


def _capabilities(workload: Workload, _: Context) -> Item:
    first = workload.first
    if first is None:
        return finding.note(_GONE)
    bounding = first.bounding
    extra = [name for name in names(bounding) if name not in _USUAL]
    at = _of(first, "CapBnd", f"{bounding:016x}")
    if not extra:
        return finding.ok(f"at most {len(names(bounding))} capabilities, none unusual", at)
    said = "all" if len(extra) > len(CAPABILITIES) - len(_USUAL) - 3 else ", ".join(extra)
    if not workload.own_ids and _POWERFUL & set(extra):
        return finding.fail(f"more than usual, with the host's user ids: {said}", at)
    return finding.warn(f"more than usual: {said}", at)


def _privileged(workload: Workload, _: Context) -> Item:
    first = workload.first
    if workload.record.spec.security.privileged:
        at = _of(first, "CapBnd", f"{first.bounding:016x}") if first else Evidence("asked", "yes")
        return finding.fail("it runs privileged", at)
    if first is None:
        return finding.note(_GONE)
    at = _of(first, "CapBnd", f"{first.bounding:016x}")
    if len(names(first.bounding)) >= len(CAPABILITIES) - 1 and not first.seccomp:
        return finding.fail("all capabilities and no filter: privileged in all but name", at)
    return finding.ok("not privileged", at)


def _shared(kind: str, what: str) -> Judge:
    def judge(workload: Workload, _: Context) -> Item:
        at = Evidence(f"/proc/{workload.record.pid}/ns/{kind}", "the host's")
        if kind in workload.shared:
            return finding.warn(f"it shares the host's {what} namespace", at)
        if not workload.first:
            return finding.note(_GONE)
        return finding.ok(f"it has a {what} namespace of its own, or another container's")

    return judge


def _user_namespace(workload: Workload, context: Context) -> Item:
    where = f"/proc/{workload.record.pid}/uid_map"
    if workload.own_ids and "user" not in workload.shared:
        return finding.ok("its user ids are others on the host", Evidence(where, "shifted"))
    if not context.around.own_root:
        return finding.ok("the engine's own user namespace keeps it from the host's ids")
    return finding.warn("its user ids are the host's", Evidence(where, "0 0 4294967295"))


def _host_root(workload: Workload, context: Context) -> Item:
    if not context.around.own_root:
        return finding.ok("the engine is an ordinary user's: nothing in it is root")
    found = [p for p in workload.processes if 0 in p.uids]
    if workload.machine:
        seen = f"{len(found)} of QEMU's processes run as root of the host"
    else:
        seen = f"{len(found)} of {len(workload.processes)} processes run as root of the host"
    at = [_of(p, "Uid", f"{p.name}: {p.uids[0]}") for p in found[:5]]
    if found:
        return finding.warn(seen, *at)
    return finding.ok("no process has the host's user id 0")


def _seccomp(workload: Workload, _: Context) -> Item:
    bare = [p for p in workload.processes if p.seccomp != _FILTER]
    if bare:
        return finding.warn(
            f"no system call filter: {_listed(bare)}",
            *(_of(p, "Seccomp", str(p.seccomp)) for p in bare[:5]),
        )
    if not workload.processes:
        return finding.note(_GONE)
    profile = workload.record.spec.security.profile
    return finding.ok(f"every process is filtered (profile {profile})", _mode(workload))


def _mode(workload: Workload) -> Evidence:
    return _of(workload.processes[0], "Seccomp", str(_FILTER))


def _new_privileges(workload: Workload, _: Context) -> Item:
    bare = [p for p in workload.processes if not p.no_new_privileges]
    if bare:
        compat = workload.record.spec.security.profile is SecurityProfile.DOCKER_COMPAT
        why = " (the profile docker-compat leaves it off)" if compat else ""
        return finding.warn(
            f"may gain privileges: {_listed(bare)}{why}",
            *(_of(p, "NoNewPrivs", "0") for p in bare[:5]),
        )
    if not workload.processes:
        return finding.note(_GONE)
    return finding.ok(
        "no process can gain privileges", _of(bare_first(workload), "NoNewPrivs", "1")
    )


def bare_first(workload: Workload) -> Process:
    """The first process of a workload that has some."""
    return workload.processes[0]


def _listed(processes: Iterable[Process]) -> str:
    found = list(processes)
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return ", ".join(f"{p.name} ({p.pid})" for p in found[:3]) + more


def _sshd(workload: Workload, _: Context) -> Item:
    if workload.machine:
        return finding.note("the machine's processes are not seen from here: `tare top` lists them")
    found = [p for p in workload.processes if p.name in ("sshd", "dropbear", "sshd-session")]
    if found:
        return finding.warn(f"an SSH server runs: {_listed(found)}")
    return finding.ok(f"no SSH server among {len(workload.processes)} processes")


def _apparmor(workload: Workload, context: Context) -> Item:
    if not context.around.apparmor:
        return finding.inapplicable("this kernel has no AppArmor, or it is switched off")
    at = Evidence(f"/proc/{workload.record.pid}/attr/current", workload.label or "nothing")
    if not workload.label or workload.label.startswith("unconfined"):
        return finding.warn("no AppArmor profile confines it", at)
    return finding.ok("an AppArmor profile confines it", at)


def _selinux(workload: Workload, context: Context) -> Item:
    if not context.around.selinux:
        return finding.inapplicable("SELinux does not enforce on this host")
    at = Evidence(f"/proc/{workload.record.pid}/attr/current", workload.label or "nothing")
    if any(word in workload.label for word in ("unconfined_t", "spc_t")) or not workload.label:
        return finding.warn("SELinux does not confine it", at)
    return finding.ok("SELinux confines it", at)


def _exec_privileged(workload: Workload, _: Context) -> list[Item]:
    found = [
        finding.warn(f"a privileged exec runs: {' '.join(e.spec.process.args)[:120]}")
        for e in workload.execs
        if e.spec.process.privileged
    ]
    first = workload.first
    if first and not found:
        more = [p for p in workload.processes[1:] if p.bounding & ~first.bounding]
        found = [
            finding.warn(
                f"{p.name} has capabilities that the container does not have",
                _of(p, "CapBnd", f"{p.bounding:016x}"),
            )
            for p in more[:5]
        ]
    return found or [
        finding.ok(
            f"none of the {len(workload.execs)} programs that exec has running is privileged"
        )
    ]


def _exec_root(workload: Workload, _: Context) -> list[Item]:
    own = workload.record.spec.process.user.partition(":")[0]
    if own in ("", "0", "root"):
        return [finding.info("the container's own user is root: an exec has nothing to gain")]
    found = [
        finding.warn(f"an exec runs as root: {' '.join(e.spec.process.args)[:120]}")
        for e in workload.execs
        if e.spec.process.user.partition(":")[0] in ("0", "root")
    ]
    return found or [finding.ok("no exec runs as root")]


JUDGES: Final[Mapping[str, Judge]] = {
    "workload-capabilities": _capabilities,
    "workload-privileged": _privileged,
    "workload-host-network": _shared("net", "network"),
    "workload-host-pid": _shared("pid", "process"),
    "workload-host-ipc": _shared("ipc", "IPC"),
    "workload-host-uts": _shared("uts", "UTS"),
    "workload-user-namespace": _user_namespace,
    "workload-host-root": _host_root,
    "workload-seccomp": _seccomp,
    "workload-new-privileges": _new_privileges,
    "workload-sshd": _sshd,
    "workload-apparmor": _apparmor,
    "workload-selinux": _selinux,
    "workload-exec-privileged": _exec_privileged,
    "workload-exec-root": _exec_root,
}
