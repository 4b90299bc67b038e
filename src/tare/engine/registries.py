"""Registries for the rest of the engine: pull, push, login, look; with events.

One value for each engine: it knows what is being downloaded, so that two pulls of one layer share
it. Credentials come with each call and are not kept. Not for: how registries are spoken to
(image.registry), what is configured (engine.config).
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tare.engine import origins
from tare.errors import DeniedError, InvalidError, MissingError
from tare.image.registry import client
from tare.image.registry.download import Downloads
from tare.image.registry.partial import Partials
from tare.image.registry.pull import Notice, Pulled, Puller, Tell, fetch_document, repositories
from tare.image.registry.push import Pushed, Pusher, tags_of
from tare.image.registry.push import Tell as TellPush
from tare.image.registry.search import Result, search
from tare.image.registry.settings import HUB, HUB_SEARCH, Settings, check_host, endpoint
from tare.image.registry.transport import Host, Transport
from tare.model import oci
from tare.model.digest import Digest
from tare.model.oci import Descriptor, ImageConfig
from tare.model.reference import DEFAULT_DOMAIN, Reference

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tare.engine.events import Events
    from tare.engine.images import Images
    from tare.engine.trust import Trust
    from tare.image.registry.credentials import Credentials
    from tare.image.store import ImageStore
    from tare.model.oci import Platform

_COLLECT_SECONDS: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Described:
    """What a registry has by a name, without its layers."""

    descriptor: Descriptor
    platforms: tuple[Platform, ...]
    raw: bytes


class Registries:
    """What one engine does with registries."""

    def __init__(
        self,
        directory: Path,
        settings: Settings,
        store: ImageStore,
        images: Images,
        events: Events,
        *,
        trust: Trust | None = None,
    ) -> None:
        self.settings = settings
        self._trust = trust
        self._images = images
        self._store = store
        self._events = events
        self._partials = Partials(directory)
        self._downloads = Downloads(store, self._partials, parallel=settings.downloads)
        self._puller = Puller(store, self._partials, self._downloads)
        self._pusher = Pusher(store, self._partials, parallel=settings.uploads)
        self._next_collection = time.monotonic() + _COLLECT_SECONDS

    def recover(self) -> None:
        """Delete what a crash left and nobody can use: in a thread, before anything else."""
        self._partials.recover()
        self.collect()

    def collect(self) -> int:
        """Delete what downloads left that were not gone on with for long; the bytes freed."""
        return self._partials.collect()

    def close(self) -> None:
        """End the threads; no call may be under way."""
        self._downloads.close()
        self._pusher.close()

    # --- pull ---------------------------------------------------------------------------------

    async def pull(
        self,
        reference: Reference,
        tell: Tell,
        *,
        credentials: Credentials | None = None,
        platform: Platform | None = None,
    ) -> Pulled:
        """Bring one image, by tag or digest (``latest`` when it has neither)."""
        async with Transport(self.settings) as transport:
            return await self._pull(transport, reference, tell, credentials, platform)

    async def pull_all(
        self,
        reference: Reference,
        tell: Tell,
        *,
        credentials: Credentials | None = None,
        platform: Platform | None = None,
    ) -> None:
        """Bring every tag of a repository, one after the other."""
        async with Transport(self.settings) as transport:
            places = await repositories(transport, reference, credentials)
            for tag in await places[-1].tags():
                await self._pull(transport, reference.with_tag(tag), tell, credentials, platform)

    async def _pull(
        self,
        transport: Transport,
        reference: Reference,
        tell: Tell,
        credentials: Credentials | None,
        platform: Platform | None,
    ) -> Pulled:
        credentials = self._looked(reference.with_default_tag(), tell, credentials)
        try:
            pulled = await self._puller.pull(
                transport,
                reference,
                tell,
                credentials=credentials,
                platform=platform,
                admit=None if self._trust is None else self._trust.pulling,
            )
        finally:
            self._images.changed()
        shown = reference.with_default_tag().familiar
        told = {"name": reference.familiar_name, "digest": str(pulled.digest)}
        self._events.emit("image", "pull", shown, told)
        return pulled

    def _looked(
        self,
        reference: Reference,
        tell: Callable[[Notice], None],
        credentials: Credentials | None,
    ) -> Credentials | None:
        """Say what a name resembles, before anything is sent; the credentials that may be."""
        if self._trust is None:
            return credentials
        said, known = self._trust.look(reference, self.settings)
        for text in said:
            tell(Notice(f"Warning: {text}"))
        if not known and credentials:
            tell(Notice(f"Warning: your credentials are not shown to {reference.domain}"))
            return None
        return credentials

    # --- push ---------------------------------------------------------------------------------

    async def push(
        self,
        reference: Reference,
        tell: TellPush,
        *,
        credentials: Credentials | None = None,
    ) -> Pushed:
        """Give the image of that tag (``latest`` by default) to the registry in its name."""
        reference = reference.with_default_tag()
        if reference.tag is None or reference.digest is not None:
            raise InvalidError(
                "cannot push a digest reference",
                hint="name it first: tare tag IMAGE REPOSITORY:TAG",
            )
        async with Transport(self.settings) as transport:
            return await self._push(transport, reference, tell, credentials)

    async def push_all(
        self,
        reference: Reference,
        tell: TellPush,
        *,
        credentials: Credentials | None = None,
    ) -> list[Pushed]:
        """Give every tag of a repository that is here to its registry."""
        name = reference.familiar_name
        tags = sorted({tag for image in await self._images.list() for tag in tags_of(image, name)})
        if not tags:
            raise MissingError(f"An image does not exist locally with the tag: {name}")
        async with Transport(self.settings) as transport:
            return [
                await self._push(transport, reference.with_tag(tag), tell, credentials)
                for tag in tags
            ]

    async def _push(
        self,
        transport: Transport,
        reference: Reference,
        tell: TellPush,
        credentials: Credentials | None,
    ) -> Pushed:
        credentials = self._looked(reference, tell, credentials)
        try:
            found = await self._pusher.push(transport, reference, tell, credentials=credentials)
            await self._attach(transport, reference, found, tell, credentials)
        except MissingError as error:
            if "No such image" not in str(error):
                raise
            raise MissingError(
                f"An image does not exist locally with the tag: {reference.familiar_name}"
            ) from error
        finally:
            self._images.changed()
        self._events.emit("image", "push", reference.familiar, {"name": reference.familiar_name})
        return found

    async def _attach(
        self,
        transport: Transport,
        reference: Reference,
        pushed: Pushed,
        tell: TellPush,
        credentials: Credentials | None,
    ) -> None:
        """Give the registry what lies beside the image: its bill, its provenance."""
        image = await self._images.get(str(reference))
        documents = await asyncio.to_thread(self._store.manifests, image.id)
        kinds = {Digest.of(raw): kind for kind, raw in documents}
        host = endpoint(reference.domain)
        own = credentials.meant_for(host) if credentials else None
        place = await transport.find(host)
        repository = client.Repository(Host(transport, place, own), reference.path, push=True)
        manifest = Descriptor(
            media_type=kinds.get(pushed.digest, oci.MediaType.OCI_MANIFEST),
            digest=pushed.digest,
            size=pushed.size,
        )
        given = await origins.attach(
            repository, self._store, image.id, manifest, reference.familiar
        )
        for kind in given:
            tell(Notice(f"{reference.tag}: attached {kind}"))

    # --- look ---------------------------------------------------------------------------------

    async def login(self, credentials: Credentials, server: str) -> None:
        """See that the registry *server* (a host, "" is Docker Hub) takes these credentials."""
        if not credentials:
            raise InvalidError("no credentials were given")
        if self._trust is not None and server:
            said, known = self._trust.look(Reference(server, "x/x"), self.settings)
            if not known:
                raise DeniedError(
                    f"credentials are not sent: {said[0]}",
                    hint=f'If it is meant, name it in config.toml: [registries."{server}"]',
                )
        host = HUB if server in ("", DEFAULT_DOMAIN, "index.docker.io") else check_host(server)
        async with Transport(self.settings) as transport:
            place = await transport.find(endpoint(host))
            await client.ping(Host(transport, place, credentials))

    async def describe(
        self, reference: Reference, *, credentials: Credentials | None = None
    ) -> Described:
        """What a name stands for in its registry: its descriptor, platforms and document."""
        reference = reference.with_default_tag()
        async with Transport(self.settings) as transport:
            places = await repositories(transport, reference, credentials)
            asked = reference.digest or reference.tag or ""
            document = await fetch_document(places, asked, reference.familiar)
            parsed = document.parse()
            descriptor = Descriptor(
                media_type=parsed.media_type, digest=document.digest, size=len(document.raw)
            )
            if isinstance(parsed, oci.Index):
                offered = [d.platform for d in parsed.manifests if d.platform is not None]
                return Described(descriptor, tuple(offered), document.raw)
            config = await places[-1].config(parsed.config)
            return Described(descriptor, (ImageConfig.parse(config).platform,), document.raw)

    async def search(
        self, words: str, limit: int, *, credentials: Credentials | None = None
    ) -> list[Result]:
        """Repositories by words: ``debian`` on Docker Hub, ``host:5000/debian`` elsewhere."""
        head, slash, rest = words.partition("/")
        named = slash and (head == "localhost" or "." in head or ":" in head)
        host = HUB_SEARCH if not named else check_host(head)
        own = credentials.meant_for(host) if credentials else None
        async with Transport(self.settings) as transport:
            place = await transport.find(host)
            return await search(Host(transport, place, own), rest if named else words, limit)

    async def keep_house(self) -> None:
        """Call it now and then: what is old is collected, once an hour."""
        if time.monotonic() >= self._next_collection:
            self._next_collection = time.monotonic() + _COLLECT_SECONDS
            await asyncio.to_thread(self._partials.collect)
