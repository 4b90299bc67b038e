"""The catalogue has every number of every edition, and every check has a probe."""

from __future__ import annotations

import re

import pytest

from tare.audit import catalogue
from tare.audit.finding import Scope
from tare.errors import InvalidError

# How many recommendations each section of an edition has (its table of contents).
EDITIONS = {
    "1.2": {"1": 14, "2": 17, "3": 22, "4": 11, "5": 31, "6": 2, "7": 10, "8": 8},
    "1.6": {"1": 20, "2": 18, "3": 24, "4": 12, "5": 32, "6": 2, "7": 9, "8": 8},
    "1.7": {"1": 20, "2": 18, "3": 24, "4": 12, "5": 32, "6": 2, "7": 9, "8": 8},
    "1.8": {"1": 20, "2": 19, "3": 24, "4": 12, "5": 32, "6": 2, "7": 9},
}


@pytest.mark.parametrize("benchmark", EDITIONS)
def test_an_edition_is_there_in_full(benchmark: str) -> None:
    numbers = [catalogue.number(check, benchmark) for check in catalogue.ordered(benchmark)]
    own = [number for number in numbers if not number.startswith("T")]

    assert len(set(numbers)) == len(numbers)
    counts = dict.fromkeys(EDITIONS[benchmark], 0)
    for number in own:
        counts[catalogue.section(number)] += 1
    assert counts == EDITIONS[benchmark]


@pytest.mark.parametrize("benchmark", EDITIONS)
def test_numbers_of_a_section_have_no_gap(benchmark: str) -> None:
    for section in ("2", "3", "4", "5", "6"):
        numbers = [
            int(number.split(".")[1])
            for check in catalogue.ordered(benchmark)
            if catalogue.section(number := catalogue.number(check, benchmark)) == section
        ]
        assert numbers == list(range(1, len(numbers) + 1)), section


def test_every_check_says_why_and_what_to_do() -> None:
    for check in catalogue.checks().values():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", check.name)
        assert check.title
        assert check.why
        assert check.remedy
        assert check.level in (0, 1, 2)


@pytest.mark.parametrize(
    ("words", "benchmark", "some", "count"),
    [
        (["5.4"], "1.2", "workload-privileged", 1),
        (["5.4"], "1.6", "workload-capabilities", 1),
        (["check_5_4"], "1.2", "workload-privileged", 1),
        (["workload-privileged"], "1.8", "workload-privileged", 1),
        (["5"], "1.2", "workload-privileged", 31),
        (["image"], "1.2", "image-user", 17),
        (["2.1"], "1.2", "engine-icc", 1),
    ],
)
def test_checks_are_named_in_many_ways(
    words: list[str], benchmark: str, some: str, count: int
) -> None:
    found = catalogue.select(words, benchmark)

    assert some in found
    in_edition = {c.name for c in catalogue.ordered(benchmark)}
    assert len(found & in_edition) == count


def test_levels_name_all_up_to_them() -> None:
    one, two = (catalogue.select([word], "1.2") for word in ("level1", "level2"))

    assert one < two
    assert "workload-apparmor" in one
    assert "workload-exec-privileged" in two - one


@pytest.mark.parametrize("word", ["", "9", "5.99", "level3", "5.", "workload-"])
def test_a_word_that_means_no_check_is_refused(word: str) -> None:
    with pytest.raises(InvalidError):
        catalogue.select([word], "1.2")


@pytest.mark.parametrize("text", ["1.3", "2", "latest", "1.2.1"])
def test_an_edition_that_is_not_there_is_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        catalogue.edition(text)


def test_numbers_sort_by_their_parts() -> None:
    numbers = ["T.5.1", "5.10", "5.9", "1.2.1", "1.1.18", "T.D.RootUser"]

    assert sorted(numbers, key=catalogue.sort_key) == [
        "1.1.18", "1.2.1", "5.9", "5.10", "T.5.1", "T.D.RootUser",
    ]  # fmt: skip


def test_every_scope_has_checks() -> None:
    assert {check.scope for check in catalogue.checks().values()} == set(Scope)
