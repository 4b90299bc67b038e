"""Waivers, baselines and thresholds: which findings count."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest

from harness.reports import report
from tare.audit import standing
from tare.audit.finding import Item, Level, Report, Result, Standing
from tare.audit.standing import Threshold
from tare.errors import InvalidError

TODAY = date(2026, 11, 23)
ONE = """
[[waiver]]
check = "5.4"
subject = "we*"
reason = "it is a build host"
expires = 2026-11-23
"""


def made(*items: Item) -> Report:
    return replace(
        report(), results=(Result(check="workload-privileged", id="5.4", items=items),), remarks=()
    )


WEB = Item(level=Level.FAIL, subject="web", seen="it runs privileged (pid 12)")
DB = Item(level=Level.FAIL, subject="db", seen="it runs privileged (pid 13)")


def test_a_waiver_sets_its_subject_aside_until_its_day_is_over() -> None:
    found = standing.waived(made(WEB, DB), standing.waivers(ONE, "w.toml", "1.2"), TODAY)

    web, db = found.results[0].items
    assert (web.standing, web.note) == (
        Standing.WAIVED,
        "it is a build host, until 2026-11-23",
    )
    assert db.standing is Standing.COUNTS
    assert found.remarks == ()


def test_an_expired_waiver_waives_nothing_and_is_named() -> None:
    entries = standing.waivers(ONE, "w.toml", "1.2")

    found = standing.waived(made(WEB), entries, date(2026, 11, 24))

    assert found.results[0].items == (WEB,)
    assert found.remarks == (
        "the waiver of 5.4 for we* (it is a build host) expired on 2026-11-23",
    )


def test_a_waiver_that_nothing_needs_is_named() -> None:
    found = standing.waived(made(DB), standing.waivers(ONE, "w.toml", "1.2"), TODAY)

    assert found.remarks == ("the waiver of 5.4 for we* waives nothing",)


@pytest.mark.parametrize("check", ["5.4", "workload-privileged", "check_5_4", "5"])
def test_a_check_is_named_by_number_name_or_section(check: str) -> None:
    entries = standing.waivers(ONE.replace("5.4", check), "w.toml", "1.2")

    found = standing.waived(made(WEB), entries, TODAY)

    assert found.results[0].items[0].standing is Standing.WAIVED


def test_the_number_is_that_of_the_edition() -> None:
    entries = standing.waivers(ONE.replace("5.4", "5.5"), "w.toml", "1.6")

    assert entries[0].checks == {"workload-privileged"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("5.4", "5.99"), "waiver 1: there is no check '5.99'"),
        (("check =", "chek ="), "waiver 1: 'chek' is not known"),
        (('reason = "it is a build host"', ""), "waiver 1: reason is missing"),
        (("expires = 2026-11-23", ""), "waiver 1: expires is missing"),
        (("expires = 2026-11-23", 'expires = "soon"'), "waiver 1: expires is missing"),
        (("[[waiver]]", "[waiver]"), "two brackets"),
        (("[[waiver]]", "[[waivers]]"), "'waivers' is not known"),
        (("2026-11-23", "2026-13-40"), "w.toml"),
    ],
)
def test_a_wrong_waiver_is_refused_by_its_place(change: tuple[str, str], said: str) -> None:
    with pytest.raises(InvalidError) as caught:
        standing.waivers(ONE.replace(*change), "w.toml", "1.2")

    assert said in str(caught.value)


def test_what_the_baseline_has_is_known_though_its_numbers_change() -> None:
    later = made(replace(WEB, seen="it runs privileged (pid 999)"), DB)

    found = standing.compared(later, made(WEB))

    web, db = found.results[0].items
    assert web.standing is Standing.KNOWN
    assert db.standing is Standing.COUNTS


def test_one_more_of_the_same_is_new() -> None:
    found = standing.compared(made(WEB, WEB), made(WEB))

    assert [item.standing for item in found.results[0].items] == [
        Standing.KNOWN,
        Standing.COUNTS,
    ]


@pytest.mark.parametrize(
    ("text", "reached"),
    [("fail", 1), ("warn", 3), ("info", 4), ("note", 5), ("WARN", 3), ("5.4", 1), ("5.8", 0),
     ("fail,3.6", 2), ("level1", 2), ("T.D", 1)],
)  # fmt: skip
def test_a_threshold_is_reached_by_what_counts(text: str, reached: int) -> None:
    assert len(Threshold.parse(text, "1.2").reached(report())) == reached


@pytest.mark.parametrize("text", ["", ",", "5.99", "worse"])
def test_a_threshold_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        Threshold.parse(text, "1.2")
