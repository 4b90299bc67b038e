"""Detection: what a host's mounts and a process's position come to, and the values of limits."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tare.kernel.cgroup import (
    DEFAULT_DEVICES,
    DeviceRule,
    Layout,
    Limits,
    Mode,
    RefusedLimitError,
    Ungrouped,
    UnsupportedLimitError,
    detect,
)
from tare.kernel.cgroup_limits import FIELDS_OF, check_cpu_list, parse_cpu_list


class Host:
    """A tree of plain files that looks like a host's control groups and /proc."""

    def __init__(self, root: Path) -> None:
        self.root = root / "cgroup"
        self.proc = root / "proc"
        self.run = root / "run"
        self.root.mkdir()
        (self.proc / "self").mkdir(parents=True)
        self.run.mkdir()
        self._mounts: list[str] = []
        self._positions: list[str] = []

    def directory(self, path: str, controllers: str = "") -> Path:
        """Make a group at *path* below the root."""
        place = self.root / path.strip("/")
        place.mkdir(parents=True, exist_ok=True)
        for name in ("cgroup.procs", "cgroup.subtree_control", "cgroup.type"):
            (place / name).touch()
        (place / "cgroup.controllers").write_text(controllers)
        return place

    def mount(self, name: str, options: str, *, version: int = 1, shown: str = "/") -> None:
        """Say that a hierarchy is mounted at *name*."""
        point = str(self.root / name) if name else str(self.root)
        kind = "cgroup2" if version == 2 else "cgroup"
        number = 30 + len(self._mounts)
        self._mounts.append(
            f"{number} 23 0:{number} {shown} {point} rw,relatime shared:1 - {kind} {kind} {options}"
        )

    def at(self, names: str, path: str) -> None:
        """Say where this process is."""
        self._positions.append(f"{len(self._positions)}:{names}:{path}")

    def detect(self, *, privileged: bool = True) -> Layout:
        """Detect it."""
        (self.proc / "self" / "mountinfo").write_text("\n".join(self._mounts) + "\n")
        (self.proc / "self" / "cgroup").write_text("\n".join(self._positions) + "\n")
        return detect(str(self.root), str(self.proc), run=str(self.run), privileged=privileged)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def v2_host(host: Host, position: str, controllers: str = "cpu io memory pids") -> None:
    host.directory("", controllers)
    host.mount("", "rw,nsdelegate", version=2)
    host.at("", position)


def test_a_version_2_host_gives_root_the_top(host: Host) -> None:
    v2_host(host, "/user.slice/user-0.slice/session-1.scope")
    host.directory("user.slice/user-0.slice/session-1.scope")

    layout = host.detect()

    assert layout.mode is Mode.V2
    assert layout.unified is not None
    assert layout.unified.base == str(host.root)
    assert {"cpu", "blkio", "memory", "pids", "devices", "kill"} <= layout.controllers
    assert "cpuset" not in layout.controllers


def test_a_version_1_host_lists_each_hierarchy_once_with_its_controllers(host: Host) -> None:
    for name, options in (("cpu,cpuacct", "rw,cpu,cpuacct"), ("memory", "rw,memory")):
        host.directory(name)
        host.mount(name, options)
    host.mount("memory", "rw,memory")
    host.at("cpu,cpuacct", "/")
    host.at("memory", "/")

    layout = host.detect()

    assert layout.mode is Mode.V1
    assert [sorted(h.controllers) for h in layout.hierarchies] == [["cpu", "cpuacct"], ["memory"]]
    cpu = layout.v1("cpuacct")
    assert cpu is not None
    assert cpu.base.endswith("cpu,cpuacct")


def test_version_1_controllers_with_a_version_2_mount_are_hybrid(host: Host) -> None:
    host.directory("pids")
    host.mount("pids", "rw,pids")
    host.at("pids", "/")
    host.directory("unified", "hugetlb")
    host.mount("unified", "rw", version=2)
    host.at("", "/")

    layout = host.detect()

    assert layout.mode is Mode.HYBRID
    assert layout.controllers == {"pids", "hugetlb", "freezer", "kill"}


def test_systemd_s_named_hierarchy_alone_does_not_make_a_host_hybrid(host: Host) -> None:
    host.directory("systemd")
    host.mount("systemd", "rw,name=systemd")
    host.at("name=systemd", "/")
    host.directory("unified", "memory pids")
    host.mount("unified", "rw", version=2)
    host.at("", "/")

    assert host.detect().mode is Mode.V2


def test_a_host_without_control_groups_says_so(host: Host) -> None:
    layout = host.detect()

    assert layout.mode is Mode.NONE
    assert not layout.writable
    assert isinstance(layout.group("/a"), Ungrouped)


@pytest.mark.parametrize("delegated", [False, True])
def test_root_takes_the_top_whatever_unit_it_is_in(host: Host, delegated: bool) -> None:
    # With workloads below its unit systemd could not start the daemon again: EBUSY.
    v2_host(host, "/system.slice/tared.service")
    (host.run / "systemd" / "system").mkdir(parents=True)
    unit = host.directory("system.slice/tared.service", "memory")
    if delegated:
        with contextlib.suppress(OSError):
            os.setxattr(unit, "user.delegate", b"1")

    layout = host.detect()

    assert layout.unified is not None
    assert layout.unified.base == str(host.root)


def test_a_user_gets_the_unit_around_its_own_group(host: Host) -> None:
    scope = "user.slice/user-1000.slice/user@1000.service/app.slice/run-1.scope"
    v2_host(host, f"/{scope}/engine")
    host.directory(f"{scope}/engine")
    unit = host.directory(scope, "memory pids")

    layout = host.detect(privileged=False)

    assert layout.unified is not None
    assert layout.unified.base == str(unit)
    assert layout.controllers == {"memory", "pids", "freezer", "kill"}


def test_a_limit_that_was_not_delegated_is_refused_with_what_to_do(host: Host) -> None:
    v2_host(host, "/user.slice/a.scope")
    host.directory("user.slice/a.scope", "memory pids")
    layout = host.detect(privileged=False)

    with pytest.raises(UnsupportedLimitError, match=r"nano_cpus.*not delegated") as caught:
        layout.group("/x").apply(Limits(nano_cpus=1_000_000_000))

    assert caught.value.limit == "nano_cpus"
    assert caught.value.controller == "cpu"
    assert "Delegate=cpu cpuset io memory pids" in caught.value.hint


def test_a_mount_that_shows_a_subtree_is_followed_from_its_root(host: Host) -> None:
    # As in a container without a cgroup namespace: the mount's top is /docker/abc.
    host.directory("pids/inner")
    host.mount("pids", "rw,pids", shown="/docker/abc")
    host.at("pids", "/docker/abc/inner")

    layout = host.detect(privileged=False)

    assert layout.hierarchies[0].base == str(host.root / "pids" / "inner")


@pytest.mark.parametrize("position", ["/../other", "/docker/abcd", "/docker", "/"])
def test_a_position_outside_the_mount_is_not_used(host: Host, position: str) -> None:
    host.directory("pids/d")
    host.mount("pids", "rw,pids", shown="/docker/abc")
    host.at("pids", position)

    layout = host.detect(privileged=False)

    assert not layout.writable


def test_mount_points_with_escaped_spaces_are_found(tmp_path: Path) -> None:
    place = tmp_path / "a b"
    place.mkdir()
    host = Host(place)
    host.directory("pids")
    host.mount("pids", "rw,pids")
    host._mounts = [line.replace("a b", "a\\040b") for line in host._mounts]
    host.at("pids", "/")

    assert host.detect().mode is Mode.V1


@pytest.mark.parametrize(
    "text", ["", "\n", "x\n", "1:2\n", "30 23 0:1 / /a rw - cgroup\n", " - \n"]
)
def test_malformed_files_of_proc_do_not_break_detection(host: Host, text: str) -> None:
    (host.proc / "self" / "mountinfo").write_text(text)
    (host.proc / "self" / "cgroup").write_text(text)

    layout = detect(str(host.root), str(host.proc), run=str(host.run))

    assert layout.mode is Mode.NONE


@pytest.mark.parametrize("path", ["", "/", "/..", "/a/../b", "/a//b", "/.a", "/a b", "/a\n", "/é"])
def test_a_path_that_is_not_plain_names_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="not a control group path"):
        detect().group(path)


def test_room_is_made_in_a_delegated_unit(host: Host) -> None:
    v2_host(host, "/a.scope")
    unit = host.directory("a.scope", "memory")
    (unit / "engine").mkdir()
    (unit / "engine" / "cgroup.procs").touch()
    (unit / "cgroup.procs").write_text("7\n")
    layout = host.detect(privileged=False)

    # The plain file never empties as the kernel's would; what counts is where the pid went.
    with pytest.raises(OSError, match="keep appearing"):
        layout.make_room()

    assert (unit / "engine" / "cgroup.procs").read_text() == "7"


# --- values -----------------------------------------------------------------------------------


def test_every_limit_belongs_to_a_controller() -> None:
    known = {name for names in FIELDS_OF.values() for name in names}

    assert known == {f.name for f in dataclasses.fields(Limits)} - {"kernel_memory"}


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0", {0}), ("0-2", {0, 1, 2}), ("0,2-3\n", {0, 2, 3}), (" 1 , 3 ", {1, 3})],
)
def test_a_cpu_list_is_parsed(text: str, numbers: set[int]) -> None:
    assert parse_cpu_list(text) == numbers


@pytest.mark.parametrize("text", ["", "a", "1-", "3-1", "1,,2", "-1", "1-2-3", "9" * 9, "٣"])
def test_a_malformed_cpu_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="range"):
        parse_cpu_list(text)


def test_cpus_that_are_not_there_are_refused_in_words_people_know() -> None:
    with pytest.raises(RefusedLimitError, match="requested 0-9, available: 0-1"):
        check_cpu_list("cpuset_cpus", "0-9", "0-1\n")


@pytest.mark.parametrize(
    ("limits", "bandwidth"),
    [
        (Limits(), (None, None)),
        (Limits(nano_cpus=1_500_000_000), (150_000, 100_000)),
        (Limits(nano_cpus=0), (-1, None)),
        (Limits(cpu_quota_us=5000), (5000, None)),
        (Limits(cpu_quota_us=5000, cpu_period_us=20000), (5000, 20000)),
    ],
)
def test_cpus_become_a_quota_and_a_period(
    limits: Limits, bandwidth: tuple[int | None, int | None]
) -> None:
    assert limits.cpu_bandwidth == bandwidth


def test_limits_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(RefusedLimitError, match="give one of them"):
        Limits(nano_cpus=1, cpu_quota_us=1000)
    with pytest.raises(RefusedLimitError, match="cannot be less than memory"):
        Limits(memory=2 << 20, memory_swap=1 << 20)


@pytest.mark.parametrize(
    ("type_", "major", "minor", "access"),
    [
        ("x", 1, 3, "r"),
        ("c", -2, 3, "r"),
        ("c", 1 << 12, 3, "r"),
        ("c", 1, 1 << 20, "r"),
        ("c", 1, 3, ""),
        ("c", 1, 3, "x"),
    ],
)
def test_a_device_rule_that_makes_no_sense_is_refused(
    type_: str, major: int, minor: int, access: str
) -> None:
    with pytest.raises(RefusedLimitError, match="no device rule"):
        DeviceRule(True, type_, major, minor, access)


def test_device_rules_are_written_as_the_kernel_reads_them() -> None:
    assert str(DEFAULT_DEVICES[0]) == "a *:* rwm"
    assert {str(r) for r in DEFAULT_DEVICES} >= {"c 1:3 rwm", "c 136:* rwm", "b *:* m"}


# --- this host, as nobody ---------------------------------------------------------------------


@pytest.fixture
def as_nobody() -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    yield


@pytest.mark.usefixtures("as_nobody")
def test_without_privilege_or_delegation_limits_are_refused_and_nothing_else_fails() -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        message = "no error"
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            layout = detect()
            group = layout.group("/x")
            group.create()
            assert not layout.writable
            assert group.open_join() == []
            group.apply(Limits(devices=DEFAULT_DEVICES))
            group.apply(Limits(memory=1 << 30))
        except UnsupportedLimitError as error:
            message = f"{error.limit}: {error.hint}"
        except BaseException as error:
            message = repr(error)
        os.write(writer, message.encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)

    assert said.startswith("memory: let systemd delegate it")
