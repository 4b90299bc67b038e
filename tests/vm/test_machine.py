"""What a specification becomes as a machine, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest

from tare.errors import InvalidError, UnsupportedError
from tare.kernel.interfaces import Interface
from tare.model.spec import (
    ContainerSpec,
    Device,
    Isolation,
    Mount,
    MountKind,
    Namespaces,
    ProcessSpec,
    Resources,
    Security,
)
from tare.vm import machine
from tare.vm.machine import Boot, Disks

_SPEC = ContainerSpec(
    image="busybox",
    image_id="sha256:" + "0" * 64,
    process=ProcessSpec(args=("sh",)),
    isolation=Isolation.VM,
)
_DISKS = Disks(layers=["/l/a.erofs", "/l/b.erofs"], upper="/w/upper")
_BOOT = Boot(kernel="/k/vmlinux", initramfs="/k/initramfs", tsc_khz=2_596_100)


def words(**changes: object) -> list[str]:
    """QEMU's command line for the plain specification with *changes*."""
    spec = dataclasses.replace(_SPEC, **changes)  # type: ignore[arg-type]  # the test's own words
    return machine.arguments(spec, _DISKS, _BOOT)


@pytest.mark.attack("A49")
def test_qemu_gets_nothing_by_default_and_its_own_filter() -> None:
    line = " ".join(words())

    assert "-nodefaults -no-user-config" in line
    assert (
        "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny" in line
    )
    for absent in ("usb-", "floppy", "vga", "-netdev user", "-qmp", "-vnc", "-hda", "virtfs"):
        assert absent not in line
    assert "-monitor none" in line


@pytest.mark.attack("A49")
def test_every_disk_s_format_is_named_and_the_image_s_are_read_only() -> None:
    drives = [word for word in words() if word.startswith("driver=")]

    assert len(drives) == 3
    assert all(drive.startswith("driver=raw,") for drive in drives)
    assert [("read-only=on" in drive) for drive in drives] == [True, True, False]
    assert not any("qcow" in word or "backing" in word for word in words())


@pytest.mark.attack("A49")
def test_the_sandbox_gives_qemu_no_privilege_and_only_its_files() -> None:
    privileged = dataclasses.replace(_SPEC, security=Security(privileged=True, cap_add=("ALL",)))
    spec = machine.sandbox_spec(privileged, _DISKS, _BOOT, directory="/w", package="/p/tare")

    assert spec.security == Security(cap_drop=("ALL",), no_new_privileges=True)
    assert spec.namespaces == Namespaces(network="none")
    assert spec.read_only
    assert spec.devices == ()
    writable = {m.source for m in spec.mounts if m.kind is MountKind.BIND and not m.read_only}
    assert writable == {"/w/upper", "/w/door"}
    sources = {m.source for m in spec.mounts if m.source}
    assert not any(source in ("/", "/etc", "/root", "/usr") for source in sources)


def test_a_link_is_a_descriptor_and_its_address_the_guest_s() -> None:
    link = Interface(
        parent="br0", host_name="tv1", mac="02:42:ac:11:00:02", addresses=("172.17.0.2/16",),
        gateways=("172.17.0.1",), routes=(("10.0.0.0/8", "172.17.0.9"),),
    )  # fmt: skip
    line = machine.arguments(_SPEC, _DISKS, _BOOT, [link])

    assert "tap,id=net0,fd=@link0" in line
    assert "virtio-net-device,netdev=net0,mac=02:42:ac:11:00:02" in line
    assert not any("script" in word or "ifname" in word for word in line)


def test_a_link_that_a_machine_cannot_have_is_refused() -> None:
    link = Interface(parent="eth0", kind="macvlan", mac="02:42:ac:11:00:02")

    with pytest.raises(UnsupportedError, match="macvlan"):
        machine.check(_SPEC, 1, [link])
    with pytest.raises(UnsupportedError, match="a rate"):
        machine.check(_SPEC, 1, [dataclasses.replace(link, kind="veth", rate=1000)])


def test_memory_and_processors_are_what_was_asked_for() -> None:
    line = words(resources=Resources(memory=300 << 20, nano_cpus=1_500_000_000))

    assert line[line.index("-m") + 1] == "300M"
    assert line[line.index("-smp") + 1] == "2"


def test_qemu_s_own_memory_is_not_taken_from_the_guest_s() -> None:
    limited = dataclasses.replace(_SPEC, resources=Resources(memory=256 << 20))

    around = machine.bare(limited).resources

    assert around.memory is not None
    assert around.memory > 256 << 20
    assert machine.bare(_SPEC).resources.memory is None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"namespaces": Namespaces(pid="host")}, "--pid host"),
        ({"namespaces": Namespaces(ipc="host")}, "--ipc host"),
        ({"namespaces": Namespaces(user="host")}, "--userns host"),
        ({"namespaces": Namespaces(network="host")}, "--network host"),
        ({"devices": (Device(host_path="/dev/fuse", target="/dev/fuse"),)}, "--device /dev/fuse"),
        ({"init": True}, "--init"),
        ({"resources": Resources(pids=10)}, "--pids-limit"),
        ({"resources": Resources(oom_kill_disable=True)}, "--oom-kill-disable"),
        ({"security": Security(seccomp="{}")}, "--security-opt seccomp"),
        (
            {
                "mounts": (
                    Mount(kind=MountKind.BIND, source="/srv", target="/a", propagation="rshared"),
                )
            },
            "/srv for /a",
        ),
    ],
)
def test_what_a_machine_does_not_have_is_refused_by_name(
    changes: dict[str, object], named: str
) -> None:
    spec = dataclasses.replace(_SPEC, **changes)  # type: ignore[arg-type]  # the test's own words

    with pytest.raises(UnsupportedError, match="virtual machine") as refused:
        machine.check(spec, 1)

    assert named in str(refused.value)


def test_too_many_layers_and_too_little_memory_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="99 layers"):
        machine.check(_SPEC, 99)
    with pytest.raises(InvalidError, match="at least 128 MiB"):
        machine.check(dataclasses.replace(_SPEC, resources=Resources(memory=8 << 20)), 1)


def test_an_endless_command_is_refused_before_the_kernel_does() -> None:
    process = {
        "args": ["x" * 200_000], "env": [], "cwd": "/", "user": "", "groups": [], "tty": False,
        "stdin": False, "capabilities": 0, "no_new_privileges": True, "seccomp": "",
        "id_limit": 0, "rlimits": [], "oom_score_adj": None,
    }  # fmt: skip

    with pytest.raises(InvalidError, match="too long"):
        machine.exec_words(process)  # type: ignore[arg-type]  # all of its keys are there
