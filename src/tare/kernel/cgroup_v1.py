"""Control groups, version 1 (kernel admin-guide/cgroup-v1), with version 2 beside it if mounted.

A group is one directory in each hierarchy. Making one costs up to 0.1 ms in each, so those that a
group seldom needs wait until a limit asks for them: ``cpuset`` and ``hugetlb`` always, and
``freezer`` where version 2 freezes. A group that already has processes is then moved there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from typing import Final

from tare.kernel import cgroup_stats as cs
from tare.kernel.cgroup import Group, Hierarchy, Layout, unprivileged_devices
from tare.kernel.cgroup_limits import KERNEL_MEMORY_WARNING, Limits, check_cpu_list, refused
from tare.kernel.cgroup_tree import (
    children,
    kill_members,
    members,
    read_optional,
    read_value,
    remove_tree,
    walk,
    write_value,
)
from tare.kernel.cgroup_v2 import GroupV2
from tare.kernel.device_filter import Table, reduce

_EAGER: Final = ("cpu", "cpuacct", "memory", "devices", "blkio", "pids")
_LAZY: Final = ("cpuset", "hugetlb")
_ROUNDS: Final = 64


class GroupV1(Group):
    """A directory in each version 1 hierarchy, and one in version 2's if that is mounted."""

    def __init__(self, layout: Layout, path: str) -> None:
        super().__init__(layout, path)
        self._trees: dict[str, Hierarchy] = {}
        for tree in layout.hierarchies:
            if tree.writable:
                for controller in tree.controllers:
                    self._trees[controller] = tree
        unified = layout.unified
        self._v2 = GroupV2(layout, path) if unified is not None and unified.writable else None
        eager = [*_EAGER]
        lazy = [*_LAZY]
        (eager if self._v2 is None else lazy).append("freezer")
        if layout.systemd:
            # systemd finds its units by this tree: a process left in a session's would end with it.
            eager.append("name=systemd")
        self._eager = self._directories(eager)
        self._lazy = [d for d in self._directories(lazy) if d not in self._eager]

    def _directories(self, controllers: list[str]) -> list[str]:
        # Hierarchies may carry several controllers ("cpu,cpuacct"): each directory once.
        bases = dict.fromkeys(self._trees[c].base for c in controllers if c in self._trees)
        return [base + self.path for base in bases]

    def _directory(self, controller: str) -> str:
        tree = self._trees.get(controller)
        if tree is None:
            raise self.layout.unsupported(controller, controller)
        return tree.base + self.path

    # -- life --------------------------------------------------------------------------------

    def create(self) -> None:
        """Make the directories; see `Group.create`."""
        parent = os.path.dirname(self.path)
        if parent not in self.layout.prepared:
            for directory in self._eager:
                self._prepare(directory)
            self.layout.prepared.add(parent)
        made: list[str] = []
        try:
            for directory in self._eager:
                self._make(directory)
                made.append(directory)
            for directory in self._lazy:
                # What a crash left here has limits that nobody asked for now.
                remove_tree(directory)
            if self._v2 is not None:
                self._v2.create()
        except BaseException:
            for directory in made:
                with contextlib.suppress(OSError):
                    os.rmdir(directory)
            raise

    def rename(self, path: str) -> None:
        """See `Group.rename`: rename(2) of each directory, cgroup1_rename in the kernel."""
        if self._v2 is not None:
            super().rename(path)
        renamed: list[str] = []
        after = GroupV1(self.layout, self.layout.group(path).path)
        try:
            for directory, target in zip(self._eager, after._eager, strict=True):
                os.rename(directory, target)
                renamed.append(target)
            for directory in after._lazy:
                remove_tree(directory)
        except BaseException:
            for directory in renamed:
                with contextlib.suppress(OSError):
                    os.rmdir(directory)
            raise
        self.path, self._eager, self._lazy = after.path, after._eager, after._lazy

    def _make(self, directory: str) -> None:
        for _ in range(3):
            try:
                os.mkdir(directory)
            except FileNotFoundError:
                self._prepare(directory)  # somebody removed the parent
            except FileExistsError:
                # A leftover has leftover limits; with processes in it this fails.
                try:
                    remove_tree(directory)
                except OSError as error:
                    message = "the control group is in use"
                    raise FileExistsError(errno.EEXIST, message, directory) from error
            else:
                return
        raise FileExistsError(errno.EEXIST, "somebody else makes the control group", directory)

    def _prepare(self, directory: str) -> None:
        """Make the parents of *directory*, each set up so that its children can be used."""
        base = directory.removesuffix(self.path)
        *parents, _ = self.path.strip("/").split("/")
        for name in parents:
            base += "/" + name
            with contextlib.suppress(FileExistsError):
                os.mkdir(base)
            # Also if it was there: whoever made it may have died before this.
            self._set_up_parent(base)

    @staticmethod
    def _set_up_parent(directory: str) -> None:
        # Before Linux 5.11 a parent's limit counted its children's memory only if it said so
        # before it had any (EBUSY afterwards).
        path = f"{directory}/memory.use_hierarchy"
        if (read_optional(path) or b"1").strip() == b"0":
            with contextlib.suppress(OSError):
                write_value(path, b"1")
        inherit_cpuset(directory)

    def _demand(self, controller: str) -> str:
        """The directory of a controller whose directory may not have been needed before."""
        directory = self._directory(controller)
        try:
            os.mkdir(directory)
        except FileExistsError:
            return directory
        except FileNotFoundError:
            self._prepare(directory)
            with contextlib.suppress(FileExistsError):
                os.mkdir(directory)
        if controller == "cpuset":
            inherit_cpuset(directory)
        return directory

    def _populate(self, directory: str) -> None:
        """Move the group's processes into a directory that was made late, until none is left."""
        moved: set[int] = set()
        for _ in range(_ROUNDS):
            missing = set(self.pids()) - moved
            if not missing:
                return
            for pid in missing:
                with contextlib.suppress(ProcessLookupError):
                    write_value(f"{directory}/cgroup.procs", b"%d" % pid)
            # What was forked before its parent was moved is found in the next round.
            moved |= missing
        raise OSError(errno.EAGAIN, "processes appear faster than they can be moved", directory)

    def exists(self) -> bool:
        """Whether any directory is there."""
        if self._v2 is not None and self._v2.exists():
            return True
        return any(os.path.isdir(d) for d in (*self._eager, *self._lazy))

    def subgroups(self) -> list[str]:
        """Names of the directories below, in any hierarchy."""
        found: set[str] = set()
        for directory in (*self._eager, *self._lazy):
            found.update(children(directory))
        if self._v2 is not None:
            found.update(self._v2.subgroups())
        return sorted(found)

    def remove(self) -> None:
        """Remove every directory; one that cannot be removed does not keep the others."""
        failed: OSError | None = None
        for directory in (*self._eager, *self._lazy):
            try:
                # Once waited for in vain, the same processes are not waited for again.
                remove_tree(directory, patient=failed is None)
            except OSError as error:
                failed = error
        if self._v2 is not None:
            self._v2.remove()
        if failed is not None:
            raise failed

    # -- members -----------------------------------------------------------------------------

    def open_join(self) -> list[int]:
        """A descriptor of ``cgroup.procs`` in each hierarchy the group is in."""
        opened = self._open_each("cgroup.procs")
        if self._v2 is not None:
            opened += self._v2.open_join()
        return opened

    def open_tasks(self) -> list[int]:
        """A descriptor of ``tasks`` in each version 1 hierarchy, for a child to write ``0`` to.

        A thread that moves itself takes no lock of the whole system (cgroup_procs_write_start),
        where moving a process waits for an RCU grace period: 10 to 20 ms. The version 2 part is
        joined at birth (`open_directory`).
        """
        return self._open_each("tasks")

    def _open_each(self, name: str) -> list[int]:
        opened: list[int] = []
        flags = os.O_WRONLY | os.O_CLOEXEC
        try:
            for directory in self._eager:
                opened.append(os.open(f"{directory}/{name}", flags))
            for directory in self._lazy:
                with contextlib.suppress(FileNotFoundError):
                    opened.append(os.open(f"{directory}/{name}", flags))
        except BaseException:
            for descriptor in opened:
                os.close(descriptor)
            raise
        return opened

    def open_directory(self) -> int | None:
        """The version 2 part's directory, if there is one."""
        return None if self._v2 is None else self._v2.open_directory()

    def add(self, pid: int) -> None:
        """Move a process into every hierarchy the group is in."""
        for descriptor in self.open_join():
            try:
                os.write(descriptor, b"%d" % pid)
            finally:
                os.close(descriptor)

    def _primary(self) -> str | None:
        """The directory that tells the members: one that every process of the group is in."""
        for controller in ("pids", "memory", "freezer", "cpu"):
            if controller in self._trees:
                return self._trees[controller].base + self.path
        return self._eager[0] if self._eager else None

    def pids(self) -> list[int]:
        """Processes of the group and of those below."""
        directory = self._primary()
        if directory is None:  # a user may have been given the version 2 tree alone
            return [] if self._v2 is None else self._v2.pids()
        return members(directory)

    def kill(self) -> None:
        """By version 2 where mounted, else frozen and one by one; then whoever was not in it."""
        if self._v2 is not None:
            self._v2.kill()
            # A process that a crash left half joined is in version 1 only.
            kill_members(self.pids)
            return
        freezer = self._trees.get("freezer")
        killed: set[int] = set()
        for _ in range(_ROUNDS):
            if killed.issuperset(self.pids()):
                return
            if freezer is None:
                killed |= kill_members(self.pids)
                continue
            # Frozen, nothing forks or exits; thawed, it dies. A process that will not freeze
            # (in an uninterruptible wait) is killed all the same, and the rest looked at again.
            with contextlib.suppress(TimeoutError, FileNotFoundError):
                self._set_frozen(freezer.base + self.path, timeout=0.1)
            killed |= kill_members(self.pids)
            with contextlib.suppress(FileNotFoundError):
                self.thaw()

    def freeze(self, timeout: float = 2.0) -> None:
        """By version 2 where mounted, else by the freezer."""
        if self._v2 is not None:
            self._v2.freeze(timeout)
            return
        try:
            self._set_frozen(self._directory("freezer"), timeout)
        except TimeoutError:
            self.thaw()
            raise

    @staticmethod
    def _set_frozen(directory: str, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        state = f"{directory}/freezer.state"
        pause = 0.0
        while True:
            # Written again each time: that is what tries the tasks forked meanwhile.
            write_value(state, b"FROZEN")
            if read_value(state).strip() == b"FROZEN":
                return
            if time.monotonic() >= deadline:
                raise TimeoutError(errno.ETIMEDOUT, "a process does not freeze", directory)
            # The freezer announces nothing to wait for.
            time.sleep(pause)
            pause = min(0.01, pause + 0.0005)

    def thaw(self) -> None:
        """Undo `freeze`."""
        if self._v2 is not None:
            self._v2.thaw()
            return
        write_value(f"{self._directory('freezer')}/freezer.state", b"THAWED")

    def frozen(self) -> bool:
        """What version 2, or the freezer, says."""
        if self._v2 is not None:
            return self._v2.frozen()
        state = read_optional(f"{self._directory('freezer')}/freezer.state")
        return (state or b"").strip() == b"FROZEN"

    # -- limits ------------------------------------------------------------------------------

    def apply(self, limits: Limits) -> list[str]:
        """See `Group.apply`."""
        self.layout.require(limits, self.layout.controllers)
        self._cpuset(limits)
        if limits.pids is not None:
            value = b"%d" % limits.pids if limits.pids > 0 else b"max"
            self._put("pids.max", "pids", "pids", value)
        warnings = self._memory(limits)
        self._cpu(limits)
        warnings += self._blkio(limits)
        self._hugetlb(limits)
        if limits.devices and "devices" in self._trees:
            self._devices(reduce(limits.devices))
        elif limits.devices:
            warnings += unprivileged_devices(limits)
        return warnings

    def update(self, limits: Limits) -> list[str]:
        """`apply`: version 1 refuses what is in use by itself, and the order is always safe."""
        return self.apply(limits)

    def _put(self, file: str, limit: str, controller: str, *values: bytes) -> None:
        try:
            write_value(f"{self._directory(controller)}/{file}", *values)
        except FileNotFoundError as error:
            if not self.exists():
                raise
            raise self.layout.unsupported(limit, controller) from error
        except OSError as error:
            raise refused(error, limit, controller, values[-1].decode()) from error

    def _get(self, controller: str, file: str) -> bytes | None:
        tree = self._trees.get(controller)
        return None if tree is None else read_optional(f"{tree.base}{self.path}/{file}")

    def _has(self, controller: str, file: str) -> bool:
        return os.path.exists(f"{self._directory(controller)}/{file}")

    def _cpuset(self, limits: Limits) -> None:
        wanted = [
            (name, value)
            for name, value in (("cpus", limits.cpuset_cpus), ("mems", limits.cpuset_mems))
            if value is not None
        ]
        if not wanted:
            return
        parent = os.path.dirname(self._directory("cpuset"))
        while not os.path.isdir(parent):
            parent = os.path.dirname(parent)
        lines = {}
        for name, value in wanted:
            available = (read_optional(f"{parent}/cpuset.{name}") or b"").decode().strip()
            lines[name] = value or available  # empty means: as the parent
            check_cpu_list(f"cpuset_{name}", lines[name], available)
        directory = self._demand("cpuset")
        for name, value in lines.items():
            self._put(f"cpuset.{name}", f"cpuset_{name}", "cpuset", value.encode())
        self._populate(directory)

    def _memory(self, limits: Limits) -> list[str]:
        warnings = []
        if limits.kernel_memory is not None:
            warnings.append(KERNEL_MEMORY_WARNING)
        total = limits.memory_swap
        if total is not None and not self._has("memory", "memory.memsw.limit_in_bytes"):
            total = None
            warnings.append(
                "Your kernel does not support swap limit capabilities or the cgroup is not "
                "mounted. Memory limited without swap."
            )
        if limits.memory is not None or total is not None:
            self._memory_pair(limits.memory, total)
        if limits.memory_reservation is not None:
            value = b"%d" % (limits.memory_reservation or -1)
            self._put("memory.soft_limit_in_bytes", "memory_reservation", "memory", value)
        if limits.memory_swappiness is not None and limits.memory_swappiness >= 0:
            value = b"%d" % limits.memory_swappiness
            self._put("memory.swappiness", "memory_swappiness", "memory", value)
        if limits.oom_kill_disable is not None:
            value = b"%d" % limits.oom_kill_disable
            self._put("memory.oom_control", "oom_kill_disable", "memory", value)
        return warnings

    def _memory_pair(self, memory: int | None, total: int | None) -> None:
        """Memory and memory + swap: the kernel holds the first to at most the second, always.

        Raising, the sum goes first; lowering, memory does. If the second write fails the first
        is taken back, so that a refused update changes nothing.
        """
        limit, sum_ = "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"
        writes = []
        if memory is not None:
            writes.append((limit, "memory", memory if memory > 0 else -1))
        if total is not None:
            writes.append((sum_, "memory_swap", total if total > 0 else -1))
        if len(writes) == 1:
            self._put(writes[0][0], writes[0][1], "memory", b"%d" % writes[0][2])
            return
        old = {file: cs.parse_limit(self._get("memory", file)) for file in (limit, sum_)}
        now, wanted = old[sum_], writes[1][2]
        if now is not None and (wanted == -1 or wanted > now):
            writes.reverse()
        self._put(writes[0][0], writes[0][1], "memory", b"%d" % writes[0][2])
        try:
            self._put(writes[1][0], writes[1][1], "memory", b"%d" % writes[1][2])
        except OSError:
            before = old[writes[0][0]]
            with contextlib.suppress(OSError):
                value = b"-1" if before is None else b"%d" % before
                self._put(writes[0][0], writes[0][1], "memory", value)
            raise

    def _cpu(self, limits: Limits) -> None:
        if limits.cpu_shares is not None:
            self._put("cpu.shares", "cpu_shares", "cpu", b"%d" % (limits.cpu_shares or 1024))
        quota, period = limits.cpu_bandwidth
        if quota is None and period is None:
            return
        if not self._has("cpu", "cpu.cfs_quota_us"):
            raise self.layout.unsupported("cpu_quota_us", "cpu")
        name = "nano_cpus" if limits.nano_cpus is not None else "cpu_quota_us"
        writes = []
        if period:
            writes.append(("cpu.cfs_period_us", "cpu_period_us", b"%d" % period))
        if quota is not None:
            value = b"%d" % quota if quota > 0 else b"-1"
            writes.append(("cpu.cfs_quota_us", name, value))
        try:
            for file, limit, value in writes:
                self._put(file, limit, "cpu", value)
        except OSError:
            # The kernel compares quota/period with the parent's after each write: the other
            # order may pass where this one does not.
            if len(writes) == 1:
                raise
            for file, limit, value in reversed(writes):
                self._put(file, limit, "cpu", value)

    def _blkio(self, limits: Limits) -> list[str]:
        for name, _, values in limits.throttles:
            for major, minor, value in values:
                line = f"{major}:{minor} {max(0, value)}".encode()
                self._put(f"blkio.throttle.{name}", name, "blkio", line)
        if limits.blkio_weight is None and not limits.blkio_weight_device:
            return []
        for prefix in ("blkio.bfq.weight", "blkio.weight"):
            if self._has("blkio", prefix):
                break
        else:
            return [
                "Your kernel does not support Block I/O weight or the cgroup is not mounted. "
                "Weight discarded."
            ]
        if limits.blkio_weight:
            self._put(prefix, "blkio_weight", "blkio", b"%d" % limits.blkio_weight)
        for major, minor, weight in limits.blkio_weight_device:
            line = f"{major}:{minor} {weight}".encode()
            self._put(f"{prefix}_device", "blkio_weight_device", "blkio", line)
        return []

    def _hugetlb(self, limits: Limits) -> None:
        if not limits.hugetlb:
            return
        if "hugetlb" not in self._trees and self._v2 is not None:
            self._v2.apply_hugetlb(limits)
            return
        directory = self._demand("hugetlb")
        for size, value in limits.hugetlb:
            if not size.isalnum():
                raise refused(OSError(errno.EINVAL, ""), "hugetlb", "hugetlb", size)
            line = b"%d" % value
            self._put(f"hugetlb.{size}.limit_in_bytes", "hugetlb", "hugetlb", line)
        self._populate(directory)

    def _devices(self, table: Table) -> None:
        default = "devices.allow" if table.default_allow else "devices.deny"
        other = "devices.deny" if table.default_allow else "devices.allow"
        self._put(default, "devices", "devices", b"a")
        if table.exceptions:
            self._put(other, "devices", "devices", *(str(e).encode() for e in table.exceptions))

    # -- what it uses ------------------------------------------------------------------------

    def stats(self) -> cs.Stats:
        """See `Group.stats`; pressure comes from version 2 where mounted."""
        return cs.Stats(
            cpu=self._cpu_stats(),
            memory=self._memory_stats(),
            pids=cs.PidsStats(
                cs.parse_number(self._get("pids", "pids.current")),
                cs.parse_limit(self._get("pids", "pids.max")),
            ),
            io=cs.join_blkio(
                self._get("blkio", "blkio.throttle.io_service_bytes_recursive"),
                self._get("blkio", "blkio.throttle.io_serviced_recursive"),
            ),
            pressure={} if self._v2 is None else self._v2.pressure(),
        )

    def totals(self) -> tuple[int, int]:
        """See `Group.totals`."""
        return (
            cs.parse_number(self._get("cpuacct", "cpuacct.usage")),
            cs.parse_number(self._get("memory", "memory.max_usage_in_bytes")),
        )

    def _cpu_stats(self) -> cs.CpuStats:
        throttling = cs.parse_flat(self._get("cpu", "cpu.stat"))
        per_cpu = (self._get("cpuacct", "cpuacct.usage_percpu") or b"").split()
        return cs.CpuStats(
            total_ns=cs.parse_number(self._get("cpuacct", "cpuacct.usage")),
            user_ns=cs.parse_number(self._get("cpuacct", "cpuacct.usage_user")),
            system_ns=cs.parse_number(self._get("cpuacct", "cpuacct.usage_sys")),
            per_cpu_ns=tuple(map(int, per_cpu)),
            periods=throttling.get("nr_periods", 0),
            throttled_periods=throttling.get("nr_throttled", 0),
            throttled_ns=throttling.get("throttled_time", 0),
        )

    def _memory_stats(self) -> cs.MemoryStats:
        raw = cs.parse_flat(self._get("memory", "memory.stat"))
        usage = cs.parse_number(self._get("memory", "memory.usage_in_bytes"))
        both = cs.parse_number(self._get("memory", "memory.memsw.usage_in_bytes"))
        return cs.MemoryStats(
            usage=usage,
            limit=cs.parse_limit(self._get("memory", "memory.limit_in_bytes")),
            max_usage=cs.parse_number(self._get("memory", "memory.max_usage_in_bytes")),
            # The sum is charged first: where both limits are equal only its counter moves, and
            # since about Linux 6.13 not even that.
            failcnt=cs.parse_number(self._get("memory", "memory.failcnt"))
            + cs.parse_number(self._get("memory", "memory.memsw.failcnt")),
            cache=raw.get("total_cache", 0),
            rss=raw.get("total_rss", 0),
            inactive_file=raw.get("total_inactive_file", 0),
            swap=max(0, both - usage),
            swap_limit=cs.parse_limit(self._get("memory", "memory.memsw.limit_in_bytes")),
            oom_kills=self.oom_kills(),
            raw=raw,
        )

    def oom_kills(self) -> int:
        """``oom_kill`` of ``memory.oom_control`` (Linux 4.13), of the group and those below."""
        tree = self._trees.get("memory")
        if tree is None:
            return 0
        # Version 1 counts a kill where the victim was, not in the groups above.
        return sum(
            cs.parse_flat(read_optional(f"{group}/memory.oom_control")).get("oom_kill", 0)
            for group in walk(tree.base + self.path)
        )

    def open_oom_events(self) -> int | None:
        """An eventfd(2) registered with ``cgroup.event_control``."""
        if "memory" not in self._trees:
            return None
        directory = self._directory("memory")
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            control = os.open(f"{directory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
            try:
                write_value(f"{directory}/cgroup.event_control", b"%d %d" % (event, control))
            finally:
                os.close(control)
        except OSError:
            os.close(event)
            return None
        return event


def inherit_cpuset(directory: str) -> None:
    """Give a cpuset its parent's CPUs and memory nodes: version 1 starts it with none.

    Does nothing in other hierarchies, and to a set that has some already.
    """
    parent = os.path.dirname(directory)
    for name in ("cpuset.cpus", "cpuset.mems"):
        content = read_optional(f"{directory}/{name}")
        if content is not None and not content.strip():
            write_value(f"{directory}/{name}", read_value(f"{parent}/{name}").strip())
