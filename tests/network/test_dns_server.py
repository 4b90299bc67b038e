"""The name server as a process: asked from containers, over UDP and TCP, and when it is killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import dnslib
import pytest

from harness.namespaces import Host
from network.conftest import Town
from tare.network.dns_forward import servers_of
from tare.network.dns_link import NameServer
from tare.network.dns_table import Client, Table, Zone
from tare.network.dns_table import Host as Named
from tare.network.values import Network

PATIENCE = 30.0


def zone(net: Network, *hosts: Named, forward: bool = True) -> Zone:
    listen = tuple(str(address) for address in net.gateways)
    return Zone(net.id, net.name, net.interface, listen, forward, hosts)


class Upstream:
    """A server of the host on 127.0.0.1, that knows every name but ``dead.example``."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self._datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._streams = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._streams.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for one in (self._datagrams, self._streams):
            one.bind(("127.0.0.1", 53))
        self._streams.listen()
        for work in (self._serve_datagrams, self._serve_streams):
            threading.Thread(target=work, daemon=True).start()

    def _answer(self, kind: str, message: bytes) -> bytes:
        query = dnslib.DNSRecord.parse(message)
        name = str(query.q.qname).rstrip(".")
        self.asked.append((kind, name))
        if name == "dead.example":
            return b""
        reply = query.reply()
        if kind == "udp" and name == "large.example":
            reply.header.tc = 1
            return bytes(reply.pack())
        reply.add_answer(dnslib.RR(query.q.qname, rdata=dnslib.A("203.0.113.9")))
        return bytes(reply.pack())

    def _serve_datagrams(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                message, sender = self._datagrams.recvfrom(4096)
                if not message:  # shut down
                    return
                if answer := self._answer("udp", message):
                    self._datagrams.sendto(answer, sender)

    def _serve_streams(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._streams.accept()
                with connection:
                    length = int.from_bytes(connection.recv(2), "big")
                    answer = self._answer("tcp", connection.recv(length))
                    # In two pieces, as a network may deliver it.
                    connection.sendall(len(answer).to_bytes(2, "big") + answer[:5])
                    connection.sendall(answer[5:])

    def close(self) -> None:
        for one in (self._datagrams, self._streams):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


class Names:
    """A name server on the networks of a town, and the daemon's end of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.loop = asyncio.new_event_loop()
        self.link = NameServer(str(directory))

    def put(
        self, *zones: Zone, clients: tuple[Client, ...] = (Client(("0.0.0.0",), ("x",)),)
    ) -> None:
        self.loop.run_until_complete(self.link.put(Table(zones, clients)))

    def pid(self) -> int:
        return int((self.directory / "dns.lock").read_text())

    def replaced(self, killed: int) -> bool:
        """Whether another server has written its pid, whole, in the place of that one's."""
        text = (self.directory / "dns.lock").read_text()
        return text.endswith("\n") and int(text) != killed

    def turn(self, until: Callable[[], bool]) -> None:
        """Let the daemon's loop run until something is so."""

        async def wait() -> None:
            while not until():
                await asyncio.sleep(0.01)

        self.loop.run_until_complete(asyncio.wait_for(wait(), PATIENCE))

    def close(self) -> None:
        self.loop.run_until_complete(self.link.close())
        self.loop.close()
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
            handle = os.pidfd_open(self.pid())
            os.kill(self.pid(), signal.SIGKILL)
            select.select([handle], [], [], PATIENCE)
            os.close(handle)


@pytest.fixture
def names(town: Town, tmp_path: Path) -> Iterator[Names]:
    made = Names(tmp_path)
    yield made
    made.close()


@pytest.fixture
def upstream(own: None) -> Iterator[Upstream]:
    made = Upstream()
    yield made
    made.close()


def ask(
    where: Host | None, server: str, name: str, kind: str = "A", *, tcp: bool = False, edns: int = 0
) -> dnslib.DNSRecord:
    """What *server* answers to a container."""
    query = dnslib.DNSRecord.question(name, kind)
    if edns:
        query.add_ar(dnslib.EDNS0(udp_len=edns))
    message = bytes(query.pack())
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with where.inside() if where is not None else contextlib.nullcontext():
        asking = socket.socket(family, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
    with asking:
        asking.settimeout(PATIENCE)
        asking.connect((server, 53))
        if not tcp:
            asking.send(message)
            answer = asking.recv(65535)
        else:
            asking.sendall(len(message).to_bytes(2, "big") + message)
            answer = b""
            while len(answer) < 2 or len(answer) < 2 + int.from_bytes(answer[:2], "big"):
                more = asking.recv(65535)
                assert more
                answer += more
            answer = answer[2:]
    found = dnslib.DNSRecord.parse(answer)
    assert found.header.id == query.header.id
    return found


def shown(found: dnslib.DNSRecord) -> list[str]:
    return sorted(str(one.rdata) for one in found.rr)


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_containers_find_each_other_over_both_protocols_and_both_families(
    town: Town, names: Names, tcp: bool
) -> None:
    net, _ = town.networks
    asking = town.container(net, 3)
    names.put(zone(net, Named(("web",), ("10.1.0.2", "fd00:1::2"))))

    assert shown(ask(asking, "10.1.0.1", "web", tcp=tcp)) == ["10.1.0.2"]
    assert shown(ask(asking, "fd00:1::1", "web", "AAAA", tcp=tcp)) == ["fd00:1::2"]
    assert shown(ask(asking, "10.1.0.1", "2.0.1.10.in-addr.arpa", "PTR", tcp=tcp)) == ["web.net1."]


def test_a_name_without_that_kind_of_address_is_no_missing_name(town: Town, names: Names) -> None:
    net, _ = town.networks
    asking = town.container(net, 3)
    names.put(zone(net, Named(("web",), ("10.1.0.2",))))

    for kind in ("AAAA", "MX", "TXT"):
        found = ask(asking, "10.1.0.1", "web", kind)
        assert (found.header.rcode, found.rr) == (0, [])
    assert ask(asking, "10.1.0.1", "nobody").header.rcode == dnslib.RCODE.NXDOMAIN
    assert shown(ask(asking, "10.1.0.1", "localhost")) == ["127.0.0.1"]


@pytest.mark.attack("A43")
def test_names_are_told_within_their_network_only(town: Town, names: Names) -> None:
    first, second = town.networks
    here, there, both = (
        town.container(first, 3), town.container(second, 3), town.container(first, 4),
    )  # fmt: skip
    names.put(
        zone(first, Named(("web",), ("10.1.0.2",))),
        zone(second, Named(("db",), ("10.2.0.2",))),
        clients=(Client(("10.1.0.4", "10.2.0.4"), (first.id, second.id)),),
    )

    assert shown(ask(here, "10.1.0.1", "web")) == ["10.1.0.2"]
    assert ask(here, "10.1.0.1", "db").header.rcode == dnslib.RCODE.NXDOMAIN
    assert ask(there, "10.2.0.1", "web").header.rcode == dnslib.RCODE.NXDOMAIN
    assert shown(ask(both, "10.1.0.1", "db")) == ["10.2.0.2"]  # it is in both


@pytest.mark.attack("A43")
def test_nobody_but_the_network_and_the_host_reaches_the_server(town: Town, names: Names) -> None:
    first, second = town.networks
    lan, there = town.neighbour(), town.container(second, 3)
    names.put(zone(first, Named(("web",), ("10.1.0.2",))))

    for outsider in (lan, there):
        with outsider.inside():
            asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with asking:
            asking.settimeout(0.3)
            asking.connect(("10.1.0.1", 53))
            with pytest.raises(OSError):
                asking.send(bytes(dnslib.DNSRecord.question("web").pack()))
                asking.recv(512)
    assert shown(ask(None, "10.1.0.1", "web")) == ["10.1.0.2"]


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_other_names_are_asked_of_the_hosts_loopback_server(
    town: Town, names: Names, upstream: Upstream, tcp: bool
) -> None:
    net, _ = town.networks
    asking = town.container(net, 3)
    names.put(zone(net), clients=(Client(("10.1.0.3",), (net.id,), {}, ("127.0.0.1",)),))

    found = ask(asking, "10.1.0.1", "Debian.example", tcp=tcp, edns=1232)

    assert shown(found) == ["203.0.113.9"]
    assert upstream.asked == [("tcp" if tcp else "udp", "Debian.example")]


def test_a_truncated_answer_is_passed_on_as_one(
    town: Town, names: Names, upstream: Upstream
) -> None:
    net, _ = town.networks
    asking = town.container(net, 3)
    names.put(zone(net), clients=(Client(("10.1.0.3",), (net.id,), {}, ("127.0.0.1",)),))

    assert ask(asking, "10.1.0.1", "large.example").header.tc == 1
    assert shown(ask(asking, "10.1.0.1", "large.example", tcp=True)) == ["203.0.113.9"]


def test_a_server_that_is_not_there_is_passed_over(
    town: Town, names: Names, upstream: Upstream
) -> None:
    net, _ = town.networks
    asking = town.container(net, 3)
    servers = ("127.0.0.77", "127.0.0.1")
    names.put(zone(net), clients=(Client(("10.1.0.3",), (net.id,), {}, servers),))

    assert shown(ask(asking, "10.1.0.1", "debian.example")) == ["203.0.113.9"]
    assert shown(ask(asking, "10.1.0.1", "debian.example", tcp=True)) == ["203.0.113.9"]
    assert ask(asking, "10.1.0.1", "dead.example").header.rcode == dnslib.RCODE.SERVFAIL


@pytest.mark.attack("A43")
def test_nothing_of_an_internal_network_and_no_single_word_leaves_the_host(
    town: Town, names: Names, upstream: Upstream
) -> None:
    first, second = town.networks
    inside, outside = town.container(first, 3), town.container(second, 3)
    names.put(
        zone(first, forward=False),
        zone(second),
        clients=(
            Client(("10.1.0.3",), (first.id,), {}, ("127.0.0.1",)),
            Client(("10.2.0.3",), (second.id,), {}, ("127.0.0.1",)),
        ),
    )

    assert ask(inside, "10.1.0.1", "secret.example").header.rcode == dnslib.RCODE.SERVFAIL
    assert ask(outside, "10.2.0.1", "payroll").header.rcode == dnslib.RCODE.NXDOMAIN
    assert upstream.asked == []


def test_a_large_answer_is_cut_over_udp_and_whole_over_tcp(town: Town, names: Names) -> None:
    net, _ = town.networks
    asking = town.container(net, 3)
    hosts = [Named((f"c{n}", "all"), (f"10.1.1.{n}",)) for n in range(1, 200)]
    names.put(zone(net, *hosts))

    cut = ask(asking, "10.1.0.1", "all")
    assert cut.header.tc == 1
    assert len(ask(asking, "10.1.0.1", "all", edns=4096).rr) > len(cut.rr)
    assert len(ask(asking, "10.1.0.1", "all", tcp=True).rr) == 199


def test_those_who_share_a_name_are_told_in_turn(town: Town, names: Names) -> None:
    net, _ = town.networks
    asking = town.container(net, 3)
    names.put(zone(net, *(Named((f"c{n}", "all"), (f"10.1.1.{n}",)) for n in range(4))))

    first = {str(ask(asking, "10.1.0.1", "all").rr[0].rdata) for _ in range(4)}

    assert len(first) == 4


def test_a_killed_server_is_replaced_and_knows_the_same(town: Town, names: Names) -> None:
    net, _ = town.networks
    asking = town.container(net, 3)
    names.put(zone(net, Named(("web",), ("10.1.0.2",))))
    killed = names.pid()

    os.kill(killed, signal.SIGKILL)
    names.turn(lambda: names.replaced(killed) and (names.directory / "dns.sock").exists())
    names.put(zone(net, Named(("web",), ("10.1.0.2",))))

    assert shown(ask(asking, "10.1.0.1", "web")) == ["10.1.0.2"]


def test_the_server_goes_on_without_a_daemon_and_the_next_one_finds_it(
    town: Town, names: Names, tmp_path: Path
) -> None:
    net, _ = town.networks
    asking = town.container(net, 3)
    names.put(zone(net, Named(("web",), ("10.1.0.2",))))
    pid = names.pid()
    names.loop.run_until_complete(names.link.close())  # as when the daemon dies

    assert shown(ask(asking, "10.1.0.1", "web")) == ["10.1.0.2"]
    names.link = NameServer(str(tmp_path))
    names.put(zone(net, Named(("other",), ("10.1.0.9",))))

    assert names.pid() == pid
    assert shown(ask(asking, "10.1.0.1", "other")) == ["10.1.0.9"]
    assert ask(asking, "10.1.0.1", "web").header.rcode == dnslib.RCODE.NXDOMAIN


def test_no_server_is_started_for_nobody(town: Town, names: Names) -> None:
    names.put(zone(town.networks[0]), clients=())

    assert not (names.directory / "dns.lock").exists()


def test_a_network_made_later_is_answered_too(town: Town, names: Names) -> None:
    first, second = town.networks
    names.put(zone(first))
    names.put(zone(first), zone(second, Named(("db",), ("10.2.0.2",))))

    assert shown(ask(town.container(second, 3), "10.2.0.1", "db")) == ["10.2.0.2"]


def test_an_address_that_another_server_has_is_told(town: Town, names: Names) -> None:
    net, _ = town.networks
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("0.0.0.0", 53))
        names.put(zone(net))

    assert any("10.1.0.1 port 53" in one and "another server" in one for one in names.link.problems)


@pytest.mark.attack("A43")
def test_a_flood_of_one_container_leaves_the_others_served(town: Town, names: Names) -> None:
    net, _ = town.networks
    flooding, asking = town.container(net, 3), town.container(net, 4)
    names.put(zone(net, Named(("web",), ("10.1.0.2",))))
    ask(asking, "10.1.0.1", "web")
    message = bytes(dnslib.DNSRecord.question("web").pack())
    with flooding.inside():
        flood = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    ending, poured = threading.Event(), threading.Event()

    def pour() -> None:
        sent = 0
        while not ending.is_set():
            with contextlib.suppress(OSError):
                flood.sendto(message, ("10.1.0.1", 53))
            sent += 1
            if sent == 10_000:  # far more than one may ask in a second
                poured.set()

    def answered() -> bool:
        with asking.inside():
            one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with one:
            one.settimeout(1.0)
            one.connect(("10.1.0.1", 53))
            for _ in range(30):  # as a resolver does: a lost datagram is sent again
                one.send(message)
                with contextlib.suppress(TimeoutError):
                    return bool(dnslib.DNSRecord.parse(one.recv(512)).rr)
        return False

    pouring = threading.Thread(target=pour)
    pouring.start()
    try:
        assert poured.wait(PATIENCE)
        served = [answered() for _ in range(50)]
    finally:
        ending.set()
        pouring.join()
        flood.close()

    assert all(served)
    memory = Path(f"/proc/{names.pid()}/status").read_text()
    resident = next(int(line.split()[1]) for line in memory.splitlines() if "VmRSS" in line)
    assert resident < 64 << 10


@pytest.mark.attack("A43")
def test_noise_and_slow_connections_do_not_stop_it(town: Town, names: Names) -> None:
    net, _ = town.networks
    noisy, asking = town.container(net, 3), town.container(net, 4)
    names.put(zone(net, Named(("web",), ("10.1.0.2",))))
    with noisy.inside():
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        held = [socket.create_connection(("10.1.0.1", 53), PATIENCE) for _ in range(16)]
    for length in range(200):
        datagrams.sendto(os.urandom(length), ("10.1.0.1", 53))
    for one in held:
        one.sendall(b"\xff\xff" + os.urandom(30_000))  # a part of a message that never ends

    assert shown(ask(asking, "10.1.0.1", "web", tcp=True)) == ["10.1.0.2"]
    for one in (datagrams, *held):
        one.close()


def test_five_hundred_names_are_all_found(town: Town, names: Names) -> None:
    net, _ = town.networks
    asking = town.container(net, 3)
    hosts = [Named((f"c{n}", f"{n:012x}"), (f"10.1.{n // 250}.{n % 250}",)) for n in range(500)]
    names.put(zone(net, *hosts))

    for number in range(0, 500, 7):
        found = shown(ask(asking, "10.1.0.1", f"c{number}"))
        assert found == [f"10.1.{number // 250}.{number % 250}"]


def test_the_servers_of_a_resolv_conf() -> None:
    words = ("# comment", "nameserver 10.0.0.1 # first", "nameserver fe80::1%lo", "nameserver x")
    text = "\n".join((*words, "search a", "nameserver 10.0.0.1", ""))

    assert servers_of(text) == ("10.0.0.1", "fe80::1%lo")
