"""``/tare/weight``, ``/tare/cool``: what a running workload takes, and a cold start on request."""

from __future__ import annotations

from aiohttp import web

from tare.api.call import Call, answer
from tare.api.routing import Routes
from tare.engine.weighing import Surface, Weight


def _surface(found: Surface) -> dict[str, object]:
    calls = found.calls
    return {
        "Known": None if calls is None else calls.known,
        "Allowed": None if calls is None else calls.allowed,
        "Checked": None if calls is None else calls.checked,
        "WhyUnknown": found.why_unknown,
        "Capabilities": found.capabilities,
        "UserNamespace": found.user_namespace,
        "NoNewPrivileges": found.no_new_privileges,
        "Emulator": found.emulator,
        "Accelerated": found.accelerated,
    }


def _shown(found: Weight) -> dict[str, object]:
    memory = found.memory
    return {
        "Memory": {
            "Pss": memory.pss,
            "Anonymous": memory.anonymous,
            "File": memory.file,
            "Shared": memory.shared,
            "Processes": memory.processes,
        },
        "Disk": found.disk,
        "Surface": None if found.surface is None else _surface(found.surface),
    }


async def _weigh(call: Call) -> web.StreamResponse:
    found = await call.engine.weigh(call.text("container"), surface=call.flag("surface"))
    return answer(_shown(found))


async def _cool(call: Call) -> web.StreamResponse:
    return answer({"Files": await call.engine.cool(call.text("image"))})


def install(routes: Routes) -> None:
    """Add the paths of this module."""
    routes.add("GET", "/tare/weight", _weigh)
    routes.add("POST", "/tare/cool", _cool)
