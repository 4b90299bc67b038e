"""Signatures in archives: the member that `tare save` adds, and what other tools' layouts hold.

The member ``tare/evidence.json`` carries, for each image, the documents by which registries know it
and the signatures about them; loaders that do not know it pass over it. In OCI layouts of other
tools (``cosign save``, ``skopeo copy --all``) signatures lie among the blobs, and are found there.

Nothing read here is believed: it is evidence, to be judged. Not for: the rest of an archive
(image.archive).
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from tare.engine.trust import ATTACHED as MEMBER
from tare.errors import InvalidError, TareError
from tare.model import strict_json
from tare.model.digest import Digest
from tare.model.oci import MANIFEST_MAX
from tare.model.strict_json import Fields, Json
from tare.trust.keys import decoded
from tare.trust.signature import ARTIFACTS_MAX, Artifact, Claim, claims
from tare.trust.signature import decode as decode_artifacts
from tare.trust.signature import encode as encode_artifacts
from tare.trust.verdict import Evidence, chain

if TYPE_CHECKING:
    from tare.image.archive import Loaded
    from tare.image.store import ImageStore

_FORMAT: Final = 1
_LIMIT: Final = 32 << 20
_IMAGES_MAX: Final = 512
_DOCUMENTS_MAX: Final = 64
_CANDIDATES_MAX: Final = 200
_MARKS: Final = (b"vnd.dev.cosign.", b"vnd.dev.sigstore.bundle")

Documents = list[tuple[str, bytes]]
Artifacts = dict[Digest, list[Artifact]]


def encode(evidence: Sequence[Evidence], store: ImageStore) -> bytes:
    """The member for an archive; empty when there is nothing to carry."""
    images: list[Json] = []
    for one in evidence:
        if not any(one.artifacts.values()):
            continue
        documents: list[Json] = [
            {"mediaType": kind, "content": base64.b64encode(raw).decode("ascii")}
            for kind, raw in store.manifests(one.image)
            if Digest.of(raw) in one.subjects
        ]
        signatures: list[Json] = [
            {"subject": str(subject), "artifacts": encode_artifacts(listed)}
            for subject, listed in one.artifacts.items()
            if listed
        ]
        images.append({"config": str(one.image), "documents": documents, "signatures": signatures})
    return strict_json.encode({"format": _FORMAT, "images": images}) if images else b""


def read(image: Loaded) -> tuple[Documents, Artifacts]:
    """The documents that may lead to *image*, and what may be signatures about them."""
    documents, found = _member(image)
    blobs: dict[Digest, bytes] = {}
    for path, raw in image.documents.items():
        if path.startswith("blobs/sha256/"):
            digest = Digest.of(raw)
            if digest.hex == path.removeprefix("blobs/sha256/"):
                blobs[digest] = raw
    documents += [("", raw) for raw in blobs.values() if len(raw) <= MANIFEST_MAX]
    subjects = chain(documents, image.config.digest)
    candidates = [raw for raw in blobs.values() if any(mark in raw for mark in _MARKS)]
    for raw in candidates[:_CANDIDATES_MAX]:
        artifact = Artifact(raw, blobs)
        for subject in subjects:
            if any(isinstance(one, Claim) for one in claims(artifact, subject)):
                found.setdefault(subject, []).append(_own_blobs(artifact))
    return documents, found


def _own_blobs(artifact: Artifact) -> Artifact:
    """The artifact with the blobs that it names, and no others."""
    named = {d: raw for d, raw in artifact.blobs.items() if str(d).encode() in artifact.raw}
    return Artifact(artifact.raw, named)


def _member(image: Loaded) -> tuple[Documents, Artifacts]:
    raw = image.documents.get(MEMBER)
    documents: Documents = []
    found: Artifacts = {}
    if raw is None:
        return documents, found
    top = Fields(strict_json.decode(raw, MEMBER, limit=_LIMIT), MEMBER)
    if top.integer("format") != _FORMAT:
        raise InvalidError(f"{MEMBER} was written by another version of tare")
    for one in top.each("images", limit=_IMAGES_MAX):
        if one.text("config") != str(image.config.digest):
            continue
        for document in one.each("documents", limit=_DOCUMENTS_MAX):
            content = decoded(document.text("content"), f"a document in {MEMBER}")
            documents.append((document.text("mediaType"), content))
        for entry in one.each("signatures", limit=_DOCUMENTS_MAX):
            with contextlib.suppress(TareError):
                subject = Digest.parse(entry.text("subject"))
                listed = decode_artifacts(entry.each("artifacts", limit=ARTIFACTS_MAX))
                found.setdefault(subject, []).extend(listed)
    return documents, found
