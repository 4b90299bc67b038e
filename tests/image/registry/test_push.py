"""Pushing: what is sent, what need not be, and how it goes on after a broken line.

The same pushes go to Debian's docker-registry and to the fake, which is how the fake is shown to be
one.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

from fakes import archives
from fakes.registry import FakeRegistry, sha256
from harness.desk import Desk
from harness.docker_registry import PASSWORD, USER, DockerRegistry
from tare.errors import DeniedError, MissingError, TareError
from tare.image.compress import Compression
from tare.image.registry.credentials import Credentials
from tare.image.registry.pull import Notice
from tare.image.registry.push import PushNotice, PushPhase
from tare.model import oci
from tare.model.oci import ImageConfig
from tare.model.reference import Reference

ONE = archives.layer({"etc/one": b"1" * 5000})
TWO = archives.layer({"etc/two": bytes(range(256)) * 2000})


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as made:
        yield made


@pytest.fixture(params=["fake", "debian"])
def host(request: pytest.FixtureRequest) -> str:
    name = "registry" if request.param == "fake" else "debian"
    return str(request.getfixturevalue(name).host)


def make(desk: Desk, name: str, *layers: bytes) -> str:
    """An image made here, of which no registry has heard."""
    with desk.store.lease() as lease:
        for layer in layers:
            desk.store.add_layer(_Stream(layer), lease=lease)
        config = ImageConfig.parse(archives.config(list(layers)))
        desk.store.add_image(config, names=[Reference.parse(name)])
    return name


class _Stream:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def read(self, n: int = -1, /) -> bytes:
        size = len(self._content) if n < 0 else n
        data, self._content = self._content[:size], self._content[size:]
        return data


def phases(desk: Desk) -> list[PushPhase]:
    """How each layer ended."""
    last = {one.id: one.phase for one in desk.pushed if isinstance(one, PushNotice)}
    return list(last.values())


def test_what_was_pushed_is_pulled_as_it_was(desk: Desk, host: str, tmp_path: Path) -> None:
    name = make(desk, f"{host}/made:1", ONE, TWO)

    pushed = desk.push(name)

    assert phases(desk) == [PushPhase.PUSHED] * 2
    other = Desk(tmp_path / "other")
    [pulled] = other.pull(name)
    assert pulled.digest == pushed.digest
    assert other.content(name) == [ONE, TWO]
    assert pulled.image.id == desk.store.get(name).id
    assert desk.store.get(name).digests == (f"{host}/made@{pushed.digest}",)
    other.store.close()


def test_a_second_push_sends_nothing(desk: Desk, registry: FakeRegistry) -> None:
    name = make(desk, f"{registry.host}/made:1", ONE, TWO)
    first = desk.push(name)
    registry.asked.clear()

    again = desk.push(name)

    assert again == first
    assert phases(desk) == [PushPhase.EXISTS] * 2
    assert not registry.of("PATCH", "") and not registry.of("POST", "")


def test_a_push_to_another_repository_mounts(desk: Desk, host: str) -> None:
    first = desk.push(make(desk, f"{host}/origin:1", ONE, TWO))
    desk.store.tag(f"{host}/origin:1", f"{host}/deep/er/copy:2")

    second = desk.push(f"{host}/deep/er/copy:2")

    assert second.digest == first.digest
    assert phases(desk) == [PushPhase.MOUNTED] * 2
    mounted = [one.origin for one in desk.pushed if isinstance(one, PushNotice) and one.origin]
    assert mounted == ["origin"] * 2


def test_an_image_that_was_pulled_keeps_its_digest(
    desk: Desk, registry: FakeRegistry, other: FakeRegistry
) -> None:
    made = registry.put_image("a", "1", [ONE, TWO], Compression.ZSTD)
    desk.pull(f"{registry.host}/a:1")
    desk.store.tag(f"{registry.host}/a:1", f"{registry.host}/b:1")

    assert str(desk.push(f"{registry.host}/b:1").digest) == made.digest

    # Another registry has none of its blobs: they are made again, as gzip.
    desk.store.tag(f"{registry.host}/a:1", f"{other.host}/b:1")
    assert str(desk.push(f"{other.host}/b:1").digest) != made.digest
    raw = other.manifests["b", "1"][1]
    layers = [other.blobs[one["digest"]] for one in json.loads(raw)["layers"]]
    assert [gzip.decompress(blob) for blob in layers] == [ONE, TWO]


def test_a_registry_without_mounts_and_without_parts_is_sent_all_at_once(
    desk: Desk, registry: FakeRegistry
) -> None:
    name = make(desk, f"{registry.host}/made:1", ONE)

    async def no_parts(request: web.Request) -> web.StreamResponse | None:
        if request.method == "PATCH":
            return web.Response(status=405)
        return None

    registry.hooks.append(no_parts)

    desk.push(name)

    assert phases(desk) == [PushPhase.PUSHED]
    assert ("made", "1") in registry.manifests


def test_a_broken_upload_goes_on_where_the_registry_is(desk: Desk, registry: FakeRegistry) -> None:
    name = make(desk, f"{registry.host}/made:1", archives.layer({"x": b"".join(
        sha256(bytes([i % 256, i // 256])).encode() for i in range(9000)
    )}))  # fmt: skip
    ranges: list[str] = []

    async def break_once(request: web.Request) -> web.StreamResponse | None:
        if request.method != "PATCH":
            return None
        ranges.append(request.headers["Content-Range"])
        if len(ranges) > 1:
            return None
        registry.uploads[request.path.rpartition("/")[2]] += await request.content.readexactly(9999)
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    registry.hooks.append(break_once)

    pushed = desk.push(name)

    assert len(ranges) == 2
    assert ranges[1].startswith("9999-")
    assert str(pushed.digest) == sha256(registry.manifests["made", "1"][1])


def test_a_registry_that_asks_for_large_parts_gets_parts(
    desk: Desk, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tare.image.registry.push._LEAST_CHUNK", 1000)
    name = make(desk, f"{registry.host}/made:1", TWO)

    async def ask(request: web.Request) -> web.StreamResponse | None:
        if request.method != "POST":
            return None
        registry.uploads["u"] = bytearray()
        headers = {"Location": "/v2/made/blobs/uploads/u", "OCI-Chunk-Min-Length": "1000"}
        return web.Response(status=202, headers=headers)

    registry.hooks.append(ask)

    desk.push(name)

    starts = [one.headers["Content-Range"] for one in registry.of("PATCH", "")]
    assert starts[:2] == ["0-999", "1000-1999"]


def test_basic_authentication(desk: Desk, tmp_path: Path) -> None:
    good = Credentials(username=USER, password=PASSWORD)
    with DockerRegistry(tmp_path / "locked", password=True) as locked:
        name = make(desk, f"{locked.host}/made:1", ONE)

        with pytest.raises(DeniedError, match="push access denied"):
            desk.push(name)
        with pytest.raises(DeniedError, match="push access denied"):
            desk.push(name, Credentials(username=USER, password="wrong"))
        desk.push(name, good)

        with pytest.raises(MissingError, match=r"pull access denied .* 'docker login'"):
            desk.pull(name)
        desk.pull(name, credentials=good)


def test_tokens_are_asked_for_once_for_each_repository(desk: Desk) -> None:
    with FakeRegistry(password="secret", tokens=True) as locked:
        name = make(desk, f"{locked.host}/made:1", ONE, TWO)

        desk.push(name, Credentials(username="wolf", password="secret"))

        asked = locked.of("GET", "/token")
        assert 1 <= len(asked) <= 3  # layers that begin together may ask together
        assert asked[0].query == {
            "service": "fake", "scope": "repository:made:pull,push", "account": "wolf",
        }  # fmt: skip
        for one in locked.asked:
            told = one.headers.get("Authorization", "")
            assert told.startswith("Basic") == (one.path == "/token")


def test_an_image_that_is_not_here_is_not_pushed(desk: Desk, registry: FakeRegistry) -> None:
    with pytest.raises(MissingError, match="No such image"):
        desk.push(f"{registry.host}/none:1")

    assert not registry.asked


def test_a_failed_push_leaves_nothing_behind(desk: Desk, registry: FakeRegistry) -> None:
    name = make(desk, f"{registry.host}/made:1", ONE, TWO)

    async def full(request: web.Request) -> web.StreamResponse | None:
        error = {"errors": [{"code": "DENIED", "message": "quota\x1b[31m exceeded"}]}
        return web.json_response(error, status=413) if request.method == "PUT" else None

    registry.hooks.append(full)

    with pytest.raises(TareError, match="quota"):
        desk.push(name)

    assert not [*desk.partials.directory.iterdir()]
    assert not registry.manifests
    assert not [one for one in desk.pushed if isinstance(one, Notice)]


def test_a_manifest_that_is_kept_goes_with_its_image(desk: Desk, registry: FakeRegistry) -> None:
    made = registry.put_image("a", "1", [ONE])
    desk.pull(f"{registry.host}/a:1")
    blobs = desk.directory / "blobs/sha256"
    assert {path.name for path in blobs.iterdir()} == {made.digest[7:], made.id[7:]}

    desk.store.remove(f"{registry.host}/a:1")

    assert desk.empty()
    assert not [*blobs.iterdir()]


def test_manifests_are_of_the_type_that_their_layers_have(
    desk: Desk, registry: FakeRegistry
) -> None:
    desk.push(make(desk, f"{registry.host}/made:1", ONE))

    kind, raw = registry.manifests["made", "1"]

    manifest = oci.parse_manifest(raw, kind)
    assert isinstance(manifest, oci.Manifest)
    assert [one.media_type for one in manifest.layers] == [oci.MediaType.OCI_LAYER_GZIP]
