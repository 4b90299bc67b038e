"""Where images come from: what is noted when one is built, its bill of materials, its attestations.

Beside an image that was built lie its *recipe* (what the client said, so that the client can say
it again, and what it was built on, by digest), the annotations for its manifest, and, if they were
asked for, a bill of materials and a provenance statement. Those two follow the image to registries,
as referrers of its manifest.

Not for: what is out of date (engine.updates).
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tare.errors import FailedError, InvalidError
from tare.image import notes
from tare.image.moments import format_time
from tare.image.registry import companions
from tare.image.registry.companions import Companion
from tare.model import strict_json
from tare.model.digest import Digest
from tare.model.oci import MediaType

if TYPE_CHECKING:
    from tare.build.provenance import Evidence
    from tare.build.request import BuildRequest, Built
    from tare.build.sbom.documents import About, Format
    from tare.engine.images import Images
    from tare.image.registry.client import Repository
    from tare.image.store import Image, ImageStore
    from tare.model.oci import Descriptor

_EMPTY: Final = b"{}"
_EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
_RECIPE_MAX: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Base:
    """An image that another was built on: its name, its id and its digests in registries then."""

    name: str
    id: str
    digests: tuple[str, ...]
    base: bool


@dataclass(frozen=True, slots=True)
class Origin:
    """How an image was built: the client's own words, and what it was built on."""

    client: str
    bases: tuple[Base, ...]


async def note(images: Images, store: ImageStore, request: BuildRequest, built: Built) -> None:
    """Write down beside an image that was just built what is to be known of it."""
    assert built.id is not None and built.evidence is not None
    image, evidence = built.id, built.evidence
    await asyncio.to_thread(_note, store, request, image, evidence)
    if request.sbom:
        from tare.build.sbom.documents import Format

        form = Format(request.sbom)
        content = await bill(images, str(image), form, name=next(iter(built.names), ""))
        await asyncio.to_thread(store.notes.put, image, form.media_type, content)


def _note(store: ImageStore, request: BuildRequest, image: Digest, evidence: Evidence) -> None:
    recipe = {
        "client": request.recipe,
        "images": [
            {
                "name": one.name,
                "id": str(one.id),
                "digests": [str(digest) for digest in one.digests],
                "base": one.base,
            }
            for one in evidence.images
        ],
    }
    store.notes.put(image, notes.RECIPE, json.dumps(recipe).encode())
    store.notes.put(image, notes.ANNOTATIONS, json.dumps(evidence.annotations()).encode())
    if request.provenance:
        from tare.build.provenance import statement

        store.notes.put(image, notes.PROVENANCE, statement(request, evidence, image))


def origin(store: ImageStore, image: Digest) -> Origin | None:
    """How an image was built, if that was here; FailedError when the note cannot be read."""
    raw = store.notes.get(image, notes.RECIPE)
    if raw is None:
        return None
    try:
        top = strict_json.Fields(
            strict_json.decode(raw, "a recipe", limit=_RECIPE_MAX), f"the recipe of {image}"
        )
        bases = tuple(
            Base(
                one.text("name"),
                one.text("id"),
                tuple(one.texts("digests") or ()),
                one.boolean("base"),
            )
            for one in top.each("images", limit=1000)
        )
        return Origin(top.text("client"), bases)
    except InvalidError as error:
        raise FailedError(str(error)) from error


class Origins:
    """The use cases of what lies beside images."""

    def __init__(self, images: Images, store: ImageStore) -> None:
        self._images = images
        self._store = store

    async def bill(self, ref: str, form: Format) -> bytes:
        """The bill of materials of an image that is here; MissingError."""
        return await bill(self._images, ref, form)

    async def provenance(self, ref: str) -> bytes | None:
        """The provenance statement that was noted when it was built, if one was."""
        image = await self._images.get(ref)
        return await asyncio.to_thread(self._store.notes.get, image.id, notes.PROVENANCE)


async def bill(images: Images, ref: str, form: Format, *, name: str = "") -> bytes:
    """The bill of materials of an image that is here, made of its files as they are."""
    from tare.build.sbom.collecting import bill as made
    from tare.build.sbom.documents import About

    image = await images.get(ref)
    created = image.config.created or format_time(image.created_ns)
    about = About(image.id, name or _name(image), created)
    if not image.layers:
        return await asyncio.to_thread(_empty_bill, form, about)
    opened = await images.tree(str(image.id))
    return await asyncio.to_thread(lambda: made(opened(), form, about))


def _empty_bill(form: Format, about: About) -> bytes:
    from tare.build.sbom.documents import document
    from tare.build.sbom.inventory import Inventory

    return document(form, about, Inventory())


def _name(image: Image) -> str:
    return image.tags[0] if image.tags else str(image.id)


async def attach(
    repository: Repository, store: ImageStore, image: Digest, manifest: Descriptor, name: str
) -> list[str]:
    """Give what lies beside *image* to the registry that has its *manifest* now: which kinds."""
    given = []
    for kind in notes.ATTACHED:
        content = await asyncio.to_thread(store.notes.get, image, kind)
        if content is None:
            continue
        if kind == notes.PROVENANCE:
            from tare.build.provenance import about_manifest

            content = about_manifest(content, name, manifest.digest)
        await companions.put(repository, _referrer(kind, content, manifest))
        given.append(kind)
    return given


def _referrer(kind: str, content: bytes, subject: Descriptor) -> Companion:
    """An artifact of one blob about *subject*, as image-spec's manifest.md has it."""
    layer, empty = Digest.of(content), Digest.of(_EMPTY)
    raw = strict_json.encode(
        {
            "schemaVersion": 2,
            "mediaType": str(MediaType.OCI_MANIFEST),
            "artifactType": kind,
            "config": {"mediaType": _EMPTY_TYPE, "digest": str(empty), "size": len(_EMPTY)},
            "layers": [{"mediaType": kind, "digest": str(layer), "size": len(content)}],
            "subject": {
                "mediaType": subject.media_type,
                "digest": str(subject.digest),
                "size": subject.size,
            },
        }
    )
    return Companion(raw, {empty: _EMPTY, layer: content})
