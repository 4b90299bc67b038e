"""Registries and real clients: tare, docker, docker-py and skopeo, and a daemon that is killed."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import docker.errors
import pytest
from aiohttp import web

import tare
from fakes import archives
from fakes.registry import FakeRegistry, sha256
from harness.docker_registry import PASSWORD, USER, DockerRegistry
from harness.engines import Engine
from harness.needs import needs
from tare.errors import MissingError
from tare.image.compress import Compression

pytestmark = [pytest.mark.system, pytest.mark.needs("root", "overlay", "cgroup", "busybox")]

_PATIENCE = 180.0


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as made:
        yield made


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with DockerRegistry(tmp_path_factory.mktemp("locked"), password=True) as made:
        yield made


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, busybox_archive: Path) -> Iterator[Engine]:
    directory = tmp_path_factory.mktemp("p")
    found = Engine(directory, more={"DOCKER_CONFIG": str(directory / "docker")})
    found.environment["DOCKER_HOST"] = f"unix://{found.run_dir}/tare.sock"
    try:
        found.out("load", "-q", "-i", str(busybox_archive))
        yield found
        assert found.end() == []
    finally:
        found.stop()


def docker_cli(engine: Engine, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    needs("docker")
    return subprocess.run(
        ["docker", *words],
        env=engine.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=check,
        timeout=_PATIENCE,
    )


def until(condition: object) -> None:
    """Wait for what must come."""
    assert callable(condition)
    end = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def forget(engine: Engine, *names: str) -> None:
    """Remove images, with all that only they have."""
    for name in names:
        engine.out("rmi", "-f", name)


def test_tare_pushes_pulls_and_runs(engine: Engine, debian: DockerRegistry) -> None:
    name = f"{debian.host}/tare/busybox:1"
    engine.out("tag", "busybox", name)
    pushed = engine.out("push", name)
    digest = pushed.rpartition("digest: ")[2].split()[0]
    forget(engine, name)

    ran = engine.tare("run", "--rm", "--network", "none", name, "echo", "hi")

    assert (ran.returncode, ran.stdout) == (0, "hi\n")
    lines = ran.stderr.splitlines()
    assert lines[0] == f"Unable to find image '{name}' locally"
    assert lines[1] == "1: Pulling from tare/busybox"
    assert lines[-2:] == [f"Digest: {digest}", f"Status: Downloaded newer image for {name}"]
    row = engine.out("images", "--digests", f"{debian.host}/tare/busybox").splitlines()[1].split()
    assert row[:3] == [f"{debian.host}/tare/busybox", "1", digest]


def test_pull_policies(engine: Engine, debian: DockerRegistry) -> None:
    name = f"{debian.host}/policy:1"
    engine.out("tag", "busybox", name)
    engine.out("push", "-q", name)

    always = engine.tare("run", "--rm", "--pull", "always", "--network", "none", name, "true")
    quiet = engine.tare("run", "--rm", "--pull=always", "-q", "--network", "none", name, "true")
    forget(engine, name)
    never = engine.tare("create", "--pull", "never", name)
    created = engine.tare("create", "--network", "none", name)

    assert f"Status: Image is up to date for {name}" in always.stderr
    assert (quiet.returncode, quiet.stderr) == (0, "")
    assert never.returncode == 125
    assert never.stderr.startswith(f"tare: unable to find image '{name}' locally")
    assert created.returncode == 0
    assert f"Unable to find image '{name}' locally" in created.stderr


def test_all_tags_go_and_come(engine: Engine, debian: DockerRegistry) -> None:
    repository = f"{debian.host}/all"
    for tag in ("one", "two"):
        engine.out("tag", "busybox", f"{repository}:{tag}")
    engine.out("push", "-a", repository)
    forget(engine, f"{repository}:one", f"{repository}:two")

    assert engine.out("pull", "-a", "-q", repository) == repository
    for tag in ("one", "two"):
        assert engine.out("images", "-q", f"{repository}:{tag}")
    assert "can't be used with --all-tags" in engine.tare("pull", "-a", f"{repository}:one").stderr


def test_login_keeps_credentials_for_their_owner_alone(
    engine: Engine, locked: DockerRegistry
) -> None:
    name = f"{locked.host}/mine:1"
    engine.out("tag", "busybox", name)
    config = Path(engine.environment["DOCKER_CONFIG"]) / "config.json"
    config.parent.mkdir(mode=0o700, exist_ok=True)
    config.write_text(json.dumps({"detachKeys": "ctrl-x", "auths": {"other.example": {}}}))

    refused = engine.tare("push", name)
    wrong = engine.tare("login", "-u", USER, "-p", "wrong", locked.host)
    right = engine.tare("login", "-u", USER, "-p", PASSWORD, locked.host)

    assert refused.returncode == 1
    assert "push access denied" in refused.stderr
    assert wrong.returncode == 1
    assert "unauthorized" in wrong.stderr.lower()
    assert right.stdout.strip() == "Login Succeeded"
    assert config.stat().st_mode & 0o777 == 0o600
    kept = json.loads(config.read_text())
    assert kept["detachKeys"] == "ctrl-x"
    assert set(kept["auths"]) == {"other.example", locked.host}
    engine.out("push", name)
    forget(engine, name)
    engine.out("pull", name)  # and docker reads what tare wrote
    docker_cli(engine, "pull", name)
    assert PASSWORD not in engine.log()

    assert locked.host in engine.out("logout", locked.host)
    assert set(json.loads(config.read_text())["auths"]) == {"other.example"}
    assert "pull access denied" in engine.tare("pull", f"{locked.host}/mine:1").stderr


def test_a_manifest_is_shown_and_a_search_is_refused_with_a_sentence(
    engine: Engine, debian: DockerRegistry
) -> None:
    name = f"{debian.host}/shown:1"
    engine.out("tag", "busybox", name)
    engine.out("push", "-q", name)

    manifest = json.loads(engine.out("manifest", "inspect", name))
    verbose = json.loads(engine.out("manifest", "inspect", "-v", name))
    searched = engine.tare("search", f"{debian.host}/x")

    assert manifest["schemaVersion"] == 2
    assert verbose["OCIManifest"] == manifest
    assert verbose["Descriptor"]["platform"]["os"] == "linux"
    assert searched.stderr == f"tare: the registry {debian.host} offers no search\n"


def test_the_docker_client_pulls_pushes_and_runs(engine: Engine, debian: DockerRegistry) -> None:
    name = f"{debian.host}/docker:1"
    docker_cli(engine, "tag", "busybox", name)

    pushed = docker_cli(engine, "push", name).stdout
    docker_cli(engine, "rmi", "-f", name)
    ran = docker_cli(engine, "run", "--rm", "--network", "none", name, "echo", "hi")
    pulled = docker_cli(engine, "pull", name).stdout
    missing = docker_cli(engine, "pull", f"{debian.host}/none:1", check=False)

    assert "digest: sha256:" in pushed
    assert ran.stdout == "hi\n"
    assert f"Status: Downloaded newer image for {name}" in ran.stderr
    assert f"Status: Image is up to date for {name}" in pulled
    assert missing.returncode == 1
    assert f"manifest for {debian.host}/none:1 not found" in missing.stderr


def test_the_docker_client_logs_in(engine: Engine, locked: DockerRegistry) -> None:
    name = f"{locked.host}/docker:1"
    docker_cli(engine, "tag", "busybox", name)

    wrong = docker_cli(engine, "login", "-u", USER, "-p", "wrong", locked.host, check=False)
    right = docker_cli(engine, "login", "-u", USER, "-p", PASSWORD, locked.host)
    pushed = docker_cli(engine, "push", name)
    out = docker_cli(engine, "logout", locked.host)

    assert wrong.returncode == 1
    assert "unauthorized" in wrong.stderr.lower()
    assert "Login Succeeded" in right.stdout
    assert "digest: sha256:" in pushed.stdout
    assert locked.host in out.stdout


def test_a_search_shows_what_the_registry_says(engine: Engine) -> None:
    async def search(request: web.Request) -> web.StreamResponse | None:
        if request.path != "/v1/search":
            return None
        found = [
            {"name": "official", "description": "one\n\x1b[2Jline", "star_count": 9,
             "is_official": True},
            {"name": "team/other", "description": "y" * 60, "star_count": 2},
        ]  # fmt: skip
        return web.json_response({"num_results": 2, "results": found})

    with FakeRegistry() as registry:
        registry.hooks.append(search)
        words = f"{registry.host}/some"

        shown = engine.out("search", words).splitlines()
        starred = engine.out("search", "-f", "stars=3", "--format", "{{.Name}}", words)
        by_docker = docker_cli(engine, "search", "--limit", "1", words).stdout.splitlines()

        assert registry.asked[-1].query == {"q": "some", "n": "1"}
    assert shown[0].split() == ["NAME", "DESCRIPTION", "STARS", "OFFICIAL"]
    assert shown[1].split() == ["official", "one", "[2Jline", "9", "[OK]"]
    assert shown[2].split() == ["team/other", "y" * 44 + "…", "2"]
    assert starred == "official"
    assert len(by_docker) == 2


def test_short_names_are_docker_hubs_and_a_mirror_may_have_them(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    layer = archives.layer({"x": b"x"})
    directory = tmp_path_factory.mktemp("m")
    with FakeRegistry() as mirror:
        made = mirror.put_image("library/short", "latest", [layer])
        engine = Engine(directory, more={"DOCKER_CONFIG": str(directory)})
        with open(directory / "c/config.toml", "a") as config:
            config.write(f'\n[registries."docker.io"]\nmirrors = ["http://{mirror.host}"]\n')
        try:
            assert engine.out("pull", "-q", "short") == "docker.io/library/short:latest"
            row = engine.out("images", "--digests", "--no-trunc", "short").splitlines()[1].split()
            assert row[:4] == ["short", "latest", made.digest, made.id]
        finally:
            engine.stop()


def test_docker_py_pulls_pushes_and_asks(engine: Engine, debian: DockerRegistry) -> None:
    repository = f"{debian.host}/docker-py"
    client = docker.DockerClient(base_url=engine.environment["DOCKER_HOST"], timeout=_PATIENCE)
    try:
        client.images.get("busybox").tag(repository, "1")
        lines = list(client.images.push(repository, "1", stream=True, decode=True))
        described = client.images.get_registry_data(f"{repository}:1")
        client.images.remove(f"{repository}:1", force=True)
        image = client.images.pull(repository, "1")
        with pytest.raises(docker.errors.NotFound):
            client.images.pull(repository, "2")
    finally:
        client.close()

    aux = [line["aux"] for line in lines if "aux" in line]
    assert aux == [{"Tag": "1", "Digest": described.id, "Size": aux[0]["Size"]}]
    assert f"{repository}@{described.id}" in image.attrs["RepoDigests"]
    assert described.has_platform(f"linux/{archives.MACHINE}")


def test_the_sdk_pulls_and_pushes(engine: Engine, debian: DockerRegistry) -> None:
    name = f"{debian.host}/sdk:1"
    with tare.connect(f"{engine.run_dir}/tare.sock") as client:
        client.images.tag("busybox", f"{debian.host}/sdk", "1")
        digest = client.images.push(name)
        client.images.remove(name, force=True)

        identity = client.images.pull(name)

        assert client.images.inspect(f"{debian.host}/sdk@{digest}")["Id"] == identity
        with pytest.raises(MissingError, match="not found"):
            client.images.pull(f"{debian.host}/sdk:2")


def test_skopeo_reads_what_tare_pushed_and_tare_what_skopeo_pushed(
    engine: Engine, debian: DockerRegistry, busybox_archive: Path, tmp_path: Path
) -> None:
    needs("skopeo")
    mine, theirs = f"{debian.host}/mine:1", f"{debian.host}/theirs:1"
    engine.out("tag", "busybox", mine)
    engine.out("push", "-q", mine)

    def skopeo(*words: str) -> None:
        subprocess.run(["skopeo", *words], check=True, capture_output=True, timeout=_PATIENCE)

    skopeo("copy", "--src-tls-verify=false", f"docker://{mine}", f"oci:{tmp_path}/mine:1")
    skopeo(
        "copy", "--dest-tls-verify=false", f"docker-archive:{busybox_archive}", f"docker://{theirs}"
    )
    engine.out("pull", theirs)

    # The same image, whoever carried it.
    ids = {engine.out("images", "-q", "--no-trunc", name) for name in (mine, theirs)}
    assert len(ids) == 1
    index = json.loads((tmp_path / "mine/index.json").read_text())
    kept = engine.out("images", "--digests", f"{debian.host}/mine").splitlines()[1].split()[2]
    assert index["manifests"][0]["digest"] == kept


def test_a_pull_goes_on_after_the_daemon_was_killed(engine: Engine) -> None:
    layer = archives.layer({"data": os.urandom(8 << 20)})
    with FakeRegistry() as registry:
        made = registry.put_image("big", "1", [layer], Compression.PLAIN)
        blob = made.blobs[0]
        name = f"{registry.host}/big:1"

        async def half(request: web.Request) -> web.StreamResponse | None:
            """The first answer stops in the middle and waits."""
            if not request.path.endswith(sha256(blob)) or "Range" in request.headers:
                return None
            response = web.StreamResponse()
            response.content_length = len(blob)
            await response.prepare(request)
            await response.write(blob[: 5 << 20])
            await registry.release.wait()
            return response

        registry.hooks.append(half)
        partial = engine.state / "partial" / sha256(blob)[7:]
        client = engine.begin("pull", name)
        until(lambda: partial.exists() and partial.stat().st_size >= 4 << 20)
        engine.kill(engine.daemon())
        client.communicate(timeout=_PATIENCE)
        there = partial.stat().st_size
        registry.let_go()

        engine.out("pull", name)

        assert registry.of("GET", "/blobs/")[-1].headers["Range"] == f"bytes={there}-"
        assert not partial.exists()
        assert not [*(engine.state / "layers").glob(".tmp-*")]
        assert made.id in engine.out("images", "-q", "--no-trunc", f"{registry.host}/big")
        forget(engine, name)


def test_two_clients_pull_one_image_with_one_download(engine: Engine) -> None:
    layer = archives.layer({"data": os.urandom(1 << 20)})
    with FakeRegistry() as registry:
        made = registry.put_image("shared", "1", [layer])
        path = sha256(made.blobs[0])

        async def hold(request: web.Request) -> web.StreamResponse | None:
            """The layer comes when both have what comes before it."""
            if request.path.endswith(path):
                await registry.release.wait()
            return None

        registry.hooks.append(hold)
        name = f"{registry.host}/shared:1"
        clients = [engine.begin("pull", name) for _ in range(2)]
        until(lambda: len(registry.of("GET", made.id)) == 2)
        registry.let_go()
        said = [client.communicate(timeout=_PATIENCE) for client in clients]

        assert [client.returncode for client in clients] == [0, 0], said
        assert len(registry.of("GET", path)) == 1
        forget(engine, name)


def test_a_client_that_goes_away_ends_its_pull(engine: Engine) -> None:
    layer = archives.layer({"data": os.urandom(1 << 20)})
    with FakeRegistry() as registry:
        made = registry.put_image("left", "1", [layer], Compression.PLAIN)
        path = sha256(made.blobs[0])

        async def stop(request: web.Request) -> web.StreamResponse | None:
            if not request.path.endswith(path):
                return None
            response = web.StreamResponse()
            response.content_length = len(made.blobs[0])
            await response.prepare(request)
            await registry.release.wait()
            return response

        registry.hooks.append(stop)
        client = engine.begin("pull", f"{registry.host}/left:1")
        until(lambda: registry.of("GET", path))
        until(lambda: [*(engine.state / "layers").glob(".tmp-*")])
        client.kill()
        client.communicate()

        until(lambda: not [*(engine.state / "layers").glob(".tmp-*")])
        assert not engine.tare("images", "-q", f"{registry.host}/left").stdout
