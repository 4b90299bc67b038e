"""Manifests: pulled, pushed, deleted, by tag and by digest.

What was pushed wins over an image of the engine's of the same name. A manifest that needs blobs
which only the engine has is completed with them: a client that asked was told that they are there.
"""

from __future__ import annotations

import asyncio

from aiohttp import web

from tare.api.registry.call import Call, answer, described
from tare.image.registry_store.engine_images import EngineImages
from tare.image.registry_store.store import Document, discarding
from tare.model.distribution import (
    Code,
    ContentDigest,
    DistributionError,
    manifest_reference,
    repository_name,
)
from tare.model.oci import MANIFEST_MAX
from tare.model.stored_manifest import Link, StoredManifest


async def get(call: Call) -> web.StreamResponse:
    """GET and HEAD of a manifest."""
    name, reference = repository_name(call.words[0]), manifest_reference(call.words[1])
    found = await find(call, name, reference)
    _check_accepted(call.request.headers.getall("Accept", ()), found)
    headers = described(found.digest)
    if call.request.headers.get("If-None-Match") == headers["ETag"]:
        return answer(304, headers=headers)
    return answer(body=found.raw, headers=headers, content_type=found.media_type)


async def find(call: Call, name: str, reference: str | ContentDigest) -> Document:
    """The manifest that was pushed, else the engine's; MANIFEST_UNKNOWN if neither is there."""
    try:
        return call.site.store.manifest(name, reference)
    except DistributionError:
        found = await call.site.ask(EngineImages.manifest, name, reference)
        if found is None:
            raise
        return found


def _check_accepted(headers: list[str] | tuple[()], found: Document) -> None:
    """A client that lists manifest types must list this one; others say nothing about it."""
    words = [word.partition(";")[0].strip() for header in headers for word in header.split(",")]
    listed = [word for word in words if word.startswith("application/vnd.")]
    if listed and "*/*" not in words and found.media_type not in listed:
        raise DistributionError(
            Code.MANIFEST_UNKNOWN,
            f"the manifest is of type {found.media_type}, which the client does not accept",
        )


async def put(call: Call) -> web.StreamResponse:
    """PUT of a manifest."""
    name, reference = repository_name(call.words[0]), manifest_reference(call.words[1])
    raw = await call.whole(MANIFEST_MAX)
    manifest = StoredManifest.parse(raw, call.request.headers.get("Content-Type", ""))
    for link in await asyncio.to_thread(call.site.store.missing, name, manifest):
        await _adopt(call, name, link)
    digest = await asyncio.to_thread(call.site.store.put_manifest, name, reference, manifest)
    headers = {"Location": f"/v2/{name}/manifests/{digest}", **described(digest)}
    if manifest.subject is not None:
        headers["OCI-Subject"] = str(manifest.subject.digest)
    return answer(201, headers=headers)


async def _adopt(call: Call, name: str, link: Link) -> None:
    """Keep a blob that only the engine has, since what was pushed needs it from now on."""
    store = call.site.store
    found = await call.site.ask(EngineImages.blob, name, link.digest)
    if found is None:
        return  # put_manifest says so

    def copy() -> None:
        upload = store.begin(name)
        with upload.busy, discarding(store, upload):
            for piece in found.pieces():
                upload.write(piece)
            store.finish(upload, link.digest)

    await asyncio.to_thread(copy)


async def delete(call: Call) -> web.StreamResponse:
    """DELETE of a tag, or of a manifest with all its tags."""
    name, reference = repository_name(call.words[0]), manifest_reference(call.words[1])
    try:
        await asyncio.to_thread(call.site.store.remove_manifest, name, reference)
    except DistributionError:
        if await call.site.ask(EngineImages.manifest, name, reference):
            raise DistributionError(
                Code.UNSUPPORTED, "this is an image of the engine: `tare rmi` removes it"
            ) from None
        raise
    return answer(202)
