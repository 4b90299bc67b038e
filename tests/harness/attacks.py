"""The tally of attacks: which of the fifty were tried, survived, or cannot be tried here.

An attack counts as survived only if at least one of its tests passed and none failed or was
skipped, except for a skip whose reason starts with ``not applicable``. Not for judging a single
test: a payload's negative control stands beside it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Final

TOTAL: Final = 50
_ID: Final = re.compile(r"A(\d\d)")
NOT_APPLICABLE: Final = "not applicable"


def valid(identifier: str) -> bool:
    """Whether *identifier* is one of A01 to A50."""
    match = _ID.fullmatch(identifier)
    return match is not None and 1 <= int(match[1]) <= TOTAL


@dataclass(slots=True)
class _Seen:
    passed: int = 0
    failed: int = 0
    skipped: list[str] = field(default_factory=list)
    not_applicable: list[str] = field(default_factory=list)


class Tally:
    """Collects the outcome of every test that names an attack."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = defaultdict(_Seen)

    def record(self, attacks: tuple[str, ...], outcome: str, reason: str = "") -> None:
        """Add one test: *outcome* is pytest's, *reason* that of a skip."""
        for attack in attacks:
            seen = self._seen[attack]
            if outcome == "passed":
                seen.passed += 1
            elif outcome == "failed":
                seen.failed += 1
            elif reason.startswith(NOT_APPLICABLE):
                seen.not_applicable.append(reason.removeprefix(NOT_APPLICABLE).lstrip(" :,"))
            else:
                seen.skipped.append(reason)

    def lines(self) -> list[str]:
        """The closing lines; none when no attack was tried."""
        if not self._seen:
            return []
        survived, lost, unproven, not_applicable = [], [], [], []
        for attack, seen in sorted(self._seen.items()):
            if seen.failed:
                lost.append(attack)
            elif seen.skipped:
                unproven.append(f"{attack} ({seen.skipped[0]})")
            elif seen.passed:
                survived.append(attack)
            else:
                not_applicable.append(f"{attack}: {seen.not_applicable[0]}")
        reasons = f" ({'; '.join(not_applicable)})" if not_applicable else ""
        lines = []
        if lost:
            lines.append(f"attacks that won or whose test is broken: {', '.join(lost)}")
        if unproven:
            lines.append(f"attacks not proven, tests skipped: {', '.join(unproven)}")
        lines.append(
            f"attacks survived {len(survived)}/{TOTAL}, "
            f"not-applicable {len(not_applicable)}{reasons}"
        )
        return lines
