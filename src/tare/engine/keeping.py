"""The collector: images and what builds keep, down to the quota, the longest unused first.

``[images] quota`` in the configuration bounds the bytes of all layers. When they are more, first
what only the cache of builds keeps goes, then images that no container uses, no running operation
has leased, and nobody pinned. It may run at any moment beside pulls and builds: what they use is
leased, and every deletion is decided and done under the store's lock.

Not for: containers, volumes; or what people prune by hand.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tare.errors import TareError
from tare.image.pruning import Swept

if TYPE_CHECKING:
    from tare.build.cache import Cache
    from tare.engine.images import Images
    from tare.image.store import ImageStore

log = logging.getLogger("tare.keeping")

_EVERY: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Collected:
    """What one run of the collector took, and what is left."""

    freed: int
    left: int
    images: tuple[str, ...] = ()


class Keeping:
    """Keeps the images of one engine within their quota; 0 is none."""

    def __init__(self, images: Images, store: ImageStore, cache: Cache, *, quota: int) -> None:
        self.quota = quota
        self._images = images
        self._store = store
        self._cache = cache
        self._seen = -1
        self._next = 0.0
        self._lock = asyncio.Lock()

    async def keep_house(self) -> None:
        """Call it now and then: collects when something was added, and once an hour."""
        await asyncio.to_thread(self._store.notes.flush)
        if not self.quota:
            return
        generation = self._images.generation
        if generation == self._seen and time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _EVERY
        try:
            await self.collect()
        except (TareError, OSError) as error:
            log.warning("the collector of images failed: %s", error)
        self._seen = self._images.generation

    async def collect(self) -> Collected:
        """Bring all layers down to the quota as far as that goes."""
        async with self._lock:
            before = await asyncio.to_thread(self._store.weight)
            if not self.quota or before <= self.quota:
                return Collected(0, before)
            await asyncio.to_thread(self._forget_unused, before - self.quota)
            cached = await asyncio.to_thread(self._cache.layers)
            swept: Swept = await self._images.shrink(self.quota, cached)
            await asyncio.to_thread(self._cache.let_go, swept.layers)
            left = await asyncio.to_thread(self._store.weight)
        freed = max(before - left, 0)
        words = "" if left <= self.quota else "; what is left is in use or pinned"
        log.info("collected %d bytes of images, %d are left%s", freed, left, words)
        return Collected(freed, left, tuple(str(digest) for digest in swept.images))

    def _forget_unused(self, wanted: int) -> None:
        """Let go of what only the cache keeps, the longest unused first, until *wanted* is free."""
        freed = 0
        for entry in self._cache.entries():
            if freed >= wanted:
                return
            layer = entry.layer
            if layer is not None and not self._store.uses(layer):
                freed += self._cache.let_go((layer,))
