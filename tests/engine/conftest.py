"""A daemon on a fake kernel, one life after the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fakes.daemon import Daemon
from fakes.driver import Fuse, Kernel


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def daemon_at(tmp_path: Path, kernel: Kernel) -> Callable[..., Daemon]:
    """Make a daemon on this test's directory and kernel; call it again for the next life."""

    def make(fuse: Fuse | None = None) -> Daemon:
        return Daemon(tmp_path, kernel, fuse)

    return make
