"""Which variables a step sees: global ARGs, a stage's ARGs and ENVs, platforms, proxies.

As in BuildKit: what was said last wins, be it ARG or ENV; only ENV ends up in the image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tare.build.dockerfile.instructions import Arg, Dockerfile, Env, Stage
from tare.errors import UnsupportedError
from tare.model.oci import Platform


def global_arguments(
    dockerfile: Dockerfile,
    build_args: Mapping[str, str],
    *,
    build: Platform,
    target: Platform,
    stage: str = "",
) -> dict[str, str]:
    """What FROM lines see, and what a stage's ``ARG NAME`` without a default takes over.

    The ARGs before the first FROM, after BUILDPLATFORM, TARGETPLATFORM and the like; *stage* is
    the target asked for. DockerfileError.
    """
    raise UnsupportedError("being written")


@dataclass(frozen=True, slots=True)
class Base:
    """What a stage starts from, variables put in; ``platform`` is empty where none is said."""

    image: str
    platform: str = ""


def base_of(stage: Stage, arguments: Mapping[str, str]) -> Base:
    """The image or stage name and the platform of a FROM, by `global_arguments`. DockerfileError."""
    raise UnsupportedError("being written")


def proxies(build_args: Mapping[str, str]) -> dict[str, str]:
    """``http_proxy`` and its like of the build arguments, in both cases of letters.

    RUN has them without an ARG; they are neither in the image nor in a cache key.
    """
    raise UnsupportedError("being written")


class Scope:
    """The variables of one stage as its steps are done in order; the one mutable thing here.

    ``environment`` is what `expand` and RUN see (without proxies). ``image_environment`` is
    what the image's configuration keeps, in order.
    """

    def __init__(
        self,
        base: Mapping[str, str],
        arguments: Mapping[str, str],
        build_args: Mapping[str, str],
    ) -> None:
        """Start from the base image's ENV, `global_arguments`, and what ``--build-arg`` gave."""
        raise UnsupportedError("being written")

    @property
    def environment(self) -> Mapping[str, str]:
        """What the next step sees."""
        raise UnsupportedError("being written")

    @property
    def image_environment(self) -> Mapping[str, str]:
        """ENV alone, the base's first."""
        raise UnsupportedError("being written")

    @property
    def arguments(self) -> Mapping[str, str]:
        """The ARGs declared so far that have a value: RUN's cache key and history tell them."""
        raise UnsupportedError("being written")

    def declare(self, arg: Arg) -> Arg:
        """Do an ARG: build argument, else default, else the global one; it comes back expanded."""
        raise UnsupportedError("being written")

    def set(self, env: Env) -> Env:
        """Do an ENV; it comes back expanded."""
        raise UnsupportedError("being written")
