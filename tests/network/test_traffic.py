"""Packets that must arrive: between containers, to and from published ports, and out."""

from __future__ import annotations

import os
import socket
import time

import pytest

from harness.traffic import bound, listen, reach, refused
from network.conftest import TAG, Town, endpoint, network, port
from tare.kernel.rtnetlink import Routing
from tare.network import bridge
from tare.network.values import Protocol, link_name


def test_containers_of_one_network_reach_each_other(town: Town) -> None:
    net, _ = town.networks
    one, two = town.container(net, 2), town.container(net, 3)
    server = listen(one, 80)

    assert reach(server, two, "10.1.0.2", 80) == "10.1.0.3"
    assert reach(server, two, "fd00:1::2", 80) == "fd00:1::3"


@pytest.mark.parametrize(
    ("address", "number"),
    [
        ("127.0.0.1", 8080), ("::1", 8080),  # published there
        ("127.0.0.1", 8081), ("::1", 8081), ("192.0.2.1", 8081), ("10.1.0.1", 8081),  # anywhere
        ("192.0.2.1", 8082),  # on one address
    ],
)  # fmt: skip
def test_the_host_reaches_a_published_port(town: Town, address: str, number: int) -> None:
    net, _ = town.networks
    town.neighbour()
    ports = [
        port("127.0.0.1", 8080), port("::1", 8080), port("0.0.0.0", 8081), port("::", 8081),
        port("192.0.2.1", 8082),
    ]  # fmt: skip
    server = listen(town.container(net, 2, *ports), 80)

    reach(server, None, address, number)


def test_another_host_reaches_what_is_published_and_is_seen_with_its_address(town: Town) -> None:
    net, _ = town.networks
    lan = town.neighbour()
    container = town.container(net, 2, port("0.0.0.0", 8081), port("::", 8081))
    server = listen(container, 80)

    assert reach(server, lan, "192.0.2.1", 8081) == "192.0.2.2"
    assert reach(server, lan, "2001:db8::1", 8081) == "2001:db8::2"


def test_a_container_reaches_itself_and_its_neighbours_through_published_ports(town: Town) -> None:
    net, other = town.networks
    one = town.container(net, 2, port("0.0.0.0", 8081), port("::", 8081))
    two, three = town.container(net, 3), town.container(other, 2)
    server = listen(one, 80)

    for who, gateway, gateway6 in (
        (one, "10.1.0.1", "fd00:1::1"),
        (two, "10.1.0.1", "fd00:1::1"),
        (three, "10.2.0.1", "fd00:2::1"),
    ):
        reach(server, who, gateway, 8081)
        reach(server, who, gateway6, 8081)


@pytest.mark.parametrize(("host", "inside"), [("127.0.0.1", "10.1.0.2"), ("::1", "fd00:1::2")])
def test_datagrams_go_both_ways_through_a_published_port(
    town: Town, host: str, inside: str
) -> None:
    net, _ = town.networks
    container = town.container(net, 2, port(host, 5300, 53, Protocol.UDP))
    with bound(container, 53, inside) as server, bound(None, 0, host) as client:
        client.sendto(b"question", (host, 5300))
        question, who = server.recvfrom(100)
        server.sendto(b"answer", who)

        assert question == b"question"
        answer, origin = client.recvfrom(100)
        assert (answer, origin[:2]) == (b"answer", (host, 5300))


def test_a_stream_of_datagrams_finds_the_next_container(town: Town) -> None:
    net, _ = town.networks
    published = port("127.0.0.1", 5300, 53, Protocol.UDP)
    with bound(None, 0, "127.0.0.1") as client:
        client.sendto(b"too early", ("127.0.0.1", 5300))  # nobody publishes it yet
        first = endpoint(net, 2, published)
        with bound(town.container(net, 2, published), 53, "10.1.0.2") as server:
            client.sendto(b"one", ("127.0.0.1", 5300))
            question, who = server.recvfrom(100)
            server.sendto(b"answer", who)
            assert (question, client.recv(100)) == (b"one", b"answer")
        town.firewall.remove(first)
        with bound(town.container(net, 3, published), 53, "10.1.0.3") as server:
            client.sendto(b"two", ("127.0.0.1", 5300))

            assert server.recv(100) == b"two"


def test_containers_leave_with_the_hosts_address(town: Town) -> None:
    net, _ = town.networks
    lan = town.neighbour()
    container = town.container(net, 2)
    server = listen(lan, 80)

    assert reach(server, container, "192.0.2.2", 80) == "192.0.2.1"
    assert reach(server, container, "2001:db8::2", 80) == "2001:db8::1"


def test_a_port_is_free_again_when_its_container_is_gone(town: Town) -> None:
    net, _ = town.networks
    first = endpoint(net, 2, port("127.0.0.1", 8080))
    town.container(net, 2, *first.ports)
    second = town.container(net, 3, port("127.0.0.1", 8080))  # it takes over the port ...
    town.firewall.remove(first)  # ... before the first is forgotten
    server = listen(second, 80)

    reach(server, None, "127.0.0.1", 8080)
    town.firewall.remove(endpoint(net, 3, port("127.0.0.1", 8080)))
    assert refused(None, "127.0.0.1", 8080)


def test_a_container_is_connected_and_disconnected_while_it_runs(town: Town) -> None:
    net, other = town.networks
    container = town.container(net, 2)
    away = endpoint(other, 2)
    second = type(away)(
        network_id=other.id,
        container_id="container2",
        host_interface=link_name(TAG, "container2", other.id),
        mac=away.mac,
        addresses=away.addresses,
        interface="eth1",
        default_route=False,
    )
    town.firewall.add(second)
    bridge.connect(other, second, container.namespace)
    server = listen(container, 80)
    reach(server, town.container(other, 3), "10.2.0.2", 80)

    bridge.disconnect(second, container.namespace)
    bridge.disconnect(second, container.namespace)  # again: nothing happens

    with Routing() as kernel, Routing(namespace=container.namespace) as inner:
        assert kernel.link(second.host_interface) is None
        assert inner.link("eth1") is None
        assert inner.link("eth0") is not None


def test_a_network_without_ipv6_has_none_of_it(own: None) -> None:
    town = Town(network(1, ipv6=False))
    try:
        container = town.container(town.networks[0], 2)
        with Routing(namespace=container.namespace) as inner, container.inside():
            eth0 = inner.index("eth0")

            assert [str(a) for a in inner.addresses(eth0)] == ["10.1.0.2/16"]
            with open("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", encoding="ascii") as file:
                assert file.read() == "1\n"
        with Routing() as kernel:
            bridge_index = kernel.index(town.networks[0].interface)
            assert [str(a) for a in kernel.addresses(bridge_index)] == ["10.1.0.1/16"]
    finally:
        town.close()


def test_a_rate_limits_both_directions(town: Town) -> None:
    net, _ = town.networks
    rate, size = 1 << 21, 5 << 20
    limited, free = town.container(net, 2, rate=rate), town.container(net, 3)

    for server_host, client_host, address in (
        (limited, free, "10.1.0.2"),
        (free, limited, "10.1.0.3"),
    ):
        server = listen(server_host, 80)
        with client_host.inside():
            client = socket.create_connection((address, 80), 30)
        accepted, _ = server.accept()
        with server, client, accepted:
            began = time.monotonic()
            sending = os.fork()
            if sending == 0:
                client.sendall(bytes(size))
                os._exit(0)
            client.close()
            received = 0
            while received < size:
                received += len(accepted.recv(1 << 16))
            took = time.monotonic() - began
            os.waitpid(sending, 0)

            assert took > (size - rate // 4) / rate * 0.8
