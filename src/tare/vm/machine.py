"""A specification as a machine: QEMU's command line, the frames to begin with, and its sandbox.

Pure. QEMU runs below `vm.relay` in a sandbox that `run.plan` makes as it makes any: what is here
is the specification of that sandbox. Inside it are the relay, QEMU with the host's libraries
read-only, the kernel, one read-only disk for each layer of the image, and one that is written.

Steps of attack A49, by number: (1) no default device, no configuration of the user's or the
host's; (2) QEMU's own filter; (3) each disk's format named, never guessed; (4) the image's disks
read-only for QEMU and by their mount; (5) no monitor, no socket but the two that it inherits.

Not for: touching the host (vm.kernels, engine.machines).
"""

from __future__ import annotations

import base64
import dataclasses
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tare.errors import InvalidError, UnsupportedError
from tare.kernel import mount
from tare.kernel.interfaces import VETH, Interface
from tare.model.spec import (
    ContainerSpec,
    Device,
    Mount,
    MountKind,
    Namespaces,
    ProcessSpec,
    Resources,
    Security,
    SecurityProfile,
)
from tare.run.sandbox import Bind, Operation, Process, Sandbox
from tare.vm.protocol import MachineFlag, ProgramFlag, Setting, ToGuest, Wish, field, frame

QEMU: Final = "/usr/bin/qemu-system-x86_64"
PYTHON: Final = "/usr/bin/python3"
PYTHON_PATH: Final = "/tare"
DIRECTORY: Final = "/machine"
DEFAULT_MEMORY: Final = 512 << 20
LEAST_MEMORY: Final = 128 << 20
MOST_SHARES: Final = 60
MOST_LAYERS: Final = 18
"""A microvm has 24 places for devices; other devices take up to six."""
_OVERHEAD: Final = 160 << 20
"""What QEMU and the relay need beside the guest's memory: code, emulation's cache, buffers."""
_BOOT: Final = (
    "import sys; sys.path.insert(0, '/tare'); sys.dont_write_bytecode = True; "
    "from tare.vm.relay import main; main(sys.argv[1:])"
)
_HOST_TREES: Final = ("/usr/lib", "/usr/lib64", "/usr/bin", "/usr/share/qemu", "/usr/share/seabios")
_UNLIMITED: Final = (1 << 64) - 1
_NOATIME: Final = 1024  # MS_NOATIME; the other flags have one value in both interfaces


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """What a machine boots with, on this host."""

    kernel: str
    initramfs: str
    tsc_khz: int
    kvm: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Disks:
    """Files of the host that the machine has as disks; layers bottom first."""

    layers: Sequence[str]
    upper: str


@dataclass(frozen=True, slots=True)
class Share:
    """A bind or volume: what the host gives, and where it is in the guest.

    *name* is empty for a directory; a file is shared as that name in an empty one.
    """

    target: str
    bind: Bind
    name: str = ""


def check(spec: ContainerSpec, layers: int, links: Sequence[Interface] = ()) -> None:
    """UnsupportedError naming the first thing asked for that a machine does not have (yet)."""
    names, resources, security = spec.namespaces, spec.resources, spec.security
    asked = {
        "--pid": names.pid,
        "--ipc": names.ipc not in ("", "private", "shareable") and names.ipc,
        "--uts": names.uts,
        "--userns": names.user not in ("", "auto") and names.user,
        "--cgroupns": names.cgroup not in ("", "private") and names.cgroup,
        "--network": names.network not in ("", "default", "none") and names.network,
        "--device": spec.devices and spec.devices[0].host_path,
        "--init": spec.init,
        "--pids-limit": resources.pids is not None and resources.pids > 0 and resources.pids,
        "--oom-kill-disable": resources.oom_kill_disable,
        "--memory-swappiness": resources.memory_swappiness is not None,
        "--memory-reservation": resources.memory_reservation is not None,
        "--device-cgroup-rule": resources.device_cgroup_rules,
        "--security-opt seccomp": security.seccomp not in ("", "unconfined", "compat"),
        "--security-opt tare.families": security.socket_families,
    }
    for flag, value in asked.items():
        if value:
            shown = f" {value}" if isinstance(value, str) else ""
            raise UnsupportedError(
                f"{flag}{shown} cannot be used with a virtual machine",
                hint="leave it out, or run a container (without --vm)",
            )
    for wanted in spec.mounts:
        if wanted.propagation not in ("rprivate", "private"):
            raise UnsupportedError(
                f"{wanted.source} for {wanted.target}: a virtual machine shares no mounts with the"
                f" host ({wanted.propagation})",
                hint="leave the propagation out",
            )
    if layers > MOST_LAYERS:
        raise UnsupportedError(
            f"the image has {layers} layers, and a virtual machine takes at most {MOST_LAYERS}",
            hint="export and import it: that makes one layer of them",
        )
    for link in links:
        if link.kind != VETH or link.rate:
            what = "a rate" if link.rate else link.kind
            raise UnsupportedError(
                f"a virtual machine's link {link.name} cannot have {what}",
                hint="use a network of the driver bridge, without a rate",
            )
    memory_of(spec)


def memory_of(spec: ContainerSpec) -> int:
    """The guest's memory in bytes: ``--memory``, or the default; InvalidError if too little."""
    memory = spec.resources.memory or DEFAULT_MEMORY
    if memory < LEAST_MEMORY:
        raise InvalidError(
            f"a virtual machine needs at least {LEAST_MEMORY >> 20} MiB of memory, and"
            f" {memory >> 20} MiB were asked for",
            hint=f"--memory {LEAST_MEMORY >> 20}m, or more",
        )
    return memory >> 20 << 20


def cpus_of(spec: ContainerSpec) -> int:
    """The guest's processors: as many as ``--cpus`` needs, one if it does not say."""
    resources = spec.resources
    if resources.nano_cpus:
        return max(1, -(-resources.nano_cpus // 1_000_000_000))
    if resources.cpu_quota_us and resources.cpu_quota_us > 0:
        return max(1, -(-resources.cpu_quota_us // (resources.cpu_period_us or 100_000)))
    return 1


# --- QEMU -------------------------------------------------------------------------------------


def arguments(
    spec: ContainerSpec, disks: Disks, boot: Boot, links: Sequence[Interface] = ()
) -> list[str]:
    """QEMU's command line, as it is run inside the sandbox."""
    accelerator = "kvm" if boot.kvm else "tcg"
    command = _base(boot, accelerator, cpus_of(spec), memory_of(spec) >> 20, DIRECTORY)
    command += [
        "-chardev", "socket,id=console,fd=@console",
        "-serial", "chardev:console",
    ]  # fmt: skip
    command += _agent("@agent")
    for number in range(len(disks.layers)):
        command += _disk(f"L{number}", read_only=True)  # (4)
    command += _disk("upper", read_only=False)
    for number, link in enumerate(links):
        # The descriptor of a tap device: QEMU could not make one, and runs no script.
        command += ["-netdev", f"tap,id=net{number},fd=@link{number}"]
        command += ["-device", f"virtio-net-device,netdev=net{number},mac={link.mac}"]
    return command


def probe_arguments(boot: Boot, accelerator: str, agent: int) -> list[str]:
    """A machine without disks or links, on the host's own paths: for `vm.probe`."""
    command = _base(boot, accelerator, 1, LEAST_MEMORY >> 20, "")
    return [*command, "-serial", "null", *_agent(str(agent))]


def _base(boot: Boot, accelerator: str, cpus: int, megabytes: int, directory: str) -> list[str]:
    machine = (
        "microvm,x-option-roms=off,isa-serial=on,rtc=on,pit=on,pic=on,acpi=on,"
        "auto-kernel-cmdline=off,usb=off,graphics=off"
    )
    emulated = accelerator != "kvm"
    return [
        QEMU,
        "-name", "tare",
        "-nodefaults", "-no-user-config", "-no-reboot",  # (1)
        "-display", "none", "-monitor", "none",  # (5)
        "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-machine", machine,
        "-accel", "tcg,tb-size=48" if emulated else "kvm",
        "-cpu", "max" if emulated else "host",
        "-smp", str(cpus),
        "-m", f"{megabytes}M",
        "-bios", "/usr/share/qemu/qboot.rom",
        "-kernel", f"{directory}/kernel" if directory else boot.kernel,
        "-initrd", f"{directory}/initramfs" if directory else boot.initramfs,
        "-append", " ".join(_kernel_words(boot, emulated=emulated)),
        "-global", "virtio-mmio.force-legacy=off",
    ]  # fmt: skip


def _agent(descriptor: str) -> list[str]:
    return [
        "-device", "virtio-serial-device,max_ports=4",
        "-chardev", f"socket,id=agent,fd={descriptor}",
        "-device", "virtserialport,chardev=agent,name=tare.agent",
    ]  # fmt: skip


def _kernel_words(boot: Boot, *, emulated: bool) -> list[str]:
    words = [
        "console=ttyS0", "quiet", "loglevel=4", "rdinit=/init", "panic=-1", "reboot=t",
        "random.trust_cpu=on", "8250.nr_uarts=1", "audit=0", "apparmor=0", "lsm=capability",
        "i8042.noaux", "i8042.nokbd", "cryptomgr.notests",
    ]  # fmt: skip
    if emulated:
        # Calibrating the timer by the clock hangs on a busy host; a wrong value bends time.
        words += [f"tsc_early_khz={boot.tsc_khz}", "no_timer_check"]
    return words


def _disk(serial: str, *, read_only: bool) -> list[str]:
    drive = [
        "driver=raw",  # (3)
        f"node-name={serial}",
        f"read-only={'on' if read_only else 'off'}",
        "discard=unmap",
        "cache.no-flush=off",
        "file.driver=file",
        f"file.filename={DIRECTORY}/{serial}",
        "file.locking=off",
    ]
    return [
        "-blockdev", ",".join(drive),
        "-device", f"virtio-blk-device,drive={serial},serial={serial},discard=on",
    ]  # fmt: skip


# --- the guest --------------------------------------------------------------------------------


def beginning(
    spec: ContainerSpec,
    process: Process,
    operations: Sequence[Operation],
    files: Mapping[str, bytes],
    *,
    links: Sequence[Interface] = (),
    shares: Sequence[Share] = (),
    layers: int,
    entropy: bytes,
    now_ns: int,
) -> bytes:
    """The frames that make a booted guest run its first program."""
    flags = MachineFlag(0)
    if spec.auto_remove:
        flags |= MachineFlag.VOLATILE
    if spec.read_only or spec.security.profile is SecurityProfile.HARDENED:
        flags |= MachineFlag.READ_ONLY
    if spec.security.privileged:
        flags |= MachineFlag.PRIVILEGED
    settings = [
        field(Setting.CLOCK, now_ns),
        field(Setting.ENTROPY, entropy),
        field(Setting.HOSTNAME, spec.hostname),
        field(Setting.LAYERS, layers),
        field(Setting.FLAGS, int(flags)),
        field(Setting.SHM, spec.shm_size),
    ]
    if spec.domainname:
        settings.append(field(Setting.DOMAIN, spec.domainname))
    settings += [
        field(
            Setting.SHARE,
            "\0".join((str(n), one.target, one.name, "ro" if one.bind["read_only"] else "rw")),
        )
        for n, one in enumerate(shares)
    ]
    settings += [field(Setting.NETWORK, _network(link)) for link in links]
    settings += [
        field(Setting.SYSCTL, f"{name}\0{value}") for name, value in _sysctls(spec, operations)
    ]
    for target, content in files.items():
        settings.append(field(Setting.FILE, target.encode() + b"\0" + content))
    taken = {m.target.rstrip("/") for m in spec.mounts}
    for operation in operations:
        if operation["op"] == "filesystem" and operation.get("target", "").rstrip("/") in taken:
            settings.append(_tmpfs(operation))
    configure = frame(ToGuest.CONFIGURE, b"".join(settings))
    return configure + frame(ToGuest.START, program(process))


def _sysctls(spec: ContainerSpec, operations: Sequence[Operation]) -> Iterator[tuple[str, str]]:
    """Those of every container, then the user's: any of them, for the kernel is the guest's own."""
    for operation in operations:
        for name, value in operation.get("values", {}).items():
            yield name, value.replace("MAXGID", "2147483647")
    yield from spec.sysctls.items()


def _network(link: Interface) -> str:
    """An interface as the guest's init reads it (vm/guest/network.c)."""
    words = [link.name, link.mac, str(link.mtu), "1" if link.ipv6 else "0"]
    words += [f"a {address}" for address in link.addresses]
    words += [f"r {destination} {gateway}" for destination, gateway in link.routes]
    words += [f"g {gateway}" for gateway in link.gateways]
    return "".join(f"{word}\0" for word in words)


def _tmpfs(operation: Operation) -> bytes:
    attributes = operation.get("attributes", 0)
    flags = attributes & (mount.RDONLY | mount.NOSUID | mount.NODEV | mount.NOEXEC)
    flags |= _NOATIME if attributes & mount.NOATIME else 0
    options = ",".join(
        name if value is None else f"{name}={value}" for name, value in operation["options"]
    )
    return field(Setting.TMPFS, f"{operation['target']}\0{flags} {options}")


def program(process: Process) -> bytes:
    """The payload of START for a planned program."""
    flags = ProgramFlag(0)
    flags |= ProgramFlag.TTY if process["tty"] else ProgramFlag(0)
    flags |= ProgramFlag.STDIN if process["stdin"] else ProgramFlag(0)
    flags |= ProgramFlag.NO_NEW_PRIVILEGES if process["no_new_privileges"] else ProgramFlag(0)
    wishes = [field(Wish.ARG, argument) for argument in process["args"]]
    wishes += [field(Wish.ENV, item) for item in process["env"]]
    wishes += [field(Wish.GROUP, group) for group in process["groups"]]
    wishes += [
        field(Wish.CWD, process["cwd"]),
        field(Wish.USER, process["user"]),
        field(Wish.FLAGS, int(flags)),
        field(Wish.CAPABILITIES, process["capabilities"]),
    ]
    for number, soft, hard in process["rlimits"]:
        numbers = (_UNLIMITED if value < 0 else value for value in (soft, hard))
        wishes.append(field(Wish.RLIMIT, struct.pack("<IQQ", number, *numbers)))
    return b"".join(wishes)


def plan_file(qemu: Sequence[str], begin: bytes, *, tty: bool, stdin: bool) -> bytes:
    """What the relay reads: `vm.relay.PLAN`."""
    plan = {
        "qemu": list(qemu),
        "beginning": base64.b64encode(begin).decode(),
        "tty": tty,
        "stdin": stdin,
    }
    return json.dumps(plan).encode()


# --- the sandbox around QEMU ------------------------------------------------------------------


def sandbox_spec(
    spec: ContainerSpec, disks: Disks, boot: Boot, *, directory: str, package: str
) -> ContainerSpec:
    """The container that QEMU runs in; *directory* is the machine's, *package* tare's own code."""
    sources = [(f"{directory}/plan", "plan", True), (f"{directory}/door", "door", False)]
    sources.append((boot.kernel, "kernel", True))
    sources += [(boot.initramfs, "initramfs", True), (disks.upper, "upper", False)]
    sources += [(path, f"L{number}", True) for number, path in enumerate(disks.layers)]
    mounts = [_bind(source, f"{DIRECTORY}/{name}", read_only=ro) for source, name, ro in sources]
    mounts += [_bind(tree, tree, read_only=True) for tree in _HOST_TREES]
    mounts.append(_bind(package, f"{PYTHON_PATH}/tare", read_only=True))
    mounts.append(Mount(kind=MountKind.TMPFS, target="/run", tmpfs_size=1 << 20, tmpfs_mode=0o700))
    return dataclasses.replace(
        bare(spec),
        mounts=tuple(mounts),
        devices=(Device(host_path="/dev/kvm", target="/dev/kvm"),) if boot.kvm else (),
    )


def bare(spec: ContainerSpec) -> ContainerSpec:
    """The walls around QEMU, and around those who join it: nothing of what the guest may."""
    return dataclasses.replace(
        spec,
        process=ProcessSpec(
            args=(PYTHON, "-I", "-S", "-X", "utf8", "-c", _BOOT, "machine"),
            env=("LANG=C.UTF-8",),
            tty=spec.process.tty,
            open_stdin=spec.process.open_stdin,
        ),
        mounts=(),
        resources=_resources(spec),
        ulimits=(),
        security=Security(cap_drop=("ALL",), no_new_privileges=True),
        namespaces=Namespaces(network="none"),
        sysctls={},
        shm_size=64 << 10,
        read_only=True,
        init=False,
    )


def _resources(spec: ContainerSpec) -> Resources:
    """The same limits on QEMU; memory with what emulation needs beside the guest's own."""
    limit = spec.resources.memory
    return dataclasses.replace(
        spec.resources,
        memory=None if limit is None else limit + _OVERHEAD,
        memory_swap=None,
        pids=None,
    )


def add_shares(sandbox: Sandbox, shares: Sequence[Share]) -> None:
    """Have *sandbox* mount what its file server (vm.sharing) is to give to the guest."""
    operations = sandbox["operations"]
    at = next(
        (n for n, one in enumerate(operations) if one["op"] in ("console", "readonly", "mask")),
        len(operations),
    )
    for number, share in enumerate(shares):
        target = f"/shares/{number}" + (f"/{share.name}" if share.name else "")
        index = len(sandbox["binds"])
        sandbox["binds"].append(share.bind)
        operations.insert(at + number, Operation(op="bind", target=target, index=index))


def shares_of(spec: ContainerSpec, planned: Sandbox) -> list[Share]:
    """The binds and volumes of *spec*, as they are *planned* for a container."""
    wanted = {m.target for m in spec.mounts if m.kind is not MountKind.TMPFS}
    found = []
    for operation in planned["operations"]:
        if operation["op"] == "bind" and operation["target"] in wanted:
            found.append(Share(operation["target"], planned["binds"][operation["index"]]))
    if len(found) > MOST_SHARES:
        raise UnsupportedError(
            f"a virtual machine has at most {MOST_SHARES} binds and volumes, not {len(found)}"
        )
    return found


def file_server(spec: ContainerSpec) -> tuple[ContainerSpec, ProcessSpec]:
    """The walls around a machine's file server, and its command.

    It makes files of all the machine's ids, so it has what that needs, among those ids only.
    """
    walls = Security(
        cap_drop=("ALL",),
        cap_add=("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID"),
        no_new_privileges=True,
    )
    process = ProcessSpec(
        args=(PYTHON, "-I", "-S", "-X", "utf8", "-c", _BOOT, "files"), user="0", cwd="/"
    )
    return dataclasses.replace(bare(spec), security=walls), process


def _bind(source: str, target: str, *, read_only: bool) -> Mount:
    return Mount(
        kind=MountKind.BIND, source=source, target=target, read_only=read_only, recursive=False
    )


def exec_words(process: Process) -> ProcessSpec:
    """The program of the sandbox that stands for *process* in the guest."""
    flags = ProgramFlag(0)
    flags |= ProgramFlag.TTY if process["tty"] else ProgramFlag(0)
    flags |= ProgramFlag.STDIN if process["stdin"] else ProgramFlag(0)
    wish = base64.b64encode(program(process)).decode()
    if len(wish) > 120_000:
        raise InvalidError("the command and its environment are too long for a virtual machine")
    return ProcessSpec(
        args=(PYTHON, "-I", "-S", "-X", "utf8", "-c", _BOOT, "exec", str(int(flags)), wish),
        tty=process["tty"],
        open_stdin=process["stdin"],
        user="0",
        cwd="/",
    )
