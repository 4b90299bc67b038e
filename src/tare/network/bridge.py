"""Networks in the kernel: bridges, and the links of containers to them or to a macvlan's parent.

`settle` makes a bridge be as its network describes it, whatever was there before, so making,
repairing after a crash and finding everything in order are one thing. What a bridge is given
besides its addresses keeps containers from the host (attacks A40 to A42): no router
advertisements or redirects are believed on it, and without IPv6 it has none of it.

Not for: the packet filter (`firewall`), or who has which address (`addresses`). A container's
links at its start are made by the keeper (`kernel.interfaces`), from what `interface` returns.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Collection, Iterator
from ipaddress import IPv4Interface, IPv6Address, IPv6Interface, ip_interface
from pathlib import Path
from typing import Final

from tare.errors import ConflictError, DeniedError, FailedError, MissingError, TareError
from tare.kernel import interfaces, rtnetlink
from tare.kernel.interfaces import Attacher, Interface
from tare.kernel.rtnetlink import Link, Routing
from tare.network.values import Driver, Endpoint, Network, bridge_prefix, link_prefix

_SYSCTLS: Final = Path("/proc/sys/net")
_LINK_LOCAL: Final = IPv6Interface("fe80::1/64")
_ALIAS: Final = "tare "
"""What the aliases of interfaces begin with, of any engine of this host."""
_LOOPBACK: Final = IPv6Address("::1")
_AFTER_LOOPBACK: Final = 5000
"""The metric of a second route to ::1: the host's own is preferred."""


def settle(network: Network) -> None:
    """Make the bridge of *network* be there as described: made, or corrected. Idempotent.

    Of a macvlan network only look whether its parent is there. Turns forwarding on where the
    network needs it.
    """
    name = network.interface
    with _explained(f"network {network.name}"), Routing() as kernel:
        link = kernel.link(name)
        if network.driver is Driver.MACVLAN:
            if link is None:
                raise MissingError(
                    f"network {network.name}: the host has no interface {name}",
                    hint="name one with -o parent=INTERFACE; `ip link` lists them",
                )
            return
        if link is None:
            kernel.request(rtnetlink.new_bridge(name, mtu=network.mtu, mac=_mac(name)))
            link = kernel.link(name)
        if link is None or link.kind != "bridge":
            raise ConflictError(
                f"network {network.name}: the host's interface {name} is not a bridge",
                hint="remove it, or choose another name for the bridge",
            )
        if link.mtu != network.mtu:
            kernel.request(rtnetlink.set_link(link.index, name, mtu=network.mtu))
        _harden(network)
        kernel.request(
            rtnetlink.no_link_local(link.index, name),
            rtnetlink.set_link(link.index, name, up=True, alias=f"{_ALIAS}{network.name}"[:255]),
        )
        _settle_addresses(kernel, link, network)
        if network.ipv6 and not network.internal:
            # Answers to what the host itself sent to a port published on ::1 come back here.
            route = rtnetlink.new_local_route(link.index, _LOOPBACK, name, metric=_AFTER_LOOPBACK)
            kernel.request(route, ignore=(errno.EEXIST,))
        _forward(network)
        _bridge_only(kernel)


def _mac(name: str) -> str:
    """An address of the bridge's own: else it changes with the ports that come and go."""
    digest = hashlib.sha256(name.encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, 0x42, *digest[:4]))


def _settle_addresses(kernel: Routing, link: Link, network: Network) -> None:
    wanted: set[IPv4Interface | IPv6Interface] = {
        ip_interface(f"{subnet.gateway}/{subnet.prefix.prefixlen}")
        for subnet in network.subnets
        if subnet.gateway is not None
    }
    if network.ipv6:
        wanted.add(_LINK_LOCAL)
    present = set(kernel.addresses(link.index))
    name = network.interface
    kernel.request(
        *(rtnetlink.delete_address(link.index, a, name) for a in present - wanted),
        ignore=(errno.EADDRNOTAVAIL,),
    )
    kernel.request(*(rtnetlink.new_address(link.index, a, f"{a} on {name}") for a in wanted))


def _harden(network: Network) -> None:
    """What the host believes of what it hears on the bridge: nothing that changes its routes."""
    name = network.interface
    for key in ("accept_redirects", "send_redirects", "secure_redirects", "accept_source_route"):
        _write(f"ipv4/conf/{name}/{key}", "0")
    # Replies to what the host itself sent to a port published on 127.0.0.1 come back here; what
    # containers send to 127.0.0.0/8 is dropped by the packet filter before it is routed.
    _write(f"ipv4/conf/{name}/route_localnet", "1")
    for key in ("accept_ra", "accept_redirects", "autoconf"):
        _write(f"ipv6/conf/{name}/{key}", "0")
    _write(f"ipv6/conf/{name}/disable_ipv6", "0" if network.ipv6 else "1")


def _forward(network: Network) -> None:
    """Let the host route, if this network leads out; the host keeps its own autoconfiguration."""
    if network.internal:
        return
    _write("ipv4/ip_forward", "1")
    every = _SYSCTLS / "ipv6/conf/all/forwarding"
    if not network.ipv6 or not every.exists() or every.read_text().strip() == "1":
        return
    # A host that forwards no longer believes router advertisements, unless accept_ra is 2: where
    # it got its own address by them it would lose it.
    for directory in (_SYSCTLS / "ipv6/conf").iterdir():
        with contextlib.suppress(OSError):
            ours = directory.name == network.interface
            if not ours and (directory / "accept_ra").read_text().strip() == "1":
                (directory / "accept_ra").write_text("2")
    every.write_text("1")


def _bridge_only(kernel: Routing) -> None:
    """Let bridged frames be bridged, not routed through the IP packet filter too (br_netfilter).

    With it on, the translation of ::1 fails (its answers look like forgeries), a container does
    not reach itself through its published port, and every frame costs more. It is turned off
    where it is only on because the kernel has it built in: nobody loaded the module, and there
    is no bridge of anybody else.
    """
    if not bridged_frames_filtered() or Path("/sys/module/br_netfilter/initstate").exists():
        return
    if all(link.alias.startswith(_ALIAS) for link in kernel.links() if link.kind == "bridge"):
        for key in ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables"):
            _write(f"bridge/{key}", "0")


def bridged_frames_filtered() -> bool:
    """Whether the host sends bridged frames through its IP packet filter too.

    Then ports published on ::1 are not reached from the host (they are on 127.0.0.1).
    """
    for key in ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables"):
        with contextlib.suppress(OSError):
            if (_SYSCTLS / "bridge" / key).read_text().strip() == "1":
                return True
    return False


def _write(key: str, value: str) -> None:
    """One sysctl of the calling thread's network namespace; one that is not there is skipped."""
    path = _SYSCTLS / key
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if os.read(descriptor, 32).decode().strip() != value:
            os.pwrite(descriptor, value.encode(), 0)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(descriptor)


def remove(network: Network) -> None:
    """Remove the bridge; nothing happens when it is gone. A macvlan's parent stays."""
    if network.driver is not Driver.BRIDGE:
        return
    with _explained(f"network {network.name}"), Routing() as kernel:
        link = kernel.link(network.interface)
        if link is not None and link.kind == "bridge":
            message = rtnetlink.delete_link(link.index, link.name)
            kernel.request(message, ignore=(errno.ENODEV,))


def interface(network: Network, endpoint: Endpoint) -> Interface:
    """What a container's start makes of *endpoint*; goes into `run.plan.Place.interfaces`. Pure."""
    gateways: tuple[str, ...] = ()
    if endpoint.default_route and not network.internal:
        versions = {address.version for address in endpoint.addresses}
        gateways = tuple(str(g) for g in network.gateways if g.version in versions)
    macvlan = network.driver is Driver.MACVLAN
    return Interface(
        kind=interfaces.MACVLAN if macvlan else interfaces.VETH,
        parent=network.interface,
        host_name="" if macvlan else endpoint.host_interface,
        name=endpoint.interface,
        mac=endpoint.mac,
        mtu=network.mtu,
        addresses=tuple(str(address) for address in endpoint.addresses),
        gateways=gateways,
        ipv6=network.ipv6,
        isolated=network.isolated,
        rate=endpoint.rate or 0,
        alias=f"{_ALIAS}{endpoint.container_id[:12]}",
        hairpin=bool(endpoint.ports),
        mode=network.options.get("macvlan_mode", "bridge") or "bridge",
    )


def connect(network: Network, endpoint: Endpoint, namespace: int) -> None:
    """Link a running container: *namespace* is a descriptor of its network namespace."""
    attacher = Attacher()
    try:
        with _explained(f"network {network.name}"):
            attacher.attach(interface(network, endpoint), namespace)
    finally:
        attacher.close()


def disconnect(endpoint: Endpoint, namespace: int) -> None:
    """Take the link of *endpoint* away again; nothing happens when it is gone."""
    with _explained(f"interface {endpoint.interface}"):
        interfaces.remove_inside(endpoint.interface, namespace)


def sweep(tag: str, links: Collection[str], bridges: Collection[str]) -> list[str]:
    """Remove links and bridges of the engine *tag* that are not among the expected ones."""
    removed = []
    with _explained("networks"), Routing() as kernel:
        for link in kernel.links():
            name = link.name
            stray = (name.startswith(link_prefix(tag)) and name not in links) or (
                name.startswith(bridge_prefix(tag)) and name not in bridges
            )
            if stray:
                kernel.request(rtnetlink.delete_link(link.index, name), ignore=(errno.ENODEV,))
                removed.append(name)
    return removed


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """The kernel's failures as ours, naming *what*."""
    try:
        yield
    except TareError:
        raise
    except OSError as error:
        where = f" ({os.fsdecode(error.filename)})" if error.filename else ""
        words = f"{what}: {error.strerror}{where}"
        if error.errno in (errno.EPERM, errno.EACCES, errno.EROFS):
            raise DeniedError(words, hint="networks need an engine that runs as root") from error
        if error.errno == errno.EOPNOTSUPP:
            raise FailedError(words, hint="this kernel has no bridge, veth or macvlan") from error
        raise FailedError(words) from error
