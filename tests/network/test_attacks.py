"""Attacks A40 to A43 on real bridges: what a container or a neighbour sends, and who gets it.

What must not arrive is followed by something that must, on the same path: when that is there,
the other was lost. Nobody waits for nothing to happen.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from ipaddress import ip_network

import pytest

from harness.namespaces import Host
from harness.needs import needs
from harness.traffic import (
    ARP,
    BROADCAST,
    IPV4,
    IPV6,
    PATIENCE,
    Wire,
    advertisement,
    arp,
    bound,
    ethernet,
    icmp6,
    listen,
    mac,
    reach,
    refused,
    router_advertisement,
    udp4,
)
from network.conftest import TAG, Town, network, port
from tare.kernel.rtnetlink import Routing
from tare.network.values import Protocol, table_name

ALL_NODES = mac("33:33:00:00:00:01")
A, B = mac("02:42:0a:01:00:02"), mac("02:42:0a:01:00:03")


def address_of(name: str, host: Host | None = None) -> bytes:
    """The MAC address of an interface."""
    with Routing(namespace=host.namespace if host else None) as kernel:
        link = kernel.link(name)
        assert link is not None
        return mac(link.mac)


def marker(number: int) -> bytes:
    """Words that stand in no other packet."""
    return f"mark {number} {os.urandom(4).hex()}".encode()


def nft(*words: str) -> None:
    """Somebody else's nft."""
    subprocess.run(["nft", *words], check=True, timeout=PATIENCE)


# --- A40: published ports ---------------------------------------------------------------------


@pytest.mark.attack("A40")
def test_a_neighbour_does_not_reach_what_is_published_on_loopback(town: Town) -> None:
    net, _ = town.networks
    lan = town.neighbour()
    ports = (port("127.0.0.1", 5300, 53, Protocol.UDP), port("0.0.0.0", 5301, 53, Protocol.UDP))
    server = bound(town.container(net, 2, *ports), 53)
    word = marker(40)
    with Wire(lan) as wire:
        for host in ("127.0.0.1", "192.0.2.1", "10.1.0.1"):
            packet = udp4("192.0.2.2", host, 4000, 5300, b"forged")
            wire.send(ethernet(address_of("up"), wire.mac, IPV4, packet))
        packet = udp4("192.0.2.2", "192.0.2.1", 4000, 5301, word)
        wire.send(ethernet(address_of("up"), wire.mac, IPV4, packet))

    assert server.recv(100) == word


@pytest.mark.attack("A40")
@pytest.mark.parametrize(("address", "version"), [("10.1.0.2", 4), ("fd00:1::2", 6)])
def test_a_neighbour_with_a_route_reaches_nothing_that_is_not_published(
    town: Town, address: str, version: int
) -> None:
    net, _ = town.networks
    lan = town.neighbour()
    container = town.container(
        net, 2, port("0.0.0.0", 5301, 53, Protocol.UDP), port("::", 5301, 53, Protocol.UDP)
    )
    server, unpublished = bound(container, 53), bound(container, 54)
    word = marker(40)
    with bound(lan) as client:
        for number in (53, 54):
            client.sendto(b"forged", (f"::ffff:{address}" if version == 4 else address, number))
        client.sendto(word, ("::ffff:192.0.2.1" if version == 4 else "2001:db8::1", 5301))

    assert server.recv(100) == word
    assert not select.select([unpublished], [], [], 0)[0]


@pytest.mark.attack("A40")
@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
def test_the_administrators_own_filter_has_the_last_word(town: Town, address: str) -> None:
    net, _ = town.networks
    lan = town.neighbour()
    server = listen(town.container(net, 2, port("0.0.0.0", 8081), port("::", 8081)), 80)
    reach(server, lan, address, 8081)

    nft("add table inet filter")
    nft("add chain inet filter forward { type filter hook forward priority 0; policy drop; }")

    assert refused(lan, address, 8081)
    assert reach(server, None, "127.0.0.1", 8081)  # the host's own is not forwarded


@pytest.mark.attack("A40")
def test_a_flushed_filter_is_noticed_and_restored(town: Town) -> None:
    net, _ = town.networks
    lan = town.neighbour()
    container = town.container(net, 2, port("0.0.0.0", 8081))
    server, private = listen(container, 80), listen(container, 81)
    firewall = town.firewall
    firewall.changed()

    for words in (
        ("flush", "ruleset"),
        ("flush", "chain", "inet", table_name(TAG), "passing"),
        ("delete", "table", "bridge", table_name(TAG)),
        ("insert", "rule", "inet", table_name(TAG), "passing", "accept"),
        ("flush", "map", "inet", table_name(TAG), "any4"),
    ):
        nft(*words)
        assert select.select([firewall], [], [], PATIENCE)[0]
        assert firewall.changed()
        firewall.restore()

        assert firewall.intact()
        assert not firewall.changed()  # its own restoring does not alarm it
        reach(server, lan, "192.0.2.1", 8081)
    assert refused(lan, "10.1.0.2", 81)
    private.close()


def test_other_peoples_tables_are_their_own_business(town: Town) -> None:
    firewall = town.firewall
    firewall.changed()

    nft("add", "table", "inet", "foreign")
    assert select.select([firewall], [], [], PATIENCE)[0]

    assert not firewall.changed()
    firewall.discard()
    listed = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True)
    assert listed.stdout == "table inet foreign\n"


# --- A41: other containers --------------------------------------------------------------------


def forgeries() -> dict[str, list[bytes]]:
    """Frames that container A (10.1.0.2) may not send, by what they try."""
    gateway4, b4, gateway6, b6 = "10.1.0.1", "10.1.0.3", "fd00:1::1", "fd00:1::3"
    own6 = "fe80::42:aff:fe01:2"
    padding = b"\x3a\x00\x01\x04\x00\x00\x00\x00"  # hop-by-hop options, ICMPv6 next
    fragment = b"\x3a\x00\x00\x01\x00\x00\x00\x07"  # a first fragment, more to come
    router = router_advertisement("2001:db8:bad::")
    forged = b"forged"
    redirect = struct.pack(">BBHI", 137, 0, 0, 0) + bytes(32)

    def six(source: str, to: str, body: bytes, **more: bytes | int) -> bytes:
        packet = icmp6(source, to, body, **more)  # type: ignore[arg-type]  # passed on
        return ethernet(ALL_NODES, A, IPV6, packet)

    return {
        "ARP: the gateway is A": [
            ethernet(BROADCAST, A, ARP, arp(operation, A, gateway4, B, b4)) for operation in (1, 2)
        ],
        "ARP: B's address is A's": [ethernet(BROADCAST, A, ARP, arp(2, A, b4, B, b4))],
        "ARP: A's address is at B's MAC": [ethernet(B, A, ARP, arp(2, B, "10.1.0.2", B, b4))],
        "another's MAC": [
            ethernet(B, mac("02:42:0a:01:00:09"), IPV4, udp4("10.1.0.2", b4, 1, 9, forged))
        ],
        "B's own MAC": [ethernet(BROADCAST, B, IPV4, udp4("10.1.0.2", b4, 1, 9, forged))],
        "another's IPv4 address": [
            ethernet(B, A, IPV4, udp4(source, b4, 1, 9, forged))
            for source in (gateway4, "10.1.0.9", "127.0.0.1", "0.0.0.0", "8.8.8.8")
        ],
        "DHCP answers": [
            ethernet(BROADCAST, A, IPV4, udp4("10.1.0.2", "255.255.255.255", 67, 68, forged))
        ],
        "ND: the gateway is A": [six(own6, "ff02::1", advertisement(gateway6, A))],
        "ND: B's address is A's": [six(own6, "ff02::1", advertisement(b6, A))],
        "another's IPv6 address": [
            six("fd00:1::9", "ff02::1", struct.pack(">BBHI", 128, 0, 0, 0) + forged)
        ],
        "router advertisements": [
            six(own6, "ff02::1", router),
            six(own6, "ff02::1", router, before=padding, kind=0),
            six(own6, "ff02::1", router, before=fragment, kind=44),
        ],
        "redirects": [six(own6, "ff02::1", redirect)],
        "VLAN tags": [
            ethernet(B, A, 0x8100, b"\x00\x05\x08\x00" + udp4(gateway4, b4, 1, 9, forged))
        ],
        "PPPoE": [ethernet(BROADCAST, A, 0x8863, forged)],
    }


@pytest.mark.attack("A41", "A42")
@pytest.mark.parametrize("what", list(forgeries()))
def test_a_container_cannot_speak_for_others(town: Town, what: str) -> None:
    net, _ = town.networks
    one, two = town.container(net, 2), town.container(net, 3)
    forged, word = forgeries()[what], marker(41)
    honest = ethernet(B, A, IPV4, udp4("10.1.0.2", "10.1.0.3", 1, 9, word))
    with Wire(one) as wire, Wire(two) as seen:
        for frame in forged:
            wire.send(frame)
        wire.send(honest)

        frames = seen.until(word)

    # The kernel takes a VLAN's tag off before it shows the frame.
    assert not [frame for frame in frames if frame in forged or b"forged" in frame]


@pytest.mark.attack("A41")
def test_a_flooded_bridge_lets_others_breathe(town: Town) -> None:
    net, _ = town.networks
    one, two = town.container(net, 2), town.container(net, 3)
    word, number = marker(41), 6000
    shout = ethernet(BROADCAST, A, ARP, arp(1, A, "10.1.0.2", bytes(6), "10.1.0.77"))
    with Wire(one) as wire, Wire(two) as seen:
        seen.socket.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
        began = time.monotonic()
        for _ in range(number):
            wire.send(shout)
        took = time.monotonic() - began
        wire.send(ethernet(B, A, IPV4, udp4("10.1.0.2", "10.1.0.3", 1, 9, word)))

        heard = seen.until(word).count(shout)

    assert heard <= 2000 * (took + 1) + 100


@pytest.mark.attack("A40", "A41")
@pytest.mark.parametrize("address", ["10.1.0.2", "fd00:1::2"])
def test_networks_do_not_reach_each_other(town: Town, address: str) -> None:
    net, other = town.networks
    ports = (port("0.0.0.0", 5301, 53, Protocol.UDP), port("::", 5301, 53, Protocol.UDP))
    target, stranger = town.container(net, 2, *ports), town.container(other, 2)
    published, private = bound(target, 53), bound(target, 54)
    word = marker(41)
    four = "." in address
    with bound(stranger, 0, "0.0.0.0" if four else "::") as client:
        client.sendto(b"forged", (address, 54))
        client.sendto(word, ("10.2.0.1" if four else "fd00:2::1", 5301))

    assert published.recv(100) == word
    assert not select.select([private], [], [], 0)[0]


@pytest.fixture
def apart(own: None) -> Iterator[Town]:
    """A network whose containers are isolated, and an internal one."""
    needs("nft")
    made = Town(network(1, isolated=True), network(2, internal=True), network(3, host_access=True))
    yield made
    made.close()


@pytest.mark.attack("A41")
@pytest.mark.parametrize("address", ["10.1.0.2", "fd00:1::2"])
def test_isolated_containers_meet_only_where_something_is_published(
    apart: Town, address: str
) -> None:
    net = apart.networks[0]
    one = apart.container(net, 2, port("0.0.0.0", 8081), port("::", 8081))
    two = apart.container(net, 3)
    server = listen(one, 80)

    assert refused(two, address, 80)
    reach(server, two, "10.1.0.1" if "." in address else "fd00:1::1", 8081)


# --- A42: what the host believes --------------------------------------------------------------


@pytest.mark.attack("A42")
@pytest.mark.parametrize("filtered", [True, False])
def test_the_host_believes_no_routes_that_containers_tell(town: Town, filtered: bool) -> None:
    """Also in the moment when somebody has flushed the filter."""
    net, _ = town.networks
    container = town.container(net, 2)
    if not filtered:
        nft("flush", "ruleset")
    with Routing() as kernel:
        before, word = set(kernel.routes()), marker(42)
        with bound(None, 9, "10.1.0.1") as here, Wire(container) as wire:
            town.firewall.add_network(network(1, host_access=True)) if filtered else None
            host = address_of(net.interface)
            for frame in forgeries()["router advertisements"] + forgeries()["redirects"]:
                wire.send(frame)
                wire.send(host + frame[6:])
            packet = udp4("10.1.0.2", "10.1.0.1", 1, 9, word)
            wire.send(ethernet(host, A, IPV4, packet))

            assert here.recv(100) == word
        assert set(kernel.routes()) == before


@pytest.mark.attack("A42")
def test_a_network_without_ipv6_carries_none(own: None) -> None:
    needs("nft")
    town = Town(network(1, ipv6=False))
    try:
        one, two = (town.container(town.networks[0], n) for n in (2, 3))
        word = marker(42)
        packet = icmp6("fe80::42:aff:fe01:2", "ff02::1", struct.pack(">BBHI", 128, 0, 0, 0))
        with Wire(one) as wire, Wire(two) as seen:
            wire.send(ethernet(ALL_NODES, A, IPV6, packet))
            wire.send(ethernet(B, A, IPV4, udp4("10.1.0.2", "10.1.0.3", 1, 9, word)))

            frames = seen.until(word)

        assert not [frame for frame in frames if frame[12:14] == b"\x86\xdd"]
    finally:
        town.close()


# --- A43: services of the host ----------------------------------------------------------------


@pytest.mark.attack("A43")
def test_containers_reach_the_hosts_name_server_and_nothing_else_of_it(apart: Town) -> None:
    net = apart.networks[0]
    apart.neighbour()
    container = apart.container(net, 2)
    canary, names = listen(None, 7777), listen(None, 53)

    for address in ("10.1.0.1", "192.0.2.1", "10.2.0.1", "fd00:1::1", "2001:db8::1"):
        assert refused(container, address, 7777)
    for address in ("192.0.2.1", "10.2.0.1", "2001:db8::1"):
        assert refused(container, address, 53)
    reach(names, container, "10.1.0.1", 53)
    reach(names, container, "fd00:1::1", 53)
    assert not select.select([canary], [], [], 0)[0]


@pytest.mark.attack("A43", "A40")
def test_a_container_does_not_reach_the_hosts_loopback(town: Town) -> None:
    net, _ = town.networks
    container = town.container(net, 2)
    word = marker(43)
    with (
        bound(None, 53, "127.0.0.1") as loopback,
        bound(None, 53, "10.1.0.1") as here,
        Wire(container) as wire,
    ):
        host = address_of(net.interface)
        for source in ("10.1.0.2", "127.0.0.1"):
            packet = udp4(source, "127.0.0.1", 1, 53, b"forged")
            wire.send(ethernet(host, A, IPV4, packet))
        wire.send(ethernet(host, A, IPV4, udp4("10.1.0.2", "10.1.0.1", 1, 53, word)))

        assert here.recv(100) == word
        assert not select.select([loopback], [], [], 0)[0]


@pytest.mark.attack("A43")
def test_nothing_leaves_an_internal_network_and_nothing_enters(apart: Town) -> None:
    net = apart.networks[1]
    lan = apart.neighbour()
    container = apart.container(net, 2, port("0.0.0.0", 8081))
    friend = apart.container(net, 3)
    outside, inside = listen(lan, 80), listen(container, 80)
    with Routing(namespace=container.namespace) as inner:
        assert not [r for r in inner.routes() if r.destination.prefixlen == 0]
        eth0 = inner.index("eth0")
        from tare.kernel.rtnetlink import new_route

        gateway = net.gateways[0]
        inner.request(new_route(eth0, ip_network("0.0.0.0/0"), gateway, "it makes its own"))

    assert refused(container, "192.0.2.2", 80)
    assert refused(lan, "10.2.0.2", 80)
    assert refused(lan, "192.0.2.1", 8081)
    reach(inside, friend, "10.2.0.2", 80)
    assert not select.select([outside], [], [], 0)[0]


def test_a_network_that_says_so_reaches_the_host(apart: Town) -> None:
    container = apart.container(apart.networks[2], 2)
    service = listen(None, 7777)

    reach(service, container, "10.3.0.1", 7777)
    reach(service, container, "fd00:3::1", 7777)
