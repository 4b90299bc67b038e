"""Containers in networks: addresses, links, published ports and names, from start to end.

A start allocates (`Attachments.attach`): addresses and ports are recorded before anything is
made of them, then the filter, the files in /etc and the name server learn them, and the driver
links the container. The end (`release`) takes all of that back, whatever way the container
ended. `connect` and `disconnect` do the same for one network of a running container.

What is held for a container lives here only while it runs; the record has what a new daemon
needs to hold it again (`begin`).

Not for: networks themselves (engine.networks).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from tare.engine import generated, name_table, network_values, placing, publishing
from tare.engine.address_book import AddressBook
from tare.engine.core import only_container
from tare.engine.fabric import Held, namespace_of
from tare.engine.networks import Networks
from tare.errors import (
    ConflictError,
    DeniedError,
    FailedError,
    InvalidError,
    MissingError,
    TareError,
    UnsupportedError,
)
from tare.kernel.interfaces import Interface
from tare.model.networking import BRIDGE, HOST, NONE, Joined, NetworkRecord, NetworkWish
from tare.model.record import Record, changed
from tare.model.spec import ContainerSpec
from tare.model.state import State
from tare.network import addresses
from tare.network.firewall import Wanted
from tare.network.values import Endpoint, Port, mac_of

if TYPE_CHECKING:
    from tare.engine.store import Store

log = logging.getLogger("tare.network")

DEFAULT: Final = "default"
_MOST_NETWORKS: Final = 64
_NO_WISH: Final = NetworkWish(network="")


@dataclass(slots=True)
class _Live:
    """What is held for a running container."""

    endpoints: dict[str, Endpoint] = field(default_factory=dict)  # by network
    ports: list[Held] = field(default_factory=list)
    unrecorded: Record | None = None  # of one that the store does not know
    part: name_table.Part | None = None  # of the table of names
    naming: asyncio.Task[None] | None = None  # its names are on their way


class Attachments:
    """Who is where, for all containers of one engine."""

    def __init__(self, store: Store, networks: Networks) -> None:
        self._store = store
        self._networks = networks
        self._fabric = networks.fabric
        self._live: dict[str, _Live] = {}
        self._addresses = AddressBook(store)
        networks.members = self.members
        networks.wanting = self.wanting

    # --- who is where -------------------------------------------------------------------------

    def members(self, network: str) -> list[tuple[str, str]]:
        """The running containers in a network: id and name."""
        found = []
        for identity, live in self._live.items():
            if network in live.endpoints:
                record = self._store.find(identity)
                found.append((identity, record.name if record is not None else ""))
        return found

    def wanting(self, network: str) -> bool:
        """Whether any container is to be in a network."""
        return any(
            joined.network_id == network
            for record in self._store.all()
            for joined in record.networks
        )

    def inhabitants(self, network: str) -> list[tuple[Record, Joined]]:
        """The running containers of a network, with their places in it."""
        shared = self._networks.find(network)
        if shared is not None and shared.name in (HOST, NONE):
            return [
                (record, Joined(network_id=network, network=shared.name, wish=_NO_WISH))
                for record in self._store.active()
                if record.alive and record.spec.namespaces.network == shared.name
            ]
        found = []
        for identity, _ in self.members(network):
            record = self._store.find(identity)
            for joined in record.networks if record is not None else ():
                if record is not None and joined.network_id == network:
                    found.append((record, joined))
        return found

    # --- create -------------------------------------------------------------------------------

    def resolve(self, spec: ContainerSpec) -> tuple[ContainerSpec, tuple[Joined, ...], list[str]]:
        """*spec* with its networks found, its place in each, and warnings; refuses what cannot be.

        Without a bridge on this host the default network is one with loopback only.
        """
        if spec.namespaces.network:
            return spec, (), []
        if not spec.networks and not (spec.ports or spec.publish_all):
            return spec, (), []
        wishes = list(spec.networks)
        if not wishes:
            wishes = [NetworkWish(network=DEFAULT)]
        if any(wish.network == DEFAULT for wish in wishes) and self._without_default(spec, wishes):
            names = replace(spec.namespaces, network=NONE)
            return replace(spec, namespaces=names, networks=()), (), []
        found: dict[str, Joined] = {}
        for wish in wishes:
            record = self._named(wish.network)
            if record.name in (HOST, NONE):
                raise InvalidError(
                    f"the network {record.name} cannot be combined with others",
                    hint=f"--network {record.name} alone",
                )
            if record.id in found:
                raise InvalidError(f"the network {record.name} is named twice")
            found[record.id] = Joined(
                network_id=record.id, network=record.name, wish=self._checked(record, wish)
            )
        if len(found) > _MOST_NETWORKS:
            raise InvalidError(f"a container is in {_MOST_NETWORKS} networks at most")
        joined = tuple(found.values())
        records = [self._record(one) for one in joined]
        warnings = publishing.check(spec, records, self._networks.settings.publish)
        return replace(spec, networks=tuple(one.wish for one in joined)), joined, warnings

    def _named(self, ref: str) -> NetworkRecord:
        """The network that a new container names; InvalidError when there is none.

        Not MissingError: clients take that for a missing image, and pull it.
        """
        try:
            return self._networks.get(BRIDGE if ref == DEFAULT else ref)
        except MissingError as error:
            raise InvalidError(
                str(error), hint=f"make it: tare network create {ref}", exit_code=125
            ) from None

    def _without_default(self, spec: ContainerSpec, wishes: Sequence[NetworkWish]) -> bool:
        """Whether a container that names no network gets none: by choice, or for lack of it."""
        plain = len(wishes) == 1 and not (spec.ports or spec.publish_all)
        lacking = self._fabric.unavailable
        if not lacking and self._networks.named(BRIDGE) is None:
            lacking = "the host has no range of addresses left for a default network"
        if lacking:
            if not plain:
                raise UnsupportedError(lacking)
            return True
        return plain and self._networks.settings.default == NONE

    def _checked(self, record: NetworkRecord, wish: NetworkWish) -> NetworkWish:
        """*wish* as far as it can be judged before the start."""
        if record.name == BRIDGE:
            if wish.aliases:
                raise InvalidError(
                    "network-scoped alias is supported only for containers in user defined networks"
                )
            if wish.links:
                raise UnsupportedError(
                    "links between containers of the default network are not supported",
                    hint="make a network: containers find each other there by name",
                )
        if wish.link_local:
            raise UnsupportedError("link-local addresses of one's own are not supported")
        for link in wish.links:
            self._store.get(link.partition(":")[0])
        network = network_values.network(record)
        for text, version in ((wish.ipv4, 4), (wish.ipv6, 6)):
            if not text:
                continue
            address = network_values.parsed("address", text)
            if address.version != version:
                raise InvalidError(f"invalid IPv{version} address: {text}")
            subnet = network.subnet_of(address)
            if subnet is None:
                raise InvalidError(
                    f"no subnet of the network {record.name} contains the address {text}"
                )
            addresses.check_address(subnet, address, {})
        return replace(wish, mac=network_values.mac(wish.mac) if wish.mac else "")

    # --- start --------------------------------------------------------------------------------

    async def attach(
        self, record: Record, *, recorded: bool = True
    ) -> tuple[Record, tuple[Interface, ...]]:
        """Give a container that is about to start its addresses and ports, and publish both.

        The record as it is now, and the links that the driver is to make. Nothing is held when
        it raises. What is not *recorded* (a step of a build) must be released by its owner.
        """
        spec = record.spec
        if spec.namespaces.network or not record.networks:
            self._write_alone(record)
            return record, ()
        found = [
            (joined, await self._networks.ready(self._record(joined))) for joined in record.networks
        ]
        self.release(record.id)
        live = self._live[record.id] = _Live()
        try:
            ordered = placing.ordered(found)
            places = self._places(record, ordered)
            way_out = placing.way_out(places)
            if way_out is not None and (wanted := publishing.wishes(spec)):
                network = self._record(way_out)
                if network.spec.driver == "bridge":
                    publish = self._networks.settings.publish
                    default = publishing.default_address(spec, network, publish)
                    site = publishing.Site(self._fabric, way_out, default, self._publisher)
                    ports, live.ports = publishing.take(site, wanted)
                    places = [replace(p, ports=ports) if p is way_out else p for p in places]
            if recorded:  # it may have another name by now
                record = self._store.put(changed(self._current(record.id), networks=tuple(places)))
            else:
                record = live.unrecorded = changed(record, networks=tuple(places))
            links = self._admit(record, live)
            self._write_files(record)
            # Meanwhile the driver makes the container; `named` waits for it.
            live.naming = asyncio.get_running_loop().create_task(self.publish_names())
            if not recorded:
                await self.named(record)
        except BaseException:
            self.release(record.id)
            raise
        for _, network in found:
            self._networks.tell(network, "connect", record.id)
        return record, links

    async def named(self, record: Record) -> None:
        """Return when the names of a container that has just started are known to the others."""
        live = self._live.get(record.id)
        naming = live.naming if live is not None else None
        if live is None or naming is None:
            return
        live.naming = None
        try:
            await asyncio.shield(naming)
        except (TareError, OSError) as error:
            # It runs, and can be reached by address: no reason to end it.
            log.error("names of %s: %s", record.name, error)

    def _publisher(self, port: Port) -> str:
        """The name of the running container that publishes *port* already, or ""."""
        for identity, live in self._live.items():
            for endpoint in live.endpoints.values():
                if any(publishing.collide(port, other) for other in endpoint.ports):
                    record = self._store.find(identity)
                    return record.name if record is not None else identity[:12]
        return ""

    def _linked(self, ref: str) -> str:
        """The name of the container that a link names, or ""."""
        try:
            return self._store.get(ref).name
        except TareError:
            return ""

    def _places(
        self, record: Record, found: Sequence[tuple[Joined, NetworkRecord]]
    ) -> list[Joined]:
        places: list[Joined] = []
        for at, (joined, network) in enumerate(found):
            places.append(self._place(record, joined, network, number=at))
        return [replace(place, default_route=place is placing.way_out(places)) for place in places]

    def _place(
        self, record: Record, joined: Joined, network: NetworkRecord, *, number: int
    ) -> Joined:
        """One place with addresses, those it had before if they are free."""
        wish, kernel = joined.wish, network_values.network(network)
        wanted = {4: (wish.ipv4, joined.ipv4), 6: (wish.ipv6, joined.ipv6)}
        changes: dict[int, tuple[str, int, str]] = {}
        for subnet in kernel.subnets:
            version = subnet.prefix.version
            if version in changes:
                continue
            address = self._addresses.take(record.id, network.id, subnet, *wanted[version])
            gateway = str(subnet.gateway) if subnet.gateway is not None else ""
            changes[version] = (str(address), subnet.prefix.prefixlen, gateway)
        v4, v6 = changes.get(4, ("", 0, "")), changes.get(6, ("", 0, ""))
        first = v4[0] or v6[0]
        return replace(
            joined,
            network=network.name,
            endpoint_id=secrets.token_hex(32),
            interface=f"{network_values.inner_prefix(network.spec.options)}{number}",
            mac=wish.mac or (mac_of(ip_address(first)) if first else placing.random_mac()),
            ipv4=v4[0], ipv4_length=v4[1], gateway="" if network.spec.internal else v4[2],
            ipv6=v6[0], ipv6_length=v6[1], ipv6_gateway="" if network.spec.internal else v6[2],
            names=name_table.names_of(record, wish, network),
            ports=(),
        )  # fmt: skip

    def _admit(self, record: Record, live: _Live) -> tuple[Interface, ...]:
        links = []
        for joined in record.networks:
            endpoint = self._endpoint(record, joined)
            network = network_values.network(self._record(joined))
            try:
                self._fabric.admit(endpoint)
            except OSError as error:
                raise FailedError(
                    f"cannot let the container into the network {joined.network}: {error}"
                ) from error
            live.endpoints[joined.network_id] = endpoint
            links.append(self._fabric.interface(network, endpoint))
        return placing.with_ipv6_way_out(links, record.networks)

    def _endpoint(self, record: Record, joined: Joined) -> Endpoint:
        return network_values.endpoint(
            self._fabric.tag, record.id, joined, record.spec.network_rate
        )

    # --- end ----------------------------------------------------------------------------------

    def release(self, identity: str) -> None:
        """Take back what a container holds; nothing happens when it holds nothing."""
        live = self._live.pop(identity, None)
        self._addresses.give_back(identity)
        if live is None:
            return
        if live.naming is not None:  # nobody waits for it any more
            live.naming.add_done_callback(lambda task: task.cancelled() or task.exception())
        for endpoint in live.endpoints.values():
            self._dismiss(endpoint)
        for held in live.ports:
            held.release()

    def ended(self, record: Record) -> None:
        """A container has ended: take back what it holds, and forget its names."""
        live = self._live.get(record.id)
        if live is None:
            return
        left = [self._networks.find(identity) for identity in live.endpoints]
        self.release(record.id)
        self._forget_names()
        for network in left:
            if network is not None:
                self._networks.tell(network, "disconnect", record.id)

    def _dismiss(self, endpoint: Endpoint) -> None:
        try:
            self._fabric.dismiss(endpoint)
        except (OSError, TareError) as error:
            log.warning("rules of %s are left: %s", endpoint.host_interface, error)

    def _forget_names(self) -> None:
        """Have the names of ended containers go soon; nobody waits for it."""
        if self._forgetting is None or self._forgetting.done():
            self._forgetting = asyncio.get_running_loop().create_task(self._forget_soon())

    _forgetting: asyncio.Task[None] | None = None

    async def _forget_soon(self) -> None:
        await asyncio.sleep(0)  # what ends together is forgotten together
        with contextlib.suppress(TareError, OSError):
            await self.publish_names()

    # --- while it runs ------------------------------------------------------------------------

    async def connect(self, network_ref: str, record: Record, wish: NetworkWish) -> None:
        """Put a container into one more network, at once if it runs; its ``Live.lock`` is held."""
        network = self._networks.get(network_ref)
        self._may_change(record, network)
        if any(joined.network_id == network.id for joined in record.networks):
            raise DeniedError(
                f"endpoint with name {record.name} already exists in network {network.name}"
            )
        joined = Joined(
            network_id=network.id, network=network.name, wish=self._checked(network, wish)
        )
        network = await self._networks.ready(network)
        record = self._current(record.id)
        if record.alive:
            await self._link(record, joined, network)
        else:
            self._store.put(changed(record, networks=(*record.networks, joined)))
        self._networks.tell(network, "connect", record.id)

    async def _link(self, record: Record, joined: Joined, network: NetworkRecord) -> None:
        live = self._live.setdefault(record.id, _Live())
        try:
            place = self._place(record, joined, network, number=placing.free_number(record))
            # The way out stays where it is, unless there was none.
            outward = any(one.default_route for one in record.networks) or network.spec.internal
            place = replace(place, default_route=not outward)
            record = self._store.put(changed(record, networks=(*record.networks, place)))
            endpoint = self._endpoint(record, place)
            self._fabric.admit(endpoint)
            live.endpoints[network.id] = endpoint
            namespace = _namespace(record)
            try:
                await self._fabric.connect(network_values.network(network), endpoint, namespace)
            finally:
                os.close(namespace)
        except BaseException:
            self._unlink_record(record.id, network.id, live)
            raise
        if self._live.get(record.id) is not live:  # it ended meanwhile
            self._dismiss(endpoint)
            self._addresses.give_back(record.id, network.id)
            return
        self._write_files(record)
        await self.publish_names()

    def _unlink_record(self, identity: str, network: str, live: _Live) -> Record | None:
        """Forget a container's place in a network, here and in its record."""
        endpoint = live.endpoints.pop(network, None)
        if endpoint is not None:
            self._dismiss(endpoint)
        self._addresses.give_back(identity, network)
        record = self._store.find(identity)
        if record is None:
            return None
        left = tuple(joined for joined in record.networks if joined.network_id != network)
        return self._store.put(changed(record, networks=left))

    async def disconnect(self, network_ref: str, record: Record, *, force: bool = False) -> None:
        """Take a container out of a network, at once if it runs; its ``Live.lock`` is held."""
        network = self._networks.get(network_ref)
        self._may_change(record, network)
        joined = next((j for j in record.networks if j.network_id == network.id), None)
        if joined is None:
            raise DeniedError(f"container {record.id} is not connected to network {network.name}")
        live = self._live.get(record.id)
        endpoint = live.endpoints.get(network.id) if live is not None else None
        if record.alive and live is not None and endpoint is not None:
            if joined.ports and not force:
                names = ", ".join(f"{p.container_port}/{p.protocol}" for p in joined.ports)
                log.info("%s is no longer published: %s", record.name, names)
            namespace = _namespace(record)
            try:
                await self._fabric.disconnect(endpoint, namespace)
                if joined.default_route:
                    record = await self._lead_out(record, network, namespace)
            finally:
                os.close(namespace)
        if joined.ports and live is not None:
            for held in live.ports:
                held.release()
            live.ports = []
        after = self._unlink_record(record.id, network.id, live or _Live())
        if after is not None and after.alive:
            self._write_files(after)
            await self.publish_names()
        self._networks.tell(network, "disconnect", record.id)

    async def _lead_out(self, record: Record, lost: NetworkRecord, namespace: int) -> Record:
        """Give a container that has lost its way out another, if one of its networks leads out."""
        left = [
            (joined, self._record(joined))
            for joined in record.networks
            if joined.network_id != lost.id and self._networks.find(joined.network_id)
        ]
        chosen = placing.way_out([joined for joined, _ in placing.ordered(left)])
        if chosen is None:
            return record
        gateways = [one for one in (chosen.gateway, chosen.ipv6_gateway) if one]
        await self._fabric.lead_out(chosen.interface, gateways, namespace)
        current = self._current(record.id)
        places = (
            replace(one, default_route=one.network_id == chosen.network_id)
            for one in current.networks
        )
        return self._store.put(changed(current, networks=tuple(places)))

    def _may_change(self, record: Record, network: NetworkRecord) -> None:
        if network.name in (HOST, NONE):
            raise DeniedError(
                f"container cannot be connected to or disconnected from the {network.name} network"
            )
        if record.spec.namespaces.network:
            raise DeniedError(
                f"container {record.name} shares the network of"
                f" {record.spec.namespaces.network!r}: it cannot be connected to others"
            )
        if record.alive:
            only_container(record, "changing the networks of what runs")
        if record.state in (State.REMOVING, State.DEAD):
            raise ConflictError(f"container {record.id} is marked for removal")

    # --- names and files ----------------------------------------------------------------------

    async def publish_names(self) -> None:
        """Have the name server answer by what is so now."""
        networks = [one for one in self._networks.all() if self._serves(one)]
        served = {one.id for one in networks}
        parts = []
        for identity, live in self._live.items():
            record = self._store.find(identity) or live.unrecorded
            if record is None:
                continue
            if live.part is None or not live.part.holds(record):
                live.part = name_table.part(record, served, self._linked)
            parts.append(live.part)
        await self._fabric.name(name_table.table(networks, parts))

    @staticmethod
    def _serves(network: NetworkRecord) -> bool:
        """Whether its containers ask our server: those of the default network only if they must."""
        if network.name == BRIDGE and generated.host_servers():
            return False
        return name_table.serves(network)

    def _write_alone(self, record: Record) -> None:
        """Write the files of a container that is in no network, or in another's."""
        directory = record.files_dir
        generated.write(directory, record.spec, record.id)
        mode = record.spec.namespaces.network
        other = self._store.find(mode.removeprefix("container:"))
        if mode.startswith("container:") and other is not None:
            generated.copy(other.files_dir, directory)

    def _write_files(self, record: Record) -> None:
        networks = {one.id: one for one in self._networks.all()}
        try:
            generated.write_linked(record.files_dir, record, networks)
        except OSError as error:
            raise FailedError(f"cannot write the container's /etc/hosts: {error}") from error

    # --- recovery -----------------------------------------------------------------------------

    async def begin(self) -> None:
        """Hold again what running containers hold, and make bridges, filter and names so."""
        running = [r for r in self._store.all() if r.networks and _may_run(r)]
        if self._fabric.unavailable:
            return
        for record in running:
            self._hold_again(record)
        networks = [r for r in self._networks.all() if r.interface and self._matters(r)]
        endpoints = tuple(e for live in self._live.values() for e in live.endpoints.values())
        wanted = Wanted(
            networks=tuple(network_values.network(one) for one in networks), endpoints=endpoints
        )
        await self._fabric.begin(
            wanted,
            [endpoint.host_interface for endpoint in endpoints],
            [one.interface for one in networks],
        )
        self._networks.settled([one.id for one in networks])
        if networks or endpoints:
            await self.publish_names()

    def _matters(self, network: NetworkRecord) -> bool:
        """Whether a bridge is to be there now: the default one only when it is used."""
        return network.name != BRIDGE or bool(self.members(network.id))

    def _hold_again(self, record: Record) -> None:
        live = self._live[record.id] = _Live()
        for joined in record.networks:
            if self._networks.find(joined.network_id) is None or not joined.endpoint_id:
                continue
            live.endpoints[joined.network_id] = self._endpoint(record, joined)
            for text in joined.addresses:
                self._addresses.hold(record.id, joined.network_id, ip_address(text))
            for port in live.endpoints[joined.network_id].ports:
                try:
                    live.ports.append(self._fabric.hold(port))
                except TareError as error:
                    # The rules still lead to the container; only the reservation is missing.
                    log.warning("%s: %s", record.name, error)

    def _record(self, joined: Joined) -> NetworkRecord:
        record = self._networks.find(joined.network_id)
        if record is None:
            raise MissingError(
                f"network {joined.network} ({joined.network_id[:12]}) not found", exit_code=125
            )
        return record

    def _current(self, identity: str) -> Record:
        record = self._store.find(identity)
        if record is None:
            raise MissingError(f"No such container: {identity}")
        return record


def _may_run(record: Record) -> bool:
    return record.alive or record.state is State.STARTING


def _namespace(record: Record) -> int:
    try:
        return namespace_of(record.pid)
    except OSError as error:
        raise ConflictError(f"container {record.id[:12]} has just ended") from error
