"""``/tare/ledger``: its entries as lines, and whether the chain holds."""

from __future__ import annotations

import asyncio
from collections import deque

from aiohttp import web

from tare.api.call import Call, answer, stream
from tare.api.routing import Routes

_AT_ONCE = 1000


async def _show(call: Call) -> web.StreamResponse:
    ledger = call.engine.ledger
    most = call.number("tail")
    lines = ledger.lines()
    if most is not None:
        kept = await asyncio.to_thread(lambda: deque(lines, maxlen=max(most, 0)))
        lines = iter(kept)
    response = stream("application/x-ndjson")
    await response.prepare(call.request)
    while True:
        some = await asyncio.to_thread(lambda: [one for one, _ in zip(lines, range(_AT_ONCE))])  # noqa: B905  # the shorter decides
        if not some:
            break
        await response.write(b"".join(line + b"\n" for line in some))
    await response.write_eof()
    return response


async def _verify(call: Call) -> web.StreamResponse:
    found = await asyncio.to_thread(call.engine.ledger.check)
    return answer(
        {
            "Entries": found.entries,
            "Number": found.number,
            "Head": found.head,
            "Fault": found.fault,
        }
    )


def install(routes: Routes) -> None:
    """Add the paths of this module."""
    routes.add("GET", "/tare/ledger", _show, cancellable=True)
    routes.add("GET", "/tare/ledger/verify", _verify)
