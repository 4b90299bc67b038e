"""Volumes without a kernel's help: what crashes leave, who holds what, what options mean."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tare.engine import trees, volume_mounts
from tare.engine.events import Events
from tare.engine.paths import Paths
from tare.engine.store import Store
from tare.engine.volumes import Volumes
from tare.errors import ConflictError, InvalidError, MissingError
from tare.kernel import mount
from tare.model.record import Record
from tare.model.spec import ContainerSpec, Mount, MountKind, ProcessSpec
from tare.model.state import State

SPEC = ContainerSpec(image="i", image_id="i", process=ProcessSpec(args=("a",)))


class Life:
    """One life of an engine's volumes on a directory that outlives it."""

    def __init__(self, directory: Path) -> None:
        self.paths = Paths(directory / "s", directory / "r", directory / "c")
        self.paths.prepare()
        self.store = Store(self.paths.database)
        self.volumes = Volumes(self.paths, self.store, Events())
        self.volumes.recover()
        self.root = Path(self.volumes.root)

    def add(self, name: str, *volumes: str, state: State = State.CREATED) -> Record:
        mounts = tuple(Mount(kind=MountKind.VOLUME, target=f"/{v}", source=v) for v in volumes)
        record = Record(
            id=(name * 64)[:64],
            name=name,
            spec=replace(SPEC, mounts=mounts),
            created_ns=1,
            state=state,
        )
        return self.store.add(record)


@pytest.fixture
def lives(tmp_path: Path) -> Iterator[Callable[[], Life]]:
    made: list[Life] = []

    def make() -> Life:
        if made:
            made[-1].store.close()
        made.append(Life(tmp_path))
        return made[-1]

    yield make
    made[-1].store.close()


def run(work: Awaitable[object]) -> object:
    async def main() -> object:
        return await work

    return asyncio.run(main())


def test_a_volume_is_whole_on_disk_and_outlives_its_database(lives: Callable[[], Life]) -> None:
    life = lives()
    run(life.volumes.create("db", labels={"a": "b"}))
    on_disk = json.loads((life.root / "db/volume.json").read_text())
    life.store.execute("DELETE FROM volumes WHERE name = ?", (b"db",))  # a power cut took the row

    again = lives()

    assert on_disk["labels"] == {"a": "b"}
    assert again.volumes.get("db").labels == {"a": "b"}
    assert again.volumes.path("db") == str(again.root / "db/_data")


def test_what_a_kill_left_half_made_or_half_removed_goes(lives: Callable[[], Life]) -> None:
    life = lives()
    run(life.volumes.create("db"))
    (life.root / ".new-1/_data").mkdir(parents=True)
    (life.root / ".gone-2/_data/deep").mkdir(parents=True)
    (life.root / "stranger").mkdir()  # nobody's: without a volume.json it is left alone

    again = lives()

    assert sorted(os.listdir(again.root)) == ["db", "stranger"]
    assert [one.volume.name for one in again.volumes.listed()] == ["db"]


def test_what_a_kill_left_half_filled_is_emptied_unless_a_container_runs_with_it(
    lives: Callable[[], Life],
) -> None:
    life = lives()
    for name in ("idle", "busy"):
        run(life.volumes.create(name))
        (life.root / name / "_data/half").mkdir()
        (life.root / name / "filling").touch()
    life.add("web", "busy", state=State.RUNNING)

    again = lives()

    assert os.listdir(again.root / "idle/_data") == []
    assert not (again.root / "idle/filling").exists()
    assert os.listdir(again.root / "busy/_data") == ["half"]


def test_holders_are_named_and_a_free_volume_goes(lives: Callable[[], Life]) -> None:
    life = lives()
    run(life.volumes.create("db"))
    life.add("web", "db")

    with pytest.raises(ConflictError, match=r"remove db: volume is in use - \[web webwebwebweb\]"):
        run(life.volumes.remove("db"))
    life.store.delete("web" * 21 + "w")
    run(life.volumes.remove("db"))

    assert os.listdir(life.root) == []
    with pytest.raises(MissingError, match="get db: no such volume"):
        life.volumes.get("db")
    with pytest.raises(MissingError):
        run(life.volumes.remove("db"))
    run(life.volumes.remove("db", force=True))


def test_a_container_that_is_being_made_keeps_its_volume(lives: Callable[[], Life]) -> None:
    life = lives()

    async def work() -> None:
        wish = Mount(kind=MountKind.VOLUME, target="/v", source="db")
        spec, fresh = await life.volumes.make_for(replace(SPEC, mounts=(wish,)))
        with life.volumes.pinned(["db"]), pytest.raises(ConflictError, match="being made"):
            await life.volumes.remove("db")
        await life.volumes.discard(fresh)

        assert fresh == ["db"]
        assert spec.mounts[0].source == "db"

    run(work())

    assert life.volumes.listed() == []


def test_ten_at_once_make_one_volume(lives: Callable[[], Life]) -> None:
    life = lives()

    async def work() -> list[object]:
        return list(await asyncio.gather(*(life.volumes.create("db") for _ in range(10))))

    found = run(work())

    assert isinstance(found, list)
    assert len({id(one) for one in found}) == 1
    assert sorted(os.listdir(life.root)) == ["db"]


def test_the_same_name_with_other_options_is_a_conflict(lives: Callable[[], Life]) -> None:
    life = lives()
    run(life.volumes.create("ram", options={"type": "tmpfs"}))

    with pytest.raises(ConflictError, match="exists with other options: type=tmpfs"):
        run(life.volumes.create("ram", options={"type": "tmpfs", "o": "size=1m"}))
    run(life.volumes.create("ram"))


@pytest.mark.attack("A24")
@pytest.mark.parametrize("target", ["/../../etc", "/", "..//x", "/a/../../b", ""])
def test_a_volume_of_an_image_that_leads_out_is_refused(
    lives: Callable[[], Life], target: str
) -> None:
    with pytest.raises(InvalidError, match="invalid volume path"):
        lives().volumes.resolve(replace(SPEC, volumes=(target,)))


def test_an_images_volume_gives_way_to_any_mount(lives: Callable[[], Life]) -> None:
    tmpfs = Mount(kind=MountKind.TMPFS, target="/data/")
    spec = lives().volumes.resolve(replace(SPEC, mounts=(tmpfs,), volumes=("/data", "/more")))

    assert [m.target for m in spec.mounts] == ["/data/", "/more"]
    assert spec.mounts[1].anonymous


@pytest.mark.parametrize(
    ("options", "own"),
    [
        ({}, None),
        ({"size": "1.5G"}, volume_mounts.Own("ext4", size=3 << 29)),
        (
            {"type": "tmpfs", "device": "tmpfs", "o": "size=1m,uid=7,nosuid,rw"},
            volume_mounts.Own(
                "tmpfs", "tmpfs", (("size", "1m"), ("uid", "7")), attributes=mount.NOSUID
            ),
        ),
        (
            {"type": "nfs", "device": ":/x", "o": "addr=h,ro,nolock"},
            volume_mounts.Own(
                "nfs", ":/x", (("addr", "h"), ("nolock", None)), attributes=mount.RDONLY
            ),
        ),
        (
            {"type": "none", "device": "/srv/../x", "o": "rbind,ro"},
            volume_mounts.Own("none", "/x", attributes=mount.RDONLY, recursive=True),
        ),
    ],
)
def test_options_mean_what_dockers_do(
    options: dict[str, str], own: volume_mounts.Own | None
) -> None:
    assert volume_mounts.parse(options) == own


def test_a_tree_is_copied_as_it_is(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "deep/deeper").mkdir(parents=True)
    target.mkdir()
    with open(source / "sparse", "wb") as file:
        file.truncate(1 << 20)
        file.write(b"head")
    os.link(source / "sparse", source / "deep/deeper/same")
    (source / "link").symlink_to("/nowhere")
    os.mkfifo(source / "deep/fifo")
    os.utime(source / "sparse", ns=(1, 1_500_000_000_123_456_789))
    (source / "deep").chmod(0o1770)

    one, other = os.open(source, os.O_RDONLY), os.open(target, os.O_RDONLY)
    trees.copy(one, other)
    os.close(one)
    os.close(other)

    found = os.stat(target / "sparse")
    assert (found.st_size, found.st_mtime_ns, found.st_nlink) == (
        1 << 20, 1_500_000_000_123_456_789, 2,
    )  # fmt: skip
    assert found.st_blocks * 512 < 1 << 16
    assert os.stat(target / "deep/deeper/same").st_ino == found.st_ino
    assert (target / "sparse").read_bytes() == (source / "sparse").read_bytes()
    assert os.readlink(target / "link") == "/nowhere"
    assert (target / "deep").stat().st_mode & 0o7777 == 0o1770
    assert (target / "deep/fifo").is_fifo()
