"""What tare adds under ``/tare`` (docs/api-extensions.md): run, doctor, bootstrap."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable

from aiohttp import web

from tare.api.call import Call, answer, encoded
from tare.api.routes.containers import make
from tare.api.routes.telling import told
from tare.api.routing import Routes
from tare.api.streams import MULTIPLEXED, Duplex, Hijacked, converse, frame, hijack
from tare.engine.streams import Attachment
from tare.errors import InvalidError, TareError
from tare.model.record import ExitInfo, Usage
from tare.wire import body, system
from tare.wire.detach import Detector, keys

RESULT: int = 3
"""The stream of the frame that ends ``/tare/run``."""


async def _begin(
    call: Call, asked: body.RunBody
) -> tuple[str, list[str], Attachment, asyncio.Future[ExitInfo]]:
    """Create, attach, wait and start, in this order; after a failure nothing is left."""
    containers = call.engine.containers
    identity, warnings = await make(call, asked, asked.name or "", asked.platform or "")
    removing = bool(asked.host_config and asked.host_config.auto_remove)
    attachment: Attachment | None = None
    try:
        attachment = await containers.attach(
            identity,
            stdin=bool(asked.open_stdin),
            stdout=asked.attach_stdout is not False,
            stderr=asked.attach_stderr is not False,
        )
        waiting = containers.waiter(identity, "removed" if removing else "next-exit")
        await containers.start(identity)
    except BaseException:
        if attachment is not None:
            await attachment.close()
        if removing:
            with contextlib.suppress(TareError):
                await containers.remove(identity, force=True, volumes=True)
        raise
    return identity, warnings, attachment, waiting


def _headers(identity: str, warnings: list[str]) -> str:
    # JSON in ASCII has no line ends, so it cannot end the header.
    said = f"Tare-Warnings: {json.dumps(warnings)}\r\n" if warnings else ""
    return f"Tare-Id: {identity}\r\n{said}"


def _usage(usage: Usage | None) -> dict[str, object] | None:
    if usage is None:
        return None
    return {
        "WallNs": usage.wall_ns,
        "CpuNs": usage.cpu_ns,
        "MemoryPeak": usage.memory_peak,
        "PidsPeak": usage.pids_peak,
        "BlockBytes": usage.block_bytes,
    }


async def _finish(
    call: Call, duplex: Duplex, identity: str, waiting: asyncio.Future[ExitInfo]
) -> None:
    ended = await asyncio.shield(waiting)
    result = {
        "Id": identity,
        "StatusCode": ended.code,
        "OOMKilled": ended.oom_killed,
        "Error": ended.error,
        "Usage": _usage(call.engine.containers.usage(identity)),
    }
    await duplex.write(frame(RESULT, encoded(result)))
    await duplex.close()


async def _run(call: Call) -> web.StreamResponse:
    asked = await call.json(body.RUN)
    options = asked.tare or body.RunOptions()
    sequence = keys(options.detach_keys or "")
    if options.timeout is not None and options.timeout <= 0:
        raise InvalidError(f"a timeout of {options.timeout} seconds leaves no time to run")
    # A client that goes away must not leave a container that is half made.
    identity, warnings, attachment, waiting = await asyncio.shield(
        asyncio.ensure_future(_begin(call, asked))
    )
    killer: asyncio.TimerHandle | None = None
    try:
        duplex = hijack(call.request, call.hangups, MULTIPLEXED, _headers(identity, warnings))
        if options.timeout:
            killer = asyncio.get_running_loop().call_later(options.timeout, _kill, call, identity)
        detector = Detector(sequence) if attachment.tty else None
        if await converse(
            duplex, attachment, stdin=bool(asked.open_stdin), detector=detector, framed=True
        ):
            await _finish(call, duplex, identity, waiting)
        else:
            await duplex.close()
    finally:
        if killer is not None:
            killer.cancel()
        await attachment.close()
    return Hijacked()


_KILLS: set[asyncio.Future[None]] = set()


def _kill(call: Call, identity: str) -> None:
    async def kill() -> None:
        with contextlib.suppress(TareError):
            await call.engine.containers.kill(identity, "SIGKILL")

    task = asyncio.ensure_future(kill())
    _KILLS.add(task)  # the loop itself keeps only a weak reference
    task.add_done_callback(_KILLS.discard)


async def _doctor(call: Call) -> web.StreamResponse:
    return answer(system.checks(await call.engine.doctor()))


async def _bootstrap(call: Call) -> web.StreamResponse:
    packages = [
        name for value in call.query.getall("packages", []) for name in value.split(",") if name
    ]

    async def work(say: Callable[[dict[str, object]], None]) -> None:
        found = await call.engine.images.bootstrap(
            call.text("suite"),
            variant=call.text("variant"),
            packages=packages,
            mirror=call.text("mirror"),
            reference=call.text("tag"),
            progress=lambda text: say({"status": text}),
        )
        say({"status": f"Made {', '.join(found.tags) or found.id}", "id": str(found.id)})

    return await told(call, work)


def install(routes: Routes) -> None:
    """Add the paths of this module."""
    routes.add("POST", "/tare/run", _run, cancellable=True)
    routes.add("GET", "/tare/doctor", _doctor)
    routes.add("POST", "/tare/images/bootstrap", _bootstrap)
