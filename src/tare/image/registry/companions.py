"""What accompanies an image in its registry: signatures, as documents with small blobs.

Looked for in the two places where they are kept: the tag ``sha256-HEX.sig`` beside the image, and
the list of its referrers (distribution-spec 1.1; where a registry has no such list, the index
with the tag ``sha256-HEX``). All of it is bounded: 50 documents, 50 blobs each, 8 MiB together.

Not for: what a signature means (``trust``), or keeping it (``engine``).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from tare.errors import InvalidError, TareError
from tare.image.registry.client import Document, Repository
from tare.image.registry.transport import AnswerError
from tare.model import strict_json
from tare.model.digest import Digest
from tare.model.oci import MANIFEST_MAX, Descriptor, MediaType
from tare.model.strict_json import Fields, Json

DOCUMENTS_MAX: Final = 50
_BLOBS_MAX: Final = 50
_TOTAL: Final = 8 << 20
_REFERRERS_MAX: Final = 1000
_KINDS: Final = ("application/vnd.dev.sigstore.bundle", "application/vnd.dev.cosign.artifact.sig")
"""How the types of those referrers begin that are worth fetching."""


@dataclass(frozen=True, slots=True)
class Companion:
    """A document that accompanies an image, and its blobs, each verified by its digest."""

    raw: bytes
    blobs: Mapping[Digest, bytes] = field(default_factory=dict)


class _Allowance:
    """How much may still be fetched."""

    def __init__(self) -> None:
        self.left = _TOTAL

    def take(self, size: int, what: str) -> None:
        """Count *size* bytes; InvalidError when it is too much."""
        self.left -= size
        if self.left < 0:
            raise InvalidError(f"{what}: more than {_TOTAL >> 20} MiB of signatures")


async def fetch(repository: Repository, subject: Digest) -> list[Companion]:
    """What accompanies *subject*; a document that is broken is left out, a dead line is raised."""
    allowance = _Allowance()
    tagged, listed = await asyncio.gather(
        _optional(repository, f"sha256-{subject.hex}.sig"), _referrers(repository, subject)
    )
    found = [tagged] if tagged is not None else []
    for descriptor in listed[:DOCUMENTS_MAX]:
        with contextlib.suppress(InvalidError, AnswerError):
            found.append(await repository.manifest(descriptor))
    companions = []
    for document in found:
        with contextlib.suppress(InvalidError, AnswerError):
            companions.append(await _whole(repository, document, allowance))
    return companions


async def _optional(repository: Repository, reference: str) -> Document | None:
    try:
        return await repository.manifest(reference)
    except AnswerError as error:
        if error.status in (400, 404):
            return None
        raise


async def _referrers(repository: Repository, subject: Digest) -> list[Descriptor]:
    """Those referrers that may be signatures."""
    listed = await repository.referrers(subject)
    if listed is None:
        listed = await _optional(repository, f"sha256-{subject.hex}")
    if listed is None:
        return []
    what = f"the list of what refers to {subject}"
    top = Fields(strict_json.decode(listed.raw, what, limit=MANIFEST_MAX), what)
    found = []
    for one in top.each("manifests", limit=_REFERRERS_MAX):
        kind = one.text("artifactType")
        if kind.startswith(_KINDS):
            found.append(
                Descriptor(
                    media_type=one.text("mediaType", required=True),
                    digest=Digest.parse(one.text("digest", required=True)),
                    size=one.integer("size", required=True, maximum=MANIFEST_MAX),
                )
            )
    return found


async def _whole(repository: Repository, document: Document, allowance: _Allowance) -> Companion:
    what = f"a signature in {repository}"
    allowance.take(len(document.raw), what)
    top = Fields(strict_json.decode(document.raw, what, limit=MANIFEST_MAX), what)
    blobs: dict[Digest, bytes] = {}
    layers = top.each("layers", limit=_BLOBS_MAX, required=True)
    for layer in (*layers, top.fields("config", required=True)):
        descriptor = Descriptor(
            media_type=layer.text("mediaType", required=True),
            digest=Digest.parse(layer.text("digest", required=True)),
            size=layer.integer("size", required=True, maximum=_TOTAL),
        )
        if descriptor.digest not in blobs:
            allowance.take(descriptor.size, what)
            blobs[descriptor.digest] = await repository.config(descriptor)
    return Companion(document.raw, blobs)


async def put(repository: Repository, companion: Companion, *, tag: str = "") -> None:
    """Give *companion* to the registry: by *tag*, or as a referrer of its subject."""
    for digest, content in companion.blobs.items():
        if await repository.has_blob(digest) is None:
            where, _ = await repository.begin_upload()
            await repository.finish_upload(where, digest, _once(content), len(content))
    document = Document(MediaType.OCI_MANIFEST, companion.raw)
    await repository.put_manifest(tag or document.digest, document)
    if not tag:
        await _listed(repository, document)


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def _listed(repository: Repository, document: Document) -> None:
    """See that a referrer is found: registries that keep no list have an index for it."""
    what = "the signature document"
    top = Fields(strict_json.decode(document.raw, what, limit=MANIFEST_MAX), what)
    subject = Digest.parse(top.fields("subject", required=True).text("digest", required=True))
    if await repository.referrers(subject) is not None:
        return
    tag = f"sha256-{subject.hex}"
    manifests: list[Json] = []
    with contextlib.suppress(TareError):
        old = await repository.manifest(tag)
        kept = strict_json.decode(old.raw, what, limit=MANIFEST_MAX).get("manifests")
        manifests = kept if isinstance(kept, list) else []
    own = str(document.digest)
    manifests = [m for m in manifests if not (isinstance(m, dict) and m.get("digest") == own)]
    manifests.append(
        {
            "mediaType": str(MediaType.OCI_MANIFEST),
            "digest": own,
            "size": len(document.raw),
            "artifactType": top.text("artifactType"),
            "annotations": {**top.mapping("annotations")},
        }
    )
    raw = strict_json.encode(
        {"schemaVersion": 2, "mediaType": str(MediaType.OCI_INDEX), "manifests": manifests}
    )
    await repository.put_manifest(tag, Document(MediaType.OCI_INDEX, raw))


async def tagged(repository: Repository, tag: str) -> Companion | None:
    """The document of *tag* with its blobs, if there is one."""
    document = await _optional(repository, tag)
    return None if document is None else await _whole(repository, document, _Allowance())
