"""What an audit says: values, and their plain form for JSON. Pure.

A *check* (`catalogue.Check`) is a rule with its reason, remedy and numbers. An *item* is what the
check saw at one place: a container, an image, a file. A *result* is a check with its items; its
level is the worst of them. A *report* is all results of one audit.

Not for: finding anything out (`workload`, `host`, `engine`, `image`), or for showing it
(`formats`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from tare.errors import InvalidError


class Level(StrEnum):
    """docker-bench's words, and FAIL for what gives the host away.

    NOTE is for a person to look at, INFO is worth knowing, WARN departs from the benchmark.
    """

    PASS = "PASS"  # noqa: S105  # the word of the benchmark
    NOTE = "NOTE"
    INFO = "INFO"
    WARN = "WARN"
    FAIL = "FAIL"

    @property
    def rank(self) -> int:
        """0 for PASS up to 4 for FAIL."""
        return _ORDER[self]


_ORDER: Final = {level: rank for rank, level in enumerate(Level)}


class Scope(StrEnum):
    """What can be audited; the words of ``tare audit``."""

    HOST = "host"
    ENGINE = "engine"
    IMAGE = "image"
    WORKLOAD = "workload"
    DOCKERFILE = "dockerfile"


class Standing(StrEnum):
    """Whether an item counts."""

    COUNTS = ""
    WAIVED = "waived"  # a waiver that has not expired names it
    KNOWN = "known"  # the baseline has it
    INAPPLICABLE = "n/a"  # the check has no object here


@dataclass(frozen=True, slots=True)
class Evidence:
    """Where something was seen, and what stood there."""

    where: str
    value: str


@dataclass(frozen=True, slots=True)
class Fix:
    """A change that is safe to make: ``chmod`` or ``chown`` of *path* from *old* to *new*."""

    kind: str
    path: str
    old: str
    new: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """What a check saw at one place; ``subject`` is empty where the host is the place."""

    level: Level
    seen: str
    subject: str = ""
    evidence: tuple[Evidence, ...] = ()
    fix: Fix | None = None
    standing: Standing = Standing.COUNTS
    note: str = ""  # the reason of a waiver, or why the check has no object
    line: int = 0  # of a Dockerfile

    @property
    def counts(self) -> bool:
        """Whether it is a finding: it counts, and is not PASS."""
        return self.standing is Standing.COUNTS and self.level is not Level.PASS


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A check by its name and number, and what it saw."""

    check: str
    id: str
    items: tuple[Item, ...]

    @property
    def level(self) -> Level:
        """The worst of the items that count; INFO when the check has no object."""
        counted = [item.level for item in self.items if item.standing is Standing.COUNTS]
        if counted:
            return max(counted, key=lambda level: level.rank)
        return Level.INFO if self.items else Level.PASS

    @property
    def applicable(self) -> bool:
        """Whether there was anything to look at; a check that found nothing at all has passed."""
        return not self.items or any(
            item.standing is not Standing.INAPPLICABLE for item in self.items
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One audit: when, of what, by which benchmark, and all it saw."""

    benchmark: str
    host: str
    engine: str  # tare's version
    start_ns: int
    end_ns: int
    results: tuple[Result, ...]
    remarks: tuple[str, ...] = ()  # on the audit itself: what could not be looked at

    def findings(self) -> list[tuple[Result, Item]]:
        """Everything that is not as it should be, in the order of the benchmark."""
        return [(r, item) for r in self.results for item in r.items if item.counts]


def ok(seen: str, *evidence: Evidence, subject: str = "") -> Item:
    """It is as it should be."""
    return Item(level=Level.PASS, seen=seen, evidence=evidence, subject=subject)


def warn(seen: str, *evidence: Evidence, subject: str = "", fix: Fix | None = None) -> Item:
    """It departs from what the check asks for."""
    return Item(level=Level.WARN, seen=seen, evidence=evidence, subject=subject, fix=fix)


def fail(seen: str, *evidence: Evidence, subject: str = "") -> Item:
    """It gives the host, or a secret, away."""
    return Item(level=Level.FAIL, seen=seen, evidence=evidence, subject=subject)


def info(seen: str, *evidence: Evidence, subject: str = "") -> Item:
    """Worth knowing; no fault."""
    return Item(level=Level.INFO, seen=seen, evidence=evidence, subject=subject)


def note(seen: str, *evidence: Evidence, subject: str = "") -> Item:
    """A person must look: what, and why."""
    return Item(level=Level.NOTE, seen=seen, evidence=evidence, subject=subject)


def inapplicable(why: str, *, subject: str = "") -> Item:
    """The check has no object here; it counts nowhere."""
    return Item(level=Level.INFO, seen=why, subject=subject, standing=Standing.INAPPLICABLE)


def about(subject: str, items: Iterable[Item]) -> tuple[Item, ...]:
    """*items* with their *subject*, where they have none of their own."""
    return tuple(item if item.subject else replace(item, subject=subject) for item in items)


# --- plain values, for JSON -------------------------------------------------------------------

Plain = dict[str, object]


def plain(report: Report) -> Plain:
    """The whole report as JSON's values; `from_plain` reads it back."""
    return {
        "Benchmark": report.benchmark,
        "Host": report.host,
        "Engine": report.engine,
        "StartNs": report.start_ns,
        "EndNs": report.end_ns,
        "Remarks": [_whole(remark) for remark in report.remarks],
        "Results": [
            {
                "Check": result.check,
                "Id": result.id,
                "Level": str(result.level),
                "Items": [_plain_item(item) for item in result.items],
            }
            for result in report.results
        ],
    }


def _whole(text: str) -> str:
    """*text* as JSON can carry it: bytes that are no UTF-8 (lone surrogates) as escapes."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _plain_item(item: Item) -> Plain:
    fix = item.fix
    return {
        "Level": str(item.level),
        "Subject": _whole(item.subject),
        "Seen": _whole(item.seen),
        "Evidence": [{"Where": _whole(e.where), "Value": _whole(e.value)} for e in item.evidence],
        "Fix": fix and {"Kind": fix.kind, "Path": fix.path, "Old": fix.old, "New": fix.new},
        "Standing": str(item.standing),
        "Note": item.note,
        "Line": item.line,
    }


def from_plain(value: object) -> Report:
    """What `plain` wrote; InvalidError for anything else."""
    try:
        top = _mapping(value)
        return Report(
            benchmark=_text(top["Benchmark"]),
            host=_text(top["Host"]),
            engine=_text(top["Engine"]),
            start_ns=_number(top["StartNs"]),
            end_ns=_number(top["EndNs"]),
            remarks=tuple(_text(one) for one in _list(top["Remarks"])),
            results=tuple(_result(_mapping(one)) for one in _list(top["Results"])),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise InvalidError(f"this is not a report of tare audit: {error}") from None


def _result(value: Mapping[str, object]) -> Result:
    return Result(
        check=_text(value["Check"]),
        id=_text(value["Id"]),
        items=tuple(_item(_mapping(one)) for one in _list(value["Items"])),
    )


def _item(value: Mapping[str, object]) -> Item:
    fix = value.get("Fix")
    return Item(
        level=Level(_text(value["Level"])),
        subject=_text(value["Subject"]),
        seen=_text(value["Seen"]),
        evidence=tuple(
            Evidence(_text(_mapping(e)["Where"]), _text(_mapping(e)["Value"]))
            for e in _list(value["Evidence"])
        ),
        fix=_fix(_mapping(fix)) if fix else None,
        standing=Standing(_text(value["Standing"])),
        note=_text(value["Note"]),
        line=_number(value["Line"]),
    )


def _fix(value: Mapping[str, object]) -> Fix:
    return Fix(*(_text(value[key]) for key in ("Kind", "Path", "Old", "New")))


def _mapping(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise TypeError(f"an object is missing where {str(value)[:40]!r} stands")
    return value


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError(f"a list is missing where {str(value)[:40]!r} stands")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"text is missing where {str(value)[:40]!r} stands")
    return value


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"a number is missing where {str(value)[:40]!r} stands")
    return value
