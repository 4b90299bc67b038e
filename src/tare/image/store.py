"""The images of one engine: names, configurations and layers, kept together and kept true.

::

    STATE/blobs/       configurations (``blobs``)
    STATE/layers/      layers (``layers``)
    STATE/images.db    names and what belongs to what (``index``)

The rule that makes it safe: content is on disk, whole and verified, before the index names it, and
the index forgets it before it is deleted. A crash at any point leaves content that nothing names,
which `ImageStore.recover` deletes. What a running operation has added but not yet named is leased.

One process owns a store; its threads may all use it. Not for: registries, mounts, containers; who
uses an image is told by the caller (``in_use``).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tare.errors import ConflictError, FailedError, InvalidError, MissingError
from tare.image import archive, importing
from tare.image.blobs import Blobs
from tare.image.entry import ByteSource
from tare.image.index import Index, Lease, Row, Source
from tare.image.layers import LayerInfo, Layers
from tare.image.moments import format_time, parse_time
from tare.image.notes import Notes
from tare.image.pruning import Swept, oldest_first, orphans, passing
from tare.image.tar_writer import ByteSink
from tare.model import oci
from tare.model.digest import Digest
from tare.model.oci import Descriptor, History, ImageConfig
from tare.model.reference import Reference

InUse = Callable[[Digest], list[str]]
Progress = Callable[[str], None]
Admit = Callable[[list[archive.Loaded]], None]

_HEX: Final = re.compile("[0-9a-f]{1,64}")
_ID_SHOWN: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image as it is now. ``tags`` and ``digests`` are familiar names, sorted."""

    id: Digest
    config: ImageConfig
    layers: tuple[Digest, ...]
    tags: tuple[str, ...]
    digests: tuple[str, ...]
    size: int
    created_ns: int
    parent: Digest | None = None
    added_ns: int = 0

    @property
    def short_id(self) -> str:
        """What people see of its id."""
        return self.id.hex[:_ID_SHOWN]


@dataclass(frozen=True, slots=True)
class Removed:
    """What a removal did: ``untagged`` a name, or ``deleted`` an image by its id."""

    kind: str
    name: str


def _unused(_: Digest) -> list[str]:
    return []


# In the class below, the name "list" is the method of the contract.
Images = list[Image]
Steps = list[tuple[History, int]]
Paths = list[Path]
Names = list[str]
Removals = list[Removed]
Documents = list[tuple[str, bytes]]
_Digests = list[Digest]


class ImageStore:
    """The images below *state_dir*, extracted or as EROFS files."""

    def __init__(self, state_dir: Path, *, extract: bool) -> None:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._blobs = Blobs(state_dir / "blobs")
        self._layers = Layers(state_dir / "layers", extract=extract)
        self._index = Index(state_dir / "images.db")
        self.notes = Notes(self._index, self._blobs)
        """What is kept beside images."""
        self._loose = self._index.lease()
        self._configs: dict[Digest, ImageConfig] = {}

    @property
    def extracts(self) -> bool:
        """Whether layers are directories here, not EROFS files."""
        return self._layers.extracts

    def close(self) -> None:
        """Close the index; nothing else is open."""
        self._index.close()

    def recover(self) -> None:
        """Make true again what a crash interrupted: call it once, before anything else."""
        with self._index.lock:
            for row in self._index.all():
                if not self._whole(row):
                    self._index.remove(row.id)
            rows = self._index.all()
            self._blobs.recover({row.id for row in rows} | self._index.documents())
            self._layers.recover()
            self._collect(self._layers.all())

    def _whole(self, row: Row) -> bool:
        try:
            self._config(row.id)
        except (MissingError, FailedError, InvalidError):
            return False
        return all(layer in self._layers for layer in row.layers)

    # -- finding ----------------------------------------------------------------------------

    def get(self, reference_or_id: str) -> Image:
        """An image by its name, its id or an unambiguous beginning of it; else MissingError."""
        row = self._index.get(self._resolve(reference_or_id)[0])
        if row is None:
            raise _missing(reference_or_id)
        return self._image(row)

    def list(self) -> Images:
        """Every image, the newest first."""
        images = [self._image(row) for row in self._index.all()]
        return sorted(images, key=lambda image: (-image.created_ns, image.id))

    def history(self, reference_or_id: str) -> Steps:
        """How the image came to be, oldest first, with what each step's layer weighs."""
        image = self.get(reference_or_id)
        layers = iter(image.layers)
        steps = []
        for step in image.config.history:
            layer = None if step.empty_layer else next(layers, None)
            steps.append((step, self._layers.get(layer).size if layer is not None else 0))
        return steps

    def layer_paths(self, image: Image) -> Paths:
        """What to mount, bottom first: EROFS files, or directories.

        Layers that one above them hides entirely are left out: overlayfs has no mark for that.
        """
        infos = [self._layers.get(layer) for layer in image.layers]
        hidden = max((i for i, info in enumerate(infos) if info.opaque_root), default=0)
        return [info.path for info in infos[hidden:]]

    def layer(self, diff_id: Digest) -> LayerInfo:
        """A layer by its diff_id; else MissingError."""
        return self._layers.get(diff_id)

    def highest_id(self, image: Image) -> int:
        """The largest uid or gid in the image: what a user namespace must map."""
        return max((self._layers.get(layer).max_id for layer in image.layers), default=0)

    def _resolve(self, text: str) -> tuple[Digest, Reference | None]:
        """What *text* means, and the name by which it was found."""
        if text.startswith("sha256:"):
            prefix = text.removeprefix("sha256:")
            if _HEX.fullmatch(prefix) and (found := self._by_prefix(prefix, text)):
                return found, None
            raise _missing(text)
        with contextlib.suppress(InvalidError):
            name = Reference.parse(text).with_default_tag()
            if name.digest is not None:
                name = name.with_digest(name.digest)
            if (id := self._index.find(name)) is not None:
                return id, name
        if _HEX.fullmatch(text) and (found := self._by_prefix(text, text)):
            return found, None
        raise _missing(text)

    def _by_prefix(self, prefix: str, text: str) -> Digest | None:
        ids = self._index.by_prefix(prefix)
        if len(ids) > 1:
            raise InvalidError(f"the id {text} is ambiguous", hint="type more of it")
        return ids[0] if ids else None

    def _config(self, id: Digest) -> ImageConfig:
        config = self._configs.get(id)
        if config is None:
            config = self._configs[id] = ImageConfig.parse(self._blobs.get(id))
        return config

    def _image(self, row: Row) -> Image:
        config = self._config(row.id)
        return Image(
            id=row.id,
            config=config,
            layers=row.layers,
            tags=tuple(n.familiar for n in row.names if n.digest is None),
            digests=tuple(n.familiar for n in row.names if n.digest is not None),
            size=row.size,
            created_ns=parse_time(config.created) or 0,
            parent=row.parent,
            added_ns=row.added_ns,
        )

    # -- adding -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def lease(self) -> Iterator[Lease]:
        """While the lease is held, layers that are added or pinned with it are not collected.

        At its end those that no image has are: name the image before.
        """
        lease = self._index.lease()
        try:
            yield lease
        finally:
            self._collect(lease.release())

    def retain(self) -> Lease:
        """A lease for longer than a `with`; `discard` ends it."""
        return self._index.lease()

    def discard(self, lease: Lease) -> int:
        """End a lease: what it alone kept goes. The bytes of the files that freed."""
        with self._index.lock:
            released = lease.release()
            sizes = {i: self._layers.get(i).size for i in released if i in self._layers}
            return sum(sizes[layer] for layer in self._collect(released))

    def uses(self, layer: Digest) -> bool:
        """Whether any image has the layer."""
        return self._index.uses(layer)

    def add_layer(
        self,
        stream: ByteSource,
        *,
        diff_id: Digest | None = None,
        blob: Descriptor | None = None,
        lease: Lease | None = None,
        durable: bool = True,
    ) -> LayerInfo:
        """Make a layer of an archive, plain or compressed, verified against what is given.

        It is kept while *lease* lasts, or as long as this process runs, or an image has it. One
        that is not *durable* is on disk after `settle`, or when an image with it is added.
        """
        with on_disk():
            pin = (lease or self._loose).pin
            return self._layers.add(stream, diff_id=diff_id, blob=blob, pin=pin, durable=durable)

    def settle(self, diff_ids: Iterable[Digest]) -> None:
        """Put on disk those of the layers that were added without being durable."""
        with on_disk():
            self._layers.settle(diff_ids)

    def has_layer(self, diff_id: Digest, lease: Lease) -> bool:
        """Is the layer there? If it is, *lease* keeps it."""
        with self._index.lock:
            if diff_id not in self._layers:
                return False
            lease.pin(diff_id)
            return True

    def add_image(
        self,
        config: ImageConfig,
        *,
        names: Iterable[Reference] = (),
        parent: Digest | None = None,
    ) -> Image:
        """Know an image whose layers are there (MissingError if not), and name it.

        A name that meant another image means this one now.
        """
        with on_disk():
            self._layers.settle(config.diff_ids)
        with on_disk(), self._index.lock:
            size = sum(self._layers.get(layer).size for layer in config.diff_ids)
            id = self._blobs.put(config.raw)
            with self._index.change():
                now = time.time_ns()
                self._index.add(id, config.diff_ids, size=size, parent=parent, now_ns=now)
                for name in names:
                    self._index.name(name.with_default_tag(), id)
            self._configs[id] = config
        return self.get(str(id))

    def add_manifest(
        self, image: Digest, raw: bytes, media_type: str, name: Reference | None = None
    ) -> None:
        """Keep a document that registries have of an image; in *name*'s repository it names it."""
        with on_disk(), self._index.lock, self._index.change():
            digest = self._blobs.put(raw)
            self._index.add_manifest(digest, image, media_type)
            if name is not None:
                self._index.name(name.with_digest(digest), image)

    def manifests(self, image: Digest) -> Documents:
        """The documents that registries have of an image: media type and bytes, verified."""
        with self._index.lock:
            listed = self._index.manifests(image)
            return [(kind, self._blobs.get(digest)) for digest, kind in listed]

    def add_sources(self, sources: Iterable[Source]) -> None:
        """Remember as which blobs of which repositories layers lie in registries."""
        with self._index.change():
            for source in sources:
                self._index.add_source(source, time.time_ns())

    def sources(self, diff_id: Digest) -> Iterable[Source]:
        """As which blobs a layer is known to lie in registries, the latest first."""
        return self._index.sources(diff_id)

    def layer_archive(self, diff_id: Digest) -> Iterator[bytes]:
        """A layer's archive, bit for bit; FailedError at its end if it is not that."""
        return self._layers.archive(diff_id)

    def find(self, name: Reference) -> Digest | None:
        """The image that a full name means, if any."""
        return self._index.find(name)

    def tag(self, reference_or_id: str, new: str) -> Image:
        """Give an image one more name; it is taken from whatever had it."""
        id, _ = self._resolve(reference_or_id)
        name = Reference.parse(new).with_default_tag()
        if name.digest is not None:
            raise InvalidError(f"refusing to create a tag with a digest reference: {new}")
        with self._index.lock:
            if self._index.get(id) is None:
                raise _missing(reference_or_id)
            self._index.name(name, id)
        return self.get(str(id))

    def manifest(self, image: Image) -> bytes:
        """The manifest that an image has in the archives that `save` writes."""
        return archive.manifest_of(image.config, self._layers)[0]

    def load(
        self,
        stream: ByteSource,
        progress: Progress = lambda _: None,
        *,
        replace_tags: bool = True,
        admit: Admit = lambda _: None,
    ) -> Names:
        """Take in every image of a docker-archive or an OCI layout; answers their names or ids.

        All of them or none: what *admit* raises refuses them all, before any has a name. Without
        *replace_tags* a tag of another image is ConflictError.
        """
        loaded: Names = []
        with on_disk(), self.lease() as lease:
            found = archive.load(stream, _Receiver(self, lease), progress)
            admit(found)
            with self._index.lock:
                if not replace_tags:
                    self._refuse_taken(found)
                with self._index.change():
                    for image in found:
                        lease.pin(image.config.digest)
                        known = self.add_image(image.config, names=image.names)
                        loaded += [n.familiar for n in image.names] or [str(known.id)]
        return loaded

    def _refuse_taken(self, found: Iterable[archive.Loaded]) -> None:
        for image in found:
            for name in image.names:
                if self._index.find(name) not in (None, image.config.digest):
                    raise ConflictError(
                        f"the archive would replace {name.familiar} by another image",
                        hint=f"remove it first (tare rmi {name.familiar}) if that is what you want",
                    )

    def save(
        self,
        references: Iterable[str],
        out: ByteSink,
        *,
        format: str = "docker-archive",
        members: Mapping[str, bytes] | None = None,
    ) -> None:
        """Write images as one ``docker-archive`` or ``oci`` layout, with the names asked for.

        *members* are documents to write beside them, by their paths.
        """
        if format not in ("docker-archive", "oci"):
            raise InvalidError(f"unknown archive format {format!r}: docker-archive or oci")
        chosen: dict[Digest, archive.Saved] = {}
        with self.lease() as lease, on_disk():
            for text in references:
                with self._index.lock:
                    id, name = self._resolve(text)
                    row = self._index.get(id)
                    if row is None:
                        raise _missing(text)
                    for digest in (id, *row.layers):
                        lease.pin(digest)
                saved = chosen.setdefault(id, archive.Saved(self._config(id), []))
                if name is not None and name.digest is None and name not in saved.names:
                    saved.names.append(name)
            docker = format == "docker-archive"
            archive.save(chosen.values(), self._layers, out, docker=docker, members=members)

    def import_(
        self,
        stream: ByteSource,
        *,
        repository: str = "",
        tag: str = "",
        changes: Iterable[str] = (),
        message: str = "",
        platform: oci.Platform | None = None,
    ) -> Image:
        """Make an image of one layer out of a root file system's archive."""
        name = Reference.parse(repository) if repository else None
        if name is not None and tag:
            name = name.with_tag(tag)
        blank = importing.blank_config(platform)
        config = importing.apply_changes(blank, changes)
        with self.lease() as lease:
            layer = self.add_layer(stream, lease=lease)
            now = format_time(time.time_ns())
            step = History(created=now, comment=message or "Imported from -")
            config = replace(config, created=now, diff_ids=(layer.diff_id,), history=(step,))
            return self.add_image(oci.encode(config), names=[name] if name else [])

    def commit(
        self,
        base: Image | None,
        layer: ByteSource | None,
        config: ImageConfig,
        *,
        reference: str = "",
        changes: Iterable[str] = (),
    ) -> Image:
        """Make an image of *base* with *layer* on top, configured as *config* says.

        Of *config*, ``diff_ids`` and ``raw`` do not count; its history should account for the
        layer. *changes* are Dockerfile instructions, applied to it.
        """
        name = Reference.parse(reference) if reference else None
        config = importing.apply_changes(config, changes)
        below = base.layers if base is not None else ()
        with self.lease() as lease:
            for digest in below:
                if not self.has_layer(digest, lease):
                    raise MissingError(f"No such layer: {digest}")
            added = () if layer is None else (self.add_layer(layer, lease=lease).diff_id,)
            config = replace(config, diff_ids=(*below, *added))
            return self.add_image(
                oci.encode(config),
                names=[name] if name else [],
                parent=base.id if base is not None else None,
            )

    # -- removing ---------------------------------------------------------------------------

    def remove(
        self,
        reference_or_id: str,
        *,
        force: bool = False,
        in_use: InUse = _unused,
        running: InUse = _unused,
    ) -> Removals:
        """Take a name away, and delete the image with its last name, as ``docker rmi`` does.

        *in_use* answers which containers are made from an image, *running* which of them run.
        What runs is never taken away (ConflictError). A stopped container's image needs *force*,
        and then only loses its names: its content stays until the container is gone.
        """
        with self._index.lock:
            id, name = self._resolve(reference_or_id)
            row = self._index.get(id)
            if row is None:
                raise _missing(reference_or_id)
            names = list(row.names)
            tags = [n for n in names if n.digest is None]
            going = _going_with(name, names) if name is not None else names
            if not force:
                self._refuse_pinned(going)
            if len(going) < len(names):
                with self._index.change():
                    for each in going:
                        self._index.unname(each)
                return [Removed("untagged", each.familiar) for each in going]
            if name is None and len(tags) > 1 and not force:
                raise ConflictError(
                    f"conflict: unable to delete {id.hex[:_ID_SHOWN]} (must be forced)"
                    " - image is referenced in multiple repositories"
                )
            self._refuse_used(id, reference_or_id, force=force, in_use=in_use, running=running)
            with self._index.change():
                for each in names:
                    self._index.unname(each)
            removed = [Removed("untagged", each.familiar) for each in names]
            if not in_use(id):
                removed += self._delete(row)
            return removed

    def _refuse_pinned(self, names: Iterable[Reference]) -> None:
        pinned = self._index.pins()
        for name in names:
            if name in pinned:
                raise ConflictError(
                    f"conflict: unable to remove {name.familiar} (must force) - it is pinned",
                    hint=f"tare image unpin {name.familiar}",
                )

    def _refuse_used(
        self, id: Digest, text: str, *, force: bool, in_use: InUse, running: InUse
    ) -> None:
        shown = id.hex[:_ID_SHOWN]
        if runs := running(id):
            raise ConflictError(
                f"conflict: unable to delete {shown} (cannot be forced)"
                f" - image is being used by running container {runs[0][:_ID_SHOWN]}",
                hint="stop and remove the container first",
            )
        if not force and (users := in_use(id)):
            raise ConflictError(
                f"conflict: unable to remove repository reference {text!r} (must force)"
                f" - container {users[0][:_ID_SHOWN]} is using its referenced image {shown}",
                hint="remove the container first",
            )

    def _delete(self, row: Row) -> Removals:
        """Forget an image, then what only it needed."""
        if self._index.pinned(row.id):
            return []  # being saved: it stays, without a name, until it is pruned
        documents = {digest for digest, _ in self._index.manifests(row.id)}
        documents.update(self._index.notes(row.id).values())
        self._index.remove(row.id)
        for digest in {row.id, *documents - self._index.documents()}:
            self._blobs.remove(digest)
        self._configs.pop(row.id, None)
        removed = [Removed("deleted", str(row.id))]
        gone = self._collect(reversed(row.layers))
        return removed + [Removed("deleted", str(layer)) for layer in gone]

    def _collect(self, candidates: Iterable[Digest]) -> _Digests:
        """Delete those layers that no image has and no lease keeps."""
        gone = []
        with self._index.lock:
            for layer in dict.fromkeys(candidates):
                if self._index.uses(layer) or self._index.pinned(layer):
                    continue
                if layer in self._layers:
                    self._layers.remove(layer)
                    self._index.forget_sources(layer)
                    gone.append(layer)
        return gone

    def prune(
        self,
        dangling_only: bool = True,
        in_use: InUse = _unused,
        filters: Mapping[str, Iterable[str]] | None = None,
        *,
        dry: bool = False,
    ) -> tuple[Removals, int]:
        """Delete images that have no name, or all that no container uses; and the bytes freed.

        *filters*: ``until`` (RFC 3339 or Unix seconds), ``label`` and ``label!`` (``name`` or
        ``name=value``). Layers that nothing needs go with them. What has a pinned name stays.
        *dry* deletes nothing, and answers the same.
        """
        wanted = passing(filters or {})

        def chosen(row: Row) -> bool:
            image = self._image(row)
            named = dangling_only and row.names
            return not named and wanted(image.created_ns, image.config.labels)

        with self._index.lock:
            rows = self._index.all()
            free = self._free(in_use)
            swept = self._swept([row for row in rows if free(row) and chosen(row)], rows)
            if not dry:
                self._sweep(swept)
                self._collect(self._layers.all())
        return _removals(swept), swept.freed

    def shrink(
        self, limit: int, in_use: InUse = _unused, *, cached: Collection[Digest] = ()
    ) -> Swept:
        """Delete the images that were unused for longest, until all layers take *limit* bytes.

        Never what a container or a lease uses, nor what has a pinned name; so it may stay above.
        One lease of each of the *cached* layers does not count: its holder lets go of them after.
        """
        with self._index.lock:
            total = self.weight()
            rows = self._index.all()
            free = self._free(in_use)
            going: list[Row] = []
            swept = Swept()
            for row in oldest_first(rows, self.notes.used(), free) if total > limit else ():
                if total - swept.freed <= limit:
                    break
                going.append(row)
                swept = self._swept(going, rows, cached)
            self._sweep(swept)
        return swept

    def weight(self) -> int:
        """The bytes of all layers, those counted once that several images have."""
        return sum(self._layers.get(layer).size for layer in self._layers.all())

    def unique(self, image: Image) -> int:
        """The bytes of those layers that no other image has."""
        with self._index.lock:
            row = self._index.get(image.id)
            if row is None:
                return 0
            alone = orphans([row], self._index.all(), lambda _: False)
        return sum(self._layers.get(layer).size for layer in alone if layer in self._layers)

    def _free(self, in_use: InUse) -> Callable[[Row], bool]:
        """Whether a collector may take an image: no container, no lease, no pin has it."""
        pinned = self._index.pins()

        def free(row: Row) -> bool:
            leased = self._index.pinned(row.id)
            return not (leased or pinned.intersection(row.names) or in_use(row.id))

        return free

    def _swept(
        self, going: Iterable[Row], rows: Iterable[Row], cached: Collection[Digest] = ()
    ) -> Swept:
        going = list(going)

        def kept(layer: Digest) -> bool:
            return self._index.pinned(layer, besides=int(layer in cached))

        layers = orphans(going, rows, kept)
        return Swept(
            tuple(name.familiar for row in going for name in row.names),
            tuple(row.id for row in going),
            tuple(layers),
            sum(self._layers.get(layer).size for layer in layers if layer in self._layers),
        )

    def _sweep(self, swept: Swept) -> None:
        """Do what was found out under the same lock."""
        for id in swept.images:
            row = self._index.get(id)
            if row is not None:
                with self._index.change():
                    for name in row.names:
                        self._index.unname(name)
                self._delete(row)

    def verify(self, reference_or_id: str) -> None:
        """Read all of an image; FailedError names what was changed on disk since it was made."""
        image = self.get(reference_or_id)
        with self.lease() as lease, on_disk():
            self._blobs.get(image.id)
            for layer in image.layers:
                lease.pin(layer)
                self._layers.verify(layer)


def _removals(swept: Swept) -> Removals:
    return [
        *(Removed("untagged", name) for name in swept.names),
        *(Removed("deleted", str(digest)) for digest in (*swept.images, *swept.layers)),
    ]


def _going_with(name: Reference, names: Iterable[Reference]) -> list[Reference]:
    """What is untagged with *name*: a repository's digests go with its last tag."""
    same = [n for n in names if n.name == name.name and n != name]
    if name.digest is not None or any(n.digest is None for n in same):
        return [name]
    return [name, *same]


class _Receiver:
    """What an archive's reader needs of the store, under one lease."""

    def __init__(self, store: ImageStore, lease: Lease) -> None:
        self._store = store
        self._lease = lease

    def has_layer(self, diff_id: Digest) -> bool:
        return self._store.has_layer(diff_id, self._lease)

    def add_layer(
        self, stream: ByteSource, *, diff_id: Digest | None, blob: Descriptor | None
    ) -> LayerInfo:
        return self._store.add_layer(stream, diff_id=diff_id, blob=blob, lease=self._lease)


def _missing(text: str) -> MissingError:
    shown = text
    if not text.startswith("sha256:"):
        with contextlib.suppress(InvalidError):
            shown = Reference.parse(text).with_default_tag().familiar
    return MissingError(
        f"No such image: {shown[:300]}", hint="tare images lists those that are there"
    )


@contextlib.contextmanager
def on_disk() -> Iterator[None]:
    """Turn what the file system refuses into a sentence."""
    try:
        yield
    except (OSError, FailedError) as error:
        # The extractor's errors name the file; when the disk is full, that is not the point.
        cause = error if isinstance(error, OSError) else error.__cause__
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FailedError(
                "no space left on the device that holds the images",
                hint="tare image prune frees what nothing uses",
            ) from error
        if isinstance(error, FailedError):
            raise
        raise FailedError(f"the image store failed: {error}") from error


def source_date_epoch() -> int | None:
    """The time that reproducible builds are told to use, in seconds, if they are."""
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 12 else None
