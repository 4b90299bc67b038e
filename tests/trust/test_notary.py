"""Notary v1: what its metadata proves, and what it does not."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.notary_v1 import GUN, NOW, ONE, ROOT, TARGETS, THIEF, TIMESTAMP, TWO, Key, made, when
from tare.errors import DeniedError, TareError
from tare.trust.notary import FILE_MAX, TIMESTAMP_MAX, Published, canonical, verified


def read(files: dict[str, bytes], gun: str = GUN, now: int = NOW, **more: Any) -> Published:
    return verified(files, gun, roots=more.pop("roots", [ROOT.id]), now=now, **more)


def test_tags_are_what_was_signed() -> None:
    found = read(made())

    assert {tag: one.digest for tag, one in found.tags.items()} == {"1": ONE}
    assert found.roots == (ROOT.id,)
    assert found.versions["timestamp"] == 3


def test_releases_go_before_targets() -> None:
    found = read(made(released={"1": TWO, "2": TWO}))

    assert (found.tags["1"].digest, found.tags["1"].role) == (TWO, "targets/releases")
    assert set(found.tags) == {"1", "2"}


def test_a_certificate_may_be_for_a_prefix() -> None:
    wild = Key("reg.example/team/*")

    assert read(made(root_keys=(wild,)), roots=[wild.id]).tags["1"].digest == ONE


def test_without_a_trusted_root_the_caller_is_told_whom_it_took() -> None:
    assert read(made(), roots=[]).roots == (ROOT.id,)


def test_a_new_root_is_signed_by_the_old_one_too() -> None:
    new = Key(GUN)
    old = made()["root"]

    found = read(made(root_keys=(new,), signers=(new, ROOT)), roots=[new.id], previous=old)
    assert found.tags["1"].digest == ONE
    with pytest.raises(DeniedError, match="0 of the keys that may sign it did"):
        read(made(root_keys=(new,)), roots=[new.id], previous=old)


@pytest.mark.attack("A34")
@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp", "releases"])
def test_a_role_that_another_key_signed_is_refused(role: str) -> None:
    with pytest.raises(DeniedError, match="0 of the keys that may sign it did, and 1 must"):
        read(made(by={role: THIEF}, released={"1": ONE}))


@pytest.mark.attack("A34")
@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp"])
def test_a_changed_byte_is_noticed(role: str) -> None:
    files = made()
    value = json.loads(files[role])
    value["signed"]["expires"] = when(5000)
    files[role] = json.dumps(value).encode()

    with pytest.raises(DeniedError, match="is not accepted"):
        read(files)


@pytest.mark.attack("A34")
@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp"])
def test_an_older_version_than_was_seen_is_refused(role: str) -> None:
    with pytest.raises(DeniedError, match=f"{role}: version 3 is older than 4"):
        read(made(), seen={role: 4})


@pytest.mark.attack("A34")
@pytest.mark.parametrize(("days", "what"), [(15, "timestamp"), (1001, "timestamp|snapshot")])
def test_what_has_expired_is_refused(days: int, what: str) -> None:
    with pytest.raises(DeniedError, match=f"({what}) expired on"):
        read(made(), now=NOW + days * 86_400)


@pytest.mark.attack("A34")
@pytest.mark.parametrize("role", ["root", "targets", "snapshot"])
def test_parts_of_two_releases_do_not_mix(role: str) -> None:
    files, other = made(), made(version=4)

    with pytest.raises(DeniedError, match=f"about another {role}"):
        read({**files, role: other[role]})


@pytest.mark.attack("A34")
def test_a_root_nobody_here_trusts_is_refused() -> None:
    stranger = Key(GUN)

    with pytest.raises(DeniedError, match="none of these keys is trusted"):
        read(made(root_keys=(stranger,)))


@pytest.mark.attack("A34")
def test_metadata_of_another_name_is_refused() -> None:
    with pytest.raises(DeniedError, match="no certificate of its keys is for this name"):
        read(made(), gun="reg.example/team/other")


@pytest.mark.attack("A34")
def test_a_root_certificate_that_has_expired_is_refused() -> None:
    old = Key(GUN, days=-1)

    with pytest.raises(DeniedError, match="for this name and valid"):
        read(made(root_keys=(old,)), roots=[old.id])


@pytest.mark.attack("A34")
def test_a_threshold_is_not_met_by_one_key_twice() -> None:
    second = Key(GUN)
    keys = (ROOT, second)

    assert read(made(root_keys=keys, threshold=2)).tags
    with pytest.raises(DeniedError, match="1 of the keys that may sign it did, and 2 must"):
        read(made(root_keys=keys, signers=(ROOT, ROOT), threshold=2))


@pytest.mark.attack("A34")
def test_a_threshold_of_nothing_is_refused() -> None:
    with pytest.raises(DeniedError, match="threshold must be at least 1"):
        read(made(threshold=0))


@pytest.mark.attack("A34")
def test_a_key_under_another_ones_id_is_refused() -> None:
    def swap(content: dict[str, Any]) -> None:
        content["keys"][TARGETS.id] = THIEF.entry

    with pytest.raises(DeniedError, match="another than its id says"):
        read(made(change={"root": swap}, by={"targets": THIEF}))


@pytest.mark.attack("A34")
def test_a_delegation_binds_only_what_its_paths_allow() -> None:
    found = read(made(released={"1": TWO, "beta-2": TWO}, paths=("beta-",)))

    assert found.tags["1"].digest == ONE
    assert found.tags["beta-2"].digest == TWO


@pytest.mark.attack("A34")
def test_a_signature_in_der_is_none() -> None:
    files = made()
    value = json.loads(files["timestamp"])
    der = TIMESTAMP.private.sign(canonical(value["signed"]), ec.ECDSA(hashes.SHA256()))
    value["signatures"][0]["sig"] = base64.b64encode(der).decode()

    with pytest.raises(DeniedError, match="0 of the keys"):
        read({**files, "timestamp": json.dumps(value).encode()})


@pytest.mark.attack("A34")
@pytest.mark.parametrize(("role", "limit"), [("timestamp", TIMESTAMP_MAX), ("targets", FILE_MAX)])
def test_endless_files_are_not_read(role: str, limit: int) -> None:
    files = made()

    with pytest.raises(DeniedError, match="at most"):
        read({**files, role: files[role][:-1] + b" " * limit + b"}"})


@pytest.mark.attack("A34")
@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets", "targets/releases"])
def test_a_missing_file_is_refused(role: str) -> None:
    files = made(released={"1": TWO})
    del files[role]

    with pytest.raises(DeniedError, match=r"is missing|is not JSON"):
        read(files)


@pytest.mark.attack("A34")
def test_a_role_in_the_place_of_another_is_refused() -> None:
    files = made()

    with pytest.raises(DeniedError, match="_type is not Snapshot"):
        read({**files, "snapshot": files["timestamp"]})


def test_canonical_json_is_olpcs() -> None:
    assert canonical({"b": 'q"\\', "a": [1, True, None], "<": "é"}) == (
        '{"<":"é","a":[1,true,null],"b":"q\\"\\\\"}'.encode()
    )


def _paths(value: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    pairs: list[tuple[Any, object]] = []
    if isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, list):
        pairs = list(enumerate(value))
    for key, item in pairs:
        yield from _paths(item, (*path, key))


REPOSITORY = made(released={"1": TWO})
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


@pytest.mark.attack("A34")
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_garbage_is_taken_for_metadata(data: st.DataObject) -> None:
    role = data.draw(st.sampled_from(sorted(REPOSITORY)))
    value = json.loads(REPOSITORY[role])
    path = data.draw(st.sampled_from([each for each in _paths(value) if each]))
    at = value
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = data.draw(ANYTHING)
    try:
        found = read({**REPOSITORY, role: json.dumps(value).encode()})
    except TareError:
        return
    assert found.tags == read(REPOSITORY).tags


@pytest.mark.attack("A34")
@settings(max_examples=100, deadline=None)
@given(role=st.sampled_from(sorted(REPOSITORY)), raw=st.binary(max_size=200))
def test_bytes_are_no_metadata(role: str, raw: bytes) -> None:
    with pytest.raises(DeniedError):
        read({**REPOSITORY, role: raw})
