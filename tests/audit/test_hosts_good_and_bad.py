"""Sections 1 and 3 and T.1 on two hosts below a directory: one prepared well, one badly.

The files, their modes and their owners are real; what the kernel would show in /proc and /sys is
laid down as the kernel shows it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from harness.needs import needs
from tare.audit import catalogue, files, fixing, host
from tare.audit.files import Places
from tare.audit.finding import Item, Level, Report, Result, Scope, Standing
from tare.audit.view import View

UNIT: Final = "/etc/systemd/system/tare.service"
SOCKET_UNIT: Final = "/etc/systemd/system/tare.socket"
PLACES: Final = Places(
    programs=("/usr/bin/tare",),
    package="/usr/lib/tare",
    interpreter="/usr/bin/python3",
    runtimes=("/usr/bin/qemu-system-x86_64",),
    ca=("/etc/tare/ca.pem",),
    certificates=("/etc/tare/cert.pem",),
    keys=("/etc/tare/key.pem",),
)
WATCHED: Final = (
    "/usr/bin/tare", "/usr/lib/tare", "/run/tare", "/var/lib/tare", "/etc/tare", UNIT, SOCKET_UNIT,
    "/etc/default/tare", "/etc/sysconfig/tare", "/usr/bin/python3", "/usr/bin/qemu-system-x86_64",
)  # fmt: skip
SETTINGS: Final = {
    "kernel/kptr_restrict": ("1", "0"),
    "kernel/dmesg_restrict": ("1", "0"),
    "kernel/perf_event_paranoid": ("3", "-1"),
    "kernel/unprivileged_bpf_disabled": ("2", "0"),
    "net/core/bpf_jit_harden": ("2", "0"),
    "fs/protected_symlinks": ("1", "0"),
    "fs/protected_hardlinks": ("1", "0"),
    "fs/protected_fifos": ("1", "0"),
    "fs/protected_regular": ("2", "0"),
    "kernel/randomize_va_space": ("2", "0"),
    "vm/mmap_min_addr": ("65536", "0"),
    "vm/unprivileged_userfaultfd": ("0", "1"),
    "kernel/yama/ptrace_scope": ("1", "0"),
    "kernel/kexec_load_disabled": ("1", "0"),
    "kernel/sysrq": ("0", "1"),
    "kernel/io_uring_disabled": ("2", "0"),
    "net/ipv4/conf/all/accept_redirects": ("0", "1"),
    "net/ipv4/conf/all/accept_source_route": ("0", "1"),
    "net/ipv4/conf/all/rp_filter": ("2", "0"),
    "net/ipv4/tcp_syncookies": ("1", "0"),
    "net/ipv4/icmp_echo_ignore_broadcasts": ("1", "0"),
    "fs/suid_dumpable": ("0", "1"),
    "kernel/core_pattern": ("core", "core"),
    "kernel/osrelease": ("6.18.0", "6.18.0"),
    "kernel/version": ("#1 SMP", "#1 SMP"),
}
MOUNTS: Final = (
    "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
    "21 20 8:2 / /var/lib/tare rw,nodev - ext4 /dev/sda2 rw\n"
    "22 20 0:3 / /tmp rw,nosuid,nodev - tmpfs tmpfs rw\n"
    "23 20 0:4 / /var/tmp rw,nosuid,nodev - tmpfs tmpfs rw\n"
    "24 20 0:5 / /dev/shm rw,nosuid,nodev - tmpfs tmpfs rw\n"
)
BAD_MOUNTS: Final = "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n22 20 0:3 / /tmp rw - tmpfs tmpfs rw\n"
ACCOUNTS: Final = "root:x:0:0::/root:/bin/sh\nmonitor:x:1000:1000::/:/bin/false\n"
GROUPS: Final = "root:x:0:\nshadow:x:42:\ntare:x:900:\n"
ABSENT: Final = frozenset(
    (
        "host-audit-containerd-config", "host-audit-shim", "host-audit-shim-v1",
        "host-audit-shim-v2",
    )
)  # fmt: skip
AS_IT_IS: Final = frozenset(("host-engine-current",))


class Made:
    """A host below a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.view = View(root)

    def put(self, name: str, text: str = "", mode: int = 0o644, owner: int = 0) -> None:
        """A file with this mode and owner."""
        path = self.root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.chown(path, owner, owner)
        path.chmod(mode)

    def kernel(self, state: int) -> None:
        """Parameters and files of the kernel: 0 is good, 1 is bad."""
        for name, values in SETTINGS.items():
            self.put(f"/proc/sys/{name}", values[state] + "\n")
        cpu = ("Mitigation: PTI", "Vulnerable")[state]
        self.put("/sys/devices/system/cpu/vulnerabilities/meltdown", cpu)
        self.put("/proc/cmdline", ("ro quiet", "ro mitigations=off")[state])
        self.put("/proc/modules", ("ext4 1 0 - Live 0x0", "dccp 1 0 - Live 0x0")[state] + "\n")
        self.put("/proc/self/mountinfo", (MOUNTS, BAD_MOUNTS)[state])
        self.put("/sys/kernel/security/lsm", ("lockdown,yama,apparmor", "lockdown")[state])


@pytest.fixture
def good(tmp_path: Path) -> Made:
    needs("root")
    made = Made(tmp_path / "good")
    made.kernel(0)
    made.put("/etc/passwd", ACCOUNTS)
    made.put("/etc/group", GROUPS)
    made.put("/etc/shadow", "root:*:1::::::\n", 0o640)
    made.put("/etc/audit/rules.d/tare.rules", "".join(f"-w {w} -p rwxa\n" for w in WATCHED))
    made.put("/etc/apt/apt.conf.d/20auto-upgrades", 'APT::Periodic::Unattended-Upgrade "1";\n')
    made.put("/run/systemd/timesync/synchronized")
    for name in (UNIT, SOCKET_UNIT, "/etc/default/tare", "/etc/sysconfig/tare"):
        made.put(name)
    for name in ("/usr/bin/tare", "/usr/bin/python3", "/usr/bin/qemu-system-x86_64"):
        made.put(name, mode=0o755)
    made.put("/usr/lib/tare/__init__.py")
    made.put("/etc/tare/config.toml")
    made.put("/etc/tare/ca.pem", mode=0o444)
    made.put("/etc/tare/cert.pem", mode=0o444)
    made.put("/etc/tare/key.pem", mode=0o400)
    made.put("/etc/tare/certs.d/registry.example/ca.crt", mode=0o444)
    made.put("/run/tare/tare.sock", mode=0o660)
    os.chown(made.root / "run/tare/tare.sock", 0, 900)
    made.put("/run/tare/keeper.sock", mode=0o600)
    made.put("/var/lib/tare/format")
    return made


@pytest.fixture
def bad(tmp_path: Path) -> Made:
    needs("root")
    made = Made(tmp_path / "bad")
    made.kernel(1)
    made.put("/etc/passwd", ACCOUNTS + "toor:x:0:0::/root:/bin/sh\n", 0o666)
    made.put("/etc/group", "root:x:0:\ntare:x:900:monitor\n")
    made.put("/etc/shadow", "root:*:1::::::\nguest::1::::::\n", 0o644)
    made.put("/etc/audit/audit.rules", "-w /etc/passwd -p wa\n")
    made.put("/run/reboot-required")
    for name in (UNIT, SOCKET_UNIT, "/etc/default/tare", "/etc/sysconfig/tare"):
        made.put(name, mode=0o606, owner=1000)
    made.put("/usr/bin/tare", mode=0o777, owner=1000)
    for name in ("/usr/bin/python3", "/usr/bin/qemu-system-x86_64"):
        made.put(name)
    made.put("/usr/lib/tare/__init__.py")
    os.utime(made.root / "usr/lib/tare/__init__.py", (0, 0))
    made.put("/etc/tare/config.toml", mode=0o666, owner=1000)
    for name in ("ca.pem", "cert.pem", "key.pem", "certs.d/registry.example/ca.crt"):
        made.put(f"/etc/tare/{name}", mode=0o666, owner=1000)
    (made.root / "etc/tare").chmod(0o777)
    os.chown(made.root / "etc/tare", 1000, 1000)
    made.put("/run/tare/tare.sock", mode=0o666)
    os.chown(made.root / "run/tare/tare.sock", 1000, 900)
    made.put("/run/tare/keeper.sock", mode=0o666, owner=1000)
    made.put("/var/lib/tare/format")
    return made


def judged(made: Made, *, trusted: tuple[str, ...] = ()) -> dict[str, list[Item]]:
    """Every check of the host and of files, by its name, of all editions."""
    looked = host.Host(made.view, PLACES, trusted=trusted, version="1")
    found: dict[str, list[Item]] = {}
    for check in catalogue.checks().values():
        if check.scope is Scope.HOST:
            found[check.name] = list(looked.judge(check.name))
        elif check.name.startswith("file-"):
            found[check.name] = list(files.judge(check.name, made.view, PLACES))
    return found


def worst(items: list[Item]) -> Level:
    return max((item.level for item in items), key=lambda level: level.rank)


def report(found: dict[str, list[Item]]) -> Report:
    results = tuple(Result(check=n, id="0", items=tuple(i)) for n, i in found.items())
    return Report(benchmark="1.2.0", host="h", engine="0", start_ns=0, end_ns=0, results=results)


def test_everything_passes_on_a_host_that_was_prepared_well(good: Made) -> None:
    found = {name: worst(items) for name, items in judged(good).items() if name not in AS_IT_IS}

    assert {name for name, level in found.items() if level is not Level.PASS} == ABSENT


def test_everything_is_found_on_a_host_that_was_prepared_badly(bad: Made) -> None:
    found = {name: worst(items) for name, items in judged(bad).items()}
    told = {"host-kexec": Level.INFO, "host-io-uring": Level.INFO, "host-hardened": Level.NOTE}

    low = {name: level for name, level in found.items() if level.rank < Level.WARN.rank}
    assert low == {**told, **dict.fromkeys(ABSENT, Level.INFO)}
    assert found["host-accounts"] is Level.FAIL


def test_every_setting_of_the_kernel_is_judged_by_itself(bad: Made) -> None:
    found = judged(bad)
    said = "\n".join(item.seen for items in found.values() for item in items)

    skipped = {"kernel/core_pattern", "kernel/osrelease", "kernel/version", "fs/suid_dumpable"}
    for name in SETTINGS.keys() - skipped:
        assert f"{name.replace('/', '.')} is " in said


def test_a_host_without_auditd_watches_nothing(bad: Made) -> None:
    (bad.root / "etc/audit/audit.rules").unlink()
    (bad.root / "etc/audit").rmdir()

    items = judged(bad)["host-audit-daemon"]

    assert [item.seen for item in items] == ["auditd is not installed: nothing is watched"]


@pytest.mark.parametrize(
    "rule",
    ["-w /etc/ -p wa -k conf", "-a always,exit -F dir=/etc -F perm=wa", "-w /etc/tare -p rwxa"],
)
def test_a_watch_on_a_directory_covers_what_is_in_it(bad: Made, rule: str) -> None:
    bad.put("/etc/audit/audit.rules", f"# comment\n{rule}\n")

    found = judged(bad)

    assert worst(found["host-audit-config"]) is Level.PASS
    assert worst(found["host-audit-config-file"]) is Level.PASS
    assert worst(found["host-audit-state"]) is Level.WARN


def test_users_of_the_socket_are_named_unless_they_are_trusted(bad: Made) -> None:
    (bad.root / "run/tare/tare.sock").chmod(0o660)

    strange = judged(bad)["host-trusted-users"]
    trusted = judged(bad, trusted=("monitor",))["host-trusted-users"]

    assert [item.seen for item in strange] == ["monitor may use the engine, and so become root"]
    assert worst(trusted) is Level.PASS


def test_a_socket_for_everybody_is_worse_than_any_member(bad: Made) -> None:
    (bad.root / "run/tare/tare.sock").chmod(0o606)

    assert worst(judged(bad)["host-trusted-users"]) is Level.FAIL


def test_fixes_make_every_file_right_and_nothing_else(bad: Made) -> None:
    found = {
        n: i for n, i in judged(bad).items() if n.startswith("file-") or n == "host-file-modes"
    }
    fixes = fixing.proposed(report(found))
    program = os.stat(bad.root / "usr/bin/tare")

    said = fixing.apply(fixes, bad.root)

    assert said
    assert all(text.startswith("done: ") for text in said), said
    again = {n: worst(i) for n, i in judged(bad).items() if n in found}
    assert set(again.values()) == {Level.PASS}
    assert os.stat(bad.root / "usr/bin/tare") == program


def test_a_fix_never_adds_a_permission(bad: Made) -> None:
    fixes = fixing.proposed(report(judged(bad)))

    modes = [(int(f.old, 8), int(f.new, 8)) for f in fixes if f.kind == "chmod"]
    assert modes
    assert all(new & ~old == 0 for old, new in modes)


def test_a_file_that_was_changed_meanwhile_is_left_alone(bad: Made) -> None:
    fixes = [
        f for f in fixing.proposed(report(judged(bad))) if f.kind == "chmod" and f.path == UNIT
    ]
    (bad.root / UNIT.lstrip("/")).chmod(0o640)

    said = fixing.apply(fixes, bad.root)

    assert [("changed meanwhile" in text) for text in said] == [True]
    assert (bad.root / UNIT.lstrip("/")).stat().st_mode & 0o777 == 0o640


def test_a_link_that_took_the_place_of_a_file_is_not_followed(bad: Made) -> None:
    fixes = [f for f in fixing.proposed(report(judged(bad))) if f.path == UNIT]
    path, target = bad.root / UNIT.lstrip("/"), bad.root / "usr/bin/tare"
    before = target.stat()
    path.unlink()
    path.symlink_to(target)

    said = fixing.apply(fixes, bad.root)

    assert said
    assert all("not done" in text for text in said)
    assert target.stat() == before


def test_a_key_that_its_owner_may_write_is_told_and_no_fault(good: Made) -> None:
    (good.root / "etc/tare/key.pem").chmod(0o600)

    assert worst(judged(good)["file-key-mode"]) is Level.INFO


def test_modes_are_compared_bit_by_bit_and_not_as_numbers(good: Made) -> None:
    # 0606 is less than 0644 as a number, and lets everybody write.
    (good.root / UNIT.lstrip("/")).chmod(0o606)

    items = judged(good)["file-service-mode"]

    assert worst(items) is Level.WARN
    assert items[0].fix is not None
    assert items[0].fix.new == "0604"


def test_what_is_not_there_has_no_verdict(tmp_path: Path) -> None:
    empty = Made(tmp_path)

    found = judged(empty)

    checked: Callable[[str], Item] = lambda name: found[name][0]  # noqa: E731
    assert checked("file-service-owner").standing is Standing.INAPPLICABLE
    assert checked("host-audit-service").standing is Standing.INAPPLICABLE
    assert all(items for items in found.values())
