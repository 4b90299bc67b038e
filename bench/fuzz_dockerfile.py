"""Fuzz the readers of Dockerfiles and ignore files.

    python bench/fuzz_dockerfile.py [--seconds 60] [--seed N] [--keep DIRECTORY]

The corpus of the tests is cut up, mixed and changed, and now and then one piece is repeated many
times. Nothing but the errors meant for users may come out of reading, expanding and advising, and
no file may take longer than its size allows. A finding is written to DIRECTORY and ends the run
with exit status 1. Run it with src on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
from pathlib import Path

from tare.build.checks import check
from tare.build.dockerfile import (
    Arg,
    Dockerfile,
    Env,
    Run,
    Scope,
    base_of,
    expand,
    global_arguments,
    parse,
)
from tare.errors import TareError
from tare.model.ignore import IgnoreRules
from tare.model.oci import Platform

SLOW = 1.0  # seconds that a small file may take on a busy host
PER_BYTE = 1 / 50_000  # and a large one: far from what it takes, and from what a square would
_HOST = Platform("linux", "amd64")
_CORPUS = Path(__file__).parents[1] / "tests" / "data" / "dockerfiles"
_PIECES = (
    b"\\\n", b"${a:-", b"${a//*/b}", b"${a#*?*?}", b"<<EOF ", b"EOF\n", b"'", b'"', b"[",
    b'["a",', b"\n# c\n", b"--mount=type=cache,target=", b"--x=", b"ONBUILD ", b"\r\n", b"\xff",
    b"\x00", b"\t", b"FROM a AS b\n", b"ENV A=$A$A\n", b"ARG a=${b}\n", b"COPY --from=b . .\n",
    b"<< ", b"\xc2\x85", b"  ", b"RUN curl|sh;", b"EXPOSE 80-90 $a\n", b"# check=skip=all\n",
    b"`\n", b"=", b"$", b"{", b"}", b"\\",
)  # fmt: skip
_PATTERNS = (b"*", b"**", b"/", b"a", b"?", b"[a-", b"]", b"!", b"\\", b"\n", b"^", b".", b"..")


def mutated(seeds: list[bytes], chance: random.Random) -> bytes:
    """A file made of *seeds*."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(5):
            case 0:
                del data[at : at + chance.randint(1, 60)]
            case 1:
                other = chance.choice(seeds)
                start = chance.randrange(len(other))
                data[at:at] = other[start : start + chance.randint(1, 120)]
            case 2 if data:
                data[at % len(data)] = chance.randrange(256)
            case 3:
                data[at:at] = chance.choice(_PIECES)
            case _:
                few, many = (1, 200) if chance.random() < 0.95 else (2_000, 12_000)
                data[at:at] = chance.choice(_PIECES) * chance.randint(few, many)
    return bytes(data)


def use(raw: bytes) -> None:
    """Everything that is done with a Dockerfile before a step runs."""
    dockerfile = parse(raw)
    check(dockerfile, IgnoreRules(["*", "!a"]))
    arguments = global_arguments(dockerfile, {"a": "b*b" * 40}, build=_HOST, target=_HOST)
    for stage in dockerfile.stages[:50]:
        base_of(stage, arguments)
        walk(dockerfile, stage.index, Scope({"a": "ab" * 200, "b": ""}, arguments, {}))


def walk(dockerfile: Dockerfile, index: int, scope: Scope) -> None:
    """Do the steps of one stage, but for their work."""
    for instruction in dockerfile.stages[index].instructions:
        if isinstance(instruction, Arg):
            scope.declare(instruction)
        elif isinstance(instruction, Env):
            scope.set(instruction)
        else:
            done = expand(instruction, scope.environment)
            if isinstance(done, Run):
                done.execution()


def ignore(raw: bytes) -> None:
    """An ignore file and some paths."""
    rules = IgnoreRules.parse(raw)
    for path in ("a", "a/b", "aaa" * 50, "a/" * 60 + "a", ".git/x"):
        rules.ignores(path)
        rules.may_take_back_below(path)


def main() -> int:
    """Fuzz until the time is over; 1 after a finding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--keep", type=Path, default=Path())
    options = parser.parse_args()
    chance = random.Random(options.seed)
    seeds = [path.read_bytes() for path in sorted(_CORPUS.glob("*.Dockerfile"))]
    end, count, slowest = time.monotonic() + options.seconds, 0, 0.0
    while time.monotonic() < end:
        if chance.random() < 0.85:
            name, raw, act = "dockerfile", mutated(seeds, chance), use
        else:
            name, act = "dockerignore", ignore
            raw = b"".join(chance.choices(_PATTERNS, k=chance.randint(1, 120)))
        began = time.process_time()
        try:
            act(raw)
        except TareError:
            pass
        except Exception:
            traceback.print_exc()
            found = options.keep / f"finding-{name}"
            found.write_bytes(raw)
            print(f"{name}: an error that no user is meant to read; see {found}", file=sys.stderr)
            return 1
        took = time.process_time() - began
        slowest = max(slowest, took)
        if took > SLOW + len(raw) * PER_BYTE:
            found = options.keep / f"slow-{name}"
            found.write_bytes(raw)
            print(f"{name}: {len(raw)} bytes took {took:.1f} s; see {found}", file=sys.stderr)
            return 1
        count += 1
    print(f"{count} files, seed {options.seed}, slowest {slowest:.2f} s: nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
