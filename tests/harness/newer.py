"""One program of Debian's next release, fetched with mmdebstrap and kept for later sessions.

For peers that the host's release has not, or has too old. Nothing is installed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from harness.images import cache_directory

SUITE: Final = "trixie"
_MINUTES: Final = 5


def root_with(package: str) -> Path:
    """A root that holds what *package* needs; skips, with the reason, where it cannot be had."""
    root = cache_directory() / f"{package}-{SUITE}-{os.uname().machine}"
    with open(f"{root}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            _fetch(package, root)
    return root


def _fetch(package: str, root: Path) -> None:
    if shutil.which("mmdebstrap") is None:
        pytest.skip(f"there is no mmdebstrap to fetch {package} with")
    half = root.with_name(root.name + ".half")
    shutil.rmtree(half, ignore_errors=True)
    include = f"--include={package}"
    command = ["mmdebstrap", "--quiet", "--variant=extract", include, SUITE, str(half)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_MINUTES * 60
        )
    except subprocess.TimeoutExpired:
        shutil.rmtree(half, ignore_errors=True)
        pytest.skip(f"{package} could not be fetched in {_MINUTES} minutes")
    if done.returncode != 0:
        shutil.rmtree(half, ignore_errors=True)
        pytest.skip(f"{package} cannot be fetched: {done.stderr.decode(errors='replace')[-200:]}")
    half.rename(root)
