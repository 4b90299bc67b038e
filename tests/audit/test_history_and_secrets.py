"""Histories as every builder writes them, and what looks like a secret in anything."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tare.audit import procfs, secrets
from tare.audit.history import Step, steps
from tare.model.oci import History

# In pieces, so that no scanner takes the test for a leak.
TOKENS = {
    "a key of Amazon Web Services": "AKIA" + "ABCDEFGH12345678",
    "a token of GitHub": "ghp_" + "0123456789abcdefABCD" + "0123456789abcdef",
    "a token of GitLab": "glpat-" + "a1b2c3d4e5f6g7h8i9j0",
    "a token of Slack": "xoxb-" + "123456789012-abcdefghijkl",
    "a key of Stripe": "sk_live_" + "a1b2c3d4e5f6g7h8i9j0k1l2",
    "a key of Google": "AIza" + "0123456789abcdefABCDEF0123456789abc",
    "a token of npm": "npm_" + "0123456789abcdefABCDEF0123456789abcd",
    "a private key": "-----BEGIN " + "RSA PRIVATE KEY-----",
    "a password in a URL": "postgres://" + "app:s3cr3tpass@db",
}


def step(written: str) -> Step:
    (found,) = steps([History(created_by=written)])
    return found


@pytest.mark.parametrize(
    ("written", "instruction", "assignments"),
    [
        ("/bin/sh -c #(nop)  ENV A=1 B=two", "ENV", (("A", "1"), ("B", "two"))),
        ("/bin/sh -c #(nop) ADD file:ab in / ", "ADD", ()),
        ("ENV A=1", "ENV", (("A", "1"),)),
        ("ENV A one two", "ENV", (("A", "one two"),)),
        ("ARG TOKEN=x", "ARG", (("TOKEN", "x"),)),
        ("|2 A=1 B=2 /bin/sh -c make", "RUN", (("A", "1"), ("B", "2"))),
        ("RUN /bin/sh -c make # buildkit", "RUN", ()),
        ("COPY a b # buildkit", "COPY", ()),
        ("/bin/sh -c apt-get update", "RUN", ()),
        ("", "RUN", ()),
    ],
)
def test_every_way_of_writing_history_is_understood(
    written: str, instruction: str, assignments: tuple[tuple[str, str], ...]
) -> None:
    found = step(written)

    assert (found.instruction, found.assignments) == (instruction, assignments)


@pytest.mark.parametrize(
    ("script", "updates", "installs"),
    [
        ("apt-get update", True, False),
        ("apt-get update && apt-get install -y x", True, True),
        ("apt-get -qq update; apt-get -y install x", True, True),
        ("apk update", True, False),
        ("apk add --no-cache x", False, True),
        ("yum check-update || true", True, False),
        ("update-alternatives --set editor /bin/x", False, False),
        ("echo apt-get update", False, False),
        ("make update", False, False),
    ],
)
def test_updates_are_seen_by_the_program_and_not_by_the_word(
    script: str, updates: bool, installs: bool
) -> None:
    for written in (f"/bin/sh -c {script}", f"RUN /bin/sh -c {script} # buildkit", f"RUN {script}"):
        found = step(written)
        assert (found.updates, found.installs) == (updates, installs), written


def test_options_that_switch_verification_off_are_seen() -> None:
    assert step("RUN apt-get install --allow-unauthenticated x").unverified
    assert step("RUN pip install --trusted-host=a.example x").unverified
    assert not step("RUN apt-get install x").unverified


@pytest.mark.parametrize("what", TOKENS)
def test_the_forms_of_issuers_are_known_and_never_shown_whole(what: str) -> None:
    token = TOKENS[what]

    (found,) = secrets.in_content(f"x = '{token}'\n".encode())

    assert found.what == what
    assert found.sure
    assert token not in found.shown or token.startswith("-----")


@pytest.mark.parametrize(
    ("name", "value", "sure"),
    [
        ("DB_PASSWORD", "hunter2", False),
        ("API_TOKEN", "q7Zk2LpX9vRt4WsY", True),
        ("PATH", "/usr/bin:/bin", None),
        ("DB_PASSWORD", "", None),
        ("DB_PASSWORD", "$SECRET", None),
        ("DB_PASSWORD", "changeme", None),
        ("PASSWORD_FILE", "/run/secrets/x", None),
        ("HOME", TOKENS["a token of GitHub"], True),
    ],
)
def test_a_variable_is_judged_by_name_form_and_entropy(
    name: str, value: str, sure: bool | None
) -> None:
    found = secrets.in_variable(name, value)

    assert (None if found is None else found.sure) is sure


def test_settings_of_a_file_are_read_where_they_are_assigned() -> None:
    content = b"# api_token = none\nAPI_TOKEN: 'q7Zk2LpX9vRt4WsY'\nkey_size = 2048\n"

    assert [one.what for one in secrets.in_content(content, assigned=True)] == [
        "API_TOKEN has the name of a secret"
    ]
    assert list(secrets.in_content(content)) == []


@pytest.mark.parametrize(
    "content",
    [b"https://example.com/a:b@c", b"-----BEGIN PUBLIC KEY-----", b"AKIAshort", b"ghp_short"],
)
def test_what_only_resembles_a_secret_is_none(content: bytes) -> None:
    assert list(secrets.in_content(content)) == []


@given(st.binary(max_size=400))
@settings(max_examples=200, deadline=None)
def test_any_content_can_be_looked_at(content: bytes) -> None:
    for one in secrets.in_content(content, assigned=True):
        assert one.what


@given(st.text(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_history_and_any_mountinfo_can_be_read(text: str) -> None:
    assert len(steps([History(created_by=text)])) == 1
    for line in procfs.mounts(text):
        assert line.kind


def test_a_file_made_to_be_slow_is_not() -> None:
    # A clock decides nothing here: quadratic search of this would take minutes.
    content = b"a" * 100_000 + b"://" + b"b" * 100_000
    hostile = b"x_" * 60_000 + b"=" + b"y" * 60_000

    assert list(secrets.in_content(content, assigned=True)) == []
    assert list(secrets.in_content(hostile, assigned=True)) == []
