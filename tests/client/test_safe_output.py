"""Nothing that strangers chose reaches the terminal as a command (attack A19)."""

from __future__ import annotations

import json

import pytest

from client.conftest import Tare
from fakes.engine_http import ID, Answer, FakeEngine
from tare.client.cli.logs import harmless
from tare.client.tables import aligned, shown

EVIL = "a\x1b]0;owned\x07\r\x9b31m\u202eb\x00\udcff"


def _is_harmless(text: str) -> bool:
    return all(c.isprintable() or c in "\n\t" for c in text)


@pytest.mark.attack("A19")
def test_controls_and_bidi_marks_become_escapes() -> None:
    assert shown(EVIL) == r"a\x1b]0;owned\x07\x0d\x9b31m\u202eb\x00\xff"


@pytest.mark.attack("A19")
@pytest.mark.parametrize(
    "words",
    [("ps",), ("ps", "--format", "{{.Names}} {{.Labels}}"), ("ps", "--format", "json"),
     ("ps", "--no-trunc"), ("inspect", "x"), ("inspect", "-f", "{{.Name}}", "x"),
     ("inspect", "-f", "{{json .}}", "x"), ("events", "--until", "1"), ("top", "x"), ("info",),
     ("images",), ("rm", "x"), ("diff", "x")],
)  # fmt: skip
def test_no_command_prints_what_a_terminal_obeys(
    words: tuple[str, ...], tare: Tare, engine: FakeEngine
) -> None:
    each = {"Id": ID, "Names": [f"/{EVIL}"], "Image": EVIL, "Command": EVIL, "Created": 1,
            "Status": EVIL, "State": EVIL, "Labels": {EVIL: EVIL}, "Ports": []}  # fmt: skip
    engine.answers.update({
        "GET /containers/json": Answer(200, [each]),
        "GET /containers/x/json": Answer(200, {"Id": ID, "Name": EVIL, "Config": {"Tty": False}}),
        "GET /containers/x/top": Answer(200, {"Titles": [EVIL], "Processes": [[EVIL]]}),
        "GET /containers/x/changes": Answer(200, [{"Kind": 0, "Path": EVIL}]),
        "GET /images/json": Answer(200, [{"Id": EVIL, "RepoTags": [f"{EVIL}:x"], "Created": 1}]),
        "GET /info": Answer(200, {"Name": EVIL, "SecurityOptions": [EVIL], "Warnings": [EVIL]}),
        "GET /events": Answer(body=json.dumps({
            "Type": EVIL, "Action": EVIL, "Actor": {"ID": EVIL, "Attributes": {EVIL: EVIL}}
        }).encode() + b"\n"),
        "DELETE /containers/x": Answer(409, {"message": EVIL, "hint": EVIL}),
    })  # fmt: skip

    said = tare(*words)

    assert said.out or said.err
    assert _is_harmless(said.out)
    assert _is_harmless(said.err)


@pytest.mark.attack("A19")
def test_logs_on_a_terminal_keep_colours_and_nothing_else() -> None:
    text = harmless("\x1b[1;31mred\x1b[0m\tx\r\n\x1b]52;c;eA==\x07\x1b[2Jz\x1b[")

    assert text == "\x1b[1;31mred\x1b[0m\tx\n\\x1b]52;c;eA==\\x07\\x1b[2Jz\\x1b["


def test_columns_are_aligned_by_what_is_seen() -> None:
    table = aligned([["A", "B"], ["日本", "x"], ["e\u0301", "y"]])

    assert table == "A         B\n日本      x\ne\u0301         y\n"
