"""Which container has which address, for all networks of one engine.

Kept in memory: records say what running containers have, and a new daemon reads it from there.
Addresses go round, so that one that was just given up is given out last; but a container gets
the one it had before if it can, and one that another container asks for by number is not given
out by itself.

Not for: which addresses a subnet has (tare.network.addresses).
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

from tare.network import addresses
from tare.network.values import Address, Subnet

if TYPE_CHECKING:
    from tare.engine.store import Store


class AddressBook:
    """The addresses in use, by network."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._used: dict[str, dict[Address, str]] = {}  # network -> address -> container
        self._last: dict[tuple[str, int], Address] = {}

    def take(
        self, container: str, network: str, subnet: Subnet, asked: str, before: str
    ) -> Address:
        """An address for *container*: *asked* for by number, or the one of *before*, or the next.

        ConflictError when it is in use, with its holder's name, or when none is left.
        """
        used = self._used.setdefault(network, {})
        if asked:
            holders = {address: self._called(one) for address, one in used.items()}
            address = addresses.check_address(subnet, ip_address(asked), holders)
        else:
            unfree = used.keys() | self._reserved(network, container)
            earlier = ip_address(before) if before else None
            if (
                earlier is not None
                and earlier in (subnet.range or subnet.prefix)
                and earlier not in unfree
                and earlier != subnet.gateway
            ):
                address = earlier
            else:
                key = (network, subnet.prefix.version)
                address = addresses.next_address(subnet, unfree, self._last.get(key))
                self._last[key] = address
        used[address] = container
        return address

    def hold(self, container: str, network: str, address: Address) -> None:
        """A running container has it already."""
        self._used.setdefault(network, {})[address] = container

    def give_back(self, container: str, network: str | None = None) -> None:
        """*container* needs its addresses no more, in one *network* or in all."""
        chosen = self._used if network is None else {network: self._used.get(network, {})}
        for used in chosen.values():
            for address in [a for a, holder in used.items() if holder == container]:
                del used[address]

    def forget(self, network: str) -> None:
        """The network is gone."""
        self._used.pop(network, None)

    def _reserved(self, network: str, but: str) -> set[Address]:
        """The addresses that other containers, running or not, have asked for by number."""
        found: set[Address] = set()
        for record in self._store.all():
            for joined in record.networks if record.id != but else ():
                if joined.network_id == network:
                    found.update(ip_address(a) for a in (joined.wish.ipv4, joined.wish.ipv6) if a)
        return found

    def _called(self, identity: str) -> str:
        record = self._store.find(identity)
        return f"the container {record.name}" if record is not None else "a container"
