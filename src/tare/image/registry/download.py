"""A layer from a registry: downloaded, verified, decompressed and converted in one pass.

The bytes go to a partial file and are read from there at the same time (``partial``): a line that
drops goes on where it broke, and so does a pull after a crash. Who wants a layer that somebody
else is fetching waits for the same one. Not for: which layers an image needs (``pull``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

import aiohttp

from tare.errors import FailedError, InvalidError, TareError
from tare.image.compress import Compression, detect
from tare.image.index import Lease
from tare.image.layers import LayerInfo
from tare.image.registry.client import Repository
from tare.image.registry.partial import Growing, Partials
from tare.image.registry.transport import AnswerError, LineError, pause
from tare.image.store import ImageStore, on_disk
from tare.model.digest import Digest
from tare.model.oci import Descriptor

_WRITE: Final = 1 << 20
_PROGRESS: Final = 1 << 20  # bytes without which an attempt was none
_BEYOND: Final = 416  # what we have is more than the registry's blob
_TELL_SECONDS: Final = 0.1


class Phase(StrEnum):
    """How far a layer is."""

    WAITING = "waiting"
    DOWNLOADING = "downloading"
    RETRYING = "retrying"
    VERIFYING = "verifying"
    EXTRACTING = "extracting"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Step:
    """What a layer is at now; *current* and *total* are bytes of its blob."""

    phase: Phase
    current: int = 0
    total: int = 0


Tell = Callable[[Step], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A layer: its blob, what its archive must be, and where it may be had, best first."""

    blob: Descriptor
    diff_id: Digest
    places: Sequence[Repository]


class _Job:
    """One layer that one or more pulls wait for; its lease lasts until all of them have theirs."""

    def __init__(self, store: ImageStore) -> None:
        self.task: asyncio.Task[LayerInfo] | None = None
        self.listeners: list[Tell] = []
        self.last = Step(Phase.WAITING)
        self.leaving = False
        self.gone = asyncio.Event()
        self.held = contextlib.ExitStack()
        self.lease = self.held.enter_context(store.lease())

    def tell(self, step: Step) -> None:
        self.last = step
        for listener in self.listeners:
            listener(step)


class Downloads:
    """Every layer that is being fetched by this engine."""

    def __init__(self, store: ImageStore, partials: Partials, *, parallel: int) -> None:
        self._store = store
        self._partials = partials
        self._jobs: dict[tuple[Digest, Digest], _Job] = {}
        self._slots = asyncio.Semaphore(parallel)
        # Threads of its own: conversions are long, and others wait for the loop's few.
        self._converters = ThreadPoolExecutor(parallel, thread_name_prefix="layer")
        self._writers = ThreadPoolExecutor(parallel, thread_name_prefix="download")

    def close(self) -> None:
        """End the threads; whoever waits for a layer must have been cancelled."""
        self._converters.shutdown()
        self._writers.shutdown()

    async def layer(self, wanted: Wanted, lease: Lease, tell: Tell) -> LayerInfo:
        """The layer, on disk, verified and kept by *lease*. Cancelling stops what only we want.

        What somebody else began is waited for; when it fails, our own registry is asked.
        """
        key = (wanted.blob.digest, wanted.diff_id)
        while True:
            job = await self._joinable(key)
            own = job is None
            if job is None:
                job = self._jobs[key] = _Job(self._store)
                job.task = asyncio.create_task(self._run(wanted, job))
            try:
                return await self._wait_for(key, job, lease, tell)
            except TareError:
                if own:
                    raise

    async def _joinable(self, key: tuple[Digest, Digest]) -> _Job | None:
        """The job to wait for, or None when there is none and the blob's file is nobody's."""
        while True:
            job = self._jobs.get(key)
            if job is not None and not job.leaving:
                return job
            # A blob may be asked for with two diff_ids (one of which is a lie): one by one.
            busy = [one for (blob, _), one in self._jobs.items() if blob == key[0]]
            if not busy:
                return None
            await busy[0].gone.wait()

    async def _wait_for(
        self, key: tuple[Digest, Digest], job: _Job, lease: Lease, tell: Tell
    ) -> LayerInfo:
        assert job.task is not None
        job.listeners.append(tell)
        tell(job.last)
        try:
            found = await asyncio.shield(job.task)
            lease.pin(found.diff_id)
            return found
        finally:
            job.listeners.remove(tell)
            if not job.listeners:
                job.leaving = True
                job.task.cancel()
                try:
                    await asyncio.wait([job.task])
                    await asyncio.to_thread(job.held.close)
                finally:
                    del self._jobs[key]
                    job.gone.set()

    async def _run(self, wanted: Wanted, job: _Job) -> LayerInfo:
        async with self._slots:
            if await asyncio.to_thread(self._store.has_layer, wanted.diff_id, job.lease):
                return self._store.layer(wanted.diff_id)
            while True:
                try:
                    return await self._fetch(wanted, job)
                except _StaleError:
                    # What lay on the disk was not the blob's beginning: once more, from nothing.
                    self._partials.discard(wanted.blob.digest)
                except InvalidError:
                    # A mirror that lies: what is asked next may not.
                    if len(wanted.places) == 1:
                        raise
                    wanted = replace(wanted, places=wanted.places[1:])

    async def _fetch(self, wanted: Wanted, job: _Job) -> LayerInfo:
        loop = asyncio.get_running_loop()
        blob = wanted.blob
        keep = True
        with on_disk(), self._partials.open(blob.digest) as growing:
            if growing.size > blob.size:
                growing.restart()
            resumed = growing.size
            told = _Told(job, growing, blob.size)
            converting = loop.run_in_executor(
                self._converters, self._convert, _Checked(growing, blob), wanted, job.lease
            )
            receiving = asyncio.create_task(self._receive(wanted, growing, told))
            try:
                await asyncio.wait((converting, receiving), return_when=asyncio.FIRST_EXCEPTION)
                if receiving.done() and not receiving.cancelled() and receiving.exception():
                    await receiving
                found = await converting
                keep = False
                job.tell(Step(Phase.DONE, blob.size, blob.size))
                return found
            except (InvalidError, FailedError) as error:
                # A broken line left good bytes; any other failure may be theirs.
                line = receiving.done() and receiving.exception() is error
                short = isinstance(error, AnswerError) and error.status == _BEYOND
                keep = line and not short and not isinstance(error, InvalidError)
                if not keep and resumed:
                    raise _StaleError from error
                raise
            except OSError:
                keep = False  # a full disk is not kept full
                raise
            finally:
                receiving.cancel()
                growing.fail()
                for one in (await asyncio.wait((converting, receiving)))[0]:
                    if not one.cancelled():
                        one.exception()  # raised above, or of no interest beside what is
                told.close()
                if not (keep and growing.size):
                    self._partials.discard(blob.digest)

    def _convert(self, checked: _Checked, wanted: Wanted, lease: Lease) -> LayerInfo:
        return self._store.add_layer(checked, diff_id=wanted.diff_id, blob=wanted.blob, lease=lease)

    # --- the network's side -------------------------------------------------------------------

    async def _receive(self, wanted: Wanted, growing: Growing, told: _Told) -> None:
        """Append until the blob is whole, over as many connections as make progress."""
        settings = wanted.places[0].host.transport.settings
        failed = 0
        while growing.size < wanted.blob.size:
            before = growing.size
            repository = wanted.places[min(failed, len(wanted.places) - 1)]
            try:
                await self._receive_some(repository, wanted.blob, growing)
            except (LineError, TareError) as error:
                if growing.size - before >= _PROGRESS:
                    failed = 0
                failed += 1
                last = failed >= len(wanted.places)
                if last and (not isinstance(error, LineError) or failed >= settings.attempts):
                    growing.fail()
                    raise
                if isinstance(error, LineError):
                    told.retrying()
                    await asyncio.sleep(pause(settings, failed))
            except BaseException:
                growing.fail()
                raise
        growing.finish()
        told.received()

    async def _receive_some(
        self, repository: Repository, blob: Descriptor, growing: Growing
    ) -> None:
        response, position = await repository.open_blob(blob.digest, growing.size)
        gathered = bytearray()
        try:
            length = response.content_length
            if length is not None and position + length != blob.size:
                raise InvalidError(
                    f"blob {blob.digest} has {position + length} bytes; {blob.size} were announced"
                )
            skip = growing.size - position
            left = blob.size - position
            async for piece in response.content.iter_any():
                left -= len(piece)
                if left < 0:
                    raise InvalidError(
                        f"blob {blob.digest} is longer than the {blob.size} bytes announced"
                    )
                if skip:
                    cut = min(skip, len(piece))
                    skip -= cut
                    piece = piece[cut:]
                gathered += piece
                if len(gathered) >= _WRITE:
                    await self._append(growing, gathered)
                    gathered = bytearray()
            await self._append(growing, gathered)
            if left:
                raise LineError(f"blob {blob.digest} from {repository} ended {left} bytes early")
        except (aiohttp.ClientError, TimeoutError, ConnectionError, ssl.SSLError) as error:
            await self._append(growing, gathered)
            raise LineError(f"the line to {repository} dropped: {error or 'silence'}") from error
        finally:
            response.close()

    async def _append(self, growing: Growing, data: bytearray) -> None:
        loop = asyncio.get_running_loop()
        writing = loop.run_in_executor(self._writers, growing.append, data)
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait([writing])  # the file may not be closed under the thread
            raise


class _StaleError(Exception):
    """A download that went on from what lay on the disk is not what it should be."""


class _Checked:
    """A blob's bytes for the converter: compressed as its media type says (a type that lies)."""

    def __init__(self, growing: Growing, blob: Descriptor) -> None:
        self._growing = growing
        self._blob = blob
        self._looked = False

    def read(self, n: int = -1, /) -> bytes:
        """At most *n* of the next bytes."""
        data = self._growing.read(n)
        if not self._looked:
            while len(data) < 6 and (more := self._growing.read(6)):
                data += more
            self._looked = True
            self._look(data)
        return data

    def _look(self, head: bytes) -> None:
        kind = self._blob.media_type
        said = (
            Compression.GZIP if kind.endswith("gzip")
            else Compression.ZSTD if kind.endswith("zstd")
            else Compression.PLAIN
        )  # fmt: skip
        found = detect(head)
        if found is not said:
            raise InvalidError(
                f"blob {self._blob.digest} is {found}, and its type says {said}: {kind[:80]}"
            )


class _Told:
    """Tells how far a job is, now and then, until it is closed."""

    def __init__(self, job: _Job, growing: Growing, total: int) -> None:
        self._job = job
        self._growing = growing
        self._total = total
        self._all_there = False
        self._ticking = asyncio.create_task(self._tick())

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TELL_SECONDS)
            if self._all_there:
                self._job.tell(Step(Phase.EXTRACTING, self._growing.position, self._total))
            elif self._growing.size:
                self._job.tell(Step(Phase.DOWNLOADING, self._growing.size, self._total))

    def retrying(self) -> None:
        self._job.tell(Step(Phase.RETRYING, self._growing.size, self._total))

    def received(self) -> None:
        self._all_there = True
        self._job.tell(Step(Phase.DOWNLOADING, self._total, self._total))
        self._job.tell(Step(Phase.VERIFYING, self._total, self._total))

    def close(self) -> None:
        self._ticking.cancel()


def room_for(partials: Partials, wanted: Sequence[Wanted]) -> None:
    """FailedError when the blobs alone would not leave a tenth of the free disk (attack A29)."""
    status = os.statvfs(partials.directory)
    free = status.f_bavail * status.f_frsize
    needed = sum(one.blob.size for one in wanted)
    if needed > free * 9 // 10:
        raise FailedError(
            f"no space left on the device that holds the images: {needed} bytes are to be"
            f" downloaded, and {free} are free",
            hint="tare image prune frees what nothing uses",
        )


__all__ = ["Downloads", "Phase", "Step", "Tell", "Wanted", "room_for"]
