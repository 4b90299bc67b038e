"""The collector: oldest first, nothing that is in use, whenever it runs and whoever is killed."""

from __future__ import annotations

import asyncio
import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tare.build.cache import Cache, Step
from tare.engine.events import Events
from tare.engine.images import Images
from tare.engine.keeping import Keeping
from tare.engine.paths import Paths
from tare.engine.store import Store
from tare.errors import ConflictError, MissingError, TareError
from tare.image import importing
from tare.image.store import ImageStore
from tare.model import oci
from tare.model.digest import Digest
from tare.model.reference import Reference

KIB = 1 << 10
LAYER = 64 * KIB


def layer(seed: int, size: int = LAYER) -> bytes:
    """An archive whose content takes *size* and is like no other."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        entry = tarfile.TarInfo(f"f{seed}")
        entry.size = size
        archive.addfile(entry, io.BytesIO(random.Random(seed).randbytes(size)))
    return out.getvalue()


def add(store: ImageStore, name: str, *seeds: int) -> Digest:
    with store.lease() as lease:
        layers = [store.add_layer(io.BytesIO(layer(s)), lease=lease).diff_id for s in seeds]
        config = oci.encode(replace(importing.blank_config(), diff_ids=tuple(layers)))
        lease.pin(config.digest)
        return store.add_image(config, names=[Reference.parse(name)] if name else []).id


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ImageStore]:
    made = ImageStore(tmp_path / "s", extract=False)
    yield made
    made.close()


def names(store: ImageStore) -> set[str]:
    return {tag for image in store.list() for tag in image.tags}


def test_the_longest_unused_goes_first_and_no_more_than_must(store: ImageStore) -> None:
    ids = {name: add(store, f"{name}:1", n) for n, name in enumerate(("a", "b", "c", "d"))}
    for name in ("b", "a"):
        store.notes.touch(ids[name])
    each = store.weight() // 4

    swept = store.shrink(2 * each)

    assert names(store) == {"a:1", "b:1"}
    assert set(swept.images) == {ids["c"], ids["d"]}
    assert store.weight() <= 2 * each


def test_what_is_used_pinned_or_leased_stays_whatever_the_quota(store: ImageStore) -> None:
    used, free = add(store, "used:1", 0), add(store, "free:1", 1)
    add(store, "pinned:1", 2)
    store.notes.pin(Reference.parse("pinned:1"))

    with store.lease() as lease:
        kept = store.add_layer(io.BytesIO(layer(9)), lease=lease).diff_id
        swept = store.shrink(0, lambda id: ["container"] if id == used else [])

        assert names(store) == {"used:1", "pinned:1"}
        assert swept.images == (free,)
        assert store.layer(kept).size > 0


def test_a_layer_that_others_have_frees_nothing(store: ImageStore) -> None:
    add(store, "old:1", 1)
    add(store, "new:1", 1, 2)
    before = store.weight()

    removed, freed = store.prune(False, filters={"label": ["nothing=this"]})
    dry, would = store.prune(False, dry=True)

    assert (removed, freed) == ([], 0)
    assert would == before
    assert names(store) == {"old:1", "new:1"}
    assert {one.kind for one in dry} == {"untagged", "deleted"}


def test_a_pinned_name_is_refused_to_rmi_and_goes_by_force(store: ImageStore) -> None:
    add(store, "a:1", 1)
    store.notes.pin(Reference.parse("a:1"))

    with pytest.raises(ConflictError, match="pinned"):
        store.remove("a:1")
    store.remove("a:1", force=True)

    assert store.notes.pins() == []
    with pytest.raises(MissingError):
        store.notes.pin(Reference.parse("a:1"))


def test_a_pin_stays_with_its_name_when_that_means_another_image(store: ImageStore) -> None:
    add(store, "a:1", 1)
    store.notes.pin(Reference.parse("a:1"))

    newer = add(store, "a:1", 2)
    store.prune(False)

    assert {image.id for image in store.list()} == {newer}
    assert store.notes.pins() == ["a:1"]


def test_notes_go_with_their_image_and_what_was_used_is_known_after_a_restart(
    tmp_path: Path,
) -> None:
    first = ImageStore(tmp_path, extract=False)
    id = add(first, "a:1", 1)
    first.notes.put(id, "x/y", b"one")
    first.notes.put(id, "x/y", b"two")
    first.notes.touch(id)
    first.notes.flush()
    moment = first.notes.used()[id]
    first.close()

    second = ImageStore(tmp_path, extract=False)
    second.recover()

    assert second.notes.get(id, "x/y") == b"two"
    assert second.notes.used() == {id: moment}
    second.remove("a:1")
    assert os.listdir(tmp_path / "blobs/sha256") == []
    second.close()


def test_what_only_builds_keep_goes_before_any_image(tmp_path: Path, store: ImageStore) -> None:
    cache = Cache(tmp_path / "build", store)
    image = add(store, "kept:1", 1)
    with store.lease() as lease:
        loose = store.add_layer(io.BytesIO(layer(2)), lease=lease).diff_id
        cache.add(Step(key="k", layer=loose, created_ns=1))
        cache.add(Step(key="l", layer=store.get("kept:1").layers[0], created_ns=1))
    paths = Paths.detect(
        {"TARE_STATE_DIR": str(tmp_path / "e"), "TARE_RUN_DIR": str(tmp_path / "r")}
    )
    paths.prepare()
    records = Store(paths.database)
    images = Images(store, records, Events())
    each = store.weight() // 2

    first = asyncio.run(Keeping(images, store, cache, quota=each + 1).collect())
    kept = names(store)
    second = asyncio.run(Keeping(images, store, cache, quota=1).collect())

    assert (first.images, kept) == ((), {"kept:1"})
    assert cache.find("k") is None
    assert second.images == (str(image),)
    assert store.weight() == 0, "what the cache kept of it went with it"
    cache.close()
    records.close()


# --- at any moment --------------------------------------------------------------------------------


def test_the_collector_runs_beside_those_who_add_and_takes_nothing_of_theirs(
    store: ImageStore,
) -> None:
    """Threads add images of shared layers, as pulls and builds do, while it takes all it can."""
    done = threading.Event()
    failures: list[str] = []
    swept = [0]

    def collect() -> None:
        while not done.is_set():
            swept[0] += len(store.shrink(0).images)
            store.prune(True)

    def adding(worker: int) -> None:
        try:
            for turn in range(12):
                with store.lease() as lease:
                    shared = store.add_layer(io.BytesIO(layer(turn % 3)), lease=lease)
                    own = store.add_layer(io.BytesIO(layer(100 + worker)), lease=lease)
                    diff_ids = (shared.diff_id, own.diff_id)
                    config = oci.encode(replace(importing.blank_config(), diff_ids=diff_ids))
                    lease.pin(config.digest)
                    image = store.add_image(config, names=[Reference.parse(f"w{worker}:1")])
                    store.verify(str(image.id))
        except (TareError, OSError, AssertionError) as error:
            failures.append(f"worker {worker}: {error!r}")

    collector = threading.Thread(target=collect)
    workers = [threading.Thread(target=adding, args=(n,)) for n in range(3)]
    collector.start()
    for one in workers:
        one.start()
    for one in workers:
        one.join()
    done.set()
    collector.join()

    assert failures == []
    assert swept[0] > 0
    for image in store.list():
        store.verify(str(image.id))


_VICTIM = """
import sys
sys.path[:0] = [{tests!r}, {here!r}]
from pathlib import Path
from test_keeping import add
from tare.image.store import ImageStore
store = ImageStore(Path(sys.argv[1]), extract=False)
store.recover()
print("ready", flush=True)
turn = int(sys.argv[2])
while True:
    turn += 1
    add(store, f"n{{turn % 7}}:1", turn % 5, 50 + turn % 3)
    store.shrink({limit})
    print(turn, flush=True)
"""


@pytest.mark.parametrize("lines", [1, 2, 3, 5, 8])
def test_kill_9_in_the_middle_of_collecting_loses_nothing_and_leaks_nothing(
    tmp_path: Path, lines: int
) -> None:
    here = Path(__file__).parent
    code = _VICTIM.format(tests=str(here.parent), here=str(here), limit=3 * LAYER)
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "s"), "0"], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    for _ in range(lines):  # then somewhere in the next turn
        assert child.stdout.readline()
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()

    store = ImageStore(tmp_path / "s", extract=False)
    store.recover()

    needed = set()
    for image in store.list():
        store.verify(str(image.id))
        needed |= {layer.hex for layer in image.layers}
    left = {name.split(".")[0] for name in os.listdir(tmp_path / "s/layers")}
    assert left == needed
    assert {image.id.hex for image in store.list()} == set(os.listdir(tmp_path / "s/blobs/sha256"))
    store.close()
