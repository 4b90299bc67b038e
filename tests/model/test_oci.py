"""Image documents: what is read, what is written, and how an image and a user's wishes merge."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tare.errors import InvalidError
from tare.model import oci, strict_json
from tare.model.digest import Digest
from tare.model.oci import History, ImageConfig
from tare.model.spec import ContainerSpec, HealthCheck, ProcessSpec

DOCKERS = {
    "architecture": "arm64",
    "variant": "v8",
    "config": {
        "Hostname": "",
        "AttachStdin": False,
        "ExposedPorts": {"80/tcp": {}},
        "Tty": False,
        "Env": ["PATH=/bin"],
        "Cmd": ["nginx"],
        "Image": "sha256:aa",
        "Volumes": None,
        "WorkingDir": "",
        "Entrypoint": ["/docker-entrypoint.sh"],
        "OnBuild": None,
        "Labels": {"maintainer": "me"},
        "StopSignal": "SIGQUIT",
        "Healthcheck": {"Test": ["CMD-SHELL", "true"], "Interval": 5_000_000_000},
    },
    "container": "abc",
    "container_config": {"Cmd": []},
    "created": "2023-05-03T19:51:27.330829Z",
    "docker_version": "20.10.23",
    "history": [{"created_by": "ADD"}, {"created_by": "CMD", "empty_layer": True}],
    "os": "linux",
    "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "1" * 64]},
}


def test_a_configuration_of_docker_is_read() -> None:
    raw = json.dumps(DOCKERS).encode()
    config = ImageConfig.parse(raw)

    assert config.args == ("/docker-entrypoint.sh", "nginx")
    assert config.exposed_ports == ("80/tcp",)
    assert config.health == HealthCheck(test=("CMD-SHELL", "true"), interval_ns=5 * 10**9)
    assert config.history == (
        History(created_by="ADD"),
        History(created_by="CMD", empty_layer=True),
    )
    assert str(config.platform) == "linux/arm64/v8"
    assert config.raw == raw
    assert config.digest == Digest.of(raw)


def test_a_configuration_with_no_config_is_read() -> None:
    for config in ("{}", "null"):
        text = '{"architecture":"amd64","os":"linux","config":%s,"rootfs":{"type":"layers"}}'
        assert ImageConfig.parse((text % config).encode()).args == ()


@pytest.mark.parametrize(
    "change",
    [
        {"os": ""},
        {"os": None},
        {"architecture": "a/b"},
        {"rootfs": None},
        {"rootfs": {"type": "x"}},
        {"rootfs": {"type": "layers", "diff_ids": ["md5:1"]}},
        {"history": [{}, {}]},
        {"history": {}},
        {"history": [{"empty_layer": "yes"}]},
        {"config": []},
        {"layers": []},
        {"Config": {}},
    ],
)
def test_a_configuration_that_is_none_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InvalidError, match=r"image configuration|sha256"):
        ImageConfig.parse(json.dumps({**DOCKERS, **change}).encode())


LETTERS = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
WORDS = st.lists(st.text(LETTERS), max_size=3).map(tuple)


@given(
    entrypoint=st.none() | WORDS,
    cmd=st.none() | WORDS,
    env=WORDS,
    volumes=WORDS,
    labels=st.dictionaries(
        st.from_regex("[a-z.]{1,9}", fullmatch=True), st.from_regex("[ -~]*", fullmatch=True)
    ),
)
def test_what_is_written_is_read_again_and_always_the_same_bytes(
    entrypoint: tuple[str, ...] | None,
    cmd: tuple[str, ...] | None,
    env: tuple[str, ...],
    volumes: tuple[str, ...],
    labels: dict[str, str],
) -> None:
    config = ImageConfig(
        architecture="amd64",
        os="linux",
        entrypoint=entrypoint,
        cmd=cmd,
        env=env,
        volumes=tuple(sorted(set(volumes))),
        labels=labels,
        health=HealthCheck(test=("CMD", "x"), retries=7),
        history=(History(comment="c"),),
        diff_ids=(Digest("0" * 64),),
    )

    encoded = oci.encode(config)

    assert replace(encoded, raw=b"") == config
    assert oci.encode(encoded).raw == encoded.raw


def test_a_manifest_is_written_as_it_is_read() -> None:
    config = oci.Descriptor(media_type=oci.MediaType.OCI_CONFIG, digest=Digest("1" * 64), size=3)
    layer = oci.Descriptor(media_type=oci.MediaType.OCI_LAYER, digest=Digest("2" * 64), size=4)

    manifest = oci.parse_manifest(oci.encode_manifest(config, (layer,)), oci.MediaType.OCI_MANIFEST)

    assert isinstance(manifest, oci.Manifest)
    assert (manifest.config, manifest.layers) == (config, (layer,))


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("SIGTERM", True),
        ("term", True),
        ("9", True),
        ("64", True),
        ("RTMIN+3", True),
        ("SIGRTMAX-1", True),
        ("0", False),
        ("65", False),
        ("SIGTERM+1", False),
        ("", False),
        ("SIG", False),
        ("9 ", False),
    ],
)
def test_signals_are_known_by_name_and_number(text: str, good: bool) -> None:
    assert oci.is_signal(text) is good


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("80", True),
        ("80/tcp", True),
        ("8000-8010/udp", True),
        ("0", False),
        ("65536", False),
        ("9-8", False),
        ("80/icmp", False),
        ("80/", False),
        ("-1", False),
        ("٨٠", False),
    ],
)
def test_ports_are_numbers_and_ranges(text: str, good: bool) -> None:
    assert oci.is_port(text) is good


IMAGE = ImageConfig(
    architecture="amd64",
    os="linux",
    entrypoint=("ep",),
    cmd=("cmd",),
    env=("A=image", "B=image"),
    user="u",
    cwd="/w",
    labels={"a": "image", "b": "image"},
    volumes=("/v",),
    stop_signal="SIGQUIT",
    health=HealthCheck(test=("CMD", "x"), retries=9),
)
WISHES = ContainerSpec(
    image="i", image_id="sha256:" + "0" * 64, process=ProcessSpec(args=()), stop_signal=""
)


@pytest.mark.parametrize(
    ("entrypoint", "command", "args"),
    [
        (None, None, ("ep", "cmd")),
        (None, ("x",), ("ep", "x")),
        (("y",), None, ("y",)),
        (("y",), ("x",), ("y", "x")),
        (("",), ("x",), ("x",)),
        ((), None, ("cmd",)),
    ],
)
def test_a_users_entrypoint_drops_the_images_command(
    entrypoint: tuple[str, ...] | None, command: tuple[str, ...] | None, args: tuple[str, ...]
) -> None:
    merged = oci.merge(IMAGE, replace(WISHES, entrypoint=entrypoint, command=command))

    assert merged.process.args == args


def test_what_was_not_asked_for_is_the_images() -> None:
    wishes = replace(
        WISHES, process=ProcessSpec(args=(), env=("B=user", "C=user")), labels={"b": "user"}
    )

    merged = oci.merge(IMAGE, wishes)

    assert merged.process.env == ("B=user", "C=user", "A=image")
    assert (merged.process.user, merged.process.cwd, merged.stop_signal) == ("u", "/w", "SIGQUIT")
    assert merged.labels == {"a": "image", "b": "user"}
    assert merged.volumes == ("/v",)
    assert merged.health == IMAGE.health


def test_a_users_times_keep_the_images_probe() -> None:
    merged = oci.merge(IMAGE, replace(WISHES, health=HealthCheck(retries=1)))

    assert merged.health == HealthCheck(test=("CMD", "x"), retries=1)


def test_nothing_to_run_is_refused() -> None:
    with pytest.raises(InvalidError, match="no command specified"):
        oci.merge(ImageConfig(architecture="amd64", os="linux"), WISHES)


@given(st.binary(max_size=60))
@pytest.mark.attack("A29")
def test_any_bytes_are_json_or_refused(raw: bytes) -> None:
    for read in (strict_json.decode, strict_json.decode_list):
        try:
            read(raw, "it", limit=100)
        except InvalidError as error:
            assert str(error).startswith("it ")
