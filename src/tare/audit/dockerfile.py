"""Dockerfiles before they are built: the checks of `tare.build.checks` as findings. Pure.

What a file asks to skip is skipped; whoever audits and does not want that excludes nothing there
but looks at the image.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from tare.audit import finding
from tare.audit.finding import Item, Level
from tare.audit.request import DockerfileBody
from tare.audit.rules.dockerfile import matters, name_of, severe
from tare.build.checks import RULES, check
from tare.build.dockerfile import Add, Dockerfile, DockerfileError, parse
from tare.errors import InvalidError
from tare.model.ignore import IgnoreRules

_FILES_MAX: Final = 1000
_FETCHED: Final = re.compile(r"://|^git@|\$|\.(tar|tgz|tbz2?|txz|tzst|tar\.\w+|gz|bz2|xz|zst)$")
_ALSO_TOLD: Final = frozenset(("UnpinnedBaseImage", "HealthcheckMissing"))
"""Rules that a build tells of only when it is asked to."""


def judge(bodies: Sequence[DockerfileBody]) -> dict[str, tuple[Item, ...]]:
    """The items of every rule, by the names of the checks; InvalidError for too many files."""
    if not bodies:
        raise InvalidError("no Dockerfile was given", hint="tare audit dockerfile PATH...")
    if len(bodies) > _FILES_MAX:
        raise InvalidError(f"more than {_FILES_MAX} Dockerfiles in one audit")
    found: dict[str, list[Item]] = {name_of(rule): [] for rule in RULES}
    unreadable = found["dockerfile-unreadable"] = []
    found["dockerfile-add"] = []
    for body in bodies:
        try:
            parsed = parse(body.content, name=body.path)
        except DockerfileError as error:
            item = finding.fail(error.reason, subject=body.path)
            unreadable.append(replace(item, line=error.lines.first))
            continue
        _one(parsed, body, found)
    return {name: tuple(items) for name, items in found.items()}


def _needless_adds(parsed: Dockerfile, path: str) -> list[Item]:
    """ADD of what COPY would bring too: no address, no repository, no archive."""
    adds = [i for s in parsed.stages for i in s.instructions if isinstance(i, Add)]
    return [
        replace(
            finding.warn(f"ADD {' '.join(add.sources)[:80]}: COPY would do", subject=path),
            line=add.lines.first,
        )
        for add in adds
        if add.sources and not any(_FETCHED.search(source) for source in add.sources)
    ]


def _one(parsed: Dockerfile, body: DockerfileBody, found: dict[str, list[Item]]) -> None:
    found["dockerfile-add"] += _needless_adds(parsed, body.path)
    ignore = None if body.ignore is None else IgnoreRules.parse(body.ignore)
    options = parsed.directives.check
    wider = replace(options, experimental=options.experimental | _ALSO_TOLD)
    told = replace(parsed, directives=replace(parsed.directives, check=wider))
    for one in check(told, ignore):
        name = name_of(one.name)
        items = found.get(name)
        if items is None:
            continue
        level = Level.FAIL if severe(one.name) else Level.WARN if matters(one.name) else Level.INFO
        items.append(
            Item(
                level=level,
                subject=body.path,
                seen=one.text,
                line=one.lines.first if one.lines else 0,
            )
        )
