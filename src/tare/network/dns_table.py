"""Who has which name in which network: the table that the daemon writes and the server reads.

``RUN/dns.json`` is one JSON object, replaced whole by the daemon, so a reader sees the old one or
the new one. It holds nothing that is not also in the engine's records::

    {"version": 1,
     "zones": [{"id", "name", "device", "listen": [addresses], "forward": bool,
                "hosts": [{"names": [...], "addresses": [...]}]}],
     "clients": [{"addresses": [...], "zones": [ids], "links": {alias: name}, "servers": [...]}]}

A *zone* is a network; its first host name is the one that reverse lookups give. A *client* is a
container by all of its addresses; its zones are those that it may know, the preferred first.

Not for: messages (network.dns_wire) and sockets (network.dns_server).
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypedDict

VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Host:
    """One container in one network; names in any case, the first is its own."""

    names: tuple[str, ...]
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Zone:
    """One network: where its server listens, and who is in it.

    ``forward``: whether other names may be asked of the world (False: an internal network).
    """

    id: str
    name: str
    device: str
    listen: tuple[str, ...]
    forward: bool = True
    hosts: tuple[Host, ...] = ()


@dataclass(frozen=True, slots=True)
class Client:
    """One container that asks; ``servers`` are its own (``--dns``), else the host's are used."""

    addresses: tuple[str, ...]
    zones: tuple[str, ...]
    links: Mapping[str, str] = field(default_factory=dict)
    servers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """All that the server knows."""

    zones: tuple[Zone, ...] = ()
    clients: tuple[Client, ...] = ()


def encode(table: Table) -> bytes:
    """*table* as the file's content."""
    import msgspec  # the daemon's; the server reads with what Python has

    return msgspec.json.encode({"version": VERSION, "zones": table.zones, "clients": table.clients})


def decode(content: bytes) -> Table:
    """The table of *content*; ValueError when it is not one, or of another version."""
    try:
        found = json.loads(content)
        if found["version"] != VERSION:
            raise ValueError(f"a table of version {found['version']!r}")
        return Table(
            tuple(_zone(zone) for zone in found["zones"]),
            tuple(
                Client(
                    tuple(client["addresses"]),
                    tuple(client["zones"]),
                    dict(client["links"]),
                    tuple(client["servers"]),
                )
                for client in found["clients"]
            ),
        )
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a table of names: {error!r}") from error


class _Plain(TypedDict):
    """A zone as JSON."""

    id: str
    name: str
    device: str
    listen: list[str]
    forward: bool
    hosts: list[dict[str, list[str]]]


def _zone(zone: _Plain) -> Zone:
    hosts = tuple(Host(tuple(h["names"]), tuple(h["addresses"])) for h in zone["hosts"])
    listen = tuple(zone["listen"])
    return Zone(zone["id"], zone["name"], zone["device"], listen, zone["forward"], hosts)


class _Names:
    """One zone, indexed."""

    __slots__ = ("by_address", "by_name", "forward", "name")

    def __init__(self, zone: Zone) -> None:
        self.name, self.forward = zone.name, zone.forward
        self.by_name: dict[str, list[str]] = {}
        self.by_address: dict[str, str] = {}
        for host in zone.hosts:
            for name in dict.fromkeys(name.lower() for name in host.names):
                self.by_name.setdefault(name, []).extend(host.addresses)
            for address in host.addresses:
                self.by_address[address] = host.names[0]


class Directory:
    """A table made ready for lookups: who asks decides what is found."""

    def __init__(self, table: Table) -> None:
        self._zones = {zone.id: _Names(zone) for zone in table.zones}
        self._clients: dict[tuple[str, str], Client] = {}
        for client in table.clients:
            # Two networks may know the same address: only together with the zone it is one.
            for address in client.addresses:
                for zone in client.zones:
                    self._clients[zone, address] = client

    def client(self, zone: str, address: str) -> Client:
        """The container at *address* in *zone*; one that is not known belongs to that zone only."""
        found = self._clients.get((zone, address))
        return found if found is not None else Client((address,), (zone,))

    def find(self, client: Client, name: str) -> list[str] | None:
        """The addresses of *name* (lower case) for *client*; None when it knows no such name."""
        linked = client.links.get(name)
        wanted = linked.lower() if linked is not None else name
        for zone in self._of(client):
            found = zone.by_name.get(wanted)
            if found is not None:
                return found
        # "web.backend" is "web" in the network "backend".
        head, dot, tail = wanted.partition(".")
        while dot:
            for zone in self._of(client):
                if zone.name.lower() == tail:
                    found = zone.by_name.get(head)
                    if found is not None:
                        return found
            more, dot, tail = tail.partition(".")
            head = f"{head}.{more}"
        return None

    def reverse(self, client: Client, address: str) -> str | None:
        """``NAME.NETWORK`` of *address* for *client*, or None."""
        for zone in self._of(client):
            found = zone.by_address.get(address)
            if found is not None:
                return f"{found}.{zone.name}"
        return None

    def forwards(self, client: Client) -> bool:
        """Whether names of the world are asked for *client*: one of its networks leads there."""
        return any(zone.forward for zone in self._of(client))

    def _of(self, client: Client) -> Iterable[_Names]:
        return (self._zones[one] for one in client.zones if one in self._zones)


def packed(address: str) -> bytes:
    """The 4 or 16 bytes of an address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.inet_pton(family, address)
