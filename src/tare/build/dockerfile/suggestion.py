"""What somebody may have meant: the nearest of the words that are known."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_NEAR: Final = 3  # fewer changes of a letter than this
_LONGEST: Final = 64  # a longer word is no slip of the finger


def nearest(word: str, known: Iterable[str], *, any_case: bool = False) -> str:
    """The word of *known* less than three letters away, or empty; a known one is none.

    With *any_case* the answer is in the letters' case of *word*.
    """
    if len(word) > _LONGEST:
        return ""
    wanted = word.lower() if any_case else word
    best, found = _NEAR, ""
    for option in sorted(known):
        candidate = option.lower() if any_case else option
        if candidate == wanted:
            return ""
        distance = _distance(wanted, candidate)
        if distance < best:
            best, found = distance, candidate
    if any_case and word == word.upper() and word != word.lower():
        return found.upper()
    return found


def meant(word: str, known: Iterable[str], *, any_case: bool = False) -> str:
    """`` (did you mean X?)`` to be put behind a message, or empty."""
    found = nearest(word, known, any_case=any_case)
    return f" (did you mean {found}?)" if found else ""


def _distance(one: str, other: str) -> int:
    """Levenshtein's: letters put in, left out or changed."""
    if abs(len(one) - len(other)) >= _NEAR:
        return _NEAR
    row = list(range(len(other) + 1))
    for at, letter in enumerate(one, 1):
        above = row
        row = [at]
        for n, candidate in enumerate(other):
            row.append(min(above[n] + (letter != candidate), above[n + 1] + 1, row[n] + 1))
    return row[-1]
