"""What builds keep: verified when it is looked up, leased until it is pruned, never in the way."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tare.build.cache import Cache, Step
from tare.image.entry import Entry, Kind
from tare.image.store import ImageStore
from tare.image.tar_writer import END, archived
from tare.model.digest import Digest


@dataclass
class Kept:
    """A store and a cache beside it, which may be opened anew."""

    directory: Path

    def __post_init__(self) -> None:
        self.store = ImageStore(self.directory / "s", extract=True)
        self.cache = Cache(self.directory / "b", self.store)

    def layer(self, name: bytes) -> Digest:
        data = b"".join(bytes(p) for p in archived(Entry(name, Kind.FILE, size=3), (b"abc",)))
        lease = self.store.retain()
        info = self.store.add_layer(io.BytesIO(data + END), lease=lease, durable=False)
        self.cache.add(
            Step(key=name.decode(), layer=info.diff_id, created_ns=5, what="w", parts={"a": "1"})
        )
        self.store.settle([info.diff_id])
        self.store.discard(lease)
        return info.diff_id

    def again(self) -> None:
        self.close()
        self.__post_init__()
        self.store.recover()

    def close(self) -> None:
        self.cache.close()
        self.store.close()


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    found = Kept(tmp_path)
    yield found
    found.close()


def test_a_layer_is_kept_for_the_next_build_also_by_the_next_daemon(kept: Kept) -> None:
    layer = kept.layer(b"one")

    kept.again()
    kept.store.prune(dangling_only=False)

    found = kept.cache.find("one")
    assert found is not None and found.layer == layer and found.created_ns == 5


def test_a_layer_that_is_gone_is_a_miss(kept: Kept) -> None:
    layer = kept.layer(b"one")
    kept.close()
    for path in (kept.directory / "s/layers").glob(f"{layer.hex}.json"):
        path.unlink()

    kept.__post_init__()

    assert kept.cache.find("one") is None


def test_a_layer_that_was_not_settled_is_gone_after_a_crash(kept: Kept) -> None:
    data = b"".join(bytes(p) for p in archived(Entry(b"f", Kind.FILE, size=3), (b"abc",)))
    info = kept.store.add_layer(io.BytesIO(data + END), durable=False)
    kept.cache.add(Step(key="k", layer=info.diff_id, created_ns=1))

    kept.again()

    assert kept.cache.find("k") is None
    assert list((kept.directory / "s/layers").iterdir()) == []


def test_a_prune_lets_go_of_what_was_not_used_for_longest(kept: Kept) -> None:
    layers = [kept.layer(name) for name in (b"one", b"two", b"three")]
    kept.cache.touch(["one"])

    pruned = kept.cache.prune(everything=True, keep_bytes=6)

    assert pruned.deleted == ("two",)
    assert pruned.reclaimed == 3
    lease = kept.store.retain()
    assert [kept.store.has_layer(layer, lease) for layer in layers] == [True, False, True]
    lease.release()


def test_a_layer_of_two_steps_stays_until_both_are_gone(kept: Kept) -> None:
    layer = kept.layer(b"one")
    kept.cache.add(Step(key="other", layer=layer, created_ns=1))

    first = kept.cache.prune(everything=True, keep_bytes=3)
    second = kept.cache.prune(everything=True)

    assert (len(first.deleted), first.reclaimed) == (1, 0)
    assert (len(second.deleted), second.reclaimed) == (1, 3)


def test_the_last_step_of_the_same_words_is_remembered_with_its_parts(kept: Kept) -> None:
    kept.layer(b"one")
    kept.cache.add(Step(key="new", layer=None, created_ns=1, what="w", parts={"a": "2"},
                        files={"f": "1"}))  # fmt: skip

    found = kept.cache.similar("w")

    assert found is not None and found.key == "new"
    assert (found.parts, found.files) == ({"a": "2"}, {"f": "1"})
    assert kept.cache.similar("other") is None


def test_a_damaged_database_is_begun_anew(kept: Kept) -> None:
    kept.layer(b"one")
    kept.close()
    for suffix in ("-wal", "-shm"):
        (kept.directory / f"b/cache.db{suffix}").unlink(missing_ok=True)
    (kept.directory / "b/cache.db").write_bytes(b"nothing of the kind" * 500)

    kept.__post_init__()

    assert kept.cache.find("one") is None
    kept.layer(b"two")
    assert kept.cache.find("two") is not None


def test_cache_mounts_in_use_stay_and_those_for_one_step_alone_differ(kept: Kept) -> None:
    with (
        kept.cache.mount("id", alone=True) as (first, new),
        kept.cache.mount("id", alone=True) as (second, _),
    ):
        assert new and first != second
        assert kept.cache.prune(everything=True).deleted == ()
        assert first.is_dir()

    with kept.cache.mount("id") as (again, new):
        assert again == first and not new
    assert len(kept.cache.prune(everything=True).deleted) == 2
    assert list(kept.cache.mounts.iterdir()) == []
