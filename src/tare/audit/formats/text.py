"""A report as docker-bench-security prints one: ``[WARN] 5.4  - title`` and what was seen. Pure.

What containers, images and files are called is made safe for a terminal here.
"""

from __future__ import annotations

from typing import Final

from tare.audit import catalogue
from tare.audit.finding import Item, Level, Report, Result, Standing
from tare.audit.formats.tally import tally

_COLOURS: Final = {
    Level.PASS: "\033[1;32m",
    Level.NOTE: "\033[1;33m",
    Level.INFO: "\033[1;34m",
    Level.WARN: "\033[1;31m",
    Level.FAIL: "\033[1;41m",
}
_END: Final = "\033[0m"
_MOST: Final = 50
"""Items that one check lists; a report in another format has them all."""


def render(report: Report, *, colour: bool = False, remedies: bool = False) -> str:
    """The whole report, and with *remedies* what to do about each finding."""
    benchmark = f"CIS Docker Benchmark {report.benchmark}"
    lines = [
        f"# tare audit {report.engine} on {safe(report.host)}, {benchmark}",
        "",
        "Section A - Check results",
    ]
    current = ""
    for result in report.results:
        section = catalogue.section(result.id)
        if section != current:
            current = section
            title = catalogue.section_title(section)
            lines += ["", f"{_word(Level.INFO, colour)} {section} - {title}"]
        lines += _result(result, colour)
    if remedies:
        lines += ["", "", "Section B - Remediation measures", *_remedies(report, colour)]
    lines += ["", "", "Section C - Score", "", *_score(report, colour)]
    lines += [f"{_word(Level.NOTE, colour)} {safe(remark)}" for remark in report.remarks]
    return "\n".join(lines) + "\n"


def _word(level: Level, colour: bool) -> str:
    return f"{_COLOURS[level]}[{level}]{_END}" if colour else f"[{level}]"


def _result(result: Result, colour: bool) -> list[str]:
    check = catalogue.checks()[result.check]
    lines = [f"{_word(result.level, colour)} {result.id} - {check.title}"]
    shown = [item for item in result.items if item.level is not Level.PASS]
    for item in shown[:_MOST]:
        level = Level.INFO if item.standing is not Standing.COUNTS else item.level
        lines.append(f"{_word(level, colour)}      * {_said(item)}")
    if len(shown) > _MOST:
        more = len(shown) - _MOST
        lines.append(f"{_word(result.level, colour)}      * and {more} more")
    return lines


def _said(item: Item) -> str:
    where = f"{item.subject}: " if item.subject else ""
    line = f" (line {item.line})" if item.line else ""
    evidence = "; ".join(f"{e.where}: {e.value}" for e in item.evidence)
    standing = f" [{item.standing}{': ' + item.note if item.note else ''}]" if item.standing else ""
    return safe(f"{where}{item.seen}{line}{f' [{evidence}]' if evidence else ''}{standing}")


def safe(text: str) -> str:
    """*text* on one line, with what a terminal obeys as escapes: it comes from strangers."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _remedies(report: Report, colour: bool) -> list[str]:
    lines = []
    for result in report.results:
        if any(item.counts and item.level.rank >= Level.WARN.rank for item in result.items):
            check = catalogue.checks()[result.check]
            lines.append(f"{_word(Level.INFO, colour)} {result.id} - {check.remedy}")
            lines.append(f"{_word(Level.INFO, colour)}      why: {check.why}")
    return lines


def _score(report: Report, colour: bool) -> list[str]:
    sums = tally(report)
    word = _word(Level.INFO, colour)
    lines = [f"{word} Checks: {sums.checks}", f"{word} Score: {sums.score}"]
    for name, (passed, applicable) in sums.levels.items():
        share = f" ({passed * 100 // applicable} %)" if applicable else ""
        lines.append(f"{word} {name}: {passed} of {applicable} scored checks pass{share}")
    counted = ", ".join(
        f"{sums.items[level]} {level}" for level in reversed(Level) if level in sums.items
    )
    lines.append(f"{word} Items: {counted or 'none'}")
    return lines
