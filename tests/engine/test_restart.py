from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tare.engine import restart
from tare.errors import InvalidError
from tare.model.spec import RestartPolicy

SECOND = 1_000_000_000


@given(st.lists(st.integers(0, 10 * SECOND - 1), min_size=1, max_size=20))
def test_the_back_off_doubles_from_100_ms_to_a_minute(runs: list[int]) -> None:
    delay, delays = 0.0, []
    for up in runs:
        delay = restart.next_delay(delay, up)
        delays.append(delay)

    assert delays == [min(0.1 * 2**n, 60.0) for n in range(len(runs))]


@given(st.floats(0, 60), st.integers(10 * SECOND, 10**18))
def test_ten_seconds_up_begin_it_anew(previous: float, up: int) -> None:
    assert restart.next_delay(previous, up) == 0.1


@pytest.mark.parametrize("name", ["always", "unless-stopped", "on-failure", "no"])
@given(code=st.integers(0, 255), count=st.integers(0, 50))
def test_what_a_user_stopped_stays_stopped(name: str, code: int, count: int) -> None:
    policy = RestartPolicy(name=name)
    assert not restart.again(policy, code=code, manual=True, count=count)


@given(st.integers(1, 10), st.integers(0, 20), st.integers(0, 255))
def test_on_failure_counts_failures(most: int, count: int, code: int) -> None:
    policy = RestartPolicy(name="on-failure", maximum_retries=most)

    assert restart.again(policy, code=code, manual=False, count=count) == (
        code != 0 and count < most
    )


def test_what_never_ran_is_not_started_by_the_engine() -> None:
    policy = RestartPolicy(name="always")
    assert not restart.at_engine_start(policy, ran_before=False, manual=False)
    assert restart.at_engine_start(policy, ran_before=True, manual=True)


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (RestartPolicy(name="sometimes"), "unknown policy 'sometimes'"),
        (RestartPolicy(name="always", maximum_retries=3), "maximum retry count"),
        (RestartPolicy(name="on-failure", maximum_retries=-1), "cannot be negative"),
    ],
)
def test_a_policy_without_sense_is_refused(policy: RestartPolicy, words: str) -> None:
    with pytest.raises(InvalidError, match=words):
        restart.check(policy, auto_remove=False)


def test_rm_and_a_policy_contradict() -> None:
    with pytest.raises(InvalidError, match="AutoRemove"):
        restart.check(RestartPolicy(name="always"), auto_remove=True)
