"""Answers to a registry's challenge: Basic, or a Bearer token of its token server.

distribution, "Token Authentication Specification". Whom credentials are shown to (attack A32):

1. the registry they are stored for: scheme, host and port alike;
2. its token server, if that is the same host, one known to belong to it, or configured so;
3. nobody else: another token server is asked without credentials, and only for public content;
4. never by plain HTTP, except to a registry that is itself reached so.

Not for: opening connections (``transport``).
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import urlencode

from yarl import URL

from tare.errors import DeniedError, FailedError, InvalidError
from tare.image.registry.credentials import Credentials
from tare.image.registry.settings import Settings, is_loopback
from tare.model import strict_json
from tare.model.strict_json import Fields

TOKEN_MAX: Final = 1 << 20
_TOKEN_TEXT: Final = re.compile(r"[A-Za-z0-9._~+/=:-]{1,65536}")
_SCHEME: Final = re.compile(r"[\s,]*([A-Za-z][A-Za-z0-9-]*)(?:\s+|(?=,)|$)")
_COMMA: Final = re.compile(r"\s*,?\s*")
_PARAMETER: Final = re.compile(r'([A-Za-z][A-Za-z0-9_-]*)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_LIFE: Final = 60  # seconds, where a token does not say
_EARLY: Final = 10
_CLIENT: Final = "tare"


class UnauthorizedError(DeniedError):
    """The registry does not know who we are, or that it is us."""

    http_status = 401


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way in which a registry wants to be told who asks."""

    scheme: str
    parameters: Mapping[str, str]


def challenges(header: str) -> list[Challenge]:
    """The challenges of a WWW-Authenticate header, as far as they can be read."""
    found: list[Challenge] = []
    at = 0
    while at < len(header):
        scheme = _SCHEME.match(header, at)
        if scheme is None or header[scheme.end() : scheme.end() + 1] == "=":
            break
        at = scheme.end()
        parameters: dict[str, str] = {}
        while match := _PARAMETER.match(header, at):
            value = match[3] if match[2] is None else re.sub(r"\\(.)", r"\1", match[2])
            parameters.setdefault(match[1].lower(), value)
            at = match.end()
            comma = _COMMA.match(header, at)
            at = comma.end() if comma else at
        found.append(Challenge(scheme[1].lower(), parameters))
    return found


class Fetch(Protocol):
    """How a token server is asked: a GET, or a POST of a form; the body, or an error."""

    async def __call__(self, url: URL, *, authorization: str, form: bytes | None) -> bytes:
        """The body of the answer."""
        ...


class Access:
    """What is shown to one registry, and the tokens it gave for it."""

    def __init__(
        self, base: URL, settings: Settings, credentials: Credentials | None, fetch: Fetch
    ) -> None:
        self._base = base
        self._settings = settings
        self._credentials = credentials
        self._fetch = fetch
        self._basic = False
        self._tokens: dict[str, tuple[str, float]] = {}
        self._challenges: dict[str, str] = {}

    def header(self, scope: str) -> str:
        """The Authorization that is known to do for *scope*; "" when none is."""
        if self._credentials and self._credentials.registry_token:
            return f"Bearer {self._credentials.registry_token}"
        token, until = self._tokens.get(scope, ("", 0.0))
        if token and time.monotonic() < until:
            return f"Bearer {token}"
        if self._basic and self._credentials:
            return self._credentials.basic
        return ""

    async def refresh(self, scope: str) -> None:
        """Have a fresh token where one has run out: a body that is a stream is sent only once."""
        header = self._challenges.get(scope, "")
        if header and not self.header(scope):
            await self.answer(header, scope)

    async def answer(self, header: str, scope: str) -> bool:
        """Take up a challenge; False when there is nothing (more) to say to it."""
        shown = self.header(scope)
        for challenge in challenges(header):
            match challenge.scheme:
                case "bearer" if not (self._credentials and self._credentials.registry_token):
                    wanted = challenge.parameters.get("scope", "") or scope
                    self._tokens.pop(scope, None)
                    self._challenges[scope] = header
                    self._tokens[scope] = await self._token(challenge, _joined(scope, wanted))
                    return True
                case "basic" if self._credentials and self._credentials.username:
                    if shown.startswith("Basic "):
                        return False
                    self._basic = True
                    return True
        return False

    async def _token(self, challenge: Challenge, scope: str) -> tuple[str, float]:
        realm = self._realm(challenge.parameters.get("realm", ""))
        credentials = self._credentials
        # Steps 1 to 3. The port is part of who somebody is.
        trusted = self._settings.may_see_credentials(_host(self._base), _host(realm))
        if credentials and not trusted:
            raise DeniedError(
                f"the registry {_host(self._base)} sends its users to {_host(realm)}:"
                " your credentials are not shown to it",
                hint=f'if that is right, configure token-hosts = ["{_host(realm)}"]'
                f' for [registries."{_host(self._base)}"]',
            )
        query = {"service": challenge.parameters.get("service", ""), "scope": scope}
        form: bytes | None = None
        authorization = ""
        asked = [(k, one) for k, v in query.items() for one in v.split(" ") if one]
        if credentials and credentials.identity_token:
            # OAuth has one scope parameter, with blanks.
            form = urlencode(
                {
                    "grant_type": "refresh_token",
                    "refresh_token": credentials.identity_token,
                    "client_id": _CLIENT,
                    **{k: v for k, v in query.items() if v},
                }
            ).encode()
        elif credentials:
            authorization = credentials.basic
            asked.append(("account", credentials.username))
        url = realm if form is not None else realm.update_query(asked)
        raw = await self._fetch(url, authorization=authorization, form=form)
        return _parse_token(raw, _host(realm))

    def _realm(self, text: str) -> URL:
        try:
            realm = URL(text)
            host = realm.host
        except ValueError:
            host = None
        if not host or realm.scheme not in ("http", "https") or realm.user or realm.password:
            raise InvalidError(
                f"the registry {_host(self._base)} names no token server: {text[:200]!a}"
            )
        # Step 4.
        plain = self._base.scheme == "http" and (
            _host(realm) == _host(self._base) or is_loopback(host) == is_loopback(_host(self._base))
        )
        if realm.scheme == "http" and not plain:
            raise DeniedError(
                f"the registry {_host(self._base)} names a token server without TLS: {text[:200]!a}"
            )
        return realm


def _joined(one: str, other: str) -> str:
    return " ".join(dict.fromkeys([*one.split(), *other.split()]))


def _host(url: URL) -> str:
    """``HOST`` or ``HOST:PORT``, the port only where it is not the scheme's."""
    host = url.raw_host or ""
    host = f"[{host}]" if ":" in host else host
    return host if url.port is None or url.is_default_port() else f"{host}:{url.port}"


def _parse_token(raw: bytes, host: str) -> tuple[str, float]:
    what = f"the answer of the token server {host}"
    fields = Fields(strict_json.decode(raw, what, limit=TOKEN_MAX), what)
    token = fields.text("token") or fields.text("access_token")
    if not _TOKEN_TEXT.fullmatch(token):
        raise FailedError(f"{what} holds no token")
    life = fields.integer("expires_in") or _LIFE
    return token, time.monotonic() + max(min(life, 3600) - _EARLY, 1)
