"""What is made ready ahead of time is what would have been made on demand."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tare.kernel import cgroup
from tare.run import devices
from tare.run.stock import Stock

pytestmark = [pytest.mark.needs("root", "cgroup")]


@pytest.fixture
def layout() -> cgroup.Layout:
    found = cgroup.detect().plain()
    if found.mode is not cgroup.Mode.V1:
        pytest.skip("only version 1 groups are prepared")
    return found


@pytest.fixture
def parent(layout: cgroup.Layout) -> Iterator[str]:
    path = f"{os.environ['TARE_CGROUP_PARENT']}-stock-{os.getpid()}"
    yield path
    with contextlib.suppress(OSError):
        layout.group(path).remove()


def _nodes(tree: int) -> dict[str, tuple[int, int]]:
    seen = {}
    for name in os.listdir(tree):
        status = os.stat(name, dir_fd=tree, follow_symlinks=False)
        if stat.S_ISCHR(status.st_mode):
            seen[name] = (status.st_mode, status.st_rdev)
    return seen


@contextlib.contextmanager
def _listable(tree: int) -> Iterator[int]:
    directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=tree)
    try:
        yield directory
    finally:
        os.close(directory)
        os.close(tree)


def test_a_prepared_dev_has_the_nodes_of_one_made_on_demand() -> None:
    with _listable(devices.make_default()) as ready:
        with _listable(devices.make([], 0, everything=False, rules=[]).tree) as made:
            assert _nodes(ready) == _nodes(made)
        assert os.readlink("stdin", dir_fd=ready) == "/proc/self/fd/0"


def test_a_prepared_group_has_the_rules_of_one_made_on_demand(
    layout: cgroup.Layout, parent: str
) -> None:
    stock = Stock(1, layout)
    assert stock.take_group(f"{parent}/first") is None  # now it knows where
    while stock.wanted:
        stock.fill()
    made = layout.group(f"{parent}/made")
    made.create()
    made.apply(cgroup.Limits(devices=cgroup.DEFAULT_DEVICES))

    prepared = stock.take_group(f"{parent}/taken")

    assert prepared is not None
    assert prepared.group.path == layout.group(f"{parent}/taken").path
    assert layout.group(parent).subgroups() == ["made", "taken"]
    where = layout.v1("devices")
    assert where is not None
    rules = [
        Path(f"{where.base}{group.path}/devices.list").read_text()
        for group in (made, prepared.group)
    ]
    assert rules[0] == rules[1]
    assert "rwm" in rules[0]
    for descriptor in prepared.tasks:
        os.close(descriptor)


def test_what_an_earlier_keeper_left_is_removed(layout: cgroup.Layout, parent: str) -> None:
    left = Stock(1, layout)
    left.take_group(f"{parent}/x")
    while left.wanted:
        left.fill()
    assert layout.group(parent).subgroups() == ["spare-0"]

    Stock(1, layout).take_group(f"{parent}/x")

    assert layout.group(parent).subgroups() == []


def test_a_leftover_of_that_name_is_not_taken_over(layout: cgroup.Layout, parent: str) -> None:
    stock = Stock(1, layout)
    stock.take_group(f"{parent}/x")
    while stock.wanted:
        stock.fill()
    layout.group(f"{parent}/taken").create()

    assert stock.take_group(f"{parent}/taken") is None
    assert layout.group(parent).subgroups() == ["taken"]
    layout.group(f"{parent}/taken").remove()
