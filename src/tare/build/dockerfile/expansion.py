"""Variables put into an instruction at the time of its step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from tare.build.dockerfile.instructions import Instruction
from tare.errors import UnsupportedError

_I = TypeVar("_I", bound=Instruction)


def expand(instruction: _I, environment: Mapping[str, str]) -> _I:
    """*instruction* with the variables of *environment* put in, quotes taken off, mounts typed.

    CMD, ENTRYPOINT, RUN's command, SHELL, HEALTHCHECK, MAINTAINER and ONBUILD keep their text:
    a shell reads it. ARG is the Scope's. DockerfileError where a variable is required or a
    value makes no sense.
    """
    raise UnsupportedError("being written")
