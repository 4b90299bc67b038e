"""The registry under test: one process for all tests of a file, or one of a test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.registry_server import Registry

Serve = Callable[..., Registry]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry with what other tests of the file pushed to it."""
    served = Registry(tmp_path_factory.mktemp("registry"), "--no-images")
    yield served
    assert served.end() == 0, served.log()
    assert "Traceback" not in served.log()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start a registry with these options; it ends with the test."""
    started: list[Registry] = []

    def start(*options: str, **environment: str) -> Registry:
        directory = tmp_path / f"registry-{len(started)}"
        started.append(Registry(directory, *options, environment=environment))
        return started[-1]

    yield start
    for each in started:
        each.end()
