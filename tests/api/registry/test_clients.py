"""Real clients push to the registry and pull from it: skopeo, podman."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fakes import archives
from harness.registry_server import INDEX, Registry, command, digest
from tare.image.store import ImageStore

Serve = Callable[..., Registry]
BASE = archives.layer({"etc/hello": b"hello\n" * 3000, "bin/sh": b"#!" * 90_000})
TOP = archives.layer({f"many/{i}": b"%d" % i for i in range(300)})
CONFIG = archives.config([BASE, TOP], Cmd=["/bin/sh"])


class Skopeo:
    """skopeo, with credentials and certificates of the test's own."""

    def __init__(self, directory: Path) -> None:
        found = shutil.which("skopeo")
        if found is None:
            pytest.skip("skopeo is not installed")
        self.program = found
        self.directory = directory
        self.more: list[str] = []

    def run(self, *words: str) -> str:
        """What it prints."""
        done = subprocess.run(
            [self.program, "--insecure-policy", *words],
            capture_output=True,
            text=True,
            env={**os.environ, "HOME": str(self.directory), "XDG_RUNTIME_DIR": str(self.directory)},
        )
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    def copy(self, source: str, target: str, *options: str) -> None:
        """Copy an image, whatever is said of certificates."""
        plain = ("--src-tls-verify=false", "--dest-tls-verify=false")
        self.run("copy", "-q", *plain, *options, source, target)

    def raw(self, image: str) -> bytes:
        """The manifest as the registry has it."""
        return self.run("inspect", "--tls-verify=false", "--raw", image).encode()


@pytest.fixture
def skopeo(tmp_path: Path) -> Skopeo:
    return Skopeo(tmp_path)


@pytest.fixture
def archive(tmp_path: Path) -> str:
    path = tmp_path / "app.tar"
    path.write_bytes(archives.pack(archives.docker((CONFIG, [BASE, TOP], ["app:1"]))))
    return f"docker-archive:{path}"


@pytest.mark.parametrize("form", ["oci", "v2s2"])
def test_skopeo_pushes_and_pulls(
    registry: Registry, skopeo: Skopeo, archive: str, tmp_path: Path, form: str
) -> None:
    image = f"docker://{registry.host}/skopeo/{form}:1"

    skopeo.copy(archive, image, f"--format={form}")
    skopeo.copy(image, f"dir:{tmp_path / 'out'}")
    shown = json.loads(skopeo.run("inspect", "--tls-verify=false", image))
    config = json.loads(skopeo.run("inspect", "--tls-verify=false", "--config", "--raw", image))

    raw = (tmp_path / "out/manifest.json").read_bytes()
    assert registry.ask("GET", f"/v2/skopeo/{form}/manifests/1").body == raw
    assert shown["Digest"] == digest(raw)
    assert shown["RepoTags"] == ["1"]
    assert config["rootfs"]["diff_ids"] == [digest(BASE), digest(TOP)]


def test_skopeo_copies_an_index_from_one_registry_to_another(
    registry: Registry, serve: Serve, skopeo: Skopeo, tmp_path: Path
) -> None:
    found, raw = registry.push_image("multi", "amd64", BASE)
    arm, arm_raw = registry.push_image("multi", "arm64", TOP)
    entries = [
        {
            "mediaType": json.loads(document)["mediaType"],
            "digest": name,
            "size": len(document),
            "platform": {"os": "linux", "architecture": architecture},
        }
        for name, document, architecture in ((found, raw, "amd64"), (arm, arm_raw, "arm64"))
    ]
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()
    registry.ask("PUT", "/v2/multi/manifests/all", index, Content_Type=INDEX)
    other = serve("--no-images")
    all_of_it = ("--all", "--preserve-digests")

    skopeo.copy(
        f"docker://{registry.host}/multi:all", f"docker://{other.host}/copied:all", *all_of_it
    )

    assert other.ask("GET", "/v2/copied/manifests/all").body == index
    assert other.ask("GET", f"/v2/copied/manifests/{arm}").body == arm_raw
    assert other.ask("GET", f"/v2/copied/blobs/{digest(TOP)}").body == TOP


def test_skopeo_copies_within_the_registry_without_sending_blobs_again(
    serve: Serve, skopeo: Skopeo, archive: str
) -> None:
    registry = serve("--no-images")
    skopeo.copy(archive, f"docker://{registry.host}/one:1")
    uploaded = registry.log().count(" PATCH ")

    skopeo.copy(f"docker://{registry.host}/one:1", f"docker://{registry.host}/two:1")

    # The two layers are mounted; skopeo sends the configuration in any case.
    mounted = [line for line in registry.log().splitlines() if "mount=" in line]
    assert [line.split()[-3] for line in mounted] == ["201", "201"]
    assert registry.log().count(" PATCH ") == uploaded + 1
    assert skopeo.raw(f"docker://{registry.host}/two:1") == skopeo.raw(
        f"docker://{registry.host}/one:1"
    )


def test_skopeo_deletes(registry: Registry, skopeo: Skopeo, archive: str) -> None:
    image = f"docker://{registry.host}/deleted:1"
    skopeo.copy(archive, image)

    skopeo.run("delete", "--tls-verify=false", image)

    assert registry.ask("GET", "/v2/deleted/manifests/1").status == 404


def test_skopeo_with_a_password_over_tls(
    serve: Serve, skopeo: Skopeo, archive: str, tmp_path: Path
) -> None:
    cert, key, users = tmp_path / "ca.crt", tmp_path / "key.pem", tmp_path / "users"
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
    registry = serve(f"--tls-cert={cert}", f"--tls-key={key}", f"--htpasswd={users}")
    image = f"docker://{registry.host}/private/app:1"
    auth = tmp_path / "auth.json"
    mark = base64.b64encode(b"anna:secret").decode()
    auth.write_text(json.dumps({"auths": {registry.host: {"auth": mark}}}))
    certificates = tmp_path / "certs"
    certificates.mkdir()
    shutil.copy(cert, certificates / "ca.crt")

    skopeo.run(
        "copy", "-q", f"--dest-cert-dir={certificates}", f"--authfile={auth}", archive, image
    )
    refused = subprocess.run(
        [skopeo.program, "inspect", f"--cert-dir={certificates}", "--no-creds", image],
        capture_output=True,
        text=True,
    )

    assert refused.returncode != 0
    assert "unauthorized" in refused.stderr


@pytest.fixture
def podman(tmp_path: Path) -> Iterator[Callable[..., str]]:
    found = shutil.which("podman")
    if found is None or os.geteuid() != 0:
        pytest.skip("podman is not installed, or this is not root")
    short = tempfile.mkdtemp(prefix="tp-", dir="/var/tmp")  # podman wants at most 50 characters
    own = [
        *(found, "--root", str(tmp_path / "podman"), "--runroot", short),
        *("--storage-driver=vfs", "--cgroup-manager=cgroupfs", "--events-backend=file"),
    ]

    def run(*words: str) -> str:
        done = subprocess.run([*own, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout.strip()

    yield run
    run("rmi", "--all", "--force")
    shutil.rmtree(short)


def test_podman_pulls_what_the_engine_has_and_pushes_it_back(
    serve: Serve, podman: Callable[..., str], tmp_path: Path
) -> None:
    images = ImageStore(tmp_path / "s", extract=False)
    images.load(io.BytesIO(archives.pack(archives.docker((CONFIG, [BASE, TOP], ["app:1"])))))
    images.close()
    registry = serve(TARE_STATE_DIR=str(tmp_path / "s"))

    podman("pull", "-q", "--tls-verify=false", f"{registry.host}/app:1")
    podman("tag", f"{registry.host}/app:1", f"{registry.host}/pushed/app:2")
    podman("push", "-q", "--tls-verify=false", f"{registry.host}/pushed/app:2")

    shown = json.loads(podman("image", "inspect", f"{registry.host}/app:1"))[0]
    assert shown["RootFS"]["Layers"] == [digest(BASE), digest(TOP)]
    assert shown["Id"] == digest(CONFIG).removeprefix("sha256:")
    pushed = registry.ask("GET", "/v2/pushed/app/manifests/2").json()
    assert pushed["config"] == {
        "mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": digest(CONFIG),
        "size": len(CONFIG),
    }


@pytest.mark.parametrize("extract", [False, True])
def test_the_engines_images_are_pulled_bit_by_bit(
    serve: Serve, skopeo: Skopeo, tmp_path: Path, extract: bool
) -> None:
    images = ImageStore(tmp_path / "s", extract=extract)
    registry = serve(TARE_STATE_DIR=str(tmp_path / "s"))
    assert registry.ask("GET", "/v2/app/manifests/1").status == 404
    images.load(io.BytesIO(archives.pack(archives.docker((CONFIG, [BASE, TOP], ["app:1"])))))
    images.close()

    skopeo.copy(f"docker://{registry.host}/app:1", f"dir:{tmp_path / 'out'}")
    part = registry.ask("GET", f"/v2/app/blobs/{digest(BASE)}", Range="bytes=1000-5000")
    deleted = registry.ask("DELETE", "/v2/app/manifests/1")

    out = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    for blob in (BASE, TOP, CONFIG):
        assert out[digest(blob).removeprefix("sha256:")] == blob
    assert (part.status, part.body) == (206, BASE[1000:5001])
    assert (deleted.status, deleted.code) == (405, "UNSUPPORTED")
    assert registry.ask("GET", "/v2/_catalog").json()["repositories"] == ["app"]
    assert registry.ask("GET", "/v2/app/tags/list").json()["tags"] == ["1"]


def test_what_is_pushed_wins_over_the_engines_and_may_use_its_layers(
    serve: Serve, tmp_path: Path
) -> None:
    images = ImageStore(tmp_path / "s", extract=False)
    images.load(io.BytesIO(archives.pack(archives.docker((CONFIG, [BASE, TOP], ["app:1"])))))
    registry = serve(TARE_STATE_DIR=str(tmp_path / "s"))
    ours = registry.ask("GET", "/v2/app/manifests/1")
    raw = json.dumps({**ours.json(), "annotations": {"pushed": "yes"}}).encode()

    done = registry.ask("PUT", "/v2/app/manifests/1", raw, Content_Type=ours["Content-Type"])
    images.remove("app:1")
    images.close()

    assert done.status == 201
    assert registry.ask("GET", "/v2/app/manifests/1").body == raw
    for blob in (BASE, TOP, CONFIG):
        assert registry.ask("GET", f"/v2/app/blobs/{digest(blob)}").body == blob
