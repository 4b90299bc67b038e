"""A real engine to build on, and small requests to it. Not for tests that need none."""

from __future__ import annotations

import http.client
import io
import json
import os
import socket
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from harness.engines import Engine

Files = Mapping[str, str | bytes]


@dataclass
class Outcome:
    """How a build went: its lines, its image and its error."""

    lines: list[dict[str, Any]] = field(default_factory=list)

    @property
    def error(self) -> str:
        """What the last line says went wrong, or ""."""
        return next((str(line["error"]) for line in self.lines if "error" in line), "")

    @property
    def id(self) -> str:
        """The image."""
        assert not self.error, self.error
        return next(str(line["aux"]["ID"]) for line in self.lines if "aux" in line)

    @property
    def text(self) -> str:
        """All that was told."""
        return "".join(str(line.get("stream", "")) for line in self.lines)

    def steps(self) -> list[tuple[str, bool]]:
        """Each step but FROM: its text, and whether it came out of the cache."""
        found: list[tuple[str, bool]] = []
        for line in self.lines:
            words = str(line.get("stream", ""))
            if words.startswith("Step "):
                found.append((words.partition(" : ")[2].strip(), False))
            elif words.startswith(" ---> Using cache"):
                found[-1] = (found[-1][0], True)
        return [step for step in found if not step[0].upper().startswith("FROM ")]

    def ran(self) -> list[str]:
        """The steps that ran."""
        return [text for text, cached in self.steps() if not cached]


class Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=300)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(300)
        self.sock.connect(str(self._path))


@dataclass
class Builds:
    """Builds on one engine."""

    engine: Engine

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] = {}
    ) -> tuple[int, bytes]:
        """One request."""
        connection = Connection(self.engine.run_dir / "tare.sock")
        try:
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def build(self, context: bytes | Files, **query: str) -> Outcome:
        """A build by Docker's API."""
        body = context if isinstance(context, bytes) else packed(context)
        status, content = self.ask("POST", f"/build?{urlencode(query)}", body)
        lines = [json.loads(line) for line in content.splitlines() if line.strip()]
        if status != 200:
            return Outcome([{"error": lines[0]["message"], "status": status}])
        return Outcome(lines)

    def config(self, image: str) -> dict[str, Any]:
        """The image's ``Config``, as far as it says something."""
        _, content = self.ask("GET", f"/images/{image}/json")
        return {key: value for key, value in json.loads(content)["Config"].items() if value}

    def files(self, image: str) -> dict[str, tuple[tarfile.TarInfo, bytes]]:
        """All files of an image."""
        status, content = self.ask("GET", f"/tare/files?{urlencode({'image': image})}")
        assert status == 200, content
        found: dict[str, tuple[tarfile.TarInfo, bytes]] = {}
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for entry in archive:
                name = entry.name.rstrip("/")
                if entry.islnk():
                    found[name] = found[entry.linkname]
                elif name not in ("", "."):
                    file = archive.extractfile(entry) if entry.isfile() else None
                    found[name] = (entry, file.read() if file is not None else b"")
        return found

    def read(self, image: str, name: str) -> str:
        """One file of an image as text."""
        return self.files(image)[name][1].decode()


def packed(files: Files, *, mtime: int = 1_500_000_000) -> bytes:
    """A context of plain files; a name that ends with ``/`` is a directory."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name.rstrip("/"))
            entry.mtime = mtime
            if name.endswith("/"):
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(entry)
            else:
                data = content.encode() if isinstance(content, str) else content
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


@pytest.fixture(scope="session")
def build_engine(session_directory: Path, busybox_archive: Path) -> Iterator[Engine]:
    """An engine of the builder's own tests, with busybox in it."""
    # A fresh place: tests of other folders use this fixture too, and each folder runs it anew.
    engine = Engine(session_directory / f"b{os.urandom(2).hex()}")
    engine.out("load", "-q", "-i", str(busybox_archive))
    yield engine
    assert engine.end() == []


@pytest.fixture
def builds(build_engine: Engine) -> Builds:
    """Builds on that engine, whose daemon answers."""
    build_engine.out("version")
    return Builds(build_engine)
