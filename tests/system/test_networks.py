"""Containers on networks, through the client: names, addresses, ports, and what is refused.

The engine, its containers and the "outside world" are in network namespaces of the test's own.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.sites import PATIENCE, SERVE, Site, inside

pytestmark = [
    pytest.mark.system,
    pytest.mark.needs("root", "overlay", "cgroup", "busybox", "nft"),
]


@pytest.fixture(scope="module")
def whole(session_directory: Path, busybox_archive: Path) -> Iterator[Site]:
    directory = session_directory / "nw"
    directory.mkdir()
    found = Site(directory)
    try:
        found.out("load", "-q", "-i", str(busybox_archive))
        yield found
    finally:
        found.stop()
        found.host.close()


@pytest.fixture
def site(whole: Site) -> Iterator[Site]:
    whole.clean()
    yield whole
    whole.clean()


def test_containers_find_each_other_by_name_alias_and_id(site: Site) -> None:
    site.out("network", "create", "mine")
    site.serve("web", "--network", "mine", "--network-alias", "www", "--hostname", "w1")
    site.serve("other", "--network", "mine")
    identity = site.out("inspect", "-f", "{{.Id}}", "web")[:12]

    for name in ("web", "www", "w1", identity, "web.mine"):
        assert site.fetch("other", f"http://{name}/") == "web"
    assert site.fetch("web", "http://other/") == "other"
    assert site.tare("exec", "web", "nslookup", "nobody").returncode != 0


def test_names_go_when_containers_do_and_come_with_the_next(site: Site) -> None:
    site.out("network", "create", "mine")
    site.serve("asking", "--network", "mine")
    site.serve("web", "--network", "mine", word="first")
    assert site.fetch("asking", "http://web/") == "first"
    site.out("rm", "-f", "web")

    assert (
        site.tare("exec", "asking", "timeout", "5", "wget", "-qO-", "http://web/").returncode != 0
    )
    site.serve("new", "--network", "mine", word="second")
    site.out("rename", "new", "web")
    assert site.fetch("asking", "http://web/") == "second"


def test_networks_are_apart_and_one_container_may_be_in_several(site: Site) -> None:
    for name in ("front", "back"):
        site.out("network", "create", name)
    site.serve("web", "--network", "front")
    site.serve("db", "--network", "back")
    site.serve("both", "--network", "name=front,alias=middle", "--network", "back")

    assert site.fetch("both", "http://web/") == "web"
    assert site.fetch("both", "http://db/") == "db"
    assert site.fetch("web", "http://middle/") == "both"
    address = site.shown("db")["back"]["IPAddress"]
    for target in ("db", address):
        wget = site.tare("exec", "web", "timeout", "2", "wget", "-qO-", f"http://{target}/")
        assert wget.returncode != 0
    assert set(site.shown("both")) == {"front", "back"}


def test_ipv6_and_both_families_of_one_name(site: Site) -> None:
    site.out("network", "create", "--ipv6", "--subnet", "fd00:77::/64", "six")
    site.serve("web", "--network", "six")
    site.serve("asking", "--network", "six", "--ip6", "fd00:77::99")
    address = site.shown("web")["six"]["GlobalIPv6Address"]

    assert site.shown("asking")["six"]["GlobalIPv6Address"] == "fd00:77::99"
    assert site.fetch("asking", f"http://[{address}]/") == "web"
    assert str(address) in site.out("exec", "asking", "nslookup", "-type=aaaa", "web")


def test_a_container_is_connected_and_disconnected_while_it_runs(site: Site) -> None:
    for name in ("front", "back"):
        site.out("network", "create", name)
    site.serve("web", "--network", "front")
    site.serve("db", "--network", "back")

    site.out("network", "connect", "--alias", "late", "back", "web")

    assert site.fetch("web", "http://db/") == "db"
    assert site.fetch("db", "http://late/") == "web"
    assert "web" in site.out("network", "inspect", "-f", "{{json .Containers}}", "back")
    assert "already exists in network back" in site.refused("network", "connect", "back", "web")
    site.out("network", "disconnect", "back", "web")
    assert set(site.shown("web")) == {"front"}
    assert site.tare("exec", "db", "timeout", "2", "wget", "-qO-", "http://late/").returncode != 0
    assert "is not connected" in site.refused("network", "disconnect", "back", "web")
    site.out("restart", "-t", "0", "web")
    assert set(site.shown("web")) == {"front"}


def test_who_loses_the_way_out_gets_another(site: Site) -> None:
    for name in ("alpha", "beta"):
        site.out("network", "create", "--ipv6", name)
    site.out(
        "run", "-d", "--name", "web", "--network", "alpha", "--network", "beta", "busybox", "sleep",
        "1000",
    )  # fmt: skip
    before = site.shown("web")
    assert f"default via {before['alpha']['Gateway']}" in site.out("exec", "web", "ip", "route")

    site.out("network", "disconnect", "alpha", "web")

    assert f"default via {before['beta']['Gateway']}" in site.out("exec", "web", "ip", "route")
    six = site.out("exec", "web", "ip", "-6", "route")
    assert f"default via {before['beta']['IPv6Gateway']}" in six
    site.out("network", "connect", "alpha", "web")
    assert site.out("exec", "web", "ip", "route").count("default") == 1


def test_a_stopped_container_is_connected_for_its_next_start(site: Site) -> None:
    for name in ("front", "back"):
        site.out("network", "create", name)
    site.out("create", "--name", "web", "--network", "front", "busybox", "sleep", "1000")
    site.out("network", "connect", "back", "web")
    assert site.shown("web")["back"]["IPAddress"] == ""

    site.out("start", "web")

    assert site.shown("web")["back"]["IPAddress"] and site.shown("web")["front"]["IPAddress"]


def test_addresses_are_kept_over_restarts_and_asked_for_by_number(site: Site) -> None:
    site.out(
        "network", "create", "--subnet", "10.66.0.0/24", "--ip-range", "10.66.0.128/25", "mine"
    )
    site.serve("web", "--network", "mine")
    site.serve(
        "fixed", "--network", "mine", "--ip", "10.66.0.50", "--mac-address", "02:00:00:00:00:50"
    )
    site.serve("more", "--network", "mine")
    before = site.shown("web")["mine"]["IPAddress"]
    assert str(before).startswith("10.66.0.12") or int(str(before).rpartition(".")[2]) >= 128

    site.out("restart", "-t", "0", "web", "more")

    assert site.shown("web")["mine"]["IPAddress"] == before
    fixed = site.shown("fixed")["mine"]
    assert (fixed["IPAddress"], fixed["MacAddress"]) == ("10.66.0.50", "02:00:00:00:00:50")
    taken = site.refused("run", "--network", "mine", "--ip", "10.66.0.50", "busybox", "true")
    assert "10.66.0.50 is in use by the container fixed" in taken
    assert "no subnet" in site.refused("run", "--network", "mine", "--ip", "10.67.0.1", "busybox")
    assert "10.66.0.1" in site.refused("run", "--network", "mine", "--ip", "10.66.0.1", "busybox")


def test_ports_are_published_on_loopback_and_nowhere_else_unless_told(site: Site) -> None:
    site.out("network", "create", "mine")
    done = site.tare(
        "run", "-d", "--name", "web", "--network", "mine", "-p", "8080:80", "-p", "0.0.0.0:8081:80",
        "-p", "127.0.0.1::80", "busybox", "sh", "-c", SERVE.format(word="web"),
    )  # fmt: skip
    assert "loopback" in done.stderr
    chosen = site.out("port", "web", "80").split()

    assert "127.0.0.1:8080" in chosen and "0.0.0.0:8081" in chosen and len(chosen) == 3
    for where in ("127.0.0.1:8080", "127.0.0.1:8081", chosen[2]):
        assert site.browse(f"http://{where}/") == "web"
    gateway = site.shown("web")["mine"]["Gateway"]
    with site.host.inside(), pytest.raises(OSError, match=r"refused|timed out|unreachable"):
        socket.create_connection((str(gateway), 8080), 1)
    assert "127.0.0.1:8080->80/tcp" in site.out("ps", "--format", "{{.Ports}}")


def test_udp_is_published_too(site: Site) -> None:
    site.out("run", "-d", "--name", "echo", "-p", "9000:9000/udp", "busybox", "sleep", "1000")
    with inside(site.all()["echo"].pid):
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("0.0.0.0", 9000))
    with site.host.inside():
        asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with server, asking:
        for one in (server, asking):
            one.settimeout(PATIENCE)
        asking.connect(("127.0.0.1", 9000))
        asking.send(b"word")
        word, sender = server.recvfrom(10)
        server.sendto(word.upper(), sender)

        assert asking.recv(10) == b"WORD"


def test_ranges_and_exposed_ports(site: Site) -> None:
    site.out("run", "-d", "--name", "range", "-p", "7000-7002:80-82", "busybox", "sleep", "1000")
    site.out("run", "-d", "--name", "one", "-p", "7100-7110:80", "busybox", "sleep", "1000")
    site.out("run", "-d", "--name", "two", "-p", "7100-7110:80", "busybox", "sleep", "1000")
    site.out("run", "-d", "--name", "all", "-P", "--expose", "70/udp", "busybox", "sleep", "1000")

    ports = json.loads(site.out("inspect", "-f", "{{json .NetworkSettings.Ports}}", "range"))
    assert {name: one[0]["HostPort"] for name, one in ports.items()} == {
        "80/tcp": "7000", "81/tcp": "7001", "82/tcp": "7002",
    }  # fmt: skip
    first, second = (site.out("port", name, "80") for name in ("one", "two"))
    assert first != second
    assert all(7100 <= int(one.rpartition(":")[2]) <= 7110 for one in (first, second))
    assert site.out("port", "all", "70/udp").startswith("127.0.0.1:")


def test_a_port_that_is_taken_is_named_with_its_holder(site: Site) -> None:
    site.out("run", "-d", "--name", "first", "-p", "8080:80", "busybox", "sleep", "1000")

    said = site.refused("run", "--name", "second", "-p", "8080:81", "busybox", "true")
    assert (
        "Bind for 127.0.0.1:8080 failed: port is already allocated to the container first" in said
    )
    assert site.tare("start", "-a", "second").returncode != 0
    with site.host.inside(), socket.create_server(("0.0.0.0", 8099)):
        said = site.refused("run", "-p", "8099:80", "busybox", "true")
        assert "Bind for 127.0.0.1:8099 failed" in said
        assert f"{os.getpid()}" in said or "python" in said
    site.out("rm", "-f", "first")
    site.out("start", "second")


def test_networks_that_cannot_be_are_refused_with_the_reason(site: Site) -> None:
    site.out("network", "create", "--subnet", "10.66.0.0/16", "mine")
    with site.host.inside():
        subprocess.run(["ip", "link", "add", "lan0", "type", "bridge"], check=True)
        subprocess.run(["ip", "addr", "add", "10.90.0.1/24", "dev", "lan0"], check=True)
        subprocess.run(["ip", "link", "set", "lan0", "up"], check=True)
    try:
        for words, sentence in (
            (("mine",), "network with name mine already exists"),
            (("bridge",), "not permitted on predefined"),
            (("--subnet", "10.66.7.0/24", "x"), "overlaps with 10.66.0.0/16 of the network mine"),
            (("--subnet", "10.90.0.0/16", "x"), "overlaps with 10.90.0.0/24 of the host"),
            (("--subnet", "10.77.0.5/24", "x"), "it should be 10.77.0.0/24"),
            (("--subnet", "127.0.0.0/8", "x"), "cannot be the subnet"),
            (("--subnet", "10.77.0.0/24", "--gateway", "10.78.0.1", "x"), "no matching subnet"),
            (("--driver", "overlay", "x"), "could not find a network driver"),
            (("../x",), "is not a name"),
            (("-o", "com.docker.network.driver.mtu=9", "x"), "invalid MTU"),
            (("-o", "com.docker.network.bridge.name=lan0", "x"), "there is an interface lan0"),
            (("-d", "macvlan", "x"), "needs an interface"),
        ):
            said = site.refused("network", "create", *words)
            assert sentence in said, (words, said)
    finally:
        with site.host.inside():
            subprocess.run(["ip", "link", "del", "lan0"], check=True)
    assert site.out("network", "ls", "-f", "type=custom", "--format", "{{.Name}}") == "mine"
    site.serve("web", "--network", "mine")
    assert 'has active endpoints (name:"web"' in site.refused("network", "rm", "mine")
    assert "pre-defined" in site.refused("network", "rm", "bridge")
    assert "not found" in site.refused("network", "rm", "nobody")
    assert "network nobody not found" in site.refused("run", "--network", "nobody", "busybox")


def test_an_internal_network_has_no_way_out_and_tells_no_names_of_the_world(site: Site) -> None:
    site.out("network", "create", "--internal", "vault")
    site.serve("web", "--network", "vault")
    site.serve("asking", "--network", "vault")

    assert site.fetch("asking", "http://web/") == "web"
    assert "default" not in site.out("exec", "asking", "ip", "route")
    assert site.tare("exec", "asking", "nslookup", "debian.org").returncode != 0


def test_files_in_etc_say_what_was_asked_for(site: Site) -> None:
    site.out("network", "create", "mine")
    site.out(
        "run", "-d", "--name", "asked", "--network", "mine", "--hostname", "me",
        "--domainname", "corp", "--add-host", "db:10.1.2.3", "--add-host", "gate:host-gateway",
        "--dns", "9.9.9.9", "--dns-search", "corp", "--dns-option", "timeout:1", "busybox", "sleep",
        "1000",
    )  # fmt: skip
    place = site.shown("asked")["mine"]

    hosts = site.out("exec", "asked", "cat", "/etc/hosts").splitlines()
    assert f"{place['IPAddress']}\tme.corp\tme" in hosts
    assert "10.1.2.3\tdb" in hosts and f"{place['Gateway']}\tgate" in hosts
    assert site.out("exec", "asked", "cat", "/etc/resolv.conf").splitlines() == [
        f"nameserver {place['Gateway']}", "search corp", "options timeout:1 ndots:0",
    ]  # fmt: skip
    assert site.out("exec", "asked", "hostname") == "me"


def test_another_containers_network_is_shared_with_its_names(site: Site) -> None:
    site.out("network", "create", "mine")
    site.serve("web", "--network", "mine")
    site.out(
        "run", "-d", "--name", "side", "--network", "container:web", "busybox", "sleep", "1000"
    )

    assert site.fetch("side", "http://127.0.0.1/") == "web"
    assert site.fetch("side", "http://web/") == "web"
    assert "conflicting options" in site.refused(
        "run", "--network", "container:web", "-p", "80:80", "busybox"
    )


def test_everything_may_be_killed_at_once_and_goes_on(site: Site) -> None:
    site.out("network", "create", "mine")
    site.serve("web", "--network", "mine", "-p", "8080:80")
    site.serve("asking", "--network", "mine")
    before = site.shown("web")["mine"]
    assert site.fetch("asking", "http://web/") == "web"

    site.kill(site.daemon(), site.keeper(), site.name_server())
    assert site.browse("http://127.0.0.1:8080/") == "web"  # nothing that runs needs them

    assert site.shown("web")["mine"] == before
    assert site.fetch("asking", "http://web/") == "web"
    assert "already allocated to the container web" in site.refused(
        "run", "-p", "8080:80", "busybox", "true"
    )
    site.out("rm", "-f", "web")
    assert site.out("run", "-d", "-p", "8080:80", "busybox", "sleep", "1000")
    assert site.settled_lies() == []


def test_a_container_that_ended_while_no_daemon_ran_leaves_nothing(site: Site) -> None:
    site.out("network", "create", "mine")
    site.serve("web", "--network", "mine", "-p", "8080:80")
    pid = site.all()["web"].pid
    site.kill(site.daemon())
    site.kill(pid)

    assert not site.all()["web"].running
    assert site.out("run", "--rm", "-p", "8080:80", "busybox", "echo", "free") == "free"
    end = time.monotonic() + PATIENCE
    while any(name.startswith("tv") for name in site.links()):  # the kernel takes its time
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.attack("A40")
def test_a_flushed_firewall_comes_back(site: Site) -> None:
    site.serve("web", "-p", "8080:80")
    assert site.browse("http://127.0.0.1:8080/") == "web"

    with site.host.inside():
        subprocess.run(["nft", "flush", "ruleset"], check=True)

    assert site.browse("http://127.0.0.1:8080/") == "web"


def test_prune_removes_what_no_container_is_to_be_in(site: Site) -> None:
    for name in ("used", "idle", "kept"):
        site.out("network", "create", "--label", f"is={name}", name)
    site.out("create", "--network", "used", "busybox", "true")

    assert "idle" in site.out("network", "prune", "-f", "--filter", "label!=is=kept")

    assert site.out("network", "ls", "-qf", "type=custom").count("\n") == 1
    assert site.out("network", "ls", "-f", "dangling=true", "--format", "{{.Name}}") == "kept"


def test_two_hundred_networks_are_made_used_and_removed(site: Site) -> None:
    names = [f"n{number}" for number in range(200)]
    command = 'for n in "$@"; do curl -fsS --unix-socket "$0" -X POST -d "{\\"Name\\":\\"$n\\"}" '
    command += (
        '-H "Content-Type: application/json" http://x/networks/create >/dev/null || exit; done'
    )
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    made = subprocess.run(
        ["sh", "-c", command, str(site.run_dir / "tare.sock"), *names],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    site.serve("first", "--network", "n0")
    site.serve("last", "--network", "n199", "--network", "n0")

    assert site.fetch("last", "http://first/") == "first"
    subnets = site.out("network", "ls", "--format", "{{.Subnets}}", "-f", "type=custom").split()
    assert len(subnets) == len(set(subnets)) == 200
    site.clean()
    assert site.out("network", "ls", "-qf", "type=custom") == ""


def test_without_nft_containers_run_and_networks_say_what_is_missing(
    session_directory: Path, busybox_archive: Path
) -> None:
    directory = session_directory / "nn"
    directory.mkdir()
    site = Site(directory)
    nft = shutil.which("nft") or ""
    hidden = 'mount --bind /dev/null "$0" && exec "$@"'
    site.prefix = (*site.prefix, "unshare", "--mount", "sh", "-c", hidden, os.path.realpath(nft))
    try:
        site.out("load", "-q", "-i", str(busybox_archive))

        assert site.out("run", "--rm", "busybox", "echo", "runs") == "runs"
        for words in (("network", "create", "x"), ("run", "-p", "80:80", "busybox", "true")):
            assert "nft" in site.refused(*words)
    finally:
        site.stop()
        site.host.close()
