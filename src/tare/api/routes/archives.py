"""Files of containers as archives: export, and ``cp`` both ways."""

from __future__ import annotations

import base64
import stat
from collections.abc import AsyncIterator
from typing import Final

import msgspec
from aiohttp import web
from multidict import CIMultiDict

from tare.api.call import HEADERS, Call, done, stream
from tare.api.routing import Routes
from tare.errors import InvalidError
from tare.model.record import PathStat
from tare.wire.values import rfc3339

# Go's os.FileMode, which the header carries.
_GO_TYPES: Final = (
    (stat.S_ISDIR, 1 << 31),
    (stat.S_ISLNK, 1 << 27),
    (stat.S_ISBLK, 1 << 26),
    (stat.S_ISCHR, 1 << 26 | 1 << 21),
    (stat.S_ISFIFO, 1 << 25),
    (stat.S_ISSOCK, 1 << 24),
)
_GO_BITS: Final = ((stat.S_ISUID, 1 << 23), (stat.S_ISGID, 1 << 22), (stat.S_ISVTX, 1 << 20))


def go_mode(mode: int) -> int:
    """st_mode as Go's os.FileMode."""
    found = mode & 0o777
    for bit, go in _GO_BITS:
        found |= go if mode & bit else 0
    for test, go in _GO_TYPES:
        found |= go if test(mode) else 0
    return found


def _stat_header(found: PathStat) -> str:
    body = {
        "name": found.name,
        "size": found.size,
        "mode": go_mode(found.mode),
        "mtime": rfc3339(found.mtime_ns),
        "linkTarget": found.link_target,
    }
    return base64.b64encode(msgspec.json.encode(body)).decode("ascii")


def _path(call: Call) -> str:
    path = call.text("path")
    if not path:
        raise InvalidError("Bad parameter: path cannot be empty")
    return path


async def _head(call: Call) -> web.StreamResponse:
    found = await call.engine.containers.archive_stat(call.ref, _path(call))
    headers = CIMultiDict({**HEADERS, "X-Docker-Container-Path-Stat": _stat_header(found)})
    return web.Response(headers=headers)


async def send(call: Call, response: web.StreamResponse, chunks: AsyncIterator[bytes]) -> None:
    """Write *chunks* as the body; a failure half way breaks the connection, not the archive's end.

    The first chunk is taken before the headers go out, so an early error is still an answer.
    """
    try:
        first = await anext(chunks, b"")
        await response.prepare(call.request)
        if first:
            await response.write(first)
        async for chunk in chunks:
            await response.write(chunk)
        await response.write_eof()
    except BaseException:
        if response.prepared and call.request.transport is not None:
            call.request.transport.abort()  # a cut archive must not look like a whole one
        raise
    finally:
        close = getattr(chunks, "aclose", None)
        if close is not None:
            await close()


async def _get(call: Call) -> web.StreamResponse:
    found, chunks = await call.engine.containers.archive_get(call.ref, _path(call))
    response = stream("application/x-tar")
    response.headers["X-Docker-Container-Path-Stat"] = _stat_header(found)
    await send(call, response, chunks)
    return response


async def _put(call: Call) -> web.StreamResponse:
    await call.engine.containers.archive_put(
        call.ref,
        _path(call),
        call.request.content.iter_any(),
        no_overwrite_dir_non_dir=call.flag("noOverwriteDirNonDir"),
        copy_ids=call.flag("copyUIDGID"),
    )
    return done(200)


async def _export(call: Call) -> web.StreamResponse:
    response = stream("application/x-tar")
    await send(call, response, call.engine.containers.export(call.ref))
    return response


def install(routes: Routes) -> None:
    """Add the paths of this module."""
    routes.add("HEAD", "/containers/{ref}/archive", _head)
    routes.add("GET", "/containers/{ref}/archive", _get)
    routes.add("PUT", "/containers/{ref}/archive", _put)
    routes.add("GET", "/containers/{ref}/export", _export)
