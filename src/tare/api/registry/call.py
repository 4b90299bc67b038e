"""One request to the registry: its parameters, its body in pieces, its answer.

Every wait on the client is bounded: a body comes in at no less than a MiB in two minutes, and an
answer is taken at no less, else the connection is closed.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Concatenate, Final, ParamSpec, TypeVar
from urllib.parse import quote

import msgspec
from aiohttp import web
from multidict import CIMultiDict

from tare import __version__
from tare.image.registry_store.engine_images import EngineImages
from tare.image.registry_store.settings import ServeSettings
from tare.image.registry_store.store import RegistryStore
from tare.model.distribution import Code, ContentDigest, DistributionError

PIECE: Final = 1 << 20
PIECE_SECONDS: Final = 120.0
HEADERS: Final = {
    "Docker-Distribution-Api-Version": "registry/2.0",
    "Server": f"tare/{__version__}",
    "X-Content-Type-Options": "nosniff",
}
_STEP_MAX: Final = 16 << 20
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_RANGE: Final = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
_ENCODER: Final = msgspec.json.Encoder()
_T = TypeVar("_T")
_P = ParamSpec("_P")


@dataclass(frozen=True, slots=True)
class Site:
    """What every request needs of the server."""

    store: RegistryStore
    engine: EngineImages | None
    settings: ServeSettings

    async def ask(
        self,
        question: Callable[Concatenate[EngineImages, _P], _T | None],
        *arguments: _P.args,
        **named: _P.kwargs,
    ) -> _T | None:
        """What the engine's images answer, in a thread; None if they are not shown."""
        if self.engine is None:
            return None
        return await asyncio.to_thread(question, self.engine, *arguments, **named)


class Call:
    """One request; ``words`` are what the route took out of the path."""

    def __init__(self, request: web.BaseRequest, site: Site, words: tuple[str, ...]) -> None:
        self.request = request
        self.site = site
        self.words = words
        self.query = request.rel_url.query

    @property
    def head(self) -> bool:
        """Is only the head of the answer asked for?"""
        return self.request.method == "HEAD"

    def number(self, name: str, default: int, most: int) -> int:
        """A parameter from 0 on, no more than *most*; else PAGINATION_NUMBER_INVALID."""
        text = self.query.get(name)
        if text is None:
            return default
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise DistributionError(
                Code.PAGINATION_NUMBER_INVALID, f"{name} is not a number: {text[:40]!a}"
            )
        return min(int(text), most)

    def length(self) -> int | None:
        """How long the body says it is; None when it comes in chunks."""
        return self.request.content_length

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body, a MiB or more at a time; BLOB_UPLOAD_INVALID (408) if it is slow."""
        await self._go_on()
        content = self.request.content
        ended = False
        while not ended:
            held = []
            size = 0
            try:
                async with asyncio.timeout(PIECE_SECONDS):
                    while size < PIECE and not ended:
                        data = await content.readany()
                        held.append(data)
                        size += len(data)
                        ended = not data
            except TimeoutError:
                self.hang_up()
                raise DistributionError(
                    Code.BLOB_UPLOAD_INVALID, "the body came too slowly", status=408
                ) from None
            if size:
                yield b"".join(held)

    async def whole(self, limit: int) -> bytes:
        """The whole body; SIZE_INVALID (413) if it is longer than *limit*."""
        if (self.length() or 0) > limit:
            self.hang_up()
            raise _too_large(limit)
        body = bytearray()
        async for piece in self.pieces():
            body += piece
            if len(body) > limit:
                self.hang_up()
                raise _too_large(limit)
        return bytes(body)

    async def _go_on(self) -> None:
        """Ask for the body of a client that waits to be asked (RFC 9110, 10.1.1)."""
        if self.request.headers.get("Expect", "").lower() == "100-continue":
            transport = self.request.transport
            if transport is not None:
                transport.write(_CONTINUE)

    def hang_up(self) -> None:
        """Close the connection after the answer: what still comes in would be read for nothing."""
        self.request.protocol.close()

    async def send_file(self, path: Path, size: int, headers: dict[str, str]) -> web.StreamResponse:
        """A file, or the range of it that was asked for, by sendfile(2)."""
        try:
            file = await asyncio.to_thread(path.open, "rb")
        except FileNotFoundError:
            raise DistributionError(Code.BLOB_UNKNOWN, "the blob was deleted") from None
        with file:
            start, count, response = self._ranged(size, headers)
            await response.prepare(self.request)
            if not self.head:
                await self._send_range(file, start, start + count)
        return response

    async def _send_range(self, file: IO[bytes], start: int, end: int) -> None:
        """sendfile(2), in steps that grow while the client takes them at once."""
        loop = asyncio.get_running_loop()
        most = PIECE
        while start < end:
            transport = self.request.transport
            if transport is None:
                raise ConnectionResetError("the client is gone")
            began = loop.time()
            step = min(most, end - start)
            async with _Patience():
                if await loop.sendfile(transport, file, start, step) != step:
                    raise ConnectionResetError("the file is shorter than it was")
            start += step
            most = min(most * 2, _STEP_MAX) if loop.time() - began < 1 else PIECE

    async def send_pieces(
        self, make: Callable[[], Iterator[bytes]], size: int, headers: dict[str, str]
    ) -> web.StreamResponse:
        """Bytes that are made as they are sent; of a range, what is before it is made too."""
        start, count, response = self._ranged(size, headers)
        if self.head:
            await response.prepare(self.request)
            return response
        pieces = await asyncio.to_thread(make)
        await response.prepare(self.request)
        skip, left = start, count
        while left:
            piece = await asyncio.to_thread(next, pieces, b"")
            if not piece:
                raise ConnectionResetError("the content is shorter than it should be")
            if skip >= len(piece):
                skip -= len(piece)
                continue
            piece = piece[skip : skip + left]
            skip, left = 0, left - len(piece)
            async with _Patience():
                await response.write(piece)
        return response

    def _ranged(self, size: int, headers: dict[str, str]) -> tuple[int, int, web.StreamResponse]:
        chosen = chosen_range(self.request.headers.get("Range", ""), size)
        whole = chosen is None or self.head
        start, count = (0, size) if chosen is None or self.head else chosen
        response = web.StreamResponse(status=200 if whole else 206)
        response.headers.update({**HEADERS, **headers, "Accept-Ranges": "bytes"})
        if not whole:
            response.headers["Content-Range"] = f"bytes {start}-{start + count - 1}/{size}"
        response.content_length = count
        return start, count, response


class _Patience:
    """A bound on one wait for a client to take what it asked for."""

    def __init__(self) -> None:
        self._timeout = asyncio.timeout(PIECE_SECONDS)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *error: object) -> None:
        try:
            await self._timeout.__aexit__(*error)  # type: ignore[arg-type]  # passed on as they came
        except TimeoutError:
            raise ConnectionResetError("the client takes nothing") from None


def chosen_range(header: str, size: int) -> tuple[int, int] | None:
    """Start and length of the one range asked for; None for all (also where it is no range).

    One that begins behind the end is SIZE_INVALID (416). Several ranges at once are answered
    with all, as RFC 9110, 14.2 allows: nobody needs them, and they multiply an answer.
    """
    match = _RANGE.fullmatch(header)
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        count = min(int(match[2]), size)
        start = size - count
    else:
        start = int(match[1])
        end = min(int(match[2]), size - 1) if match[2] else size - 1
        if match[2] and int(match[2]) < start:
            return None
        count = end - start + 1
    if start >= size or count <= 0:
        raise DistributionError(
            Code.SIZE_INVALID,
            "the range lies behind the end",
            status=416,
            headers={"Content-Range": f"bytes */{size}"},
        )
    return start, count


def answer(
    status: int = 200,
    body: object = None,
    *,
    headers: dict[str, str] | None = None,
    content_type: str = "application/json",
) -> web.Response:
    """An answer with *body* as JSON, or with bytes as they are, or empty."""
    raw = b"" if body is None else body if isinstance(body, bytes) else _ENCODER.encode(body)
    told = CIMultiDict({**HEADERS, **(headers or {})})
    if raw:
        told["Content-Type"] = content_type
    return web.Response(status=status, body=raw or None, headers=told)


def refused(error: DistributionError) -> web.Response:
    """What the specification says an error looks like."""
    body = {"errors": [{"code": str(error.code), "message": str(error)}]}
    return answer(error.http_status, body, headers=error.headers)


def described(digest: ContentDigest) -> dict[str, str]:
    """The headers that go with content of that digest."""
    return {"Docker-Content-Digest": str(digest), "ETag": f'"{digest}"'}


def next_page(path: str, **parameters: str | int) -> dict[str, str]:
    """The header that names the next page of a list."""
    query = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in parameters.items())
    return {"Link": f'<{path}?{query}>; rel="next"'}


async def in_thread(future: asyncio.Future[_T]) -> _T:
    """Wait for *future* to its end even when this task is cancelled: its thread is not."""
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise


def _too_large(limit: int) -> DistributionError:
    return DistributionError(
        Code.SIZE_INVALID, f"the document is larger than {limit >> 20} MiB", status=413
    )
