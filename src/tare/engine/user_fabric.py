"""Networks of an ordinary user's engine: each container has a way out of its own, no bridge.

pasta(1) or slirp4netns(1) (`run.uplink`) stands at the end of a container's only interface. The
default network and published ports work. Containers do not reach each other over it, and there
are no networks beside it: both need a bridge and a packet filter, and so root.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from tare.engine.fabric import Held
from tare.errors import InvalidError, UnsupportedError
from tare.kernel.interfaces import Interface
from tare.model.networking import BRIDGE
from tare.network import addresses, bridge, ports
from tare.network.dns_table import Table
from tare.network.firewall import Wanted
from tare.network.values import Address, Endpoint, Network, Port, Prefix, Protocol
from tare.run import uplink


@dataclass(frozen=True, slots=True)
class _Free:
    """`Held` by nobody: the port was free, and the program at the other end takes it next."""

    port: int

    def release(self) -> None:
        """Nothing was held."""


class UserFabric:
    """Implements `fabric.Fabric` without any privilege over the host's network."""

    def __init__(self) -> None:
        self.tag = "user"
        self.problems: tuple[str, ...] = ()

    @property
    def unavailable(self) -> str:
        """Which program is missing; looked for each time, so that installing it is enough."""
        return uplink.unavailable()

    def alone(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Nobody else sees the networks of this engine."""
        return contextlib.nullcontext()

    def host_prefixes(self, own: Collection[str]) -> Sequence[Prefix]:
        """So that a container's address is none of the host's networks."""
        return addresses.host_prefixes(own)

    def there(self, interface: str) -> bool:
        """Nothing is made on the host."""
        return False

    def interface(self, network: Network, endpoint: Endpoint) -> Interface:
        """The addresses are the container's own, seen by itself only."""
        for port in endpoint.ports:
            if port.protocol is Protocol.SCTP:
                raise UnsupportedError("sctp cannot be published by an engine without root")
            if endpoint.address(port.host_address.version) is None:
                raise InvalidError(
                    f"port {port.container_port} cannot be published on {port.host_address}: "
                    f"the container has no IPv{port.host_address.version} address"
                )
        return replace(
            bridge.interface(network, endpoint),
            kind=uplink.USER,
            ports=tuple(
                (str(p.host_address), p.host_port, p.container_port, p.protocol.value)
                for p in endpoint.ports
            ),
        )

    async def begin(self, wanted: Wanted, links: Collection[str], bridges: Collection[str]) -> None:
        """What runs has its way out, and keeps it."""

    async def settle(self, network: Network) -> None:
        """Only the default network can be had."""
        if network.name != BRIDGE or network.internal:
            raise UnsupportedError(
                f"the network {network.name} needs an engine that runs as root",
                hint="without root there is the default network, host and none",
            )

    async def remove(self, network: Network) -> None:
        """Nothing of it is in the kernel."""

    def admit(self, endpoint: Endpoint) -> None:
        """There is no filter: the program at the other end lets nothing else in."""

    def dismiss(self, endpoint: Endpoint) -> None:
        """It goes with the container."""

    async def connect(self, network: Network, endpoint: Endpoint, namespace: int) -> None:
        """Only a start makes a way out."""
        raise UnsupportedError(
            f"a running container cannot be connected to {network.name} without root"
        )

    async def disconnect(self, endpoint: Endpoint, namespace: int) -> None:
        """It stays until the end."""
        raise UnsupportedError("a running container cannot be disconnected without root")

    async def lead_out(self, interface: str, gateways: Sequence[str], namespace: int) -> None:
        """There is one network only."""

    def hold(self, port: Port) -> Held:
        """See that it is free; ConflictError names who has it."""
        ports.reserve(port).close()
        return _Free(port.host_port)

    def choose(
        self, address: Address, protocol: Protocol, wanted: range | None, taken: Collection[int]
    ) -> Held:
        """A free one of *wanted*, or any."""
        with ports.choose(address, protocol, wanted, taken) as bound:
            return _Free(int(bound.getsockname()[1]))

    async def name(self, table: Table) -> None:
        """There are no other containers to name."""

    async def close(self) -> None:
        """There is nothing to let go of."""
