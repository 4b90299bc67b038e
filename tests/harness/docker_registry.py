"""Debian's docker-registry on loopback, for as long as a test wants it.

Not for registries that lie (fakes.registry), nor for tare's own (harness.registry_server).
"""

from __future__ import annotations

import contextlib
import http.client
import os
import select
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Final, Self

USER: Final = "wolf"
PASSWORD: Final = "secret"
# bcrypt of PASSWORD: the registry reads no other kind.
_HTPASSWD: Final = "wolf:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n"
_PATIENCE: Final = 180.0


class DockerRegistry:
    """A registry of its own directory; ``with`` starts and ends it."""

    def __init__(self, directory: Path, *, password: bool = False) -> None:
        if shutil.which("docker-registry") is None:
            from harness.needs import needs  # not at the top: benchmarks run without pytest

            needs("docker-registry")
        self.directory = directory
        self._password = password
        self.host = ""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        # Another process may take the port that was free: then the next one is tried.
        for _ in range(5):
            if self._start(_free_port()):
                return self
        raise RuntimeError((self.directory / "log").read_text()[-2000:])

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _start(self, port: int) -> bool:
        self.host = f"127.0.0.1:{port}"
        auth = ""
        if self._password:
            (self.directory / "htpasswd").write_text(_HTPASSWD)
            auth = f"auth: {{htpasswd: {{realm: test, path: {self.directory}/htpasswd}}}}\n"
        (self.directory / "config.yml").write_text(
            "version: 0.1\n"
            "log: {level: error, accesslog: {disabled: true}}\n"
            f"storage: {{filesystem: {{rootdirectory: {self.directory}/data}},"
            " delete: {enabled: true}}\n"
            f"{auth}"
            f"http: {{addr: '{self.host}', secret: x}}\n"
        )
        with open(self.directory / "log", "ab") as log:
            process = subprocess.Popen(
                ["docker-registry", "serve", str(self.directory / "config.yml")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        end = time.monotonic() + _PATIENCE
        handle = os.pidfd_open(process.pid)
        try:
            while time.monotonic() < end:
                with contextlib.suppress(OSError, http.client.HTTPException):
                    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                    connection.request("GET", "/v2/")
                    connection.getresponse().read()
                    connection.close()
                    self._process = process
                    return True
                if select.select([handle], [], [], 0.02)[0]:
                    process.wait()
                    return False
        finally:
            os.close(handle)
        process.kill()
        process.wait()
        return False


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
