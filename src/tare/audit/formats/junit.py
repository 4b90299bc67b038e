"""A report as JUnit XML: a suite for each section, a case for each check and its subject. Pure.

A case fails when one of its items is WARN or FAIL and counts; it is skipped when the check has no
object, or all that it found is waived or was known.
"""

from __future__ import annotations

from datetime import UTC, datetime
from xml.etree import ElementTree

from tare.audit import catalogue
from tare.audit.finding import Item, Level, Report, Result, Standing


def render(report: Report) -> str:
    """The whole document."""
    seconds = (report.end_ns - report.start_ns) / 1e9
    top = ElementTree.Element("testsuites", name=f"CIS Docker Benchmark {report.benchmark}")
    suites: dict[str, list[Result]] = {}
    for result in report.results:
        suites.setdefault(catalogue.section(result.id), []).append(result)
    totals = {"tests": 0, "failures": 0, "skipped": 0, "errors": 0}
    for name, results in suites.items():
        suite = ElementTree.SubElement(top, "testsuite")
        counts = dict.fromkeys(totals, 0)
        for result in results:
            for subject, items in _by_subject(result).items():
                kind = _case(suite, result, subject, items)
                counts["tests"] += 1
                if kind:
                    counts[kind] += 1
        moment = datetime.fromtimestamp(report.start_ns // 10**9, UTC)
        suite.set("name", _legal(f"{name} - {catalogue.section_title(name)}"))
        suite.set("timestamp", moment.strftime("%Y-%m-%dT%H:%M:%S"))
        suite.set("hostname", _legal(report.host))
        suite.set("time", "0")
        for key, value in counts.items():
            suite.set(key, str(value))
            totals[key] += value
    for key, value in totals.items():
        top.set(key, str(value))
    top.set("time", f"{seconds:.3f}")
    ElementTree.indent(top)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(top, "unicode") + "\n"


def _by_subject(result: Result) -> dict[str, list[Item]]:
    found: dict[str, list[Item]] = {}
    for item in result.items:
        found.setdefault(item.subject, []).append(item)
    return found or {"": []}


def _case(suite: ElementTree.Element, result: Result, subject: str, items: list[Item]) -> str:
    check = catalogue.checks()[result.check]
    name = f"{result.id} {check.title}" + (f" [{subject}]" if subject else "")
    case = ElementTree.SubElement(
        suite, "testcase", classname=f"tare.audit.{check.name}", name=_legal(name), time="0"
    )
    bad = [item for item in items if item.counts and item.level.rank >= Level.WARN.rank]
    said = _legal("\n".join(_line(item) for item in items))
    if bad:
        worst = max((item.level for item in bad), key=lambda level: level.rank)
        failure = ElementTree.SubElement(
            case, "failure", message=_legal("; ".join(i.seen for i in bad))[:500], type=str(worst)
        )
        failure.text = _legal(
            "\n".join([*(_line(i) for i in bad), "", f"why: {check.why}", f"do: {check.remedy}"])
        )
        return "failures"
    aside = [item for item in items if item.standing is not Standing.COUNTS]
    if aside and not any(item.standing is Standing.COUNTS for item in items):
        message = "; ".join(f"{i.standing}: {i.note or i.seen}" for i in aside)
        ElementTree.SubElement(case, "skipped", message=_legal(message)[:500])
        return "skipped"
    if said:
        ElementTree.SubElement(case, "system-out").text = said
    return ""


def _line(item: Item) -> str:
    evidence = "; ".join(f"{e.where}: {e.value}" for e in item.evidence)
    where = f" (line {item.line})" if item.line else ""
    return f"{item.level}: {item.seen}{where}" + (f" [{evidence}]" if evidence else "")


def _legal(text: str) -> str:
    """*text* with what XML 1.0 cannot hold ("Char") replaced."""
    return "".join(
        c if c in "\t\n" or " " <= c <= "\ud7ff" or "\ue000" <= c <= "�" or c > "\uffff" else "�"
        for c in text
    )
