"""An image's history read back as the instructions it was made by. Pure.

Builders write history in their own ways: ``/bin/sh -c #(nop) ENV A=b`` and ``|1 ARG=x /bin/sh -c
...`` (the classic builder), ``RUN /bin/sh -c ... # buildkit`` (BuildKit), the plain instruction.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tare.build.shell_commands import pipelines, program
from tare.model.oci import History

_NOP: Final = "#(nop)"
_INSTRUCTION: Final = re.compile(
    r"(ADD|ARG|CMD|COPY|ENTRYPOINT|ENV|EXPOSE|HEALTHCHECK|LABEL|MAINTAINER|ONBUILD|RUN|SHELL|"
    r"STOPSIGNAL|USER|VOLUME|WORKDIR)\b\s*(.*)",
    re.DOTALL,
)
_ARGUMENTS: Final = re.compile(r"\|(\d+)\s")
_UPDATES: Final = {
    "apt-get": ("update",), "apt": ("update",), "apk": ("update",), "yum": ("check-update",),
    "dnf": ("check-update", "makecache"), "zypper": ("refresh", "ref"),
}  # fmt: skip
_INSTALLS: Final = frozenset((
    "add", "build-dep", "dist-upgrade", "download", "full-upgrade", "in", "install", "up",
    "update", "upgrade",
))  # fmt: skip
_UNVERIFIED: Final = (
    "--allow-unauthenticated", "--allow-untrusted", "--allow-insecure-repositories",
    "--force-yes", "--nogpgcheck", "--no-gpg-check", "--no-gpg-checks", "--trusted-host",
    "--no-check-certificate", "--no-verify-ssl",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Step:
    """One instruction: its name (RUN for a bare command), its text, its place from 1."""

    number: int
    instruction: str
    text: str
    assignments: tuple[tuple[str, str], ...]
    updates: bool  # fetches lists of packages
    installs: bool  # and installs some
    unverified: str  # the first option that switches verification off


def steps(history: Iterable[History]) -> tuple[Step, ...]:
    """The steps of an image, the oldest first."""
    return tuple(_step(number, one.created_by) for number, one in enumerate(history, 1))


def _step(number: int, written: str) -> Step:
    text = written.strip()
    assignments: list[tuple[str, str]] = []
    instruction = "RUN"
    if _NOP in text:
        text = text.partition(_NOP)[2].strip()
    elif match := _ARGUMENTS.match(text):
        text, assignments = _build_arguments(text[match.end() :], int(match[1]))
    if match := _INSTRUCTION.match(text):
        instruction, text = match[1], match[2]
    if instruction in ("ENV", "ARG"):
        assignments += _pairs(text)
    script = ""
    if instruction == "RUN":
        script = re.sub(r"^(?:/bin/)?(?:ba)?sh -c ", "", text).removesuffix("# buildkit")
    return Step(number, instruction, text, tuple(assignments), *_packages(script))


def _build_arguments(text: str, count: int) -> tuple[str, list[tuple[str, str]]]:
    """``A=1 B=2 /bin/sh -c ...``: the values of the build's arguments are in the history."""
    found = []
    for _ in range(min(count, 200)):
        word, _, rest = text.partition(" ")
        name, equals, value = word.partition("=")
        if not equals:
            break
        found.append((name, value))
        text = rest
    return text, found


def _pairs(text: str) -> list[tuple[str, str]]:
    try:
        words = shlex.split(text)
    except ValueError:
        words = text.split()
    found = [word.partition("=") for word in words]
    if found and not found[0][1]:  # ENV NAME value
        return [(words[0], " ".join(words[1:]))]
    return [(name, value) for name, equals, value in found if equals]


def _packages(script: str) -> tuple[bool, bool, str]:
    updates = installs = False
    unverified = ""
    for pipeline in pipelines(script) if script else ():
        for command in pipeline:
            words = [word for word in command if not word.startswith("-")]
            name = program(command)
            verb = next((w for w in words if w.rpartition("/")[2] != name and "=" not in w), "")
            if verb in _UPDATES.get(name, ()):
                updates = True
            elif name in _UPDATES and verb in _INSTALLS:
                installs = True
            unverified = unverified or next(
                (word for word in command if word.startswith(_UNVERIFIED)), ""
            )
    return updates, installs, unverified
