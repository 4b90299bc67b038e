"""Real weighings of busybox, both ways, emulated where there is no KVM."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from harness.engines import Engine
from harness.sites import Site

pytestmark = [pytest.mark.system, pytest.mark.needs("root", "overlay", "erofs", "cgroup", "qemu")]

_PATIENCE = 120.0


def test_both_ways_are_measured_and_nothing_is_left(engine: Engine, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = engine.tare(
        "weigh", "--rounds", "1", "--format", "json", "--html", str(page), "busybox", "--",
        "echo", "hi", timeout=300,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    rows = {row["Key"]: row["Sides"] for row in found["Figures"]}
    for key in ("first-cold", "first-warm", "end-warm", "memory-idle", "disk", "exec", "fits"):
        assert {side: rows[key][side]["Median"] > 0 for side in rows[key]} == {
            "container": True, "vm": True,
        }, key  # fmt: skip
    memory = {side: rows["memory-idle"][side]["Median"] for side in ("container", "vm")}
    assert memory["container"] < 8 << 20 < memory["vm"]
    assert set(rows["image"]) == {"container", "vm"}
    said = {fact["Title"]: fact["Said"] for fact in found["Facts"]}
    assert "shared" in said["Kernel"]["container"]
    assert "its own" in said["Kernel"]["vm"]
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert engine.settled_lies() == []
    assert engine.all() == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_weighing_that_is_broken_off_leaves_nothing(
    engine: Engine, number: signal.Signals
) -> None:
    weighing = engine.begin("weigh", "--only", "vm", "busybox", "--", "sleep", "100")
    end = time.monotonic() + _PATIENCE
    while not engine.out("ps", "-aq"):
        assert time.monotonic() < end and weighing.poll() is None
    weighing.send_signal(number)
    weighing.communicate(timeout=_PATIENCE)

    assert weighing.returncode == 130
    assert engine.out("ps", "-aq") == ""
    assert engine.settled_lies() == []


def test_a_workload_that_goes_on_is_weighed_at_work_and_ended(engine: Engine) -> None:
    script = "echo up; exec sleep 1000"
    done = engine.tare(
        "weigh", "--only", "container", "--rounds", "1", "--format", "json", "busybox", "--",
        "sh", "-c", script, timeout=120,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    rows = {row["Key"]: row for row in json.loads(done.stdout)["Figures"]}
    assert rows["memory-workload"]["Sides"]["container"]["Median"] > 0
    assert "goes on" in rows["end-warm"]["Missing"]["container"]
    assert engine.all() == {}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nothing-of-that-name"], "`tare pull nothing-of-that-name` brings it."),
        (["busybox", "--", "nothing"], "executable file not found"),
    ],
)
def test_what_cannot_be_weighed_is_one_sentence(
    engine: Engine, words: list[str], sentence: str
) -> None:
    done = engine.tare("weigh", "--only", "container", *words)

    assert done.returncode != 0
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert engine.all() == {}


@pytest.mark.needs("nft")
def test_a_network_is_measured_from_the_client(
    session_directory: Path, busybox_archive: Path
) -> None:
    directory = session_directory / "wn"
    directory.mkdir()
    site = Site(directory)
    try:
        site.out("load", "-q", "-i", str(busybox_archive))
        found = json.loads(
            site.out(
                "weigh", "--only", "container", "--rounds", "1", "--format", "json", "busybox",
                "--", "echo", "hi",
            )
        )  # fmt: skip
        site.clean()
    finally:
        site.stop()
        site.host.close()

    rows = {row["Key"]: row for row in found["Figures"]}
    assert rows["latency"]["Sides"]["container"]["Median"] > 0, rows["latency"]["Missing"]
    assert rows["send"]["Sides"]["container"]["Median"] > 0, rows["send"]["Missing"]


def test_the_time_to_healthy_is_taken_where_the_image_has_a_check(
    engine: Engine, tmp_path: Path
) -> None:
    (tmp_path / "Dockerfile").write_text(
        "FROM busybox\nHEALTHCHECK --interval=1s CMD true\n"
        'CMD ["sh", "-c", "echo up; exec sleep 1000"]\n'
    )
    engine.out("build", "-q", "-t", "checked", str(tmp_path))
    found = json.loads(
        engine.out("weigh", "--only", "container", "--rounds", "1", "--format", "json", "checked")
    )

    rows = {row["Key"]: row for row in found["Figures"]}
    assert rows["healthy"]["Sides"]["container"]["Median"] > 0, rows["healthy"]["Missing"]
    assert engine.all() == {}
