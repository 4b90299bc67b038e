"""A Dockerfile's text as nodes: one for each instruction, its arguments split, nothing judged.

Here are directives, comments, continued lines, here-documents, flags, JSON arrays and the ways
that arguments are divided. Which arguments an instruction may have is for `reading`.

Everything is one pass from left to right, without expressions that could go back, so reading
takes time in proportion to the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from tare.build.dockerfile.instructions import Heredoc
from tare.build.dockerfile.source import DockerfileError, Lines, Place, Source
from tare.build.dockerfile.words import SPACES, Lexer, LexError, quoted

SIZE_MAX: Final = 4 << 20
_LINE_MAX: Final = 65535  # bytes of one line, as BuildKit's scanner has it
_DIRECTIVES: Final = ("syntax", "escape", "check")
_NAME: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9]*")
_BLANK: Final = re.compile(r"[\t\v\f\r ]+")
_WORD: Final = re.compile(f"[^{SPACES}]+")
_HEREDOC: Final = re.compile(r"(\d*)<<(-?)[\t\n\f\r ]*+([^<]*)")
_HAS_HEREDOCS: Final = frozenset(("add", "copy", "run"))
_STRINGS_ONLY: Final = "when using JSON array syntax, arrays must be comprised of strings only"
_HEREDOC_LINE: Final = Lexer(keep_quotes=True, keep_escapes=True, keep_unset=True)
_HEREDOC_WORD: Final = Lexer(keep_unset=True)
_HEREDOC_RAW: Final = Lexer(keep_unset=True, keep_quotes=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One instruction, divided; ``keyword`` as written.

    ``json`` says that the arguments are an array's, ``legacy`` that ENV or LABEL is written
    without ``=``; ``child`` is what stands behind ONBUILD.
    """

    keyword: str
    flags: tuple[str, ...]
    arguments: tuple[str, ...]
    place: Place
    json: bool = False
    legacy: bool = False
    heredocs: tuple[Heredoc, ...] = ()
    child: Node | None = None


@dataclass(slots=True)
class Tree:
    """What `read` found beside the nodes: filled while they are taken."""

    source: Source
    directives: dict[str, tuple[str, int]] = field(default_factory=dict)
    empty_continuations: list[int] = field(default_factory=list)

    @property
    def escape(self) -> str:
        """The escape character in force."""
        return self.directives.get("escape", ("\\", 0))[0]


class _Wrong(Exception):
    """An instruction's text cannot be divided; where it stands is added by who knows."""

    def __init__(self, reason: str, focus: str = "") -> None:
        super().__init__(reason)
        self.reason, self.focus = reason, focus


def decode(text: bytes, name: str) -> Source:
    """*text* as lines; DockerfileError where it is too big, has a huge line or is not UTF-8."""
    whole = Lines(1, 1)
    nothing = Source(name, ())
    if len(text) > SIZE_MAX:
        raise DockerfileError(f"the file is larger than {SIZE_MAX} bytes", nothing, whole)
    if text.startswith((b"\xff\xfe", b"\xfe\xff")):
        hint = "save it as UTF-8"
        raise DockerfileError("the file is UTF-16, not UTF-8", nothing, whole, hint=hint)
    text = text.removeprefix(b"\xef\xbb\xbf")
    lines: list[str] = []
    for number, raw in enumerate(text.split(b"\n"), 1):
        if len(raw) > _LINE_MAX:
            reason = f"dockerfile line greater than max allowed size of {_LINE_MAX}"
            raise DockerfileError(reason, nothing, Lines(number, number))
        try:
            lines.append(raw.decode())
        except UnicodeDecodeError:
            shown = Source(name, (*lines, raw.decode(errors="replace")))
            focus = "\N{REPLACEMENT CHARACTER}"
            reason = "the line is not UTF-8"
            raise DockerfileError(reason, shown, Lines(number, number), focus=focus) from None
    if lines[-1] == "":
        del lines[-1]
    return Source(name, tuple(lines))


def read(tree: Tree) -> Iterator[Node]:
    """The nodes of *tree*'s source in order; DockerfileError at the first that cannot be read."""
    return _Reader(tree).nodes()


class _Reader:
    """Walks over the physical lines; ``_at`` is the next one's index, so the last one's number."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._lines = tree.source.lines
        self._at = 0
        self._comments: list[str] = []
        self._directives_end = False

    def nodes(self) -> Iterator[Node]:
        while self._at < len(self._lines):
            line = self._lines[self._at].rstrip("\r").lstrip(SPACES)
            self._at += 1
            if self._directive(line) or self._comment(line):
                continue
            first = self._at
            line, continued = self._continued(line)
            # A lone escape character at the file's end says nothing.
            text = self._joined(line) if continued else line
            if text.strip(SPACES):
                yield self._node(text, first)
            self._comments = []

    def _directive(self, line: str) -> bool:
        if self._directives_end:
            return False
        name, equals, value = line[1:].lstrip(SPACES).partition("=")
        name, value = name.rstrip("\t\n\f\r ").lower(), value.strip("\t\n\f\r ")
        known = line.startswith("#") and equals and value and _NAME.fullmatch(name)
        if not known or name not in _DIRECTIVES:
            self._directives_end = True
            return False
        if name in self._tree.directives:
            raise self._wrong(f"only one {name} parser directive can be used", self._at)
        if name == "escape" and value not in ("\\", "`"):
            raise self._wrong(
                f"invalid escape token '{value}' does not match ` or \\", self._at, focus=value
            )
        self._tree.directives[name] = (value, self._at)
        return True

    def _comment(self, line: str) -> bool:
        """Take a comment or an empty line; either way there is no instruction in it."""
        if line.startswith("#"):
            comment = line[1:].strip(SPACES)
            self._comments = [*self._comments[-99:], comment] if comment else []
            return True
        if not line:
            self._comments = []
        return not line

    def _continued(self, line: str) -> tuple[str, bool]:
        """*line* without the escape character at its end, and whether it had one.

        Two of them are an escaped one, and no continuation.
        """
        escape = self._tree.escape
        bare = line.rstrip("\t ")
        if bare.endswith(escape) and not bare.endswith(escape * 2):
            return bare[:-1], True
        return line, False

    def _joined(self, line: str) -> str:
        parts, empty, continued = [line], False, True
        while continued and self._at < len(self._lines):
            line = self._lines[self._at].rstrip("\r")
            self._at += 1
            bare = line.lstrip(SPACES)
            if bare.startswith("#"):
                continue
            if not bare:
                empty = True
                continue
            line, continued = self._continued(line)
            parts.append(line)
        if empty:
            self._tree.empty_continuations.append(self._at)
        return "".join(parts)

    def _node(self, text: str, first: int) -> Node:
        try:
            fields = divide(text, self._tree.escape)
            heredocs = self._heredocs(fields, text, first)
        except _Wrong as wrong:
            raise self._wrong(wrong.reason, first, focus=wrong.focus) from None
        except LexError as error:
            raise self._wrong(str(error), first) from None
        place = Place(
            self._tree.source,
            Lines(first, self._at),
            text.strip(SPACES),
            tuple(self._comments),
            self._tree.escape,
        )
        return _placed(fields, place, heredocs)

    def _heredocs(self, fields: Fields, text: str, first: int) -> tuple[Heredoc, ...]:
        if "<<" not in text or not fields.may_have_heredocs:
            return ()
        found: list[Heredoc] = []
        for heredoc in heredocs_in(text):
            start = self._at
            while self._at < len(self._lines):
                line = self._lines[self._at].rstrip("\r")
                self._at += 1
                if (line.lstrip("\t") if heredoc.chomp else line) == heredoc.name:
                    break
            else:
                hint = f"a line with {quoted(heredoc.name)} alone must end it"
                lines = Lines(first, len(self._lines))
                raise DockerfileError("unterminated heredoc", self._tree.source, lines, hint=hint)
            content = "".join(f"{line}\n" for line in self._lines[start : self._at - 1])
            found.append(
                Heredoc(heredoc.name, content, heredoc.expand, heredoc.chomp, heredoc.descriptor)
            )
        return tuple(found)

    def _wrong(self, reason: str, first: int, *, focus: str = "") -> DockerfileError:
        return DockerfileError(reason, self._tree.source, Lines(first, self._at), focus=focus)


# ---- here-documents --------------------------------------------------------------------------


def heredoc(word: str) -> Heredoc | None:
    """``<<NAME`` and its kin as a here-document without content, or None; LexError."""
    match = _HEREDOC.fullmatch(word)
    if match is None or not match[3]:
        return None
    plain = _HEREDOC_WORD.words(match[3], {}).words
    if len(plain) != 1:
        return None
    # Quotes that are gone when read plainly were quotes: then nothing in it is expanded.
    raw = _HEREDOC_RAW.words(match[3], {}).words
    expand = _quotes(plain[0]) == _quotes(raw[0])
    number = int(match[1]) if match[1] and match[1].isascii() and len(match[1]) < 10 else 0
    return Heredoc(plain[0], "", expand, bool(match[2]), number)


def _quotes(text: str) -> int:
    return text.count("'") + text.count('"')


def heredocs_in(line: str) -> Iterator[Heredoc]:
    """The here-documents that *line* opens; LexError."""
    try:
        words = _HEREDOC_LINE.words(line, {}).words
    except LexError:
        return  # quotes that do not close are the shell's to complain about
    for word in words:
        if "<<" in word and (found := heredoc(word)) is not None:
            yield found


# ---- one logical line ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fields:
    """A logical line, divided."""

    keyword: str
    flags: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    json: bool = False
    legacy: bool = False
    child: Fields | None = None

    @property
    def may_have_heredocs(self) -> bool:
        """Whether ``<<`` here may open a document."""
        if self.child is not None:
            return self.child.may_have_heredocs
        return self.keyword.lower() in _HAS_HEREDOCS and not self.json


def _placed(fields: Fields, place: Place, heredocs: tuple[Heredoc, ...]) -> Node:
    return Node(
        keyword=fields.keyword,
        flags=fields.flags,
        arguments=fields.arguments,
        place=place,
        json=fields.json,
        legacy=fields.legacy,
        heredocs=heredocs,
        child=_placed(fields.child, place, ()) if fields.child is not None else None,
    )


def divide(text: str, escape: str) -> Fields:
    """The keyword, flags and arguments of one logical line."""
    keyword, _, rest = _split_once(text.strip(SPACES))
    flags, rest = _flags(rest, escape)
    divider = _DIVIDERS.get(keyword.lower())
    if divider is None:
        return Fields(keyword, tuple(flags))
    return divider(keyword, tuple(flags), rest.strip(SPACES), escape)


def _split_once(text: str) -> tuple[str, str, str]:
    match = _BLANK.search(text)
    if match is None:
        return text, "", ""
    return text[: match.start()], match[0], text[match.end() :]


def _first_word(text: str) -> str:
    match = _WORD.match(text)
    return match[0] if match else ""


def _flags(line: str, escape: str) -> tuple[list[str], str]:
    """The words at the beginning that start with ``--``, unquoted, and what is left."""
    flags: list[str] = []
    at = 0
    while True:
        while at < len(line) and line[at] in SPACES:
            at += 1
        if not line.startswith("--", at):
            return flags, line[at:]
        word, seen_quote, at = _flag(line, at, escape)
        if word == "--":
            return flags, line[at:]
        if word or seen_quote:
            flags.append(word)


def _flag(line: str, at: int, escape: str) -> tuple[str, bool, int]:
    letters: list[str] = []
    quote, seen = "", False
    while at < len(line):
        letter = line[at]
        if letter == escape:
            letters.append(line[at + 1 : at + 2])
            at += 2
            continue
        if quote:
            if letter == quote:
                quote = ""
            else:
                letters.append(letter)
        elif letter in SPACES:
            break
        elif letter in "'\"":
            quote, seen = letter, True
        else:
            letters.append(letter)
        at += 1
    return "".join(letters), seen, min(at, len(line))


def words_of(text: str, escape: str) -> list[str]:
    """*text* divided at spaces outside quotes; the quotes stay."""
    words: list[str] = []
    letters: list[str] = []
    quote = ""
    at = 0
    while at < len(text):
        letter = text[at]
        at += 1
        if letter == escape and quote != "'":
            if at == len(text):
                quote = ""
                break  # an escape character at the end says nothing
            letters.append(letter)
            letter = text[at]
            at += 1
        elif quote:
            if letter == quote:
                quote = ""
        elif letter in SPACES:
            if letters:
                words.append("".join(letters))
                letters = []
            continue
        elif letter in "'\"":
            quote = letter
        letters.append(letter)
    if letters:
        words.append("".join(letters))
    return words


def _array(text: str) -> tuple[str, ...] | None:
    """A JSON array of strings, or None where *text* is none; _Wrong for other values in it."""
    if not text.startswith("["):
        return None
    try:
        value: object = json.loads(text, parse_constant=_no_constant, parse_int=float)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, list):
        return None
    strings = [item for item in value if isinstance(item, str)]
    if len(strings) != len(value):
        raise _Wrong(_STRINGS_ONLY)
    return tuple(_whole(item) for item in strings)


def _no_constant(name: str) -> object:
    raise ValueError(name)


def _whole(text: str) -> str:
    """*text* with halves of surrogate pairs replaced, as they cannot be written anywhere."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _by_blanks(keyword: str, flags: tuple[str, ...], rest: str, _escape: str, /) -> Fields:
    return Fields(keyword, flags, tuple(_BLANK.split(rest)) if rest else ())


def _as_whole(keyword: str, flags: tuple[str, ...], rest: str, _escape: str, /) -> Fields:
    return Fields(keyword, flags, (rest,) if rest else ())


def _array_or_whole(keyword: str, flags: tuple[str, ...], rest: str, escape: str, /) -> Fields:
    array = _array(rest)
    if array is not None:
        return Fields(keyword, flags, array, json=True)
    return _as_whole(keyword, flags, rest, escape)


def _array_or_blanks(keyword: str, flags: tuple[str, ...], rest: str, escape: str, /) -> Fields:
    array = _array(rest)
    if array is not None:
        return Fields(keyword, flags, array, json=True)
    return _by_blanks(keyword, flags, rest, escape)


def _by_words(keyword: str, flags: tuple[str, ...], rest: str, escape: str, /) -> Fields:
    return Fields(keyword, flags, tuple(words_of(rest, escape)))


def _pairs(keyword: str, flags: tuple[str, ...], rest: str, escape: str, /) -> Fields:
    """``KEY value`` or ``KEY=value ...``: what the first word has decides."""
    words = words_of(rest, escape)
    if not words:
        return Fields(keyword, flags)
    if "=" not in words[0]:
        key, blank, value = _split_once(rest)
        if not blank:
            raise _Wrong(f"{keyword.upper()} must have two arguments", rest)
        return Fields(keyword, flags, (key, value), legacy=True)
    arguments: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise _Wrong(
                f"Syntax error - can't find = in {quoted(word)}. Must be of the form: name=value",
                word,
            )
        arguments += (key, value)
    return Fields(keyword, flags, tuple(arguments))


def _health(keyword: str, flags: tuple[str, ...], rest: str, escape: str, /) -> Fields:
    """A type, and behind it an array or a text."""
    kind = _first_word(rest)
    if not kind:
        return Fields(keyword, flags)
    command = _array_or_whole(keyword, flags, rest[len(kind) :].lstrip(SPACES), escape)
    return Fields(keyword, flags, (kind, *command.arguments), json=command.json)


def _onbuild(keyword: str, flags: tuple[str, ...], rest: str, escape: str, /) -> Fields:
    if not rest:
        return Fields(keyword, flags)
    # Whoever chains a thousand ONBUILDs gets the first two: that is refused anyway.
    inner = _first_word(rest).lower()
    child = Fields(inner, ()) if inner == "onbuild" else divide(rest, escape)
    return Fields(keyword, flags, child=child)


_Divider = Callable[[str, tuple[str, ...], str, str], Fields]
_DIVIDERS: Final[dict[str, _Divider]] = {
    "add": _array_or_blanks,
    "arg": _by_words,
    "cmd": _array_or_whole,
    "copy": _array_or_blanks,
    "entrypoint": _array_or_whole,
    "env": _pairs,
    "expose": _by_blanks,
    "from": _by_blanks,
    "healthcheck": _health,
    "label": _pairs,
    "maintainer": _as_whole,
    "onbuild": _onbuild,
    "run": _array_or_whole,
    "shell": _array_or_whole,
    "stopsignal": _as_whole,
    "user": _as_whole,
    "volume": _array_or_blanks,
    "workdir": _as_whole,
}
KEYWORDS: Final = tuple(name.upper() for name in _DIVIDERS)
