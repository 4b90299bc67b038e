"""An engine whose host is a network namespace of the test's own, and what is seen there.

Not for: engines whose containers need no network (`harness.engines`).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final
from urllib.request import urlopen

from harness.engines import Engine
from harness.namespaces import Host
from tare.kernel import process

PATIENCE: Final = 30.0
SERVE: Final = "mkdir -p /w && echo {word} >/w/index.html && exec httpd -f -p 80 -h /w"


class Site(Engine):
    """An engine in a network namespace, and what a program of that host sees."""

    def __init__(self, directory: Path, more: dict[str, str] | None = None) -> None:
        self.host = Host()
        inside = ("nsenter", f"--net=/proc/{self.host.pid}/ns/net", "--")
        super().__init__(directory, inside, more or {}, networks=True)

    def serve(self, name: str, *options: str, word: str = "") -> None:
        """Start a container that serves *word* (its own name) over HTTP on port 80."""
        command = SERVE.format(word=word or name)
        self.out("run", "-d", "--name", name, *options, "busybox", "sh", "-c", command)

    def fetch(self, name: str, url: str) -> str:
        """What a container gets from *url*; tried again until its server is up."""
        command = f"for i in $(seq 300); do wget -qO- {url} && exit; sleep 0.1; done; exit 1"
        return self.out("exec", name, "sh", "-c", command)

    def browse(self, url: str) -> str:
        """What a program of the host gets from *url*."""

        def get() -> str:
            with self.host.inside(), urlopen(url, timeout=PATIENCE) as answer:
                return str(answer.read().decode().strip())

        return eventually(get)

    def shown(self, name: str) -> dict[str, dict[str, object]]:
        """A container's networks, as inspect has them."""
        found: dict[str, dict[str, object]] = json.loads(
            self.out("inspect", "-f", "{{json .NetworkSettings.Networks}}", name)
        )
        return found

    def refused(self, *words: str) -> str:
        """What the client says when it fails."""
        done = self.tare(*words)
        assert done.returncode != 0, (words, done.stdout)
        return done.stderr

    def clean(self) -> None:
        """No containers, no networks but the predefined."""
        ids = self.out("ps", "-aq").split()
        if ids:
            self.out("rm", "-f", *ids)
        self.out("network", "prune", "-f")

    def links(self) -> set[str]:
        """The engine's interfaces in its namespace."""
        with self.host.inside():
            return {name for _, name in socket.if_nameindex() if name[:2] in ("tb", "tv")}


@contextlib.contextmanager
def inside(pid: int) -> Iterator[None]:
    """The calling thread is in the network namespace of a process."""
    home, there = (os.open(f"/proc/{one}/ns/net", os.O_RDONLY) for one in ("thread-self", pid))
    try:
        process.join_namespaces(there, process.CLONE_NEWNET)
        try:
            yield
        finally:
            process.join_namespaces(home, process.CLONE_NEWNET)
    finally:
        os.close(home)
        os.close(there)


def eventually(attempt: Callable[[], str]) -> str:
    """What *attempt* gives once it does not fail."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return attempt()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
