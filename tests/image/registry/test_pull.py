"""Pulling: what is fetched, how often, and what is refused of what registries say."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
from aiohttp import web

from fakes import archives
from fakes.registry import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    FakeRegistry,
    packed,
    sha256,
)
from harness.desk import QUICK, Desk
from tare.errors import FailedError, InvalidError, MissingError, TareError, UnsupportedError
from tare.image.compress import Compression
from tare.image.registry.download import Downloads, Phase
from tare.image.registry.pull import LayerKept, LayerNotice, Notice, Puller
from tare.image.registry.settings import HostSettings, Mirror
from tare.image.registry.transport import Transport
from tare.model.digest import Digest
from tare.model.oci import Platform
from tare.model.reference import Reference

ONE = archives.layer({"etc/one": b"1" * 5000, "etc/passwd": b"root\n"})
TWO = archives.layer({"etc/two": os.urandom(300_000)})
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"


def reference(registry: FakeRegistry, rest: str = "a/b:1") -> str:
    return f"{registry.host}/{rest}"


@pytest.mark.parametrize("how", list(Compression))
def test_an_image_is_here_as_it_was_there(
    desk: Desk, registry: FakeRegistry, how: Compression
) -> None:
    made = registry.put_image("a/b", "1", [ONE, TWO], how)

    [pulled] = desk.pull(reference(registry))

    assert desk.content(reference(registry)) == [ONE, TWO]
    assert (str(pulled.image.id), str(pulled.digest)) == (made.id, made.digest)
    assert pulled.image.tags == (reference(registry),)
    assert pulled.image.digests == (f"{registry.host}/a/b@{made.digest}",)
    assert not [*desk.partials.directory.iterdir()]


def test_progress_tells_every_layer_to_its_end(desk: Desk, registry: FakeRegistry) -> None:
    made = registry.put_image("a/b", "1", [ONE, TWO])

    desk.pull(reference(registry))

    assert desk.told[0] == Notice("Pulling from a/b", "1")
    for blob in made.blobs:
        phases = [
            one.step.phase
            for one in desk.told
            if isinstance(one, LayerNotice) and sha256(blob)[7:19] == one.id
        ]
        assert phases[0] is Phase.WAITING
        assert phases[-1] is Phase.DONE
        assert Phase.VERIFYING in phases
    assert desk.told[-2:] == [
        Notice(f"Digest: {made.digest}"),
        Notice(f"Status: Downloaded newer image for {reference(registry)}"),
    ]


def test_what_is_here_is_not_fetched_again(desk: Desk, registry: FakeRegistry) -> None:
    registry.put_image("a/b", "1", [ONE])
    registry.put_image("a/b", "2", [ONE, TWO])
    desk.pull(reference(registry, "a/b:1"))
    registry.asked.clear()

    [again] = desk.pull(reference(registry, "a/b:1"))
    assert not again.fresh
    assert not registry.of("GET", "/blobs/")

    desk.pull(reference(registry, "a/b:2"))
    assert len(registry.of("GET", "/blobs/")) == 2  # a configuration, and the layer that is new
    assert [one for one in desk.told if isinstance(one, LayerKept)]


def test_a_tag_that_moved_on_takes_its_name_along(desk: Desk, registry: FakeRegistry) -> None:
    registry.put_image("a/b", "1", [ONE])
    [old] = desk.pull(reference(registry))
    registry.put_image("a/b", "1", [TWO])

    [new] = desk.pull(reference(registry))

    assert desk.store.get(reference(registry)).id == new.image.id
    assert desk.store.get(str(old.image.id)).tags == ()


def test_a_digest_is_pulled_without_a_tag(desk: Desk, registry: FakeRegistry) -> None:
    made = registry.put_image("a/b", "1", [ONE])

    [pulled] = desk.pull(reference(registry, f"a/b@{made.digest}"))

    assert pulled.image.tags == ()
    assert desk.store.get(reference(registry, f"a/b@{made.digest}")).id == pulled.image.id


def test_a_repositorys_digests_go_with_its_last_tag(desk: Desk, registry: FakeRegistry) -> None:
    made = registry.put_image("a/b", "1", [ONE])
    desk.pull(reference(registry))
    digest = f"{registry.host}/a/b@{made.digest}"
    desk.store.tag(reference(registry), "other:1")
    desk.store.tag(reference(registry), reference(registry, "a/b:2"))

    first = desk.store.remove(reference(registry))
    second = desk.store.remove(reference(registry, "a/b:2"))

    assert [one.name for one in first] == [reference(registry)]
    assert [one.name for one in second] == [reference(registry, "a/b:2"), digest]
    assert desk.store.get("other:1").digests == ()


def test_a_full_disk_ends_a_pull_and_is_left_as_it_was(
    desk: Desk, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.put_image("a/b", "1", [TWO, archives.layer({"x": os.urandom(400_000)})])
    written = 0

    def full(descriptor: int, data: bytes, position: int) -> int:
        nonlocal written
        if written > 100_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written += 50_000
        return pwrite(descriptor, data[:50_000], position)

    pwrite = os.pwrite
    with monkeypatch.context() as patched:
        patched.setattr("tare.image.registry.partial.os.pwrite", full)
        with pytest.raises(FailedError, match="no space left"):
            desk.pull(reference(registry))

    assert desk.empty()
    desk.pull(reference(registry))
    assert desk.content(reference(registry))[0] == TWO


def test_layers_are_extracted_where_they_cannot_be_mounted(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    registry.put_image("a/b", "1", [ONE, TWO])
    desk = Desk(tmp_path / "extracted", extract=True)

    [pulled] = desk.pull(reference(registry))

    assert (desk.store.layer_paths(pulled.image)[0] / "etc/one").read_bytes() == b"1" * 5000
    assert desk.content(reference(registry)) == [ONE, TWO]
    desk.store.close()


def put_index(registry: FakeRegistry, kind: str = OCI_INDEX, tag: str = "all") -> dict[str, str]:
    """An index of two platforms and an attestation; the image's id by its architecture."""
    listed, ids = [], {}
    for machine, layer in (("riscv64", ONE), ("amd64", TWO)):
        config = json.dumps(
            {
                "os": "linux",
                "architecture": machine,
                "rootfs": {
                    "type": "layers",
                    "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()],
                },
            }
        ).encode()
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, **registry.put(config)},
            "layers": [{"mediaType": OCI_LAYER + "+gzip", **registry.put(packed(layer))}],
        }
        raw = registry.put_manifest("a/b", f"only-{machine}", OCI_MANIFEST, manifest)
        ids[machine] = sha256(config)
        listed.append(
            {
                "mediaType": OCI_MANIFEST,
                "digest": sha256(raw),
                "size": len(raw),
                "platform": {"os": "linux", "architecture": machine},
            }
        )
    attestation = {
        "mediaType": OCI_MANIFEST,
        "digest": "sha256:" + "0" * 64,
        "size": 1,
        "platform": {"os": "unknown", "architecture": "unknown"},
        "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
    }
    document = {"schemaVersion": 2, "mediaType": kind, "manifests": [attestation, *listed]}
    registry.put_manifest("a/b", tag, kind, document)
    return ids


@pytest.mark.parametrize("kind", [OCI_INDEX, DOCKER_INDEX])
@pytest.mark.parametrize("machine", ["amd64", "riscv64"])
def test_an_index_gives_the_image_of_the_platform(
    desk: Desk, registry: FakeRegistry, kind: str, machine: str
) -> None:
    ids = put_index(registry, kind)

    [pulled] = desk.pull(reference(registry, "a/b:all"), platform=Platform("linux", machine))

    assert str(pulled.image.id) == ids[machine]
    index = registry.manifests["a/b", "all"][1]
    assert pulled.image.digests == (f"{registry.host}/a/b@{sha256(index)}",)


def test_a_platform_that_is_not_offered_is_named_with_those_that_are(
    desk: Desk, registry: FakeRegistry
) -> None:
    put_index(registry)

    with pytest.raises(InvalidError, match="linux/s390x in the index; it has: linux/riscv64"):
        desk.pull(reference(registry, "a/b:all"), platform=Platform("linux", "s390x"))

    with pytest.raises(MissingError, match="does not provide the specified platform"):
        desk.pull(reference(registry, "a/b:only-amd64"), platform=Platform("linux", "riscv64"))
    assert desk.empty()


def test_two_pulls_of_one_image_share_one_download(desk: Desk, registry: FakeRegistry) -> None:
    made = registry.put_image("a/b", "1", [ONE, TWO])
    registry.put_image("c", "2", [TWO])
    waiting = 0

    async def hold(request: web.Request) -> web.StreamResponse | None:
        """Blobs come when both pulls have asked for all that they will ask for."""
        nonlocal waiting
        if request.path.endswith(sha256(made.blobs[1])):
            waiting += 1
            while len(registry.of("GET", "/manifests/")) < 2 or len(registry.of("GET", "/c/")) < 2:
                await asyncio.sleep(0.01)
        return None

    registry.hooks.append(hold)

    one, two = desk.pull(reference(registry), reference(registry, "c:2"))

    assert waiting == 1
    assert desk.content(reference(registry)) == [ONE, TWO]
    assert desk.content(reference(registry, "c:2")) == [TWO]
    assert one.image.id != two.image.id


def drop_after(registry: FakeRegistry, size: int, times: int) -> list[str]:
    """The first *times* answers with a large blob end early; the Range headers that came."""
    ranges: list[str] = []

    async def hook(request: web.Request) -> web.StreamResponse | None:
        content = registry.blobs.get(request.path.rpartition("/")[2], b"")
        if request.method != "GET" or len(content) < 100_000:
            return None
        told = request.headers.get("Range", "")
        ranges.append(told)
        if len(ranges) > times:
            return None
        start = int(told[6:-1]) if told and registry.ranges else 0
        response = web.StreamResponse(status=206 if start else 200)
        if start:
            response.headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        response.content_length = len(content) - start
        await response.prepare(request)
        await response.write(content[start : start + size])
        assert request.transport is not None
        request.transport.close()
        return response

    registry.hooks.append(hook)
    return ranges


@pytest.mark.parametrize("ranges", [True, False])
def test_a_line_that_drops_is_taken_up_where_it_broke(
    desk: Desk, registry: FakeRegistry, ranges: bool
) -> None:
    registry.put_image("a/b", "1", [TWO], Compression.PLAIN)
    registry.ranges = ranges
    asked = drop_after(registry, 100_000, 2)

    desk.pull(reference(registry))

    assert desk.content(reference(registry)) == [TWO]
    assert asked[0] == ""
    assert asked[1].startswith("bytes=")
    assert len(asked) == 3


def test_a_line_that_always_drops_ends_the_pull_and_the_next_goes_on(
    desk: Desk, registry: FakeRegistry
) -> None:
    registry.put_image("a/b", "1", [TWO], Compression.PLAIN)
    asked = drop_after(registry, 10_000, 4)

    with pytest.raises(FailedError, match=r"dropped|early"):
        desk.pull(reference(registry))
    [partial] = desk.partials.directory.iterdir()
    there = partial.stat().st_size
    assert there
    assert not desk.store.list()

    desk.pull(reference(registry))
    assert asked[-1] == f"bytes={there}-"
    assert desk.content(reference(registry)) == [TWO]
    assert not [*desk.partials.directory.iterdir()]


def test_a_partial_that_was_changed_is_thrown_away_and_fetched_again(
    desk: Desk, registry: FakeRegistry
) -> None:
    made = registry.put_image("a/b", "1", [TWO])
    blob = made.blobs[0]
    desk.partials.path(Digest.parse(sha256(blob))).write_bytes(b"\x1f\x8b" + bytes(5000))

    desk.pull(reference(registry))

    assert desk.content(reference(registry)) == [TWO]


def test_a_silent_registry_is_left(desk: Desk, registry: FakeRegistry) -> None:
    made = registry.put_image("a/b", "1", [TWO])
    desk.with_settings(silence=0.3, attempts=2)

    async def silent(request: web.Request) -> web.StreamResponse | None:
        if request.path.endswith(sha256(made.blobs[0])):
            await registry.release.wait()
        return None

    registry.hooks.append(silent)

    with pytest.raises(FailedError, match=r"no answer in time|dropped"):
        desk.pull(reference(registry))
    registry.let_go()


def test_errors_of_the_moment_are_waited_out(desk: Desk, registry: FakeRegistry) -> None:
    registry.put_image("a/b", "1", [ONE])
    left = [503, 429, 500]

    async def busy(request: web.Request) -> web.StreamResponse | None:
        if "/manifests/" in request.path and left:
            return web.Response(status=left.pop(), headers={"Retry-After": "0"})
        return None

    registry.hooks.append(busy)

    desk.pull(reference(registry))

    assert len(registry.of("GET", "/manifests/")) == 4


def test_what_is_not_there_is_said_in_dockers_words(desk: Desk, registry: FakeRegistry) -> None:
    with pytest.raises(MissingError, match=r"manifest for .*/a/b:1 not found: manifest unknown"):
        desk.pull(reference(registry))


def test_docker_schema_2_is_read_and_schema_1_is_not(desk: Desk, registry: FakeRegistry) -> None:
    made = registry.put_image("a/b", "1", [ONE])
    told = json.loads(made.manifest)
    told["mediaType"] = DOCKER_MANIFEST
    told["config"]["mediaType"] = "application/vnd.docker.container.image.v1+json"
    told["layers"][0]["mediaType"] = "application/vnd.docker.image.rootfs.diff.tar.gzip"
    registry.put_manifest("a/b", "2", DOCKER_MANIFEST, told)
    first = {"schemaVersion": 1, "name": "a/b", "fsLayers": [], "history": []}
    for kind in ("prettyjws", "json"):
        registry.put_manifest(
            "a/b", kind, f"application/vnd.docker.distribution.manifest.v1+{kind}", first
        )
    registry.put_manifest("a/b", "old", "application/json", first)

    desk.pull(reference(registry, "a/b:2"))
    assert desk.content(reference(registry, "a/b:2")) == [ONE]

    for tag in ("prettyjws", "json", "old"):
        with pytest.raises(TareError, match=r"schema (version )?1") as caught:
            desk.pull(reference(registry, f"a/b:{tag}"))
        assert isinstance(caught.value, UnsupportedError | InvalidError)


def test_mirrors_are_asked_first_and_the_registry_where_they_fail(
    desk: Desk, registry: FakeRegistry, other: FakeRegistry
) -> None:
    registry.put_image("a/b", "1", [ONE, TWO])
    made = other.put_image("a/b", "1", [ONE, TWO])
    del other.blobs[sha256(made.blobs[1])]
    mirror = Mirror(host=other.host, scheme="http")
    desk.with_settings(hosts={registry.host: HostSettings(mirrors=(mirror,))})

    desk.pull(reference(registry))

    assert desk.content(reference(registry)) == [ONE, TWO]
    assert [one.path.rpartition("/")[2] for one in registry.of("GET", "/blobs/")] == [
        sha256(made.blobs[1])
    ]
    assert not registry.of("GET", "/manifests/")


def test_a_mirror_that_lies_is_not_the_end(
    desk: Desk, registry: FakeRegistry, other: FakeRegistry
) -> None:
    made = registry.put_image("a/b", "1", [TWO])
    other.put_image("a/b", "1", [TWO])
    other.blobs[sha256(made.blobs[0])] = bytes(len(made.blobs[0]))
    mirror = Mirror(host=other.host, scheme="http")
    desk.with_settings(hosts={registry.host: HostSettings(mirrors=(mirror,))})

    desk.pull(reference(registry))

    assert desk.content(reference(registry)) == [TWO]


def test_a_pull_that_follows_one_that_was_left_waits_for_its_file(
    desk: Desk, registry: FakeRegistry
) -> None:
    made = registry.put_image("a/b", "1", [TWO], Compression.PLAIN)
    path = sha256(made.blobs[0])
    answers = 0

    async def stall(request: web.Request) -> web.StreamResponse | None:
        nonlocal answers
        if not request.path.endswith(path):
            return None
        answers += 1
        if answers > 1:
            return None
        response = web.StreamResponse()
        response.content_length = len(made.blobs[0])
        await response.prepare(request)
        await response.write(made.blobs[0][:100_000])
        await registry.release.wait()
        return response

    registry.hooks.append(stall)

    async def work() -> None:
        downloads = Downloads(desk.store, desk.partials, parallel=2)
        puller = Puller(desk.store, desk.partials, downloads)
        name = Reference.parse(reference(registry))
        async with Transport(QUICK) as transport:
            first = asyncio.ensure_future(puller.pull(transport, name, desk.told.append))
            while not answers:
                await asyncio.sleep(0.01)
            first.cancel()
            await asyncio.sleep(0)
            await puller.pull(transport, name, desk.told.append)
            assert first.cancelled()
        downloads.close()

    asyncio.run(work())

    assert desk.content(reference(registry)) == [TWO]
    assert not [*desk.partials.directory.iterdir()]


def test_who_shares_a_download_that_fails_asks_its_own_registry(
    desk: Desk, registry: FakeRegistry, other: FakeRegistry
) -> None:
    made = registry.put_image("a/b", "1", [TWO])
    other.put_image("a/b", "1", [TWO])
    path = sha256(made.blobs[0])

    async def lie(request: web.Request) -> web.StreamResponse | None:
        """The first to be asked waits until the second pull has come as far, and lies."""
        if not request.path.endswith(path):
            return None
        while len([one for one in desk.told if isinstance(one, LayerNotice)]) < 2:
            await asyncio.sleep(0.01)
        return web.Response(body=bytes(len(made.blobs[0])))

    other.hooks.append(lie)

    async def late(request: web.Request) -> web.StreamResponse | None:
        while not other.of("GET", path):
            await asyncio.sleep(0.01)
        return None

    registry.hooks.append(late)

    async def work() -> list[object]:
        downloads = Downloads(desk.store, desk.partials, parallel=2)
        puller = Puller(desk.store, desk.partials, downloads)
        async with Transport(QUICK) as transport:
            names = [Reference.parse(f"{one.host}/a/b:1") for one in (other, registry)]
            pulls = [puller.pull(transport, name, desk.told.append) for name in names]
            found = await asyncio.gather(*pulls, return_exceptions=True)
        downloads.close()
        return [*found]

    liar, honest = asyncio.run(work())

    assert isinstance(liar, InvalidError)
    assert not isinstance(honest, BaseException), honest
    assert desk.content(reference(registry)) == [TWO]


def test_more_than_the_registry_has_is_thrown_away(desk: Desk, registry: FakeRegistry) -> None:
    made = registry.put_image("a/b", "1", [TWO])
    digest = Digest.parse(sha256(made.blobs[0]))
    desk.partials.path(digest).write_bytes(made.blobs[0][:1000])

    async def beyond(request: web.Request) -> web.StreamResponse | None:
        return web.Response(status=416) if "Range" in request.headers else None

    registry.hooks.append(beyond)

    desk.pull(reference(registry))

    assert desk.content(reference(registry)) == [TWO]


def test_old_partials_are_collected_and_those_in_use_are_not(desk: Desk) -> None:
    old, new, used = (Digest.of(word) for word in (b"old", b"new", b"used"))
    for digest in (old, new, used):
        desk.partials.path(digest).write_bytes(b"x" * 5000)
    for digest in (old, used):
        os.utime(desk.partials.path(digest), (0, 0))
    push = desk.partials.directory / ".push-1"
    push.write_bytes(b"")

    with desk.partials.open(used):
        freed = desk.partials.collect()

    assert freed >= 5000
    assert {p.name for p in desk.partials.directory.iterdir()} == {new.hex, used.hex, push.name}
    desk.partials.recover()
    assert not push.exists()


def test_a_disk_without_room_is_said_before_anything_is_fetched(
    desk: Desk, registry: FakeRegistry
) -> None:
    made = registry.put_image("a/b", "1", [ONE])
    told = json.loads(made.manifest)
    told["layers"][0]["size"] = 1 << 60
    registry.put_manifest("a/b", "1", OCI_MANIFEST, told)

    with pytest.raises(FailedError, match="no space left"):
        desk.pull(reference(registry))

    assert not registry.of("GET", sha256(made.blobs[0]))
    assert desk.empty()


def test_the_store_of_an_older_tare_is_taken_over(tmp_path: Path, registry: FakeRegistry) -> None:
    import sqlite3

    from tare.image import index

    state = tmp_path / "old"
    state.mkdir()
    database = sqlite3.connect(state / "images.db")
    database.executescript(f"BEGIN; {index._SCHEMA} PRAGMA user_version=1; COMMIT;")
    database.close()
    registry.put_image("a/b", "1", [ONE])
    desk = Desk(state)

    desk.pull(reference(registry))

    assert desk.content(reference(registry)) == [ONE]
    desk.store.close()
