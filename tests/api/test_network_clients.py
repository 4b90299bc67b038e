"""Networks and ports through Docker's own clients: the command, docker-py, docker-compose."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from docker.types import IPAMConfig, IPAMPool

from harness.sites import SERVE, Site

pytestmark = [
    pytest.mark.system,
    pytest.mark.needs("root", "overlay", "cgroup", "busybox", "nft"),
]

_COMPOSE = f"""
version: "3.7"
services:
  web:
    image: busybox
    command: ["sh", "-c", "{SERVE.format(word="composed")}"]
    ports: ["8088:80"]
    networks: {{front: {{aliases: [www]}}}}
  asking:
    image: busybox
    command: sleep 1000
    networks: [front, back]
    volumes: ["kept:/kept", "/scratch"]
  vault:
    image: busybox
    command: ["sh", "-c", "{SERVE.format(word="secret")}"]
    networks:
      back:
        ipv4_address: 10.99.0.9
networks:
  front: {{}}
  back:
    internal: true
    ipam: {{config: [{{subnet: 10.99.0.0/24}}]}}
volumes:
  kept: {{}}
"""


@pytest.fixture(scope="module")
def whole(session_directory: Path, busybox_archive: Path) -> Iterator[Site]:
    directory = session_directory / "nc"
    directory.mkdir()
    found = Site(directory)
    found.environment["DOCKER_HOST"] = f"unix://{found.run_dir}/tare.sock"
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


def client(site: Site, *words: str, directory: str = "/") -> subprocess.CompletedProcess[str]:
    """One of Docker's clients, spoken to by the engine of *site*."""
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    return subprocess.run(
        words, env={**site.environment, "DOCKER_CONFIG": str(site.directory)}, cwd=directory,
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def out(site: Site, *words: str) -> str:
    done = client(site, "docker", *words)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout.strip()


def test_the_docker_command_makes_finds_and_removes_networks(site: Site) -> None:
    identity = out(
        site, "network", "create", "--subnet", "10.88.0.0/16", "--ip-range", "10.88.5.0/24",
        "--gateway", "10.88.0.9", "--aux-address", "printer=10.88.5.1", "--label", "is=mine",
        "--ipv6", "-o", "com.docker.network.driver.mtu=1400", "mine",
    )  # fmt: skip

    shown = json.loads(out(site, "network", "inspect", identity[:12]))[0]
    assert shown["IPAM"]["Config"][0] == {
        "Subnet": "10.88.0.0/16", "IPRange": "10.88.5.0/24", "Gateway": "10.88.0.9",
        "AuxiliaryAddresses": {"printer": "10.88.5.1"},
    }  # fmt: skip
    assert shown["EnableIPv6"] is True and len(shown["IPAM"]["Config"]) == 2
    names = out(site, "network", "ls", "--filter", "label=is=mine", "--format", "{{.Name}}")
    assert names == "mine"
    address = out(site, "run", "--rm", "--network", "mine", "busybox", "ip", "-4", "addr")
    assert "10.88.5.0/16" in address and "mtu 1400" in address
    assert out(site, "network", "rm", "mine") == "mine"
    missing = client(site, "docker", "network", "inspect", "mine")
    assert "network mine not found" in missing.stderr


def test_the_docker_command_publishes_connects_and_disconnects(site: Site) -> None:
    out(site, "network", "create", "front")
    out(site, "network", "create", "back")
    serve = SERVE.format(word="served")
    out(
        site, "run", "-d", "--name", "web", "--network", "front", "--network-alias", "www", "-p",
        "8080:80", "-p", "127.0.0.1:9090:90/udp", "busybox", "sh", "-c", serve,
    )  # fmt: skip
    out(site, "run", "-d", "--name", "asking", "--network", "back", "busybox", "sleep", "1000")
    out(site, "network", "connect", "--alias", "late", "back", "web")

    assert out(site, "port", "web", "80/tcp") == "127.0.0.1:8080"
    assert "127.0.0.1:9090->90/udp" in out(site, "ps", "--format", "{{.Ports}}", "-f", "name=web")
    assert site.browse("http://127.0.0.1:8080/") == "served"
    assert site.fetch("asking", "http://late/") == "served"
    out(site, "network", "disconnect", "back", "web")
    names = "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}"
    assert out(site, "inspect", "-f", names, "web") == "front"
    busy = client(site, "docker", "network", "rm", "front")
    assert "has active endpoints" in busy.stderr
    second = client(site, "docker", "run", "-p", "8080:80", "busybox", "true")
    assert second.returncode == 125 and "port is already allocated" in second.stderr


def test_docker_py_has_its_way_with_networks(site: Site) -> None:
    with contextlib.closing(docker.DockerClient(base_url=site.environment["DOCKER_HOST"])) as api:
        ipam = IPAMConfig(pool_configs=[IPAMPool(subnet="10.87.0.0/24", gateway="10.87.0.254")])
        network = api.networks.create("py", driver="bridge", ipam=ipam, labels={"a": "b"})
        container = api.containers.run(
            "busybox", "sleep 1000", detach=True, name="one", network="py", ports={"80/tcp": 8081}
        )
        container.reload()
        settings = container.attrs["NetworkSettings"]
        assert settings["Networks"]["py"]["Gateway"] == "10.87.0.254"
        assert settings["Ports"]["80/tcp"][0] == {"HostIp": "127.0.0.1", "HostPort": "8081"}
        other = api.containers.create("busybox", "sleep 1000", name="two")
        network.connect(other, ipv4_address="10.87.0.77", aliases=["second"])
        other.start()
        assert container.exec_run(["nslookup", "second"]).exit_code == 0
        network.reload()
        assert {one.name for one in network.containers} == {"one", "two"}
        network.disconnect(other)
        with pytest.raises(docker.errors.APIError, match="has active endpoints"):
            network.remove()
        for one in (container, other):
            one.remove(force=True)
        network.remove()
        with pytest.raises(docker.errors.NotFound):
            api.networks.get("py")
        assert {one.name for one in api.networks.list()} == {"bridge", "host", "none"}


def test_docker_compose_brings_a_project_up_and_down(site: Site, tmp_path: Path) -> None:
    (tmp_path / "docker-compose.yml").write_text(_COMPOSE)
    project = ("docker-compose", "-p", "proj")
    done = client(site, *project, "up", "-d", directory=str(tmp_path))
    assert done.returncode == 0, done.stderr

    def called(service: str) -> str:  # version 1 joins words with _, version 2 with -
        label = f"label=com.docker.compose.service={service}"
        return site.out("ps", "--format", "{{.Names}}", "-f", label)

    asking, before = called("asking"), site.out("ps", "-q")
    for name, word in (("web", "composed"), ("www", "composed"), ("vault", "secret")):
        assert site.fetch(asking, f"http://{name}/") == word
    assert site.shown(called("vault"))["proj_back"]["IPAddress"] == "10.99.0.9"
    assert site.browse("http://127.0.0.1:8088/") == "composed"
    again = client(site, *project, "up", "-d", directory=str(tmp_path))
    assert again.returncode == 0 and site.out("ps", "-q") == before
    anew = client(
        site, *project, "up", "-d", "--force-recreate", "-t", "1", directory=str(tmp_path)
    )
    assert anew.returncode == 0, anew.stderr
    assert not set(site.out("ps", "-q").split()) & set(before.split())
    site.out("exec", asking, "touch", "/kept/one")
    anew = client(
        site, *project, "up", "-d", "-t", "1", "--force-recreate", directory=str(tmp_path)
    )
    assert anew.returncode == 0, anew.stderr
    assert not set(before.split()) & set(site.out("ps", "-q").split())
    assert site.out("exec", called("asking"), "ls", "/kept") == "one"
    assert site.fetch(called("asking"), "http://www/") == "composed"
    assert site.browse("http://127.0.0.1:8088/") == "composed"
    down = client(site, *project, "down", "-v", "-t", "1", directory=str(tmp_path))
    assert down.returncode == 0, down.stderr
    assert site.out("network", "ls", "-qf", "type=custom") == ""
    assert "proj_kept" not in site.out("volume", "ls", "-q")
