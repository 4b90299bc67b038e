"""Variables and words against the published vectors of the reference lexer, and their bounds."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tare.build.dockerfile import wildcards
from tare.build.dockerfile.words import LIMIT, Lexer, LexError

DATA = Path(__file__).parents[2] / "data"
VECTORS = [
    json.loads(line)
    for name in ("lexer-envvar.jsonl", "lexer-words.jsonl")
    for line in (DATA / name).read_text().splitlines()
]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: f"{v['q']['op']}-{v['q']['s'][:50]}")
def test_words_come_out_as_from_the_reference_lexer(vector: dict[str, Any]) -> None:
    question, want = vector["q"], vector["want"]
    environment = dict(setting.split("=", 1) for setting in question["env"])
    if "err" in want:
        with pytest.raises(LexError):
            Lexer().words(question["s"], environment)
        return

    word = Lexer().words(question["s"], environment)

    assert Lexer().word(question["s"], environment).text == word.text
    assert (word.text if question["op"] == "word" else list(word.words)) == want["ok"]


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("${x#a*}", "bcabc"),
        ("${x##a*c}", ""),
        ("${x%b*}", "abca"),
        ("${x%%b*}", "a"),
        ("${x/b/-}", "a-cabc"),
        ("${x//b/-}", "a-ca-c"),
        ("${x/?c/}", "aabc"),
        ("${x//*/y}", "y"),
        ("${x//a*b/y}", "yc"),
        ("${x#nothing}", "abcabc"),
        ("${x/nothing/y}", "abcabc"),
        ("${star/\\*/y}", "1y2"),
        ("${y:-${x#ab}}", "cabc"),
        ("${y+set}", ""),
        ("${empty-unset}", ""),
        ("${empty:-unset}", "unset"),
        ("${x:+'q'}", "q"),
        ("a\\", "a"),
        ("'$x'\"$x\"", "$xabcabc"),
    ],
)
def test_a_substitution_gives(text: str, result: str) -> None:
    environment = {"x": "abcabc", "star": "1*2", "empty": ""}

    assert Lexer().word(text, environment).text == result


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("${x", "missing '}'"),
        ("${", "missing '}'"),
        ("${}", "bad substitution"),
        ("${:-a}", "bad substitution"),
        ("${x:#a}", "unsupported modifier (:#)"),
        ("${x!a}", "unsupported modifier (!)"),
        ("${x:?must be set}", "x: must be set"),
        ("${x:?}", "x: is not allowed to be unset"),
        ("${empty:?}", "empty: is not allowed to be empty"),
        ("${x/a", "missing '/' in ${}"),
        ("${x/a/b", "missing '}'"),
        ("${x#\\d}", "invalid escape '\\d'"),
        ("'a", "matching single-quote"),
        ('"a', "matching double-quote"),
    ],
)
def test_a_bad_word_is_refused_with(text: str, reason: str) -> None:
    with pytest.raises(LexError) as caught:
        Lexer().word(text, {"empty": ""})

    assert reason in str(caught.value)


def test_the_escape_character_may_be_the_backtick() -> None:
    assert Lexer("`").word("c:\\dir`$x$x", {"x": "y"}).text == "c:\\dir$xy"


def test_which_variables_were_there_and_which_not_is_told() -> None:
    word = Lexer().word("$a ${b:-$c} '$d' \\$e", {"a": "1"})

    assert word.matched == {"a"}
    assert word.unmatched == {"b", "c"}


def test_doubling_values_ends_at_a_bound() -> None:
    value = "x" * (LIMIT // 4)

    with pytest.raises(LexError, match="expands to more"):
        Lexer().word("$a$a$a$a$a", {"a": value})
    with pytest.raises(LexError, match="expands to more"):
        Lexer().word("${a//x/" + "y" * 100 + "}", {"a": value})


def test_deep_nesting_ends_at_a_bound() -> None:
    with pytest.raises(LexError, match="nested"):
        Lexer().word("${a:-" * 5000 + "}" * 5000, {})


def test_a_pattern_made_to_go_back_and_forth_does_not() -> None:
    began = time.process_time()
    try:
        Lexer().word("${a#" + "*a" * 500 + "b}", {"a": "a" * 4000})
        Lexer().word("${a%%" + "*a?" * 300 + "b}", {"a": "a" * 2000})
    except LexError:
        pass  # refused for its length: as good

    assert time.process_time() - began < 20


@given(st.text("ab*?", max_size=6), st.text("ab", max_size=8), st.booleans(), st.booleans())
def test_patterns_cut_what_a_search_by_hand_cuts(
    pattern: str, value: str, longest: bool, suffix: bool
) -> None:
    cut = wildcards.without_suffix if suffix else wildcards.without_prefix

    got = cut(wildcards.read(pattern), value, longest=longest)

    ends = [n for n in range(len(value) + 1) if _fits(pattern, _end(value, n, suffix=suffix))]
    if not ends:
        assert got == value
    else:
        n = max(ends) if longest else min(ends)
        assert got == (value[: len(value) - n] if suffix else value[n:])


def _end(value: str, length: int, *, suffix: bool) -> str:
    return value[len(value) - length :] if suffix else value[:length]


def _fits(pattern: str, text: str) -> bool:
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(_fits(pattern[1:], text[n:]) for n in range(len(text) + 1))
    return bool(text) and pattern[0] in ("?", text[0]) and _fits(pattern[1:], text[1:])


@given(st.text("$ab{}:-+?#%/'\"\\` <", max_size=40), st.sampled_from("\\`"))
def test_any_text_is_a_word_or_a_lex_error(text: str, escape: str) -> None:
    try:
        Lexer(escape).words(text, {"a": "b", "b": ""})
    except LexError:
        pass
