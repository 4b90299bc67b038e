"""The engine's own images as a registry shows them: names, manifests, bytes."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes import archives
from tare.errors import FailedError
from tare.image.registry_store.engine_images import EngineImages
from tare.image.store import ImageStore
from tare.model.distribution import ContentDigest

BASE = archives.layer({"etc/hello": b"hello\n" * 300_000, "empty": b""})
TOP = archives.layer({f"many/{i}": b"%d" % i for i in range(300)})
CONFIG = archives.config([BASE, TOP], Cmd=["/bin/sh"])
NAMES = ["app:1", "app:2", "team/tool:x", "ghcr.io/o/r:1", "localhost:5000/own:1"]


@pytest.fixture(params=["erofs", "extracted"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    store = ImageStore(tmp_path / "state", extract=request.param == "extracted")
    store.load(io.BytesIO(archives.pack(archives.docker((CONFIG, [BASE, TOP], NAMES)))))
    yield tmp_path / "state"
    store.close()


def test_an_image_has_one_manifest_of_plain_layers_that_never_changes(state: Path) -> None:
    images = EngineImages(state)

    document = images.manifest("app", "1")
    again = EngineImages(state).manifest("app", "2")

    assert document is not None
    assert document == again
    value = json.loads(document.raw)
    assert value["config"]["digest"] == str(ContentDigest.of(CONFIG))
    assert [layer["digest"] for layer in value["layers"]] == [
        str(ContentDigest.of(BASE)),
        str(ContentDigest.of(TOP)),
    ]
    assert {layer["mediaType"] for layer in value["layers"]} == {
        "application/vnd.oci.image.layer.v1.tar"
    }
    assert images.manifest("app", document.digest) == document


@pytest.mark.parametrize("content", [BASE, TOP, CONFIG], ids=["base", "top", "config"])
def test_the_bytes_are_those_that_were_loaded(state: Path, content: bytes) -> None:
    blob = EngineImages(state).blob("app", ContentDigest.of(content))

    assert blob is not None
    assert blob.size == len(content)
    assert b"".join(blob.pieces()) == content


def test_names_are_short_for_the_hub_and_whole_for_others(state: Path) -> None:
    images = EngineImages(state)

    assert images.repositories() == ["app", "ghcr.io/o/r", "team/tool"]
    assert images.tags("app") == ["1", "2"]
    for repository, tag in (("team/tool", "x"), ("ghcr.io/o/r", "1"),
                            ("library/app", "1"), ("docker.io/library/app", "1")):  # fmt: skip
        assert images.manifest(repository, tag) is not None
    assert images.manifest("own", "1") is None


def test_a_repository_has_only_what_is_its_own(state: Path) -> None:
    images = EngineImages(state)
    document = images.manifest("app", "1")
    assert document is not None

    assert images.manifest("ap", "1") is None
    assert images.manifest("app", "3") is None
    assert images.manifest("nothing", document.digest) is None
    assert images.blob("nothing", ContentDigest.of(BASE)) is None
    assert images.blob("app", ContentDigest.of(b"other")) is None
    assert images.blob("app", ContentDigest.of(BASE, "sha512")) is None
    assert images.tags("a" * 64) == []


def test_no_engine_means_no_images(tmp_path: Path) -> None:
    images = EngineImages(tmp_path)

    assert images.repositories() == []
    assert images.manifest("app", "1") is None
    assert list(tmp_path.iterdir()) == []


def test_a_layer_is_read_to_its_end_though_the_engine_deletes_it(state: Path) -> None:
    blob = EngineImages(state).blob("app", ContentDigest.of(BASE))
    assert blob is not None
    pieces = blob.pieces()
    first = next(pieces)
    for path in (state / "layers").rglob("*"):
        if path.is_file():
            path.unlink()

    assert first + b"".join(pieces) == BASE
    with pytest.raises(FailedError):
        blob.pieces()


def test_the_names_are_read_though_the_daemon_was_killed(state: Path, tmp_path: Path) -> None:
    # What a kill leaves: a journal that nobody folded into the database, and no shared memory.
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("images.db", "images.db-wal"):
        shutil.copy(state / name, copy / name)
    assert (copy / "images.db-wal").stat().st_size > 0

    assert EngineImages(copy).repositories() == ["app", "ghcr.io/o/r", "team/tool"]
