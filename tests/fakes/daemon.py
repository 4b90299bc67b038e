"""One life of a daemon on a fake kernel: the engine's own parts, with a fuse in each effect."""

from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path

from fakes.driver import FakeDriver, Fuse, Kernel
from tare.engine import recovery
from tare.engine.driver import Request
from tare.engine.events import Events
from tare.engine.ids import Blocks
from tare.engine.lifecycle import Lifecycle
from tare.engine.paths import Paths
from tare.engine.store import Store
from tare.engine.workloads import Workloads
from tare.model.record import IdBlock, Record
from tare.model.spec import ContainerSpec, ProcessSpec


class FusedStore(Store):
    """A store whose every commit has a step before it and a step after it."""

    fuse = Fuse()

    def _write(self, statement: str, values: tuple[int | bytes, ...]) -> None:
        self.fuse.around(lambda: super(FusedStore, self)._write(statement, values))


class FusedWorkloads(Workloads):
    """The same for directories."""

    fuse = Fuse()

    def discard(self, identity: str) -> None:
        self.fuse.around(lambda: super(FusedWorkloads, self).discard(identity))


class Daemon:
    """One life of a daemon: on a directory and a kernel that other lives share."""

    def __init__(self, directory: Path, kernel: Kernel, fuse: Fuse | None = None) -> None:
        self.paths = Paths(directory / "state", directory / "run", directory / "etc")
        self.paths.prepare()
        self.fuse = fuse or Fuse()
        self.kernel = kernel
        self.store = FusedStore(self.paths.database)
        self.store.fuse = self.fuse
        self.driver = FakeDriver(kernel, self.fuse)
        self.events = Events()
        self.blocks = Blocks()
        self.workloads = FusedWorkloads(self.paths)
        self.workloads.fuse = self.fuse
        self.lifecycle = Lifecycle(
            store=self.store,
            driver=self.driver,
            events=self.events,
            blocks=self.blocks,
            workloads=self.workloads,
            prepare=self._prepare,
        )

    async def _prepare(self, record: Record) -> Request:
        return Request(record, ())

    async def boot(self) -> Daemon:
        """Recover, as at the start of the daemon."""
        await recovery.recover(self.lifecycle)
        return self

    def add(self, name: str = "web", **changes: object) -> Record:
        """A container that was created."""
        spec = ContainerSpec(
            image="i", image_id="sha256:" + "0" * 64, process=ProcessSpec(args=("a",))
        )
        spec = replace(spec, **changes)  # type: ignore[arg-type]  # a test names its fields
        identity = secrets.token_hex(32)
        block = self.blocks.take(65536)
        record = Record(
            id=identity,
            name=name,
            spec=spec,
            created_ns=1,
            id_block=IdBlock(base=block.base, size=65536),
        )
        self.workloads.make(identity)
        return self.store.add(record)

    def record(self, record: Record) -> Record:
        """The record as it is now."""
        return self.store.get(record.id)

    def actions(self) -> list[str]:
        """What happened, in order."""
        return [event.action for event in self.events._kept]

    async def close(self) -> None:
        """The daemon ends in order."""
        await self.lifecycle.close()
        await self.workloads.close()
        await self.driver.close()
        self.store.close()
