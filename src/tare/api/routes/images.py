"""``/images`` and ``/commit``: what is in the store, what goes in, what comes out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Final

from aiohttp import web

from tare.api.call import Call, answer, done, stream
from tare.api.routes import registries
from tare.api.routes.archives import send
from tare.api.routes.telling import told
from tare.api.routing import Routes
from tare.errors import FailedError, InvalidError, MissingError, TareError, UnsupportedError
from tare.model.reference import Reference
from tare.trust.switch import Mode
from tare.wire import body, image
from tare.wire import trust as wire_trust

_BUILDKIT: Final = "docker.io/moby/buildkit"
_LIST_FILTERS: Final = ("before", "dangling", "label", "reference", "since", "until")


async def _list(call: Call) -> web.StreamResponse:
    wanted = call.filters(*_LIST_FILTERS)
    images = await call.engine.images.list()
    bounds = {
        name: [(await call.engine.images.get(ref)).created_ns for ref in wanted.get(name, ())]
        for name in ("before", "since")
    }
    used: list[str] = []
    if call.flag("shared-size") or call.minor >= 42:
        records = await call.engine.containers.list(all=True, filters={})
        used = [record.image_id for record in records]
    trust = call.engine.trust
    judged = trust.configured or trust.mode is Mode.ON
    found = [
        {
            **image.summary(one, used.count(str(one.id))),
            **({"Tare": {"Trust": await _standing(call, str(one.id))}} if judged else {}),
        }
        for one in images
        if image.matches(one, wanted)
        and all(one.created_ns < bound for bound in bounds["before"])
        and all(one.created_ns > bound for bound in bounds["since"])
    ]
    found.sort(key=lambda one: str(one["Created"]).zfill(20), reverse=True)
    return answer(found)


async def _standing(call: Call, identity: str) -> str:
    try:
        return str((await call.engine.trust.verdict(identity)).standing)
    except TareError:
        return "unknown"  # the policy cannot be read: `tare trust` says why


async def _inspect(call: Call) -> web.StreamResponse:
    found = await call.engine.images.get(call.ref)
    try:
        shown = wire_trust.verdict(await call.engine.trust.verdict(str(found.id), call.ref))
    except TareError as error:
        shown = {"Verdict": "unknown", "Accepted": False, "Reasons": [str(error)]}
    return answer({**image.inspect(found), "Tare": {"Trust": shown}})


async def _history(call: Call) -> web.StreamResponse:
    found = await call.engine.images.get(call.ref)
    return answer(image.history(found, await call.engine.images.history(call.ref)))


async def _tag(call: Call) -> web.StreamResponse:
    repository, tag = call.text("repo"), call.text("tag")
    if not repository:
        raise InvalidError("repo must be given")
    await call.engine.images.tag(call.ref, f"{repository}:{tag}" if tag else repository)
    return done(201)


async def _remove(call: Call) -> web.StreamResponse:
    removed = await call.engine.images.remove(call.ref, force=call.flag("force"))
    return answer([{one.kind.capitalize(): one.name} for one in removed])


async def _prune(call: Call) -> web.StreamResponse:
    wanted = call.filters("dangling", "until", "label", "label!")
    dangling = all(word.lower() not in ("0", "false") for word in wanted.get("dangling", ()))
    removed, freed = await call.engine.images.prune(
        dangling,
        {name: values for name, values in wanted.items() if name != "dangling"},
        dry=call.flag("dry-run"),
        without=[name for text in call.query.getall("without", []) for name in text.split(",")],
    )
    deleted = [{one.kind.capitalize(): one.name} for one in removed]
    return answer({"ImagesDeleted": deleted or None, "SpaceReclaimed": freed})


async def _create(call: Call) -> web.StreamResponse:
    source = call.text("fromSrc")
    if source:
        return await _import(call, source)
    name, tag = call.text("fromImage").removesuffix(":"), call.text("tag")
    if not name:
        raise InvalidError("fromImage or fromSrc must be given")
    separator = "@" if ":" in tag else ":"
    reference = Reference.parse(f"{name}{separator}{tag}" if tag else name)
    try:
        return await registries.pull(call, reference)
    except TareError as error:
        if reference.name != _BUILDKIT:
            raise
        # What a docker client with buildx does where the engine is no BuildKit.
        raise FailedError(
            "docker build with buildx needs BuildKit in a container, and its image cannot be"
            f" pulled ({error}). Build without it: DOCKER_BUILDKIT=0 docker build, or tare build"
        ) from error


async def _import(call: Call, source: str) -> web.StreamResponse:
    if source != "-":
        raise UnsupportedError(
            "importing from a URL is not supported", hint="send the archive itself"
        )

    async def work(say: Callable[[dict[str, object]], None]) -> None:
        found = await call.engine.images.import_(
            call.request.content.iter_any(),
            repository=call.text("repo"),
            tag=call.text("tag"),
            changes=call.query.getall("changes", []),
            message=call.text("message"),
        )
        say({"status": str(found.id)})

    return await told(call, work)


async def _load(call: Call) -> web.StreamResponse:
    async def work(say: Callable[[dict[str, object]], None]) -> None:
        def progress(text: str) -> None:
            if not call.flag("quiet"):
                say({"status": text})

        loaded = await call.engine.images.load(call.request.content.iter_any(), progress)
        for reference in loaded:
            kind = "Loaded image ID" if reference.startswith("sha256:") else "Loaded image"
            say({"stream": f"{kind}: {reference}\n"})

    return await told(call, work)


async def _save(call: Call, names: list[str]) -> web.StreamResponse:
    kind = call.text("format", "docker-archive")
    if kind not in ("docker-archive", "oci"):
        raise InvalidError(f"invalid format: {kind[:40]!r}; docker-archive and oci are there")
    for name in names:
        await call.engine.images.get(name)  # a wrong name is an answer, not a broken archive
    response = stream("application/x-tar")
    chunks: AsyncIterator[bytes] = call.engine.images.save(names, format=kind)
    await send(call, response, chunks)
    return response


async def _save_one(call: Call) -> web.StreamResponse:
    return await _save(call, [call.ref])


async def _save_many(call: Call) -> web.StreamResponse:
    names = [name for value in call.query.getall("names", []) for name in value.split(",") if name]
    if not names:
        raise InvalidError("no image was named")
    return await _save(call, names)


async def _commit(call: Call) -> web.StreamResponse:
    asked = await call.json(body.CONFIG)
    record = await call.engine.containers.get(call.text("container"))
    repository, tag = call.text("repo"), call.text("tag")
    changes = [line for text in call.query.getall("changes", []) for line in text.split("\n")]
    base = None
    try:
        base = (await call.engine.images.get(record.image_id)).config
    except MissingError:
        pass  # the image was removed by force; the container remembers what it needs
    config = image.committed(
        base, record.spec, asked, author=call.text("author"), message=call.text("comment")
    )
    identity = await call.engine.containers.commit(
        record.id,
        config,
        repository=repository,
        tag=tag,
        changes=[line for line in changes if line.strip()],
        pause=call.flag("pause", True),
    )
    return answer({"Id": identity}, 201)


def install(routes: Routes) -> None:
    """Add the paths of this module."""
    routes.add("GET", "/images/json", _list)
    routes.add("GET", "/images/get", _save_many)
    routes.add("POST", "/images/load", _load)
    routes.add("POST", "/images/create", _create, cancellable=True)
    routes.add("POST", "/images/prune", _prune)
    routes.add("GET", "/images/{ref}/json", _inspect)
    routes.add("GET", "/images/{ref}/history", _history)
    routes.add("GET", "/images/{ref}/get", _save_one)
    routes.add("POST", "/images/{ref}/tag", _tag)
    routes.add("DELETE", "/images/{ref}", _remove)
    routes.add("POST", "/commit", _commit)
