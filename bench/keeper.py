"""tare's runtime without its daemon: a keeper of the benchmark's own, asked directly.

What runc and crun are to docker and podman, the keeper is to tare: one request starts a container,
one event tells its end. Here both are timed, with all the walls of a usual container (its seccomp
filter, an overlay over an EROFS layer, id-mapped layers, control groups).
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import secrets
import signal
import sys
import tarfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from tare.image.layers import Layers
from tare.kernel import cgroup
from tare.model.spec import ContainerSpec, ProcessSpec
from tare.run import host, link, rootfs
from tare.run.plan import Place, plan

_BLOCK = (0x60000000, 65536)
_PATIENCE = 30.0  # seconds


class DirectKeeper:
    """A keeper of its own, with one image of the busybox tree."""

    def __init__(self, directory: Path, tree: Path) -> None:
        self._base = directory / "keeper"
        self._run = self._base / "run"
        self._run.mkdir(parents=True, mode=0o700)
        self._parent = f"tare-bench-keeper-{os.getpid()}"
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as out:
            out.add(tree, ".")
        archive.seek(0)
        layer = Layers(self._base / "layers", extract=False).add(archive).path
        self._layers = (rootfs.make_skeleton(str(self._base / "skeleton")), str(layer))
        self._host = host.detect()
        self._ends: dict[str, asyncio.Future[None]] = {}
        self._loop = asyncio.new_event_loop()
        connect = link.Keeper.connect(self._run, self._ended, lambda: None)
        self._keeper = self._loop.run_until_complete(connect)

    def _ended(self, exited: link.Exited) -> None:
        self._ends.pop(exited.id).set_result(None)

    def run_true(self) -> float:
        """Milliseconds from the request to the exit of a `true` that is planned already."""
        identity = secrets.token_hex(32)
        state = self._base / identity
        state.mkdir()
        place = Place(
            id=identity,
            name="bench",
            layers=self._layers,
            state_dir=str(state),
            run_dir=str(self._run / "workloads" / identity),
            cgroup=f"{self._parent}/{identity}",
            id_block=_BLOCK,
        )
        program = ProcessSpec(args=("true",), env=("PATH=/bin",))
        sandbox = plan(ContainerSpec(image="b", image_id="b", process=program), place, self._host)
        ended = self._ends[identity] = self._loop.create_future()

        async def timed() -> float:
            began = time.perf_counter()
            await self._keeper.start(sandbox)
            await asyncio.wait_for(ended, _PATIENCE)
            took = time.perf_counter() - began
            self._keeper.acknowledge(identity)
            return took * 1e3

        return self._loop.run_until_complete(timed())

    def close(self) -> None:
        """End the keeper, and remove its control groups."""
        pid = int((self._run / "keeper.lock").read_text())
        self._loop.run_until_complete(self._keeper.close())
        self._loop.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            cgroup.detect().plain().group(self._parent).remove()
