"""What tare does not have yet: an honest 501, and empty lists where clients only look.

docs/api-coverage.md lists the same; a test compares the two.
"""

from __future__ import annotations

from typing import Final

from aiohttp import web

from tare.api.call import Call, answer
from tare.api.routing import Handler, Routes
from tare.errors import MissingError, UnsupportedError

ABSENT: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "attaching by WebSocket is not supported": (("GET", "/containers/{ref}/attach/ws"),),
    "building images is not supported yet": (
        ("POST", "/build"),
        ("POST", "/build/prune"),
        ("POST", "/session"),
        ("POST", "/grpc"),
    ),
    "pushing to a registry is not supported yet": (("POST", "/images/{ref}/push"),),
    "searching a registry is not supported": (("GET", "/images/search"),),
    "registries are not supported yet": (("GET", "/distribution/{ref}/json"),),
    "cluster volumes are not supported": (("PUT", "/volumes/{ref}"),),
    "networks are not supported yet": (
        ("POST", "/networks/create"),
        ("POST", "/networks/{ref}/connect"),
        ("POST", "/networks/{ref}/disconnect"),
        ("DELETE", "/networks/{ref}"),
    ),
    "plugins are not supported": (
        ("GET", "/plugins/privileges"),
        ("POST", "/plugins/pull"),
        ("POST", "/plugins/create"),
        ("GET", "/plugins/{ref}/json"),
        ("DELETE", "/plugins/{ref}"),
        *(
            ("POST", f"/plugins/{{ref}}/{v}")
            for v in ("enable", "disable", "upgrade", "push", "set")
        ),
    ),
    "checkpoints are not supported": (
        ("GET", "/containers/{ref}/checkpoints"),
        ("POST", "/containers/{ref}/checkpoints"),
    ),
}
# What Docker itself answers while a host is in no swarm: 503.
SWARM: Final = (
    "/swarm", "/nodes", "/services", "/tasks", "/secrets", "/configs",
)  # fmt: skip


class _NoSwarmError(UnsupportedError):
    """Docker's status for a node that is in no swarm."""

    http_status = 503


def _refuse(sentence: str) -> Handler:
    async def refuse(call: Call) -> web.StreamResponse:
        raise UnsupportedError(sentence)

    return refuse


async def _no_swarm(call: Call) -> web.StreamResponse:
    raise _NoSwarmError(
        "This node is not a swarm manager. Use a stack of one host instead: tare has no swarm."
    )


def _network(name: str, driver: str) -> dict[str, object]:
    return {
        "Name": name,
        "Id": (name.encode().hex() * 64)[:64],
        "Created": "1970-01-01T00:00:00Z",
        "Scope": "local",
        "Driver": driver,
        "EnableIPv4": False,
        "EnableIPv6": False,
        "IPAM": {"Driver": "default", "Options": None, "Config": []},
        "Internal": False,
        "Attachable": False,
        "Ingress": False,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": {},
        "Options": {},
        "Labels": {},
    }


_NETWORKS: Final = (_network("host", "host"), _network("none", "null"))


async def _networks(call: Call) -> web.StreamResponse:
    asked = call.filters("attachable", "dangling", "driver", "id", "label", "name", "scope", "type")
    found = [
        network
        for network in _NETWORKS
        if not asked
        or (
            all(str(network["Name"]).find(v) >= 0 for v in asked.get("name", ()))
            and all(str(network["Id"]).startswith(v) for v in asked.get("id", ()))
            and all(network["Driver"] == v for v in asked.get("driver", ()))
            and not asked.get("label")
        )
    ]
    return answer(found)


async def _inspect_network(call: Call) -> web.StreamResponse:
    for network in _NETWORKS:
        if call.ref in (network["Name"], network["Id"]):
            return answer(network)
    raise MissingError(f"network {call.ref} not found")


async def _plugins(call: Call) -> web.StreamResponse:
    return answer([])


async def _nothing_to_prune(call: Call) -> web.StreamResponse:
    return answer({"VolumesDeleted": None, "NetworksDeleted": None, "SpaceReclaimed": 0})


def install(routes: Routes) -> None:
    """Add the paths of this module."""
    for sentence, paths in ABSENT.items():
        for method, path in paths:
            routes.add(method, path, _refuse(sentence))
    for noun in SWARM:
        routes.add("GET", noun, _no_swarm)
        routes.add("GET", f"{noun}/{{ref}}", _no_swarm)
        routes.add("DELETE", f"{noun}/{{ref}}", _no_swarm)
        for verb in ("create", "init", "join", "leave", "update", "unlock"):
            routes.add("POST", f"{noun}/{verb}", _no_swarm)
        routes.add("POST", f"{noun}/{{ref}}/update", _no_swarm)
    routes.add("GET", "/networks", _networks)
    routes.add("GET", "/networks/{ref}", _inspect_network)
    routes.add("POST", "/networks/prune", _nothing_to_prune)
    routes.add("GET", "/plugins", _plugins)
