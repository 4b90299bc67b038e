"""A report as SARIF 2.1.0, for code scanning. Pure.

A rule is a check by its name, which is the same in every edition of the benchmark; a result is an
item that is not PASS. What no edition could fail is told as SARIF says: ``kind`` review,
informational or notApplicable with the level none.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote

from tare.audit import catalogue
from tare.audit.finding import Item, Level, Report, Result, Scope, Standing
from tare.audit.rules.rule import Check
from tare.audit.standing import fingerprint

Json = dict[str, object]

SCHEMA: Final = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
_KINDS: Final = {
    Level.PASS: ("pass", "none"),
    Level.NOTE: ("review", "none"),
    Level.INFO: ("informational", "none"),
    Level.WARN: ("fail", "warning"),
    Level.FAIL: ("fail", "error"),
}
_SEVERITY: Final = {1: "6.0", 2: "4.0", 0: "5.0"}


def document(report: Report) -> Json:
    """The whole log as JSON's values."""
    known = catalogue.checks()
    rules = [known[result.check] for result in report.results]
    numbers = {result.check: result.id for result in report.results}
    index = {check.name: at for at, check in enumerate(rules)}
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "tare audit",
                        "version": report.engine,
                        "rules": [_rule(check, numbers[check.name]) for check in rules],
                    }
                },
                "automationDetails": {"id": f"tare-audit/cis-{report.benchmark}/"},
                "invocations": [
                    {
                        "executionSuccessful": True,
                        "startTimeUtc": _moment(report.start_ns),
                        "endTimeUtc": _moment(report.end_ns),
                        "machine": report.host,
                        "toolExecutionNotifications": [
                            {"level": "note", "message": {"text": remark}}
                            for remark in report.remarks
                        ],
                    }
                ],
                "results": [
                    _result(result, item, index[result.check], known[result.check])
                    for result in report.results
                    for item in result.items
                    if item.level is not Level.PASS
                ],
            }
        ],
    }


def _moment(nanoseconds: int) -> str:
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _rule(check: Check, number: str) -> Json:
    tags = ["security", str(check.scope), f"cis-{number}", *check.also]
    if check.level:
        tags.append(f"level{check.level}")
    return {
        "id": check.name,
        "name": "".join(word.capitalize() for word in check.name.split("-")),
        "shortDescription": {"text": f"{number} {check.title}"},
        "fullDescription": {"text": check.why},
        "help": {"text": f"{check.why}\n\n{check.remedy}"},
        "defaultConfiguration": {"level": "warning" if check.scored else "note"},
        "properties": {
            "tags": sorted(set(tags)),
            "security-severity": _SEVERITY[check.level],
        },
    }


def _result(result: Result, item: Item, index: int, check: Check) -> Json:
    kind, level = _KINDS[item.level]
    if item.standing is Standing.INAPPLICABLE:
        kind, level = "notApplicable", "none"
    evidence = "; ".join(f"{e.where}: {e.value}" for e in item.evidence)
    said = f"{item.subject}: {item.seen}" if item.subject else item.seen
    found: Json = {
        "ruleId": check.name,
        "ruleIndex": index,
        "kind": kind,
        "level": level,
        "message": {"text": f"{said} [{evidence}]" if evidence else said},
        "locations": [_location(item, check)],
        "partialFingerprints": {"tareAudit/v1": _digest(result, item)},
    }
    if item.standing is Standing.WAIVED:
        found["suppressions"] = [
            {"kind": "external", "status": "accepted", "justification": item.note}
        ]
    if item.standing is Standing.KNOWN:
        found["baselineState"] = "unchanged"
    return found


def _digest(result: Result, item: Item) -> str:
    raw = "\0".join(fingerprint(result, item)).encode("utf-8", "backslashreplace")
    return hashlib.sha256(raw).hexdigest()


def _location(item: Item, check: Check) -> Json:
    """A Dockerfile is a file of the repository; everything else is a thing of the host."""
    if check.scope is Scope.DOCKERFILE:
        place: Json = {"artifactLocation": {"uri": quote(item.subject, errors="replace")}}
        if item.line:
            place["region"] = {"startLine": item.line}
        return {"physicalLocation": place}
    name = item.subject or str(check.scope)
    return {
        "logicalLocations": [
            {"name": name, "fullyQualifiedName": f"{check.scope}/{name}", "kind": "resource"}
        ]
    }
