"""Profiles as files: what is read, and what is refused with which words."""

from __future__ import annotations

import errno
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tare.errors import InvalidError, TareError, UnsupportedError
from tare.model.seccomp import (
    EPERM,
    Comparison,
    Condition,
    Op,
    Profile,
    Ret,
    Rule,
    parse_profile,
)

ALLOW_READ = {"names": ["read"], "action": "SCMP_ACT_ALLOW"}


def document(**members: object) -> str:
    return json.dumps({"defaultAction": "SCMP_ACT_ERRNO"} | members)


def one_rule(**members: object) -> str:
    return document(syscalls=[ALLOW_READ | members])


def test_a_docker_profile_is_read_in_full() -> None:
    text = json.dumps(
        {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 38,
            "archMap": [
                {
                    "architecture": "SCMP_ARCH_X86_64",
                    "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"],
                },
                {"architecture": "SCMP_ARCH_S390X", "subArchitectures": ["SCMP_ARCH_S390"]},
            ],
            "syscalls": [
                {
                    "names": ["clone", "bpf"],
                    "action": "SCMP_ACT_ALLOW",
                    "args": [
                        {"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
                    ],
                    "comment": "threads",
                    "includes": {"arches": ["amd64"], "minKernel": "4.8"},
                    "excludes": {"caps": ["CAP_SYS_ADMIN"]},
                },
                {"name": "clone3", "action": "SCMP_ACT_ERRNO", "errnoRet": 38, "args": None},
            ],
        }
    )

    assert parse_profile(text.encode()) == Profile(
        Ret.ERRNO | 38,
        (
            Rule(
                ("clone", "bpf"),
                Ret.ALLOW,
                (Comparison(0, Op.MASKED_EQ, 2114060288, 0),),
                Condition(arches=frozenset({"amd64"}), min_kernel=(4, 8)),
                Condition(caps=frozenset({"SYS_ADMIN"})),
            ),
            Rule(("clone3",), Ret.ERRNO | 38),
        ),
        (("x86_64", ("i386", "x32")), ("s390x", ("s390",))),
    )


def test_a_podman_profile_may_name_its_errnos() -> None:
    rule = ALLOW_READ | {"action": "SCMP_ACT_ERRNO", "errno": "EINVAL", "errnoRet": 22}

    profile = parse_profile(document(defaultErrno="ENOSYS", syscalls=[rule]))

    assert profile.default == Ret.ERRNO | errno.ENOSYS
    assert profile.rules[0].verdict == Ret.ERRNO | errno.EINVAL


def test_an_oci_profile_lists_its_architectures() -> None:
    profile = parse_profile(document(architectures=["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]))

    assert profile.sub_abis("x86_64") == ("i386",)
    assert profile.sub_abis("aarch64") == ()


@pytest.mark.parametrize(
    ("action", "verdict"),
    [
        ("SCMP_ACT_ALLOW", Ret.ALLOW),
        ("SCMP_ACT_LOG", Ret.LOG),
        ("SCMP_ACT_ERRNO", EPERM),
        ("SCMP_ACT_TRACE", Ret.TRACE | 1),
        ("SCMP_ACT_TRAP", Ret.TRAP),
        ("SCMP_ACT_KILL", Ret.KILL_THREAD),
        ("SCMP_ACT_KILL_THREAD", Ret.KILL_THREAD),
        ("SCMP_ACT_KILL_PROCESS", Ret.KILL_PROCESS),
    ],
)
def test_each_action_has_its_verdict(action: str, verdict: int) -> None:
    assert parse_profile(one_rule(action=action)).rules[0].verdict == verdict


def test_two_comparisons_of_one_argument_are_alternatives_as_in_runc() -> None:
    bounds = [
        {"index": 0, "value": 38, "op": "SCMP_CMP_LT"},
        {"index": 0, "value": 40, "op": "SCMP_CMP_GT"},
    ]

    rules = parse_profile(one_rule(args=bounds)).rules

    assert [rule.args for rule in rules] == [
        (Comparison(0, Op.LT, 38),),
        (Comparison(0, Op.GT, 40),),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not valid JSON"),
        ("[]", "the document is not an object"),
        (b"\xff\xfe", "is not UTF-8"),
        ("[" * 200_000, "nested too deeply"),
        (" " * (1 << 20) + "{}", "larger than 1 MiB"),
        ("{}", "defaultAction is missing"),
        ('{"defaultAction": "SCMP_ACT_ERRNO", "defaultAction": "SCMP_ACT_ALLOW"}', "key twice"),
        (document(defaultAction="ALLOW"), "defaultAction is no action: 'ALLOW'"),
        (document(sysCalls=[]), "the document has the unknown key 'sysCalls'"),
        (document(syscalls={}), "syscalls is not a list"),
        (document(syscalls=["read"]), r"syscalls\[0\] is not an object"),
        (document(architectures=["x86_64"]), "architectures is no architecture: 'x86_64'"),
        (document(architectures=["SCMP_ARCH_X86"], archMap=[]), "both architectures and archMap"),
        (document(defaultErrnoRet=-1), "defaultErrnoRet is not a whole number from 0 to 4095"),
        (document(defaultErrnoRet=True), "defaultErrnoRet is not a whole number"),
        (document(defaultErrno="ENOPE"), "defaultErrno is no errno: 'ENOPE'"),
        (document(flags=["TSYNC"]), "flags has the unknown flag 'TSYNC'"),
        (one_rule(name="write"), r"syscalls\[0\] has both name and names"),
        (one_rule(names=[]), r"syscalls\[0\] names no system call"),
        (one_rule(names=["a b"]), r"syscalls\[0\] names no system call: 'a b'"),
        (one_rule(names=[1]), r"syscalls\[0\].names is not a list of strings"),
        (one_rule(errnoRet=1), "errnoRet needs SCMP_ACT_ERRNO or SCMP_ACT_TRACE"),
        (one_rule(exclude={}), r"syscalls\[0\] has the unknown key 'exclude'"),
        (one_rule(excludes=[]), r"syscalls\[0\].excludes is not an object"),
        (one_rule(excludes={"cap": []}), r"syscalls\[0\].excludes has the unknown key 'cap'"),
        (one_rule(includes={"minKernel": "4"}), "includes.minKernel is no kernel version: '4'"),
        (one_rule(args=[{"index": 6, "op": "SCMP_CMP_EQ"}]), r"args\[0\].index is not a whole"),
        (one_rule(args=[{"op": "SCMP_CMP_EQ"}]), r"args\[0\].index is missing"),
        (one_rule(args=[{"index": 0, "op": "EQ"}]), r"args\[0\].op is no comparison: 'EQ'"),
        (
            one_rule(args=[{"index": 0, "op": "SCMP_CMP_EQ", "value": 2**64}]),
            r"args\[0\].value is not a whole number",
        ),
        (
            one_rule(args=[{"index": 0, "op": "SCMP_CMP_EQ", "value": 1.0}]),
            r"args\[0\].value is not a whole number",
        ),
        (
            one_rule(args=[{"index": i % 6, "op": "SCMP_CMP_EQ"} for i in range(33)]),
            "args has more than 32 comparisons",
        ),
        (document(syscalls=[ALLOW_READ] * 4097), "over 4096 rules"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_profile_is_refused_with_the_place_and_the_reason(
    text: str | bytes, words: str
) -> None:
    with pytest.raises(InvalidError, match=words):
        parse_profile(text)


def test_a_listener_is_refused_clearly() -> None:
    with pytest.raises(UnsupportedError, match="SCMP_ACT_NOTIFY, which tare does not have"):
        parse_profile(one_rule(action="SCMP_ACT_NOTIFY"))

    with pytest.raises(UnsupportedError, match="listener"):
        parse_profile(document(listenerPath="/run/agent.sock"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["names", "name", "action", "args", "index", "op", "value", "includes", "caps"]
            )
            | st.text(max_size=6),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(["syscalls", "archMap", "flags"]), JSON), JSON)
def test_any_json_is_read_or_refused_by_an_error_of_ours(
    members: dict[str, object], rule: object
) -> None:
    for text in (document(**members), document(syscalls=[rule]), json.dumps(rule)):
        try:
            assert isinstance(parse_profile(text), Profile)
        except TareError as error:
            assert "\n" not in str(error)
