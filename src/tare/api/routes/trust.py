"""``/tare/trust``: the switch, trusted keys, pins, signatures and verdicts."""

from __future__ import annotations

import asyncio

from aiohttp import web

from tare.api.call import Call, answer, done
from tare.api.routes.registries import given
from tare.api.routing import Routes
from tare.errors import InvalidError, TareError
from tare.model.digest import Digest
from tare.trust.switch import Mode
from tare.wire import trust as wire


def _ref(call: Call, name: str = "ref") -> str:
    text = call.text(name)
    if not text:
        raise InvalidError(f"{name} must be given")
    return text


async def _status(call: Call) -> web.StreamResponse:
    trust = call.engine.trust
    path = trust.policy_path()
    trouble, scopes = "", 0
    try:
        scopes = len(trust.policy().scopes)
    except TareError as error:
        trouble = str(error)
    return answer(
        wire.status(
            str(trust.mode),
            trust.ring(),
            trust.kept.now(),
            policy=str(path or ""),
            trouble=trouble,
            scopes=scopes,
            set_back=trust.kept.set_back,
            followed=trust.following.states(),
        )
    )


async def _switch(call: Call) -> web.StreamResponse:
    asked = await call.json(wire.SWITCH)
    call.engine.trust.set_mode(Mode.parse(asked.mode))
    return done()


async def _add_key(call: Call) -> web.StreamResponse:
    entry = wire.trusted(await call.json(wire.KEY))
    call.engine.signing.trust_key(entry)
    return answer(wire.key(entry, call.engine.trust.kept.now()), 201)


async def _forget_key(call: Call) -> web.StreamResponse:
    call.engine.signing.forget_key(_ref(call, "key"))
    return done()


async def _revoke(call: Call) -> web.StreamResponse:
    asked = await call.json(wire.REVOKE)
    return answer({"Revoked": call.engine.signing.revoke(asked.what)})


async def _pin(call: Call) -> web.StreamResponse:
    asked = await call.json(wire.PIN)
    digest = Digest.parse(asked.digest) if asked.digest else None
    found = await call.engine.signing.pin(asked.ref, digest, replacing=asked.replace)
    return answer({"Digest": str(found)}, 201)


async def _unpin(call: Call) -> web.StreamResponse:
    call.engine.signing.unpin(_ref(call))
    return done()


async def _follow(call: Call) -> web.StreamResponse:
    asked = await call.json(wire.FOLLOW)
    given_ = wire.followed(asked)
    await asyncio.to_thread(call.engine.trust.follow, asked.scope, given_)
    return done(201)


async def _publish(call: Call) -> web.StreamResponse:
    asked = await call.json(wire.FOLLOW)
    await call.engine.signing.publish(asked.scope, wire.followed(asked), credentials=given(call))
    return done(201)


async def _unfollow(call: Call) -> web.StreamResponse:
    call.engine.trust.unfollow(_ref(call, "scope"))
    return done()


async def _subject(call: Call) -> web.StreamResponse:
    return answer(wire.subject(await call.engine.signing.subject(_ref(call))))


async def _sign(call: Call) -> web.StreamResponse:
    ref, artifacts, push = wire.signatures(await call.body())
    found = await call.engine.signing.take(ref, artifacts, push=push, credentials=given(call))
    return answer(wire.subject(found), 201)


async def _verdict(call: Call) -> web.StreamResponse:
    found, signatures = await call.engine.signing.verify(
        _ref(call), fetch=call.flag("fetch"), credentials=given(call)
    )
    return answer(wire.verified(found, signatures))


def install(routes: Routes) -> None:
    """Add the paths of this module."""
    routes.add("GET", "/tare/trust", _status)
    routes.add("POST", "/tare/trust", _switch)
    routes.add("POST", "/tare/trust/keys", _add_key)
    routes.add("DELETE", "/tare/trust/keys", _forget_key)
    routes.add("POST", "/tare/trust/revoke", _revoke)
    routes.add("POST", "/tare/trust/pins", _pin)
    routes.add("DELETE", "/tare/trust/pins", _unpin)
    routes.add("POST", "/tare/trust/follow", _follow)
    routes.add("DELETE", "/tare/trust/follow", _unfollow)
    routes.add("POST", "/tare/trust/publish", _publish)
    routes.add("GET", "/tare/trust/subject", _subject)
    routes.add("POST", "/tare/trust/signatures", _sign)
    routes.add("GET", "/tare/trust/verdict", _verdict)
