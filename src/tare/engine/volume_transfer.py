"""Volumes out into an archive and back, bit for bit: holes, attributes, hard links, devices.

How consistent an export of a volume in use is, by what can be had:

* ``idle``: no container runs with it (``read-only``: those that do cannot write to it);
* ``snapshot``: the file system shares extents (btrfs, xfs): the containers are frozen while every
  file is cloned, a moment, and the archive is made of the clones;
* ``paused``: asked for with *pause*: they are frozen until the archive is whole;
* ``live``: files may be of different moments, and a file that changes meanwhile is cut or padded.

A kill while containers are frozen leaves marks, ``state/volumes/.frozen/ID``: the next daemon lets
them go on.

Not for: making and removing volumes (engine.volumes).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import stat
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from tare.engine import trees
from tare.engine.lifecycle import Lifecycle
from tare.engine.transfer import consumed, produced
from tare.engine.volumes import Volumes
from tare.errors import ConflictError, FailedError, MissingError, TareError
from tare.image.compress import open_decompressed
from tare.image.entry import FILE_KINDS, Entry, Kind, described
from tare.image.extract import Rules, extract, remove_tree
from tare.image.tar import read
from tare.image.tar_writer import TarWriter
from tare.kernel import files
from tare.model.record import Record
from tare.model.spec import MountKind
from tare.model.state import Action, State
from tare.model.volume import Volume, checked_name

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CHUNK: Final = 1 << 20
_BLOCK: Final = 512


@dataclass(frozen=True, slots=True)
class Export:
    """An archive that is about to come, and what was done for its consistency."""

    consistency: str
    words: str
    chunks: AsyncGenerator[bytes, None]


class Transfers:
    """Export and import of the volumes of one engine."""

    def __init__(self, volumes: Volumes, lifecycle: Lifecycle) -> None:
        self._volumes = volumes
        self._lifecycle = lifecycle
        self._marks = Path(volumes.root) / ".frozen"

    async def export(self, name: str, *, pause: bool = False) -> Export:
        """The volume as an archive; MissingError. Its users are frozen meanwhile as told above."""
        self._volumes.get(name)
        running = [r for r in self._volumes.active_holders(name) if r.alive]
        writers = [r for r in running if _writes(r, name)]
        if not writers:
            word = "read-only" if running else "idle"
            said = "nobody could write to it meanwhile"
            return Export(word, said, self._stream(name, word, ()))
        names = ", ".join(r.name for r in writers)
        async with self._volumes.shown(name) as path:
            shared = await asyncio.to_thread(_shares_extents, path)
        if shared:
            said = f"{names} stood still while the files were cloned"
            return Export("snapshot", said, self._snapshot(name, writers))
        if pause:
            said = f"{names} stood still until the archive was whole"
            return Export("paused", said, self._stream(name, "paused", writers))
        said = (
            f"{names} went on writing: files may be of different moments."
            " --pause freezes them meanwhile"
        )
        return Export("live", said, self._stream(name, "live", ()))

    async def _stream(
        self, name: str, consistency: str, frozen: list[Record] | tuple[()]
    ) -> AsyncGenerator[bytes, None]:
        exact = consistency != "live"
        async with (
            self._volumes.shown(name) as path,
            self._still(frozen),
            contextlib.aclosing(produced(lambda out: write(path, out, exact=exact))) as chunks,
        ):
            async for chunk in chunks:
                yield chunk

    async def _snapshot(self, name: str, writers: list[Record]) -> AsyncGenerator[bytes, None]:
        async with self._volumes.shown(name) as path:
            copy = f"{self._volumes.root}/.new-{secrets.token_hex(8)}"
            os.mkdir(copy, 0o700)
            try:
                async with self._still(writers):
                    await asyncio.to_thread(_clone, path, copy)
                async with contextlib.aclosing(
                    produced(lambda out: write(copy, out, exact=True))
                ) as chunks:
                    async for chunk in chunks:
                        yield chunk
            finally:
                await asyncio.to_thread(shutil.rmtree, copy, ignore_errors=True)

    @contextlib.asynccontextmanager
    async def _still(self, records: list[Record] | tuple[()]) -> AsyncIterator[None]:
        """Frozen meanwhile; those that were paused already stay so."""
        done: list[Record] = []
        try:
            for record in records:
                now = self._lifecycle.store.find(record.id)
                if now is None or now.state is not State.RUNNING:
                    continue
                self._marks.mkdir(exist_ok=True, mode=0o700)
                (self._marks / record.id).touch()
                done.append(record)
                await self._lifecycle.pause(record.id, Action.PAUSE)
            yield
        finally:
            for record in done:
                await self._go_on(record.id)

    async def _go_on(self, identity: str) -> None:
        record = self._lifecycle.store.find(identity)
        if record is not None and record.state is State.PAUSED:
            with contextlib.suppress(TareError):
                await self._lifecycle.pause(identity, Action.UNPAUSE)
        (self._marks / identity).unlink(missing_ok=True)

    async def recover(self) -> None:
        """At the start: what a killed export had frozen goes on."""
        with contextlib.suppress(FileNotFoundError):
            for identity in os.listdir(self._marks):
                await self._go_on(identity)

    # --- import -------------------------------------------------------------------------------

    async def bring(
        self, name: str, source: AsyncIterator[bytes], *, replace: bool = False
    ) -> Volume:
        """Make the volume *name* of an archive (compressed or not); whole or not at all.

        One that is there must be empty, or *replace* asked for, and no container may run with it.
        """
        checked_name(name)
        try:
            volume = self._volumes.get(name)
        except MissingError:
            fresh = Volume(name=name, created_ns=time.time_ns())
            return await self._new(fresh, source)
        busy = self._volumes.active_holders(name)
        if busy:
            raise ConflictError(
                f"volume {name} is in use - [{', '.join(r.name for r in busy)}]",
                hint=f"stop them first: tare stop {' '.join(r.name for r in busy)}",
            )
        async with self._volumes.shown(name) as path:
            if os.listdir(path) and not replace:
                raise ConflictError(
                    f"volume {name} is not empty",
                    hint="--replace deletes what is in it; or import under another name",
                )
            if volume.options:
                await self._in_place(path, source)
            else:
                await self._exchange(name, path, source)
        return volume

    async def _new(self, volume: Volume, source: AsyncIterator[bytes]) -> Volume:
        """Received first and made then: a broken archive makes no volume."""
        copy = f"{self._volumes.root}/.new-{secrets.token_hex(8)}"
        os.mkdir(copy, 0o700)
        try:
            os.mkdir(f"{copy}/_data", 0o755)
            await consumed(source, lambda file: unpack(f"{copy}/_data", file))

            def take(data: int) -> None:
                made = os.readlink(f"/proc/self/fd/{data}")
                os.rename(f"{copy}/_data", made)

            return await self._volumes.adopt(volume, take)
        finally:
            await asyncio.to_thread(shutil.rmtree, copy, ignore_errors=True)

    async def _exchange(self, name: str, path: str, source: AsyncIterator[bytes]) -> None:
        other = f"{self._volumes.root}/.new-{secrets.token_hex(8)}"
        os.mkdir(other, 0o755)
        try:
            await consumed(source, lambda file: unpack(other, file))
            if self._volumes.active_holders(name):
                raise ConflictError(f"volume {name} has come into use meanwhile")
            files.exchange(other, path)
            files.sync_directory(os.path.dirname(path))
        finally:
            await asyncio.to_thread(shutil.rmtree, other, ignore_errors=True)

    async def _in_place(self, path: str, source: AsyncIterator[bytes]) -> None:
        """A file system of its own cannot be exchanged: emptied, then filled."""

        def work(file: BinaryIO) -> None:
            directory = os.open(path, _DIRECTORY)
            try:
                for entry in os.listdir(directory):
                    if stat.S_ISDIR(os.lstat(entry, dir_fd=directory).st_mode):
                        remove_tree(directory, os.fsencode(entry))
                    else:
                        os.unlink(entry, dir_fd=directory)
            finally:
                os.close(directory)
            unpack(path, file)

        await consumed(source, work)


def _writes(record: Record, name: str) -> bool:
    return any(
        m.kind is MountKind.VOLUME and m.source == name and not m.read_only
        for m in record.spec.mounts
    )


def _shares_extents(path: str) -> bool:
    directory = os.open(path, _DIRECTORY)
    try:
        return trees.can_reflink(directory)
    finally:
        os.close(directory)


def _clone(path: str, copy: str) -> None:
    source = os.open(path, _DIRECTORY)
    try:
        target = os.open(copy, _DIRECTORY)
        try:
            trees.copy(source, target, devices=True, reflink=True)
        finally:
            os.close(target)
    finally:
        os.close(source)


def unpack(path: str, source: BinaryIO) -> None:
    """Make the tree of an archive below the directory *path*, with all attributes, and sync it."""
    directory = os.open(path, _DIRECTORY)
    try:
        with open_decompressed(source) as archive:
            extract(read(archive), directory, rules=Rules(layer=False, all_xattrs=True))
        os.sync()
    finally:
        os.close(directory)


def write(path: str, out: BinaryIO, *, exact: bool) -> None:
    """Write the tree at *path* as an archive; with *exact* a file that changes is FailedError."""
    directory = os.open(path, _DIRECTORY)
    try:
        writer = _Writer(TarWriter(out), exact=exact)
        writer.directory(directory, b"", os.fstat(directory))
        writer.tar.close()
    finally:
        os.close(directory)


class _Writer:
    """Walks a tree by descriptors; follows no link."""

    def __init__(self, tar: TarWriter, *, exact: bool) -> None:
        self.tar = tar
        self._exact = exact
        self._links: dict[tuple[int, int], bytes] = {}

    def directory(self, descriptor: int, path: bytes, status: os.stat_result) -> None:
        """Write a directory and what is in it."""
        if path.count(b"/") > 500:
            raise FailedError("the volume is deeper than 500 directories")
        self.tar.add(
            described(path, Kind.DIR, status, xattrs=_encoded(trees.attributes(descriptor)))
        )
        for name in sorted(os.fsencode(n) for n in os.listdir(descriptor)):
            try:
                found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            except FileNotFoundError:
                continue  # deleted since it was listed
            below = path + b"/" + name if path else name
            try:
                self._add(descriptor, name, below, found)
            except FileNotFoundError:
                if self._exact:
                    raise

    def _add(self, parent: int, name: bytes, path: bytes, status: os.stat_result) -> None:
        if stat.S_ISDIR(status.st_mode):
            descriptor = os.open(name, _DIRECTORY, dir_fd=parent)
            try:
                self.directory(descriptor, path, os.fstat(descriptor))
            finally:
                os.close(descriptor)
            return
        key = (status.st_dev, status.st_ino)
        first = self._links.get(key) if status.st_nlink > 1 else None
        if first is not None:
            self.tar.add(described(path, Kind.HARDLINK, status, linkname=first))
            return
        if stat.S_ISREG(status.st_mode):
            self._file(parent, name, path)
        else:
            kind = FILE_KINDS.get(stat.S_IFMT(status.st_mode))
            if kind is None:
                return  # a socket is nothing without its listener
            link = os.readlink(name, dir_fd=parent) if kind is Kind.SYMLINK else b""
            self.tar.add(described(path, kind, status, linkname=os.fsencode(link)))
        if status.st_nlink > 1:
            self._links[key] = path

    def _file(self, parent: int, name: bytes, path: bytes) -> None:
        descriptor = os.open(name, _FILE, dir_fd=parent)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise FailedError(f"{path!r} changed while it was archived")
            entry = described(
                path, Kind.FILE, status, xattrs=_encoded(trees.attributes(descriptor))
            )
            pieces = tuple(_pieces(descriptor, status))
            if pieces != ((0, status.st_size),) and status.st_size:
                entry = entry._replace(sparse=pieces)
            self.tar.add(entry, self._content(descriptor, entry))
        finally:
            os.close(descriptor)

    def _content(self, descriptor: int, entry: Entry) -> Iterator[bytes]:
        for offset, left in entry.sparse if entry.sparse is not None else ((0, entry.size),):
            while left:
                data = os.pread(descriptor, min(left, _CHUNK), offset)
                if not data:
                    if self._exact:
                        return  # the archive's writer says that the file has changed
                    data = bytes(min(left, _CHUNK))  # it has shrunk: padded, as GNU tar does
                yield data
                left -= len(data)
                offset += len(data)


def _pieces(descriptor: int, status: os.stat_result) -> Iterator[tuple[int, int]]:
    """Where the data is, in whole blocks of tar."""
    if status.st_blocks * _BLOCK >= status.st_size:
        yield 0, status.st_size
        return
    for start, length in trees.segments(descriptor, status.st_size):
        end = min(-(-(start + length) // _BLOCK) * _BLOCK, status.st_size)
        start -= start % _BLOCK
        yield start, end - start


def _encoded(attributes: dict[str, bytes]) -> dict[bytes, bytes]:
    return {os.fsencode(name): value for name, value in attributes.items()}
