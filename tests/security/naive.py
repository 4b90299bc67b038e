"""A runtime that checks nothing, to see that the attacks in this folder win where nobody looks.

It does what a first attempt does: mounts by path, leaves descriptors open, enters by chroot(8).
Only its mount namespace is its own, so that what it mounts is gone with it. Never for anything
but hostile trees below a test's own directory.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterable
from pathlib import Path

from harness.images import lay_busybox


def lay(root: Path, links: dict[str, str]) -> Path:
    """A busybox tree at *root* in which *links* replace what is there."""
    lay_busybox(root)
    for name, target in links.items():
        path = root / name.lstrip("/")
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        path.unlink(missing_ok=True)
        path.symlink_to(target)
    return root


def run(
    root: Path,
    *args: str,
    proc: bool = False,
    binds: Iterable[tuple[Path, str]] = (),
    masks: Iterable[str] = (),
    sysctls: Iterable[tuple[str, str]] = (),
    descriptors: Iterable[int] = (),
) -> tuple[int, str, list[str]]:
    """Run *args* in *root*: exit code, output, and every mount point that lies outside *root*."""
    lines = ["set -e", "mount --make-rprivate /"]
    if proc:
        lines.append(f"mount -t proc proc {root}/proc")
    for source, target in binds:
        lines.append(f"mkdir -p {root}{target}; mount --bind {source} {root}{target}")
    for name, value in sysctls:
        lines.append(f"echo {shlex.quote(value)} > {root}/proc/sys/{name.replace('.', '/')}")
    for path in masks:
        lines.append(f"mount --bind {root}/dev/null {root}{path}")
    lines.append("cut -d' ' -f5 /proc/self/mountinfo >&3")
    lines.append(f"exec 3>&-; exec chroot {root} {shlex.join(args)}")
    before = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    reading, writing = os.pipe()
    # Where the shell wants it: the script writes its mount points to descriptor 3.
    script = f"exec 3>&{writing} {writing}>&-\n" + "\n".join(lines)
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "bash", "-c", script],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        pass_fds=(writing, *descriptors),
        timeout=20,
    )
    os.close(writing)
    with open(reading, encoding="utf-8") as file:
        points = [line.strip() for line in file if line.strip() not in before]
    outside = [point for point in points if not f"{point}/".startswith(f"{root}/")]
    return done.returncode, done.stdout + done.stderr, outside
