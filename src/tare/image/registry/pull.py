"""An image from a registry: which one, of which platform, and all of it or nothing.

1. the name is asked of the mirrors, then of the registry itself; what answers decides the digest;
2. an index leads to one manifest, never to another index; both are verified by their digests;
3. the configuration is verified, and must have as many layers as the manifest, and the platform
   that the index promised;
4. layers that are here are kept, the others fetched at the same time (``download``);
5. only then the image is named: by its tag, and by its digest.

Not for: HTTP (``transport``), JSON of progress (``wire``), whether an image may be run (trust).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from tare.errors import FailedError, InvalidError, MissingError, TareError
from tare.image.index import Lease, Source
from tare.image.registry.auth import UnauthorizedError
from tare.image.registry.client import Document, Repository
from tare.image.registry.credentials import Credentials
from tare.image.registry.download import Downloads, Phase, Step, Wanted, room_for
from tare.image.registry.partial import Partials
from tare.image.registry.settings import endpoint
from tare.image.registry.transport import AnswerError, Host, Place, Transport
from tare.image.store import Image, ImageStore
from tare.model import oci
from tare.model.digest import Digest
from tare.model.oci import ImageConfig, Platform
from tare.model.reference import Reference

_SHOWN: Final = 12


@dataclass(frozen=True, slots=True)
class Notice:
    """Something to tell of the pull or push as a whole, about *subject* if it names one."""

    text: str
    subject: str = ""


@dataclass(frozen=True, slots=True)
class LayerNotice:
    """Where one layer is; *id* is the short form that people see."""

    id: str
    step: Step


@dataclass(frozen=True, slots=True)
class LayerKept:
    """A layer need not be moved: it is there already."""

    id: str


Tell = Callable[[Notice | LayerNotice | LayerKept], None]
Admit = Callable[[Sequence[Repository], Reference, "Found"], Coroutine[None, None, Sequence[str]]]
"""Asked, before anything of an image is brought, whether it may be; answers warnings."""


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a pull brought: the image, and the digest by which the registry names it."""

    image: Image
    digest: Digest
    fresh: bool


@dataclass(frozen=True, slots=True)
class Found:
    """A name, resolved: the manifest of one image, and the digest that the name stands for."""

    manifest: oci.Manifest
    digest: Digest
    top: Document
    promised: Platform | None


async def repositories(
    transport: Transport, reference: Reference, credentials: Credentials | None
) -> list[Repository]:
    """Where the content of a name may be had: its mirrors, without credentials, then itself."""
    host = endpoint(reference.domain)
    found = [
        Repository(Host(transport, Place(one.scheme, one.host, one.path)), reference.path)
        for one in transport.settings.of(host).mirrors
    ]
    own = credentials.meant_for(host) if credentials else None
    try:
        place = await transport.find(host)
    except TareError:
        if not found:
            raise
        return found
    return [*found, Repository(Host(transport, place, own), reference.path)]


async def fetch_document(
    places: Sequence[Repository], reference: str | Digest | oci.Descriptor, shown: str
) -> Document:
    """A manifest from the first place that has it; the last one's refusal in Docker's words."""
    for place in places[:-1]:
        with contextlib.suppress(TareError):
            return await place.manifest(reference)
    try:
        return await places[-1].manifest(reference)
    except (AnswerError, UnauthorizedError) as error:
        refused(error, shown)


def refused(error: AnswerError | UnauthorizedError, shown: str) -> NoReturn:
    """Raise a registry's refusal of the image *shown* as Docker's clients know it."""
    status = error.status if isinstance(error, AnswerError) else 401
    if status == 404:
        raise MissingError(
            f"manifest for {shown} not found: manifest unknown: manifest unknown",
            hint="see that the name and the tag are spelled as the registry has them",
        ) from error
    if status in (401, 403):
        name = shown.partition("@")[0]
        head, slash, last = name.rpartition("/")
        raise MissingError(
            f"pull access denied for {head + slash + last.partition(':')[0]}, repository does not"
            f" exist or may require 'docker login': {error}",
            hint="tare login gives the registry's credentials to tare",
        ) from error
    raise error


async def resolve(places: Sequence[Repository], reference: Reference, platform: Platform) -> Found:
    """What *reference* stands for, down to the manifest of one image (steps 1 and 2)."""
    asked = reference.digest or reference.tag or ""
    top = await fetch_document(places, asked, reference.familiar)
    document = top.parse()
    if isinstance(document, oci.Manifest):
        return Found(document, top.digest, top, None)
    chosen = document.choose(platform)
    below = await fetch_document(places, chosen, f"{reference.familiar} ({platform})")
    manifest = below.parse()
    if isinstance(manifest, oci.Index):
        raise InvalidError(f"the index of {reference.familiar} leads to another index")
    return Found(manifest, top.digest, top, chosen.platform)


def host_platform() -> Platform:
    """The platform of this host."""
    return oci.host_platform(os.uname().machine)


class Puller:
    """Pulls into one store; may be asked for many images at once."""

    def __init__(self, store: ImageStore, partials: Partials, downloads: Downloads) -> None:
        self._store = store
        self._partials = partials
        self._downloads = downloads

    async def pull(
        self,
        transport: Transport,
        reference: Reference,
        tell: Tell,
        *,
        credentials: Credentials | None = None,
        platform: Platform | None = None,
        admit: Admit | None = None,
    ) -> Pulled:
        """Bring an image, unless it is here; what it was named before it is named no more."""
        reference = reference.with_default_tag()
        wanted = platform or host_platform()
        places = await repositories(transport, reference, credentials)
        found = await resolve(places, reference, wanted)
        for warning in await admit(places, reference, found) if admit is not None else ():
            tell(Notice(f"Warning: {warning}"))
        tell(Notice(f"Pulling from {reference.path}", reference.tag or str(reference.digest)))
        known = await asyncio.to_thread(self._known, reference, found, platform)
        if known is None:
            image = await self._bring(places, reference, found, platform, tell)
        else:
            image = known
        tell(Notice(f"Digest: {found.digest}"))
        words = "Downloaded newer image" if known is None else "Image is up to date"
        tell(Notice(f"Status: {words} for {reference.familiar}"))
        return Pulled(image, found.digest, known is None)

    def _known(self, reference: Reference, found: Found, platform: Platform | None) -> Image | None:
        """The image, if all of it is here under this name."""
        id = self._store.find(reference)
        if id is None or id != found.manifest.config.digest:
            return None
        if self._store.find(reference.with_digest(found.digest)) != id:
            return None
        image = self._store.get(str(id))
        _check_platform(image.config, found.promised, platform, reference)
        return image

    async def _bring(
        self,
        places: Sequence[Repository],
        reference: Reference,
        found: Found,
        platform: Platform | None,
        tell: Tell,
    ) -> Image:
        config = await _config(places, found.manifest)
        _check_platform(config, found.promised, platform, reference)
        if len(config.diff_ids) != len(found.manifest.layers):
            raise InvalidError(
                f"the image has {len(found.manifest.layers)} layers in its manifest and"
                f" {len(config.diff_ids)} in its configuration"
            )
        layers = [
            Wanted(blob, diff_id, places)
            for blob, diff_id in zip(found.manifest.layers, config.diff_ids, strict=True)
        ]
        held = contextlib.ExitStack()
        lease = await asyncio.to_thread(held.enter_context, self._store.lease())
        lease.pin(config.digest)  # until it is told: no collector takes it before
        try:
            await self._layers(layers, lease, tell)
            return await asyncio.to_thread(self._name, reference, found, config, layers)
        finally:
            await asyncio.to_thread(held.close)

    async def _layers(self, layers: Sequence[Wanted], lease: Lease, tell: Tell) -> None:
        missing: dict[Digest, Wanted] = {}
        for one in layers:
            shown = one.blob.digest.hex[:_SHOWN]
            if one.diff_id in missing:
                continue
            if await asyncio.to_thread(self._store.has_layer, one.diff_id, lease):
                tell(LayerKept(shown))
            else:
                tell(LayerNotice(shown, Step(Phase.WAITING, 0, one.blob.size)))
                missing[one.diff_id] = one
        room_for(self._partials, [*missing.values()])
        try:
            await together(
                [self._downloads.layer(one, lease, _for(one, tell)) for one in missing.values()]
            )
        except FailedError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
                for one in missing.values():  # a full disk is not kept full
                    self._partials.discard_idle(one.blob.digest)
            raise

    def _name(
        self,
        reference: Reference,
        found: Found,
        config: ImageConfig,
        layers: Sequence[Wanted],
    ) -> Image:
        names = [reference] if reference.digest is None else []
        image = self._store.add_image(config, names=names)
        manifest = found.manifest
        if found.digest != manifest.digest:
            self._store.add_manifest(image.id, manifest.raw, manifest.media_type)
        # What the registry called it may be nothing; what it says of itself is known by now.
        kind = found.top.parse().media_type
        self._store.add_manifest(image.id, found.top.raw, kind, reference)
        self._store.add_sources(
            Source(
                one.diff_id,
                one.blob.digest,
                one.blob.size,
                one.blob.media_type,
                reference.name,
            )
            for one in layers
        )
        return self._store.get(str(image.id))


def _for(one: Wanted, tell: Tell) -> Callable[[Step], None]:
    shown = one.blob.digest.hex[:_SHOWN]

    def told(step: Step) -> None:
        if step.phase is not Phase.WAITING:
            tell(LayerNotice(shown, step))

    return told


async def together(work: Sequence[Coroutine[None, None, object]]) -> None:
    """Do all of *work* at once; the first failure stops the rest, and is raised."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _config(places: Sequence[Repository], manifest: oci.Manifest) -> ImageConfig:
    for place in places[:-1]:
        with contextlib.suppress(TareError):
            return ImageConfig.parse(await place.config(manifest.config))
    try:
        return ImageConfig.parse(await places[-1].config(manifest.config))
    except AnswerError as error:
        raise FailedError(f"the configuration of the image cannot be had: {error}") from error


def _check_platform(
    config: ImageConfig,
    promised: Platform | None,
    asked: Platform | None,
    reference: Reference,
) -> None:
    actual = (config.os, config.architecture)
    if promised is not None and (promised.os, promised.architecture) != actual:
        raise InvalidError(
            f"the index says that the image is for {promised}, and the image says it is for"
            f" {config.platform}"
        )
    if asked is not None and (asked.os, asked.architecture) != actual:
        raise MissingError(
            f"image with reference {reference.familiar} was found but does not provide the"
            f" specified platform ({asked}): it is for {config.platform}"
        )
