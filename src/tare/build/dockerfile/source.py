"""Where something stands in a Dockerfile, and the error that shows the place.

Not for reading the language (`lines`, `reading`): only for pointing into it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tare.errors import InvalidError

_WIDTH: Final = 160  # of a shown line; a longer one is cut, so that no error floods a terminal


@dataclass(frozen=True, slots=True)
class Lines:
    """The first and the last line of something, counted from 1."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True, repr=False)
class Source:
    """A whole Dockerfile as text: its name for messages and its physical lines."""

    name: str
    lines: tuple[str, ...]

    def line(self, number: int) -> str:
        """The text of one line, empty where there is none."""
        return self.lines[number - 1] if 0 < number <= len(self.lines) else ""


@dataclass(frozen=True, slots=True, repr=False)
class Place:
    """Where an instruction stands: its lines, what it says there, the comments right above.

    ``original`` is the logical line: continuations joined, comments between them taken out,
    here-documents not in it. ``escape`` is the file's escape character.
    """

    source: Source
    lines: Lines
    original: str
    comments: tuple[str, ...] = ()
    escape: str = "\\"


class DockerfileError(InvalidError):
    """The Dockerfile cannot be read or makes no sense; shows file, line, text and a marker.

    ``reason`` is the sentence alone, in BuildKit's words where BuildKit has one.
    """

    def __init__(
        self, reason: str, source: Source, lines: Lines, *, focus: str = "", hint: str = ""
    ) -> None:
        super().__init__(
            f"{source.name}:{lines.first}: {reason}\n{excerpt(source, lines, focus)}".rstrip(),
            hint=hint,
        )
        self.reason = reason
        self.name = source.name
        self.lines = lines


def excerpt(source: Source, lines: Lines, focus: str = "") -> str:
    """The line where *focus* first stands within *lines*, else the first, and carets below it."""
    number = lines.first
    if focus:
        found = (n for n in range(lines.first, lines.last + 1) if focus in source.line(n))
        number = next(found, number)
    text = source.line(number).rstrip().replace("\t", " ")
    if not text:
        return ""
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:_WIDTH])
    start = shown.find(focus) if focus else -1
    width = len(focus)
    if start < 0:
        start = len(shown) - len(shown.lstrip())
        width = len(shown) - start
    gutter = f"{number:4} | "
    below = " " * (len(gutter) - 2) + "| " + " " * start + "^" * max(1, width)
    return f"{gutter}{shown}\n{below}"
