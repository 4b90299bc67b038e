"""The sums of a report: docker-bench's checks and score, and the share that passes. Pure.

docker-bench's score adds one for each scored check that passes and takes one away for each that
warns; it has no maximum. So the share of the checks that had an object is counted too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from tare.audit import catalogue
from tare.audit.finding import Level, Report


@dataclass(frozen=True, slots=True)
class Tally:
    """``levels``: passed and applicable scored checks by profile; ``items`` by level."""

    checks: int
    score: int
    levels: Mapping[str, tuple[int, int]]
    items: Mapping[Level, int]


def tally(report: Report) -> Tally:
    """Count *report*."""
    known = catalogue.checks()
    checks = score = 0
    levels: dict[str, tuple[int, int]] = {}
    for result in report.results:
        check = known[result.check]
        if not result.applicable:
            continue
        checks += 1
        bad = result.level.rank >= Level.WARN.rank
        if not check.scored:
            continue
        good = result.level is Level.PASS
        score += 1 if good else -1 if bad else 0
        name = f"Level {check.level}" if check.level else "tare's own"
        passed, applicable = levels.get(name, (0, 0))
        levels[name] = passed + (not bad), applicable + 1
    items = Counter(item.level for result in report.results for item in result.items if item.counts)
    return Tally(checks, score, dict(sorted(levels.items())), items)
