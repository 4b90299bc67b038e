"""Small documents by digest: image configurations and manifests.

::

    blobs/sha256/HEX    the bytes whose sha256 is HEX, 0600, written by `files.replace`

A name is only there when its content is whole. Not for: layers (``layers``), or deciding what is
still needed (``store``).
"""

from __future__ import annotations

import os
from pathlib import Path

from tare.errors import FailedError, MissingError
from tare.kernel import files
from tare.model.digest import Digest
from tare.model.oci import CONFIG_MAX


class Blobs:
    """The documents below one directory, which it makes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "sha256"
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def put(self, content: bytes) -> Digest:
        """Keep *content*; it is on disk when this returns."""
        digest = Digest.of(content)
        path = self._path(digest)
        if not path.exists():
            files.replace(path, content)
        return digest

    def get(self, digest: Digest) -> bytes:
        """The content, verified; FailedError if the file was changed since it was written."""
        try:
            with open(self._path(digest), "rb") as file:
                content = file.read(CONFIG_MAX + 1)
        except FileNotFoundError:
            raise MissingError(f"No such blob: {digest}") from None
        if Digest.of(content) != digest:
            raise FailedError(
                f"blob {digest} was changed on disk", hint="load or pull the image again"
            )
        return content

    def remove(self, digest: Digest) -> None:
        """Forget it, if it is there."""
        self._path(digest).unlink(missing_ok=True)

    def recover(self, needed: set[Digest]) -> None:
        """Delete what a crash left: temporary files, and documents that nothing needs."""
        wanted = {digest.hex for digest in needed}
        for entry in os.scandir(self._directory):
            if entry.name not in wanted:
                os.unlink(entry.path)

    def _path(self, digest: Digest) -> Path:
        return self._directory / digest.hex
