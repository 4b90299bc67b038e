"""Groups on the real kernel, wherever version 1 controllers are mounted.

Each test runs twice: with the version 2 tree beside version 1, and as if it were not there.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import mmap
import os
import secrets
import select
import signal
import struct
import time
from collections.abc import Callable, Iterator
from ctypes import c_int, c_ulong
from dataclasses import replace
from pathlib import Path

import pytest

from tare.kernel.cgroup import (
    DEFAULT_DEVICES,
    DeviceRule,
    Group,
    Layout,
    Limits,
    Mode,
    RefusedLimitError,
    UnsupportedLimitError,
    detect,
)
from tare.kernel.libc import Libc

MIB = 1 << 20

_prctl = Libc("prctl", c_int, c_ulong, c_ulong, c_ulong, c_ulong)
_PR_SET_CHILD_SUBREAPER = 36


@pytest.fixture(params=["beside version 2", "version 1 alone"])
def layout(request: pytest.FixtureRequest) -> Layout:
    found = detect()
    if found.mode not in (Mode.V1, Mode.HYBRID) or not found.writable or os.geteuid() != 0:
        pytest.skip("no writable version 1 control groups here")
    if request.param == "version 1 alone":
        return replace(found, mode=Mode.V1, unified=None)
    if found.mode is not Mode.HYBRID:
        pytest.skip("no version 2 tree is mounted beside version 1")
    return found


@pytest.fixture
def parent(layout: Layout) -> Iterator[str]:
    """The path of a parent group, which is gone afterwards with all below it."""
    path = f"/tare-test-{os.getpid()}-{secrets.token_hex(4)}"
    before = _handed_down(layout)
    try:
        yield path
    finally:
        # Whatever failed: nothing of it stays. What was frozen must be thawed to die.
        group = layout.group(path)
        with contextlib.suppress(OSError):
            group.thaw()
        group.kill()
        _until(lambda: not group.pids())
        group.remove()
        _restore(layout, before)


@pytest.fixture
def group(layout: Layout, parent: str) -> Group:
    made = layout.group(f"{parent}/one")
    made.create()
    return made


def _handed_down(layout: Layout) -> set[str]:
    if layout.unified is None:
        return set()
    return set(Path(layout.unified.base, "cgroup.subtree_control").read_text().split())


def _restore(layout: Layout, before: set[str]) -> None:
    for name in _handed_down(layout) - before:
        assert layout.unified is not None
        Path(layout.unified.base, "cgroup.subtree_control").write_text(f"-{name}")


def _until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for something that the kernel announces nowhere."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.002)


def ended(child: int) -> int:
    """How a child ended, which must be soon: its code, or minus the signal."""
    pidfd = os.pidfd_open(child)
    try:
        assert select.select([pidfd], [], [], 10)[0], "the process is still alive"
    finally:
        os.close(pidfd)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextlib.contextmanager
def process_in(group: Group, work: Callable[[], object]) -> Iterator[int]:
    """A child that joins by the descriptors alone, then does *work*; reaped at the end."""
    joins = group.open_join()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            gc.freeze()
            for descriptor in joins:
                os.write(descriptor, b"0")
            os.write(writer, b"1")
            work()
            os._exit(0)
        except BaseException:
            os._exit(99)
    os.close(writer)
    for descriptor in joins:
        os.close(descriptor)
    try:
        with open(reader, "rb") as pipe:
            assert pipe.read(1) == b"1", "the child could not join"
        yield child
    finally:
        with contextlib.suppress(OSError):
            group.thaw()
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)


def exit_of(group: Group, work: Callable[[], object]) -> int:
    """How a process doing *work* in the group ends: its code, or minus the signal."""
    joins = group.open_join()
    child = os.fork()
    if child == 0:
        try:
            for descriptor in joins:
                os.write(descriptor, b"0")
            result = work()
            os._exit(result if isinstance(result, int) else 0)
        except BaseException:
            os._exit(99)
    for descriptor in joins:
        os.close(descriptor)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def value(layout: Layout, controller: str, group: Group, file: str) -> str:
    """What a version 1 control file says."""
    tree = layout.v1(controller)
    assert tree is not None
    return Path(tree.base + group.path, file).read_text().strip()


def forever() -> None:
    """Wait for the signal that ends it."""
    while True:
        signal.pause()


# --- life -------------------------------------------------------------------------------------


def test_a_group_is_made_with_its_parents_and_removed_with_its_children(
    layout: Layout, parent: str
) -> None:
    group = layout.group(f"{parent}/a")
    inner = layout.group(f"{parent}/a/b/c")

    assert not group.exists()
    group.create()
    inner.create()
    assert group.exists()
    assert group.subgroups() == ["b"]
    assert layout.group(parent).subgroups() == ["a"]

    group.remove()
    assert not inner.exists()
    assert not group.exists()
    group.remove()


def test_an_empty_leftover_is_made_anew(layout: Layout, group: Group) -> None:
    group.apply(Limits(pids=7))

    layout.group(group.path).create()

    assert value(layout, "pids", group, "pids.max") == "max"


def test_a_leftover_in_one_hierarchy_is_no_obstacle(layout: Layout, parent: str) -> None:
    tree = layout.v1("memory")
    assert tree is not None
    os.makedirs(f"{tree.base}{parent}/half")
    half = layout.group(f"{parent}/half")

    assert half.exists()
    assert layout.group(parent).subgroups() == ["half"]
    half.create()

    assert half.oom_kills() == 0


def test_a_leftover_cpu_set_does_not_limit_the_next_group(layout: Layout, group: Group) -> None:
    group.apply(Limits(cpuset_cpus="0"))

    layout.group(group.path).create()

    tree = layout.v1("cpuset")
    assert tree is not None
    assert not os.path.exists(tree.base + group.path)


def test_an_empty_cpu_list_is_the_parent_s(layout: Layout, group: Group) -> None:
    group.apply(Limits(cpuset_cpus="0"))

    group.update(Limits(cpuset_cpus=""))

    tree = layout.v1("cpuset")
    assert tree is not None
    every = Path(tree.base, "cpuset.cpus").read_text().strip()
    assert value(layout, "cpuset", group, "cpuset.cpus") == every


def test_a_group_in_use_is_not_made_again(layout: Layout, group: Group) -> None:
    with process_in(group, forever) as child:
        with pytest.raises(FileExistsError, match="in use"):
            layout.group(group.path).create()

        assert group.pids() == [child]


def test_a_group_that_cannot_be_made_everywhere_is_made_nowhere(
    layout: Layout, parent: str
) -> None:
    pids, memory = layout.v1("pids"), layout.v1("memory")
    assert pids is not None
    assert memory is not None
    taken = f"{pids.base}{parent}/taken"
    os.makedirs(taken)
    child = os.fork()
    if child == 0:
        forever()
    try:
        Path(taken, "cgroup.procs").write_text(str(child))
        with pytest.raises(FileExistsError, match="in use"):
            layout.group(f"{parent}/taken").create()
        elsewhere = os.path.exists(f"{memory.base}{parent}/taken")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

    assert not elsewhere


def test_a_group_is_made_although_its_parent_was_removed_meanwhile(
    layout: Layout, parent: str, group: Group
) -> None:
    layout.group(parent).remove()

    again = layout.group(f"{parent}/two")
    again.create()

    assert again.exists()


def test_removing_a_group_in_use_says_so(group: Group) -> None:
    with process_in(group, forever), pytest.raises(OSError, match="still has processes") as caught:
        group.remove()

    assert caught.value.errno == errno.EBUSY
    group.create()


def test_add_moves_a_process_into_every_hierarchy(group: Group) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    try:
        group.add(child)
        lines = Path(f"/proc/{child}/cgroup").read_text().splitlines()
    finally:
        os.close(writer)
        os.waitpid(child, 0)

    inside = {line.split(":")[1] for line in lines if line.endswith(group.path)}
    assert {"pids", "memory", "devices", "cpu"} <= inside | set(",".join(inside).split(","))


# --- limits -----------------------------------------------------------------------------------


@pytest.mark.attack("A46")
def test_no_more_processes_than_the_limit(group: Group) -> None:
    group.apply(Limits(pids=8))

    def fork_until_refused() -> int:
        made: list[int] = []
        try:
            while len(made) < 20:
                child = os.fork()
                if child == 0:
                    forever()
                made.append(child)
        except OSError as error:
            assert error.errno == errno.EAGAIN
        for child in made:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        return len(made)

    assert exit_of(group, fork_until_refused) == 7
    assert group.stats().pids.limit == 8


@pytest.mark.attack("A47")
def test_more_memory_than_the_limit_kills_inside_the_group_and_is_counted(group: Group) -> None:
    group.apply(Limits(memory=16 * MIB, memory_swap=16 * MIB))
    events = group.open_oom_events()
    assert events is not None
    try:
        quiet = select.select([events], [], [], 0)[0]
        code = exit_of(group, lambda: len(b"x" * (64 * MIB)))
        told = select.select([events], [], [], 5)[0]
    finally:
        os.close(events)

    assert quiet == []
    assert code == -signal.SIGKILL
    assert group.oom_kills() == 1
    assert told == [events]
    memory = group.stats().memory
    assert memory.limit == 16 * MIB
    assert memory.max_usage <= 16 * MIB
    assert memory.oom_kills == 1


def test_an_oom_kill_in_a_group_below_is_counted(layout: Layout, group: Group) -> None:
    inner = layout.group(f"{group.path}/inner")
    inner.create()
    inner.apply(Limits(memory=16 * MIB, memory_swap=16 * MIB))

    code = exit_of(inner, lambda: len(b"x" * (64 * MIB)))

    assert code == -signal.SIGKILL
    assert group.oom_kills() == 1


def test_a_cpu_quota_holds_back(group: Group) -> None:
    group.apply(Limits(nano_cpus=100_000_000, cpu_shares=512))

    def spin() -> None:
        end = time.monotonic() + 0.35
        while time.monotonic() < end:
            pass

    exit_of(group, spin)

    cpu = group.stats().cpu
    assert cpu.throttled_periods > 0
    assert cpu.throttled_ns > 0
    assert 0 < cpu.total_ns < 250_000_000
    assert cpu.user_ns + cpu.system_ns > 0
    assert sum(cpu.per_cpu_ns) > 0


def test_cpu_limits_are_lifted_again(layout: Layout, group: Group) -> None:
    group.apply(Limits(cpu_quota_us=20_000, cpu_period_us=50_000))
    assert value(layout, "cpu", group, "cpu.cfs_quota_us") == "20000"
    assert value(layout, "cpu", group, "cpu.cfs_period_us") == "50000"

    group.update(Limits(cpu_quota_us=-1))

    assert value(layout, "cpu", group, "cpu.cfs_quota_us") == "-1"


def test_a_quota_below_what_the_kernel_takes_is_refused(group: Group) -> None:
    with pytest.raises(RefusedLimitError, match="cpu_quota_us 5:") as caught:
        group.apply(Limits(cpu_quota_us=5))

    assert caught.value.controller == "cpu"


def test_a_cpu_set_is_in_force_also_for_who_is_there_already(layout: Layout, group: Group) -> None:
    with process_in(group, forever) as child:
        group.update(Limits(cpuset_cpus="0"))

        assert os.sched_getaffinity(child) == {0}
        assert value(layout, "cpuset", group, "cpuset.cpus") == "0"
        assert value(layout, "cpuset", group, "cpuset.mems") != ""

    with process_in(group, forever) as later:
        assert os.sched_getaffinity(later) == {0}


def test_cpus_that_are_not_there_are_refused_and_nothing_is_changed(group: Group) -> None:
    with pytest.raises(RefusedLimitError, match="Requested CPUs are not available"):
        group.apply(Limits(cpuset_cpus="0,4095", pids=5))

    assert group.stats().pids.limit is None


def test_memory_is_raised_and_lowered_in_an_order_the_kernel_takes(group: Group) -> None:
    for size in (32, 256, 16, 64):
        group.update(Limits(memory=size * MIB, memory_swap=2 * size * MIB))
        memory = group.stats().memory
        assert (memory.limit, memory.swap_limit) == (size * MIB, 2 * size * MIB)

    group.update(Limits(memory=128 * MIB, memory_swap=-1))
    assert group.stats().memory.swap_limit is None
    group.update(Limits(memory=-1, memory_swap=-1))
    assert group.stats().memory.limit is None


def test_memory_above_the_sum_that_is_set_is_refused(group: Group) -> None:
    group.apply(Limits(memory=16 * MIB, memory_swap=32 * MIB))

    with pytest.raises(RefusedLimitError, match="memory 67108864") as caught:
        group.update(Limits(memory=64 * MIB))

    assert caught.value.limit == "memory"
    assert group.stats().memory.limit == 16 * MIB


@pytest.mark.attack("A47")
def test_memory_below_what_is_in_use_is_refused_and_nothing_is_killed(group: Group) -> None:
    if len(Path("/proc/swaps").read_text().splitlines()) > 1:
        pytest.skip("with swap the memory in use can be pushed out")
    group.apply(Limits(memory=64 * MIB, memory_swap=128 * MIB))
    reader, writer = os.pipe()

    def hold() -> None:
        kept = b"x" * (32 * MIB)
        os.write(writer, b"1")
        while kept:
            signal.pause()

    with process_in(group, hold) as child:
        os.read(reader, 1)
        with pytest.raises(
            RefusedLimitError, match="memory 8388608: Device or resource busy"
        ) as caught:
            group.update(Limits(memory=8 * MIB, memory_swap=8 * MIB))
        alive = os.waitpid(child, os.WNOHANG) == (0, 0)
    os.close(reader)
    os.close(writer)

    assert caught.value.errno == errno.EBUSY
    assert alive
    memory = group.stats().memory
    assert (memory.limit, memory.swap_limit) == (64 * MIB, 128 * MIB)


def test_other_memory_settings_are_written(layout: Layout, group: Group) -> None:
    limits = Limits(memory=32 * MIB, memory_reservation=8 * MIB, oom_kill_disable=True)

    warnings = group.apply(replace(limits, memory_swappiness=10, kernel_memory=MIB))

    assert [w for w in warnings if "kernel memory" not in w] == []
    assert value(layout, "memory", group, "memory.soft_limit_in_bytes") == str(8 * MIB)
    assert value(layout, "memory", group, "memory.swappiness") == "10"
    assert "oom_kill_disable 1" in value(layout, "memory", group, "memory.oom_control")


def _root_disk() -> tuple[int, int]:
    device = os.stat("/").st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    block = Path("/sys/dev/block", number)
    if not block.exists():
        pytest.skip("the root file system is on no block device")
    if (block / "partition").exists():
        number = (block.resolve().parent / "dev").read_text().strip()
    major, minor = map(int, number.split(":"))
    return major, minor


def test_block_throttles_are_set_and_lifted_on_the_real_disk(layout: Layout, group: Group) -> None:
    major, minor = _root_disk()
    group.apply(
        Limits(
            read_bps_device=((major, minor, 1 << 30),),
            write_bps_device=((major, minor, 1 << 29),),
            read_iops_device=((major, minor, 1000),),
            write_iops_device=((major, minor, 500),),
        )
    )

    names = ("read_bps_device", "write_bps_device", "read_iops_device", "write_iops_device")
    said = [value(layout, "blkio", group, f"blkio.throttle.{name}") for name in names]
    assert said == [f"{major}:{minor} {n}" for n in (1 << 30, 1 << 29, 1000, 500)]

    group.update(Limits(read_bps_device=((major, minor, 0),)))
    assert value(layout, "blkio", group, "blkio.throttle.read_bps_device") == ""


def test_a_throttle_of_no_device_is_refused(group: Group) -> None:
    with pytest.raises(RefusedLimitError, match="write_iops_device 4095:1") as caught:
        group.apply(Limits(write_iops_device=((4095, 1, 10),)))

    assert "whole disk" in caught.value.hint


def test_a_block_weight_is_set_or_said_to_be_discarded(layout: Layout, group: Group) -> None:
    warnings = group.apply(Limits(blkio_weight=300))

    if warnings:
        assert warnings == [w for w in warnings if "Weight discarded" in w]
    else:
        assert "300" in value(layout, "blkio", group, "blkio.bfq.weight")


def test_what_is_read_and_written_is_counted_by_device(group: Group, tmp_path: Path) -> None:
    major, minor = _root_disk()
    file = tmp_path / "file"
    if os.stat(tmp_path).st_dev != os.stat("/").st_dev:
        pytest.skip("the temporary directory is not on the root file system")

    def write() -> None:
        with open(file, "wb") as output:
            for _ in range(12):
                output.write(b"x" * MIB)
            output.flush()
            os.fsync(output.fileno())

    group.apply(Limits(memory=8 * MIB))
    assert exit_of(group, write) == 0

    [device] = [d for d in group.stats().io if (d.major, d.minor) == (major, minor)]
    assert device.write_bytes >= MIB  # the rest may be written for it by the kernel
    assert device.write_ios > 0
    assert group.stats().memory.failcnt > 0, "the page cache has met the limit"


def test_devices_are_refused_unless_listed(group: Group) -> None:
    group.apply(Limits(devices=DEFAULT_DEVICES))

    def opening(path: str, flags: int) -> Callable[[], int]:
        def attempt() -> int:
            try:
                os.close(os.open(path, flags))
            except OSError as error:
                return error.errno or 255
            return 0

        return attempt

    assert exit_of(group, opening("/dev/null", os.O_RDWR)) == 0
    assert exit_of(group, opening("/dev/kmsg", os.O_RDONLY)) == errno.EPERM

    group.update(Limits(devices=(DeviceRule(True, "a"),)))
    assert exit_of(group, opening("/dev/kmsg", os.O_RDONLY)) == 0


def test_the_kernel_lists_the_device_rules_that_were_given(layout: Layout, group: Group) -> None:
    group.apply(Limits(devices=DEFAULT_DEVICES))

    listed = set(value(layout, "devices", group, "devices.list").splitlines())
    assert listed == {str(rule) for rule in DEFAULT_DEVICES[1:]}


def test_huge_pages_are_limited_or_refused(layout: Layout, group: Group) -> None:
    limits = Limits(hugetlb=(("2MB", 4 * MIB),))
    if "hugetlb" not in layout.controllers:
        with pytest.raises(UnsupportedLimitError, match="no usable hugetlb controller"):
            group.apply(limits)
        return
    if not Path("/sys/kernel/mm/hugepages/hugepages-2048kB").exists():
        pytest.skip("no 2 MB pages on this machine")

    group.apply(limits)

    assert layout.unified is not None
    file = Path(layout.unified.base + group.path, "hugetlb.2MB.max")
    assert file.read_text().strip() == str(4 * MIB)


# --- freezing and killing ---------------------------------------------------------------------


def test_frozen_processes_do_nothing_until_thawed(group: Group) -> None:
    shared = mmap.mmap(-1, 8)

    def count() -> None:
        n = 0
        while True:
            n += 1
            shared[:8] = struct.pack("=Q", n)

    def counted() -> int:
        return int(struct.unpack("=Q", shared[:8])[0])

    with process_in(group, count):
        _until(lambda: counted() > 0)
        group.freeze()
        frozen, first = group.frozen(), counted()
        time.sleep(0.05)  # what it would have counted in this time is the observation
        second = counted()
        group.thaw()
        _until(lambda: counted() > second)
        thawed = not group.frozen()
    shared.close()

    assert frozen
    assert first == second
    assert thawed


def test_a_frozen_group_can_be_killed(group: Group) -> None:
    with process_in(group, forever) as child:
        group.freeze()
        group.kill()

        assert ended(child) == -signal.SIGKILL


def test_killing_takes_the_groups_below_too(layout: Layout, group: Group) -> None:
    inner = layout.group(f"{group.path}/inner")
    inner.create()
    with process_in(inner, forever) as child:
        assert group.pids() == [child]

        group.kill()
        assert ended(child) == -signal.SIGKILL

    group.remove()
    assert not inner.exists()


def _bomb(alive: int) -> None:
    """Processes that fork on and on, and end, so that every listing is out of date."""
    os.write(alive, b"1")
    while True:
        try:
            child = os.fork()
        except OSError:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)
            continue
        if child == 0 and time.monotonic_ns() % 3 == 0:
            os._exit(0)


@pytest.mark.attack("A46")
def test_a_fork_bomb_is_killed_whole(group: Group) -> None:
    group.apply(Limits(pids=40))
    joins = group.open_join()
    reader, writer = os.pipe()
    reaper = os.fork()
    if reaper == 0:
        # Orphans of the bomb come to this process, outside of the group, and are reaped.
        _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        if os.fork() == 0:
            for descriptor in joins:
                os.write(descriptor, b"0")
            _bomb(writer)
        while True:
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                os._exit(0)
    os.close(writer)
    for descriptor in joins:
        os.close(descriptor)
    os.read(reader, 1)
    _until(lambda: len(group.pids()) >= 30)

    group.kill()

    _until(lambda: not group.pids())
    assert ended(reaper) == 0
    os.close(reader)
    group.remove()


def test_without_any_freezer_a_fork_bomb_is_still_outrun(layout: Layout, group: Group) -> None:
    if layout.unified is not None:
        pytest.skip("version 2 kills by itself")
    bare = replace(
        layout, hierarchies=tuple(h for h in layout.hierarchies if "freezer" not in h.controllers)
    )
    group = bare.group(group.path)

    test_a_fork_bomb_is_killed_whole(group)


def test_the_version_2_directory_can_be_opened_for_clone3(layout: Layout, group: Group) -> None:
    directory = group.open_directory()
    if layout.unified is None:
        assert directory is None
        return
    assert directory is not None
    try:
        assert os.path.samestat(os.fstat(directory), os.stat(layout.unified.base + group.path))
    finally:
        os.close(directory)


def test_a_user_with_version_2_alone_has_its_members_and_kill(layout: Layout, group: Group) -> None:
    if layout.unified is None:
        pytest.skip("about the version 2 part")
    read_only = tuple(replace(h, writable=False) for h in layout.hierarchies)
    own = replace(layout, hierarchies=read_only, privileged=False).group(group.path)

    with process_in(group, forever) as child:
        members = own.pids()
        own.kill()
        code = ended(child)

    assert members == [child]
    assert code == -signal.SIGKILL


def test_a_process_only_in_version_1_is_killed_too(layout: Layout, group: Group) -> None:
    pids = layout.v1("pids")
    assert pids is not None
    child = os.fork()
    if child == 0:
        forever()
    try:
        Path(pids.base + group.path, "cgroup.procs").write_text(str(child))
        group.kill()
        code = ended(child)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)

    assert code == -signal.SIGKILL


def test_a_group_that_is_gone_has_no_processes_and_nothing_to_kill(
    layout: Layout, parent: str
) -> None:
    group = layout.group(f"{parent}/never")

    group.kill()

    assert group.pids() == []
    assert group.subgroups() == []
    assert group.oom_kills() == 0
    assert group.stats().memory.usage == 0
    with pytest.raises(FileNotFoundError):
        group.open_join()


# --- a user's own part ------------------------------------------------------------------------


def test_a_user_limits_what_was_delegated_and_nothing_else(layout: Layout, group: Group) -> None:
    if layout.unified is None:
        pytest.skip("detection finds the version 2 tree whatever the parameter")
    pids = layout.v1("pids")
    assert pids is not None
    for base in (pids.base, layout.unified.base):
        os.chown(base + group.path, 65534, 65534)
        os.chown(f"{base}{group.path}/cgroup.procs", 65534, 65534)
    reader, writer = os.pipe()

    def work() -> None:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        own = detect()
        inner = own.group("/inner")
        inner.create()
        inner.apply(Limits(pids=5))
        says = [str(sorted(own.controllers)), str(inner.stats().pids.limit)]
        try:
            inner.apply(Limits(memory=MIB))
        except UnsupportedLimitError as error:
            says.append(str(error))
        inner.remove()
        os.write(writer, "\n".join(says).encode())

    assert exit_of(group, work) == 0
    os.close(writer)
    with open(reader) as pipe:
        controllers, limit, refusal = pipe.read().splitlines()

    assert controllers == "['freezer', 'kill', 'pids']"
    assert limit == "5"
    assert "the memory controller is not delegated to this user" in refusal
