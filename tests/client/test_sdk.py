"""The Python SDK against the fake engine: results, errors, timeouts."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator

import pytest

import tare
from fakes.engine_http import ID, Answer, FakeEngine, Request, frame
from tare.errors import (
    ConflictError,
    DeniedError,
    FailedError,
    InvalidError,
    MissingError,
    TareError,
)


@pytest.fixture
def client(engine: FakeEngine) -> Iterator[tare.Client]:
    with tare.connect(str(engine.socket)) as connected:
        yield connected


def _end(code: int = 0, **more: object) -> bytes:
    return frame(3, json.dumps({"Id": ID, "StatusCode": code, **more}).encode())


def test_run_returns_all_that_is_known(client: tare.Client, engine: FakeEngine) -> None:
    usage = {"WallNs": 5, "CpuNs": 7, "MemoryPeak": 9, "PidsPeak": None, "BlockBytes": 0}
    end = _end(3, OOMKilled=True, Usage=usage)
    engine.answers["POST /tare/run"] = Answer(stream=frame(1, b"o") + frame(2, b"e") + end)

    result = client.run("debian", ["x"], memory="256m", env={"A": "b"}, labels={"l": "m"})

    assert (result.stdout, result.stderr, result.exit_code) == (b"o", b"e", 3)
    assert result.oom_killed
    assert not result.timed_out
    assert not result.ok
    assert (result.usage.cpu_ns, result.usage.memory_peak) == (7, 9)
    asked = engine.asked[0].json()
    assert asked["Env"] == ["A=b"]
    assert asked["HostConfig"] == {"Memory": 256 << 20, "AutoRemove": True}


def test_input_reaches_the_program(client: tare.Client, engine: FakeEngine) -> None:
    engine.answers["POST /tare/run"] = Answer(stream=b"", echo=True, last=_end())
    data = bytes(range(256)) * 8000

    assert client.run("debian", ["cat"], stdin=data).stdout == data


def test_a_timeout_kills_the_container_and_keeps_what_was_said(
    client: tare.Client, engine: FakeEngine
) -> None:
    killed = threading.Event()

    def kill(_: Request) -> Answer:
        killed.set()
        return Answer(204)

    class Endless(Answer):
        @property
        def last(self) -> bytes:
            killed.wait(10)
            return _end(137)

        @last.setter
        def last(self, _: bytes) -> None: ...

    engine.answers[f"POST /containers/{ID}/kill"] = kill
    engine.answers["POST /tare/run"] = Endless(
        stream=frame(1, b"first"), headers={"Tare-Id": ID, "Tare-Warnings": '["w"]'}
    )
    began = time.monotonic()

    result = client.run("debian", ["sleep", "99"], timeout=0.2, name="slow")

    assert time.monotonic() - began < 5
    assert result.timed_out
    assert result.warnings == ("w",)
    assert (result.stdout, result.exit_code) == (b"first", 137)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, InvalidError), (403, DeniedError), (404, MissingError), (409, ConflictError),
     (500, FailedError), (418, FailedError)],
)  # fmt: skip
def test_statuses_become_the_errors_of_the_tree(
    status: int, kind: type[TareError], client: tare.Client, engine: FakeEngine
) -> None:
    body = {"message": "what happened", "hint": "what to do"}
    engine.answers["GET /containers/x/json"] = Answer(status, body)

    with pytest.raises(kind, match="what happened") as caught:
        client.containers.get("x")

    assert caught.value.hint == "what to do"


def test_a_container_lives(client: tare.Client, engine: FakeEngine) -> None:
    engine.answers.update({
        "POST /containers/create": Answer(201, {"Id": ID}),
        f"POST /containers/{ID}/start": Answer(204),
        f"POST /containers/{ID}/stop": Answer(204),
        f"POST /containers/{ID}/wait": Answer(200, {"StatusCode": 4}),
        f"DELETE /containers/{ID}": Answer(204),
        f"GET /containers/{ID}/json": Answer(200, {"Id": ID, "Name": "/n", "Config": {}}),
        f"GET /containers/{ID}/logs": Answer(body=frame(1, b"a") + frame(2, b"b")),
        f"POST /containers/{ID}/exec": Answer(201, {"Id": "e"}),
        "POST /exec/e/start": Answer(stream=frame(1, b"done")),
        "GET /exec/e/json": Answer(200, {"ExitCode": 2}),
    })  # fmt: skip

    container = client.containers.create("debian", ["sh"], name="n", volumes=["/a:/b"])
    container.start()

    assert container.name == "n"
    assert container.logs() == (b"a", b"b")
    assert (container.exec(["x"]).stdout, container.exec(["x"]).exit_code) == (b"done", 2)
    container.stop(timeout=0)
    assert container.wait() == 4
    container.remove(force=True)
    assert engine.of("POST", f"/containers/{ID}/stop")[0].query == {"t": "0"}
    assert engine.of("POST", "/containers/create")[0].json()["HostConfig"] == {"Binds": ["/a:/b"]}


def test_lists_are_typed(client: tare.Client, engine: FakeEngine) -> None:
    each = {"Id": ID, "Names": ["/n"], "Image": "d", "State": "running", "Status": "Up",
            "Created": 5, "Labels": {"a": "b"}}  # fmt: skip
    engine.answers["GET /containers/json"] = Answer(200, [each])
    engine.answers["GET /images/json"] = Answer(200, [{"Id": "i", "RepoTags": ["d:1"], "Size": 9}])

    (container,) = client.containers.list(all=True, filters=["label=a=b"])
    (image,) = client.images.list()

    assert (container.name, container.labels) == ("n", {"a": "b"})
    assert (image.tags, image.size) == (("d:1",), 9)
    assert json.loads(engine.asked[0].query["filters"]) == {"label": {"a=b": True}}


def test_an_unknown_option_names_the_known_ones(client: tare.Client) -> None:
    with pytest.raises(InvalidError, match="unknown option: memroy"):
        client.run("debian", memroy="1g")  # type: ignore[call-arg]  # the mistake under test


def test_nobody_answering_is_a_clear_error() -> None:
    with (
        tare.connect("/nonexistent/tare.sock") as client,
        pytest.raises(FailedError, match=r"no tare daemon answers at /nonexistent/tare\.sock"),
    ):
        client.version()


def test_all_exported_names_are_there_and_run_is_callable_beside_the_package() -> None:
    import tare.run.plan  # the engine's package of the same name

    assert all(getattr(tare, name) is not None for name in tare.__all__)
    with pytest.raises(InvalidError, match="unknown option"):
        tare.run("debian", nosuch=1)  # type: ignore[call-arg]  # the mistake under test


def test_networks(client: tare.Client, engine: FakeEngine) -> None:
    shown = {
        "Id": "n1", "Name": "mine", "Driver": "bridge", "Internal": True,
        "IPAM": {"Config": [{"Subnet": "10.1.0.0/24"}]},
    }  # fmt: skip
    engine.answers["POST /networks/create"] = Answer(201, {"Id": "n1", "Warning": ""})
    engine.answers["GET /networks"] = Answer(200, [shown])
    engine.answers["POST /networks/mine/connect"] = Answer(200, None)
    engine.answers["POST /networks/prune"] = Answer(200, {"NetworksDeleted": ["mine"]})

    assert client.networks.create("mine", subnets=["10.1.0.0/24"], internal=True) == "n1"
    found = client.networks.list(filters=["driver=bridge"])[0]
    assert (found.name, found.subnets, found.internal) == ("mine", ("10.1.0.0/24",), True)
    client.networks.connect("mine", "web", aliases=["www"])
    assert client.networks.prune() == ("mine",)
    sent = engine.of("POST", "/networks/mine/connect")[0].json()
    assert sent == {"Container": "web", "EndpointConfig": {"Aliases": ["www"]}}


def test_run_names_networks_and_ports(client: tare.Client, engine: FakeEngine) -> None:
    engine.answers["POST /tare/run"] = Answer(stream=_end())

    client.run("debian", ["x"], network=["front", "back"], publish=["8080:80"], network_rate="1m")

    host = engine.of("POST", "/tare/run")[0].json()["HostConfig"]
    assert isinstance(host, dict)
    assert host["NetworkMode"] == "front" and host["NetworkRate"] == 1 << 20
    assert host["PortBindings"] == {"80/tcp": [{"HostIp": "", "HostPort": "8080"}]}
