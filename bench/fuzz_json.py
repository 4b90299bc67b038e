"""Fuzz the readers of JSON: image configurations, manifests, seccomp profiles and API bodies.

    python bench/fuzz_json.py [--seconds 120] [--seed N] [--keep DIRECTORY]

Documents are mutated as bytes and as trees. Nothing but the errors meant for users may come out,
and no small document may take long. A finding is written to DIRECTORY and ends the run with exit
status 1. Run it with src on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import resource
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tare.errors import TareError
from tare.model import oci, seccomp, seccomp_profiles
from tare.wire import body
from tare.wire.create import create

SLOW = 2.0  # seconds that no small document may take
_DIGEST = "sha256:" + "ab" * 32
_CONFIG = {
    "architecture": "amd64",
    "os": "linux",
    "created": "2026-01-01T00:00:00Z",
    "config": {
        "Env": ["PATH=/bin"],
        "Cmd": ["sh"],
        "Entrypoint": None,
        "User": "1000:1000",
        "WorkingDir": "/w",
        "Labels": {"a": "b"},
        "ExposedPorts": {"80/tcp": {}},
        "Volumes": {"/v": {}},
        "StopSignal": "SIGTERM",
        "Healthcheck": {"Test": ["CMD", "true"], "Interval": 1_000_000_000, "Retries": 3},
    },
    "rootfs": {"type": "layers", "diff_ids": [_DIGEST]},
    "history": [{"created_by": "x", "empty_layer": True}],
}
_MANIFEST = {
    "schemaVersion": 2,
    "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "config": {
        "mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": _DIGEST,
        "size": 7,
    },
    "layers": [
        {
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": _DIGEST,
            "size": 9,
        }
    ],
}
_BODY = {
    "Image": "b",
    "Cmd": ["true"],
    "Env": ["A=1"],
    "User": "1",
    "Labels": {"x": "y"},
    "HostConfig": {
        "Binds": ["/a:/b:ro"],
        "Mounts": [{"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 1}}],
        "Memory": 67108864,
        "NanoCpus": 500000000,
        "Ulimits": [{"Name": "nofile", "Soft": 1, "Hard": 2}],
        "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 2},
        "SecurityOpt": ["seccomp=unconfined", "no-new-privileges"],
        "CapAdd": ["NET_ADMIN"],
        "Devices": [{"PathOnHost": "/dev/null", "PathInContainer": "/dev/x"}],
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m"}},
    },
}
_ODD: tuple[object, ...] = (
    None, True, -1, 0, 2**31, 2**63, 2**64, 1e308, "", "\0", "../..", "x" * 300, [], {}, [[]],
)  # fmt: skip


def _read_body(raw: bytes) -> None:
    config = oci.ImageConfig.parse(json.dumps(_CONFIG).encode())
    create(body.read(body.CREATE, raw), _DIGEST, config)


TARGETS: dict[str, tuple[bytes, Callable[[bytes], object]]] = {
    "config": (json.dumps(_CONFIG).encode(), oci.ImageConfig.parse),
    "manifest": (
        json.dumps(_MANIFEST).encode(),
        lambda raw: oci.parse_manifest(raw, str(_MANIFEST["mediaType"])),
    ),
    "seccomp": (
        seccomp.render_profile(seccomp_profiles.standard_profile()).encode()[:20000],
        seccomp.parse_profile,
    ),
    "create": (json.dumps(_BODY).encode(), _read_body),
}


def mutated(raw: bytes, chance: random.Random) -> bytes:
    """*raw* with some bytes changed, or some value in it replaced."""
    if chance.random() < 0.5:
        try:
            tree = json.loads(raw)
        except ValueError:
            return raw
        for _ in range(chance.randint(1, 3)):
            _replace(tree, chance)
        return json.dumps(tree).encode("utf-8", "surrogatepass")
    data = bytearray(raw)
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(data))
        match chance.randrange(4):
            case 0:
                data[at] = chance.randrange(256)
            case 1:
                del data[at : at + chance.randint(1, 40)]
            case 2:
                data[at:at] = data[at : at + chance.randint(1, 40)] * chance.randint(1, 3)
            case _:
                data[at:at] = chance.choice((b"[" * 2000, b'{"a":', b"\xff\xfe", b"\\ud800", b"-0"))
        if not data:
            return b"{}"
    return bytes(data)


def _replace(node: object, chance: random.Random) -> None:
    while True:
        if isinstance(node, dict) and node:
            key = chance.choice(list(node))
            if isinstance(node[key], dict | list) and node[key] and chance.random() < 0.8:
                node = node[key]
                continue
            node[key] = copy.deepcopy(chance.choice(_ODD))
        elif isinstance(node, list) and node:
            at = chance.randrange(len(node))
            if isinstance(node[at], dict | list) and node[at] and chance.random() < 0.8:
                node = node[at]
                continue
            node[at] = copy.deepcopy(chance.choice(_ODD))
        return


def main() -> int:
    """Fuzz until the time is over; 1 after a finding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--keep", type=Path, default=Path())
    options = parser.parse_args()
    chance = random.Random(options.seed)
    end, count = time.monotonic() + options.seconds, 0
    while time.monotonic() < end:
        name = chance.choice(list(TARGETS))
        seed, read = TARGETS[name]
        raw = mutated(seed, chance)
        began = time.monotonic()
        try:
            read(raw)
        except TareError:
            pass
        except Exception:
            traceback.print_exc()
            found = options.keep / f"finding-{name}.json"
            found.write_bytes(raw)
            print(f"{name}: an error that no user is meant to read; see {found}", file=sys.stderr)
            return 1
        if time.monotonic() - began > SLOW:
            (options.keep / f"slow-{name}.json").write_bytes(raw)
            print(f"{name}: took over {SLOW} s", file=sys.stderr)
            return 1
        count += 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"{count} documents, seed {options.seed}, at most {peak} MiB: nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
