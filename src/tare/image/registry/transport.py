"""HTTP to registries: redirects, credentials, retries, and bounds on what strangers send.

What is refused here, whatever is asked for (attack A32):

1. plain HTTP, except to loopback and where the administrator allows it; never as a way out of a
   failed handshake with anybody else;
2. a redirect beyond the fifth, from HTTPS to HTTP, or to loopback from elsewhere;
3. addresses of the link (169.254.0.0/16 with a cloud's metadata, fe80::/10), multicast and none,
   unless the administrator named that registry;
4. credentials, once a redirect left scheme, host or port of the registry.

Bodies are taken as they are: no transparent decompression. Not for: what paths mean (``client``).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import random
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Final, Self
from urllib.request import getproxies_environment, proxy_bypass

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from tare import __version__
from tare.errors import DeniedError, FailedError, InvalidError, TareError
from tare.image.registry.auth import TOKEN_MAX, Access, UnauthorizedError
from tare.image.registry.credentials import Credentials
from tare.image.registry.settings import Settings, host_part, is_loopback
from tare.model import strict_json

REDIRECTS_MAX: Final = 5
ERROR_MAX: Final = 64 << 10
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_AGAIN: Final = frozenset({429, 500, 502, 503, 504})
_LONGEST_PAUSE: Final = 30.0
_CONNECT: Final = 20.0
_READ_BUFFER: Final = 2 << 20
_AGENT: Final = f"tare/{__version__}"

Body = bytes | AsyncIterator[bytes] | None


class LineError(FailedError):
    """The connection failed or fell silent: trying again may help."""


class AnswerError(FailedError):
    """The registry answered, and not what was asked for; ``codes`` are its own words."""

    def __init__(self, message: str, *, status: int, codes: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.codes = codes


@dataclass(frozen=True, slots=True)
class Place:
    """A registry as it is reached: ``scheme://host/prefix``."""

    scheme: str
    host: str
    prefix: str = ""

    @property
    def url(self) -> URL:
        """Where its API begins, without a slash at the end."""
        prefix = f"/{self.prefix}" if self.prefix else ""
        return URL(f"{self.scheme}://{self.host}{prefix}", encoded=True)


class _Guard(AbstractResolver):
    """Names to addresses, without those that nobody outside may point us at (step 3)."""

    def __init__(self, settings: Settings) -> None:
        self._resolver = aiohttp.ThreadedResolver()
        self._exempt = {host_part(host) for host in settings.hosts}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of *host*; OSError when it may not be spoken to."""
        found = await self._resolver.resolve(host, port, family)
        if host not in self._exempt:
            for one in found:
                if _forbidden(one["host"]):
                    raise OSError(None, f"{host} is {one['host']}, which no registry may be")
        return found

    async def close(self) -> None:
        await self._resolver.close()


def _forbidden(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    one = mapped or found
    return one.is_link_local or one.is_multicast or one.is_unspecified


class Transport:
    """Connections to registries for one piece of work; use it in ``async with``."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._contexts: dict[str, ssl.SSLContext] = {}
        connector = aiohttp.TCPConnector(resolver=_Guard(settings), limit=64, ttl_dns_cache=60)
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=_READ_BUFFER,
            trust_env=False,  # it would read credentials from ~/.netrc
            skip_auto_headers=("Accept-Encoding",),
            headers={"User-Agent": _AGENT, "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=_CONNECT, sock_read=settings.silence
            ),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def send(
        self, method: str, url: URL, *, headers: Mapping[str, str], body: Body = None
    ) -> aiohttp.ClientResponse:
        """One request, its answer's head read; LineError when there is none."""
        host = _authority(url)
        literal = url.raw_host or ""
        if _forbidden(literal) and not self.settings.known(host):  # step 3
            raise DeniedError(f"{host} is an address that no registry may have")
        if url.scheme == "http" and not self.settings.insecure(host):  # step 1
            raise DeniedError(
                f"{host} may not be spoken to without TLS",
                hint=f'[registries."{host}"] insecure = true in config.toml allows it',
            )
        try:
            return await self._session.request(
                method,
                url,
                headers=headers,
                data=body,
                allow_redirects=False,
                ssl=self._context(host) if url.scheme == "https" else True,
                proxy=_proxy(url),
            )
        except (aiohttp.ClientError, TimeoutError, OSError, ssl.SSLError) as error:
            raise LineError(
                f"{host} cannot be reached: {_said(error)}", hint=_advice(error, host)
            ) from error

    def _context(self, host: str) -> ssl.SSLContext:
        found = self._contexts.get(host)
        if found is None:
            found = self._contexts[host] = _make_context(host, self.settings)
        return found

    async def find(self, host: str) -> Place:
        """How *host* is reached. Only what may be spoken to without TLS is asked (step 1)."""
        if not self.settings.insecure(host) or has_authority(host, self.settings):
            return Place("https", host)
        first: TareError | None = None
        for scheme in ("https", "http"):
            place = Place(scheme, host)
            try:
                response = await self.send("GET", place.url / "v2/", headers={})
            except LineError as error:
                first = first or error
                continue
            response.release()
            # What answers TLS with HTTP is an error above; a proxy's error page is no registry.
            return place
        assert first is not None
        raise first


def has_authority(host: str, settings: Settings) -> bool:
    """Did the administrator say whose certificates vouch for *host*?"""
    if settings.of(host).ca is not None:
        return True
    return any(any((one / host).glob("*.crt")) for one in settings.certificates)


def _make_context(host: str, settings: Settings) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    said = settings.of(host)
    vouched = has_authority(host, settings)
    try:
        if said.ca is not None:
            context.load_verify_locations(said.ca)
        if said.certificate is not None:
            context.load_cert_chain(said.certificate, said.key)
        for directory in settings.certificates:
            for path in sorted((directory / host).glob("*.crt")):
                context.load_verify_locations(path)
            for path in sorted((directory / host).glob("*.cert")):
                context.load_cert_chain(path, path.with_suffix(".key"))
    except (OSError, ssl.SSLError) as error:
        raise FailedError(
            f"the certificates configured for {host} cannot be read: {error}"
        ) from error
    if settings.insecure(host) and not vouched:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _proxy(url: URL) -> URL | None:
    """The proxy that the daemon's environment names for *url*; loopback has none."""
    host = url.raw_host or ""
    proxies = getproxies_environment()
    if is_loopback(host) or not proxies or proxy_bypass(host):
        return None
    found = proxies.get(url.scheme)
    return URL(found) if found else None


def _authority(url: URL) -> str:
    host = url.raw_host or ""
    host = f"[{host}]" if ":" in host else host
    return host if url.explicit_port is None else f"{host}:{url.explicit_port}"


def _said(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
        # A resolver's errors have numbers of their own, and asyncio's text names the call.
        known = not isinstance(cause, ssl.SSLError) and (cause.errno or 0) > 0
        return os.strerror(cause.errno or 0) if known else str(cause.strerror or cause)
    text = str(error)
    return text or type(error).__name__


def _advice(error: BaseException, host: str) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return (
            f'if a private authority vouches for it, name it: [registries."{host}"] ca = "FILE"'
            " in config.toml"
        )
    if isinstance(error, aiohttp.ClientSSLError):
        return f'if it speaks plain HTTP: [registries."{host}"] insecure = true in config.toml'
    return (
        "see that its name is right and that the engine's host has a network; a proxy is what"
        " HTTPS_PROXY names in the engine's environment"
    )


async def limited(response: aiohttp.ClientResponse, limit: int, what: str) -> bytes:
    """The whole body; InvalidError when it is longer than *limit*, LineError when cut short."""
    found = bytearray()
    try:
        if (response.content_length or 0) > limit:
            raise InvalidError(f"{what} is {response.content_length} bytes long, more than {limit}")
        async for piece in response.content.iter_any():
            found += piece
            if len(found) > limit:
                raise InvalidError(f"{what} is longer than {limit} bytes")
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise LineError(f"{what}: {_said(error)}") from error
    finally:
        response.close() if response.content.at_eof() is False else response.release()
    return bytes(found)


class Host:
    """One registry as one user sees it: requests with authentication, redirects and retries."""

    def __init__(
        self, transport: Transport, place: Place, credentials: Credentials | None = None
    ) -> None:
        self.transport = transport
        self.place = place
        self.access = Access(place.url, transport.settings, credentials, self._fetch_token)
        self._base = place.url

    @property
    def name(self) -> str:
        """``HOST`` or ``HOST:PORT``."""
        return self.place.host

    def url(self, path: str, **query: str) -> URL:
        """An address of its API; *path* begins with ``v2/``."""
        url = URL(f"{self._base}/{path}", encoded=True)
        return url.with_query(query) if query else url

    async def request(
        self,
        method: str,
        url: URL,
        *,
        scope: str = "",
        headers: Mapping[str, str] | None = None,
        body: Body = None,
    ) -> aiohttp.ClientResponse:
        """An answer below 400, at most 5 redirects away; AnswerError, LineError when there is none.

        What changes nothing is tried again. The caller releases the answer.
        """
        settings = self.transport.settings
        attempts = settings.attempts if method in ("GET", "HEAD") else 1
        for attempt in range(1, attempts + 1):
            try:
                response = await self._authenticated(method, url, scope, headers or {}, body)
            except LineError:
                if attempt >= min(attempts, 3):
                    raise
                await asyncio.sleep(pause(settings, attempt))
                continue
            if response.status < 400:
                return response
            if response.status in _AGAIN and attempt < attempts:
                wait = pause(settings, attempt, response.headers.get("Retry-After", ""))
                response.close()
                await asyncio.sleep(wait)
                continue
            raise await failure(response)
        raise AssertionError

    async def _authenticated(
        self, method: str, url: URL, scope: str, headers: Mapping[str, str], body: Body
    ) -> aiohttp.ClientResponse:
        await self.access.refresh(scope)
        response = await self._followed(method, url, scope, headers, body)
        if response.status != 401 or not isinstance(body, bytes | None):
            return response
        if response.url.origin() != self._base.origin():
            return response  # whoever we were led to is told nothing
        header = ", ".join(response.headers.getall("WWW-Authenticate", []))
        if not await self.access.answer(header, scope):
            return response
        # A challenge to what answered the first one is the end.
        response.release()
        return await self._followed(method, url, scope, headers, body)

    async def _followed(
        self, method: str, url: URL, scope: str, headers: Mapping[str, str], body: Body
    ) -> aiohttp.ClientResponse:
        for _ in range(REDIRECTS_MAX + 1):
            told = dict(headers)
            # Step 4: only scheme, host and port of the registry itself.
            if url.origin() == self._base.origin() and (known := self.access.header(scope)):
                told["Authorization"] = known
            response = await self.transport.send(method, url, headers=told, body=body)
            if response.status not in _REDIRECTS or method not in ("GET", "HEAD"):
                return response
            where = response.headers.get("Location", "")
            response.release()
            url = self.elsewhere(url, where)
        raise FailedError(f"the registry {self.name} redirects more than {REDIRECTS_MAX} times")

    def elsewhere(self, url: URL, location: str) -> URL:
        """Where a Location leads from *url*; what may not be followed is DeniedError (step 2)."""
        try:
            found = url.join(URL(location, encoded=True))
            host = found.host
        except ValueError:
            host = None
        if not location or not host or found.scheme not in ("http", "https") or found.user:
            raise InvalidError(f"the registry {self.name} redirects to nowhere: {location[:200]!a}")
        if found.origin() == self._base.origin():
            return found
        if url.scheme == "https" and found.scheme == "http":
            raise DeniedError(f"the registry {self.name} redirects to {host}, without TLS")
        if is_loopback(host) and not is_loopback(self.name):
            raise DeniedError(f"the registry {self.name} redirects to this machine itself: {host}")
        return found

    async def _fetch_token(self, url: URL, *, authorization: str, form: bytes | None) -> bytes:
        headers = {"Authorization": authorization} if authorization else {}
        if form is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        method = "GET" if form is None else "POST"
        settings = self.transport.settings
        for attempt in range(1, settings.attempts + 1):
            response = await self.transport.send(method, url, headers=headers, body=form)
            if response.status not in _AGAIN or attempt == settings.attempts:
                break
            wait = pause(settings, attempt, response.headers.get("Retry-After", ""))
            response.close()
            await asyncio.sleep(wait)
        if response.status in _REDIRECTS:
            response.release()
            raise DeniedError(f"the token server {url.host} redirects: that is not followed")
        if response.status >= 400:
            raise await failure(response)
        return await limited(response, TOKEN_MAX, f"the answer of the token server {url.host}")


def pause(settings: Settings, attempt: int, asked: str = "") -> float:
    """How long to wait after *attempt* failed: twice as long each time, and not all at once."""
    if asked.isascii() and asked.isdigit() and len(asked) < 6:
        return min(float(asked), _LONGEST_PAUSE)
    longest = min(settings.back_off * float(2 ** (attempt - 1)), _LONGEST_PAUSE)
    return longest * random.uniform(0.75, 1.0)  # noqa: S311  # no secret


async def failure(response: aiohttp.ClientResponse) -> TareError:
    """The error that an answer of 400 or more is, with the registry's own words, bounded."""
    raw = b""
    with contextlib.suppress(TareError):
        raw = await limited(response, ERROR_MAX, "the error")
    words, codes = _errors(raw)
    status = response.status
    reason = response.reason or ""
    if not words:
        words = printable(f"{status} {reason[:80]}").strip()
        if status == 401:
            words = "unauthorized: authentication required"
    message = f"{response.method} {response.url.with_query(None)}: {words}"
    if status == 401:
        return UnauthorizedError(message)
    return AnswerError(message, status=status, codes=codes)


def _errors(raw: bytes) -> tuple[str, tuple[str, ...]]:
    """distribution-spec, "Error Codes"; anything else says nothing."""
    try:
        document = strict_json.decode(raw, "error", limit=ERROR_MAX)
    except InvalidError:
        return "", ()
    listed = document.get("errors")
    if not isinstance(listed, list):
        details = document.get("details")
        return (printable(details[:400]), ()) if isinstance(details, str) else ("", ())
    words, codes = [], []
    for one in listed[:8]:
        if isinstance(one, dict):
            code, message = one.get("code"), one.get("message")
            code = code[:60] if isinstance(code, str) else "unknown"
            codes.append(code)
            text = message[:400] if isinstance(message, str) else ""
            words.append(f"{code.lower().replace('_', ' ')}: {text}" if text else code.lower())
    return printable("; ".join(words)), tuple(codes)


def printable(text: str) -> str:
    """*text* of a stranger, without what a terminal would obey: clients print it as it is."""
    return "".join(c if c.isprintable() else " " for c in text)
