"""The directories of containers: made, used again, and deleted off the request's path.

::

    state/workloads/ID/    0700
        upper/ work/       overlay's: what the container wrote (made by run.rootfs)
        disk/              in place of upper/ and work/, with a size limit (engine.layer_limits)
        log log.1 ...      run.logs
    run/files/ID/          0700: hosts, hostname, resolv.conf (engine.generated)
    state/spare/N/         the same, never written to by its last owner
    state/trash/N/         waits for deletion

On ext4 creating directories after mass deletes is slow (it scans recently deleted inodes), so a
directory whose upper layer stayed empty is used again. Never an inode that a container has seen or
written: whoever holds a descriptor of it would write to the next one's, or read its output. One is
taken out of the trash only some time after its container ended: the kernel may still be taking the
old overlay down.

Not for: what is inside upper/ (run.rootfs, image.changes).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Callable
from typing import Final

from tare.engine import generated, layer_limits
from tare.engine.paths import Paths
from tare.errors import FailedError

_SPARES: Final = 256
_GRACE: Final = 1.0  # seconds between a removal and the look at what it left


class Workloads:
    """Owns ``workloads/``, ``spare/`` and ``trash/`` of one engine."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._root, self._bin = os.fspath(paths.workloads), os.fspath(paths.trash)
        self._files = os.fspath(paths.files)
        self._spares: list[str] = []
        self._trash: list[str] = []
        self._count = 0
        self._reaping: asyncio.Task[None] | None = None

    def make(self, identity: str) -> str:
        """Make the directory of a new container and return its path."""
        path = f"{self._root}/{identity}"
        try:
            if not self._reuse(path):
                os.mkdir(path, 0o700)
        except OSError as error:
            shutil.rmtree(path, ignore_errors=True)
            raise FailedError(
                f"cannot make the container's directory: {error}",
                hint=f"check the free space and inodes of {self._paths.state}",
            ) from error
        return path

    def discard(self, identity: str) -> None:
        """Take the directory away at once; its deletion follows. Not there: nothing to do."""
        path = f"{self._root}/{identity}"
        layer_limits.detach(path)
        generated.remove(f"{self._files}/{identity}")
        self._count += 1
        target = f"{self._bin}/{identity[:24]}-{self._count}"
        try:
            os.rename(path, target)
        except FileNotFoundError:
            return
        self._trash.append(target)
        self._wake()

    def recover(self, known: Callable[[str], bool]) -> None:
        """At start: directories that no record knows, old trash and old spares all go."""
        for name in os.listdir(self._paths.workloads):
            if not known(name):
                self.discard(name)
        for name in os.listdir(self._files):
            if not known(name):
                generated.remove(f"{self._files}/{name}")
        spare, trash = os.fspath(self._paths.spare), os.fspath(self._paths.trash)
        self._trash += [f"{spare}/{name}" for name in os.listdir(spare)]
        waiting = set(self._trash)
        old = (f"{trash}/{name}" for name in os.listdir(trash))
        self._trash += [path for path in old if path not in waiting]
        self._wake()

    async def close(self) -> None:
        """Wait for the deletions under way; what is left is deleted at the next start."""
        if self._reaping is not None:
            self._reaping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reaping

    async def drained(self) -> None:
        """Wait until the trash is empty: for tests and for a prune that reports free space."""
        while self._reaping is not None:
            await asyncio.shield(self._reaping)

    def _reuse(self, path: str) -> bool:
        while self._spares:
            with contextlib.suppress(OSError):
                os.rename(self._spares.pop(), path)
                return True
        return False

    def _wake(self) -> None:
        if self._trash and self._reaping is None:
            self._reaping = asyncio.get_running_loop().create_task(self._reap())

    async def _reap(self) -> None:
        try:
            while self._trash:
                await asyncio.sleep(_GRACE)
                batch, self._trash = self._trash, []
                spares = await asyncio.to_thread(self._sort_out, batch, len(self._spares))
                self._spares += spares
        finally:
            self._reaping = None

    def _sort_out(self, batch: list[str], have: int) -> list[str]:
        """In a thread: keep what nobody wrote to (as spares), delete the others."""
        spares: list[str] = []
        for path in batch:
            if have + len(spares) < _SPARES and _unused(path):
                target = os.fspath(self._paths.spare / os.path.basename(path))
                with contextlib.suppress(OSError):
                    os.rename(path, target)
                    spares.append(target)
                    continue
            shutil.rmtree(path, ignore_errors=True)
        return spares


def _unused(path: str) -> bool:
    """Whether *path* is as new, or can be made so at next to no cost."""
    try:
        for name in os.listdir(path):
            match name:
                case "upper":
                    os.rmdir(f"{path}/upper")
                case "work":
                    # What overlayfs leaves there, also with "volatile"; anything else fails.
                    for left in ("incompat/volatile", "incompat", "work"):
                        with contextlib.suppress(FileNotFoundError):
                            os.rmdir(f"{path}/work/{left}")
                    if os.listdir(f"{path}/work"):
                        return False
                case _:
                    os.unlink(f"{path}/{name}")
    except OSError:
        return False
    return True
