"""Blobs on their way: kept while they grow, found again after a crash, collected when old.

::

    partial/HEX        the first bytes of the blob whose sha256 should be HEX, 0600
    partial/.push-*    a layer compressed for its upload; worth nothing after a crash

One side appends, from the network; the other reads at the same time, from the beginning, and
verifies. So nothing has to be remembered of a download but its bytes: who resumes it reads them
again from the disk. One process owns the directory. Not for: layers that are whole (``layers``).
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

from tare.errors import FailedError
from tare.model.digest import Digest

OLD_SECONDS: Final = 7 * 24 * 3600.0
PUSH: Final = ".push-"


class Partials:
    """The blobs below one directory, which it makes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = threading.Lock()
        self._open: set[str] = set()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, digest: Digest) -> Path:
        """Where the bytes of a blob are gathered."""
        return self.directory / digest.hex

    def open(self, digest: Digest) -> Growing:
        """The blob as far as it is there; the caller closes it, and keeps or discards it."""
        with self._lock:
            self._open.add(digest.hex)
        try:
            return Growing(self.path(digest), lambda: self._closed(digest))
        except BaseException:
            self._closed(digest)
            raise

    def _closed(self, digest: Digest) -> None:
        with self._lock:
            self._open.discard(digest.hex)

    def discard(self, digest: Digest) -> None:
        """Forget what was gathered."""
        self.path(digest).unlink(missing_ok=True)

    def discard_idle(self, digest: Digest) -> None:
        """The same, unless somebody is fetching it."""
        with self._lock:
            if digest.hex not in self._open:
                self.discard(digest)

    def recover(self) -> None:
        """Delete what a crash left and nobody can use: call it once, before anything else."""
        for path in self.directory.glob(f"{PUSH}*"):
            path.unlink(missing_ok=True)

    def collect(self, *, older: float = OLD_SECONDS) -> int:
        """Delete what nobody has gone on with for *older* seconds; the bytes that freed."""
        freed = 0
        now = time.time()
        for entry in os.scandir(self.directory):
            with self._lock:
                if entry.name in self._open or entry.name.startswith(PUSH):
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                    if now - status.st_mtime < older:
                        continue
                    os.unlink(entry.path)
                except FileNotFoundError:
                    continue
                freed += status.st_blocks * 512
        return freed

    def size(self) -> int:
        """What all of it takes on disk, in bytes."""
        return sum(entry.stat().st_blocks * 512 for entry in os.scandir(self.directory))


class Growing:
    """A file that one thread appends to while another reads it, waiting where it must."""

    def __init__(self, path: Path, closed: Callable[[], None]) -> None:
        self._path = path
        self._on_close = closed
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._condition = threading.Condition()
        self.size = os.fstat(self._file).st_size
        self.position = 0
        """How far it was read."""
        self._whole = False
        self._failed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; both sides must have ended."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            self._on_close()

    # --- the side that appends ----------------------------------------------------------------

    def append(self, data: bytes | bytearray) -> None:
        """Add *data*; OSError when the disk is full."""
        view = memoryview(data)
        while view:
            written = os.pwrite(self._file, view, self.size)
            if not written:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            view = view[written:]
            with self._condition:
                self.size += written
                self._condition.notify_all()

    def restart(self) -> None:
        """Begin again with nothing; only before anybody reads."""
        if self.position:
            raise FailedError("a download that is being read cannot begin again")
        os.ftruncate(self._file, 0)
        self.size = 0

    def finish(self) -> None:
        """No more will come."""
        with self._condition:
            self._whole = True
            self._condition.notify_all()

    def fail(self) -> None:
        """No more will come, and it is not all: the reader raises an error of its own."""
        with self._condition:
            self._failed = True
            self._condition.notify_all()

    # --- the side that reads ------------------------------------------------------------------

    def read(self, n: int = -1, /) -> bytes:
        """At most *n* of the next bytes, waiting for them; empty at the end."""
        with self._condition:
            while self.position >= self.size and not (self._whole or self._failed):
                self._condition.wait()
            if self._failed:
                raise FailedError("the download was stopped")
            wanted = self.size - self.position if n < 0 else min(n, self.size - self.position)
        data = os.pread(self._file, wanted, self.position) if wanted else b""
        if len(data) < wanted and not data:
            raise FailedError(f"{self._path} was cut while it was read")
        self.position += len(data)
        return data
