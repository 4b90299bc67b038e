"""Debian 13's skopeo on an older Debian: the policy reader beside ours, from the suite trixie.

Debian 12's has signatures of sigstore's form switched off. Fetched as `harness.cosign` does it,
with the libraries that it wants. Not for: pushes and pulls of other tests, which use the host's.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.images import cache_directory

_SUITE = "trixie"
_MINUTES = 5


def _root() -> Path:
    root = cache_directory() / f"skopeo-{_SUITE}-{os.uname().machine}"
    with open(f"{root}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "usr/bin/skopeo").exists():
            _fetch(root)
    return root


def _fetch(root: Path) -> None:
    if shutil.which("mmdebstrap") is None:
        pytest.skip("there is no mmdebstrap to fetch a newer skopeo with")
    half = root.with_name(root.name + ".half")
    shutil.rmtree(half, ignore_errors=True)
    command = ["mmdebstrap", "--quiet", "--variant=extract", "--include=skopeo", _SUITE, str(half)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_MINUTES * 60
        )
    except subprocess.TimeoutExpired:
        shutil.rmtree(half, ignore_errors=True)
        pytest.skip(f"skopeo could not be fetched in {_MINUTES} minutes")
    if done.returncode != 0:
        shutil.rmtree(half, ignore_errors=True)
        pytest.skip(f"skopeo cannot be fetched: {done.stderr.decode(errors='replace')[-200:]}")
    shutil.rmtree(root, ignore_errors=True)
    half.rename(root)


def accepts(image: str, policy: Path, scratch: Path) -> tuple[bool, str]:
    """Whether skopeo copies *image* from a registry on loopback under *policy*; and its words."""
    root = _root()
    loaders = [*root.glob("usr/lib64/ld-linux-*.so.*"), *root.glob("usr/lib/*/ld-linux-*.so.*")]
    if not loaders:
        pytest.skip("the newer skopeo has no loader for this machine")
    attachments = scratch / "registries.d"
    attachments.mkdir(exist_ok=True)
    (attachments / "default.yaml").write_text("default-docker:\n  use-sigstore-attachments: true\n")
    libraries = next(root.glob("usr/lib/*-linux-gnu*"))
    done = subprocess.run(
        [
            str(loaders[0]), "--library-path", str(libraries), str(root / "usr/bin/skopeo"),
            "--policy", str(policy), "--registries.d", str(attachments),
            "copy", "--src-tls-verify=false", "--remove-signatures",
            f"docker://{image}", f"dir:{scratch / 'copy'}",
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        env={"HOME": str(scratch), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    return done.returncode == 0, done.stderr
