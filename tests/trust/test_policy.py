"""policy.json as podman reads it: scopes, requirements, identities; and every typo by its line."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tare.errors import InvalidError, TareError
from tare.model.reference import Reference
from tare.trust.identity import Identity, Match, within
from tare.trust.keys import PrivateKey
from tare.trust.policy import Kind, Policy, parse
from tare.trust.switch import Mode

KEY = PrivateKey.generate().public
DATA = base64.b64encode(KEY.pem()).decode()
PATH = "/etc/containers/policy.json"


def no_key(path: str) -> bytes:
    raise FileNotFoundError(2, "No such file or directory", path)


def policy(value: Any) -> Policy:
    return parse(json.dumps(value, indent=2).encode(), PATH, no_key)


def scoped(**scopes: str) -> Policy:
    listed = {name: [{"type": kind}] for name, kind in scopes.items()}
    return policy({"default": [{"type": "reject"}], "transports": {"docker": listed}})


@pytest.mark.parametrize(
    ("name", "scope"),
    [
        ("reg.example:5000/team/app:1", "reg.example:5000/team/app:1"),
        ("reg.example:5000/team/app:2", "reg.example:5000/team/app"),
        ("reg.example:5000/team/other:1", "reg.example:5000/team"),
        ("reg.example:5000/teams/other:1", "reg.example:5000"),
        ("deep.sub.example/x:1", "*.sub.example"),
        ("sub.example/x:1", "*.example"),
        ("debian:1", "docker.io/library"),
        ("other/debian:1", None),
        ("example/x:1", None),
    ],
)
def test_the_most_specific_scope_wins(name: str, scope: str | None) -> None:
    names = (
        "reg.example:5000/team/app:1", "reg.example:5000/team/app", "reg.example:5000/team",
        "reg.example:5000", "*.example", "*.sub.example", "docker.io/library",
    )  # fmt: skip
    made = scoped(**dict.fromkeys(names, "insecureAcceptAnything"))

    rule = made.explicit(Reference.parse(name))

    assert (rule.scope if rule else None) == scope


def test_the_default_of_the_transport_stands_before_the_files() -> None:
    made = scoped(**{"": "insecureAcceptAnything"})
    fallback = made.fallback()

    assert made.explicit(Reference.parse("debian:1")) is None
    assert fallback is not None
    assert fallback.requirements[0].kind is Kind.ACCEPT


def test_requirements_are_read_with_their_keys_and_identity() -> None:
    made = policy(
        {
            "default": [
                {
                    "type": "sigstoreSigned",
                    "keyDatas": [DATA],
                    "signedIdentity": {"type": "matchRepository"},
                },
                {"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/x"},
                {"type": "sigstoreSigned", "fulcio": {"caPath": "/x"}},
            ]
        }
    )
    rule = made.fallback()

    assert rule is not None
    assert [r.kind for r in rule.requirements] == [Kind.SIGSTORE, Kind.UNMET, Kind.UNMET]
    assert rule.requirements[0].keys == (KEY,)
    assert rule.requirements[0].identity == Identity(Match.REPOSITORY)
    assert rule.where == f"{PATH}: line 2"


def test_another_key_behind_the_same_path_is_another_policy() -> None:
    raw = json.dumps({"default": [{"type": "sigstoreSigned", "keyPath": "/k"}]}).encode()
    other = PrivateKey.generate().public.pem()

    one, two = parse(raw, PATH, lambda _: KEY.pem()), parse(raw, PATH, lambda _: other)

    assert one.digest != two.digest


@pytest.mark.attack("A33")
@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ('{\n "defualt": []\n}', 2, "'default' is meant?"),
        ('{\n "transports": {}\n}', 1, "default is missing"),
        ('{\n\n "default": []}', 3, "at least one requirement"),
        ('{\n "default": [{"type": "insecureAcceptAnyting"}]}', 2, "no type of requirement"),
        ('{"default": [{"type": "reject"}],\n "transports": {"docker": {\n  "a b": [{"type": '
         '"reject"}]}}}', 3, "invalid scope"),
        ('{"default": [{"type": "reject"}],\n "transports": {"docker": {\n  "h.example": [\n'
         '{"type": "sigstoreSigned", "keypath": "/k"}]}}}', 4, "'keyPath' is meant?"),
        ('{"default": [{"type": "sigstoreSigned",\n "keyPath": "/missing"}]}', 2, "No such file"),
        ('{"default": [{"type": "sigstoreSigned",\n "keyData": "%%%"}]}', 2, "not base64"),
        ('{"default": [{"type": "sigstoreSigned"}]}', 1, "must have one of"),
        ('{"default": [{"type": "reject",\n "keyPath": "/k"}]}', 2, "not known"),
        ('{"default": [{"type": "sigstoreSigned", "keyData": "' + DATA + '",\n'
         '"signedIdentity": {"type": "matchAnything"}}]}', 2, "no comparison"),
        ('{"default": [{"type": "sigstoreSigned", "keyData": "' + DATA + '",\n'
         '"signedIdentity": {"type": "exactReference"}}]}', 2, "must be a string"),
        ('{"default": [{"type": "reject"}],\n"default": [{"type": "reject"}]}', 0, "twice"),
        ('{"default": ', 1, "not JSON"),
        ("[]", 0, "not a JSON object"),
    ],
)  # fmt: skip
def test_a_typo_is_named_by_its_line(text: str, line: int, why: str) -> None:
    with pytest.raises(InvalidError, match=why) as caught:
        parse(text.encode(), PATH, no_key)

    assert PATH in str(caught.value)
    if line:
        assert f"line {line}" in str(caught.value)


@pytest.mark.parametrize(
    ("identity", "signed", "asked", "same"),
    [
        (Identity(Match.EXACT), "h.io/a:1", "h.io/a:1", True),
        (Identity(Match.EXACT), "h.io/a:1", "h.io/a:2", False),
        (Identity(Match.EXACT), "h.io/a", "h.io/a", False),
        (Identity(), "h.io/a:1", "h.io/a:1", True),
        (Identity(), "h.io/a", "h.io/a:1", False),
        (Identity(), "h.io/a:2", "h.io/a:1", False),
        (Identity(), "h.io/a:2", "h.io/a@sha256:" + "0" * 64, True),
        (Identity(), "h.io/b:2", "h.io/a@sha256:" + "0" * 64, False),
        (Identity(Match.REPOSITORY), "h.io/a", "h.io/a:1", True),
        (Identity(Match.REPOSITORY), "h.io/a/b", "h.io/a:1", False),
        (Identity(Match.REPOSITORY), "index.docker.io/library/debian", "debian:1", True),
        (Identity(Match.EXACT_REFERENCE, Reference.parse("h.io/x:9")), "h.io/x:9", "q/a:1", True),
        (Identity(Match.EXACT_REFERENCE, Reference.parse("h.io/x:9")), "h.io/x:8", "q/a:1", False),
        (Identity(Match.EXACT_REPOSITORY, Reference.parse("h.io/x")), "h.io/x:8", "q/a:1", True),
        (Identity(Match.REMAP, prefix="mirror.io/h", signed_prefix="h.io"), "h.io/a:1",
         "mirror.io/h/a:1", True),
        (Identity(Match.REMAP, prefix="mirror.io/h", signed_prefix="h.io"), "h.io/a:1",
         "mirror.io/hh/a:1", False),
    ],
)  # fmt: skip
def test_identities_are_compared_as_podman_does(
    identity: Identity, signed: str, asked: str, same: bool
) -> None:
    assert identity.accepts(Reference.parse(signed), Reference.parse(asked)) is same


def test_a_scope_is_no_prefix_of_letters() -> None:
    assert within("h.io/team", Reference.parse("h.io/team/app:1"))
    assert not within("h.io/team", Reference.parse("h.io/teams:1"))
    assert not within("*.example.com", Reference.parse("example.com/x:1"))
    assert within("*", Reference.parse("x"))


def test_a_request_adds_and_never_relaxes() -> None:
    assert Mode.ON.at_least(Mode.OFF) is Mode.ON
    assert Mode.OFF.at_least(Mode.ON) is Mode.ON
    assert Mode.WARN.at_least(Mode.OFF) is Mode.WARN


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10)
    | st.sampled_from(["reject", "sigstoreSigned", "insecureAcceptAnything", DATA]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["type", "keyData", "default", "transports", "docker", "signedIdentity"])
        | st.text(max_size=6),
        inner,
        max_size=4,
    ),
    max_leaves=14,
)  # fmt: skip


@given(value=VALUES | st.fixed_dictionaries({"default": VALUES}))
def test_any_file_is_read_or_refused(value: Any) -> None:
    try:
        made = policy(value)
    except TareError:
        return

    assert made.fallback() is not None
