"""What a test asks of the host, found out by trying; not for what tare itself must provide.

A test says ``needs("userns", "overlay")`` (as a call, or ``@pytest.mark.needs(...)``). What the
host lacks skips the test with a reason; if ``TARE_TEST_REQUIRE=userns,...`` says that the host
must have it, the skip is a failure. A plain ``pytest.skip("userns: ...")`` counts the same way:
the word before the colon is the need.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest


def required() -> frozenset[str]:
    """The needs that TARE_TEST_REQUIRE says this host must meet."""
    words = os.environ.get("TARE_TEST_REQUIRE", "").split(",")
    return frozenset(word.strip() for word in words if word.strip())


def needs(*names: str) -> None:
    """Skip the calling test, with a reason, unless the host has all of *names*."""
    for name in names:
        lacking = lacks(name)
        if lacking:
            pytest.skip(f"{name}: {lacking}")


@functools.cache
def lacks(name: str) -> str:
    """Why the host does not have *name*; empty if it has."""
    probe = PROBES.get(name)
    if probe is None:
        raise LookupError(f"no probe for the need {name!r}; there are {', '.join(sorted(PROBES))}")
    return probe()


def _root() -> str:
    return "" if os.geteuid() == 0 else "not root"


def _try(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return f"{command[0]} is not installed"
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return "" if done.returncode == 0 else (done.stderr.strip() or f"{command[0]} failed")[-300:]


def _userns() -> str:
    return _try("unshare", "--user", "--map-root-user", "true")


def _cgroup() -> str:
    if _root():
        return _root()
    hierarchies = [Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup")]
    for base in hierarchies:
        probe = base / f"tare-probe-{os.getpid()}"
        try:
            probe.mkdir()
        except OSError:
            continue
        found = (probe / "pids.max").exists() or (probe / "cgroup.procs").exists()
        probe.rmdir()
        if found:
            return ""
    return "no cgroup can be made"


def _overlay() -> str:
    with tempfile.TemporaryDirectory(prefix="tare-probe-") as directory:
        for name in ("lower", "upper", "work", "merged"):
            (Path(directory) / name).mkdir()
        script = (
            f"cd {directory} && mount -t overlay overlay "
            "-o lowerdir=lower,upperdir=upper,workdir=work merged"
        )
        return _try("unshare", "--mount", "--propagation", "private", "sh", "-c", script)


def _filesystem(name: str) -> Callable[[], str]:
    def probe() -> str:
        known = Path("/proc/filesystems").read_text().split()
        return "" if name in known else f"the kernel has no {name}"

    return probe


def _program(name: str) -> Callable[[], str]:
    def probe() -> str:
        return "" if shutil.which(name) else f"{name} is not installed"

    return probe


def _docker_py() -> str:
    try:
        import docker  # noqa: F401  # only whether it is there
    except ImportError as error:
        return str(error)
    return ""


def _alone() -> str:
    return "" if "alone" in required() else "other work may run on this host"


PROBES: Final[dict[str, Callable[[], str]]] = {
    "root": _root,
    "userns": _userns,
    "cgroup": _cgroup,
    "overlay": _overlay,
    "erofs": _filesystem("erofs"),
    "alone": _alone,  # nothing else changes mounts, links and cgroups meanwhile
    "kvm": lambda: "" if os.access("/dev/kvm", os.R_OK | os.W_OK) else "/dev/kvm cannot be opened",
    "busybox": _program("busybox"),
    "debian": _program("mmdebstrap"),  # a Debian image can be made; needs a network once
    "docker": _program("docker"),
    "docker-py": _docker_py,
    "runc": _program("runc"),
    "docker-registry": _program("docker-registry"),
    "skopeo": _program("skopeo"),
    "openssl": _program("openssl"),
    "dpkg": _program("dpkg"),
    "fsck.erofs": _program("fsck.erofs"),
    "gcc": _program("gcc"),
    "newuidmap": _program("newuidmap"),
    "nft": _program("nft"),
    "pasta": _program("pasta"),
    "qemu": _program("qemu-system-x86_64"),
    "ip": _program("ip"),
}
