"""Starts a module of this package as a process of its own, that no signal to its maker reaches.

Not for: finding it again, or replacing it (`run.link` and `network.dns_link` do that by a lock).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import tare

# Debian's own: another python3 that stands first on PATH may be a slow wrapper, and the process
# needs nothing but the standard library.
_PYTHON: Final = "/usr/bin/python3"


def start(module: str, *arguments: str, log: int) -> subprocess.Popen[bytes]:
    """Call ``main(arguments)`` of *module* in a new session; its errors go to the file *log*."""
    source = str(Path(tare.__file__).resolve().parent.parent)
    python = _PYTHON if os.access(_PYTHON, os.X_OK) else sys.executable
    boot = (
        "import sys; sys.path.insert(0, sys.argv[1]); sys.dont_write_bytecode = True; "
        f"from {module} import main; sys.exit(main(sys.argv[2:]))"
    )
    environment = {
        name: value
        for name, value in os.environ.items()
        if name in ("PATH", "LANG") or name.startswith("TARE_TEST_")
    }
    return subprocess.Popen(
        [python, "-I", "-S", "-X", "utf8", "-c", boot, source, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=log,
        cwd="/",
        env=environment,
        start_new_session=True,
    )
