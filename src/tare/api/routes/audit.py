"""``/tare/audit``: findings on the host, the engine, images, workloads and Dockerfiles."""

from __future__ import annotations

from aiohttp import web

from tare.api.call import Call, answer
from tare.api.routing import Routes


async def _audit(call: Call) -> web.StreamResponse:
    from tare.audit import auditing, finding, request

    asked = await call.json(request.DECODER)
    return answer(finding.plain(await auditing.audit(call.engine, asked)))


def install(routes: Routes) -> None:
    """Add the paths of this module."""
    routes.add("POST", "/tare/audit", _audit, cancellable=True)
