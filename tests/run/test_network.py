"""Containers on bridges: their interfaces are there when the program starts, and go with it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from harness.namespaces import own_network
from harness.needs import needs
from run.conftest import Bench, Body
from tare.errors import FailedError
from tare.kernel import cgroup
from tare.kernel.interfaces import Interface
from tare.kernel.rtnetlink import Routing
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


def test_interfaces_go_when_the_container_does_also_without_a_keeper(
    bench: Run, network: Network
) -> None:
    async def body(b: Bench) -> None:
        wanted = link(2)
        await start(b, "sleep 1000", wanted)
        with Routing() as kernel:
            assert kernel.link(wanted.host_name) is not None

            os.kill(b.keeper_pid(), signal.SIGKILL)
            await asyncio.wait_for(b.lost.wait(), 30)
            assert kernel.link(wanted.host_name) is not None  # it goes on
            await b.keeper.close()
            await b.connect()
            for identity in b._specs:
                cgroup.detect().group(b._specs[identity][1].cgroup).kill()
            await gone(kernel, wanted.host_name)

    bench(body)


def test_a_container_started_again_at_once_has_its_interface(bench: Run, network: Network) -> None:
    async def body(b: Bench) -> None:
        for _ in range(8):  # the link of the one before is being taken down meanwhile
            assert await run(b, "cat /sys/class/net/eth0/operstate", link(2)) == (0, "up\n")

    bench(body)


def test_with_and_without_a_network_by_turns(bench: Run, network: Network) -> None:
    async def body(b: Bench) -> None:
        for _ in range(6):
            assert await run(b, "ls /sys/class/net") == (0, "lo\n")
            assert await run(b, "ls /sys/class/net", link(2)) == (0, "eth0\nlo\n")
            four = replace(
                link(3),
                ipv6=False,
                name="net7",
                addresses=("10.77.0.3/24",),
                gateways=("10.77.0.1",),
            )
            told = "ls /sys/class/net; cat /proc/sys/net/ipv6/conf/net7/disable_ipv6"
            assert await run(b, told, four) == (0, "lo\nnet7\n1\n")
            _, text = await run(b, "ip -o -6 addr show eth0", link(4))
            assert "fd00:77::4/64" in text

    bench(body)


def test_several_networks_one_way_out(bench: Run, network: Network) -> None:
    other = replace(
        NETWORK,
        id="n2",
        interface=bridge_name(TAG, "n2"),
        ipv6=False,
        subnets=(Subnet(prefix=ip_network("10.78.0.0/24"), gateway=ip_address("10.78.0.1")),),
    )
    bridge.settle(other)

    async def body(b: Bench) -> None:
        second = replace(
            link(2, other), name="eth1", addresses=("10.78.0.2/24",), gateways=(), ipv6=False
        )
        _, text = await run(b, "ip route", link(2), second)

        assert text.count("default") == 1
        assert "default via 10.77.0.1 dev eth0" in text
        assert "10.78.0.0/24 dev eth1" in text

    bench(body)


def test_a_missing_bridge_is_named_and_nothing_is_left(bench: Run, network: Network) -> None:
    async def body(b: Bench) -> None:
        wanted = replace(link(2), parent="tbnowhere")

        with pytest.raises(FailedError, match=r"no such network interface .*tbnowhere"):
            await start(b, "true", wanted)

        assert list((b.run_dir / "workloads").iterdir()) == []
        with Routing() as kernel:
            await gone(kernel, wanted.host_name)

    bench(body)


def test_what_cannot_be_set_up_leaves_no_link(bench: Run, network: Network) -> None:
    async def body(b: Bench) -> None:
        for _ in range(2):  # without a prepared link, and with one
            with pytest.raises(FailedError, match="cannot link the container"):
                await start(b, "true", replace(link(2), gateways=("203.0.113.1",)))
        with Routing() as kernel:
            await gone(kernel, link(2).host_name)

    bench(body)


async def gone(kernel: Routing, name: str) -> None:
    """Wait until an interface is gone."""
    for _ in range(3000):
        if kernel.link(name) is None:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{name} is still there")
