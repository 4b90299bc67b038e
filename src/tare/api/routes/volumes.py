"""``/volumes``, and export and import of volumes below ``/tare``."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from tare.api.call import Call, answer, done, stream
from tare.api.routes.archives import send
from tare.api.routing import Routes
from tare.errors import InvalidError
from tare.wire import volume as wire

_LIST_FILTERS: Final = ("dangling", "driver", "label", "name")
_ALL_SINCE: Final = 42  # the API version from which prune takes anonymous volumes only


async def _list(call: Call) -> web.StreamResponse:
    found = call.engine.volumes.listed(call.filters(*_LIST_FILTERS))
    found.sort(key=lambda one: one.volume.name)
    return answer({"Volumes": [wire.status(one) for one in found], "Warnings": None})


async def _create(call: Call) -> web.StreamResponse:
    name, _, options, labels = wire.wanted(await call.json(wire.CREATE))
    volumes = call.engine.volumes
    call.engine.budgets.admit_disk()
    made = await volumes.create(name, options=options, labels=labels)
    return answer(wire.volume(made, volumes.path(made.name)), 201)


async def _inspect(call: Call) -> web.StreamResponse:
    return answer(wire.status(call.engine.volumes.status(call.ref)))


async def _remove(call: Call) -> web.StreamResponse:
    await call.engine.volumes.remove(call.ref, force=call.flag("force"))
    return done()


async def _prune(call: Call) -> web.StreamResponse:
    wanted = dict(call.filters("all", "label", "label!"))
    everything = call.minor < _ALL_SINCE
    for word in wanted.pop("all", ()):
        if word.lower() not in ("0", "1", "true", "false", "t", "f"):
            raise InvalidError(f"invalid filter 'all={word[:40]}'")
        everything = everything or word.lower() in ("1", "true", "t")
    pruned = await call.engine.volumes.prune(
        wanted, everything=everything, dry=call.flag("dry-run")
    )
    return answer(
        {"VolumesDeleted": list(pruned.deleted) or None, "SpaceReclaimed": pruned.reclaimed}
    )


async def _export(call: Call) -> web.StreamResponse:
    made = await call.engine.transfers.export(call.text("name"), pause=call.flag("pause"))
    response = stream("application/x-tar")
    response.headers["Tare-Consistency"] = made.consistency
    response.headers["Tare-Note"] = made.words.encode("ascii", "backslashreplace").decode()
    await send(call, response, made.chunks)
    return response


async def _import(call: Call) -> web.StreamResponse:
    volumes = call.engine.volumes
    call.engine.budgets.admit_disk()
    made = await call.engine.transfers.bring(
        call.text("name"), call.request.content.iter_any(), replace=call.flag("replace")
    )
    return answer(wire.volume(made, volumes.path(made.name)), 201)


def install(routes: Routes) -> None:
    """Add the paths of this module."""
    routes.add("GET", "/volumes", _list)
    routes.add("POST", "/volumes/create", _create)
    routes.add("POST", "/volumes/prune", _prune)
    routes.add("GET", "/volumes/{ref}", _inspect)
    routes.add("DELETE", "/volumes/{ref}", _remove)
    routes.add("GET", "/tare/volumes/export", _export)
    routes.add("POST", "/tare/volumes/import", _import)
