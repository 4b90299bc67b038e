"""What the engine asks of the host's network: several engines on one host, and what they leave."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

from harness.namespaces import own_network
from harness.needs import needs
from tare.engine.fabric import HostFabric
from tare.kernel.rtnetlink import Routing
from tare.network.firewall import Wanted
from tare.network.values import Network, bridge_name


def test_engines_choose_subnets_one_after_the_other(tmp_path: Path) -> None:
    one, two = (HostFabric(f"/{name}", str(tmp_path)) for name in ("one", "two"))
    seen: list[str] = []

    async def choose(fabric: HostFabric, name: str) -> None:
        async with fabric.alone():
            seen.append(f"{name} begins")
            await asyncio.sleep(0)
            seen.append(f"{name} ends")

    async def work() -> None:
        async with one.alone():
            waiting = asyncio.create_task(choose(two, "second"))
            for _ in range(3):
                await asyncio.sleep(0.02)
            assert not seen
            seen.append("first ends")
        await waiting

    asyncio.run(work())

    assert seen == ["first ends", "second begins", "second ends"]


def test_one_without_networks_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    needs("root", "nft")
    with own_network():
        fabric = HostFabric("/mine", str(tmp_path))
        other = HostFabric("/other", str(tmp_path))
        for one in (fabric, other):
            asyncio.run(_settle(one))

        asyncio.run(fabric.begin(Wanted(), (), ()))

        with Routing() as kernel:
            left = [link.name for link in kernel.links() if link.kind == "bridge"]
        assert left == [bridge_name(other.tag, "n")]
        tables = subprocess.run(
            ["nft", "list", "tables"], capture_output=True, text=True, check=True
        ).stdout
        assert f"tare_{other.tag}" in tables
        assert f"tare_{fabric.tag}" not in tables


async def _settle(fabric: HostFabric) -> None:
    name = bridge_name(fabric.tag, "n")
    await fabric.settle(Network(id="n", name="mine", interface=name))
    await fabric.close()
