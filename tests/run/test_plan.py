"""Decisions without a kernel: what a specification becomes, and what can never be."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tare.errors import InvalidError, TareError, UnsupportedError
from tare.kernel import confine, mount, process
from tare.model.spec import (
    ContainerSpec,
    ExecSpec,
    Mount,
    MountKind,
    Namespaces,
    ProcessSpec,
    Resources,
    Security,
    SecurityProfile,
    Ulimit,
)
from tare.run import walls
from tare.run.plan import Host, Place, capabilities, describe, plan, plan_exec

HOST = Host(
    kernel=(6, 18), machine="x86_64", last_capability=40, cgroup_version=1,
    cgroup_controllers=("cpu", "memory"), nofile_hard=20000, init="/usr/bin/tini-static",
)  # fmt: skip
PLACE = Place(
    id="0" * 64, name="x", layers=("/l",), state_dir="/s", run_dir="/r", cgroup="tare/x",
    id_block=(0x60000000, 65536),
)  # fmt: skip
SPEC = ContainerSpec(image="i", image_id="i", process=ProcessSpec(args=("true",)))


def _names(mask: int) -> set[str]:
    return {name for bit, name in enumerate(confine.CAPABILITIES) if mask >> bit & 1}


def test_the_default_is_eleven_capabilities_and_every_namespace() -> None:
    made = plan(SPEC, PLACE, HOST)

    assert _names(made["process"]["capabilities"]) == {
        "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETFCAP",
        "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
    }  # fmt: skip
    assert made["flags"] == walls.OWN_NAMESPACES
    assert made["ordinary"]
    assert made["process"]["no_new_privileges"]
    assert base64.b64decode(made["process"]["seccomp"])
    assert made["root"]["attributes"] == mount.NODEV | mount.NOSUID
    assert made["cgroup"]["limits"]["pids"] == 2048


def test_hardened_has_no_capability_and_a_read_only_root() -> None:
    spec = replace(SPEC, security=Security(profile=SecurityProfile.HARDENED))

    made = plan(spec, PLACE, HOST)

    assert made["process"]["capabilities"] == 0
    assert made["operations"][-1] == {"op": "readonly_root"}
    assert made["cgroup"]["limits"]["pids"] == 512
    assert not made["ordinary"]


def test_docker_compat_has_dockers_fourteen_and_no_more_walls_than_docker() -> None:
    spec = replace(SPEC, security=Security(profile=SecurityProfile.DOCKER_COMPAT))

    made = plan(spec, PLACE, HOST)

    assert len(_names(made["process"]["capabilities"])) == 14
    assert not made["process"]["no_new_privileges"]


def test_privileged_takes_the_walls_down_and_the_hosts_ids() -> None:
    made = plan(replace(SPEC, security=Security(privileged=True)), PLACE, HOST)

    operations = {operation["op"] for operation in made["operations"]}
    assert made["id_map"] is None
    assert not made["flags"] & process.CLONE_NEWUSER
    assert "mask" not in operations
    assert made["process"]["seccomp"] == ""
    assert made["all_devices"]


@pytest.mark.attack("A12")
def test_all_that_moby_and_podman_mask_is_masked() -> None:
    made = plan(SPEC, PLACE, HOST)

    (masked,) = (o["targets"] for o in made["operations"] if o["op"] == "mask")
    assert {
        "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
        "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list",
        "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
    } <= set(masked)  # fmt: skip


@pytest.mark.attack("A10")
@pytest.mark.parametrize(
    ("add", "drop", "expected"),
    [
        ((), ("ALL",), set()),
        (("NET_ADMIN",), ("ALL",), {"NET_ADMIN"}),
        (("ALL",), (), set(confine.CAPABILITIES)),
        (("ALL",), ("SYS_ADMIN",), set(confine.CAPABILITIES) - {"SYS_ADMIN"}),
    ],
)
def test_capabilities_are_added_and_dropped_as_asked(
    add: tuple[str, ...], drop: tuple[str, ...], expected: set[str]
) -> None:
    assert capabilities(Security(cap_add=add, cap_drop=drop), 40) == expected


@pytest.mark.attack("A10")
@pytest.mark.parametrize("name", ["NET_ADMINN", "CAP_CHOWN", "net_admin", ""])
def test_an_unknown_capability_is_refused(name: str) -> None:
    with pytest.raises(InvalidError, match="unknown capability"):
        capabilities(Security(cap_add=(name,)), 40)


@pytest.mark.attack("A05")
@pytest.mark.parametrize(
    "target", ["/proc", "/proc/", "//proc/sys", "/proc/self/attr", "/", "", "relative", "/a/../b"]
)
def test_nothing_may_be_mounted_on_proc_or_the_root_or_outside(target: str) -> None:
    spec = replace(SPEC, mounts=(Mount(kind=MountKind.TMPFS, target=target),))

    with pytest.raises(InvalidError):
        plan(spec, PLACE, HOST)


def test_a_file_of_proc_that_runc_lets_be_replaced_may_be() -> None:
    bind = Mount(kind=MountKind.BIND, source="/x", target="/proc/cpuinfo")

    assert plan(replace(SPEC, mounts=(bind,)), PLACE, HOST)["binds"][0]["source"] == "/x"


def test_parents_are_mounted_before_their_children() -> None:
    mounts = tuple(
        Mount(kind=MountKind.TMPFS, target=target) for target in ("/a/b/c", "/a", "/a/b")
    )

    made = plan(replace(SPEC, mounts=mounts), PLACE, HOST)

    order = [o["target"] for o in made["operations"] if o.get("copy_up")]
    assert order == ["/a", "/a/b", "/a/b/c"]


def test_a_mount_of_the_user_replaces_a_default_one() -> None:
    own = Mount(kind=MountKind.TMPFS, target="/dev/shm", tmpfs_size=1 << 20)

    made = plan(replace(SPEC, mounts=(own,)), PLACE, HOST)

    (shm,) = (o for o in made["operations"] if o.get("target") == "/dev/shm")
    assert ("size", str(1 << 20)) in shm["options"]


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("net.core.somaxconn", True),
        ("kernel.shmmax", True),
        ("fs.mqueue.msg_max", True),
        ("kernel.core_pattern", False),
        ("vm.overcommit_memory", False),
        ("kernel.hostname", True),
    ],
)
def test_only_sysctls_of_a_namespace_may_be_set(name: str, good: bool) -> None:
    spec = replace(SPEC, sysctls={name: "1"})

    if good:
        plan(spec, PLACE, HOST)
    else:
        with pytest.raises(InvalidError, match="not in a namespace"):
            plan(spec, PLACE, HOST)


def test_a_network_sysctl_is_refused_on_the_hosts_network() -> None:
    spec = replace(SPEC, sysctls={"net.core.somaxconn": "1"}, namespaces=Namespaces(network="host"))

    with pytest.raises(InvalidError, match="host's namespace"):
        plan(spec, PLACE, HOST)


def test_ulimits_have_defaults_and_bounds() -> None:
    made = plan(SPEC, PLACE, HOST)
    wrong = replace(SPEC, ulimits=(Ulimit(name="nofile", soft=5, hard=4),))
    unknown = replace(SPEC, ulimits=(Ulimit(name="nofiles", soft=5, hard=5),))

    assert (7, 1024, 20000) in made["process"]["rlimits"]
    assert (4, 0, 0) in made["process"]["rlimits"]
    with pytest.raises(InvalidError, match="less than or equal"):
        plan(wrong, PLACE, HOST)
    with pytest.raises(InvalidError, match="invalid ulimit type"):
        plan(unknown, PLACE, HOST)


def test_an_init_is_bound_and_put_in_front() -> None:
    spec = replace(SPEC, init=True)

    assert plan(spec, PLACE, HOST)["process"]["args"] == ["/sbin/docker-init", "--", "true"]
    with pytest.raises(UnsupportedError, match="static init"):
        plan(spec, PLACE, replace(HOST, init=""))


def test_variables_of_the_user_come_over_the_defaults() -> None:
    program = ProcessSpec(args=("true",), env=("PATH=/x", "A=1", "A=2"), tty=True)

    environment = plan(replace(SPEC, process=program), PLACE, HOST)["process"]["env"]

    assert "PATH=/x" in environment
    assert "TERM=xterm" in environment
    assert [e for e in environment if e.startswith("A=")] == ["A=2"]


@pytest.mark.attack("A20")
def test_an_exec_has_the_walls_of_its_container() -> None:
    first = plan(SPEC, PLACE, HOST)["process"]
    exec_plan = plan_exec(SPEC, ExecSpec(process=ProcessSpec(args=("sh",))), PLACE, HOST)

    second = exec_plan["process"]

    for key in ("capabilities", "no_new_privileges", "seccomp", "id_limit", "rlimits"):
        assert first[key] == second[key]


def test_without_root_nothing_is_asked_that_root_would_have_to_do() -> None:
    made = plan(
        SPEC, replace(PLACE, id_block=(0, 65536)), replace(HOST, rootless=True, pids_limit=False)
    )

    (dev,) = (o for o in made["operations"] if o["op"] == "dev")
    assert "null" in dev["targets"]
    assert "pids" not in made["cgroup"]["limits"]
    assert not made["ordinary"]


def test_a_plan_can_be_read_out() -> None:
    text = "\n".join(
        describe(plan(replace(SPEC, resources=Resources(memory=1 << 26)), PLACE, HOST))
    )

    for words in ("user ids 0-65535 are", "filesystem proc /proc", "seccomp on", "run true"):
        assert words in text


@given(
    st.builds(
        Mount,
        kind=st.sampled_from([MountKind.BIND, MountKind.TMPFS]),
        source=st.text(max_size=20),
        target=st.text(alphabet="/.ab\0procdev", max_size=30),
        options=st.lists(st.text(max_size=12), max_size=3).map(tuple),
    )
)
def test_any_mount_is_planned_or_refused_with_a_sentence(wanted: Mount) -> None:
    try:
        made = plan(replace(SPEC, mounts=(wanted,)), PLACE, HOST)
    except TareError as error:
        assert str(error)
        return

    targets = [o["target"] for o in made["operations"] if "target" in o]
    assert all(target.startswith("/") and ".." not in target.split("/") for target in targets)


@pytest.mark.attack("A08")
def test_only_control_groups_of_its_own_are_shown() -> None:
    host = replace(HOST, cgroup_controllers=("cpu+cpuacct", "cpuset", "memory", "name=systemd"))
    pinned = replace(SPEC, resources=Resources(cpuset_cpus="0"))

    def shown(spec: ContainerSpec) -> str:
        (operation,) = (o for o in plan(spec, PLACE, host)["operations"] if o["op"] == "cgroup_v1")
        return operation["name"]

    assert shown(SPEC) == "cpu+cpuacct,memory"
    assert shown(pinned) == "cpu+cpuacct,cpuset,memory"
