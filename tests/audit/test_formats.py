"""One report in every format: valid by its rules, whatever strangers wrote into it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest

from harness.reports import HOSTILE, report
from tare.audit import finding
from tare.audit.finding import Level
from tare.audit.formats import bench, junit, page, sarif, text
from tare.audit.formats.tally import tally
from tare.errors import InvalidError


def test_a_report_comes_back_from_json_as_it_went() -> None:
    there = finding.from_plain(json.loads(json.dumps(finding.plain(report()))))

    assert there == finding.from_plain(finding.plain(there))
    assert there.results[2:] == report().results[2:]
    assert there.results[1].items[0].subject == HOSTILE.replace("\ud800", "\\ud800")


@pytest.mark.parametrize(
    "value",
    [None, [], {}, {"Benchmark": "1"}, {**finding.plain(report()), "Results": [1]},
     {**finding.plain(report()), "StartNs": True}],
)  # fmt: skip
def test_something_that_is_no_report_is_refused(value: object) -> None:
    with pytest.raises(InvalidError, match="not a report"):
        finding.from_plain(value)


def test_sums_count_what_had_an_object_and_counts() -> None:
    sums = tally(report())

    # 3.6 and 5.4 fail, 5.10 is set aside by waiver and baseline, T.D warns, 5.28 passes.
    assert sums.checks == 6
    assert sums.score == -2
    assert sums.levels["Level 1"] == (2, 4)
    assert sums.items == {Level.FAIL: 1, Level.WARN: 2, Level.INFO: 1, Level.NOTE: 1}


# --- text -----------------------------------------------------------------------------------------


def test_text_has_the_lines_of_docker_bench() -> None:
    lines = text.render(report(), remedies=True).splitlines()

    assert "[FAIL] 5.4 - Ensure that privileged containers are not used" in lines
    assert any(re.match(r"\[INFO\]      \* web: waived \[waived: ok\]", line) for line in lines)
    assert "[PASS] 5.28 - Ensure that the PIDs cgroup limit is used" in lines
    assert "[INFO] Checks: 6" in lines
    assert "[INFO] Score: -2" in lines
    assert any(line.startswith("[INFO] 5.4 - Run without --privileged") for line in lines)
    assert all(re.match(r"\[(PASS|NOTE|INFO|WARN|FAIL)\] |Section|#|$", line) for line in lines)


@pytest.mark.attack("A19")
def test_text_is_harmless_for_a_terminal() -> None:
    plain = text.render(report())

    assert all(c == "\n" or c.isprintable() for c in plain)
    assert "\x1b[31m" not in text.render(report(), colour=True).replace("\x1b[1;31m", "")


# --- JSON of docker-bench -------------------------------------------------------------------------


def test_bench_json_has_the_shape_that_its_readers_expect() -> None:
    found = json.loads(json.dumps(bench.document(report())))

    assert set(found) == {"dockerbenchsecurity", "start", "tests", "checks", "score", "end"}
    assert [section["id"] for section in found["tests"]] == ["3", "5", "7", "T.D"]
    results = [one for section in found["tests"] for one in section["results"]]
    assert {one["result"] for one in results} <= {"PASS", "WARN", "INFO", "NOTE"}
    assert all({"id", "desc", "result"} <= one.keys() for one in results)
    by_id = {one["id"]: one for one in results}
    assert by_id["5.4"]["result"] == "WARN"
    assert by_id["5.4"]["items"] == [HOSTILE]
    assert by_id["5.10"]["result"] == "INFO"
    assert "remediation" in by_id["5.4"]
    assert "remediation" not in by_id["5.28"]


# --- SARIF ----------------------------------------------------------------------------------------


def _sarif() -> Any:
    return json.loads(json.dumps(sarif.document(report())))


def test_sarif_is_valid_by_the_rules_of_2_1_0() -> None:
    """The clauses of SARIF 2.1.0 that are about what we write, by their numbers."""
    log = _sarif()

    assert log["version"] == "2.1.0"  # 3.13.2
    assert str(log["$schema"]).endswith("sarif-schema-2.1.0.json")  # 3.13.3
    (run,) = log["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"]  # 3.19.8: required
    rules = driver["rules"]
    assert len({rule["id"] for rule in rules}) == len(rules)  # 3.19.23: unique
    for rule in rules:
        assert set(rule) <= {
            "id", "name", "shortDescription", "fullDescription", "help", "defaultConfiguration",
            "properties",
        }  # fmt: skip
        assert rule["defaultConfiguration"]["level"] in ("none", "note", "warning", "error")
        for message in ("shortDescription", "fullDescription", "help"):
            assert rule[message]["text"]  # 3.12.3: text is required
        tags = rule["properties"]["tags"]
        assert len(set(tags)) == len(tags)  # 3.8.2: unique
        assert 0 <= float(rule["properties"]["security-severity"]) <= 10
    (invocation,) = run["invocations"]
    assert invocation["executionSuccessful"] is True  # 3.20.14: required
    for key in ("startTimeUtc", "endTimeUtc"):  # 3.9: the form of moments
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", invocation[key])
    for result in run["results"]:
        _valid_result(result, rules)


def _valid_result(result: Any, rules: Any) -> None:
    assert result["message"]["text"]  # 3.27.11: required
    assert rules[result["ruleIndex"]]["id"] == result["ruleId"]  # 3.27.6
    kinds = ("pass", "open", "informational", "notApplicable", "review", "fail")
    assert result["kind"] in kinds
    assert result["level"] in ("none", "note", "warning", "error")
    if result["kind"] != "fail":  # 3.27.10
        assert result["level"] == "none"
    for location in result["locations"]:
        physical = location.get("physicalLocation")
        if physical:
            uri = physical["artifactLocation"]["uri"]
            assert re.fullmatch(r"[A-Za-z0-9._~!$&'()*+,;=:@/%-]+", uri)  # RFC 3986
            assert physical.get("region", {"startLine": 1})["startLine"] >= 1  # 3.30.5
        else:
            assert location["logicalLocations"][0]["fullyQualifiedName"]
    for one in result.get("suppressions", ()):
        assert one["kind"] in ("inSource", "external")  # 3.35.2
        assert one["status"] in ("accepted", "underReview", "rejected")  # 3.35.3
    states = ("new", "unchanged", "updated", "absent", None)
    assert result.get("baselineState") in states  # 3.27.24


def test_sarif_says_where_a_dockerfile_is_wrong_and_what_was_set_aside() -> None:
    (run,) = _sarif()["runs"]
    by_rule = {one["ruleId"]: one for one in run["results"]}

    place = by_rule["dockerfile-add"]["locations"][0]["physicalLocation"]
    assert place == {
        "artifactLocation": {"uri": "a%20b/Dockerfile"},
        "region": {"startLine": 7},
    }
    memory = [one for one in run["results"] if one["ruleId"] == "workload-memory"]
    assert memory[0]["suppressions"][0]["justification"] == "ok"
    assert memory[1]["baselineState"] == "unchanged"
    assert by_rule["workload-privileged"]["level"] == "error"
    assert by_rule["swarm-managers"]["kind"] == "notApplicable"
    assert all(one["kind"] != "pass" for one in run["results"])


# --- JUnit ----------------------------------------------------------------------------------------


def test_junit_counts_what_it_holds() -> None:
    top = ElementTree.fromstring(junit.render(report()))

    assert top.tag == "testsuites"
    for suite in top:
        assert suite.tag == "testsuite"
        assert int(suite.get("tests", "")) == len(suite.findall("testcase"))
        assert int(suite.get("failures", "")) == len(suite.findall("testcase/failure"))
        assert int(suite.get("skipped", "")) == len(suite.findall("testcase/skipped"))
        assert all(case.get("name") and case.get("classname") for case in suite)
        assert {child.tag for case in suite for child in case} <= {
            "failure", "skipped", "system-out",
        }  # fmt: skip
    assert int(top.get("failures", "")) == 3
    assert int(top.get("skipped", "")) == 3
    assert int(top.get("tests", "")) == sum(int(suite.get("tests", "")) for suite in top)


def test_junit_says_why_and_what_to_do() -> None:
    top = ElementTree.fromstring(junit.render(report()))

    failure = top.find("testsuite/testcase[@classname='tare.audit.workload-privileged']/failure")
    assert failure is not None
    assert failure.get("type") == "FAIL"
    assert "why: A privileged container" in (failure.text or "")
    assert "do: Run without --privileged" in (failure.text or "")


# --- the page -------------------------------------------------------------------------------------


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "action", "onclick")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.mark.attack("A19")
def test_the_page_needs_nothing_and_runs_nothing() -> None:
    read = _Page()
    read.feed(page.render(report()))

    assert read.addresses == []
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(read.tags)
    assert read.tags.count("details") == len(report().results)
    # What a container is called is shown, as text.
    assert any("</script><b>" in word for word in read.words)
    assert "Content-Security-Policy" in page.render(report())
