"""Answers against Docker's own description of its API, and the coverage document against both."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tare.api import routes
from tare.api.routes.absent import ABSENT, SWARM
from tare.api.routing import Routes

if TYPE_CHECKING:
    from api.conftest import Api

_ROOT = Path(__file__).parents[2]
_DESCRIPTION = json.loads(
    gzip.decompress((_ROOT / "tests/data/docker-api-1.45.json.gz").read_bytes())
)
_TYPES = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
}
Schema = dict[str, object]


def faults(value: object, schema: Schema, where: str = "$") -> list[str]:
    """Where *value* is not what *schema* says; null is allowed, as Go's clients allow it."""
    if "$ref" in schema:
        name = str(schema["$ref"]).rpartition("/")[2]
        return faults(value, _DESCRIPTION["definitions"][name], where)
    found = []
    for part in schema.get("allOf", ()):  # type: ignore[attr-defined]
        found += faults(value, part, where)
    kind = schema.get("type")
    if value is None or kind is None:
        return found
    wanted = _TYPES[str(kind)]
    if not isinstance(value, wanted) or (kind == "integer" and isinstance(value, bool)):  # type: ignore[arg-type]
        return [*found, f"{where}: {value!r} is no {kind}"]
    if isinstance(value, list):
        for number, item in enumerate(value):
            found += faults(item, schema["items"], f"{where}[{number}]")  # type: ignore[arg-type]
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        assert isinstance(properties, dict)
        found += [f"{where}.{n}: missing" for n in schema.get("required", ()) if n not in value]  # type: ignore[attr-defined]
        for name, inner in value.items():
            more = properties.get(name, schema.get("additionalProperties"))
            if isinstance(more, dict):
                found += faults(inner, more, f"{where}.{name}")
    elif "enum" in schema and value and value not in schema["enum"]:  # type: ignore[operator]
        found.append(f"{where}: {value!r} is none of {schema['enum']}")
    return found


@pytest.fixture
def busy(api: Api) -> Api:
    """A running container with an exec, one that ended, and one that was only created."""
    for name in ("web", "ended", "new"):
        api.create(
            name,
            Healthcheck={"Test": ["CMD", "true"]},
            HostConfig={
                "Memory": 64 << 20,
                "Binds": ["/srv:/srv:ro"],
                "Tmpfs": {"/run": "size=1m"},
                "Ulimits": [{"Name": "nofile", "Soft": 1, "Hard": 2}],
                "Devices": [{"PathOnHost": "/dev/fuse"}],
                "BlkioDeviceReadBps": [{"Path": "/dev/vda", "Rate": 1}],
                "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 2},
            },
        )
    for path in ("web/start", "ended/start", "ended/kill"):
        assert api.ask("POST", f"/containers/{path}")[0] == 204
    return api


@pytest.mark.parametrize(
    ("described", "path"),
    [
        ("GET /containers/json", "/containers/json?all=1&size=1"),
        ("GET /containers/{id}/json", "/containers/web/json?size=1"),
        ("GET /containers/{id}/json", "/containers/new/json"),
        ("GET /containers/{id}/json", "/containers/ended/json"),
        ("GET /containers/{id}/top", "/containers/web/top"),
        ("GET /containers/{id}/stats", "/containers/web/stats?stream=0&one-shot=1"),
        ("GET /images/json", "/images/json"),
        ("GET /images/{name}/json", "/images/busybox/json"),
        ("GET /images/{name}/history", "/images/busybox/history"),
        ("GET /info", "/info"),
        ("GET /version", "/version"),
        ("GET /system/df", "/system/df"),
        ("GET /networks", "/networks"),
        ("GET /networks/{id}", "/networks/host"),
        ("GET /volumes", "/volumes"),
        ("GET /volumes/{name}", "/volumes/data"),
        ("GET /plugins", "/plugins"),
    ],
)
def test_answer_is_what_docker_describes(busy: Api, described: str, path: str) -> None:
    status, answer = busy.json("GET", path)

    assert status == 200, answer
    assert faults(answer, _DESCRIPTION["paths"][described]) == []


def test_other_answers_are_what_docker_describes(busy: Api) -> None:
    _, created = busy.json("POST", "/containers/create", {"Image": "busybox"})
    _, made = busy.json("POST", "/containers/web/exec", {"Cmd": ["cat"]})
    assert isinstance(made, dict)
    _, told = busy.json("GET", f"/exec/{made['Id']}/json")
    _, waited = busy.json("POST", "/containers/ended/wait")

    paths = _DESCRIPTION["paths"]
    assert faults(created, paths["POST /containers/create"]) == []
    assert faults(made, paths["POST /containers/{id}/exec"]) == []
    assert faults(told, paths["GET /exec/{id}/json"]) == []
    assert faults(waited, paths["POST /containers/{id}/wait"]) == []


def test_the_checker_finds_faults() -> None:
    schema = _DESCRIPTION["paths"]["GET /version"]

    assert faults({"Version": 5}, schema) == ["$.Version: 5 is no string"]


def _listed() -> set[tuple[str, str]]:
    all_routes = Routes()
    routes.install(all_routes)
    return set(all_routes.listed())


def test_every_path_that_docker_describes_is_answered() -> None:
    listed = _listed()
    described = {
        tuple(re.sub(r"\{\w+\}", "{ref}", line).split(" ", 1)) for line in _DESCRIPTION["paths"]
    }
    swarm = {one for one in described if one[1].startswith(SWARM)}

    assert described - listed - swarm == set()


def test_absent_things_answer_501_with_a_sentence(api: Api) -> None:
    for sentence, paths in ABSENT.items():
        for method, path in paths:
            status, answer = api.json(method, path.replace("{ref}", "x"))

            assert (status, answer) == (501, {"message": sentence})


@pytest.mark.parametrize("path", ["/swarm", "/nodes", "/services", "/tasks", "/services/x"])
def test_a_host_in_no_swarm_answers_as_docker_does(api: Api, path: str) -> None:
    assert api.json("GET", path)[0] == 503


def test_coverage_document_names_every_path() -> None:
    text = (_ROOT / "docs/api-coverage.md").read_text()
    named = set(re.findall(r"^\| ([A-Z]+) \| `([^`]+)`", text, re.M))

    assert named == {one for one in _listed() if not one[1].startswith(SWARM)}


def test_extensions_document_names_every_addition() -> None:
    text = (_ROOT / "docs/api-extensions.md").read_text()

    for method, path in _listed():
        if path.startswith("/tare"):
            assert f"`{method} {path}`" in text
