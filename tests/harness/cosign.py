"""Debian's cosign, the other reader and writer of our signatures: from the suite trixie, unpacked.

Debian 12 has no cosign; the binary of Debian 13 runs on it. It is fetched once, by mmdebstrap, with
Debian's signatures checked, and kept where the tests keep their base image.

Not for: anything that asks a server beyond loopback; no test lets cosign do that.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.images import cache_directory

_SUITE = "trixie"
_MINUTES = 5


def program() -> Path:
    """The path of cosign; skips, with the reason, where it cannot be had."""
    found = shutil.which("cosign")
    if found is not None:
        return Path(found)
    root = cache_directory() / f"cosign-{_SUITE}-{os.uname().machine}"
    binary = root / "usr/bin/cosign"
    with open(f"{root}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not binary.exists():
            _fetch(root)
    return binary


def _fetch(root: Path) -> None:
    if shutil.which("mmdebstrap") is None:
        pytest.skip("there is neither cosign nor mmdebstrap to fetch it with")
    half = root.with_name(root.name + ".half")
    shutil.rmtree(half, ignore_errors=True)
    command = ["mmdebstrap", "--quiet", "--variant=extract", "--include=cosign", _SUITE, str(half)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_MINUTES * 60
        )
    except subprocess.TimeoutExpired:
        shutil.rmtree(half, ignore_errors=True)
        pytest.skip(f"cosign could not be fetched in {_MINUTES} minutes")
    if done.returncode != 0:
        shutil.rmtree(half, ignore_errors=True)
        pytest.skip(f"cosign cannot be fetched: {done.stderr.decode(errors='replace')[-200:]}")
    # Only the one program is of use.
    root.joinpath("usr/bin").mkdir(parents=True, exist_ok=True)
    os.replace(half / "usr/bin/cosign", root / "usr/bin/cosign")
    shutil.rmtree(half, ignore_errors=True)


@dataclass
class Cosign:
    """cosign with a home of a test's own."""

    home: Path

    def __post_init__(self) -> None:
        self.binary = program()
        self.home.mkdir(parents=True, exist_ok=True)

    def run(
        self, *words: str, password: str = "hunter2", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """One command, at its end."""
        return subprocess.run(
            [str(self.binary), *words],
            cwd=self.home,
            env={
                "HOME": str(self.home),
                "PATH": "/usr/bin:/bin",
                "COSIGN_PASSWORD": password,
                "COSIGN_YES": "true",
                "DOCKER_CONFIG": str(self.home / "docker"),
                **environment,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def key_pair(self) -> tuple[bytes, bytes]:
        """A new key, as cosign writes it (sealed with ``hunter2``): private and public."""
        done = self.run("generate-key-pair")
        assert done.returncode == 0, done.stderr
        return (self.home / "cosign.key").read_bytes(), (self.home / "cosign.pub").read_bytes()

    def sign(self, image: str, *more: str) -> None:
        """Sign with the key in its home, without any log."""
        done = self.run("sign", "--key=cosign.key", "--tlog-upload=false", *more, image)
        assert done.returncode == 0, done.stderr

    def verifies(self, image: str, *more: str) -> bool:
        """Whether it verifies with the key in its home, offline."""
        words = ("--key=cosign.pub", "--insecure-ignore-tlog=true", *more, image)
        return self.run("verify", *words).returncode == 0
