"""Containers on bridges: their interfaces are there when the program starts, and go with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from harness.namespaces import own_network
from harness.needs import needs
from run.conftest import Bench, Body
from tare.kernel.interfaces import Interface
from tare.model.spec import ContainerSpec, ProcessSpec
from tare.network import bridge
from tare.network.values import Endpoint, Network, Subnet, bridge_name, link_name, mac_of
from tare.run.plan import plan

Run = Callable[[Body], None]
TAG = "tests"
NETWORK = Network(
    id="n1",
    name="web",
    interface=bridge_name(TAG, "n1"),
    ipv6=True,
    subnets=(
        Subnet(prefix=ip_network("10.77.0.0/24"), gateway=ip_address("10.77.0.1")),
        Subnet(prefix=ip_network("fd00:77::/64"), gateway=ip_address("fd00:77::1")),
    ),
)
SPEC = ContainerSpec(image="b", image_id="b", process=ProcessSpec(args=("true",)))


@pytest.fixture
def network() -> Iterator[Network]:
    """A bridge in a network namespace of the test's own."""
    needs("root")
    with own_network():
        bridge.settle(NETWORK)
        yield NETWORK


def link(number: int, network: Network = NETWORK) -> Interface:
    """What a container with that number gets."""
    first = ip_interface(f"10.77.0.{number}/24")
    endpoint = Endpoint(
        network_id=network.id,
        container_id=str(number),
        host_interface=link_name(TAG, str(number), network.id),
        mac=mac_of(first.ip),
        addresses=(first, ip_interface(f"fd00:77::{number:x}/64")),
    )
    return bridge.interface(network, endpoint)


async def start(b: Bench, script: str, *interfaces: Interface) -> str:
    """Start a shell script on these networks; its id."""
    spec = replace(SPEC, process=ProcessSpec(args=("sh", "-c", script)))
    place = b.place(interfaces=interfaces)
    b._specs[place.id] = (spec, place)
    await b.keeper.start(plan(spec, place, b.host))
    return place.id


async def run(b: Bench, script: str, *interfaces: Interface) -> tuple[int, str]:
    """Run a shell script to its end on these networks."""
    identity = await start(b, script, *interfaces)
    exited = await b.ended(identity)
    b.keeper.acknowledge(identity)
    return exited.code, b.output(identity)


def test_two_containers_on_a_bridge_reach_each_other(bench: Run, network: Network) -> None:
    async def body(b: Bench) -> None:
        await start(b, "while true; do echo from two | nc -l -p 80; done", link(2))
        ask = "until nc -w 5 {} 80 </dev/null; do :; done"

        assert await run(b, ask.format("10.77.0.2"), link(3)) == (0, "from two\n")
        assert await run(b, ask.format("fd00:77::2"), link(4)) == (0, "from two\n")

    bench(body)


def test_the_interface_is_ready_when_the_program_starts(bench: Run, network: Network) -> None:
    async def body(b: Bench) -> None:
        script = "ip -o addr show eth0; ip route; ip -6 route; cat /sys/class/net/eth0/address"

        code, text = await run(b, script, link(2))

        assert code == 0
        assert "inet 10.77.0.2/24" in text
        assert "inet6 fd00:77::2/64" in text
        assert "tentative" not in text
        assert "default via 10.77.0.1 dev eth0" in text
        assert "default via fd00:77::1 dev eth0" in text
        assert "02:42:0a:4d:00:02" in text

    bench(body)
