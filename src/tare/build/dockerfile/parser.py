"""A Dockerfile's bytes to its typed stages; the door to the reader.

Not for variables (`expansion`, `scope`) nor for advice (`checks`).
"""

from __future__ import annotations

from tare.build.dockerfile.instructions import Dockerfile, Instruction
from tare.build.dockerfile.source import Place
from tare.errors import UnsupportedError


def parse(text: bytes, *, name: str = "Dockerfile") -> Dockerfile:
    """Read a whole Dockerfile; *name* is for messages. DockerfileError, and no other."""
    raise UnsupportedError("being written")


def parse_trigger(text: str, place: Place) -> Instruction:
    """One ONBUILD trigger of a base image, to be told at *place* (the FROM). DockerfileError."""
    raise UnsupportedError("being written")
