"""kill -9 of the daemon, of the keeper and of both, at many moments of what they do.

After the next start of the daemon every record is the truth, what runs has gone on, its log has
no gap, and nothing is left of what has ended.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from harness.engines import Engine

pytestmark = [pytest.mark.system, pytest.mark.needs("root", "overlay", "cgroup", "busybox")]

_COUNT: Final = "i=0; while :; do echo $i; i=$((i+1)); usleep 5000; done"
_POLITE: Final = 'trap "exit 3" TERM; while :; do usleep 20000; done'
_ROUNDS: Final = 2
_LONGEST: Final = {"load": 0.5, "stop": 0.4}
_USUAL: Final = 0.3

WHOM: Final = ("daemon", "keeper", "both")
WHAT: Final = ("create", "run", "start", "exec", "stop", "exit", "rm", "load", "commit")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, busybox_archive: Path) -> Iterator[Engine]:
    """One engine with a container that counts, from the first kill to the last."""
    found = Engine(tmp_path_factory.mktemp("k"))
    try:
        found.out("load", "-q", "-i", str(busybox_archive))
        found.out("run", "-d", "--name", "counter", "busybox", "sh", "-c", _COUNT)
        yield found
        assert found.end() == []
    finally:
        found.stop()


def _victims(engine: Engine, whom: str) -> list[int]:
    pids = {"daemon": [engine.daemon()], "keeper": [engine.keeper()]}
    return pids.get(whom) or [*pids["daemon"], *pids["keeper"]]


def _prepare(engine: Engine, what: str, name: str, archive: Path) -> tuple[str, ...]:
    """What must be there before, and the words of the request that is under way at the kill."""
    sleeping = ("--name", name, "busybox", "sleep", "1000")
    match what:
        case "create":
            return ("create", *sleeping)
        case "run":
            return ("run", "-d", *sleeping)
        case "exit":
            return ("run", "-d", "--name", name, "busybox", "sh", "-c", "usleep 50000; exit 5")
        case "load":
            return ("load", "-q", "-i", str(archive))
        case "start":
            engine.out("create", *sleeping)
            return ("start", name)
        case "stop":
            engine.out("run", "-d", "--name", name, "busybox", "sh", "-c", _POLITE)
            return ("stop", "-t", "5", name)
        case "exec":
            engine.out("run", "-d", *sleeping)
            return ("exec", name, "sh", "-c", "exit 7")
        case "rm":
            engine.out("run", "-d", *sleeping)
            return ("rm", "-f", name)
    engine.out("create", *sleeping)
    return ("commit", name, f"made:{name}")


@pytest.mark.parametrize("what", WHAT)
@pytest.mark.parametrize("whom", WHOM)
def test_whoever_is_killed_the_next_daemon_tells_the_truth(
    engine: Engine, whom: str, what: str, busybox_archive: Path
) -> None:
    chance = random.Random(f"{whom} {what}")
    counter = engine.all()["counter"]
    for number in range(_ROUNDS):
        name = f"{whom}-{what}-{number}"
        words = _prepare(engine, what, name, busybox_archive)
        delay = chance.uniform(0.02, _LONGEST.get(what, _USUAL))
        client = engine.begin(*words)
        # Not to wait for anything: the moment of the kill is what varies.
        with contextlib.suppress(subprocess.TimeoutExpired):
            client.wait(delay)
        engine.kill(*_victims(engine, whom))
        said, complaint = client.communicate(timeout=30)

        assert engine.settled_lies() == [], (name, delay, said, complaint)
        records = engine.all()
        assert (records["counter"].running, records["counter"].pid) == (True, counter.pid)
        shown = records.get(name)
        done = client.returncode == 0
        told = (name, delay, done, complaint, shown)
        match what:
            case "create" | "run" | "start" if done:
                assert shown is not None, told
                assert shown.running is (what != "create"), told
            case "rm" if done:
                assert shown is None, told
            case "load" | "commit" if done:
                image = "busybox" if what == "load" else f"made:{name}"
                assert engine.tare("image", "inspect", image).returncode == 0, told
            case _:
                pass
        if what == "exec":
            assert shown is not None, told
            assert shown.running, told
        if shown is not None and not shown.running and what in ("stop", "exit"):
            expected = 3 if what == "stop" else 5
            honest = shown.code == expected or "not known" in shown.error
            assert honest or shown.status == "created", told
        if shown is not None:
            engine.out("rm", "-f", name)
    assert engine.settled_lies() == []


def test_the_log_has_no_gap(engine: Engine) -> None:
    for whom in WHOM:
        engine.kill(*_victims(engine, whom))
        engine.all()
    engine.out("stop", "-t", "0", "counter")

    lines = engine.out("logs", "counter").split()

    assert len(lines) > 100
    assert lines == [str(number) for number in range(len(lines))]


@pytest.mark.parametrize("whom", WHOM)
def test_exit_code_of_what_ends_while_nobody_looks(engine: Engine, whom: str) -> None:
    name = f"late-{whom}"
    engine.out("run", "-d", "--name", name, "busybox", "sh", "-c", "sleep 0.3; exit 9")
    pid = engine.all()[name].pid
    engine.kill(*_victims(engine, whom))
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
        select.select([handle], [], [], 10)
        os.close(handle)

    assert engine.settled_lies() == []
    shown = engine.all()[name]

    assert not shown.running
    assert shown.code == 9 or (shown.code == 255 and "not known" in shown.error), shown
    engine.out("rm", name)
