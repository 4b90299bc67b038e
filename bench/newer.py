"""The peers' newest versions in a root of their own: Debian's trixie beside an older host.

``install`` makes the root with mmdebstrap; `entered` starts one process in it, with mounts of its
own, and gives the words (nsenter) that run a program there. Of the host it sees the process ids,
the cgroups, the network and the benchmark's directory. Not for: how each peer is run (`peers`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

SUITE: Final = "trixie"
_PACKAGES: Final = (
    "docker.io", "docker-cli", "docker-buildx", "containerd", "runc", "crun", "podman", "buildah",
    "netavark", "aardvark-dns", "iptables", "ca-certificates",
)  # fmt: skip
# Entering by nsenter costs a podman or crun command about a millisecond of the tens it takes.
_INSIDE: Final = """
set -e
root=$1 shared=$2
mount --make-rprivate /
mount --bind "$root" "$root"
for path in /proc /sys /dev /etc/resolv.conf; do
    [ -e "$root$path" ] || : >"$root$path"
    mount --rbind "$path" "$root$path"
done
mkdir -p "$root$shared"
mount --rbind "$shared" "$root$shared"
mount -t tmpfs tmpfs "$root/run"
cd "$root"
pivot_root . mnt
umount -l /mnt
echo ready
exec sleep infinity
"""


def root_of(cache: Path) -> Path:
    """Where the root lies below the peers' cache directory."""
    return cache / SUITE


def install(cache: Path) -> None:
    """Make the root; as root, with a network. One that is there only gets what it misses."""
    root = root_of(cache)
    if root.exists():
        _complete(root)
        return
    if shutil.which("mmdebstrap") is None:
        raise OSError("mmdebstrap is not here (./dev setup)")
    half = root.with_name(f"{SUITE}.half")
    subprocess.run(["rm", "-rf", "--one-file-system", str(half)], check=True)
    packages = f"--include={','.join(_PACKAGES)}"
    command = ["mmdebstrap", "--quiet", "--variant=minbase", packages, SUITE, str(half)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    half.rename(root)


def _complete(root: Path) -> None:
    known = root / "var/lib/dpkg/info"
    missing = [name for name in _PACKAGES if not (known / f"{name}.list").exists()]
    if not missing:
        return
    inside = ["chroot", str(root), "env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]
    subprocess.run([*inside, "update", "--quiet"], check=True)
    options = ["install", "--quiet", "--yes", "--no-install-recommends"]
    subprocess.run([*inside, *options, *missing], check=True, stdin=subprocess.DEVNULL)


@contextlib.contextmanager
def entered(cache: Path, shared: Path) -> Iterator[list[str]]:
    """The words before a command that run it in the root; none where there is no such root.

    *shared* is the one directory that is the same inside.
    """
    root = root_of(cache)
    if not root.exists():
        yield []
        return
    holder = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", _INSIDE, "sh", str(root), str(shared)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert holder.stdout is not None
        if holder.stdout.readline() != b"ready\n":
            raise OSError(f"cannot enter {root}")
        yield ["nsenter", f"--mount=/proc/{holder.pid}/ns/mnt", "--"]
    finally:
        holder.kill()
        holder.wait()


def has(cache: Path, program: str) -> bool:
    """Whether the root has /usr/bin/PROGRAM or /usr/sbin/PROGRAM."""
    root = root_of(cache)
    return any(os.access(root / where / program, os.X_OK) for where in ("usr/bin", "usr/sbin"))


def plugin(cache: Path, name: str) -> Path | None:
    """The root's plugin of docker's client that is called *name*, to be run on the host."""
    path = root_of(cache) / "usr/libexec/docker/cli-plugins" / name
    return path if os.access(path, os.X_OK) else None
