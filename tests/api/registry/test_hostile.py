"""What a client may send to hurt: names, digests, documents, ranges, bodies that never end."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
from pathlib import Path

import pytest

from harness.registry_server import (
    CONFIG,
    INDEX,
    LAYER,
    MANIFEST,
    Answer,
    Registry,
    descriptor,
    digest,
)

BLOB = b"harmless" * 1000


def raw_request(registry: Registry, line: str, *headers: str, body: bytes = b"") -> Answer:
    """A request as it stands: no client cleans up its path."""
    head = "\r\n".join([line, "Host: x", "Connection: close", *headers, "", ""])
    with socket.create_connection(("127.0.0.1", registry.port), timeout=60) as peer:
        peer.sendall(head.encode() + body)
        response = http.client.HTTPResponse(peer, method=line.partition(" ")[0])
        response.begin()
        return Answer(response.status, response.headers, response.read())


def everything(registry: Registry) -> set[str]:
    """All files of the registry and around it."""
    top = registry.directory.parent
    return {os.path.join(path, name) for path, _, names in os.walk(top) for name in names}


@pytest.mark.attack("A30")
@pytest.mark.parametrize(
    "path",
    [
        "/v2/../../../etc/passwd/manifests/latest",
        "/v2/a/../../b/manifests/latest",
        "/v2/..%2f..%2fetc/manifests/latest",
        "/v2/%2e%2e/%2e%2e/blobs/sha256:" + "a" * 64,
        "/v2/a//b/manifests/latest",
        "/v2/A/manifests/latest",
        "/v2/a%00b/manifests/latest",
        "/v2/a%0ab/tags/list",
        "/v2/a_.b/tags/list",
        "/v2/-a/tags/list",
        "/v2/" + "a" * 256 + "/tags/list",
        "/v2/a/manifests/..",
        "/v2/a/manifests/%2e%2e%2f%2e%2e%2fetc",
        "/v2/a/manifests/" + "t" * 129,
        "/v2/a/manifests/.hidden",
        "/v2/a/manifests/sha256:../../../etc/passwd",
        "/v2/a/blobs/sha256:..%2f..%2f..%2fetc%2fpasswd",
        "/v2/a/blobs/sha256:" + "A" * 64,
        "/v2/a/blobs/SHA256:" + "a" * 64,
        "/v2/a/blobs/sha256:" + "a" * 63,
        "/v2/a/blobs/sha512:" + "a" * 64,
        "/v2/a/blobs/sha1:" + "a" * 40,
        "/v2/a/blobs/md5:" + "a" * 32,
        "/v2/a/blobs/uploads/../../registry.db",
        "/v2/a/blobs/uploads/..%2f..%2fregistry.db",
        "/v2/a/blobs/uploads/" + "f" * 32,
        "/v2/a/blobs/uploads/%2e",
        "/v2/a/referrers/sha256:zz",
        "/v2/%ff%fe/tags/list",
        "/v2",
        "/",
        "//v2/",
        "http://other.example/v2/",
        "*",
    ],
)
def test_no_path_leaves_the_grammar(registry: Registry, path: str) -> None:
    before = everything(registry)

    for method in ("GET", "HEAD", "PUT", "PATCH", "POST", "DELETE"):
        answer = raw_request(registry, f"{method} {path} HTTP/1.1", "Content-Length: 0")

        assert answer.status in (200, 400, 404, 405) or (path == "*"), (method, answer.status)
        if method == "GET" and path != "/v2":
            assert answer.status in (400, 404)
            assert b"root:" not in answer.body
            assert str(registry.directory).encode() not in answer.body
    assert everything(registry) == before


@pytest.mark.attack("A30")
@pytest.mark.parametrize(
    "wrong",
    [
        digest(b"something else"),
        digest(b"something else", "sha512"),
        "sha256:../../../../tmp/x",
        "sha256:" + "A" * 64,
        "sha1:" + "a" * 40,
        "",
        "latest",
    ],
)
def test_a_blob_of_another_digest_is_not_kept(registry: Registry, wrong: str) -> None:
    before = everything(registry)

    at_once = registry.ask("POST", f"/v2/bad/blob/blobs/uploads/?digest={wrong}", BLOB)
    place = registry.ask("POST", "/v2/bad/blob/blobs/uploads/")["Location"]
    later = registry.ask("PUT", f"{place}?digest={wrong}", BLOB)

    assert (at_once.status, at_once.code) == (400, "DIGEST_INVALID")
    assert (later.status, later.code) == (400, "DIGEST_INVALID")
    registry.ask("DELETE", place)
    assert everything(registry) == before
    assert registry.ask("GET", f"/v2/bad/blob/blobs/{digest(BLOB)}").status == 404


@pytest.mark.attack("A30")
def test_a_manifest_of_another_digest_is_not_kept(registry: Registry) -> None:
    _, raw = registry.push_image("bad/manifest", "v1", BLOB)
    wrong = digest(b"something else")

    done = registry.ask("PUT", f"/v2/bad/manifest/manifests/{wrong}", raw, Content_Type=MANIFEST)

    assert (done.status, done.code) == (400, "DIGEST_INVALID")
    assert registry.ask("GET", f"/v2/bad/manifest/manifests/{wrong}").status == 404


@pytest.mark.attack("A30")
def test_an_upload_belongs_to_its_repository(registry: Registry) -> None:
    place = registry.ask("POST", "/v2/mine/blobs/uploads/")["Location"]
    theirs = place.replace("/v2/mine/", "/v2/theirs/")

    for method in ("GET", "PATCH", "PUT", "DELETE"):
        answer = registry.ask(method, f"{theirs}?digest={digest(b'x')}", b"x")
        assert (answer.status, answer.code) == (404, "BLOB_UPLOAD_UNKNOWN")
    assert registry.ask("GET", place)["Range"] == "0-0"


def document(**fields: object) -> dict[str, object]:
    return {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(b"{}", CONFIG),
        "layers": [],
        **fields,
    }


@pytest.mark.attack("A31")
@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b"", MANIFEST),
        (b"not json", MANIFEST),
        (b"[]", MANIFEST),
        (b"\xef\xbb\xbf{}", MANIFEST),
        (b"[" * 100_000, MANIFEST),
        (json.dumps(document(manifests=[])).encode(), MANIFEST),
        (json.dumps(document()).encode(), INDEX),
        (json.dumps(document(mediaType=INDEX)).encode(), MANIFEST),
        (json.dumps(document(schemaVersion=1)).encode(), MANIFEST),
        (json.dumps(document(fsLayers=[])).encode(), MANIFEST),
        (json.dumps(document(mediaType="text/html")).encode(), "text/html"),
        (json.dumps({k: v for k, v in document().items() if k != "mediaType"}).encode(), ""),
        (json.dumps(document(config=None)).encode(), MANIFEST),
        (json.dumps(document(layers=None)).encode(), MANIFEST),
        (json.dumps(document(layers=["x"])).encode(), MANIFEST),
        (json.dumps(document(subject={"digest": "x"})).encode(), MANIFEST),
        (json.dumps(document(Config={})).encode(), MANIFEST),
        (json.dumps(document(layers=[{**descriptor(b"", LAYER), "size": -1}])).encode(), MANIFEST),
        (
            json.dumps(document(layers=[{**descriptor(b"", LAYER), "digest": "sha256:../../x"}]))
            .encode(),
            MANIFEST,
        ),
        (json.dumps(document(layers=[descriptor(b"{}", LAYER)] * 5000)).encode(), MANIFEST),
        (json.dumps(document())[:-1].encode() + b', "layers": []}', MANIFEST),
        (json.dumps(document())[:-1].encode() + b', "x": NaN}', MANIFEST),
    ],
)  # fmt: skip
def test_a_document_that_can_be_read_in_two_ways_is_refused(
    registry: Registry, raw: bytes, kind: str
) -> None:
    registry.push_blob("bad/docs", b"{}")

    done = registry.ask("PUT", "/v2/bad/docs/manifests/v1", raw, Content_Type=kind)

    assert (done.status, done.code) == (400, "MANIFEST_INVALID")
    assert registry.ask("GET", "/v2/bad/docs/manifests/v1").status == 404


@pytest.mark.attack("A29")
def test_a_manifest_has_at_most_4_mib_announced_or_not(registry: Registry) -> None:
    size = (4 << 20) + 1

    announced = raw_request(
        registry,
        "PUT /v2/bad/large/manifests/v1 HTTP/1.1",
        f"Content-Length: {size}",
        f"Content-Type: {MANIFEST}",
    )
    piece = b"%x\r\n%b\r\n" % (1 << 20, b" " * (1 << 20))
    chunked = raw_request(
        registry,
        "PUT /v2/bad/large/manifests/v1 HTTP/1.1",
        "Transfer-Encoding: chunked",
        f"Content-Type: {MANIFEST}",
        body=piece * 4 + b"1\r\n \r\n0\r\n\r\n",
    )

    assert (announced.status, announced.code) == (413, "SIZE_INVALID")
    assert (chunked.status, chunked.code) == (413, "SIZE_INVALID")


@pytest.mark.attack("A29")
def test_a_blob_that_the_disk_can_not_hold_is_refused_before_it_is_sent(
    registry: Registry,
) -> None:
    answer = raw_request(
        registry,
        f"POST /v2/bad/huge/blobs/uploads/?digest={digest(BLOB)} HTTP/1.1",
        f"Content-Length: {1 << 60}",
    )

    assert answer.status == 507
    assert registry.ask("GET", "/v2/").status == 200


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ("bytes=8000-", 416),
        ("bytes=99999-100000", 416),
        ("bytes=-0", 416),
        ("bytes=5-2", 200),
        ("bytes=-", 200),
        ("bytes=" + "9" * 40 + "-", 200),
        ("bytes=0-1,2-3", 200),
        ("bytes=" + ",".join(["0-"] * 1000), 200),
        ("bytes=a-b", 200),
        ("lines=0-1", 200),
    ],
)
def test_a_range_is_one_range_or_all(registry: Registry, asked: str, status: int) -> None:
    found = registry.push_blob("bad/ranges", BLOB)

    answer = registry.ask("GET", f"/v2/bad/ranges/blobs/{found}", Range=asked)

    assert answer.status == status
    if status == 416:
        assert answer["Content-Range"] == f"bytes */{len(BLOB)}"
    else:
        assert answer.body == BLOB


@pytest.mark.parametrize("told", ["0-", "-", "x", "5-2", "9" * 30 + "-1", "0-0, 1-1", "bytes"])
def test_a_chunk_that_says_nonsense_is_refused(registry: Registry, told: str) -> None:
    place = registry.ask("POST", "/v2/bad/chunk/blobs/uploads/")["Location"]

    answer = registry.ask("PATCH", place, b"x", Content_Range=told)

    assert (answer.status, answer.code) == (416, "BLOB_UPLOAD_INVALID")
    assert registry.ask("GET", place)["Range"] == "0-0"


def test_two_requests_do_not_write_one_upload_at_once(registry: Registry) -> None:
    place = registry.ask("POST", "/v2/twice/blobs/uploads/")["Location"]
    slow = registry.connect()
    slow.putrequest("PATCH", place)
    slow.putheader("Content-Length", "10")
    slow.endheaders(b"01234")
    quick = registry.connect()
    quick.request("PATCH", place, b"xxxxx")

    slow.send(b"56789")
    first, second = slow.getresponse(), quick.getresponse()

    assert (first.status, second.status) == (202, 202)
    done = registry.ask("PUT", f"{place}?digest={digest(b'0123456789xxxxx')}")
    swapped = registry.ask("GET", f"/v2/twice/blobs/{digest(b'xxxxx0123456789')}")
    assert done.status == 201 or swapped.status == 200
    for each in (slow, quick):
        each.close()


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 100,
        b"GET\r\n\r\n",
        b"GET /v2/ HTTP/9.9\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\n" + b"X: x\r\n" * 500 + b"\r\n",
        b"PUT /v2/x/manifests/y HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)  # fmt: skip
def test_garbage_is_answered_with_400_and_nothing_more(registry: Registry, garbage: bytes) -> None:
    with socket.create_connection(("127.0.0.1", registry.port), timeout=60) as peer:
        peer.sendall(garbage)
        answer = b""
        try:
            while piece := peer.recv(65536):
                answer += piece
        except ConnectionResetError:
            pass

    assert answer == b"" or answer.split(b"\r\n")[0] in (
        b"HTTP/1.0 400 Bad Request",
        b"HTTP/1.1 400 Bad Request",
    )
    assert registry.ask("GET", "/v2/").status == 200


def test_a_log_line_cannot_be_forged(registry: Registry) -> None:
    registry.ask("GET", "/v2/%0d%0aforged%1b[31m/tags/list")

    assert "\nforged" not in registry.log()
    assert "\x1b" not in registry.log()


def test_what_another_deleted_under_it_is_to_be_pushed_again(registry: Registry) -> None:
    content = b"deleted by hand"
    found = registry.push_blob("byhand", content)
    (registry.directory / "data/blobs/sha256" / found.removeprefix("sha256:")).unlink()

    head = registry.ask("HEAD", f"/v2/byhand/blobs/{found}")
    registry.push_blob("byhand", content)

    assert head.status == 404
    assert registry.ask("GET", f"/v2/byhand/blobs/{found}").body == content


def test_everything_on_disk_is_the_owners_alone(registry: Registry) -> None:
    registry.push_blob("modes", BLOB)

    data = registry.directory / "data"
    modes = {}
    for path, _, names in os.walk(data):
        for name in (".", *names):
            with contextlib.suppress(FileNotFoundError):  # the server is at work meanwhile
                modes[os.path.join(path, name)] = os.lstat(os.path.join(path, name)).st_mode
    assert data / "registry.db" in map(Path, modes)
    assert [name for name, mode in modes.items() if mode & 0o077] == []
