"""The shell around the commands: finding them, help, suggestions, start-up cost, the reference."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from client.conftest import Tare
from fakes.engine_http import Answer, FakeEngine
from tare.client.cli import reference
from tare.client.cli.main import command_named
from tare.client.cli.registry import ALIASES, COMMANDS, LATER

_ROOT = Path(__file__).resolve().parents[2]

# What costs milliseconds to import: none of it may come in on the paths that people feel.
_HEAVY = (
    "argparse", "re", "json", "typing", "dataclasses", "enum", "ssl", "email", "http", "socket",
    "urllib", "subprocess", "collections", "functools", "tarfile", "pathlib", "logging", "inspect",
    "msgspec", "aiohttp", "asyncio", "tempfile", "random", "shutil", "contextlib",
)  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_a_summary_that_agrees(name: str, tare: Tare) -> None:
    command = command_named(name)

    said = tare(*name.split(), "--help")

    assert said.code == 0
    assert said.out.startswith(f"Usage:  tare {name}")
    assert command.about.startswith(COMMANDS[name][1]) or COMMANDS[name][1] in command.about


def test_every_alias_leads_to_a_command() -> None:
    assert set(ALIASES.values()) <= set(COMMANDS)


@pytest.mark.parametrize("name", LATER)
def test_what_is_not_there_yet_says_what_to_do(name: str, tare: Tare) -> None:
    said = tare(*name.split(), "x")

    assert said.code == 1
    assert said.err == f"tare: `tare {name}` is not there yet\n  {LATER[name]}\n"


def test_the_reference_is_current() -> None:
    written = (_ROOT / "docs/cli.md").read_text()

    assert written == reference.markdown(), "run: python -m tare.client.cli.reference > docs/cli.md"


def test_help_of_tare_lists_every_command(tare: Tare) -> None:
    said = tare("--help")

    assert all(f"  {name} " in said.out for name in COMMANDS if " " not in name)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("runn", "x"), "Did you mean `tare run`?"),
        (("image", "bootstarp"), "Did you mean `tare image bootstrap`?"),
        (("run", "--memroy", "1g", "x"), "Did you mean --memory?"),
        (("run", "--mount", "type=bind,sorce=/a,target=/b", "x"), "Did you mean source?"),
    ],
)
def test_a_slip_of_the_fingers_names_the_nearest(
    words: tuple[str, ...], hint: str, tare: Tare
) -> None:
    assert hint in tare(*words).err


def test_the_host_flag_wins_over_the_environment(
    tare: Tare, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.answers["GET /containers/json"] = Answer(200, [])
    monkeypatch.setenv("TARE_HOST", "/nonexistent")

    assert tare("-H", f"unix://{engine.socket}", "ps", "-q").code == 0
    assert tare("ps", "-q").code == 1
    assert "only unix sockets" in tare("-H", "tcp://x:1", "ps").err


@pytest.mark.parametrize(
    "words",
    [("version", "--format", "{{.Server.Version}}"), ("ps",),
     ("run", "--rm", "-e", "A=b", "d", "x"),
     ("exec", "c", "true"), ("--version",), ("start", "c"), ("rm", "c"), ("logs", "c")],
)  # fmt: skip
def test_the_paths_people_feel_import_nothing_heavy(
    words: tuple[str, ...], engine: FakeEngine
) -> None:
    end = b'{"Id":"x","StatusCode":0}'
    engine.answers.update({
        "GET /containers/json": Answer(200, []),
        "GET /version": Answer(200, {"Version": "1"}),
        "POST /tare/run": Answer(stream=bytes((3, 0, 0, 0, 0, 0, 0, len(end))) + end),
        "POST /containers/c/exec": Answer(201, {"Id": "e"}),
        "POST /exec/e/start": Answer(stream=b""),
        "GET /exec/e/json": Answer(200, {"ExitCode": 0}),
        "POST /containers/c/start": Answer(204),
        "DELETE /containers/c": Answer(204),
        "GET /containers/c/json": Answer(200, {"Id": "c"}),
        "GET /containers/c/logs": Answer(body=b""),
    })  # fmt: skip
    code = (
        f"import sys; sys.path.insert(0, {str(_ROOT / 'src')!r})\n"
        "from tare.client.cli.main import main\n"
        f"code = main({list(words)!r})\n"
        f"print(sorted(set({_HEAVY!r}) & set(sys.modules)), code, file=sys.stderr)"
    )
    env = {**os.environ, "TARE_HOST": str(engine.socket)}

    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], env=env, capture_output=True, text=True,
        stdin=subprocess.DEVNULL, timeout=20, check=True,
    )  # fmt: skip

    assert done.stderr == "[] 0\n"


def test_what_answers_may_be_no_daemon(tare: Tare, engine: FakeEngine) -> None:
    engine.answers["GET /containers/json"] = Answer(200, b"<html>")

    said = tare("ps")

    assert said.code == 1
    assert said.err == "tare: the daemon sent something that is not JSON: b'<html>'\n"


def test_update_sends_only_what_was_asked(tare: Tare, engine: FakeEngine) -> None:
    engine.answers["POST /containers/c/update"] = Answer(200, {"Warnings": ["careful"]})

    said = tare("update", "--memory", "1g", "c")

    assert (said.out, said.err) == ("c\n", "careful\n")
    assert engine.asked[0].json() == {"Memory": 1 << 30}


def test_a_failure_does_not_keep_the_others_from_being_done(tare: Tare, engine: FakeEngine) -> None:
    engine.answers["POST /containers/b/stop"] = Answer(204)

    said = tare("stop", "a", "b")

    assert (said.code, said.out) == (1, "b\n")
