"""Which prefix and which address: pure, but for the host's own routes."""

from __future__ import annotations

import subprocess
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.needs import needs
from tare.errors import ConflictError, InvalidError
from tare.network import addresses
from tare.network.addresses import Pool
from tare.network.values import Address, Prefix, Subnet


def test_the_first_network_is_dockers_and_the_next_avoids_it() -> None:
    first = addresses.next_subnet([])
    second = addresses.next_subnet([first.prefix])

    assert (str(first.prefix), str(first.gateway)) == ("172.17.0.0/16", "172.17.0.1")
    assert str(second.prefix) == "172.18.0.0/16"


def test_routes_of_the_host_push_networks_into_the_next_pool() -> None:
    taken = [ip_network("172.16.0.0/12"), ip_network("192.168.0.0/24"), ip_network("192.168.17.5")]

    assert str(addresses.next_subnet(taken).prefix) == "192.168.32.0/20"


def test_pools_end_with_a_sentence() -> None:
    with pytest.raises(ConflictError, match="no address range is left"):
        addresses.next_subnet([ip_network("0.0.0.0/0")])


def test_an_engines_ipv6_pool_is_local_and_its_own() -> None:
    one, two = addresses.local_pool("abcde"), addresses.local_pool("abcdf")

    assert one.base.subnet_of(ip_network("fd00::/8"))  # type: ignore[arg-type]  # both are IPv6
    assert one != two
    assert addresses.next_subnet([], [one]).prefix.prefixlen == 64


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 2**24 - 1), st.integers(10, 32)), max_size=12))
def test_what_is_chosen_meets_nothing_that_is_taken(pieces: list[tuple[int, int]]) -> None:
    taken = [ip_network((0x0A000000 + n, bits), strict=False) for n, bits in pieces]
    try:
        found = addresses.next_subnet(taken, [Pool(ip_network("10.0.0.0/8"), 14)]).prefix
    except ConflictError:
        every = ip_network("10.0.0.0/8").subnets(new_prefix=14)
        assert all(any(one.overlaps(t) for t in taken) for one in every)
    else:
        assert not any(found.overlaps(one) for one in taken)


def subnet(text: str, **more: object) -> Subnet:
    """A subnet with its first address as gateway."""
    prefix = ip_network(text)
    return Subnet(prefix=prefix, gateway=prefix[1], **more)  # type: ignore[arg-type]  # a shortcut


def test_addresses_go_round_before_one_is_used_again() -> None:
    net, used = subnet("10.0.0.0/29"), set[Address]()
    last: Address | None = None
    given_out = []
    for _ in range(5):
        last = addresses.next_address(net, used, last)
        given_out.append(str(last))
    used.add(ip_address("10.0.0.2"))

    assert given_out == [f"10.0.0.{n}" for n in (2, 3, 4, 5, 6)]
    assert str(addresses.next_address(net, used, last)) == "10.0.0.3"


def test_a_range_and_reserved_addresses_narrow_the_choice() -> None:
    net = subnet(
        "10.0.0.0/24",
        range=ip_network("10.0.0.128/30"),
        reserved=(("router", ip_address("10.0.0.129")),),
    )
    used = {ip_address("10.0.0.128"), ip_address("10.0.0.130")}

    assert str(addresses.next_address(net, used)) == "10.0.0.131"
    with pytest.raises(ConflictError, match=r"no address is left in 10.0.0.128/30"):
        addresses.next_address(net, {*used, ip_address("10.0.0.131")})


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("10.0.0.0/24", InvalidError, "is not in the subnet"),
        ("127.0.0.0/8", InvalidError, "cannot be the subnet"),
        ("10.9.9.9/32", InvalidError, "cannot be the subnet"),
        ("172.17.3.0/24", ConflictError, "overlaps with 172.17.0.0/16 of network web"),
    ],
)
def test_a_subnet_that_cannot_be_is_refused(text: str, error: type[Exception], words: str) -> None:
    taken: dict[Prefix, str] = {ip_network("172.17.0.0/16"): "network web"}
    gateway = ip_address("192.0.2.1") if text == "10.0.0.0/24" else None

    with pytest.raises(error, match=words):
        addresses.check_subnet(Subnet(prefix=ip_network(text), gateway=gateway), taken)


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("10.1.0.2", InvalidError, "not in the subnet"),
        ("10.0.0.1", InvalidError, "not for containers"),
        ("10.0.0.255", InvalidError, "not for containers"),
        ("10.0.0.7", ConflictError, "in use by db"),
    ],
)
def test_an_address_that_cannot_be_given_is_refused(
    text: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        addresses.check_address(
            subnet("10.0.0.0/24"), ip_address(text), {ip_address("10.0.0.7"): "db"}
        )


def test_the_hosts_routes_are_avoided_and_the_engines_own_are_not(own: None) -> None:
    needs("ip")
    for line in (
        "link add lan0 type veth peer name lan1", "link set lan0 up",
        "address add 172.17.4.1/24 dev lan0", "route add 172.18.0.0/15 dev lan0",
        "link add tbours type veth peer name ours1", "link set tbours up",
        "address add 172.20.0.1/16 dev tbours", "route add default dev lan0",
    ):  # fmt: skip
        subprocess.run(["ip", *line.split()], check=True)

    found = addresses.host_prefixes({"tbours"})

    assert ip_network("172.17.4.0/24") in found
    assert ip_network("172.18.0.0/15") in found
    assert ip_network("172.20.0.0/16") not in found
    assert all(prefix.prefixlen for prefix in found)
    assert str(addresses.next_subnet(found).prefix) == "172.20.0.0/16"
