"""One repository of one registry: manifests, blobs, tags, uploads (distribution-spec 1.1).

Whatever comes back is bounded and compared with what was announced before it is used: a manifest
with the digest it was asked by, a blob's size with its descriptor. What a blob holds is verified
by whoever reads it (``layers``). Not for: which host to ask (``pull``), how (``transport``).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import aiohttp
from yarl import URL

from tare.errors import FailedError, InvalidError, TareError, UnsupportedError
from tare.image.registry.transport import AnswerError, Host, LineError, limited
from tare.model import oci, strict_json
from tare.model.digest import Digest
from tare.model.oci import CONFIG_MAX, MANIFEST_MAX, Descriptor, MediaType
from tare.model.strict_json import Fields

ACCEPT: Final = ", ".join(
    (
        MediaType.OCI_INDEX,
        MediaType.OCI_MANIFEST,
        MediaType.DOCKER_INDEX,
        MediaType.DOCKER_MANIFEST,
        "*/*",
    )
)
_SCHEMA_1: Final = "application/vnd.docker.distribution.manifest.v1"
_PAGES_MAX: Final = 200
_TAGS_MAX: Final = 20_000
_PAGE_MAX: Final = 4 << 20
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_LINK: Final = re.compile(r'<([^<>"]{1,2048})>\s*;\s*rel="?next"?')
_RANGE: Final = re.compile(r"(?:bytes=)?0-(\d{1,18})")
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(?:\d{1,18}|\*)")


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest or an index as the registry keeps it."""

    media_type: str
    raw: bytes

    @property
    def digest(self) -> Digest:
        """What it is addressed by."""
        return Digest.of(self.raw)

    def parse(self) -> oci.Manifest | oci.Index:
        """What it says; what tare does not read is refused with a sentence."""
        if self.media_type.startswith(_SCHEMA_1):
            raise UnsupportedError(
                "the image is of Docker's manifest schema 1, which is not supported any more",
                hint="push it again with a current client",
            )
        return oci.parse_manifest(self.raw, self.media_type)


class Repository:
    """A repository, ``library/debian``, on a host that is reached."""

    def __init__(self, host: Host, path: str, *, push: bool = False) -> None:
        self.host = host
        self.path = path
        self._scope = f"repository:{path}:{'pull,push' if push else 'pull'}"

    def __str__(self) -> str:
        return f"{self.host.name}/{self.path}"

    def _url(self, what: str, **query: str) -> URL:
        return self.host.url(f"v2/{self.path}/{what}", **query)

    async def _get(self, url: URL, limit: int, what: str) -> tuple[bytes, aiohttp.ClientResponse]:
        response = await self.host.request(
            "GET", url, scope=self._scope, headers={"Accept": ACCEPT}
        )
        return await limited(response, limit, what), response

    # --- manifests ----------------------------------------------------------------------------

    async def head(self, reference: str | Digest) -> Descriptor | None:
        """What a tag or digest names now, in the registry's words; None if it does not say."""
        response = await self.host.request(
            "HEAD",
            self._url(f"manifests/{reference}"),
            scope=self._scope,
            headers={"Accept": ACCEPT},
        )
        response.release()
        told = response.headers.get("Docker-Content-Digest", "")
        with contextlib.suppress(InvalidError):
            return Descriptor(
                media_type=_media_type(response),
                digest=Digest.parse(told),
                size=response.content_length or 0,
            )
        return None

    async def manifest(self, reference: str | Digest | Descriptor) -> Document:
        """The document of a tag, a digest or a descriptor, verified against the latter two."""
        asked = reference.digest if isinstance(reference, Descriptor) else reference
        what = f"the manifest {asked} of {self}"
        if isinstance(reference, Descriptor) and reference.size > MANIFEST_MAX:
            raise InvalidError(f"{what} would be {reference.size} bytes: more than {MANIFEST_MAX}")
        raw, response = await self._get(self._url(f"manifests/{asked}"), MANIFEST_MAX, what)
        found = Document(_media_type(response), raw)
        if isinstance(asked, Digest) and found.digest != asked:
            raise InvalidError(f"{what} is not what it says it is: it is {found.digest}")
        told = response.headers.get("Docker-Content-Digest", "")
        if told.startswith("sha256:") and told != str(found.digest):
            raise InvalidError(f"{what} was sent as {told[:80]!a} and is {found.digest}")
        if isinstance(reference, Descriptor):
            if len(raw) != reference.size:
                raise InvalidError(f"{what} has {len(raw)} bytes; {reference.size} were announced")
            if found.media_type and found.media_type != reference.media_type:
                raise InvalidError(
                    f"{what} was announced as {reference.media_type[:80]!a}"
                    f" and sent as {found.media_type[:80]!a}"
                )
        return found

    async def put_manifest(self, reference: str | Digest, document: Document) -> None:
        """Give *document* to the registry, by a tag or its digest."""
        response = await self.host.request(
            "PUT",
            self._url(f"manifests/{reference}"),
            scope=self._scope,
            headers={"Content-Type": document.media_type},
            body=document.raw,
        )
        response.release()
        told = response.headers.get("Docker-Content-Digest", "")
        if told.startswith("sha256:") and told != str(document.digest):
            raise FailedError(f"{self} took {document.digest} and calls it {told[:80]!a}")

    async def referrers(self, digest: Digest) -> Document | None:
        """The index of what refers to a manifest; None if the registry does not keep one."""
        what = f"the list of what refers to {digest}"
        try:
            raw, response = await self._get(self._url(f"referrers/{digest}"), MANIFEST_MAX, what)
        except AnswerError as error:
            if error.status in (400, 404, 405, 501):
                return None
            raise
        return Document(_media_type(response), raw)

    async def tags(self) -> list[str]:
        """Every tag, over as many pages as are reasonable."""
        url = self._url("tags/list")
        found: dict[str, None] = {}
        seen = set()
        for _ in range(_PAGES_MAX):
            seen.add(url)
            what = f"the list of tags of {self}"
            raw, response = await self._get(url, _PAGE_MAX, what)
            listed = Fields(strict_json.decode(raw, what, limit=_PAGE_MAX), what)
            found.update(dict.fromkeys(listed.texts("tags") or ()))
            if len(found) > _TAGS_MAX:
                raise InvalidError(f"{what} has more than {_TAGS_MAX} entries")
            link = _LINK.search(response.headers.get("Link", ""))
            if link is None:
                break
            url = self.host.elsewhere(url, link[1])
            if url in seen or url.origin() != self.host.place.url.origin():
                raise InvalidError(f"{what} does not end: it leads to {str(url)[:200]!a}")
        else:
            raise InvalidError(f"{what} has more than {_PAGES_MAX} pages")
        for tag in found:
            if not _TAG.fullmatch(tag):
                raise InvalidError(f"{what} has {tag[:80]!a}, which is no tag")
        return list(found)

    # --- blobs --------------------------------------------------------------------------------

    async def config(self, descriptor: Descriptor) -> bytes:
        """The small blob of an image's configuration, verified."""
        what = f"the configuration {descriptor.digest}"
        if descriptor.size > CONFIG_MAX:
            raise InvalidError(f"{what} would be {descriptor.size} bytes: more than {CONFIG_MAX}")
        raw, _ = await self._get(self._url(f"blobs/{descriptor.digest}"), descriptor.size, what)
        if len(raw) != descriptor.size:
            raise InvalidError(f"{what} has {len(raw)} bytes; {descriptor.size} were announced")
        if Digest.of(raw) != descriptor.digest:
            raise InvalidError(f"{what} is not what it says it is: it is {Digest.of(raw)}")
        return raw

    async def open_blob(self, digest: Digest, start: int = 0) -> tuple[aiohttp.ClientResponse, int]:
        """An answer with a blob's bytes, and the position of its first: *start*, or 0.

        Registries may not know ranges; then the blob begins at 0.
        """
        headers = {"Range": f"bytes={start}-"} if start else {}
        response = await self.host.request(
            "GET", self._url(f"blobs/{digest}"), scope=self._scope, headers=headers
        )
        if response.status != 206:
            return response, 0
        told = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if told is None or int(told[1]) != start:
            response.close()
            raise InvalidError(f"{self} sent another part of {digest} than it was asked for")
        return response, start

    async def has_blob(self, digest: Digest) -> int | None:
        """The size of a blob that is there; None if it is not."""
        try:
            response = await self.host.request(
                "HEAD", self._url(f"blobs/{digest}"), scope=self._scope
            )
        except AnswerError as error:
            if error.status in (404, 400, 405):
                return None
            raise
        response.release()
        return response.content_length or 0

    async def mount(self, digest: Digest, origin: str) -> bool | URL:
        """Have a blob of the repository *origin* of this registry here, without sending it.

        True if it is; else where an upload has begun, or False.
        """
        # A token for both repositories may be asked for; registries that refuse just upload.
        scope = f"{self._scope} repository:{origin}:pull"
        url = self._url("blobs/uploads/", mount=str(digest), **{"from": origin})
        try:
            response = await self.host.request(
                "POST", url, scope=scope, headers={"Content-Length": "0"}
            )
        except TareError:
            return False
        response.release()
        if response.status == 201:
            return True
        return self._location(response) if response.status == 202 else False

    def _location(self, response: aiohttp.ClientResponse) -> URL:
        return self.host.elsewhere(response.url, response.headers.get("Location", ""))

    async def begin_upload(self) -> tuple[URL, int]:
        """Where a blob may be sent, and the least size of a chunk that the registry asks for."""
        response = await self.host.request(
            "POST",
            self._url("blobs/uploads/"),
            scope=self._scope,
            headers={"Content-Length": "0"},
        )
        response.release()
        least = response.headers.get("OCI-Chunk-Min-Length", "")
        return self._location(response), int(least) if least.isdigit() and len(least) < 12 else 0

    async def send_part(self, where: URL, body: AsyncIterator[bytes], start: int, size: int) -> URL:
        """Send *size* bytes of a blob, the first of them at *start*; where the next go."""
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(size),
            "Content-Range": f"{start}-{start + size - 1}",
        }
        response = await self.host.request(
            "PATCH", where, scope=self._scope, headers=headers, body=body
        )
        response.release()
        return self._location(response)

    async def sent(self, where: URL) -> tuple[URL, int]:
        """How much of an upload the registry has."""
        response = await self.host.request("GET", where, scope=self._scope)
        response.release()
        told = _RANGE.fullmatch(response.headers.get("Range", ""))
        has = int(told[1]) + 1 if told else 0
        location = response.headers.get("Location", "")
        # An upload of nothing is told as 0-0, and so is one of a byte: a byte more is no harm.
        return (self._location(response) if location else where), 0 if has == 1 else has

    async def finish_upload(
        self, where: URL, digest: Digest, body: AsyncIterator[bytes] | None = None, size: int = 0
    ) -> None:
        """Say that all was sent, or send it all in *body*; the registry verifies it."""
        response = await self.host.request(
            "PUT",
            where.update_query(digest=str(digest)),
            scope=self._scope,
            headers={
                "Content-Type": "application/octet-stream",
                "Content-Length": str(size if body is not None else 0),
            },
            body=body,
        )
        response.release()

    async def abandon_upload(self, where: URL) -> None:
        """Tell the registry that no more will come, if it cares."""
        with contextlib.suppress(TareError):
            response = await self.host.request("DELETE", where, scope=self._scope)
            response.release()


async def ping(host: Host) -> None:
    """See that the registry answers, and that it takes our credentials."""
    response = await host.request("GET", host.url("v2/"))
    response.release()


def _media_type(response: aiohttp.ClientResponse) -> str:
    told = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    # Registries that keep any file, and web servers, do not know better.
    return "" if told in ("application/json", "application/octet-stream", "text/plain") else told


__all__ = ["ACCEPT", "Document", "LineError", "Repository", "ping"]
