"""A host's network that only remembers: what the engine did to it, and what it refuses."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from ipaddress import ip_network

from tare.engine.fabric import Held
from tare.errors import ConflictError, FailedError
from tare.kernel.interfaces import Interface
from tare.network.dns_table import Table
from tare.network.firewall import Wanted
from tare.network.values import Address, Endpoint, Network, Port, Prefix, Protocol


class Port_:
    """A held port."""

    def __init__(self, fabric: RememberingFabric, key: tuple[str, int, str]) -> None:
        self._fabric, self._key = fabric, key

    @property
    def port(self) -> int:
        return self._key[1]

    def release(self) -> None:
        self._fabric.held.discard(self._key)


class RememberingFabric:
    """Implements `tare.engine.fabric.Fabric` in memory; *refusing* names the call that fails."""

    def __init__(self) -> None:
        self.tag = "fake"
        self.unavailable = ""
        self.problems: tuple[str, ...] = ()
        self.bridges: dict[str, Network] = {}
        self.admitted: dict[str, Endpoint] = {}
        self.connected: list[str] = []
        self.held: set[tuple[str, int, str]] = set()
        self.taken_by_others: set[tuple[str, int, str]] = set()
        self.table = Table()
        self.begun: Wanted | None = None
        self.routes: tuple[Prefix, ...] = (ip_network("172.17.0.0/16"),)
        self.wires: dict[str, Prefix] = {}  # the host's interfaces, and where they lead
        self.refusing = ""

    def _try(self, call: str) -> None:
        if self.refusing == call:
            raise FailedError(f"{call} is refused")

    def alone(self) -> contextlib.AbstractAsyncContextManager[None]:
        return contextlib.nullcontext()

    def host_prefixes(self, own: Collection[str]) -> Sequence[Prefix]:
        return (*self.routes, *(one for name, one in self.wires.items() if name not in own))

    def there(self, interface: str) -> bool:
        return interface in self.wires or any(
            network.interface == interface for network in self.bridges.values()
        )

    def interface(self, network: Network, endpoint: Endpoint) -> Interface:
        return Interface(
            parent=network.interface,
            name=endpoint.interface,
            mac=endpoint.mac,
            gateways=tuple(str(g) for g in network.gateways) if endpoint.default_route else (),
        )

    async def begin(self, wanted: Wanted, links: Collection[str], bridges: Collection[str]) -> None:
        self.begun = wanted
        self.bridges.update({network.id: network for network in wanted.networks})
        self.admitted.update({one.host_interface: one for one in wanted.endpoints})

    async def settle(self, network: Network) -> None:
        self._try("settle")
        self.bridges[network.id] = network

    async def remove(self, network: Network) -> None:
        self._try("remove")
        self.bridges.pop(network.id, None)

    def admit(self, endpoint: Endpoint) -> None:
        self._try("admit")
        self.admitted[endpoint.host_interface] = endpoint

    def dismiss(self, endpoint: Endpoint) -> None:
        self.admitted.pop(endpoint.host_interface, None)

    async def connect(self, network: Network, endpoint: Endpoint, namespace: int) -> None:
        self._try("connect")
        self.connected.append(endpoint.host_interface)

    async def disconnect(self, endpoint: Endpoint, namespace: int) -> None:
        self.connected.remove(endpoint.host_interface)

    async def lead_out(self, interface: str, gateways: Sequence[str], namespace: int) -> None:
        self.connected.append(f"{interface} leads out")

    def hold(self, port: Port) -> Held:
        key = (str(port.host_address), port.host_port, str(port.protocol))
        if key in self.held | self.taken_by_others:
            raise ConflictError(f"{key} is in use by another program")
        self.held.add(key)
        return Port_(self, key)

    def choose(
        self, address: Address, protocol: Protocol, wanted: range | None, taken: Collection[int]
    ) -> Held:
        for number in wanted or range(49153, 65536):
            key = (str(address), number, str(protocol))
            if number not in taken and key not in self.held | self.taken_by_others:
                self.held.add(key)
                return Port_(self, key)
        raise ConflictError("no port is free")

    async def name(self, table: Table) -> None:
        self._try("name")
        self.table = table

    async def close(self) -> None:
        return
