"""The arithmetic of budgets, without anything that runs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tare.errors import InvalidError
from tare.model import budget
from tare.model.budget import Amount, Budget, Holder
from tare.model.spec import Resources

GIB, MIB = 1 << 30, 1 << 20


@pytest.mark.attack("A47")
@pytest.mark.parametrize(
    ("total", "kept"),
    [(1 * GIB, 512 * MIB), (4 * GIB, 512 * MIB), (24 * GIB, 24 * GIB // 10), (5 * GIB, 512 * MIB)],
)
def test_the_host_keeps_half_a_gibibyte_or_a_tenth_and_a_quarter_of_its_pids(
    total: int, kept: int
) -> None:
    found = budget.defaults(total, 32768)

    assert found.memory == total - kept
    assert found.pids == 24576


@pytest.mark.parametrize(
    ("resources", "amount"),
    [
        (Resources(memory=4 * GIB, memory_reservation=GIB), Amount(GIB, 0)),
        (Resources(memory=4 * GIB), Amount(4 * GIB, 0)),
        (Resources(), Amount(64 * MIB, 0)),
        (Resources(nano_cpus=1_500_000_000), Amount(64 * MIB, 1_500_000_000)),
        (Resources(cpu_quota_us=50_000), Amount(64 * MIB, 500_000_000)),
        (Resources(cpu_quota_us=50_000, cpu_period_us=25_000), Amount(64 * MIB, 2 * 10**9)),
        (Resources(cpu_quota_us=-1), Amount(64 * MIB, 0)),
    ],
)
def test_a_workload_counts_its_reservation_else_its_limit_else_the_default(
    resources: Resources, amount: Amount
) -> None:
    assert budget.reservation(resources, Budget(default_memory=64 * MIB)) == amount


def test_a_refusal_shows_the_whole_sum() -> None:
    said = budget.refusal(
        "web",
        Amount(2 * GIB),
        Budget(memory=4 * GIB),
        [Holder("db", Amount(2 * GIB)), Holder("cache", Amount(GIB)), Holder("idle", Amount())],
    )

    assert said == (
        "web does not fit the engine's budget: it reserves 2 GiB memory, and of 4 GiB that may be"
        " reserved 3 GiB are held (db 2 GiB, cache 1 GiB), 1 GiB are free"
    )


@given(
    st.integers(0, 8 * GIB),
    st.integers(0, 8 * GIB),
    st.lists(st.integers(0, 2 * GIB), max_size=20),
)
def test_what_is_let_in_fits_and_what_is_refused_does_not(
    bound: int, ask: int, held: list[int]
) -> None:
    holders = [Holder(f"c{number}", Amount(value)) for number, value in enumerate(held)]

    said = budget.refusal("x", Amount(ask), Budget(reservable_memory=bound), holders)

    assert bool(said) == (ask > 0 and sum(held) + ask > bound)


def test_caps_and_reservations_are_different_numbers() -> None:
    overcommitted = Budget(memory=4 * GIB, reservable_memory=8 * GIB)

    assert budget.refusal("x", Amount(6 * GIB), overcommitted, []) == ""
    assert "4 GiB" in budget.refusal("x", Amount(6 * GIB), Budget(memory=4 * GIB), [])


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (Budget(memory=1), "64 MiB to the host's 8 GiB"),
        (Budget(memory=9 * GIB), "64 MiB to the host's 8 GiB"),
        (Budget(nano_cpus=5 * 10**9), "0.01 to the host's 4"),
        (Budget(pids=1), "fewer than 32"),
        (Budget(disk=-1), "negative"),
    ],
)
def test_a_budget_that_makes_no_sense_here_is_refused(wish: Budget, words: str) -> None:
    with pytest.raises(InvalidError, match=words):
        budget.checked(wish, total_memory=8 * GIB, online_cpus=4)


@pytest.mark.parametrize("text", ["", "=x", "a=", "a\nb", "x" * 2000])
def test_a_project_that_is_no_label_is_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        budget.project(text)


def test_a_word_alone_is_a_compose_project() -> None:
    assert budget.project("shop") == "com.docker.compose.project=shop"
    assert budget.project("team=a") == "team=a"
