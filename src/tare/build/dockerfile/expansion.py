"""Variables put into an instruction at the time of its step.

Not for which variables there are, nor for ARG and ENV taking effect (`scope`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final, TypeVar

from tare.build.dockerfile.instructions import (
    Add,
    Copy,
    Env,
    Expose,
    InlineFile,
    Instruction,
    Label,
    Pair,
    Run,
    Stopsignal,
    User,
    Volume,
    Workdir,
)
from tare.build.dockerfile.mounting import MountError, read_mount
from tare.build.dockerfile.ports import read_port
from tare.build.dockerfile.source import DockerfileError
from tare.build.dockerfile.words import Lexer, LexError
from tare.model.oci import is_signal

_I = TypeVar("_I", bound=Instruction)
_PORTS_MAX: Final = 3 << 16  # each of every protocol
_DOCUMENT: Final = Lexer(plain_quotes=True)


def expand(instruction: _I, environment: Mapping[str, str]) -> _I:
    """*instruction* with the variables of *environment* put in, quotes taken off, mounts typed.

    CMD, ENTRYPOINT, RUN's command, SHELL, HEALTHCHECK, MAINTAINER and ONBUILD keep their text:
    a shell reads it. ARG is the Scope's. DockerfileError where a variable is required or a
    value makes no sense.
    """
    return expand_noting(instruction, environment, set())


def expand_noting(instruction: _I, environment: Mapping[str, str], unset: set[str]) -> _I:
    """`expand`, adding the variables that were asked for and not there to *unset*."""
    expander = _Expander(instruction.place.escape, environment, unset)
    try:
        changes = expander.changes(instruction)
    except (LexError, MountError, ValueError) as error:
        place = instruction.place
        raise DockerfileError(str(error), place.source, place.lines) from None
    if not changes:
        return instruction
    # The type checker cannot know that the names fit: `changes` chose them by the type.
    return dataclasses.replace(instruction, **changes)  # type: ignore[arg-type]


class _Expander:
    """One instruction's words, all seen with the same variables."""

    def __init__(self, escape: str, environment: Mapping[str, str], unset: set[str]) -> None:
        self._lexer = Lexer(escape)
        self._environment = environment
        self._unset = unset

    def _word(self, text: str) -> str:
        word = self._lexer.word(text, self._environment)
        self._unset |= word.unmatched
        return word.text

    def _all(self, texts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(self._word(text) for text in texts)

    def changes(self, instruction: Instruction) -> dict[str, object]:
        """The fields that differ after expansion."""
        match instruction:
            case Env() | Label():
                return {"pairs": self._pairs(instruction.pairs)}
            case Copy():
                return self._paths(instruction)
            case Add():
                return {**self._paths(instruction), "checksum": self._word(instruction.checksum)}
            case Workdir():
                return {"path": self._word(instruction.path)}
            case User():
                return {"user": self._word(instruction.user)}
            case Volume():
                return {"paths": self._volumes(instruction.paths)}
            case Stopsignal():
                return {"signal": _known_signal(self._word(instruction.signal))}
            case Expose():
                return {"ports": self._ports(instruction.ports)}
            case Run():
                mounts = tuple(read_mount(text, self._word) for text in instruction.mount_flags)
                return {"mounts": mounts} if mounts else {}
            case _:
                return {}

    def _pairs(self, pairs: tuple[Pair, ...]) -> tuple[Pair, ...]:
        return tuple(
            Pair(self._word(pair.key), self._word(pair.value), pair.legacy) for pair in pairs
        )

    def _paths(self, copy: Copy | Add) -> dict[str, object]:
        return {
            "sources": self._all(copy.sources),
            "files": tuple(self._file(file) for file in copy.files),
            "destination": self._word(copy.destination),
            "chown": self._word(copy.chown),
            "chmod": self._word(copy.chmod),
        }

    def _file(self, file: InlineFile) -> InlineFile:
        if not file.expand:
            return file
        word = _DOCUMENT.word(file.content, self._environment)
        self._unset |= word.unmatched
        return InlineFile(file.name, word.text)

    def _volumes(self, paths: tuple[str, ...]) -> tuple[str, ...]:
        found = self._all(paths)
        if not all(found):
            raise ValueError("VOLUME specified can not be an empty string")
        return found

    def _ports(self, texts: tuple[str, ...]) -> tuple[str, ...]:
        names: dict[str, None] = {}
        written = 0
        for text in sorted(texts):
            for word in self._lexer.words(text, self._environment).words:
                port = read_port(word)
                written += port.last - port.first + 1
                if written > _PORTS_MAX:
                    raise ValueError("EXPOSE names more ports than there are")
                names.update(dict.fromkeys(port.names()))
        return tuple(names)


def _known_signal(text: str) -> str:
    """*text* where it is a signal's name, with or without SIG, or its number; ValueError."""
    if not is_signal(text):
        raise ValueError(f"invalid signal: {text}")
    return text
