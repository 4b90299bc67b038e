"""Which variables a step sees: global ARGs, a stage's ARGs and ENVs, platforms, proxies.

As in BuildKit: what was said last wins, be it ARG or ENV; only ENV ends up in the image.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from tare.build.dockerfile.expansion import expand
from tare.build.dockerfile.instructions import Arg, Declaration, Dockerfile, Env, Stage
from tare.build.dockerfile.source import DockerfileError, Place
from tare.build.dockerfile.suggestion import meant
from tare.build.dockerfile.words import Lexer, LexError, Word
from tare.model.oci import Platform

DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PROXIES: Final = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")
_PLATFORM: Final = re.compile(r"[A-Za-z0-9_.()-]+(/[A-Za-z0-9_.-]+){0,2}")
# The kernel takes 2 MiB of variables at most; a file that doubles one must end before that.
_TOTAL_MAX: Final = 2 << 20


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
    known = _platform_arguments(build, target)
    known["TARGETSTAGE"] = stage or dockerfile.stages[-1].name or "default"
    found = _Variables({name: build_args.get(name, value) for name, value in known.items()})
    for arg in dockerfile.global_args:
        for declaration in arg.declarations:
            name, value = declaration.name, declaration.value
            if name in build_args:
                value = build_args[name]
            elif value is not None:
                value = _word(value, found.values, arg.place).text
            if value is not None:
                found.put(name, value, arg.place)
    return found.values


def _platform_arguments(build: Platform, target: Platform) -> dict[str, str]:
    found: dict[str, str] = {}
    for prefix, platform in (("BUILD", build), ("TARGET", target)):
        found[f"{prefix}PLATFORM"] = str(platform)
        found[f"{prefix}OS"] = platform.os
        found[f"{prefix}OSVERSION"] = ""
        found[f"{prefix}ARCH"] = platform.architecture
        found[f"{prefix}VARIANT"] = platform.variant
    return found


@dataclass(frozen=True, slots=True)
class Base:
    """What a stage starts from, variables put in; ``platform`` is empty where none is said."""

    image: str
    platform: str = ""


def base_of(stage: Stage, arguments: Mapping[str, str]) -> Base:
    """What a FROM says, its variables put in by `global_arguments`. DockerfileError."""
    place = stage.start.place
    image = _word(stage.base, arguments, place)
    if not image.text:
        reason = f"base name ({stage.base}) should not be blank"
        raise _wrong(reason + _suggestion(image, arguments), place, stage.base)
    if not stage.platform:
        return Base(image.text)
    platform = _word(stage.platform, arguments, place)
    if not platform.text:
        reason = f"empty platform value from expression {stage.platform}"
        raise _wrong(reason + _suggestion(platform, arguments), place, stage.platform)
    if not _PLATFORM.fullmatch(platform.text):
        reason = f"failed to parse platform {platform.text}: it is not OS/ARCHITECTURE[/VARIANT]"
        raise _wrong(reason, place, stage.platform)
    return Base(image.text, platform.text)


def _suggestion(word: Word, arguments: Mapping[str, str]) -> str:
    found = (meant(name, arguments) for name in sorted(word.unmatched))
    return next((text for text in found if text), "")


def proxies(build_args: Mapping[str, str]) -> dict[str, str]:
    """``http_proxy`` and its like of the build arguments, in both cases of letters.

    RUN has them without an ARG; they are neither in the image nor in a cache key.
    """
    found: dict[str, str] = {}
    for name, value in sorted(build_args.items()):
        if name.lower() in _PROXIES:
            found[name.upper()] = found[name.lower()] = value
    return found


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
        """Start from the base image's ENV, `global_arguments`, and what ``--build-arg`` gave.

        A base without PATH gets the usual one, in its image too.
        """
        self._image = dict(base)
        self._image.setdefault("PATH", DEFAULT_PATH)
        self._environment = _Variables(dict(self._image))
        self._arguments: dict[str, str] = {}
        self._declared: set[str] = set()
        self._global = arguments
        self._build_args = build_args

    def child(self) -> Scope:
        """The scope of a stage that starts from this one as it is now: ARGs go along."""
        # The image's ENV is set anew: it wins over an ARG of the stage before.
        environment = {**self._environment.values, **self._image}
        scope = Scope(environment, self._global, self._build_args)
        scope._image = dict(self._image)
        scope._arguments = dict(self._arguments)
        scope._declared = set(self._declared)
        return scope

    @property
    def environment(self) -> Mapping[str, str]:
        """What the next step sees."""
        return MappingProxyType(self._environment.values)

    @property
    def image_environment(self) -> Mapping[str, str]:
        """ENV alone, the base's first."""
        return MappingProxyType(self._image)

    @property
    def arguments(self) -> Mapping[str, str]:
        """The ARGs declared so far that have a value: RUN's cache key and history tell them."""
        return MappingProxyType(self._arguments)

    @property
    def declared(self) -> Set[str]:
        """The names of all ARGs so far, with a value or without."""
        return self._declared

    def declare(self, arg: Arg) -> Arg:
        """Do an ARG: build argument, else default, else the global one; it comes back expanded."""
        found = tuple(self._declare(declaration, arg.place) for declaration in arg.declarations)
        return dataclasses.replace(arg, declarations=found)

    def _declare(self, declaration: Declaration, place: Place) -> Declaration:
        name, value = declaration.name, declaration.value
        if name in self._build_args:
            value = self._build_args[name]
        elif value is None:
            value = self._global.get(name)
        else:
            value = _word(value, self._environment.values, place).text
        self._declared.add(name)
        if value is not None:
            self._arguments[name] = value
            self._environment.put(name, value, place)
        return Declaration(name, value, declaration.description)

    def set(self, env: Env) -> Env:
        """Do an ENV; it comes back expanded."""
        found = expand(env, self._environment.values)
        for pair in found.pairs:
            self._image[pair.key] = pair.value
            self._environment.put(pair.key, pair.value, env.place)
        return found


class _Variables:
    """Names and values that know how long they are together."""

    def __init__(self, values: dict[str, str]) -> None:
        self.values = values
        self._length = sum(map(len, values.values()))

    def put(self, name: str, value: str, place: Place) -> None:
        """Set one; DockerfileError where all are too long by it."""
        self._length += len(value) - len(self.values.get(name, ""))
        if self._length > _TOTAL_MAX:
            reason = f"all variables together are longer than {_TOTAL_MAX} letters"
            raise _wrong(reason, place, "")
        self.values[name] = value


def _word(text: str, environment: Mapping[str, str], place: Place) -> Word:
    try:
        return Lexer(place.escape).word(text, environment)
    except LexError as error:
        raise _wrong(str(error), place, "") from None


def _wrong(reason: str, place: Place, focus: str) -> DockerfileError:
    return DockerfileError(reason, place.source, place.lines, focus=focus)
