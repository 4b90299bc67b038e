"""Ignore patterns against the reference matcher's published vectors, and against a naive one."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tare.errors import InvalidError
from tare.model.ignore import IgnoreRules, read_lines

VECTORS = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "data" / "dockerignore.jsonl").read_text().splitlines()
]


@pytest.mark.parametrize(
    "vector", VECTORS, ids=lambda v: str(v["q"].get("patterns", v["q"].get("s")))[:50]
)
def test_paths_are_ignored_as_by_the_reference_matcher(vector: dict[str, Any]) -> None:
    question, want = vector["q"], vector["want"]
    patterns = question.get("patterns")
    if patterns is None:
        patterns = read_lines(question["s"].encode())
        assert (patterns or None) == want["ok"]["patterns"]
    if "err" in want:
        with pytest.raises(InvalidError, match=want["err"]):
            IgnoreRules(patterns)
        return

    rules = IgnoreRules(patterns)

    assert [rules.ignores(path) for path in question["paths"]] == want["ok"]["match"]


def test_a_file_has_comments_blanks_and_paths_in_any_form() -> None:
    content = b"\xef\xbb\xbf# c\n\n  /a/./b/ \r\n! /c\n#d\n !e\n/\n"

    assert read_lines(content) == ["a/b", "!c", "!e", "/"]


@pytest.mark.parametrize(
    ("patterns", "reason"),
    [
        (["a", "!"], 'pattern 2: illegal exclusion pattern: "!"'),
        (["[a"], "pattern 1: syntax error in pattern: '[a'"),
        (["a\\"], "syntax error in pattern"),
        (["x" * 5000], "longer than 4096 letters"),
        (["x"] * 10_001, "more than 10000 patterns"),
    ],
)
def test_a_bad_pattern_is_named(patterns: list[str], reason: str) -> None:
    with pytest.raises(InvalidError) as caught:
        IgnoreRules(patterns, name=".dockerignore")

    assert reason in str(caught.value)
    assert str(caught.value).startswith(".dockerignore: ")


def test_a_huge_file_is_refused() -> None:
    with pytest.raises(InvalidError, match="larger than"):
        IgnoreRules.parse(b"a\n" * (1 << 20))


def test_an_ignored_directory_is_walked_only_for_what_may_be_taken_back() -> None:
    rules = IgnoreRules(["*", "!docs/keep/x"])
    wild = IgnoreRules(["*", "!**/*.md"])

    assert rules.may_take_back_below("docs")
    assert rules.may_take_back_below("docs/keep")
    assert not rules.may_take_back_below("doc")
    assert not rules.may_take_back_below("src")
    assert wild.may_take_back_below("src")
    assert not IgnoreRules(["*"]).may_take_back_below("src")


@pytest.mark.attack("A38")
@pytest.mark.parametrize("pattern", ["!../secret", "!/../secret", "!a/../../secret", "!.."])
def test_nothing_is_taken_back_from_above_the_context(pattern: str) -> None:
    rules = IgnoreRules.parse(f"*\n{pattern}\n".encode())

    assert rules.ignores("secret") == (pattern != "!/../secret")
    assert rules.ignores("a/secret")


def test_a_path_of_a_thousand_parts_is_judged() -> None:
    path = "/".join(["a"] * 2000)

    assert IgnoreRules(["a/a"]).ignores(path)
    assert not IgnoreRules(["b"]).ignores(path)


def test_bytes_that_are_no_text_match_themselves() -> None:
    rules = IgnoreRules.parse(b"caf\xe9\n")

    assert rules.ignores(b"caf\xe9".decode("utf-8", "surrogateescape"))


def test_a_pattern_made_to_go_back_and_forth_does_not() -> None:
    path = "a" * 200 + "/" + "a" * 200
    began = time.process_time()

    for pattern in ("*a" * 40 + "b", "**/a*" * 30 + "b", "***" * 60 + "b", "a**a" * 30 + "b"):
        assert not IgnoreRules([pattern]).ignores(path)

    assert time.process_time() - began < 20


# A naive matcher, all ways tried by regular expression, as the reference translates patterns.
def _naive(pattern: str, path: str) -> bool:
    expression, at = "", 0
    while at < len(pattern):
        if pattern.startswith("**", at):
            at += 2
            if pattern.startswith("/", at):
                at += 1
            expression += "(.*/)?" if at < len(pattern) else ".*"
            continue
        letter = pattern[at]
        expression += {"*": "[^/]*", "?": "[^/]"}.get(letter, re.escape(letter))
        at += 1
    return re.fullmatch(expression, path, re.DOTALL) is not None


@settings(max_examples=500)
@given(
    st.text("ab/*?", min_size=1, max_size=9).filter(lambda p: "//" not in p and p.strip("/")),
    st.text("ab/", min_size=1, max_size=9).filter(lambda p: "//" not in p and p.strip("/")),
)
def test_one_pattern_matches_as_its_expression(pattern: str, path: str) -> None:
    pattern, path = pattern.strip("/"), path.strip("/")
    wanted = any(
        _naive(pattern, "/".join(path.split("/")[: n + 1])) for n in range(path.count("/") + 1)
    )
    # The reference compares ends where nothing but letters stands beside a lone `**`.
    middle = pattern.strip("*")
    if pattern in (f"**{middle}", f"{middle}**") and "*" not in middle and "?" not in middle:
        return

    assert IgnoreRules([pattern]).ignores(path) == wanted


@given(st.lists(st.text("ab/*?[]^-!\\ .", max_size=12), max_size=4), st.text("ab/.", max_size=12))
def test_any_patterns_are_rules_or_refused(patterns: list[str], path: str) -> None:
    try:
        rules = IgnoreRules(patterns)
    except InvalidError:
        return
    rules.ignores(path)
    rules.may_take_back_below(path)
