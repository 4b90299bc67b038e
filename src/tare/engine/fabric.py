"""What the engine asks of the host's network: bridges, the packet filter, held ports, names.

`HostFabric` does it with `tare.network`; tests of the engine use one that only remembers. Calls
without ``async`` take well below a millisecond.

Not for: which networks and addresses there are (engine.networks, engine.attachments).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from ipaddress import ip_address, ip_network
from typing import Protocol

from tare.engine.paths import Paths
from tare.errors import FailedError, UnsupportedError
from tare.kernel import confine
from tare.kernel.interfaces import Interface
from tare.kernel.rtnetlink import Routing, new_route
from tare.network import addresses, bridge, firewall, ports
from tare.network.dns_link import NameServer
from tare.network.dns_table import Table
from tare.network.firewall import Firewall, Wanted
from tare.network.values import Address, Endpoint, Network, Port, Prefix, engine_tag
from tare.network.values import Protocol as PortProtocol

log = logging.getLogger("tare.network")
_ALONE_WITHIN = 10.0
_FILTERED = (
    "the host sends bridged frames through its packet filter (net.bridge.bridge-nf-call-iptables, "
    "-ip6tables): ports published on ::1 are not reached from the host itself"
)


class Held(Protocol):
    """A port of the host that nobody else can take while it is held."""

    @property
    def port(self) -> int:
        """Its number."""
        ...

    def release(self) -> None:
        """Let go of it."""
        ...


class Fabric(Protocol):
    """The host's network, as the engine uses it."""

    tag: str

    @property
    def unavailable(self) -> str:
        """Why this host can have no bridge networks, in one sentence; "" when it can."""
        ...

    @property
    def problems(self) -> tuple[str, ...]:
        """What does not work right now, a sentence each."""
        ...

    def alone(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Whoever else chooses subnets on this host waits: choose, and `settle`, inside."""
        ...

    def host_prefixes(self, own: Collection[str]) -> Sequence[Prefix]:
        """Where the host has routes to, its interfaces *own* left out."""
        ...

    def there(self, interface: str) -> bool:
        """Whether the host has an interface of that name."""
        ...

    def interface(self, network: Network, endpoint: Endpoint) -> Interface:
        """What a start makes of an endpoint."""
        ...

    async def begin(self, wanted: Wanted, links: Collection[str], bridges: Collection[str]) -> None:
        """Make all of it true, remove what else is left of this engine, and keep it so."""
        ...

    async def settle(self, network: Network) -> None:
        """Make the bridge be there, with its part of the filter."""
        ...

    async def remove(self, network: Network) -> None:
        """Take it away again."""
        ...

    def admit(self, endpoint: Endpoint) -> None:
        """Let a container's link speak, and publish its ports."""
        ...

    def dismiss(self, endpoint: Endpoint) -> None:
        """No more of it."""
        ...

    async def connect(self, network: Network, endpoint: Endpoint, namespace: int) -> None:
        """Link a running container."""
        ...

    async def disconnect(self, endpoint: Endpoint, namespace: int) -> None:
        """Take its link away."""
        ...

    async def lead_out(self, interface: str, gateways: Sequence[str], namespace: int) -> None:
        """Make *gateways* the way out of a running container, through its *interface*."""
        ...

    def hold(self, port: Port) -> Held:
        """Take a port of the host; ConflictError names who has it."""
        ...

    def choose(
        self, address: Address, protocol: PortProtocol, wanted: range | None, taken: Collection[int]
    ) -> Held:
        """Take a free port of *wanted*, or any; ConflictError when there is none."""
        ...

    async def name(self, table: Table) -> None:
        """Make *table* what names resolve by."""
        ...

    async def close(self) -> None:
        """Let go; networks, rules and names stay in force."""
        ...


class _Socket:
    """`Held` by a bound socket."""

    def __init__(self, bound: socket.socket) -> None:
        self._bound = bound

    @property
    def port(self) -> int:
        """The number it is bound to."""
        return int(self._bound.getsockname()[1])

    def release(self) -> None:
        """Close the socket."""
        self._bound.close()


class HostFabric:
    """Implements `Fabric` on this host, in the daemon's network namespace."""

    def __init__(self, state: str, run: str) -> None:
        self.tag = engine_tag(state)
        self._unavailable: str | None = None
        self._names = NameServer(run)
        self._firewall: Firewall | None = None
        self._restoring: asyncio.Task[None] | None = None
        self._trouble = ""

    @property
    def unavailable(self) -> str:
        """Asked once: a package that is installed later needs a restart of the daemon."""
        if self._unavailable is None:
            self._unavailable = firewall.unavailable()
            if not confine.effective() & confine.mask(frozenset(("NET_ADMIN",))):
                self._unavailable = "networks need the capability NET_ADMIN, which the engine lacks"
        return self._unavailable

    @property
    def problems(self) -> tuple[str, ...]:
        """Of the filter and of the name server."""
        own = [self._trouble] if self._trouble else []
        if self._firewall is not None and bridge.bridged_frames_filtered():
            own.append(_FILTERED)
        return (*own, *self._names.problems)

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """By a lock on the network namespace itself, which the kernel drops with its holder.

        Any process in the namespace could take that lock, so nobody waits for it for ever.
        """
        descriptor = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        loop = asyncio.get_running_loop()
        end = loop.time() + _ALONE_WITHIN
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if loop.time() > end:
                        log.warning("somebody keeps the lock on the host's networks: not waiting")
                        break
                    await asyncio.sleep(0.01)
            yield
        finally:
            os.close(descriptor)

    def host_prefixes(self, own: Collection[str]) -> Sequence[Prefix]:
        """From the kernel's routes."""
        return addresses.host_prefixes(own)

    def there(self, interface: str) -> bool:
        """By if_nametoindex(3), which sees the daemon's own namespace."""
        try:
            socket.if_nametoindex(interface)
        except OSError:
            return False
        return True

    def interface(self, network: Network, endpoint: Endpoint) -> Interface:
        """Pure."""
        return bridge.interface(network, endpoint)

    async def begin(self, wanted: Wanted, links: Collection[str], bridges: Collection[str]) -> None:
        """Sweep, settle, and one transaction of the filter; where nothing is wanted, none is left.

        An engine without networks does not even load a filter.
        """
        if not wanted.networks and not wanted.endpoints:
            await self._in_thread("remove what is left of its networks", self._sweep)
            return
        filter_ = self._filter()

        def work() -> None:
            bridge.sweep(self.tag, links, bridges)
            for network in wanted.networks:
                bridge.settle(network)
            filter_.replace(wanted)

        await self._in_thread("set up its networks again", work)

    def _sweep(self) -> None:
        bridge.sweep(self.tag, (), ())
        firewall.sweep(self.tag)

    def _filter(self) -> Firewall:
        if self._firewall is None:
            if self.unavailable:
                raise UnsupportedError(self.unavailable)
            self._firewall = Firewall(self.tag)
            asyncio.get_running_loop().add_reader(self._firewall.fileno(), self._looked_at)
        return self._firewall

    def _looked_at(self) -> None:
        """Somebody changed rulesets of this host: ours come back at once."""
        assert self._firewall is not None
        if self._firewall.changed() and (self._restoring is None or self._restoring.done()):
            self._restoring = asyncio.get_running_loop().create_task(self._restore())

    async def _restore(self) -> None:
        assert self._firewall is not None
        log.warning("the engine's packet filter was changed from outside; it is written again")
        try:
            await asyncio.to_thread(self._firewall.restore)
            self._trouble = ""
        except (OSError, FailedError, UnsupportedError) as error:
            self._trouble = f"the packet filter was changed and cannot be restored: {error}"
            log.error("%s", self._trouble)

    async def settle(self, network: Network) -> None:
        """First the bridge, then the rules that name it."""
        filter_ = self._filter()

        def work() -> None:
            bridge.settle(network)
            filter_.add_network(network)

        await self._in_thread(f"make the network {network.name}", work)

    async def remove(self, network: Network) -> None:
        """First the rules, then the bridge."""

        def work() -> None:
            if self._firewall is not None:
                self._firewall.remove_network(network.id)
            bridge.remove(network)

        await self._in_thread(f"remove the network {network.name}", work)

    async def _in_thread(self, what: str, work: Callable[[], None]) -> None:
        try:
            await asyncio.to_thread(work)
        except OSError as error:
            raise FailedError(f"cannot {what}: {error}") from error

    def admit(self, endpoint: Endpoint) -> None:
        """By netlink, before the program starts."""
        self._filter().add(endpoint)

    def dismiss(self, endpoint: Endpoint) -> None:
        """By netlink."""
        if self._firewall is not None:
            self._firewall.remove(endpoint)

    async def connect(self, network: Network, endpoint: Endpoint, namespace: int) -> None:
        """In a thread."""
        await self._in_thread(
            f"connect to the network {network.name}",
            lambda: bridge.connect(network, endpoint, namespace),
        )

    async def disconnect(self, endpoint: Endpoint, namespace: int) -> None:
        """In a thread."""
        await self._in_thread(
            "disconnect from a network", lambda: bridge.disconnect(endpoint, namespace)
        )

    async def lead_out(self, interface: str, gateways: Sequence[str], namespace: int) -> None:
        """In a thread."""

        def work() -> None:
            with Routing(namespace=namespace) as inner:
                index = inner.index(interface)
                for gateway in map(ip_address, gateways):
                    everywhere = ip_network("0.0.0.0/0" if gateway.version == 4 else "::/0")
                    inner.request(new_route(index, everywhere, gateway, interface))

        await self._in_thread("find another way out", work)

    def hold(self, port: Port) -> Held:
        """By a bound socket."""
        return _Socket(ports.reserve(port))

    def choose(
        self, address: Address, protocol: PortProtocol, wanted: range | None, taken: Collection[int]
    ) -> Held:
        """By a bound socket."""
        return _Socket(ports.choose(address, protocol, wanted, taken))

    async def name(self, table: Table) -> None:
        """Through the name server's own process."""
        await self._names.put(table)

    async def close(self) -> None:
        """Stop watching; nothing in the kernel changes."""
        if self._restoring is not None:
            self._restoring.cancel()
        await self._names.close()
        if self._firewall is not None:
            with contextlib.suppress(ValueError, OSError):
                asyncio.get_running_loop().remove_reader(self._firewall.fileno())
            self._firewall.close()


class NoFabric:
    """A host that can have no networks, and why; what needs one is UnsupportedError."""

    def __init__(self, why: str) -> None:
        self.tag = "none"
        self.unavailable = why
        self.problems: tuple[str, ...] = ()

    def _refuse(self) -> UnsupportedError:
        return UnsupportedError(self.unavailable)

    def alone(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Nothing is chosen."""
        return contextlib.nullcontext()

    def host_prefixes(self, own: Collection[str]) -> Sequence[Prefix]:
        """None are known."""
        return ()

    def there(self, interface: str) -> bool:
        """None is looked for."""
        return False

    def interface(self, network: Network, endpoint: Endpoint) -> Interface:
        """There is none."""
        raise self._refuse()

    async def begin(self, wanted: Wanted, links: Collection[str], bridges: Collection[str]) -> None:
        """There is nothing to make true."""
        if wanted.networks or wanted.endpoints:
            raise self._refuse()

    async def settle(self, network: Network) -> None:
        """There can be none."""
        raise self._refuse()

    async def remove(self, network: Network) -> None:
        """It is not there."""

    def admit(self, endpoint: Endpoint) -> None:
        """There can be none."""
        raise self._refuse()

    def dismiss(self, endpoint: Endpoint) -> None:
        """It is not there."""

    async def connect(self, network: Network, endpoint: Endpoint, namespace: int) -> None:
        """There can be none."""
        raise self._refuse()

    async def disconnect(self, endpoint: Endpoint, namespace: int) -> None:
        """It is not there."""

    async def lead_out(self, interface: str, gateways: Sequence[str], namespace: int) -> None:
        """There is none."""

    def hold(self, port: Port) -> Held:
        """There is no way to a container."""
        raise self._refuse()

    def choose(
        self, address: Address, protocol: PortProtocol, wanted: range | None, taken: Collection[int]
    ) -> Held:
        """There is no way to a container."""
        raise self._refuse()

    async def name(self, table: Table) -> None:
        """Nobody asks."""

    async def close(self) -> None:
        """There is nothing to let go of."""


def fabric_of(paths: Paths) -> Fabric:
    """What the engine of *paths* can have on this host."""
    if paths.rootless:
        # Root in a namespace of its user's, which does not own the host's network.
        from tare.engine.user_fabric import UserFabric

        return UserFabric()
    return HostFabric(str(paths.state), str(paths.run))


def namespace_of(pid: int) -> int:
    """A descriptor of the network namespace of a process; the caller closes it."""
    return os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
