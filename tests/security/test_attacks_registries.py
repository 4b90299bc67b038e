"""Hostile registries: what they send, where they lead, and what they would like to be told.

The client's side only; what the daemon serves as a registry is tried in tests/api/registry.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import resource
import ssl
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from yarl import URL

from fakes import archives
from fakes.registry import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    FakeRegistry,
    Made,
    packed,
    sha256,
)
from harness.desk import QUICK, Desk
from harness.needs import needs
from tare.client import credentials as stored
from tare.errors import DeniedError, InvalidError, TareError
from tare.image.compress import Compression
from tare.image.registry.auth import Access
from tare.image.registry.client import Repository
from tare.image.registry.credentials import Credentials
from tare.image.registry.settings import HostSettings, Settings
from tare.image.registry.transport import REDIRECTS_MAX, Host, LineError, Place, Transport

ONE = archives.layer({"etc/one": b"1" * 5000})
WHO = Credentials(username="wolf", password="secret")
PASSWORD = "d29sZjpzZWNyZXQ="  # as it would be seen in a header

Hook = Callable[[web.Request], Awaitable[web.StreamResponse | None]]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path / "state")
    yield made
    made.store.close()


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as made:
        yield made


@pytest.fixture
def other() -> Iterator[FakeRegistry]:
    with FakeRegistry(host_name="127.0.0.2") as made:
        yield made


def refused(desk: Desk, registry: FakeRegistry, match: str, name: str = "a:1", **more: Any) -> None:
    """The pull ends with a sentence, and nothing is left of it."""
    with pytest.raises(TareError, match=match):
        desk.pull(f"{registry.host}/{name}", **more)
    assert desk.empty()
    assert not [*(desk.directory / "blobs/sha256").iterdir()]


def endless(part: str, piece: bytes = b" " * 65536) -> Hook:
    """An answer without an end for paths that hold *part*."""

    async def hook(request: web.Request) -> web.StreamResponse | None:
        if part not in request.path:
            return None
        response = web.StreamResponse(headers={"Content-Type": OCI_MANIFEST})
        await response.prepare(request)
        try:
            while True:
                await response.write(piece)
        except ConnectionError:
            return response

    return hook


# --- A29: bombs -----------------------------------------------------------------------------------


@pytest.mark.attack("A29")
@pytest.mark.parametrize("part", ["/manifests/", "/blobs/", "/token"])
def test_answers_without_an_end_are_left_in_bounded_memory(
    desk: Desk, registry: FakeRegistry, part: str
) -> None:
    registry.put_image("a", "1", [ONE])
    registry.tokens = part == "/token"
    registry.hooks.append(endless(part))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    refused(desk, registry, r"longer than|more than")

    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200 << 10  # KiB; this process is the registry as well


@pytest.mark.attack("A29")
def test_an_announced_size_is_enough_to_refuse(desk: Desk, registry: FakeRegistry) -> None:
    made = registry.put_image("a", "1", [ONE])
    told = json.loads(made.manifest)
    told["config"]["size"] = 9 << 20
    registry.put_manifest("a", "1", OCI_MANIFEST, told)

    refused(desk, registry, "would be 9437184 bytes")

    registry.put_manifest("a", "1", OCI_MANIFEST, b" " * (5 << 20) + made.manifest)
    refused(desk, registry, "more than 4194304")


@pytest.mark.attack("A29")
def test_a_bomb_is_refused_and_its_download_is_not_kept(desk: Desk, registry: FakeRegistry) -> None:
    blob = gzip.compress(bytes(200 << 20), 9)
    made = registry.put_image("a", "1", [ONE])
    told = json.loads(made.manifest)
    told["layers"][0].update(registry.put(blob))
    registry.put_manifest("a", "1", OCI_MANIFEST, told)

    refused(desk, registry, r"bomb|not what it says|corrupt|archive")


@pytest.mark.attack("A29")
def test_compression_of_the_line_is_not_undone(desk: Desk, registry: FakeRegistry) -> None:
    made = registry.put_image("a", "1", [ONE])

    async def squeezed(request: web.Request) -> web.StreamResponse | None:
        if "/manifests/" not in request.path:
            return None
        headers = {"Content-Encoding": "gzip", "Content-Type": OCI_MANIFEST}
        return web.Response(body=gzip.compress(made.manifest), headers=headers)

    registry.hooks.append(squeezed)

    refused(desk, registry, "not JSON")
    assert registry.asked[-1].headers["Accept-Encoding"] == "identity"


@pytest.mark.attack("A29")
def test_too_many_layers_and_too_deep_documents_are_refused(
    desk: Desk, registry: FakeRegistry
) -> None:
    made = registry.put_image("a", "1", [ONE])
    told = json.loads(made.manifest)
    registry.put_manifest("a", "1", OCI_MANIFEST, {**told, "layers": told["layers"] * 513})
    refused(desk, registry, "at most 512")

    registry.put_manifest("a", "1", OCI_MANIFEST, b'{"a":' * 5000 + b"1" + b"}" * 5000)
    refused(desk, registry, "nested deeper")


@pytest.mark.attack("A29")
@pytest.mark.parametrize("kind", ["round", "onward", "many"])
def test_pages_for_ever_come_to_an_end(desk: Desk, registry: FakeRegistry, kind: str) -> None:
    async def page(request: web.Request) -> web.StreamResponse | None:
        if not request.path.endswith("/tags/list"):
            return None
        at = int(request.query.get("at", "0"))
        following = {"round": 1 - at, "onward": at + 1, "many": at + 1}[kind]
        count = 3000 if kind == "many" else 1
        tags = [f"t{at}-{i}" for i in range(count)]
        link = f'</v2/a/tags/list?at={following}>; rel="next"'
        return web.json_response({"name": "a", "tags": tags}, headers={"Link": link})

    registry.hooks.append(page)

    async def ask() -> list[str]:
        async with Transport(QUICK) as transport:
            return await Repository(Host(transport, Place("http", registry.host)), "a").tags()

    with pytest.raises(InvalidError, match=r"does not end|more than"):
        asyncio.run(ask())

    assert len(registry.asked) <= 200


@pytest.mark.attack("A29")
def test_a_registry_that_is_always_busy_is_not_stormed(desk: Desk, registry: FakeRegistry) -> None:
    async def busy(request: web.Request) -> web.StreamResponse | None:
        return web.Response(status=503) if "/manifests/" in request.path else None

    registry.hooks.append(busy)

    refused(desk, registry, "503")

    assert len(registry.of("GET", "/manifests/")) == QUICK.attempts


# --- A30: digests ---------------------------------------------------------------------------------


def _blob(change: Callable[[bytes], bytes]) -> Callable[[FakeRegistry, Made], None]:
    def lie(registry: FakeRegistry, made: Made) -> None:
        registry.blobs[sha256(made.blobs[0])] = change(made.blobs[0])

    return lie


def _told(**changes: object) -> Callable[[FakeRegistry, Made], None]:
    """The manifest says something else of its layer."""

    def lie(registry: FakeRegistry, made: Made) -> None:
        told = json.loads(made.manifest)
        told["layers"][0].update(changes)
        registry.put_manifest("a", "1", OCI_MANIFEST, told)

    return lie


def _other_diff_id(registry: FakeRegistry, made: Made) -> None:
    told = json.loads(made.manifest)
    config = json.loads(made.config)
    config["rootfs"]["diff_ids"] = ["sha256:" + "0" * 64]
    told["config"].update(registry.put(json.dumps(config).encode()))
    registry.put_manifest("a", "1", OCI_MANIFEST, told)


def _config(registry: FakeRegistry, made: Made) -> None:
    registry.blobs[made.id] = made.config.replace(b"linux", b"linus")


def _header(registry: FakeRegistry, made: Made) -> None:
    async def lie(request: web.Request) -> web.StreamResponse | None:
        if "/manifests/" not in request.path:
            return None
        headers = {"Content-Type": OCI_MANIFEST, "Docker-Content-Digest": "sha256:" + "1" * 64}
        return web.Response(body=made.manifest, headers=headers)

    registry.hooks.append(lie)


@pytest.mark.attack("A30")
@pytest.mark.parametrize(
    ("lie", "match"),
    [
        pytest.param(_blob(lambda b: b[:-1] + bytes([b[-1] ^ 1])), r"not what|corrupt", id="bytes"),
        pytest.param(_blob(lambda b: packed(ONE + bytes(512))[: len(b)].ljust(len(b), b"\0")),
                     r"not what|corrupt|truncated|bytes", id="other"),
        pytest.param(_blob(lambda b: b + b"x"), "announced", id="trailing"),
        pytest.param(_blob(lambda b: b[:-9]), "announced", id="truncated"),
        pytest.param(_told(size=10), "announced", id="smaller"),
        pytest.param(_told(size=1 << 20), "announced", id="larger"),
        pytest.param(_told(digest="sha256:" + "0" * 64), "BLOB_UNKNOWN|blob unknown", id="unknown"),
        pytest.param(_told(digest="sha256:../../../../etc/passwd"), "not a sha256", id="path"),
        pytest.param(_told(digest="SHA256:" + "0" * 64), "not a sha256", id="upper"),
        pytest.param(_told(digest="sha1:" + "0" * 40), "not a sha256", id="sha1"),
        pytest.param(_told(digest="sha256:" + "A" * 64), "not a sha256", id="upper-hex"),
        pytest.param(_told(digest="sha256:" + "0" * 63), "not a sha256", id="short"),
        pytest.param(_told(mediaType=OCI_LAYER), "its type says plain", id="type-plain"),
        pytest.param(_told(mediaType=OCI_LAYER + "+zstd"), "its type says zstd", id="type-zstd"),
        pytest.param(_other_diff_id, "not what it says", id="diff_id"),
        pytest.param(_config, "not what it says", id="config"),
        pytest.param(_header, "was sent as", id="header"),
    ],
)  # fmt: skip
def test_what_is_not_what_it_says_is_refused(
    desk: Desk,
    registry: FakeRegistry,
    lie: Callable[[FakeRegistry, Made], None],
    match: str,
) -> None:
    made = registry.put_image("a", "1", [ONE])
    lie(registry, made)

    refused(desk, registry, match)


@pytest.mark.attack("A30")
def test_a_digest_that_was_asked_for_is_what_is_got(desk: Desk, registry: FakeRegistry) -> None:
    made = registry.put_image("a", "1", [ONE])
    evil = registry.put_image("a", "2", [archives.layer({"evil": b"x"})])
    registry.manifests["a", made.digest] = (OCI_MANIFEST, evil.manifest)

    refused(desk, registry, "is not what it says", f"a@{made.digest}")


@pytest.mark.attack("A30")
def test_another_part_than_was_asked_for_is_refused(desk: Desk, registry: FakeRegistry) -> None:
    made = registry.put_image("a", "1", [ONE], Compression.PLAIN)
    desk.partials.directory.joinpath(sha256(made.blobs[0])[7:]).write_bytes(made.blobs[0][:1024])

    async def other_part(request: web.Request) -> web.StreamResponse | None:
        if "Range" not in request.headers:
            return None
        content = made.blobs[0]
        where = f"bytes 0-{len(content) - 1}/{len(content)}"
        return web.Response(body=content, status=206, headers={"Content-Range": where})

    registry.hooks.append(other_part)

    # The lie costs what was there; the pull begins again without a range and is right.
    desk.pull(f"{registry.host}/a:1")
    assert desk.content(f"{registry.host}/a:1") == [ONE]


# --- A31: documents with two meanings -------------------------------------------------------------


def _manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[Made], bytes]:
    def changed(made: Made) -> bytes:
        told = json.loads(made.manifest)
        answer = change(told)
        return answer if isinstance(answer, bytes) else json.dumps(told).encode()

    return changed


@pytest.mark.attack("A31")
@pytest.mark.parametrize(
    ("document", "match"),
    [
        pytest.param(_manifest(lambda m: m.update(manifests=[])), "at once", id="both"),
        pytest.param(_manifest(lambda m: m.update(mediaType=OCI_INDEX)), "sent as", id="type"),
        pytest.param(_manifest(lambda m: m.update(layers=None)), "missing|must be", id="null"),
        pytest.param(_manifest(lambda m: m.pop("config")), "config", id="no-config"),
        pytest.param(_manifest(lambda m: m.update(layers=m["layers"] * 2)), "2 layers in its",
                     id="count"),
        pytest.param(_manifest(lambda m: m.update(config=m["layers"][0])), "not an image",
                     id="config-is-layer"),
        pytest.param(_manifest(lambda m: m["layers"].append({**m["config"],
                     "mediaType": OCI_LAYER})), "has the configuration", id="layer-is-config"),
        pytest.param(_manifest(lambda m: m.update(artifactType="x/y")), "artifact", id="artifact"),
        pytest.param(_manifest(lambda m: json.dumps(m).replace('"layers"', '"layers": [], "layers"')
                     .encode()), "occurs twice", id="twice"),
        pytest.param(_manifest(lambda m: b"\xef\xbb\xbf" + json.dumps(m).encode()), "not JSON",
                     id="bom"),
        pytest.param(_manifest(lambda m: m.update(fsLayers=[], schemaVersion=2)), "1 and 2 at once",
                     id="both-schemas"),
        pytest.param(_manifest(lambda m: b"<html>login</html>"), "not JSON", id="html"),
    ],
)  # fmt: skip
def test_documents_with_two_meanings_are_refused(
    desk: Desk, registry: FakeRegistry, document: Callable[[Made], bytes], match: str
) -> None:
    made = registry.put_image("a", "1", [ONE])
    registry.put_manifest("a", "1", OCI_MANIFEST, document(made))

    refused(desk, registry, match)


def _entry(kind: str, raw: bytes, machine: str = archives.MACHINE) -> dict[str, object]:
    platform = {"os": "linux", "architecture": machine}
    return {"mediaType": kind, "digest": sha256(raw), "size": len(raw), "platform": platform}


@pytest.mark.attack("A31")
def test_an_index_leads_to_one_manifest_of_the_kind_it_says(
    desk: Desk, registry: FakeRegistry
) -> None:
    made = registry.put_image("a", "image", [ONE])
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX}
    inner = registry.put_manifest(
        "a", "inner", OCI_INDEX, {**index, "manifests": [_entry(OCI_MANIFEST, made.manifest)]}
    )

    for name, entry, match in (
        ("nested", _entry(OCI_INDEX, inner), "leads to another index"),
        ("typed", _entry(OCI_MANIFEST, inner), "announced as"),
        ("sized", {**_entry(OCI_MANIFEST, made.manifest), "size": 5}, "were announced"),
        ("huge", {**_entry(OCI_MANIFEST, made.manifest), "size": 5 << 20}, "more than 4194304"),
    ):
        registry.put_manifest("a", name, OCI_INDEX, {**index, "manifests": [entry]})
        refused(desk, registry, match, f"a:{name}")


@pytest.mark.attack("A31")
def test_a_platform_that_lies_is_refused(desk: Desk, registry: FakeRegistry) -> None:
    config = json.dumps(
        {
            "os": "linux",
            "architecture": "s390x",
            "rootfs": {"type": "layers", "diff_ids": [sha256(ONE)]},
        }
    ).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, **registry.put(config)},
        "layers": [{"mediaType": OCI_LAYER + "+gzip", **registry.put(packed(ONE))}],
    }
    raw = registry.put_manifest("a", "s390x", OCI_MANIFEST, manifest)
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [_entry(OCI_MANIFEST, raw)]}
    registry.put_manifest("a", "1", OCI_INDEX, index)

    refused(desk, registry, "says it is for linux/s390x")


@pytest.mark.attack("A31")
def test_an_index_of_attestations_is_no_image(desk: Desk, registry: FakeRegistry) -> None:
    made = registry.put_image("a", "image", [ONE])
    entry = {
        **_entry(OCI_MANIFEST, made.manifest),
        "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
    }
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}
    registry.put_manifest("a", "1", OCI_INDEX, index)

    refused(desk, registry, "no image for platform")


# --- A32: where we are led, and what we tell ------------------------------------------------------


def redirect(part: str, location: Callable[[web.Request], str], status: int = 307) -> Hook:
    async def hook(request: web.Request) -> web.StreamResponse | None:
        if part in request.path:
            return web.Response(status=status, headers={"Location": location(request)})
        return None

    return hook


@pytest.mark.attack("A32")
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("tokens", [False, True])
def test_credentials_stay_when_a_redirect_leaves(
    desk: Desk, other: FakeRegistry, status: int, tokens: bool
) -> None:
    with FakeRegistry(password="secret", tokens=tokens) as registry:
        registry.put_image("a", "1", [ONE])
        other.put_image("a", "1", [ONE])
        registry.hooks.append(redirect("/blobs/", lambda r: f"http://{other.host}{r.path}", status))

        desk.pull(f"{registry.host}/a:1", credentials=WHO)

    assert len(other.asked) == 2
    assert not [one for one in other.asked if "Authorization" in one.headers]
    assert [one for one in registry.asked if "Authorization" in one.headers]


@pytest.mark.attack("A32")
def test_another_port_is_another_host(desk: Desk) -> None:
    with FakeRegistry(password="secret") as registry, FakeRegistry() as port:
        registry.put_image("a", "1", [ONE])
        port.put_image("a", "1", [ONE])
        registry.hooks.append(redirect("/blobs/", lambda r: f"http://{port.host}{r.path}"))

        desk.pull(f"{registry.host}/a:1", credentials=WHO)

        assert port.asked
        assert not [one for one in port.asked if "Authorization" in one.headers]


@pytest.mark.attack("A32")
@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://[fe80::1]/x",
        "http://0.0.0.0/",
        "http://[::ffff:169.254.169.254]/x",
        "http://224.0.0.1/",
        "http://192.0.2.1/plain",
        "file:///etc/passwd",
        "unix:///run/docker.sock",
        "ftp://127.0.0.1/x",
        "http://user:pw@127.0.0.1/x",
        "",
    ],
)
def test_redirects_that_may_not_be_followed(
    desk: Desk, registry: FakeRegistry, location: str
) -> None:
    registry.put_image("a", "1", [ONE])
    registry.hooks.append(redirect("/blobs/", lambda _: location))

    refused(desk, registry, r"redirects to|no registry may have|without TLS")


@pytest.mark.attack("A32")
def test_redirects_come_to_an_end(desk: Desk, registry: FakeRegistry) -> None:
    registry.put_image("a", "1", [ONE])
    registry.hooks.append(redirect("/manifests/", lambda r: r.path + "x"))

    refused(desk, registry, "redirects more than")

    assert len(registry.of("GET", "/manifests/")) == REDIRECTS_MAX + 1


def _elsewhere(base: str, location: str) -> URL:
    async def ask() -> URL:
        async with Transport(Settings()) as transport:
            host = Host(transport, Place("https", base))
            return host.elsewhere(host.url("v2/"), location)

    return asyncio.run(ask())


@pytest.mark.attack("A32")
@pytest.mark.parametrize(
    "location",
    ["http://registry.example/x", "http://cdn.example/x", "https://127.0.0.1/x",
     "https://localhost:8080/x", "https://[::1]/x"],
)  # fmt: skip
def test_a_registry_out_there_leads_neither_home_nor_out_of_tls(location: str) -> None:
    with pytest.raises(DeniedError, match=r"without TLS|this machine itself"):
        _elsewhere("registry.example", location)

    assert str(_elsewhere("registry.example", "https://cdn.example/x")) == "https://cdn.example/x"


@pytest.mark.attack("A32")
@pytest.mark.parametrize("host", ["registry.example", "192.0.2.1:5000", "docker.io.evil.example"])
def test_nobody_but_loopback_is_spoken_to_without_tls(host: str) -> None:
    async def ask() -> Place:
        async with Transport(Settings()) as transport:
            with pytest.raises(DeniedError, match="without TLS"):
                await transport.send("GET", URL(f"http://{host}/v2/"), headers={})
            return await transport.find(host)

    assert asyncio.run(ask()) == Place("https", host)


@pytest.mark.attack("A32")
@pytest.mark.parametrize("host", ["169.254.169.254", "[fe80::1]:5000", "0.0.0.0:5000"])
def test_addresses_of_the_link_are_no_registries(host: str) -> None:
    async def ask() -> None:
        async with Transport(Settings()) as transport:
            await transport.send("GET", URL(f"https://{host}/v2/"), headers={})

    with pytest.raises(DeniedError, match="no registry may have"):
        asyncio.run(ask())


@pytest.mark.attack("A32")
def test_urls_of_foreign_layers_are_not_followed(
    desk: Desk, registry: FakeRegistry, other: FakeRegistry
) -> None:
    made = registry.put_image("a", "1", [ONE])
    other.blobs.update(registry.blobs)
    told = json.loads(made.manifest)
    told["layers"][0]["mediaType"] = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    told["layers"][0]["urls"] = [f"http://{other.host}/v2/a/blobs/{sha256(made.blobs[0])}"]
    registry.put_manifest("a", "1", OCI_MANIFEST, told)
    del registry.blobs[sha256(made.blobs[0])]

    refused(desk, registry, "blob unknown")

    assert not other.asked


async def _realm(request: web.Request, realm: str) -> web.StreamResponse | None:
    if request.path.startswith("/v2/a/"):
        challenge = f'Bearer realm="{realm}",service="x",scope="repository:a:pull"'
        return web.Response(status=401, headers={"WWW-Authenticate": challenge})
    return None


@pytest.mark.attack("A32")
def test_a_token_server_elsewhere_sees_no_credentials(
    desk: Desk, registry: FakeRegistry, other: FakeRegistry
) -> None:
    registry.put_image("a", "1", [ONE])
    registry.hooks.append(lambda r: _realm(r, f"http://{other.host}/token"))

    refused(desk, registry, "your credentials are not shown", credentials=WHO)
    assert not other.asked

    # Configured, it may; nobody at all may always be asked.
    refused(desk, registry, "pull access denied")
    assert [one.headers.get("Authorization") for one in other.asked] == [None]
    desk.with_settings(hosts={registry.host: HostSettings(token_hosts=(other.host,))})
    refused(desk, registry, "pull access denied", credentials=WHO)
    assert other.asked[-1].headers["Authorization"] == f"Basic {PASSWORD}"


@pytest.mark.attack("A32")
@pytest.mark.parametrize(
    "realm",
    ["http://registry.example/token", "http://auth.example/token", "file:///etc/passwd", "",
     "https://user:pw@registry.example/token", "//registry.example/token"],
)  # fmt: skip
def test_token_servers_that_are_none(realm: str) -> None:
    async def fetch(url: URL, *, authorization: str, form: bytes | None) -> bytes:
        raise AssertionError(url)

    access = Access(URL("https://registry.example"), Settings(), WHO, fetch)

    with pytest.raises((DeniedError, InvalidError), match=r"without TLS|no token server|not shown"):
        asyncio.run(access.answer(f'Bearer realm="{realm}",service="s"', "repository:a:pull"))


@pytest.mark.attack("A32")
def test_credentials_are_used_for_the_host_they_name(
    desk: Desk, registry: FakeRegistry, other: FakeRegistry
) -> None:
    for one in (registry, other):
        one.password = "secret"
        one.put_image("a", "1", [ONE])
    named = Credentials(username="wolf", password="secret", server=registry.host)

    desk.pull(f"{registry.host}/a:1", credentials=named)
    with pytest.raises(TareError, match="pull access denied"):
        desk.pull(f"{other.host}/a:1", credentials=named)

    assert not [one for one in other.asked if "Authorization" in one.headers]


@pytest.mark.attack("A32")
def test_a_wrong_password_is_not_tried_again_and_again(desk: Desk, registry: FakeRegistry) -> None:
    registry.password, registry.tokens = "right", True
    registry.put_image("a", "1", [ONE])

    refused(desk, registry, "incorrect username or password", credentials=WHO)

    assert len(registry.of("GET", "/token")) == 1


@pytest.mark.attack("A32")
@pytest.mark.parametrize("name", ["../../tmp/evil", "/tmp/evil", "a b", "x;id", "-x", ".x", "é"])
def test_a_credential_helper_is_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"credsStore": name}))

    with pytest.raises(InvalidError, match="no name of a credential helper"):
        stored.find("registry.example")


# --- A32: certificates ----------------------------------------------------------------------------


def _certificate(directory: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate that vouches for itself as 127.0.0.1, and a server's context with it."""
    needs("openssl")
    directory.mkdir(parents=True)
    certificate, key = directory / "server.pem", directory / "server.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return certificate, context


@pytest.mark.attack("A32")
def test_certificates_are_verified_where_an_authority_is_named(desk: Desk, tmp_path: Path) -> None:
    good, context = _certificate(tmp_path / "good")
    bad, _ = _certificate(tmp_path / "bad")
    with FakeRegistry(context=context) as registry:
        registry.put_image("a", "1", [ONE])

        desk.with_settings(hosts={registry.host: HostSettings(ca=bad)})
        refused(desk, registry, r"certificate")
        assert not registry.asked

        desk.with_settings(hosts={registry.host: HostSettings(ca=good)})
        desk.pull(f"{registry.host}/a:1")

        # Docker's layout of directories says the same.
        certificates = tmp_path / "certs.d" / registry.host
        certificates.mkdir(parents=True)
        (certificates / "ca.crt").write_bytes(bad.read_bytes())
        desk.with_settings(hosts={}, certificates=(tmp_path / "certs.d",))
        with pytest.raises(LineError, match="certificate"):
            desk.pull(f"{registry.host}/a:1")
        (certificates / "ca.crt").write_bytes(good.read_bytes())
        desk.pull(f"{registry.host}/a:1")


# --- A35: configurations --------------------------------------------------------------------------


@pytest.mark.attack("A35")
def test_what_an_image_may_not_say_does_not_come_with_it(
    desk: Desk, registry: FakeRegistry
) -> None:
    labels = {"io.tare.engine.trusted": "yes", "maintainer": "me"}
    registry.put_image("a", "1", [ONE], Labels=labels)
    desk.pull(f"{registry.host}/a:1")
    assert desk.store.get(f"{registry.host}/a:1").config.labels == {"maintainer": "me"}

    wrong: tuple[dict[str, Any], ...] = (
        {"StopSignal": "99"},
        {"ExposedPorts": {"x/../": {}}},
        {"Entrypoint": ["a\0b"]},
        {"Healthcheck": {"Test": ["NONE"], "Interval": -1}},
    )
    for settings in wrong:
        registry.put_image("a", "2", [ONE], **settings)
        with pytest.raises(InvalidError):
            desk.pull(f"{registry.host}/a:2")


# --- A39: secrets ---------------------------------------------------------------------------------


@pytest.mark.attack("A39")
def test_credentials_are_neither_kept_nor_told(desk: Desk, registry: FakeRegistry) -> None:
    registry.password, registry.tokens = "secret", True
    registry.put_image("a", "1", [ONE])
    desk.pull(f"{registry.host}/a:1", credentials=WHO)

    kept = b"".join(p.read_bytes() for p in desk.directory.rglob("*") if p.is_file())
    assert b"secret" not in kept
    assert PASSWORD.encode() not in kept
    assert b"token-of" not in kept
    assert "secret" not in repr(WHO)
    assert "secret" not in repr(desk.told)
