"""Builds for the rest of the engine: where their programs run, what they start from, their cache.

A RUN is a workload of the engine like any container: planned, started and ended by the same
driver, with a block of ids and a directory of its own. It has no record, so no list shows it and
nothing restarts it; a daemon that starts anew removes what a build of the one before left.

Not for: what a build is (``build``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeGuard

from tare.engine import archives, generated, ids, origins
from tare.engine.core import Core
from tare.engine.driver import Ended, Pipes, Request
from tare.engine.streams import STDERR, STDOUT, Output, pipe
from tare.engine.transfer import produced
from tare.errors import DeniedError, FailedError, MissingError, TareError
from tare.image.registry.pull import Notice
from tare.image.tar_writer import END
from tare.model import oci
from tare.model.record import Record, changed
from tare.model.reference import Reference
from tare.model.spec import ContainerSpec
from tare.run import rootfs
from tare.run.plan import host_ids

if TYPE_CHECKING:
    from tare.build.cache import Cache, Entry, Pruned
    from tare.build.context import Context
    from tare.build.host import Listener
    from tare.build.request import BuildRequest, Built, Tell
    from tare.build.tree import Tree
    from tare.engine.registries import Registries
    from tare.image.registry.credentials import Credentials
    from tare.image.store import Image, ImageStore

_KILL_PATIENCE: Final = 15.0


class Builds:
    """The builder of one engine. The cache is opened with the engine: it keeps its layers."""

    def __init__(self, core: Core, store: ImageStore, registries: Registries) -> None:
        from tare.build.cache import Cache

        self._core = core
        self._store = store
        self._registries = registries
        self.cache: Cache = Cache(core.paths.state / "build", store)
        self._running: set[asyncio.Future[Built]] = set()

    @property
    def busy(self) -> bool:
        """Whether a build is under way."""
        return bool(self._running)

    async def close(self) -> None:
        """End what is being built, then close the cache."""
        for build in self._running:
            build.cancel()
        if self._running:
            await asyncio.wait(self._running, timeout=_KILL_PATIENCE)
        self.cache.close()

    def context(self) -> Context:
        """An empty build context, to be closed by the caller."""
        from tare.build.context import Context

        return Context(self.cache.temporary)

    async def files(self, image: Image) -> AsyncGenerator[bytes, None]:
        """An archive of all files of an image, as a container would see them."""
        paths = [os.fspath(path) for path in await self._core.images.layers(str(image.id))]
        if not paths:
            yield END
            return
        root = await asyncio.to_thread(rootfs.mounted_image, paths)
        try:
            async for chunk in produced(lambda file: archives.write(root, "/.", file, block=None)):
                yield chunk
        finally:
            os.close(root)

    async def build(
        self,
        request: BuildRequest,
        context: Tree,
        tell: Tell,
        *,
        credentials: Mapping[str, Credentials] | None = None,
    ) -> Built:
        """Build an image; TareError says where in the Dockerfile it failed."""
        from tare.build.executor import Builder

        host = _Host(self._core, self._store, self.cache, self._registries, credentials or {})
        building = asyncio.ensure_future(Builder(request, context, host, tell).run())
        self._running.add(building)
        try:
            # Also when the client goes away: its programs are ended and its files let go of
            # before anybody goes on.
            built = await _to_its_end(building)
        finally:
            self._running.discard(building)
            self._core.images.changed()
        if built.id is not None:
            with contextlib.suppress(MissingError):  # a collector with too small a quota took it
                await origins.note(self._core.images, self._store, request, built)
            await self._core.trust.made(built.id, accepted=host.accepted)
            for name in built.names:
                self._core.events.emit("image", "tag", str(built.id), {"name": name})
            self._core.events.emit("image", "build", str(built.id), {})
        return built

    async def entries(self) -> list[Entry]:
        """What the cache keeps, the longest unused first."""
        return await asyncio.to_thread(self.cache.entries)

    async def prune(
        self,
        *,
        everything: bool = False,
        until_ns: int | None = None,
        keep_bytes: int = 0,
        dry: bool = False,
    ) -> Pruned:
        """Let the cache forget; what it alone kept is deleted. *dry* only says what that is."""
        pruned = await asyncio.to_thread(
            self.cache.prune,
            everything=everything,
            until_ns=until_ns,
            keep_bytes=keep_bytes,
            dry=dry,
        )
        if dry:
            return pruned
        self._core.events.emit("builder", "prune", "", {"reclaimed": str(pruned.reclaimed)})
        return pruned


async def _to_its_end(building: asyncio.Future[Built]) -> Built:
    """The result of a build; it is cancelled with its caller, and has ended when this returns."""
    try:
        return await asyncio.shield(building)
    except asyncio.CancelledError:
        building.cancel()
        while not building.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait((building,))
        raise


class _Host:
    """The engine as one build sees it: implements `tare.build.host.Host`."""

    def __init__(
        self,
        core: Core,
        store: ImageStore,
        cache: Cache,
        registries: Registries,
        credentials: Mapping[str, Credentials],
    ) -> None:
        self._core = core
        self.store = store
        self.cache = cache
        self._registries = registries
        self._credentials = credentials
        self.platform = oci.host_platform(os.uname().machine)
        self.rootless = core.paths.rootless
        self.extracts = store.extracts
        self.accepted = True
        """Whether every image that the build is made of would be accepted."""

    async def image(self, name: str, *, pull: bool, note: Callable[[str], None]) -> Image:
        """The image called *name*, pulled when it is missing or *pull* says so; or DeniedError."""
        image = await self._image(name, pull=pull, note=note)
        self.store.notes.touch(image.id)
        trust = self._core.trust
        for warning in await trust.check(str(image.id), name, "build"):
            note(f"warning: {warning}")
        if self.accepted and not await trust.accepted(str(image.id), name):
            self.accepted = False
        return image

    async def _image(self, name: str, *, pull: bool, note: Callable[[str], None]) -> Image:
        if not pull or name.startswith("sha256:"):
            try:
                return await self._core.images.get(name)
            except MissingError:
                if name.startswith("sha256:"):
                    raise
        reference = Reference.parse(name).with_default_tag()
        note(f"pulling {reference.familiar}")
        try:
            pulled = await self._registries.pull(
                reference,
                lambda told: note(told.text) if _is_warning(told) else None,
                credentials=self._credentials.get(reference.domain),
            )
        except DeniedError:
            raise  # not missing: refused, and the reason stands in it
        except TareError as error:
            raise MissingError(
                f"the image {reference.familiar} cannot be pulled: {error}", hint=error.hint
            ) from error
        return pulled.image

    @contextlib.asynccontextmanager
    async def workplace(self, spec: ContainerSpec, highest: int) -> AsyncIterator[_Workplace]:
        """A place for one program."""
        place = _Workplace(self._core, spec, highest)
        try:
            yield place
        finally:
            await place.leave()


def _is_warning(told: object) -> TypeGuard[Notice]:
    return isinstance(told, Notice) and told.text.startswith("Warning: ")


class _Workplace:
    """Where one RUN is done."""

    def __init__(self, core: Core, spec: ContainerSpec, highest: int) -> None:
        self._core = core
        self._identity = secrets.token_hex(32)
        self._block = None
        if not (core.paths.rootless or host_ids(spec)):
            wanted = ids.wanted_size(spec.namespaces.user) or ids.UNIT
            if highest >= wanted:
                wanted = min(-(-(highest + 1) // ids.UNIT) * ids.UNIT, ids.UNIT * 16)
            self._block = core.blocks.take(wanted)
        try:
            self.directory = Path(core.workloads.make(self._identity))
        except BaseException:
            if self._block is not None:
                core.blocks.release(self._block)
            raise
        self.upper = self.directory / "upper"
        block = self._block
        self.block = (block.base, block.size) if block is not None else None

    async def leave(self) -> None:
        """Give back what was taken."""
        self._core.attachments.release(self._identity)
        self._core.workloads.discard(self._identity)
        if self._block is not None:
            self._core.blocks.release(self._block)

    async def run(self, spec: ContainerSpec, layers: list[Path], listen: Listener) -> int:
        """Run it to its end."""
        core = self._core
        budgets = core.budgets
        spec, places, _ = core.attachments.resolve(spec)
        record = Record(
            id=self._identity,
            name=f"build-{self._identity[:12]}",
            spec=spec,
            created_ns=0,
            id_block=self._block,
            cgroup=f"{budgets.group_path(budgets.project_of(spec))}/{self._identity}",
            workload_dir=os.fspath(self.directory),
            files_dir=f"{self.directory}/files",
            networks=places,
        )
        generated.write(record.files_dir, spec, record.id)
        record, interfaces = await core.attachments.attach(record, recorded=False)
        wanted = Request(record=record, layers=layers, interfaces=interfaces)
        ended: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()

        def end(told: Ended) -> None:
            if not ended.done():
                ended.set_result(told)

        core.lifecycle.unrecorded[self._identity] = end
        try:
            return await self._to_its_end(wanted, ended, listen)
        finally:
            del core.lifecycle.unrecorded[self._identity]

    async def _to_its_end(
        self, wanted: Request, ended: asyncio.Future[Ended], listen: Listener
    ) -> int:
        driver = self._core.driver
        (out, out_end), (err, err_end) = pipe(), pipe()
        output = Output([(STDOUT, out), (STDERR, err)])
        record = wanted.record
        try:
            readers = (Pipes(stdout=out_end, stderr=err_end),)
            starting = asyncio.ensure_future(driver.start(replace(wanted, readers=readers)))
            try:
                started = await asyncio.shield(starting)
            except asyncio.CancelledError:
                with contextlib.suppress(TareError, OSError):
                    started = await starting
                    record = changed(record, pid=started.pid, pid_start=started.start_time)
                    await self._kill(record, ended)
                raise
            record = changed(record, pid=started.pid, pid_start=started.start_time)
            try:
                async for stream, data in output:
                    listen(stream, data)
                told = await ended
            except BaseException:
                await self._kill(record, ended)
                raise
        finally:
            output.close()
        await self._forget(record, told)
        if not told.known:
            raise FailedError("the program ended, and nobody saw how: the keeper was lost")
        if told.oom_killed:
            raise FailedError(
                f"the program was killed for lack of memory: exit code {told.code}",
                hint="give the build more: --memory",
            )
        return told.code

    async def _kill(self, record: Record, ended: asyncio.Future[Ended]) -> None:
        self._core.driver.kill(record)
        with contextlib.suppress(TimeoutError):
            told = await asyncio.wait_for(asyncio.shield(ended), _KILL_PATIENCE)
            await self._forget(record, told)

    async def _forget(self, record: Record, told: Ended) -> None:
        driver = self._core.driver
        if not told.reaped:
            driver.discard(record)
        with contextlib.suppress(TareError, OSError):
            await driver.acknowledge(record.id)
