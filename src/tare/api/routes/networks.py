"""``/networks``: create, find, connect, disconnect, remove, prune."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from tare.api.call import Call, answer, done
from tare.api.routing import Routes
from tare.errors import InvalidError
from tare.model.networking import NetworkRecord
from tare.wire import network
from tare.wire.network import CONNECT, DISCONNECT, NETWORK

_LIST_FILTERS: Final = ("dangling", "driver", "id", "label", "name", "scope", "type")
_WITHOUT_CONTAINERS: Final = 28
"""The API version from which on the list does not say who is in a network."""


def _shown(call: Call, record: NetworkRecord) -> dict[str, object]:
    return network.network(record, call.engine.containers.inhabitants(record.id))


async def _list(call: Call) -> web.StreamResponse:
    found = call.engine.networks.list(call.filters(*_LIST_FILTERS))
    if call.minor < _WITHOUT_CONTAINERS:
        return answer([_shown(call, record) for record in found])
    return answer([network.network(record) for record in found])


async def _inspect(call: Call) -> web.StreamResponse:
    return answer(_shown(call, call.engine.networks.get(call.ref)))


async def _create(call: Call) -> web.StreamResponse:
    spec = network.network_spec(await call.json(NETWORK))
    identity, warnings = await call.engine.networks.create(spec)
    return answer({"Id": identity, "Warning": "; ".join(warnings)}, 201)


async def _connect(call: Call) -> web.StreamResponse:
    asked = await call.json(CONNECT)
    if not asked.container:
        raise InvalidError("no container was named")
    wish = network.wish(call.ref, asked.endpoint_config)
    await call.engine.containers.connect(call.ref, asked.container, wish)
    return done(200)


async def _disconnect(call: Call) -> web.StreamResponse:
    asked = await call.json(DISCONNECT)
    if not asked.container:
        raise InvalidError("no container was named")
    await call.engine.containers.disconnect(call.ref, asked.container, force=bool(asked.force))
    return done(200)


async def _remove(call: Call) -> web.StreamResponse:
    await call.engine.networks.remove(call.ref)
    return done()


async def _prune(call: Call) -> web.StreamResponse:
    deleted = await call.engine.networks.prune(
        call.filters("label", "label!", "until"), dry=call.flag("dry-run")
    )
    return answer({"NetworksDeleted": deleted})


def install(routes: Routes) -> None:
    """Add the paths of this module."""
    routes.add("GET", "/networks", _list)
    routes.add("POST", "/networks/create", _create)
    routes.add("POST", "/networks/prune", _prune)
    routes.add("GET", "/networks/{ref}", _inspect)
    routes.add("DELETE", "/networks/{ref}", _remove)
    routes.add("POST", "/networks/{ref}/connect", _connect)
    routes.add("POST", "/networks/{ref}/disconnect", _disconnect)
