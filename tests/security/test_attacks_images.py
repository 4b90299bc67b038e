"""Hostile images: archives and documents that lie, confuse, or try to reach the host."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import resource
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import archives
from fakes.archives import OCI, Members, descriptor, pack, sha256
from tare.errors import InvalidError, TareError
from tare.image.store import ImageStore
from tare.model import oci
from tare.model.digest import Digest
from tare.model.oci import Descriptor, ImageConfig, Index

LAYER = archives.layer({"etc/passwd": b"root\n"})
OTHER = archives.layer({"etc/evil": b"evil\n"})
CONFIG = archives.config([LAYER])
DOCKER = dict(archives.docker((CONFIG, [LAYER], ["victim:1"])))
LAYOUT = dict(archives.oci(CONFIG, [LAYER], name="victim:1"))
CONFIG_NAME = sha256(CONFIG) + ".json"
LAYER_NAME = sha256(LAYER) + "/layer.tar"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ImageStore]:
    made = ImageStore(tmp_path / "state", extract=False)
    yield made
    made.close()


def pipe(content: bytes) -> io.BufferedReader:
    """A stream that cannot seek, written by a thread."""
    read_end, write_end = os.pipe()

    def write() -> None:
        with contextlib.suppress(BrokenPipeError), open(write_end, "wb") as out:
            out.write(content)

    threading.Thread(target=write, daemon=True).start()
    return open(read_end, "rb")


def refused(store: ImageStore, archive: bytes) -> list[str]:
    """Load it from a file, from a pipe and compressed: refused each time, and nothing is left."""
    words = []
    for source in (io.BytesIO(archive), pipe(archive), io.BytesIO(gzip.compress(archive))):
        with source, pytest.raises(TareError) as caught:
            store.load(source)
        assert caught.value.http_status in (400, 501), caught.value
        words.append(str(caught.value))
    assert store.list() == []
    state = store._layers._directory.parent
    assert os.listdir(state / "layers") == os.listdir(state / "blobs/sha256") == []
    return words


def changed(members: dict[str, bytes], **changes: bytes | None) -> bytes:
    """The archive of *members* with some replaced, added or (None) left out."""
    named = {name.replace("__", "/"): value for name, value in changes.items()}
    merged: dict[str, bytes | None] = {**members, **named}
    return pack((name, value) for name, value in merged.items() if value is not None)


def manifest(**changes: Any) -> bytes:
    entry = {"Config": CONFIG_NAME, "RepoTags": ["victim:1"], "Layers": [LAYER_NAME], **changes}
    return json.dumps([entry]).encode()


# -- A30: what is there is not what it says it is -------------------------------------------

SUBSTITUTED: dict[str, Callable[[], bytes]] = {
    "another layer": lambda: changed(DOCKER, **{LAYER_NAME: OTHER}),
    "a byte more": lambda: changed(DOCKER, **{LAYER_NAME: LAYER + b"x"}),
    "a byte less": lambda: changed(DOCKER, **{LAYER_NAME: LAYER[:-1]}),
    "another configuration": lambda: changed(
        DOCKER, **{CONFIG_NAME: archives.config([LAYER], User="0")}
    ),
    "a layer twice": lambda: changed(
        DOCKER, **{"manifest.json": manifest(Layers=[LAYER_NAME] * 2)}
    ),
    "no layers": lambda: changed(DOCKER, **{"manifest.json": manifest(Layers=[])}),
    "no layer member": lambda: changed(DOCKER, **{LAYER_NAME: None}),
    "no configuration": lambda: changed(DOCKER, **{CONFIG_NAME: None}),
    "a blob of another digest": lambda: changed(LAYOUT, **{f"blobs/sha256/{sha256(LAYER)}": OTHER}),
    "a compressed blob of another digest": lambda: changed(
        dict(archives.oci(CONFIG, [LAYER], compress=True)),
        **{
            f"blobs/sha256/{sha256(gzip.compress(LAYER, mtime=0))}": gzip.compress(
                LAYER, 1, mtime=1
            )
        },
    ),
    "right blob, wrong diff_id": lambda: pack(archives.oci(CONFIG, [OTHER])),
    "a configuration of another digest": lambda: changed(
        LAYOUT, **{f"blobs/sha256/{sha256(CONFIG)}": CONFIG + b" "}
    ),
    "a digest that is a path": lambda: pack(
        (n, c.replace(sha256(LAYER).encode(), b"../../../../etc/passwd")) for n, c in LAYOUT.items()
    ),
    "an upper case digest": lambda: pack(
        (n, c.replace(b"sha256:", b"SHA256:")) for n, c in LAYOUT.items()
    ),
    "sha1": lambda: pack((n, c.replace(b"sha256:", b"sha1:")) for n, c in LAYOUT.items()),
    "an odd digest": lambda: pack(
        (n, c.replace(sha256(LAYER).encode(), sha256(LAYER)[:-1].encode()))
        for n, c in LAYOUT.items()
    ),
    "a size that lies": lambda: pack(_with_size(len(LAYER) + 1)),
    "a truncated archive": lambda: changed(DOCKER)[:12000],
    "garbage in gzip": lambda: changed(
        DOCKER, **{LAYER_NAME: gzip.compress(LAYER)[:-9] + b"x" * 9}
    ),
}


def _with_size(size: int) -> Members:
    document = {
        "schemaVersion": 2,
        "config": descriptor(OCI + "config.v1+json", CONFIG),
        "layers": [{**descriptor(OCI + "layer.v1.tar", LAYER), "size": size}],
    }
    raw = json.dumps(document).encode()
    index = {"schemaVersion": 2, "manifests": [descriptor(OCI + "manifest.v1+json", raw)]}
    blobs = [(f"blobs/sha256/{sha256(b)}", b) for b in (CONFIG, raw, LAYER)]
    return [*blobs, ("index.json", json.dumps(index).encode())]


@pytest.mark.attack("A30")
@pytest.mark.parametrize("name", SUBSTITUTED)
def test_substituted_content_is_refused(store: ImageStore, name: str) -> None:
    refused(store, SUBSTITUTED[name]())


@pytest.mark.attack("A30")
def test_the_archives_that_the_refused_ones_were_made_of_load(store: ImageStore) -> None:
    """The control: nothing but the lie is what is refused above."""
    assert store.load(io.BytesIO(pack(DOCKER.items()))) == ["victim:1"]
    assert store.load(io.BytesIO(pack(LAYOUT.items()))) == ["victim:1"]
    assert store.load(io.BytesIO(pack(_with_size(len(LAYER))))) == ["sha256:" + sha256(CONFIG)]


@pytest.mark.attack("A30")
@pytest.mark.parametrize("size", [-1, 1, 2**62])
def test_a_blob_of_another_size_never_becomes_a_layer(store: ImageStore, size: int) -> None:
    digest = Digest.of(LAYER)
    blob = Descriptor(media_type="x", digest=digest, size=size if size > 1 else len(LAYER) + size)

    with pytest.raises(InvalidError, match="announced"):
        store.add_layer(io.BytesIO(LAYER), blob=blob)

    assert os.listdir(store._layers._directory) == []


# -- A31: documents with two meanings ----------------------------------------------------

IMAGE: dict[str, Any] = {
    "schemaVersion": 2,
    "mediaType": OCI + "manifest.v1+json",
    "config": descriptor(OCI + "config.v1+json", CONFIG),
    "layers": [descriptor(OCI + "layer.v1.tar", LAYER)],
}
INDEX: dict[str, Any] = {
    "schemaVersion": 2,
    "mediaType": OCI + "index.v1+json",
    "manifests": [descriptor(OCI + "manifest.v1+json", b"x")],
}


def raw(document: dict[str, Any], **changes: Any) -> bytes:
    return json.dumps({**document, **changes}).encode()


CONFUSED: dict[str, tuple[bytes, str]] = {
    "image and index": (raw(IMAGE, manifests=INDEX["manifests"]), ""),
    "index and image": (raw(INDEX, layers=IMAGE["layers"]), ""),
    "index with a config": (raw(INDEX, config=IMAGE["config"]), ""),
    "sent as something else": (raw(IMAGE), OCI + "index.v1+json"),
    "sent as docker's": (raw(IMAGE), "application/vnd.docker.distribution.manifest.v2+json"),
    "unknown type": (raw(IMAGE, mediaType="text/html"), ""),
    "schema 1": (raw({"schemaVersion": 1, "fsLayers": [], "history": []}), ""),
    "schema 1 and 2": (raw(IMAGE, fsLayers=[{}]), ""),
    "no schema": (raw({k: v for k, v in IMAGE.items() if k != "schemaVersion"}), ""),
    "schema as text": (raw(IMAGE, schemaVersion="2"), ""),
    "schema true": (raw(IMAGE, schemaVersion=True), ""),
    "a key twice": (raw(IMAGE)[:-1] + b',"layers":[]}', ""),
    "a nested key twice": (raw(IMAGE).replace(b'"size"', b'"size":1,"size"', 1), ""),
    "a key in another case": (raw(IMAGE, Layers=[]), ""),
    "manifests in another case": (raw(IMAGE, MANIFESTS=[]), ""),
    "byte order mark": (b"\xef\xbb\xbf" + raw(IMAGE), ""),
    "utf-16": (raw(IMAGE).decode().encode("utf-16"), ""),
    "trailing data": (raw(IMAGE) + b"{}", ""),
    "null layers": (raw(IMAGE, layers=None), ""),
    "null layer": (raw(IMAGE, layers=[None]), ""),
    "null config": (raw(IMAGE, config=None), ""),
    "null digest": (raw(IMAGE, config={**IMAGE["config"], "digest": None}), ""),
    "null manifests": (raw(INDEX, manifests=None), ""),
    "config is a layer": (raw(IMAGE, config=IMAGE["layers"][0]), ""),
    "layer is the config": (
        raw(IMAGE, layers=[{**IMAGE["layers"][0], "digest": IMAGE["config"]["digest"]}]),
        "",
    ),
    "layer is JSON": (raw(IMAGE, layers=[IMAGE["config"]]), ""),
    "artifact": (raw(IMAGE, artifactType="application/x"), ""),
    "artifact by its config": (
        raw(IMAGE, config={**IMAGE["config"], "mediaType": "application/vnd.oci.empty.v1+json"}),
        "",
    ),
    "signature": (raw(IMAGE, subject=IMAGE["config"]), ""),
    "negative size": (raw(IMAGE, config={**IMAGE["config"], "size": -1}), ""),
    "size as float": (raw(IMAGE, config={**IMAGE["config"], "size": 1.0}), ""),
    "size beyond 64 bits": (raw(IMAGE, config={**IMAGE["config"], "size": 2**63}), ""),
    "platform of no words": (
        raw(
            INDEX,
            manifests=[{**INDEX["manifests"][0], "platform": {"os": "../x", "architecture": "a"}}],
        ),
        "",
    ),
    "list": (b"[]", ""),
    "nothing": (b"", ""),
    "text": (b'"x"', ""),
}


@pytest.mark.attack("A31")
@pytest.mark.parametrize("name", CONFUSED)
def test_a_document_with_two_meanings_is_refused(name: str) -> None:
    content, media_type = CONFUSED[name]

    with pytest.raises(InvalidError):
        oci.parse_manifest(content, media_type)


@pytest.mark.attack("A31")
def test_the_documents_that_the_refused_ones_were_made_of_are_read() -> None:
    assert not isinstance(oci.parse_manifest(raw(IMAGE), OCI + "manifest.v1+json"), Index)
    assert isinstance(oci.parse_manifest(raw(INDEX)), Index)


@pytest.mark.attack("A31")
def test_an_attestation_is_never_chosen_as_the_image() -> None:
    attestation = {
        **descriptor(OCI + "manifest.v1+json", b"a"),
        "platform": {"os": "unknown", "architecture": "unknown"},
    }
    disguised = {
        **descriptor(OCI + "manifest.v1+json", b"b"),
        "platform": {"os": "linux", "architecture": "amd64"},
        "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
    }
    image = {
        **descriptor(OCI + "manifest.v1+json", b"c"),
        "platform": {"os": "linux", "architecture": "amd64"},
    }
    index = oci.parse_manifest(raw(INDEX, manifests=[attestation, disguised, image]))
    assert isinstance(index, Index)

    assert index.choose(oci.Platform("linux", "amd64")).digest == Digest.of(b"c")
    with pytest.raises(InvalidError, match="no image for platform linux/s390x"):
        index.choose(oci.Platform("linux", "s390x"))


@pytest.mark.attack("A31")
def test_indexes_of_indexes_end(store: ImageStore) -> None:
    members = dict(LAYOUT)
    entry = json.loads(members.pop("index.json"))["manifests"][0]
    for _ in range(3):
        nested = raw({"schemaVersion": 2, "mediaType": OCI + "index.v1+json", "manifests": [entry]})
        members[f"blobs/sha256/{sha256(nested)}"] = nested
        entry = descriptor(OCI + "index.v1+json", nested)
    members["index.json"] = raw({"schemaVersion": 2, "manifests": [entry]})

    assert "index of indexes" in refused(store, pack(members.items()))[0]


@pytest.mark.attack("A31")
def test_an_archive_that_shows_two_tools_two_images_is_refused(store: ImageStore) -> None:
    other = archives.config([OTHER])
    both = {**dict(archives.oci(other, [OTHER], name="victim:1")), **DOCKER}

    assert "different images" in refused(store, pack(both.items()))[0]


@pytest.mark.attack("A31")
def test_a_member_that_is_there_twice_is_refused(store: ImageStore) -> None:
    for name in (CONFIG_NAME, LAYER_NAME, "manifest.json"):
        refused(store, pack([*DOCKER.items(), (name, DOCKER[name])]))


# -- A35: configurations and archives that reach for the host -------------------------------


@pytest.mark.attack("A35")
@pytest.mark.parametrize(
    "settings",
    [
        {"Entrypoint": ["a\0b"]},
        {"Cmd": ["x", None]},
        {"Env": ["A\0=1"]},
        {"Env": [1]},
        {"Env": {"A": 1}},
        {"StopSignal": "99"},
        {"StopSignal": "SIGNONE"},
        {"StopSignal": "-9"},
        {"StopSignal": "SIGTERM;x"},
        {"StopSignal": "٩"},
        {"ExposedPorts": {"x/../": {}}},
        {"ExposedPorts": {"0/tcp": {}}},
        {"ExposedPorts": {"65536": {}}},
        {"ExposedPorts": {"80/TCPX": {}}},
        {"Healthcheck": {"Test": ["CMD", "x"], "Interval": -1}},
        {"Healthcheck": {"Test": ["CMD", "x"], "Interval": 2**63}},
        {"Healthcheck": {"Test": ["CMD", "x"], "Interval": 5}},
        {"Healthcheck": {"Test": ["RUN", "x"]}},
        {"Healthcheck": []},
        {"User": "a\nb"},
        {"User": "\0"},
        {"WorkingDir": "a\0"},
        {"WorkingDir": ["/"]},
        {"Labels": ["a"]},
        {"Labels": {"a": 1}},
        {"Volumes": ["/x"]},
        {"Volumes": {"/\0": {}}},
        {"Shell": "\ud800"},
        {"Entrypoint": 7},
    ],
    ids=lambda value: json.dumps(value)[:50],
)
def test_a_setting_that_makes_no_sense_is_refused(store: ImageStore, settings: Any) -> None:
    config = archives.config([LAYER], **settings)

    refused(store, pack(archives.docker((config, [LAYER], ["x:1"]))))


@pytest.mark.attack("A35")
def test_labels_of_the_engine_are_not_taken_from_an_image() -> None:
    labels = {"io.tare.engine.privileged": "1", "mine": "x"}

    config = ImageConfig.parse(archives.config([LAYER], Labels=labels))

    assert config.labels == {"mine": "x"}


@pytest.mark.attack("A35")
@pytest.mark.parametrize(
    "path", ["../../etc/passwd", "/etc/passwd", "etc/passwd", "proc/self/environ", ".", "", "a\0b"]
)
def test_a_path_in_an_archive_is_never_one_of_the_host(store: ImageStore, path: str) -> None:
    refused(store, changed(DOCKER, **{"manifest.json": manifest(Config=path)}))
    refused(store, changed(DOCKER, **{"manifest.json": manifest(Layers=[path])}))


@pytest.mark.attack("A35")
def test_links_in_an_archive_lead_nowhere_but_to_its_members(store: ImageStore) -> None:
    members = [(n, c) for n, c in DOCKER.items() if n not in (CONFIG_NAME, LAYER_NAME)]
    whole = [*members, (CONFIG_NAME, CONFIG)]
    for target in ("/etc/passwd", "../../../../etc/passwd", "../" + LAYER_NAME, "nothing"):
        refused(store, pack(whole, {LAYER_NAME: target}))
    refused(store, pack([*members, (LAYER_NAME, LAYER)], {CONFIG_NAME: "/etc/hostname"}))
    hidden = [*members, (LAYER_NAME, LAYER), ("c.json", CONFIG)]
    refused(store, pack(hidden, {CONFIG_NAME: "c.json"}))

    # Old versions of docker save write layers that images share as links: that is honoured.
    store.load(io.BytesIO(pack([*whole, ("x/layer.tar", LAYER)], {LAYER_NAME: "../x/layer.tar"})))
    store.verify("victim:1")


@pytest.mark.attack("A35")
def test_two_images_cannot_claim_one_name(store: ImageStore) -> None:
    other = archives.config([OTHER])

    refused(store, pack(archives.docker((CONFIG, [LAYER], ["x:1"]), (other, [OTHER], ["x:1"]))))


@pytest.mark.attack("A35")
@pytest.mark.parametrize("tag", ["UPPER:1", "a@sha256:" + "0" * 64, "../x:1", "", "a b", "a\nb"])
def test_a_name_that_is_none_is_refused(store: ImageStore, tag: str) -> None:
    refused(store, pack(archives.docker((CONFIG, [LAYER], [tag]))))


@pytest.mark.attack("A35")
@pytest.mark.parametrize(
    "content", [b"", b"x" * 1024, bytes(1024), bytes(10240), b"{}", pack([]), pack([("a", b"b")])]
)
def test_what_is_no_image_archive_is_refused(store: ImageStore, content: bytes) -> None:
    refused(store, content)


# -- A29: documents that are bombs ------------------------------------------------------------


@pytest.mark.attack("A29")
@pytest.mark.parametrize(
    "bomb",
    [
        b"[" * 5_000_000,
        b'{"a":' * 1_000_000,
        b'{"a":' + b"[" * 500 + b"]" * 500 + b"}",
        b'{"schemaVersion":' + b"9" * 100_000 + b"}",
        b'{"schemaVersion":NaN}',
        b'{"schemaVersion":Infinity}',
        b'{"schemaVersion":2e999}',
        b'{"a":"' + b"x" * (9 << 20) + b'"}',
        b'{"a":"\\ud800"}',
        b'{"config":{},"rootfs":{"type":"layers","diff_ids":['
        + b",".join([b'"x"'] * 100_000)
        + b"]}}",
        b'{"a' + b'":1,"b' * 300_000 + b'":1}',
    ],
    ids=range(11),
)
def test_a_document_that_is_a_bomb_is_refused_quickly(bomb: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime

    with pytest.raises(InvalidError):
        oci.parse_manifest(bomb)
    with pytest.raises(InvalidError):
        ImageConfig.parse(bomb)

    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - before < 4


@pytest.mark.attack("A29")
def test_ten_thousand_layers_are_too_many() -> None:
    layers = [LAYER] * 10_000
    with pytest.raises(InvalidError, match="at most 512"):
        ImageConfig.parse(archives.config(layers))
    with pytest.raises(InvalidError, match="at most 512"):
        oci.parse_manifest(raw(IMAGE, layers=IMAGE["layers"] * 10_000))


@pytest.mark.attack("A29")
def test_many_labels_are_read_in_little_time() -> None:
    labels = {f"l{i}": "v" for i in range(200_000)}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime

    assert len(ImageConfig.parse(archives.config([LAYER], Labels=labels)).labels) == 200_000

    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - before < 4


BOMB = textwrap.dedent(
    """
    import io, resource, sys, zlib
    from pathlib import Path
    from tare.errors import InvalidError
    from tare.image.store import ImageStore
    from fakes import archives
    store = ImageStore(Path(sys.argv[1]), extract=False)
    packer = zlib.compressobj(9, wbits=31)
    bomb = packer.compress(archives.pack([("x", b"")])[:512])
    megabyte = bytes(1 << 20)
    for _ in range(600):
        bomb += packer.compress(megabyte)
    bomb += packer.flush()
    config = archives.config([b"x"])
    members = archives.docker((config, [bomb], ["bomb:1"]))
    try:
        store.load(io.BytesIO(archives.pack(members)))
    except InvalidError as error:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10, error)
    """
)


@pytest.mark.attack("A29")
def test_a_layer_that_is_a_bomb_costs_neither_memory_nor_disk(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command: list[str | Path] = [sys.executable, "-c", BOMB, tmp_path]

    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)

    peak, _, words = run.stdout.partition(" ")
    assert int(peak) < 512
    assert words
    assert os.listdir(tmp_path / "layers") == []


# -- anything at all --------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "config",
                    "layers",
                    "manifests",
                    "rootfs",
                    "diff_ids",
                    "type",
                    "digest",
                    "size",
                    "mediaType",
                    "schemaVersion",
                    "Env",
                    "Labels",
                    "platform",
                    "os",
                ]
            ),
            children,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@pytest.mark.attack("A31")
@settings(max_examples=150, deadline=None)
@given(JSON, st.booleans())
def test_any_document_is_read_or_refused(value: Any, plain: bool) -> None:
    document = value if plain else {**IMAGE, "rootfs": value, "config": value, "layers": value}
    content = json.dumps(document).encode()

    for read in (oci.parse_manifest, ImageConfig.parse):
        try:
            read(content)
        except InvalidError:
            continue


@pytest.mark.attack("A35")
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8000), st.integers(0, 255)), min_size=1, max_size=4))
def test_an_archive_with_any_bytes_changed_is_the_same_image_or_refused(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]]
) -> None:
    content = bytearray(pack(DOCKER.items()))
    for place, value in flips:
        content[place % len(content)] = value
    directory = tmp_path_factory.mktemp("fuzz")
    store = ImageStore(directory, extract=False)

    try:
        store.load(io.BytesIO(bytes(content)))
    except TareError as error:
        assert error.http_status in (400, 501)
    else:
        assert [image.config.raw for image in store.list()] == [CONFIG]
        store.verify(str(store.list()[0].id))
    finally:
        store.close()
