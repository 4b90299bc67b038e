"""``/tare/vm/kernels``, ``/tare/convert``: what machines boot, and changing the isolation."""

from __future__ import annotations

import asyncio

from aiohttp import web

from tare.api.call import Call, answer
from tare.api.routing import Routes
from tare.errors import InvalidError
from tare.model.spec import Isolation
from tare.vm.kernels import Kernel


def _shown(found: Kernel) -> dict[str, object]:
    return {
        "Version": found.version,
        "Package": found.package,
        "PackageVersion": found.package_version,
        "Sha256": found.sha256,
        "Size": found.vmlinux.stat().st_size,
    }


async def _list(call: Call) -> web.StreamResponse:
    found = await asyncio.to_thread(call.engine.kernels.ready)
    return answer([_shown(one) for one in found])


async def _fetch(call: Call) -> web.StreamResponse:
    found = await asyncio.to_thread(call.engine.kernels.prepare, renew=True)
    return answer(_shown(found))


async def _convert(call: Call) -> web.StreamResponse:
    try:
        isolation = Isolation(call.text("isolation"))
    except ValueError:
        raise InvalidError("isolation is container or vm") from None
    warnings = await call.engine.containers.convert(
        call.text("container"), isolation, discard=call.flag("discard")
    )
    return answer({"Warnings": warnings})


def install(routes: Routes) -> None:
    """Add the paths of this module."""
    routes.add("GET", "/tare/vm/kernels", _list)
    routes.add("POST", "/tare/vm/kernels", _fetch)
    routes.add("POST", "/tare/convert", _convert)
