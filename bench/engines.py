"""An engine as a client sees it: the Docker Engine API over a unix socket, and a command line.

The same code talks to tare, docker and podman, so that no engine gets a better client. Only the
standard library; one connection a client, kept open as the engines allow.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

IMAGE = "docker.io/library/busybox:latest"
VERSION = "v1.41"  # the newest that every peer on Debian 12 speaks


class BenchError(Exception):
    """An engine did not do what was asked: one sentence with what it answered."""


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Api:
    """One client's connection. Not shared between threads."""

    def __init__(self, path: str, timeout: float = 60.0) -> None:
        self._connection = _Connection(path, timeout)

    def close(self) -> None:
        """End the connection."""
        self._connection.close()

    def ask(self, method: str, path: str, body: object = None) -> bytes:
        """The body of the answer; BenchError if the engine refuses."""
        content = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if content is not None else {}
        try:
            self._connection.request(method, f"/{VERSION}{path}", content, headers)
            answer = self._connection.getresponse()
            told = answer.read()
        except (http.client.HTTPException, OSError) as error:
            self._connection.close()
            raise BenchError(f"{method} {path}: {error!r}") from error
        if answer.status >= 400:
            raise BenchError(f"{method} {path}: {answer.status} {told[:300].decode()}")
        return told

    def create(
        self, *command: str, name: str = "", network: str = "none", published: int = 0
    ) -> str:
        """A container, without a network unless one is named; its id.

        *published* is the port of 127.0.0.1 that leads to its port 80.
        """
        host: dict[str, object] = {"NetworkMode": network}
        body: dict[str, object] = {"Image": IMAGE, "Cmd": list(command), "HostConfig": host}
        if published:
            body["ExposedPorts"] = {"80/tcp": {}}
            at = {"HostIp": "127.0.0.1", "HostPort": str(published)}
            host["PortBindings"] = {"80/tcp": [at]}
        query = f"?name={name}" if name else ""
        made = json.loads(self.ask("POST", f"/containers/create{query}", body))
        return str(made["Id"])

    def start(self, container: str) -> None:
        """Start it."""
        self.ask("POST", f"/containers/{container}/start")

    def wait(self, container: str) -> int:
        """Its exit code, once it has ended."""
        told = json.loads(self.ask("POST", f"/containers/{container}/wait"))
        return int(told["StatusCode"])

    def kill(self, container: str) -> None:
        """SIGKILL to its first process."""
        self.ask("POST", f"/containers/{container}/kill")

    def remove(self, container: str) -> None:
        """Remove it, running or not."""
        self.ask("DELETE", f"/containers/{container}?force=true")

    def run_true(self, network: str = "none") -> None:
        """The life of one container, from create to remove."""
        container = self.create("true", network=network)
        self.start(container)
        code = self.wait(container)
        self.remove(container)
        if code != 0:
            raise BenchError(f"true ended with {code}")

    def exec_true(self, container: str) -> None:
        """Run `true` in a container that runs, until its output ends, and check its code."""
        body = {"Cmd": ["true"], "AttachStdout": True, "AttachStderr": True}
        made = json.loads(self.ask("POST", f"/containers/{container}/exec", body))
        # The stream ends with the program, and takes the connection with it on some engines.
        self.ask("POST", f"/exec/{made['Id']}/start", {"Detach": False, "Tty": False})
        seen = json.loads(self.ask("GET", f"/exec/{made['Id']}/json"))
        if seen.get("ExitCode") != 0:
            raise BenchError(f"exec of true ended with {seen.get('ExitCode')}")

    def names(self, name: str = "") -> int:
        """How many containers run (of that name)."""
        query = ""
        if name:
            filters = json.dumps({"name": [name]})
            query = "?filters=" + urllib.parse.quote(filters)
        return len(json.loads(self.ask("GET", f"/containers/json{query}")))


@dataclass(slots=True)
class Engine:
    """A running engine that can be measured."""

    name: str
    socket: str
    command: list[str]  # what comes before `run`
    mark: str  # stands in the command line or environment of every process of the engine
    environment: Mapping[str, str] = field(default_factory=dict)
    version: str = ""

    def api(self, timeout: float = 60.0) -> Api:
        """A new connection."""
        return Api(self.socket, timeout)

    def cli(self, *arguments: str) -> None:
        """Run its command line once; BenchError if it fails."""
        done = subprocess.run(
            [*self.command, *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **self.environment},
        )
        if done.returncode != 0:
            raise BenchError(f"{self.name} {arguments[0]}: {done.stderr.strip()[-300:]}")

    def pids(self) -> list[int]:
        """The engine's own processes: daemons, shims and monitors, not what runs in containers."""
        mark = self.mark.encode()
        found = []
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) == os.getpid():
                continue
            try:
                where = Path("/proc") / entry
                if mark in (where / "cmdline").read_bytes() + (where / "environ").read_bytes():
                    found.append(int(entry))
            except OSError:
                continue
        return found

    def memory(self) -> int:
        """The proportional set size of all its processes, in bytes."""
        total = 0
        for pid in self.pids():
            try:
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        total += int(line.split()[1]) * 1024
            except OSError:
                continue
        return total
