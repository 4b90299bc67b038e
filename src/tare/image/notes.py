"""What an engine keeps beside an image: its bill of materials, its provenance, its recipe; pins.

A note is one document of one kind (a media type) for one image; a newer one takes its place. It
goes with its image. Those in `ATTACHED` are given to registries when the image is pushed. A pin
keeps a name, whatever image it means, from every collector.

Not for: what the documents say (``build``), or deleting anything (``store``).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

from tare.errors import InvalidError, MissingError
from tare.image.blobs import Blobs
from tare.image.index import Index
from tare.model import oci, strict_json
from tare.model.digest import Digest
from tare.model.reference import Reference

CYCLONEDX: Final = "application/vnd.cyclonedx+json"
SPDX: Final = "application/spdx+json"
PROVENANCE: Final = "application/vnd.in-toto+json"
RECIPE: Final = "application/vnd.tare.recipe+json"
ANNOTATIONS: Final = "application/vnd.tare.annotations+json"
"""What the manifest of the image says of it, when it is pushed."""
ATTACHED: Final = (CYCLONEDX, SPDX, PROVENANCE)


class Notes:
    """The notes and pins of one store; any thread."""

    def __init__(self, index: Index, blobs: Blobs) -> None:
        self._index = index
        self._blobs = blobs
        self._used: dict[Digest, int] = {}

    def put(self, image: Digest, kind: str, content: bytes) -> None:
        """Keep *content* as the image's note; MissingError when the image is gone."""
        if len(content) > oci.CONFIG_MAX:
            raise InvalidError(
                f"a document beside an image has at most {oci.CONFIG_MAX >> 20} MiB,"
                f" and this has {len(content)} bytes"
            )
        with self._index.lock:
            if self._index.get(image) is None:
                raise MissingError(f"No such image: {image}")
            before = self._index.notes(image).get(kind)
            if before == Digest.of(content):
                return  # most builds change nothing: they need not wait for the disk
            digest = self._blobs.put(content)
            self._index.add_note(image, kind, digest)
            if before is not None and before not in self._index.documents():
                self._blobs.remove(before)

    def get(self, image: Digest, kind: str) -> bytes | None:
        """The image's note of that kind, verified; None if there is none."""
        with self._index.lock:
            digest = self._index.notes(image).get(kind)
            return None if digest is None else self._blobs.get(digest)

    def annotations(self, image: Digest) -> Mapping[str, str]:
        """What its manifest is to say of it."""
        raw = self.get(image, ANNOTATIONS)
        if raw is None:
            return {}
        found = strict_json.decode(raw, "the annotations of an image", limit=1 << 20)
        return {key: value for key, value in found.items() if isinstance(value, str)}

    # -- pins ----------------------------------------------------------------------------------

    def pin(self, name: Reference) -> None:
        """Keep *name* from collectors; MissingError when it means nothing."""
        with self._index.lock:
            if self._index.find(name) is None:
                raise MissingError(f"No such image: {name.familiar}")
            self._index.pin(name)

    def unpin(self, name: Reference) -> None:
        """Keep it no more; MissingError when it was not pinned."""
        if not self._index.unpin(name):
            raise MissingError(f"{name.familiar} is not pinned")

    def pins(self) -> list[str]:
        """The pinned names, familiar and sorted."""
        return sorted(name.familiar for name in self._index.pins())

    # -- use -----------------------------------------------------------------------------------

    def touch(self, image: Digest) -> None:
        """The image is used now; cheap, on disk after `flush`."""
        self._used[image] = time.time_ns()

    def flush(self) -> None:
        """Write down what was touched."""
        used, self._used = self._used, {}
        if used:
            self._index.touch(used.items())

    def used(self) -> Mapping[Digest, int]:
        """When images were last used, of those that were."""
        return {**self._index.used(), **self._used}
