"""What the tests of machines share: a kernel made ready once, and an engine of the module's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.engines import Engine
from harness.needs import needs
from tare.errors import TareError
from tare.vm.kernels import Kernels


@pytest.fixture(scope="session")
def kernels(session_directory: Path) -> Kernels:
    """Kernels with one that is ready; without network or compiler the test is skipped."""
    needs("root", "qemu", "gcc")
    found = Kernels(session_directory / "kernels")
    try:
        found.prepare()
    except TareError as error:
        pytest.skip(f"kernel: {error}")
    return found


@pytest.fixture(scope="module")
def engine(
    session_directory: Path,
    kernels: Kernels,
    busybox_archive: Path,
    request: pytest.FixtureRequest,
) -> Iterator[Engine]:
    """An engine with busybox and the session's kernel; ended with the module."""
    found = Engine(session_directory / request.module.__name__.rpartition("_")[2][:8])
    found.state.mkdir(parents=True, mode=0o700)
    (found.state / "kernels").symlink_to(kernels.directory)
    try:
        found.out("load", "-q", "-i", str(busybox_archive))
        yield found
    finally:
        left = found.end()
        (found.state / "kernels").unlink(missing_ok=True)
    assert left == []
