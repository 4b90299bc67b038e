"""The use cases of containers, in Docker's words and with Docker's answers.

A *ref* is a name, an id or a unique id prefix. Looking (`engine.observing`) and files
(`engine.copying`) are inherited, so the API sees one object.

Not for: what a transition does to a record (engine.lifecycle).
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from tare.engine import filters as selection
from tare.engine import generated, ids, layer_limits, limits, names, restart
from tare.engine.copying import Copying
from tare.engine.core import JOINABLE
from tare.engine.driver import Request
from tare.engine.lifecycle import exit_info
from tare.errors import ConflictError, FailedError, InvalidError, TareError
from tare.model.networking import Joined, NetworkWish
from tare.model.record import ExitInfo, IdBlock, Pruned, Record, Usage, changed
from tare.model.signals import signal_number
from tare.model.spec import ContainerSpec, Isolation, MountKind, Resources, RestartPolicy
from tare.model.state import STATUS, Action, State
from tare.run.plan import host_ids

DEFAULT_GRACE: Final = 10
_SIGKILL: Final = 9
_CONDITIONS: Final = ("not-running", "next-exit", "removed")


class Containers(Copying):
    """Every verb of ``tare`` and of ``/containers``."""

    # --- create -------------------------------------------------------------------------------

    async def create(self, spec: ContainerSpec, name: str | None = None) -> tuple[str, list[str]]:
        """Make a container: its id, and warnings. Nothing is left when it raises."""
        store = self._store
        given = names.checked(name) if name else ""
        if given and (holder := store.holder(given)) is not None:
            raise names.conflict(given, holder)
        spec, warnings = self._checked(self._core.volumes.resolve(spec))
        layer_limits.check(spec, rootless=self._core.paths.rootless)
        self._core.budgets.check(spec, given or "the container")
        spec, places, more = self._core.attachments.resolve(spec)
        warnings += more
        warnings += await self._core.trust.check(spec.image_id, spec.image, "create")
        identity = _new_id()
        if not spec.hostname:
            spec = replace(spec, hostname=generated.hostname(spec, identity))
        block: IdBlock | None = None
        images = self._core.images
        # Counted as a user before it is looked up: a removal in between sees that.
        images.hold(spec.image_id, identity)
        fresh: builtins.list[str] = []
        pins = contextlib.ExitStack()
        try:
            image = await images.get(spec.image_id)
            spec, fresh = await self._volumes(spec, pins)
            block = self._block(spec, highest=images.highest_id(image))
            record = self._record(identity, given, spec, block)
            record = changed(
                record, layers=tuple(layer.hex for layer in image.layers), networks=places
            )
            layers = await images.layers(spec.image_id)
            # Joined containers may start later than this one is made.
            warnings += self._driver.check(Request(record=record, layers=layers))
            self._core.workloads.make(identity)
            if spec.storage_size:
                await asyncio.to_thread(layer_limits.make, record)
            store.add(changed(record, warnings=tuple(warnings)))
        except BaseException as error:
            images.release(spec.image_id, identity)
            self._core.workloads.discard(identity)
            pins.close()
            await self._core.volumes.discard(fresh)
            if block is not None:
                self._core.blocks.release(block)
            if isinstance(error, OSError):
                raise FailedError(f"cannot create the container: {error}") from error
            raise
        pins.close()
        self._lifecycle.emit(record, "create")
        return identity, warnings

    async def _volumes(
        self, spec: ContainerSpec, pins: contextlib.ExitStack
    ) -> tuple[ContainerSpec, builtins.list[str]]:
        """*spec* with its volumes made, filled and pinned, and which of them are new."""
        volumes = self._core.volumes
        spec, fresh = await volumes.make_for(spec)
        names = [m.source for m in spec.mounts if m.kind is MountKind.VOLUME]
        if names:
            pins.enter_context(volumes.pinned(names))
            try:
                await volumes.fill(spec, await self._core.images.tree(spec.image_id))
            except BaseException:
                pins.close()
                await volumes.discard(fresh)
                raise
        return spec, fresh

    def _record(
        self, identity: str, name: str, spec: ContainerSpec, block: IdBlock | None
    ) -> Record:
        paths, budgets = self._core.paths, self._core.budgets
        directory = f"{paths.state}/workloads/{identity}"
        return Record(
            id=identity,
            name=name or names.generated(lambda n: self._store.holder(n) is not None),
            spec=spec,
            created_ns=time.time_ns(),
            id_block=block,
            cgroup=f"{budgets.group_path(budgets.project_of(spec))}/{identity}",
            workload_dir=directory,
            files_dir=f"{paths.files}/{identity}",
            log_path=f"{directory}/log",
        )

    def _checked(self, spec: ContainerSpec) -> tuple[ContainerSpec, list[str]]:
        """*spec* with references resolved and limits that will hold; InvalidError."""
        limits.check_spec(spec)
        restart.check(spec.restart, auto_remove=spec.auto_remove)
        signal_number(spec.stop_signal or "SIGTERM")
        limits.check_devices(spec.devices)
        resources = limits.with_defaults(spec, self._core.abilities)
        resources, warnings = limits.check(resources, self._core.abilities)
        spec = replace(spec, resources=resources)
        _check_mounts(spec)
        for entry in spec.extra_hosts:
            generated.split_host(entry)
        return self._resolve_joins(spec), warnings

    def _resolve_joins(self, spec: ContainerSpec) -> ContainerSpec:
        """``container:NAME`` becomes ``container:ID``; networks that are not there are refused."""
        network = spec.namespaces.network
        if network not in ("", "none", "host") and not network.startswith("container:"):
            raise InvalidError(f"invalid network mode: {network[:80]!r}")
        changes = {}
        for kind in JOINABLE:
            value: str = getattr(spec.namespaces, kind)
            if value.startswith("container:"):
                changes[kind] = f"container:{self._store.get(value.removeprefix('container:')).id}"
        if not changes:
            return spec
        return replace(spec, namespaces=replace(spec.namespaces, **changes))

    def block_for(self, spec: ContainerSpec) -> IdBlock | None:
        """The host ids that a container or machine of *spec* gets; taken now."""
        return self._block(spec, highest=0)

    async def convert(
        self, ref: str, isolation: Isolation, *, discard: bool = False
    ) -> builtins.list[str]:
        """Make a virtual machine of a container or the other way round; see `converting`."""
        from tare.engine.converting import convert

        work = convert(self._core, self, ref, isolation, discard=discard)
        return await self._lifecycle.uninterrupted(work)

    def _block(self, spec: ContainerSpec, *, highest: int) -> IdBlock | None:
        """The host ids of a new container: its own, or those of the one it joins."""
        if self._core.paths.rootless:
            return None
        if spec.isolation is Isolation.VM:
            return self._core.blocks.take(ids.UNIT)  # QEMU's own, whatever the guest may
        names_ = spec.namespaces
        size = ids.wanted_size(names_.user)
        if host_ids(spec) or size is None:
            return None
        for kind in JOINABLE:
            value: str = getattr(names_, kind)
            if value.startswith("container:"):
                block = self._store.get(value.removeprefix("container:")).id_block
                if block is not None:
                    self._core.blocks.share(block)
                return block
        if highest >= size and names_.user in ("", "auto"):
            size = min(-(-(highest + 1) // ids.UNIT) * ids.UNIT, ids.UNIT * 16)
        return self._core.blocks.take(size)

    # --- find ---------------------------------------------------------------------------------

    async def list(
        self, *, all: bool = False, filters: Mapping[str, Sequence[str]] | None = None
    ) -> builtins.list[Record]:
        """Records, the newest first: those running, or *all*, that pass Docker's *filters*."""
        wanted = filters or {}
        everything = all or "status" in wanted or "exited" in wanted
        exact = selection.exact_name(wanted)
        words = selection.plain_names(wanted)
        if words is not None:
            found = self._store.named(words)
        elif exact is not None:
            holder = self._store.holder(exact)
            found = [self._store.get(holder)] if holder else []
        else:
            found = list(self._store.all()) if everything else self._store.active()
        if not everything:
            found = [record for record in found if record.running]
        tests = selection.tests(wanted, self._store.get)
        return selection.select(found, tests) if tests else found

    # --- run ----------------------------------------------------------------------------------

    async def start(self, ref: str) -> bool:
        """Start; False when it runs already. An error's exit_code is 125, 126 or 127."""
        identity = self._store.get(ref).id
        return await self._lifecycle.uninterrupted(self._lifecycle.start(identity))

    async def stop(self, ref: str, timeout: int | None = None, signal: str = "") -> bool:
        """Ask to end, kill after *timeout* seconds (-1: never); False when it did not run."""
        record = self._store.get(ref)
        return await self._lifecycle.uninterrupted(self._stop(record, timeout, signal))

    async def _stop(self, record: Record, timeout: int | None, signal: str) -> bool:
        spec = record.spec
        grace = timeout
        if grace is None:
            grace = DEFAULT_GRACE if spec.stop_timeout is None else spec.stop_timeout
        number = signal_number(signal or spec.stop_signal or "SIGTERM")
        return await self._lifecycle.stop(record.id, number, grace)

    async def restart(self, ref: str, timeout: int | None = None, signal: str = "") -> None:
        """Stop if it runs, then start."""
        record = self._store.get(ref)
        await self._lifecycle.uninterrupted(self._restart(record, timeout, signal))

    async def _restart(self, record: Record, timeout: int | None, signal: str) -> None:
        live = self._lifecycle.live(record.id)
        live.restarting_by_hand = True
        try:
            await self._stop(record, timeout, signal)
            await self._lifecycle.start(record.id)
        finally:
            live.restarting_by_hand = False
        self._lifecycle.emit(self._store.get(record.id), "restart")

    async def kill(self, ref: str, signal: str = "SIGKILL") -> None:
        """Send a signal; SIGKILL and the stop signal stand in the way of a restart."""
        record = self._store.get(ref)
        number = signal_number(signal or "SIGKILL")
        stop = signal_number(record.spec.stop_signal or "SIGTERM")
        if not record.running:
            raise ConflictError(
                f"cannot kill container: {ref}: container {record.id} is not running"
            )
        await self._lifecycle.uninterrupted(
            self._lifecycle.kill(record.id, number, manual=number in (_SIGKILL, stop))
        )

    async def pause(self, ref: str) -> None:
        """Freeze all its processes."""
        record = self._running(ref)
        if record.state is State.PAUSED:
            raise ConflictError(f"container {record.id} is already paused")
        await self._lifecycle.uninterrupted(self._lifecycle.pause(record.id, Action.PAUSE))

    async def unpause(self, ref: str) -> None:
        """Let them go on."""
        record = self._store.get(ref)
        if record.state is not State.PAUSED:
            raise ConflictError(f"Container {record.id} is not paused")
        await self._lifecycle.uninterrupted(self._lifecycle.pause(record.id, Action.UNPAUSE))

    def waiter(self, ref: str, condition: str = "not-running") -> asyncio.Future[ExitInfo]:
        """A future for *condition*, registered when this returns: nothing after it is missed."""
        record = self._store.get(ref)
        if condition not in _CONDITIONS:
            raise InvalidError(f"invalid condition: {condition[:40]!r}")
        if condition == "removed":
            return self._lifecycle.removal(record.id)
        if condition == "not-running" and not record.running and record.state is not State.STARTING:
            ready: asyncio.Future[ExitInfo] = asyncio.get_running_loop().create_future()
            ready.set_result(exit_info(record))
            return ready
        return self._lifecycle.next_exit(record.id)

    async def wait(self, ref: str, condition: str = "not-running") -> ExitInfo:
        """Wait for ``not-running``, ``next-exit`` or ``removed``; registered at its first step."""
        return await self.waiter(ref, condition)

    # --- change -------------------------------------------------------------------------------

    async def rename(self, ref: str, name: str) -> None:
        """Give it another name; the old one is free at once."""
        record = self._store.get(ref)
        if not name.strip("/"):
            raise InvalidError("Neither old nor new names may be empty")
        new = names.checked(name)
        if new == record.name:
            raise InvalidError("Renaming a container with the same name as its current name")
        old = record.name
        record = self._store.put(changed(record, name=new))
        if record.networks and record.alive:
            await self._core.attachments.publish_names()
        self._lifecycle.emit(record, "rename", {"oldName": f"/{old}"})

    async def update(
        self, ref: str, resources: Resources, policy: RestartPolicy | None = None
    ) -> builtins.list[str]:
        """Change limits (what is None stays) and restart policy, of a running one at once."""
        record = self._store.get(ref)
        if record.state in (State.REMOVING, State.DEAD):
            raise ConflictError(
                f"container {record.id} is marked for removal and cannot be updated"
            )
        if policy is not None:
            restart.check(policy, auto_remove=record.spec.auto_remove)
        wanted, warnings = limits.check_update(
            record.spec.resources, resources, self._core.abilities
        )
        self._core.budgets.admit_update(record, wanted)
        if record.alive and wanted != record.spec.resources:
            warnings += self._driver.update(record, wanted)
        spec = replace(record.spec, resources=wanted)
        if policy is not None:
            spec = replace(spec, restart=policy)
        record = self._store.put(changed(self._store.get(record.id), spec=spec))
        self._lifecycle.emit(record, "update")
        return warnings

    async def connect(self, network: str, ref: str, wish: NetworkWish) -> None:
        """Put it into one more network, at once if it runs."""
        identity = self._store.get(ref).id

        async def work() -> None:
            async with self._lifecycle.live(identity).lock:
                record = self._store.get(identity)
                await self._core.attachments.connect(network, record, wish)

        await self._lifecycle.uninterrupted(work())

    async def disconnect(self, network: str, ref: str, *, force: bool = False) -> None:
        """Take it out of a network, at once if it runs."""
        identity = self._store.get(ref).id

        async def work() -> None:
            async with self._lifecycle.live(identity).lock:
                record = self._store.get(identity)
                await self._core.attachments.disconnect(network, record, force=force)

        await self._lifecycle.uninterrupted(work())

    def inhabitants(self, network: str) -> builtins.list[tuple[Record, Joined]]:
        """The running containers of a network (by its id), with their places in it."""
        return self._core.attachments.inhabitants(network)

    # --- remove -------------------------------------------------------------------------------

    async def remove(self, ref: str, *, force: bool = False, volumes: bool = False) -> None:
        """Remove it; a running one only with *force*. Its name is free when this returns."""
        record = self._store.get(ref)
        await self._lifecycle.uninterrupted(self._remove(record.id, ref, force=force))
        if volumes:
            await self._core.volumes.drop_anonymous(record)

    async def _remove(self, identity: str, ref: str, *, force: bool) -> None:
        live = self._lifecycle.live(identity)
        async with live.lock:
            record = self._store.get(identity)
            if record.state is State.RESTARTING and force:
                await self._lifecycle.kill(identity, _SIGKILL, manual=True)
            elif record.running:
                if not force:
                    raise ConflictError(_still_runs(record, ref))
                await self._lifecycle.kill(identity, _SIGKILL, manual=True)
            left = self._store.find(identity)
            # With --rm the end of its process removed it already.
            if left is not None:
                self._lifecycle.dispose(left)

    async def prune(
        self, filters: Mapping[str, Sequence[str]] | None = None, *, dry: bool = False
    ) -> Pruned:
        """Remove all that do not run and pass the filters ``until``, ``label`` and ``label!``.

        *dry* removes nothing, and answers the same.
        """
        tests = _prune_tests(filters or {})
        deleted: builtins.list[str] = []
        reclaimed = 0
        for record in selection.select(list(self._store.all()), tests):
            if record.running or record.state in (State.STARTING, State.REMOVING):
                continue
            try:
                size = (await self.sizes(record.id))[0]
                if not dry:
                    await self.remove(record.id)
            except TareError:
                continue  # started or removed meanwhile: not ours any more
            deleted.append(record.id)
            reclaimed += size
        if deleted and not dry:
            self._core.events.emit("container", "prune", "", {"reclaimed": str(reclaimed)})
        return Pruned(deleted=tuple(deleted), reclaimed=reclaimed)

    def _running(self, ref: str) -> Record:
        record = self._store.get(ref)
        if record.state is State.RESTARTING:
            raise ConflictError(
                f"Container {record.id} is restarting, wait until the container is running"
            )
        if not record.alive:
            raise ConflictError(f"container {record.id} is not running")
        return record

    def usage(self, identity: str) -> Usage | None:
        """What the last run of a container used, also shortly after its removal."""
        return self._lifecycle.usage(identity)


def _new_id() -> str:
    """64 hex digits; the short form is never a plain number, which tools would take for one."""
    while True:
        identity = secrets.token_hex(32)
        if not identity[:12].isdigit():
            return identity


def _check_mounts(spec: ContainerSpec) -> None:
    seen: set[str] = set()
    for mount in spec.mounts:
        target = os.path.normpath(mount.target)
        if target in seen:
            raise InvalidError(f"Duplicate mount point: {mount.target}")
        seen.add(target)
        if mount.kind is not MountKind.BIND or mount.create_source:
            continue
        if not os.path.lexists(mount.source):
            raise InvalidError(
                f'invalid mount config for type "bind": bind source path does not exist: '
                f"{mount.source}"
            )


def _still_runs(record: Record, ref: str) -> str:
    state = STATUS[record.state]
    if record.state is State.PAUSED:
        advice = f"container is {state} and must be unpaused first"
    else:
        advice = f"container is {state}: stop the container before removing or force remove"
    return (
        f'cannot remove container "{ref if ref.startswith("/") else "/" + record.name}": {advice}'
    )


def _prune_tests(filters: Mapping[str, Sequence[str]]) -> builtins.list[selection.Test]:
    tests: builtins.list[selection.Test] = []
    for key, values in filters.items():
        match key:
            case "label":
                tests.append(selection.labelled(values))
            case "label!":
                tests += [selection.without(value) for value in values]
            case "until":
                tests.append(selection.before(min(selection.moment(value) for value in values)))
            case _:
                raise InvalidError(f"invalid filter '{key[:40]}'")
    return tests
