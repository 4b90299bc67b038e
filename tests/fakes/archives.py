"""Image archives made member by member, right or wrong: what tests load. Not tare's own code."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Mapping
from typing import Any

MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
OCI = "application/vnd.oci.image."

Members = list[tuple[str, bytes]]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def pack(members: Iterable[tuple[str, bytes]], links: Mapping[str, str] | None = None) -> bytes:
    """A tar of *members* in their order, then symbolic *links*."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    return out.getvalue()


def layer(files: Mapping[str, bytes]) -> bytes:
    """A layer's archive."""
    return pack(sorted(files.items()))


def config(layers: Iterable[bytes], **settings: Any) -> bytes:
    """An image configuration for *layers*; *settings* is its ``config``."""
    return json.dumps(
        {
            "architecture": MACHINE,
            "os": "linux",
            "config": settings,
            "rootfs": {"type": "layers", "diff_ids": ["sha256:" + sha256(one) for one in layers]},
        }
    ).encode()


def docker(*images: tuple[bytes, list[bytes], list[str]]) -> Members:
    """The members of a docker-archive of (configuration, layers, tags)."""
    members: dict[str, bytes] = {}
    listed = []
    for configuration, layers, tags in images:
        paths = []
        for one in layers:
            paths.append(sha256(one) + "/layer.tar")
            members[paths[-1]] = one
        name = sha256(configuration) + ".json"
        members[name] = configuration
        listed.append({"Config": name, "RepoTags": tags, "Layers": paths})
    members["manifest.json"] = json.dumps(listed).encode()
    return list(members.items())


def descriptor(kind: str, content: bytes, **more: Any) -> dict[str, Any]:
    return {"mediaType": kind, "digest": "sha256:" + sha256(content), "size": len(content), **more}


def oci(
    configuration: bytes,
    layers: list[bytes],
    *,
    name: str = "",
    compress: bool = False,
    **more: Any,
) -> Members:
    """The members of an OCI layout of one image; *more* goes into the manifest."""
    members: Members = [("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')]
    blobs = [gzip.compress(one, mtime=0) if compress else one for one in layers]
    kind = OCI + ("layer.v1.tar+gzip" if compress else "layer.v1.tar")
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI + "manifest.v1+json",
            "config": descriptor(OCI + "config.v1+json", configuration),
            "layers": [descriptor(kind, blob) for blob in blobs],
            **more,
        }
    ).encode()
    annotations = {"org.opencontainers.image.ref.name": name} if name else {}
    entry = descriptor(OCI + "manifest.v1+json", manifest, annotations=annotations)
    index = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    members += [(f"blobs/sha256/{sha256(b)}", b) for b in (configuration, manifest, *blobs)]
    return [*members, ("index.json", index)]
