"""Which handler answers which path: the end-points of the distribution specification.

A name may contain words such as ``blobs`` as parts, so the last one of a path counts. The words
that a path gives are checked by the handlers, against the grammar, before anything is made of them.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import unquote

from aiohttp import web

from tare.api.registry import blobs, listings, manifests, uploads
from tare.api.registry.call import Call
from tare.model.distribution import Code, DistributionError

Handler = Callable[[Call], Awaitable[web.StreamResponse]]
READING: Final = frozenset(("GET", "HEAD"))


def _reading(handler: Handler) -> dict[str, Handler]:
    return {"GET": handler, "HEAD": handler}


_TABLE: Final[dict[str, dict[str, Handler]]] = {
    "/v2/?": _reading(listings.version),
    "/v2/_catalog": _reading(listings.catalog),
    "/v2/(.+)/tags/list": _reading(listings.tags),
    "/v2/(.+)/referrers/([^/]+)": _reading(listings.referrers),
    "/v2/(.+)/blobs/uploads/?": {"POST": uploads.begin},
    "/v2/(.+)/blobs/uploads/([^/]+)": {
        "GET": uploads.status,
        "PATCH": uploads.append,
        "PUT": uploads.end,
        "DELETE": uploads.cancel,
    },
    "/v2/(.+)/blobs/([^/]+)": {**_reading(blobs.get), "DELETE": blobs.delete},
    "/v2/(.+)/manifests/([^/]+)": {
        **_reading(manifests.get),
        "PUT": manifests.put,
        "DELETE": manifests.delete,
    },
}
_ROUTES: Final = tuple((re.compile(path, re.DOTALL), of) for path, of in _TABLE.items())


def find(method: str, raw_path: str) -> tuple[Handler, tuple[str, ...]]:
    """The handler of a path (as it was sent) and the words in it; NAME_INVALID or UNSUPPORTED."""
    path = unquote(raw_path, errors="replace")
    for pattern, methods in _ROUTES:
        match = pattern.fullmatch(path)
        if match is not None:
            handler = methods.get(method)
            if handler is None:
                allowed = {"Allow": ", ".join(sorted(methods))}
                raise DistributionError(
                    Code.UNSUPPORTED, f"{method[:20]} is not possible here", headers=allowed
                )
            return handler, match.groups()
    raise DistributionError(
        Code.NAME_INVALID, "no path of the distribution specification", status=404
    )
