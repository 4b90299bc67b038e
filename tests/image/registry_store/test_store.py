"""The registry's content: what is kept, how long, and what the collector takes."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tare.errors import ConflictError, FailedError
from tare.image.registry_store import store as stores
from tare.image.registry_store.collect import collect
from tare.image.registry_store.store import Blob, RegistryStore
from tare.image.registry_store.uploads import Upload
from tare.model.distribution import Code, ContentDigest, DistributionError
from tare.model.stored_manifest import StoredManifest

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DAY = 24 * 3600


class Clock:
    """The time, as the test says."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[RegistryStore]:
    made = RegistryStore(tmp_path / "registry", clock=clock)
    yield made
    made.close()


def push(store: RegistryStore, content: bytes, repository: str = "a") -> Blob:
    upload = store.begin(repository)
    upload.write(content)
    return store.finish(upload, ContentDigest.of(content))


def manifest(*blobs: Blob, **fields: object) -> StoredManifest:
    links = [{"mediaType": "x", "digest": str(b.digest), "size": b.size} for b in blobs]
    raw = json.dumps(
        {"schemaVersion": 2, "config": links[0], "layers": links[1:], **fields}
    ).encode()
    return StoredManifest.parse(raw, MANIFEST)


def there(store: RegistryStore, blob: Blob, repository: str = "a") -> bool:
    try:
        store.blob(repository, blob.digest)
    except DistributionError:
        return False
    return True


def test_a_blob_lies_once_however_many_have_it(store: RegistryStore) -> None:
    one, two = push(store, b"same", "a"), push(store, b"same", "b")

    assert one.path == two.path
    assert len(list((store.directory / "blobs/sha256").iterdir())) == 1
    store.remove_blob("a", one.digest)
    assert there(store, two, "b")
    assert not there(store, one, "a")
    store.remove_blob("b", two.digest)
    assert not two.path.exists()


def test_an_upload_goes_on_with_another_process(tmp_path: Path, store: RegistryStore) -> None:
    upload = store.begin("a")
    upload.write(b"first ")
    store.close()
    again = RegistryStore(tmp_path / "registry", clock=store.clock)
    with again.serve():
        upload = again.upload("a", upload.id)
        size = upload.size
        upload.write(b"second")
        blob = again.finish(upload, ContentDigest.of(b"first second"))

    assert size == 6
    assert blob.path.read_bytes() == b"first second"
    again.close()


def test_an_upload_that_was_abandoned_is_deleted(store: RegistryStore, clock: Clock) -> None:
    old, busy, fresh = (store.begin("a") for _ in range(3))
    for upload in (old, busy):
        os.utime(upload.path, (clock.now - 2 * DAY, clock.now - 2 * DAY))
    os.utime(fresh.path, (clock.now, clock.now))

    with busy.busy:
        store.expire()

    assert {path.name for path in (store.directory / "uploads").iterdir()} == {busy.id, fresh.id}
    assert not old.path.exists()
    with pytest.raises(DistributionError, match="no such upload"):
        store.upload("a", old.id)


def test_there_are_only_so_many_uploads(
    store: RegistryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "UPLOADS_MAX", 3)
    for _ in range(3):
        store.begin("a")

    with pytest.raises(DistributionError) as refused:
        store.begin("a")

    assert refused.value.code is Code.TOOMANYREQUESTS


def test_a_full_disk_leaves_what_was_received_before(
    store: RegistryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = store.begin("a")
    upload.write(b"kept")
    real = os.pwrite

    def full(descriptor: int, data: memoryview, offset: int) -> int:
        if len(data) > 2:
            return real(descriptor, data[:2], offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DistributionError) as refused:
        upload.write(b"lost")
    monkeypatch.setattr(os, "pwrite", real)
    upload.write(b" too")

    assert refused.value.http_status == 507
    assert upload.path.read_bytes() == b"kept too"
    assert there(store, store.finish(upload, ContentDigest.of(b"kept too")))


def test_what_a_crash_left_is_deleted(tmp_path: Path, store: RegistryStore) -> None:
    kept, gone = push(store, b"kept"), push(store, b"gone")
    gone.path.unlink()
    stray = store.directory / "blobs/sha512" / ("0" * 128)
    stray.write_bytes(b"x")
    upload = store.directory / "uploads" / ("0" * 32)
    upload.write_bytes(b"x")

    with store.serve():
        pass

    assert there(store, kept)
    assert not there(store, gone)
    assert not stray.exists()
    assert not upload.exists()
    assert store.index.read("SELECT count(*) FROM blobs") == [(1,)]


def test_one_process_serves(store: RegistryStore) -> None:
    with store.serve(), pytest.raises(ConflictError, match="another process"), store.serve():
        pass


def test_a_directory_of_a_newer_tare_is_refused(tmp_path: Path, store: RegistryStore) -> None:
    with store.index.change():
        store.index.write("PRAGMA user_version=99")

    with pytest.raises(FailedError, match="newer tare"):
        RegistryStore(tmp_path / "registry")


def test_the_collector_takes_what_no_manifest_needs_and_what_waited_long(
    store: RegistryStore, clock: Clock
) -> None:
    used, old = push(store, b"used"), push(store, b"old")
    store.put_manifest("a", "v1", manifest(used))
    clock.now += 2 * DAY
    fresh, asked = push(store, b"fresh"), store.blob("a", old.digest)

    dry = collect(store, dry_run=True)
    assert there(store, old)
    store.want("a", asked)
    spared = collect(store)
    clock.now += 2 * DAY
    done = collect(store)

    assert dry.blobs == (str(old.digest),)
    assert spared.blobs == ()
    assert set(done.blobs) == {str(old.digest), str(fresh.digest)}
    assert done.freed == len(b"old") + len(b"fresh")
    assert there(store, used)
    assert not old.path.exists()


def test_the_collector_takes_untagged_manifests_only_when_told_to(
    store: RegistryStore, clock: Clock
) -> None:
    blob, other = push(store, b"1"), push(store, b"2")
    old = store.put_manifest("a", "v1", manifest(blob))
    new = store.put_manifest("a", "v1", manifest(other))
    about = {"mediaType": MANIFEST, "digest": str(old), "size": 1}
    store.put_manifest("a", ContentDigest.of(manifest(blob, subject=about).raw),
                       manifest(blob, subject=about))  # fmt: skip
    about_new = manifest(other, subject={"mediaType": MANIFEST, "digest": str(new), "size": 1})
    signature = store.put_manifest("a", ContentDigest.of(about_new.raw), about_new)
    clock.now += 2 * DAY

    kept = collect(store)
    done = collect(store, untagged=True)

    assert (kept.manifests, kept.blobs) == (0, ())
    assert (done.manifests, done.blobs) == (2, (str(blob.digest),))
    assert store.manifest("a", signature).raw == about_new.raw
    assert store.manifest("a", "v1").digest == new


def test_a_repository_that_holds_nothing_is_forgotten_by_the_collector(
    store: RegistryStore, clock: Clock
) -> None:
    blob = push(store, b"x", "empty/soon")
    store.remove_blob("empty/soon", blob.digest)
    push(store, b"y", "kept")

    collect(store)

    assert store.repositories() == ["kept"]


def test_the_hash_of_an_upload_does_not_depend_on_how_it_came(tmp_path: Path) -> None:
    content = bytes(range(256)) * 100
    path = tmp_path / "upload"
    path.write_bytes(content[:777])
    resumed = Upload("0" * 32, "a", path)
    resumed.write(content[777:5000])
    resumed.write(bytearray(content[5000:]))

    resumed.seal(ContentDigest.of(content))
    resumed.seal(ContentDigest.of(content, "sha512"))
    with pytest.raises(DistributionError):
        resumed.seal(ContentDigest.of(content[1:]))


def test_pushes_and_the_collector_at_once_leave_the_store_true(
    tmp_path: Path, store: RegistryStore
) -> None:
    other = RegistryStore(tmp_path / "registry")  # as another process would open it

    def one(number: int) -> int:
        """Push the same three blobs as everybody, name them, delete; how often it had to begin."""
        name, tries = f"r{number}", 0
        for _ in range(8):
            while True:
                tries += 1
                blobs = [push(store, b"%d" % i * 1000, name) for i in range(3)]
                try:
                    digest = store.put_manifest(name, f"t{number}", manifest(*blobs))
                    break
                except DistributionError as error:
                    assert error.code is Code.MANIFEST_BLOB_UNKNOWN
            for blob in blobs:
                assert blob.path.stat().st_size == blob.size
            with contextlib.suppress(DistributionError):
                store.remove_manifest(name, digest)
        return tries

    def sweep(_: int) -> None:
        for _ in range(10):
            collect(other, grace=-10)

    with ThreadPoolExecutor(5) as pool:
        sweeping = pool.map(sweep, range(1))
        tries = list(pool.map(one, range(4)))
        list(sweeping)
    known = {str(row[0]) for row in store.index.read("SELECT digest FROM blobs")}
    found = {f"sha256:{path.name}" for path in (store.directory / "blobs/sha256").iterdir()}
    other.close()

    assert min(tries) >= 8
    assert known == found
    assert list((store.directory / "uploads").iterdir()) == []
