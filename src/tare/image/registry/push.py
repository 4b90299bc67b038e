"""An image to a registry: only what it does not have, the manifest last.

For each layer, the first that does:

1. the repository has a blob that is known to be this layer: nothing is sent;
2. another repository of the same registry has one: it is mounted from there;
3. the layer's archive is made again, bit for bit, compressed, and sent if nobody has that.

When every layer is there as the blobs of a manifest that the image was pulled by, that manifest is
pushed as it was, so the image keeps its digest. Else an OCI manifest is made. Not for: HTTP
(``transport``), progress in Docker's words (``wire``).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from yarl import URL

from tare.errors import DeniedError, FailedError, TareError
from tare.image.compress import Compression, compressor
from tare.image.index import Source
from tare.image.registry.auth import UnauthorizedError
from tare.image.registry.client import Document, Repository
from tare.image.registry.credentials import Credentials
from tare.image.registry.partial import PUSH, Partials
from tare.image.registry.pull import Notice, together
from tare.image.registry.settings import endpoint
from tare.image.registry.transport import AnswerError, Host, LineError, Transport, pause
from tare.image.store import Image, ImageStore, on_disk
from tare.model import oci
from tare.model.digest import Digest
from tare.model.oci import Descriptor, MediaType
from tare.model.reference import Reference

_PIECE: Final = 1 << 20
_LEAST_CHUNK: Final = 16 << 20
_SHOWN: Final = 12
_CANDIDATES: Final = 8  # known blobs that are asked for, before a layer is made again


class PushPhase(StrEnum):
    """How far a layer is."""

    PREPARING = "preparing"
    PUSHING = "pushing"
    PUSHED = "pushed"
    EXISTS = "exists"
    MOUNTED = "mounted"


@dataclass(frozen=True, slots=True)
class PushNotice:
    """Where one layer is; *origin* is the repository that it was mounted from."""

    id: str
    phase: PushPhase
    current: int = 0
    total: int = 0
    origin: str = ""


Tell = Callable[[Notice | PushNotice], None]


@dataclass(frozen=True, slots=True)
class Pushed:
    """What the registry has now: a manifest's digest and size, by a tag."""

    tag: str
    digest: Digest
    size: int


class Pusher:
    """Pushes from one store."""

    def __init__(self, store: ImageStore, partials: Partials, *, parallel: int) -> None:
        self._store = store
        self._partials = partials
        self._slots = asyncio.Semaphore(parallel)
        self._threads = ThreadPoolExecutor(parallel, thread_name_prefix="push")

    def close(self) -> None:
        """End the threads; no push may be under way."""
        self._threads.shutdown()

    async def push(
        self,
        transport: Transport,
        reference: Reference,
        tell: Tell,
        *,
        credentials: Credentials | None = None,
    ) -> Pushed:
        """Give the registry the image that *reference*, which has a tag, means here."""
        image = await asyncio.to_thread(self._store.get, str(reference))
        host = endpoint(reference.domain)
        own = credentials.meant_for(host) if credentials else None
        place = await transport.find(host)
        repository = Repository(Host(transport, place, own), reference.path, push=True)
        held = contextlib.ExitStack()
        lease = await asyncio.to_thread(held.enter_context, self._store.lease())
        try:
            for digest in (image.id, *image.layers):
                lease.pin(digest)
            return await self._push(repository, reference, image, tell)
        except (AnswerError, UnauthorizedError) as error:
            status = error.status if isinstance(error, AnswerError) else 401
            if status in (401, 403):
                raise DeniedError(
                    f"push access denied for {reference.familiar_name}: {error}",
                    hint="tare login gives the registry's credentials to tare",
                ) from error
            raise
        finally:
            await asyncio.to_thread(held.close)

    async def _push(
        self, repository: Repository, reference: Reference, image: Image, tell: Tell
    ) -> Pushed:
        layers = dict.fromkeys(image.layers)
        for layer in layers:
            tell(PushNotice(layer.hex[:_SHOWN], PushPhase.PREPARING))
        done: dict[Digest, Descriptor] = {}

        async def one(layer: Digest) -> None:
            async with self._slots:
                done[layer] = await _Layer(self, repository, reference, layer, tell).push()

        await together([one(layer) for layer in layers])
        blobs = tuple(done[layer] for layer in image.layers)
        document = await asyncio.to_thread(self._kept_manifest, image, blobs)
        if document is None:
            annotations = await asyncio.to_thread(self._store.notes.annotations, image.id)
            document = _manifest(image, blobs, annotations)
        parsed = document.parse()
        assert isinstance(parsed, oci.Manifest)
        await self._push_config(repository, parsed.config, image.config.raw)
        tag = reference.tag or str(document.digest)
        await repository.put_manifest(tag, document)
        await asyncio.to_thread(self._remember, reference, image, document, blobs)
        size = len(document.raw)
        tell(Notice(f"{tag}: digest: {document.digest} size: {size}"))
        return Pushed(tag, document.digest, size)

    def _kept_manifest(self, image: Image, blobs: Sequence[Descriptor]) -> Document | None:
        """A manifest the image came with, if what the registry has now is what it lists."""
        wanted = [(one.digest, one.size) for one in blobs]
        for kind, raw in self._store.manifests(image.id):
            document = Document(kind, raw)
            with contextlib.suppress(TareError):
                parsed = document.parse()
                if not isinstance(parsed, oci.Manifest) or parsed.config.digest != image.id:
                    continue
                if [(layer.digest, layer.size) for layer in parsed.layers] == wanted:
                    return Document(parsed.media_type, raw)
        return None

    async def _push_config(self, repository: Repository, config: Descriptor, raw: bytes) -> None:
        if await repository.has_blob(config.digest) is not None:
            return
        where, _ = await repository.begin_upload()
        await repository.finish_upload(where, config.digest, _once(raw), len(raw))

    def _remember(
        self,
        reference: Reference,
        image: Image,
        document: Document,
        blobs: Sequence[Descriptor],
    ) -> None:
        self._store.add_manifest(image.id, document.raw, document.media_type, reference)
        self._store.add_sources(
            Source(layer, blob.digest, blob.size, blob.media_type, reference.name)
            for layer, blob in zip(image.layers, blobs, strict=True)
        )

    # --- for one layer ------------------------------------------------------------------------

    def known(self, layer: Digest) -> list[Source]:
        """As which blobs it is known to lie in registries."""
        return list(self._store.sources(layer))

    async def compressed(self, layer: Digest, told: Callable[[int], None]) -> _Blob:
        """The layer's archive made again and compressed, as a file that is its owner's."""
        loop = asyncio.get_running_loop()
        stop = _Stop()
        working = loop.run_in_executor(self._threads, self._compress, layer, told, stop)
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            stop.asked = True
            with contextlib.suppress(TareError):
                (await working).path.unlink(missing_ok=True)
            raise

    def _compress(self, layer: Digest, told: Callable[[int], None], stop: _Stop) -> _Blob:
        with on_disk():
            descriptor, name = tempfile.mkstemp(prefix=PUSH, dir=self._partials.directory)
            path = Path(name)
            try:
                with open(descriptor, "wb") as file:
                    out = _Hashed(file.write)
                    with compressor(Compression.GZIP, out) as packed:
                        taken = 0
                        for piece in self._store.layer_archive(layer):
                            if stop.asked:
                                raise FailedError("the push was stopped")
                            packed.write(piece)
                            taken += len(piece)
                            told(taken)
                return _Blob(path, Digest(out.hash.hexdigest()), out.size)
            except BaseException:
                path.unlink(missing_ok=True)
                raise


class _Stop:
    """A thread's order to end."""

    asked = False


@dataclass(frozen=True, slots=True)
class _Blob:
    path: Path
    digest: Digest
    size: int


class _Hashed:
    """A sink that takes the measure of what passes."""

    def __init__(self, write: Callable[[bytes | memoryview], int]) -> None:
        self._write = write
        self.hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes | memoryview, /) -> int:
        self.hash.update(data)
        self.size += len(data)
        return self._write(data)


class _Layer:
    """One layer on its way to one repository."""

    def __init__(
        self,
        pusher: Pusher,
        repository: Repository,
        reference: Reference,
        layer: Digest,
        tell: Tell,
    ) -> None:
        self._pusher = pusher
        self._repository = repository
        self._reference = reference
        self._layer = layer
        self._tell = tell

    def _say(self, phase: PushPhase, current: int = 0, total: int = 0, origin: str = "") -> None:
        self._tell(PushNotice(self._layer.hex[:_SHOWN], phase, current, total, origin))

    async def push(self) -> Descriptor:
        """Have the registry hold the layer; as which blob."""
        known = await asyncio.to_thread(self._pusher.known, self._layer)
        here = f"{self._reference.domain}/"
        asked: set[Digest] = set()
        for source in known:
            if source.digest not in asked and len(asked) < _CANDIDATES:
                asked.add(source.digest)
                if await self._repository.has_blob(source.digest) == source.size:
                    self._say(PushPhase.EXISTS)
                    return _descriptor(source)
        for source in [s for s in known if s.repository.startswith(here)][:_CANDIDATES]:
            origin = source.repository.removeprefix(here)
            if origin == self._reference.path:
                continue
            mounted = await self._repository.mount(source.digest, origin)
            if mounted is True:
                self._say(PushPhase.MOUNTED, origin=origin)
                return _descriptor(source)
            if isinstance(mounted, URL):
                await self._repository.abandon_upload(mounted)
        return await self._send()

    async def _send(self) -> Descriptor:
        blob = await self._pusher.compressed(self._layer, lambda _: None)
        try:
            if await self._repository.has_blob(blob.digest) is not None:
                self._say(PushPhase.EXISTS)
            else:
                await self._upload(blob)
                self._say(PushPhase.PUSHED)
        finally:
            blob.path.unlink(missing_ok=True)
        return Descriptor(media_type=MediaType.OCI_LAYER_GZIP, digest=blob.digest, size=blob.size)

    async def _upload(self, blob: _Blob) -> None:
        """Send the blob; a line that drops goes on where the registry says it was."""
        settings = self._repository.host.transport.settings
        where, least = await self._repository.begin_upload()
        sent = failed = 0
        with open(blob.path, "rb") as file:
            while True:
                try:
                    while sent < blob.size:
                        left = blob.size - sent
                        size = min(left, max(least, _LEAST_CHUNK)) if least else left
                        body = self._body(file.fileno(), sent, size, blob.size)
                        where = await self._repository.send_part(where, body, sent, size)
                        sent += size
                    await self._repository.finish_upload(where, blob.digest)
                    return
                except AnswerError as error:
                    if error.status in (404, 405, 411, 415, 416, 501) and not failed:
                        # It takes no parts: all at once, as distribution-spec's "Monolithically".
                        failed += 1
                        where, least = await self._repository.begin_upload()
                        body = self._body(file.fileno(), 0, blob.size, blob.size)
                        await self._repository.finish_upload(where, blob.digest, body, blob.size)
                        return
                    if error.status < 500 and error.status != 429:
                        raise
                    failed += 1
                    if failed >= settings.attempts:
                        raise
                except LineError:
                    failed += 1
                    if failed >= settings.attempts:
                        raise
                await asyncio.sleep(pause(settings, failed))
                where, sent = await self._again(where, blob)

    async def _again(self, where: URL, blob: _Blob) -> tuple[URL, int]:
        """Where an upload goes on: as far as the registry has it, or from the beginning."""
        with contextlib.suppress(TareError):
            found, sent = await self._repository.sent(where)
            if 0 <= sent <= blob.size:
                return found, sent
        where, _ = await self._repository.begin_upload()
        return where, 0

    async def _body(self, file: int, start: int, size: int, total: int) -> AsyncIterator[bytes]:
        end = start + size
        while start < end:
            piece = await asyncio.to_thread(os.pread, file, min(_PIECE, end - start), start)
            if not piece:
                raise FailedError("a compressed layer was cut while it was sent")
            self._say(PushPhase.PUSHING, start, total)
            yield piece
            start += len(piece)
        self._say(PushPhase.PUSHING, end, total)


def _descriptor(source: Source) -> Descriptor:
    return Descriptor(media_type=source.media_type, digest=source.digest, size=source.size)


async def _once(raw: bytes) -> AsyncIterator[bytes]:
    yield raw


def _manifest(
    image: Image, blobs: Sequence[Descriptor], annotations: Mapping[str, str]
) -> Document:
    """The OCI manifest of an image whose layers are these blobs."""
    config = Descriptor(
        media_type=MediaType.OCI_CONFIG, digest=image.id, size=len(image.config.raw)
    )
    layers = tuple(
        Descriptor(media_type=_oci_type(one.media_type), digest=one.digest, size=one.size)
        for one in blobs
    )
    return Document(
        MediaType.OCI_MANIFEST, oci.encode_manifest(config, layers, annotations=annotations)
    )


def _oci_type(kind: str) -> str:
    if kind.endswith("zstd"):
        return MediaType.OCI_LAYER_ZSTD
    if kind.endswith("gzip"):
        return MediaType.OCI_LAYER_GZIP
    return MediaType.OCI_LAYER


def tags_of(image: Image, name: str) -> Iterator[str]:
    """The tags by which *name*, a familiar repository name, means the image."""
    for tag in image.tags:
        head, _, last = tag.rpartition(":")
        if head == name:
            yield last
