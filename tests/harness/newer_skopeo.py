"""Debian 13's skopeo on an older Debian: the policy reader beside ours, from the suite trixie.

Debian 12's has signatures of sigstore's form switched off. Fetched as `harness.cosign` does it,
with the libraries that it wants. Not for: pushes and pulls of other tests, which use the host's.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness.newer import root_with


def accepts(image: str, policy: Path, scratch: Path) -> tuple[bool, str]:
    """Whether skopeo copies *image* from a registry on loopback under *policy*; and its words."""
    root = root_with("skopeo")
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
