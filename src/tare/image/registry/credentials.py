"""Who we are to a registry: credentials as values, and the forms they arrive in.

Docker's clients send them with each request (``X-Registry-Auth``: base64url of JSON); the engine
keeps none. What is stored for one registry is for that one host: a header that names another is
not used.

Not for: the client's own file of them (``client.credentials``), or using them (``auth``).
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from typing import Final, Self

from tare.errors import InvalidError
from tare.image.registry.settings import HUB, HUB_SEARCH
from tare.model import strict_json
from tare.model.reference import DEFAULT_DOMAIN
from tare.model.strict_json import Fields

_LIMIT: Final = 64 << 10
_HUB_NAMES: Final = frozenset({DEFAULT_DOMAIN, HUB, HUB_SEARCH, "registry.hub.docker.com", ""})
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What one registry was given; nothing of it is ever printed. Falsy when it is empty."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)
    server: str = ""

    def __bool__(self) -> bool:
        return bool(self.username or self.identity_token or self.registry_token)

    @property
    def basic(self) -> str:
        """The value of an Authorization header."""
        raw = f"{self.username}:{self.password}".encode()
        return "Basic " + base64.b64encode(raw).decode("ascii")

    def meant_for(self, host: str) -> Self | None:
        """These, if they are for *host* or name no host; else None."""
        if not self:
            return None
        named = server_host(self.server)
        if not self.server or named == host or (named in _HUB_NAMES and host in _HUB_NAMES):
            return self
        return None


def server_host(server: str) -> str:
    """The host of a server address, as Docker writes it: ``https://index.docker.io/v1/``."""
    rest = server.partition("://")[2] or server
    return rest.partition("/")[0].lower()


def from_fields(fields: Fields) -> Credentials:
    """Docker's AuthConfig."""
    username, password = fields.text("username"), fields.text("password")
    packed = fields.text("auth")
    if packed and not username:
        try:
            plain = base64.b64decode(packed, validate=True).decode().rstrip("\0")
        except (binascii.Error, UnicodeDecodeError):
            fields.refuse("auth", "is not base64 of USER:PASSWORD")
        username, _, password = plain.partition(":")
    found = Credentials(
        username=username,
        password=password,
        identity_token=fields.text("identitytoken"),
        registry_token=fields.text("registrytoken"),
        server=fields.text("serveraddress"),
    )
    # They go into headers: a line end would be the end of one (RFC 9110, 5.5).
    for text in (found.username, found.identity_token, found.registry_token):
        if _CONTROL.search(text):
            raise InvalidError("the credentials contain a character that none have")
    return found


def parse(raw: bytes) -> Credentials:
    """A document of Docker's AuthConfig."""
    what = "registry credentials"
    return from_fields(Fields(strict_json.decode(raw, what, limit=_LIMIT), what))


def from_header(value: str) -> Credentials:
    """``X-Registry-Auth``; an empty or absent one is nobody."""
    if not value:
        return Credentials()
    if len(value) > 2 * _LIMIT:
        raise InvalidError("the header X-Registry-Auth is too long")
    try:
        # Clients differ in padding and alphabet.
        plain = value.translate(str.maketrans("-_", "+/")).rstrip("=")
        raw = base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidError("the header X-Registry-Auth is not base64") from None
    return parse(raw) if raw.strip() not in (b"", b"null") else Credentials()
