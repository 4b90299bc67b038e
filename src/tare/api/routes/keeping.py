"""What keeps images in order: bills of materials, what is behind, pins, what a prune would take."""

from __future__ import annotations

from aiohttp import web

from tare.api.call import Call, answer
from tare.api.routing import Routes
from tare.build.sbom.documents import Format
from tare.errors import InvalidError, MissingError
from tare.image import notes
from tare.wire import building, keeping


async def _bill(call: Call) -> web.StreamResponse:
    form = Format.called(call.text("format") or "cyclonedx")
    raw = await call.engine.origins.bill(_ref(call), form)
    return web.Response(body=raw, content_type=form.media_type)


async def _provenance(call: Call) -> web.StreamResponse:
    raw = await call.engine.origins.provenance(_ref(call))
    if raw is None:
        raise MissingError(
            f"no provenance was noted for {_ref(call)}", hint="build it with --provenance"
        )
    return web.Response(body=raw, content_type=notes.PROVENANCE)


def _ref(call: Call) -> str:
    name = call.text("image")
    if not name:
        raise InvalidError("image must be given")
    return name


async def _outdated(call: Call) -> web.StreamResponse:
    names = call.query.getall("image", [])
    given = building.registry_config(call.request.headers.get("X-Registry-Config", ""))
    found = await call.engine.updates.find(names, credentials=given)
    return answer([keeping.standing(one) for one in found])


async def _pin(call: Call) -> web.StreamResponse:
    name = await call.engine.images.pin(_ref(call), pinned=not call.flag("off"))
    return answer({"Name": name})


async def _pins(call: Call) -> web.StreamResponse:
    return answer(await call.engine.images.pins())


def install(routes: Routes) -> None:
    """Add the paths of this module."""
    routes.add("GET", "/tare/images/sbom", _bill)
    routes.add("GET", "/tare/images/provenance", _provenance)
    routes.add("GET", "/tare/images/outdated", _outdated, cancellable=True)
    routes.add("GET", "/tare/images/pins", _pins)
    routes.add("POST", "/tare/images/pins", _pin)
