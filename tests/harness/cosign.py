"""Debian's cosign, the other reader and writer of our signatures: from the suite trixie, unpacked.

Debian 12 has no cosign; the binary of Debian 13 runs on it. It is fetched once, by mmdebstrap, with
Debian's signatures checked, and kept where the tests keep their base image.

Not for: anything that asks a server beyond loopback; no test lets cosign do that.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from harness.newer import root_with


def program() -> Path:
    """The path of cosign; skips, with the reason, where it cannot be had."""
    found = shutil.which("cosign")
    return Path(found) if found is not None else root_with("cosign") / "usr/bin/cosign"


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
