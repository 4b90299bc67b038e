"""Volumes: made, found, filled from images, held by containers, removed, and put right at a start.

::

    state/volumes/NAME/
        _data/          the files; ids in it are those inside containers (binds are id-mapped)
        volume.json     the value, for a database that lost its last rows in a power cut
        image           only with a size limit: the sparse file that is mounted on _data
        filling         only while it is filled from an image: with it, _data is half done
    state/volumes/.new-*   being made, .gone-* being deleted; both go at the next start

What exists is told by the table ``volumes`` of state.db (`engine.documents`). A volume is made
under another name and renamed, and removed from the table before its directory is renamed, so that
a kill at any point leaves a whole volume or none.

Locks: the loop's one thread orders everything that does not wait; `_lock` of a name covers making,
filling and removing it.

Not for: what options mean (engine.volume_mounts), export and import (engine.volume_transfer).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import time
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import msgspec

from tare.engine import trees, volume_mounts
from tare.engine.documents import Documents
from tare.engine.events import Events
from tare.engine.paths import Paths
from tare.engine.store import Store
from tare.errors import ConflictError, FailedError, InvalidError, MissingError, UnsupportedError
from tare.kernel import files
from tare.model.record import Pruned, Record
from tare.model.spec import ContainerSpec, Mount, MountKind, VolumeWish
from tare.model.volume import ANONYMOUS_LABEL, Volume, VolumeStatus, checked_name

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILTERS: Final = ("dangling", "driver", "label", "label!", "name")
Image = Callable[[], int]


@dataclass(slots=True)
class _Held:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0


class Volumes:
    """All volumes of one engine."""

    def __init__(self, paths: Paths, store: Store, events: Events) -> None:
        self._paths = paths
        self._root = os.fspath(paths.state / "volumes")
        self._store = store
        self._events = events
        self._known = Documents(store, "volumes", Volume)
        self._locks: dict[str, _Held] = {}
        self._pins: dict[str, int] = {}
        self._mounted: set[str] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        Path(self._root).mkdir(exist_ok=True, mode=0o700)

    @property
    def root(self) -> str:
        """The directory that holds the volumes' directories."""
        return self._root

    def path(self, name: str) -> str:
        """Where the files of a volume are on the host."""
        return f"{self._root}/{name}/_data"

    # --- make ---------------------------------------------------------------------------------

    async def create(
        self,
        name: str = "",
        *,
        options: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Volume:
        """Make a volume, or find the one of that name; ConflictError if that is another kind."""
        labels = dict(labels or {})
        if not name:
            name, labels = secrets.token_hex(32), {**labels, ANONYMOUS_LABEL: ""}
        checked_name(name)
        async with self.lock(name):
            return await self._create(name, dict(options or {}), labels)

    async def _create(self, name: str, options: dict[str, str], labels: dict[str, str]) -> Volume:
        found = self._known.get(name)
        if found is not None:
            if options and options != dict(found.options):
                raise ConflictError(
                    f"volume {name} exists with other options: {_words(found.options)}",
                    hint="remove it first, or leave the options out to use it as it is",
                )
            if not os.path.isdir(f"{self._root}/{name}"):
                # Deleted by hand, and asked for again: the same volume, empty.
                await asyncio.to_thread(self._make, found)
            return found
        volume_mounts.parse(options)
        volume = Volume(name=name, created_ns=time.time_ns(), options=options, labels=labels)
        await asyncio.to_thread(self._make, volume)
        self._known.put(name, volume)
        self._events.emit("volume", "create", name, {"driver": volume.driver})
        return volume

    def _make(self, volume: Volume, content: Callable[[int], None] | None = None) -> None:
        """The directory, whole or not at all; *content* fills it first."""
        making = f"{self._root}/.new-{secrets.token_hex(8)}"
        os.mkdir(making, 0o700)
        try:
            os.mkdir(f"{making}/_data", 0o755)
            own = volume_mounts.parse(volume.options)
            if own is not None and own.size:
                volume_mounts.make_image(making, own.size, rootless=self._paths.rootless)
            if content is not None:
                data = os.open(f"{making}/_data", _DIRECTORY)
                try:
                    content(data)
                finally:
                    os.close(data)
            encoded = msgspec.json.encode(volume)
            if volume.anonymous and content is None:
                # Nothing is in it yet: not worth three syncs on a start's path.
                with open(f"{making}/volume.json", "xb") as file:
                    file.write(encoded)
            else:
                files.replace(f"{making}/volume.json", encoded)
            os.rename(making, f"{self._root}/{volume.name}")
            if not volume.anonymous:
                files.sync_directory(self._root)
        except OSError as error:
            shutil.rmtree(making, ignore_errors=True)
            raise FailedError(
                f"cannot make volume {volume.name[:80]}: {error}",
                hint=f"check the free space and inodes of {self._root}",
            ) from error
        except BaseException:
            shutil.rmtree(making, ignore_errors=True)
            raise

    async def adopt(self, volume: Volume, content: Callable[[int], None]) -> Volume:
        """Make a new volume that *content* fills (given its directory); ConflictError if taken."""
        async with self.lock(volume.name):
            if volume.name in self._known:
                raise ConflictError(f"volume {volume.name} exists already")
            await asyncio.to_thread(self._make, volume, content)
            self._known.put(volume.name, volume)
        self._events.emit("volume", "create", volume.name, {"driver": volume.driver})
        return volume

    # --- find ---------------------------------------------------------------------------------

    def get(self, name: str) -> Volume:
        """The volume called *name*; MissingError."""
        found = self._known.get(name)
        if found is None:
            raise MissingError(f"get {name[:255]}: no such volume")
        return found

    def holders(self, name: str) -> list[Record]:
        """The containers that have it among their mounts, running or not."""
        return [record for record in self._store.all() if name in volumes_of(record)]

    def active_holders(self, name: str) -> list[Record]:
        """Those of them that run or are about to."""
        return [record for record in self._store.active() if name in volumes_of(record)]

    def status(self, name: str) -> VolumeStatus:
        """The volume as it is now, its size not counted."""
        return self._status(self.get(name), [r.name for r in self.holders(name)])

    def _status(self, volume: Volume, users: Sequence[str]) -> VolumeStatus:
        path = self.path(volume.name)
        return VolumeStatus(
            volume=volume,
            path=path,
            users=tuple(users),
            missing=not os.path.isdir(path),
            mounted=volume.name in self._mounted,
        )

    def listed(self, filters: Mapping[str, Sequence[str]] | None = None) -> list[VolumeStatus]:
        """All volumes that pass the filters, by name."""
        users: dict[str, list[str]] = {}
        for record in self._store.all():
            for name in volumes_of(record):
                users.setdefault(name, []).append(record.name)
        found = [self._status(v, users.get(name, ())) for name, v in self._known.items()]
        tests = [_test(key, values) for key, values in (filters or {}).items() if values]
        return [one for one in found if all(test(one) for test in tests)]

    async def sized(self, found: Iterable[VolumeStatus]) -> list[VolumeStatus]:
        """The same with their sizes counted."""
        chosen = [*found]

        def count() -> list[VolumeStatus]:
            return [replace(one, size=self._size(one)) for one in chosen]

        return await asyncio.to_thread(count)

    def _size(self, one: VolumeStatus) -> int:
        own = volume_mounts.parse(one.volume.options)
        if own is None:
            return trees.usage(one.path)
        if own.size:
            with contextlib.suppress(OSError):
                return os.stat(f"{self._root}/{one.volume.name}/image").st_blocks * 512
        return 0  # what it shows lies elsewhere

    # --- remove -------------------------------------------------------------------------------

    async def remove(self, name: str, *, force: bool = False) -> None:
        """Remove a volume that no container has; with *force* one that is not there is no error."""
        if name not in self._known:
            if force:
                return
            raise MissingError(f"get {name[:255]}: no such volume")
        async with self.lock(name):
            await self._remove(name)

    async def _remove(self, name: str) -> None:
        holders = self.holders(name)
        if holders:
            named = ", ".join(f"{r.name} {r.id[:12]}" for r in holders)
            raise ConflictError(
                f"remove {name}: volume is in use - [{named}]",
                hint=f"remove those containers first: tare rm {' '.join(r.name for r in holders)}",
            )
        if self._pins.get(name):
            raise ConflictError(
                f"remove {name}: volume is in use - [a container that is being made, or an export]",
                hint="try again when that is done",
            )
        volume = self._known.get(name)
        if volume is None:
            return
        self._known.delete(name)
        gone = f"{self._root}/.gone-{secrets.token_hex(8)}"
        self._unmount(name)
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{self._root}/{name}", gone)
        self._events.emit("volume", "destroy", name, {"driver": volume.driver})
        await asyncio.to_thread(shutil.rmtree, gone, ignore_errors=True)

    async def drop_anonymous(self, record: Record) -> None:
        """Remove the volumes that were made for *record* alone, which is gone."""
        for wanted in record.spec.mounts:
            if wanted.anonymous and wanted.source in self._known:
                async with self.lock(wanted.source):
                    if not self.holders(wanted.source):
                        await self._remove(wanted.source)

    def after_removal(self, record: Record) -> None:
        """``--rm``: what was made for the container goes with it."""
        if record.spec.auto_remove and any(m.anonymous for m in record.spec.mounts):
            self._spawn(self.drop_anonymous(record))

    async def prune(
        self, filters: Mapping[str, Sequence[str]], *, everything: bool, dry: bool = False
    ) -> Pruned:
        """Remove the anonymous volumes that no container has; with *everything* named ones too.

        *dry* removes nothing, and answers the same.
        """
        chosen = [one for one in self.listed(filters) if not one.users]
        if not everything:
            chosen = [one for one in chosen if one.volume.anonymous]
        deleted, reclaimed = [], 0
        for one in await self.sized(chosen):
            try:
                if not dry:
                    await self.remove(one.volume.name)
            except (ConflictError, MissingError):
                continue  # used or removed meanwhile
            deleted.append(one.volume.name)
            reclaimed += max(one.size, 0)
        if not dry:
            self._events.emit("volume", "prune", "", {"reclaimed": str(reclaimed)})
        return Pruned(deleted=tuple(deleted), reclaimed=reclaimed)

    # --- containers ---------------------------------------------------------------------------

    def resolve(self, spec: ContainerSpec) -> ContainerSpec:
        """*spec* with the mounts of ``--volumes-from`` and of the image's VOLUMEs among its own."""
        if not spec.volumes and not spec.volumes_from:
            return spec
        mounts = list(spec.mounts)
        taken = {os.path.normpath(m.target) for m in mounts}
        for text in spec.volumes_from:
            name, _, mode = text.partition(":")
            for mount in self._store.get(name).spec.mounts:
                if mount.kind is MountKind.TMPFS or mount.target in taken:
                    continue
                taken.add(mount.target)
                read_only = mount.read_only or mode == "ro"
                mounts.append(
                    replace(mount, read_only=read_only, anonymous=False, create_source=True)
                )
        for target in spec.volumes:
            _check_target(target)
            if target not in taken:
                taken.add(target)
                mounts.append(
                    Mount(kind=MountKind.VOLUME, target=target, create_source=True, anonymous=True)
                )
        return replace(spec, mounts=tuple(mounts))

    async def make_for(self, spec: ContainerSpec) -> tuple[ContainerSpec, list[str]]:
        """Make the volumes of *spec* that are not there; their names are in the answer's mounts.

        The list names those made for this container alone: `discard` them if it comes to nothing.
        """
        if not any(m.kind is MountKind.VOLUME for m in spec.mounts):
            return spec, []
        mounts, made = [], []
        try:
            for mount in spec.mounts:
                if mount.kind is MountKind.VOLUME:
                    wish = mount.volume or VolumeWish()
                    if wish.driver not in ("", "local"):
                        raise UnsupportedError(f"volume driver {wish.driver[:80]!r} is not there")
                    new = mount.source not in self._known
                    volume = await self.create(
                        mount.source, options=wish.options, labels=wish.labels
                    )
                    if new:
                        made.append(volume.name)
                    mount = replace(mount, source=volume.name)
                mounts.append(mount)
        except BaseException:
            await self.discard(made)
            raise
        return replace(spec, mounts=tuple(mounts)), made

    async def discard(self, names: Iterable[str]) -> None:
        """Remove volumes that were made for a container that came to nothing."""
        for name in names:
            with contextlib.suppress(ConflictError, MissingError):
                await self.remove(name)

    async def fill(self, spec: ContainerSpec, image: Image) -> None:
        """Copy what the image has at their targets into the volumes of *spec* that are empty.

        *image* opens the image's tree (called in a thread, at most once).
        """
        chosen = []
        for mount in spec.mounts:
            if mount.kind is MountKind.VOLUME and not mount.no_copy and not mount.subpath:
                volume = self.get(mount.source)
                own = volume_mounts.parse(volume.options)
                if own is None or own.kind != "tmpfs":
                    chosen.append((mount, own))
        if not chosen:
            return
        tree = -1
        try:
            for mount, own in chosen:
                async with self.lock(mount.source):
                    if own is not None:
                        await asyncio.to_thread(self._mount, mount.source)
                    if not self._wants_filling(mount.source):
                        continue
                    if tree < 0:
                        tree = await asyncio.to_thread(image)
                    quiet = not self.active_holders(mount.source)
                    await asyncio.to_thread(self._fill, mount, tree, marked=quiet)
        except OSError as error:
            raise FailedError(f"cannot fill a volume from the image: {error}") from error
        finally:
            if tree >= 0:
                os.close(tree)
            self.settle()

    def _wants_filling(self, name: str) -> bool:
        if os.path.exists(f"{self._root}/{name}/filling") and not self.active_holders(name):
            self._empty(name)
        with os.scandir(self.path(name)) as listing:
            return next(listing, None) is None

    def _fill(self, mount: Mount, image: int, *, marked: bool) -> None:
        """In a thread. The place in the image is found as a process chrooted to it would."""
        try:
            source = files.open_in_root(image, mount.target, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return  # the image has nothing there, or no directory
        mark = f"{self._root}/{mount.source}/filling"
        try:
            if marked:
                os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            target = os.open(self.path(mount.source), _DIRECTORY)
            try:
                trees.copy(source, target)
            finally:
                os.close(target)
            if marked:
                os.unlink(mark)
        finally:
            os.close(source)

    def _empty(self, name: str) -> None:
        """What a kill left half filled goes."""
        path = self.path(name)
        for entry in os.listdir(path):
            child = f"{path}/{entry}"
            if os.path.isdir(child) and not os.path.islink(child):
                shutil.rmtree(child)
            else:
                os.unlink(child)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._root}/{name}/filling")

    async def ready(self, record: Record, image: Image) -> None:
        """Before a start: every volume is there, and mounted if it has a file system of its own."""
        for mount in record.spec.mounts:
            if mount.kind is not MountKind.VOLUME:
                continue
            volume = self._known.get(mount.source)
            if volume is None or not os.path.isdir(self.path(mount.source)):
                raise MissingError(
                    f"volume {mount.source} of {record.name} is gone: "
                    + (
                        f"{self.path(mount.source)} was deleted by hand"
                        if volume
                        else "it is not among the engine's volumes any more"
                    ),
                    hint=f"`tare volume create {mount.source}` makes it anew, empty;"
                    " `tare volume import` brings back an export",
                    exit_code=125,
                )
            if volume.options:
                await self._ready(volume, mount, image)

    async def _ready(self, volume: Volume, mount: Mount, image: Image) -> None:
        own = volume_mounts.parse(volume.options)
        async with self.lock(volume.name):
            fresh = await asyncio.to_thread(self._mount, volume.name)
            if fresh and own is not None and own.kind == "tmpfs" and not mount.no_copy:
                tree = await asyncio.to_thread(image)
                try:
                    await asyncio.to_thread(self._fill, mount, tree, marked=False)
                finally:
                    os.close(tree)

    def _mount(self, name: str) -> bool:
        """Mount what the options say, once; True if it was not."""
        own = volume_mounts.parse(self.get(name).options)
        if own is None or name in self._mounted:
            return False
        volume_mounts.attach(own, f"{self._root}/{name}")
        self._mounted.add(name)
        return True

    def _unmount(self, name: str) -> None:
        if name not in self._mounted:
            return
        with contextlib.suppress(OSError):
            volume_mounts.detach(f"{self._root}/{name}")
        self._mounted.discard(name)

    @contextlib.contextmanager
    def pinned(self, names: Iterable[str]) -> Iterator[None]:
        """The volumes are neither removed nor taken down meanwhile."""
        chosen = [*names]
        for name in chosen:
            self._pins[name] = self._pins.get(name, 0) + 1
        try:
            yield
        finally:
            for name in chosen:
                self._pins[name] -= 1
                if not self._pins[name]:
                    del self._pins[name]

    @contextlib.asynccontextmanager
    async def shown(self, name: str) -> AsyncIterator[str]:
        """The path of the volume's files, mounted meanwhile if it has a file system of its own."""
        self.get(name)
        try:
            with self.pinned([name]):
                async with self.lock(name):
                    await asyncio.to_thread(self._mount, name)
                    if not os.path.isdir(self.path(name)):
                        raise MissingError(
                            f"volume {name} is gone: {self.path(name)} was deleted by hand"
                        )
                yield self.path(name)
        finally:
            self.settle()

    def settle(self, _: Record | None = None) -> None:
        """Take down the file systems that no container uses any more."""
        for name in list(self._mounted):
            busy = name in self._locks or name in self._pins
            if not busy and not self.active_holders(name):
                self._unmount(name)

    def told(self, action: str, record: Record) -> None:
        """Emit ``mount`` or ``unmount`` for each volume of a container."""
        for mount in record.spec.mounts:
            if mount.kind is MountKind.VOLUME:
                more = {"container": record.id, "driver": "local"}
                if action == "mount":
                    more["destination"] = mount.target
                    more["read/write"] = "false" if mount.read_only else "true"
                    more["propagation"] = ""
                self._events.emit("volume", action, mount.source, more)

    # --- begin and end ------------------------------------------------------------------------

    def recover(self) -> None:
        """At the start, before any request: what was half made or half removed goes."""
        mounted = volume_mounts.mounted_below(self._root)
        for name in os.listdir(self._root):
            path = f"{self._root}/{name}"
            if name.startswith((".new-", ".gone-")):
                volume_mounts.detach(path)
                shutil.rmtree(path, ignore_errors=True)
            elif name not in self._known and not name.startswith("."):
                self._recognise(name)
            if f"{path}/_data" in mounted:
                self._mounted.add(name)
            if os.path.exists(f"{path}/filling") and not self.active_holders(name):
                with contextlib.suppress(OSError):
                    self._empty(name)

    def _recognise(self, name: str) -> None:
        """A directory that the database does not know: its last rows were lost in a power cut."""
        with contextlib.suppress(OSError, msgspec.DecodeError, InvalidError):
            content = Path(f"{self._root}/{name}/volume.json").read_bytes()
            volume = msgspec.json.decode(content, type=Volume)
            if volume.name == checked_name(name):
                self._known.put(name, volume)

    async def close(self) -> None:
        """Wait for what is being removed."""
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    @contextlib.asynccontextmanager
    async def lock(self, name: str) -> AsyncIterator[None]:
        """One at a time makes, fills, mounts or removes the volume called *name*."""
        held = self._locks.setdefault(name, _Held())
        held.waiting += 1
        try:
            async with held.lock:
                yield
        finally:
            held.waiting -= 1
            if not held.waiting:
                del self._locks[name]


def volumes_of(record: Record) -> set[str]:
    """The names of the volumes that a container has."""
    return {m.source for m in record.spec.mounts if m.kind is MountKind.VOLUME}


def _check_target(target: str) -> None:
    parts = [part for part in target.split("/") if part]
    if not target.startswith("/") or ".." in parts or not parts:
        raise InvalidError(f"invalid volume path {target[:200]!r}: it must lead below the root")


def _words(options: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in options.items()) or "none"


def _test(key: str, values: Sequence[str]) -> Callable[[VolumeStatus], bool]:
    match key:
        case "dangling":
            wanted = {_truth(value) for value in values}
            return lambda one: (not one.users) in wanted
        case "driver":
            return lambda one: one.volume.driver in values
        case "name":
            return lambda one: any(value in one.volume.name for value in values)
        case "label":
            return lambda one: all(_labelled(one.volume, value) for value in values)
        case "label!":
            return lambda one: not any(_labelled(one.volume, value) for value in values)
    raise InvalidError(f"invalid filter '{key[:40]}'")


def _labelled(volume: Volume, wanted: str) -> bool:
    name, equals, value = wanted.partition("=")
    found = volume.labels.get(name)
    return found is not None and (not equals or found == value)


def _truth(text: str) -> bool:
    match text.lower():
        case "1" | "true" | "t":
            return True
        case "0" | "false" | "f":
            return False
    raise InvalidError(f"invalid filter 'dangling={text[:40]}'")
