"""``/tare/vm/kernels``: the kernels that virtual machines boot, shown and fetched."""

from __future__ import annotations

import asyncio

from aiohttp import web

from tare.api.call import Call, answer
from tare.api.routing import Routes
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


def install(routes: Routes) -> None:
    """Add the paths of this module."""
    routes.add("GET", "/tare/vm/kernels", _list)
    routes.add("POST", "/tare/vm/kernels", _fetch)
