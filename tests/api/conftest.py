"""A server of the API before a fake engine, on a socket of its own."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.engine import Engine
from tare.api.server import Server, bind


class Api:
    """The server, and small requests to it."""

    def __init__(self, path: Path, engine: Engine) -> None:
        self.path = path
        self.engine = engine

    def connect(self) -> socket.socket:
        found = socket.socket(socket.AF_UNIX)
        found.settimeout(10)
        found.connect(str(self.path))
        return found

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("localhost", timeout=10)
        connection.sock = self.connect()
        content = None if body is None else body if isinstance(body, bytes) else json.dumps(body)
        try:
            connection.request(
                method, path, content, {"Content-Type": "application/json", **(headers or {})}
            )
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()

    def json(self, method: str, path: str, body: object = None) -> tuple[int, object]:
        status, _, content = self.ask(method, path, body)
        return status, json.loads(content) if content else None

    def create(self, name: str, **more: object) -> str:
        body = {"Image": "busybox", "OpenStdin": True, **more}
        status, answer = self.json("POST", f"/containers/create?name={name}", body)
        assert status == 201, answer
        assert isinstance(answer, dict)
        return str(answer["Id"])


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    path = tmp_path / "api.sock"
    loop = asyncio.new_event_loop()
    ready = threading.Event()
    ending = asyncio.Event()
    engine = Engine()

    async def serve() -> None:
        server = Server(engine)  # type: ignore[arg-type]  # a fake with the facade's calls
        await server.start(bind(path, None))
        ready.set()
        await ending.wait()
        await server.close(0.2)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(10)
    yield Api(path, engine)
    loop.call_soon_threadsafe(ending.set)
    thread.join()
    loop.close()
