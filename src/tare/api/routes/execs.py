"""``/containers/REF/exec`` and ``/exec``: more programs inside a running container."""

from __future__ import annotations

import asyncio

from aiohttp import web

from tare.api.call import Call, answer, done
from tare.api.routes.streaming import output_type, terminal_size
from tare.api.routing import Routes
from tare.api.streams import Hijacked, converse, frame, hijack
from tare.errors import TareError
from tare.model.spec import ExecSpec
from tare.wire import body, execute
from tare.wire.detach import Detector, keys


async def _create(call: Call) -> web.StreamResponse:
    asked = await call.json(body.EXEC)
    identity = await call.engine.execs.create(call.ref, execute.execute(asked))
    return answer({"Id": identity}, 201)


async def _start(call: Call) -> web.StreamResponse:
    asked = await call.json(body.EXEC_START)
    execs = call.engine.execs
    if asked.detach:
        await asyncio.shield(asyncio.ensure_future(execs.start(call.ref, detach=True)))
        return done(200)
    spec = execs.inspect(call.ref).spec
    size = tuple(asked.console_size or ())
    try:
        attachment = await asyncio.shield(asyncio.ensure_future(execs.start(call.ref)))
    except TareError as error:
        if execs.inspect(call.ref).exit_code is None:
            raise  # it was never tried
        return await _not_started(call, spec, error)
    assert attachment is not None
    try:
        if len(size) == 2 and spec.process.tty:
            await execs.resize(call.ref, size[0] & 0xFFFF, size[1] & 0xFFFF)
        duplex = hijack(call.request, call.hangups, output_type(call, tty=attachment.tty))
        detector = Detector(keys(spec.detach_keys)) if attachment.tty else None
        if await converse(duplex, attachment, stdin=spec.attach_stdin, detector=detector):
            await execs.wait(call.ref)  # clients ask for the exit code when the stream ends
        await duplex.close()
    finally:
        await attachment.close()
    return Hijacked()


async def _not_started(call: Call, spec: ExecSpec, error: TareError) -> web.StreamResponse:
    """A program that cannot run says so on its own stream, as with Docker: clients then ask for
    the exit code (126, 127), and would make of an HTTP error a failure of their own."""
    tty = spec.process.tty
    duplex = hijack(call.request, call.hangups, output_type(call, tty=tty))
    sentence = f"{error}\r\n".encode()
    await duplex.write(sentence if tty else frame(2, sentence))
    await duplex.close()
    return Hijacked()


async def _inspect(call: Call) -> web.StreamResponse:
    return answer(execute.inspect(call.engine.execs.inspect(call.ref)))


async def _resize(call: Call) -> web.StreamResponse:
    height, width = terminal_size(call)
    await call.engine.execs.resize(call.ref, height, width)
    return done(200)


def install(routes: Routes) -> None:
    """Add the paths of this module."""
    routes.add("POST", "/containers/{ref}/exec", _create)
    routes.add("POST", "/exec/{ref}/start", _start, cancellable=True)
    routes.add("POST", "/exec/{ref}/resize", _resize)
    routes.add("GET", "/exec/{ref}/json", _inspect)
