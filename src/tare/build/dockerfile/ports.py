"""What EXPOSE names: ``80``, ``8000-8010/udp``, and the ``-p`` forms that it tolerates."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final

from tare.build.dockerfile.words import quoted

_PROTOCOLS: Final = ("tcp", "udp", "sctp")


@dataclass(frozen=True, slots=True)
class Exposed:
    """The ports of one word; ``mapped`` where it names an address or a host's port as well."""

    first: int
    last: int
    protocol: str
    mapped: bool

    def names(self) -> list[str]:
        """``80/tcp`` for each."""
        protocol = self.protocol.lower()
        return [f"{port}/{protocol}" for port in range(self.first, self.last + 1)]


def read_port(text: str) -> Exposed:
    """The ports of *text*; ValueError in BuildKit's words. The protocol's letters are kept."""
    address, host, container = _parts(text)
    port, _, protocol = container.partition("/")
    if not port:
        raise ValueError(f"invalid port: {quoted(text)}: no port specified")
    if protocol.lower() not in ("", *_PROTOCOLS):
        raise ValueError(f"invalid port: {quoted(text)}: invalid proto: {protocol}")
    _check_address(address)
    try:
        first, last = _range(port)
    except ValueError:
        raise ValueError(f"invalid containerPort: {port}") from None
    if host:
        try:
            host_first, host_last = _range(host)
        except ValueError:
            raise ValueError(f"invalid hostPort: {host}") from None
        if last - first not in (0, host_last - host_first):
            raise ValueError(
                f"invalid ranges specified for container and host Ports: {port} and {host}"
            )
    return Exposed(first, last, protocol or "tcp", bool(address or host))


def _parts(text: str) -> tuple[str, str, str]:
    *before, container = text.split(":")
    if not before:
        return "", "", container
    *address, host = before
    return ":".join(address), host, container


def _check_address(text: str) -> None:
    if not text:
        return
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        ipaddress.ip_address(bare)
    except ValueError:
        raise ValueError(f"invalid IP address: {bare}") from None


def _range(text: str) -> tuple[int, int]:
    start, _, end = text.partition("-")
    first = _port(start)
    last = _port(end) if "-" in text else first
    if last < first:
        raise ValueError("invalid port range")
    return first, last


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= 65535):
        raise ValueError("value out of range")
    return int(text)
