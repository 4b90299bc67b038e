"""Control groups, version 2 (kernel admin-guide/cgroup-v2.rst).

`GroupV2` is a whole group on a version 2 host, and on a hybrid host the version 2 part of a
`cgroup_v1.GroupV1`: kill, freeze, pressure, and controllers that only version 2 has there.

The base hands controllers down by ``cgroup.subtree_control`` of every parent, so parents hold no
processes ("no internal processes"); `Layout.make_room` clears the base. How the base is
chosen beside systemd is told in `cgroup`.

What is tested where: kill, freeze, joining, nesting, removal, the device filter and the hugetlb
limit run against the real kernel wherever a version 2 tree is mounted, also on a hybrid host.
The files of cpu, cpuset, io, memory and pids exist only where version 2 carries these
controllers; elsewhere the writes are tested against a directory of plain files.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import select
import time
from ctypes import c_char_p, c_int, c_uint32
from typing import Final

from tare.kernel import cgroup_stats as cs
from tare.kernel.cgroup import Group, Layout, Mode, unprivileged_devices
from tare.kernel.cgroup_limits import (
    KERNEL_MEMORY_WARNING,
    UNLIMITED,
    LimitError,
    Limits,
    check_cpu_list,
    refused,
)
from tare.kernel.cgroup_tree import (
    children,
    kill_members,
    members,
    read_optional,
    remove_tree,
    write_value,
)
from tare.kernel.libc import Libc

_WANTED: Final = ("cpu", "cpuset", "hugetlb", "io", "memory", "pids")
_IN_MODIFY: Final = 0x02
_ROUNDS: Final = 64

_inotify_init1 = Libc("inotify_init1", c_int)
_inotify_add_watch = Libc("inotify_add_watch", c_int, c_char_p, c_uint32)


def weight_of_shares(shares: int) -> int:
    """``cpu.weight`` for version 1's shares: 2, 1024 and 262144 become 1, 100 and 10000.

    The curve through these three points that the OCI runtimes agreed on in 2025, so that the
    default of one version is the default of the other.
    """
    if shares <= 0:
        return 100
    power = math.log2(min(max(shares, 2), 262144))
    return min(10000, max(1, math.ceil(10 ** ((power * power + 125 * power) / 612 - 7 / 34))))


def io_weight_of(blkio: int) -> int:
    """``io.weight`` (1 to 10000) for version 1's 10 to 1000."""
    return 1 + (min(max(blkio, 10), 1000) - 10) * 9999 // 990


class GroupV2(Group):
    """A version 2 directory."""

    def __init__(self, layout: Layout, path: str) -> None:
        super().__init__(layout, path)
        tree = layout.unified
        if tree is None:
            raise OSError(errno.ENODEV, "no version 2 control groups", path)
        self._base = tree.base
        self.directory = tree.base + path
        # On a hybrid host a controller is handed down when a limit first needs it: every
        # controller makes mkdir slower, and the limits are version 1's.
        whole = layout.mode is Mode.V2
        self._handed_down = tuple(c for c in _WANTED if whole and c in tree.controllers)

    # -- life --------------------------------------------------------------------------------

    def create(self) -> None:
        """Make the directory; see `Group.create`."""
        parent = os.path.dirname(self.path)
        if parent not in self.layout.prepared:
            self._prepare(self._handed_down)
        try:
            self._make()
        except FileNotFoundError:
            self._prepare(self._handed_down)
            self._make()
        self.layout.prepared.add(parent)

    def _make(self) -> None:
        try:
            os.mkdir(self.directory)
        except FileExistsError:
            # A leftover has leftover limits; with processes in it this fails.
            try:
                self.remove()
            except OSError as error:
                raise FileExistsError(
                    errno.EEXIST, "the control group is in use", self.directory
                ) from error
            os.mkdir(self.directory)

    def _prepare(self, controllers: tuple[str, ...]) -> None:
        """Make the parents, each handing *controllers* down to the next."""
        directory = self._base
        *parents, _ = self.path.strip("/").split("/")
        self._hand_down(directory, controllers)
        for name in parents:
            directory += "/" + name
            with contextlib.suppress(FileExistsError):
                os.mkdir(directory)
            self._hand_down(directory, controllers)

    @staticmethod
    def _hand_down(directory: str, controllers: tuple[str, ...]) -> None:
        path = f"{directory}/cgroup.subtree_control"
        enabled = (read_optional(path) or b"").decode().split() if controllers else []
        missing = [name for name in controllers if name not in enabled]
        if not missing:
            return
        try:
            write_value(path, " ".join("+" + name for name in missing).encode())
        except OSError as error:
            if error.errno == errno.EBUSY:
                message = "processes in this control group itself keep it from handing down limits"
                raise OSError(errno.EBUSY, message, directory) from error
            raise

    def exists(self) -> bool:
        """Whether the directory is there."""
        return os.path.isdir(self.directory)

    def subgroups(self) -> list[str]:
        """Names of the directories below."""
        return children(self.directory)

    def remove(self) -> None:
        """Remove the directory and those below."""
        remove_tree(self.directory)

    # -- members -----------------------------------------------------------------------------

    def open_join(self) -> list[int]:
        """The descriptor of ``cgroup.procs``."""
        return [os.open(f"{self.directory}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)]

    def open_tasks(self) -> list[int]:
        """None: a version 2 group is joined at birth (`open_directory`)."""
        return []

    def open_directory(self) -> int | None:
        """A descriptor for CLONE_INTO_CGROUP."""
        return os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def add(self, pid: int) -> None:
        """Move a process here."""
        write_value(f"{self.directory}/cgroup.procs", b"%d" % pid)

    def pids(self) -> list[int]:
        """Processes here and below."""
        return members(self.directory)

    def kill(self) -> None:
        """By ``cgroup.kill`` (Linux 5.14), else frozen and one by one."""
        try:
            write_value(f"{self.directory}/cgroup.kill", b"1")
        except FileNotFoundError:
            if self.exists():
                self._kill_each()

    def _kill_each(self) -> None:
        # Freezing is not waited for: what forks meanwhile is born frozen and found in the next
        # round; SIGKILL ends frozen processes too.
        write_value(f"{self.directory}/cgroup.freeze", b"1")
        killed: set[int] = set()
        try:
            for _ in range(_ROUNDS):
                if killed.issuperset(self.pids()):
                    return
                killed |= kill_members(self.pids)
        finally:
            self.thaw()

    def freeze(self, timeout: float = 2.0) -> None:
        """By ``cgroup.freeze``, waiting for ``cgroup.events`` to say so."""
        write_value(f"{self.directory}/cgroup.freeze", b"1")
        deadline = time.monotonic() + timeout
        events = os.open(f"{self.directory}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        try:
            poll = select.poll()
            poll.register(events, select.POLLPRI | select.POLLERR)
            # The read arms the poll: what changes after it wakes us.
            while not cs.parse_flat(os.pread(events, 4096, 0)).get("frozen"):
                left = deadline - time.monotonic()
                if left <= 0:
                    self.thaw()
                    raise TimeoutError(errno.ETIMEDOUT, "a process does not freeze", self.directory)
                poll.poll(max(1, int(left * 1000)))
        finally:
            os.close(events)

    def thaw(self) -> None:
        """Undo `freeze`."""
        write_value(f"{self.directory}/cgroup.freeze", b"0")

    def frozen(self) -> bool:
        """What ``cgroup.events`` says."""
        events = cs.parse_flat(read_optional(f"{self.directory}/cgroup.events"))
        return bool(events.get("frozen"))

    # -- limits ------------------------------------------------------------------------------

    def apply(self, limits: Limits) -> list[str]:
        """See `Group.apply`."""
        self.layout.require(limits, self.layout.controllers)
        warnings = _discarded(
            limits, swap_accounting=os.path.exists(f"{self.directory}/memory.swap.max")
        )
        self._cpuset(limits)
        self._memory(limits)
        self._cpu(limits)
        if limits.pids is not None:
            value = b"%d" % limits.pids if limits.pids > 0 else b"max"
            self._put("pids.max", "pids", "pids", value)
        warnings += self._io(limits)
        self.apply_hugetlb(limits)
        if limits.devices:
            warnings += self._devices(limits)
        return warnings

    def update(self, limits: Limits) -> list[str]:
        """`apply`, but memory below what is in use is first reclaimed, else refused.

        Version 2 would kill processes for it; version 1 says EBUSY, and so does this.
        """
        wanted = limits.memory
        if wanted is not None and wanted > 0:
            self._fit(wanted)
        return self.apply(limits)

    def _fit(self, wanted: int) -> None:
        usage = cs.parse_number(read_optional(f"{self.directory}/memory.current"))
        if usage <= wanted:
            return
        with contextlib.suppress(OSError):  # EAGAIN: not all of it; ENOENT: before Linux 5.19
            write_value(f"{self.directory}/memory.reclaim", b"%d" % (usage - wanted))
        usage = cs.parse_number(read_optional(f"{self.directory}/memory.current"))
        if usage > wanted:
            raise refused(OSError(errno.EBUSY, ""), "memory", "memory", wanted)

    def _put(self, file: str, limit: str, controller: str, value: bytes) -> None:
        try:
            write_value(f"{self.directory}/{file}", value)
        except OSError as error:
            raise refused(error, limit, controller, value.decode()) from error

    def _get(self, file: str) -> bytes | None:
        return read_optional(f"{self.directory}/{file}")

    def _cpuset(self, limits: Limits) -> None:
        parent = os.path.dirname(self.directory)
        for name, value in (("cpus", limits.cpuset_cpus), ("mems", limits.cpuset_mems)):
            if value is None:
                continue
            # Version 2 takes any list and falls back to the parent's: check it here.
            if value:
                available = read_optional(f"{parent}/cpuset.{name}.effective") or b""
                check_cpu_list(f"cpuset_{name}", value, available.decode())
            self._put(f"cpuset.{name}", f"cpuset_{name}", "cpuset", value.encode() or b"\n")

    def _memory(self, limits: Limits) -> None:
        if limits.memory_reservation is not None:
            value = _bytes(max(0, limits.memory_reservation))
            self._put("memory.low", "memory_reservation", "memory", value)
        memory, total = limits.memory, limits.memory_swap
        if memory is None and total is None:
            return
        swap = self._swap(memory, total)
        # The two files do not check each other. Swap first: lowering memory then has room there.
        if swap is not None:
            self._put("memory.swap.max", "memory_swap", "memory", _bytes(swap))
        if memory is not None:
            self._put("memory.max", "memory", "memory", _bytes(memory))

    def _swap(self, memory: int | None, total: int | None) -> int | None:
        """What swap alone may be; None to leave it. The sum is what was promised, so keep it."""
        own = self._get("memory.swap.max")
        if own is None:
            return None  # no swap accounting: said in a warning
        old = cs.parse_limit(self._get("memory.max"))
        old_swap = cs.parse_limit(own)
        if total is None:
            if memory is None or memory <= 0 or old is None or old_swap is None:
                return None
            total = old + old_swap
        if total <= 0:
            return UNLIMITED
        base = memory if memory is not None else old
        if base is None or base <= 0 or total < base:
            raise refused(OSError(errno.EINVAL, ""), "memory_swap", "memory", total)
        return total - base

    def _cpu(self, limits: Limits) -> None:
        if limits.cpu_shares is not None:
            weight = b"%d" % weight_of_shares(limits.cpu_shares)
            self._put("cpu.weight", "cpu_shares", "cpu", weight)
        quota, period = limits.cpu_bandwidth
        if quota is None and period is None:
            return
        # One file has both: a part that is not asked for keeps its value.
        words = (self._get("cpu.max") or b"max 100000").split()
        if quota is not None:
            words[0] = b"%d" % quota if quota > 0 else b"max"
        if period:
            words[1:] = [b"%d" % period]
        name = "nano_cpus" if limits.nano_cpus is not None else "cpu_quota_us"
        self._put("cpu.max", name, "cpu", b" ".join(words))

    def _io(self, limits: Limits) -> list[str]:
        for name, key, values in limits.throttles:
            for major, minor, value in values:
                number = str(value) if value > 0 else "max"
                line = f"{major}:{minor} {key}={number}"
                self._put("io.max", name, "blkio", line.encode())
        if limits.blkio_weight is None and not limits.blkio_weight_device:
            return []
        for file in ("io.bfq.weight", "io.weight"):
            if os.path.exists(f"{self.directory}/{file}"):
                break
        else:
            return ["Your kernel does not support Block I/O weight. Weight discarded."]
        plain = file == "io.bfq.weight"  # its range is 1 to 1000, as version 1's
        if limits.blkio_weight:
            value = limits.blkio_weight if plain else io_weight_of(limits.blkio_weight)
            self._put(file, "blkio_weight", "blkio", b"default %d" % value)
        for major, minor, weight in limits.blkio_weight_device:
            device = f"{major}:{minor} {weight if plain else io_weight_of(weight)}"
            self._put(file, "blkio_weight_device", "blkio", device.encode())
        return []

    def apply_hugetlb(self, limits: Limits) -> None:
        """The huge page limits; the controller is handed down now if it was not needed before."""
        if not limits.hugetlb:
            return
        if not os.path.exists(f"{self.directory}/hugetlb.{limits.hugetlb[0][0]}.max"):
            self._prepare(("hugetlb",))
        for size, value in limits.hugetlb:
            if not size.isalnum():
                raise refused(OSError(errno.EINVAL, ""), "hugetlb", "hugetlb", size)
            self._put(f"hugetlb.{size}.max", "hugetlb", "hugetlb", _bytes(value))

    def _devices(self, limits: Limits) -> list[str]:
        if not self.layout.privileged:
            return unprivileged_devices(limits)
        # Late import: only a version 2 host needs bpf(2).
        from tare.kernel.device_filter import install

        directory = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            install(directory, limits.devices)
        except LimitError:
            raise
        except OSError as error:
            raise self.layout.unsupported("devices", "devices (eBPF)") from error
        finally:
            os.close(directory)
        return []

    # -- what it uses ------------------------------------------------------------------------

    def stats(self) -> cs.Stats:
        """See `Group.stats`."""
        cpu = cs.parse_flat(self._get("cpu.stat"))
        return cs.Stats(
            cpu=cs.CpuStats(
                total_ns=cpu.get("usage_usec", 0) * 1000,
                user_ns=cpu.get("user_usec", 0) * 1000,
                system_ns=cpu.get("system_usec", 0) * 1000,
                periods=cpu.get("nr_periods", 0),
                throttled_periods=cpu.get("nr_throttled", 0),
                throttled_ns=cpu.get("throttled_usec", 0) * 1000,
            ),
            memory=self._memory_stats(),
            pids=cs.PidsStats(
                cs.parse_number(self._get("pids.current")),
                cs.parse_limit(self._get("pids.max")),
            ),
            io=cs.parse_io_stat(self._get("io.stat")),
            pressure=self.pressure(),
        )

    def totals(self) -> tuple[int, int]:
        """See `Group.totals`."""
        cpu = cs.parse_flat(self._get("cpu.stat"))
        return cpu.get("usage_usec", 0) * 1000, cs.parse_number(self._get("memory.peak"))

    def _memory_stats(self) -> cs.MemoryStats:
        raw = cs.parse_flat(self._get("memory.stat"))
        events = cs.parse_flat(self._get("memory.events"))
        return cs.MemoryStats(
            usage=cs.parse_number(self._get("memory.current")),
            limit=cs.parse_limit(self._get("memory.max")),
            max_usage=cs.parse_number(self._get("memory.peak")),
            failcnt=events.get("max", 0),
            cache=raw.get("file", 0),
            rss=raw.get("anon", 0),
            inactive_file=raw.get("inactive_file", 0),
            swap=cs.parse_number(self._get("memory.swap.current")),
            swap_limit=cs.parse_limit(self._get("memory.swap.max")),
            oom_kills=events.get("oom_kill", 0),
            raw=raw,
        )

    def pressure(self) -> dict[str, cs.Pressure]:
        """Pressure by resource; empty where the kernel does not count it."""
        found = {}
        for name in ("cpu", "memory", "io"):
            content = self._get(f"{name}.pressure")
            if content:
                found[name] = cs.parse_pressure(content)
        return found

    def oom_kills(self) -> int:
        """``oom_kill`` of ``memory.events``, which counts the groups below too."""
        return cs.parse_flat(self._get("memory.events")).get("oom_kill", 0)

    def open_oom_events(self) -> int | None:
        """An inotify(7) descriptor on ``memory.events``."""
        path = os.fsencode(f"{self.directory}/memory.events")
        watcher = _inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            _inotify_add_watch(watcher, path, _IN_MODIFY, subject=os.fsdecode(path))
        except OSError:
            os.close(watcher)
            return None
        return watcher


def _bytes(value: int) -> bytes:
    return b"%d" % value if value >= 0 else b"max"


def _discarded(limits: Limits, *, swap_accounting: bool) -> list[str]:
    """Warnings for what version 2 does not have, in the words people know from Docker."""
    warnings = []
    if limits.memory_swap is not None and not swap_accounting:
        warnings.append(
            "Your kernel does not support swap limit capabilities or the cgroup is not mounted. "
            "Memory limited without swap."
        )
    if limits.oom_kill_disable:
        warnings.append("OOM killer cannot be disabled on cgroup v2. OomKillDisable discarded.")
    if limits.memory_swappiness is not None:
        warnings.append("Memory swappiness does not exist on cgroup v2. Swappiness discarded.")
    if limits.kernel_memory is not None:
        warnings.append(KERNEL_MEMORY_WARNING)
    return warnings
