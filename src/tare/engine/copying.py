"""Files of containers: cp, diff, export, commit, and how much they take.

A running container is seen through its first process's root, a stopped one by mounting its
layers and what it wrote, detached, for the time of the operation. All of it works in threads.

Not for: following paths: `engine.archives` does, and never leaves the root.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from typing import TYPE_CHECKING, BinaryIO

from tare.engine.core import only_container
from tare.engine.observing import Observing
from tare.engine.transfer import consumed, produced
from tare.errors import ConflictError, DeniedError, MissingError, UnsupportedError
from tare.kernel import process
from tare.model.record import PathStat, Record
from tare.model.spec import MountKind
from tare.model.state import State
from tare.run import rootfs
from tare.run.sandbox import Root

if TYPE_CHECKING:
    from tare.image.changes import Change
    from tare.model.oci import ImageConfig


class Copying(Observing):
    """The verbs that look into a container's file system."""

    async def sizes(self, ref: str) -> tuple[int, int]:
        """The bytes that it wrote itself, and those with its image."""
        record = self._store.get(ref)
        written = await asyncio.to_thread(_written, record.workload_dir)
        try:
            image = (await self._core.images.get(record.image_id)).size
        except MissingError:
            image = 0
        return written, written + image

    async def changes(self, ref: str) -> builtins.list[Change]:
        """What it added, changed and deleted, compared with its image; sorted by path."""
        from tare.image.changes import changes

        record = self._store.get(ref)
        only_container(record, "diff")
        layers = await self._layers(record)

        def compare() -> builtins.list[Change]:
            upper = _open_upper(record)
            if upper < 0:
                return []
            try:
                lower = rootfs.mounted_image(layers)
                try:
                    found = changes(upper, lower, userxattr=self._core.paths.rootless)
                    return _own(found, upper)
                finally:
                    os.close(lower)
            finally:
                os.close(upper)

        return await asyncio.to_thread(compare)

    async def commit(
        self,
        ref: str,
        config: ImageConfig,
        *,
        repository: str = "",
        tag: str = "",
        changes: Iterable[str] = (),
        pause: bool = True,
    ) -> str:
        """Make an image of the container as it is; the image's id. Paused meanwhile if asked."""
        record = self._store.get(ref)
        only_container(record, "commit")
        reference = f"{repository}:{tag}" if repository and tag else repository
        base = await self._core.images.get(record.image_id)
        layers, rootless = await self._layers(record), self._core.paths.rootless
        frozen = pause and record.state is State.RUNNING
        if frozen:
            await self._driver.freeze(record)
        try:
            image = await self._core.images.commit(
                base,
                lambda file: _write_changes(record, file, layers, rootless=rootless),
                config,
                reference=reference,
                changes=changes,
            )
        finally:
            if frozen:
                await self._driver.thaw(record)
        self._lifecycle.emit(record, "commit", {"comment": "", "imageID": str(image.id)})
        return str(image.id)

    # --- archives -----------------------------------------------------------------------------

    async def archive_stat(self, ref: str, path: str) -> PathStat:
        """What *path* is, links in it followed within the container; MissingError."""
        from tare.engine import archives

        record = self._store.get(ref)
        async with self._whole(record) as root:
            return await asyncio.to_thread(archives.find, root.fileno(), path)

    async def archive_get(
        self, ref: str, path: str
    ) -> tuple[PathStat, AsyncGenerator[bytes, None]]:
        """What *path* is, and an archive of it and what is below it."""
        record = self._store.get(ref)
        found = await self.archive_stat(ref, path)
        self._lifecycle.emit(record, "archive-path")
        return found, self._archive(record, path)

    def export(self, ref: str) -> AsyncGenerator[bytes, None]:
        """The whole file system as an archive."""
        record = self._store.get(ref)
        only_container(record, "export")
        self._lifecycle.emit(record, "export")
        return self._archive(record, "/.", one_mount=True)

    async def archive_put(
        self,
        ref: str,
        path: str,
        source: AsyncIterator[bytes],
        *,
        no_overwrite_dir_non_dir: bool = False,
        copy_ids: bool = False,
    ) -> None:
        """Unpack an archive (compressed or not) below the directory *path*."""
        from tare.engine import archives

        record = self._store.get(ref)
        if record.spec.read_only and record.alive:
            raise DeniedError("container rootfs is marked read-only")
        async with self._whole(record) as root:
            await consumed(
                source,
                lambda file: archives.unpack(
                    root.fileno(),
                    path,
                    file,
                    block=_block(record),
                    keep_types=no_overwrite_dir_non_dir,
                    user=record.spec.process.user if copy_ids else "",
                ),
            )
        self._lifecycle.emit(record, "extract-to-dir")

    async def _archive(
        self, record: Record, path: str, *, one_mount: bool = False
    ) -> AsyncGenerator[bytes, None]:
        from tare.engine import archives

        # An export is of the container's own files: what is mounted there is not among them.
        async with self._whole(record, alone=one_mount) as root:
            async for chunk in produced(
                lambda file: archives.write(
                    root.fileno(), path, file, block=_block(record), one_mount=one_mount
                )
            ):
                yield chunk

    @contextlib.asynccontextmanager
    async def _whole(self, record: Record, *, alone: bool = False) -> AsyncIterator[Descriptor]:
        """Its file system with its volumes and binds, as it is when it runs; or without them."""
        with await self._root(record) as root:
            bare = record.alive or alone
            mounts = [] if bare else [m for m in record.spec.mounts if m.source]
            if not mounts:
                yield root
                return
            async with contextlib.AsyncExitStack() as held:
                wanted = []
                for one in sorted(mounts, key=lambda m: m.target.count("/")):
                    source = one.source
                    if one.kind is MountKind.VOLUME:
                        with contextlib.suppress(MissingError):
                            volumes = self._core.volumes
                            source = await held.enter_async_context(volumes.shown(source))
                    wanted.append(rootfs.Shown(source, one.subpath, one.target, one.read_only))
                try:
                    await asyncio.to_thread(rootfs.show, root.fileno(), wanted, _block(record))
                except OSError as error:
                    raise UnsupportedError(
                        f"the volumes of {record.name} cannot be shown while it does not run:"
                        f" {error.strerror}",
                        hint="start it first (Linux 6.15 and later need no start)",
                    ) from error
                yield root

    async def _root(self, record: Record) -> Descriptor:
        """The container's file system: the live one, or a mount made for us alone."""
        only_container(record, "cp")
        if record.alive:
            return _live(record)
        layers = await self._layers(record)
        root: Root = {
            "layers": layers,
            "upper": f"{record.layer_dir}/upper",
            "work": f"{record.layer_dir}/work",
            "attributes": 0,
            "volatile": False,
        }
        mounted = await asyncio.to_thread(
            rootfs.mounted, root, _block(record), user_xattr=self._core.paths.rootless
        )
        return Descriptor(mounted)

    async def _layers(self, record: Record) -> builtins.list[str]:
        return [os.fspath(path) for path in await self._core.images.layers(record.image_id)]


def _live(record: Record) -> Descriptor:
    """The root that the container's first process sees; ConflictError if that has just ended."""
    root = -1
    try:
        root = rootfs.live(record.pid)
        # Asked after the open: still the same process, so it was its root and no stranger's.
        if process.start_time(record.pid) == record.pid_start:
            return Descriptor(root)
    except (FileNotFoundError, ProcessLookupError):
        pass
    if root >= 0:
        os.close(root)
    raise ConflictError(f"container {record.id[:12]} has just ended", hint="try again")


class Descriptor:
    """An owned descriptor: closed by ``with``."""

    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        """Its number."""
        return self._number

    def __enter__(self) -> Descriptor:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._number)


def _own(found: builtins.list[Change], upper: int) -> builtins.list[Change]:
    """Without the empty places that mounts were put on: nobody inside made them."""
    from tare.image.changes import PLACES, ChangeKind

    places = set()
    for path in PLACES:
        with contextlib.suppress(OSError):
            status = os.stat(path, dir_fd=upper, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode) or status.st_size == 0:
                places.add(f"/{path.decode()}")
    kept = [c for c in found if not (c.kind is ChangeKind.ADDED and c.path in places)]
    parents = {c.path.rpartition("/")[0] for c in kept}
    return [
        change
        for change in kept
        if change.path != "/etc" or change.kind is not ChangeKind.CHANGED or "/etc" in parents
    ]


def _block(record: Record) -> tuple[int, int] | None:
    block = record.id_block
    return (block.base, block.size) if block is not None else None


def _open_upper(record: Record) -> int:
    """The container's own layer; -1 when it never ran and nothing was copied into it."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(f"{record.layer_dir}/upper", flags)
    except FileNotFoundError:
        return -1


def _write_changes(
    record: Record, file: BinaryIO, layers: builtins.list[str], *, rootless: bool
) -> None:
    """The container's own layer as an archive, ids as they are inside."""
    from tare.image.changes import write_layer
    from tare.image.tar_writer import TarWriter

    upper = _open_upper(record)
    if upper < 0:
        TarWriter(file).close()
        return
    block = record.id_block

    def inside(host: int) -> int:
        if block is not None and block.base <= host < block.base + block.size:
            return host - block.base
        return host

    try:
        lower = rootfs.mounted_image(layers)
        try:
            write_layer(upper, file, unshift=inside, userxattr=rootless, lower=lower)
        finally:
            os.close(lower)
    finally:
        os.close(upper)


def _written(directory: str) -> int:
    """What a container wrote, or the disk of a machine holds."""
    try:
        disk = os.stat(f"{directory}/machine/upper").st_blocks * 512  # it is sparse
    except FileNotFoundError:
        disk = 0
    limited = _disk_usage(f"{directory}/disk/_data/upper")
    return _disk_usage(f"{directory}/upper") + limited + disk


def _disk_usage(path: str) -> int:
    total = 0
    for directory, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(f"{directory}/{name}").st_size
            except FileNotFoundError:
                continue
    return total
