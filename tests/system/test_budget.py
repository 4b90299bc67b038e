"""The server's budget on real containers: the kernel keeps caps, the engine reservations."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness.engines import Engine

pytestmark = [pytest.mark.system, pytest.mark.needs("root", "overlay", "cgroup", "busybox")]

MIB = 1 << 20
IDLE = ("busybox", "sleep", "1000")


@pytest.fixture(scope="module")
def engine(session_directory: Path, busybox_archive: Path) -> Iterator[Engine]:
    found = Engine(session_directory / "budget")
    try:
        found.out("load", "-q", "-i", str(busybox_archive))
        yield found
    finally:
        found.stop()


@pytest.fixture(autouse=True)
def tidy(engine: Engine) -> Iterator[None]:
    yield
    ids = engine.out("ps", "-aq").split()
    if ids:
        engine.out("rm", "-f", *ids)
    for one in budgets(engine)[1:]:
        engine.out("budget", "rm", "--project", str(one["Project"]))
    engine.tare("budget", "rm")


def budgets(engine: Engine) -> list[dict[str, dict[str, int]]]:
    found: list[dict[str, dict[str, int]]] = json.loads(engine.out("budget", "--format", "json"))[
        "Budgets"
    ]
    return found


def limit(engine: Engine, below: str = "") -> int:
    """The memory limit of the engine's group, or of one below it, as the kernel has it."""
    for path, name in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        for found in path.glob(f"{engine.parent}/{below}{name}"):
            return int(found.read_text())
    pytest.skip("cgroup: no memory controller")


def start(engine: Engine, name: str, *words: str) -> int:
    return engine.tare("run", "-d", "--network", "none", "--name", name, *words, *IDLE).returncode


@pytest.mark.attack("A47")
def test_by_default_the_host_keeps_its_share(engine: Engine) -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    engine.out("budget")

    assert abs(limit(engine) - (total - max(512 * MIB, total // 10))) <= 4096
    pids = [*Path("/sys/fs/cgroup").glob(f"**/{engine.parent}/pids.max")]
    most = int(Path("/proc/sys/kernel/pid_max").read_text())
    assert {int(path.read_text()) for path in pids[:1]} == {most * 3 // 4}


@pytest.mark.attack("A47")
def test_the_cap_holds_even_for_containers_without_a_limit(engine: Engine) -> None:
    engine.out("budget", "set", "--memory", "96m")

    done = engine.tare(
        "run", "--network", "none", "--name", "hungry", "busybox",
        "dd", "if=/dev/zero", "of=/dev/null", "bs=150M", "count=1",
    )  # fmt: skip
    said = engine.out("explain", "hungry")

    assert limit(engine) == 96 * MIB
    assert done.returncode != 0
    assert "records out" not in done.stderr
    assert "it has no limit of its own: all containers together had reached" in said.replace(
        "\n", " "
    )


def test_concurrent_starts_never_oversubscribe(engine: Engine) -> None:
    engine.out("budget", "set", "--reserve-memory", "256m")

    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(lambda n: start(engine, f"one{n}", "-m", "64m"), range(12)))
    found = json.loads(engine.out("budget", "--format", "json"))

    assert sorted(codes) == [0] * 4 + [125] * 8
    assert found["Budgets"][0]["Memory"]["Reserved"] == 256 * MIB
    assert len(found["Holders"]) == 4
    assert len(engine.out("ps", "-q").split()) == 4


def test_a_refusal_shows_the_arithmetic_and_reservations_survive_kill_9(engine: Engine) -> None:
    engine.out("budget", "set", "--reserve-memory", "200m", "--default-memory", "10m")
    assert start(engine, "big", "-m", "1g", "--memory-reservation", "150m") == 0
    assert start(engine, "plain") == 0
    engine.kill(engine.daemon(), engine.keeper())

    refused = engine.tare("run", "-d", "--network", "none", "--name", "too", "-m", "64m", *IDLE)
    raised = engine.tare("update", "--memory-reservation", "195m", "big")
    lowered = engine.tare("budget", "set", "--reserve-memory", "100m")

    assert refused.returncode == 125
    assert (
        "too does not fit the engine's budget: it reserves 64 MiB memory, and of 200 MiB that may"
        " be reserved 160 MiB are held (big 150 MiB, plain 10 MiB), 40 MiB are free"
    ) in refused.stderr
    assert (raised.returncode, "plain 10 MiB" in raised.stderr) == (1, True)
    assert "160 MiB memory are reserved already, more than 100 MiB" in lowered.stderr


def test_a_project_has_a_group_of_its_own_with_its_caps(engine: Engine) -> None:
    engine.out("budget", "set", "--project", "team=a", "--memory", "64m", "--pids", "40")
    label = ("--label", "team=a")
    assert start(engine, "ours", *label, "-m", "40m") == 0

    refused = engine.tare(
        "run", "-d", "--network", "none", "--name", "more", *label, "-m", "40m", *IDLE
    )
    killed = engine.tare(
        "run", "--rm", "--network", "none", *label, "--memory-reservation", "6m", "busybox",
        "dd", "if=/dev/zero", "of=/dev/null", "bs=150M", "count=1",
    )  # fmt: skip
    other = start(engine, "other", "-m", "200m")
    shown = engine.out("budget")
    lies = engine.settled_lies()

    assert limit(engine, "project-*/") == 64 * MIB
    assert "more does not fit the budget of team=a" in refused.stderr
    assert killed.returncode != 0
    assert other == 0
    assert "Project team=a" in shown
    assert lies == []


def test_more_cpus_than_the_cap_are_refused_and_the_cap_is_set(engine: Engine) -> None:
    engine.out("budget", "set", "--cpus", "0.5")

    refused = engine.tare("run", "--rm", "--network", "none", "--cpus", "1", *IDLE)
    kept = start(engine, "half", "--cpus", "0.5")
    full = engine.tare("run", "--rm", "--network", "none", "--cpus", "0.2", *IDLE)

    assert "asks for 1 CPUs, and the budget caps all together at 0.5" in refused.stderr
    assert kept == 0
    assert "of 0.5 that may be reserved 0.5 are held (half 0.5), 0 are free" in full.stderr


@pytest.mark.attack("A48")
def test_a_used_up_disk_budget_lets_nothing_new_in(engine: Engine) -> None:
    engine.out("budget", "set", "--disk", "1")
    engine.out("budget")  # counts

    refused = engine.tare("run", "--rm", "--network", "none", *IDLE)
    volume = engine.tare("volume", "create", "more")

    assert "the engine's disk budget is used up" in refused.stderr
    assert "the engine's disk budget is used up" in volume.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "nothing to set"),
        (("--memory", "1k"), "64 MiB to the host's"),
        (("--cpus", "9999"), "the host's"),
        (("--memory", "much"), "invalid size"),
        (("--project", "=x", "--memory", "64m"), "invalid project"),
        (("--project", "a=b", "--disk", "1g"), "no disk budget of its own"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(
    engine: Engine, words: tuple[str, ...], said: str
) -> None:
    done = engine.tare("budget", "set", *words)

    assert done.returncode != 0
    assert said in done.stderr


def test_the_budget_is_shown_as_a_table_and_as_bars(engine: Engine) -> None:
    engine.out("budget", "set", "--reserve-memory", "100m")
    assert start(engine, "half", "-m", "50m") == 0

    table, bars = engine.out("budget").splitlines(), engine.out("budget", "--bars")

    row = next(line.split() for line in table if line.startswith("memory"))
    assert row[3:] == ["100MiB", "50MiB", "50MiB"]
    assert next(line.split()[:3] for line in table if line.startswith("half")) == [
        "half", "-", "50MiB",
    ]  # fmt: skip
    assert "[############------------]   50MiB of 100MiB" in bars
