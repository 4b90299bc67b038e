"""What a build asks of the engine around it: images, a place to run, the store and the cache.

A Protocol, because `build` stands below `engine`: the engine has the one real `Host`, tests may
have another. Not for: anything that a build can do by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from tare.build.cache import Cache
from tare.image.store import Image, ImageStore
from tare.model.oci import Platform
from tare.model.spec import ContainerSpec

Listener = Callable[[int, bytes], None]


class Workplace(Protocol):
    """Where one program is run, once: its own ids, its own directory, nothing of it is kept.

    ``upper`` is what it changed, readable until the place is left.
    """

    directory: Path
    upper: Path
    block: tuple[int, int] | None

    async def run(self, spec: ContainerSpec, layers: list[Path], listen: Listener) -> int:
        """Run *spec* above *layers* to its end; the exit code. *listen* is told its output.

        A cancelled call has ended the program. TareError when it could not be started.
        """
        ...


class Host(Protocol):
    """The engine as a build sees it."""

    store: ImageStore
    cache: Cache
    platform: Platform
    rootless: bool
    extracts: bool
    """Layers are directories here, not EROFS files."""

    async def image(self, name: str, *, pull: bool, note: Callable[[str], None]) -> Image:
        """The image called *name*; MissingError.

        It is fetched if it is not here, or if *pull* asks for what it means now.
        """
        ...

    def workplace(
        self, spec: ContainerSpec, highest: int
    ) -> AbstractAsyncContextManager[Workplace]:
        """A place for *spec* to run, with ids for an image whose highest is *highest*."""
        ...
