"""Archives in and out: the header of a path, streams that break, large bodies."""

from __future__ import annotations

import base64
import http.client
import json
import stat
from typing import TYPE_CHECKING

import pytest

from tare.api.routes.archives import go_mode

if TYPE_CHECKING:
    from api.conftest import Api


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [
        (stat.S_IFREG | 0o644, 0o644),
        (stat.S_IFDIR | 0o755, 1 << 31 | 0o755),
        (stat.S_IFLNK | 0o777, 1 << 27 | 0o777),
        (stat.S_IFREG | 0o6755, 1 << 23 | 1 << 22 | 0o755),
        (stat.S_IFDIR | 0o1777, 1 << 31 | 1 << 20 | 0o777),
        (stat.S_IFCHR | 0o666, 1 << 26 | 1 << 21 | 0o666),
        (stat.S_IFIFO, 1 << 25),
        (stat.S_IFSOCK, 1 << 24),
    ],
)
def test_modes_are_those_of_go(mode: int, wanted: int) -> None:
    assert go_mode(mode) == wanted


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_a_paths_header_says_what_it_is(api: Api, method: str) -> None:
    api.create("web")

    status, headers, body = api.ask(method, "/containers/web/archive?path=/etc")

    assert (status, body) == (200, b"" if method == "HEAD" else b"tarball")
    assert json.loads(base64.b64decode(headers["X-Docker-Container-Path-Stat"])) == {
        "name": "etc",
        "size": 4096,
        "mode": 1 << 31 | 1 << 20 | 0o777,
        "mtime": "1970-01-01T00:00:01Z",
        "linkTarget": "",
    }


def test_a_missing_path_is_an_answer(api: Api) -> None:
    api.create("web")

    assert api.ask("GET", "/containers/web/archive?path=/nope")[0] == 404
    assert api.ask("GET", "/containers/web/archive")[0] == 400
    assert api.ask("GET", "/containers/none/export")[0] == 404


def test_an_archive_that_breaks_half_way_does_not_look_whole(api: Api) -> None:
    api.create("broken")

    with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
        api.ask("GET", "/containers/broken/export")


def test_an_archive_may_be_larger_than_any_json(api: Api) -> None:
    api.create("web")
    content = b"x" * (9 << 20)

    assert api.ask("PUT", "/containers/web/archive?path=/etc", content)[0] == 200
    assert api.engine.containers.received == content
