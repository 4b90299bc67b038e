"""Real sandboxes without an engine: a keeper of the test's own, and a busybox layer."""

from __future__ import annotations

import asyncio
import io
import os
import secrets
import shutil
import signal
import tarfile
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from harness.images import lay_busybox
from harness.needs import needs
from tare.engine.engine import erofs_from_files
from tare.image.layers import Layers
from tare.kernel import cgroup
from tare.model.spec import ContainerSpec, ExecSpec, ProcessSpec
from tare.run import host, link
from tare.run.plan import Place, plan, plan_exec

PARENT = f"{os.environ.get('TARE_CGROUP_PARENT', 'tare-test')}-run"
BLOCK = (0x60000000, 65536)

Body = Callable[["Bench"], Coroutine[None, None, None]]


class Bench:
    """One keeper, and shortcuts to start and exec in it."""

    def __init__(self, directory: Path, layer: Path) -> None:
        self.directory = directory
        self.run_dir = directory / "run"
        self.run_dir.mkdir(mode=0o700, exist_ok=True)
        self.layer = layer
        self.host = host.detect()
        self.keeper: link.Keeper
        self.lost = asyncio.Event()
        self._ended: dict[str, asyncio.Future[link.Exited]] = {}
        self._specs: dict[str, tuple[ContainerSpec, Place]] = {}

    async def connect(self) -> link.Keeper:
        """Connect to the keeper, starting it if need be."""
        self.keeper = await link.Keeper.connect(self.run_dir, self._exited, self.lost.set)
        return self.keeper

    def _exited(self, exited: link.Exited) -> None:
        future = self._future(exited.exec_id or exited.id)
        if not future.done():
            future.set_result(exited)

    def _future(self, key: str) -> asyncio.Future[link.Exited]:
        if key not in self._ended:
            self._ended[key] = asyncio.get_running_loop().create_future()
        return self._ended[key]

    async def ended(self, key: str) -> link.Exited:
        """The end of a container or exec."""
        return await asyncio.wait_for(self._future(key), 20)

    def place(self, **changes: object) -> Place:
        """A fresh place for a container."""
        identity = secrets.token_hex(32)
        state = self.directory / identity
        state.mkdir()
        base = Place(
            id=identity,
            name="test",
            layers=(str(self.layer),),
            state_dir=str(state),
            run_dir=str(self.run_dir / "workloads" / identity),
            cgroup=f"{PARENT}/{identity}",
            id_block=BLOCK,
        )
        return replace(base, **changes)  # type: ignore[arg-type]  # a shortcut for tests

    async def start(self, *args: str, spec: ContainerSpec | None = None, **process: object) -> str:
        """Start ``args``; its id."""
        program = ProcessSpec(args=args, **process)  # type: ignore[arg-type]  # a shortcut for tests
        wanted = replace(spec or ContainerSpec(image="b", image_id="b", process=program))
        wanted = replace(wanted, process=program)
        place = self.place()
        self._specs[place.id] = (wanted, place)
        await self.keeper.start(plan(wanted, place, self.host))
        return place.id

    async def run(
        self, *args: str, spec: ContainerSpec | None = None, **process: object
    ) -> tuple[int, str]:
        """Run ``args`` to the end: exit code and output of both streams."""
        identity = await self.start(*args, spec=spec, **process)
        exited = await self.ended(identity)
        self.keeper.acknowledge(identity)
        return exited.code, self.output(identity)

    def output(self, identity: str) -> str:
        """What the log holds."""
        from tare.run.logs import LogReader

        reader = LogReader(f"{self._specs[identity][1].state_dir}/log")
        text = b"".join(line.data for line in [*reader.read(), *reader.flush()])
        reader.close()
        return text.decode()

    async def execute(self, identity: str, *args: str, **process: object) -> tuple[int, str]:
        """Exec ``args`` in a running container: exit code and output."""
        spec, place = self._specs[identity]
        program = ProcessSpec(args=args, **process)  # type: ignore[arg-type]  # a shortcut for tests
        wanted = plan_exec(spec, ExecSpec(process=program), place, self.host)
        wanted["exec_id"] = secrets.token_hex(8)
        reading, writing = os.pipe()
        null = os.open("/dev/null", os.O_RDONLY)
        execed = await self.keeper.exec(wanted, (null, writing, os.dup(writing)))
        os.close(execed.pidfd)
        exited = await self.ended(wanted["exec_id"])
        with open(reading, "rb") as file:
            return exited.code, file.read().decode()

    def keeper_pid(self) -> int:
        """The pid of the keeper that serves."""
        return int((self.run_dir / "keeper.lock").read_text())

    async def close(self) -> None:
        """Kill everything that was started here."""
        layout = cgroup.detect()
        for _, place in self._specs.values():
            group = layout.group(place.cgroup)
            with suppress(OSError):
                group.kill()
        for identity in list(self.keeper.running):
            await self.ended(identity)
        await self.keeper.close()
        with suppress(ProcessLookupError):
            os.kill(self.keeper_pid(), signal.SIGKILL)
        for _, place in self._specs.values():
            with suppress(OSError):
                layout.group(place.cgroup).remove()
        with suppress(OSError):
            layout.group(PARENT).remove()


@pytest.fixture(scope="session")
def busybox_layer(session_directory: Path) -> Path:
    """A layer file with busybox, users and a trap or two."""
    needs("root", "busybox", "overlay", "userns", "cgroup")
    # A fresh place: tests of other folders use this fixture too, and each folder runs it anew.
    place = Path(tempfile.mkdtemp(prefix="run-", dir=session_directory))
    root = lay_busybox(place / "busybox")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(root, ".")
    buffer.seek(0)
    layers = Layers(place / "layers", extract=not erofs_from_files())
    return layers.add(buffer).path


@pytest.fixture
def bench(tmp_path: Path, busybox_layer: Path) -> Iterator[Callable[[Body], None]]:
    """Run a coroutine with a `Bench`, and clean up after it."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Bench]:
        made = Bench(tmp_path, busybox_layer)
        await made.connect()
        try:
            yield made
        finally:
            await made.close()

    def work(body: Body) -> None:
        async def all_of_it() -> None:
            async with opened() as made:
                await asyncio.wait_for(body(made), 60)

        asyncio.run(all_of_it())

    yield work
    shutil.rmtree(tmp_path, ignore_errors=True)
