"""Looking at containers: top, stats, changes, logs; and what happens on the host: events."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final
from weakref import WeakKeyDictionary

from aiohttp import web
from multidict import CIMultiDict

from tare.api.call import HEADERS, Call, answer, encoded, stream
from tare.api.metrics import CONTENT_TYPE, Page
from tare.api.routing import Routes
from tare.api.streams import MULTIPLEXED, RAW, frame
from tare.errors import InvalidError, TareError
from tare.model.record import LogQuery, Record, Sample
from tare.wire import explain as wire_explain
from tare.wire import stats as wire_stats
from tare.wire import system
from tare.wire.values import rfc3339

_SECOND: Final = 1.0
_EVENT_FILTERS: Final = (
    "config", "container", "daemon", "event", "image", "label", "network", "node", "plugin",
    "scope", "secret", "service", "type", "volume",
)  # fmt: skip


async def _top(call: Call) -> web.StreamResponse:
    top = await call.engine.containers.top(call.ref, call.text("ps_args", "-ef"))
    return answer({"Titles": list(top.titles), "Processes": [list(p) for p in top.processes]})


async def _changes(call: Call) -> web.StreamResponse:
    found = await call.engine.containers.changes(call.ref)
    kinds = {"C": 0, "A": 1, "D": 2}
    return answer([{"Path": one.path, "Kind": kinds[one.kind]} for one in found] or None)


async def _sample(call: Call, record: Record) -> Sample | None:
    return await call.engine.containers.stats(record.id) if record.alive else None


async def _stats(call: Call) -> web.StreamResponse:
    record = await call.engine.containers.get(call.ref)
    before: Sample | None = None
    sample = await _sample(call, record)
    if not call.flag("stream", True):
        if sample is not None and not call.flag("one-shot"):
            await asyncio.sleep(_SECOND)  # a share of the CPU needs two samples
            before = sample
            with contextlib.suppress(TareError):
                sample = await _sample(call, record)
        return answer(wire_stats.stats(record, sample, before))
    response = stream()
    await response.prepare(call.request)
    with contextlib.suppress(TareError):  # removed meanwhile: the stream ends
        while True:
            await response.write(encoded(wire_stats.stats(record, sample, before)))
            await asyncio.sleep(_SECOND)
            record = await call.engine.containers.get(record.id)
            before, sample = sample, await _sample(call, record)
    await response.write_eof()
    return response


async def _all_stats(call: Call) -> web.StreamResponse:
    found = await call.engine.containers.samples()
    return answer([wire_stats.stats(record, sample, None) for record, sample in found])


_PAGES: Final[WeakKeyDictionary[object, Page]] = WeakKeyDictionary()


async def _metrics(call: Call) -> web.StreamResponse:
    page = _PAGES.get(call.engine)
    if page is None:
        page = _PAGES[call.engine] = Page(call.engine)
    return web.Response(
        body=await page.text(), headers=CIMultiDict({**HEADERS, "Content-Type": CONTENT_TYPE})
    )


async def _explain(call: Call) -> web.StreamResponse:
    return answer(wire_explain.explanation(await call.engine.explain(call.text("name"))))


def _tail(call: Call) -> int | None:
    text = call.text("tail", "all")
    if text in ("all", ""):
        return None
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()):
        return None  # as Docker: anything else is all
    return int(digits[:12]) if digits == text else None


async def _logs(call: Call) -> web.StreamResponse:
    wanted = {1} if call.flag("stdout") else set()
    wanted |= {2} if call.flag("stderr") else set()
    if not wanted:
        raise InvalidError("Bad parameters: you must choose at least one stream")
    record = await call.engine.containers.get(call.ref)
    tty = record.spec.process.tty
    query = LogQuery(
        stdout=1 in wanted,
        stderr=2 in wanted,
        since_ns=call.moment("since"),
        until_ns=call.moment("until"),
        tail=_tail(call),
        follow=call.flag("follow"),
    )
    timestamps = call.flag("timestamps")
    batches = call.engine.containers.logs(record.id, query)
    response = stream(RAW if tty or call.minor < 42 else MULTIPLEXED)
    await response.prepare(call.request)
    async with contextlib.aclosing(batches):
        async for batch in batches:
            out = bytearray()
            for line in batch:
                content = line.content
                if timestamps:
                    content = rfc3339(line.time_ns, digits=9).encode() + b" " + content
                out += content if tty else frame(line.stream, content)
            await response.write(bytes(out))
    await response.write_eof()
    return response


async def _events(call: Call) -> web.StreamResponse:
    events = call.engine.events.subscribe(
        call.moment("since"), call.moment("until"), call.filters(*_EVENT_FILTERS)
    )
    response = stream()
    await response.prepare(call.request)
    async for happened in events:
        await response.write(encoded(system.event(happened)))
    await response.write_eof()
    return response


def install(routes: Routes) -> None:
    """Add the paths of this module."""
    routes.add("GET", "/containers/{ref}/top", _top)
    routes.add("GET", "/containers/{ref}/changes", _changes)
    routes.add("GET", "/containers/{ref}/stats", _stats)
    routes.add("GET", "/containers/{ref}/logs", _logs)
    routes.add("GET", "/events", _events)
    routes.add("GET", "/tare/stats", _all_stats)
    routes.add("GET", "/tare/explain", _explain)
    routes.add("GET", "/metrics", _metrics)
