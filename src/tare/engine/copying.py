"""Files of containers: cp, diff, export, commit, and how much they take.

A running container is seen through its first process's root, a stopped one by mounting its
layers and what it wrote, detached, for the time of the operation. All of it works in threads.

Not for: following paths (run.copy does, and never leaves the root).
"""

from __future__ import annotations

import asyncio
import os

from tare.engine.observing import Observing


class Copying(Observing):
    """The verbs that look into a container's file system."""

    async def sizes(self, ref: str) -> tuple[int, int]:
        """The bytes that it wrote itself, and those with its image."""
        record = self._store.get(ref)
        written = await asyncio.to_thread(_disk_usage, f"{record.workload_dir}/upper")
        image = 0
        for known in await self._core.images.list():
            if str(known.id) == record.image_id:
                image = known.size
        return written, written + image


def _disk_usage(path: str) -> int:
    total = 0
    for directory, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(f"{directory}/{name}").st_size
            except FileNotFoundError:
                continue
    return total
