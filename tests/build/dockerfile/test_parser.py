"""Typed instructions: what each may have, and the errors with their line and marker."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tare.build.dockerfile import (
    Add,
    Arg,
    Cmd,
    Copy,
    Declaration,
    Device,
    Dockerfile,
    DockerfileError,
    Entrypoint,
    Env,
    Healthcheck,
    InlineFile,
    Instruction,
    Lines,
    Network,
    Onbuild,
    Pair,
    Run,
    Security,
    Shell,
    Workdir,
    parse,
    parse_trigger,
)
from tare.errors import InvalidError


def file(text: str) -> Dockerfile:
    return parse(text.encode())


def one(text: str) -> Instruction:
    """The instruction that *text* is, behind a FROM."""
    (instruction,) = file(f"FROM a\n{text}\n").stages[0].instructions
    return instruction


def refusal(text: str) -> DockerfileError:
    with pytest.raises(DockerfileError) as caught:
        file(text)
    return caught.value


# ---- stages ----------------------------------------------------------------------------------


def test_stages_have_names_bases_platforms_and_lines() -> None:
    found = file(
        "ARG V=1 W\nFROM --platform=$BUILDPLATFORM go:$V AS Build\nRUN x\n\nFROM scratch\n"
        "COPY --from=build /x /x\nCMD y\n"
    )

    first, second = found.stages
    assert (first.name, first.base, first.platform) == ("build", "go:$V", "$BUILDPLATFORM")
    assert (second.name, second.base, second.platform) == ("", "scratch", "")
    assert (first.lines, second.lines) == (Lines(2, 3), Lines(5, 7))
    assert found.global_args[0].declarations == (Declaration("V", "1"), Declaration("W"))


def test_a_stage_is_found_by_name_in_any_case_or_by_number() -> None:
    found = file("FROM a AS one\nFROM b AS two\nFROM c AS one\n")

    assert found.stage("ONE") is found.stages[2]
    assert found.stage("one", before=2) is found.stages[0]
    assert found.stage("1") is found.stages[1]
    assert found.stage("3") is None
    assert found.stage("1", before=1) is None
    assert found.named("1") is None


def test_directives_are_told() -> None:
    found = file(
        "# syntax=docker/dockerfile:1 x\n# escape=`\n"
        "# check=skip=A,B;experimental=all;error=true\nFROM a\n"
    ).directives

    assert (found.syntax, found.escape) == ("docker/dockerfile:1", "`")
    assert found.check.skip == {"A", "B"}
    assert found.check.experimental == {"all"}
    assert found.check.error


def test_an_empty_line_in_a_continuation_is_a_warning() -> None:
    (warning,) = file("FROM a\nRUN x \\\n\n  y\n").warnings

    assert (warning.name, warning.lines) == ("NoEmptyContinuation", Lines(4, 4))


def test_descriptions_stand_right_above() -> None:
    found = file("# A is first\nARG A\n# B is not\n\nARG B\nFROM x\n")

    assert [arg.declarations[0].description for arg in found.global_args] == ["is first", ""]


# ---- RUN -------------------------------------------------------------------------------------


def test_run_has_shell_form_and_json_form() -> None:
    shell, array = one("RUN a  b"), one('RUN ["a", "b c"]')

    assert isinstance(shell, Run)
    assert isinstance(array, Run)
    assert (shell.command.arguments, shell.command.shell) == (("a  b",), True)
    assert (array.command.arguments, array.command.shell) == (("a", "b c"), False)


def test_run_has_network_security_and_devices() -> None:
    run = one("RUN --network=none --security=insecure --device=v.com/gpu=all,required x")

    assert isinstance(run, Run)
    assert (run.network, run.security) == (Network.NONE, Security.INSECURE)
    assert run.devices == (Device("v.com/gpu=all", required=True),)


def test_run_knows_where_its_mounts_come_from_before_variables() -> None:
    run = one("RUN --mount=from=base,target=/a --mount=type=cache,target=$X,from=other x")

    assert isinstance(run, Run)
    assert run.mount_sources == ("base", "other")
    assert run.mounts == ()


@pytest.mark.parametrize(
    ("text", "arguments", "script"),
    [
        ("RUN <<E\na\nb\nE", ("a\nb\n",), None),
        ("RUN <<-E\n\ta\n\tE", ("a\n",), None),
        ("RUN <<E\n#!/bin/x\na\nE", ("/dev/pipes/E",), InlineFile("E", "#!/bin/x\na\n")),
        ("RUN <<../../e\n#!/x\n../../e", ("/dev/pipes/e",), InlineFile("e", "#!/x\n")),
        ("RUN <<..\n#!/x\n..", ("/dev/pipes/script",), InlineFile("script", "#!/x\n")),
        ("RUN sh <<E\na\nE", ("sh <<E\na\nE",), None),
        ("RUN a <<E <<-'F'\n1\nE\n\t2\nF", ("a <<E <<-'F'\n1\nE\n\t2\nF",), None),
        ("RUN <<'a b'\nx\na b", ("x\n",), None),
    ],
)
def test_here_documents_are_folded_into_the_command(
    text: str, arguments: tuple[str, ...], script: InlineFile | None
) -> None:
    run = one(text)
    assert isinstance(run, Run)

    execution = run.execution()

    assert (execution.arguments, execution.script) == (arguments, script)
    assert execution.shell


# ---- others ----------------------------------------------------------------------------------


def test_copy_has_its_flags() -> None:
    copy = one(
        "COPY --from=b --chown=1:2 --chmod=644 --link --parents --exclude=*.a --exclude=*.b a b c/"
    )

    assert isinstance(copy, Copy)
    assert (copy.sources, copy.destination) == (("a", "b"), "c/")
    assert (copy.from_name, copy.chown, copy.chmod) == ("b", "1:2", "644")
    assert copy.link
    assert copy.parents
    assert copy.exclude == ("*.a", "*.b")


def test_add_tells_flags_left_out_from_flags_set() -> None:
    plain = one("ADD a b")
    full = one("ADD --keep-git-dir=true --unpack=false --checksum=sha256:00 --link=false a b")

    assert isinstance(plain, Add)
    assert isinstance(full, Add)
    assert (plain.keep_git_dir, plain.unpack, plain.checksum) == (None, None, "")
    assert (full.keep_git_dir, full.unpack, full.checksum) == (True, False, "sha256:00")


def test_files_may_stand_in_the_dockerfile() -> None:
    copy = one("COPY a <<one <<-'two' /d/\n$x\none\n\t$y\ntwo")

    assert isinstance(copy, Copy)
    assert copy.sources == ("a",)
    assert copy.files == (
        InlineFile("one", "$x\n", expand=True),
        InlineFile("two", "$y\n", expand=False),
    )


@pytest.mark.attack("A38")
def test_the_name_of_a_here_document_leads_nowhere() -> None:
    copy = one("COPY <<../../etc/x </etc/y <</a/z /d/\n../../etc/x\n/a/z")
    run = one("RUN <<../../e\n#!/x\n../../e")

    assert isinstance(copy, Copy)
    assert isinstance(run, Run)
    assert [file.name for file in copy.files] == ["x", "z"]
    assert run.execution().arguments == ("/dev/pipes/e",)
    assert "cannot be a file" in refusal("FROM a\nCOPY <<a/.. /d/\na/..").reason


@pytest.mark.attack("A38")
def test_a_frontend_is_told_and_changes_nothing() -> None:
    plain = file("FROM a\nRUN x\n")
    foreign = file("# syntax=evil.example/frontend@sha256:0\nFROM a\nRUN x\n")

    assert foreign.directives.syntax == "evil.example/frontend@sha256:0"
    assert foreign.stages == plain.stages


def test_env_and_label_have_pairs() -> None:
    assert one('ENV a=1 b="2 3"') == Env(
        place=one("ENV a=1").place, pairs=(Pair("a", "1"), Pair("b", '"2 3"'))
    )
    legacy = one("ENV a 1 2")
    assert isinstance(legacy, Env)
    assert legacy.pairs == (Pair("a", "1 2", legacy=True),)


def test_arg_may_have_no_value() -> None:
    arg = one("ARG a b= c='d e'")

    assert isinstance(arg, Arg)
    assert [(d.name, d.value) for d in arg.declarations] == [
        ("a", None), ("b", ""), ("c", "'d e'"),
    ]  # fmt: skip


def test_cmd_and_entrypoint_may_be_empty() -> None:
    cmd, entrypoint = one("CMD []"), one("ENTRYPOINT []")

    assert isinstance(cmd, Cmd)
    assert isinstance(entrypoint, Entrypoint)
    assert (cmd.command.arguments, cmd.command.shell) == ((), False)
    assert entrypoint.command.arguments == ()


def test_healthcheck_has_times_in_nanoseconds() -> None:
    found = one(
        "HEALTHCHECK --interval=1m30s --timeout=1.5s --start-period=0 --start-interval=2ms "
        "--retries=3 CMD curl x"
    )

    assert found == Healthcheck(
        place=found.place,
        test=("CMD-SHELL", "curl x"),
        interval_ns=90_000_000_000,
        timeout_ns=1_500_000_000,
        start_interval_ns=2_000_000,
        retries=3,
    )
    array, none = one('HEALTHCHECK CMD ["a"]'), one("healthcheck none")
    assert isinstance(array, Healthcheck)
    assert isinstance(none, Healthcheck)
    assert (array.test, none.test) == (("CMD", "a"), ("NONE",))


def test_onbuild_keeps_its_text_and_is_read_once() -> None:
    found = one("ONBUILD   RUN cat <<E > /x\nhello\nE")

    assert isinstance(found, Onbuild)
    assert found.trigger == "RUN cat <<E > /x\nhello\nE"
    assert isinstance(found.instruction, Run)
    again = parse_trigger(found.trigger, found.place)
    assert again == found.instruction
    assert again.lines == found.lines


@pytest.mark.parametrize("text", ["FROM x", "ONBUILD RUN x", "RUN a\nRUN b", "", "NONSENSE"])
def test_a_trigger_that_is_none_is_refused(text: str) -> None:
    place = file("FROM a\n").stages[0].start.place

    with pytest.raises(DockerfileError):
        parse_trigger(text, place)


def test_keywords_and_flags_mind_no_case_and_continuations() -> None:
    found = one("workDIR \\\n  /a b")

    assert isinstance(found, Workdir)
    assert found.path == "/a b"
    assert found.original == "workDIR   /a b"


def test_shell_is_json() -> None:
    found = one('SHELL ["/bin/bash", "-c"]')

    assert isinstance(found, Shell)
    assert found.arguments == ("/bin/bash", "-c")


# ---- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("keyword", ["RUN", "CMD", "ENTRYPOINT", "COPY", "VOLUME"])
def test_a_nul_letter_is_refused_with_its_line(keyword: str) -> None:
    text = f'FROM a\n{keyword} ["a", "b\\u0000c"]\n'

    with pytest.raises(DockerfileError, match="NUL") as caught:
        file(text)

    assert caught.value.lines.first == 2


def test_an_error_shows_file_line_text_and_marker() -> None:
    with pytest.raises(DockerfileError) as caught:
        parse(b"FROM a\n\n  COPPY . /x\n", name="sub/Dockerfile")

    assert str(caught.value) == (
        "sub/Dockerfile:3: unknown instruction: COPPY (did you mean COPY?)\n"
        "   3 |   COPPY . /x\n"
        "     |   ^^^^^"
    )
    assert caught.value.lines == Lines(3, 3)
    assert isinstance(caught.value, InvalidError)


def test_the_marker_is_on_the_line_of_the_mistake() -> None:
    assert str(refusal("FROM a\nCOPY --link \\\n  --form=b \\\n x /x")).splitlines()[1:] == [
        "   3 |   --form=b \\",
        "     |   ^^^^^^",
    ]


REFUSED = [
    ("", "the Dockerfile cannot be empty"),
    ("# only a comment\n\n", "file with no instructions"),
    ("ARG a\n", "dockerfile contains no stages to build"),
    ("RUN x\n", "no build stage in current context"),
    ("FROM a\nrunn x", "unknown instruction: runn (did you mean run?)"),
    ("FROM a\nXYZZY x", "unknown instruction: XYZZY"),
    ("FROM", "FROM requires either one or three arguments"),
    ("FROM a b", "FROM requires either one or three arguments"),
    ("FROM a IS b", "FROM requires either one or three arguments"),
    ("FROM a AS 1b", 'invalid name for build stage: "1b"'),
    ("FROM --plattform=x a", "unknown flag: --plattform (did you mean platform?)"),
    ("FROM a\nCOPY --from a b", "missing a value on flag: --from"),
    ("FROM a\nCOPY --link=maybe a b", "expecting boolean value for flag --link, not: maybe"),
    ("FROM a\nCOPY --link= a b", "missing a value on flag: --link"),
    ("FROM a\nCOPY --chown=a --chown=b a b", "duplicate flag specified: --chown"),
    ("FROM a\nCOPY --from=$x a b", "variable expansion is not supported for --from"),
    ("FROM a\nCOPY a", "COPY requires at least two arguments, but only one was provided"),
    ("FROM a\nADD a", "ADD requires at least two arguments"),
    ("FROM a\nCOPY a <<E\nE", "COPY cannot accept a heredoc as a destination"),
    ("FROM a\nRUN", "RUN requires at least one argument"),
    ("FROM a\nRUN --network=moon x", 'invalid network mode "moon"'),
    ("FROM a\nRUN --security=no x", 'security "no" is not valid'),
    ("FROM a\nRUN --mount=type=cach,target=/x y", '"cach" (did you mean cache?)'),
    ("FROM a\nRUN --mount=from=$x,target=/x y", "'from' doesn't support variable expansion"),
    ("FROM a\nUSER", "USER requires exactly one argument"),
    ("FROM a\nWORKDIR", "WORKDIR requires exactly one argument"),
    ("FROM a\nSTOPSIGNAL", "STOPSIGNAL requires exactly one argument"),
    ("FROM a\nMAINTAINER", "MAINTAINER requires exactly one argument"),
    ("FROM a\nENV", "ENV requires at least one argument"),
    ("FROM a\nENV a", "ENV must have two arguments"),
    ("FROM a\nENV =b", "ENV names can not be blank"),
    ("FROM a\nLABEL =b", "LABEL names can not be blank"),
    ("FROM a\nARG", "ARG requires at least one argument"),
    ("FROM a\nARG =b", "ARG names can not be blank"),
    ("FROM a\nEXPOSE", "EXPOSE requires at least one argument"),
    ("FROM a\nVOLUME", "VOLUME requires at least one argument"),
    ('FROM a\nVOLUME [""]', "VOLUME specified can not be an empty string"),
    ("FROM a\nSHELL bash -c", "SHELL requires the arguments to be in JSON form"),
    ("FROM a\nSHELL []", "SHELL requires at least one argument"),
    ("FROM a\nONBUILD", "ONBUILD requires at least one argument"),
    ("FROM a\nONBUILD ONBUILD RUN x", "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"),
    ("FROM a\nONBUILD FROM x", "FROM isn't allowed as an ONBUILD trigger"),
    ("FROM a\nONBUILD maintainer x", "MAINTAINER isn't allowed as an ONBUILD trigger"),
    ("FROM a\nONBUILD COPY a", "COPY requires at least two arguments"),
    ("FROM a\nHEALTHCHECK", "HEALTHCHECK requires at least one argument"),
    ("FROM a\nHEALTHCHECK CMD", "Missing command after HEALTHCHECK CMD"),
    ("FROM a\nHEALTHCHECK NONE x", "HEALTHCHECK NONE takes no arguments"),
    ("FROM a\nHEALTHCHECK TCP 80", 'Unknown type "TCP" in HEALTHCHECK (try CMD)'),
    ("FROM a\nHEALTHCHECK --interval=5 CMD x", 'missing unit in duration "5"'),
    ("FROM a\nHEALTHCHECK --interval=5us CMD x", 'Interval "interval" cannot be less than 1ms'),
    ("FROM a\nHEALTHCHECK --retries=-1 CMD x", "--retries cannot be negative (-1)"),
    ("FROM a\nHEALTHCHECK --retries=x CMD x", "--retries is not a number"),
    ("# check=nonsense\nFROM a", 'invalid check option "nonsense"'),
    ("# check=error=perhaps\nFROM a", "failed to parse check option"),
    ("FROM a\nRUN <<E\n", "unterminated heredoc"),
    ("FROM a\nRUN " + "x" * 70_000, "line greater than max allowed size of 65535"),
    ("FROM a\n" + "RUN x\n" * 10_001, "more than 10000 instructions"),
    ("FROM a\n" * 1_002, "more than 10000 instructions or 1000 stages"),
]


@pytest.mark.parametrize(("text", "reason"), REFUSED, ids=lambda value: str(value)[:60])
def test_a_mistake_is_refused_with(text: str, reason: str) -> None:
    error = refusal(text)

    assert reason in error.reason
    assert str(error).startswith(f"Dockerfile:{error.lines.first}: ")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"FROM a\nRUN \xff\n", "the line is not UTF-8"),
        ("FROM a".encode("utf-16"), "the file is UTF-16"),
        (b"FROM a\n#" + b"x" * 60_000 + b"\n" + (b"#" * 60_000 + b"\n") * 80, "larger than"),
    ],
)
def test_bytes_that_are_no_text_are_refused(text: bytes, reason: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        parse(text)

    assert reason in caught.value.reason


PIECES = (
    "FROM", "a", " ", "\n", "RUN", "COPY", "--", "--mount=", "type=", "cache", ",", "target=",
    "=", "<<", "EOF", "'", '"', "\\", "\\\n", "#", "# escape=`\n", "`", "$", "{", "}", ":-", "[",
    "]", "ONBUILD", "ENV", "ARG", "HEALTHCHECK", "CMD", "EXPOSE", "80", "\t", "\r\n", "\x1c",
    "\x00", "\u2028", "é", "😀", "AS", "LABEL", "SHELL", "VOLUME", "ADD", "--from=", "--chown",
    "\n\n", "-", "0", "5s", "--interval=",
)  # fmt: skip


@settings(max_examples=600, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=60).map("".join))
def test_any_text_is_a_dockerfile_or_a_dockerfile_error(text: str) -> None:
    for start in ("", "FROM a\n"):
        try:
            found = parse((start + text).encode())
        except DockerfileError as error:
            assert error.lines.first >= 1
        else:
            assert found.stages


@given(st.binary(max_size=200))
def test_any_bytes_are_a_dockerfile_or_a_dockerfile_error(raw: bytes) -> None:
    try:
        parse(b"FROM a\n" + raw)
    except DockerfileError:
        pass
