"""rtnetlink against ip(8): what we make it sees, what it makes we see."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest

from harness.namespaces import Host, own_network
from harness.needs import needs
from tare.kernel import rtnetlink
from tare.kernel.interfaces import Attacher, Interface, remove_inside
from tare.kernel.netlink import Message
from tare.kernel.rtnetlink import Routing


@pytest.fixture
def kernel() -> Iterator[Routing]:
    """rtnetlink of a namespace of the test's own."""
    needs("root", "ip")
    with own_network(), Routing() as connection:
        yield connection


def wire(name: str) -> Message:
    """A pair of which only one end counts; not every kernel has dummy interfaces."""
    return rtnetlink.new_veth(name, mtu=1500, peer=f"{name}p", peer_mac=None, namespace=None)


def ip(*words: str, host: Host | None = None) -> Any:
    """What ip(8) shows, here or in *host*."""
    enter = ("nsenter", "-t", str(host.pid), "-n") if host else ()
    done = subprocess.run(
        [*enter, "ip", "-d", "-j", *words], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout or "[]")


def test_a_bridge_as_ip_shows_it(kernel: Routing) -> None:
    kernel.request(rtnetlink.new_bridge("b0", mtu=1400, mac="02:42:00:00:00:07"))
    index = kernel.index("b0")
    kernel.request(
        rtnetlink.no_link_local(index, "b0"),
        rtnetlink.set_link(index, "b0", up=True, alias="tare web"),
        rtnetlink.new_address(index, ip_interface("10.9.0.1/24"), "4"),
        rtnetlink.new_address(index, ip_interface("fd09::1/64"), "6"),
    )

    (shown,) = ip("address", "show", "b0")

    assert (shown["mtu"], shown["address"]) == (1400, "02:42:00:00:00:07")
    assert shown["linkinfo"]["info_kind"] == "bridge"
    assert shown["linkinfo"]["info_data"]["stp_state"] == 0
    assert shown["ifalias"] == "tare web"
    assert "UP" in shown["flags"]
    found = {(a["local"], a["prefixlen"]) for a in shown["addr_info"]}
    assert found == {("10.9.0.1", 24), ("fd09::1", 64)}
    assert not any(a.get("tentative") for a in shown["addr_info"])


def test_what_ip_made_is_read(kernel: Routing) -> None:
    for line in (
        "link add d0 type veth peer name d1",
        "link set d0 up address 02:00:00:00:00:01 alias hello",
        "address add 192.0.2.7/24 dev d0", "route add 198.51.100.0/24 via 192.0.2.1",
        "-6 address add 2001:db8::7/64 dev d0 nodad",
        "neighbour add 192.0.2.9 lladdr 02:00:00:00:00:09 dev d0",
    ):  # fmt: skip
        subprocess.run(["ip", *line.split()], check=True)

    link = kernel.link("d0")

    assert link is not None
    assert (link.kind, link.mac, link.alias) == ("veth", "02:00:00:00:00:01", "hello")
    assert link in kernel.links()
    assert ip_interface("192.0.2.7/24") in kernel.addresses(link.index)
    assert ip_interface("2001:db8::7/64") in kernel.addresses(link.index)
    routes = {(r.destination, r.gateway) for r in kernel.routes() if r.interface == link.index}
    assert (ip_network("198.51.100.0/24"), ip_address("192.0.2.1")) in routes
    assert (ip_network("192.0.2.0/24"), None) in routes
    assert (ip_network("2001:db8::/64"), None) in routes
    known = {(n.address, n.mac) for n in kernel.neighbours()}
    assert (ip_address("192.0.2.9"), "02:00:00:00:00:09") in known


def test_a_failure_has_the_kernels_words_and_the_rest_of_the_batch_is_done(
    kernel: Routing,
) -> None:
    kernel.request(wire("d0"))
    index = kernel.index("d0")

    with pytest.raises(OSError, match=r"netlink: .*[Nn]exthop.*invalid gateway") as raised:
        kernel.request(
            rtnetlink.set_link(index, "d0", up=True),
            rtnetlink.new_address(index, ip_interface("10.9.0.1/24"), "address"),
            rtnetlink.new_route(index, ip_network("0.0.0.0/0"), ip_address("192.0.2.1"), "out"),
            rtnetlink.set_link(index, "d0", alias="after"),
        )

    assert raised.value.filename == "out"
    link = kernel.link("d0")
    assert link is not None
    assert link.alias == "after"
    assert kernel.link("nowhere") is None
    with pytest.raises(OSError) as missing:
        kernel.index("nowhere")
    assert missing.value.errno == errno.ENODEV


@pytest.mark.parametrize("prepared", [False, True])
def test_an_interface_is_made_in_another_namespace(kernel: Routing, prepared: bool) -> None:
    host = Host()
    attacher = Attacher()
    try:
        kernel.request(rtnetlink.new_bridge("b0", mtu=1500))
        kernel.request(rtnetlink.set_link(kernel.index("b0"), "b0", up=True))
        wanted = Interface(
            parent="b0", host_name="outer", name="web0", mac="02:42:0a:09:00:02", mtu=1400,
            addresses=("10.9.0.2/24", "fd09::2/64"), gateways=("10.9.0.1", "fd09::1"),
            routes=(("203.0.113.0/24", "10.9.0.9"),), ipv6=True, isolated=True, rate=1 << 20,
            alias="tare web",
        )  # fmt: skip
        ready = attacher.prepare(host.namespace, ipv6=False) if prepared else None
        attacher.attach(wanted, host.namespace, ready)

        (outer,) = ip("link", "show", "outer")
        port = outer["linkinfo"]["info_slave_data"]
        assert (outer["master"], outer["ifalias"], outer["mtu"]) == ("b0", "tare web", 1400)
        assert (port["state"], port["learning"], port["flood"]) == ("forwarding", False, False)
        assert (port["isolated"], port["locked"]) == (True, True)
        (inner,) = ip("address", "show", "web0", host=host)
        assert inner["address"] == wanted.mac
        assert inner["operstate"] == "UP"
        found = {f"{a['local']}/{a['prefixlen']}" for a in inner["addr_info"]}
        assert found == {"10.9.0.2/24", "fd09::2/64", "fe80::42:aff:fe09:2/64"}
        routes = {(r["dst"], r.get("gateway")) for r in ip("route", host=host)}
        assert ("default", "10.9.0.1") in routes
        assert ("203.0.113.0/24", "10.9.0.9") in routes
        assert {r.get("gateway") for r in ip("-6", "route", host=host)} >= {"fd09::1"}
        for name, where in (("outer", None), ("web0", host)):
            enter = ("nsenter", "-t", str(host.pid), "-n") if where else ()
            shown = subprocess.run(
                [*enter, "tc", "qdisc", "show", "dev", name], capture_output=True, text=True
            ).stdout
            assert "tbf" in shown
            assert "rate 8389Kbit" in shown or "rate 8388Kbit" in shown
        assert [link.name for link in kernel.links() if link.name.startswith("tp")] == []

        attacher.detach("outer")
        attacher.detach("outer")
        with Routing(namespace=host.namespace) as inside:
            assert inside.link("web0") is None
    finally:
        attacher.close()
        host.close()


def test_a_macvlan_is_born_on_its_parents_wire(kernel: Routing) -> None:
    host = Host()
    attacher = Attacher()
    try:
        kernel.request(wire("wire0"))
        kernel.request(rtnetlink.set_link(kernel.index("wire0"), "wire0", up=True))
        wanted = Interface(
            kind="macvlan", parent="wire0", mac="02:42:0a:09:00:02", addresses=("10.9.0.2/24",)
        )
        attacher.attach(wanted, host.namespace)

        (shown,) = ip("address", "show", "eth0", host=host)
        assert shown["linkinfo"]["info_kind"] == "macvlan"
        assert shown["linkinfo"]["info_data"]["mode"] == "bridge"
        assert shown["address"] == wanted.mac
        remove_inside("eth0", host.namespace)
        remove_inside("eth0", host.namespace)
        with Routing(namespace=host.namespace) as inside:
            assert inside.link("eth0") is None
    finally:
        attacher.close()
        host.close()


def test_visiting_another_namespace_leaves_the_thread_where_it_was(kernel: Routing) -> None:
    host = Host()
    try:
        before = os.readlink("/proc/thread-self/ns/net")
        with Routing(namespace=host.namespace) as inside:
            assert [link.name for link in inside.links()] == ["lo"]
        assert os.readlink("/proc/thread-self/ns/net") == before
    finally:
        host.close()


def test_an_interface_crosses_as_json_unchanged() -> None:
    wanted = Interface(
        parent="b0", host_name="o", mac="02:42:0a:09:00:02", addresses=("10.9.0.2/24",),
        gateways=("10.9.0.1",), routes=(("10.0.0.0/8", ""),), ports=(("127.0.0.1", 80, 80, "tcp"),),
    )  # fmt: skip

    assert Interface.of(json.loads(json.dumps(wanted.plain()))) == wanted
