"""What there is: repositories, tags, and the manifests that are about another."""

from __future__ import annotations

import bisect

import msgspec
from aiohttp import web

from tare.api.registry.call import Call, answer, next_page
from tare.image.registry_store.engine_images import EngineImages
from tare.model.distribution import Code, ContentDigest, DistributionError, repository_name
from tare.model.oci import MANIFEST_MAX, MediaType

_PAGE = 10_000
_REFERRERS = 500


async def version(_call: Call) -> web.StreamResponse:
    """GET /v2/: this is a registry, and whoever asks may use it."""
    return answer(body={})


async def catalog(call: Call) -> web.StreamResponse:
    """GET /v2/_catalog: all repositories, a page at a time."""
    names = set(call.site.store.repositories())
    names.update(await call.site.ask(EngineImages.repositories) or ())
    page, headers = _page(call, "/v2/_catalog", sorted(names))
    return answer(body={"repositories": page}, headers=headers)


async def tags(call: Call) -> web.StreamResponse:
    """GET /v2/NAME/tags/list: all tags in lexical order, a page at a time."""
    name = repository_name(call.words[0])
    pushed = call.site.store.tags(name)
    found = set(pushed or ())
    found.update(await call.site.ask(EngineImages.tags, name) or ())
    if pushed is None and not found:
        raise DistributionError(Code.NAME_UNKNOWN, f"there is no repository {name}")
    page, headers = _page(call, f"/v2/{name}/tags/list", sorted(found))
    return answer(body={"name": name, "tags": page}, headers=headers)


def _page(call: Call, path: str, names: list[str]) -> tuple[list[str], dict[str, str]]:
    count = call.number("n", _PAGE, _PAGE)
    start = bisect.bisect_right(names, call.query["last"]) if "last" in call.query else 0
    page = names[start : start + count]
    more = page and start + count < len(names)
    return page, next_page(path, n=count, last=page[-1]) if more else {}


async def referrers(call: Call) -> web.StreamResponse:
    """GET /v2/NAME/referrers/DIGEST: an index of what is about it; empty if nothing is."""
    name, subject = repository_name(call.words[0]), ContentDigest.parse(call.words[1])
    wanted = call.query.get("artifactType", "")
    after = str(ContentDigest.parse(call.query["last"])) if "last" in call.query else ""
    store = call.site.store
    found: list[object] = []
    room = MANIFEST_MAX - 4096
    headers: dict[str, str] = {"OCI-Filters-Applied": "artifactType"} if wanted else {}
    while batch := store.referrers(name, subject, after=after, limit=_REFERRERS):
        for each in batch:
            told: dict[str, object] = {
                "mediaType": each.media_type,
                "digest": each.digest,
                "size": each.size,
            }
            if each.artifact_type:
                told["artifactType"] = each.artifact_type
            if each.annotations:
                told["annotations"] = each.annotations
            size = len(msgspec.json.encode(told)) + 1
            if size > room and found:
                more = {"artifactType": wanted} if wanted else {}
                headers |= next_page(f"/v2/{name}/referrers/{subject}", last=after, **more)
                return _index(found, headers)
            after = each.digest
            if not wanted or each.artifact_type == wanted:
                found.append(told)
                room -= size
    return _index(found, headers)


def _index(manifests: list[object], headers: dict[str, str]) -> web.StreamResponse:
    kind = str(MediaType.OCI_INDEX)
    body = {"schemaVersion": 2, "mediaType": kind, "manifests": manifests}
    return answer(body=body, headers=headers, content_type=kind)
