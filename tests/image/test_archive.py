"""Archives between tare and the tools that others use: skopeo, GNU tar, docker's older formats."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes import archives
from harness import images
from tare.image.compress import Compression, compressor
from tare.image.store import ImageStore

LAYER = archives.layer({"a": b"a" * 10_000})
TOP = archives.layer({"b": b"b"})
CONFIG = archives.config([LAYER, TOP], Cmd=["/a"])
ID = "sha256:" + archives.sha256(CONFIG)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ImageStore]:
    made = ImageStore(tmp_path / "state", extract=False)
    yield made
    made.close()


@pytest.fixture(scope="module")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("busybox")
    try:
        root = images.lay_busybox(directory / "root")
    except LookupError as error:
        pytest.skip(str(error))
    return images.docker_archive(root, directory / "busybox.tar", "busybox:test", {"Cmd": ["sh"]})


@pytest.fixture
def skopeo(tmp_path: Path) -> str:
    found = shutil.which("skopeo")
    if found is None:
        pytest.skip("skopeo is not installed")
    return found


def copy(skopeo: str, source: str, target: str) -> None:
    command = [skopeo, "--insecure-policy", "copy", "--quiet", source, target]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def zstd(content: bytes) -> bytes:
    out = io.BytesIO()
    with compressor(Compression.ZSTD, out) as packer:
        packer.write(content)
    return out.getvalue()


@pytest.mark.parametrize("outside", [bytes, gzip.compress, zstd])
@pytest.mark.parametrize("inside", [bytes, gzip.compress, zstd])
def test_compression_inside_and_outside_makes_no_difference(
    store: ImageStore, outside: type[bytes], inside: type[bytes]
) -> None:
    members = [
        (name, inside(content) if name.endswith("layer.tar") else content)
        for name, content in archives.docker((CONFIG, [LAYER, TOP], ["a:1"]))
    ]

    assert store.load(io.BytesIO(outside(archives.pack(members)))) == ["a:1"]
    assert str(store.get("a:1").id) == ID
    store.verify("a:1")


def test_an_image_without_a_name_is_loaded_by_its_id(store: ImageStore) -> None:
    assert store.load(io.BytesIO(archives.pack(archives.oci(CONFIG, [LAYER, TOP])))) == [ID]


@pytest.mark.parametrize(
    ("name", "tags"),
    [
        ("a:1", ("a:1",)),
        ("docker.io/library/a:1", ("a:1",)),
        ("localhost/a", ("localhost/a:latest",)),
        ("latest", ()),
    ],
)
def test_the_name_in_a_layout_is_the_name_of_its_image(
    store: ImageStore, name: str, tags: tuple[str, ...]
) -> None:
    store.load(io.BytesIO(archives.pack(archives.oci(CONFIG, [LAYER, TOP], name=name))))

    assert store.get(ID).tags == tags


def test_the_image_of_this_platform_is_taken_from_a_layout(store: ImageStore) -> None:
    members = dict(archives.oci(CONFIG, [LAYER, TOP]))
    mine = json.loads(members["index.json"])["manifests"][0]
    other = archives.descriptor(mine["mediaType"], b"not in the archive")
    listed = [
        {**other, "platform": {"os": "linux", "architecture": "s390x"}},
        {**mine, "platform": {"os": "linux", "architecture": archives.MACHINE}},
    ]
    kind = archives.OCI + "index.v1+json"
    nested = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": listed}).encode()
    members[f"blobs/sha256/{archives.sha256(nested)}"] = nested
    top = {**archives.descriptor(kind, nested)}
    members["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [top]}).encode()

    assert store.load(io.BytesIO(archives.pack(members.items()))) == [ID]


def test_what_no_image_needs_is_not_taken(store: ImageStore, tmp_path: Path) -> None:
    junk = [("junk", gzip.compress(b"not a tar" * 1000)), ("more", archives.layer({"j": b"j"}))]
    members = [*junk, *archives.docker((CONFIG, [LAYER, TOP], ["a:1"]))]
    packed = gzip.compress(archives.pack(members))

    store.load(io.BytesIO(packed))

    names = {p.name.split(".")[0] for p in (tmp_path / "state/layers").iterdir()}
    assert names == {layer.hex for layer in store.get("a:1").layers}


def test_progress_names_each_layer(store: ImageStore) -> None:
    words: list[str] = []

    store.load(
        io.BytesIO(archives.pack(archives.docker((CONFIG, [LAYER, TOP], ["a:1"])))), words.append
    )

    assert words == [f"Loading layer {archives.sha256(one)[:12]}" for one in (LAYER, TOP)]


@pytest.mark.parametrize("format", ["docker-archive", "oci"])
def test_a_saved_archive_is_plain_tar_for_others(store: ImageStore, format: str) -> None:
    store.load(io.BytesIO(archives.pack(archives.docker((CONFIG, [LAYER, TOP], ["a:1"])))))
    out = io.BytesIO()
    store.save(["a:1"], out, format=format)

    listed = subprocess.run(
        ["tar", "-tf", "-"], input=out.getvalue(), capture_output=True, check=True
    )
    assert b"oci-layout" in listed.stdout
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as archive:
        index = json.load(archive.extractfile("index.json"))  # type: ignore[arg-type]
    assert (
        index["manifests"][0]["annotations"]["io.containerd.image.name"] == "docker.io/library/a:1"
    )


@pytest.mark.parametrize(
    ("transport", "suffix"),
    [("docker-archive", ":busybox:test"), ("oci-archive", ":busybox:test"), ("oci", "")],
)
def test_skopeo_writes_what_we_load(
    store: ImageStore, busybox: Path, tmp_path: Path, skopeo: str, transport: str, suffix: str
) -> None:
    out = tmp_path / "out"
    copy(skopeo, f"docker-archive:{busybox}", f"{transport}:{out}{suffix}")
    if out.is_dir():
        packed = tmp_path / "layout.tar"
        subprocess.run(["tar", "-C", out, "-cf", packed, "."], check=True)
        out = packed

    with open(out, "rb") as file:
        loaded = store.load(file)

    original = ImageStore(tmp_path / "original", extract=False)
    with open(busybox, "rb") as file:
        original.load(file)
    assert store.get(loaded[0]).layers == original.get("busybox:test").layers
    assert not suffix or loaded == ["busybox:test"]
    store.verify(loaded[0])


@pytest.mark.parametrize("format", ["docker-archive", "oci"])
def test_skopeo_reads_what_we_save(
    store: ImageStore, busybox: Path, tmp_path: Path, skopeo: str, format: str
) -> None:
    with open(busybox, "rb") as file:
        store.load(file)
    saved = tmp_path / "saved.tar"
    with open(saved, "wb") as out:
        store.save(["busybox:test"], out, format=format)
    transport = "docker-archive" if format == "docker-archive" else "oci-archive"

    for named in (
        "",
        ":busybox:test" if transport == "oci-archive" else ":docker.io/library/busybox:test",
    ):
        target = tmp_path / f"dir{len(named)}"
        copy(skopeo, f"{transport}:{saved}{named}", f"dir:{target}")

        manifest = json.loads((target / "manifest.json").read_text())
        image = store.get("busybox:test")
        assert manifest["config"]["digest"] == str(image.id)
        blobs = [
            (target / one["digest"].partition(":")[2]).read_bytes() for one in manifest["layers"]
        ]
        plain = [gzip.decompress(b) if b[:2] == b"\x1f\x8b" else b for b in blobs]
        assert [archives.sha256(b) for b in plain] == [layer.hex for layer in image.layers]


def test_a_debian_root_survives_import_save_and_load(
    store: ImageStore, tmp_path: Path, skopeo: str
) -> None:
    try:
        root = images.debian_tar()
    except OSError as error:
        pytest.skip(f"no Debian root: {error}")
    with open(root, "rb") as file:
        image = store.import_(file, repository="debian", tag="bookworm")
    saved = tmp_path / "saved.tar"
    with open(saved, "wb") as out:
        store.save(["debian:bookworm"], out, format="oci")
    store.remove("debian:bookworm")
    copy(skopeo, f"oci-archive:{saved}", f"oci-archive:{tmp_path / 'copied.tar'}:debian:bookworm")

    with open(tmp_path / "copied.tar", "rb") as file:
        assert store.load(file) == ["debian:bookworm"]

    assert store.get("debian:bookworm").id == image.id
    with open(root, "rb") as file:
        for piece in store._layers.archive(image.layers[0]):
            assert file.read(len(piece)) == piece
        assert file.read() == b""
