"""Blobs on their way in: begun, continued, ended, in one request or in many.

What was received stays when a client breaks off or the server is killed; a GET of the upload says
how much that is. While one request writes, another to the same upload waits a little, since a
client that lost its connection may be back before the server knows.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from aiohttp import web

from tare.api.registry.call import Call, answer, described, in_thread
from tare.image.registry_store.store import Blob, discarding
from tare.image.registry_store.uploads import Upload
from tare.model.distribution import Code, ContentDigest, DistributionError, repository_name

_CONTENT_RANGE: Final = re.compile(r"(?:bytes[ =])?([0-9]{1,18})-([0-9]{1,18})(?:/[0-9*]{1,19})?")
_WAIT_SECONDS: Final = 10.0
_WAIT_STEP: Final = 0.02


async def begin(call: Call) -> web.StreamResponse:
    """POST: mount a blob of another repository, or take it in at once, or begin an upload."""
    name = repository_name(call.words[0])
    store = call.site.store
    if "mount" in call.query:
        # What cannot be mounted, for whatever reason, is to be uploaded.
        with suppress(DistributionError):
            digest = ContentDigest.parse(call.query["mount"])
            source = repository_name(call.query["from"]) if call.query.get("from") else None
            if await asyncio.to_thread(store.mount, name, digest, source):
                return _created(name, digest)
    if "digest" not in call.query:
        return _going_on(await asyncio.to_thread(store.begin, name))
    digest = ContentDigest.parse(call.query["digest"])
    upload = await asyncio.to_thread(store.begin, name)
    with discarding(store, upload):
        async with _writing(upload):
            await _receive(call, upload)
            return _created(name, (await _finish(call, upload, digest)).digest)


async def append(call: Call) -> web.StreamResponse:
    """PATCH: more of the blob, from where it stopped."""
    upload = _find(call)
    async with _writing(upload):
        _check_range(call, upload)
        await _receive(call, upload)
        return _going_on(upload)


async def end(call: Call) -> web.StreamResponse:
    """PUT: the rest of the blob, if any, and its digest."""
    upload = _find(call)
    digest = ContentDigest.parse(call.query.get("digest", ""))
    async with _writing(upload):
        _check_range(call, upload)
        await _receive(call, upload)
        return _created(upload.repository, (await _finish(call, upload, digest)).digest)


async def status(call: Call) -> web.StreamResponse:
    """GET: how much was received."""
    return _going_on(_find(call), 204)


async def cancel(call: Call) -> web.StreamResponse:
    """DELETE: forget it."""
    upload = _find(call)
    async with _writing(upload):
        await asyncio.to_thread(call.site.store.cancel, upload)
    return answer(204)


def _find(call: Call) -> Upload:
    return call.site.store.upload(repository_name(call.words[0]), call.words[1])


@asynccontextmanager
async def _writing(upload: Upload) -> AsyncIterator[None]:
    """Be the one request that writes to *upload*; BLOB_UPLOAD_INVALID (409) if another stays."""
    waited = 0.0
    while not upload.busy.acquire(blocking=False):
        if waited >= _WAIT_SECONDS:
            raise DistributionError(
                Code.BLOB_UPLOAD_INVALID, "another request writes to this upload", status=409
            )
        await asyncio.sleep(_WAIT_STEP)
        waited += _WAIT_STEP
    try:
        # The other one may have ended the upload.
        if not upload.path.exists():
            raise DistributionError(Code.BLOB_UPLOAD_UNKNOWN, "the upload has ended")
        yield
    finally:
        upload.rest()
        upload.busy.release()


def _check_range(call: Call, upload: Upload) -> None:
    """A chunk that says where it belongs must belong where the upload stopped (416)."""
    text = call.request.headers.get("Content-Range")
    if text is None:
        return
    match = _CONTENT_RANGE.fullmatch(text.strip())
    if match is None:
        raise DistributionError(
            Code.BLOB_UPLOAD_INVALID, f"not a range: {text[:60]!a}", status=416,
            headers=_where(upload),
        )  # fmt: skip
    first, last = int(match[1]), int(match[2])
    if first != upload.size or last < first:
        raise DistributionError(
            Code.BLOB_UPLOAD_INVALID,
            f"the chunk begins at {first}, and {upload.size} bytes were received",
            status=416,
            headers=_where(upload),
        )
    length = call.length()
    if length is not None and length != last - first + 1:
        raise DistributionError(
            Code.SIZE_INVALID, f"the chunk has {length} bytes, and its range {last - first + 1}"
        )


async def _receive(call: Call, upload: Upload) -> None:
    """Write the body to *upload*; one piece is hashed and written while the next one comes in."""
    status = os.statvfs(upload.path.parent)
    left = status.f_bavail * status.f_frsize * 9 // 10
    if (call.length() or 0) > left:
        call.hang_up()
        raise _no_space()
    pending: asyncio.Future[None] | None = None
    try:
        async for piece in call.pieces():
            left -= len(piece)
            if left < 0:
                call.hang_up()
                raise _no_space()
            if pending is not None:
                await in_thread(pending)
            pending = asyncio.ensure_future(asyncio.to_thread(upload.write, piece))
    finally:
        if pending is not None:
            await in_thread(pending)


async def _finish(call: Call, upload: Upload, digest: ContentDigest) -> Blob:
    work = asyncio.to_thread(call.site.store.finish, upload, digest)
    return await in_thread(asyncio.ensure_future(work))


def _no_space() -> DistributionError:
    return DistributionError(
        Code.BLOB_UPLOAD_INVALID, "no space left for the registry's content", status=507
    )


def _where(upload: Upload) -> dict[str, str]:
    return {
        "Location": f"/v2/{upload.repository}/blobs/uploads/{upload.id}",
        "Range": f"0-{max(upload.size - 1, 0)}",
        "Docker-Upload-UUID": upload.id,
    }


def _going_on(upload: Upload, status: int = 202) -> web.StreamResponse:
    return answer(status, headers=_where(upload))


def _created(repository: str, digest: ContentDigest) -> web.StreamResponse:
    location = {"Location": f"/v2/{repository}/blobs/{digest}"}
    return answer(201, headers={**location, **described(digest)})
