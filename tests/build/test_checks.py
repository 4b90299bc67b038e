"""Advice: each rule has a file that it tells of and one that it does not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tare.build import checks
from tare.build.dockerfile import DockerfileError, Finding, Lines, parse
from tare.build.shell_commands import bare, pipelines, program
from tare.model.ignore import IgnoreRules

HEAD = "FROM a:1\n"


def found(text: str, rules: IgnoreRules | None = None) -> tuple[Finding, ...]:
    """All findings, with the optional rules asked for."""
    return checks.check(parse(f"# check=experimental=all\n{text}\n".encode()), rules)


def names(text: str, rules: IgnoreRules | None = None) -> set[str]:
    return {finding.name for finding in found(text, rules)}


# Rule, a file that breaks it, the last line and the words told, a file that does not.
CASES = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "data" / "dockerfile-checks.jsonl")
    .read_text()
    .splitlines()
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["rule"])
def test_a_rule_tells_of_what_breaks_it_and_of_nothing_else(case: dict[str, Any]) -> None:
    rule = case["rule"]

    told = [finding for finding in found(case["bad"]) if finding.name == rule]

    assert [f.lines and f.lines.last for f in told] == [case["line"]]
    assert case["told"] in told[0].text
    assert told[0].explanation == checks.RULES[rule]
    assert "http" not in told[0].explanation
    assert rule not in names(case["good"])


def test_every_rule_has_a_case() -> None:
    others = {"CopyIgnoredFile", "InvalidBaseImagePlatform"}  # they need more than the file
    assert {case["rule"] for case in CASES} | others == set(checks.RULES)


def test_every_rule_is_in_the_documentation() -> None:
    document = (Path(__file__).parents[2] / "docs" / "dockerfile.md").read_text()

    for rule, explanation in checks.RULES.items():
        assert re.search(
            rf"^\| {rule} \| .* \| {re.escape(explanation)} \|$", document, re.MULTILINE
        )


@pytest.mark.parametrize(
    ("step", "patterns", "told"),
    [
        ("COPY a.txt /", ["*.txt"], 'Copy file "a.txt"'),
        ("ADD ./d/x /", ["d"], 'Add file "d/x"'),
        ("COPY . /", ["*"], 'Copy file "."'),
        ("COPY . /", ["a"], ""),
        ("COPY b.md /", ["*.txt"], ""),
        ("COPY a.txt /", ["*.txt", "!b"], ""),
        ("COPY --from=x a.txt /", ["*.txt"], ""),
        ("ADD http://x/a.txt /", ["**"], ""),
    ],
)
def test_a_copy_of_what_is_ignored_is_told(step: str, patterns: list[str], told: str) -> None:
    texts = [
        f.text for f in found(HEAD + step, IgnoreRules(patterns)) if f.name == "CopyIgnoredFile"
    ]

    assert len(texts) == bool(told)
    assert all(told in text for text in texts)


def test_a_file_may_skip_rules_at_the_top_or_at_one_instruction() -> None:
    def told(text: str) -> set[str]:
        return {f.name for f in checks.check(parse(text.encode()))}

    body = "FROM a:1\nENV a b\nCMD c\nRUN x \\\n\n y\n"
    assert told(body) == {"LegacyKeyValueFormat", "JSONArgsRecommended", "NoEmptyContinuation"}
    assert told("# check=skip=LegacyKeyValueFormat, x\n" + body) == told(body) - {
        "LegacyKeyValueFormat"
    }
    assert told("# check=skip=all\n" + body) == set()
    assert told("# check=skip=all;experimental=all\n" + body) == {
        "HealthcheckMissing",
        "UnpinnedBaseImage",
    }
    once = body.replace("CMD", "# check=skip=JSONArgsRecommended\nCMD")
    assert told(once) == told(body) - {"JSONArgsRecommended"}


def test_a_base_whose_variables_are_known_is_held_to_them() -> None:
    dockerfile = parse(b"FROM a:1\nENV x=$HOME y=$FOO\n")

    unknown = checks.check(dockerfile)
    known = checks.check(dockerfile, environments={"a:1": {"HOME": "/"}})

    assert [f.name for f in unknown] == []
    assert [(f.name, f.text) for f in known] == [
        ("UndefinedVar", "Usage of undefined variable '$FOO'")
    ]


def test_build_arguments_take_no_finding_on_defaults_away() -> None:
    dockerfile = parse(b"ARG TAG\nFROM a:$TAG\n")

    told = checks.check(dockerfile, build_args={"TAG": "1"})

    assert [f.name for f in told] == ["InvalidDefaultArgInFrom"]


def test_findings_come_in_the_order_of_lines() -> None:
    told = found("FROM a AS B\nENV a b\nCMD x\n")

    starts = [f.lines.first for f in told if f.lines]
    assert starts == sorted(starts)
    assert told[0].lines == Lines(2, 2)


def test_a_sound_file_has_no_findings() -> None:
    text = (
        "ARG TAG=1.2\nFROM --platform=$BUILDPLATFORM golang:$TAG AS build\nWORKDIR /src\n"
        "COPY . .\nRUN --mount=type=cache,target=/root/.cache go build -o /out ./...\n"
        "FROM scratch\nCOPY --from=build /out /app\nUSER 1000\n"
        'HEALTHCHECK CMD ["/app", "check"]\nENTRYPOINT ["/app"]\n'
    )

    assert checks.check(parse(text.encode())) == ()


def test_a_script_divides_into_commands() -> None:
    lines = pipelines("A=1 a \"b c\" 2>&1 | d && e # f\ng'h'i;(j) || k\\ l")

    assert lines == [
        (("A=1", "a", "b c", "2>&1"), ("d",)),
        (("e",),),
        (("ghi",),),
        (("j",),),
        (("k l",),),
    ]
    assert bare(("A=1", "env", "x", "y")) == ("x", "y")
    assert program(("time", "/usr/bin/curl")) == "curl"


STEPS = st.sampled_from(
    ("FROM a", "FROM $x AS b", "ARG x=$y", "ENV a=$a b", "RUN curl | sh", "RUN 'x", "COPY $x .",
     "COPY --from=b / /", "EXPOSE 99999", "EXPOSE $x", "USER $u", "WORKDIR $w", "CMD x", "CMD []",
     "ENTRYPOINT []", "RUN chmod +s", "RUN []", 'RUN ["curl", "-k"]', "VOLUME //", "# check=x",
     "# check=skip=all", "HEALTHCHECK NONE", "ONBUILD RUN x", "LABEL a b", "RUN passwd",
     "RUN useradd", "RUN useradd -p", "RUN sudo", "RUN chmod", "RUN = | |& )(",
     "ADD x:// y")
)  # fmt: skip


@settings(max_examples=300)
@given(st.lists(STEPS, max_size=12), st.lists(st.sampled_from(("*", "a", "!b", "**")), max_size=2))
def test_advice_never_raises(steps: list[str], patterns: list[str]) -> None:
    try:
        dockerfile = parse("\n".join(("FROM a", *steps)).encode())
    except DockerfileError:
        return
    checks.check(dockerfile, IgnoreRules(patterns))


def test_a_base_image_of_another_platform_is_named() -> None:
    dockerfile = parse(b"FROM a:1\nFROM --platform=$BUILDPLATFORM a:1\n")

    found = checks.check(dockerfile, foreign={"a:1": 'platform "linux/arm64"'})

    told = [(f.lines.first if f.lines else 0, f.text) for f in found if "Platform" in f.name]
    assert told == [(1, 'Base image a:1 was pulled with platform "linux/arm64"')]
