"""Builds on the wire: what clients may ask, what is refused, and the words they are told."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import pytest

from tare.build.dockerfile.source import Lines
from tare.build.request import (
    BuildError,
    Built,
    Event,
    Note,
    Output,
    Progress,
    State,
    StepInfo,
)
from tare.errors import InvalidError, TareError
from tare.model.digest import Digest
from tare.wire import building

STEP = StepInfo(id=2, of=3, stage="a", number=1, total=2, text="RUN x", lines=Lines(4, 5))


def test_a_query_becomes_a_request() -> None:
    query = {
        "buildargs": '{"A": "1", "B": null, "SOURCE_DATE_EPOCH": "7"}',
        "labels": '{"l": "v"}',
        "nocache": "true",
        "pull": "0",
        "cachefrom": '["one", "two"]',
        "networkmode": "default",
        "memory": "8388608",
        "ulimits": '[{"Name": "nofile", "Soft": 1, "Hard": 2}]',
        "target": "t",
    }

    found = building.classic(query, ["a:1", "", "b"], ["h:1.2.3.4"])

    assert found.tags == ("a:1", "b")
    assert found.build_args == {"A": "1", "SOURCE_DATE_EPOCH": "7"}
    assert (found.no_cache, found.pull, found.epoch, found.network) == (True, False, 7, "")
    assert found.cache_from == ("one", "two")
    assert found.resources.memory == 8 << 20
    assert found.ulimits[0].hard == 2
    assert found.extra_hosts == ("h:1.2.3.4",)


@pytest.mark.parametrize(
    "query",
    [
        {"buildargs": "no json"},
        {"buildargs": "[1]"},
        {"buildargs": '{"A": 1}'},
        {"buildargs": '{"SOURCE_DATE_EPOCH": "now"}'},
        {"buildargs": json.dumps({"A": "x" * 100_000})},
        {"buildargs": '{"A": "\\u0000"}'},
        {"labels": "[" * 100_000},
        {"cachefrom": "{}"},
        {"memory": "1"},
        {"memory": "many"},
        {"shmsize": "9" * 30},
        {"version": "2"},
        {"squash": "1"},
        {"remote": "a\0b"},
        {"ulimits": '[{"Name": "none"}]'},
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(query: dict[str, str]) -> None:
    with pytest.raises(TareError):
        building.classic(query, [], [])


def test_credentials_are_found_by_the_registry_in_a_name() -> None:
    told = {
        "https://index.docker.io/v1/": {"username": "u", "password": "p"},
        "registry.example:5000": {"auth": base64.b64encode(b"a:b").decode()},
    }
    header = base64.urlsafe_b64encode(json.dumps(told).encode()).decode()

    found = building.registry_config(header)

    assert found["docker.io"].username == "u"
    assert found["registry.example:5000"].password == "b"
    assert building.registry_config("") == {}
    for bad in ("%%%", base64.b64encode(b"[1]").decode(), "A" * 1_000_000):
        with pytest.raises(InvalidError):
            building.registry_config(bad)


def own(**fields: object) -> building.BuildBody:
    return building.BUILD.decode(json.dumps(fields))


def test_a_document_becomes_a_request() -> None:
    found = building.own(
        own(inline="RlJPTSBh", secrets={"s": "AAE="}, allow=["network.host"], check=True)
    )

    assert found.inline == b"FROM a"
    assert found.secrets == {"s": b"\0\1"}
    assert found.check_only and found.allow == ("network.host",)
    assert "AAE" not in repr(found) and "\\x01" not in repr(found)


@pytest.mark.parametrize(
    "fields",
    [
        {"inline": "%"},
        {"secrets": {"s": "%"}},
        {"secrets": {"s": base64.b64encode(bytes(600 << 10)).decode()}},
        {"allow": ["security.insecure"]},
        {"build_args": {"A": "\0"}},
    ],
    ids=["dockerfile", "secret", "large", "allow", "nul"],
)
def test_a_bad_document_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidError):
        building.own(own(**fields))


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="privileged"):
        own(privileged=True)


def said(*events: Event, quiet: bool = False) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    words = building.Words(lines.append, quiet=quiet)
    for event in events:
        words.tell(event)
    words.done(Built(id=Digest("a" * 64), names=("n:1",)))
    return lines


def test_the_classic_words_are_those_that_clients_look_for() -> None:
    lines = said(
        Progress(step=STEP, state=State.RUNNING),
        Output(STEP, 1, b"out\n\xff"),
        Progress(step=STEP, state=State.DONE, result="b" * 64),
        Progress(step=STEP, state=State.CACHED, result="c" * 64),
        Note("pulling"),
    )

    assert [line.get("stream") for line in lines] == [
        "Step 2/3 : RUN x\n", "out\n\ufffd", f" ---> {'b' * 12}\n", "Step 2/3 : RUN x\n",
        " ---> Using cache\n", f" ---> {'c' * 12}\n", None, None,
        f"Successfully built {'a' * 12}\n", "Successfully tagged n:1\n",
    ]  # fmt: skip
    assert {"aux": {"ID": "sha256:" + "a" * 64}} in lines


def test_a_quiet_build_only_tells_its_id() -> None:
    lines = said(Progress(step=STEP, state=State.RUNNING), quiet=True)

    assert lines == [{"stream": "sha256:" + "a" * 64 + "\n"}]


def test_a_failed_program_is_told_with_its_code() -> None:
    error = BuildError(InvalidError("process failed"), "Dockerfile:1", command="false", code=3)

    found = building.failure(error)

    assert found["error"] == "The command 'false' returned a non-zero code: 3"
    assert found["errorDetail"] == {"message": found["error"], "code": 3}
    assert (found["excerpt"], found["reason"]) == ("Dockerfile:1", "process failed")
