"""One engine's images, and pulls and pushes of them as the engine makes them, without an engine.

Not for: the daemon (harness.engines), registries themselves (fakes.registry, docker_registry).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path

from tare.image.registry.credentials import Credentials
from tare.image.registry.download import Downloads
from tare.image.registry.partial import Partials
from tare.image.registry.pull import LayerKept, LayerNotice, Notice, Pulled, Puller
from tare.image.registry.push import Pushed, Pusher, PushNotice
from tare.image.registry.settings import Settings
from tare.image.registry.transport import Transport
from tare.image.store import ImageStore
from tare.model.oci import Platform
from tare.model.reference import Reference

QUICK = Settings(attempts=4, back_off=0.01)
Told = list[Notice | LayerNotice | LayerKept]


@dataclass
class Desk:
    """One engine's images and what it does with registries."""

    directory: Path
    settings: Settings = QUICK
    extract: bool = False
    told: Told = field(default_factory=list)
    pushed: list[Notice | PushNotice] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = ImageStore(self.directory, extract=self.extract)
        self.store.recover()
        self.partials = Partials(self.directory / "partial")

    def pull(
        self,
        *names: str,
        credentials: Credentials | None = None,
        platform: Platform | None = None,
    ) -> list[Pulled]:
        """Pull all of *names* at the same time."""

        async def work() -> list[Pulled]:
            downloads = Downloads(self.store, self.partials, parallel=3)
            puller = Puller(self.store, self.partials, downloads)
            try:
                async with Transport(self.settings) as transport:
                    return await asyncio.gather(
                        *(
                            puller.pull(
                                transport,
                                Reference.parse(name),
                                self.told.append,
                                credentials=credentials,
                                platform=platform,
                            )
                            for name in names
                        )
                    )
            finally:
                downloads.close()

        return asyncio.run(work())

    def push(self, name: str, credentials: Credentials | None = None) -> Pushed:
        async def work() -> Pushed:
            pusher = Pusher(self.store, self.partials, parallel=2)
            try:
                async with Transport(self.settings) as transport:
                    reference = Reference.parse(name).with_default_tag()
                    return await pusher.push(
                        transport, reference, self.pushed.append, credentials=credentials
                    )
            finally:
                pusher.close()

        return asyncio.run(work())

    def content(self, name: str) -> list[bytes]:
        """The archives of an image's layers."""
        image = self.store.get(name)
        self.store.verify(name)
        return [b"".join(self.store.layer_archive(layer)) for layer in image.layers]

    def empty(self) -> bool:
        """Is nothing at all left of what was tried?"""
        left = [*(self.directory / "layers").iterdir()]
        return not (self.store.list() or left or [*self.partials.directory.iterdir()])

    def with_settings(self, **said: object) -> None:
        self.settings = replace(self.settings, **said)  # type: ignore[arg-type]  # test's word
