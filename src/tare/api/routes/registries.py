"""What is asked of registries: pull, push, login, search, and what a name stands for there."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from tare.api.call import Call, answer
from tare.api.routes.telling import Say, told
from tare.api.routing import Routes
from tare.errors import InvalidError
from tare.image.registry import credentials
from tare.image.registry.credentials import Credentials, server_host
from tare.image.registry.pull import LayerKept, LayerNotice, Notice
from tare.image.registry.push import PushNotice
from tare.model.reference import Reference
from tare.wire import registry

_HEADER: Final = "X-Registry-Auth"
_SEARCH_LIMIT: Final = 25
_SEARCH_MOST: Final = 100


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


async def _push(call: Call) -> web.StreamResponse:
    reference = Reference.parse(call.ref)
    tag = call.text("tag")
    if tag:
        reference = reference.with_tag(tag)
    who = given(call)
    registries = call.engine.registries

    async def work(say: Say) -> None:
        def tell(told: Notice | PushNotice) -> None:
            say(registry.push_line(told))

        tell(Notice(f"The push refers to repository [{reference.name}]"))
        if reference.tag is None:
            done = await registries.push_all(reference, tell, credentials=who)
        else:
            done = [await registries.push(reference, tell, credentials=who)]
        for one in done:
            say(registry.pushed(one))

    return await told(call, work)


async def _distribution(call: Call) -> web.StreamResponse:
    reference = Reference.parse(call.ref)
    found = await call.engine.registries.describe(reference, credentials=given(call))
    return answer(registry.distribution(found.descriptor, found.platforms))


async def _manifest(call: Call) -> web.StreamResponse:
    reference = Reference.parse(call.ref)
    found = await call.engine.registries.describe(reference, credentials=given(call))
    body = {
        **registry.distribution(found.descriptor, found.platforms),
        "Manifest": found.raw.decode(),
    }
    return answer(body)


async def _search(call: Call) -> web.StreamResponse:
    wanted = call.filters("is-automated", "is-official", "stars")
    limit = call.number("limit") or _SEARCH_LIMIT
    if not 1 <= limit <= _SEARCH_MOST:
        raise InvalidError(f"limit {limit} is outside the range of [1, {_SEARCH_MOST}]")
    results = await call.engine.registries.search(call.text("term"), limit, credentials=given(call))
    stars = max((_stars(text) for text in wanted.get("stars", ())), default=0)
    official = [text.lower() in ("1", "true") for text in wanted.get("is-official", ())]
    automated = [text.lower() in ("1", "true") for text in wanted.get("is-automated", ())]
    chosen = [
        one
        for one in results
        if one.stars >= stars
        and all(one.official == word for word in official)
        and all(one.automated == word for word in automated)
    ]
    return answer(registry.found(chosen))


def _stars(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InvalidError(f"invalid filter 'stars={text[:40]}'")
    return int(text)


def install(routes: Routes) -> None:
    """Add the paths of this module."""
    routes.add("POST", "/auth", _auth)
    routes.add("POST", "/images/{ref}/push", _push, cancellable=True)
    routes.add("GET", "/images/search", _search)
    routes.add("GET", "/distribution/{ref}/json", _distribution)
    routes.add("GET", "/distribution/{ref}/manifest", _manifest)
