"""What `explain` says of a published port is what the firewall does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.sites import Site

pytestmark = [
    pytest.mark.system,
    pytest.mark.needs("root", "overlay", "cgroup", "busybox", "nft"),
]


@pytest.fixture(scope="module")
def site(session_directory: Path, busybox_archive: Path) -> Iterator[Site]:
    directory = session_directory / "xp"
    directory.mkdir()
    found = Site(directory)
    try:
        found.out("load", "-q", "-i", str(busybox_archive))
        yield found
    finally:
        found.clean()
        found.stop()
        found.host.close()


def test_a_ports_rule_is_in_the_firewall_and_its_reach_is_told(site: Site) -> None:
    site.out("network", "create", "mine")
    ports_ = ("-p", "127.0.0.1:8081:80", "-p", "0.0.0.0:8082:80")
    site.serve("web", "--network", "mine", *ports_)
    site.serve("asking", "--network", "mine")
    site.fetch("asking", "http://web/")
    found = json.loads(site.out("explain", "--format", "json", "web"))
    stats = json.loads(site.out("stats", "--no-stream", "--format", "{{json .}}", "web"))
    site.out("stop", "-t", "0", "web")
    stopped = json.loads(site.out("explain", "--format", "json", "web"))

    ports = {one["Port"]: one for one in found["Ports"]}
    loopback, everywhere = ports["127.0.0.1:8081 -> 80/tcp"], ports["0.0.0.0:8082 -> 80/tcp"]
    assert loopback["Reach"].startswith("programs of this host only")
    assert everywhere["Reach"].startswith("everybody who reaches any address of this host")
    assert "containers of the network mine reach" in loopback["Reach"]
    assert re.search(r"table inet tare_\w+, map at4: tcp", loopback["Rule"])
    assert re.search(r"table inet tare_\w+, map any4: tcp", everywhere["Rule"])
    assert any(line.startswith("mine: ") for line in found["Networks"])
    assert "0B" not in stats["NetIO"].split(" / ")
    assert all(one["Rule"].startswith("none while it does not run") for one in stopped["Ports"])
