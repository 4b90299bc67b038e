"""Who answers to which name: the engine's records as the name server's table. Pure.

In a network of a user's making a container has its name, its short id, its aliases there and its
host name if it was given one. In the default network nobody has a name, as in Docker.

Not for: how names are looked up (tare.network.dns_table).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass

from tare.model.networking import BRIDGE, Joined, NetworkRecord, NetworkWish
from tare.model.record import Record
from tare.network.dns_table import Client, Host, Table, Zone


def names_of(record: Record, wish: NetworkWish, network: NetworkRecord) -> tuple[str, ...]:
    """The names of a container in a network, its own first."""
    if network.name == BRIDGE:
        return ()
    hostname = record.spec.hostname if record.spec.hostname != record.id[:12] else ""
    found = (record.name, *wish.aliases, record.id[:12], hostname)
    return tuple(dict.fromkeys(name for name in found if name))


def serves(network: NetworkRecord) -> bool:
    """Whether names are answered in a network: on the addresses of its bridge."""
    return network.spec.driver == "bridge" and bool(network.interface)


def servers_of(network: NetworkRecord) -> tuple[str, ...]:
    """The addresses on which names of a network are answered, IPv4 first."""
    if not serves(network):
        return ()
    found = [wish.gateway for wish in network.spec.subnets if wish.gateway]
    return tuple(sorted(found, key=lambda address: ":" in address))


@dataclass(frozen=True, slots=True)
class Part:
    """What one container adds to the table: a host in each network, and itself as a client."""

    networks: tuple[Joined, ...]
    name: str
    hosts: tuple[tuple[str, Host], ...]  # network, host
    client: Client | None

    def holds(self, record: Record) -> bool:
        """Whether it is still what *record* adds; links are looked up each time."""
        unchanged = self.networks is record.networks and self.name == record.name
        return unchanged and not (self.client is not None and self.client.links)


def part(record: Record, served: Container[str], linked: Callable[[str], str]) -> Part:
    """What *record* adds in the *served* networks; *linked* names a container by reference."""
    places = [one for one in record.networks if one.network_id in served and one.addresses]
    hosts = []
    for place in places:
        names = _current_names(record, place)
        if names:
            hosts.append((place.network_id, Host(names, place.addresses)))
    client = None
    if places:
        client = Client(
            tuple(address for place in places for address in place.addresses),
            tuple(place.network_id for place in places),
            _links(places, linked),
            record.spec.dns,
        )
    return Part(record.networks, record.name, tuple(hosts), client)


def table(networks: Iterable[NetworkRecord], parts: Iterable[Part]) -> Table:
    """The table of *networks* that names are answered in, and of the containers there."""
    by_id = {one.id: one for one in networks}
    hosts: dict[str, list[Host]] = {}
    clients = []
    for one in parts:
        if one.client is None:
            continue
        clients.append(one.client)
        for identity in one.client.zones:
            hosts.setdefault(identity, [])
        for identity, host in one.hosts:
            hosts[identity].append(host)
    zones = tuple(
        Zone(
            identity,
            by_id[identity].name,
            by_id[identity].interface,
            servers_of(by_id[identity]),
            not by_id[identity].spec.internal,
            tuple(inhabitants),
        )
        for identity, inhabitants in hosts.items()
        if identity in by_id
    )
    return Table(zones, tuple(clients))


def _current_names(record: Record, place: Joined) -> tuple[str, ...]:
    """The names recorded at the start, with the container's name of now if it was renamed."""
    if not place.names:
        return ()
    return tuple(dict.fromkeys((record.name, *place.names[1:])))


def _links(places: Iterable[Joined], linked: Callable[[str], str]) -> dict[str, str]:
    found = {}
    for place in places:
        for link in place.wish.links:
            target, _, alias = link.partition(":")
            name = linked(target)
            if name:
                found[(alias or target).lower()] = name
    return found
