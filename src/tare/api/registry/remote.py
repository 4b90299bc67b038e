"""What another registry has, for ``tare registry ls HOST``: repositories, or the tags of one."""

from __future__ import annotations

from tare.engine import config
from tare.engine.paths import Paths
from tare.errors import InvalidError, MissingError
from tare.image.registry.client import Repository
from tare.image.registry.credentials import from_header
from tare.image.registry.settings import check_host, endpoint
from tare.image.registry.transport import AnswerError, Host, Transport, limited
from tare.model import strict_json
from tare.model.distribution import DistributionError, repository_name
from tare.model.strict_json import Fields

_PAGE_MAX = 4 << 20
_PAGES_MAX = 1000
_ASKED = 1000


def names_host(text: str) -> bool:
    """Does *text* begin with a registry, as names of images do, rather than with a repository?"""
    head = text.partition("/")[0]
    return head == "localhost" or "." in head or ":" in head


async def listed(text: str, header: str) -> list[str]:
    """The repositories of ``HOST``, or the tags of ``HOST/REPOSITORY`` with its name.

    *header* is what Docker's clients send as ``X-Registry-Auth``.
    """
    name, _, path = text.partition("/")
    settings = config.load(Paths.detect().config).registries
    async with Transport(settings) as transport:
        place = await transport.find(endpoint(check_host(name)))
        host = Host(transport, place, from_header(header))
        if path:
            tags = await Repository(host, repository_name(path)).tags()
            return [f"{name}/{path}:{tag}" for tag in tags]
        return [f"{name}/{found}" for found in await _catalog(host)]


async def _catalog(host: Host) -> list[str]:
    """Every repository; a registry whose pages do not end is refused."""
    what = f"the list of repositories of {host.name}"
    found: dict[str, None] = {}
    last = ""
    for _ in range(_PAGES_MAX):
        more = {"last": last} if last else {}
        try:
            answer = await host.request(
                "GET",
                host.url("v2/_catalog", n=str(_ASKED), **more),
                scope="registry:catalog:*",
            )
        except AnswerError as error:
            if error.status in (404, 405):
                raise MissingError(f"{host.name} does not list its repositories") from error
            raise
        document = strict_json.decode(await limited(answer, _PAGE_MAX, what), what, limit=_PAGE_MAX)
        page = Fields(document, what).texts("repositories") or ()
        known = len(found)
        try:
            found.update(dict.fromkeys(map(repository_name, page)))
        except DistributionError as error:
            raise InvalidError(f"{what}: {error}") from None
        if "Link" not in answer.headers or len(found) == known:
            return list(found)
        last = page[-1]
    raise InvalidError(f"{what} has more than {_PAGES_MAX} pages")
