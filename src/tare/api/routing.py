"""Which handler answers a path: three dictionaries instead of a list of patterns.

Docker's paths are ``/noun``, ``/noun/REF`` and ``/noun/REF/verb``, where an image's REF may hold
slashes itself. A path is matched as it was sent and only then decoded, so an encoded slash or
dot never changes which handler answers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from aiohttp import web

from tare.errors import InvalidError, MissingError
from tare.wire.system import API_MINIMUM, API_VERSION

if TYPE_CHECKING:
    from tare.api.call import Call

Handler = Callable[["Call"], Awaitable[web.StreamResponse]]

_MINIMUM: Final = int(API_MINIMUM[2:])
_MAXIMUM: Final = int(API_VERSION[2:])
_REF: Final = "{ref}"


@dataclass(frozen=True, slots=True)
class Route:
    """A handler, and whether it may be cancelled when its client goes away."""

    handler: Handler
    cancellable: bool


class Routes:
    """All paths of the API; `add` while it is put together, `find` for each request."""

    def __init__(self) -> None:
        self._exact: dict[tuple[str, str], Route] = {}
        self._verbs: dict[tuple[str, str, str], Route] = {}
        self._bare: dict[tuple[str, str], Route] = {}

    def add(
        self, method: str, path: str, handler: Handler, *, cancellable: bool | None = None
    ) -> None:
        """Let *handler* answer *path*, which may hold ``{ref}`` once."""
        route = Route(handler, method in ("GET", "HEAD") if cancellable is None else cancellable)
        if _REF not in path:
            self._exact[method, path] = route
            return
        before, _, after = path.partition(_REF)
        noun, verb = before.strip("/"), after.strip("/")
        if verb:
            self._verbs[method, noun, verb] = route
        else:
            self._bare[method, noun] = route

    def find(self, method: str, path: str) -> tuple[Route, str]:
        """The route of *path* (version and query taken off) and the decoded REF in it."""
        if route := self._exact.get((method, path)):
            return route, ""
        noun, _, rest = path[1:].partition("/")
        ref, _, verb = rest.rpartition("/")
        if ref and (route := self._verbs.get((method, noun, verb))):
            return route, _decoded(noun, ref)
        if ref and verb == "ws":  # the one verb of two words, attach/ws
            ref, _, word = ref.rpartition("/")
            if ref and (route := self._verbs.get((method, noun, f"{word}/{verb}"))):
                return route, _decoded(noun, ref)
        if rest and (route := self._bare.get((method, noun))):
            return route, _decoded(noun, rest)
        raise MissingError("page not found")

    def listed(self) -> list[tuple[str, str]]:
        """Every method and path, for the documentation and its test."""
        found = list(self._exact)
        found += [(method, f"/{noun}/{_REF}/{verb}") for method, noun, verb in self._verbs]
        found += [(method, f"/{noun}/{_REF}") for method, noun in self._bare]
        return sorted(found, key=lambda one: (one[1], one[0]))


def _decoded(noun: str, ref: str) -> str:
    text = unquote(ref, errors="strict") if "%" in ref else ref
    if noun not in ("images", "distribution") and "/" in text:
        raise MissingError("page not found")
    if not text.isprintable() or any(part in ("", ".", "..") for part in text.split("/")):
        raise InvalidError(f"invalid reference format: {text[:80]!r}")
    return text


def version_of(path: str) -> tuple[int, str]:
    """The minor API version that *path* asks for, and the path without it."""
    if not path.startswith("/v1."):
        return _MAXIMUM, path
    number, slash, rest = path[4:].partition("/")
    if not (number.isascii() and number.isdigit() and len(number) < 4):
        raise MissingError("page not found")
    minor = int(number)
    if minor < _MINIMUM:
        raise InvalidError(
            f"client version 1.{minor} is too old. Minimum supported API version is"
            f" {API_MINIMUM}, please upgrade your client to a newer version"
        )
    if minor > _MAXIMUM:
        raise InvalidError(
            f"client version 1.{minor} is too new. Maximum supported API version is {API_VERSION}"
        )
    return minor, slash + rest
