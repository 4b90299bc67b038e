"""A large image in a registry on loopback, and pulling it until it is ready to run.

The layers are files of this host (libraries, programs, documentation), so they compress as real
ones do; every engine gets the same. Not for: pulls that fail, or resume; those are tests.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import platform
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from engines import BenchError, Engine

from harness.docker_registry import DockerRegistry

_LAYERS: Final = (
    (("/usr/lib",), 230 << 20),
    (("/usr/share", "/usr/include"), 120 << 20),
    (("/usr/bin", "/usr/sbin"), 100 << 20),
)
_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
_TYPE: Final = "application/vnd.oci.image."
# How a layer is made smaller, and how the floor undoes that.
_PACK: Final = {"gzip": ["gzip", "-6", "-n", "-k"], "zstd": ["zstd", "-3", "-q", "-k"]}
_UNPACK: Final = {"gzip": ["igzip", "-d", "-c"], "zstd": ["zstd", "-d", "-c"]}
_SUFFIX: Final = {"gzip": ".gz", "zstd": ".zst"}


def _fill(path: Path, roots: tuple[str, ...], limit: int) -> None:
    """Files below *roots*, in the order of their names, until *limit* bytes are gathered."""
    gathered = 0
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for root in roots:
            for directory, directories, names in os.walk(root):
                directories.sort()
                for name in sorted(names):
                    file = Path(directory, name)
                    if not (file.is_file() or file.is_symlink()):
                        continue
                    archive.add(file, arcname=str(file).lstrip("/"), recursive=False)
                    gathered += file.lstat().st_size
                    if gathered > limit:
                        return


def _upload(host: str, repository: str, content: Path) -> str:
    """Send a blob as distribution-spec's "POST then PUT"; its digest."""
    with open(content, "rb") as file:
        digest = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    connection = http.client.HTTPConnection(host, timeout=120)
    connection.request("POST", f"/v2/{repository}/blobs/uploads/")
    answer = connection.getresponse()
    answer.read()
    where = answer.headers["Location"].partition(host)[2] or answer.headers["Location"]
    with open(content, "rb") as file:
        connection.request(
            "PUT",
            f"{where}{'&' if '?' in where else '?'}digest={digest}",
            file,
            {
                "Content-Type": "application/octet-stream",
                "Content-Length": str(content.stat().st_size),
            },
        )
        answer = connection.getresponse()
        told = answer.read()
    connection.close()
    if answer.status != 201:
        raise BenchError(f"the registry takes no blob: {answer.status} {told[:200]!r}")
    return digest


def _descriptor(kind: str, digest: str, content: Path) -> dict[str, object]:
    return {"mediaType": _TYPE + kind, "digest": digest, "size": content.stat().st_size}


def _serve(directory: Path, host: str, how: str) -> tuple[str, list[Path]]:
    """Make the image and give it to the registry; its name, and its layers as they are there."""
    packed: list[Path] = []
    ids, layers = [], []
    for number, (roots, limit) in enumerate(_LAYERS):
        plain = directory / f"layer-{number}.tar"
        if not plain.exists():
            _fill(plain, roots, limit)
        subprocess.run([*_PACK[how], str(plain)], check=True)
        packed.append(plain.with_name(plain.name + _SUFFIX[how]))
        with open(plain, "rb") as file:
            ids.append("sha256:" + hashlib.file_digest(file, "sha256").hexdigest())
        digest = _upload(host, "bench", packed[-1])
        layers.append(_descriptor(f"layer.v1.tar+{how}", digest, packed[-1]))
    machine = platform.machine()
    config = directory / "config.json"
    config.write_text(
        json.dumps(
            {
                "architecture": _MACHINES.get(machine, machine),
                "os": "linux",
                "config": {"Cmd": ["true"]},
                "rootfs": {"type": "layers", "diff_ids": ids},
            }
        )
    )
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": _TYPE + "manifest.v1+json",
            "config": _descriptor("config.v1+json", _upload(host, "bench", config), config),
            "layers": layers,
        }
    )
    connection = http.client.HTTPConnection(host, timeout=120)
    kind = {"Content-Type": _TYPE + "manifest.v1+json"}
    connection.request("PUT", f"/v2/bench/manifests/{how}", manifest, kind)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    if answer.status != 201:
        raise BenchError(f"the registry takes no manifest: {answer.status}")
    return f"{host}/bench:{how}", packed


def _needs(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            raise BenchError(f"{program} is not installed")


@contextlib.contextmanager
def pulls(
    directory: Path, engines: list[Engine], how: str
) -> Iterator[dict[str, Callable[[], float]]]:
    """What pulls the image once, by each engine; ``floor`` only unpacks and hashes its layers."""
    _needs("docker-registry", _PACK[how][0], _UNPACK[how][0], "sha256sum")
    scratch = directory / f"pull-{how}"
    scratch.mkdir()
    with DockerRegistry(scratch / "registry") as registry:
        name, layers = _serve(scratch, registry.host, how)
        subjects: dict[str, Callable[[], float]] = {"floor": _floor(layers, how)}
        for engine in engines:
            subjects[engine.name] = _pull(engine, name)
        try:
            yield subjects
        finally:
            for engine in engines:
                _forget(engine, name)
            shutil.rmtree(scratch)


def _floor(layers: list[Path], how: str) -> Callable[[], float]:
    unpack = " ".join([*_UNPACK[how], '"$layer"'])
    script = f"set -e; for layer; do {unpack} | sha256sum; done"

    def once() -> float:
        began = time.perf_counter()
        command = ["sh", "-c", script, "sh", *map(str, layers)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began

    return once


def _pull(engine: Engine, name: str) -> Callable[[], float]:
    # Podman takes loopback for a registry like any other; the others know that it has no TLS.
    options = ["--tls-verify=false"] if engine.name == "podman" else []

    def once() -> float:
        _forget(engine, name)
        began = time.perf_counter()
        engine.cli("pull", "-q", *options, name)
        return time.perf_counter() - began

    return once


def _forget(engine: Engine, name: str) -> None:
    with contextlib.suppress(BenchError):
        engine.cli("rmi", "-f", name)
