"""Blobs on their way in: a file that grows, hashed while it is written.

::

    uploads/ID    what was received of one upload, 0600; ID is 32 random hex digits

The file is the truth of how much was received, so an upload goes on after the server was killed; it
is only hashed again then. Not for: which uploads there are (``index``), and where a whole blob goes
(``store``).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import threading
from pathlib import Path
from typing import Final

from tare.errors import FailedError
from tare.model.distribution import Code, ContentDigest, DistributionError, new_hash

_ID: Final = re.compile("[0-9a-f]{32}")
_PIECE: Final = 1 << 20
_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def new_id() -> str:
    """A name for an upload that nobody can guess."""
    return secrets.token_hex(16)


def is_id(text: str) -> bool:
    """May an upload be called so? Only then a path may be made from it."""
    return _ID.fullmatch(text) is not None


class Upload:
    """One upload. ``size`` bytes were received; one request at a time may write (``busy``).

    The descriptor is open only between the first `write` and `rest`, so that many idle uploads
    cost nothing but memory.
    """

    def __init__(self, id: str, repository: str, path: Path) -> None:
        self.id = id
        self.repository = repository
        self.path = path
        self.busy = threading.Lock()
        self._descriptor = -1
        self._hash = new_hash("sha256")
        self._hashed = 0
        self.size = path.stat().st_size

    def write(self, data: bytes | bytearray) -> None:
        """Append *data*; on failure nothing of it counts."""
        try:
            if self._descriptor < 0:
                flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
                self._descriptor = os.open(self.path, flags)
            self._write(data)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(self.path, self.size)
            raise _disk(error) from error
        # Only if all before it was hashed too: after a restart it is hashed at the end.
        if self._hashed == self.size:
            self._hash.update(data)
            self._hashed += len(data)
        self.size += len(data)

    def _write(self, data: bytes | bytearray) -> None:
        view, at = memoryview(data), self.size
        while view:
            done = os.pwrite(self._descriptor, view, at)
            view, at = view[done:], at + done

    def rest(self) -> None:
        """The request that wrote has ended: close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def seal(self, expected: ContentDigest) -> None:
        """All was received and is on disk; DIGEST_INVALID if it is not *expected*."""
        if expected.algorithm == "sha256" and self._hashed == self.size:
            found = ContentDigest("sha256", self._hash.hexdigest())
        else:
            found = self._measure(expected.algorithm)
        if found != expected:
            raise DistributionError(
                Code.DIGEST_INVALID, f"the upload is {found}, and not {expected}"
            )
        self.rest()
        descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        except OSError as error:
            raise _disk(error) from error
        finally:
            os.close(descriptor)

    def _measure(self, algorithm: str) -> ContentDigest:
        running = new_hash(algorithm)
        with open(self.path, "rb", buffering=0) as file:
            while piece := file.read(_PIECE):
                running.update(piece)
        return ContentDigest(algorithm, running.hexdigest())


def _disk(error: OSError) -> FailedError | DistributionError:
    if error.errno in _NO_SPACE:
        return DistributionError(
            Code.BLOB_UPLOAD_INVALID, "no space left for the registry's content", status=507
        )
    return FailedError(f"the registry's disk failed: {error}")
