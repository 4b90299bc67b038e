"""Machines beside containers: one network, one volume, one bind, and from one to the other."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.sites import SERVE, Site
from tare.vm.kernels import Kernels

pytestmark = [
    pytest.mark.system,
    pytest.mark.needs("root", "overlay", "erofs", "cgroup", "qemu", "nft"),
]

_PATIENCE = 60.0


def until(true: Callable[[], object]) -> None:
    """Wait for a condition; on a busy host an emulated machine takes its time."""
    end = time.monotonic() + _PATIENCE
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def site(session_directory: Path, kernels: Kernels, busybox_archive: Path) -> Iterator[Site]:
    directory = session_directory / "vj"
    directory.mkdir()
    found = Site(directory)
    found.state.mkdir(parents=True, mode=0o700)
    (found.state / "kernels").symlink_to(kernels.directory)
    try:
        found.out("load", "-q", "-i", str(busybox_archive))
        yield found
        found.clean()
    finally:
        found.stop()
        found.host.close()
        (found.state / "kernels").unlink(missing_ok=True)


@pytest.mark.attack("A50")
def test_a_machine_shares_networks_volumes_and_binds_and_becomes_a_container(
    site: Site, tmp_path: Path
) -> None:
    shared, kept = tmp_path / "shared", tmp_path / "kept"
    for directory in (shared, kept):
        directory.mkdir()
    (shared / "from-host").write_text("hello")
    (kept / "canary").write_text("canary")
    (shared / "out").symlink_to(kept)
    (tmp_path / "file").write_text("one file")
    site.out("network", "create", "mine")
    site.serve("near", "--network", "mine")
    served = SERVE.format(word="machine")
    site.out(
        "run", "-d", "--vm", "--name", "far", "--stop-timeout", "1", "--network",
        "mine", "-p", "18080:80", "-v",
        f"{shared}:/shared", "-v", f"{kept}:/kept:ro", "-v", f"{tmp_path}/file:/etc/file:ro",
        "-v", "data:/data", "busybox", "sh", "-c", f"uname -r >> /data/kernels; {served}",
    )  # fmt: skip

    # Networks: names both ways, and a published port.
    assert site.fetch("near", "http://far/") == "machine"
    assert site.fetch("far", "http://near/") == "near"
    assert site.browse("http://127.0.0.1:18080/") == "machine"
    address = site.shown("far")["mine"]["IPAddress"]
    assert str(address) in site.out("exec", "far", "ip", "-4", "addr", "show", "eth0")
    # Binds are live, both ways, and what is read-only is.
    script = (
        "cat /shared/from-host; echo from-guest > /shared/new; mkdir -p /shared/a/b; "
        "mv /shared/new /shared/a/b/moved; chown 33:44 /shared/a/b/moved; cat /etc/file; "
        "echo evil > /kept/canary; echo evil > /etc/file; rm -f /kept/canary; "
        "mount -o remount,rw /kept; echo evil > /kept/canary; cat /shared/out/canary; true"
    )
    done = site.tare("exec", "--privileged", "far", "sh", "-c", script)
    assert done.stdout == "helloone file"
    moved = shared / "a/b/moved"
    assert moved.read_text() == "from-guest\n"
    assert (moved.stat().st_uid, moved.stat().st_gid) == (33, 44)
    assert (kept / "canary").read_text() == "canary"
    assert (tmp_path / "file").read_text() == "one file"
    (shared / "later").write_text("later")
    until(lambda: site.tare("exec", "far", "cat", "/shared/later").stdout == "later")
    # A file that is written, read and mapped from many places stays one.
    script = (
        "i=0; while [ $i -lt 50 ]; do echo $i >> /data/many; i=$((i+1)); done; wc -l /data/many"
    )
    assert site.out("exec", "far", "sh", "-c", script).split()[0] == "50"
    # To a container: it must not lose what it wrote without being told to.
    assert "written outside its volumes" in site.refused("convert", "far", "--container")
    site.out("convert", "--container", "--discard", "far")
    shown = json.loads(site.out("inspect", "far"))[0]
    assert shown["Tare"]["Isolation"] == "container"
    assert site.fetch("near", "http://far/") == "machine"
    assert site.browse("http://127.0.0.1:18080/") == "machine"
    kernels = site.out("exec", "far", "cat", "/data/kernels").splitlines()
    assert len(kernels) == 2
    assert kernels[0].endswith("-cloud-amd64")
    assert not kernels[1].endswith("-cloud-amd64")
    # And back.
    site.out("convert", "--vm", "--discard", "far")
    assert site.fetch("near", "http://far/") == "machine"
    assert site.out("exec", "far", "cat", "/data/kernels").splitlines()[2] == kernels[0]
    assert "wc" in site.out("exec", "far", "sh", "-c", "wc -l /data/many >/dev/null && echo wc")
    # What a machine does not have yet is refused by name.
    assert "cp: virtual machines do not have that yet" in site.refused("cp", "far:/etc", "/tmp/x")
    assert "networks" in site.refused("network", "disconnect", "mine", "far")
    site.out("rm", "-f", "far", "near")
    assert site.settled_lies() == []
