"""Searching a registry by words, where it offers Docker's old search (``/v1/search``).

Not for: catalogues (``/v2/_catalog``): most registries refuse them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tare.errors import InvalidError, UnsupportedError
from tare.image.registry.transport import AnswerError, Host, limited, printable
from tare.model import strict_json
from tare.model.strict_json import Fields

_LIMIT: Final = 1 << 20
_RESULTS_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class Result:
    """One repository that was found."""

    name: str
    description: str
    stars: int
    official: bool
    automated: bool


async def search(host: Host, words: str, limit: int) -> list[Result]:
    """At most *limit* repositories for *words*; UnsupportedError where there is no search."""
    if not words or len(words) > 255:
        raise InvalidError("search for between 1 and 255 characters")
    url = host.url("v1/search", q=words, n=str(min(limit, _RESULTS_MAX)))
    try:
        response = await host.request("GET", url, headers={"Accept": "application/json"})
    except AnswerError as error:
        if error.status in (404, 405):
            raise UnsupportedError(f"the registry {host.name} offers no search") from error
        raise
    what = f"the search result of {host.name}"
    raw = await limited(response, _LIMIT, what)
    listed = Fields(strict_json.decode(raw, what, limit=_LIMIT), what)
    found = [
        Result(
            name=printable(one.text("name")),
            description=printable(one.text("description")),
            stars=one.integer("star_count"),
            official=one.boolean("is_official"),
            automated=one.boolean("is_automated"),
        )
        for one in listed.each("results", limit=10 * _RESULTS_MAX)
    ]
    return found[:limit]
