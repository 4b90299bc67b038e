"""``/_ping``, ``/version``, ``/info``, ``/system/df``."""

from __future__ import annotations

import time
from typing import Final

from aiohttp import web
from multidict import CIMultiDict

from tare.api.call import HEADERS, Call, answer
from tare.api.routing import Routes
from tare.errors import InvalidError
from tare.wire import building, container, image, system
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


_DF_KINDS: Final = ("container", "image", "volume", "build-cache")


async def _df(call: Call) -> web.StreamResponse:
    # Only what is asked for is counted: a large volume takes long to walk.
    kinds = call.query.getall("type", []) or _DF_KINDS
    for kind in kinds:
        if kind not in _DF_KINDS:
            raise InvalidError(f"unknown object type: {kind[:40]}")
    images = await call.engine.images.list() if "image" in kinds else []
    records = await call.engine.containers.list(all=True, filters={})
    used = [record.image_id for record in records]
    containers = []
    for record in records if "container" in kinds else ():
        one = container.summary(record)
        one["SizeRw"], one["SizeRootFs"] = await call.engine.containers.sizes(record.id)
        containers.append(one)
    weight, unique = await call.engine.images.weigh() if images else (0, {})
    shown = [image.summary(found, used.count(str(found.id))) for found in images]
    for found, one in zip(images, shown, strict=True):
        one["SharedSize"] = found.size - unique.get(str(found.id), found.size)
    listed = call.engine.volumes.listed() if "volume" in kinds else []
    volumes = await call.engine.volumes.sized(listed)
    kept = await call.engine.builds.entries() if "build-cache" in kinds else []
    return answer(
        {
            "LayersSize": weight,
            "Images": shown,
            "Containers": containers,
            "Volumes": [wire_volume.status(one) for one in volumes],
            "BuildCache": [building.kept(one) for one in kept],
            "BuilderSize": sum(one.size for one in kept),
        }
    )


def install(routes: Routes) -> None:
    """Add the paths of this module."""
    routes.add("GET", "/_ping", _ping)
    routes.add("HEAD", "/_ping", _ping)
    routes.add("GET", "/version", _version)
    routes.add("GET", "/info", _info)
    routes.add("GET", "/system/df", _df)
