"""What is asked of an audit: the body of ``POST /tare/audit`` as a value.

Names and types are read strictly (a field that is not known is refused: a misspelt threshold must
not pass for none); what they mean is checked in `wanted`.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct

from tare.audit import catalogue
from tare.audit.finding import Scope
from tare.audit.rules.rule import Check
from tare.errors import InvalidError


class DockerfileBody(Struct, rename="pascal", forbid_unknown_fields=True):
    """A Dockerfile to be checked: its path for people, its content, the ignore file's."""

    path: str
    content: bytes  # base64 in JSON
    ignore: bytes | None = None


class AuditBody(Struct, rename="pascal", forbid_unknown_fields=True):
    """``POST /tare/audit``."""

    what: list[str] | None = None  # scopes; none: all but dockerfile
    names: list[str] | None = None  # containers or images, where one of these is the only scope
    benchmark: str = ""
    checks: list[str] | None = None  # only these
    exclude: list[str] | None = None  # not these
    level: int = 2  # the highest profile level
    trusted_users: list[str] | None = None
    allowed_ports: list[int] | None = None
    dockerfiles: list[DockerfileBody] | None = None
    vulnerabilities: str = ""  # a file or directory on the daemon's host
    max_age_days: int = 90
    fix: bool = False  # make the safe changes that the audit proposes


DECODER: Final = msgspec.json.Decoder(AuditBody)


def scopes(asked: AuditBody) -> tuple[Scope, ...]:
    """The scopes that *asked* means; InvalidError for a word that is none."""
    words = asked.what or ["all"]
    found: list[Scope] = []
    for word in words:
        if word == "all":
            found += [s for s in Scope if s is not Scope.DOCKERFILE or asked.dockerfiles]
            continue
        try:
            found.append(Scope(word))
        except ValueError:
            known = ", ".join([*Scope, "all"])
            raise InvalidError(
                f"cannot audit {word[:40]!r}", hint=f"It is one of {known}."
            ) from None
    return tuple(dict.fromkeys(found))


def wanted(asked: AuditBody, benchmark: str) -> list[Check]:
    """The checks that *asked* means, by number; InvalidError for one that is not there."""
    if asked.level not in (1, 2):
        raise InvalidError(f"there is no profile level {asked.level}: it is 1 or 2")
    found = catalogue.ordered(benchmark, scopes(asked))
    if asked.checks:
        only = catalogue.select(asked.checks, benchmark)
        found = [check for check in found if check.name in only]
    if asked.exclude:
        without = catalogue.select(asked.exclude, benchmark)
        found = [check for check in found if check.name not in without]
    return [check for check in found if check.level <= asked.level]
