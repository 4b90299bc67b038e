"""What is asked of registries: pulling images, and whether credentials are good."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from tare.api.call import Call, answer
from tare.api.routes.telling import Say, told
from tare.api.routing import Routes
from tare.image.registry import credentials
from tare.image.registry.credentials import Credentials, server_host
from tare.image.registry.pull import LayerKept, LayerNotice, Notice
from tare.model.reference import Reference
from tare.wire import registry

_HEADER: Final = "X-Registry-Auth"


def given(call: Call) -> Credentials:
    """The credentials that came with a request."""
    return credentials.from_header(call.request.headers.get(_HEADER, ""))


async def pull(call: Call, reference: Reference) -> web.StreamResponse:
    """``POST /images/create?fromImage=``; neither tag nor digest means every tag."""
    platform = registry.platform(call.text("platform"))
    who = given(call)
    registries = call.engine.registries

    async def work(say: Say) -> None:
        lines = registry.PullLines()

        def tell(told: Notice | LayerNotice | LayerKept) -> None:
            for line in lines.of(told):
                say(line)

        every = reference.tag is None and reference.digest is None
        verb = registries.pull_all if every else registries.pull
        await verb(reference, tell, credentials=who, platform=platform)

    return await told(call, work)


async def _auth(call: Call) -> web.StreamResponse:
    body = await call.body()
    who = credentials.parse(body or b"{}")
    await call.engine.registries.login(who, server_host(who.server))
    return answer({"Status": "Login Succeeded", "IdentityToken": ""})


def install(routes: Routes) -> None:
    """Add the paths of this module."""
    routes.add("POST", "/auth", _auth)
