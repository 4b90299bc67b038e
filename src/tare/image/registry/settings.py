"""What an administrator says of registries: mirrors, private authorities, plain HTTP. Values.

Nothing here is said by a registry or an image. Without a word about a host it is spoken to by
HTTPS and verified; only loopback is also reached by plain HTTP, as Docker does.

Not for: reading the configuration file (``engine.config``), opening connections (``transport``).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tare.errors import InvalidError
from tare.model.reference import DEFAULT_DOMAIN

HUB: Final = "registry-1.docker.io"
"""The host that serves what is named docker.io."""

HUB_SEARCH: Final = "index.docker.io"
# Whose credentials may be shown to which other host: those that are known to work so.
_TOKEN_HOSTS: Final[Mapping[str, tuple[str, ...]]] = {
    HUB: ("auth.docker.io",),
    HUB_SEARCH: ("auth.docker.io",),
    "registry.gitlab.com": ("gitlab.com",),
}
_HOST: Final = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(?::([0-9]{1,5}))?"
)


def check_host(text: str) -> str:
    """*text* if it is ``HOST`` or ``HOST:PORT``; else InvalidError."""
    match = _HOST.fullmatch(text)
    if match is None or (match[1] is not None and not 0 < int(match[1]) < 65536):
        raise InvalidError(f"not the name of a registry: {text[:200]!a}")
    return text


def host_part(host: str) -> str:
    """``HOST`` of ``HOST:PORT``; of an IPv6 address, with brackets or without, the address."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host if host.count(":") > 1 else host.partition(":")[0]


def is_loopback(host: str) -> bool:
    """Does ``HOST`` or ``HOST:PORT`` name this machine, whatever a name server says?"""
    name = host_part(host).lower().rstrip(".")
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror:
    """Where else a registry's content may be had: tried before it, in their order."""

    host: str
    scheme: str = "https"
    path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSettings:
    """What is said of one registry.

    *insecure* allows certificates that nobody vouches for, and plain HTTP. *ca*, *certificate*
    and *key* are files. *token_hosts* are further hosts that its credentials may be shown to.
    """

    mirrors: tuple[Mirror, ...] = ()
    insecure: bool = False
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token_hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All that is said of registries.

    *certificates* are directories of Docker's layout: ``HOST:PORT/{*.crt,*.cert,*.key}``.
    *back_off* is the first pause between two attempts, in seconds; it doubles.
    """

    hosts: Mapping[str, HostSettings] = field(default_factory=dict)
    certificates: tuple[Path, ...] = ()
    downloads: int = 3
    uploads: int = 3
    attempts: int = 5
    back_off: float = 0.5
    silence: float = 60.0

    def of(self, host: str) -> HostSettings:
        """What is said of *host*; nothing is the default."""
        name = DEFAULT_DOMAIN if host in (HUB, HUB_SEARCH) else host
        return self.hosts.get(name) or self.hosts.get(host) or HostSettings()

    def known(self, host: str) -> bool:
        """Was *host* named by the administrator?"""
        return any(
            host == name or any(mirror.host == host for mirror in said.mirrors)
            for name, said in self.hosts.items()
        )

    def insecure(self, host: str) -> bool:
        """May *host* be spoken to by plain HTTP, or without a good certificate?"""
        if is_loopback(host) or self.of(host).insecure:
            return True
        mirrors = (mirror for said in self.hosts.values() for mirror in said.mirrors)
        return any(mirror.scheme == "http" and mirror.host == host for mirror in mirrors)

    def may_see_credentials(self, registry: str, realm: str) -> bool:
        """May the host *realm* be shown what is stored for *registry*?"""
        if realm == registry or realm in _TOKEN_HOSTS.get(registry, ()):
            return True
        return realm in self.of(registry).token_hosts


def endpoint(domain: str) -> str:
    """The host that serves the names of *domain*."""
    return HUB if domain == DEFAULT_DOMAIN else domain
