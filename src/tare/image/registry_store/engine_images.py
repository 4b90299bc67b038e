"""The engine's own images as a registry shows them: read-only, made from what lies on disk.

An image that the engine calls ``docker.io/library/app:1`` is ``app:1`` here. Its manifest is made
anew, always the same bytes: the configuration as it is, and each layer uncompressed, so that its
digest is the layer's diff_id; the bytes come out of the EROFS file and its recipe.

It reads the files of ``image.index``, ``image.blobs`` and ``image.layers`` and writes none, so it
works in any process, whether the daemon runs or not. A layer that the engine deletes meanwhile is
still read to its end, since its files are open by then.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from tare.errors import FailedError, InvalidError, TareError
from tare.image.compress import open_decompressed
from tare.image.entry import Limits
from tare.image.recipe import replay
from tare.image.registry_store.store import Document
from tare.model.digest import Digest
from tare.model.distribution import ContentDigest, DistributionError, repository_name
from tare.model.oci import CONFIG_MAX, Descriptor, MediaType, encode_manifest
from tare.model.reference import Reference

_PIECE: Final = 1 << 20
_KEPT: Final = 256


@dataclass(frozen=True, slots=True)
class EngineBlob:
    """A configuration or a layer's archive, made when it is read."""

    digest: ContentDigest
    size: int
    source: EngineImages

    def pieces(self) -> Iterator[bytes]:
        """The bytes, about a MiB at a time; FailedError if the files were damaged."""
        return self.source.content(Digest(self.digest.hex))


class EngineImages:
    """The images of the engine whose state is below *state*; there may be none."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._made: dict[str, bytes] = {}

    def repositories(self) -> list[str]:
        """The names under which images are shown, sorted."""
        found = set()
        for (text,) in self._query("SELECT name FROM names"):
            try:
                found.add(repository_name(Reference.parse(str(text)).familiar_name))
            except DistributionError:
                continue  # of a registry with a port: there is no such path
        return sorted(found)

    def tags(self, repository: str) -> list[str]:
        """The tags of *repository*, sorted."""
        name = _name(repository)
        rows = self._query("SELECT name FROM names WHERE name >= ? AND name < ?", *_range(name))
        found = {Reference.parse(str(text)).tag for (text,) in rows}
        return sorted(tag for tag in found if tag is not None)

    def manifest(self, repository: str, reference: str | ContentDigest) -> Document | None:
        """The manifest of an image by its tag, or by the digest that this gives it."""
        if isinstance(reference, str):
            name = f"{_name(repository)}:{reference}"
            rows = self._query("SELECT image FROM names WHERE name = ?", name)
            return self._document(str(rows[0][0])) if rows else None
        for image in self._images(repository):
            document = self._document(image)
            if document is not None and document.digest == reference:
                return document
        return None

    def blob(self, repository: str, digest: ContentDigest) -> EngineBlob | None:
        """A configuration or layer of an image that *repository* has."""
        if digest.algorithm != "sha256":
            return None
        for image in self._images(repository):
            if image == digest.hex:
                size = self._config_size(image)
                return None if size is None else EngineBlob(digest, size, self)
            if digest.hex in self._layers(image):
                size = self._archive_size(digest.hex)
                return None if size is None else EngineBlob(digest, size, self)
        return None

    def content(self, digest: Digest) -> Iterator[bytes]:
        """The bytes of a configuration or of a layer's archive; the files are open on return."""
        layers = self._state / "layers"
        with ExitStack() as stack:
            try:
                config = self._state / "blobs/sha256" / digest.hex
                if config.exists():
                    return iter([config.read_bytes()])
                erofs = layers / f"{digest.hex}.erofs"
                if erofs.exists():
                    file = stack.enter_context(open(erofs, "rb"))
                    recipe = stack.enter_context(open(layers / f"{digest.hex}.recipe", "rb"))
                    pieces = replay(recipe, file.fileno())
                else:
                    kept = stack.enter_context(open(layers / f"{digest.hex}.tar.zst", "rb"))
                    plain = stack.enter_context(open_decompressed(kept, limits=Limits(ratio=None)))
                    pieces = iter(lambda: plain.read(_PIECE), b"")
            except OSError as error:
                raise FailedError(f"layer {digest} cannot be read: {error}") from error
            return _gathered(pieces, stack.pop_all())

    # -- what lies on disk ------------------------------------------------------------------

    def _images(self, repository: str) -> list[str]:
        name = _name(repository)
        rows = self._query(
            "SELECT DISTINCT image FROM names"
            " WHERE name >= ? AND name < ? OR name >= ? AND name < ?",
            *_range(name),
            *_range(name, "@"),
        )
        return [str(row[0]) for row in rows]

    def _layers(self, image: str) -> list[str]:
        rows = self._query("SELECT diff_id FROM layers WHERE image = ? ORDER BY position", image)
        return [str(row[0]) for row in rows]

    def _document(self, image: str) -> Document | None:
        raw = self._made.get(image)
        if raw is None:
            raw = self._make(image)
            if raw is None:
                return None
            if len(self._made) >= _KEPT:
                self._made.clear()
            self._made[image] = raw
        return Document(ContentDigest.of(raw), MediaType.OCI_MANIFEST, raw)

    def _make(self, image: str) -> bytes | None:
        size = self._config_size(image)
        if size is None:
            return None
        config = Descriptor(media_type=MediaType.OCI_CONFIG, digest=Digest(image), size=size)
        layers = []
        for diff_id in self._layers(image):
            size = self._archive_size(diff_id)
            if size is None:
                return None
            kind = MediaType.OCI_LAYER
            layers.append(Descriptor(media_type=kind, digest=Digest(diff_id), size=size))
        return encode_manifest(config, tuple(layers))

    def _config_size(self, image: str) -> int | None:
        try:
            size = (self._state / "blobs/sha256" / image).stat().st_size
        except FileNotFoundError:
            return None
        return size if size <= CONFIG_MAX else None

    def _archive_size(self, diff_id: str) -> int | None:
        try:
            facts = json.loads((self._state / "layers" / f"{diff_id}.json").read_bytes())
            return int(facts["archive_size"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def _query(self, statement: str, *values: str) -> list[tuple[str]]:
        path = self._state / "images.db"
        if not path.exists():
            return []
        try:
            uri = f"file:{quote(str(path))}?mode=ro"
            with closing(sqlite3.connect(uri, uri=True, timeout=10)) as database:
                return database.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise FailedError(f"the engine's images cannot be read: {error}") from error


def _name(repository: str) -> str:
    """What the engine calls *repository*; empty, which nothing is called, if it cannot."""
    try:
        return Reference.parse(repository).name
    except InvalidError:
        return ""


def _range(name: str, mark: str = ":") -> tuple[str, str]:
    """From where to where all names lie that are *name*, *mark* and something."""
    return f"{name}{mark}", f"{name}{chr(ord(mark) + 1)}"


def _gathered(pieces: Iterator[bytes], files: ExitStack) -> Iterator[bytes]:
    """The same bytes in larger pieces: a layer of small files comes in very many."""
    with files:
        held = bytearray()
        try:
            for piece in pieces:
                if len(piece) >= _PIECE and not held:
                    yield piece
                    continue
                held += piece
                if len(held) >= _PIECE:
                    yield bytes(held)
                    held.clear()
        except TareError:
            raise
        except OSError as error:
            raise FailedError(f"a layer cannot be read: {error}") from error
        if held:
            yield bytes(held)
