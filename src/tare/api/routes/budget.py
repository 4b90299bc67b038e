"""``/tare/budget``: what the engine may use of its server, who holds what, and changing it."""

from __future__ import annotations

import os

from aiohttp import web

from tare.api.call import Call, answer, done
from tare.api.routing import Routes
from tare.engine.stats import memory_total
from tare.model import budget as arithmetic
from tare.wire import budget as wire


async def _show(call: Call) -> web.StreamResponse:
    budgets = call.engine.budgets
    views = await budgets.views()
    return answer(
        {
            "Host": {"Memory": memory_total(), "Cpus": os.cpu_count() or 1},
            "Budgets": [
                wire.view(
                    one.project,
                    one.budget,
                    one.reserved,
                    (one.reservable_memory, one.reservable_nano_cpus),
                    {
                        "memory": one.memory_used,
                        "pids": one.pids_used,
                        "cpu_ns": one.cpu_ns,
                        "disk": one.disk_used,
                        "disk_free": one.disk_free,
                    },
                )
                for one in views
            ],
            "Holders": [
                wire.holder(share.record, share.project, share.holds) for share in budgets.shares()
            ],
        }
    )


def _project(text: str) -> str:
    return arithmetic.project(text) if text else ""


async def _set(call: Call) -> web.StreamResponse:
    asked = await call.json(wire.SET)
    call.engine.budgets.set(wire.wanted(asked), _project(asked.project or ""))
    return done()


async def _forget(call: Call) -> web.StreamResponse:
    call.engine.budgets.forget(_project(call.text("project")))
    return done()


def install(routes: Routes) -> None:
    """Add the paths of this module."""
    routes.add("GET", "/tare/budget", _show)
    routes.add("POST", "/tare/budget", _set)
    routes.add("DELETE", "/tare/budget", _forget)
