"""A shell script divided into commands and words, roughly, for advice on what it runs.

Good enough to see ``curl ... | sh`` in a RUN line; it is no shell: nothing is expanded, and what
stands inside ``$(...)`` or ``sh -c '...'`` stays one word's text. One pass, never raises.
"""

from __future__ import annotations

import re
from typing import Final

_WORDS: Final = re.compile(r"[^\s\\'\"|&;()#]+")
_ASSIGNMENT: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_BEFORE: Final = frozenset((
    "if", "then", "else", "elif", "do", "while", "until", "!", "{", "time", "env", "exec",
    "command", "nice", "nohup",
))  # fmt: skip

Command = tuple[str, ...]
Pipeline = tuple[Command, ...]


def pipelines(script: str) -> list[Pipeline]:
    """The pipelines of *script* in order, each its commands, each its words without quotes."""
    return _Splitter(script).split()


def bare(command: Command) -> Command:
    """*command* without assignments, keywords and wrappers in front of its program."""
    at = 0
    while at < len(command) and (command[at] in _BEFORE or _ASSIGNMENT.match(command[at])):
        at += 1
    return command[at:]


def program(command: Command) -> str:
    """The name of what *command* runs, without its directory; empty for none."""
    words = bare(command)
    return words[0].rpartition("/")[2] if words else ""


class _Splitter:
    def __init__(self, script: str) -> None:
        self._script = script
        self._letters: list[str] = []
        self._quoted = False
        self._words: list[str] = []
        self._commands: list[Command] = []
        self._pipelines: list[Pipeline] = []

    def split(self) -> list[Pipeline]:
        script, at = self._script, 0
        while at < len(script):
            plain = _WORDS.match(script, at)
            if plain is not None:
                self._letters.append(plain[0])
                at = plain.end()
                continue
            at = self._special(script[at], at)
        self._end_pipeline()
        return self._pipelines

    def _special(self, letter: str, at: int) -> int:
        """Take what begins with *letter* at *at*; the next index."""
        script = self._script
        following = script[at + 1 : at + 2]
        if letter in "'\"":
            return self._quote(letter, at + 1)
        if letter == "\\":
            if following != "\n":
                self._letters.append(following)
            return at + 2
        if letter == "#":
            if self._letters or self._quoted:
                self._letters.append(letter)
                return at + 1
            end = script.find("\n", at)
            return len(script) if end < 0 else end
        if letter == "|" and following != "|":
            self._end_command()
            return at + 1
        if letter == "&" and self._letters and self._letters[-1].endswith((">", "<")):
            self._letters.append(letter)  # 2>&1
            return at + 1
        if letter in "|&;()\n":
            self._end_pipeline()
            return at + (2 if letter in "|&" and following == letter else 1)
        self._end_word()
        return at + 1

    def _quote(self, quote: str, at: int) -> int:
        self._quoted = True
        script = self._script
        while at < len(script) and script[at] != quote:
            if script[at] == "\\" and quote == '"':
                at += 1
            self._letters.append(script[at : at + 1])
            at += 1
        return at + 1

    def _end_word(self) -> None:
        if self._letters or self._quoted:
            self._words.append("".join(self._letters))
        self._letters, self._quoted = [], False

    def _end_command(self) -> None:
        self._end_word()
        if self._words:
            self._commands.append(tuple(self._words))
        self._words = []

    def _end_pipeline(self) -> None:
        self._end_command()
        if self._commands:
            self._pipelines.append(tuple(self._commands))
        self._commands = []
