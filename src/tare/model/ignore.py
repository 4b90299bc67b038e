""".dockerignore and ``--exclude``: which files of a context are left out.

The rules are those of moby's pattern matcher: one pattern a line, the last that matches decides,
``!`` takes back; ``*`` and ``?`` stay within a name, ``**`` does not; what matches a directory
takes what is in it. No pattern takes more than (its length times the path's) steps: one with few
stars becomes a regular expression, one with many an automaton that never goes back.

Pure: who walks asks `IgnoreRules.ignores`. Not for the wildcards of COPY's sources.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tare.errors import InvalidError

# What Go's strings.TrimSpace takes for a space.
SPACES: Final = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
_SIZE_MAX: Final = 1 << 20
_PATTERNS_MAX: Final = 10_000
_LENGTH_MAX: Final = 4096
_KNOWN_MAX: Final = 100_000  # directories whose answer is kept
_FEW_STARS: Final = 2  # so many cannot make a regular expression slow on a path

# Tokens that match more than one letter; any other is a _One.
_STAR, _DEEP, _REST = "*", "**/", "**"


class IgnoreRules:
    """A list of patterns; build it once and ask it for each path."""

    def __init__(self, patterns: Sequence[str], *, name: str = "--exclude") -> None:
        """Read *patterns*; InvalidError, naming *name* and the pattern's number."""
        if len(patterns) > _PATTERNS_MAX:
            raise InvalidError(f"{name}: more than {_PATTERNS_MAX} patterns")
        rules = (_read(text, name, number) for number, text in enumerate(patterns, 1))
        self._rules = tuple(rule for rule in rules if rule is not None)
        self._parents: dict[str, int] = {"": 0}

    @classmethod
    def parse(cls, content: bytes, *, name: str = ".dockerignore") -> IgnoreRules:
        """The rules of a file; InvalidError."""
        return cls(read_lines(content, name=name), name=name)

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns as understood, ``!`` in front of those that take back."""
        return tuple(("!" if rule.takes_back else "") + rule.pattern for rule in self._rules)

    @property
    def takes_back(self) -> bool:
        """Whether any pattern begins with ``!``."""
        return any(rule.takes_back for rule in self._rules)

    def ignores(self, path: str) -> bool:
        """Whether *path* (relative, slashes) is left out, by itself or with a parent."""
        parents = self._matching_parents(path.rpartition("/")[0])
        ignored = False
        for number, rule in enumerate(self._rules):
            # What is ignored already needs only what takes back, and the other way round.
            if rule.takes_back == ignored and (parents >> number & 1 or rule.matches(path)):
                ignored = not rule.takes_back
        return ignored

    def may_take_back_below(self, directory: str) -> bool:
        """Whether something in an ignored *directory* may be wanted, so it must be walked."""
        return any(rule.may_match_below(directory) for rule in self._rules if rule.takes_back)

    def _matching_parents(self, directory: str) -> int:
        """The rules that match *directory* or one above it, as bits."""
        known = self._parents.get(directory)
        if known is not None:
            return known
        if len(self._parents) > _KNOWN_MAX:
            self._parents = {"": 0}
        # From the first that is known downwards; a path may have too many parts to recurse.
        unknown = [directory]
        while (above := unknown[-1].rpartition("/")[0]) not in self._parents:
            unknown.append(above)
        bits = self._parents[above]
        for path in reversed(unknown):
            for number, rule in enumerate(self._rules):
                if not bits >> number & 1 and rule.matches(path):
                    bits |= 1 << number
            self._parents[path] = bits
        return bits


def read_lines(content: bytes, *, name: str = ".dockerignore") -> list[str]:
    """The patterns of an ignore file: comments and blanks gone, paths in their shortest form."""
    if len(content) > _SIZE_MAX:
        raise InvalidError(f"{name} is larger than {_SIZE_MAX} bytes")
    text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    patterns: list[str] = []
    for line in text.split("\n"):
        pattern = line.strip(SPACES)
        if line.startswith("#") or not pattern:
            continue
        mark = "!" if pattern.startswith("!") else ""
        pattern = pattern[len(mark) :].strip(SPACES)
        if pattern:
            pattern = _clean(pattern)
            if pattern != "/":
                pattern = pattern.removeprefix("/")
        patterns.append(mark + pattern)
    return patterns


def _clean(path: str) -> str:
    """Go's filepath.Clean."""
    cleaned = posixpath.normpath(path)
    return cleaned[1:] if cleaned.startswith("//") else cleaned


# ---- one pattern -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _One:
    """One letter: any of *letters* and *ranges*, or with *negated* any other."""

    letters: frozenset[str] = frozenset()
    ranges: tuple[tuple[str, str], ...] = ()
    negated: bool = False

    def has(self, letter: str) -> bool:
        inside = letter in self.letters or any(a <= letter <= z for a, z in self.ranges)
        return inside != self.negated

    def expression(self) -> str:
        """The same as a regular expression; a range that ends before it begins holds nothing."""
        parts = [re.escape(letter) for letter in sorted(self.letters)]
        parts += [f"{re.escape(a)}-{re.escape(z)}" for a, z in self.ranges if a <= z]
        if not parts:
            return r"[\s\S]" if self.negated else r"[^\s\S]"
        return f"[{'^' if self.negated else ''}{''.join(parts)}]"


_ANY: Final = _One(frozenset("/"), negated=True)  # what ? matches
_Token = _One | str


class _Rule:
    """One pattern, made ready to be matched."""

    def __init__(self, pattern: str, *, takes_back: bool) -> None:
        """ValueError where *pattern* makes no sense."""
        self.pattern = pattern
        self.takes_back = takes_back
        self._tokens = _tokens(pattern)
        self._plain = _is_plain(pattern)
        self._expression: re.Pattern[str] | None = None
        self._automaton: _Automaton | None = None
        self._stars = sum(isinstance(token, str) for token in self._tokens)
        # `**` at the very beginning or end alone makes a comparison, slashes or not.
        middle = pattern.removeprefix("**")
        self._suffix = middle if middle != pattern and _is_plain(middle) else None
        middle = pattern.removesuffix("**")
        self._prefix = middle if middle != pattern and _is_plain(middle) else None

    def matches(self, path: str) -> bool:
        if self._plain:
            return path == self.pattern
        if self._suffix is not None:
            # **/name is also the name alone.
            suffix = self._suffix
            return path.endswith(suffix) or (suffix[:1] == "/" and path == suffix[1:])
        if self._prefix is not None:
            return path.startswith(self._prefix)
        if self._stars > _FEW_STARS:
            if self._automaton is None:
                self._automaton = _Automaton(self._tokens)
            return self._automaton.matches(path)
        if self._expression is None:
            self._expression = re.compile("".join(map(_expression, self._tokens)))
        return self._expression.fullmatch(path) is not None

    def may_match_below(self, directory: str) -> bool:
        """Whether it may match something in *directory*; yes where that takes thought."""
        return not self._plain or self.pattern.startswith(directory + "/")


def _is_plain(pattern: str) -> bool:
    return not any(letter in pattern for letter in "*?[]\\")


def _read(text: str, name: str, number: int) -> _Rule | None:
    pattern = text.strip(SPACES)
    if not pattern:
        return None
    # Go cleans the mark together with the path; so "!a/../b" takes nothing back.
    pattern = _clean(pattern)
    takes_back = pattern.startswith("!")
    if pattern == "!":
        raise InvalidError(f'{name}: pattern {number}: illegal exclusion pattern: "!"')
    if takes_back:
        pattern = pattern[1:]
    try:
        if len(pattern) > _LENGTH_MAX:
            raise ValueError(f"longer than {_LENGTH_MAX} letters")
        return _Rule(pattern, takes_back=takes_back)
    except ValueError as error:
        shown = pattern if len(pattern) < 100 else pattern[:100] + "..."
        raise InvalidError(f"{name}: pattern {number}: {error}: {shown!r}") from None


# ---- reading ---------------------------------------------------------------------------------


def _tokens(pattern: str) -> list[_Token]:
    tokens: list[_Token] = []
    at = 0
    while at < len(pattern):
        letter = pattern[at]
        at += 1
        if letter == "*":
            at, token = _star(pattern, at)
            # Two of `**` are one, so that no run of tokens that match nothing is long.
            if token == _STAR or tokens[-1:] != [_DEEP]:
                tokens.append(token)
            elif token == _REST:
                tokens[-1] = token
        elif letter == "?":
            tokens.append(_ANY)
        elif letter == "[":
            at, one = _class(pattern, at)
            tokens.append(one)
        elif letter == "\\":
            if at == len(pattern):
                raise ValueError("syntax error in pattern")
            tokens.append(_One(frozenset(pattern[at])))
            at += 1
        else:
            tokens.append(_One(frozenset(letter)))
    return tokens


def _star(pattern: str, at: int) -> tuple[int, str]:
    if not pattern.startswith("*", at):
        return at, _STAR
    at += 1
    if pattern.startswith("/", at):
        at += 1
    return at, _DEEP if at < len(pattern) else _REST


def _class(pattern: str, at: int) -> tuple[int, _One]:
    negated = pattern.startswith("^", at)
    at += negated
    letters: set[str] = set()
    ranges: list[tuple[str, str]] = []
    while not pattern.startswith("]", at) or not (letters or ranges):
        at, first = _class_letter(pattern, at)
        if pattern.startswith("-", at):
            at, last = _class_letter(pattern, at + 1)
            ranges.append((first, last))
        else:
            letters.add(first)
    return at + 1, _One(frozenset(letters), tuple(ranges), negated)


def _class_letter(pattern: str, at: int) -> tuple[int, str]:
    letter = pattern[at : at + 1]
    if letter == "\\":
        at += 1
        letter = pattern[at : at + 1]
    elif letter in ("-", "]"):
        letter = ""
    # Something must follow, at least the bracket that closes.
    if not letter or at + 1 >= len(pattern):
        raise ValueError("syntax error in pattern")
    return at + 1, letter


# ---- matching --------------------------------------------------------------------------------


def _expression(token: _Token) -> str:
    if isinstance(token, _One):
        return token.expression()
    return {_STAR: "[^/]*", _DEEP: r"(?:[\s\S]*/)?", _REST: r"[\s\S]*"}[token]


class _Automaton:
    """All ways to match at once: bit *n* of a state says that the first *n* tokens have matched.

    A letter costs the same whatever came before it, so many stars do no harm.
    """

    def __init__(self, tokens: Sequence[_Token]) -> None:
        self._tokens = tokens
        self._end = 1 << len(tokens)
        # Those that may match nothing, and those that may go on.
        self._skips = self._bits(_STAR, _DEEP, _REST)
        self._within = self._bits(_STAR)
        self._across = self._bits(_DEEP, _REST)
        self._deep = self._bits(_DEEP)
        self._letters: dict[str, int] = {}

    def _bits(self, *kinds: str) -> int:
        return sum(1 << n for n, token in enumerate(self._tokens) if token in kinds)

    def matches(self, path: str) -> bool:
        # A DEEP that has begun must end with a slash, so it is kept apart from where it starts.
        state, inside = self._closed(1), 0
        for letter in path:
            inside |= state & self._deep
            after = (state & self._for(letter)) << 1
            after |= state & self._across & ~self._deep
            if letter == "/":
                after |= inside << 1
            else:
                after |= state & self._within
            state = self._closed(after)
            if not state and not inside:
                return False
        return bool(state & self._end)

    def _for(self, letter: str) -> int:
        bits = self._letters.get(letter)
        if bits is None:
            ones = ((n, one) for n, one in enumerate(self._tokens) if isinstance(one, _One))
            bits = sum(1 << n for n, one in ones if one.has(letter))
            if len(self._letters) < 1024:
                self._letters[letter] = bits
        return bits

    def _closed(self, state: int) -> int:
        """*state* and what follows from it by tokens that match nothing."""
        reached = state
        while True:
            further = reached | (reached & self._skips) << 1
            if further == reached:
                return reached
            reached = further
