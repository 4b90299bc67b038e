"""One interface of a sandbox: made straight into another network namespace, and set up there.

`attach` is what a container's start and a later connect have in common: the link (a veth whose
other end is a port of a bridge, or a macvlan), its addresses, routes, rate, and what the bridge
lets the port do. Every step is netlink; few system calls carry all of it.

Not for: bridges themselves (tare.network.bridge), or which address belongs to whom.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from ipaddress import IPv6Interface, ip_address, ip_interface, ip_network
from typing import Final, Self, TypedDict

from tare.kernel import process, rtnetlink, tap
from tare.kernel.netlink import Message, visiting
from tare.kernel.rtnetlink import Routing

VETH: Final = "veth"
FIRST: Final = "eth0"
MACVLAN: Final = "macvlan"


class Plain(TypedDict):
    """`Interface` as JSON: what crosses from the daemon to the keeper."""

    kind: str
    parent: str
    host_name: str
    name: str
    mac: str
    mtu: int
    addresses: list[str]
    gateways: list[str]
    routes: list[tuple[str, str]]
    ipv6: bool
    isolated: bool
    rate: int
    alias: str
    mode: str
    hairpin: bool
    ports: list[tuple[str, int, int, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """What to make. Addresses are text with a prefix length (``172.17.0.2/16``).

    ``parent`` is the bridge that ``host_name``, the outer end, becomes a port of; of a macvlan it
    is the interface on whose wire it is. ``gateways`` are those of the default routes.
    ``routes`` are further ones: destination and gateway. Without ``ipv6`` it has no IPv6 address
    at all. ``rate`` is in bytes a second, 0 for none; ``mode`` is a macvlan's. ``hairpin``: what
    it sends may come back to it, where the host filters bridged frames. ``ports`` (address and
    port of the host, port inside, protocol) are for kinds that publish by themselves.
    """

    kind: str = VETH
    parent: str
    host_name: str = ""
    name: str = "eth0"
    mac: str
    mtu: int = 1500
    addresses: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    routes: tuple[tuple[str, str], ...] = ()
    ipv6: bool = False
    isolated: bool = False
    rate: int = 0
    alias: str = ""
    mode: str = "bridge"
    hairpin: bool = False
    ports: tuple[tuple[str, int, int, str], ...] = ()

    def plain(self) -> Plain:
        """As JSON."""
        values = asdict(self)
        for name in ("addresses", "gateways", "routes", "ports"):
            values[name] = list(values[name])
        plain: Plain = values  # type: ignore[assignment]  # the same fields
        return plain

    @classmethod
    def of(cls, plain: Plain) -> Self:
        """From JSON."""
        values: Mapping[str, object] = plain
        changed = {
            **values,
            "addresses": tuple(plain["addresses"]),
            "gateways": tuple(plain["gateways"]),
            "routes": tuple((to, via) for to, via in plain["routes"]),
            "ports": tuple((host, n, inside, kind) for host, n, inside, kind in plain["ports"]),
        }
        return cls(**changed)  # type: ignore[arg-type]  # the same fields


class Prepared:
    """A link made ahead of time: both ends are there and down, the inner one called eth0.

    It goes when its namespace does. `close` lets go of the namespace.
    """

    __slots__ = ("inner", "inside", "ipv6", "name", "outside")

    def __init__(self, name: str, outside: int, inner: Routing, inside: int, ipv6: bool) -> None:
        self.name, self.outside = name, outside
        self.inner, self.inside = inner, inside
        self.ipv6 = ipv6

    def close(self) -> None:
        """Close the connection into the namespace."""
        self.inner.close()


class Attacher:
    """Attaches interfaces; holds the connection to the own namespace, which every start needs."""

    def __init__(self) -> None:
        self._outer = Routing()

    def close(self) -> None:
        """Let go of the connection."""
        self._outer.close()

    def prepare(self, namespace: int, *, ipv6: bool) -> Prepared:
        """A link into the network namespace of that descriptor, for a later `attach`."""
        name = f"tp{os.urandom(6).hex()}"
        with _named_as(f"a prepared link {name}"):
            self._outer.request(
                rtnetlink.new_veth(name, mtu=1500, peer=FIRST, peer_mac=None, namespace=namespace)
            )
            try:
                outside = _index(name)
                with visiting(namespace):
                    if not ipv6:
                        _set_ipv6(FIRST, on=False)
                    inner = Routing()
                try:
                    return Prepared(name, outside, inner, inner.index(FIRST), ipv6)
                except BaseException:
                    inner.close()
                    raise
            except BaseException:
                self.detach(name)
                raise

    def attach(self, wanted: Interface, namespace: int, prepared: Prepared | None = None) -> None:
        """Make *wanted* in the network namespace of that descriptor; on OSError nothing is left.

        An outer end of that name, of a container that is being taken down, is replaced. *prepared*
        is used up, in any case.
        """
        with _named(wanted):
            if prepared is not None and wanted.kind == VETH:
                self._use(prepared, wanted, namespace)
            elif wanted.kind == MACVLAN:
                self._macvlan(wanted, namespace)
            else:
                self._veth(wanted, namespace)

    def _use(self, prepared: Prepared, wanted: Interface, namespace: int) -> None:
        name, outside = wanted.host_name, prepared.outside
        try:
            if wanted.ipv6 != prepared.ipv6:
                with visiting(namespace):
                    _set_ipv6(FIRST, on=wanted.ipv6)
            index = prepared.inside
            own_name = wanted.name if wanted.name != FIRST else None
            own = rtnetlink.set_link(
                index, wanted.name, name=own_name, mac=wanted.mac, mtu=wanted.mtu
            )
            prepared.inner.request(own, *_inside(wanted, index))
            bridge = _index(wanted.parent)
            joins = rtnetlink.set_link(outside, name, name=name, master=bridge, mtu=wanted.mtu)
            try:
                self._outer.request(joins, *_port(wanted, outside))
            except FileExistsError:
                self.detach(name)
                self._outer.request(joins, *_port(wanted, outside))
        except BaseException:
            with contextlib.suppress(OSError):
                self._outer.request(rtnetlink.delete_link(outside, name))
            raise
        finally:
            prepared.close()

    def _veth(self, wanted: Interface, namespace: int) -> None:
        name = wanted.host_name
        bridge = _index(wanted.parent)
        create = rtnetlink.new_veth(
            name,
            mtu=wanted.mtu,
            peer=wanted.name,
            peer_mac=wanted.mac,
            namespace=namespace,
            master=bridge,
        )
        try:
            self._outer.request(create)
        except FileExistsError:
            self.detach(name)
            self._outer.request(create)
        try:
            outside = _index(name)
            _configure(wanted, namespace)
            # The inner end is up already, so this end has a carrier from the first moment.
            self._outer.request(*_port(wanted, outside))
        except BaseException:
            self.detach(name)
            raise

    def _macvlan(self, wanted: Interface, namespace: int) -> None:
        create = rtnetlink.new_macvlan(
            wanted.name,
            parent=_index(wanted.parent),
            mode=wanted.mode,
            mtu=wanted.mtu,
            mac=wanted.mac,
            namespace=namespace,
        )
        self._outer.request(create)
        try:
            _configure(wanted, namespace)
        except BaseException:
            remove_inside(wanted.name, namespace)
            raise

    def tap(self, wanted: Interface) -> int:
        """The link of a machine: a tap device under the outer end's name, by its descriptor.

        The port of the bridge is what a container's is. Addresses and routes are the guest's to
        set. The device goes with the last copy of the descriptor.
        """
        with _named(wanted):
            if wanted.kind != VETH:
                raise OSError(errno.EOPNOTSUPP, f"a machine cannot be linked by {wanted.kind}")
            try:
                descriptor = tap.create(wanted.host_name)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EBUSY, errno.EEXIST):
                    raise
                # The name is taken by a link of its former self that is being taken down.
                self.detach(wanted.host_name)
                descriptor = tap.create(wanted.host_name)
            try:
                index, bridge = _index(wanted.host_name), _index(wanted.parent)
                name = wanted.host_name
                self._outer.request(
                    rtnetlink.set_link(index, name, master=bridge, mtu=wanted.mtu),
                    *_port(wanted, index),
                )
            except BaseException:
                os.close(descriptor)
                raise
            return descriptor

    def detach(self, host_name: str) -> None:
        """Remove an outer end, and so the inner one; nothing happens when there is none."""
        with contextlib.suppress(OSError):
            index = _index(host_name)
            self._outer.request(rtnetlink.delete_link(index, host_name), ignore=(errno.ENODEV,))


def remove_inside(name: str, namespace: int) -> None:
    """Remove the interface *name* of the namespace of that descriptor, if it is there."""
    with Routing(namespace=namespace) as inner:
        link = inner.link(name)
        if link is not None:
            inner.request(rtnetlink.delete_link(link.index, name), ignore=(errno.ENODEV,))


def _index(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError:
        raise OSError(errno.ENODEV, "no such network interface", name) from None


@contextlib.contextmanager
def _named_as(what: str) -> Iterator[None]:
    """Every failure names the interface that it is about."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = what
        raise


def _named(wanted: Interface) -> contextlib.AbstractContextManager[None]:
    return _named_as(f"{wanted.name} on {wanted.parent}")


def _configure(wanted: Interface, namespace: int) -> None:
    """The inner end: no address of its own, then up, addresses, routes."""
    name = wanted.name
    with visiting(namespace):
        inner = Routing()
        if not wanted.ipv6:
            _set_ipv6(name, on=False)
    with inner:
        inner.request(*_inside(wanted, inner.index(name)))


def _inside(wanted: Interface, index: int) -> list[Message]:
    name = wanted.name
    messages: list[Message] = [rtnetlink.set_link(index, name, up=True)]
    if wanted.ipv6:
        messages.insert(0, rtnetlink.no_link_local(index, name))
        messages.append(rtnetlink.new_address(index, link_local(wanted.mac), name))
    messages += [rtnetlink.new_address(index, ip_interface(a), a) for a in wanted.addresses]
    for destination, via in wanted.routes:
        hop = ip_address(via) if via else None
        messages.append(rtnetlink.new_route(index, ip_network(destination), hop, destination))
    for via in wanted.gateways:
        gateway = ip_address(via)
        everywhere = ip_network("0.0.0.0/0" if gateway.version == 4 else "::/0")
        messages.append(rtnetlink.new_route(index, everywhere, gateway, via))
    if wanted.rate:
        messages.append(rtnetlink.token_bucket(index, wanted.rate, name))
    return messages


def disable_ipv6(pid: int) -> None:
    """No interface that comes into the network namespace of *pid* later has IPv6 by itself.

    A child goes there: without privilege over the own namespace there is no way back.
    """
    namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    child, pidfd = process.spawn(0)
    if child == 0:
        try:
            process.join_namespaces(namespace, process.CLONE_NEWNET)
            _set_ipv6("default", on=False)
        finally:
            os._exit(0)
    os.close(namespace)
    os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    os.close(pidfd)


def _set_ipv6(name: str, *, on: bool) -> None:
    """In the namespace visited; a host without IPv6 has nothing to disable."""
    try:
        descriptor = os.open(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", os.O_WRONLY)
    except FileNotFoundError:
        return
    try:
        os.write(descriptor, b"0" if on else b"1")
    finally:
        os.close(descriptor)


def _port(wanted: Interface, index: int) -> list[Message]:
    """The outer end: hardened before it is up."""
    name = wanted.host_name
    messages = [
        rtnetlink.no_link_local(index, name),
        rtnetlink.set_port(
            index,
            name,
            isolated=wanted.isolated,
            locked=True,
            hairpin=wanted.hairpin and _bridged_frames_filtered(),
        ),
        rtnetlink.new_forwarding(index, wanted.mac, name),
        rtnetlink.set_link(index, name, up=True, alias=wanted.alias or None),
    ]
    if wanted.rate:
        messages.append(rtnetlink.token_bucket(index, wanted.rate, name))
    return messages


def _bridged_frames_filtered() -> bool:
    """Whether addresses of bridged frames may be translated, so that one returns to its port."""
    try:
        with open("/proc/sys/net/bridge/bridge-nf-call-iptables", encoding="ascii") as file:
            return file.read(1) == "1"
    except OSError:
        return False


def link_local(mac: str) -> IPv6Interface:
    """The link-local address that goes with a MAC address (RFC 4291, appendix A)."""
    data = bytearray(rtnetlink.mac_bytes(mac))
    data[0] ^= 2
    packed = b"\xfe\x80" + bytes(6) + bytes(data[:3]) + b"\xff\xfe" + bytes(data[3:])
    return IPv6Interface((packed, 64))
