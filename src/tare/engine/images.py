"""Images for the rest of the engine: the store's verbs as coroutines, with events.

The store is synchronous and may hold its lock for long, so it is called in threads; answers that
every create and start needs are remembered until something changes the store. Streams go through
pipes: the loop's side never blocks, the thread's side reads and writes files.

Also knows who uses which image (`hold`, `release`), so that a removal never harms a container.

Not for: what an image is (image.store).
"""

from __future__ import annotations

import asyncio
import builtins
import os
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Collection,
    Iterable,
    Mapping,
    Sequence,
)
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from tare.engine.events import Events
from tare.engine.store import Store
from tare.engine.transfer import consumed, piped, produced
from tare.engine.trust import ASKED, ATTACHED
from tare.model.digest import Digest
from tare.model.reference import Reference
from tare.trust.switch import Mode

if TYPE_CHECKING:
    from tare.engine.trust import Trust
    from tare.image.archive import Loaded
    from tare.image.pruning import Swept
    from tare.image.store import Image, ImageStore, Removed
    from tare.model.oci import History, ImageConfig

_T = TypeVar("_T")


class Images:
    """The image store of one engine, as its event loop sees it."""

    def __init__(
        self, store: ImageStore, records: Store, events: Events, *, trust: Trust | None = None
    ) -> None:
        self._store = store
        self._trust = trust
        self._records = records
        self._events = events
        self._users: dict[str, set[str]] = {}
        self._known: dict[str, Image] = {}
        self._layers: dict[str, list[Path]] = {}
        self._generation = 0
        self._changing = 0

    @property
    def generation(self) -> int:
        """Changes whenever the store does."""
        return self._generation

    # --- who uses what ------------------------------------------------------------------------

    def hold(self, image_id: str, container: str) -> None:
        """Count *container* as a user of an image."""
        self._users.setdefault(image_id, set()).add(container)
        self._store.notes.touch(Digest.parse(image_id))

    def release(self, image_id: str, container: str) -> None:
        """It is one no more."""
        users = self._users.get(image_id)
        if users is not None:
            users.discard(container)
            self._store.notes.touch(Digest.parse(image_id))
            if not users:
                del self._users[image_id]

    def _in_use(self, digest: Digest) -> list[str]:
        # Called in a thread: copying a set of strings is one step of the interpreter.
        return list(self._users.get(str(digest), ()))

    def _running(self, digest: Digest) -> list[str]:
        found = (self._records.find(identity) for identity in self._in_use(digest))
        return [record.id for record in found if record is not None and record.running]

    # --- look ---------------------------------------------------------------------------------

    async def get(self, ref: str) -> Image:
        """An image by name, id or unique id prefix; MissingError."""
        # While something may be deleted only the store knows: it makes us wait for the end of that.
        found = None if self._changing else self._known.get(ref)
        if found is not None:
            return found
        generation = self._generation
        image = await asyncio.to_thread(self._store.get, ref)
        if generation == self._generation:
            self._known[ref] = image
        return image

    async def layers(self, image_id: str) -> Sequence[Path]:
        """What to mount for an image, bottom first."""
        found = self._layers.get(image_id)
        if found is None:
            generation = self._generation
            image = await self.get(image_id)
            found = await asyncio.to_thread(self._store.layer_paths, image)
            if generation == self._generation:
                self._layers[image_id] = found
        return found

    async def tree(self, image_id: str) -> Callable[[], int]:
        """What opens the image's files as one read-only tree; call it in a thread."""
        from tare.run import rootfs

        paths = [os.fspath(path) for path in await self.layers(image_id)]
        return lambda: rootfs.mounted_image(paths)

    def highest_id(self, image: Image) -> int:
        """The largest user or group id in the image."""
        return self._store.highest_id(image)

    async def list(self) -> builtins.list[Image]:
        """Every image, the newest first."""
        return await asyncio.to_thread(self._store.list)

    async def history(self, ref: str) -> builtins.list[tuple[History, int]]:
        """How it came to be, oldest first, and what each step weighs."""
        return await asyncio.to_thread(self._store.history, ref)

    # --- change -------------------------------------------------------------------------------

    async def tag(self, ref: str, new: str) -> Image:
        """Give it one more name."""
        image = await self._change(lambda: self._store.tag(ref, new))
        self._emit("tag", str(image.id), new)
        return image

    async def remove(self, ref: str, *, force: bool = False) -> builtins.list[Removed]:
        """Take a name away, and the image with its last one."""
        removed = await self._change(
            lambda: self._store.remove(ref, force=force, in_use=self._in_use, running=self._running)
        )
        self._tell_removed(removed)
        return removed

    async def pin(self, ref: str, *, pinned: bool) -> str:
        """Keep a name from every collector, or no more: what it is called."""
        name = Reference.parse(ref).with_default_tag()
        deed = self._store.notes.pin if pinned else self._store.notes.unpin
        await asyncio.to_thread(deed, name)
        self._emit("pin" if pinned else "unpin", name.familiar, name.familiar)
        return name.familiar

    async def pins(self) -> builtins.list[str]:
        """The names that are kept so."""
        return await asyncio.to_thread(self._store.notes.pins)

    async def weigh(self) -> tuple[int, dict[str, int]]:
        """The bytes of all layers, and by image of those that no other image has."""
        return await asyncio.to_thread(self._weigh)

    def _weigh(self) -> tuple[int, dict[str, int]]:
        unique = {str(image.id): self._store.unique(image) for image in self._store.list()}
        return self._store.weight(), unique

    async def shrink(self, limit: int, cached: Collection[Digest] = ()) -> Swept:
        """Delete what was unused for longest until all layers take *limit* bytes.

        *cached* are layers that only the cache of builds keeps: they count as free.
        """
        swept = await self._change(lambda: self._store.shrink(limit, self._in_use, cached=cached))
        for name in swept.names:
            self._emit("untag", name, name)
        for digest in swept.images:
            self._emit("delete", str(digest), str(digest))
        return swept

    async def prune(
        self,
        dangling_only: bool = True,
        filters: Mapping[str, Iterable[str]] | None = None,
        *,
        dry: bool = False,
        without: Collection[str] = (),
    ) -> tuple[builtins.list[Removed], int]:
        """Delete those without a name (or all) that no container uses; the bytes freed.

        *dry* deletes nothing, and answers the same; as if the containers *without* were gone.
        """

        def in_use(digest: Digest) -> builtins.list[str]:
            found = self._in_use(digest)
            return [user for user in found if user not in without] if dry else found

        removed, freed = await self._change(
            lambda: self._store.prune(dangling_only, in_use, filters, dry=dry)
        )
        if dry:
            return removed, freed
        self._tell_removed(removed)
        self._events.emit("image", "prune", "", {"reclaimed": str(freed)})
        return removed, freed

    async def load(
        self, source: AsyncIterator[bytes], progress: Callable[[str], None] = lambda _: None
    ) -> builtins.list[str]:
        """Take in an archive of images; their names or ids. *progress* may come from a thread."""
        taken: builtins.list[Loaded] = []
        trust = self._trust
        # Threads do not know what the request asks for: it is taken along.
        mode, asked = (trust.effective, ASKED.get()) if trust else (Mode.OFF, Mode.OFF)

        def admit(found: builtins.list[Loaded]) -> None:
            if trust is not None:
                trust.loading(found, mode, asked)
            taken.extend(found)

        def work(file: BinaryIO) -> builtins.list[str]:
            keep = mode is Mode.ON
            names = self._store.load(file, progress, replace_tags=not keep, admit=admit)
            if trust is not None:
                trust.loaded(taken)
            return names

        loaded = await self._change_from(source, work)
        for name in loaded:
            self._emit("load", name, name)
        return loaded

    async def import_(
        self,
        source: AsyncIterator[bytes],
        *,
        repository: str = "",
        tag: str = "",
        changes: Iterable[str] = (),
        message: str = "",
    ) -> Image:
        """Make an image of a root file system's archive."""
        if self._trust is not None:
            self._trust.importing()
        image = await self._change_from(
            source,
            lambda file: self._store.import_(
                file, repository=repository, tag=tag, changes=changes, message=message
            ),
        )
        self._emit("import", str(image.id), repository or str(image.id))
        return image

    async def commit(
        self,
        base: Image,
        layer: Callable[[BinaryIO], None],
        config: ImageConfig,
        *,
        reference: str = "",
        changes: Iterable[str] = (),
    ) -> Image:
        """Make an image of *base* and the layer that *layer* writes, in a thread of its own."""
        try:
            image = await piped(
                layer,
                lambda file: self._store.commit(
                    base, file, config, reference=reference, changes=changes
                ),
            )
        finally:
            self._forget()
        if self._trust is not None:
            accepted = await self._trust.accepted(str(base.id))
            await self._trust.made(image.id, accepted=accepted)
        self._emit("commit", str(image.id), reference or str(image.id))
        return image

    async def save(
        self, refs: Iterable[str], *, format: str = "docker-archive"
    ) -> AsyncGenerator[bytes, None]:
        """The bytes of an archive of images."""
        names = list(refs)
        members = await asyncio.to_thread(self._attached, names)
        async for chunk in produced(
            lambda file: self._store.save(names, file, format=format, members=members)
        ):
            yield chunk
        for name in names:
            self._emit("save", name, name)

    async def bootstrap(
        self,
        suite: str,
        *,
        variant: str = "",
        packages: Sequence[str] = (),
        mirror: str = "",
        reference: str = "",
        progress: Callable[[str], None] = lambda _: None,
    ) -> Image:
        """Make a base image from a distribution's signed packages."""
        from tare.image import bootstrap

        image = await self._change(
            lambda: bootstrap.bootstrap(
                self._store,
                suite,
                variant=variant,
                packages=packages,
                mirror=mirror,
                reference=reference,
                progress=progress,
            )
        )
        if self._trust is not None:
            await self._trust.made(image.id, accepted=True)  # Debian's signatures were checked
        self._emit("import", str(image.id), reference or suite)
        return image

    def _attached(self, names: Sequence[str]) -> dict[str, bytes]:
        """What goes into an archive of these images beside them: their signatures."""
        if self._trust is None:
            return {}
        found = dict.fromkeys(self._store.get(name).id for name in names)
        content = self._trust.attachment(list(found))
        return {ATTACHED: content} if content else {}

    def changed(self) -> None:
        """Somebody else changed the store: nothing that is remembered of it counts any more."""
        self._forget()

    def recover(self) -> None:
        """Delete what a crash left half made: call it in a thread, before anything else."""
        self._store.recover()

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    # --- inside -------------------------------------------------------------------------------

    async def _change(self, work: Callable[[], _T]) -> _T:
        self._changing += 1
        try:
            return await asyncio.to_thread(work)
        finally:
            self._changing -= 1
            self._forget()

    async def _change_from(
        self, source: AsyncIterator[bytes], work: Callable[[BinaryIO], _T]
    ) -> _T:
        try:
            return await consumed(source, work)
        finally:
            self._forget()

    def _forget(self) -> None:
        self._generation += 1
        self._known.clear()
        self._layers.clear()

    def _emit(self, action: str, identity: str, name: str) -> None:
        self._events.emit("image", action, identity, {"name": name})

    def _tell_removed(self, removed: Iterable[Removed]) -> None:
        for one in removed:
            action = "untag" if one.kind == "untagged" else "delete"
            self._emit(action, one.name, one.name)
