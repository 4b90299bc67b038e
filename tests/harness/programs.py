"""Images with one of the host's own programs in them: the file, what it links to, and busybox.

A real server in a container without bootstrapping a distribution: what Debian's package put on
this host is copied with the libraries that its loader names. Not for programs that load more at
run time.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from harness import images


def program_image(
    directory: Path, program: str, package: str, tag: str, config: dict[str, object]
) -> Path:
    """A docker archive of busybox and *program*; skips when *package* is not installed."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{package}: {program} is not installed (Debian: {package})")
    root = images.lay_busybox(directory / f"{tag}-root")
    path = Path(os.path.realpath(found))
    listed = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
    for library in {path, *(Path(one) for one in re.findall(r"(/\S+) \(0x", listed))}:
        target = root / "usr/local/bin" / program if library == path else root / str(library)[1:]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(library, target)
    volumes = config.get("Volumes")
    for target in volumes if isinstance(volumes, dict) else ():
        (root / str(target).lstrip("/")).mkdir(parents=True, exist_ok=True)
    return images.docker_archive(root, directory / f"{tag}.tar", f"{tag}:latest", config)
