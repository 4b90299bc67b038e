"""rtnetlink(7), typed: links, addresses, routes, neighbours, bridge ports, rate limits.

Functions named after what they make return a `Message`; `Routing` sends them, several with one
system call. Interfaces are named by index, which a caller finds with `Routing.index`.

Not for: what a container's network is made of (`kernel.interfaces`).
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import Final

from tare.kernel import netlink
from tare.kernel.netlink import (
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Attributes,
    Message,
    attribute,
    nested,
    parse,
    text,
    u8,
    u32,
)

IFF_UP: Final = 1

_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK, _RTM_SETLINK = 16, 17, 18, 19
_RTM_NEWADDR, _RTM_DELADDR, _RTM_GETADDR = 20, 21, 22
_RTM_NEWROUTE, _RTM_DELROUTE, _RTM_GETROUTE = 24, 25, 26
_RTM_NEWNEIGH, _RTM_DELNEIGH, _RTM_GETNEIGH = 28, 29, 30
_RTM_NEWQDISC = 36

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK = 1, 3, 4, 5
_IFLA_MASTER, _IFLA_OPERSTATE, _IFLA_LINKINFO, _IFLA_IFALIAS = 10, 16, 18, 20
_IFLA_AF_SPEC, _IFLA_NET_NS_FD = 26, 28
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _IFLA_INFO_SLAVE_KIND, _IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
_VETH_INFO_PEER: Final = 1
_IFLA_MACVLAN_MODE: Final = 1
_IFLA_INET6_ADDR_GEN_MODE: Final = 8
_ADDR_GEN_NONE: Final = 1
# linux/if_link.h, IFLA_BR_ and IFLA_BRPORT_
_BR_FORWARD_DELAY, _BR_STP_STATE = 1, 5
_PORT_MODE, _PORT_LEARNING, _PORT_UNICAST_FLOOD = 4, 8, 9
_PORT_ISOLATED, _PORT_LOCKED = 33, 39

_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS = 1, 2, 4, 8
_IFA_F_NODAD: Final = 0x02
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_METRICS = 1, 4, 5, 6, 8
_RT_TABLE_MAIN: Final = 254
_RT_TABLE_LOCAL: Final = 255
_RTPROT_STATIC: Final = 4
_RTN_UNICAST, _RTN_LOCAL = 1, 2
_RT_SCOPE_LINK: Final = 253

_NDA_DST, _NDA_LLADDR = 1, 2
_NUD_PERMANENT, _NUD_NOARP = 0x80, 0x40
_NTF_MASTER: Final = 0x04

_TCA_KIND, _TCA_OPTIONS = 1, 2
_TCA_TBF_PARMS, _TCA_TBF_RATE64, _TCA_TBF_BURST = 1, 4, 6
_TC_H_ROOT: Final = 0xFFFFFFFF
_TC_LINKLAYER_ETHERNET: Final = 1

_LINK: Final = struct.Struct("=BxHiII")
_ADDRESS: Final = struct.Struct("=BBBBI")
_ROUTE: Final = struct.Struct("=8BI")
_NEIGHBOUR: Final = struct.Struct("=BxxxiHBB")
_QDISC: Final = struct.Struct("=BxxxiIII")


@dataclass(frozen=True, slots=True)
class Link:
    """An interface as the kernel shows it; *kind* is bridge, veth ... or empty."""

    index: int
    name: str
    flags: int
    mtu: int
    mac: str
    kind: str
    master: int
    parent: int
    alias: str
    operstate: int


@dataclass(frozen=True, slots=True)
class Route:
    """A unicast or local route: where to, by which interface, through whom."""

    destination: IPv4Network | IPv6Network
    interface: int
    gateway: IPv4Address | IPv6Address | None
    table: int


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A neighbour or, with ``family`` AF_BRIDGE, an entry of a bridge's forwarding database."""

    family: int
    interface: int
    mac: str
    address: IPv4Address | IPv6Address | None
    state: int


def mac_bytes(mac: str) -> bytes:
    """The six bytes of a MAC address in its usual spelling."""
    return bytes.fromhex(mac.replace(":", ""))


def _link_message(  # the fields of ifinfomsg
    kind: int, flags: int, subject: str, *parts: bytes, index: int = 0, up: bool | None = None,
    family: int = 0,
) -> Message:  # fmt: skip
    state = 0 if up is None else int(up) * IFF_UP
    head = _LINK.pack(family, 0, index, state, 0 if up is None else IFF_UP)
    return Message(kind, flags, head + b"".join(parts), subject)


_NEW: Final = NLM_F_CREATE | NLM_F_EXCL


def _no_address_of_its_own() -> bytes:
    """No link-local IPv6 address by itself (IN6_ADDR_GEN_MODE_NONE)."""
    inet6 = nested(socket.AF_INET6, u8(_IFLA_INET6_ADDR_GEN_MODE, _ADDR_GEN_NONE))
    return nested(_IFLA_AF_SPEC, inet6)


def new_bridge(name: str, *, mtu: int, mac: str | None = None) -> Message:
    """A bridge without spanning tree, down."""
    data = nested(_IFLA_INFO_DATA, u32(_BR_STP_STATE, 0), u32(_BR_FORWARD_DELAY, 0))
    parts = [text(_IFLA_IFNAME, name), u32(_IFLA_MTU, mtu)]
    if mac is not None:
        parts.append(attribute(_IFLA_ADDRESS, mac_bytes(mac)))
    parts.append(nested(_IFLA_LINKINFO, text(_IFLA_INFO_KIND, "bridge"), data))
    return _link_message(_RTM_NEWLINK, _NEW, name, *parts)


def new_veth(
    name: str, *, mtu: int, peer: str, peer_mac: str | None, namespace: int | None,
    master: int | None = None, mac: str | None = None,
) -> Message:  # fmt: skip
    """A veth pair, down: *name* here, *peer* in the network namespace of that descriptor."""
    other = [_LINK.pack(0, 0, 0, 0, 0), text(_IFLA_IFNAME, peer), u32(_IFLA_MTU, mtu)]
    if peer_mac is not None:
        other.append(attribute(_IFLA_ADDRESS, mac_bytes(peer_mac)))
    if namespace is not None:
        other.append(u32(_IFLA_NET_NS_FD, namespace))
    data = nested(_IFLA_INFO_DATA, attribute(_VETH_INFO_PEER, b"".join(other)))
    parts = [text(_IFLA_IFNAME, name), u32(_IFLA_MTU, mtu)]
    if master is not None:
        parts.append(u32(_IFLA_MASTER, master))
    if mac is not None:
        parts.append(attribute(_IFLA_ADDRESS, mac_bytes(mac)))
    parts.append(nested(_IFLA_LINKINFO, text(_IFLA_INFO_KIND, "veth"), data))
    return _link_message(_RTM_NEWLINK, _NEW, name, *parts)


MACVLAN_MODES: Final = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}


def new_macvlan(
    name: str, *, parent: int, mode: str, mtu: int, mac: str | None, namespace: int | None
) -> Message:
    """A macvlan of the interface *parent*, born in the namespace of that descriptor, down."""
    parts = [text(_IFLA_IFNAME, name), u32(_IFLA_LINK, parent), u32(_IFLA_MTU, mtu)]
    if mac is not None:
        parts.append(attribute(_IFLA_ADDRESS, mac_bytes(mac)))
    if namespace is not None:
        parts.append(u32(_IFLA_NET_NS_FD, namespace))
    data = nested(_IFLA_INFO_DATA, u32(_IFLA_MACVLAN_MODE, MACVLAN_MODES[mode]))
    parts.append(nested(_IFLA_LINKINFO, text(_IFLA_INFO_KIND, "macvlan"), data))
    return _link_message(_RTM_NEWLINK, _NEW, name, *parts)


def delete_link(index: int, subject: str) -> Message:
    """Remove an interface; of a veth pair both ends go."""
    return _link_message(_RTM_DELLINK, 0, subject, index=index)


def set_link(  # what one message can change
    index: int, subject: str, *, up: bool | None = None, name: str | None = None,
    master: int | None = None, mtu: int | None = None, mac: str | None = None,
    alias: str | None = None, namespace: int | None = None,
) -> Message:  # fmt: skip
    """Change an interface; what is None stays. *master* 0 takes it out of its bridge."""
    parts = []
    if name is not None:
        parts.append(text(_IFLA_IFNAME, name))
    if master is not None:
        parts.append(u32(_IFLA_MASTER, master))
    if mtu is not None:
        parts.append(u32(_IFLA_MTU, mtu))
    if mac is not None:
        parts.append(attribute(_IFLA_ADDRESS, mac_bytes(mac)))
    if alias is not None:
        parts.append(text(_IFLA_IFALIAS, alias))
    if namespace is not None:
        parts.append(u32(_IFLA_NET_NS_FD, namespace))
    return _link_message(_RTM_SETLINK, 0, subject, *parts, index=index, up=up)


def no_link_local(index: int, subject: str) -> Message:
    """No IPv6 address comes up by itself on the interface, which must be down still."""
    return _link_message(_RTM_SETLINK, 0, subject, _no_address_of_its_own(), index=index)


def set_port(
    index: int, subject: str, *, isolated: bool, locked: bool, hairpin: bool = False
) -> Message:
    """What a bridge port may do.

    Nothing is learned from it and unknown unicast is not sent to it, so its addresses must be
    told (`new_forwarding`). *locked*: it may only send from addresses told (Linux 5.18).
    *isolated*: it reaches the bridge itself, no other isolated port. *hairpin*: frames may leave
    where they came in.
    """
    flags = [
        u8(_PORT_MODE, int(hairpin)),
        u8(_PORT_LEARNING, 0),
        u8(_PORT_UNICAST_FLOOD, 0),
        u8(_PORT_ISOLATED, int(isolated)),
    ]
    if locked:
        flags.append(u8(_PORT_LOCKED, 1))
    data = nested(_IFLA_INFO_SLAVE_DATA, *flags)
    info = nested(_IFLA_LINKINFO, text(_IFLA_INFO_SLAVE_KIND, "bridge"), data)
    return _link_message(_RTM_NEWLINK, 0, subject, info, index=index)


def new_forwarding(index: int, mac: str, subject: str) -> Message:
    """A static entry in the database of the bridge that the interface is a port of."""
    head = _NEIGHBOUR.pack(socket.AF_BRIDGE, index, _NUD_NOARP, _NTF_MASTER, 0)
    body = head + attribute(_NDA_LLADDR, mac_bytes(mac))
    return Message(_RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body, subject)


def new_neighbour(
    index: int, address: IPv4Address | IPv6Address, mac: str, subject: str
) -> Message:
    """A permanent neighbour: nobody is asked for its MAC address, and nobody can change it."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    head = _NEIGHBOUR.pack(family, index, _NUD_PERMANENT, 0, 0)
    body = head + attribute(_NDA_DST, address.packed) + attribute(_NDA_LLADDR, mac_bytes(mac))
    return Message(_RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body, subject)


def delete_neighbour(index: int, address: IPv4Address | IPv6Address, subject: str) -> Message:
    """Forget a neighbour."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    body = _NEIGHBOUR.pack(family, index, 0, 0, 0) + attribute(_NDA_DST, address.packed)
    return Message(_RTM_DELNEIGH, 0, body, subject)


def _address_message(
    kind: int, flags: int, index: int, address: IPv4Interface | IPv6Interface, subject: str
) -> Message:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    length = address.network.prefixlen
    head = _ADDRESS.pack(family, length, _IFA_F_NODAD if family == socket.AF_INET6 else 0, 0, index)
    parts = [attribute(_IFA_LOCAL, address.packed), attribute(_IFA_ADDRESS, address.packed)]
    if address.version == 4 and length < 31:
        broadcast = address.network.broadcast_address.packed
        parts.append(attribute(_IFA_BROADCAST, broadcast))
    return Message(kind, flags, head + b"".join(parts), subject)


def new_address(index: int, address: IPv4Interface | IPv6Interface, subject: str) -> Message:
    """An address with its prefix's route; an IPv6 one is used at once, without asking around."""
    return _address_message(_RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, index, address, subject)


def delete_address(index: int, address: IPv4Interface | IPv6Interface, subject: str) -> Message:
    """Take an address away."""
    return _address_message(_RTM_DELADDR, 0, index, address, subject)


def new_route(
    index: int, destination: IPv4Network | IPv6Network,
    gateway: IPv4Address | IPv6Address | None, subject: str, *, metric: int = 0,
) -> Message:  # fmt: skip
    """A route in the main table; without *gateway* the destination is on the link."""
    family = socket.AF_INET if destination.version == 4 else socket.AF_INET6
    scope = 0 if gateway is not None or destination.version == 6 else _RT_SCOPE_LINK
    head = _ROUTE.pack(
        family, destination.prefixlen, 0, 0, _RT_TABLE_MAIN, _RTPROT_STATIC, scope,
        _RTN_UNICAST, 0,
    )  # fmt: skip
    parts = [u32(_RTA_OIF, index)]
    if destination.prefixlen:
        parts.append(attribute(_RTA_DST, destination.network_address.packed))
    if gateway is not None:
        parts.append(attribute(_RTA_GATEWAY, gateway.packed))
    if metric:
        parts.append(u32(_RTA_PRIORITY, metric))
    flags = NLM_F_CREATE | NLM_F_REPLACE
    return Message(_RTM_NEWROUTE, flags, head + b"".join(parts), subject)


def new_local_route(index: int, address: IPv6Address, subject: str, *, metric: int) -> Message:
    """*address* counts as the host's own also when it comes by this interface."""
    head = _ROUTE.pack(
        socket.AF_INET6, 128, 0, 0, _RT_TABLE_LOCAL, _RTPROT_STATIC, 0, _RTN_LOCAL, 0
    )
    body = head + b"".join(
        (attribute(_RTA_DST, address.packed), u32(_RTA_OIF, index), u32(_RTA_PRIORITY, metric))
    )
    return Message(_RTM_NEWROUTE, NLM_F_CREATE | NLM_F_APPEND, body, subject)


def token_bucket(index: int, rate: int, subject: str) -> Message:
    """Limit what leaves by the interface to *rate* bytes a second (tc-tbf(8))."""
    # A bucket must hold what one timer tick lets through, and a whole offloaded packet.
    burst = max(rate // 250, 1 << 16)
    limit = burst + max(rate // 10, 1 << 16)  # what waits: a tenth of a second
    spec = struct.pack("=BBHhHI", 0, _TC_LINKLAYER_ETHERNET, 0, 0, 0, min(rate, 0xFFFFFFFF))
    options = attribute(_TCA_TBF_PARMS, spec + bytes(12) + struct.pack("=III", limit, 0, 0))
    options += u32(_TCA_TBF_BURST, burst)
    if rate > 0xFFFFFFFF:
        options += attribute(_TCA_TBF_RATE64, struct.pack("=Q", rate))
    head = _QDISC.pack(0, index, 0, _TC_H_ROOT, 0)
    body = head + text(_TCA_KIND, "tbf") + nested(_TCA_OPTIONS, options)
    return Message(_RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE, body, subject)


class Routing(netlink.Connection):
    """rtnetlink of one network namespace."""

    def __init__(self, *, namespace: int | None = None) -> None:
        super().__init__(netlink.NETLINK_ROUTE, namespace=namespace)

    def index(self, name: str) -> int:
        """The index of the interface *name*; OSError ENODEV when there is none."""
        found = self.link(name)
        if found is None:
            raise OSError(errno.ENODEV, "no such network interface", name)
        return found.index

    def link(self, name: str) -> Link | None:
        """The interface *name*, or None."""
        self._sequence += 1
        body = _LINK.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, name)
        message = Message(_RTM_GETLINK, 0, body, name)
        self._socket.send(message.pack(self._sequence, 0))
        while True:
            for kind, _, sequence, answer in self._receive():
                if sequence == self._sequence:
                    if kind == _RTM_NEWLINK:
                        return _link(answer)
                    (number,) = struct.unpack_from("=i", answer)
                    if -number == errno.ENODEV:
                        return None
                    raise OSError(-number, "netlink: cannot look at an interface", name)

    def links(self) -> list[Link]:
        """All interfaces."""
        body = _LINK.pack(0, 0, 0, 0, 0)
        return [_link(data) for _, data in self.dump(_RTM_GETLINK, body, subject="links")]

    def addresses(self, index: int | None = None) -> list[IPv4Interface | IPv6Interface]:
        """The addresses of an interface, or of all."""
        found: list[IPv4Interface | IPv6Interface] = []
        body = _ADDRESS.pack(0, 0, 0, 0, 0)
        for _, data in self.dump(_RTM_GETADDR, body, subject="addresses"):
            family, length, _, _, owner = _ADDRESS.unpack_from(data)
            if index is not None and owner != index:
                continue
            values = parse(data[_ADDRESS.size :])
            packed = values.get(_IFA_LOCAL) or values.get(_IFA_ADDRESS, b"")
            if family == socket.AF_INET and len(packed) == 4:
                found.append(IPv4Interface((packed, length)))
            elif family == socket.AF_INET6 and len(packed) == 16:
                found.append(IPv6Interface((packed, length)))
        return found

    def routes(self) -> list[Route]:
        """Unicast and local routes of all tables."""
        body = _ROUTE.pack(*bytes(8), 0)
        found = []
        for _, data in self.dump(_RTM_GETROUTE, body, subject="routes"):
            route = _route(data)
            if route is not None:
                found.append(route)
        return found

    def neighbours(self, family: int = 0) -> list[Neighbour]:
        """Neighbours; with AF_BRIDGE the forwarding databases of bridges."""
        body = _NEIGHBOUR.pack(family, 0, 0, 0, 0)
        return [
            _neighbour(data) for _, data in self.dump(_RTM_GETNEIGH, body, subject="neighbours")
        ]


def _string(values: Attributes, kind: int) -> str:
    return values.get(kind, b"").rstrip(b"\0").decode("utf-8", "replace")


def _number(values: Attributes, kind: int) -> int:
    data = values.get(kind, b"")
    return int.from_bytes(data[:4], "little" if struct.pack("=H", 1)[0] else "big")


def _mac(data: bytes) -> str:
    return ":".join(f"{byte:02x}" for byte in data)


def _link(data: bytes) -> Link:
    _, _, index, flags, _ = _LINK.unpack_from(data)
    values = parse(data[_LINK.size :])
    return Link(
        index=index,
        name=_string(values, _IFLA_IFNAME),
        flags=flags,
        mtu=_number(values, _IFLA_MTU),
        mac=_mac(values.get(_IFLA_ADDRESS, b"")),
        kind=_string(parse(values.get(_IFLA_LINKINFO, b"")), _IFLA_INFO_KIND),
        master=_number(values, _IFLA_MASTER),
        parent=_number(values, _IFLA_LINK),
        alias=_string(values, _IFLA_IFALIAS),
        operstate=values.get(_IFLA_OPERSTATE, b"\0")[0],
    )


def _route(data: bytes) -> Route | None:
    family, length, _, _, table, _, _, kind, _ = _ROUTE.unpack_from(data)
    if kind not in (_RTN_UNICAST, _RTN_LOCAL):
        return None
    values = parse(data[_ROUTE.size :])
    interface = _number(values, _RTA_OIF)
    gateway = values.get(_RTA_GATEWAY)
    if family == socket.AF_INET:
        to = values.get(_RTA_DST, bytes(4))
        via = IPv4Address(gateway) if gateway else None
        return Route(IPv4Network((to, length)), interface, via, table)
    if family == socket.AF_INET6:
        to = values.get(_RTA_DST, bytes(16))
        via6 = IPv6Address(gateway) if gateway else None
        return Route(IPv6Network((to, length)), interface, via6, table)
    return None


def _neighbour(data: bytes) -> Neighbour:
    family, index, state, _, _ = _NEIGHBOUR.unpack_from(data)
    values = parse(data[_NEIGHBOUR.size :])
    packed = values.get(_NDA_DST, b"")
    address: IPv4Address | IPv6Address | None = None
    if family == socket.AF_INET and len(packed) == 4:
        address = IPv4Address(packed)
    elif family == socket.AF_INET6 and len(packed) == 16:
        address = IPv6Address(packed)
    return Neighbour(family, index, _mac(values.get(_NDA_LLADDR, b"")), address, state)
