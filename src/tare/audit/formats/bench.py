"""A report as the JSON file of docker-bench-security, for what reads that. Pure.

Its words are PASS, INFO, NOTE and WARN only, so FAIL is WARN here; what is waived or was known is
INFO. Strings are escaped as JSON asks, whatever containers are called.
"""

from __future__ import annotations

from tare.audit import catalogue
from tare.audit.finding import Item, Level, Report, Result, Standing
from tare.audit.formats.tally import tally

_SECOND: int = 10**9


def document(report: Report) -> dict[str, object]:
    """The whole file as JSON's values."""
    sections: dict[str, list[Result]] = {}
    for result in report.results:
        sections.setdefault(catalogue.section(result.id), []).append(result)
    sums = tally(report)
    return {
        "dockerbenchsecurity": report.benchmark,
        "start": report.start_ns // _SECOND,
        "tests": [
            {
                "id": name,
                "desc": catalogue.section_title(name),
                "results": [_result(result) for result in results],
            }
            for name, results in sections.items()
        ],
        "checks": sums.checks,
        "score": sums.score,
        "end": report.end_ns // _SECOND,
    }


def _result(result: Result) -> dict[str, object]:
    check = catalogue.checks()[result.check]
    level = Level.WARN if result.level is Level.FAIL else result.level
    found: dict[str, object] = {"id": result.id, "desc": check.title, "result": str(level)}
    shown = [item for item in result.items if item.level is not Level.PASS]
    if shown:
        found["details"] = "; ".join(_said(item) for item in shown)
        found["items"] = list(dict.fromkeys(item.subject or item.seen for item in shown))
    if level is not Level.PASS:
        found["remediation"] = check.remedy
        found["remediation-impact"] = check.why
    return found


def _said(item: Item) -> str:
    waived = f" ({item.standing})" if item.standing is not Standing.COUNTS else ""
    return f"{item.subject}: {item.seen}{waived}" if item.subject else f"{item.seen}{waived}"
