"""The engine: its parts put together, and the door to them for the API.

``containers``, ``execs``, ``images`` and ``events`` are the use cases; every verb that may wait is
a coroutine. Those that never wait are plain calls: ``containers.logs`` (an async generator of
batches of `LogLine`), ``containers.waiter`` (a future, registered when it returns),
``containers.usage``, ``execs.inspect``, ``execs.of``, ``events.subscribe``, ``images.save`` and
``containers.export`` (async generators).

Not for: HTTP (api), the process around it (daemon).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

from tare.engine import config, layer_limits, recovery
from tare.engine.attachments import Attachments
from tare.engine.budget import Budgets, Groups
from tare.engine.building import Builds
from tare.engine.config import Config
from tare.engine.containers import Containers
from tare.engine.core import Core, request
from tare.engine.documents import Documents
from tare.engine.driver import Driver, Request
from tare.engine.events import Events
from tare.engine.execs import Execs
from tare.engine.fabric import Fabric, NoFabric, fabric_of
from tare.engine.health import Checks
from tare.engine.ids import Blocks, Rest
from tare.engine.images import Images
from tare.engine.keeping import Keeping
from tare.engine.ledger import Ledger
from tare.engine.lifecycle import Lifecycle
from tare.engine.limits import Abilities
from tare.engine.networks import Networks
from tare.engine.origins import Origins
from tare.engine.paths import Paths
from tare.engine.registries import Registries
from tare.engine.signing import Signing
from tare.engine.store import Store
from tare.engine.trust import Trust
from tare.engine.updates import Updates
from tare.engine.volume_transfer import Transfers
from tare.engine.volumes import Volumes
from tare.engine.weighing import Weight, cool, weigh
from tare.engine.workloads import Workloads
from tare.image.store import ImageStore
from tare.kernel import cgroup
from tare.model.explanation import Explanation
from tare.model.record import Check, Event, Info, Record
from tare.model.spec import MountKind
from tare.vm.kernels import Kernels

log = logging.getLogger("tare.engine")

_HOUSEKEEPING = 2.0


class Engine:
    """One engine on one host; `start` it in a running event loop, `close` it there."""

    def __init__(
        self,
        paths: Paths,
        store: Store,
        driver: Driver,
        images: ImageStore,
        abilities: Abilities,
        *,
        configured: Config | None = None,
        fabric: Fabric | None = None,
        groups: Groups | None = None,
    ) -> None:
        self.paths = paths
        self.config = configured or Config()
        self.events = Events()
        self._store = store
        self._driver = driver
        self.ledger = Ledger(paths.state / "ledger", self._digest_of)
        self.events.heard.append(self.ledger.heard)
        self.trust = Trust(
            paths.state / "trust",
            paths.config,
            images,
            self.events,
            system=not paths.rootless,
            look_alikes=self.config.look_alikes,
        )
        self.images = Images(images, store, self.events, trust=self.trust)
        self.registries = Registries(
            paths.state / "partial",
            self.config.registries,
            images,
            self.images,
            self.events,
            trust=self.trust,
        )
        self.origins = Origins(self.images, images)
        self.updates = Updates(self.images, images, self.registries)
        self.signing = Signing(self.trust, images, self.config.registries)
        blocks, workloads = Blocks(Documents(store, "resting_ids", Rest)), Workloads(paths)
        self._workloads = workloads
        self.volumes = Volumes(paths, store, self.events)
        self.kernels = Kernels(paths.state / "kernels")
        self._lifecycle = Lifecycle(
            store=store,
            driver=driver,
            events=self.events,
            blocks=blocks,
            workloads=workloads,
            prepare=self._request,
        )
        self.budgets = Budgets(paths, store, groups)
        self._lifecycle.admit = self.budgets.admit
        self._lifecycle.after_removal.append(
            lambda record: self.images.release(record.image_id, record.id)
        )
        self._fabric: Fabric = fabric or NoFabric("this engine was made without networks")
        self.networks = Networks(store, self.events, self._fabric, self.config.network)
        self._attachments = Attachments(store, self.networks)
        # After an end, before its removal; and after a start that failed.
        self._lifecycle.after_end.append(self._attachments.ended)
        self._lifecycle.after_settled.append(self._attachments.ended)
        self._lifecycle.after_started.append(self._attachments.named)
        self.transfers = Transfers(self.volumes, self._lifecycle)
        self._lifecycle.after_removal.append(self.volumes.after_removal)
        self._lifecycle.after_start.append(lambda record: self.volumes.told("mount", record))
        self._lifecycle.after_end.append(lambda record: self.volumes.told("unmount", record))
        self._lifecycle.after_settled.append(self.volumes.settle)
        core = Core(
            paths=paths,
            store=store,
            events=self.events,
            blocks=blocks,
            workloads=workloads,
            driver=driver,
            lifecycle=self._lifecycle,
            images=self.images,
            volumes=self.volumes,
            budgets=self.budgets,
            abilities=abilities,
            networks=self.networks,
            attachments=self._attachments,
            trust=self.trust,
        )
        self.containers = Containers(core)
        self.execs = Execs(store, driver, self._lifecycle)
        self._checks = Checks(store, self._lifecycle, self.execs)
        self._core = core
        self.builds = Builds(core, images, self.registries)
        self.keeping = Keeping(
            self.images, images, self.builds.cache, quota=self.config.images_quota
        )
        self._housekeeping: asyncio.Task[None] | None = None

    @classmethod
    def open(cls, paths: Paths) -> Self:
        """The engine of *paths* on this host, not started; the caller holds its lock."""
        from tare.engine.abilities import detect
        from tare.engine.machines import Machines
        from tare.run import host

        paths.prepare()
        configured = config.load(paths.config)
        facts = host.detect()
        layout = cgroup.detect(privileged=False if facts.rootless else None).plain()
        with contextlib.suppress(OSError):
            layout.make_room()
        driver = Machines(paths, facts, layout)
        images = ImageStore(paths.state, extract=facts.rootless or not erofs_from_files())
        return cls(
            paths,
            Store(paths.database),
            driver,
            images,
            detect(layout),
            configured=configured,
            fabric=fabric_of(paths),
            groups=layout.group,
        )

    async def start(self) -> None:
        """Make every record true and begin to keep it so; call it before any request."""
        for record in self._store.all():
            self.images.hold(record.image_id, record.id)
        for said in self.budgets.apply():
            log.warning("%s", said)
        await asyncio.to_thread(self.images.recover)
        await asyncio.to_thread(self.registries.recover)
        await asyncio.to_thread(self.trust.collect)
        await asyncio.to_thread(layer_limits.attach_all, list(self._store.all()))
        self.volumes.recover()
        await self.networks.begin()
        await self._attachments.begin()
        await recovery.recover(self._lifecycle)
        await self.transfers.recover()
        self.volumes.settle()
        self._housekeeping = asyncio.get_running_loop().create_task(self._keep_house())

    async def close(self) -> None:
        """Let go of everything; containers and the keeper go on."""
        if self._housekeeping is not None:
            self._housekeeping.cancel()
        await self.builds.close()
        await self._checks.close()
        await self._lifecycle.close()
        await self.volumes.close()
        await self._fabric.close()
        await self._workloads.close()
        await self._driver.close()
        layer_limits.detach_all(self._store.all())
        self.registries.close()
        self.images.close()
        self._store.close()
        await asyncio.to_thread(self.ledger.close)

    async def info(self) -> Info:
        """The host and the engine at a glance."""
        from tare.engine.info import collect

        return await collect(self._core)

    async def doctor(self) -> Sequence[Check]:
        """What this host lacks, what that costs, and what to do."""
        from tare.engine.doctor import examine

        return await asyncio.to_thread(examine, self.paths)

    async def explain(self, ref: str) -> Explanation:
        """Why a container is as it is, in sentences; MissingError."""
        from tare.engine.explain import explain

        return await explain(self._core, ref)

    async def weigh(self, ref: str, *, surface: bool = False) -> Weight:
        """What a running workload takes of this host, and what of it it can reach."""
        return await weigh(self._core, ref, surface=surface)

    async def cool(self, ref: str) -> int:
        """Drop what the page cache has of an image's layers; how many files that were."""
        return await cool(self._core, ref)

    @property
    def busy(self) -> bool:
        """Whether anything runs or is about to: an idle daemon may end."""
        return bool(self._store.active()) or self.builds.busy

    def _digest_of(self, event: Event) -> str:
        """The image that an event is about, for the ledger."""
        if event.type == "container":
            record = self._store.find(event.id)
            return record.image_id if record is not None else ""
        return event.id if event.id.startswith("sha256:") else ""

    async def _request(self, record: Record) -> Request:
        layer_limits.check_reserve(self.paths.state, self.config.reserve)
        if record.spec.storage_size:
            await asyncio.to_thread(layer_limits.attach, record)
        await self.trust.check(record.image_id, record.spec.image, "start")
        if any(m.kind is MountKind.VOLUME for m in record.spec.mounts):
            opened = await self.images.tree(record.image_id)
            await self.volumes.ready(record, opened)
        wanted = request(record, self._store, await self.images.layers(record.image_id))
        record, interfaces = await self._attachments.attach(record)
        return replace(wanted, record=record, interfaces=interfaces)

    async def _keep_house(self) -> None:
        """What must be done now and then, off every request's path."""
        while True:
            await asyncio.sleep(_HOUSEKEEPING)
            if self._store.checkpoint_due:
                await asyncio.to_thread(self._store.checkpoint)
            await asyncio.to_thread(self.ledger.sync)
            await self.registries.keep_house()
            await self.budgets.keep_house()
            await self.keeping.keep_house()


def erofs_from_files() -> bool:
    """Whether this kernel mounts EROFS from a plain file (Linux 6.12 and the module)."""
    release = os.uname().release.split(".")
    try:
        recent = (int(release[0]), int(release[1].split("-")[0])) >= (6, 12)
    except (ValueError, IndexError):
        return False
    known = Path("/proc/filesystems").read_text("ascii").split()
    return recent and "erofs" in known
