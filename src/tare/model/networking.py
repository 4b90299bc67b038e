"""Networks and containers' places in them, as they are asked for and as they are recorded.

Plain words and numbers, so that records of them are plain JSON; `tare.network.values` has the
addresses and names that the kernel is told. Not for: which addresses are free (engine.networks).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

BRIDGE: Final = "bridge"
HOST: Final = "host"
NONE: Final = "none"
PREDEFINED: Final = (BRIDGE, HOST, NONE)
"""The networks that every engine has, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSettings:
    """What the administrator decides for all networks of an engine.

    ``default``: the network of a container that names none, ``bridge`` or ``none``. ``publish``:
    the host's address for published ports that name none. ``pools``: what subnets are cut from,
    each a prefix and a length; () is Docker's. ``icc``: whether containers of the default network
    reach each other; ``host_access``: whether they reach what listens on this host.
    """

    default: str = BRIDGE
    publish: str = ""
    pools: tuple[tuple[str, int], ...] = ()
    icc: bool = False
    host_access: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PortWish:
    """One port to publish: ``host_port`` is "", a number or a range of which one is taken."""

    container_port: int
    protocol: str = "tcp"
    host_address: str = ""
    host_port: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkWish:
    """A network that a container is to be in, by name or id, and what it wants to be there."""

    network: str
    aliases: tuple[str, ...] = ()
    links: tuple[str, ...] = ()  # NAME[:ALIAS]
    ipv4: str = ""
    ipv6: str = ""
    link_local: tuple[str, ...] = ()
    mac: str = ""
    priority: int = 0  # the highest is the container's way out
    options: dict[str, str] = field(default_factory=dict)
    configured: bool = False  # the request named IPAMConfig, for inspect


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A port of a container that the host passes on."""

    host_address: str
    host_port: int
    container_port: int
    protocol: str = "tcp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """One container in one network: the wish, and what came of it.

    Addresses and ports are in force while the container runs (or is being started). They stay
    recorded when it has ended: addresses are given out to it again if they are free then.
    """

    network_id: str
    network: str
    wish: NetworkWish
    endpoint_id: str = ""
    interface: str = ""
    mac: str = ""
    ipv4: str = ""
    ipv4_length: int = 0
    gateway: str = ""
    ipv6: str = ""
    ipv6_length: int = 0
    ipv6_gateway: str = ""
    default_route: bool = False
    names: tuple[str, ...] = ()  # that the network's name server gives for it
    ports: tuple[Published, ...] = ()

    @property
    def addresses(self) -> tuple[str, ...]:
        """Those it has."""
        return tuple(address for address in (self.ipv4, self.ipv6) if address)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubnetWish:
    """A prefix of a network, as asked for or as chosen; "" is not asked for."""

    subnet: str = ""
    range: str = ""
    gateway: str = ""
    auxiliary: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSpec:
    """A network as asked for."""

    name: str
    driver: str = BRIDGE
    subnets: tuple[SubnetWish, ...] = ()
    ipv4: bool = True
    ipv6: bool = False
    internal: bool = False
    attachable: bool = False
    options: dict[str, str] = field(default_factory=dict)
    ipam_options: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkRecord:
    """A network that is there: ``spec`` with its subnets filled in.

    ``interface`` is its bridge on the host, or the parent of a macvlan; "" for host and none.
    """

    id: str
    spec: NetworkSpec
    interface: str = ""
    created_ns: int = 0

    @property
    def name(self) -> str:
        """Its name."""
        return self.spec.name

    @property
    def predefined(self) -> bool:
        """Whether every engine has it."""
        return self.spec.name in PREDEFINED
