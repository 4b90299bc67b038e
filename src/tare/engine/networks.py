"""The use cases of networks, in Docker's words: create, find, remove, prune.

Every engine has ``bridge``, ``host`` and ``none``. Others are made here: their subnets are checked
against those of the host and of each other, one create at a time, and a record exists exactly as
long as the network does: written before the bridge is made, deleted after it is gone.

Not for: who is in them and with which address (engine.attachments).
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_network
from typing import TYPE_CHECKING, Final

from tare.engine import network_values
from tare.engine.documents import Documents
from tare.engine.events import Events
from tare.engine.fabric import Fabric
from tare.engine.network_values import (
    KNOWN_OPTIONS,
    NAME_OPTION,
    PARENT_OPTION,
    subnet,
)
from tare.errors import (
    ConflictError,
    DeniedError,
    InvalidError,
    MissingError,
    TareError,
    UnsupportedError,
)
from tare.model.networking import (
    BRIDGE,
    HOST,
    NONE,
    PREDEFINED,
    NetworkRecord,
    NetworkSettings,
    NetworkSpec,
    SubnetWish,
)
from tare.network import addresses
from tare.network.addresses import DEFAULT_POOLS, Pool
from tare.network.values import Driver, Prefix, bridge_name

if TYPE_CHECKING:
    from tare.engine.store import Store

log = logging.getLogger("tare.network")

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_ID: Final = re.compile(r"[0-9a-f]{4,64}")
_DRIVERS: Final = (Driver.BRIDGE, Driver.MACVLAN)
MOST: Final = 1000
"""How many networks one engine keeps."""


class Networks:
    """The networks of one engine by id and name."""

    def __init__(
        self, store: Store, events: Events, fabric: Fabric, settings: NetworkSettings
    ) -> None:
        self.settings = settings
        self._documents = Documents(store, "networks", NetworkRecord)
        self._events = events
        self.fabric = fabric
        self._by_name = {record.name: identity for identity, record in self._documents.items()}
        self._settled: set[str] = set()
        self._removing: set[str] = set()
        self._lock = asyncio.Lock()
        self.members: Callable[[str], Sequence[tuple[str, str]]] = lambda _: ()
        """The running containers (id, name) in a network; `engine.attachments` says."""
        self.wanting: Callable[[str], bool] = lambda _: False
        """Whether any container, running or not, is to be in a network."""

    # --- find ---------------------------------------------------------------------------------

    def get(self, ref: str) -> NetworkRecord:
        """The network of an id, a name or a unique prefix of an id; MissingError."""
        found = self._documents.get(ref)
        if found is not None:
            return found
        identity = self._by_name.get(ref)
        if identity is None and _ID.fullmatch(ref):
            matching = [one for one in self._documents if one.startswith(ref)]
            if len(matching) > 1:
                raise InvalidError(f"network {ref} is ambiguous: {len(matching)} ids begin so")
            identity = matching[0] if matching else None
        found = self._documents.get(identity) if identity is not None else None
        if found is None:
            raise MissingError(f"network {ref[:80]} not found")
        return found

    def find(self, identity: str) -> NetworkRecord | None:
        """The network of a full id, or None."""
        return self._documents.get(identity)

    def named(self, name: str) -> NetworkRecord | None:
        """The network of a name, or None."""
        identity = self._by_name.get(name)
        return None if identity is None else self._documents.get(identity)

    def all(self) -> list[NetworkRecord]:
        """Every network, by name."""
        return sorted((record for _, record in self._documents.items()), key=lambda r: r.name)

    def list(self, filters: Mapping[str, Sequence[str]] | None = None) -> list[NetworkRecord]:
        """Those that pass Docker's *filters*: all keys, any value of one, all labels."""
        return [record for record in self.all() if self._passes(record, filters or {})]

    def _passes(self, record: NetworkRecord, filters: Mapping[str, Sequence[str]]) -> bool:
        return all(self._one(record, key, values) for key, values in filters.items() if values)

    def _one(self, record: NetworkRecord, key: str, values: Sequence[str]) -> bool:
        match key:
            case "name":
                return any(value in record.name for value in values)
            case "id":
                return any(record.id.startswith(value) for value in values)
            case "driver":
                return record.spec.driver in values
            case "scope":
                return "local" in values
            case "type":
                for value in values:
                    if value not in ("custom", "builtin"):
                        raise InvalidError(f"invalid filter: 'type'='{value[:40]}'")
                return ("builtin" if record.predefined else "custom") in values
            case "label":
                return all(_labelled(record, value) for value in values)
            case "label!":
                return not any(_labelled(record, value) for value in values)
            case "dangling":
                wanted = _truth("dangling", values)
                return wanted == (not record.predefined and not self.wanting(record.id))
            case "until":
                from tare.engine.filters import moment

                return all(record.created_ns < moment(value) for value in values)
            case _:
                raise InvalidError(f"invalid filter '{key[:40]}'")

    # --- make ---------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Have the networks that every engine has."""
        for name, driver in ((BRIDGE, "bridge"), (HOST, "host"), (NONE, "null")):
            if name in self._by_name:
                if name == BRIDGE:
                    self._reconfigure(self.get(BRIDGE))
                continue
            spec = NetworkSpec(name=name, driver=driver)
            interface = ""
            identity = _new_id()
            if name == BRIDGE:
                if self.fabric.unavailable:
                    continue  # there will be one when the host can have it
                try:
                    found = await asyncio.to_thread(self._free_subnet)
                except (OSError, ConflictError) as error:
                    log.error("there is no default network: %s", error)
                    continue
                spec = replace(spec, subnets=(found,), options=_default_options(self.settings))
                interface = bridge_name(self.fabric.tag, identity)
            self._keep(NetworkRecord(
                id=identity, spec=spec, interface=interface, created_ns=time.time_ns()
            ))  # fmt: skip

    def _reconfigure(self, record: NetworkRecord) -> None:
        """Let the default network be as it is configured now."""
        options = _default_options(self.settings)
        if record.spec.options != options:
            self._keep(replace(record, spec=replace(record.spec, options=options)))

    async def create(self, spec: NetworkSpec) -> tuple[str, builtins.list[str]]:
        """Make a network: its id, and warnings. Nothing is left when it raises."""
        warnings = self._check(spec)
        async with self._lock:
            if spec.name in self._by_name:
                raise ConflictError(f"network with name {spec.name} already exists")
            if len(self._documents) >= MOST:
                raise ConflictError(
                    f"there are {MOST} networks already", hint="remove some: tare network prune"
                )
            identity = _new_id()
            interface = self._interface(spec, identity)
            async with self.fabric.alone():
                subnets = await asyncio.to_thread(self._subnets, spec)
                record = NetworkRecord(
                    id=identity,
                    spec=replace(spec, subnets=subnets),
                    interface=interface,
                    created_ns=time.time_ns(),
                )
                network_values.network(record)  # it refuses what cannot be before anything is
                self._keep(record)
                try:
                    await self._settle(record)
                except BaseException:
                    self._forget(record)
                    with contextlib.suppress(TareError, OSError):
                        await self.fabric.remove(network_values.network(record))
                    raise
        self._tell(record, "create")
        return identity, warnings

    async def ready(self, record: NetworkRecord) -> NetworkRecord:
        """Make sure that the bridge of a network is there: also one that was deleted by hand.

        The network as it is then: the default one's subnet is another when somebody on the host
        took it before it was first used.
        """
        if record.id in self._removing:
            raise MissingError(f"network {record.name} is being removed", exit_code=125)
        if record.id in self._settled and self.fabric.there(record.interface):
            return record
        async with self._lock:
            record = self._documents.get(record.id) or record
            if record.id not in self._settled or not self.fabric.there(record.interface):
                async with self.fabric.alone():
                    if record.name == BRIDGE and not self.members(record.id):
                        record = await asyncio.to_thread(self._moved, record)
                        self._keep(record)
                    await self._settle(record)
        return record

    def _moved(self, record: NetworkRecord) -> NetworkRecord:
        """The default network, with a subnet that still meets nothing of the host's."""
        others = self._taken(but=BRIDGE)
        have = [network_values.prefix("subnet", wish.subnet) for wish in record.spec.subnets]
        if not any(a.version == b.version and a.overlaps(b) for a in have for b in others):
            return record
        found = network_values.recorded(addresses.next_subnet(others, self._pools(4)), SubnetWish())
        log.warning("the default network is %s now: its old subnet is in use", found.subnet)
        return replace(record, spec=replace(record.spec, subnets=(found,)))

    async def _settle(self, record: NetworkRecord) -> None:
        await self.fabric.settle(network_values.network(record))
        self._settled.add(record.id)

    def settled(self, identities: Sequence[str]) -> None:
        """The bridges of these are there."""
        self._settled.update(identities)

    def _check(self, spec: NetworkSpec) -> builtins.list[str]:
        if not _NAME.fullmatch(spec.name) or len(spec.name) > 255:
            raise InvalidError(
                f"{spec.name[:80]!r} is not a name for a network",
                hint="letters, digits, '_', '.' and '-', beginning with a letter or a digit",
            )
        if spec.name in PREDEFINED or spec.name == "default":
            raise DeniedError(f"operation is not permitted on predefined {spec.name} network")
        if spec.driver not in _DRIVERS:
            raise MissingError(
                f"could not find a network driver named {spec.driver[:40]!r}",
                hint="there are bridge and macvlan",
            )
        if self.fabric.unavailable:
            raise UnsupportedError(self.fabric.unavailable)
        if not (spec.ipv4 or spec.ipv6):
            raise InvalidError("a network needs IPv4 or IPv6")
        network_values.mtu(spec)
        unknown = [name for name in spec.options if name not in KNOWN_OPTIONS]
        return [f"the network option {name[:80]!r} is not known here: ignored" for name in unknown]

    def _interface(self, spec: NetworkSpec, identity: str) -> str:
        if spec.driver == Driver.MACVLAN:
            parent = spec.options.get(PARENT_OPTION, "")
            if not parent:
                raise InvalidError("a macvlan network needs an interface", hint="-o parent=eth0")
            network_values.interface_name(parent)
            if not self.fabric.there(parent):
                raise MissingError(f"the host has no interface {parent}")
            return parent
        name = spec.options.get(NAME_OPTION, "")
        if not name:
            return bridge_name(self.fabric.tag, identity)
        network_values.interface_name(name)
        holder = next((r.name for r in self.all() if r.interface == name), "")
        if holder or self.fabric.there(name):
            whose = f"of the network {holder}" if holder else "that the engine did not make"
            raise ConflictError(f"there is an interface {name} {whose} already")
        return name

    # --- subnets ------------------------------------------------------------------------------

    def _taken(self, but: str = "", parent: str = "") -> dict[Prefix, str]:
        """The prefixes that a network must not meet, and whose they are.

        Those of the network *but* aside, and those of the host's interface *parent*: a macvlan
        network is on its parent's wire, and so in its subnet.
        """
        own = [record.interface for record in self.all() if record.interface] + [parent]
        taken: dict[Prefix, str] = {}
        for one in self.fabric.host_prefixes(own):
            taken[one] = "the host"
        for record in self.all():
            for wish in record.spec.subnets if record.name != but else ():
                taken[network_values.prefix("subnet", wish.subnet)] = f"the network {record.name}"
        return taken

    def _free_subnet(self) -> SubnetWish:
        return network_values.recorded(
            addresses.next_subnet(self._taken(), self._pools(4)), SubnetWish()
        )

    def _pools(self, version: int) -> Sequence[Pool]:
        """What subnets of an IP version are cut from, unless they are named."""
        configured = (Pool(ip_network(base), size) for base, size in self.settings.pools)
        found = [pool for pool in configured if pool.base.version == version]
        if found:
            return found
        return DEFAULT_POOLS if version == 4 else [addresses.local_pool(self.fabric.tag)]

    def _subnets(self, spec: NetworkSpec) -> tuple[SubnetWish, ...]:
        """The subnets of a new network: those asked for, and what they leave to be chosen."""
        macvlan = spec.driver == Driver.MACVLAN
        taken = self._taken(parent=spec.options.get(PARENT_OPTION, "") if macvlan else "")
        found: builtins.list[SubnetWish] = []
        for wish in spec.subnets:
            if not wish.subnet:
                if wish.gateway or wish.range or wish.auxiliary:
                    raise InvalidError("a gateway, a range or an address needs its subnet")
                continue
            checked = addresses.check_subnet(subnet(wish), taken)
            if checked.prefix.version == 6 and not spec.ipv6:
                raise InvalidError(
                    f"the subnet {checked.prefix} is of IPv6, which is off", hint="add --ipv6"
                )
            taken[checked.prefix] = "this network"
            found.append(network_values.recorded(checked, wish))
        versions = {network_values.is_ipv6(wish.subnet) for wish in found}
        if spec.ipv4 and False not in versions:
            chosen = addresses.next_subnet(taken, self._pools(4))
            found.insert(0, network_values.recorded(chosen, SubnetWish()))
        if spec.ipv6 and True not in versions:
            chosen = addresses.next_subnet(taken, self._pools(6))
            found.append(network_values.recorded(chosen, SubnetWish()))
        return tuple(found)

    # --- remove -------------------------------------------------------------------------------

    async def remove(self, ref: str) -> None:
        """Remove a network that no running container is in."""
        record = self.get(ref)
        if record.predefined:
            raise DeniedError(f"{record.name} is a pre-defined network and cannot be removed")
        async with self._lock:
            if self._documents.get(record.id) is None:
                raise MissingError(f"network {ref[:80]} not found")
            members = self.members(record.id)
            if members:
                names = ", ".join(f'name:"{name}" id:"{one[:12]}"' for one, name in members[:5])
                raise DeniedError(
                    f"error while removing network: network {record.name} has active endpoints"
                    f" ({names})",
                    hint=f"disconnect them first: tare network disconnect {record.name} NAME",
                )
            # What starts from here on must not join it; what is starting has joined it already.
            self._removing.add(record.id)
            try:
                await self.fabric.remove(network_values.network(record))
                self._forget(record)
            finally:
                self._removing.discard(record.id)
        self._tell(record, "destroy")

    async def prune(
        self, filters: Mapping[str, Sequence[str]] | None = None, *, dry: bool = False
    ) -> builtins.list[str]:
        """Remove those that no container is to be in and that pass the filters; their names.

        *dry* removes nothing, and answers the same.
        """
        for key in filters or {}:
            if key not in ("label", "label!", "until"):
                raise InvalidError(f"invalid filter '{key[:40]}'")
        deleted = []
        for record in self.list(filters):
            if record.predefined or self.wanting(record.id):
                continue
            try:
                if not dry:
                    await self.remove(record.id)
            except TareError:
                continue  # used or removed meanwhile
            deleted.append(record.name)
        if deleted and not dry:
            self._events.emit("network", "prune", "", {"reclaimed": "0"})
        return deleted

    # --- inside -------------------------------------------------------------------------------

    def tell(self, record: NetworkRecord, action: str, container: str) -> None:
        """Tell that a container was connected or disconnected."""
        self._tell(record, action, {"container": container})

    def _tell(
        self, record: NetworkRecord, action: str, more: Mapping[str, str] | None = None
    ) -> None:
        attributes = {"name": record.name, "type": record.spec.driver, **(more or {})}
        self._events.emit("network", action, record.id, attributes)

    def _keep(self, record: NetworkRecord) -> None:
        self._documents.put(record.id, record)
        self._by_name[record.name] = record.id

    def _forget(self, record: NetworkRecord) -> None:
        self._documents.delete(record.id)
        self._by_name.pop(record.name, None)
        self._settled.discard(record.id)


def _labelled(record: NetworkRecord, wanted: str) -> bool:
    name, equals, value = wanted.partition("=")
    found = record.spec.labels.get(name)
    return found is not None and (not equals or found == value)


def _truth(key: str, values: Sequence[str]) -> bool:
    words = {value.lower() for value in values}
    if words <= {"1", "true"}:
        return True
    if words <= {"0", "false"}:
        return False
    raise InvalidError(f"invalid filter '{key}={sorted(words)}'")


def _default_options(settings: NetworkSettings) -> dict[str, str]:
    """Docker's options of its default bridge, but that containers there do not reach each other.

    CIS Docker Benchmark 2.1; docs/threat-model.md. ``icc`` in the configuration changes that.
    """
    bridge = "com.docker.network.bridge"
    return {
        f"{bridge}.default_bridge": "true",
        f"{bridge}.enable_icc": "true" if settings.icc else "false",
        f"{bridge}.enable_ip_masquerade": "true",
        "com.docker.network.driver.mtu": "1500",
        **({network_values.HOST_ACCESS_OPTION: "true"} if settings.host_access else {}),
    }


def _new_id() -> str:
    while True:
        identity = secrets.token_hex(32)
        if not identity[:12].isdigit():
            return identity
