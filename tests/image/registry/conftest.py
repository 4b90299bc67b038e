"""Registries that may lie, and a store that pulls from them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.registry import FakeRegistry
from harness.desk import Desk


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path / "state")
    yield made
    made.store.close()


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as made:
        yield made


@pytest.fixture
def other() -> Iterator[FakeRegistry]:
    """A second registry, on another host."""
    with FakeRegistry(host_name="127.0.0.2") as made:
        yield made
