"""A container's own layer with a size of its own, and the host's reserve: on a real engine."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.canaries import mounts_below
from harness.engines import Engine

pytestmark = [
    pytest.mark.system,
    pytest.mark.needs("root", "overlay", "cgroup", "busybox"),
    pytest.mark.skipif(
        shutil.which("mkfs.ext4", path="/usr/sbin:/sbin:/usr/bin") is None,
        reason="mkfs.ext4 is not installed",
    ),
]
FILL = "dd if=/dev/zero of=/fill bs=1M count=200 2>/tmp/said; grep -c 'No space' /tmp/said"


@pytest.fixture
def engine(session_directory: Path, busybox_archive: Path) -> Iterator[Engine]:
    directory = session_directory / "ll"
    made = Engine(directory)
    made.out("load", "-q", "-i", str(busybox_archive))
    yield made
    assert made.end() == []
    assert mounts_below(directory) == []
    shutil.rmtree(directory)


@pytest.mark.attack("A48")
def test_a_container_cannot_write_more_than_its_layer_may_hold(engine: Engine) -> None:
    before = os.statvfs(engine.state).f_bavail * os.statvfs(engine.state).f_frsize

    engine.out("run", "-d", "--name", "full", "--storage-opt", "size=32M", "busybox", "sh", "-c",
               FILL + " > /dev/shm/n; sleep 1000")  # fmt: skip
    for _ in range(600):
        if engine.tare("exec", "full", "cat", "/dev/shm/n").stdout.strip():
            break
    said = engine.out("exec", "full", "sh", "-c", "cat /tmp/said; df -m / | tail -1")

    assert "No space left" in said
    size = int(said.splitlines()[-1].split()[1])
    assert 24 <= size <= 32
    image = engine.state / "workloads" / engine.out("ps", "-q", "--no-trunc") / "disk/image"
    assert image.stat().st_blocks * 512 <= 33 << 20
    free = os.statvfs(engine.state).f_bavail * os.statvfs(engine.state).f_frsize
    assert before - free < 200 << 20
    shown = json.loads(engine.out("inspect", "full"))[0]["HostConfig"]["StorageOpt"]
    assert shown == {"size": str(32 << 20)}
    engine.out("exec", "full", "rm", "/fill")
    engine.out("exec", "full", "sh", "-c", "dd if=/dev/zero of=/again bs=1M count=10")
    engine.out("rm", "-f", "full")


def test_a_limited_layer_is_a_layer_like_any_other(engine: Engine, tmp_path: Path) -> None:
    words = ("--storage-opt", "size=20M", "busybox")
    engine.out("run", "--name", "one", *words, "sh", "-c", "echo kept > /etc/mine; rm /bin/wc")

    assert {"A /etc/mine", "D /bin/wc"} <= set(engine.out("diff", "one").splitlines())
    engine.out("cp", "one:/etc/mine", str(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "kept\n"
    (tmp_path / "in").write_text("given\n")
    engine.out("cp", str(tmp_path / "in"), "one:/etc/theirs")
    engine.out("commit", "one", "made:1")
    assert engine.out("run", "--rm", "made:1", "cat", "/etc/mine", "/etc/theirs") == "kept\ngiven"
    engine.out("rm", "one")


def test_a_limited_layer_outlives_the_daemon_and_its_kill(engine: Engine) -> None:
    engine.out("run", "-d", "--name", "two", "--storage-opt", "size=20M", "busybox", "sh", "-c",
               "echo 1 > /n; trap exit TERM; while :; do sleep 0.1; done")  # fmt: skip
    engine.kill(engine.daemon())

    engine.out("exec", "two", "sh", "-c", "echo 2 >> /n")
    engine.out("stop", "two")
    engine.kill(engine.daemon())
    engine.out("start", "two")
    seen = engine.out("exec", "two", "cat", "/n").split()

    assert seen[0] == "1"
    assert "A /n" in engine.out("diff", "two").splitlines()
    engine.kill(engine.daemon(), engine.keeper())
    engine.out("rm", "-f", "two")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("size=1M", "at least 8 MiB"),
        ("size=lots", "invalid size"),
        ("fs=xfs", "size is"),
    ],
)
def test_an_impossible_limit_is_refused(engine: Engine, option: str, said: str) -> None:
    done = engine.tare("run", "--rm", "--storage-opt", option, "busybox", "true")

    assert done.returncode == 125
    assert said in done.stderr
    assert engine.out("ps", "-aq") == ""


@pytest.mark.attack("A48")
def test_no_container_starts_when_the_disk_has_less_than_the_reserve(
    session_directory: Path, busybox_archive: Path
) -> None:
    engine = Engine(session_directory / "lr")
    path = engine.directory / "c/config.toml"
    path.write_text('[images]\nreserve = "900000T"\n' + path.read_text())
    engine.out("load", "-q", "-i", str(busybox_archive))

    done = engine.tare("run", "--rm", "busybox", "true")

    assert done.returncode == 125
    assert "MiB are free on the disk of" in done.stderr
    assert "system prune" in done.stderr
    assert engine.out("ps", "-aq") == ""
    assert engine.end() == []
