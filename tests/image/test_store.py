"""The image store: what it answers, what it keeps, what it deletes and what it never deletes."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import subprocess
import sys
import tarfile
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from fakes import archives
from tare.errors import ConflictError, FailedError, InvalidError, MissingError
from tare.image.moments import format_time, parse_time
from tare.image.store import ImageStore, Removed
from tare.model.oci import History, ImageConfig

BASE = archives.layer({"etc/hello": b"hello\n" * 3000, "empty": b""})
TOP = archives.layer({"etc/top": b"top\n"})
CONFIG = archives.config([BASE, TOP], Cmd=["/bin/sh"], Env=["A=1"])
ARCHIVE = archives.pack(archives.docker((CONFIG, [BASE, TOP], ["app:1", "app:2"])))
ID = "sha256:" + archives.sha256(CONFIG)


@pytest.fixture(params=["erofs", "extracted"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ImageStore]:
    made = ImageStore(tmp_path / "state", extract=request.param == "extracted")
    yield made
    made.close()


def files(store: ImageStore, folder: str) -> list[str]:
    directory = store._layers._directory.parent / folder
    return sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file())


def load(store: ImageStore, archive: bytes = ARCHIVE) -> list[str]:
    return store.load(io.BytesIO(archive))


class Pipe(io.RawIOBase):
    """A stream that gives a few bytes at a time and cannot seek."""

    def __init__(self, content: bytes) -> None:
        self._content = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def read(self, n: int = -1, /) -> bytes:
        return self._content.read(min(n, 4099) if n >= 0 else n)


def test_an_image_is_found_by_every_name_it_has(store: ImageStore) -> None:
    assert load(store) == ["app:1", "app:2"]

    for name in (
        "app:1",
        "docker.io/library/app:2",
        ID,
        ID[7:],
        ID[7:19],
        ID[:15],
        "index.docker.io/app:1",
    ):
        assert str(store.get(name).id) == ID
    image = store.get("app:1")
    assert image.tags == ("app:1", "app:2")
    assert image.config.args == ("/bin/sh",)
    assert image.size == 6 * 3000 + 4


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("nope", "nope:latest"),
        ("app", "app:latest"),
        ("sha256:" + "0" * 64, "sha256:000"),
        ("sha256:xyz", "sha256:xyz"),
        ("A B", "A B"),
        ("app@sha256:" + "1" * 64, "app@sha256:111"),
        ("", ""),
    ],
)
def test_an_image_that_is_not_there_is_missing(store: ImageStore, text: str, shown: str) -> None:
    load(store)

    with pytest.raises(MissingError, match=f"^No such image: {shown}"):
        store.get(text)


def test_a_name_that_looks_like_an_id_is_a_name_first(store: ImageStore) -> None:
    load(store)
    other = archives.config([TOP])
    load(store, archives.pack(archives.docker((other, [TOP], ["x:y"]))))

    store.tag("x:y", ID[7:15])

    assert str(store.get(ID[7:15]).id) == "sha256:" + archives.sha256(other)


def test_an_ambiguous_id_is_refused(store: ImageStore) -> None:
    configs = [archives.config([TOP], Env=[f"A={i}"]) for i in range(17)]
    load(store, archives.pack(archives.docker(*[(c, [TOP], []) for c in configs])))
    firsts = [archives.sha256(c)[0] for c in configs]
    twice = next(f for f in firsts if firsts.count(f) > 1)

    with pytest.raises(InvalidError, match="ambiguous"):
        store.get(twice)


def test_layers_are_stored_once_whatever_brings_them(store: ImageStore) -> None:
    load(store)
    before = files(store, "layers")
    other = archives.config([BASE], Env=["B=2"])

    load(store, archives.pack(archives.docker((other, [BASE], ["other:1"]))))
    load(store, archives.pack(archives.oci(other, [BASE], name="third:1", compress=True)))
    store.import_(io.BytesIO(BASE), repository="fourth")

    assert files(store, "layers") == before
    assert store.get("other:1").layers == store.get("third:1").layers == store.get("fourth").layers


def test_a_layer_that_is_there_is_not_read_again_from_a_file(store: ImageStore) -> None:
    load(store)
    damaged = ARCHIVE.replace(b"hello\n" * 3000, b"HELLO\n" * 3000)

    assert load(store, damaged) == ["app:1", "app:2"]
    store.verify("app:1")


def test_what_is_saved_is_bit_for_bit_what_was_loaded(store: ImageStore, tmp_path: Path) -> None:
    load(store)
    out = io.BytesIO()

    store.save(["app:1", ID[7:20]], out)

    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as saved:
        members = {m.name: saved.extractfile(m).read() for m in saved if m.isfile()}  # type: ignore[union-attr]
    for content in (BASE, TOP, CONFIG):
        assert members[f"blobs/sha256/{archives.sha256(content)}"] == content


@pytest.mark.parametrize("format", ["docker-archive", "oci"])
@pytest.mark.parametrize("piped", [False, True])
def test_a_saved_image_loads_elsewhere_as_the_same(
    store: ImageStore, tmp_path: Path, format: str, piped: bool
) -> None:
    load(store)
    other = archives.config([TOP])
    load(store, archives.pack(archives.docker((other, [TOP], ["other:1"]))))
    out = io.BytesIO()
    store.save(["app:2", "other:1"], out, format=format)
    elsewhere = ImageStore(tmp_path / "elsewhere", extract=False)

    source = Pipe(out.getvalue()) if piped else io.BytesIO(out.getvalue())
    loaded = elsewhere.load(source)

    assert sorted(loaded) == ["app:2", "other:1"]
    assert elsewhere.get("app:2").config.raw == CONFIG
    assert elsewhere.get("app:2").layers == store.get("app:2").layers
    again = io.BytesIO()
    elsewhere.save(["app:2", "other:1"], again, format=format)
    assert again.getvalue() == out.getvalue()


def test_every_kind_of_tar_comes_back_bit_for_bit(store: ImageStore, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "d").mkdir(parents=True)
    (root / "d" / ("long" * 50)).write_bytes(os.urandom(5000))
    (root / "twin").write_bytes(b"twin" * 999)
    os.link(root / "twin", root / "d" / "twin")
    (root / "link").symlink_to("d/twin")
    with open(root / "sparse", "wb") as file:
        file.seek(3 << 20)
        file.write(b"end")
    (root / "big").write_bytes(os.urandom(3 << 20))
    for kind in ("gnu", "pax", "ustar", "oldgnu", "v7"):
        sparse = [] if kind in ("ustar", "v7") else ["--sparse"]
        exclude = ["--exclude=long*"] if kind in ("ustar", "v7") else []
        out = tmp_path / f"{kind}.tar"
        # "twin" twice: the second takes the first's place, and the archive still comes back.
        subprocess.run(
            [
                "tar",
                f"--format={kind}",
                *sparse,
                *exclude,
                "--hard-dereference",
                "-cf",
                out,
                "-C",
                root,
                ".",
                "twin",
            ],
            check=True,
        )
        content = out.read_bytes() + b"trailing rubbish"

        info = store.add_layer(io.BytesIO(content))

        assert b"".join(store._layers.archive(info.diff_id)) == content, kind


def test_a_name_moves_to_the_image_loaded_last(store: ImageStore) -> None:
    load(store)
    other = archives.config([TOP])

    load(store, archives.pack(archives.docker((other, [TOP], ["app:1"]))))

    assert store.get("app:1").id != store.get("app:2").id
    assert store.get(ID).tags == ("app:2",)


@pytest.mark.attack("A35")
def test_a_load_that_may_not_replace_tags_changes_nothing(store: ImageStore) -> None:
    load(store)
    other = archives.config([TOP])
    archive = archives.pack(archives.docker((other, [TOP], ["new:1"]), (other, [TOP], ["app:1"])))

    with pytest.raises(ConflictError, match="app:1"):
        store.load(io.BytesIO(archive), replace_tags=False)

    assert [str(image.id) for image in store.list()] == [ID]


def test_removing_one_of_two_names_only_untags(store: ImageStore) -> None:
    load(store)

    assert store.remove("app:1") == [Removed("untagged", "app:1")]
    assert store.get("app:2").tags == ("app:2",)


def test_removing_the_last_name_deletes_what_only_it_needed(store: ImageStore) -> None:
    load(store)
    other = archives.config([BASE])
    load(store, archives.pack(archives.docker((other, [BASE], ["other:1"]))))
    store.remove("app:1")

    removed = store.remove("app:2")

    assert removed == [
        Removed("untagged", "app:2"),
        Removed("deleted", ID),
        Removed("deleted", "sha256:" + archives.sha256(TOP)),
    ]
    store.verify("other:1")
    store.remove("other:1")
    assert files(store, "layers") == files(store, "blobs") == []


def test_an_id_with_two_names_is_only_deleted_by_force(store: ImageStore) -> None:
    load(store)

    with pytest.raises(ConflictError, match="must be forced"):
        store.remove(ID)

    assert Removed("deleted", ID) in store.remove(ID, force=True)


def test_the_image_of_a_stopped_container_only_loses_its_names_by_force(store: ImageStore) -> None:
    load(store)
    store.remove("app:2")
    users = {ID: ["c0ffee" * 10]}

    with pytest.raises(ConflictError, match="container c0ffeec0ffee is using its referenced"):
        store.remove("app:1", in_use=lambda id: users.get(str(id), []))
    removed = store.remove("app:1", force=True, in_use=lambda id: users.get(str(id), []))

    assert removed == [Removed("untagged", "app:1")]
    store.verify(ID)
    assert store.prune(True, lambda id: users.get(str(id), [])) == ([], 0)
    assert Removed("deleted", ID) in store.prune(True)[0]


def test_the_image_of_a_running_container_is_never_removed(store: ImageStore) -> None:
    load(store)

    with pytest.raises(ConflictError, match="cannot be forced"):
        store.remove(ID, force=True, in_use=lambda _: ["c1"], running=lambda _: ["c1"])

    store.verify("app:1")


def test_prune_takes_dangling_images_or_all_unused_and_says_what_it_freed(
    store: ImageStore,
) -> None:
    load(store)
    other = archives.config([TOP], Labels={"keep": "yes"})
    load(store, archives.pack(archives.docker((other, [TOP], []))))

    assert store.prune(True, filters={"label!": ["keep"]}) == ([], 0)
    dangling, freed = store.prune(True)
    everything, more = store.prune(False)

    assert dangling == [Removed("deleted", "sha256:" + archives.sha256(other))]
    assert freed == 0, "its layer is still app's"
    assert more == 18004
    assert Removed("untagged", "app:1") in everything
    assert store.list() == []
    with pytest.raises(InvalidError, match="invalid filter"):
        store.prune(filters={"colour": ["red"]})


def test_a_leased_layer_outlives_a_prune(store: ImageStore) -> None:
    with store.lease() as lease:
        info = store.add_layer(io.BytesIO(TOP), lease=lease)
        store.prune(False)
        assert store.layer(info.diff_id) == info

    store.prune(False)

    with pytest.raises(MissingError):
        store.layer(info.diff_id)


def test_an_import_that_fails_leaves_no_layer(store: ImageStore) -> None:
    with pytest.raises(InvalidError):
        store.import_(io.BytesIO(b""), repository="x")
    with pytest.raises(InvalidError, match="User"):
        store.commit(None, io.BytesIO(TOP), ImageConfig(architecture="a", os="linux", user="a\nb"))

    assert store.list() == []
    assert files(store, "layers") == files(store, "blobs") == []


def test_commit_puts_a_layer_on_top(store: ImageStore) -> None:
    load(store)
    base = store.get("app:1")
    top = archives.layer({"new": b"new"})
    config = replace(base.config, history=(History(created_by="me"),), env=("A=2",))

    made = store.commit(
        base, io.BytesIO(top), config, reference="mine:1", changes=['CMD ["x"]', "ENV B=3"]
    )

    assert made.layers == (*base.layers, store.get("mine:1").layers[-1])
    assert made.parent == base.id
    assert (made.config.env, made.config.cmd) == (("A=2", "B=3"), ("x",))
    assert store.history("mine:1") == [(History(created_by="me"), 18000)]


def test_import_makes_an_image_of_a_root_file_system(store: ImageStore) -> None:
    image = store.import_(
        io.BytesIO(BASE),
        repository="root",
        tag="fs",
        changes=["EXPOSE 80", "WORKDIR a"],
        message="by hand",
    )

    assert image.tags == ("root:fs",)
    assert image.config.exposed_ports == ("80/tcp",)
    assert image.config.cwd == "/a"
    assert image.config.history[0].comment == "by hand"


def test_a_layer_that_hides_all_below_is_the_first_to_mount(store: ImageStore) -> None:
    hiding = archives.layer({".wh..wh..opq": b"", "only": b"this"})
    config = archives.config([BASE, hiding, TOP])
    load(store, archives.pack(archives.docker((config, [BASE, hiding, TOP], ["o:1"]))))
    image = store.get("o:1")

    paths = store.layer_paths(image)

    assert [p.name.split(".")[0] for p in paths] == [d.hex for d in image.layers[1:]]


@pytest.mark.attack("A30")
def test_verify_finds_what_was_edited_on_disk(store: ImageStore, tmp_path: Path) -> None:
    load(store)
    path = store.layer_paths(store.get("app:1"))[0]
    target = path.parent / (path.name + ".tar.zst") if path.is_dir() else path
    content = bytearray(target.read_bytes())
    place = content.find(b"hello\n") if path.is_file() else len(content) // 2
    content[place] ^= 0xFF
    target.write_bytes(content)

    with pytest.raises(FailedError, match="changed on disk"):
        store.verify("app:1")


@pytest.mark.attack("A30")
def test_verify_finds_edited_modes_which_no_archive_shows(tmp_path: Path) -> None:
    store = ImageStore(tmp_path, extract=False)
    load(store)
    path = store.layer_paths(store.get("app:1"))[0]
    content = bytearray(path.read_bytes())
    mode = (0o100644).to_bytes(2, "little")
    place = content.rfind(mode)
    content[place : place + 2] = (0o104755).to_bytes(2, "little")
    path.write_bytes(content)

    with pytest.raises(FailedError, match="changed on disk"):
        store.verify("app:1")


def test_a_configuration_edited_on_disk_is_noticed_and_its_image_dropped(tmp_path: Path) -> None:
    store = ImageStore(tmp_path, extract=False)
    load(store)
    store.close()
    (tmp_path / "blobs" / "sha256" / ID[7:]).write_bytes(CONFIG.replace(b"/bin/sh", b"/bin/no"))

    again = ImageStore(tmp_path, extract=False)
    with pytest.raises(FailedError, match="changed on disk"):
        again.get(ID)
    again.recover()

    assert again.list() == []
    again.close()


@pytest.mark.parametrize("extract", [False, True])
def test_a_full_disk_is_said_and_nothing_stays(tmp_path: Path, extract: bool) -> None:
    mounted: list[str | Path] = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", tmp_path]
    if subprocess.run(mounted, capture_output=True, check=False).returncode != 0:
        pytest.skip("cannot mount a small file system")
    try:
        with contextlib.closing(ImageStore(tmp_path, extract=extract)) as store:
            load(store)
            big = archives.layer({"big": os.urandom(5 << 20)})
            config = archives.config([big])

            with pytest.raises(FailedError, match="no space left") as caught:
                load(store, archives.pack(archives.docker((config, [big], ["big:1"]))))

            assert "prune" in caught.value.hint
            assert [str(image.id) for image in store.list()] == [ID]
            assert not [n for n in os.listdir(tmp_path / "layers") if n.startswith(".")]
            store.verify("app:1")
    finally:
        subprocess.run(["umount", tmp_path], check=True)


# -- crashes ------------------------------------------------------------------------------

KILLED = textwrap.dedent(
    """
    import io, os, signal, sys
    from pathlib import Path
    from tare.image import store as module

    left = int(sys.argv[3])
    def maybe_die():
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    def counted(function):
        def call(*arguments, **named):
            maybe_die()
            result = function(*arguments, **named)
            maybe_die()
            return result
        return call
    os.rename, os.replace, os.unlink, os.fsync = map(
        counted, (os.rename, os.replace, os.unlink, os.fsync))
    Path.unlink = counted(Path.unlink)
    index = module.Index
    index.add, index.name, index.remove = map(counted, (index.add, index.name, index.remove))
    store = module.ImageStore(Path(sys.argv[1]), extract=sys.argv[4] == "extracted")
    store.recover()
    store.load(open(sys.argv[2], "rb"))
    print("told", flush=True)
    store.remove("app:1"); store.remove("app:2")
    print("done", flush=True)
    """
)


@pytest.mark.parametrize("how", ["erofs", "extracted"])
def test_a_kill_at_any_point_leaves_all_or_nothing(tmp_path: Path, how: str) -> None:
    """SIGKILL before and after each rename, unlink, sync and change of the index."""
    archive = tmp_path / "a.tar"
    archive.write_bytes(ARCHIVE)
    for point in itertools.count(0, 3):
        state = tmp_path / f"{point}"
        command: list[str | Path] = [sys.executable, "-c", KILLED, state, archive, str(point), how]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

        store = ImageStore(state, extract=how == "extracted")
        store.recover()
        images = store.list()
        for image in images:
            store.verify(str(image.id))
        expected = {layer.hex for image in images for layer in image.layers}
        on_disk = {name.split(".")[0] for name in os.listdir(state / "layers")}
        store.close()

        assert on_disk == expected, f"point {point}"
        assert [str(image.id) for image in images] in ([], [ID])
        assert {p.name for p in (state / "blobs/sha256").iterdir()} == {i.id.hex for i in images}
        if "done" in run.stdout:
            assert run.returncode == 0, run.stderr
            assert images == []
            break
        assert run.returncode == -9, run.stderr
    assert point > 30, "the fuse no longer counts what it should"


def test_times_are_read_and_written_as_rfc_3339() -> None:
    assert parse_time("1970-01-01T00:00:01.5Z") == 1_500_000_000
    assert parse_time("1970-01-01T01:00:00+01:00") == 0
    assert parse_time("0001-01-01T00:00:00Z") is not None
    assert [parse_time(t) for t in ("", "yesterday", "2020-13-01T00:00:00Z")] == [None] * 3
    assert format_time(1_500_000_000) == "1970-01-01T00:00:01.5Z"


# -- threads ------------------------------------------------------------------------------


def test_the_same_archive_loaded_by_several_threads_is_stored_once(store: ImageStore) -> None:
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda _: load(store), range(8)))

    assert loaded == [["app:1", "app:2"]] * 8
    assert len(store.list()) == 1
    store.verify("app:1")
    assert not [n for n in files(store, "layers") if n.startswith(".")]


def test_loads_and_removals_at_once_never_leave_half_an_image(store: ImageStore) -> None:
    other = archives.config([BASE], Env=["O=1"])
    second = archives.pack(archives.docker((other, [BASE], ["other:1"])))

    def churn(archive: bytes) -> None:
        for _ in range(6):
            for name in load(store, archive):
                with contextlib.suppress(MissingError):
                    store.remove(name)
            store.prune(True)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(churn, archive) for archive in (ARCHIVE, second) * 2]:
            done.result()

    load(store)
    load(store, second)
    for image in store.list():
        store.verify(str(image.id))
