"""Hijacked connections: upgrade, frames, half-close, detach keys, vanishing clients."""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from api.conftest import Api

_UPGRADE = "Connection: Upgrade\r\nUpgrade: tcp\r\n"


def hijack(
    api: Api, path: str, body: object = None, headers: str = _UPGRADE
) -> tuple[socket.socket, str, bytes]:
    """The connection, the answer's headers, and what came behind them."""
    content = b"" if body is None else json.dumps(body).encode()
    connection = api.connect()
    connection.sendall(
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"{headers}Content-Length: {len(content)}\r\n\r\n".encode()
        + content
    )
    received = b""
    while b"\r\n\r\n" not in received:
        chunk = connection.recv(65_536)
        assert chunk, received
        received += chunk
    head, _, rest = received.partition(b"\r\n\r\n")
    return connection, head.decode(), rest


def rest_of(connection: socket.socket, begun: bytes = b"") -> bytes:
    received = begun
    while chunk := connection.recv(65_536):
        received += chunk
    return received


def frames(content: bytes) -> list[tuple[int, bytes]]:
    found = []
    while content:
        stream, length = struct.unpack(">BxxxL", content[:8])
        found.append((stream, content[8 : 8 + length]))
        content = content[8 + length :]
    return found


def wait_until(condition: object) -> None:
    assert callable(condition)
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def started(api: Api, **more: object) -> str:
    identity = api.create("web", **more)
    assert api.ask("POST", "/containers/web/start")[0] == 204
    return identity


@pytest.mark.parametrize(
    ("version", "tty", "kind"),
    [
        ("/v1.50", False, "multiplexed-stream"),
        ("/v1.50", True, "raw-stream"),
        ("/v1.41", False, "raw-stream"),
    ],
)
def test_attach_upgrades_with_the_right_type(api: Api, version: str, tty: bool, kind: str) -> None:
    started(api, Tty=tty)

    connection, head, _ = hijack(
        api, f"{version}/containers/web/attach?stream=1&stdin=1&stdout=1&stderr=1"
    )

    assert head.startswith("HTTP/1.1 101 UPGRADED\r\n")
    assert f"Content-Type: application/vnd.docker.{kind}" in head
    assert "Upgrade: tcp" in head
    connection.close()


def test_old_clients_get_a_plain_200(api: Api) -> None:
    started(api)

    connection, head, _ = hijack(api, "/containers/web/attach?stream=1&stdout=1", headers="")

    assert head.startswith("HTTP/1.1 200 OK")
    connection.close()


def test_half_close_ends_the_input_and_the_output_goes_on(api: Api) -> None:
    started(api)
    connection, _, begun = hijack(api, "/containers/web/attach?stream=1&stdin=1&stdout=1&stderr=1")

    connection.sendall(b"hello")
    connection.shutdown(socket.SHUT_WR)

    received = frames(rest_of(connection, begun))
    assert received == [(1, b"hello"), (2, b"bye")]
    connection.close()


def test_detach_keys_end_the_connection_and_not_the_program(api: Api) -> None:
    identity = started(api, Tty=True)
    connection, _, begun = hijack(
        api, "/containers/web/attach?stream=1&stdin=1&stdout=1&detachKeys=ctrl-a,x"
    )

    connection.sendall(b"ab\x01x")

    assert rest_of(connection, begun) == b"ab"
    assert api.engine.containers.records[identity].running
    connection.close()


@pytest.mark.attack("A45")
def test_clients_that_vanish_leave_nothing_behind(api: Api) -> None:
    identity = started(api)
    cat = api.engine.containers.cats[identity]

    for _ in range(50):
        connection, _, _ = hijack(api, "/containers/web/attach?stream=1&stdin=0&stdout=1")
        connection.close()
    wait_until(lambda: [view.closed for view in cat.views] == [True] * 50)


@pytest.mark.attack("A45")
def test_a_half_closed_client_that_vanishes_is_noticed(api: Api) -> None:
    identity = started(api)
    cat = api.engine.containers.cats[identity]
    connection, _, _ = hijack(api, "/containers/web/attach?stream=1&stdout=1")
    connection.shutdown(socket.SHUT_WR)
    api.ask("GET", "/_ping")
    assert not cat.views[0].closed

    connection.close()

    wait_until(lambda: cat.views[0].closed)


def test_exec_runs_and_tells_its_exit_code(api: Api) -> None:
    started(api)
    _, made = api.json(
        "POST", "/containers/web/exec", {"Cmd": ["cat"], "AttachStdin": True, "AttachStdout": True}
    )
    assert isinstance(made, dict)

    connection, head, begun = hijack(api, f"/exec/{made['Id']}/start", {"Detach": False})
    connection.sendall(b"x")
    connection.shutdown(socket.SHUT_WR)

    assert head.startswith("HTTP/1.1 101")
    assert frames(rest_of(connection, begun)) == [(1, b"x"), (2, b"bye")]
    _, told = api.json("GET", f"/exec/{made['Id']}/json")
    assert isinstance(told, dict)
    assert told["ExitCode"] == 7
    connection.close()


def run_body(**more: object) -> dict[str, object]:
    return {
        "Image": "busybox",
        "Name": "fast",
        "OpenStdin": True,
        "StdinOnce": True,
        "AttachStdin": True,
        "HostConfig": {"AutoRemove": True},
        **more,
    }


def test_run_does_all_in_one_request(api: Api) -> None:
    connection, head, begun = hijack(api, "/tare/run", run_body())
    connection.sendall(b"hi")
    connection.shutdown(socket.SHUT_WR)

    received = frames(rest_of(connection, begun))

    assert head.startswith("HTTP/1.1 101")
    assert received[:2] == [(1, b"hi"), (2, b"bye")]
    stream, last = received[-1]
    result = json.loads(last)
    assert stream == 3
    assert (result["StatusCode"], result["OOMKilled"]) == (7, False)
    assert result["Usage"]["WallNs"] == 5
    assert not api.engine.containers.records
    connection.close()


def test_input_sent_with_the_request_is_not_lost(api: Api) -> None:
    content = json.dumps(run_body()).encode()
    connection = api.connect()
    connection.sendall(
        f"POST /tare/run HTTP/1.1\r\nHost: x\r\n{_UPGRADE}Content-Length: {len(content)}"
        "\r\n\r\n".encode()
        + content
        + b"early"
    )
    connection.shutdown(socket.SHUT_WR)

    received = rest_of(connection).partition(b"\r\n\r\n")[2]

    assert frames(received)[0] == (1, b"early")
    connection.close()


def test_run_that_cannot_start_is_an_answer_and_leaves_nothing(api: Api) -> None:
    status, answer = api.json("POST", "/tare/run", run_body(Cmd=["missing"]))

    assert status == 500
    assert isinstance(answer, dict)
    assert "executable file not found in $PATH" in answer["message"]
    assert answer["exitCode"] == 127
    assert not api.engine.containers.records


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({"Tare": {"Timeout": -1}}, 400),
        ({"Platform": "linux/riscv64"}, 404),
        ({"Name": "a b"}, 400),
    ],
)
def test_run_that_makes_no_sense_is_refused(api: Api, more: dict[str, object], status: int) -> None:
    assert api.ask("POST", "/tare/run", run_body(**more))[0] == status
    assert not api.engine.containers.records


def test_run_is_killed_when_its_time_is_up(api: Api) -> None:
    connection, _, begun = hijack(api, "/tare/run", run_body(Tare={"Timeout": 0.05}))

    received = frames(rest_of(connection, begun))

    assert json.loads(received[-1][1])["StatusCode"] == 137
    connection.close()


def test_wait_answers_its_headers_before_the_end(api: Api) -> None:
    identity = started(api)
    connection = api.connect()
    connection.sendall(
        b"POST /containers/web/wait?condition=next-exit HTTP/1.1\r\nHost: x\r\n"
        b"Content-Length: 0\r\nConnection: close\r\n\r\n"
    )
    head = connection.recv(65_536)
    assert head.startswith(b"HTTP/1.1 200")
    assert b"StatusCode" not in head

    assert api.ask("POST", "/containers/web/kill")[0] == 204

    assert b'"StatusCode":137' in rest_of(connection)
    assert not api.engine.containers.records[identity].running
    connection.close()


def test_logs_are_framed_by_stream_and_stamped(api: Api) -> None:
    started(api)

    _, _, plain = api.ask("GET", "/containers/web/logs?stdout=1&stderr=1")
    _, _, stamped = api.ask("GET", "/containers/web/logs?stdout=1&stderr=1&timestamps=1")

    assert frames(plain) == [(1, b"out\n"), (2, b"err\n")]
    assert frames(stamped)[0] == (1, b"1970-01-01T00:00:01.000000000Z out\n")


def test_events_until_now_end_by_themselves(api: Api) -> None:
    api.create("web")

    _, _, body = api.ask("GET", f"/events?since=1&until={time.time()}")

    event = json.loads(body.splitlines()[0])
    assert (event["Type"], event["Action"], event["from"]) == ("container", "create", "busybox")


@pytest.mark.attack("A45")
def test_followers_that_never_read_cost_nothing_once_they_are_gone(api: Api) -> None:
    api.ask("GET", "/_ping")
    before = len(os.listdir("/proc/self/fd"))
    followers = [api.connect() for _ in range(200)]
    for follower in followers:
        follower.sendall(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        assert follower.recv(20).startswith(b"HTTP/1.1 200")

    began = time.monotonic()
    assert api.ask("GET", "/_ping")[0] == 200
    assert time.monotonic() - began < 1

    for follower in followers:
        follower.close()
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before)
