"""The engine's own container tests on hosts that this one is not: control groups of version 2.

Each host is a virtual machine with Debian's kernel, which is older than what most tests run on:
what the engine does instead of newer system calls is under test as well. Nothing in the guest
may fail; what it skips is said at its end.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from harness import guest_host
from harness.guest_host import Done, GuestHost
from harness.needs import needs
from tare.errors import TareError
from tare.vm.kernels import Kernels

pytestmark = pytest.mark.system

_PYTEST: Final = ".venv/bin/python -m pytest -p no:cacheprovider --color=no --tb=short -q"
# Chosen for time: emulation takes ten times as long.
_PLAIN: Final = (
    "tests/run/test_keeper.py",
    "tests/engine/test_engine_system.py",
    "tests/kernel/test_cgroup_v2.py",
    "tests/security/test_attacks_inside.py",
)
_SELECTED: Final = (
    "real_tree or real_controller or born or room or rules or exit_code or namespaces or standard_d"
    " or killed or words or limit or pause or daemon or a13 or version_is"
)


@pytest.fixture(scope="module")
def kernels(session_directory: Path) -> Kernels:
    """Debian's kernel, and a root for it; without them the tests are skipped."""
    needs("root", "qemu", "gcc", "busybox", "debian")
    if reason := guest_host.lacks_python():
        pytest.skip(f"python: {reason}")
    found = Kernels(session_directory / "kernels")
    try:
        found.prepare()
        guest_host.root_disk()
    except (TareError, OSError) as error:
        pytest.skip(f"guest: {error}")
    return found


def _passed(done: Done) -> int:
    """How many tests passed in the guest; all the rest must have been skipped."""
    assert done.code == 0, done.report()
    closing = re.search(r"^(?:(\d+) passed).* in [0-9.]+s", done.text, re.MULTILINE)
    assert closing is not None, done.report()
    return int(closing[1])


def test_the_container_tests_pass_on_a_host_of_version_2_only(
    kernels: Kernels, tmp_path: Path
) -> None:
    guest = GuestHost(kernels, tmp_path)

    done = guest.run(f"{_PYTEST} {' '.join(_PLAIN)} -k '{_SELECTED}' 2>&1")

    assert _passed(done) >= 25, done.report()


def test_under_systemd_limits_hold_and_nothing_ends_with_the_daemon(
    kernels: Kernels, tmp_path: Path
) -> None:
    guest = GuestHost(kernels, tmp_path, systemd=True)

    done = guest.run(f"{_PYTEST} tests/system/test_under_systemd.py 2>&1")

    assert _passed(done) == 2, done.report()
