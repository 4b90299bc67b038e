"""ARG and ENV: who sees what, from where, and what stays in the image."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tare.build.dockerfile import (
    Arg,
    Base,
    Dockerfile,
    DockerfileError,
    Env,
    Scope,
    Stage,
    base_of,
    global_arguments,
    parse,
    proxies,
)
from tare.build.dockerfile.scope import DEFAULT_PATH
from tare.model.oci import Platform

AMD, ARM = Platform("linux", "amd64"), Platform("linux", "arm", "v7")


def arguments(found: Dockerfile, build_args: Mapping[str, str], stage: str = "") -> dict[str, str]:
    return global_arguments(found, build_args, build=AMD, target=ARM, stage=stage)


def walked(stage: Stage, scope: Scope) -> Scope:
    for instruction in stage.instructions:
        if isinstance(instruction, Arg):
            scope.declare(instruction)
        elif isinstance(instruction, Env):
            scope.set(instruction)
    return scope


def after(text: str, *, build_args: Mapping[str, str] | None = None, **base: str) -> Scope:
    """The scope behind the steps of the first stage of *text*."""
    found = parse(text.encode())
    given = build_args or {}
    return walked(found.stages[0], Scope({"PATH": "/b", **base}, arguments(found, given), given))


def test_platforms_are_known_and_a_build_argument_changes_them() -> None:
    found = parse(b"FROM a AS last\n")

    known = arguments(found, {"TARGETOS": "moon"})

    assert known == {
        "BUILDPLATFORM": "linux/amd64", "BUILDOS": "linux", "BUILDOSVERSION": "",
        "BUILDARCH": "amd64", "BUILDVARIANT": "",
        "TARGETPLATFORM": "linux/arm/v7", "TARGETOS": "moon", "TARGETOSVERSION": "",
        "TARGETARCH": "arm", "TARGETVARIANT": "v7", "TARGETSTAGE": "last",
    }  # fmt: skip
    assert arguments(parse(b"FROM a\n"), {})["TARGETSTAGE"] == "default"
    assert arguments(found, {}, stage="x")["TARGETSTAGE"] == "x"


def test_global_arguments_see_those_before_them_and_build_arguments() -> None:
    found = parse(b"ARG A=1\nARG B=$A-$TARGETARCH C=${D:-d} D\nFROM a:$B\n")

    assert arguments(found, {})["B"] == "1-arm"
    assert arguments(found, {"A": "2"})["B"] == "2-arm"
    assert arguments(found, {"B": "$A"})["B"] == "$A"
    assert "D" not in arguments(found, {})


def test_from_takes_global_arguments_for_image_and_platform() -> None:
    found = parse(
        b"ARG T=x\nFROM --platform=$TARGETPLATFORM a:${T}\nFROM $U\nFROM --platform=$U a\n"
    )
    known = arguments(found, {})

    assert base_of(found.stages[0], known) == Base("a:x", "linux/arm/v7")
    with pytest.raises(DockerfileError, match=r"base name \(\$U\) should not be blank"):
        base_of(found.stages[1], known)
    with pytest.raises(DockerfileError, match=r"empty platform value from expression \$U"):
        base_of(found.stages[2], known)


def test_a_misspelt_argument_in_from_is_answered_with_the_right_one() -> None:
    found = parse(b"ARG VERSION=1\nFROM $VERSON\nFROM --platform=!! a\n")

    with pytest.raises(DockerfileError, match="did you mean VERSION"):
        base_of(found.stages[0], arguments(found, {}))
    with pytest.raises(DockerfileError, match="failed to parse platform"):
        base_of(found.stages[1], arguments(found, {}))


def test_a_global_argument_is_seen_in_a_stage_that_asks_for_it() -> None:
    scope = after("ARG V=1 W=2\nFROM a\nARG V\nENV seen=$V not=$W\n")

    assert scope.environment["seen"] == "1"
    assert scope.environment["not"] == ""
    assert scope.arguments == {"V": "1"}


def test_a_build_argument_wins_over_default_and_global() -> None:
    scope = after("ARG V=1\nFROM a\nARG V=2\nARG W=$V\nARG N\n", build_args={"V": "3", "X": "no"})

    assert scope.arguments == {"V": "3", "W": "3"}
    assert scope.declared == {"V", "W", "N"}


def test_the_last_of_argument_and_env_wins_and_env_alone_stays() -> None:
    scope = after("FROM a\nARG V=1\nENV V=2\nARG W=1\nENV X=$W$V\nARG base=4\n", base="b")

    assert scope.environment == {"PATH": "/b", "base": "4", "V": "2", "W": "1", "X": "12"}
    assert list(scope.image_environment.items()) == [
        ("PATH", "/b"), ("base", "b"), ("V", "2"), ("X", "12"),
    ]  # fmt: skip


def test_env_sees_what_was_before_its_line() -> None:
    scope = after("FROM a\nENV a=1\nENV a=2 b=$a\nENV c=$b\n")

    assert (scope.environment["b"], scope.environment["c"]) == ("1", "1")


def test_a_stage_on_a_stage_has_its_arguments() -> None:
    found = parse(b"FROM a AS one\nARG V=1\nENV E=$V\nARG E=5\nFROM one\nENV F=$V$E\n")
    first = walked(found.stages[0], Scope({}, {}, {}))

    second = walked(found.stages[1], first.child())

    assert second.environment["F"] == "11"
    assert second.arguments == {"V": "1", "E": "5"}
    assert "F" not in first.environment


def test_a_base_without_path_gets_the_usual_one() -> None:
    assert Scope({}, {}, {}).image_environment == {"PATH": DEFAULT_PATH}


def test_proxies_come_in_both_cases_of_letters() -> None:
    found = proxies({"HTTP_PROXY": "p", "no_proxy": "n", "other": "x"})

    assert found == {"HTTP_PROXY": "p", "http_proxy": "p", "NO_PROXY": "n", "no_proxy": "n"}


def test_a_file_that_doubles_a_variable_ends_at_a_bound() -> None:
    text = "FROM a\nENV A=" + "x" * 1000 + "\n" + "ENV A=$A$A\n" * 60

    with pytest.raises(DockerfileError, match=r"expands to more|longer than") as caught:
        after(text)

    assert caught.value.lines.first > 2


def test_many_long_variables_end_at_a_bound() -> None:
    text = "FROM a\nENV A=" + "x" * 60_000 + "\n" + "".join(f"ENV B{n}=$A\n" for n in range(100))

    with pytest.raises(DockerfileError, match="all variables together"):
        after(text)


def test_what_a_step_may_not_change_is_read_only() -> None:
    scope = after("FROM a\nENV a=1\n")

    with pytest.raises(TypeError):
        scope.environment["a"] = "2"  # type: ignore[index]  # that is the point
