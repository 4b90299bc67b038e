"""The patterns of ``${name#pattern}``, ``%`` and ``/``: ``*``, ``?`` and letters, no brackets.

Matched by search for the fixed parts between the stars, never by backtracking, so that no
pattern takes more than (its length times the value's) steps. Not for .dockerignore (`ignore`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

_STAR: Final = None  # a token; any other is one letter, or _ANY for any one letter
_ANY: Final = ""

Tokens = list[str | None]


class PatternError(ValueError):
    """The pattern makes no sense; the text is BuildKit's."""


def read(pattern: str) -> Tokens:
    """The tokens of *pattern*; PatternError for an escape that is none."""
    tokens: Tokens = []
    at = 0
    while at < len(pattern):
        letter = pattern[at]
        at += 1
        if letter == "*":
            tokens.append(_STAR)
        elif letter == "?":
            tokens.append(_ANY)
        elif letter == "\\":
            following = pattern[at : at + 1]
            if following in ("*", "?", "\\", "}", "/") and following:
                tokens.append(following)
                at += 1
            else:
                raise PatternError(f"invalid escape '\\{following}'")
        else:
            tokens.append(letter)
    return tokens


def without_prefix(tokens: Tokens, value: str, *, longest: bool) -> str:
    """*value* without its shortest or longest beginning that the pattern matches."""
    end = _Pattern(tokens).match_at(value, 0, longest=longest)
    return value if end < 0 else value[end:]


def without_suffix(tokens: Tokens, value: str, *, longest: bool) -> str:
    """*value* without its shortest or longest end that the pattern matches."""
    return without_prefix(tokens[::-1], value[::-1], longest=longest)[::-1]


def replaced(tokens: Tokens, value: str, replacement: str, *, every: bool, limit: int) -> str:
    """*value* with the first or every longest match replaced.

    OverflowError where that would be longer than *limit*.
    """
    parts: list[str] = []
    last, total = 0, len(value)
    for start, end in _Pattern(tokens).matches(value):
        parts += (value[last:start], replacement)
        last = end
        total += len(replacement) - (end - start)
        if total > limit:
            raise OverflowError
        if not every:
            break
    parts.append(value[last:])
    return "".join(parts)


class _Pattern:
    """The fixed parts between stars; the first is bound to the start, the last to the end."""

    def __init__(self, tokens: Tokens) -> None:
        parts: list[list[str]] = [[]]
        for token in tokens:
            if token is None:
                parts.append([])
            else:
                parts[-1].append(token)
        self._parts = parts

    def matches(self, value: str) -> Iterator[tuple[int, int]]:
        """The longest matches from left to right, none overlapping."""
        at, previous = 0, -1
        while at <= len(value):
            start = self._find(self._parts[0], value, at)
            end = self.match_at(value, start, longest=True) if start >= 0 else -1
            # A star matches any run, so what cannot follow here cannot follow later either.
            if end < 0:
                return
            # An empty match right behind another is none.
            if end > start or start != previous:
                yield start, end
            previous = end
            at = end if end > start else end + 1

    def match_at(self, value: str, start: int, *, longest: bool) -> int:
        """Where the match that begins at *start* ends, or -1."""
        first, *others = self._parts
        if not self._stands(first, value, start):
            return -1
        at = start + len(first)
        for number, part in enumerate(others, 1):
            final = number == len(others)
            if final and longest:
                return self._find_last(part, value, at)
            found = self._find(part, value, at)
            if found < 0:
                return -1
            at = found + len(part)
        return at

    @staticmethod
    def _stands(part: list[str], value: str, at: int) -> bool:
        if at + len(part) > len(value):
            return False
        return all(token in (_ANY, value[at + n]) for n, token in enumerate(part))

    def _find(self, part: list[str], value: str, start: int) -> int:
        if _ANY not in part:
            return value.find("".join(part), start)
        last = len(value) - len(part)
        return next((at for at in range(start, last + 1) if self._stands(part, value, at)), -1)

    def _find_last(self, part: list[str], value: str, start: int) -> int:
        """Where the last place of *part* at or behind *start* ends, or -1."""
        if _ANY not in part:
            text = "".join(part)
            found = value.rfind(text, start)
            return -1 if found < 0 else found + len(text)
        last = len(value) - len(part)
        places = (at for at in range(last, start - 1, -1) if self._stands(part, value, at))
        found = next(places, -1)
        return -1 if found < 0 else found + len(part)
