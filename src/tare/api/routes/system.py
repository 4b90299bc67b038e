"""``/_ping``, ``/version``, ``/info``, ``/system/df``."""

from __future__ import annotations

import time
from typing import Final

from aiohttp import web
from multidict import CIMultiDict

from tare.api.call import HEADERS, Call, answer
from tare.api.routing import Routes
from tare.wire import container, image, system
from tare.wire import volume as wire_volume

_PING_HEADERS: Final = CIMultiDict(
    {
        **HEADERS,
        "Builder-Version": "1",
        "Swarm": "inactive",
        "Cache-Control": "no-cache, no-store, must-revalidate",
        "Pragma": "no-cache",
        "Content-Type": "text/plain; charset=utf-8",
    }
)


async def _ping(call: Call) -> web.StreamResponse:
    content = b"" if call.request.method == "HEAD" else b"OK"
    return web.Response(body=content, headers=_PING_HEADERS)


async def _version(call: Call) -> web.StreamResponse:
    return answer(system.version())


async def _info(call: Call) -> web.StreamResponse:
    return answer(system.info(await call.engine.info(), time.time_ns()))


async def _df(call: Call) -> web.StreamResponse:
    images = await call.engine.images.list()
    records = await call.engine.containers.list(all=True, filters={})
    used = [record.image_id for record in records]
    containers = []
    for record in records:
        one = container.summary(record)
        one["SizeRw"], one["SizeRootFs"] = await call.engine.containers.sizes(record.id)
        containers.append(one)
    volumes = await call.engine.volumes.sized(call.engine.volumes.listed())
    return answer(
        {
            "LayersSize": sum(found.size for found in images),
            "Images": [image.summary(found, used.count(str(found.id))) for found in images],
            "Containers": containers,
            "Volumes": [wire_volume.status(one) for one in volumes],
            "BuildCache": [],
            "BuilderSize": 0,
        }
    )


def install(routes: Routes) -> None:
    """Add the paths of this module."""
    routes.add("GET", "/_ping", _ping)
    routes.add("HEAD", "/_ping", _ping)
    routes.add("GET", "/version", _version)
    routes.add("GET", "/info", _info)
    routes.add("GET", "/system/df", _df)
