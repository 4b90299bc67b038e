"""Configurations that are not a base image's: blank ones, and ``--change`` instructions.

``tare import --change`` and ``tare commit --change`` take the Dockerfile instructions that only set
the configuration. Pure. Not for: Dockerfiles (``build``): no variables, no escapes over lines.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final

from tare.errors import InvalidError
from tare.model import oci
from tare.model.oci import ImageConfig
from tare.model.spec import HealthCheck

_DEFAULT_SHELL: Final = ("/bin/sh", "-c")
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_UNITS: Final[Mapping[str, int]] = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}


def blank_config(platform: oci.Platform | None = None) -> ImageConfig:
    """The configuration of an image of which only the platform is known, by default this host's."""
    platform = platform or oci.host_platform(os.uname().machine)
    return ImageConfig(architecture=platform.architecture, os=platform.os, variant=platform.variant)


def apply_changes(config: ImageConfig, changes: Iterable[str]) -> ImageConfig:
    """*config* after the instructions; InvalidError names the one that is wrong."""
    for change in changes:
        for line in change.splitlines():
            if line.strip():
                config = _apply(config, line.strip())
    return config


def _apply(config: ImageConfig, line: str) -> ImageConfig:
    word, _, rest = line.partition(" ")
    rest = rest.strip()
    instruction = _INSTRUCTIONS.get(word.upper())
    if instruction is None:
        raise InvalidError(
            f"{word[:80]!r} is not a valid change command",
            hint="possible: " + ", ".join(sorted(_INSTRUCTIONS)),
        )
    if not rest or "\0" in rest:
        raise InvalidError(f"the change {line[:200]!r} needs an argument")
    try:
        return instruction(config, rest)
    except ValueError as error:
        raise InvalidError(f"the change {line[:200]!r} makes no sense: {error}") from None


def _json_words(text: str) -> tuple[str, ...] | None:
    """The exec form, or None for the shell form."""
    if not text.startswith("["):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        return tuple(value)
    return None


def _command(config: ImageConfig, text: str) -> tuple[str, ...]:
    words = _json_words(text)
    return (*(config.shell or _DEFAULT_SHELL), text) if words is None else words


def _cmd(config: ImageConfig, text: str) -> ImageConfig:
    return replace(config, cmd=_command(config, text))


def _entrypoint(config: ImageConfig, text: str) -> ImageConfig:
    return replace(config, entrypoint=_command(config, text))


def _pairs(text: str) -> list[tuple[str, str]]:
    """``name=value ...`` with quotes, or the old ``name value``."""
    first = text.split(None, 1)
    if "=" not in first[0]:
        if len(first) < 2:
            raise ValueError("it has a name and no value")
        return [(first[0], first[1])]
    pairs = []
    for word in shlex.split(text):
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise ValueError(f"{word!r} is not NAME=VALUE")
        pairs.append((name, value))
    return pairs


def _env(config: ImageConfig, text: str) -> ImageConfig:
    env = list(config.env)
    for name, value in _pairs(text):
        places = [i for i, old in enumerate(env) if old.partition("=")[0] == name]
        if places:
            env[places[0]] = f"{name}={value}"
        else:
            env.append(f"{name}={value}")
    return replace(config, env=tuple(env))


def _label(config: ImageConfig, text: str) -> ImageConfig:
    return replace(config, labels={**config.labels, **dict(_pairs(text))})


def _expose(config: ImageConfig, text: str) -> ImageConfig:
    ports = set(config.exposed_ports)
    for word in text.split():
        port = word.lower() if "/" in word else word + "/tcp"
        if not oci.is_port(port):
            raise ValueError(f"{word!r} is no port")
        ports.add(port)
    return replace(config, exposed_ports=tuple(sorted(ports)))


def _onbuild(config: ImageConfig, text: str) -> ImageConfig:
    if text.split(maxsplit=1)[0].upper() in ("ONBUILD", "FROM", "MAINTAINER"):
        raise ValueError(f"{text.split(maxsplit=1)[0]} is not allowed as an ONBUILD trigger")
    return replace(config, on_build=(*config.on_build, text))


def _stopsignal(config: ImageConfig, text: str) -> ImageConfig:
    if not oci.is_signal(text):
        raise ValueError(f"{text!r} is no signal")
    return replace(config, stop_signal=text)


def _user(config: ImageConfig, text: str) -> ImageConfig:
    if len(text.split()) != 1:
        raise ValueError("it takes one user")
    return replace(config, user=text)


def _volume(config: ImageConfig, text: str) -> ImageConfig:
    words = _json_words(text) or tuple(text.split())
    if not all(word.strip() for word in words):
        raise ValueError("a volume has an empty path")
    return replace(config, volumes=tuple(sorted({*config.volumes, *words})))


def _workdir(config: ImageConfig, text: str) -> ImageConfig:
    path = posixpath.normpath(posixpath.join("/", config.cwd, text))
    return replace(config, cwd="/" + path.lstrip("/"))


def _shell(config: ImageConfig, text: str) -> ImageConfig:
    words = _json_words(text)
    if not words:
        raise ValueError("SHELL needs a JSON list")
    return replace(config, shell=words)


def _healthcheck(config: ImageConfig, text: str) -> ImageConfig:
    if text.upper() == "NONE":
        return replace(config, health=HealthCheck(test=("NONE",)))
    health = HealthCheck()
    while text.startswith("--"):
        option, _, text = text.partition(" ")
        name, _, value = option[2:].partition("=")
        text = text.strip()
        match name:
            case "interval":
                health = replace(health, interval_ns=_nanoseconds(value))
            case "timeout":
                health = replace(health, timeout_ns=_nanoseconds(value))
            case "start-period":
                health = replace(health, start_period_ns=_nanoseconds(value))
            case "start-interval":
                health = replace(health, start_interval_ns=_nanoseconds(value))
            case "retries" if value.isascii() and value.isdigit():
                health = replace(health, retries=int(value[:9]))
            case _:
                raise ValueError(f"unknown option {option!r}")
    word, _, command = text.partition(" ")
    if word.upper() != "CMD" or not command.strip():
        raise ValueError("it must be NONE or [OPTIONS] CMD COMMAND")
    words = _json_words(command.strip())
    test = ("CMD-SHELL", command.strip()) if words is None else ("CMD", *words)
    return replace(config, health=replace(health, test=test))


def _nanoseconds(text: str) -> int:
    """A duration as Go writes it: 1h30m, 1.5s."""
    found = _DURATION.findall(text)
    if not found or "".join(number + unit for number, unit in found) != text:
        raise ValueError(f"{text!r} is no duration")
    total = int(sum(float(number) * _UNITS[unit] for number, unit in found))
    if not 10**6 <= total < 2**63:
        raise ValueError(f"the duration {text} is out of range")
    return total


_INSTRUCTIONS: Final[Mapping[str, Callable[[ImageConfig, str], ImageConfig]]] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "HEALTHCHECK": _healthcheck,
    "LABEL": _label,
    "ONBUILD": _onbuild,
    "SHELL": _shell,
    "STOPSIGNAL": _stopsignal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}
