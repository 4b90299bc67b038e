from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tare.engine.documents import Documents
from tare.engine.ids import BASE, COUNT, REST_NS, UNIT, Blocks, Rest, wanted_size
from tare.engine.store import Store
from tare.errors import FailedError, InvalidError
from tare.model.record import IdBlock


@given(st.lists(st.one_of(st.integers(1, 4 * UNIT), st.none()), max_size=120))
def test_blocks_never_overlap(steps: list[int | None]) -> None:
    blocks, held = Blocks(), list[IdBlock]()
    for step in steps:
        if step is None:
            if held:
                blocks.release(held.pop(0))
            continue
        held.append(blocks.take(step))
        assert held[-1].size >= step

    spans = sorted((b.base, b.base + b.size) for b in held)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    assert all(start >= BASE and end <= BASE + UNIT * COUNT for start, end in spans)
    assert blocks.in_use == sum(b.size for b in held) // UNIT


def test_a_freed_block_is_used_again_last() -> None:
    blocks = Blocks()
    first = blocks.take(UNIT)
    blocks.release(first)

    others = [blocks.take(UNIT) for _ in range(COUNT - 1)]

    assert first not in others
    assert blocks.take(UNIT) == first


def test_none_left_is_an_error_that_says_what_to_do() -> None:
    blocks = Blocks()
    blocks.take(UNIT * COUNT)

    with pytest.raises(FailedError, match="no 65536 host user ids") as caught:
        blocks.take(1)
    assert "remove containers" in caught.value.hint


def test_a_shared_block_is_free_when_its_last_holder_leaves() -> None:
    blocks = Blocks()
    block = blocks.take(UNIT)
    blocks.share(block)

    blocks.release(block)
    assert blocks.in_use == 1
    blocks.release(block)
    assert blocks.in_use == 0


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("host", None),
        ("", UNIT),
        ("auto", UNIT),
        ("auto:size=1", UNIT),
        ("auto:size=65537", 2 * UNIT),
    ],
)
def test_the_size_asked_for(text: str, size: int | None) -> None:
    assert wanted_size(text) == size


@pytest.mark.parametrize(
    "text", ["auto:size=0", "auto:size=", "auto:size=99999999999", "keep-id", "auto:"]
)
def test_a_mode_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        wanted_size(text)


def test_a_block_that_rests_is_given_to_nobody_for_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 10**18
    monkeypatch.setattr(time, "time_ns", lambda: now)
    store = Store(tmp_path / "state.db")
    blocks = Blocks(Documents(store, "resting_ids", Rest))
    hardened = blocks.take(UNIT)
    blocks.rest(hardened)
    blocks.release(hardened)
    store.close()

    store = Store(tmp_path / "state.db")  # the next daemon
    blocks = Blocks(Documents(store, "resting_ids", Rest))
    others = [blocks.take(UNIT) for _ in range(COUNT - 1)]
    with pytest.raises(FailedError):
        blocks.take(UNIT)
    now += REST_NS
    woken = blocks.take(UNIT)
    store.close()

    assert hardened not in others
    assert woken == hardened
