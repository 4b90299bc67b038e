"""The server is killed (kill -9) at any moment: nothing told is lost, nothing is corrupt."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from harness.registry_server import LAYER, MANIFEST, Registry, command, descriptor, digest

Serve = Callable[..., Registry]
BLOB = os.urandom(1 << 20) * 6 + b"the end"


def lies(registry: Registry) -> list[str]:
    """Where the index and the files of a registry at rest disagree."""
    data = registry.directory / "data"
    with closing(sqlite3.connect(data / "registry.db")) as database:
        known = dict(database.execute("SELECT digest, size FROM blobs").fetchall())
        uploads = {row[0] for row in database.execute("SELECT id FROM uploads")}
        whole = database.execute("PRAGMA integrity_check").fetchone()[0]
        loose = database.execute("PRAGMA foreign_key_check").fetchall()
    found = [] if whole == "ok" and not loose else [f"database: {whole} {loose}"]
    on_disk = {
        f"{algorithm}:{path.name}": path
        for algorithm in ("sha256", "sha512")
        for path in (data / "blobs" / algorithm).iterdir()
    }
    found += [f"not there: {name}" for name in known.keys() - on_disk.keys()]
    found += [f"not known: {name}" for name in on_disk.keys() - known.keys()]
    for name, path in on_disk.items():
        if digest(path.read_bytes(), name.partition(":")[0]) != name:
            found.append(f"corrupt: {name}")
    left = {path.name for path in (data / "uploads").iterdir()}
    return found + [f"upload: {name}" for name in left ^ uploads]


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_an_upload_goes_on_after_the_server_was_killed_in_its_middle(serve: Serve) -> None:
    registry = serve("--no-images")
    place = registry.ask("POST", "/v2/killed/blobs/uploads/")["Location"]
    uploads = registry.directory / "data/uploads"
    peer = socket.create_connection(("127.0.0.1", registry.port))
    head = f"PATCH {place} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BLOB)}\r\n\r\n"
    peer.sendall(head.encode() + BLOB[: 4 << 20])
    wait_for(lambda: sum(path.stat().st_size for path in uploads.iterdir()) >= 2 << 20)

    registry.kill()
    peer.close()
    registry.start()
    there = registry.ask("GET", place)
    at = int(there["Range"].partition("-")[2]) + 1
    rest = registry.ask("PATCH", place, BLOB[at:], Content_Range=f"{at}-{len(BLOB) - 1}")
    done = registry.ask("PUT", f"{place}?digest={digest(BLOB)}")

    assert 2 << 20 <= at <= 4 << 20
    assert (there.status, rest.status, done.status) == (204, 202, 201)
    assert registry.ask("GET", f"/v2/killed/blobs/{digest(BLOB)}").body == BLOB
    registry.end()
    assert lies(registry) == []


def test_a_client_that_breaks_off_goes_on_where_it_was(serve: Serve) -> None:
    registry = serve("--no-images")
    place = registry.ask("POST", "/v2/broken/blobs/uploads/")["Location"]
    with socket.create_connection(("127.0.0.1", registry.port)) as peer:
        head = f"PATCH {place} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BLOB)}\r\n\r\n"
        peer.sendall(head.encode() + BLOB[: 5 << 20])

    there = registry.ask("PATCH", place, b"", Content_Range="1-1")
    at = int(there["Range"].partition("-")[2]) + 1 if there["Range"] != "0-0" else 0
    done = registry.ask(
        "PUT",
        f"{place}?digest={digest(BLOB)}",
        BLOB[at:],
        Content_Range=f"{at}-{len(BLOB) - 1}",
    )

    assert there.status == 416
    assert done.status == 201
    assert registry.ask("GET", f"/v2/broken/blobs/{digest(BLOB)}").body == BLOB


# Where a push may be cut: each call of these inside the server's store is one point.
_POINTS = ("os.rename", "os.fsync", "sync_directory", "COMMIT", "os.unlink")
_KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv.pop(1))
point, left = sys.argv.pop(1), int(sys.argv.pop(1))
import sqlite3
from tare.kernel import files
from tare.image.registry_store import index, store

def dying(call, name, when):
    def wrapper(*arguments, **named):
        global left
        if name != point:
            return call(*arguments, **named)
        left -= 1
        if left == 0 and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        found = call(*arguments, **named)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return found
    return wrapper

class Connection(sqlite3.Connection):
    def execute(self, statement, *values):
        call = super().execute
        if statement == "COMMIT":
            return dying(call, "COMMIT", sys.argv[1])(statement, *values)
        return call(statement, *values)

connect = sqlite3.connect
index.sqlite3.connect = lambda *a, **n: connect(*a, factory=Connection, **n)
when = sys.argv.pop(1)
sys.argv.insert(1, when)
os.rename = dying(os.rename, "os.rename", when)
os.fsync = dying(os.fsync, "os.fsync", when)
os.unlink = dying(os.unlink, "os.unlink", when)
files.sync_directory = dying(files.sync_directory, "sync_directory", when)

from pathlib import Path
from tare.model.distribution import ContentDigest
from tare.model.stored_manifest import StoredManifest
from tare.image.registry_store.collect import collect
told = Path(sys.argv[3])
def tell(word):
    with told.open("a") as out:
        out.write(word + "\\n")
import json
kept = store.RegistryStore(Path(sys.argv[2]))
with kept.serve():
    blob = b"content of a blob"
    digest = ContentDigest.of(blob)
    upload = kept.begin("a/b")
    upload.write(blob)
    kept.finish(upload, digest)
    tell("blob")
    raw = json.dumps({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "x", "digest": str(digest), "size": len(blob)}, "layers": []})
    kept.put_manifest("a/b", "v1", StoredManifest.parse(raw.encode(), ""))
    tell("manifest")
    other = kept.begin("a/b")
    other.write(b"garbage")
    kept.finish(other, ContentDigest.of(b"garbage"))
    assert kept.mount("c", ContentDigest.of(b"garbage"), "a/b")
    kept.remove_blob("a/b", ContentDigest.of(b"garbage"))
    collect(kept, grace=-1)
    tell("collected")
kept.close()
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("point", _POINTS)
def test_whatever_call_is_the_last_the_store_is_true(tmp_path: Path, point: str, when: str) -> None:
    source = str(Path(__file__).resolve().parents[3] / "src")
    python = [*command()[:2], "-c", _KILLED, source]
    for number in range(1, 40):
        data, told = tmp_path / f"{number}/data", tmp_path / f"{number}/told"
        data.mkdir(parents=True)
        done = subprocess.run(
            [*python, point, str(number), when, str(data), str(told)],
            capture_output=True,
            text=True,
        )
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        _check(data, told.read_text().split() if told.exists() else [])
        if done.returncode == 0:
            break

    assert number > 1, f"{point} is never called"
    assert done.returncode == 0


def _check(data: Path, told: list[str]) -> None:
    """Everything that was told is there after a restart, and nothing is corrupt."""
    from tare.image.registry_store.store import RegistryStore
    from tare.model.distribution import ContentDigest

    kept = RegistryStore(data)
    with kept.serve():
        content = b"content of a blob"
        if "blob" in told:
            blob = kept.blob("a/b", ContentDigest.of(content))
            assert blob.path.read_bytes() == content
        if "manifest" in told:
            document = kept.manifest("a/b", "v1")
            assert ContentDigest("sha256", hashlib.sha256(document.raw).hexdigest())
        if "collected" in told:
            names = [path.name for path in (data / "blobs/sha256").iterdir()]
            assert names == [ContentDigest.of(content).hex]
        known = {str(row[0]) for row in kept.index.read("SELECT digest FROM blobs")}
    kept.close()
    found = {f"sha256:{path.name}" for path in (data / "blobs/sha256").iterdir()}
    assert found == known
    for name in found:
        path = data / "blobs/sha256" / name.removeprefix("sha256:")
        assert str(ContentDigest.of(path.read_bytes())) == name


def test_the_collector_runs_beside_the_server(serve: Serve) -> None:
    registry = serve("--no-images")
    loose = registry.push_blob("beside", b"nobody needs this")
    registry.push_image("beside", "v1", b"a layer")
    untagged, _ = registry.push_image("beside", "v2", b"a layer", annotations={"old": "yes"})
    registry.ask("DELETE", "/v2/beside/manifests/v2")
    gc = command("gc", f"--data={registry.directory / 'data'}", "--grace=0")

    dry = subprocess.run([*gc, "--dry-run"], capture_output=True, text=True, check=True)
    before = registry.ask("HEAD", f"/v2/beside/blobs/{loose}").status
    done = subprocess.run(gc, capture_output=True, text=True, check=True)
    after = registry.ask("HEAD", f"/v2/beside/blobs/{loose}").status
    kept = registry.ask("GET", f"/v2/beside/manifests/{untagged}").status
    subprocess.run([*gc, "--untagged"], capture_output=True, text=True, check=True)
    gone = registry.ask("GET", f"/v2/beside/manifests/{untagged}").status

    assert dry.stdout == done.stdout == f"{loose}\n"
    assert "would be deleted" in dry.stderr
    assert (before, after, kept, gone) == (200, 404, 200, 404)
    assert registry.ask("GET", f"/v2/beside/blobs/{digest(b'a layer')}").status == 200


def test_a_manifest_whose_blob_was_collected_is_refused(serve: Serve) -> None:
    registry = serve("--no-images")
    registry.push_blob("late", b"{}")
    gc = command("gc", f"--data={registry.directory / 'data'}", "--grace=0")
    subprocess.run(gc, capture_output=True, check=True)

    raw = (
        b'{"schemaVersion":2,"config":{"mediaType":"x","digest":"%b","size":2},"layers":[]}'
        % digest(b"{}").encode()
    )
    done = registry.ask("PUT", "/v2/late/manifests/v1", raw, Content_Type=MANIFEST)

    assert (done.status, done.code) == (400, "MANIFEST_BLOB_UNKNOWN")
    assert descriptor(b"{}", LAYER)["digest"] == digest(b"{}")


def test_one_directory_is_served_by_one_process(serve: Serve) -> None:
    registry = serve("--no-images")

    second = subprocess.run(
        command("serve", "--listen=127.0.0.1:0", f"--data={registry.directory / 'data'}"),
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert second.returncode == 1
    assert "another process serves" in second.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_when_told_to(serve: Serve, number: signal.Signals) -> None:
    registry = serve("--no-images")
    registry.push_blob("ended", b"kept")

    code = registry.end(number)
    registry.start()

    assert code == 0
    assert registry.ask("GET", f"/v2/ended/blobs/{digest(b'kept')}").body == b"kept"
