"""The user's credentials: where they are found, how they are kept, what helpers are asked."""

from __future__ import annotations

import base64
import json
import os
import stat
from pathlib import Path

import pytest

from tare.client import credentials
from tare.errors import FailedError, InvalidError

AUTH = base64.b64encode(b"wolf:se:cret").decode()


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    (tmp_path / "docker").mkdir()
    return tmp_path / "docker/config.json"


def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    """A credential helper `box`, and the file in which it writes what it was asked."""
    program = tmp_path / "docker-credential-box"
    program.write_text(f'#!/bin/sh\necho "$1 $(cat)" >> {tmp_path}/asked\n{script}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path / "asked"


@pytest.mark.parametrize(
    ("key", "host"),
    [
        ("registry.example:5000", "registry.example:5000"),
        ("https://registry.example", "registry.example"),
        ("https://registry.example/v1/", "registry.example"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("docker.io", "docker.io"),
        ("registry-1.docker.io", "docker.io"),
    ],
)
def test_what_docker_stored_is_found(config: Path, key: str, host: str) -> None:
    config.write_text(json.dumps({"auths": {key: {"auth": AUTH}}}))

    found = credentials.find(host)

    assert found is not None
    assert (found["username"], found["password"]) == ("wolf", "se:cret")
    assert credentials.find("elsewhere.example") is None
    assert credentials.find(host + ".evil.example") is None


def test_an_identity_token_is_found(config: Path) -> None:
    entry = {"auth": base64.b64encode(b"wolf:").decode(), "identitytoken": "t"}
    config.write_text(json.dumps({"auths": {"a.example": entry}}))

    found = credentials.find("a.example")

    assert found is not None
    assert found["identitytoken"] == "t"


def test_nothing_is_found_where_nothing_is(config: Path) -> None:
    assert credentials.find("a.example") is None
    config.write_text("")
    assert credentials.find("a.example") is None
    assert credentials.header(None) == {}


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"auths": {"a.example": {"auth": "%%%"}}}', '"x"', "\xff"]
)
def test_a_file_that_is_none_is_an_error_with_its_name(config: Path, content: str) -> None:
    config.write_text(content, encoding="latin-1")

    with pytest.raises(InvalidError, match=str(config)):
        credentials.find("a.example")


def test_what_is_stored_is_for_its_owner_alone_and_the_rest_stays(config: Path) -> None:
    config.write_text(json.dumps({"detachKeys": "x", "auths": {"https://a.example": {}}}))
    config.chmod(0o644)

    in_file = credentials.store("a.example", "wolf", "se:cret")

    assert in_file
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert json.loads(config.read_text()) == {
        "detachKeys": "x", "auths": {"a.example": {"auth": AUTH}},
    }  # fmt: skip
    assert [path.name for path in config.parent.iterdir()] == ["config.json"]
    assert credentials.erase("a.example")
    assert not credentials.erase("a.example")
    assert json.loads(config.read_text()) == {"detachKeys": "x", "auths": {}}


def test_a_link_to_the_file_stays_a_link(config: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.json"
    elsewhere.write_text("{}")
    config.symlink_to(elsewhere)

    credentials.store("a.example", "wolf", "x")

    assert config.is_symlink()
    assert "a.example" in json.loads(elsewhere.read_text())["auths"]


def test_a_helper_is_asked_stored_in_and_told_to_forget(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = '{"ServerURL":"a.example","Username":"wolf","Secret":"s"}'
    asked = helper(tmp_path, monkeypatch, f"[ $1 != get ] || echo '{answer}'")
    config.write_text(json.dumps({"credHelpers": {"a.example": "box"}}))

    assert credentials.find("a.example") == {
        "serveraddress": "a.example", "username": "wolf", "password": "s",
    }  # fmt: skip
    assert credentials.find("b.example") is None
    assert not credentials.store("a.example", "wolf", "s")
    assert "auth" not in json.loads(config.read_text())["auths"]["a.example"]
    credentials.erase("a.example")

    verbs = asked.read_text().splitlines()
    assert [line.split()[0] for line in verbs] == ["get", "store", "erase"]
    assert json.loads(verbs[1].partition(" ")[2]) == {
        "ServerURL": "a.example", "Username": "wolf", "Secret": "s",
    }  # fmt: skip


def test_what_a_helper_does_not_have_and_what_it_cannot_do(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text(json.dumps({"credsStore": "box"}))
    helper(tmp_path, monkeypatch, "echo 'credentials not found in native keychain'; exit 1")
    assert credentials.find("a.example") is None

    helper(tmp_path, monkeypatch, "echo 'the box is locked' >&2; exit 1")
    with pytest.raises(FailedError, match="the box is locked"):
        credentials.find("a.example")

    helper(tmp_path, monkeypatch, "echo nonsense")
    with pytest.raises(FailedError, match="not JSON"):
        credentials.find("a.example")

    config.write_text(json.dumps({"credsStore": "absent"}))
    with pytest.raises(FailedError, match="docker-credential-absent is not installed"):
        credentials.find("a.example")


def test_the_header_is_what_docker_sends() -> None:
    told = credentials.header(credentials.given("a.example", "wolf", "ü>?"))["X-Registry-Auth"]

    assert json.loads(base64.urlsafe_b64decode(told)) == {
        "username": "wolf", "password": "ü>?", "serveraddress": "a.example",
    }  # fmt: skip
