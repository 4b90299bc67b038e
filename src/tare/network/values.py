"""Networks, endpoints and published ports as values; the names of what they become in the kernel.

A `Network` is what a user made or the engine makes by itself; an `Endpoint` is one container's
place in one network; a `Port` publishes a port of that container on the host. All are complete
and checked when they are made: what is `None` or empty is *not wanted*, never *not yet known*.

Names in the kernel are unique to an engine, so that several engines share a host: they begin
with the engine's `tag`, and fit into the kernel's 15 characters.

Not for: where they are kept (engine), Docker's spelling (wire), or what the kernel does with
them (`bridge`, `firewall`).
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import Final

Address = IPv4Address | IPv6Address
Prefix = IPv4Network | IPv6Network
Numbered = IPv4Interface | IPv6Interface
"""An address with the length of its network's prefix."""

LONGEST_INTERFACE_NAME: Final = 15


class Driver(StrEnum):
    """How the containers of a network are linked."""

    BRIDGE = "bridge"
    MACVLAN = "macvlan"


class Protocol(StrEnum):
    """What is published."""

    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subnet:
    """A prefix of a network, who routes for it, and what of it may be given out.

    ``range`` narrows what is given out by itself; ``reserved`` is never given out (Docker's
    auxiliary addresses, by name).
    """

    prefix: Prefix
    gateway: Address | None = None
    range: Prefix | None = None
    reserved: tuple[tuple[str, Address], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network of this engine.

    ``interface`` is the bridge's name on the host (`bridge_name`), or the parent's of a macvlan
    network. ``isolated``: containers of it do not reach each other (Docker's icc off).
    ``host_access``: they reach services of the host that listen on its addresses.
    """

    id: str
    name: str
    interface: str
    driver: Driver = Driver.BRIDGE
    subnets: tuple[Subnet, ...] = ()
    ipv6: bool = False
    internal: bool = False
    isolated: bool = False
    masquerade: bool = True
    host_access: bool = False
    attachable: bool = False
    mtu: int = 1500
    options: dict[str, str] = field(default_factory=dict)  # driver options as given
    labels: dict[str, str] = field(default_factory=dict)
    created_ns: int = 0

    @property
    def gateways(self) -> tuple[Address, ...]:
        """The addresses of the host in it."""
        return tuple(subnet.gateway for subnet in self.subnets if subnet.gateway is not None)

    def subnet_of(self, address: Address) -> Subnet | None:
        """The subnet that *address* is in, or None."""
        return next((s for s in self.subnets if address in s.prefix), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """One port of a container on the host; ranges are as many of these.

    ``host_address`` 0.0.0.0 or :: is every address of the host of that family. A container's
    IPv4 port cannot be published on an IPv6 address, nor the other way round: the kernel
    translates within one family.
    """

    host_address: Address
    host_port: int
    container_port: int
    protocol: Protocol = Protocol.TCP


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One container's place in one network.

    ``host_interface`` is the outer end of its link (`link_name`), ``interface`` the inner one's
    name; ``rate`` is in bytes a second, each direction; ``default_route``: this network's
    gateways are the container's. ``ports`` are published through this endpoint.
    """

    network_id: str
    container_id: str
    host_interface: str
    mac: str  # 02:42:ac:11:00:02
    addresses: tuple[Numbered, ...]
    interface: str = "eth0"
    aliases: tuple[str, ...] = ()
    default_route: bool = True
    rate: int | None = None
    ports: tuple[Port, ...] = ()

    def address(self, version: int) -> Address | None:
        """Its address of IP *version* 4 or 6, or None."""
        return next((a.ip for a in self.addresses if a.version == version), None)


def _short(text: str, length: int) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return base64.b32encode(digest).decode().lower()[:length]


def engine_tag(state_dir: str) -> str:
    """Five characters that tell this engine's things from another's; from its state directory."""
    return _short(state_dir, 5)


def bridge_name(tag: str, network_id: str) -> str:
    """The bridge of a network of the engine *tag*."""
    return f"tb{tag}{_short(network_id, 8)}"


def link_name(tag: str, container_id: str, network_id: str) -> str:
    """The outer end of the link of a container to a network of the engine *tag*."""
    return f"tv{tag}{_short(f'{container_id} {network_id}', 8)}"


def link_prefix(tag: str) -> str:
    """What the names of the outer ends of all links of the engine *tag* begin with."""
    return f"tv{tag}"


def bridge_prefix(tag: str) -> str:
    """What the names of all bridges of the engine *tag* begin with, unless a user chose them."""
    return f"tb{tag}"


def table_name(tag: str) -> str:
    """The nftables table of the engine *tag*, in the families inet and bridge."""
    return f"tare_{tag}"


def mac_of(address: Address) -> str:
    """The MAC address that goes with a container's first address: local, unicast, predictable.

    The four bytes of an IPv4 address, as Docker does it; a digest of an IPv6 one.
    """
    four = address.version == 4
    tail = address.packed if four else hashlib.sha256(address.packed).digest()[:4]
    return ":".join(f"{byte:02x}" for byte in (0x02, 0x42, *tail))
