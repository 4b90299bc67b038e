"""Networks and containers in them, on a host that only remembers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from fakes.fabric import RememberingFabric
from tare.engine import filters, generated
from tare.engine.attachments import Attachments
from tare.engine.events import Events
from tare.engine.networks import Networks
from tare.engine.store import Store
from tare.errors import (
    ConflictError,
    DeniedError,
    FailedError,
    InvalidError,
    MissingError,
    UnsupportedError,
)
from tare.model.networking import (
    NetworkSettings,
    NetworkSpec,
    NetworkWish,
    PortWish,
    SubnetWish,
)
from tare.model.record import Record, changed
from tare.model.spec import (
    ContainerSpec,
    Namespaces,
    ProcessSpec,
    Security,
    SecurityProfile,
)
from tare.model.state import State

SPEC = ContainerSpec(image="x", image_id="sha256:" + "0" * 64, process=ProcessSpec(args=("x",)))


class Bench:
    """Networks and attachments over one database; `again` is the next daemon's."""

    def __init__(self, directory: Path, settings: NetworkSettings | None = None) -> None:
        self.directory = directory
        self.settings = settings or NetworkSettings()
        self.fabric = RememberingFabric()
        self._open()

    def _open(self) -> None:
        self.store = Store(self.directory / "state.db")
        self.networks = Networks(self.store, Events(), self.fabric, self.settings)
        self.attachments = Attachments(self.store, self.networks)

    def again(self) -> None:
        self.store.close()
        self.fabric = RememberingFabric()
        self._open()

    async def network(self, name: str, **more: object) -> str:
        spec = NetworkSpec(name=name, **more)  # type: ignore[arg-type]  # a shortcut for tests
        return (await self.networks.create(spec))[0]

    def container(self, name: str, *wishes: str | NetworkWish, **more: object) -> Record:
        """A container as create leaves it, about to start."""
        asked = tuple(NetworkWish(network=w) if isinstance(w, str) else w for w in wishes)
        spec = replace(SPEC, networks=asked, **more)  # type: ignore[arg-type]
        spec, places, _ = self.attachments.resolve(spec)
        identity = os.urandom(32).hex()
        files = self.directory / identity / "files"
        files.mkdir(parents=True)
        return self.store.add(
            Record(
                id=identity, name=name, spec=spec, created_ns=1, state=State.STARTING,
                workload_dir=str(files.parent), files_dir=str(files), networks=places,
            )
        )  # fmt: skip

    async def start(self, record: Record) -> Record:
        await self.attachments.attach(self.store.get(record.id))
        return self.store.put(changed(self.store.get(record.id), state=State.RUNNING))

    def end(self, record: Record) -> None:
        record = self.store.put(changed(self.store.get(record.id), state=State.EXITED))
        self.attachments.ended(record)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    asyncio.run(made.networks.begin())
    yield made
    made.store.close()


def run(work: Awaitable[None]) -> None:
    async def whole() -> None:
        await work
        await asyncio.sleep(0.01)  # lets what nobody waits for come to its end

    asyncio.run(whole())


def test_every_engine_has_three_networks_and_the_next_daemon_the_same(bench: Bench) -> None:
    before = {record.name: record.id for record in bench.networks.all()}

    bench.again()
    asyncio.run(bench.networks.begin())

    assert set(before) == {"bridge", "host", "none"}
    assert {record.name: record.id for record in bench.networks.all()} == before


def test_the_default_network_moves_where_another_took_its_subnet_before_its_first_use(
    bench: Bench,
) -> None:
    async def work() -> None:
        before = bench.networks.get("bridge").spec.subnets[0].subnet
        bench.fabric.routes = (*bench.fabric.routes, ip_network(before))

        first = await bench.start(bench.container("web", "bridge"))

        after = bench.networks.get("bridge").spec.subnets[0].subnet
        assert after != before
        assert ip_address(first.networks[0].ipv4) in ip_network(after)
        bench.fabric.routes = (*bench.fabric.routes, ip_network(after))
        second = await bench.start(bench.container("db", "bridge"))
        assert ip_address(second.networks[0].ipv4) in ip_network(after)  # it is in use now

    run(work())


def test_a_macvlan_is_in_the_subnet_of_its_parent_and_of_no_other_interface(bench: Bench) -> None:
    async def work() -> None:
        lans = ("10.1.0.0/24", "10.2.0.0/24")
        bench.fabric.wires = dict(zip(("lan1", "lan2"), map(ip_network, lans), strict=True))

        for lan, name in zip(lans, ("on", "off"), strict=True):
            spec = NetworkSpec(
                name=name, driver="macvlan", options={"parent": "lan1"},
                subnets=(SubnetWish(subnet=lan),),
            )  # fmt: skip
            if name == "on":
                await bench.networks.create(spec)
                continue
            with pytest.raises(ConflictError, match=r"overlaps with .* of the host"):
                await bench.networks.create(spec)

    run(work())


def test_a_network_is_found_by_name_id_and_the_beginning_of_an_id(bench: Bench) -> None:
    async def work() -> None:
        identity = await bench.network("mine")
        for ref in ("mine", identity, identity[:12]):
            assert bench.networks.get(ref).id == identity
        for ref in ("nobody", identity[:3], ""):
            with pytest.raises(MissingError):
                bench.networks.get(ref)

    run(work())


def test_networks_made_at_once_have_subnets_of_their_own_away_from_the_hosts(bench: Bench) -> None:
    async def work() -> None:
        await asyncio.gather(*(bench.network(f"n{number}") for number in range(40)))
        found = [wish.subnet for record in bench.networks.all() for wish in record.spec.subnets]

        assert len(found) == len(set(found)) == 41
        assert "172.17.0.0/16" not in found

    run(work())


def test_of_two_of_one_name_made_at_once_one_is_refused(bench: Bench) -> None:
    async def work() -> None:
        found = await asyncio.gather(
            bench.network("same"), bench.network("same"), return_exceptions=True
        )

        assert sum(isinstance(one, ConflictError) for one in found) == 1

    run(work())


def test_a_bridge_that_cannot_be_made_leaves_no_network(bench: Bench) -> None:
    async def work() -> None:
        bench.fabric.refusing = "settle"
        with pytest.raises(FailedError):
            await bench.network("mine")
        bench.fabric.refusing = ""

        assert bench.fabric.bridges == {}
        await bench.network("mine")

    run(work())


@pytest.mark.parametrize(
    ("more", "error", "word"),
    [
        ({"name": "a/b"}, InvalidError, "not a name"),
        ({"name": "bridge"}, DeniedError, "predefined"),
        ({"driver": "overlay"}, MissingError, "driver"),
        ({"ipv4": False}, InvalidError, "IPv4 or IPv6"),
        ({"driver": "macvlan"}, InvalidError, "an interface"),
        ({"subnets": (SubnetWish(subnet="x"),)}, InvalidError, "10.77.0.0/24"),
        ({"subnets": (SubnetWish(subnet="fd00::/64"),)}, InvalidError, "which is off"),
        ({"subnets": (SubnetWish(gateway="10.0.0.1"),)}, InvalidError, "its subnet"),
        ({"subnets": (SubnetWish(subnet="172.17.9.0/24"),)}, ConflictError, "the host"),
        ({"subnets": (SubnetWish(subnet="10.1.0.0/24"),) * 2}, ConflictError, "this network"),
        ({"options": {"com.docker.network.driver.mtu": "1"}}, InvalidError, "MTU"),
        ({"options": {"com.docker.network.bridge.enable_icc": "x"}}, InvalidError, "true or"),
        (
            {"options": {"com.docker.network.bridge.name": "way-too-long-a-name"}},
            InvalidError,
            "interface name",
        ),
    ],
)
def test_what_makes_no_network_is_refused(
    bench: Bench, more: dict[str, object], error: type[Exception], word: str
) -> None:
    async def work() -> None:
        with pytest.raises(error, match=word):
            await bench.network(
                str(more.get("name", "mine")), **{k: v for k, v in more.items() if k != "name"}
            )

    run(work())


def test_an_option_that_is_not_known_is_told(bench: Bench) -> None:
    spec = NetworkSpec(name="mine", options={"com.example": "1"})

    _, warnings = asyncio.run(bench.networks.create(spec))

    assert "com.example" in warnings[0]


def test_filters(bench: Bench) -> None:
    async def work() -> None:
        await bench.network("front", labels={"a": "b"})
        await bench.network("back", internal=True)
        bench.container("one", "back")

        def names(**filters: str) -> set[str]:
            given = {key: (value,) for key, value in filters.items()}
            return {record.name for record in bench.networks.list(given)}

        assert names(name="ron") == {"front"}
        assert names(label="a=b") == {"front"} and names(label="a=c") == set()
        assert names(type="custom") == {"front", "back"}
        assert names(type="builtin") == {"bridge", "host", "none"}
        assert names(dangling="true") == {"front"}
        assert names(driver="null") == {"none"}
        assert names(scope="swarm") == set()
        with pytest.raises(InvalidError):
            names(nonsense="x")

    run(work())


def test_a_start_gives_addresses_names_and_links_and_an_end_takes_them_back(bench: Bench) -> None:
    async def work() -> None:
        network = await bench.network("mine", subnets=(SubnetWish(subnet="10.1.0.0/24"),))
        record = bench.container("web", NetworkWish(network="mine", aliases=("www",)))
        _, links = await bench.attachments.attach(record)
        await bench.attachments.named(record)
        place = bench.store.get("web").networks[0]

        assert (place.ipv4, place.gateway, place.mac) == (
            "10.1.0.2",
            "10.1.0.1",
            "02:42:0a:01:00:02",
        )
        assert links[0].gateways == ("10.1.0.1",)
        assert [one.address(4) for one in bench.fabric.admitted.values()]
        assert bench.fabric.table.zones[0].hosts[0].names == ("web", "www", record.id[:12])
        assert "10.1.0.2\t" in Path(record.files_dir, "hosts").read_text()
        assert bench.attachments.members(network) == [(record.id, "web")]
        bench.end(record)
        await asyncio.sleep(0.01)
        assert bench.fabric.admitted == {} and bench.fabric.table.clients == ()
        assert bench.attachments.members(network) == []

    run(work())


def test_a_restart_has_the_address_of_before_and_others_go_round_it(bench: Bench) -> None:
    async def work() -> None:
        await bench.network("mine", subnets=(SubnetWish(subnet="10.1.0.0/24"),))
        first = await bench.start(bench.container("first", "mine"))
        bench.end(first)
        second = await bench.start(bench.container("second", "mine"))
        again = await bench.start(first)

        assert second.networks[0].ipv4 == "10.1.0.3"
        assert again.networks[0].ipv4 == "10.1.0.2"

    run(work())


def test_an_address_asked_for_by_number_is_kept_free_for_the_one_who_asked(bench: Bench) -> None:
    async def work() -> None:
        await bench.network("mine", subnets=(SubnetWish(subnet="10.1.0.0/24"),))
        fixed = bench.container("fixed", NetworkWish(network="mine", ipv4="10.1.0.2"))
        other = await bench.start(bench.container("other", "mine"))

        assert other.networks[0].ipv4 == "10.1.0.3"
        assert (await bench.start(fixed)).networks[0].ipv4 == "10.1.0.2"
        rival = bench.container("rival", NetworkWish(network="mine", ipv4="10.1.0.2"))
        with pytest.raises(ConflictError, match="in use by the container fixed"):
            await bench.start(rival)

    run(work())


def test_a_container_whose_names_cannot_be_told_runs_all_the_same(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        await bench.network("mine")
        bench.fabric.refusing = "name"
        record = await bench.start(bench.container("web", "mine"))
        await bench.attachments.named(record)

        assert bench.fabric.admitted
        assert "names of web" in caplog.text

    run(work())


@pytest.mark.parametrize("call", ["admit", "settle"])
def test_a_start_that_fails_on_the_way_holds_nothing(bench: Bench, call: str) -> None:
    async def work() -> None:
        record = bench.container(
            "web", "default", ports=(PortWish(container_port=80, host_port="8080"),)
        )
        bench.fabric.refusing = call
        with pytest.raises(FailedError):
            await bench.start(record)
        assert bench.fabric.admitted == {} and bench.fabric.held == set()
        bench.fabric.refusing = ""

        assert (await bench.start(record)).networks[0].ports[0].host_port == 8080

    run(work())


def test_ports_are_where_the_profile_the_network_and_the_administrator_say(tmp_path: Path) -> None:
    async def work() -> None:
        bench = Bench(tmp_path, NetworkSettings(publish="192.0.2.1"))
        await bench.networks.begin()
        option = {"com.docker.network.bridge.host_binding_ipv4": "192.0.2.7"}
        await bench.network("bound", options=option)
        compat = Security(profile=SecurityProfile.DOCKER_COMPAT)

        async def published(network: str, **more: object) -> list[str]:
            wish = PortWish(container_port=80)
            record = bench.container(f"c{os.urandom(3).hex()}", network, ports=(wish,), **more)
            return [p.host_address for p in (await bench.start(record)).networks[0].ports]

        assert await published("default") == ["192.0.2.1"]
        assert await published("bound") == ["192.0.2.7"]
        assert await published("bound", security=compat) == ["0.0.0.0"]
        bench.store.close()

    run(work())


def test_one_number_is_chosen_for_both_families(bench: Bench) -> None:
    async def work() -> None:
        await bench.network("six", ipv6=True)
        bench.fabric.taken_by_others = {("::1", 49153, "tcp"), ("::1", 49154, "tcp")}
        record = bench.container("web", "six", ports=(PortWish(container_port=80),))

        ports = (await bench.start(record)).networks[0].ports

        assert [(p.host_address, p.host_port) for p in ports] == [
            ("127.0.0.1", 49155),
            ("::1", 49155),
        ]
        assert len(bench.fabric.held) == 2

    run(work())


def test_a_port_that_another_container_has_is_refused_with_its_name(bench: Bench) -> None:
    async def work() -> None:
        anywhere = PortWish(container_port=80, host_address="0.0.0.0", host_port="8080")
        await bench.start(bench.container("first", "default", ports=(anywhere,)))
        record = bench.container(
            "second", "default", ports=(PortWish(container_port=81, host_port="8080"),)
        )

        with pytest.raises(ConflictError, match="allocated to the container first") as caught:
            await bench.start(record)

        assert caught.value.exit_code == 125
        assert str(caught.value).startswith("Bind for 127.0.0.1:8080 failed")

    run(work())


def test_every_exposed_port_is_published_when_all_are_asked_for(bench: Bench) -> None:
    async def work() -> None:
        named = PortWish(container_port=80, host_port="8080")
        record = bench.container(
            "web", "default", ports=(named,), publish_all=True, exposed_ports=("80/tcp", "53/udp")
        )

        found = {
            (p.container_port, p.protocol) for p in (await bench.start(record)).networks[0].ports
        }

        assert found == {(80, "tcp"), (53, "udp")}

    run(work())


@pytest.mark.parametrize(
    ("wish", "error"),
    [
        (NetworkWish(network="nobody"), InvalidError),
        (NetworkWish(network="host"), InvalidError),
        (NetworkWish(network="default", aliases=("x",)), InvalidError),
        (NetworkWish(network="default", links=("x",)), UnsupportedError),
        (NetworkWish(network="mine", ipv4="10.2.0.2"), InvalidError),
        (NetworkWish(network="mine", ipv4="10.1.0.1"), InvalidError),
        (NetworkWish(network="mine", ipv4="10.1.0.255"), InvalidError),
        (NetworkWish(network="mine", ipv6="fd00::1"), InvalidError),
        (NetworkWish(network="mine", mac="01:00:00:00:00:00"), InvalidError),
        (NetworkWish(network="mine", links=("nobody",)), MissingError),
        (NetworkWish(network="mine", link_local=("169.254.0.1",)), UnsupportedError),
    ],
    ids=repr,
)
def test_a_wish_that_cannot_be_is_refused_at_create(
    bench: Bench, wish: NetworkWish, error: type[Exception]
) -> None:
    async def work() -> None:
        await bench.network("mine", subnets=(SubnetWish(subnet="10.1.0.0/24"),))
        with pytest.raises(error):
            bench.container("web", wish)

    run(work())


def test_the_preferred_network_is_the_way_out(bench: Bench) -> None:
    async def work() -> None:
        await bench.network("alpha", internal=True)
        await bench.network("beta")
        await bench.network("zeta")
        record = bench.container("one", "alpha", "zeta", "beta")
        preferred = bench.container("two", "beta", NetworkWish(network="zeta", priority=5))

        def out(found: Record) -> list[str]:
            return [place.network for place in found.networks if place.default_route]

        started = await bench.start(record)
        assert out(started) == ["beta"]
        assert [p.network for p in started.networks] == ["beta", "zeta", "alpha"]
        assert out(await bench.start(preferred)) == ["zeta"]

    run(work())


def test_a_host_without_networks_runs_containers_and_refuses_what_needs_one(tmp_path: Path) -> None:
    async def work() -> None:
        bench = Bench(tmp_path)
        bench.fabric.unavailable = "no nft here"
        await bench.networks.begin()

        assert bench.container("plain", "default").spec.namespaces.network == "none"
        for more in ({"ports": (PortWish(container_port=80),)}, {"publish_all": True}):
            with pytest.raises(UnsupportedError, match="no nft here"):
                bench.container("web", "default", **more)
        with pytest.raises(UnsupportedError, match="no nft here"):
            await bench.network("mine")
        bench.store.close()

    run(work())


def test_an_administrator_who_wants_no_default_network_gets_none(tmp_path: Path) -> None:
    async def work() -> None:
        bench = Bench(tmp_path, NetworkSettings(default="none"))
        await bench.networks.begin()

        assert bench.container("plain", "default").networks == ()
        assert bench.container("asked", "bridge").networks[0].network == "bridge"
        bench.store.close()

    run(work())


def test_the_next_daemon_holds_what_runs_and_makes_bridges_and_names_so(bench: Bench) -> None:
    async def work() -> None:
        await bench.network("mine")
        port = PortWish(container_port=80, host_port="8080")
        record = await bench.start(bench.container("web", "mine", ports=(port,)))
        gone = await bench.start(bench.container("gone", "mine"))
        bench.end(gone)

        bench.again()
        await bench.networks.begin()
        await bench.attachments.begin()

        assert bench.fabric.begun is not None
        assert [network.name for network in bench.fabric.begun.networks] == ["mine"]
        assert [one.container_id for one in bench.fabric.begun.endpoints] == [record.id]
        assert bench.fabric.held == {("127.0.0.1", 8080, "tcp")}
        assert [host.names[0] for host in bench.fabric.table.zones[0].hosts] == ["web"]
        other = await bench.start(bench.container("other", "mine"))
        assert other.networks[0].ipv4 != record.networks[0].ipv4
        bench.end(record)
        assert bench.fabric.held == set()

    run(work())


def test_a_network_in_use_stays_and_one_that_is_only_wanted_goes(bench: Bench) -> None:
    async def work() -> None:
        await bench.network("mine")
        record = await bench.start(bench.container("web", "mine"))
        with pytest.raises(DeniedError, match='active endpoints \\(name:"web"'):
            await bench.networks.remove("mine")
        assert await bench.networks.prune() == []
        bench.end(record)
        await bench.networks.remove("mine")

        assert bench.fabric.bridges == {}
        with pytest.raises(MissingError, match="network mine"):
            await bench.start(record)

    run(work())


def test_containers_in_anothers_or_the_hosts_network_cannot_be_connected(bench: Bench) -> None:
    async def work() -> None:
        await bench.network("mine")
        record = bench.container("web", "mine")
        spec = replace(record.spec, namespaces=Namespaces(network="host"))
        record = bench.store.put(changed(record, spec=spec, networks=()))
        for name in ("mine", "host"):
            with pytest.raises(DeniedError):
                await bench.attachments.connect(name, record, NetworkWish(network=name))

    run(work())


def test_starts_at_once_have_each_an_address_until_none_is_left(bench: Bench) -> None:
    async def work() -> None:
        await bench.network("mine", subnets=(SubnetWish(subnet="10.1.0.0/24"),))
        records = [bench.container(f"c{number}", "mine") for number in range(253)]
        started = await asyncio.gather(*(bench.start(record) for record in records))

        assert len({record.networks[0].ipv4 for record in started}) == 253
        with pytest.raises(ConflictError, match="no address is left"):
            await bench.start(bench.container("late", "mine"))

    run(work())


def test_a_bridge_that_was_deleted_by_hand_is_made_again(bench: Bench) -> None:
    async def work() -> None:
        identity = await bench.network("mine")
        bench.fabric.bridges.clear()
        await bench.start(bench.container("web", "mine"))

        assert identity in bench.fabric.bridges

    run(work())


@pytest.mark.parametrize("local", [True, False], ids=["on its loopback", "elsewhere"])
def test_the_default_network_asks_our_server_only_where_the_hosts_cannot_be_asked(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, local: bool
) -> None:
    text = f"nameserver {'127.0.0.53' if local else '192.0.2.53'}\nsearch corp\n"
    monkeypatch.setattr(generated, "_read", lambda path: text)

    async def work() -> None:
        record = await bench.start(bench.container("web", "default"))
        await bench.attachments.named(record)
        gateway = record.networks[0].gateway
        asked = Path(record.files_dir, "resolv.conf").read_text().splitlines()

        assert asked == [f"nameserver {gateway if local else '192.0.2.53'}", "search corp"]
        assert [zone.listen for zone in bench.fabric.table.zones] == ([(gateway,)] if local else [])
        assert all(zone.hosts == () for zone in bench.fabric.table.zones)  # nobody has a name there

    run(work())


def test_the_hardened_profile_publishes_on_no_open_address(tmp_path: Path) -> None:
    async def work() -> None:
        bench = Bench(tmp_path, NetworkSettings(publish="0.0.0.0"))
        await bench.networks.begin()
        hardened = Security(profile=SecurityProfile.HARDENED)
        wish = PortWish(container_port=80, host_port="8080")

        record = await bench.start(
            bench.container("web", "default", ports=(wish,), security=hardened)
        )
        assert record.networks[0].ports[0].host_address == "127.0.0.1"
        anywhere = replace(wish, host_address="0.0.0.0")
        with pytest.raises(DeniedError, match="hardened"):
            bench.container("open", "default", ports=(anywhere,), security=hardened)
        bench.store.close()

    run(work())


def test_containers_are_listed_by_network_and_by_port(bench: Bench) -> None:
    async def work() -> None:
        identity = await bench.network("mine")
        port = PortWish(container_port=80, host_port="8080")
        await bench.start(
            bench.container("web", "mine", ports=(port,), exposed_ports=("80/tcp", "53/udp"))
        )
        await bench.start(bench.container("other", "default"))

        def named(key: str, value: str) -> set[str]:
            chosen = filters.tests({key: (value,)}, bench.store.get)
            return {record.name for record in filters.select(bench.store.all(), chosen)}

        assert named("network", "mine") == named("network", identity[:12]) == {"web"}
        assert named("network", "bridge") == {"other"}
        assert named("publish", "8000-8100") == named("publish", "8080/tcp") == {"web"}
        assert named("publish", "8080/udp") == named("publish", "80") == set()
        assert named("expose", "53/udp") == {"web"} and named("expose", "53") == set()
        for wrong in ("x", "0", "9-8", "80/icmp"):
            with pytest.raises(InvalidError):
                named("publish", wrong)

    run(work())
