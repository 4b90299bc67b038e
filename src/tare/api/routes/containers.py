"""``/containers``: create, lifecycle, change. Streams, archives and observation are apart."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Final

from aiohttp import web

from tare.api.call import Call, answer, done, encoded, stream
from tare.api.routing import Routes
from tare.errors import InvalidError
from tare.model.record import ExitInfo
from tare.wire import body, container, create
from tare.wire.resources import resources, restart_policy, ulimits

_LIST_FILTERS: Final = (
    "ancestor", "before", "expose", "exited", "health", "id", "is-task", "isolation", "label",
    "name", "network", "publish", "since", "status", "volume",
)  # fmt: skip
_CONDITIONS: Final = ("not-running", "next-exit", "removed")


async def make(
    call: Call, asked: body.CreateBody, name: str, platform: str
) -> tuple[str, list[str]]:
    """Create the container that *asked* describes: its id, and warnings."""
    if not asked.image:
        raise InvalidError("invalid container config: no image was named")
    image = await call.engine.images.get(asked.image)
    create.check_platform(platform, asked.image, image.config)
    spec, warnings = create.create(asked, str(image.id), image.config)
    identity, more = await call.engine.containers.create(spec, create.container_name(name))
    return identity, [*warnings, *more]


async def _create(call: Call) -> web.StreamResponse:
    asked = await call.json(body.CREATE)
    identity, warnings = await make(call, asked, call.text("name"), call.text("platform"))
    return answer({"Id": identity, "Warnings": warnings}, 201)


async def _list(call: Call) -> web.StreamResponse:
    limit = call.number("limit") or 0
    everything = call.flag("all") or limit > 0
    records = await call.engine.containers.list(
        all=everything, filters=call.filters(*_LIST_FILTERS)
    )
    if limit > 0:
        records = records[:limit]
    found = [container.summary(record) for record in records]
    if call.flag("size"):
        for one, record in zip(found, records, strict=True):
            one["SizeRw"], one["SizeRootFs"] = await call.engine.containers.sizes(record.id)
    return answer(found)


async def _inspect(call: Call) -> web.StreamResponse:
    containers = call.engine.containers
    record = await containers.get(call.ref)
    sizes = await containers.sizes(record.id) if call.flag("size") else None
    return answer(container.inspect(record, call.engine.execs.of(record.id), sizes))


async def _start(call: Call) -> web.StreamResponse:
    # A body (HostConfig at start) ended with API 1.24.
    changed = await call.engine.containers.start(call.ref)
    return done(204 if changed else 304)


async def _stop(call: Call) -> web.StreamResponse:
    changed = await call.engine.containers.stop(
        call.ref, timeout=call.number("t"), signal=_signal(call)
    )
    return done(204 if changed else 304)


def _signal(call: Call) -> str:
    text = call.text("signal")
    return create.stop_signal(text) if text else ""


async def _restart(call: Call) -> web.StreamResponse:
    await call.engine.containers.restart(call.ref, timeout=call.number("t"), signal=_signal(call))
    return done()


async def _kill(call: Call) -> web.StreamResponse:
    await call.engine.containers.kill(call.ref, _signal(call) or "SIGKILL")
    return done()


async def _pause(call: Call) -> web.StreamResponse:
    await call.engine.containers.pause(call.ref)
    return done()


async def _unpause(call: Call) -> web.StreamResponse:
    await call.engine.containers.unpause(call.ref)
    return done()


async def _rename(call: Call) -> web.StreamResponse:
    name = call.text("name")
    if not name.strip("/"):
        raise InvalidError("Neither old nor new names may be empty")
    await call.engine.containers.rename(call.ref, create.container_name(name))
    return done()


async def _update(call: Call) -> web.StreamResponse:
    asked = await call.json(body.UPDATE)
    if asked.devices or ulimits(asked.ulimits):
        raise InvalidError("devices and ulimits of a container cannot be updated")
    policy = restart_policy(asked.restart_policy) if asked.restart_policy else None
    limits = resources(asked, updating=True)
    if asked.pids_limit is not None and asked.pids_limit <= 0:
        limits = replace(limits, pids=-1)  # here 0 was said, not left out
    warnings = await call.engine.containers.update(call.ref, limits, policy)
    return answer({"Warnings": list(warnings)})


async def _remove(call: Call) -> web.StreamResponse:
    if call.flag("link"):
        raise InvalidError("links between containers are not supported")
    await call.engine.containers.remove(call.ref, force=call.flag("force"), volumes=call.flag("v"))
    return done()


async def _wait(call: Call) -> web.StreamResponse:
    condition = call.text("condition") or "not-running"
    if condition not in _CONDITIONS:
        raise InvalidError(f"invalid condition: {condition[:40]!r}")
    # The client starts the container when it has our headers: the wait is on before that.
    waiting = call.engine.containers.waiter(call.ref, condition)
    if waiting.done():
        return answer(exit_body(waiting.result()))
    response = stream()
    await response.prepare(call.request)
    await response.write(encoded(exit_body(await asyncio.shield(waiting))))
    await response.write_eof()
    return response


def exit_body(ended: ExitInfo) -> dict[str, object]:
    """The answer of wait. Its ``Error`` is for a wait that failed, which ours does not."""
    return {"StatusCode": ended.code}


async def _prune(call: Call) -> web.StreamResponse:
    pruned = await call.engine.containers.prune(
        call.filters("until", "label", "label!"), dry=call.flag("dry-run")
    )
    return answer({"ContainersDeleted": list(pruned.deleted), "SpaceReclaimed": pruned.reclaimed})


def install(routes: Routes) -> None:
    """Add the paths of this module."""
    routes.add("POST", "/containers/create", _create)
    routes.add("POST", "/containers/prune", _prune)
    routes.add("GET", "/containers/json", _list)
    routes.add("GET", "/containers/{ref}/json", _inspect)
    for verb, handler in (
        ("start", _start),
        ("stop", _stop),
        ("restart", _restart),
        ("kill", _kill),
        ("pause", _pause),
        ("unpause", _unpause),
        ("rename", _rename),
        ("update", _update),
    ):
        routes.add("POST", f"/containers/{{ref}}/{verb}", handler)
    routes.add("POST", "/containers/{ref}/wait", _wait, cancellable=True)
    routes.add("DELETE", "/containers/{ref}", _remove)
