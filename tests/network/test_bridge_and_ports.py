"""Bridges are settled whatever was there; ports are held and their holders named."""

from __future__ import annotations

import socket
import subprocess
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from network.conftest import TAG, endpoint, network, port
from tare.errors import ConflictError, InvalidError, MissingError
from tare.kernel.netlink import Message
from tare.kernel.rtnetlink import Routing, new_bridge, new_veth
from tare.network import bridge, elements, ports
from tare.network.values import (
    LONGEST_INTERFACE_NAME,
    Driver,
    Protocol,
    Subnet,
    bridge_name,
    engine_tag,
    link_name,
    mac_of,
    table_name,
)


def wire(name: str) -> Message:
    """An interface that is no bridge."""
    return new_veth(name, mtu=1500, peer="peer0", peer_mac=None, namespace=None)


def addresses_of(name: str) -> set[str]:
    """As the kernel shows them."""
    with Routing() as kernel:
        return {str(a) for a in kernel.addresses(kernel.index(name))}


def test_settling_corrects_what_has_changed(own: None) -> None:
    net = network(1)
    bridge.settle(net)
    name = net.interface
    for line in (f"address add 10.66.0.1/24 dev {name}", f"address del 10.1.0.1/16 dev {name}",
                 f"link set {name} down mtu 1280"):  # fmt: skip
        subprocess.run(["ip", *line.split()], check=True)

    bridge.settle(net)
    bridge.settle(net)

    assert addresses_of(name) == {"10.1.0.1/16", "fd00:1::1/64", "fe80::1/64"}
    with Routing() as kernel:
        link = kernel.link(name)
        assert link is not None
        assert (link.mtu, link.flags & 1) == (1500, 1)
        assert sum(str(r.destination) == "::1/128" for r in kernel.routes()) == 2
    bridge.remove(net)
    bridge.remove(net)
    with Routing() as kernel:
        assert kernel.link(name) is None


def test_what_is_no_bridge_is_left_alone(own: None) -> None:
    net = network(1)
    with Routing() as kernel:
        kernel.request(wire(net.interface))

        with pytest.raises(ConflictError, match="is not a bridge"):
            bridge.settle(net)
        bridge.remove(net)

        assert kernel.link(net.interface) is not None


def test_a_macvlan_needs_its_parent(own: None) -> None:
    net = replace(network(1), driver=Driver.MACVLAN, interface="nowhere0")

    with pytest.raises(MissingError, match="the host has no interface nowhere0"):
        bridge.settle(net)


def test_only_strays_of_this_engine_are_swept(own: None) -> None:
    kept, stray, other = bridge_name(TAG, "a"), bridge_name(TAG, "b"), bridge_name("other", "a")
    with Routing() as kernel:
        kernel.request(
            *(new_bridge(name, mtu=1500) for name in (kept, stray, other)),
            wire(link_name(TAG, "c", "a")),
        )

        swept = bridge.sweep(TAG, [], [kept])

        assert sorted(swept) == sorted([stray, link_name(TAG, "c", "a")])
        assert {kept, other} <= {link.name for link in kernel.links()}


def test_names_fit_the_kernel_and_tell_engines_apart() -> None:
    one, two = engine_tag("/var/lib/tare"), engine_tag("/tmp/other")

    for tag in (one, two):
        for name in (bridge_name(tag, "x" * 64), link_name(tag, "y" * 64, "x" * 64)):
            assert len(name) <= LONGEST_INTERFACE_NAME
            assert elements.named(name).text == f'"{name}"'
    assert bridge_name(one, "x") != bridge_name(two, "x")
    assert table_name(one) != table_name(two)
    assert mac_of(ip_address("172.17.0.2")) == "02:42:ac:11:00:02"


@pytest.mark.parametrize("name", ["", "a" * 16, 'x" drop', "a b", "x\n", "ä"])
def test_a_name_that_could_be_a_rule_is_refused(name: str) -> None:
    with pytest.raises(InvalidError, match="cannot be the name"):
        elements.named(name)


def test_a_port_of_the_other_family_is_refused() -> None:
    net = network(1, ipv6=False)

    with pytest.raises(InvalidError, match="no IPv6 address"):
        elements.of_endpoint(endpoint(net, 2, port("::1", 80)))


@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
def test_a_port_in_use_is_refused_and_its_holder_named(own: None, protocol: Protocol) -> None:
    wanted = port("127.0.0.1", 8080, protocol=protocol)
    kind = socket.SOCK_STREAM if protocol is Protocol.TCP else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as holder:
        holder.bind(("0.0.0.0", 8080))
        if protocol is Protocol.TCP:
            holder.listen()

        with pytest.raises(ConflictError, match=r"port 8080/... of 127.0.0.1 is in use by .*\d"):
            ports.reserve(wanted)
    with ports.reserve(wanted), pytest.raises(ConflictError):
        ports.reserve(wanted)
    ports.reserve(wanted).close()


def test_a_held_port_is_taken_for_everybody_else(own: None) -> None:
    with ports.reserve(port("0.0.0.0", 8080)), socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            server.bind(("127.0.0.1", 8080))


def test_an_address_that_the_host_lacks_is_named(own: None) -> None:
    with pytest.raises(InvalidError, match="the host has no such address"):
        ports.reserve(port("203.0.113.9", 8080))


def test_a_free_port_is_chosen_from_a_range_or_from_all(own: None) -> None:
    host = ip_address("127.0.0.1")
    with ports.reserve(port("127.0.0.1", 9000)):
        with ports.choose(host, Protocol.TCP, range(9000, 9003), [9001]) as chosen:
            assert chosen.getsockname()[1] == 9002
        with pytest.raises(ConflictError, match="a port from 9000 to 9001"):
            ports.choose(host, Protocol.TCP, range(9000, 9002), [9001])
    with ports.choose(host, Protocol.UDP, None, []) as anyone:
        assert anyone.getsockname()[1] >= 49153


def test_the_interface_of_an_internal_network_has_no_way_out() -> None:
    net = network(1, internal=True)

    made = bridge.interface(net, endpoint(net, 2))

    assert made.gateways == ()
    assert made.addresses == ("10.1.0.2/16", "fd00:1::2/64")
    more = Subnet(prefix=ip_network("10.5.0.0/16"), gateway=ip_address("10.5.0.1"))
    four = replace(endpoint(net, 2), addresses=(ip_interface("10.1.0.2/16"),))
    outward = replace(net, internal=False, subnets=(*net.subnets, more))
    assert "fd00:1::1" not in bridge.interface(outward, four).gateways
