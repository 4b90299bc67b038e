"""A34: a publisher's metadata in the hands of whoever serves it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.metadata import MetaFile

from tare.errors import DeniedError, InvalidError
from tare.model.digest import Digest
from tare.trust.keys import PrivateKey
from tare.trust.tuf import Read, State, Target, find, refreshed, started
from tare.trust.tuf_author import ROLES, Author

NOW = 1_800_000_000
DAY = 86400
NAME = "registry.example/team/app:1"
OLD, NEW = Digest.of(b"old"), Digest.of(b"new")
KEYS = {role: [PrivateKey.generate("ed25519")] for role in ROLES}
ROOTS = [PrivateKey.generate("ed25519") for _ in range(3)]


def author(now: int = NOW) -> Author:
    made = Author.create(KEYS, now)
    made.publish({NAME: (OLD, 3)}, now)
    return made


def served(files: dict[str, bytes]) -> Read:
    return lambda name, limit: files[name][: limit + 1] if name in files else None


def trusting(made: Author) -> State:
    return refreshed(started(made.files["1.root.json"]), served(made.files), NOW)


def fresh_key() -> PrivateKey:
    return PrivateKey.generate("ed25519")


def forged(raw: bytes, change: Callable[[dict[str, object]], object], key: PrivateKey) -> bytes:
    """Metadata that was changed and signed with a key of somebody's."""
    from securesystemslib.signer import CryptoSigner
    from tuf.api.metadata import Metadata, Root

    value = json.loads(raw)
    change(value["signed"])
    document: Metadata[Root] = Metadata.from_dict(value)
    document.sign(CryptoSigner(key.key))
    return document.to_bytes()


@pytest.mark.attack("A34")
def test_what_is_published_is_found() -> None:
    state = trusting(author())

    assert find(state, NAME, NOW) == Target(OLD, 3)
    assert find(state, "registry.example/team/app:2", NOW) is None


@pytest.mark.attack("A34")
def test_what_moves_on_is_followed_and_what_was_is_refused() -> None:
    made = author()
    before = dict(made.files)
    state = trusting(made)
    made.publish({NAME: (NEW, 3)}, NOW + 1)

    state = refreshed(state, served(made.files), NOW + 1)

    assert find(state, NAME, NOW + 1) == Target(NEW, 3)
    with pytest.raises(DeniedError, match=r"timestamp.json has version 2, and version 3 was seen"):
        refreshed(state, served(before), NOW + 1)


@pytest.mark.attack("A34")
def test_an_old_snapshot_under_a_new_timestamp_is_refused() -> None:
    made = author()
    behind = deepcopy(made)
    made.publish({NAME: (NEW, 3)}, NOW)
    state = trusting(made)
    behind.timestamp.signed.version = 8  # the key of the timestamp alone was stolen
    behind._put(behind.timestamp, behind.keys["timestamp"], "timestamp.json")

    with pytest.raises(DeniedError, match=r"the snapshot in timestamp.json has version 2"):
        refreshed(state, served(behind.files), NOW)


@pytest.mark.attack("A34")
def test_a_frozen_registry_is_noticed_by_its_age() -> None:
    made = author()
    state = trusting(made)

    for check in (
        lambda: refreshed(state, served(made.files), NOW + 2 * DAY),
        lambda: find(state, NAME, NOW + 2 * DAY),
    ):
        with pytest.raises(DeniedError, match=r"timestamp.json has expired"):
            check()
    assert find(state, NAME, None) == Target(OLD, 3)


@pytest.mark.attack("A34")
def test_a_snapshot_of_another_release_is_refused() -> None:
    made = author()
    old = dict(made.files)
    state = trusting(made)
    made.publish({NAME: (NEW, 3)}, NOW)
    mixed = {**made.files, "3.snapshot.json": old["2.snapshot.json"]}

    with pytest.raises(DeniedError, match="not the file that was announced"):
        refreshed(state, served(mixed), NOW)


@pytest.mark.attack("A34")
def test_targets_of_another_release_are_refused() -> None:
    made = author()
    old = made.files["2.targets.json"]
    state = trusting(made)
    made.publish({NAME: (NEW, 3)}, NOW)

    with pytest.raises(DeniedError, match="not the file that was announced"):
        refreshed(state, served({**made.files, "3.targets.json": old}), NOW)


@pytest.mark.attack("A34")
@pytest.mark.parametrize(
    "name", ["timestamp.json", "2.snapshot.json", "2.targets.json", "2.root.json"]
)
def test_files_without_an_end_are_refused(name: str) -> None:
    made = author()
    endless = {**made.files, name: b" " * (6 << 20)}

    with pytest.raises(DeniedError, match=r"does not end"):
        refreshed(started(made.files["1.root.json"]), served(endless), NOW)


@pytest.mark.attack("A34")
@pytest.mark.parametrize("name", ["timestamp.json", "2.snapshot.json", "2.targets.json"])
def test_a_file_that_is_missing_is_said_to_be(name: str) -> None:
    made = author()
    rest = {key: value for key, value in made.files.items() if key != name}

    with pytest.raises(DeniedError, match="is missing"):
        refreshed(started(made.files["1.root.json"]), served(rest), NOW)


@pytest.mark.attack("A34")
def test_the_key_of_a_stranger_does_not_count() -> None:
    made = author()
    raw = forged(made.files["timestamp.json"], lambda s: s.update(version=9), fresh_key())

    with pytest.raises(DeniedError, match="not signed by enough"):
        refreshed(trusting(made), served({**made.files, "timestamp.json": raw}), NOW)


@pytest.mark.attack("A34")
def test_a_threshold_is_of_keys_not_of_signatures() -> None:
    made = Author.create({**KEYS, "root": ROOTS}, NOW, thresholds={"root": 2})
    state = trusting(made)
    root = json.loads(made.files["1.root.json"])
    root["signed"]["version"] = 2
    one = forged(json.dumps(root).encode(), lambda _: None, ROOTS[0])
    doubled = json.loads(one)
    doubled["signatures"] *= 2

    for raw in (one, json.dumps(doubled).encode()):
        with pytest.raises(DeniedError, match=r"not signed by enough|cannot be read"):
            refreshed(state, served({**made.files, "2.root.json": raw}), NOW)


@pytest.mark.attack("A34")
def test_a_stolen_root_key_of_two_cannot_change_the_root() -> None:
    made = Author.create({**KEYS, "root": ROOTS}, NOW, thresholds={"root": 2})
    state = trusting(made)
    thief = deepcopy(made)
    thief.keys["root"] = ROOTS[:1]
    thief.rotate("targets", [fresh_key()], NOW)

    with pytest.raises(DeniedError, match=r"2.root.json is not signed by enough"):
        refreshed(state, served(thief.files), NOW)


@pytest.mark.attack("A34")
def test_keys_are_rotated_step_by_step() -> None:
    made = author()
    state = trusting(made)
    for role in ROLES:
        made.rotate(role, [fresh_key()], NOW)
    made.publish({NAME: (NEW, 3)}, NOW)

    for before in (state, started(made.files["1.root.json"])):
        assert find(refreshed(before, served(made.files), NOW), NAME, NOW) == Target(NEW, 3)


@pytest.mark.attack("A34")
def test_a_gap_in_the_chain_of_roots_ends_it() -> None:
    made = author()
    state = trusting(made)
    made.rotate("timestamp", [fresh_key()], NOW)
    made.rotate("targets", [fresh_key()], NOW)
    gap = {key: value for key, value in made.files.items() if key != "2.root.json"}

    with pytest.raises(DeniedError, match="not signed by enough"):
        refreshed(state, served(gap), NOW)


@pytest.mark.attack("A34")
def test_a_root_of_the_wrong_number_is_refused() -> None:
    made = author()
    state = trusting(made)
    made.rotate("timestamp", [fresh_key()], NOW)
    made.rotate("targets", [fresh_key()], NOW)

    with pytest.raises(DeniedError, match=r"is of version 3"):
        refreshed(state, served({**made.files, "2.root.json": made.files["3.root.json"]}), NOW)


@pytest.mark.attack("A34")
def test_numbers_that_a_thief_ran_up_are_recovered_from_by_rotation() -> None:
    made = author()
    thief = deepcopy(made)
    thief.timestamp.signed.version = thief.snapshot.signed.version = 1_000_000
    thief.publish({NAME: (NEW, 3)}, NOW)
    state = refreshed(trusting(made), served(thief.files), NOW)

    with pytest.raises(DeniedError, match="was seen before"):
        refreshed(state, served(made.files), NOW)
    made.rotate("timestamp", [fresh_key()], NOW)
    made.rotate("snapshot", [fresh_key()], NOW)
    state = refreshed(state, served(made.files), NOW)

    assert find(state, NAME, NOW) == Target(OLD, 3)


@pytest.mark.attack("A34")
def test_a_delegate_speaks_for_its_own_names_only() -> None:
    made = author()
    made.delegate("app", [fresh_key()], ["registry.example/team/app:*"], NOW)
    escaped = "registry.example/team/billing:1"
    own = "registry.example/team/app:7"
    made.publish({own: (NEW, 3), escaped: (NEW, 3)}, NOW, role="app")

    state = trusting(made)

    assert find(state, own, NOW) == Target(NEW, 3)
    assert find(state, escaped, NOW) is None


@pytest.mark.attack("A34")
def test_a_delegate_without_its_key_says_nothing() -> None:
    made = author()
    made.delegate("app", [fresh_key()], ["registry.example/team/app:*"], NOW)
    made.keys["app"] = [fresh_key()]
    made.publish({"registry.example/team/app:7": (NEW, 3)}, NOW, role="app")

    with pytest.raises(DeniedError, match=r"app.json is not signed by enough"):
        trusting(made)


@pytest.mark.attack("A34")
def test_a_role_cannot_name_a_file_elsewhere() -> None:
    with pytest.raises(InvalidError, match="name of a role"):
        author().delegate("../../etc/passwd", ROOTS[:1], ["*"], NOW)


@pytest.mark.attack("A34")
def test_metadata_of_another_publisher_is_refused() -> None:
    other = Author.create({role: [fresh_key()] for role in ROLES}, NOW)

    with pytest.raises(DeniedError, match="not signed by enough"):
        refreshed(started(author().files["1.root.json"]), served(other.files), NOW)


@pytest.mark.attack("A34")
def test_one_kind_of_metadata_is_not_taken_for_another() -> None:
    made = author()
    swapped = {**made.files, "timestamp.json": made.files["2.snapshot.json"]}

    with pytest.raises(DeniedError, match="type"):
        refreshed(trusting(made), served(swapped), NOW)
    with pytest.raises(DeniedError, match="type"):
        started(made.files["timestamp.json"])


@pytest.mark.attack("A34")
def test_what_a_failed_refresh_brought_is_not_kept() -> None:
    made = author()
    state = trusting(made)
    before = find(state, NAME, NOW)
    made.publish({NAME: (NEW, 3)}, NOW)
    made.files["3.targets.json"] += b" "

    with pytest.raises(DeniedError):
        refreshed(state, served(made.files), NOW)

    assert find(state, NAME, NOW) == before


@pytest.mark.attack("A34")
def test_an_author_goes_on_from_its_files() -> None:
    made = author()
    made.delegate("app", [fresh_key()], ["registry.example/team/app:*"], NOW)
    everybody = [key for listed in made.keys.values() for key in listed]

    again = Author.load(made.files, everybody)
    again.publish({NAME: (NEW, 3)}, NOW)

    assert find(refreshed(trusting(made), served(again.files), NOW), NAME, NOW) == Target(NEW, 3)
    assert set(again.current) < set(again.files)
    assert refreshed(started(again.files["1.root.json"]), served(again.current), NOW)
    with pytest.raises(InvalidError, match="private key that signs"):
        Author.load(made.files, []).publish({}, NOW)


@pytest.mark.attack("A34")
def test_pythons_own_client_reads_what_is_published(tmp_path: Path) -> None:
    from tuf.api.exceptions import DownloadHTTPError
    from tuf.ngclient import FetcherInterface, Updater

    made = author(int(time.time()))  # the client has no other clock

    class Files(FetcherInterface):
        def _fetch(self, url: str) -> list[bytes]:  # type: ignore[override]  # any iterable does
            name = url.rpartition("/")[2]
            if name not in made.files:
                raise DownloadHTTPError("missing", 404)
            return [made.files[name]]

    here = str(tmp_path)
    updater = Updater(
        here, "https://x/", here, "https://x/t/", Files(), bootstrap=made.files["1.root.json"]
    )
    updater.refresh()
    found = updater.get_targetinfo(NAME)

    assert found is not None
    assert found.hashes == {"sha256": OLD.hex}


ORIGINAL = author()


@pytest.mark.attack("A34")
@given(
    name=st.sampled_from(sorted(ORIGINAL.files)),
    at=st.integers(0, 100_000),
    value=st.integers(0, 255),
)
def test_no_changed_byte_changes_what_is_found(name: str, at: int, value: int) -> None:
    raw = bytearray(ORIGINAL.files[name])
    raw[at % len(raw)] = value
    files = {**ORIGINAL.files, name: bytes(raw)}

    try:
        state = refreshed(started(ORIGINAL.files["1.root.json"]), served(files), NOW)
        found = find(state, NAME, NOW)
    except DeniedError:
        return

    assert found == Target(OLD, 3)


ANY = st.recursive(
    st.none() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["signed", "signatures", "_type", "roles", "keys"]), inner
        )
    ),
    max_leaves=10,
)


@pytest.mark.attack("A34")
@given(raw=st.binary(max_size=200) | ANY.map(lambda v: json.dumps(v).encode()))
def test_any_other_file_is_refused_with_a_sentence(raw: bytes) -> None:
    with pytest.raises(DeniedError):
        started(raw)


@pytest.mark.attack("A34")
@pytest.mark.attack("A34")
def test_a_key_under_two_ids_counts_once() -> None:
    one, other = PrivateKey.generate("ed25519"), PrivateKey.generate("ed25519")
    keys = {"root": [other], "targets": [one, other], "snapshot": [other], "timestamp": [other]}
    made = Author.create(keys, NOW, thresholds={"targets": 2})
    first = made.files["1.root.json"]
    root, again = made.root.signed, CryptoSigner(one.key).public_key
    twin = SSlibKey.from_dict("ab" * 32, again.to_dict())
    root.keys[twin.keyid] = twin
    root.roles["targets"].keyids = [again.keyid, twin.keyid]
    root.version = 2
    made._put(made.root, [other], "2.root.json")
    targets = made.targets["targets"]
    targets.signatures.clear()
    for public in (again, twin):
        targets.sign(CryptoSigner(one.key, public), append=True)
    raw = made.files["1.targets.json"] = targets.to_bytes()
    made.snapshot.signed.meta["targets.json"] = MetaFile(1, len(raw))
    made._release(set(), NOW)

    with pytest.raises(DeniedError, match="listed under two ids"):
        refreshed(started(first), lambda name, _: made.files.get(name), NOW)
