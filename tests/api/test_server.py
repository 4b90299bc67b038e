"""Versions, errors, limits, strangers."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from typing import TYPE_CHECKING

import pytest

from tare.api import server

if TYPE_CHECKING:
    from api.conftest import Api


@pytest.mark.parametrize("path", ["/_ping", "/v1.24/_ping", "/v1.50/_ping"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_ping_tells_the_version(api: Api, method: str, path: str) -> None:
    status, headers, body = api.ask(method, path)

    assert (status, body) == (200, b"OK" if method == "GET" else b"")
    assert headers["Api-Version"] == "1.50"
    assert headers["Ostype"] == "linux"
    assert headers["Docker-Experimental"] == "false"
    assert headers["Server"].startswith("tare/")


@pytest.mark.parametrize("path", ["/v1.23/version", "/v1.51/version", "/v1.999/version"])
def test_other_versions_are_refused_with_a_sentence(api: Api, path: str) -> None:
    status, answer = api.json("GET", path)

    assert status == 400
    assert isinstance(answer, dict)
    assert "supported API version is" in answer["message"]


@pytest.mark.attack("A44")
@pytest.mark.parametrize(
    "path",
    [
        "//version", "/v1.44//version", "/v1.44/../version", "/%76ersion", "/v1.x/version",
        "/containers/../version", "/containers/a%2f..%2fb/json", "/nothing", "/v2.0/version",
        "/containers/a/b/json", "/containers//json", "/images/../json",
    ],
)  # fmt: skip
def test_odd_paths_find_nothing(api: Api, path: str) -> None:
    status, answer = api.json("GET", path)

    assert status in (400, 404)
    assert isinstance(answer, dict)
    assert answer["message"]


def test_errors_have_a_message_a_hint_and_dockers_status(api: Api) -> None:
    status, answer = api.json("POST", "/containers/create", {"Image": "nothing"})

    assert status == 404
    assert answer == {
        "message": "No such image: nothing",
        "hint": "tare images lists those there are",
    }


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'{"Image": 5}', b"\xff", b'{"Image":"busybox"}x', b"[" * 100_000]
)
def test_a_body_that_is_no_create_body_is_refused(api: Api, body: bytes) -> None:
    status, answer = api.json("POST", "/containers/create", body)

    assert status == 400
    assert isinstance(answer, dict)
    assert "request body" in answer["message"]


@pytest.mark.attack("A45")
def test_a_body_that_is_too_large_is_refused(api: Api) -> None:
    status, _ = api.json("POST", "/containers/create", b" " * (5 << 20))

    assert status == 400


@pytest.mark.attack("A45")
def test_a_compressed_body_is_not_inflated(api: Api) -> None:
    status, _, _ = api.ask(
        "POST", "/containers/create", b"\x1f\x8b\x08", {"Content-Encoding": "gzip"}
    )

    assert status == 400


@pytest.mark.attack("A45")
def test_garbage_and_half_requests_do_not_stop_the_server(api: Api) -> None:
    open_connections = [api.connect() for _ in range(200)]
    for number, connection in enumerate(open_connections):
        connection.sendall(b"GET /_pi" if number % 2 else b"\x16\x03\x01garbage\r\n\r\n")

    status, _, _ = api.ask("GET", "/_ping")

    assert status == 200
    for connection in open_connections:
        connection.close()


@pytest.mark.attack("A44")
def test_request_smuggling_headers_are_refused(api: Api) -> None:
    connection = api.connect()
    connection.sendall(
        b"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /_ping HTTP/1.1\r\nHost: x\r\n\r\n"
    )

    answer = connection.recv(65_536)

    assert answer.split(None, 2)[1] == b"400"
    assert b"OK" not in answer.partition(b"\r\n\r\n")[2]
    connection.close()


@pytest.mark.attack("A44")
def test_the_socket_is_for_its_user_and_group_only(api: Api) -> None:
    assert stat.S_IMODE(os.stat(api.path).st_mode) == 0o600


def _answers_as(path: str, uid: int) -> bytes:
    """What a process of another user gets: credentials are those at connect."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            with socket.socket(socket.AF_UNIX) as stranger:
                stranger.connect(path)
                with contextlib.suppress(BrokenPipeError):  # refused before it was read
                    stranger.sendall(b"GET /_ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                os.write(write, stranger.recv(4096))
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as answer:
        found = answer.read()
    os.waitpid(child, 0)
    return found


@pytest.mark.attack("A44")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_stranger_who_reaches_the_socket_is_refused(api: Api) -> None:
    directory = api.path.parent
    for parent in (directory, *list(directory.parents)[:3]):
        os.chmod(parent, os.stat(parent).st_mode | 0o011)
    os.chmod(api.path, 0o666)  # as if the file's mode did not protect it

    assert _answers_as(str(api.path), 12345).startswith(b"HTTP/1.1 403 ")
    assert _answers_as(str(api.path), 0).startswith(b"HTTP/1.1 200 ")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a member of any group")
def test_a_member_of_the_sockets_group_is_allowed() -> None:
    left, right = socket.socketpair()
    with left, right:
        assert server.peer_allowed(left, None)


def test_a_socket_left_by_a_dead_daemon_is_replaced(api: Api) -> None:
    path = api.path.with_name("left.sock")
    server.bind(path, None).close()

    again = server.bind(path, None)

    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    again.close()
