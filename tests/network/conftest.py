"""A host made of a network namespace: two networks, their containers, and a neighbour outside.

::

    lan (192.0.2.2)  --  up (192.0.2.1)  host  tb.. (10.1.0.1)  --  containers of net 1
                                               tb.. (10.2.0.1)  --  containers of net 2
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface, ip_network
from typing import Final

import pytest

from harness.namespaces import Host, own_network
from harness.needs import needs
from tare.kernel.rtnetlink import Routing, new_address, new_route, new_veth, set_link
from tare.network import bridge
from tare.network.firewall import Firewall, Wanted
from tare.network.values import (
    Endpoint,
    Network,
    Port,
    Protocol,
    Subnet,
    bridge_name,
    link_name,
    mac_of,
)

TAG: Final = "tests"


def network(number: int, **changes: object) -> Network:
    """10.NUMBER.0.0/16 and fd00:NUMBER::/64."""
    four = Subnet(prefix=ip_network(f"10.{number}.0.0/16"), gateway=ip_address(f"10.{number}.0.1"))
    six = Subnet(prefix=ip_network(f"fd00:{number}::/64"), gateway=ip_address(f"fd00:{number}::1"))
    ipv6 = bool(changes.pop("ipv6", True))
    return Network(
        id=f"n{number}",
        name=f"net{number}",
        interface=bridge_name(TAG, f"n{number}"),
        subnets=(four, six) if ipv6 else (four,),
        ipv6=ipv6,
        **changes,  # type: ignore[arg-type]  # a shortcut for tests
    )


def endpoint(net: Network, number: int, *ports: Port, rate: int | None = None) -> Endpoint:
    """The container with that number in a network made by `network`."""
    first = net.subnets[0].prefix
    four = ip_interface(f"{first[number]}/16")
    six = [ip_interface(f"{s.prefix[number]}/64") for s in net.subnets[1:]]
    return Endpoint(
        network_id=net.id,
        container_id=f"container{number}",
        host_interface=link_name(TAG, f"container{number}", net.id),
        mac=mac_of(four.ip),
        addresses=(four, *six),
        ports=ports,
        rate=rate,
    )


def port(host: str, number: int, inside: int = 80, protocol: Protocol = Protocol.TCP) -> Port:
    """Publish *inside* on that address and port of the host."""
    return Port(
        host_address=ip_address(host),
        host_port=number,
        container_port=inside,
        protocol=protocol,
    )


class Town:
    """The host of a test, its containers and its neighbour; must be made in its own namespace."""

    def __init__(self, *networks: Network) -> None:
        self.networks = networks
        self._ending = contextlib.ExitStack()
        self.firewall = Firewall(TAG)
        self._ending.callback(self.firewall.close)
        for net in networks:
            bridge.settle(net)
        self.firewall.replace(Wanted(networks))

    def container(self, net: Network, number: int, *ports: Port, rate: int | None = None) -> Host:
        """A namespace linked to a network as the engine does it."""
        made = Host()
        self._ending.callback(made.close)
        one = endpoint(net, number, *ports, rate=rate)
        self.firewall.add(one)
        bridge.connect(net, one, made.namespace)
        return made

    def neighbour(self) -> Host:
        """Another host on the wire of the host's interface ``up``; knows ways to containers."""
        lan = Host()
        self._ending.callback(lan.close)
        with Routing() as kernel, Routing(namespace=lan.namespace) as there:
            kernel.request(
                new_veth("up", mtu=1500, peer="eth0", peer_mac=None, namespace=lan.namespace)
            )
            up, eth0 = kernel.index("up"), there.index("eth0")
            there.request(set_link(eth0, "eth0", up=True))
            kernel.request(set_link(up, "up", up=True))
            for address in ("192.0.2.1/24", "2001:db8::1/64"):
                kernel.request(new_address(up, ip_interface(address), address))
            for address in ("192.0.2.2/24", "2001:db8::2/64"):
                there.request(new_address(eth0, ip_interface(address), address))
            for net in self.networks:
                for subnet in net.subnets:
                    via = ip_address("192.0.2.1" if subnet.prefix.version == 4 else "2001:db8::1")
                    there.request(new_route(eth0, subnet.prefix, via, "a way in"))
        return lan

    def close(self) -> None:
        """Let go of all."""
        self._ending.close()


@pytest.fixture
def own() -> Iterator[None]:
    """A network namespace of the test's own."""
    needs("root")
    with own_network():
        yield


@pytest.fixture
def town(own: None) -> Iterator[Town]:
    """Networks 1 and 2."""
    needs("nft")
    made = Town(network(1), network(2))
    yield made
    made.close()
