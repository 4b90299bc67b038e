"""Networks, endpoints and ports as elements of the packet filter's sets. Pure.

The filter's rules never change (`ruleset`): what networks there are, who may send what, and what
is published is all in sets and maps. An element is written in two ways that must agree: as text
for nft(8), which loads the whole, and as bytes for the kernel, for one change.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from tare.errors import InvalidError
from tare.kernel import interfaces, nfnetlink
from tare.kernel.rtnetlink import mac_bytes
from tare.network.values import Address, Driver, Endpoint, Network, Port, Prefix, Protocol

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,15}")
_PROTOCOLS: Final = {Protocol.TCP: 6, Protocol.UDP: 17, Protocol.SCTP: 132}

BRIDGE_SETS: Final = ("speak4", "speak6", "advert6")
INET_SETS: Final = (
    "bridges", "same", "internal", "hosts", "gateways4", "gateways6", "nets4", "nets6",
    "leave4", "leave6", "at4", "at6", "any4", "any6",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Field:
    """One value: as nft writes it, and as the kernel compares it."""

    text: str
    packed: bytes


def named(name: str) -> Field:
    """The name of an interface; InvalidError if it cannot be one."""
    if not _NAME.fullmatch(name):
        raise InvalidError(f"{name!r} cannot be the name of a network interface")
    return Field(f'"{name}"', name.encode().ljust(16, b"\0"))


def hardware(mac: str) -> Field:
    """A MAC address."""
    return Field(mac, mac_bytes(mac) + bytes(2))


def address(value: Address) -> Field:
    """An address."""
    return Field(str(value), value.packed)


def _number(value: Address) -> Field:
    """An address where nft knows of no address there: a number in a packet's payload."""
    return Field(f"0x{value.packed.hex()}", value.packed)


def protocol(value: Protocol) -> Field:
    """The number of a protocol."""
    number = _PROTOCOLS[value]
    return Field(str(number), bytes((number, 0, 0, 0)))


def service(number: int) -> Field:
    """The number of a port."""
    return Field(str(number), number.to_bytes(2, "big") + bytes(2))


@dataclass(frozen=True, slots=True)
class Entry:
    """An element of the set *name* of the table in *family*; a *value* makes it one of a map."""

    family: str
    name: str
    key: tuple[Field, ...]
    value: tuple[Field, ...] = ()
    prefix: Prefix | None = None  # instead of a key, in a set of intervals

    @property
    def identity(self) -> tuple[str, str, str]:
        """Where it stands: two of the same are one element, whatever their values."""
        key = str(self.prefix) if self.prefix is not None else " ".join(f.text for f in self.key)
        return self.family, self.name, key

    @property
    def text(self) -> str:
        """As nft reads it."""
        if self.prefix is not None:
            return str(self.prefix)
        words = " . ".join(field.text for field in self.key)
        return f"{words} : {' . '.join(f.text for f in self.value)}" if self.value else words

    def packed(self, table: str) -> list[nfnetlink.Element]:
        """As the kernel takes it."""
        family = nfnetlink.FAMILIES[self.family]
        if self.prefix is None:
            key = b"".join(field.packed for field in self.key)
            data = b"".join(field.packed for field in self.value) or None
            return [nfnetlink.Element(family, table, self.name, key, data)]
        first = nfnetlink.Element(family, table, self.name, self.prefix.network_address.packed)
        after = int(self.prefix.broadcast_address) + 1
        if after >> self.prefix.max_prefixlen:
            return [first]
        end = after.to_bytes(self.prefix.max_prefixlen // 8, "big")
        return [first, nfnetlink.Element(family, table, self.name, end, last=True)]


def of_network(network: Network) -> list[Entry]:
    """What the filter must know of a network; nothing of one that is not bridged."""
    if network.driver is not Driver.BRIDGE:
        return []
    name = named(network.interface)
    found = [Entry("inet", "bridges", (name,))]
    if not network.isolated:
        found.append(Entry("inet", "same", (name, name)))
    if network.internal:
        found.append(Entry("inet", "internal", (name,)))
    if network.host_access:
        found.append(Entry("inet", "hosts", (name,)))
    for gateway in network.gateways:
        found.append(Entry("inet", f"gateways{gateway.version}", (name, address(gateway))))
    for subnet in network.subnets:
        version = subnet.prefix.version
        found.append(Entry("inet", f"nets{version}", (), prefix=subnet.prefix))
        if network.masquerade and not network.internal:
            found.append(Entry("inet", f"leave{version}", (), prefix=subnet.prefix))
    return found


def of_endpoint(endpoint: Endpoint) -> list[Entry]:
    """Who the container is on its link, and what is published of it."""
    link, mac = named(endpoint.host_interface), hardware(endpoint.mac)
    found = []
    spoken: list[Address] = [numbered.ip for numbered in endpoint.addresses]
    if endpoint.address(6) is not None:
        spoken.append(interfaces.link_local(endpoint.mac).ip)
    for one in spoken:
        found.append(Entry("bridge", f"speak{one.version}", (link, mac, address(one))))
        if one.version == 6:
            found.append(Entry("bridge", "advert6", (link, _number(one))))
    found += [_published(endpoint, port) for port in endpoint.ports]
    return found


def _published(endpoint: Endpoint, port: Port) -> Entry:
    version = port.host_address.version
    inside = endpoint.address(version)
    if inside is None:
        raise InvalidError(
            f"port {port.container_port} cannot be published on {port.host_address}: "
            f"the container has no IPv{version} address",
            hint="use an address of the host of the other family, or a network with --ipv6",
        )
    to = (address(inside), service(port.container_port))
    what = (protocol(port.protocol), service(port.host_port))
    if port.host_address in (IPv4Address(0), IPv6Address(0)):
        return Entry("inet", f"any{version}", what, to)
    return Entry("inet", f"at{version}", (address(port.host_address), *what), to)


def sets(entries: Iterable[Entry]) -> dict[tuple[str, str], list[str]]:
    """The entries' texts by family and set, each once, in a stable order."""
    found: dict[tuple[str, str], set[str]] = {}
    for entry in entries:
        found.setdefault((entry.family, entry.name), set()).add(entry.text)
    return {key: sorted(texts) for key, texts in found.items()}
