"""A registry of a test's own: the real process, on a free port of loopback, and plain HTTP to it.

Not for: registries that lie (fakes), or the peers' own servers.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import select
import signal
import ssl
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_SOURCE: Final = Path(__file__).resolve().parents[2] / "src"
_CODE: Final = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from tare.api.registry.command import main; sys.exit(main(sys.argv[1:]))"
)
_PATIENCE: Final = 180.0
MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX: Final = "application/vnd.oci.image.index.v1+json"
CONFIG: Final = "application/vnd.oci.image.config.v1+json"
LAYER: Final = "application/vnd.oci.image.layer.v1.tar"


def command(*words: str) -> list[str]:
    """What ``tare registry`` becomes."""
    return [sys.executable, "-I", "-c", _CODE, str(_SOURCE), *words]


@dataclass
class Answer:
    """One answer; header names as they were sent."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def __getitem__(self, name: str) -> str:
        return self.headers.get(name, "")

    @property
    def code(self) -> str:
        """The first error code."""
        return str(json.loads(self.body)["errors"][0]["code"])

    def json(self) -> dict[str, object]:
        """The document."""
        value = json.loads(self.body)
        assert isinstance(value, dict)
        return value


def digest(content: bytes, algorithm: str = "sha256") -> str:
    """What *content* is addressed by."""
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


def descriptor(content: bytes, media_type: str, **more: object) -> dict[str, object]:
    """What a manifest says of *content*."""
    return {"mediaType": media_type, "digest": digest(content), "size": len(content), **more}


class Registry:
    """``tare registry serve`` as a process, started when made."""

    def __init__(
        self, directory: Path, *options: str, environment: dict[str, str] | None = None
    ) -> None:
        self.directory = directory
        self.options = options
        self.environment = {**os.environ, **(environment or {})}
        self.tls: ssl.SSLContext | None = None
        self.port = 0
        self.start()

    def start(self) -> None:
        """Start it on *directory*, and wait until it says where it listens."""
        directory = self.directory
        directory.mkdir(parents=True, exist_ok=True)
        words = ["serve", f"--listen=127.0.0.1:{self.port}", "--verbose", *self.options]
        with open(directory / "log", "ab") as log:
            self.process = subprocess.Popen(
                command(*words, f"--data={directory / 'data'}"),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self.environment,
                cwd="/",
            )
        assert self.process.stdout is not None
        ready = select.select([self.process.stdout], [], [], _PATIENCE)[0]
        line = self.process.stdout.readline().decode() if ready else ""
        assert line.startswith("listening on "), (line, self.log())
        self.url = line.split()[2]
        self.host = self.url.partition("://")[2]
        self.port = int(self.host.rpartition(":")[2])

    def log(self) -> str:
        """What it has said."""
        return (self.directory / "log").read_text()

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self._reap()

    def end(self, number: int = signal.SIGTERM) -> int:
        """Ask it to end; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self._reap()

    def _reap(self) -> int:
        assert self.process.stdout is not None
        try:
            code = self.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self.process.stdout.close()
        return code

    def connect(self) -> http.client.HTTPConnection:
        """A new connection."""
        if self.tls is not None:
            return http.client.HTTPSConnection(
                "127.0.0.1", self.port, timeout=_PATIENCE, context=self.tls
            )
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=_PATIENCE)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """One request; ``_`` in a header's name stands for ``-``."""
        connection = self.connect()
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def push_blob(self, name: str, content: bytes, algorithm: str = "sha256") -> str:
        """Push *content* at once; its digest."""
        found = digest(content, algorithm)
        done = self.ask("POST", f"/v2/{name}/blobs/uploads/?digest={found}", content)
        assert done.status == 201, (done.status, done.body)
        return found

    def push_image(
        self, name: str, tag: str, *layers: bytes, **fields: object
    ) -> tuple[str, bytes]:
        """Push a manifest of *layers* and a configuration; its digest and its bytes."""
        config = json.dumps({"architecture": "amd64", "os": "linux", "tag": tag}).encode()
        for blob in (config, *layers):
            self.push_blob(name, blob)
        raw = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": descriptor(config, CONFIG),
                "layers": [descriptor(layer, LAYER) for layer in layers],
                **fields,
            }
        ).encode()
        done = self.ask("PUT", f"/v2/{name}/manifests/{tag}", raw, Content_Type=MANIFEST)
        assert done.status == 201, (done.status, done.body)
        return digest(raw), raw
