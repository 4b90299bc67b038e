"""What tare signs, Debian's cosign verifies, and the other way round: on our own registry."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.cosign import Cosign
from harness.registry_server import MANIFEST, Registry
from tare.image.registry import companions
from tare.image.registry.client import Repository
from tare.image.registry.companions import Companion
from tare.image.registry.settings import Settings
from tare.image.registry.transport import Host, Transport
from tare.model.digest import Digest
from tare.model.reference import Reference
from tare.model.strict_json import Json
from tare.trust import signature
from tare.trust.keys import PrivateKey, PublicKey
from tare.trust.signature import Artifact, Claim, Form, claims

NOW = "2026-11-23T12:00:00Z"


@pytest.fixture
def cosign(tmp_path: Path) -> Cosign:
    return Cosign(tmp_path / "cosign")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Registry]:
    made = Registry(tmp_path / "registry")
    yield made
    made.end()


class Shelf:
    """One image in one repository of the registry, and what accompanies it."""

    def __init__(self, server: Registry) -> None:
        self.server = server
        text, self.raw = server.push_image("team/app", "1", b"a layer")
        self.digest = Digest.parse(text)
        self.name = Reference.parse(f"{server.host}/team/app:1")
        self.image = f"{server.host}/team/app@{self.digest}"
        self.subject: dict[str, Json] = {
            "mediaType": MANIFEST,
            "size": len(self.raw),
            "digest": text,
        }

    def fetch(self) -> list[Artifact]:
        async def work() -> list[Companion]:
            async with Transport(Settings()) as transport:
                return await companions.fetch(await self._repository(transport), self.digest)

        return [Artifact(one.raw, one.blobs) for one in asyncio.run(work())]

    def put(self, artifact: Artifact, tag: str = "") -> None:
        async def work() -> None:
            async with Transport(Settings()) as transport:
                repository = await self._repository(transport)
                companion = Companion(artifact.raw, artifact.blobs)
                await companions.put(repository, companion, tag=tag)

        asyncio.run(work())

    async def _repository(self, transport: Transport) -> Repository:
        place = await transport.find(self.server.host)
        return Repository(Host(transport, place, None), "team/app", push=True)

    def put_simple(self, key: PrivateKey, name: Reference | None = None) -> None:
        names = [name or Reference(self.name.domain, self.name.path), self.name]
        artifact = signature.signed_simple(key, names, self.digest)
        self.put(artifact, signature.tag_of(self.digest))

    def put_bundle(self, key: PrivateKey) -> None:
        self.put(signature.signed_bundle(key, self.name, self.digest, self.subject, NOW))

    def claims(self) -> list[Claim]:
        found = [c for artifact in self.fetch() for c in claims(artifact, self.digest)]
        assert all(isinstance(c, Claim) for c in found), found
        return [c for c in found if isinstance(c, Claim)]


def test_cosign_reads_our_keys_and_we_read_its(cosign: Cosign) -> None:
    private, public = cosign.key_pair()

    read = PrivateKey.parse(private, b"hunter2")
    (cosign.home / "ours.key").write_bytes(read.encrypted(b"other"))
    shown = cosign.run("public-key", "--key=ours.key", password="other")

    assert read.public == PublicKey.parse(public)
    assert (shown.returncode, shown.stdout.encode()) == (0, public)


def test_we_verify_what_cosign_signs(cosign: Cosign, server: Registry) -> None:
    shelf = Shelf(server)
    _, public = cosign.key_pair()
    cosign.sign(shelf.image)

    [claim] = shelf.claims()

    assert claim.form is Form.SIMPLE
    assert claim.signed_by(PublicKey.parse(public))
    assert claim.name == Reference(shelf.name.domain, shelf.name.path)


def test_we_verify_what_cosign_signs_as_a_referrer(cosign: Cosign, server: Registry) -> None:
    shelf = Shelf(server)
    _, public = cosign.key_pair()
    done = cosign.run(
        "sign", "--key=cosign.key", "--tlog-upload=false",
        "--registry-referrers-mode=oci-1-1", shelf.image, COSIGN_EXPERIMENTAL="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

    [claim] = shelf.claims()

    assert claim.signed_by(PublicKey.parse(public))


def test_cosign_verifies_what_we_sign(cosign: Cosign, server: Registry) -> None:
    shelf = Shelf(server)
    private, _ = cosign.key_pair()
    assert not cosign.verifies(shelf.image)

    shelf.put_simple(PrivateKey.parse(private, b"hunter2"))

    assert cosign.verifies(shelf.image)


def test_cosign_verifies_our_bundles(cosign: Cosign, server: Registry) -> None:
    shelf = Shelf(server)
    private, _ = cosign.key_pair()
    empty = {"mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1"}
    (cosign.home / "root.json").write_text(json.dumps(empty))
    shelf.put_bundle(PrivateKey.parse(private, b"hunter2"))

    done = cosign.run(
        "verify-attestation", "--new-bundle-format", "--trusted-root=root.json",
        "--key=cosign.pub", "--insecure-ignore-tlog=true",
        "--type=https://sigstore.dev/cosign/sign/v1", shelf.image,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr


def test_signatures_of_both_tools_stay_side_by_side(cosign: Cosign, server: Registry) -> None:
    shelf = Shelf(server)
    own = PrivateKey.generate()
    _, public = cosign.key_pair()
    cosign.sign(shelf.image)
    [theirs] = shelf.fetch()

    ours = signature.signed_simple(own, [shelf.name], shelf.digest)
    shelf.put(signature.joined(theirs, ours), signature.tag_of(shelf.digest))
    shelf.put_bundle(own)

    assert cosign.verifies(shelf.image)
    assert sum(claim.signed_by(own.public) for claim in shelf.claims()) == 2
    assert sum(claim.signed_by(PublicKey.parse(public)) for claim in shelf.claims()) == 1


@pytest.mark.attack("A33")
def test_what_cosign_accepts_under_another_name_is_named_here(
    cosign: Cosign, server: Registry
) -> None:
    shelf = Shelf(server)
    private, _ = cosign.key_pair()
    key = PrivateKey.parse(private, b"hunter2")
    other = Reference.parse(f"{server.host}/team/other:1")
    artifact = signature.signed_simple(key, [other], shelf.digest)
    shelf.put(artifact, signature.tag_of(shelf.digest))

    [claim] = shelf.claims()

    assert cosign.verifies(shelf.image)  # what cosign leaves open
    assert claim.name == other  # and the policy compares
