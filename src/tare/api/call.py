"""One request as handlers see it, and the few answers they give.

JSON is made and read with msgspec; headers that never change are made once.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
from aiohttp import web
from multidict import CIMultiDict

from tare import __version__
from tare.errors import InvalidError, TareError
from tare.wire import values
from tare.wire.body import read
from tare.wire.filters import Filters, filters
from tare.wire.system import API_VERSION

if TYPE_CHECKING:
    from tare.api.streams import HangUps
    from tare.engine.engine import Engine

_T = TypeVar("_T")

BODY_LIMIT: Final = 4 << 20
BODY_SECONDS: Final = 30.0
_ENCODER: Final = msgspec.json.Encoder()
_FALSE: Final = frozenset(("", "0", "no", "false", "none"))

HEADERS: Final = {
    "Api-Version": API_VERSION,
    "Docker-Experimental": "false",
    "Ostype": "linux",
    "Server": f"tare/{__version__} (linux)",
}
_JSON_HEADERS: Final = CIMultiDict({**HEADERS, "Content-Type": "application/json"})
_TEXT_HEADERS: Final = CIMultiDict({**HEADERS, "Content-Type": "text/plain; charset=utf-8"})
_BARE_HEADERS: Final = CIMultiDict(HEADERS)


class Call:
    """One request: where it goes, its query, its body."""

    __slots__ = ("engine", "hangups", "minor", "query", "ref", "request")

    def __init__(
        self, request: web.BaseRequest, engine: Engine, hangups: HangUps, minor: int, ref: str
    ) -> None:
        self.request = request
        self.engine = engine
        self.hangups = hangups
        self.minor = minor  # of the API version that the client speaks
        self.ref = ref
        self.query = request.rel_url.query

    def text(self, name: str, default: str = "") -> str:
        """A query parameter; NUL in one is InvalidError."""
        value = self.query.get(name, default)
        if "\0" in value:
            raise InvalidError(f"invalid parameter {name}: it contains a NUL character")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """A boolean as Docker reads it: anything but 0, no, false, none and "" is true."""
        value = self.query.get(name)
        return default if value is None else value.strip().lower() not in _FALSE

    def number(self, name: str) -> int | None:
        """A whole number, None when it is not given."""
        text = self.query.get(name, "")
        if not text:
            return None
        digits = text.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) < 11):
            raise InvalidError(f"invalid {name}: {text[:40]!r} is not a whole number")
        return int(text)

    def moment(self, name: str) -> int | None:
        """A time in ns, None when it is not given or 0."""
        text = self.query.get(name, "")
        if text in ("", "0"):
            return None
        return values.moment(text, now_ns=time.time_ns())

    def filters(self, *known: str) -> Filters:
        """The ``filters`` parameter; names that are not *known* are InvalidError."""
        return filters(self.query.get("filters"), known)

    async def body(self) -> bytes:
        """The whole body, at most 4 MiB and 30 seconds of it."""
        request = self.request
        if not request.body_exists:
            return b""
        length = request.content_length
        if length is not None and length > BODY_LIMIT:
            raise InvalidError(f"the request body is larger than {BODY_LIMIT >> 20} MiB")
        found = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while chunk := await request.content.readany():
                    found += chunk
                    if len(found) > BODY_LIMIT:
                        raise InvalidError(
                            f"the request body is larger than {BODY_LIMIT >> 20} MiB"
                        )
        except TimeoutError as error:
            raise InvalidError("the request body did not arrive in time") from error
        return bytes(found)

    async def json(self, decoder: msgspec.json.Decoder[_T]) -> _T:
        """The body as *decoder* reads it; none, and ``null``, is an empty object."""
        content = await self.body()
        return read(decoder, b"{}" if content.strip() in (b"", b"null") else content)


def encoded(value: object) -> bytes:
    """*value* as JSON and a line end, as Docker's streams have it."""
    return _ENCODER.encode(value) + b"\n"


def answer(value: object, status: int = 200) -> web.Response:
    """A JSON answer."""
    return web.Response(body=encoded(value), status=status, headers=_JSON_HEADERS)


def plain(text: str) -> web.Response:
    """A text answer."""
    return web.Response(body=text.encode(), headers=_TEXT_HEADERS)


def done(status: int = 204) -> web.Response:
    """An answer without a body."""
    return web.Response(status=status, headers=_BARE_HEADERS)


def stream(content_type: str = "application/json") -> web.StreamResponse:
    """An answer whose length is not known; the caller prepares and writes it."""
    return web.StreamResponse(headers=CIMultiDict({**HEADERS, "Content-Type": content_type}))


def refused(error: TareError) -> web.Response:
    """An error in Docker's form, with tare's hint and exit code beside the message."""
    body: dict[str, object] = {"message": str(error)}
    if error.hint:
        body["hint"] = error.hint
    if error.exit_code != 1:
        body["exitCode"] = error.exit_code
    return answer(body, error.http_status)
