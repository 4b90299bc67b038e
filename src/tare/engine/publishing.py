"""Which ports of the host a container gets: from what was asked to what is held.

A port that was named is taken or refused, with the name of who has it; one that was not is chosen
and stays the container's while it runs. The host's side is a bound socket of the daemon: the rules
that pass packets on need none, but without it a program of the host could take the port as well,
and its packets would go to the container.

Not for: the rules (tare.network.firewall), and the grammar of -p (tare.client.ports).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from tare.engine import network_values
from tare.engine.fabric import Fabric, Held
from tare.errors import ConflictError, DeniedError, InvalidError, TareError, UnsupportedError
from tare.model.networking import Joined, NetworkRecord, PortWish, Published
from tare.model.spec import ContainerSpec, SecurityProfile
from tare.network.values import Address, Port, Protocol

LOOPBACK: Final = "127.0.0.1"
_TRIES: Final = 16
_MOST: Final = 4096
Holder = Callable[[Port], str]


def wishes(spec: ContainerSpec) -> list[PortWish]:
    """The ports to publish: those named, and with ``-P`` every exposed one that was not."""
    found = list(spec.ports)
    if spec.publish_all:
        named = {(wish.container_port, wish.protocol) for wish in found}
        for text in spec.exposed_ports:
            port, _, protocol = text.partition("/")
            if (int(port), protocol) not in named:
                found.append(PortWish(container_port=int(port), protocol=protocol))
    return found


def check(spec: ContainerSpec, networks: Sequence[NetworkRecord], configured: str) -> list[str]:
    """Refuse what can never be published; the warnings of what can."""
    ports = wishes(spec)
    if not ports:
        return []
    if len(ports) > _MOST:
        raise InvalidError(f"{len(ports)} ports are more than the {_MOST} that one container gets")
    open_ones = [one for one in networks if not one.spec.internal]
    if not open_ones:
        return ["ports of a container in internal networks only are not published"]
    if all(one.spec.driver != "bridge" for one in open_ones):
        return ["ports of a macvlan network are reached at the container's own address"]
    addresses = {wish.host_address for wish in ports}
    for text in addresses - {""}:
        if network_values.is_ipv6(text) and not any(one.spec.ipv6 for one in open_ones):
            raise InvalidError(
                f"a port cannot be published on {text}: the container has no IPv6 address",
                hint="use a network that was made with --ipv6, or an IPv4 address",
            )
    hardened = spec.security.profile is SecurityProfile.HARDENED
    for wish in ports:
        if wish.host_address and _parsed(wish.host_address).is_unspecified and hardened:
            raise DeniedError(
                f"the profile hardened publishes no port on all addresses: {wish.host_address}",
                hint="name an address of this host, or use another --security-profile",
            )
    if "" in addresses and default_address(spec, open_ones[0], configured) == LOOPBACK:
        first = next(wish for wish in ports if not wish.host_address)
        shown = f"{first.host_port or 'PORT'}:{first.container_port}"
        return [
            "ports are published on this host's loopback address only; for other hosts say"
            f" -p 0.0.0.0:{shown}"
        ]
    return []


def _parsed(text: str) -> Address:
    return network_values.parsed("host address", text.strip("[]"))


@dataclass(frozen=True, slots=True)
class Site:
    """Where ports of one container are published.

    ``default``: the host's address for a port without one. ``holder`` says which other container
    publishes a port already, or "".
    """

    fabric: Fabric
    place: Joined
    default: str
    holder: Holder


def default_address(spec: ContainerSpec, network: NetworkRecord, configured: str) -> str:
    """Where a port without an address is published: nobody but this host, unless told otherwise.

    *configured* is the administrator's choice; a network's own option goes before it.
    """
    if spec.security.profile is SecurityProfile.DOCKER_COMPAT:
        return "0.0.0.0"  # noqa: S104 - Docker's default, for those who asked for Docker's
    found = network.spec.options.get(network_values.BINDING_OPTION, "") or configured or LOOPBACK
    hardened = spec.security.profile is SecurityProfile.HARDENED
    return LOOPBACK if hardened and _parsed(found).is_unspecified else found


def take(where: Site, ports: Sequence[PortWish]) -> tuple[tuple[Published, ...], list[Held]]:
    """Hold the host's side of all *ports*.

    Nothing is held when it raises; the exit code of such an error is 125, as with Docker.
    """
    with contextlib.ExitStack() as undo:
        published: list[Published] = []
        held: list[Held] = []
        for wish in ports:
            for address, one in _take_one(where, wish):
                undo.callback(one.release)
                held.append(one)
                published.append(
                    Published(
                        host_address=str(address),
                        host_port=one.port,
                        container_port=wish.container_port,
                        protocol=wish.protocol,
                    )
                )
        undo.pop_all()
    return tuple(published), held


def _take_one(where: Site, wish: PortWish) -> list[tuple[Address, Held]]:
    """One port, on one address or on an IPv4 and an IPv6 one, with the same number on both."""
    on = _addresses(where, wish)
    low, _, high = wish.host_port.partition("-")
    if low and low != "0" and not high:
        return _hold_all(where, wish, on, int(low))
    wanted = range(int(low), int(high) + 1) if high else None
    tried: set[int] = set()
    for _ in range(_TRIES):
        first = where.fabric.choose(on[0], Protocol(wish.protocol), wanted, tried)
        tried.add(first.port)
        with contextlib.ExitStack() as undo:
            undo.callback(first.release)
            with contextlib.suppress(ConflictError):
                _refuse_held(where, wish, on[0], first.port)
                rest = _hold_all(where, wish, on[1:], first.port)
                undo.pop_all()
                return [(on[0], first), *rest]
    raise ConflictError("no port of the host is free on all addresses asked for", exit_code=125)


def _addresses(where: Site, wish: PortWish) -> list[Address]:
    place = where.place
    if wish.host_address:
        address = _parsed(wish.host_address)
        if not (place.ipv6 if address.version == 6 else place.ipv4):
            raise InvalidError(
                f"a port cannot be published on {address}: the container has no address of its"
                f" family in the network {place.network}",
                exit_code=125,
            )
        return [address]
    default = _parsed(where.default)
    found = [default] if (place.ipv6 if default.version == 6 else place.ipv4) else []
    if default.version == 4 and place.ipv6:
        if default.is_unspecified:
            found.append(ip_address("::"))
        elif default.is_loopback:
            found.append(ip_address("::1"))
    if not found:
        raise InvalidError(
            f"a port cannot be published on {default}: the container has no address of its family",
            exit_code=125,
        )
    return found


def _hold_all(
    where: Site, wish: PortWish, on: Iterable[Address], number: int
) -> list[tuple[Address, Held]]:
    with contextlib.ExitStack() as undo:
        found: list[tuple[Address, Held]] = []
        for address in on:
            _refuse_held(where, wish, address, number)
            try:
                one = where.fabric.hold(_port(wish, address, number))
            except UnsupportedError:
                raise
            except TareError as error:
                raise type(error)(
                    f"{_failed(address, number)}: {error}", hint=error.hint, exit_code=125
                ) from error
            undo.callback(one.release)
            found.append((address, one))
        undo.pop_all()
    return found


def _refuse_held(where: Site, wish: PortWish, address: Address, number: int) -> None:
    whose = where.holder(_port(wish, address, number))
    if whose:
        raise ConflictError(
            f"{_failed(address, number)}: port is already allocated to the container {whose}",
            hint="publish it on another port, or stop that container",
            exit_code=125,
        )


def _port(wish: PortWish, address: Address, number: int) -> Port:
    return Port(
        host_address=address,
        host_port=number,
        container_port=wish.container_port,
        protocol=Protocol(wish.protocol),
    )


def _failed(address: Address, number: int) -> str:
    """The beginning of Docker's sentence, which clients show."""
    shown = f"[{address}]" if address.version == 6 else str(address)
    return f"Bind for {shown}:{number} failed"


def collide(one: Port, other: Port) -> bool:
    """Whether two published ports would catch the same packets."""
    if one.protocol != other.protocol or one.host_port != other.host_port:
        return False
    if one.host_address.version != other.host_address.version:
        return False
    return (
        one.host_address == other.host_address
        or one.host_address.is_unspecified
        or other.host_address.is_unspecified
    )
