"""Networks and ports between Docker's JSON and our values."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from tare.errors import InvalidError, UnsupportedError
from tare.model.networking import (
    Joined,
    NetworkSpec,
    NetworkWish,
    PortWish,
    Published,
    SubnetWish,
)
from tare.model.record import Record
from tare.model.spec import ContainerSpec, Namespaces, ProcessSpec
from tare.model.state import State
from tare.wire import body, network
from tare.wire.body import CREATE, CreateBody, HostConfig

SPEC = ContainerSpec(image="x", image_id="sha256:" + "0" * 64, process=ProcessSpec(args=("x",)))
PLACE = Joined(
    network_id="n" * 64, network="mine", wish=NetworkWish(network="mine", aliases=("www",)),
    endpoint_id="e" * 64, interface="eth0", mac="02:42:0a:01:00:02", ipv4="10.1.0.2",
    ipv4_length=24, gateway="10.1.0.1", names=("web", "www"),
    ports=(
        Published(host_address="127.0.0.1", host_port=8080, container_port=80),
        Published(host_address="::1", host_port=8080, container_port=80),
    ),
)  # fmt: skip


def created(given: dict[str, object]) -> tuple[CreateBody, HostConfig]:
    found = body.read(CREATE, msgspec.json.encode(given))
    return found, found.host_config or HostConfig()


def record(state: State = State.RUNNING, *exposed: str) -> Record:
    spec = replace(SPEC, exposed_ports=exposed)
    return Record(id="c" * 64, name="web", spec=spec, created_ns=1, state=state, networks=(PLACE,))


def test_a_request_without_a_network_asks_for_the_default_one() -> None:
    for word in ("", "default"):
        found = network.wishes(*created({"HostConfig": {"NetworkMode": word}}))

        assert [one.network for one in found] == ["default"]


def test_the_main_network_comes_first_and_the_others_with_what_they_ask() -> None:
    endpoints = {
        "back": {"GwPriority": 3},
        "front": {"Aliases": ["a", "a"], "IPAMConfig": {"IPv4Address": "10.0.0.5"}},
    }

    found = network.wishes(
        *created(
            {
                "MacAddress": "02:00:00:00:00:01",
                "HostConfig": {"NetworkMode": "front", "Links": ["db:store"]},
                "NetworkingConfig": {"EndpointsConfig": endpoints},
            }
        )
    )

    assert found == (
        NetworkWish(
            network="front", aliases=("a",), links=("db:store",), ipv4="10.0.0.5",
            mac="02:00:00:00:00:01", configured=True,
        ),
        NetworkWish(network="back", priority=3),
    )  # fmt: skip


def test_default_and_bridge_are_two_names_for_one() -> None:
    given = {
        "HostConfig": {"NetworkMode": "default"},
        "NetworkingConfig": {"EndpointsConfig": {"bridge": {"MacAddress": "02:00:00:00:00:01"}}},
    }

    assert [one.mac for one in network.wishes(*created(given))] == ["02:00:00:00:00:01"]


@pytest.mark.parametrize(
    "given",
    [
        {"HostConfig": {"NetworkMode": "container:"}},
        {"HostConfig": {"NetworkMode": "container:x", "PublishAllPorts": True}},
        {"Hostname": "h", "HostConfig": {"NetworkMode": "container:x"}},
        {"HostConfig": {"NetworkMode": "container:x", "Dns": ["1.1.1.1"]}},
        {
            "HostConfig": {"NetworkMode": "host"},
            "NetworkingConfig": {"EndpointsConfig": {"mine": {}}},
        },
        {"NetworkingConfig": {"EndpointsConfig": {"m": {"IPAMConfig": {"IPv4Address": "::1"}}}}},
        {"NetworkingConfig": {"EndpointsConfig": {"m": {"IPAMConfig": {"IPv6Address": "x"}}}}},
        {"NetworkingConfig": {"EndpointsConfig": {"m": {"Aliases": ["a b"]}}}},
        {"NetworkingConfig": {"EndpointsConfig": {"m\n": {}}}},
        {"HostConfig": {"Links": ["a\nb"]}},
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(InvalidError):
        network.wishes(*created(given))


def test_ports_in_every_form() -> None:
    found = network.ports(
        {
            "80": [{"HostIp": "127.0.0.1", "HostPort": "8080"}, {"HostPort": "8000-8002"}],
            "53/UDP": None,
            "90/tcp": [{"HostIp": "[::1]", "HostPort": "0"}],
            "91/sctp": [],
        }
    )

    assert found == (
        PortWish(container_port=80, host_address="127.0.0.1", host_port="8080"),
        PortWish(container_port=80, host_port="8000-8002"),
        PortWish(container_port=53, protocol="udp"),
        PortWish(container_port=90, host_address="::1", host_port="0"),
        PortWish(container_port=91, protocol="sctp"),
    )


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("0/tcp", {}), ("65536", {}), ("a", {}), ("80/icmp", {}), ("-1", {}), ("８０", {}),
        ("80", {"HostPort": "65536"}), ("80", {"HostPort": "x"}), ("80", {"HostPort": "9-8"}),
        ("80", {"HostPort": "0-5"}), ("80", {"HostIp": "host"}), ("80", {"HostPort": "1-"}),
    ],
)  # fmt: skip
def test_what_is_no_port_is_refused(name: str, entry: dict[str, str | None]) -> None:
    with pytest.raises(InvalidError):
        network.ports({name: [entry]})


def test_a_network_as_it_is_asked_for() -> None:
    given = {
        "Name": "mine",
        "EnableIPv6": True,
        "Internal": True,
        "IPAM": {
            "Config": [
                {
                    "Subnet": "10.1.0.0/24", "IPRange": "10.1.0.128/25", "Gateway": "10.1.0.1/24",
                    "AuxiliaryAddresses": {"printer": "10.1.0.9"},
                }
            ]
        },
        "Options": {"o": "1"},
        "Labels": {"l": "2"},
    }  # fmt: skip

    found = network.network_spec(body.read(network.NETWORK, msgspec.json.encode(given)))

    assert found == NetworkSpec(
        name="mine", ipv6=True, internal=True, options={"o": "1"}, labels={"l": "2"},
        subnets=(
            SubnetWish(
                subnet="10.1.0.0/24", range="10.1.0.128/25", gateway="10.1.0.1",
                auxiliary={"printer": "10.1.0.9"},
            ),
        ),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({}, InvalidError),
        ({"Name": "a\nb"}, InvalidError),
        ({"Name": "x", "Scope": "swarm"}, UnsupportedError),
        ({"Name": "x", "Ingress": True}, UnsupportedError),
        ({"Name": "x", "ConfigFrom": {"Network": "y"}}, UnsupportedError),
        ({"Name": "x", "IPAM": {"Driver": "dhcp"}}, UnsupportedError),
        ({"Name": "x", "IPAM": {"Config": [{"Gateway": "x"}]}}, InvalidError),
        ({"Name": "x", "Labels": {"a\n": "b"}}, InvalidError),
        ({"Name": 7}, InvalidError),
    ],
    ids=str,
)
def test_what_is_no_network_is_refused(given: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        network.network_spec(body.read(network.NETWORK, msgspec.json.encode(given)))


def test_addresses_and_ports_are_shown_while_it_runs_only() -> None:
    running, ended = network.settings(record()), network.settings(record(State.EXITED))

    assert running["Ports"] == {
        "80/tcp": [
            {"HostIp": "127.0.0.1", "HostPort": "8080"}, {"HostIp": "::1", "HostPort": "8080"},
        ]
    }  # fmt: skip
    shown = running["Networks"]
    assert isinstance(shown, dict)
    assert shown["mine"]["IPAddress"] == "10.1.0.2" and shown["mine"]["DNSNames"] == ["web", "www"]
    gone = ended["Networks"]
    assert isinstance(gone, dict)
    assert ended["Ports"] == {}
    assert gone["mine"]["IPAddress"] == "" and gone["mine"]["NetworkID"] == "n" * 64
    assert gone["mine"]["Aliases"] == ["www"]


def test_the_list_has_published_and_exposed_ports() -> None:
    shown = network.port_list(record(State.RUNNING, "80/tcp", "443/tcp"))

    assert {"PrivatePort": 443, "Type": "tcp"} in shown
    assert {"IP": "::1", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"} in shown
    assert len(shown) == 3


@pytest.mark.parametrize("word", ["host", "none"])
def test_the_hosts_network_and_none_are_shown_without_addresses(word: str) -> None:
    spec = ContainerSpec(
        image="x", image_id="x", process=ProcessSpec(args=("x",)),
        namespaces=Namespaces(network=word),
    )  # fmt: skip
    found = Record(id="c" * 64, name="web", spec=spec, created_ns=1)

    assert network.network_mode(spec) == word
    assert list(network.networks(found)) == [word]


def test_the_default_network_is_called_bridge() -> None:
    assert network.network_mode(
        ContainerSpec(
            image="x", image_id="x", process=ProcessSpec(args=("x",)),
            networks=(NetworkWish(network="default"),),
        )
    ) == "bridge"  # fmt: skip
