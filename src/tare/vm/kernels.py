"""Kernels for machines: Debian's cloud kernel, fetched and verified by apt, made ready once.

::

    STATE/kernels/
      lock                   held (flock) while something is made
      VERSION/               whole or not there: it is renamed into place
        vmlinux              uncompressed, for QEMU's -kernel
        modules/NAME.ko      what the guest's init loads, or may load
        package              JSON: the Debian package, its version and SHA-256
      VERSION/initramfs-HEX  of these modules and the init of that digest
      init-HEX               the guest's static init; HEX is the digest of its sources
      blank-SIZE.ext4        an empty file system, copied for each machine
      root/                  what QEMU's sandbox sees as its root, but for binds

The package is downloaded, not installed: the host's own kernels and boot loader stay as they are.
apt checks it against Debian's signed lists; a package from anywhere else is not taken.

Not for: what a machine is made of (vm.machine).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tare.errors import FailedError, MissingError, UnsupportedError
from tare.kernel import files
from tare.vm import bzimage
from tare.vm.cpio import Entry, archive

GUEST: Final = Path(__file__).resolve().parent / "guest"
PACKAGE: Final = "linux-image-cloud-amd64"
_SOURCES: Final = ("init.c", "boot.c", "network.c", "program.c", "wire.c")
_HEADERS: Final = ("guest.h",)
_FIRST: Final = ("virtio_mmio", "virtio_console", "virtio_blk", "erofs", "overlay")
"""Loaded in every guest, with what they depend on, in this order."""
_LATER: Final = ("virtio_net", "virtio_balloon", "fuse")
"""Loaded when the machine has the device."""
_VERSION: Final = re.compile(r"linux-image-([0-9][0-9a-z.+~-]{2,60})")
_FETCH_SECONDS: Final = 600


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel that is ready to boot."""

    version: str
    vmlinux: Path
    initramfs: Path
    package: str
    package_version: str
    sha256: str


class Kernels:
    """The owner of ``STATE/kernels``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def ready(self) -> list[Kernel]:
        """The kernels that are there, the newest last."""
        found = []
        for path in sorted(self.directory.glob("*/package"), key=_age):
            with contextlib.suppress(OSError, ValueError, KeyError):
                found.append(self._kernel(path.parent))
        return found

    def prepare(self, *, renew: bool = False) -> Kernel:
        """A kernel to boot, fetched when there is none (or a newer one may be: *renew*).

        MissingError and UnsupportedError say what to install; nothing half made is left.
        """
        with self._locked():
            self._tidy()
            have = self.ready()
            directory = self._fetch() if renew or not have else have[-1].vmlinux.parent
            self._initramfs(directory)
            return self._kernel(directory)

    def blank(self, size: int) -> Path:
        """An empty ext4 file system of *size* bytes, sparse; MissingError without mke2fs."""
        path = self.directory / f"blank-{size}.ext4"
        if path.exists():
            return path
        program = _program("mke2fs", "e2fsprogs")
        with self._locked():
            temporary = self.directory / ".tmp-blank"
            temporary.unlink(missing_ok=True)
            temporary.touch()
            os.truncate(temporary, size)
            # Journal and inode tables in the first megabytes and unwritten: a copy costs little.
            options = "lazy_itable_init=1,lazy_journal_init=1,discard,root_owner=0:0"
            _run(
                [program, "-q", "-F", "-t", "ext4", "-m", "0", "-I", "256", "-i", "65536",
                 "-J", "size=16", "-O", "^resize_inode,^metadata_csum", "-E", options,
                 os.fspath(temporary)],
                "cannot make a file system",
            )  # fmt: skip
            temporary.rename(path)
        return path

    def skeleton(self) -> Path:
        """The directory that QEMU's sandbox has as its root."""
        root = self.directory / "root"
        if not (root / "run").is_dir():
            for name in ("usr", "etc", "dev", "proc", "sys", "machine", "tare", "run"):
                (root / name).mkdir(parents=True, exist_ok=True, mode=0o755)
            for name in ("bin", "lib", "lib64", "sbin"):
                with contextlib.suppress(FileExistsError):
                    (root / name).symlink_to(f"usr/{name}")
        return root

    def tsc_khz(self) -> int:
        """The frequency of this host's time stamp counter, measured now."""
        done = subprocess.run(
            [os.fspath(self.init()), "--tsc-khz"], capture_output=True, text=True, check=False
        )
        if done.returncode or not done.stdout.strip().isdigit():
            raise FailedError("cannot measure the host's time stamp counter")
        return int(done.stdout)

    def init(self) -> Path:
        """The guest's init, built when its sources are new; MissingError without a compiler."""
        shipped = GUEST / "init"
        if shipped.exists():
            return shipped
        digest = hashlib.sha256()
        for name in (*_SOURCES, *_HEADERS):
            digest.update((GUEST / name).read_bytes())
        path = self.directory / f"init-{digest.hexdigest()[:16]}"
        if not path.exists():
            compiler = shutil.which("cc") or shutil.which("gcc")
            if compiler is None:
                raise MissingError(
                    "machines need a small program built for their guests, and there is no C"
                    " compiler",
                    hint="apt-get install gcc libc6-dev",
                )
            temporary = self.directory / f".tmp-init-{os.getpid()}"
            _run(
                [compiler, "-static", "-O2", "-s", "-D_GNU_SOURCE", "-o", os.fspath(temporary),
                 *(os.fspath(GUEST / name) for name in _SOURCES)],
                "cannot build the guest's init (apt-get install libc6-dev)",
            )  # fmt: skip
            temporary.rename(path)
        return path

    # --- inside -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _tidy(self) -> None:
        """Delete what a crash left half made."""
        for path in self.directory.glob(".tmp-*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def _kernel(self, directory: Path) -> Kernel:
        package = json.loads((directory / "package").read_text("utf-8"))
        return Kernel(
            version=directory.name,
            vmlinux=directory / "vmlinux",
            initramfs=directory / f"initramfs-{self.init().name.removeprefix('init-')}",
            package=str(package["package"]),
            package_version=str(package["version"]),
            sha256=str(package["sha256"]),
        )

    def _initramfs(self, directory: Path) -> None:
        init = self.init()
        path = directory / f"initramfs-{init.name.removeprefix('init-')}"
        if path.exists():
            return
        modules = directory / "modules"
        entries = [
            Entry("dev"),
            Entry("dev/console", device=(5, 1)),
            Entry("dev/null", device=(1, 3)),
            Entry("init", init.read_bytes()),
        ]
        first = _in_order(modules, _FIRST)
        entries.append(Entry("modules"))
        for number, name in enumerate(first):
            content = (modules / f"{name}.ko").read_bytes()
            entries.append(Entry(f"modules/{number:02}-{name}.ko", content))
        entries.append(Entry("later"))
        for name in _in_order(modules, _LATER):
            if name not in first:
                entries.append(Entry(f"later/{name}.ko", (modules / f"{name}.ko").read_bytes()))
        files.replace(os.fspath(path), archive(entries), mode=0o600)

    def _fetch(self) -> Path:
        """Download, verify (apt does), unpack; the new directory."""
        if os.uname().machine != "x86_64":
            raise UnsupportedError("machines run on x86-64 hosts only")
        name = _dependency()
        match = _VERSION.fullmatch(name)
        if match is None:
            raise FailedError(f"{PACKAGE} depends on no kernel image ({name[:80]})")
        final = self.directory / match[1]
        if (final / "package").exists():
            return final
        temporary = self.directory / ".tmp-kernel"
        temporary.mkdir()
        _run(
            [_program("apt-get", "apt"), "-o", "APT::Sandbox::User=root",
             "-o", "APT::Get::AllowUnauthenticated=false", "download", name],
            f"cannot download {name}", cwd=temporary,
        )  # fmt: skip
        archives = list(temporary.glob("*.deb"))
        if len(archives) != 1:
            raise FailedError(f"apt downloaded no package {name}")
        self._unpack(archives[0], temporary, name, match[1])
        shutil.rmtree(final, ignore_errors=True)
        (temporary / "ready").rename(final)
        shutil.rmtree(temporary, ignore_errors=True)
        return final

    @staticmethod
    def _unpack(package: Path, temporary: Path, name: str, version: str) -> None:
        tree, ready = temporary / "tree", temporary / "ready"
        tree.mkdir()
        _run(
            [_program("dpkg-deb", "dpkg"), "-x", os.fspath(package), os.fspath(tree)],
            "cannot unpack the kernel",
        )
        (ready / "modules").mkdir(parents=True)
        image = (tree / "boot" / f"vmlinuz-{version}").read_bytes()
        (ready / "vmlinux").write_bytes(bzimage.vmlinux(image))
        there = {
            path.stem.replace("-", "_"): path
            for folder in ("lib", "usr/lib")
            for path in (tree / folder / "modules").rglob("*.ko")
        }
        for module in sorted(_closure(there, (*_FIRST, *_LATER))):
            shutil.copyfile(there[module], ready / "modules" / f"{module}.ko")
        described = {
            "package": name,
            "version": package.name.split("_")[1].replace("%3a", ":"),
            "sha256": hashlib.sha256(package.read_bytes()).hexdigest(),
        }
        for path in (ready / "vmlinux", *sorted((ready / "modules").iterdir())):
            files.sync_file(path)
        files.replace(os.fspath(ready / "package"), json.dumps(described).encode(), mode=0o600)


def _age(path: Path) -> float:
    return path.stat().st_mtime


def _program(name: str, package: str) -> str:
    found = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
    if found is None:
        raise MissingError(
            f"machines need {name}, which is not on this host",
            hint=f"on Debian: apt-get install {package}",
        )
    return found


def _run(command: list[str], failing: str, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_FETCH_SECONDS,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise FailedError(f"{failing}: it took longer than {_FETCH_SECONDS} s") from None
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip()).splitlines()
        errors = [line for line in words if not line.startswith("W:")]
        raise FailedError(f"{failing}: {' '.join(errors[-3:])[:400]}")
    return done.stdout


def _dependency() -> str:
    """The newest versioned package that Debian's meta package asks for."""
    out = _run(
        [_program("apt-cache", "apt"), "show", "--no-all-versions", PACKAGE],
        f"apt does not know {PACKAGE} (apt-get update, on Debian)",
    )
    for line in out.splitlines():
        if line.startswith("Depends:"):
            return line.removeprefix("Depends:").split(",")[0].split("(")[0].strip()
    raise MissingError(
        f"apt does not know the package {PACKAGE}", hint="run apt-get update; Debian has it"
    )


def _depends(path: Path) -> list[str]:
    """The modules that the one at *path* names in its .modinfo section."""
    match = re.search(rb"\0depends=([^\0]*)\0", path.read_bytes())
    names = match[1].decode("ascii").split(",") if match else []
    return [name.replace("-", "_") for name in names if name]


def _closure(there: dict[str, Path], wanted: tuple[str, ...]) -> list[str]:
    """*wanted* and all they depend on, dependencies first; what is built in has no file."""
    order: list[str] = []

    def add(name: str) -> None:
        if name in order or name not in there:
            return
        for other in _depends(there[name]):
            add(other)
        order.append(name)

    for name in wanted:
        add(name)
    return order


def _in_order(modules: Path, wanted: tuple[str, ...]) -> list[str]:
    return _closure({path.stem: path for path in modules.glob("*.ko")}, wanted)
