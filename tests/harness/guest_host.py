"""Another host: Debian booted in a virtual machine, with this checkout and its packages in it.

`GuestHost.run` boots it, has a shell script run there, and gives back what it printed and its exit
code. The host is Debian's own kernel (`tare.vm.kernels`), a root made once by mmdebstrap and kept
in the cache, and a second disk with the files of the checkout. Its first process is a script that
mounts what an init mounts, control groups of version 2 only among it, or systemd.

What the guest writes to its first disk is thrown away. QEMU is waited for and killed with the
caller; nothing of the host is reached from inside, for there is no network.

Not for: machines as tare runs them (tests/vm).
"""

from __future__ import annotations

import fcntl
import hashlib
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness import images
from tare.vm import machine
from tare.vm.cpio import Entry, archive
from tare.vm.kernels import Kernels

SUITE: Final = "bookworm"
PYTHON: Final = (3, 11)
"""The Python of `SUITE`: packages that were installed for another would not load there."""
CHECKOUT: Final = Path(__file__).resolve().parents[2]
INSIDE: Final = "/opt/tare"
_PACKAGES: Final = (
    "attr",
    "busybox-static",
    "dbus",
    "iproute2",
    "kmod",
    "libcap2-bin",
    "procps",
    "python3",
    "systemd",
    "systemd-sysv",
    "tini",
)
_NEEDLESS: Final = ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/lib/apt/lists")
_LEFT_OUT: Final = (
    "mypy", "mypyc", "*__mypyc.*", "pip", "pip-*", "setuptools", "grimp", "importlinter",
    "ast_serialize", "librt", "click", "__pycache__",
)  # fmt: skip
"""Of the checkout's packages: what only the lint needs."""
_END: Final = re.compile(r"^=== guest ended with (\d+) ===$", re.MULTILINE)

# The initramfs' own first program: modules, the two disks, and on to the real root.
_FIRST: Final = """#!/busybox sh
/busybox mount -t devtmpfs dev /dev
/busybox mount -t proc proc /proc
/busybox mount -t sysfs sys /sys
# Whatever their order: those that others need are in by the second or third time.
for pass in 1 2 3 4; do
    for module in /modules/*; do /busybox insmod $module 2>/dev/null; done
done
/busybox mount -t ext4 -o noatime /dev/vda /root || /busybox poweroff -f
/busybox mount -t ext4 -o ro,noatime /dev/vdb /root/opt/tare || /busybox poweroff -f
/busybox umount /proc /sys
/busybox mount -o move /dev /root/dev
read words </root/opt/tare/first
exec /busybox switch_root /root $words
echo "cannot begin: $words"
/busybox poweroff -f
"""
# What an init without systemd does before it runs anything; version 2 alone, as asked for.
_PLAIN: Final = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs -o mode=755 run /run
mkdir -p /dev/pts /dev/shm
mount -t devpts -o mode=620,gid=5 devpts /dev/pts
mount -t tmpfs shm /dev/shm
ip link set lo up
exec /opt/tare/work </dev/null >/dev/hvc0 2>&1
"""
_WORK: Final = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 PYTHONDONTWRITEBYTECODE=1
date -s @NOW >/dev/null
cd /opt/tare/checkout
sh /opt/tare/script
echo "=== guest ended with $? ==="
sync
exec busybox poweroff -f
"""
_UNIT: Final = """[Unit]
Description=what a test has this host do
[Service]
Type=simple
ExecStart=/opt/tare/work
StandardOutput=file:/dev/hvc0
StandardError=inherit
"""


@dataclass(frozen=True, slots=True)
class Done:
    """What a guest's script printed, how it ended (-1: it did not), and what the console said."""

    code: int
    text: str
    console: str
    seconds: float

    def report(self) -> str:
        """All of it, for a test that failed."""
        return f"exit code {self.code} after {self.seconds:.0f} s\n{self.text}\n{self.console}"


def lacks_python() -> str:
    """Why this Python's packages would not work in the guest; empty if they do."""
    if sys.version_info[:2] == PYTHON:
        return ""
    return f"the guest has Python {PYTHON[0]}.{PYTHON[1]}, this is {sys.version.split()[0]}"


class GuestHost:
    """One kind of host: its kernel, its root, and a directory for what each boot needs."""

    def __init__(self, kernels: Kernels, directory: Path, *, systemd: bool = False) -> None:
        self._kernels, self._directory, self._systemd = kernels, directory, systemd
        self._kernel = kernels.prepare()
        directory.mkdir(parents=True, exist_ok=True)

    def run(self, script: str, *, limit: float = 600, memory: int = 1536) -> Done:
        """Boot, run *script* with sh in the checkout, and power off; killed after *limit* s."""
        root = root_disk()
        work = self._work_disk(script)
        console, output = self._directory / "console", self._directory / "output"
        command = self._command(root, work, console, output, memory)
        begun = time.monotonic()
        said = ""
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # The disk's changes go to an unnamed file there, and not to a small /tmp.
            env={"PATH": "/usr/bin:/bin", "TMPDIR": str(self._directory)},
        ) as qemu:
            try:
                said = qemu.communicate(timeout=limit)[0].decode("utf-8", "replace")
            except subprocess.TimeoutExpired:
                said = f"killed after {limit:.0f} s"
            finally:
                qemu.kill()
        work.unlink()
        text = _read(output)
        match = _END.search(text)
        return Done(
            int(match[1]) if match else -1,
            text,
            _read(console)[-4000:] + said,
            time.monotonic() - begun,
        )

    def _command(
        self, root: Path, work: Path, console: Path, output: Path, memory: int
    ) -> list[str]:
        words = (
            "console=ttyS0 quiet loglevel=4 rdinit=/init panic=-1 reboot=t random.trust_cpu=on "
            "8250.nr_uarts=1 audit=0 i8042.noaux i8042.nokbd cryptomgr.notests no_timer_check "
            f"tsc_early_khz={self._kernels.tsc_khz()} systemd.show_status=0 "
            "systemd.log_target=console systemd.log_level=warning"
        )
        # Emulated everywhere: a host where KVM works is not what is under test.
        return [
            machine.QEMU, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
            "-machine", "microvm,x-option-roms=off,isa-serial=on,rtc=on,pit=on,pic=on,acpi=on,"
            "auto-kernel-cmdline=off,usb=off,graphics=off",
            "-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max", "-smp", "2",
            "-m", f"{memory}M", "-bios", "/usr/share/qemu/qboot.rom",
            "-kernel", str(self._kernel.vmlinux), "-initrd", str(self._initramfs()),
            "-append", words, "-global", "virtio-mmio.force-legacy=off",
            "-serial", f"file:{console}",
            "-device", "virtio-serial-device", "-chardev", f"file,id=out,path={output}",
            "-device", "virtconsole,chardev=out",
            "-drive", f"if=none,id=root,format=raw,file={root},snapshot=on,cache=unsafe",
            "-device", "virtio-blk-device,drive=root",
            "-drive", f"if=none,id=work,format=raw,file={work},readonly=on",
            "-device", "virtio-blk-device,drive=work",
        ]  # fmt: skip

    def _initramfs(self) -> Path:
        busybox = shutil.which("busybox")
        if busybox is None:
            raise LookupError("busybox is not installed (Debian: busybox-static)")
        modules = self._kernel.vmlinux.parent / "modules"
        entries = [Entry("dev"), Entry("proc"), Entry("sys"), Entry("root"), Entry("modules")]
        entries += [Entry("dev/console", device=(5, 1)), Entry("init", _FIRST.encode())]
        entries.append(Entry("busybox", Path(busybox).read_bytes()))
        for path in sorted(modules.glob("*.ko")):
            entries.append(Entry(f"modules/{path.name}", path.read_bytes()))
        out = self._directory / "initramfs"
        out.write_bytes(archive(entries))
        return out

    def _work_disk(self, script: str) -> Path:
        """A disk with the checkout's files as they are now, its packages, and what to do."""
        tree, disk = self._directory / "tree", self._directory / "work.ext4"
        shutil.rmtree(tree, ignore_errors=True)
        checkout = tree / "checkout"
        for name in _files():
            target = checkout / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / name, target, follow_symlinks=False)
        _lay_packages(checkout / ".venv")
        programs = {
            "first": "/opt/tare/plain\n",
            "plain": _PLAIN,
            "work": _WORK.replace("NOW", str(int(time.time()))),
            "script": script,
            "work.service": _UNIT,
        }
        if self._systemd:
            # Not multi-user.target: without udev the terminals of its gettys never appear.
            programs["first"] = "/lib/systemd/systemd --unit=work.service\n"
        for name, text in programs.items():
            (tree / name).write_text(text)
            (tree / name).chmod(0o644 if name.endswith(".service") else 0o755)
        _make_disk(tree, disk, "320M")
        shutil.rmtree(tree)
        return disk


def root_disk() -> Path:
    """The root of the guest, in the cache; OSError, with what mmdebstrap said, if it failed."""
    link = "usr/lib/systemd/system/work.service"
    key = hashlib.sha256(repr((_PACKAGES, _NEEDLESS, link, 1)).encode()).hexdigest()[:12]
    out = images.cache_directory() / f"guest-{SUITE}-{key}.ext4"
    with open(out.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if out.exists():
            return out
        fresh, tree = out.with_suffix(".new"), out.with_suffix(".tree")
        command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(_PACKAGES)}"]
        try:
            done = subprocess.run(
                [*command, SUITE, str(tree)],
                capture_output=True, text=True, check=False, timeout=900,
            )  # fmt: skip
            if done.returncode != 0:
                raise OSError(f"mmdebstrap: {done.stderr.strip()[-400:]}")
            for name in _NEEDLESS:
                shutil.rmtree(tree / name, ignore_errors=True)
            (tree / "opt/tare").mkdir(parents=True)
            (tree / "etc/machine-id").write_text("0" * 31 + "1\n")
            (tree / link).symlink_to("/opt/tare/work.service")
            _make_disk(tree, fresh, "2G")
            fresh.rename(out)
        finally:
            fresh.unlink(missing_ok=True)
            shutil.rmtree(tree, ignore_errors=True)
    return out


def _make_disk(tree: Path, out: Path, size: str) -> None:
    out.unlink(missing_ok=True)
    program = shutil.which("mkfs.ext4", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if program is None:
        raise OSError("mkfs.ext4 is not installed (Debian: e2fsprogs)")
    options = "lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0"
    subprocess.run(
        [program, "-q", "-F", "-m", "0", "-J", "size=8", "-E", options, "-d", tree, out, size],
        check=True,
        capture_output=True,
    )


def _files() -> list[str]:
    """The checkout's files: what git would take, or all where there is no git."""
    done = subprocess.run(
        ["git", "-C", CHECKOUT, "ls-files", "-z", "--cached", "--others", "--exclude-standard",
         "src", "tests", "tools", "packaging", "pyproject.toml"],
        capture_output=True, check=False,
    )  # fmt: skip
    names = done.stdout.decode("utf-8", "surrogateescape").split("\0")
    if done.returncode != 0:
        names = [
            str(path.relative_to(CHECKOUT))
            for top in ("src", "tests", "tools", "packaging", "pyproject.toml")
            for path in [CHECKOUT / top, *(CHECKOUT / top).rglob("*")]
            if "__pycache__" not in path.parts
        ]
    return [name for name in names if name and (CHECKOUT / name).is_file()]


def _lay_packages(target: Path) -> None:
    """A virtual environment as ours, for the Python of the guest."""
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    inside = target / f"lib/python{PYTHON[0]}.{PYTHON[1]}/site-packages"
    shutil.copytree(packages, inside, ignore=shutil.ignore_patterns(*_LEFT_OUT), symlinks=True)
    (target / "bin").mkdir()
    (target / "bin/python").symlink_to("/usr/bin/python3")
    (target / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").replace("\r", "")
    except FileNotFoundError:
        return ""
