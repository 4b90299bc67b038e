"""OCI and Docker image documents as values: configurations, manifests, indexes, descriptors.

Everything here was parsed strictly (`strict_json`) from at most a few MiB and is immutable; what
could be read in two ways is refused (image-spec, and attack A31). Values that an image may not
decide, such as labels of tare's own namespace, are not handed on (attack A35).

Not for: where documents and layers lie (``image``), or combining an image with a user's wishes
(``model.merge``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Self

from tare.errors import InvalidError
from tare.model import strict_json
from tare.model.digest import Digest
from tare.model.spec import HealthCheck
from tare.model.strict_json import Fields, Json

MANIFEST_MAX: Final = 4 << 20
CONFIG_MAX: Final = 8 << 20
LAYERS_MAX: Final = 512
_HISTORY_MAX: Final = 4096
_MANIFESTS_MAX: Final = 4096
RESERVED_LABELS: Final = "io.tare.engine."
"""Labels that only the engine may set: an image's are ignored."""

_OCI: Final = "application/vnd.oci.image."
_DOCKER: Final = "application/vnd.docker."


class MediaType(StrEnum):
    """The documents and layers that tare reads; it writes the OCI ones."""

    OCI_INDEX = _OCI + "index.v1+json"
    OCI_MANIFEST = _OCI + "manifest.v1+json"
    OCI_CONFIG = _OCI + "config.v1+json"
    OCI_LAYER = _OCI + "layer.v1.tar"
    OCI_LAYER_GZIP = _OCI + "layer.v1.tar+gzip"
    OCI_LAYER_ZSTD = _OCI + "layer.v1.tar+zstd"
    DOCKER_INDEX = _DOCKER + "distribution.manifest.list.v2+json"
    DOCKER_MANIFEST = _DOCKER + "distribution.manifest.v2+json"
    DOCKER_CONFIG = _DOCKER + "container.image.v1+json"
    DOCKER_LAYER = _DOCKER + "image.rootfs.diff.tar"
    DOCKER_LAYER_GZIP = _DOCKER + "image.rootfs.diff.tar.gzip"


INDEX_TYPES: Final = frozenset({MediaType.OCI_INDEX, MediaType.DOCKER_INDEX})
MANIFEST_TYPES: Final = frozenset({MediaType.OCI_MANIFEST, MediaType.DOCKER_MANIFEST})
CONFIG_TYPES: Final = frozenset({MediaType.OCI_CONFIG, MediaType.DOCKER_CONFIG})
# Foreign and non-distributable layers are named too: their bytes may lie in an archive. Their
# URLs are never followed.
LAYER_TYPES: Final = frozenset(
    {
        MediaType.OCI_LAYER,
        MediaType.OCI_LAYER_GZIP,
        MediaType.OCI_LAYER_ZSTD,
        MediaType.DOCKER_LAYER,
        MediaType.DOCKER_LAYER_GZIP,
        _DOCKER + "image.rootfs.diff.tar.zstd",
        _DOCKER + "image.rootfs.foreign.diff.tar",
        _DOCKER + "image.rootfs.foreign.diff.tar.gzip",
        _OCI + "layer.nondistributable.v1.tar",
        _OCI + "layer.nondistributable.v1.tar+gzip",
        _OCI + "layer.nondistributable.v1.tar+zstd",
    }
)

_PORT: Final = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?", re.ASCII)
_TOKEN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
_SIGNAL: Final = re.compile(r"(?:SIG)?([A-Z0-9]+(?:[+-]\d{1,2})?)")
_SIGNALS: Final = (
    "HUP INT QUIT ILL TRAP ABRT IOT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CLD CONT"
    " STOP TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO POLL PWR SYS RTMIN RTMAX"
)
_INT64: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Platform:
    """What an image is made for."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """What a document says of another: its type, digest and exact size. URLs are dropped."""

    media_type: str
    digest: Digest
    size: int
    platform: Platform | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def attestation(self) -> bool:
        """Does it say something of another image, rather than be one?"""
        return "vnd.docker.reference.type" in self.annotations or (
            self.platform is not None and self.platform.os == "unknown"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One image: its configuration and its layers, bottom first."""

    media_type: MediaType
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str]
    raw: bytes

    @property
    def digest(self) -> Digest:
        """What it is addressed by."""
        return Digest.of(self.raw)


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """Several images, usually one for each platform."""

    media_type: MediaType
    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str]
    raw: bytes

    def choose(self, platform: Platform) -> Descriptor:
        """The image for *platform*; InvalidError names what there is instead."""
        images = [d for d in self.manifests if not d.attestation]
        for descriptor in images:
            if descriptor.platform == platform:
                return descriptor
        for descriptor in images:
            offered = descriptor.platform
            if offered is None or (offered.os, offered.architecture) == (
                platform.os,
                platform.architecture,
            ):
                return descriptor
        offers = ", ".join(str(d.platform) for d in images[:20]) or "none"
        raise InvalidError(f"no image for platform {platform} in the index; it has: {offers}")


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """How one layer, or one change of the configuration, came to be."""

    created: str = ""
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """What an image runs and how; ``raw`` is the document itself, whose sha256 is the image's id.

    Make one with `parse` (from a document) or `encode` (from values). ``None`` for
    ``entrypoint`` and ``cmd`` means that the image has none. ``health`` has the engine's
    defaults filled in.
    """

    architecture: str
    os: str
    variant: str = ""
    created: str = ""
    author: str = ""
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    env: tuple[str, ...] = ()
    user: str = ""
    cwd: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    volumes: tuple[str, ...] = ()
    exposed_ports: tuple[str, ...] = ()
    stop_signal: str = ""
    health: HealthCheck | None = None
    shell: tuple[str, ...] = ()
    on_build: tuple[str, ...] = ()
    history: tuple[History, ...] = ()
    diff_ids: tuple[Digest, ...] = ()
    raw: bytes = b""

    @property
    def args(self) -> tuple[str, ...]:
        """What runs when the user asks for nothing else."""
        return (self.entrypoint or ()) + (self.cmd or ())

    @property
    def digest(self) -> Digest:
        """The image's id."""
        return Digest.of(self.raw)

    @property
    def platform(self) -> Platform:
        """What it is made for."""
        return Platform(self.os, self.architecture, self.variant)

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Read a configuration; InvalidError says which field is wrong."""
        top = Fields(
            strict_json.decode(raw, "image configuration", limit=CONFIG_MAX), "image configuration"
        )
        top.only_spelled("config", "rootfs", "history", "architecture", "os", "manifests", "layers")
        if "manifests" in top or "layers" in top:
            raise InvalidError("image configuration: it is a manifest")
        rootfs = top.fields("rootfs", required=True)
        if rootfs.text("type", required=True) != "layers":
            rootfs.refuse("type", "must be 'layers'")
        diff_ids = tuple(Digest.parse(text) for text in rootfs.texts("diff_ids") or ())
        if len(diff_ids) > LAYERS_MAX:
            raise InvalidError(
                f"image has {len(diff_ids)} layers; at most {LAYERS_MAX} are possible"
            )
        history = tuple(map(_history, top.each("history", limit=_HISTORY_MAX)))
        # A config that lists layers must account for as many in its history, if it has one.
        if history and sum(not h.empty_layer for h in history) > len(diff_ids):
            top.refuse("history", "names more layers than there are")
        return cls(
            architecture=_token(top, "architecture", required=True),
            os=_token(top, "os", required=True),
            variant=_token(top, "variant"),
            created=top.text("created")[:64],
            author=top.text("author"),
            history=history,
            diff_ids=diff_ids,
            raw=raw,
            **_settings(top.fields("config")),  # type: ignore[arg-type]  # one dict, many types
        )


def _settings(config: Fields) -> dict[str, object]:
    """The part of a configuration that says how to run."""
    labels = {
        name: value
        for name, value in config.mapping("Labels").items()
        if not name.startswith(RESERVED_LABELS)
    }
    user, stop_signal = config.text("User"), config.text("StopSignal")
    if any(character in user for character in "\n\r,"):
        config.refuse("User", f"is no user: {user[:80]!a}")
    if stop_signal and not is_signal(stop_signal):
        config.refuse("StopSignal", f"is no signal: {stop_signal[:80]!a}")
    ports = config.keys("ExposedPorts")
    for port in ports:
        if not is_port(port):
            config.refuse("ExposedPorts", f"has {port[:80]!a}, which is no port")
    return {
        "entrypoint": config.texts("Entrypoint"),
        "cmd": config.texts("Cmd"),
        "env": config.texts("Env") or (),
        "user": user,
        "cwd": config.text("WorkingDir"),
        "labels": labels,
        "volumes": config.keys("Volumes"),
        "exposed_ports": ports,
        "stop_signal": stop_signal,
        "health": _health(config.fields("Healthcheck")) if "Healthcheck" in config else None,
        "shell": config.texts("Shell") or (),
        "on_build": config.texts("OnBuild") or (),
    }


def is_signal(text: str) -> bool:
    """Is it a signal's name, or a number from 1 to 64?"""
    if text.isascii() and text.isdigit():
        return len(text) <= 2 and 1 <= int(text) <= 64
    match = _SIGNAL.fullmatch(text.upper())
    if match is None:
        return False
    name = re.split("[+-]", match[1])[0]
    return name in _SIGNALS.split() and (name == match[1] or name in ("RTMIN", "RTMAX"))


def is_port(text: str) -> bool:
    """Is it a port or a range of ports, with or without its protocol?"""
    match = _PORT.fullmatch(text)
    if match is None:
        return False
    first, last = int(match[1]), int(match[2] or match[1])
    return 0 < first <= last <= 65535


def _token(fields: Fields, name: str, *, required: bool = False) -> str:
    text = fields.text(name, required=required)
    if not text and not required:
        return ""
    if not _TOKEN.fullmatch(text):
        fields.refuse(name, f"is no name of one: {text[:80]!a}")
    return text


def _history(fields: Fields) -> History:
    return History(
        created=fields.text("created")[:64],
        created_by=fields.text("created_by"),
        author=fields.text("author"),
        comment=fields.text("comment"),
        empty_layer=fields.boolean("empty_layer"),
    )


def _health(fields: Fields) -> HealthCheck | None:
    test = fields.texts("Test")
    if test is None:
        return None
    if test and test[0] not in ("NONE", "CMD", "CMD-SHELL"):
        fields.refuse("Test", f"must begin with NONE, CMD or CMD-SHELL, not {test[0][:40]!a}")
    default = HealthCheck()
    return HealthCheck(
        test=test,
        interval_ns=_duration(fields, "Interval") or default.interval_ns,
        timeout_ns=_duration(fields, "Timeout") or default.timeout_ns,
        start_period_ns=_duration(fields, "StartPeriod"),
        start_interval_ns=_duration(fields, "StartInterval") or default.start_interval_ns,
        retries=fields.integer("Retries", maximum=2**31) or default.retries,
    )


def _duration(fields: Fields, name: str) -> int:
    value = fields.integer(name)
    if 0 < value < 1_000_000:
        fields.refuse(name, "is less than a millisecond")
    return value


def encode(config: ImageConfig) -> ImageConfig:
    """*config* with ``raw`` made from its values: the same values give the same bytes."""
    settings: dict[str, Json] = {
        "Entrypoint": None if config.entrypoint is None else list(config.entrypoint),
        "Cmd": None if config.cmd is None else list(config.cmd),
        "Env": list(config.env),
        "User": config.user,
        "WorkingDir": config.cwd,
        "Labels": dict(config.labels),
        "Volumes": {volume: {} for volume in config.volumes},
        "ExposedPorts": {port: {} for port in config.exposed_ports},
        "StopSignal": config.stop_signal,
        "Healthcheck": None if config.health is None else _encode_health(config.health),
        "Shell": list(config.shell),
        "OnBuild": list(config.on_build),
    }
    document: dict[str, Json] = {
        "architecture": config.architecture,
        "os": config.os,
        "variant": config.variant,
        "author": config.author,
        "created": config.created,
    }
    document = _without_empty(document)
    document["config"] = _without_empty(settings)
    document["rootfs"] = {"type": "layers", "diff_ids": [str(d) for d in config.diff_ids]}
    document["history"] = [
        _without_empty(
            {
                "created": h.created,
                "created_by": h.created_by,
                "author": h.author,
                "comment": h.comment,
                "empty_layer": h.empty_layer,
            }
        )
        for h in config.history
    ]
    return ImageConfig.parse(strict_json.encode(document))


def _without_empty(value: dict[str, Json]) -> dict[str, Json]:
    # An empty entrypoint or command differs from none: it replaces a parent's.
    keep = ("Entrypoint", "Cmd")
    return {k: v for k, v in value.items() if v or (k in keep and v is not None)}


def _encode_health(health: HealthCheck) -> dict[str, Json]:
    default = HealthCheck()
    told: dict[str, Json] = {"Test": list(health.test)}
    for name, value, usual in (
        ("Interval", health.interval_ns, default.interval_ns),
        ("Timeout", health.timeout_ns, default.timeout_ns),
        ("StartPeriod", health.start_period_ns, default.start_period_ns),
        ("StartInterval", health.start_interval_ns, default.start_interval_ns),
        ("Retries", health.retries, default.retries),
    ):
        if value != usual:
            told[name] = value
    return told


def parse_manifest(raw: bytes, media_type: str = "") -> Manifest | Index:
    """Read a manifest or an index.

    *media_type* is what its descriptor or its Content-Type called it; it must agree with what
    the document says of itself, and one of the two must say something (CVE-2021-41190).
    """
    what = "image manifest"
    top = Fields(strict_json.decode(raw, what, limit=MANIFEST_MAX), what)
    top.only_spelled("manifests", "layers", "config", "mediaType", "schemaVersion")
    if top.integer("schemaVersion", required=True) != 2:
        raise InvalidError(
            f"{what}: schema version 1 is not supported",
            hint="push the image again with a current client",
        )
    kind = _document_type(top, media_type)
    has_index, has_image = "manifests" in top, "layers" in top or "config" in top
    if has_index and has_image:
        raise InvalidError(f"{what}: it is an index and an image at once")
    if "fsLayers" in top:
        raise InvalidError(f"{what}: it is of schema version 1 and 2 at once")
    if "subject" in top or "artifactType" in top:
        raise InvalidError(f"{what}: it is an artifact, not an image")
    annotations = top.mapping("annotations")
    if kind in INDEX_TYPES:
        manifests = top.each("manifests", limit=_MANIFESTS_MAX, required=True)
        return Index(
            media_type=kind,
            manifests=tuple(map(_descriptor, manifests)),
            annotations=annotations,
            raw=raw,
        )
    config = _descriptor(top.fields("config", required=True))
    if config.media_type not in CONFIG_TYPES:
        top.refuse("config", f"is of type {config.media_type[:80]!a}: this is not an image")
    layers = tuple(map(_descriptor, top.each("layers", limit=LAYERS_MAX, required=True)))
    for layer in layers:
        if layer.media_type not in LAYER_TYPES:
            top.refuse("layers", f"has one of type {layer.media_type[:80]!a}")
        if layer.digest == config.digest:
            top.refuse("layers", "has the configuration as a layer")
    return Manifest(media_type=kind, config=config, layers=layers, annotations=annotations, raw=raw)


def _document_type(top: Fields, told: str) -> MediaType:
    """The one type that the document and whoever named it agree on."""
    own = top.text("mediaType")
    if told and own and told != own:
        top.refuse("mediaType", f"is {own[:80]!a}, but it was sent as {told[:80]!a}")
    name = told or own
    if not name:
        # Only OCI documents may leave it out; the two kinds have different fields.
        name = MediaType.OCI_INDEX if "manifests" in top else MediaType.OCI_MANIFEST
    if name not in INDEX_TYPES | MANIFEST_TYPES:
        top.refuse("mediaType", f"is {name[:80]!a}, which is not supported")
    return MediaType(name)


def _descriptor(fields: Fields) -> Descriptor:
    platform = None
    if "platform" in fields:
        told = fields.fields("platform")
        platform = Platform(
            _token(told, "os", required=True),
            _token(told, "architecture", required=True),
            _token(told, "variant"),
        )
    return Descriptor(
        media_type=fields.text("mediaType", required=True),
        digest=Digest.parse(fields.text("digest", required=True)),
        size=fields.integer("size", required=True, maximum=_INT64),
        platform=platform,
        annotations=fields.mapping("annotations"),
    )


def encode_descriptor(descriptor: Descriptor) -> dict[str, Json]:
    """*descriptor* as an object of a document."""
    value: dict[str, Json] = {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }
    if descriptor.annotations:
        value["annotations"] = dict(descriptor.annotations)
    if descriptor.platform is not None:
        platform: dict[str, Json] = {
            "os": descriptor.platform.os,
            "architecture": descriptor.platform.architecture,
            "variant": descriptor.platform.variant,
        }
        value["platform"] = _without_empty(platform)
    return value


def encode_manifest(
    config: Descriptor,
    layers: tuple[Descriptor, ...],
    *,
    annotations: Mapping[str, str] | None = None,
) -> bytes:
    """The one OCI manifest of these."""
    told: dict[str, Json] = {"annotations": dict(annotations)} if annotations else {}
    return strict_json.encode(
        {
            "schemaVersion": 2,
            "mediaType": MediaType.OCI_MANIFEST,
            "config": encode_descriptor(config),
            "layers": [encode_descriptor(layer) for layer in layers],
            **told,
        }
    )


def encode_index(manifests: tuple[Descriptor, ...]) -> bytes:
    """The one OCI index of these."""
    return strict_json.encode(
        {
            "schemaVersion": 2,
            "mediaType": MediaType.OCI_INDEX,
            "manifests": [encode_descriptor(manifest) for manifest in manifests],
        }
    )


def host_platform(machine: str) -> Platform:
    """The platform of a host, by what uname(2) calls its machine."""
    known = {
        "x86_64": ("amd64", ""),
        "aarch64": ("arm64", "v8"),
        "armv7l": ("arm", "v7"),
        "i686": ("386", ""),
    }
    architecture, variant = known.get(machine, (machine, ""))
    return Platform("linux", architecture, variant)


from tare.model.merge import merge  # noqa: E402  # the contract's name for it

__all__ = [
    "CONFIG_MAX",
    "CONFIG_TYPES",
    "INDEX_TYPES",
    "LAYERS_MAX",
    "LAYER_TYPES",
    "MANIFEST_MAX",
    "MANIFEST_TYPES",
    "RESERVED_LABELS",
    "Descriptor",
    "History",
    "ImageConfig",
    "Index",
    "Manifest",
    "MediaType",
    "Platform",
    "encode",
    "encode_descriptor",
    "encode_index",
    "encode_manifest",
    "host_platform",
    "is_port",
    "is_signal",
    "merge",
    "parse_manifest",
]
