"""Sizes, durations, times and ports against the vectors of the reference implementations."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tare.client import ports, units
from tare.errors import InvalidError

_DATA = Path(__file__).parent / "data"


def _vectors(name: str) -> list[tuple[dict[str, object], dict[str, object]]]:
    lines = (_DATA / name).read_text().splitlines()
    return [(each["q"], each["want"]) for each in map(json.loads, lines)]


@pytest.mark.parametrize(("question", "want"), _vectors("size.jsonl"))
def test_sizes_are_dockers(question: dict[str, object], want: dict[str, object]) -> None:
    text = str(question["s"])
    if text == str((1 << 63) - 1):
        want = {"err": "the reference overflows here; we refuse"}

    if "err" in want:
        with pytest.raises(InvalidError):
            units.size(text)
    else:
        assert units.size(text) == want["ok"]


@pytest.mark.parametrize(("question", "want"), _vectors("ports.jsonl"))
def test_ports_are_dockers(question: dict[str, object], want: dict[str, object]) -> None:
    specs = question["specs"]
    assert isinstance(specs, list)

    if "err" in want:
        with pytest.raises(InvalidError):
            ports.parse(specs, [])
    else:
        exposed, bindings = ports.parse(specs, [])
        assert want["ok"] == {"exposed": exposed, "bindings": bindings}


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_refused(text: str) -> None:
    try:
        value = units.size(text)
    except InvalidError:
        return
    assert 0 <= value < 1 << 63


@given(st.text(max_size=12))
def test_any_text_is_a_duration_or_refused(text: str) -> None:
    try:
        units.duration(text)
    except InvalidError:
        return
    assert text.lstrip("+-")[0] in "0123456789."


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [("1s", 10**9), ("1h30m", 5400 * 10**9), ("1.5s", 15 * 10**8), ("300ms", 3 * 10**8),
     ("0", 0), ("-2s", -2 * 10**9), ("1us", 1000), ("7ns", 7)],
)  # fmt: skip
def test_durations(text: str, nanoseconds: int) -> None:
    assert units.duration(text) == nanoseconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2013-01-02T13:23:37Z", 1357133017), ("2013-01-02T13:23:37+02:00", 1357125817),
     ("1969-12-31T23:59:59Z", -1), ("2024-02-29T00:00:00Z", 1709164800),
     ("2000-03-01Z", 951868800)],
)  # fmt: skip
def test_times(text: str, seconds: int) -> None:
    assert units.rfc3339(text) == seconds * 10**9


def test_fractions_of_a_second_are_kept_to_the_nanosecond() -> None:
    assert units.rfc3339("1970-01-01T00:00:01.000000001Z") == 1_000_000_001


def test_a_moment_is_a_duration_ago_a_time_or_seconds() -> None:
    assert units.moment("1700000000.5") == "1700000000.5"
    assert units.moment("1970-01-01T00:01:00Z") == "60.000000000"
    assert abs(float(units.moment("42m")) - (time.time() - 42 * 60)) < 5


@pytest.mark.parametrize("text", ["yesterday", "2013-13-01T00:00:00Z", "1.2.3", "12:30"])
def test_a_moment_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidError, match="neither a time nor a duration"):
        units.moment(text)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.5, "Less than a second"), (1, "1 second"), (59, "59 seconds"), (61, "About a minute"),
     (150, "2 minutes"), (3600, "About an hour"), (7200, "2 hours"), (86400 * 2, "2 days"),
     (86400 * 15, "2 weeks"), (86400 * 61, "2 months"), (86400 * 800, "2 years")],
)  # fmt: skip
def test_human_durations(seconds: float, words: str) -> None:
    assert units.human_duration(seconds) == words
