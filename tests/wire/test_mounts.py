"""``-v`` forms against the reference implementation's answers, and the other mount forms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tare.errors import InvalidError, TareError, UnsupportedError
from tare.model.spec import Mount, MountKind, VolumeWish
from tare.wire import mounts
from tare.wire.body import BindOptions, DriverConfig, MountBody, TmpfsOptions, VolumeOptions

_VECTORS = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "data" / "volume-spec.jsonl").read_text().splitlines()
]


@pytest.mark.parametrize("vector", _VECTORS, ids=lambda v: f"{v['q']['driver']}:{v['q']['s']}")
def test_volume_form_means_what_the_reference_says(vector: dict[str, dict[str, object]]) -> None:
    text = str(vector["q"]["s"])
    if "err" in vector["want"]:
        with pytest.raises(InvalidError) as caught:
            mounts.volume(text)

        assert str(caught.value) == vector["want"]["err"]
        return
    want = vector["want"]["ok"]
    assert isinstance(want, dict)

    found = mounts.volume(text)

    assert found.kind == want["Type"]
    assert found.target == want["Destination"]
    assert found.read_only == (not want["RW"])
    assert found.source == want["Spec"].get("Source", "")
    if found.kind is MountKind.BIND:
        assert found.propagation == want["Propagation"]


@given(st.text(alphabet=":/,.\\ roz\0\n\x1b٣", max_size=40))
def test_volume_form_is_a_mount_or_a_clear_refusal(text: str) -> None:
    try:
        found = mounts.volume(text)
    except TareError as error:
        assert str(error)
    else:
        assert found.target not in ("", "/")
        assert "\0" not in found.source + found.target


def test_bind_mount_object_needs_a_source_that_exists_by_default() -> None:
    body = MountBody(type="bind", source="/a/../b", target="/c", read_only=True)

    assert mounts.mount(body) == Mount(
        kind=MountKind.BIND, source="/b", target="/c", read_only=True, create_source=False
    )


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (MountBody(type="bind", target="/c"), "Source must not be empty"),
        (MountBody(type="bind", source="rel", target="/c"), "must be absolute"),
        (MountBody(type="bind", source="/a", target="c"), "must be absolute"),
        (MountBody(type="bind", source="/a", target="/"), "can't be '/'"),
        (MountBody(type="bind", source="/a"), "Target must not be empty"),
        (MountBody(type="odd", source="/a", target="/c"), "mount type unknown"),
        (
            MountBody(
                type="bind", source="/a", target="/c", bind_options=BindOptions(propagation="x")
            ),
            "propagation",
        ),
        (MountBody(type="tmpfs", source="/a", target="/c"), "Source must not be specified"),
        (
            MountBody(type="tmpfs", target="/c", tmpfs_options=TmpfsOptions(size_bytes=-1)),
            "SizeBytes",
        ),
    ],
)
def test_mount_object_that_makes_no_sense_is_refused(body: MountBody, sentence: str) -> None:
    with pytest.raises(InvalidError, match=sentence):
        mounts.mount(body)


def test_image_mount_is_unsupported() -> None:
    with pytest.raises(UnsupportedError):
        mounts.mount(MountBody(type="image", source="a", target="/c"))


def test_tmpfs_options_become_fields() -> None:
    found = mounts.tmpfs("/run", "rw,noexec,size=64m,mode=1777")

    assert (found.tmpfs_size, found.tmpfs_mode, found.options) == (64 << 20, 0o1777, ("noexec",))


@pytest.mark.parametrize("options", ["bogus", "size=", "mode=999", "uid=1\\,x", "size=1 m"])
def test_unknown_tmpfs_option_is_refused(options: str) -> None:
    with pytest.raises(InvalidError):
        mounts.tmpfs("/run", options)


def test_two_mounts_for_one_target_are_refused() -> None:
    with pytest.raises(InvalidError, match="Duplicate mount point: /x"):
        mounts.together(["/a:/x"], [], {"/x/": ""})


def _volume_body(**options: object) -> MountBody:
    source = options.pop("source", "db")
    return MountBody(
        type="volume",
        source=str(source),
        target="/v",
        volume_options=VolumeOptions(**options),  # type: ignore[arg-type]  # a test names its fields
    )


def test_volume_mount_object_in_full() -> None:
    found = mounts.mount(
        _volume_body(
            no_copy=True,
            subpath="a/b",
            labels={"a": "b"},
            driver_config=DriverConfig(name="local", options={"type": "tmpfs"}),
        )
    )

    assert (found.source, found.no_copy, found.subpath, found.anonymous) == (
        "db",
        True,
        "a/b",
        False,
    )
    assert found.volume == VolumeWish(driver="local", options={"type": "tmpfs"}, labels={"a": "b"})


@pytest.mark.attack("A24")
@pytest.mark.parametrize("name", ["../../x", "a/b", ".", "..", "a", "x" * 300, "a\0b", "-v", "ä/b"])
def test_volume_names_that_could_be_paths_are_refused(name: str) -> None:
    with pytest.raises(InvalidError):
        mounts.mount(_volume_body(source=name))


@pytest.mark.attack("A24")
@pytest.mark.parametrize("subpath", ["/etc", "../x", "a/../../etc", ".."])
def test_subpaths_that_lead_out_are_refused(subpath: str) -> None:
    with pytest.raises(InvalidError, match="subpath"):
        mounts.mount(_volume_body(subpath=subpath))


def test_propagation_of_a_volume_is_refused() -> None:
    body = MountBody(
        type="volume", source="db", target="/v", bind_options=BindOptions(propagation="rshared")
    )

    with pytest.raises(InvalidError, match="BindOptions must not be specified"):
        mounts.mount(body)
