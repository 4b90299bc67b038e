"""Figures for Prometheus: made once a second at most, and served by TCP where that is configured.

The page is the same for everybody, so many scrapers cost as much as one. By TCP nothing else is
served: neither the API nor anything that changes a thing.

Not for: what the figures are (wire.metrics).
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from aiohttp import web

from tare.wire import metrics

if TYPE_CHECKING:
    from tare.engine.engine import Engine

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_FRESH: Final = 1.0


class Page:
    """The text of ``/metrics`` of one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._made = 0.0
        self._text = b""
        self._making: asyncio.Task[bytes] | None = None

    async def text(self) -> bytes:
        """The page, at most a second old."""
        if self._text and time.monotonic() - self._made < _FRESH:
            return self._text
        if self._making is None:
            self._making = asyncio.ensure_future(self._make())
            self._making.add_done_callback(self._done)
        return await asyncio.shield(self._making)

    def _done(self, _: asyncio.Task[bytes]) -> None:
        self._making = None

    async def _make(self) -> bytes:
        engine = self._engine
        samples = await engine.containers.samples()
        records = await engine.containers.list(all=True, filters={})
        budget = engine.budgets.summary()
        own: dict[str, float] = {
            "tare_volumes": len(engine.volumes.listed()),
            "tare_images": len(await engine.images.list()),
            "tare_budget_limit_bytes": budget.budget.memory or 0,
            "tare_budget_reservable_bytes": budget.reservable_memory or 0,
            "tare_budget_reserved_bytes": budget.reserved.memory,
        }
        self._text = (await asyncio.to_thread(metrics.render, records, samples, own)).encode()
        self._made = time.monotonic()
        return self._text


class MetricsServer:
    """Serves the page, and nothing else, at a TCP address."""

    def __init__(self, engine: Engine, host: str, port: int) -> None:
        self._page = Page(engine)
        self._host, self._port = host, port
        self._runner: web.AppRunner | None = None

    async def start(self) -> tuple[str, int]:
        """Begin to listen; where. OSError when that address cannot be had."""
        app = web.Application()
        app.router.add_get("/metrics", self._answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        self._runner = runner
        await web.TCPSite(runner, self._host, self._port).start()
        found = runner.addresses[0]
        return str(found[0]), int(found[1])

    async def _answer(self, request: web.Request) -> web.Response:
        return web.Response(body=await self._page.text(), headers={"Content-Type": CONTENT_TYPE})

    async def close(self) -> None:
        """Listen no more."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
