"""The order of a container's networks, and which of them is its way out. Pure.

Not for: addresses (engine.address_book).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import replace

from tare.kernel.interfaces import Interface
from tare.model.networking import Joined, NetworkRecord
from tare.model.record import Record


def ordered(
    found: Sequence[tuple[Joined, NetworkRecord]],
) -> list[tuple[Joined, NetworkRecord]]:
    """The preferred first, as Docker does it: by priority, then those that lead out, by name."""
    return sorted(found, key=lambda one: (-one[0].wish.priority, one[1].spec.internal, one[1].name))


def with_ipv6_way_out(
    links: Sequence[Interface], places: Sequence[Joined]
) -> tuple[Interface, ...]:
    """*links* (of *places*) with a way out for IPv6, should the network that leads out lack it."""
    first = next((one for one in places if one.default_route), None)
    other = next((one for one in places if one.ipv6_gateway), None)
    if first is None or other is None or first.ipv6_gateway:
        return tuple(links)
    return tuple(
        replace(link, gateways=(other.ipv6_gateway,)) if place is other else link
        for link, place in zip(links, places, strict=True)
    )


def way_out(places: Sequence[Joined]) -> Joined | None:
    """The place whose network is the way to the world."""
    return next((place for place in places if place.gateway or place.ipv6_gateway), None)


def free_number(record: Record) -> int:
    """The number of a further interface: the lowest that none has."""
    names = (joined.interface for joined in record.networks)
    numbers = {int(match[1]) for name in names if (match := re.search("([0-9]+)$", name))}
    return next(n for n in range(len(numbers) + 1) if n not in numbers)


def random_mac() -> str:
    """A MAC address of its own for what has no IP address."""
    return ":".join(f"{byte:02x}" for byte in (0x02, 0x42, *secrets.token_bytes(4)))
