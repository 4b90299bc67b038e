"""The collector of a real daemon with a quota: beside pulls and builds, and killed meanwhile."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.engines import Engine

pytestmark = [pytest.mark.system, pytest.mark.needs("root", "overlay", "cgroup", "busybox")]

SIZE = 2  # MiB of each image's own layer
QUOTA = 10  # MiB: busybox and some of them


@pytest.fixture
def source(session_directory: Path, busybox_archive: Path) -> Iterator[Engine]:
    """An engine that serves its images."""
    made = Engine(session_directory / "qs")
    path = made.directory / "c/config.toml"
    path.write_text("[registry]\nenabled = true\nlisten = '127.0.0.1:0'\n" + path.read_text())
    made.out("load", "-q", "-i", str(busybox_archive))
    yield made
    assert made.end() == []
    shutil.rmtree(made.directory)


@pytest.fixture
def engine(session_directory: Path, busybox_archive: Path) -> Iterator[Engine]:
    """An engine with a quota."""
    made = Engine(session_directory / "qq")
    path = made.directory / "c/config.toml"
    path.write_text(f"[images]\nquota = '{QUOTA}M'\n" + path.read_text())
    made.out("load", "-q", "-i", str(busybox_archive))
    made.out("image", "pin", "busybox")
    yield made
    assert made.end() == []
    shutil.rmtree(made.directory)


def recipe(directory: Path, number: int) -> str:
    place = directory / f"b{number}"
    place.mkdir()
    (place / "data").write_bytes(os.urandom(SIZE << 20))
    (place / "Dockerfile").write_text(
        f"FROM busybox\nCOPY data /data\nRUN echo {number} > /number\nCMD cat /number\n"
    )
    return str(place)


def layers(engine: Engine) -> int:
    """The bytes of all layers on disk."""
    return sum(path.stat().st_size for path in (engine.state / "layers").glob("*.erofs"))


def whole(engine: Engine) -> None:
    """Every image can be read to its last byte, and no file is there that none needs."""
    for name in engine.out("images", "--format", "{{.Repository}}:{{.Tag}}").split():
        if name != "<none>:<none>":
            saved = engine.tare("save", "-o", "/dev/null", name)
            # The collector is at work: an image may go, but not a part of it.
            assert saved.returncode == 0 or "No such image" in saved.stderr, saved.stderr
    for _ in range(300):
        extra = unneeded(engine)
        if not extra:
            return
        engine.out("version")
    raise AssertionError(f"layers that nobody has: {extra}")


def unneeded(engine: Engine) -> set[str]:
    """Layers that no image and no step of a build has; those of a running deletion, too."""
    found = {path.name.split(".")[0] for path in (engine.state / "layers").iterdir()}
    with sqlite3.connect(f"file:{engine.state}/images.db?mode=ro", uri=True) as database:
        needed = {row[0] for row in database.execute("SELECT diff_id FROM layers")}
    with sqlite3.connect(f"file:{engine.state}/build/cache.db?mode=ro", uri=True) as database:
        needed |= {row[0] for row in database.execute("SELECT layer FROM steps")}
    return found - needed


def test_the_quota_holds_beside_pulls_and_builds_and_takes_nothing_that_is_used(
    source: Engine, engine: Engine, tmp_path: Path
) -> None:
    log = (source.run_dir / "daemon.log").read_text()
    host = log.rpartition("the registry listens on http://")[2].split()[0]
    for number in range(3):
        source.out("build", "-q", "-t", f"{host}/p{number}:1", recipe(tmp_path, number))
        source.out("push", "-q", f"{host}/p{number}:1")
    engine.out("build", "-q", "-t", "held:1", recipe(tmp_path, 9))
    engine.out("run", "-d", "--name", "holder", "held:1", "sleep", "1000")

    work = [engine.begin("pull", "-q", f"{host}/p{number}:1") for number in range(3)]
    work += [
        engine.begin("build", "-q", "-t", f"b{number}:1", recipe(tmp_path, number))
        for number in range(3, 7)
    ]
    failed = [said for said in (one.communicate(timeout=120)[1] for one in work) if said]
    codes = [one.returncode for one in work]
    quota = QUOTA << 20
    for _ in range(600):
        if layers(engine) <= quota + (64 << 10):
            break
        engine.out("version")

    assert codes == [0] * len(work), failed
    assert layers(engine) <= quota + (64 << 10)
    kept = engine.out("images", "--format", "{{.Repository}}").split()
    assert {"busybox", "held"} <= set(kept)
    assert len(kept) < 9
    assert engine.out("exec", "holder", "cat", "/number") == "9"
    whole(engine)
    engine.out("rm", "-f", "holder")


def test_kill_9_while_it_collects_leaves_images_whole(engine: Engine, tmp_path: Path) -> None:
    for turn in range(3):
        work = [
            engine.begin(
                "build", "-q", "-t", f"k{turn}{number}:1", recipe(tmp_path, 10 * turn + number)
            )
            for number in range(3)
        ]
        work[0].communicate(timeout=120)
        engine.kill(engine.daemon())
        for one in work[1:]:
            one.communicate(timeout=120)
        whole(engine)

    assert "busybox" in engine.out("images", "--format", "{{.Repository}}").split()
    assert engine.out("run", "--rm", "busybox", "echo", "there") == "there"
