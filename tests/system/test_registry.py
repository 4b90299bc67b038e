"""The registry as people use it: from the command line, and inside the daemon; push, pull, kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes import archives
from harness.engines import Engine
from harness.registry_server import Registry, command

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="the system engine needs root"),
]

LAYER = archives.layer({"etc/hello": b"hello\n" * 100_000})
CONFIG = archives.config([LAYER], Cmd=["/bin/sh"])
ID = "sha256:" + archives.sha256(CONFIG)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = Engine(tmp_path)
    made.environment["DOCKER_CONFIG"] = str(tmp_path / "docker")
    yield made
    made.stop()


def load(engine: Engine, name: str = "app:1") -> None:
    path = engine.directory / "app.tar"
    path.write_bytes(archives.pack(archives.docker((CONFIG, [LAYER], [name]))))
    engine.out("load", "-i", str(path))


def configure(engine: Engine, text: str) -> None:
    path = engine.directory / "c/config.toml"
    served = f"[registry]\nenabled = true\nlisten = '127.0.0.1:0'\n{text}"
    path.write_text(served + path.read_text())


def address(engine: Engine) -> str:
    """Where the daemon's registry listens, as its log says."""
    log = (engine.run_dir / "daemon.log").read_text()
    return log.rpartition("the registry listens on http://")[2].split()[0]


def get(host: str, path: str) -> dict[str, object]:
    with urllib.request.urlopen(f"http://{host}{path}", timeout=60) as answer:
        value = json.loads(answer.read())
    assert isinstance(value, dict)
    return value


def test_the_daemon_serves_a_registry_to_push_to_and_pull_from(engine: Engine) -> None:
    configure(engine, "")
    load(engine)
    host = address(engine)
    engine.out("tag", "app:1", f"{host}/pushed/app:1")

    engine.out("push", f"{host}/pushed/app:1")
    engine.out("rmi", "-f", f"{host}/pushed/app:1", "app:1")
    gone = engine.out("images", "-q")
    engine.out("pull", f"{host}/pushed/app:1")

    assert gone == ""
    assert engine.out("images", "-q", "--no-trunc") == ID
    assert get(host, "/v2/_catalog")["repositories"] == ["pushed/app"]
    assert engine.out("registry", "ls") == "pushed/app:1"
    assert engine.out("registry", "ls", host) == f"{host}/pushed/app"
    assert engine.out("registry", "ls", f"{host}/pushed/app") == f"{host}/pushed/app:1"


def test_an_image_of_one_engine_is_pulled_by_another(engine: Engine, tmp_path: Path) -> None:
    configure(engine, "read-only = true\n")
    load(engine)
    (tmp_path / "o").mkdir()
    other = Engine(tmp_path / "o")

    other.out("pull", f"{address(engine)}/app:1")
    refused = other.tare("push", f"{address(engine)}/app:1")
    ids = other.out("images", "-q", "--no-trunc")
    other.stop()

    assert ids == ID
    assert refused.returncode == 1
    assert "read-only" in refused.stderr


def test_docker_pushes_and_pulls_through_the_engine(engine: Engine) -> None:
    if shutil.which("docker") is None:
        pytest.skip("docker is not installed")
    configure(engine, "")
    load(engine)
    host = address(engine)
    environment = {**engine.environment, "DOCKER_HOST": f"unix://{engine.run_dir / 'tare.sock'}"}

    def docker(*words: str) -> str:
        done = subprocess.run(["docker", *words], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    docker("tag", "app:1", f"{host}/docker/app:1")
    docker("push", f"{host}/docker/app:1")
    docker("rmi", f"{host}/docker/app:1", "app:1")
    docker("pull", f"{host}/docker/app:1")

    assert docker("images", "-q", "--no-trunc").strip() == ID


def test_the_daemon_may_be_killed_and_the_registry_loses_nothing(engine: Engine) -> None:
    configure(engine, "")
    load(engine)
    host = address(engine)
    engine.out("tag", "app:1", f"{host}/kept:1")
    engine.out("push", f"{host}/kept:1")
    before = get(host, "/v2/kept/manifests/1")

    engine.kill(engine.daemon())
    engine.out("version")

    assert address(engine) != ""
    assert get(address(engine), "/v2/kept/manifests/1") == before


@pytest.mark.attack("A32")
def test_login_push_and_pull_over_tls_with_a_password(engine: Engine, tmp_path: Path) -> None:
    cert, key, users = tmp_path / "ca.pem", tmp_path / "key.pem", tmp_path / "users"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"),
            *("ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    subprocess.run(command("passwd", str(users), "anna"), input=b"secret\n", check=True)
    served = Registry(
        tmp_path / "g", f"--tls-cert={cert}", f"--tls-key={key}", f"--htpasswd={users}"
    )
    path = engine.directory / "c/config.toml"
    path.write_text(f"{path.read_text()}[registries.'{served.host}']\nca = '{cert}'\n")
    load(engine, f"{served.host}/team/app:1")
    name = f"{served.host}/team/app:1"

    stranger = engine.tare("push", name)
    wrong = engine.tare("login", "-u", "anna", "-p", "wrong", served.host)
    engine.out("login", "-u", "anna", "-p", "secret", served.host)
    engine.out("push", name)
    engine.out("rmi", "-f", name)
    engine.out("pull", name)
    listed = engine.out("registry", "ls", f"{served.host}/team/app")
    served.end()

    assert (stranger.returncode, wrong.returncode) == (1, 1)
    assert engine.out("images", "-q", "--no-trunc") == ID
    assert listed == name
    assert "secret" not in served.log() + engine.log()


def test_a_registry_that_can_not_be_served_is_no_reason_to_serve_no_containers(
    engine: Engine,
) -> None:
    configure(engine, "data = '/proc/nowhere'\n")

    assert engine.out("ps", "-q") == ""
    assert "the registry is not served" in engine.log()


def test_a_mistake_in_the_configuration_is_named(engine: Engine) -> None:
    configure(engine, "tls-cert = 'nowhere.pem'\n")

    done = engine.tare("ps")

    assert done.returncode != 0
    assert "line 4: registry.tls-cert names a file that is not there" in engine.log()


def test_serve_in_the_foreground_ends_with_its_signal(engine: Engine) -> None:
    serving = engine.begin("registry", "serve", "--listen", "127.0.0.1:0", "-v")
    assert serving.stdout is not None
    line = serving.stdout.readline()
    host = line.strip().removeprefix("listening on http://")

    empty = get(host, "/v2/_catalog")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(host, "/v2/none/tags/list")
    serving.send_signal(signal.SIGINT)
    _, said = serving.communicate(timeout=60)

    assert empty == {"repositories": []}
    assert serving.returncode == 0
    assert "GET /v2/none/tags/list 404" in said
    assert engine.daemon() == 0  # nobody needed one


def test_gc_and_ls_of_a_registry_that_is_not_there(engine: Engine) -> None:
    collected = engine.tare("registry", "gc")
    listed = engine.tare("registry", "ls", "nothing")

    assert (collected.returncode, listed.returncode) == (1, 1)
    assert "there is no registry in" in collected.stderr
    assert "there is no repository nothing" in listed.stderr
    assert not (engine.state / "registry").exists()
