"""A manifest as a registry sees it: bytes, their type, and what they refer to.

A registry keeps artifacts of every kind, so less is asked of a document here than in
``oci.parse_manifest``, which reads what is to be run; but nothing may be read in two ways
(attack A31), and all that it refers to has a digest and a size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Self

from tare.errors import InvalidError
from tare.model import strict_json
from tare.model.distribution import Code, ContentDigest, DistributionError
from tare.model.oci import INDEX_TYPES, MANIFEST_MAX, MANIFEST_TYPES, MediaType
from tare.model.strict_json import Fields

TYPES: Final = INDEX_TYPES | MANIFEST_TYPES
_REFERENCES_MAX: Final = 4096
_SIZE_MAX: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Link:
    """What a document says of another. ``elsewhere``: the registry need not have it."""

    media_type: str
    digest: ContentDigest
    size: int
    elsewhere: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredManifest:
    """One document that a registry accepts; ``raw`` is what was sent, byte by byte."""

    media_type: MediaType
    raw: bytes
    blobs: tuple[Link, ...] = ()
    manifests: tuple[Link, ...] = ()
    subject: Link | None = None
    artifact_type: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, raw: bytes, content_type: str) -> Self:
        """Read it; MANIFEST_INVALID says what is wrong.

        *content_type* decides, and what the document says of itself must agree with it.
        """
        try:
            return cls._parse(raw, content_type.partition(";")[0].strip())
        except InvalidError as error:
            raise DistributionError(Code.MANIFEST_INVALID, str(error)) from None

    @classmethod
    def _parse(cls, raw: bytes, told: str) -> Self:
        top = Fields(strict_json.decode(raw, "manifest", limit=MANIFEST_MAX), "manifest")
        top.only_spelled(
            "schemaVersion", "mediaType", "config", "layers", "manifests", "subject", "artifactType"
        )
        if top.integer("schemaVersion", required=True) != 2 or "fsLayers" in top:
            raise InvalidError("manifest: only schema version 2 is supported")
        kind = _type(top, told)
        artifact_type = top.text("artifactType")
        blobs: tuple[Link, ...] = ()
        manifests: tuple[Link, ...] = ()
        if kind in INDEX_TYPES:
            manifests = _links(top, "manifests")
        else:
            config = _link(top.fields("config", required=True))
            blobs = (config, *_links(top, "layers"))
            artifact_type = artifact_type or config.media_type
        return cls(
            media_type=kind,
            raw=raw,
            blobs=blobs,
            manifests=manifests,
            subject=_link(top.fields("subject")) if "subject" in top else None,
            artifact_type=artifact_type,
            annotations=top.mapping("annotations"),
        )


def _type(top: Fields, told: str) -> MediaType:
    own = top.text("mediaType")
    if told and own and told != own:
        top.refuse("mediaType", f"is {own[:80]!a}, but it was sent as {told[:80]!a}")
    name = told or own
    if not name:
        raise InvalidError("manifest: neither it nor its Content-Type says what it is")
    if name not in TYPES:
        raise InvalidError(f"manifest: the type {name[:80]!a} is not supported")
    kind = MediaType(name)
    if "manifests" in top and ("layers" in top or "config" in top):
        raise InvalidError("manifest: it is an index and an image at once")
    return kind


def _links(top: Fields, name: str) -> tuple[Link, ...]:
    return tuple(map(_link, top.each(name, limit=_REFERENCES_MAX, required=True)))


def _link(fields: Fields) -> Link:
    media_type = fields.text("mediaType", required=True)
    try:
        digest = ContentDigest.parse(fields.text("digest", required=True))
    except DistributionError as error:
        fields.refuse("digest", f"is {error}")
    return Link(
        media_type=media_type,
        digest=digest,
        size=fields.integer("size", required=True, maximum=_SIZE_MAX),
        elsewhere="foreign" in media_type or "nondistributable" in media_type,
    )
