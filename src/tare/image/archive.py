"""Images in one file: docker-archives and OCI layouts, read from any stream and written to any.

What ``docker save``, ``podman save``, ``skopeo copy`` and ``buildx`` write is read: plain or
compressed, with compressed or linked layers, one image or many. Layers go straight to the store
as they pass; nothing is spooled, so a pipe may be longer than the disk has room for twice.

Nothing in an archive is a path of the host: members are only found by their names in the archive.
Every document and layer is checked against the digest it goes by:

1. a member ``blobs/sha256/HEX`` or ``HEX.json`` must have that digest;
2. a descriptor's size and digest must be those of the member it leads to;
3. each layer's diff_id must be the one that the configuration names, in order;
4. where ``manifest.json`` and ``index.json`` both speak, they must speak of the same images.

Not for: names' policy, or keeping anything (``store``).
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from tare.errors import InvalidError, TareError, UnsupportedError
from tare.image import tar
from tare.image.compress import Compression, detect, open_decompressed
from tare.image.entry import ByteSource, Entry, Kind, Limits
from tare.image.layers import LayerInfo, Layers
from tare.image.tar_writer import ByteSink, TarWriter
from tare.model import oci, strict_json
from tare.model.digest import Digest
from tare.model.oci import Descriptor, ImageConfig, Index, Manifest, MediaType
from tare.model.reference import Reference

Progress = Callable[[str], None]

_DOCUMENTS_TOTAL: Final = 64 << 20
_HEAD: Final = 512
_LINKS: Final = 8
_IMAGES: Final = 512
_BLOB: Final = re.compile("blobs/sha256/([0-9a-f]{64})")
_NAMED_CONFIG: Final = re.compile(r"(?:blobs/sha256/)?([0-9a-f]{64})(?:\.json)?")
_CONTAINERD_NAME: Final = "io.containerd.image.name"
_REF_NAME: Final = "org.opencontainers.image.ref.name"
_COSIGN_KIND: Final = "kind"
_COSIGN_TAG: Final = re.compile(r"(?:^|:)sha256-[0-9a-f]{64}(?:\.(?:sig|att|sbom))?$")


@dataclass(frozen=True, slots=True)
class Loaded:
    """An image whose layers are in the store, and the names that the archive gives it."""

    config: ImageConfig
    names: tuple[Reference, ...]
    documents: Mapping[str, bytes] = field(default_factory=dict)
    """Every small JSON member of the archive, by its path: what may accompany the image."""


@dataclass(frozen=True, slots=True)
class Saved:
    """An image to write, and the names to write with it."""

    config: ImageConfig
    names: list[Reference]


class Receiver(Protocol):
    """Where layers go."""

    def has_layer(self, diff_id: Digest) -> bool:
        """Is it there, and will it stay?"""
        ...

    def add_layer(
        self, stream: ByteSource, *, diff_id: Digest | None, blob: Descriptor | None
    ) -> LayerInfo:
        """Take one in, verified."""
        ...


# -- reading ------------------------------------------------------------------------------


@dataclass(slots=True)
class _Contents:
    """What was seen of an archive."""

    documents: dict[str, bytes] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    doubled: set[str] = field(default_factory=set)
    total: int = 0

    def document(self, path: str) -> bytes:
        """A small member's content; InvalidError if there is none, or two."""
        path = posixpath.normpath(path)
        if path in self.doubled:
            raise InvalidError(f"the archive has two members {path[:200]!r}")
        content = self.documents.get(path)
        if content is None:
            why = "is not a document" if path in self.sizes else "is not in the archive"
            raise InvalidError(f"the archive is incomplete or damaged: {path[:200]!r} {why}")
        match = _BLOB.fullmatch(path)
        if match and Digest.of(content).hex != match[1]:
            raise InvalidError(f"the archive is damaged: {path} has another digest")
        return content

    def layer(self, path: str) -> str:
        """The member that holds a layer, links within the archive followed."""
        path = posixpath.normpath(path)
        for _ in range(_LINKS):
            if path in self.doubled:
                raise InvalidError(f"the archive has two members {path[:200]!r}")
            if path in self.sizes:
                return path
            if path not in self.links:
                break
            path = self.links[path]
        raise InvalidError(f"the archive is incomplete or damaged: no layer {path[:200]!r}")

    def blob(self, descriptor: Descriptor) -> bytes:
        """The document that *descriptor* leads to."""
        content = self.document(f"blobs/sha256/{descriptor.digest.hex}")
        if len(content) != descriptor.size:
            raise InvalidError(
                f"the archive is damaged: {descriptor.digest} has {len(content)} bytes;"
                f" {descriptor.size} were announced"
            )
        return content


@dataclass(frozen=True, slots=True)
class _Wanted:
    """An image as the archive's documents describe it."""

    config: ImageConfig
    names: tuple[Reference, ...]
    layers: tuple[str, ...]  # members, in the order of the diff_ids


def load(stream: ByteSource, receiver: Receiver, progress: Progress) -> list[Loaded]:
    """Hand every layer of the archive's images to *receiver*; answers the images.

    A file that can be read twice is looked through first, so that only what is needed is taken,
    and layers that are there already are passed over. From a pipe all layers are taken.
    """
    start = _start_of_plain_file(stream)
    if start is not None:
        contents = _Contents()
        for _ in _walk(stream, contents):
            pass
        wanted = _plan(contents)
        stream.seek(start)  # type: ignore[attr-defined]  # it is a file: _start_of_plain_file
        _take_wanted(stream, wanted, receiver, progress)
    else:
        contents = _Contents()
        with open_decompressed(stream, read_ahead=True) as plain:
            wanted = _take_all(plain, contents, receiver, progress)
    return [Loaded(image.config, image.names, contents.documents) for image in wanted]


def _start_of_plain_file(stream: ByteSource) -> int | None:
    """Where the archive starts in a file that is not compressed; None for anything else."""
    seekable = getattr(stream, "seekable", None)
    if seekable is None or not seekable():
        return None
    start: int = stream.tell()  # type: ignore[attr-defined]  # a file that can seek can tell
    head = stream.read(6)
    stream.seek(start)  # type: ignore[attr-defined]
    return start if detect(head) is Compression.PLAIN else None


def _walk(stream: ByteSource, contents: _Contents) -> Iterator[tuple[str, Entry, ByteSource]]:
    """Go through the members once: note all, keep the documents, yield those that may be layers."""
    for entry, content in tar.read(stream, limits=Limits(files=100_000)):
        path = os.fsdecode(entry.path)
        if entry.kind in (Kind.SYMLINK, Kind.HARDLINK):
            contents.links[path] = _link_target(path, entry)
            continue
        if entry.kind is not Kind.FILE:
            continue
        if path in contents.sizes or path in contents.links:
            contents.doubled.add(path)
            continue
        contents.sizes[path] = entry.size
        head = content.read(_HEAD)
        if _is_document(head):
            contents.total += entry.size
            if entry.size > oci.CONFIG_MAX or contents.total > _DOCUMENTS_TOTAL:
                raise InvalidError(
                    f"the archive's documents are too large: {path[:200]!r} has {entry.size} bytes"
                )
            contents.documents[path] = head + content.read()
        elif _may_be_layer(head):
            yield path, entry, _Behind(head, content)


def _link_target(path: str, entry: Entry) -> str:
    target = os.fsdecode(entry.linkname)
    if entry.kind is Kind.SYMLINK:
        target = posixpath.join(posixpath.dirname(path), target)
    return posixpath.normpath(target)


def _is_document(head: bytes) -> bool:
    return head.lstrip()[:1] in (b"{", b"[") and head[257:262] != b"ustar"


def _may_be_layer(head: bytes) -> bool:
    try:
        compression = detect(head)
    except UnsupportedError:
        return True  # the layer's own reader says it better
    return compression is not Compression.PLAIN or len(head) == _HEAD


class _Behind:
    """A stream of which the first bytes were already read."""

    def __init__(self, head: bytes, rest: tar.Content) -> None:
        self._head = head
        self._rest = rest

    def read(self, n: int = -1, /) -> bytes:
        """At most *n* bytes; empty at the end."""
        if self._head:
            head = self._head if n < 0 else self._head[:n]
            self._head = self._head[len(head) :]
            return head
        return self._rest.read(n)


def _blob_of(path: str, size: int) -> Descriptor | None:
    """What a member's name promises of its content."""
    match = _BLOB.fullmatch(path)
    if match is None:
        return None
    return Descriptor(media_type=MediaType.OCI_LAYER, digest=Digest(match[1]), size=size)


def _take_wanted(
    stream: ByteSource, wanted: list[_Wanted], receiver: Receiver, progress: Progress
) -> None:
    """The second time through a file: take those layers that are needed and not there."""
    needed: dict[str, Digest] = {}
    for image in wanted:
        for path, diff_id in zip(image.layers, image.config.diff_ids, strict=True):
            if needed.setdefault(path, diff_id) != diff_id:
                raise InvalidError(f"the archive is damaged: {path!r} cannot be two layers")
    missing = {path: diff_id for path, diff_id in needed.items() if not receiver.has_layer(diff_id)}
    for path, entry, content in _walk(stream, _Contents()):
        if path not in missing:
            continue
        diff_id = missing.pop(path)
        progress(f"Loading layer {diff_id.hex[:12]}")
        receiver.add_layer(content, diff_id=diff_id, blob=_blob_of(path, entry.size))
    for path in missing:
        raise InvalidError(f"the archive is damaged: {path[:200]!r} is not a layer")


def _take_all(
    stream: ByteSource, contents: _Contents, receiver: Receiver, progress: Progress
) -> list[_Wanted]:
    """The only time through a pipe: what the layers are for is known at its end."""
    taken: dict[str, Digest] = {}
    failed: dict[str, TareError] = {}
    for path, entry, content in _walk(stream, contents):
        progress(f"Loading layer {path[:80]}")
        try:
            layer = receiver.add_layer(content, diff_id=None, blob=_blob_of(path, entry.size))
        except (InvalidError, UnsupportedError) as error:
            failed[path] = error  # it may be something that no image needs
        else:
            taken[path] = layer.diff_id
    wanted = _plan(contents)
    for image in wanted:
        for path, diff_id in zip(image.layers, image.config.diff_ids, strict=True):
            if path in failed:
                raise failed[path]
            if path not in taken:
                raise InvalidError(f"the archive is damaged: {path[:200]!r} is not a layer")
            if taken[path] != diff_id:
                raise InvalidError(
                    f"layer {diff_id} is not what it says it is: its archive is {taken[path]}"
                )
    return wanted


# -- what the documents say ---------------------------------------------------------------


def _plan(contents: _Contents) -> list[_Wanted]:
    """Which images there are; from documents alone."""
    has_docker, has_oci = "manifest.json" in contents.sizes, "index.json" in contents.sizes
    if has_docker:
        wanted = list(_docker_images(contents))
        if has_oci:
            _refuse_disagreement(contents, wanted)
    elif has_oci:
        wanted = list(_oci_images(contents))
    else:
        raise InvalidError(
            "the archive holds no image: it has neither manifest.json nor index.json",
            hint="for the archive of a root file system use tare import",
        )
    if not wanted:
        raise InvalidError("the archive holds no image for this platform")
    named: dict[Reference, Digest] = {}
    for image in wanted:
        for name in image.names:
            if named.setdefault(name, image.config.digest) != image.config.digest:
                raise InvalidError(f"the archive has two images named {name.familiar}")
    return wanted


def _docker_images(contents: _Contents) -> Iterator[_Wanted]:
    raw = contents.document("manifest.json")
    listed = strict_json.decode_list(raw, "manifest.json", limit=oci.MANIFEST_MAX)
    if len(listed) > _IMAGES:
        raise InvalidError(f"the archive has {len(listed)} images; at most {_IMAGES} are read")
    for i, item in enumerate(listed):
        if not isinstance(item, dict):
            raise InvalidError(f"manifest.json[{i}] is not an object")
        fields = strict_json.Fields(item, f"manifest.json[{i}]")
        fields.only_spelled("Config", "Layers", "RepoTags")
        path = fields.text("Config", required=True)
        config = ImageConfig.parse(contents.document(path))
        match = _NAMED_CONFIG.fullmatch(path)
        if match and match[1] != config.digest.hex:
            raise InvalidError(f"the archive is damaged: {path} has another digest")
        layers = tuple(contents.layer(layer) for layer in fields.texts("Layers") or ())
        names = tuple(_tagged(text) for text in fields.texts("RepoTags") or ())
        yield _wanted(config, names, layers)


def _wanted(config: ImageConfig, names: tuple[Reference, ...], layers: tuple[str, ...]) -> _Wanted:
    if len(layers) != len(config.diff_ids):
        raise InvalidError(
            f"the archive is damaged: an image has {len(layers)} layers,"
            f" but its configuration names {len(config.diff_ids)}"
        )
    return _Wanted(config, names, layers)


def _tagged(text: str) -> Reference:
    name = Reference.parse(text)
    if name.digest is not None:
        raise InvalidError(f"the archive names an image by digest: {text[:200]}")
    return name.with_default_tag()


def _oci_images(contents: _Contents) -> Iterator[_Wanted]:
    top = _index(contents)
    by_names: dict[tuple[Reference, ...], list[Descriptor]] = {}
    for descriptor in top.manifests:
        if not (descriptor.attestation or _accompanies(descriptor)):
            by_names.setdefault(_names(descriptor), []).append(descriptor)
    for names, descriptors in by_names.items():
        chosen = list({d.digest: d for d in descriptors}.values())
        if names and len(chosen) > 1 and all(d.platform for d in chosen):
            group = Index(
                media_type=top.media_type, manifests=tuple(chosen), annotations={}, raw=b""
            )
            chosen = [group.choose(_platform())]
        for descriptor in chosen:
            yield _oci_image(contents, descriptor, names)


def _accompanies(descriptor: Descriptor) -> bool:
    """Whether a descriptor leads to what cosign keeps beside an image, not to an image."""
    kind = descriptor.annotations.get(_COSIGN_KIND, "")
    name = descriptor.annotations.get(_REF_NAME, "")
    return kind.endswith(("/sigs", "/atts", "/sboms")) or _COSIGN_TAG.search(name) is not None


def _oci_image(
    contents: _Contents, descriptor: Descriptor, names: tuple[Reference, ...]
) -> _Wanted:
    document = _document(contents, descriptor)
    if isinstance(document, Index):
        document = _document(contents, document.choose(_platform()))
        if isinstance(document, Index):
            raise InvalidError("the archive has an index of indexes of indexes")
    config = ImageConfig.parse(contents.blob(document.config))
    layers = []
    for layer in document.layers:
        path = contents.layer(f"blobs/sha256/{layer.digest.hex}")
        if contents.sizes[path] != layer.size:
            raise InvalidError(
                f"the archive is damaged: {layer.digest} has {contents.sizes[path]} bytes;"
                f" {layer.size} were announced"
            )
        layers.append(path)
    return _wanted(config, names, tuple(layers))


def _index(contents: _Contents) -> Index:
    document = oci.parse_manifest(contents.document("index.json"))
    if not isinstance(document, Index):
        raise InvalidError("index.json is not an index")
    if "oci-layout" in contents.sizes:
        layout = strict_json.decode(contents.document("oci-layout"), "oci-layout", limit=4096)
        version = strict_json.Fields(layout, "oci-layout").text("imageLayoutVersion")
        if not version.startswith("1."):
            raise UnsupportedError(f"OCI layouts of version {version[:40]!r} are not supported")
    return document


def _document(contents: _Contents, descriptor: Descriptor) -> Manifest | Index:
    return oci.parse_manifest(contents.blob(descriptor), descriptor.media_type)


def _names(descriptor: Descriptor) -> tuple[Reference, ...]:
    full = descriptor.annotations.get(_CONTAINERD_NAME, "")
    if full:
        return (_tagged(full),)
    name = descriptor.annotations.get(_REF_NAME, "")
    # A lone tag says of no repository.
    return (_tagged(name),) if ":" in name or "/" in name else ()


def _platform() -> oci.Platform:
    return oci.host_platform(os.uname().machine)


def _refuse_disagreement(contents: _Contents, wanted: list[_Wanted]) -> None:
    """An archive that shows one image to one tool and another to the next is refused."""
    configs: set[Digest] = set()
    pending = [(d, 0) for d in _index(contents).manifests]
    while pending:
        descriptor, depth = pending.pop()
        if f"blobs/sha256/{descriptor.digest.hex}" not in contents.documents or depth > 2:
            continue  # images of other platforms are often left out
        if descriptor.attestation or _accompanies(descriptor):
            continue
        document = _document(contents, descriptor)
        if isinstance(document, Index):
            pending += [(d, depth + 1) for d in document.manifests]
        else:
            configs.add(document.config.digest)
    if configs and not {image.config.digest for image in wanted} <= configs:
        raise InvalidError("the archive's manifest.json and index.json name different images")


# -- writing ------------------------------------------------------------------------------


def manifest_of(config: ImageConfig, layers: Layers) -> tuple[bytes, tuple[Descriptor, ...]]:
    """The manifest of an image as archives have it, layers uncompressed; and those layers."""
    described = tuple(
        Descriptor(
            media_type=MediaType.OCI_LAYER,
            digest=diff_id,
            size=layers.get(diff_id).archive_size,
        )
        for diff_id in config.diff_ids
    )
    own = Descriptor(media_type=MediaType.OCI_CONFIG, digest=config.digest, size=len(config.raw))
    return oci.encode_manifest(own, described), described


def save(
    images: Iterable[Saved],
    layers: Layers,
    out: ByteSink,
    *,
    docker: bool,
    members: Mapping[str, bytes] | None = None,
) -> None:
    """Write *images* as an OCI layout; with *docker* also with the documents of docker-archives.

    *members* are documents that go with them.

    Layers are written uncompressed, so that their digests are their diff_ids and the same images
    give the same archive.
    """
    writer = TarWriter(out)
    writer.add(Entry(b"blobs", Kind.DIR, mode=0o755))
    writer.add(Entry(b"blobs/sha256", Kind.DIR, mode=0o755))
    written: set[Digest] = set()
    listed: list[strict_json.Json] = []
    manifests: list[Descriptor] = []
    for image in images:
        raw, described = manifest_of(image.config, layers)
        for layer in described:
            if layer.digest not in written:
                written.add(layer.digest)
                _add_blob(writer, layer.digest, layer.size, layers.archive(layer.digest))
        config = _write_blob(writer, written, image.config.raw, MediaType.OCI_CONFIG)
        manifest = _write_blob(writer, written, raw, MediaType.OCI_MANIFEST)
        manifests += _described(manifest, image, docker=docker)
        listed.append(
            {
                "Config": _blob_path(config.digest),
                "RepoTags": [name.familiar for name in image.names] or None,
                "Layers": [_blob_path(layer.digest) for layer in described],
            }
        )
    _add_document(writer, "index.json", oci.encode_index(tuple(manifests)))
    if docker:
        _add_document(writer, "manifest.json", strict_json.encode(listed))
    _add_document(writer, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    for path, content in (members or {}).items():
        _add_document(writer, path, content)
    writer.close()


def _described(manifest: Descriptor, image: Saved, *, docker: bool) -> list[Descriptor]:
    """One descriptor for each name, as containerd and as podman look for them."""
    found = []
    for name in image.names:
        annotations = {
            _CONTAINERD_NAME: str(name),
            _REF_NAME: (name.tag or "") if docker else name.familiar,
        }
        found.append(
            Descriptor(
                media_type=manifest.media_type,
                digest=manifest.digest,
                size=manifest.size,
                platform=image.config.platform,
                annotations=annotations,
            )
        )
    return found or [manifest]


def _blob_path(digest: Digest) -> str:
    return f"blobs/sha256/{digest.hex}"


def _write_blob(
    writer: TarWriter, written: set[Digest], content: bytes, media_type: MediaType
) -> Descriptor:
    digest = Digest.of(content)
    if digest not in written:
        written.add(digest)
        _add_blob(writer, digest, len(content), [content])
    return Descriptor(media_type=media_type, digest=digest, size=len(content))


def _add_blob(writer: TarWriter, digest: Digest, size: int, data: Iterable[bytes]) -> None:
    path = _blob_path(digest).encode()
    writer.add(Entry(path, Kind.FILE, mode=0o644, size=size), data)


def _add_document(writer: TarWriter, path: str, content: bytes) -> None:
    writer.add(Entry(path.encode(), Kind.FILE, mode=0o644, size=len(content)), [content])
