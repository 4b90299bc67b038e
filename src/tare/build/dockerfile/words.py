"""Variables, quotes and escapes within one line of a Dockerfile, as BuildKit's lexer has them.

It is like a shell's, but not one: ``$name``, ``${name}`` with ``:- :+ :? - + ? # ## % %% / //``,
single and double quotes, and an escape character that may be the backtick. The work is bounded:
nesting by `_DEPTH`, what comes out by `LIMIT`.
Not for which variables there are (`scope`) nor for what is expanded where (`expansion`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tare.build.dockerfile import wildcards

LIMIT: Final = 1 << 20  # letters that one word may become: ENV A=$A$A doubles with each step
_DEPTH: Final = 64  # of ${a:-${b:-...}}
_EFFORT: Final = 1 << 22  # pattern length times value length, summed over one word

# What Go's unicode.IsSpace has; str.isspace has the file separators too.
SPACES: Final = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
_GAP: Final = re.compile(f"[{SPACES}]+")
# Letters that mean nothing anywhere, taken in one go.
_PLAIN: Final = re.compile(r"[^$'\"<\\`/}]+")
_SPECIAL: Final = frozenset("@*#?-$!0")  # the shell's one-letter parameters
_MODIFIERS: Final = frozenset("+-?#%")


class LexError(ValueError):
    """A word cannot be read; the text is BuildKit's sentence."""


@dataclass(frozen=True, slots=True)
class Word:
    """What became of a word, and which variables it asked for; ``words`` where asked for."""

    text: str
    words: tuple[str, ...]
    matched: frozenset[str]
    unmatched: frozenset[str]


@dataclass(frozen=True, slots=True)
class Lexer:
    """How to read words.

    ``keep_quotes`` and ``keep_escapes`` leave those letters in; ``plain_quotes`` makes quotes
    ordinary letters; ``keep_unset`` leaves a variable that is not set as it stands.
    """

    escape: str = "\\"
    keep_quotes: bool = False
    keep_escapes: bool = False
    plain_quotes: bool = False
    keep_unset: bool = False

    def word(self, text: str, environment: Mapping[str, str]) -> Word:
        """Read *text* as one word. LexError."""
        return self._read(text, environment, _Whole)

    def words(self, text: str, environment: Mapping[str, str]) -> Word:
        """Read *text* as one word and, split at spaces outside quotes, as several. LexError."""
        return self._read(text, environment, _Words)

    def _read(self, text: str, environment: Mapping[str, str], kind: type[_Whole]) -> Word:
        reader = _Reader(self, text, environment, kind)
        try:
            result, words = reader.until("", keep_escapes=self.keep_escapes)
        except LexError as error:
            raise LexError(f"failed to process {quoted(text)}: {error}") from None
        return Word(result, words, frozenset(reader.matched), frozenset(reader.unmatched))


def quoted(text: str) -> str:
    """*text* as BuildKit's messages quote it, cut where it is long."""
    shown = text if len(text) <= 200 else text[:200] + "..."
    shown = shown.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return '"' + shown.replace("\t", "\\t") + '"'


class _Whole:
    """Words that nobody asked for."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def split(self, text: str) -> None:
        """Take letters that spaces divide."""

    def raw(self, text: str) -> None:
        """Take letters that nothing divides."""

    def end(self) -> None:
        """End the word that has begun."""


class _Words(_Whole):
    """The words so far; letters of variables split, quoted and escaped ones do not."""

    def __init__(self) -> None:
        super().__init__()
        self._letters: list[str] = []

    def split(self, text: str) -> None:
        first, *others = _GAP.split(text)
        self.raw(first)
        for part in others:
            self.end()
            self.raw(part)

    def raw(self, text: str) -> None:
        if text:
            self._letters.append(text)

    def end(self) -> None:
        if self._letters:
            self.done.append("".join(self._letters))
            self._letters = []


class _Reader:
    """One pass over one text."""

    def __init__(
        self, lexer: Lexer, text: str, environment: Mapping[str, str], words: type[_Whole]
    ) -> None:
        self._lexer = lexer
        self._words = words
        self._text = text
        self._at = 0
        self._environment = environment
        self._keep_escapes = lexer.keep_escapes
        self._depth = 0
        self._size = 0
        self._effort = 0
        self.matched: set[str] = set()
        self.unmatched: set[str] = set()

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _next(self) -> str:
        letter = self._peek()
        self._at += 1 if letter else 0
        return letter

    def until(self, stop: str, *, keep_escapes: bool) -> tuple[str, tuple[str, ...]]:
        """Read up to *stop* (taken too), or to the end where it is empty."""
        outer, self._keep_escapes = self._keep_escapes, keep_escapes
        self._depth += 1
        if self._depth > _DEPTH:
            raise LexError(f"variables are nested more than {_DEPTH} deep")
        try:
            return self._until(stop)
        finally:
            self._depth -= 1
            self._keep_escapes = outer

    def _until(self, stop: str) -> tuple[str, tuple[str, ...]]:
        result: list[str] = []
        words = self._words()
        quotes = "" if self._lexer.plain_quotes else "'\""
        while letter := self._peek():
            plain = _PLAIN.match(self._text, self._at)
            if plain is not None:
                part = plain[0]
                self._at = plain.end()
                words.split(part)
            elif letter == stop:
                self._at += 1
                words.end()
                return "".join(result), tuple(words.done)
            elif letter == "$":
                part = self._dollar()
                words.split(part)
            elif letter in quotes:
                part = self._single_quoted() if letter == "'" else self._double_quoted()
                words.raw(part)
            elif letter == "<":
                part = self._angle()
                words.raw(part)
            elif letter == self._lexer.escape:
                part = self._escaped()
                words.raw(part)
            else:
                self._at += 1
                part = letter
                words.split(letter)
            result.append(part)
        if stop:
            raise LexError(f"unexpected end of statement while looking for matching {stop}")
        words.end()
        return "".join(result), tuple(words.done)

    def _escaped(self) -> str:
        escape = self._next()
        letter = self._next()
        return escape + letter if self._keep_escapes else letter

    def _angle(self) -> str:
        """``<<`` and the white space behind it stay one word with what follows: a heredoc."""
        self._at += 1
        if self._peek() != "<":
            return "<"
        start = self._at + 1
        self._at = start
        while self._peek() in ("\t", "\r", " ") and self._peek():
            self._at += 1
        return "<<" + self._text[start : self._at]

    def _single_quoted(self) -> str:
        start = self._at
        end = self._text.find("'", start + 1)
        if end < 0:
            raise LexError("unexpected end of statement while looking for matching single-quote")
        self._at = end + 1
        inside = self._text[start + 1 : end]
        return f"'{inside}'" if self._lexer.keep_quotes else inside

    def _double_quoted(self) -> str:
        quote = self._next()
        result = [quote] if self._lexer.keep_quotes else []
        while letter := self._peek():
            plain = _PLAIN.match(self._text, self._at)
            if plain is not None:
                result.append(plain[0])
                self._at = plain.end()
                continue
            if letter == "$":
                result.append(self._dollar())
                continue
            self._at += 1
            if letter == quote:
                if self._lexer.keep_quotes:
                    result.append(letter)
                return "".join(result)
            if letter == self._lexer.escape:
                if self._keep_escapes:
                    result.append(letter)
                following = self._peek()
                if not following:
                    break
                if following in ('"', "$", self._lexer.escape):
                    letter = self._next()
            result.append(letter)
        raise LexError("unexpected end of statement while looking for matching double-quote")

    # ---- variables ---------------------------------------------------------------------------

    def _dollar(self) -> str:
        self._at += 1
        if self._peek() != "{":
            name = self._name()
            if not name:
                return "$"
            value = self._value(name)
            return self._spend("$" + name if value is None and self._lexer.keep_unset else value)
        self._at += 1
        following = self._peek()
        if not following:
            raise LexError("syntax error: missing '}'")
        if following in "{}:":
            raise LexError("syntax error: bad substitution")
        return self._spend(self._braced(self._name()))

    def _spend(self, value: str | None) -> str:
        """*value*, counted against what one word may become."""
        value = value or ""
        self._size += len(value)
        if self._size > LIMIT:
            raise LexError(f"it expands to more than {LIMIT} letters")
        return value

    def _value(self, name: str) -> str | None:
        value = self._environment.get(name)
        (self.unmatched if value is None else self.matched).add(name)
        return value

    def _name(self) -> str:
        start = self._at
        first = self._peek()
        if first.isdecimal():
            while self._peek().isdecimal():
                self._at += 1
        elif first and first in _SPECIAL:
            self._at += 1
        else:
            while (letter := self._peek()) and (
                letter == "_" or letter.isalpha() or letter.isdecimal()
            ):
                self._at += 1
        return self._text[start : self._at]

    def _braced(self, name: str) -> str | None:
        letter = modifier = self._next()
        if letter == "}":
            value = self._value(name)
            return "${" + name + "}" if value is None and self._lexer.keep_unset else value
        if letter == "/":
            return self._replacement(name)
        if letter == ":":
            letter = self._next()
            modifier += letter
        if letter not in _MODIFIERS or modifier in (":#", ":%"):
            if not letter:
                raise LexError("syntax error: missing '}'")
            raise LexError(f"unsupported modifier ({modifier}) in substitution")
        word = self._inner("}", keep_escapes=letter in "#%")
        value = self._value(name)
        if value is None and self._lexer.keep_unset:
            return f"${{{name}{modifier}{word}}}"
        if letter in "#%":
            return self._trimmed(letter, word, value or "")
        return _chosen(name, modifier, word, value)

    def _inner(self, stop: str, *, keep_escapes: bool) -> str:
        try:
            return self.until(stop, keep_escapes=keep_escapes)[0]
        except LexError:
            if not self._peek():
                where = " in ${}" if stop == "/" else ""
                raise LexError(f"syntax error: missing '{stop}'{where}") from None
            raise

    def _trimmed(self, side: str, pattern: str, value: str) -> str:
        longest = pattern.startswith(side)
        tokens = self._tokens(pattern[1:] if longest else pattern, value)
        trim = wildcards.without_suffix if side == "%" else wildcards.without_prefix
        return trim(tokens, value, longest=longest)

    def _replacement(self, name: str) -> str:
        every = self._peek() == "/"
        self._at += every
        pattern = self._inner("/", keep_escapes=True)
        replacement = self._inner("}", keep_escapes=True)
        value = self._value(name)
        if value is None and self._lexer.keep_unset:
            return f"${{{name}/{pattern}/{replacement}}}"
        tokens = self._tokens(pattern, value or "")
        try:
            return wildcards.replaced(tokens, value or "", replacement, every=every, limit=LIMIT)
        except OverflowError:
            raise LexError(f"it expands to more than {LIMIT} letters") from None

    def _tokens(self, pattern: str, value: str) -> wildcards.Tokens:
        self._effort += (len(pattern) + 1) * (len(value) + 1)
        if self._effort > _EFFORT:
            raise LexError("the patterns of its substitutions are too long")
        try:
            return wildcards.read(pattern)
        except wildcards.PatternError as error:
            raise LexError(f"invalid pattern ({pattern}) in substitution: {error}") from None


def _chosen(name: str, modifier: str, word: str, value: str | None) -> str:
    """``:-``, ``:+``, ``:?`` and their like without the colon, which mind only what is unset."""
    colon = modifier.startswith(":")
    missing = value is None or (colon and not value)
    match modifier[-1]:
        case "-":
            return word if missing else value or ""
        case "+":
            return "" if missing else word
        case _:
            if missing:
                state = "unset" if value is None else "empty"
                raise LexError(f"{name}: {word or f'is not allowed to be {state}'}")
            return value or ""
