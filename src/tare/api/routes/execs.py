"""``/containers/REF/exec`` and ``/exec``: more programs inside a running container."""

from __future__ import annotations

import asyncio

from aiohttp import web

from tare.api.call import Call, answer, done
from tare.api.routes.streaming import output_type, terminal_size
from tare.api.routing import Routes
from tare.api.streams import Hijacked, converse, frame, hijack
from tare.errors import ConflictError, TareError
from tare.model.spec import ExecSpec
from tare.model.state import State
from tare.wire import body, execute
from tare.wire.detach import Detector, keys


async def _create(call: Call) -> web.StreamResponse:
    asked = await call.json(body.EXEC)
    identity = await call.engine.execs.create(call.ref, execute.execute(asked))
    return answer({"Id": identity}, 201)


async def _ready(call: Call) -> ExecSpec:
    """What is to be started; what can be known to be wrong is refused while that is an answer."""
    made = call.engine.execs.inspect(call.ref)
    container = await call.engine.containers.get(made.container)
    if made.started or made.exit_code is not None:
        raise ConflictError(f"Error: Exec command {made.id} is already running or has ended")
    if not container.alive:
        raise ConflictError(f"Container {container.id} is not running")
    if container.state is State.PAUSED:
        raise ConflictError(
            f"Container {container.id} is paused, unpause the container before exec"
        )
    return made.spec


async def _start(call: Call) -> web.StreamResponse:
    asked = await call.json(body.EXEC_START)
    execs = call.engine.execs
    spec = await _ready(call)
    if asked.detach:
        await asyncio.shield(asyncio.ensure_future(execs.start(call.ref, detach=True)))
        return done(200)
    # Headers first: docker-py reads the stream past its own buffer and would lose an output that
    # arrives together with them. A program that cannot run says so on its stream, as with
    # Docker; clients ask for the exit code (126, 127) then.
    tty = spec.process.tty
    duplex = hijack(call.request, call.hangups, output_type(call, tty=tty))
    try:
        attachment = await asyncio.shield(asyncio.ensure_future(execs.start(call.ref)))
    except TareError as error:
        sentence = f"{error}\r\n".encode()
        await duplex.write(sentence if tty else frame(2, sentence))
        await duplex.close()
        return Hijacked()
    assert attachment is not None
    try:
        size = asked.console_size or ()
        if len(size) == 2 and tty and all(size):
            await execs.resize(call.ref, size[0] & 0xFFFF, size[1] & 0xFFFF)
        detector = Detector(keys(spec.detach_keys)) if tty else None
        if await converse(duplex, attachment, stdin=spec.attach_stdin, detector=detector):
            await execs.wait(call.ref)  # clients ask for the exit code when the stream ends
        await duplex.close()
    finally:
        await attachment.close()
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
