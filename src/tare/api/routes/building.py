"""``/build``: images from Dockerfiles, as Docker's classic builder and as tare's own client ask."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from aiohttp import web

from tare.api.call import Call, answer, stream
from tare.api.routes.archives import send
from tare.api.routes.telling import Say, told
from tare.api.routing import Routes
from tare.engine.transfer import consumed
from tare.errors import InvalidError
from tare.wire import building, values
from tare.wire.body import read

if TYPE_CHECKING:
    from tare.build.context import Context
    from tare.build.request import BuildRequest

_HEAD: Final = 4
_DOCUMENT_MAX: Final = 16 << 20


async def _received(call: Call, body: AsyncIterator[bytes], context: Context) -> None:
    """Take the context as it comes; none at all is an empty one."""
    first = await anext(body, b"")
    if not first:
        return

    async def whole() -> AsyncIterator[bytes]:
        yield first
        async for piece in body:
            yield piece

    await consumed(whole(), context.take)


async def _docker(call: Call) -> web.StreamResponse:
    hosts = [value for text in call.query.getall("extrahosts", []) for value in text.split(",")]
    request = building.classic(call.query, call.query.getall("t", []), [h for h in hosts if h])
    given = building.registry_config(call.request.headers.get("X-Registry-Config", ""))
    body = call.request.content.iter_any()

    async def work(say: Say) -> None:
        words = building.Words(say, quiet=call.flag("q"))
        with contextlib.closing(call.engine.builds.context()) as context:
            if not request.remote:
                await _received(call, body, context)
            try:
                done = await call.engine.builds.build(
                    request, context, words.tell, credentials=given
                )
            except BaseException:
                words.failed()
                raise
        words.done(done)

    return await told(call, work, failure=building.failure)


async def _own(call: Call) -> web.StreamResponse:
    body = call.request.content
    length = int.from_bytes(await _exactly(call, _HEAD), "big")
    if length > _DOCUMENT_MAX:
        raise InvalidError(f"the document is larger than {_DOCUMENT_MAX >> 20} MiB")
    document = read(building.BUILD, await _exactly(call, length))
    request, given = building.own(document), building.own_credentials(document)
    _check_agents(request)

    async def work(say: Say) -> None:
        with contextlib.closing(call.engine.builds.context()) as context:
            if not request.remote:
                await _received(call, body.iter_any(), context)
            done = await call.engine.builds.build(
                request, context, lambda event: say(building.event(event)), credentials=given
            )
        say(building.built(done))

    return await told(call, work, failure=building.failure)


async def _exactly(call: Call, size: int) -> bytes:
    try:
        return await call.request.content.readexactly(size)
    except EOFError as error:
        raise InvalidError("the request ended within its document") from error


def _check_agents(request: BuildRequest) -> None:
    from tare.build.mounting import check_agent

    for path in request.agents.values():
        if not path.startswith("/"):
            raise InvalidError(f"the SSH agent's socket must be an absolute path: {path!r}")
        check_agent(path)


async def _prune(call: Call) -> web.StreamResponse:
    wanted = call.filters("until", "unused-for", "type", "id", "inuse", "private", "shared")
    until = None
    for text in (*wanted.get("until", ()), *wanted.get("unused-for", ())):
        until = values.moment(text, now_ns=time.time_ns())
    keep = call.text("keep-storage") or call.text("reserved-space")
    pruned = await call.engine.builds.prune(
        everything=call.flag("all"),
        until_ns=until,
        keep_bytes=int(keep) if keep.isascii() and keep.isdigit() else 0,
        dry=call.flag("dry-run"),
    )
    return answer({"CachesDeleted": list(pruned.deleted), "SpaceReclaimed": pruned.reclaimed})


async def _files(call: Call) -> web.StreamResponse:
    """All files of an image as one archive: ``--output type=tar`` and ``local``."""
    name = call.text("image")
    if not name:
        raise InvalidError("image must be given")
    image = await call.engine.images.get(name)
    response = stream("application/x-tar")
    await send(call, response, call.engine.builds.files(image))
    return response


def install(routes: Routes) -> None:
    """Add the paths of this module."""
    routes.add("POST", "/build", _docker, cancellable=True)
    routes.add("POST", "/build/prune", _prune)
    routes.add("POST", "/tare/build", _own, cancellable=True)
    routes.add("GET", "/tare/files", _files)
