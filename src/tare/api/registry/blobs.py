"""Blobs: is it there, what is in it, away with it. How one comes in is ``uploads``."""

from __future__ import annotations

import asyncio

from aiohttp import web

from tare.api.registry.call import Call, answer, described
from tare.image.registry_store.engine_images import EngineBlob, EngineImages
from tare.image.registry_store.store import Blob
from tare.model.distribution import ContentDigest, DistributionError, repository_name

_TYPE = {"Content-Type": "application/octet-stream", "Cache-Control": "max-age=31536000"}


async def get(call: Call) -> web.StreamResponse:
    """GET and HEAD of a blob."""
    name, digest = repository_name(call.words[0]), ContentDigest.parse(call.words[1])
    found = await find(call, name, digest)
    headers = {**_TYPE, **described(digest)}
    if call.request.headers.get("If-None-Match") == headers["ETag"]:
        return answer(304, headers=described(digest))
    if isinstance(found, Blob):
        if call.head and not call.site.settings.read_only:
            await asyncio.to_thread(call.site.store.want, name, found)
        return await call.send_file(found.path, found.size, headers)
    return await call.send_pieces(found.pieces, found.size, headers)


async def find(call: Call, name: str, digest: ContentDigest) -> Blob | EngineBlob:
    """The blob that was pushed, else the engine's; BLOB_UNKNOWN if neither is there."""
    try:
        return call.site.store.blob(name, digest)
    except DistributionError:
        found = await call.site.ask(EngineImages.blob, name, digest)
        if found is None:
            raise
        return found


async def delete(call: Call) -> web.StreamResponse:
    """DELETE of a blob: from this repository, and from the disk if no other has it."""
    name, digest = repository_name(call.words[0]), ContentDigest.parse(call.words[1])
    await asyncio.to_thread(call.site.store.remove_blob, name, digest)
    return answer(202)
