"""All checks, in the order and with the numbers of a benchmark. Pure.

One set of checks serves every edition: the numbers are CIS 1.2.0's, 1.6.0's, 1.7.0's or 1.8.0's,
and those of what tare adds begin with ``T.``. A check is named by its name or by its number in
the edition that is asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Final

from tare.audit.finding import Scope
from tare.audit.rules.rule import Check
from tare.errors import InvalidError

BENCHMARKS: Final = {"1.2": "1.2.0", "1.6": "1.6.0", "1.7": "1.7.0", "1.8": "1.8.0"}
"""The editions, as they are asked for."""
DEFAULT: Final = "1.2"
_COLUMN: Final = {"1.2": 0, "1.6": 1, "1.7": 1, "1.8": 2}

_SECTIONS: Final = {
    "1": "Host Configuration",
    "2": "Docker daemon configuration",
    "3": "Docker daemon configuration files",
    "4": "Container Images and Build File",
    "5": "Container Runtime",
    "6": "Docker Security Operations",
    "7": "Docker Swarm Configuration",
    "8": "Docker Enterprise Configuration",
    "T.1": "Host hardening (tare)",
    "T.2": "Engine (tare)",
    "T.4": "Images (tare)",
    "T.5": "Workloads (tare)",
    "T.D": "Dockerfiles (tare)",
}


@functools.cache
def checks() -> Mapping[str, Check]:
    """Every check by its name."""
    from tare.audit.rules import dockerfile, engine, files, host, image, workload

    modules = (host, engine, files, image, workload, dockerfile)
    found = {check.name: check for module in modules for check in module.CHECKS}
    assert len(found) == sum(len(module.CHECKS) for module in modules), "a name was given twice"
    return found


def edition(text: str) -> str:
    """The key of `BENCHMARKS` that *text* means ("" is the default); else InvalidError."""
    for key, full in BENCHMARKS.items():
        if text in (key, full):
            return key
    if not text:
        return DEFAULT
    raise InvalidError(
        f"there is no benchmark {text[:40]!r}", hint=f"It is one of {', '.join(BENCHMARKS)}."
    )


def number(check: Check, benchmark: str) -> str:
    """The number of *check* in an edition; "" when that does not have it."""
    return check.ids[_COLUMN[benchmark]]


def ordered(benchmark: str, scopes: Iterable[Scope] = tuple(Scope)) -> list[Check]:
    """The checks of *scopes* that the edition has, by number."""
    wanted = frozenset(scopes)
    found = [c for c in checks().values() if c.scope in wanted and number(c, benchmark)]
    return sorted(found, key=lambda check: sort_key(number(check, benchmark)))


def sort_key(number_: str) -> tuple[tuple[int, int, str], ...]:
    """For sorting numbers like 5.2, 5.10 and T.5.1: by their parts, letters last."""
    return tuple(
        (0, int(part), "") if part.isdigit() else (1, 0, part) for part in number_.split(".")
    )


def section(number_: str) -> str:
    """The section of a number: ``5`` for ``5.4``, ``T.5`` for ``T.5.1``."""
    parts = number_.split(".")
    return ".".join(parts[:2]) if parts[0] == "T" else parts[0]


def section_title(name: str) -> str:
    """What a section is called."""
    return _SECTIONS.get(name, "")


def select(words: Iterable[str], benchmark: str) -> frozenset[str]:
    """The names of the checks that *words* mean: names, numbers, sections, ``level1``.

    InvalidError for a word that means none.
    """
    found: set[str] = set()
    for word in words:
        means = {check.name for check in checks().values() if _means(check, word, benchmark)}
        if not means:
            raise InvalidError(
                f"there is no check {word[:60]!r} in CIS {BENCHMARKS[benchmark]}",
                hint="`tare audit --list` shows their numbers and names.",
            )
        found |= means
    return frozenset(found)


def _means(check: Check, word: str, benchmark: str) -> bool:
    if not word:
        return False
    own = number(check, benchmark)
    plain = word.removeprefix("check_").replace("_", ".") if word.startswith("check_") else word
    if word in ("level1", "level2"):
        return 0 < check.level <= int(word[-1])
    return plain in (own, check.name) or own.startswith(f"{plain}.") or word == check.scope
