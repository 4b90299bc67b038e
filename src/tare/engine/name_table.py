"""Who answers to which name: the engine's records as the name server's table. Pure.

In a network of a user's making a container has its name, its short id, its aliases there and its
host name if it was given one. In the default network nobody has a name, as in Docker.

Not for: how names are looked up (tare.network.dns_table).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

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


def table(
    networks: Iterable[NetworkRecord],
    running: Iterable[Record],
    linked: Callable[[str], str],
) -> Table:
    """The table of all *running* containers; *linked* is the name of a container by reference."""
    by_id = {one.id: one for one in networks if serves(one)}
    hosts: dict[str, list[Host]] = {}
    clients = []
    for record in running:
        places = [one for one in record.networks if one.network_id in by_id and one.addresses]
        if not places:
            continue
        for place in places:
            inhabitants = hosts.setdefault(place.network_id, [])
            names = _current_names(record, place)
            if names:
                inhabitants.append(Host(names, place.addresses))
        clients.append(
            Client(
                tuple(address for place in places for address in place.addresses),
                tuple(place.network_id for place in places),
                _links(places, linked),
                record.spec.dns,
            )
        )
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
