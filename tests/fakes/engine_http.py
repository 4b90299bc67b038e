"""A daemon that answers from a table, over HTTP on a unix socket, and remembers what was asked.

For tests of clients: what they send and what they print. It runs no containers. Docker's own
client talks to it as well, which is how both can be compared.
"""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

ID: Final = "4f66ad9a0b2e" + "0" * 52
IMAGE: Final = "sha256:" + "ab" * 32

Handler = Callable[["Request"], "Answer"]


@dataclass
class Request:
    """One request as it came."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict[str, object]:
        value = json.loads(self.body)
        assert isinstance(value, dict)
        return value


@dataclass
class Answer:
    """What to answer; *stream* is sent after the head of a hijacked connection."""

    status: int = 200
    body: object = None
    headers: dict[str, str] = field(default_factory=dict)
    stream: bytes | None = None
    echo: bool = False  # after the stream, frame what the client sends back as stdout
    last: bytes = b""


def frame(stream: int, content: bytes) -> bytes:
    return bytes((stream, 0, 0, 0)) + len(content).to_bytes(4, "big") + content


class FakeEngine:
    """Serves on *socket* while it is entered; *answers* maps ``METHOD /path`` to answers."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.asked: list[Request] = []
        self.answers: dict[str, Answer | Handler] = {
            "GET /_ping": Answer(body=b"OK"),
            "HEAD /_ping": Answer(body=b""),
        }

    def __enter__(self) -> FakeEngine:
        engine = self

        class Connection(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                while engine._serve(self):
                    pass

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True
            block_on_close = False
            request_queue_size = 16

        self._server = Server(str(self.socket), Connection)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self.socket.unlink(missing_ok=True)

    def of(self, method: str, path: str) -> list[Request]:
        """What was asked of that path."""
        return [r for r in self.asked if r.method == method and r.path == path]

    def _serve(self, connection: socketserver.StreamRequestHandler) -> bool:
        try:
            line = connection.rfile.readline()
        except ConnectionError:
            return False
        if not line.strip():
            return False
        method, where, _ = line.decode().split()
        headers = {}
        while raw := connection.rfile.readline().decode().strip():
            name, _, value = raw.partition(":")
            headers[name.lower()] = value.strip()
        body = b""
        if headers.get("transfer-encoding") == "chunked":
            while size := int(connection.rfile.readline(), 16):
                body += connection.rfile.read(size)
                connection.rfile.readline()
            connection.rfile.readline()
        elif "content-length" in headers:
            body = connection.rfile.read(int(headers["content-length"]))
        parts = urlsplit(where)
        path = unquote(parts.path)
        if path.startswith("/v1.") and path.count("/") > 1:
            path = path[path.index("/", 1) :]
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        request = Request(method, path, query, headers, body)
        self.asked.append(request)
        answer = self.answers.get(f"{method} {path}")
        if answer is None:
            answer = Answer(404, {"message": f"page not found: {method} {path}"})
        if not isinstance(answer, Answer):
            answer = answer(request)
        return self._reply(connection, request, answer)

    def _reply(
        self, connection: socketserver.StreamRequestHandler, request: Request, answer: Answer
    ) -> bool:
        out = connection.wfile
        common = "Api-Version: 1.50\r\nOstype: linux\r\nServer: fake\r\n"
        more = "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items())
        if answer.stream is not None:
            multiplexed = "Content-Type: application/vnd.docker.multiplexed-stream\r\n"
            kind = "" if "Content-Type" in answer.headers else multiplexed
            head = f"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n{kind}"
            out.write(f"{head}{common}{more}\r\n".encode() + answer.stream)
            if answer.echo:
                while data := connection.connection.recv(65536):
                    out.write(frame(1, data))
            out.write(answer.last)
            return False
        content = (
            answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        )
        if answer.body is None:
            content = b""
        head = f"HTTP/1.1 {answer.status} X\r\nContent-Type: application/json\r\n"
        out.write(f"{head}{common}{more}Content-Length: {len(content)}\r\n\r\n".encode())
        if request.method != "HEAD":
            out.write(content)
        return True
