"""Command lines: one flat table of options each, from which parsing and help are made.

argparse costs 20 ms; this is a dictionary and a loop. Words and exit codes of usage errors are
those of Docker's CLI, whose tables these are. Not for what the options mean.
"""

from __future__ import annotations

from tare.errors import InvalidError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import TypeAlias

    from tare.client.transport import Daemon

    Value: TypeAlias = "bool | int | str | list[str]"
    # name -> (short form or "", kind, help)
    Table: TypeAlias = "dict[str, tuple[str, str, str]]"
    Action: TypeAlias = "Callable[[Daemon, Flags, list[str]], int]"

# Kinds that are given more than once; all others but bool and the numbers are single words.
_LISTS = frozenset(
    ("list", "map", "filter", "mount", "network", "ulimit", "strings", "gpu-request")
)
_NUMBERS = frozenset(("int", "uint16", "uint"))
_TRUE = frozenset(("1", "t", "T", "true", "TRUE", "True"))
_FALSE = frozenset(("0", "f", "F", "false", "FALSE", "False"))


class UsageError(InvalidError):
    """A command line that cannot be understood; ``exit_code`` is Docker's for its kind."""


class Command:
    """One command: how it is written, its options, and what it does."""

    __slots__ = ("about", "interspersed", "least", "most", "notes", "options", "run", "usage")

    def __init__(
        self,
        usage: str,
        about: str,
        run: Action,
        options: Table | None = None,
        *,
        least: int = 0,
        most: int = -1,
        interspersed: bool = True,
        notes: str = "",
    ) -> None:
        """*usage* follows the command's name; *most* -1 is no bound.

        *interspersed* False stops reading options at the first argument, for commands that are
        followed by a command line of somebody else.
        """
        self.usage = usage
        self.about = about
        self.run = run
        self.options = options or {}
        self.least = least
        self.most = most
        self.interspersed = interspersed
        self.notes = notes


class Flags:
    """The options that were given."""

    __slots__ = ("values",)

    def __init__(self, values: dict[str, Value]) -> None:
        self.values = values

    def given(self, name: str) -> bool:
        """Whether the option stands on the command line."""
        return name in self.values

    def flag(self, name: str, default: bool = False) -> bool:
        """The value of a switch."""
        return bool(self.values.get(name, default))

    def text(self, name: str, default: str = "") -> str:
        """The value of an option with one word."""
        value = self.values.get(name, default)
        return value if isinstance(value, str) else default

    def number(self, name: str, default: int = 0) -> int:
        """The value of an option with a whole number."""
        value = self.values.get(name, default)
        return value if isinstance(value, int) else default

    def list(self, name: str) -> list[str]:
        """All values of an option that may be repeated."""
        value = self.values.get(name)
        return value if isinstance(value, list) else []


def parse(name: str, command: Command, arguments: list[str]) -> tuple[Flags, list[str]] | None:
    """Read *arguments*; None when help was asked for, UsageError when they make no sense."""
    values: dict[str, Value] = {}
    rest: list[str] = []
    table = command.options
    words = iter(arguments)
    for word in words:
        if word == "--":
            rest.extend(words)
        elif word.startswith("--"):
            flag, has_value, value = word[2:].partition("=")
            if flag == "help":
                return None
            flag = _ALIASES.get(flag, flag) if flag not in table else flag
            if flag not in table:
                raise _unknown(name, command, flag)
            if not has_value:
                if table[flag][1] == "bool":
                    values[flag] = True
                    continue
                value = next(words, "\0")
                if value == "\0":
                    raise _misused(name, f"flag needs an argument: --{flag}")
            _store(name, table, values, flag, value)
        elif word.startswith("-") and word != "-":
            if not _shorts(name, table, values, word[1:], words):
                return None
        else:
            rest.append(word)
            if not command.interspersed:
                rest.extend(words)
    _check_count(name, command, rest)
    return Flags(values), rest


# Old spellings that people's fingers know; Docker hides them from its help.
_ALIASES = {
    "net": "network",
    "net-alias": "network-alias",
    "dns-opt": "dns-option",
    "time": "timeout",
}


def _shorts(
    name: str, table: Table, values: dict[str, Value], cluster: str, words: Iterator[str]
) -> bool:
    letters = {entry[0]: flag for flag, entry in table.items() if entry[0]}
    at = 0
    while at < len(cluster):
        letter = cluster[at]
        at += 1
        flag = letters.get(letter)
        if flag is None:
            if letter == "h":
                return False
            raise _misused(name, f"unknown shorthand flag: {letter!r} in -{cluster}")
        if table[flag][1] == "bool" and cluster[at : at + 1] != "=":
            values[flag] = True
            continue
        value = cluster[at:].removeprefix("=") if at < len(cluster) else next(words, "\0")
        if value == "\0":
            raise _misused(name, f"flag needs an argument: {letter!r} in -{cluster}")
        _store(name, table, values, flag, value)
        break
    return True


def _store(name: str, table: Table, values: dict[str, Value], flag: str, value: str) -> None:
    short, kind, _ = table[flag]
    try:
        if kind == "bool":
            values[flag] = _truth(value)
        elif kind in _LISTS:
            if kind == "filter" and "=" not in value:
                raise InvalidError("bad format of filter (expected name=value)")
            many = values.setdefault(flag, [])
            assert isinstance(many, list)
            many.append(value)
        elif kind in _NUMBERS:
            values[flag] = _whole(value, kind)
        else:
            if kind in ("bytes", "duration", "decimal"):
                from tare.client import units

                units.CHECKS[kind](value)
            values[flag] = value
    except InvalidError as error:
        shown = f"-{short}, --{flag}" if short else f"--{flag}"
        raise _misused(name, f'invalid argument "{value}" for "{shown}" flag: {error}') from None


def _truth(value: str) -> bool:
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise InvalidError(f'"{value}" is neither true nor false')


def _whole(value: str, kind: str) -> int:
    try:
        number = int(value)
    except ValueError:
        raise InvalidError(f'"{value}" is not a whole number') from None
    if kind != "int" and not 0 <= number <= (65535 if kind == "uint16" else (1 << 64) - 1):
        raise InvalidError(f"{number} is out of range")
    return number


def _check_count(name: str, command: Command, rest: list[str]) -> None:
    least, most, count = command.least, command.most, len(rest)
    if count >= least and (most < 0 or count <= most):
        return
    if most == 0:
        words = "accepts no arguments"
    else:
        bound = least if count < least else most
        exact = (
            "requires" if least == most else f"requires at {'least' if count < least else 'most'}"
        )
        words = f"{exact} {bound} argument{'' if bound == 1 else 's'}"
    raise UsageError(
        f"'tare {name}' {words}",
        hint=f"Usage: tare {name} {command.usage}\nSee 'tare {name} --help'.",
    )


def _misused(name: str, sentence: str, more: str = "") -> UsageError:
    hint = f"{more}\nSee 'tare {name} --help'." if more else f"See 'tare {name} --help'."
    return UsageError(sentence, hint=hint, exit_code=125)


def _unknown(name: str, command: Command, flag: str) -> UsageError:
    near = nearest(flag, command.options)
    return _misused(name, f"unknown flag: --{flag}", f"Did you mean --{near}?" if near else "")


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that *word* was probably meant to be, or ""."""
    import difflib

    return next(iter(difflib.get_close_matches(word, list(known), 1, 0.6)), "")


def help_text(name: str, command: Command, width: int = 80) -> str:
    """What ``--help`` prints."""
    lines = [f"Usage:  tare {name} {command.usage}".rstrip(), "", command.about]
    if command.notes:
        lines += ["", command.notes]
    if command.options:
        lines += ["", "Options:"]
        left = {
            flag: f"  {f'-{short},' if short else '   '} --{flag}"
            + ("" if kind == "bool" else f" {kind}")
            for flag, (short, kind, _) in sorted(command.options.items())
        }
        column = max(len(text) for text in left.values()) + 3
        for flag, text in left.items():
            wrapped = _wrapped(command.options[flag][2], max(width - column, 30))
            lines.append(f"{text:<{column}}{wrapped[0]}")
            lines += [" " * column + line for line in wrapped[1:]]
    return "\n".join(lines) + "\n"


def _wrapped(text: str, width: int) -> list[str]:
    lines: list[str] = []
    for paragraph in text.split("\n"):
        current = ""
        for word in paragraph.split(" "):
            if current and len(current) + 1 + len(word) > width:
                lines.append(current)
                current = word
            else:
                current = f"{current} {word}" if current else word
        lines.append(current)
    return lines
