"""How an image was made, as an in-toto statement with a SLSA v1 provenance predicate.

What was asked for (without what may be secret), what everything was made of, by digest, and when.
Its subject is the image's id; when the image is pushed, its manifest in that registry joins it.

Not for: signing it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from tare import __version__
from tare.build.request import BuildRequest
from tare.build.secret_names import names_a_secret
from tare.image.moments import format_time
from tare.model.digest import Digest

Json = dict[str, object]

STATEMENT: Final = "https://in-toto.io/Statement/v1"
PREDICATE: Final = "https://slsa.dev/provenance/v1"
BUILD_TYPE: Final = "urn:tare:build:dockerfile:v1"
BASE_NAME: Final = "org.opencontainers.image.base.name"
BASE_DIGEST: Final = "org.opencontainers.image.base.digest"
WITHHELD: Final = "[withheld]"


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedImage:
    """An image that a build was made of: what it was called, which it was.

    ``digests`` are those that registries know it by under that name; ``base`` is the one that the
    result starts from.
    """

    name: str
    id: Digest
    digests: tuple[Digest, ...] = ()
    base: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a build saw of its own inputs."""

    dockerfile: str = ""
    dockerfile_digest: str = ""
    images: tuple[UsedImage, ...] = ()
    fetched: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """By address: the kind of digest (sha256, gitCommit) and the digest."""
    began_ns: int = 0
    ended_ns: int = 0

    @property
    def base(self) -> UsedImage | None:
        """What the result starts from; None of scratch."""
        return next((one for one in self.images if one.base), None)

    def annotations(self) -> dict[str, str]:
        """What a manifest says of the base (image-spec, annotations.md)."""
        base = self.base
        if base is None:
            return {}
        found = {BASE_NAME: base.name}
        if base.digests:
            found[BASE_DIGEST] = str(base.digests[0])
        return found


def arguments(given: Mapping[str, str]) -> dict[str, str]:
    """Build arguments without the values of those whose names speak of a secret."""
    return {
        name: WITHHELD if names_a_secret(name) else value for name, value in sorted(given.items())
    }


def statement(request: BuildRequest, evidence: Evidence, image: Digest) -> bytes:
    """The statement about *image*."""
    name = request.tags[0] if request.tags else str(image)
    began, ended = format_time(evidence.began_ns), format_time(evidence.ended_ns)
    external: Json = {
        "dockerfile": evidence.dockerfile,
        "target": request.target,
        "buildArgs": arguments(request.build_args),
        "labels": dict(sorted(request.labels.items())),
        "platform": request.platform,
        "network": request.network,
        "secretIds": sorted(request.secrets),
        "sshIds": sorted(request.agents),
    }
    if request.remote:
        external["context"] = request.remote.partition("?")[0]
    if request.epoch is not None:
        external["sourceDateEpoch"] = request.epoch
    body: Json = {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": image.hex}}],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {k: v for k, v in external.items() if v not in ("", [], {})},
                "internalParameters": {"noCache": request.no_cache, "pull": request.pull},
                "resolvedDependencies": list(_dependencies(evidence)),
            },
            "runDetails": {
                "builder": {"id": "urn:tare:engine", "version": {"tare": __version__}},
                "metadata": {"startedOn": began, "finishedOn": ended},
            },
        },
    }
    return _encoded(body)


def _dependencies(evidence: Evidence) -> Iterable[Json]:
    if evidence.dockerfile_digest:
        yield {
            "name": "dockerfile",
            "uri": f"file:{evidence.dockerfile}",
            "digest": {"sha256": evidence.dockerfile_digest},
        }
    for image in evidence.images:
        digest = image.digests[0] if image.digests else image.id
        yield {
            "name": "base" if image.base else "image",
            "uri": f"docker-image://{image.name}",
            "digest": {"sha256": digest.hex},
            "annotations": {"imageId": str(image.id)},
        }
    for address, (kind, told) in sorted(evidence.fetched.items()):
        # What follows the question mark is often a key.
        yield {"name": "fetched", "uri": address.partition("?")[0], "digest": {kind: told}}


def about_manifest(raw: bytes, name: str, manifest: Digest) -> bytes:
    """The statement with a manifest of the image among its subjects, first."""
    body = json.loads(raw)
    own = [one for one in body["subject"] if one["digest"] != {"sha256": manifest.hex}]
    body["subject"] = [{"name": name, "digest": {"sha256": manifest.hex}}, *own]
    return _encoded(body)


def _encoded(body: Json) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
