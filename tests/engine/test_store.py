from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tare.engine.store import Store
from tare.errors import ConflictError, FailedError, InvalidError, MissingError
from tare.model.record import Health, HealthStatus, IdBlock, Probe, Record, changed
from tare.model.spec import ContainerSpec, HealthCheck, Mount, MountKind, ProcessSpec, Resources
from tare.model.state import State


def record(name: str, identity: str = "") -> Record:
    spec = ContainerSpec(
        image="i",
        image_id="sha256:" + "0" * 64,
        process=ProcessSpec(args=("a", "ü"), env=("A=1",)),
        labels={"a": "b"},
        mounts=(Mount(kind=MountKind.BIND, source="/x", target="/y"),),
        resources=Resources(memory=1 << 40),
        health=HealthCheck(test=("CMD", "x")),
    )
    probe = Probe(start_ns=1, end_ns=2, exit_code=-1, output="no\n")
    return Record(
        id=identity or secrets.token_hex(32),
        name=name,
        spec=spec,
        created_ns=5,
        health=Health(status=HealthStatus.UNHEALTHY, failing_streak=3, log=(probe,)),
        id_block=IdBlock(base=1, size=2),
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    opened = Store(path)
    yield opened
    opened.close()


def test_a_record_survives_with_all_its_parts(store: Store, path: Path) -> None:
    first = store.add(record("web"))
    second = store.put(changed(first, state=State.RUNNING, pid=7))
    third = store.put(changed(second, spec=replace(second.spec, hostname="h")))

    again = Store(path)

    assert again.get("web") == third
    again.close()


def test_a_commit_survives_a_process_that_never_closes(store: Store, path: Path) -> None:
    added = store.add(record("web"))

    reader = Store(path)  # as after kill -9: the first connection is not closed

    assert list(reader.all()) == [added]
    reader.close()


def test_it_is_found_by_name_id_and_unique_prefix(store: Store) -> None:
    one = store.add(record("web", "aa11" + "0" * 60))
    two = store.add(record("aa12", "aa12" + "0" * 60))

    assert store.get("/web") is one
    assert store.get("aa11") is one
    assert store.get("aa12") is two  # a name comes before a prefix
    with pytest.raises(InvalidError, match="multiple IDs found"):
        store.get("aa1")
    for missing in ("", "ab", "aa110000f", "Web"):
        with pytest.raises(MissingError, match="No such container"):
            store.get(missing)


def test_a_name_is_free_as_soon_as_its_holder_is_gone_or_renamed(store: Store) -> None:
    one = store.add(record("web"))
    with pytest.raises(ConflictError, match="already in use"):
        store.add(record("web"))
    store.put(changed(one, name="other"))
    two = store.add(record("web"))
    with pytest.raises(ConflictError, match="already in use"):
        store.put(changed(two, name="other"))

    store.delete(two.id)

    assert store.holder("web") is None
    assert store.get("other").id == one.id
    assert len(store) == 1


def test_what_is_active_is_known_without_looking_at_all(store: Store) -> None:
    one, two = store.add(record("one")), store.add(record("two"))
    store.put(changed(one, state=State.RUNNING))

    assert [r.name for r in store.active()] == ["one"]
    assert [r.name for r in store.all()] == ["two", "one"]
    store.delete(two.id)
    store.put(changed(store.get("one"), state=State.EXITED))
    assert store.active() == []


def test_a_newer_schema_is_refused(store: Store, path: Path) -> None:
    store.close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE meta SET value = '99'")

    with pytest.raises(FailedError, match="schema 99"):
        Store(path)


def test_a_file_that_is_no_database_is_said_so(path: Path) -> None:
    path.write_bytes(b"not a database" * 100)

    with pytest.raises(FailedError, match="cannot use the engine's database"):
        Store(path)


def test_text_that_is_not_unicode_is_refused_and_nothing_kept(store: Store) -> None:
    bad = record("web")
    with pytest.raises(InvalidError, match="not valid text"):
        store.add(changed(bad, spec=replace(bad.spec, hostname="\ud800")))

    assert len(store) == 0


def test_a_checkpoint_loses_nothing(store: Store, path: Path) -> None:
    added = store.add(record("web"))
    store.checkpoint()

    assert not store.checkpoint_due
    assert store.get("web") is added
