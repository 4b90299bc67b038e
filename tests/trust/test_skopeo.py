"""skopeo and tare read one policy.json and the same signatures: their verdicts are the same."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import newer_skopeo
from harness.registry_server import Registry
from tare.image.registry import companions
from tare.image.registry.client import Repository
from tare.image.registry.companions import Companion
from tare.image.registry.settings import Settings
from tare.image.registry.transport import Host, Transport
from tare.model import oci
from tare.model.digest import Digest
from tare.model.reference import Reference
from tare.trust import signature
from tare.trust.keys import PrivateKey
from tare.trust.policy import parse
from tare.trust.ring import Ring
from tare.trust.verdict import Evidence, chain, judge

KEY = PrivateKey.generate()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    made = Registry(tmp_path_factory.mktemp("registry"))
    yield made
    made.end()


async def _put(server: Registry, path: str, artifact: signature.Artifact, tag: str) -> None:
    async with Transport(Settings()) as transport:
        place = await transport.find(server.host)
        repository = Repository(Host(transport, place, None), path, push=True)
        await companions.put(repository, Companion(artifact.raw, artifact.blobs), tag=tag)


@pytest.mark.parametrize(
    ("signed_as", "key", "identity", "good"),
    [
        ("team/app:1", KEY, "matchRepoDigestOrExact", True),
        ("team/app:1", KEY, "matchRepository", True),
        ("team/app", KEY, "matchRepository", True),
        ("team/app", KEY, "matchRepoDigestOrExact", False),
        ("team/app:2", KEY, "matchRepoDigestOrExact", False),
        ("team/other:1", KEY, "matchRepository", False),
        ("team/app:1", PrivateKey.generate(), "matchRepository", False),
        ("", KEY, "matchRepository", False),
    ],
)
@pytest.mark.attack("A33")
def test_both_come_to_the_same_verdict(
    server: Registry, tmp_path: Path, signed_as: str, key: PrivateKey, identity: str, good: bool
) -> None:
    team = f"team-{os.urandom(4).hex()}"  # every case has a namespace to itself
    text, raw = server.push_image(f"{team}/app", "1", b"a layer")
    digest = Digest.parse(text)
    name = Reference.parse(f"{server.host}/{team}/app:1")
    artifacts = []
    if signed_as:
        signed = Reference.parse(f"{server.host}/{signed_as.replace('team', team)}")
        artifacts = [signature.signed_simple(key, [signed], digest)]
        asyncio.run(_put(server, f"{team}/app", artifacts[0], signature.tag_of(digest)))
    requirement = {
        "type": "sigstoreSigned",
        "keyData": base64.b64encode(KEY.public.pem()).decode(),
        "signedIdentity": {"type": identity},
    }
    path = tmp_path / "policy.json"
    path.write_text(
        json.dumps(
            {
                "default": [{"type": "reject"}],
                "transports": {"docker": {f"{server.host}/{team}": [requirement]}},
            }
        )
    )

    manifest = oci.parse_manifest(raw)
    assert isinstance(manifest, oci.Manifest)
    image = manifest.config.digest
    evidence = Evidence(image, chain([("", raw)], image), {digest: artifacts})
    ours = judge(name, evidence, parse(path.read_bytes(), str(path), Path.read_bytes), Ring(), 0)  # type: ignore[arg-type]  # no key is a file here
    theirs, said = newer_skopeo.accepts(str(name), path, tmp_path)

    assert (ours.accepted, theirs) == (good, good), (ours.reasons, said)
