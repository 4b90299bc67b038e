"""T.1: facts of a hardened host, each read where the kernel or the system has it.

A parameter that this kernel does not have is no finding: there is nothing to switch.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Final

from tare.audit import files, finding
from tare.audit.finding import Evidence, Item
from tare.audit.view import View

Fact = Callable[[View], Iterable[Item]]
_Wanted = tuple[str, int, int]  # parameter, least, most

_ANY: Final = 1 << 62
_ADDRESSES: Final[tuple[_Wanted, ...]] = (
    ("kernel.kptr_restrict", 1, _ANY),
    ("kernel.dmesg_restrict", 1, _ANY),
    ("kernel.perf_event_paranoid", 2, _ANY),
)
_BPF: Final[tuple[_Wanted, ...]] = (
    ("kernel.unprivileged_bpf_disabled", 1, _ANY),
    ("net.core.bpf_jit_harden", 1, _ANY),
)
_LINKS: Final[tuple[_Wanted, ...]] = (
    ("fs.protected_symlinks", 1, _ANY),
    ("fs.protected_hardlinks", 1, _ANY),
    ("fs.protected_fifos", 1, _ANY),
    ("fs.protected_regular", 1, _ANY),
)
_MEMORY: Final[tuple[_Wanted, ...]] = (
    ("kernel.randomize_va_space", 2, _ANY),
    ("vm.mmap_min_addr", 4096, _ANY),
    ("vm.unprivileged_userfaultfd", 0, 0),
)
_KEXEC: Final[tuple[_Wanted, ...]] = (
    ("kernel.kexec_load_disabled", 1, _ANY),
    ("kernel.sysrq", 0, 0),
)
_NETWORK: Final[tuple[_Wanted, ...]] = (
    ("net.ipv4.conf.all.accept_redirects", 0, 0),
    ("net.ipv6.conf.all.accept_redirects", 0, 0),
    ("net.ipv4.conf.all.accept_source_route", 0, 0),
    ("net.ipv4.conf.all.rp_filter", 1, 2),
    ("net.ipv4.tcp_syncookies", 1, 2),
    ("net.ipv4.icmp_echo_ignore_broadcasts", 1, 1),
)
_DANGEROUS: Final = frozenset((
    "af_802154", "af_alg", "algif_aead", "algif_hash", "algif_rng", "algif_skcipher", "appletalk",
    "atm", "ax25", "can", "dccp", "decnet", "econet", "ipx", "n_hdlc", "netrom", "p8022", "p8023",
    "psnap", "rds", "rose", "rxrpc", "tipc", "x25",
))  # fmt: skip
_SHARED: Final = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108  # looked at, not written
_MODES: Final = (
    ("/etc/passwd", 0o644), ("/etc/group", 0o644), ("/etc/shadow", 0o640),
    ("/etc/gshadow", 0o640), ("/etc/sudoers", 0o440), ("/etc/ssh/sshd_config", 0o644),
    ("/boot/grub/grub.cfg", 0o600), ("/etc/crontab", 0o644), ("/etc/fstab", 0o644),
    ("/etc/sysctl.conf", 0o644),
)  # fmt: skip
_CLOCKS: Final = ("chronyd", "ntpd", "ntpsec", "systemd-timesyn", "systemd-timesyncd", "ptp4l")


def _parameters(wanted: tuple[_Wanted, ...], view: View, *, hard: bool = True) -> list[Item]:
    found = []
    for name, least, most in wanted:
        text = view.setting(name)
        if not text.lstrip("-").isdigit():
            continue
        at = Evidence(name, text)
        asked = f"{least}" if most in (least, _ANY) else f"{least} to {most}"
        more = " or more" if most == _ANY and least else ""
        if least <= int(text) <= most:
            found.append(finding.ok(f"{name} is {text}", at))
        else:
            seen = f"{name} is {text}, and should be {asked}{more}"
            found.append(finding.warn(seen, at) if hard else finding.info(seen, at))
    return found or [finding.inapplicable("this kernel has none of these parameters")]


def _cpu(view: View) -> list[Item]:
    base = "/sys/devices/system/cpu/vulnerabilities"
    found = []
    for name in view.listed(base):
        text = view.text(f"{base}/{name}").strip()
        if text.lower().startswith("vulnerable"):
            found.append(finding.warn(f"not mitigated: {name}", Evidence(f"{base}/{name}", text)))
    if "mitigations=off" in view.text("/proc/cmdline").split():
        at = Evidence("/proc/cmdline", "mitigations=off")
        found.append(finding.warn("the mitigations are switched off", at))
    if found:
        return found
    if not view.listed(base):
        return [finding.inapplicable("the kernel does not tell")]
    return [finding.ok("everything that the kernel knows of is mitigated, or not there")]


def _mount_options(view: View) -> list[Item]:
    found = []
    by_point = {mount.point: mount for mount in view.mounts()}
    for point in _SHARED:
        mount = by_point.get(point)
        if mount is None:
            found.append(finding.info(f"{point} is no file system of its own"))
            continue
        missing = [word for word in ("nosuid", "nodev") if word not in mount.options]
        at = Evidence(f"mount {point}", ",".join(sorted(mount.options)))
        if missing:
            found.append(finding.warn(f"{point} is mounted without {' and '.join(missing)}", at))
        else:
            found.append(finding.ok(f"{point} has nosuid and nodev", at))
    return found


def _file_modes(view: View) -> list[Item]:
    found: list[Item] = []
    for path, mask in _MODES:
        status = view.status(path)
        if status is None or not stat.S_ISREG(status.st_mode):
            continue
        found += files.moded(view, (path,), mask)
        groups = ("root", "shadow") if "shadow" in path else ("root",)
        found += files.owned(view, (path,), 0, groups)
    return found or [finding.inapplicable("none of these files is there")]


def _accounts(view: View) -> list[Item]:
    found = [
        finding.warn(f"{name} has the user id 0, as root", Evidence("/etc/passwd", name))
        for name, uid, _ in view.accounts()
        if uid == 0 and name != "root"
    ]
    for line in view.lines("/etc/shadow"):
        words = line.split(":")
        if len(words) > 1 and not words[1]:
            found.append(
                finding.fail(f"{words[0]} has no password", Evidence("/etc/shadow", words[0]))
            )
    for line in view.lines("/etc/passwd"):
        words = line.split(":")
        if len(words) > 1 and not words[1]:
            found.append(
                finding.fail(f"{words[0]} has no password", Evidence("/etc/passwd", words[0]))
            )
    return found or [finding.ok("only root has the user id 0, and no account lacks a password")]


def _time(view: View) -> list[Item]:
    if view.exists("/run/systemd/timesync/synchronized"):
        return [finding.ok("systemd-timesyncd has synchronised the clock")]
    for name in view.listed("/proc"):
        if name.isdigit() and view.text(f"/proc/{name}/comm").strip() in _CLOCKS:
            program = view.text(f"/proc/{name}/comm").strip()
            return [finding.ok(f"{program} runs", Evidence(f"/proc/{name}/comm", program))]
    if "kvm-clock" in view.text("/sys/devices/system/clocksource/clocksource0/current_clocksource"):
        return [finding.info("nothing synchronises the clock here; the hypervisor gives its own")]
    return [finding.warn("nothing synchronises the clock")]


def _modules_security(view: View) -> list[Item]:
    text = view.text("/sys/kernel/security/lsm").strip()
    at = Evidence("/sys/kernel/security/lsm", text or "not readable")
    if not text:
        return [finding.note("the kernel's security modules could not be read", at)]
    if {"apparmor", "selinux", "smack", "tomoyo"} & set(text.split(",")):
        return [finding.ok("a security module confines programs", at)]
    return [finding.warn("neither AppArmor nor SELinux is active", at)]


def _updates(view: View) -> list[Item]:
    found = []
    if view.exists("/run/reboot-required"):
        packages = ", ".join(view.lines("/run/reboot-required.pkgs")[:5])
        at = Evidence("/run/reboot-required", packages)
        found.append(finding.warn("an update waits for a restart of the host", at))
    automatic = any(
        "Unattended-Upgrade" in line and '"0"' not in line
        for name in view.matches("/etc/apt/apt.conf.d/*")
        for line in view.lines(name)
    )
    if view.exists("/etc/apt") and not automatic:
        found.append(finding.info("security updates are not installed by themselves"))
    return found or [finding.ok("no restart waits, and updates install by themselves")]


def _core_dumps(view: View) -> list[Item]:
    dumpable = view.setting("fs.suid_dumpable")
    pattern = view.setting("kernel.core_pattern")
    at = Evidence("fs.suid_dumpable", dumpable), Evidence("kernel.core_pattern", pattern)
    if dumpable == "1" or (dumpable == "2" and not pattern.startswith(("|", "/"))):
        return [finding.warn("set-id programs write core dumps", *at)]
    if not dumpable:
        return [finding.inapplicable("this kernel does not tell")]
    return [finding.ok("set-id programs write no core dumps that others read", *at)]


def _loaded(view: View) -> list[Item]:
    loaded = {line.split()[0] for line in view.text("/proc/modules").splitlines() if line.split()}
    found = sorted(loaded & _DANGEROUS)
    if found:
        return [finding.warn(f"loaded: {', '.join(found)}", Evidence("/proc/modules", found[0]))]
    return [finding.ok(f"none among {len(loaded)} modules")]


FACTS: Final[Mapping[str, Fact]] = {
    "host-kernel-addresses": partial(_parameters, _ADDRESSES),
    "host-bpf": partial(_parameters, _BPF),
    "host-links": partial(_parameters, _LINKS),
    "host-memory": partial(_parameters, _MEMORY),
    "host-ptrace": partial(_parameters, (("kernel.yama.ptrace_scope", 1, _ANY),)),
    "host-kexec": partial(_parameters, _KEXEC, hard=False),
    "host-io-uring": partial(_parameters, (("kernel.io_uring_disabled", 1, _ANY),), hard=False),
    "host-network-stack": partial(_parameters, _NETWORK),
    "host-cpu": _cpu,
    "host-mount-options": _mount_options,
    "host-file-modes": _file_modes,
    "host-accounts": _accounts,
    "host-time": _time,
    "host-security-modules": _modules_security,
    "host-updates": _updates,
    "host-core-dumps": _core_dumps,
    "host-modules": _loaded,
}
"""The facts by the names of their checks."""
