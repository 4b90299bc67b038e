"""Which findings count: waivers with an expiry, a baseline, a threshold. Pure.

A waiver file is TOML::

    [[waiver]]
    check = "5.12"                # a number of the benchmark, or the check's name
    subject = "web-*"             # containers, images or files; left out: all
    reason = "writes its cache below /var"
    expires = 2027-01-31          # the last day on which it holds

A waiver that has expired waives nothing and is named; so is one that nothing needs any more. A
baseline is an earlier report in JSON: what it has is known, and only what is new counts.

Not for: reading files; the client does that.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from fnmatch import fnmatchcase
from typing import Final

from tare.audit import catalogue
from tare.audit.finding import Item, Level, Report, Result, Standing
from tare.errors import InvalidError

_NUMBERS: Final = re.compile(r"[0-9]+|(?<![0-9a-z])[0-9a-f]{12,64}(?![0-9a-z])")
_Stand = Callable[[Result, Item], Item]
_KEYS: Final = frozenset(("check", "subject", "reason", "expires"))


@dataclass(frozen=True, slots=True)
class Waiver:
    """One entry: the checks it is for, by name, and until when (the day included)."""

    checks: frozenset[str]
    check: str  # as written
    subject: str
    reason: str
    expires: date

    def covers(self, result: Result, item: Item) -> bool:
        """Whether it is about this item."""
        return result.check in self.checks and fnmatchcase(item.subject, self.subject)


def waivers(content: str, where: str, benchmark: str) -> list[Waiver]:
    """The entries of a waiver file; InvalidError names the file, the entry and what is wrong."""
    try:
        document = tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise InvalidError(f"{where}: {error}", hint="the file is TOML: https://toml.io") from None
    entries = document.pop("waiver", [])
    if document:
        raise InvalidError(
            f"{where}: {next(iter(document))!r} is not known; entries are [[waiver]]"
        )
    if not isinstance(entries, list):
        raise InvalidError(f"{where}: write [[waiver]], with two brackets")
    return [_waiver(entry, f"{where}: waiver {n}", benchmark) for n, entry in enumerate(entries, 1)]


def _waiver(entry: object, where: str, benchmark: str) -> Waiver:
    if not isinstance(entry, dict):
        raise InvalidError(f"{where} is not a table")
    for key in entry:
        if key not in _KEYS:
            raise InvalidError(
                f"{where}: {key!r} is not known; there are: {', '.join(sorted(_KEYS))}"
            )
    words = {}
    for key in ("check", "reason"):
        value = entry.get(key)
        if not isinstance(value, str) or not value.strip():
            raise InvalidError(f"{where}: {key} is missing, or is not text in quotes")
        words[key] = value.strip()
    subject = entry.get("subject", "*")
    if not isinstance(subject, str):
        raise InvalidError(f"{where}: subject is not text in quotes")
    expires = entry.get("expires")
    if isinstance(expires, datetime):
        expires = expires.date()
    if not isinstance(expires, date):
        raise InvalidError(f"{where}: expires is missing, or is not a date like 2027-01-31")
    try:
        names = catalogue.select([words["check"]], benchmark)
    except InvalidError as error:
        raise InvalidError(f"{where}: {error}", hint=error.hint) from None
    return Waiver(names, words["check"], subject, words["reason"], expires)


def waived(report: Report, entries: Sequence[Waiver], today: date) -> Report:
    """*report* with what *entries* waive, and remarks on those that expired or are not needed."""
    valid = [entry for entry in entries if today <= entry.expires]
    remarks = [
        f"the waiver of {entry.check} for {entry.subject} ({entry.reason}) expired on"
        f" {entry.expires}"
        for entry in entries
        if today > entry.expires
    ]
    used: set[int] = set()

    def stand(result: Result, item: Item) -> Item:
        if not item.counts:
            return item
        for at, entry in enumerate(valid):
            if entry.covers(result, item):
                used.add(at)
                note = f"{entry.reason}, until {entry.expires}"
                return replace(item, standing=Standing.WAIVED, note=note)
        return item

    found = _mapped(report, stand)
    remarks += [
        f"the waiver of {entry.check} for {entry.subject} waives nothing"
        for at, entry in enumerate(valid)
        if at not in used
    ]
    return replace(found, remarks=(*found.remarks, *remarks))


def fingerprint(result: Result, item: Item) -> tuple[str, str, str]:
    """What stays the same of a finding from audit to audit: numbers and ids are left out."""
    return result.check, item.subject, _NUMBERS.sub("#", item.seen)


def compared(report: Report, baseline: Report) -> Report:
    """*report* with what *baseline* has already set aside, as often as it has it."""
    left = Counter(
        fingerprint(result, item)
        for result in baseline.results
        for item in result.items
        if item.level is not Level.PASS and item.standing is not Standing.INAPPLICABLE
    )

    def stand(result: Result, item: Item) -> Item:
        key = fingerprint(result, item)
        if item.counts and left[key]:
            left[key] -= 1
            return replace(item, standing=Standing.KNOWN, note="it is in the baseline")
        return item

    return _mapped(report, stand)


def _mapped(report: Report, stand: _Stand) -> Report:
    results = tuple(
        replace(result, items=tuple(stand(result, item) for item in result.items))
        for result in report.results
    )
    return replace(report, results=results)


@dataclass(frozen=True, slots=True)
class Threshold:
    """What fails a pipeline: items of this level or worse, and WARN of the named checks."""

    level: Level | None
    checks: frozenset[str]

    @classmethod
    def parse(cls, text: str, benchmark: str) -> Threshold:
        """``fail``, ``warn``, ``info``, ``note``, or checks (``5.4``, ``level1``), by commas."""
        level: Level | None = None
        names: list[str] = []
        for word in text.split(","):
            plain = word.strip()
            if plain.upper() in (Level.FAIL, Level.WARN, Level.INFO, Level.NOTE):
                asked = Level(plain.upper())
                level = asked if level is None or asked.rank < level.rank else level
            elif plain:
                names.append(plain)
        if level is None and not names:
            raise InvalidError("--fail-on names nothing: say fail, warn, info, note or checks")
        return cls(level, catalogue.select(names, benchmark) if names else frozenset())

    def reached(self, report: Report) -> list[tuple[Result, Item]]:
        """The items that fail it."""
        return [
            (result, item)
            for result, item in report.findings()
            if (self.level is not None and item.level.rank >= self.level.rank)
            or (result.check in self.checks and item.level.rank >= Level.WARN.rank)
        ]
