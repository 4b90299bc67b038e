"""Publishers' metadata: what is bound, and every way in which somebody may lie about it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tare.errors import ConflictError, DeniedError, InvalidError, MissingError, TareError
from tare.model.digest import Digest
from tare.model.reference import Reference
from tare.trust import tuf
from tare.trust.keys import PrivateKey
from tare.trust.tuf import Bindings, Update
from tare.trust.tuf_author import Author

NOW = 1_800_000_000
DAY = 86_400
SCOPE = "reg.example/team"
APP = Reference.parse("reg.example/team/app:1")
ROOTS = [PrivateKey.generate() for _ in range(3)]
TARGETS, ONLINE, OTHER = (PrivateKey.generate("ed25519") for _ in range(3))
FIRST, SECOND = Digest.of(b"one"), Digest.of(b"two")
KEYS = {"root": ROOTS, "targets": [TARGETS], "snapshot": [ONLINE], "timestamp": [ONLINE]}
ALL = [*ROOTS, TARGETS, ONLINE]

Files = dict[str, bytes]


def author(
    files: Mapping[str, bytes] | None = None,
    *,
    now: int = NOW,
    keys: list[PrivateKey] | None = None,
    scope: str = SCOPE,
) -> Author:
    if files is None:
        return Author.begin(scope, KEYS, now, threshold=2)
    return Author(files, ALL if keys is None else keys, now)


@pytest.fixture(scope="module")
def published() -> Files:
    made = author()
    made.bind(APP, FIRST, 3)
    return made.files


def changed(files: Mapping[str, bytes], digest: Digest = SECOND, *, now: int = NOW) -> Files:
    made = author(files, now=now)
    made.bind(APP, digest, 3)
    return made.files


def update(kept: Mapping[str, bytes], offered: Mapping[str, bytes], now: int = NOW) -> Files:
    one = Update(SCOPE, kept, lambda name, _limit: offered.get(name), now)
    one.run()
    return one.files


def follow(offered: Mapping[str, bytes], now: int = NOW) -> Files:
    return update(tuf.first(SCOPE, offered["1.root.json"]), offered, now)


def bound(kept: Mapping[str, bytes], name: Reference = APP) -> Digest | None:
    found = Bindings(SCOPE, kept).of(name)
    assert found is not None
    return found.digest


def edited(raw: bytes, **changes: object) -> bytes:
    value = json.loads(raw)
    value["signed"].update(changes)
    return json.dumps(value).encode()


def test_a_tag_has_the_digest_that_its_publisher_bound(published: Files) -> None:
    kept = follow(published)

    assert bound(kept) == FIRST
    assert bound(kept, Reference.parse("reg.example/team/app:2")) is None
    assert Bindings(SCOPE, kept).names == {str(APP): str(FIRST)}


def test_what_is_not_of_the_scope_is_none_of_its_business(published: Files) -> None:
    found = Bindings(SCOPE, follow(published))

    assert found.of(Reference.parse("reg.example/other/app:1")) is None
    assert found.of(Reference.parse(f"reg.example/team/app@{FIRST}")) is None


def test_a_change_is_followed_and_the_same_again_is_fine(published: Files) -> None:
    kept = follow(published)
    after = changed(published)

    newer = update(kept, after)

    assert bound(newer) == SECOND
    assert update(newer, after) == newer


def test_consistent_files_are_tidied_but_every_root_stays(published: Files) -> None:
    after = changed(changed(published))
    rotated = author(after)
    rotated.rotate()

    assert {"1.root.json", "2.root.json", "timestamp.json"} < set(rotated.files)
    assert sum(".snapshot." in name for name in rotated.files) == 1


# --- the registry lies ------------------------------------------------------------------------


@pytest.mark.attack("A34")
def test_a_registry_that_serves_yesterday_is_refused_and_nothing_moves_back(
    published: Files,
) -> None:
    kept = update(follow(published), changed(published))

    with pytest.raises(DeniedError, match=r"timestamp\.json.*must be >="):
        update(kept, published)
    assert bound(kept) == SECOND


@pytest.mark.attack("A34")
def test_an_old_snapshot_under_a_new_timestamp_is_refused(published: Files) -> None:
    after = changed(published)
    kept = update(follow(published), after)
    replay = author(published)
    for _ in range(4):
        replay._publish(2)  # the timestamp's key alone, stolen, and the snapshot of yesterday

    with pytest.raises(DeniedError, match="snapshot version"):
        update(kept, {**after, **replay.files})


@pytest.mark.attack("A34")
def test_old_targets_under_a_new_snapshot_are_refused(published: Files) -> None:
    kept = update(follow(published), changed(published))
    replay = author(published)
    for _ in range(3):
        replay._changed()  # the keys of snapshot and timestamp, stolen

    with pytest.raises(DeniedError, match=r"targets\.json version"):
        update(kept, replay.files)


@pytest.mark.attack("A34")
def test_a_root_that_goes_back_or_skips_one_is_refused(published: Files) -> None:
    made = author(published)
    made.rotate()
    second = dict(made.files)
    made.rotate()
    gap = {name: raw for name, raw in made.files.items() if name != "2.root.json"}
    renamed = {**gap, "2.root.json": made.files["3.root.json"]}
    kept = follow(second)

    with pytest.raises(DeniedError, match=r"2\.root\.json.*Expected root version 2"):
        follow(renamed)
    with pytest.raises(DeniedError, match=r"3\.root\.json.*Expected root version 3"):
        update(kept, {**second, "3.root.json": published["1.root.json"]})


@pytest.mark.attack("A34")
@pytest.mark.parametrize(("days", "what"), [(2, "timestamp"), (400, "root")])
def test_metadata_that_expired_freezes_nobody(published: Files, days: int, what: str) -> None:
    with pytest.raises(DeniedError, match=f"{what}.json is expired"):
        follow(published, NOW + days * DAY)


@pytest.mark.attack("A34")
def test_expired_targets_and_snapshots_are_refused_under_a_fresh_timestamp(
    published: Files,
) -> None:
    late = NOW + 8 * DAY
    stale = author(published, now=late)
    stale._publish(2)
    with pytest.raises(DeniedError, match=r"snapshot\.json is expired"):
        follow(stale.files, late)

    late = NOW + 100 * DAY
    stale = author(published, now=late)
    stale._changed()
    with pytest.raises(DeniedError, match="targets is expired"):
        follow(stale.files, late)


@pytest.mark.attack("A34")
def test_what_is_kept_says_when_it_is_no_more_the_latest_word(published: Files) -> None:
    found = Bindings(SCOPE, follow(published)).of(APP)
    assert found is not None

    assert found.why_not(NOW) == ""
    assert "expired" in found.why_not(NOW + 2 * DAY)


@pytest.mark.attack("A34")
def test_files_of_different_moments_do_not_mix(published: Files) -> None:
    after = changed(published)
    other = changed(published, Digest.of(b"three"))
    mixed = {**after, "3.snapshot.json": other["3.snapshot.json"]}

    # A snapshot with the same version and another content.
    made = author(published)
    made.delegate("more", ["reg.example/team/more:*"], [TARGETS.public])
    mixed["3.snapshot.json"] = made.files["3.snapshot.json"]

    with pytest.raises(DeniedError, match=r"snapshot\.json"):
        follow(mixed)


@pytest.mark.attack("A34")
@pytest.mark.parametrize("name", ["timestamp.json", "2.snapshot.json", "2.targets.json"])
def test_endless_files_are_not_read(published: Files, name: str) -> None:
    endless = published[name][:-1] + b" " * tuf.limit_of(name) + b"}"

    with pytest.raises(DeniedError, match=r"at most \d+ are read"):
        follow({**published, name: endless})


@pytest.mark.attack("A34")
@pytest.mark.parametrize("name", ["timestamp.json", "2.snapshot.json", "2.targets.json"])
def test_a_file_that_is_missing_is_said_to_be(published: Files, name: str) -> None:
    with pytest.raises(DeniedError, match="is not there"):
        follow({key: raw for key, raw in published.items() if key != name})


@pytest.mark.attack("A34")
@pytest.mark.parametrize(
    "name", ["1.root.json", "timestamp.json", "2.snapshot.json", "2.targets.json"]
)
def test_changed_content_is_not_signed(published: Files, name: str) -> None:
    changed_ = edited(published[name], expires="2040-01-01T00:00:00Z")

    with pytest.raises(TareError, match=r"signed|hash"):
        follow({**published, name: changed_})


@pytest.mark.attack("A34")
def test_an_extra_equal_key_in_the_json_is_refused(published: Files) -> None:
    raw = published["timestamp.json"]
    twice = raw.replace(b'"version"', b'"version": 99, "version"', 1)

    with pytest.raises(DeniedError, match="occurs twice"):
        follow({**published, "timestamp.json": twice})


@pytest.mark.attack("A34")
def test_metadata_of_another_namespace_is_refused_even_with_the_same_keys(
    published: Files,
) -> None:
    kept = follow(published)
    other = author(scope="reg.example/rival")
    for _ in range(5):
        other.refresh()

    with pytest.raises(DeniedError, match="is the metadata of 'reg.example/rival'"):
        update(kept, other.files)
    with pytest.raises(InvalidError, match="reg.example/rival"):
        tuf.first(SCOPE, other.files["1.root.json"])


@pytest.mark.attack("A34")
def test_a_fast_forward_is_recovered_from_by_new_keys(published: Files) -> None:
    stolen = author(published)
    stolen._timestamp.signed.version = 2**31
    stolen._publish(2)
    kept = follow(stolen.files)
    healed = author(published)

    with pytest.raises(DeniedError, match="must be >="):
        update(kept, changed(published))
    healed.rotate(add={"timestamp": [OTHER]}, remove={"timestamp": [ONLINE.public.id]})

    assert bound(update(kept, healed.files)) == FIRST


# --- keys -------------------------------------------------------------------------------------


@pytest.mark.attack("A34")
def test_one_of_two_keys_cannot_make_a_new_root(published: Files) -> None:
    thief = author(published, keys=[ROOTS[0], TARGETS, ONLINE])
    thief.rotate(add={"targets": [OTHER]})

    assert thief.missing() == ["root needs 1 more of its keys to sign it"]
    with pytest.raises(DeniedError, match=r"2\.root\.json.*signed by 1/2"):
        follow(thief.files)


@pytest.mark.attack("A34")
def test_a_signature_that_stands_there_twice_counts_once(published: Files) -> None:
    thief = author(published, keys=[ROOTS[0], TARGETS, ONLINE])
    thief.rotate()
    value = json.loads(thief.files["2.root.json"])
    value["signatures"] = value["signatures"] * 2
    twice = json.dumps(value).encode()

    with pytest.raises(DeniedError, match=r"2\.root\.json"):
        follow({**thief.files, "2.root.json": twice})


@pytest.mark.attack("A34")
def test_a_key_under_two_ids_counts_once() -> None:
    made = author()
    root = made._root.signed
    keyid = root.roles["root"].keyids[0]
    again = root.keys[keyid].to_dict()
    from securesystemslib.signer._key import SSlibKey

    root.keys["ab" * 32] = SSlibKey.from_dict("ab" * 32, again)
    root.roles["root"].keyids.append("ab" * 32)
    made.sign_root()

    with pytest.raises(InvalidError, match="under two ids"):
        tuf.first(SCOPE, made.files["1.root.json"])


def test_a_second_holder_of_a_root_key_completes_it(published: Files) -> None:
    one = author(published, keys=[ROOTS[0], TARGETS, ONLINE])
    one.rotate(add={"targets": [OTHER]})
    two = author(one.files, keys=[ROOTS[1]])
    two.sign_root()

    assert two.missing() == []
    assert bound(follow(two.files)) == FIRST


def test_keys_are_rotated_and_the_old_ones_count_no_more(published: Files) -> None:
    made = author(published)
    made.rotate(add={"targets": [OTHER]}, remove={"targets": [TARGETS.public.id]})
    kept = update(follow(published), made.files)
    old = author(made.files, keys=[TARGETS, ONLINE])

    assert bound(kept) == FIRST
    with pytest.raises(DeniedError, match="none of the keys of the role targets"):
        old.bind(APP, SECOND, 3)


@pytest.mark.attack("A34")
def test_targets_by_a_key_that_was_taken_away_are_refused(published: Files) -> None:
    made = author(published)
    made.rotate(add={"targets": [OTHER]}, remove={"targets": [TARGETS.public.id]})
    thief = author(made.files)
    thief._root.signed.add_key(_public(TARGETS), "targets")
    thief._root.signed.revoke_key(_keyid(OTHER), "targets")
    thief.bind(APP, SECOND, 3)

    with pytest.raises(DeniedError, match=r"targets\.json.*signed by 0/1"):
        update(follow(made.files), thief.files)


def _public(key: PrivateKey):  # type: ignore[no-untyped-def]  # a type of securesystemslib
    from securesystemslib.signer._key import SSlibKey

    return SSlibKey.from_crypto(key.public.key)


def _keyid(key: PrivateKey) -> str:
    return str(_public(key).keyid)


@pytest.mark.parametrize("threshold", [0, 4])
def test_a_threshold_that_no_keys_can_reach_is_refused(threshold: int) -> None:
    with pytest.raises(InvalidError, match="cannot sign"):
        Author.begin(SCOPE, KEYS, NOW, threshold=threshold)


def test_the_last_key_of_a_role_is_not_taken_away(published: Files) -> None:
    with pytest.raises(InvalidError, match="would have 0 keys"):
        author(published).rotate(remove={"targets": [TARGETS.public.id]})


# --- taking back, delegating ------------------------------------------------------------------


def test_a_name_is_taken_back(published: Files) -> None:
    made = author(published)
    made.unbind(APP)

    assert bound(update(follow(published), made.files)) is None
    with pytest.raises(MissingError, match="binds no"):
        made.unbind(APP)


@pytest.fixture(scope="module")
def delegated(published: Files) -> Files:
    made = author(published)
    made._signers.update(author(keys=[OTHER], files=published)._signers)
    made.delegate("app-team", ["reg.example/team/app:*"], [OTHER.public])
    return made.files


def test_a_delegate_binds_what_it_may(delegated: Files) -> None:
    two = Reference.parse("reg.example/team/app:2")
    made = author(delegated, keys=[OTHER, ONLINE])

    assert made.bind(two, SECOND, 3) == "app-team"
    found = Bindings(SCOPE, follow(made.files)).of(two)
    assert found is not None
    assert (found.digest, found.role) == (SECOND, "app-team")


@pytest.mark.attack("A34")
def test_a_delegate_binds_nothing_outside_its_paths(delegated: Files) -> None:
    other = Reference.parse("reg.example/team/web:1")
    thief = author(delegated, keys=[OTHER, ONLINE])
    with pytest.raises(DeniedError, match="role targets"):
        thief.bind(other, SECOND, 3)
    from tuf.api._payload import TargetFile

    fields = {"length": 3, "hashes": {"sha256": SECOND.hex}}
    role = thief._targets["app-team"].signed
    role.targets[str(other)] = TargetFile.from_dict(fields, str(other))
    thief._changed("app-team")

    assert bound(follow(thief.files), other) is None
    assert str(other) not in Bindings(SCOPE, follow(thief.files)).names


@pytest.mark.attack("A34")
def test_a_delegate_whose_file_is_kept_back_is_missed(delegated: Files) -> None:
    made = author(delegated, keys=[OTHER, ONLINE])
    two = Reference.parse("reg.example/team/app:2")
    made.bind(two, SECOND, 3)
    without = {name: raw for name, raw in made.files.items() if "app-team" not in name}
    kept = follow(without)

    assert bound(kept) == FIRST  # it stands above
    with pytest.raises(DeniedError, match="missing or not accepted"):
        bound(kept, two)


def test_a_delegation_is_withdrawn(delegated: Files) -> None:
    made = author(delegated, keys=[OTHER, ONLINE])
    two = Reference.parse("reg.example/team/app:2")
    made.bind(two, SECOND, 3)
    owner = author(made.files)
    owner.undelegate("app-team")

    assert bound(update(follow(made.files), owner.files), two) is None


def test_what_makes_no_sense_is_not_delegated(published: Files) -> None:
    made = author(published)

    for role in ("root", "", "../x", "a/b", "x" * 90):
        with pytest.raises(InvalidError, match="name of a role"):
            made.delegate(role, ["reg.example/team/app:*"], [OTHER.public])
    with pytest.raises(InvalidError, match="is not in"):
        made.delegate("more", ["reg.example/rival/app:*"], [OTHER.public])
    with pytest.raises(ConflictError, match="already"):
        made.delegate("targets2", ["reg.example/team/app:*"], [TARGETS.public])
        made.delegate("targets2", ["reg.example/team/app:*"], [TARGETS.public])


@pytest.mark.parametrize("scope", ["*", "reg.example", "*.example.com"])
def test_metadata_is_of_a_namespace(scope: str) -> None:
    with pytest.raises(InvalidError, match="HOST/NAMESPACE"):
        Author.begin(scope, KEYS, NOW)


def test_what_is_kept_and_cannot_be_used_accepts_nothing() -> None:
    root = author().files["1.root.json"]

    with pytest.raises(DeniedError, match="it was never fetched"):
        Bindings(SCOPE, tuf.first(SCOPE, root))


def test_not_before_waits(published: Files) -> None:
    made = author(published)
    made.bind(APP, SECOND, 3, not_before=NOW + 50)
    found = Bindings(SCOPE, follow(made.files)).of(APP)
    assert found is not None

    assert "only from" in found.why_not(NOW)
    assert found.why_not(NOW + 50) == ""


# --- garbage ----------------------------------------------------------------------------------


def _leaves(value: object, path: tuple[object, ...] = ()) -> Iterator[tuple[object, ...]]:
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from _leaves(value[key], (*path, key))
    elif isinstance(value, list):
        for at, item in enumerate(value):
            yield from _leaves(item, (*path, at))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


@pytest.mark.attack("A34")
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_garbage_is_taken_for_metadata(published: Files, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(published)))
    value = json.loads(published[name])
    path = data.draw(st.sampled_from([p for p in _leaves(value) if p]))
    at = value
    for step in path[:-1]:
        at = at[step]
    before = at[path[-1]]
    at[path[-1]] = after = data.draw(ANYTHING)
    try:
        kept = follow({**published, name: json.dumps(value).encode()})
    except TareError:
        return
    # Only what nobody signed may have changed: further, unknown signatures, or nothing.
    assert "signatures" in path or path[0] != "signed" or before == after
    assert bound(kept) == FIRST


@pytest.mark.attack("A34")
@settings(max_examples=60, deadline=None)
@given(raw=st.binary(max_size=200))
def test_bytes_are_no_metadata(published: Files, raw: bytes) -> None:
    with pytest.raises(TareError):
        follow({**published, "timestamp.json": raw})
    with pytest.raises(TareError):
        Author({**published, "timestamp.json": raw}, ALL, NOW)


@pytest.mark.parametrize("name", ["../root.json", "root", ".json", "a/b.json", "x" * 300])
def test_names_of_files_are_names(name: str) -> None:
    with pytest.raises(InvalidError, match="no name"):
        tuf.limit_of(name)
