"""The end-points of the OCI distribution specification 1.1, by its own four categories."""

from __future__ import annotations

import json
import re
from itertools import count
from urllib.parse import urlsplit

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

_numbers = count()
BLOB = b"what a layer holds, as far as a registry cares" * 100
EMPTY = b"{}"


def fresh(prefix: str = "suite/repo") -> str:
    """A repository that no other test knows."""
    return f"{prefix}-{next(_numbers)}"


def path_of(answer: Answer) -> str:
    """Where the answer says to go on."""
    parts = urlsplit(answer["Location"])
    return parts.path + (f"?{parts.query}" if parts.query else "")


def begin(registry: Registry, name: str) -> str:
    answer = registry.ask("POST", f"/v2/{name}/blobs/uploads/")
    assert answer.status == 202
    return path_of(answer)


# --- pull ---------------------------------------------------------------------------------------


def test_the_version_check_says_that_this_is_a_registry(registry: Registry) -> None:
    answer = registry.ask("GET", "/v2/")

    assert answer.status == 200
    assert answer["Docker-Distribution-Api-Version"] == "registry/2.0"


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_blob_comes_back_as_it_was(registry: Registry, algorithm: str) -> None:
    name = fresh()
    found = registry.push_blob(name, BLOB, algorithm)

    head = registry.ask("HEAD", f"/v2/{name}/blobs/{found}")
    answer = registry.ask("GET", f"/v2/{name}/blobs/{found}")

    assert (head.status, answer.status) == (200, 200)
    assert answer.body == BLOB
    assert head["Content-Length"] == answer["Content-Length"] == str(len(BLOB))
    assert head["Docker-Content-Digest"] == answer["Docker-Content-Digest"] == found
    assert head.body == b""


def test_an_empty_blob_comes_back(registry: Registry) -> None:
    name = fresh()
    found = registry.push_blob(name, b"")

    answer = registry.ask("GET", f"/v2/{name}/blobs/{found}")

    assert (answer.status, answer.body) == (200, b"")


@pytest.mark.parametrize(
    ("asked", "expected", "told"),
    [
        ("bytes=0-9", BLOB[:10], "bytes 0-9/4600"),
        ("bytes=4590-", BLOB[4590:], "bytes 4590-4599/4600"),
        ("bytes=-5", BLOB[-5:], "bytes 4595-4599/4600"),
        ("bytes=4599-99999", BLOB[-1:], "bytes 4599-4599/4600"),
    ],
)
def test_a_range_of_a_blob(registry: Registry, asked: str, expected: bytes, told: str) -> None:
    found = registry.push_blob("suite/ranges", BLOB)

    answer = registry.ask("GET", f"/v2/suite/ranges/blobs/{found}", Range=asked)

    assert (answer.status, answer.body) == (206, expected)
    assert answer["Content-Range"] == told


def test_a_large_blob_is_whole_over_one_connection(registry: Registry) -> None:
    name = fresh()
    large = bytes(range(256)) * 4096 * 3 + b"odd"
    found = registry.push_blob(name, large)
    connection = registry.connect()

    bodies = []
    for _ in range(2):
        connection.request("GET", f"/v2/{name}/blobs/{found}")
        bodies.append(connection.getresponse().read())
    connection.close()

    assert bodies == [large, large]


@pytest.mark.parametrize(
    "path",
    [
        f"/v2/suite/none/blobs/{digest(b'none')}",
        f"/v2/suite/none/manifests/{digest(b'none')}",
        "/v2/suite/none/manifests/none",
        "/v2/suite/none/tags/list",
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_is_not_there_is_404_with_a_code(registry: Registry, path: str, method: str) -> None:
    answer = registry.ask(method, path)

    assert answer.status == 404
    if method == "GET":
        assert answer.code in ("BLOB_UNKNOWN", "MANIFEST_UNKNOWN", "NAME_UNKNOWN")


def test_a_manifest_comes_back_byte_by_byte_by_tag_and_by_digest(registry: Registry) -> None:
    name = fresh()
    found, raw = registry.push_image(name, "v1", BLOB)

    for reference in ("v1", found):
        head = registry.ask("HEAD", f"/v2/{name}/manifests/{reference}", Accept=MANIFEST)
        answer = registry.ask("GET", f"/v2/{name}/manifests/{reference}", Accept=MANIFEST)

        assert (head.status, answer.status, answer.body) == (200, 200, raw)
        assert answer["Content-Type"] == MANIFEST
        assert head["Docker-Content-Digest"] == answer["Docker-Content-Digest"] == found
        assert head["Content-Length"] == str(len(raw))


def test_a_client_gets_no_manifest_of_a_type_that_it_did_not_list(registry: Registry) -> None:
    name = fresh()
    registry.push_image(name, "v1", BLOB)

    old = "application/vnd.docker.distribution.manifest.v2+json"
    refused = registry.ask("GET", f"/v2/{name}/manifests/v1", Accept=old)
    any_type = registry.ask("GET", f"/v2/{name}/manifests/v1", Accept=f"{old}, */*")
    no_list = registry.ask("GET", f"/v2/{name}/manifests/v1", Accept="application/json")

    assert (refused.status, refused.code) == (404, "MANIFEST_UNKNOWN")
    assert (any_type.status, no_list.status) == (200, 200)


def test_what_a_client_has_already_is_not_sent_again(registry: Registry) -> None:
    name = fresh()
    found, _ = registry.push_image(name, "v1", BLOB)

    manifest = registry.ask("GET", f"/v2/{name}/manifests/v1", If_None_Match=f'"{found}"')
    blob = registry.ask(
        "GET", f"/v2/{name}/blobs/{digest(BLOB)}", If_None_Match=f'"{digest(BLOB)}"'
    )

    assert (manifest.status, manifest.body, blob.status, blob.body) == (304, b"", 304, b"")


# --- push ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_blob_pushed_by_post_and_put(registry: Registry, algorithm: str) -> None:
    name = fresh()
    found = digest(BLOB, algorithm)

    done = registry.ask("PUT", f"{begin(registry, name)}?digest={found}", BLOB)

    assert done.status == 201
    assert done["Docker-Content-Digest"] == found
    assert registry.ask("GET", path_of(done)).body == BLOB


def test_a_blob_pushed_as_a_stream(registry: Registry) -> None:
    name = fresh()
    found = digest(BLOB)
    place = begin(registry, name)

    sent = registry.ask("PATCH", place, BLOB, Content_Type="application/octet-stream")
    done = registry.ask("PUT", f"{path_of(sent)}?digest={found}")

    assert (sent.status, sent["Range"]) == (202, f"0-{len(BLOB) - 1}")
    assert (done.status, registry.ask("GET", path_of(done)).body) == (201, BLOB)


def test_a_blob_pushed_in_chunks_the_last_with_the_put(registry: Registry) -> None:
    name = fresh()
    place = begin(registry, name)
    where = registry.ask("GET", place)
    first = registry.ask("PATCH", place, BLOB[:100], Content_Range="0-99")
    second = registry.ask("PATCH", path_of(first), BLOB[100:300], Content_Range="100-299")
    status = registry.ask("GET", path_of(second))
    done = registry.ask(
        "PUT",
        f"{path_of(second)}?digest={digest(BLOB)}",
        BLOB[300:],
        Content_Range=f"300-{len(BLOB) - 1}",
    )

    assert (where.status, where["Range"]) == (204, "0-0")
    assert (status.status, status["Range"]) == (204, "0-299")
    assert done.status == 201
    assert registry.ask("GET", f"/v2/{name}/blobs/{digest(BLOB)}").body == BLOB


def test_a_chunk_out_of_order_is_416_and_says_where_to_go_on(registry: Registry) -> None:
    place = begin(registry, fresh())
    registry.ask("PATCH", place, BLOB[:100], Content_Range="0-99")

    late = registry.ask("PATCH", place, BLOB[200:300], Content_Range="200-299")
    again = registry.ask("PATCH", place, BLOB[:100], Content_Range="0-99")
    right = registry.ask("PATCH", place, BLOB[100:200], Content_Range="100-199")

    assert (late.status, again.status) == (416, 416)
    assert late["Range"] == "0-99"
    assert late["Location"].startswith("/v2/")
    assert (right.status, right["Range"]) == (202, "0-199")


def test_a_chunk_of_another_length_than_its_range_is_refused(registry: Registry) -> None:
    place = begin(registry, fresh())

    answer = registry.ask("PATCH", place, BLOB[:100], Content_Range="0-98")

    assert (answer.status, answer.code) == (400, "SIZE_INVALID")


def test_an_upload_that_was_cancelled_is_gone(registry: Registry) -> None:
    place = begin(registry, fresh())

    assert registry.ask("DELETE", place).status == 204
    after = registry.ask("GET", place)

    assert (after.status, after.code) == (404, "BLOB_UPLOAD_UNKNOWN")


def test_a_blob_is_mounted_from_another_repository(registry: Registry) -> None:
    source, name = fresh(), fresh()
    found = registry.push_blob(source, BLOB)
    assert registry.ask("GET", f"/v2/{name}/blobs/{found}").status == 404

    done = registry.ask("POST", f"/v2/{name}/blobs/uploads/?mount={found}&from={source}")

    assert (done.status, path_of(done)) == (201, f"/v2/{name}/blobs/{found}")
    assert registry.ask("GET", f"/v2/{name}/blobs/{found}").body == BLOB


def test_a_blob_that_can_not_be_mounted_is_to_be_uploaded(registry: Registry) -> None:
    source, name = fresh(), fresh()
    found = registry.push_blob(source, b"elsewhere")

    wrong = registry.ask("POST", f"/v2/{name}/blobs/uploads/?mount={found}&from={fresh()}")
    nonsense = registry.ask("POST", f"/v2/{name}/blobs/uploads/?mount=../x&from=../y")
    anywhere = registry.ask("POST", f"/v2/{name}/blobs/uploads/?mount={found}")

    assert (wrong.status, nonsense.status) == (202, 202)
    assert "/blobs/uploads/" in wrong["Location"]
    assert anywhere.status == 201


def test_a_client_that_waits_to_be_asked_for_the_body_is_asked(registry: Registry) -> None:
    name = fresh()
    found = digest(BLOB)
    connection = registry.connect()
    connection.putrequest("POST", f"/v2/{name}/blobs/uploads/?digest={found}")
    connection.putheader("Content-Length", str(len(BLOB)))
    connection.putheader("Expect", "100-continue")
    connection.endheaders()
    assert connection.sock is not None

    interim = connection.sock.recv(4096)
    connection.send(BLOB)
    done = connection.getresponse()

    assert interim == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert done.status == 201
    connection.close()


def test_a_manifest_pushed_by_digest_has_no_tag(registry: Registry) -> None:
    name = fresh()
    _, raw = registry.push_image(name, "v1", BLOB)
    for algorithm in ("sha256", "sha512"):
        found = digest(raw, algorithm)

        done = registry.ask("PUT", f"/v2/{name}/manifests/{found}", raw, Content_Type=MANIFEST)

        assert (done.status, done["Docker-Content-Digest"]) == (201, found)
        assert path_of(done) == f"/v2/{name}/manifests/{found}"
        assert registry.ask("GET", f"/v2/{name}/manifests/{found}").body == raw
    assert registry.ask("GET", f"/v2/{name}/tags/list").json()["tags"] == ["v1"]


def test_a_tag_moves(registry: Registry) -> None:
    name = fresh()
    old, _ = registry.push_image(name, "v1", BLOB)
    new, _ = registry.push_image(name, "v1", BLOB, annotations={"a": "b"})

    assert registry.ask("HEAD", f"/v2/{name}/manifests/v1")["Docker-Content-Digest"] == new
    assert registry.ask("HEAD", f"/v2/{name}/manifests/{old}").status == 200


def test_an_index_needs_its_manifests(registry: Registry) -> None:
    name = fresh()
    found, raw = registry.push_image(name, "v1", BLOB)
    child = {"mediaType": MANIFEST, "digest": found, "size": len(raw)}
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [child]}).encode()

    elsewhere = registry.ask("PUT", f"/v2/{fresh()}/manifests/all", index, Content_Type=INDEX)
    done = registry.ask("PUT", f"/v2/{name}/manifests/all", index, Content_Type=INDEX)

    assert (elsewhere.status, elsewhere.code) == (400, "MANIFEST_BLOB_UNKNOWN")
    assert done.status == 201
    assert registry.ask("GET", f"/v2/{name}/manifests/all")["Content-Type"] == INDEX


def test_a_manifest_needs_its_blobs_but_not_what_lies_elsewhere(registry: Registry) -> None:
    name = fresh()
    config = registry.push_blob(name, EMPTY)
    foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"

    def manifest(layer: dict[str, object]) -> bytes:
        return json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": {"mediaType": CONFIG, "digest": config, "size": 2},
                "layers": [layer],
            }
        ).encode()

    def put(raw: bytes) -> Answer:
        return registry.ask("PUT", f"/v2/{name}/manifests/v1", raw, Content_Type=MANIFEST)

    missing = put(manifest(descriptor(b"never pushed", LAYER)))
    lying = put(manifest({**descriptor(EMPTY, LAYER), "size": 3}))
    elsewhere = put(manifest(descriptor(b"never pushed", foreign)))

    assert (missing.status, missing.code) == (400, "MANIFEST_BLOB_UNKNOWN")
    assert (lying.status, lying.code) == (400, "SIZE_INVALID")
    assert elsewhere.status == 201


# --- content discovery --------------------------------------------------------------------------


def test_tags_come_in_order_and_in_pages(registry: Registry) -> None:
    name = fresh()
    _, raw = registry.push_image(name, "t3", BLOB)
    for tag in ("t1", "t2", "t4", "T0", "_x"):
        registry.ask("PUT", f"/v2/{name}/manifests/{tag}", raw, Content_Type=MANIFEST)
    every = registry.ask("GET", f"/v2/{name}/tags/list").json()

    pages = []
    place = f"/v2/{name}/tags/list?n=2"
    while place:
        page = registry.ask("GET", place)
        pages.append(page.json()["tags"])
        link = re.fullmatch(r'<(.*)>; rel="next"', page["Link"])
        place = link[1] if link else ""

    assert every == {"name": name, "tags": ["T0", "_x", "t1", "t2", "t3", "t4"]}
    assert pages == [["T0", "_x"], ["t1", "t2"], ["t3", "t4"]]
    last = registry.ask("GET", f"/v2/{name}/tags/list?n=9&last=t25").json()
    assert last["tags"] == ["t3", "t4"]
    none = registry.ask("GET", f"/v2/{name}/tags/list?n=0")
    assert (none.json()["tags"], none["Link"]) == ([], "")


def test_a_page_of_a_size_that_is_none_is_refused(registry: Registry) -> None:
    name = fresh()
    registry.push_image(name, "v1", BLOB)

    for size in ("-1", "x", "1e3", "9" * 40):
        answer = registry.ask("GET", f"/v2/{name}/tags/list?n={size}")
        assert (answer.status, answer.code) == (400, "PAGINATION_NUMBER_INVALID")


def test_the_catalogue_lists_repositories_in_pages(registry: Registry) -> None:
    names = [fresh("catalogue/x") for _ in range(3)]
    for name in names:
        registry.push_image(name, "v1", BLOB)

    page = registry.ask("GET", "/v2/_catalog?n=2&last=catalogue/x")

    assert page.json()["repositories"] == sorted(names)[:2]
    assert f"last={sorted(names)[1].replace('/', '%2F')}" in page["Link"]


def test_referrers_are_an_index_that_may_be_filtered(registry: Registry) -> None:
    name = fresh()
    subject, raw = registry.push_image(name, "v1", BLOB)
    about = {"mediaType": MANIFEST, "digest": subject, "size": len(raw)}
    empty = registry.ask("GET", f"/v2/{name}/referrers/{subject}")
    signature, _ = registry.push_image(
        name, "sig", BLOB, subject=about, artifactType="application/x.signature",
        annotations={"signed": "yes"},
    )  # fmt: skip
    by_config, _ = registry.push_image(name, "sbom", BLOB, subject=about)
    index = json.dumps(
        {"schemaVersion": 2, "mediaType": INDEX, "manifests": [], "subject": about,
         "artifactType": "application/x.index"}
    ).encode()  # fmt: skip
    done = registry.ask("PUT", f"/v2/{name}/manifests/{digest(index)}", index, Content_Type=INDEX)

    every = registry.ask("GET", f"/v2/{name}/referrers/{subject}")
    one = registry.ask(
        "GET", f"/v2/{name}/referrers/{subject}?artifactType=application%2Fx.signature"
    )

    assert (empty.status, empty.json()["manifests"]) == (200, [])
    assert done["OCI-Subject"] == subject
    assert every["Content-Type"] == INDEX
    assert every["OCI-Filters-Applied"] == ""
    found = every.json()["manifests"]
    assert isinstance(found, list)
    assert {(each["digest"], each["artifactType"]) for each in found} == {
        (signature, "application/x.signature"),
        (by_config, CONFIG),
        (digest(index), "application/x.index"),
    }
    assert one["OCI-Filters-Applied"] == "artifactType"
    filtered = one.json()["manifests"]
    assert isinstance(filtered, list)
    assert [(each["digest"], each["annotations"]) for each in filtered] == [
        (signature, {"signed": "yes"})
    ]


def test_a_subject_need_not_be_there(registry: Registry) -> None:
    name = fresh()
    missing = descriptor(b"not there", MANIFEST)

    found, _ = registry.push_image(name, "about", BLOB, subject=missing)
    answer = registry.ask("GET", f"/v2/{name}/referrers/{missing['digest']}")

    manifests = answer.json()["manifests"]
    assert isinstance(manifests, list)
    assert [each["digest"] for each in manifests] == [found]


def test_many_large_referrers_come_in_pages_below_the_limit_of_a_manifest(
    registry: Registry,
) -> None:
    name = fresh()
    subject = descriptor(b"much is said of it", MANIFEST)
    pushed = {
        registry.push_image(name, f"r{i}", BLOB, subject=subject, annotations={"x": "y" * 900_000})[
            0
        ]
        for i in range(6)
    }

    found, pages = set(), 0
    place = f"/v2/{name}/referrers/{subject['digest']}"
    while place:
        page = registry.ask("GET", place)
        assert len(page.body) <= 4 << 20
        manifests = page.json()["manifests"]
        assert isinstance(manifests, list)
        found |= {each["digest"] for each in manifests}
        link = re.fullmatch(r'<(.*)>; rel="next"', page["Link"])
        place, pages = link[1] if link else "", pages + 1

    assert found == pushed
    assert pages == 2


# --- content management -------------------------------------------------------------------------


def test_a_deleted_tag_leaves_the_manifest(registry: Registry) -> None:
    name = fresh()
    found, _ = registry.push_image(name, "v1", BLOB)

    assert registry.ask("DELETE", f"/v2/{name}/manifests/v1").status == 202

    assert registry.ask("GET", f"/v2/{name}/manifests/v1").status == 404
    assert registry.ask("GET", f"/v2/{name}/manifests/{found}").status == 200
    assert registry.ask("DELETE", f"/v2/{name}/manifests/v1").status == 404


def test_a_deleted_manifest_takes_its_tags_and_is_no_referrer_any_more(registry: Registry) -> None:
    name = fresh()
    subject, raw = registry.push_image(name, "v1", BLOB)
    about = {"mediaType": MANIFEST, "digest": subject, "size": len(raw)}
    found, _ = registry.push_image(name, "sig", BLOB, subject=about)

    assert registry.ask("DELETE", f"/v2/{name}/manifests/{found}").status == 202

    assert registry.ask("GET", f"/v2/{name}/manifests/{found}").status == 404
    assert registry.ask("GET", f"/v2/{name}/tags/list").json()["tags"] == ["v1"]
    assert registry.ask("GET", f"/v2/{name}/referrers/{subject}").json()["manifests"] == []


def test_a_blob_is_deleted_once_no_manifest_needs_it(registry: Registry) -> None:
    name, other = fresh(), fresh()
    content = f"only of {name}".encode()
    found, _ = registry.push_image(name, "v1", content)
    registry.ask("POST", f"/v2/{other}/blobs/uploads/?mount={digest(content)}&from={name}")
    place = f"/v2/{name}/blobs/{digest(content)}"

    needed = registry.ask("DELETE", place)
    registry.ask("DELETE", f"/v2/{name}/manifests/{found}")
    done = registry.ask("DELETE", place)

    assert (needed.status, needed.code) == (405, "UNSUPPORTED")
    assert done.status == 202
    assert registry.ask("GET", place).status == 404
    assert registry.ask("DELETE", place).status == 404
    assert registry.ask("GET", f"/v2/{other}/blobs/{digest(content)}").body == content


def test_a_method_that_is_not_possible_names_those_that_are(registry: Registry) -> None:
    answer = registry.ask("POST", "/v2/suite/x/manifests/v1")

    assert (answer.status, answer.code) == (405, "UNSUPPORTED")
    assert answer["Allow"] == "DELETE, GET, HEAD, PUT"
