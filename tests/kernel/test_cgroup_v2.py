"""Version 2 groups: on the real tree where one is mounted, and their writes on plain files.

On a hybrid host the real tree has no cpu, memory, pids or io files; what is written to them is
therefore read back from plain files that stand in for them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import select
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tare.kernel.cgroup import (
    DEFAULT_DEVICES,
    Hierarchy,
    Layout,
    Limits,
    Mode,
    RefusedLimitError,
    UnsupportedLimitError,
    detect,
)
from tare.kernel.cgroup_v2 import GroupV2, io_weight_of, weight_of_shares
from tare.kernel.process import spawn

MIB = 1 << 20
ALL = frozenset({"cpu", "cpuset", "io", "memory", "pids", "hugetlb"})

CONTENTS = {
    "cgroup.procs": "",
    "cgroup.kill": "",
    "cgroup.freeze": "0\n",
    "cgroup.events": "populated 1\nfrozen 0\n",
    "cpu.max": "max 100000\n",
    "cpu.weight": "",
    "cpu.stat": "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 5\nnr_throttled 2\n"
    "throttled_usec 7\n",
    "cpuset.cpus": "",
    "cpuset.mems": "",
    "io.max": "",
    "io.stat": "8:0 rbytes=1 wbytes=2 rios=3 wios=4\n",
    "io.weight": "",
    "memory.current": "4096\n",
    "memory.max": "max\n",
    "memory.low": "",
    "memory.peak": "8192\n",
    "memory.swap.max": "max\n",
    "memory.swap.current": "5\n",
    "memory.stat": "anon 1\nfile 2\ninactive_file 3\n",
    "memory.events": "low 0\nhigh 0\nmax 6\noom 1\noom_kill 1\n",
    "memory.pressure": "some avg10=1.00 avg60=0.00 avg300=0.00 total=9\n",
    "pids.max": "max\n",
    "pids.current": "2\n",
    "hugetlb.2MB.max": "",
}


class Files:
    """A group of plain files."""

    def __init__(self, base: Path, *, privileged: bool = True) -> None:
        self.base = base
        (base / "cgroup.subtree_control").touch()
        (base / "cpuset.cpus.effective").write_text("0-3\n")
        (base / "cpuset.mems.effective").write_text("0\n")
        tree = Hierarchy(str(base), str(base), ALL, True)
        self.layout = Layout(Mode.V2, (), tree, privileged=privileged)
        self.group = GroupV2(self.layout, "/one")
        self.group.create()
        for name, content in CONTENTS.items():
            self.set(name, content)

    def set(self, name: str, content: str) -> None:
        """Have the file say *content*."""
        (self.base / "one" / name).write_text(content)

    def get(self, name: str) -> str:
        """What was written to the file."""
        return (self.base / "one" / name).read_text()

    def applied(self, limits: Limits, *names: str) -> list[str]:
        """What *limits* write to the files, each empty before."""
        for name in names:
            self.set(name, "")
        assert self.group.apply(limits) == []
        return [self.get(name) for name in names]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


# --- what is written --------------------------------------------------------------------------


def test_the_parents_hand_every_controller_down(files: Files) -> None:
    assert (files.base / "cgroup.subtree_control").read_text() == (
        "+cpu +cpuset +hugetlb +io +memory +pids"
    )


@pytest.mark.parametrize(
    ("limits", "file", "written"),
    [
        (Limits(pids=9), "pids.max", "9"),
        (Limits(pids=-1), "pids.max", "max"),
        (Limits(nano_cpus=500_000_000), "cpu.max", "50000 100000"),
        (Limits(cpu_quota_us=7000, cpu_period_us=20000), "cpu.max", "7000 20000"),
        (Limits(cpu_shares=1024), "cpu.weight", "100"),
        (Limits(cpuset_cpus="0-1,3"), "cpuset.cpus", "0-1,3"),
        (Limits(memory=MIB), "memory.max", "1048576"),
        (Limits(memory_reservation=MIB), "memory.low", "1048576"),
        (Limits(blkio_weight=1000), "io.weight", "default 10000"),
        (Limits(blkio_weight_device=((8, 0, 10),)), "io.weight", "8:0 1"),
        (Limits(read_bps_device=((8, 0, 5),)), "io.max", "8:0 rbps=5"),
        (Limits(write_bps_device=((8, 0, 5),)), "io.max", "8:0 wbps=5"),
        (Limits(read_iops_device=((8, 0, 5),)), "io.max", "8:0 riops=5"),
        (Limits(write_iops_device=((8, 0, 0),)), "io.max", "8:0 wiops=max"),
        (Limits(hugetlb=(("2MB", 4 * MIB),)), "hugetlb.2MB.max", "4194304"),
    ],
)
def test_a_limit_is_written_in_version_2_s_words(
    files: Files, limits: Limits, file: str, written: str
) -> None:
    assert files.applied(limits, file) == [written]


def test_a_quota_alone_keeps_the_period(files: Files) -> None:
    files.set("cpu.max", "max 50000")

    files.group.update(Limits(cpu_quota_us=10000))

    assert files.get("cpu.max") == "10000 50000"


def test_memory_and_swap_together_become_swap_alone(files: Files) -> None:
    limits = Limits(memory=MIB, memory_swap=3 * MIB)
    assert files.applied(limits, "memory.max", "memory.swap.max") == [f"{MIB}", f"{2 * MIB}"]

    limits = Limits(memory=MIB, memory_swap=MIB)
    assert files.applied(limits, "memory.swap.max") == ["0"]

    limits = Limits(memory=MIB, memory_swap=-1)
    assert files.applied(limits, "memory.swap.max") == ["max"]


def test_memory_alone_keeps_the_sum_that_was_promised(files: Files) -> None:
    files.set("memory.max", f"{4 * MIB}")
    files.set("memory.swap.max", f"{4 * MIB}")

    files.group.update(Limits(memory=6 * MIB))

    assert files.get("memory.swap.max") == f"{2 * MIB}"
    with pytest.raises(RefusedLimitError, match="memory_swap"):
        files.group.update(Limits(memory=16 * MIB))


def test_a_sum_without_a_memory_limit_is_refused(files: Files) -> None:
    with pytest.raises(RefusedLimitError, match="memory_swap"):
        files.group.apply(Limits(memory_swap=MIB))


def test_memory_below_what_is_in_use_is_refused_not_killed_for(files: Files) -> None:
    files.set("memory.current", f"{8 * MIB}")

    with pytest.raises(RefusedLimitError) as caught:
        files.group.update(Limits(memory=MIB))

    assert caught.value.errno == errno.EBUSY
    assert files.get("memory.max") == "max\n"


def test_what_version_2_does_not_have_is_said(files: Files) -> None:
    (files.base / "one" / "memory.swap.max").unlink()
    (files.base / "one" / "io.weight").unlink()

    warnings = files.group.apply(
        Limits(
            memory=MIB,
            memory_swap=2 * MIB,
            oom_kill_disable=True,
            memory_swappiness=5,
            kernel_memory=MIB,
            blkio_weight=100,
        )
    )

    said = " ".join(warnings)
    assert len(warnings) == 5
    for word in ("without swap", "OomKillDisable", "wappiness", "kernel memory", "Weight"):
        assert word in said


def test_cpus_outside_the_parent_s_are_refused_although_the_kernel_would_take_them(
    files: Files,
) -> None:
    with pytest.raises(RefusedLimitError, match="requested 2-9, available: 0-3"):
        files.group.apply(Limits(cpuset_cpus="2-9"))


def test_a_missing_controller_refuses_before_anything_is_written(tmp_path: Path) -> None:
    files = Files(tmp_path)
    tree = replace(files.layout.unified or pytest.fail(), controllers=frozenset({"pids"}))
    group = replace(files.layout, unified=tree).group("/one")

    with pytest.raises(UnsupportedLimitError, match="memory cannot be enforced"):
        group.apply(Limits(pids=5, memory=MIB))

    assert files.get("pids.max") == "max\n"


def test_device_rules_without_privilege_are_said_to_be_unenforced(tmp_path: Path) -> None:
    files = Files(tmp_path, privileged=False)

    assert "not enforced" in files.group.apply(Limits(devices=DEFAULT_DEVICES))[0]


def test_a_size_that_is_no_page_size_cannot_name_another_file(files: Files) -> None:
    with pytest.raises(RefusedLimitError):
        files.group.apply(Limits(hugetlb=(("../2MB", 1),)))


@pytest.mark.parametrize(
    ("shares", "weight"), [(0, 100), (2, 1), (1024, 100), (262144, 10000), (1, 1), (10**9, 10000)]
)
def test_shares_become_a_weight(shares: int, weight: int) -> None:
    assert weight_of_shares(shares) == weight


def test_more_shares_are_never_less_weight() -> None:
    weights = [weight_of_shares(shares) for shares in range(2, 262145, 97)]

    assert weights == sorted(weights)


@pytest.mark.parametrize(("blkio", "weight"), [(10, 1), (1000, 10000), (5, 1), (2000, 10000)])
def test_block_weights_are_scaled(blkio: int, weight: int) -> None:
    assert io_weight_of(blkio) == weight


# --- what is read -----------------------------------------------------------------------------


def test_statistics_are_read(files: Files) -> None:
    files.set("memory.max", f"{MIB}")
    files.set("pids.max", "10")

    stats = files.group.stats()

    assert (stats.cpu.total_ns, stats.cpu.user_ns, stats.cpu.system_ns) == (30000, 20000, 10000)
    assert (stats.cpu.periods, stats.cpu.throttled_periods, stats.cpu.throttled_ns) == (5, 2, 7000)
    memory = stats.memory
    assert (memory.usage, memory.limit, memory.max_usage, memory.swap) == (4096, MIB, 8192, 5)
    assert (memory.rss, memory.cache, memory.inactive_file) == (1, 2, 3)
    assert (memory.failcnt, memory.oom_kills, files.group.oom_kills()) == (6, 1, 1)
    assert (stats.pids.current, stats.pids.limit) == (2, 10)
    assert stats.io[0].write_ios == 4
    assert stats.pressure["memory"].some.total_us == 9


def test_oom_events_wake_the_watcher(files: Files) -> None:
    descriptor = files.group.open_oom_events()
    assert descriptor is not None
    try:
        with pytest.raises(BlockingIOError):
            os.read(descriptor, 4096)

        files.set("memory.events", "oom_kill 2\n")

        assert os.read(descriptor, 4096)
    finally:
        os.close(descriptor)


# --- the real tree ----------------------------------------------------------------------------


@pytest.fixture
def layout() -> Iterator[Layout]:
    found = detect()
    tree = found.unified
    if tree is None or not tree.writable or os.geteuid() != 0:
        pytest.skip("no writable version 2 control groups here")
    control = Path(tree.base, "cgroup.subtree_control")
    before = set(control.read_text().split())
    yield replace(found, mode=Mode.V2, hierarchies=(), prepared=set())
    for name in set(control.read_text().split()) - before:
        control.write_text(f"-{name}")


@pytest.fixture
def parent(layout: Layout) -> Iterator[str]:
    path = f"/tare-test-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        yield path
    finally:
        group = layout.group(path)
        group.kill()
        group.remove()


@pytest.fixture
def group(layout: Layout, parent: str) -> GroupV2:
    made = layout.group(f"{parent}/one")
    made.create()
    assert isinstance(made, GroupV2)
    return made


def ended(child: int) -> int:
    """How a child ended, which must be soon: its code, or minus the signal."""
    pidfd = os.pidfd_open(child)
    try:
        assert select.select([pidfd], [], [], 10)[0], "the process is still alive"
    finally:
        os.close(pidfd)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextlib.contextmanager
def process_in(group: GroupV2) -> Iterator[int]:
    """A child in the group that waits to be killed."""
    [join] = group.open_join()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(join, b"0")
            os.write(writer, b"1")
            while True:
                signal.pause()
        finally:
            os._exit(99)
    os.close(writer)
    os.close(join)
    try:
        with open(reader, "rb") as pipe:
            assert pipe.read(1) == b"1"
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)


def test_the_real_tree_joins_freezes_thaws_and_kills(group: GroupV2) -> None:
    with process_in(group) as child:
        assert group.pids() == [child]
        group.freeze()
        assert group.frozen()
        group.thaw()
        assert not group.frozen()
        group.kill()
        code = ended(child)

    assert code == -signal.SIGKILL


def test_without_cgroup_kill_each_process_is_killed(
    group: GroupV2, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(path: str, *values: bytes) -> None:
        if path.endswith("/cgroup.kill"):  # as before Linux 5.14
            raise FileNotFoundError(path)
        Path(path).write_bytes(b"".join(values))

    monkeypatch.setattr("tare.kernel.cgroup_v2.write_value", missing)
    with process_in(group) as child:
        group.kill()
        code = ended(child)

    assert code == -signal.SIGKILL
    assert not group.frozen()


def test_a_child_is_born_in_the_directory(group: GroupV2) -> None:
    directory = group.open_directory()
    assert directory is not None
    try:
        child, pidfd = spawn(0, cgroup=directory)
        if child == 0:
            while True:
                signal.pause()
        os.close(pidfd)
        members = group.pids()
    finally:
        os.close(directory)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)

    assert members == [child]


def test_the_real_tree_nests_and_is_removed_from_below(
    layout: Layout, parent: str, group: GroupV2
) -> None:
    layout.group(f"{group.path}/a/b").create()
    assert group.subgroups() == ["a"]

    layout.group(parent).remove()

    assert not group.exists()


def test_a_group_in_use_is_not_made_again(layout: Layout, group: GroupV2) -> None:
    with process_in(group), pytest.raises(FileExistsError, match="in use"):
        layout.group(group.path).create()


def test_processes_in_the_parent_keep_it_from_handing_limits_down(
    layout: Layout, parent: str, group: GroupV2
) -> None:
    tree = layout.unified
    if tree is None or not tree.controllers:
        pytest.skip("no controller is on the version 2 tree")
    crowded = layout.group(f"{parent}/crowded")
    crowded.create()
    assert isinstance(crowded, GroupV2)
    with process_in(crowded), pytest.raises(OSError, match="keep it from handing down") as caught:
        replace(layout, prepared=set()).group(f"{crowded.path}/inner").create()

    assert caught.value.errno == errno.EBUSY


def test_room_is_made_by_moving_the_processes_into_a_leaf(layout: Layout, group: GroupV2) -> None:
    assert layout.unified is not None
    unit = replace(layout, unified=replace(layout.unified, base=group.directory), prepared=set())
    with process_in(group) as child:
        unit.make_room("engine")

        assert Path(group.directory, "cgroup.procs").read_text() == ""
        assert Path(group.directory, "engine", "cgroup.procs").read_text() == f"{child}\n"
        unit.group("/work").create()


def test_a_real_controller_is_handed_down_and_limits(layout: Layout, group: GroupV2) -> None:
    if not Path(group.directory, "hugetlb.2MB.max").exists():
        pytest.skip("hugetlb is not on the version 2 tree")

    group.apply(Limits(hugetlb=(("2MB", 4 * MIB),)))

    assert Path(group.directory, "hugetlb.2MB.max").read_text().strip() == str(4 * MIB)


def test_device_rules_are_put_in_force_by_a_program(group: GroupV2) -> None:
    try:
        group.apply(Limits(devices=DEFAULT_DEVICES))
    except UnsupportedLimitError as error:
        pytest.skip(str(error.__cause__))
    [join] = group.open_join()
    child = os.fork()
    if child == 0:
        try:
            os.write(join, b"0")
            os.close(os.open("/dev/null", os.O_RDWR))
            os.open("/dev/kmsg", os.O_RDONLY)
        except OSError as error:
            os._exit(error.errno or 255)
        os._exit(0)
    os.close(join)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == errno.EPERM
