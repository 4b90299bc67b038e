"""Attach and resize of containers: hijacked connections."""

from __future__ import annotations

import time

from aiohttp import web

from tare.api.call import Call, done
from tare.api.routing import Routes
from tare.api.streams import MULTIPLEXED, RAW, Duplex, Hijacked, converse, frame, hijack
from tare.errors import InvalidError
from tare.model.record import LogQuery, Record
from tare.wire.detach import Detector, keys


def output_type(call: Call, *, tty: bool) -> str:
    """The content type of a hijacked answer; clients before 1.42 know one only."""
    return RAW if tty or call.minor < 42 else MULTIPLEXED


async def _backlog(call: Call, record: Record, until_ns: int, duplex: Duplex) -> None:
    """What the container said before *until_ns*, as an attach with ``logs`` begins."""
    query = LogQuery(stdout=call.flag("stdout"), stderr=call.flag("stderr"), until_ns=until_ns)
    tty = record.spec.process.tty
    async for batch in call.engine.containers.logs(record.id, query):
        for line in batch:
            await duplex.write(line.content if tty else frame(line.stream, line.content))


async def _attach(call: Call) -> web.StreamResponse:
    stdin, stdout, stderr = (call.flag(name) for name in ("stdin", "stdout", "stderr"))
    containers = call.engine.containers
    streaming = call.flag("stream")
    sequence = keys(call.text("detachKeys"))
    record = await containers.get(call.ref)
    now_ns = time.time_ns()
    kind = output_type(call, tty=record.spec.process.tty)
    if not streaming:
        duplex = hijack(call.request, call.hangups, kind)
        if call.flag("logs"):
            await _backlog(call, record, now_ns, duplex)
        await duplex.close()
        return Hijacked()
    attachment = await containers.attach(record.id, stdin=stdin, stdout=stdout, stderr=stderr)
    try:
        duplex = hijack(call.request, call.hangups, kind)
        if call.flag("logs"):
            await _backlog(call, record, now_ns, duplex)
        detector = Detector(sequence) if attachment.tty else None
        await converse(duplex, attachment, stdin=stdin, detector=detector)
        await duplex.close()
    finally:
        await attachment.close()
    return Hijacked()


def terminal_size(call: Call) -> tuple[int, int]:
    """``h`` and ``w``, each 0 to 65535."""
    height, width = call.number("h") or 0, call.number("w") or 0
    if not (0 <= height <= 0xFFFF and 0 <= width <= 0xFFFF):
        raise InvalidError(f"invalid terminal size: {height} x {width}")
    return height, width


async def _resize(call: Call) -> web.StreamResponse:
    height, width = terminal_size(call)
    if height and width:  # a client whose terminal has no size says 0
        await call.engine.containers.resize(call.ref, height, width)
    return done(200)


def install(routes: Routes) -> None:
    """Add the paths of this module."""
    routes.add("POST", "/containers/{ref}/attach", _attach, cancellable=True)
    routes.add("POST", "/containers/{ref}/resize", _resize)
