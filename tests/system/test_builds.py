"""Builds where the host is special: with networks, as an ordinary user, with a full disk."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.engines import Engine
from harness.sites import Site
from tare.build.context import Context
from tare.errors import FailedError
from tare.kernel import mount

pytestmark = [pytest.mark.system, pytest.mark.needs("root", "overlay", "cgroup", "busybox")]


@pytest.fixture
def site(session_directory: Path, busybox_archive: Path) -> Iterator[Site]:
    directory = session_directory / "bn"
    directory.mkdir()
    found = Site(directory)
    try:
        found.out("load", "-q", "-i", str(busybox_archive))
        yield found
        assert found.settled_lies() == []
    finally:
        found.stop()
        found.host.close()


@pytest.mark.needs("nft")
def test_a_step_is_on_the_default_network_unless_it_asks_otherwise(
    site: Site, tmp_path: Path
) -> None:
    site.out("network", "create", "mine")
    site.serve("web", "--network", "mine")
    (tmp_path / "Dockerfile").write_text(
        "FROM busybox\nRUN ip -4 addr > /joined && for i in $(seq 100); do"
        " wget -qO /got http://web/ && exit; sleep 0.1; done; false\n"
        "RUN --network=none ip -4 addr > /none\n"
    )
    (tmp_path / "Default").write_text("FROM busybox\nRUN ip -4 addr > /joined\n")

    mine = site.tare("build", "--network", "mine", "-t", "net:1", str(tmp_path))
    plain = site.tare("build", "-f", str(tmp_path / "Default"), "-t", "net:2", str(tmp_path))

    assert mine.returncode == 0, mine.stderr
    assert plain.returncode == 0, plain.stderr
    show = ("run", "--rm", "--network", "none")
    assert site.out(*show, "net:1", "cat", "/got") == "web"
    assert "eth0" in site.out(*show, "net:1", "cat", "/joined")
    assert "eth0" in site.out(*show, "net:2", "cat", "/joined")
    assert "eth0" not in site.out(*show, "net:1", "cat", "/none")
    assert site.out("ps", "-a", "--format", "{{.Names}}") == "web"
    site.out("rm", "-f", "web")


def test_a_base_image_is_pulled_when_it_is_missing_or_asked_for(
    session_directory: Path, busybox_archive: Path, tmp_path: Path
) -> None:
    engine = Engine(session_directory / "bp")
    try:
        engine.out("load", "-q", "-i", str(busybox_archive))
        server = engine.begin("registry", "serve", "--listen", "127.0.0.1:0")
        assert server.stdout is not None
        address = server.stdout.readline().split("//")[1].strip()
        (tmp_path / "Dockerfile").write_text(f"FROM {address}/busybox\nRUN echo 1 > /1\n")

        first = engine.out("build", "-q", "-t", "pulled:1", str(tmp_path))
        again = engine.out("build", "-q", "--pull", "-t", "pulled:1", str(tmp_path))
        server.terminate()
        server.communicate(timeout=120)
        offline = engine.out("build", "-q", "-t", "pulled:1", str(tmp_path))
        refused = engine.tare("build", "-q", "--pull", str(tmp_path))

        assert first == again == offline
        assert engine.out("run", "--rm", "pulled:1", "cat", "/1") == "1"
        assert f"{address}/busybox:latest cannot be pulled" in refused.stderr
        assert engine.end() == []
    finally:
        engine.stop()


def test_a_context_that_fills_the_disk_is_one_sentence(tmp_path: Path) -> None:
    tree = mount.filesystem("tmpfs", [("size", "24m")])
    try:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as archive:
            entry = tarfile.TarInfo("large")
            entry.size = 40 << 20
            archive.addfile(entry, io.BytesIO(bytes(entry.size)))
        out.seek(0)
        context = Context(Path(f"/proc/self/fd/{tree}"))
        try:
            with pytest.raises(FailedError, match="no space left"):
                context.take(out)
        finally:
            context.close()
    finally:
        os.close(tree)
