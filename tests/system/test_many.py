"""Sixty idle containers at once: listed, entered and removed together, and nothing is left."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from harness.engines import Engine

pytestmark = [pytest.mark.system, pytest.mark.needs("root", "overlay", "cgroup", "busybox")]

_MANY: Final = 60


@pytest.fixture
def engine(tmp_path: Path, busybox_archive: Path) -> Iterator[Engine]:
    found = Engine(tmp_path)
    try:
        found.out("load", "-q", "-i", str(busybox_archive))
        yield found
    finally:
        found.stop()


def test_sixty_idle_containers_come_and_go(engine: Engine) -> None:
    names = [f"idle{number}" for number in range(_MANY)]
    with ThreadPoolExecutor(4) as pool:
        start = ("run", "-d", "--name")
        list(pool.map(lambda n: engine.out(*start, n, "busybox", "sleep", "1000"), names))
        hosts = list(pool.map(lambda n: engine.out("exec", n, "hostname"), names))
    records = engine.all()

    assert sorted(records) == sorted(names)
    assert all(shown.running for shown in records.values())
    assert hosts == [records[name].id[:12] for name in names]
    assert engine.settled_lies() == []

    ids = engine.out("ps", "-q").split()
    removed = engine.out("rm", "-f", *ids).split()

    assert len(ids) == _MANY
    assert removed == ids
    assert engine.all() == {}
    assert engine.settled_lies() == []
    assert engine.groups() == []
