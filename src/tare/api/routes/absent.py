"""What tare does not have yet: an honest 501, and empty lists where clients only look.

docs/api-coverage.md lists the same; a test compares the two.
"""

from __future__ import annotations

from typing import Final

from aiohttp import web

from tare.api.call import Call, answer
from tare.api.routing import Handler, Routes
from tare.errors import UnsupportedError

ABSENT: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "attaching by WebSocket is not supported": (("GET", "/containers/{ref}/attach/ws"),),
    "BuildKit's protocol is not spoken: use tare build, or DOCKER_BUILDKIT=0": (
        ("POST", "/session"),
        ("POST", "/grpc"),
    ),
    "cluster volumes are not supported": (("PUT", "/volumes/{ref}"),),
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


async def _plugins(call: Call) -> web.StreamResponse:
    return answer([])


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
    routes.add("GET", "/plugins", _plugins)
