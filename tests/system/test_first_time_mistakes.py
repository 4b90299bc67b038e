"""Twenty mistakes that people make in their first hour, and what tare says to each.

The sentences are exact: they are part of the product. A real daemon answers, started by the
client itself as it would be for a new user.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = [pytest.mark.system, pytest.mark.needs("root", "overlay")]

_SOURCE = Path(__file__).resolve().parents[2] / "src"
_CODE = "import sys; from tare.client.cli.main import main; sys.exit(main(sys.argv[1:]))"


@dataclass
class Said:
    code: int
    out: str
    err: str


def tare(*words: str, stdin: bytes = b"", cwd: Path | None = None) -> Said:
    env = {**os.environ, "PYTHONPATH": str(_SOURCE)}
    done = subprocess.run(
        [sys.executable, "-c", _CODE, *words], env=env, input=stdin, capture_output=True,
        timeout=60, check=False, cwd=cwd,
    )  # fmt: skip
    return Said(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture(scope="module", autouse=True)
def image(busybox_archive: Path) -> str:
    """`busybox:latest` in this session's engine."""
    loaded = tare("load", "-q", "-i", str(busybox_archive))
    assert loaded.code == 0, loaded.err
    return "busybox"


@dataclass(frozen=True)
class Mistake:
    name: str
    line: tuple[str, ...]
    code: int
    says: str


MISTAKES = [
    Mistake("a command that is not there", ("runn", "busybox"), 1,
            "tare: unknown command: tare runn\n  Did you mean `tare run`?\n  See 'tare --help'.\n"),
    Mistake("an option that is not there", ("run", "--nmae", "x", "busybox"), 125,
            "tare: unknown flag: --nmae\n  Did you mean --name?\n  See 'tare run --help'.\n"),
    Mistake("no image", ("run",), 1,
            "tare: 'tare run' requires at least 1 argument\n"
            "  Usage: tare run [OPTIONS] IMAGE [COMMAND] [ARG...]\n  See 'tare run --help'.\n"),
    Mistake("an image that is not there", ("run", "--pull", "never", "alpine"), 125,
            "tare: unable to find image 'alpine:latest' locally\n"
            "  Load it (`tare load -i FILE`), or make a base image with "
            "`tare image bootstrap debian:bookworm`.\n  `tare images` lists what is there.\n"),
    Mistake("a registry that is not there", ("run", "127.0.0.1:1/alpine"), 125,
            "Unable to find image '127.0.0.1:1/alpine:latest' locally\n"
            "tare: 127.0.0.1:1 cannot be reached: Connection refused\n"
            "  see that its name is right and that the engine's host has a network; a proxy is "
            "what HTTPS_PROXY names in the engine's environment\n"),
    Mistake("a name that is none", ("pull", "Debian"), 1,
            "tare: invalid reference format: repository name (library/Debian) must be lowercase\n"),
    Mistake("a program that is not in the image", ("run", "--rm", "busybox", "python3"), 127,
            'tare: exec: "python3": executable file not found in $PATH\n'
            "  check the spelling, or give the full path inside the image\n"),
    Mistake("a directory as the program", ("run", "--rm", "busybox", "/etc"), 126,
            'tare: exec: "/etc": permission denied\n'),
    Mistake("a size that is none", ("run", "-m", "lots", "busybox"), 125,
            'tare: invalid argument "lots" for "-m, --memory" flag: invalid size: \'lots\'\n'
            "  See 'tare run --help'.\n"),
    Mistake("an option after the image is the program's", ("run", "--rm", "busybox", "--rm"), 127,
            'tare: exec: "--rm": executable file not found in $PATH\n'
            "  check the spelling, or give the full path inside the image\n"),
    Mistake("a container that is not there", ("stop", "wbe"), 1, "tare: No such container: wbe\n"),
    Mistake("logs of what is not there", ("logs", "web1"), 1, "tare: No such container: web1\n"),
    Mistake("an operand too many", ("logs", "a", "b"), 1,
            "tare: 'tare logs' requires 1 argument\n  Usage: tare logs [OPTIONS] CONTAINER\n"
            "  See 'tare logs --help'.\n"),
    Mistake("a terminal where there is none", ("run", "-it", "busybox"), 1,
            "tare: the input device is not a TTY\n"
            "  Leave out -t when input comes from a pipe or a file.\n"),
    Mistake("--rm with --restart", ("run", "--rm", "--restart", "always", "busybox"), 125,
            "tare: conflicting options: cannot specify both --restart and --rm\n"),
    Mistake("a mount with too many colons", ("run", "-v", "/a:/b:/c:ro", "busybox"), 125,
            "tare: invalid spec: /a:/b:/c:ro: too many colons\n"),
    Mistake("a misspelt mount key",
            ("run", "--mount", "type=bind,soruce=/a,target=/b", "busybox"), 125,
            'tare: invalid argument "type=bind,soruce=/a,target=/b" for "--mount" flag: '
            "unexpected key 'soruce' in 'soruce=/a'\n  Did you mean source?\n"),
    Mistake("cp between two host paths", ("cp", "a", "b"), 1,
            "tare: must specify at least one container source\n"
            "  Write CONTAINER:/path for the side that is in the container.\n"),
    Mistake("a filter without a value", ("ps", "-f", "running"), 125,
            'tare: invalid argument "running" for "-f, --filter" flag: bad format of filter '
            "(expected name=value)\n  See 'tare ps --help'.\n"),
    Mistake("a template that does not end", ("ps", "--format", "{{.Names"), 1,
            "tare: template parsing error: template: :1: unclosed action\n"
            "  Formats are Go templates, for example --format '{{.Names}}' or --format json.\n"),
    Mistake("a daemon that is not there", ("-H", "unix:///nonexistent.sock", "ps"), 1,
            "tare: no tare daemon answers at /nonexistent.sock\n"
            "  Start it with `tared`, or unset TARE_HOST so that tare starts its own.\n"),
]  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_is_told_in_one_sentence_with_what_to_do(mistake: Mistake) -> None:
    said = tare(*mistake.line)

    assert said.err == mistake.says
    assert (said.code, said.out) == (mistake.code, "")


def test_a_mistake_leaves_nothing_behind() -> None:
    for mistake in MISTAKES:
        if "--rm" not in mistake.line and mistake.line[0] == "run":
            tare(*mistake.line)

    assert tare("ps", "-aq").out == ""


def test_what_is_no_archive_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"<html>not found</html>" * 100)
    before = tare("images", "-q").out

    said = tare("load", "-i", str(tmp_path / "x.tar"))

    assert said.code == 1
    assert said.err.startswith("tare: ")
    assert "Traceback" not in said.err
    assert tare("images", "-q").out == before


def test_an_archive_without_an_image_is_said_to_have_none(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(__file__, "some-file.py")

    said = tare("load", "-i", str(tmp_path / "x.tar"))

    assert said.code == 1
    assert said.err.startswith("tare: ")


def test_a_name_that_is_taken_is_said_with_whose_it_is(image: str) -> None:
    first = tare("create", "--name", "taken", image)
    try:
        second = tare("create", "--name", "taken", image)

        assert second.code == 125
        assert "taken" in second.err
        assert first.out.strip()[:12] in second.err
    finally:
        tare("rm", "-f", "taken")


def test_the_first_good_run_prints_what_the_program_prints(image: str) -> None:
    said = tare("run", "--rm", "-i", image, "sh", "-c", "cat; echo done >&2; exit 7", stdin=b"hi\n")

    assert (said.out, said.err, said.code) == ("hi\n", "done\n", 7)
