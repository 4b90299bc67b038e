"""Section 1 and T.1: the host that containers share, as its kernel and files are now.

Kernel parameters are read from /proc/sys, not from what sysctl.d asks for; watches from the
kernel's own list where auditctl(8) is there, else from the rules that are loaded at boot.

Not for: what the engine itself needs of a host (engine.doctor), its own files (`files`).
"""

from __future__ import annotations

import itertools
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Final

from tare.audit import finding, procfs
from tare.audit.files import Places
from tare.audit.finding import Evidence, Item, Level
from tare.audit.host_facts import FACTS
from tare.audit.view import View

_OLD_DAYS: Final = 180
_DAY: Final = 86400


class Host:
    """One look at the host; what is read more than once is kept."""

    def __init__(
        self, view: View, places: Places, *, trusted: Collection[str] = (), version: str = ""
    ) -> None:
        self.view = view
        self.places = places
        self.trusted = frozenset(trusted)
        self.version = version
        self._watches: tuple[str, list[str]] | None = None

    def judge(self, name: str) -> Iterable[Item]:
        """What the check *name* says; () for one that is not of this part."""
        if name in FACTS:
            return FACTS[name](self.view)
        if name in _AUDITED:
            return [self._audited(_AUDITED[name](self.places))]
        if name in _NOT_THERE:
            return [finding.inapplicable(_NOT_THERE[name])]
        match name:
            case "host-hardened":
                return [self._hardened()]
            case "host-engine-current":
                return self._current()
            case "host-partition":
                return [self._partition()]
            case "host-trusted-users":
                return self._trusted()
        return ()

    def _hardened(self) -> Item:
        release = self.view.text("/proc/sys/kernel/osrelease").strip() or os.uname().release
        judged = [item for fact in FACTS.values() for item in fact(self.view)]
        bad = sum(item.level is Level.WARN for item in judged)
        lsm = self.view.text("/sys/kernel/security/lsm").strip() or "not known"
        at = Evidence("kernel", release), Evidence("security modules", lsm)
        if bad:
            return finding.note(
                f"{bad} of {len(judged)} facts of the host could be better: T.1", *at
            )
        return finding.ok(f"all {len(judged)} facts of the host are as they should be", *at)

    def _current(self) -> list[Item]:
        """Nothing is asked over a network: the age of what is installed is what can be known."""
        found = []
        status = self.view.status(f"{self.places.package}/__init__.py")
        if status is not None:
            days = int((time.time() - status.st_mtime) // _DAY)
            seen = f"tare {self.version} was installed {days} days ago"
            at = Evidence(self.places.package, f"{days} days")
            found.append(finding.warn(seen, at) if days > _OLD_DAYS else finding.info(seen, at))
        build = self.view.text("/proc/sys/kernel/version").strip()
        release = self.view.text("/proc/sys/kernel/osrelease").strip()
        found.append(finding.info(f"the kernel is {release}", Evidence("built", build)))
        return found

    def _partition(self) -> Item:
        state, table = self.places.state, self.view.mounts()
        points = {mount.point for mount in table}
        if state in points:
            return finding.ok(f"{state} is a file system of its own", Evidence("mount", state))
        holding = max(
            (m for m in table if procfs.below(state, m.point)),
            key=lambda m: len(m.point),
            default=None,
        )
        if holding is None:
            return finding.note("the host's mounts could not be read")
        at = Evidence(f"mount of {state}", f"{holding.point} ({holding.kind})")
        if holding.point != "/":
            return finding.info(f"{state} shares {holding.point}, which is not the root", at)
        return finding.warn(f"{state} lies on the root file system", at)

    def _trusted(self) -> list[Item]:
        status = self.view.status(self.places.socket)
        if status is None or not status.st_mode & 0o070:
            group, named = "", "nobody but its owner may use the socket"
            if status is not None and status.st_mode & 0o006:
                return [finding.fail("every user may use the engine's socket")]
            return [finding.ok(named, Evidence(self.places.socket, group or "no group"))]
        group = self.view.group_name(status.st_gid)
        _, members = self.view.groups().get(group, (0, ()))
        primary = [name for name, _, gid in self.view.accounts() if gid == status.st_gid]
        users = sorted({*members, *primary} - {"root"})
        strange = [name for name in users if name not in self.trusted]
        at = Evidence(f"group {group}", ", ".join(users) or "no members")
        if strange:
            return [
                finding.warn(f"{name} may use the engine, and so become root", at)
                for name in strange
            ]
        return [finding.ok("only trusted users may use the engine", at)]

    # --- watches ------------------------------------------------------------------------------

    def _audited(self, paths: tuple[str, ...]) -> Item:
        there = [path for path in paths if self.view.exists(path)]
        if not there:
            missing = f"{paths[-1]} is not there" if paths else "no such program is installed"
            return finding.inapplicable(missing)
        source, watches = self._watch_list()
        if not source:
            return finding.warn("auditd is not installed: nothing is watched")
        bare = [path for path in there if not any(procfs.below(path, w) for w in watches)]
        if bare:
            at = Evidence(source, f"{len(watches)} watches")
            return finding.warn(f"not watched: {', '.join(bare)}", at)
        return finding.ok(
            f"watched: {', '.join(there)}", Evidence(source, f"{len(watches)} watches")
        )

    def _watch_list(self) -> tuple[str, list[str]]:
        if self._watches is None:
            self._watches = self._read_watches()
        return self._watches

    def _read_watches(self) -> tuple[str, list[str]]:
        """Where watches were read ("" where there is no auditd), and what is watched."""
        program = shutil.which("auditctl") if self.view.root == Path("/") else None
        if program and os.geteuid() == 0:
            done = subprocess.run(
                [program, "-l"], capture_output=True, text=True, check=False, timeout=20
            )
            if done.returncode == 0:
                return "auditctl -l", watched(done.stdout.splitlines())
        names = ["/etc/audit/audit.rules", *self.view.matches("/etc/audit/rules.d/*.rules")]
        lines = [line for name in names for line in self.view.lines(name)]
        if not lines and not self.view.exists("/etc/audit"):
            return "", []
        return "/etc/audit", watched(lines)


def watched(lines: Iterable[str]) -> list[str]:
    """The files and directories that audit rules (auditctl(8)) watch."""
    found = []
    for line in lines:
        try:
            words = shlex.split(line)
        except ValueError:
            continue
        for flag, word in itertools.pairwise(words):
            if flag == "-w":
                found.append(word.rstrip("/") or "/")
            elif flag == "-F" and word.startswith(("path=", "dir=")):
                found.append(word.partition("=")[2].rstrip("/") or "/")
    return found


_AUDITED: Final[Mapping[str, Callable[[Places], tuple[str, ...]]]] = {
    "host-audit-daemon": lambda p: (*p.programs, *((p.package,) if p.package else ())),
    "host-audit-run": lambda p: (p.run,),
    "host-audit-state": lambda p: (p.state,),
    "host-audit-config": lambda p: (p.config,),
    "host-audit-service": lambda p: p.service,
    "host-audit-engine-socket": lambda p: (p.socket,),
    "host-audit-socket": lambda p: p.socket_unit,
    "host-audit-default": lambda p: (p.default,),
    "host-audit-config-file": lambda p: (p.config_file,),
    "host-audit-sysconfig": lambda p: (p.sysconfig,),
    "host-audit-interpreter": lambda p: (p.interpreter,) if p.interpreter else (),
    "host-audit-runtime": lambda p: p.runtimes,
}
_NOT_THERE: Final[Mapping[str, str]] = {
    "host-audit-containerd-config": "tare has no containerd",
    "host-audit-shim": "tare has no shim: the keeper is in its package, which 1.2.3 is about",
    "host-audit-shim-v1": "tare has no shim",
    "host-audit-shim-v2": "tare has no shim",
}
