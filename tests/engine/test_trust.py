"""What trust keeps on disk, and what comes in with archives: damaged, foreign, or set back."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tare.engine import attached, trust
from tare.engine.events import Events
from tare.engine.evidence import EvidenceStore
from tare.engine.following import Following, packed, unpacked
from tare.engine.trust import ATTACHED as MEMBER
from tare.engine.trust import Trust
from tare.errors import DeniedError, FailedError, InvalidError, MissingError, TareError
from tare.image.archive import Loaded
from tare.image.store import ImageStore
from tare.model.digest import Digest
from tare.model.oci import ImageConfig
from tare.model.reference import Reference
from tare.trust import signature
from tare.trust.keys import PrivateKey
from tare.trust.ring import Ring, Trusted
from tare.trust.switch import Mode
from tare.trust.tuf_author import ROLES, Author

KEY = PrivateKey.generate()
SUBJECT = Digest.of(b"a manifest")
NAME = Reference.parse("reg.example/team/app:1")
ENTRY = Trusted(KEY.public, "team", ("reg.example",))
CONFIG = ImageConfig.parse(
    b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'
)


@pytest.fixture
def kept(tmp_path: Path) -> EvidenceStore:
    return EvidenceStore(tmp_path / "trust")


def test_signatures_are_kept_once_each(kept: EvidenceStore) -> None:
    one = signature.signed_simple(KEY, [NAME], SUBJECT)
    two = signature.signed_simple(PrivateKey.generate(), [NAME], SUBJECT)

    kept.add(SUBJECT, [one])
    kept.add(SUBJECT, [two, one])

    assert {a.digest for a in kept.artifacts(SUBJECT)} == {one.digest, two.digest}
    kept.keep_only([], [])
    assert kept.artifacts(SUBJECT) == ()


@pytest.mark.attack("A33")
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"artifacts":7}', b"\xff" * 50])
def test_damaged_evidence_is_none(kept: EvidenceStore, content: bytes) -> None:
    (kept.directory / "evidence" / SUBJECT.hex).write_bytes(content)

    assert kept.artifacts(SUBJECT) == ()


@pytest.mark.attack("A33")
def test_a_switch_that_cannot_be_read_is_on(kept: EvidenceStore) -> None:
    assert kept.mode() is Mode.WARN
    kept.set_mode(Mode.OFF)
    assert kept.mode() is Mode.OFF

    (kept.directory / "switch").write_bytes(b"of\n")

    assert kept.mode() is Mode.ON


@pytest.mark.attack("A33")
def test_trusted_keys_that_cannot_be_read_trust_nothing(kept: EvidenceStore) -> None:
    kept.set_ring(Ring().with_key(ENTRY))
    path = kept.directory / "ring.json"
    path.write_bytes(path.read_bytes()[:-10])

    with pytest.raises(FailedError, match="trusted keys cannot be read"):
        kept.ring()


@pytest.mark.attack("A34")
def test_a_clock_that_is_set_back_brings_no_key_back(
    kept: EvidenceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [2_000_000_000.0]
    monkeypatch.setattr("tare.engine.evidence.time.time", lambda: now[0])
    assert kept.now() == 2_000_000_000

    now[0] -= 86_400 * 365
    again = EvidenceStore(kept.directory)

    assert kept.now() == again.now() == 2_000_000_000
    assert again.set_back == 86_400 * 365


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o622])
@pytest.mark.attack("A33")
def test_a_policy_or_key_that_others_may_write_is_not_believed(tmp_path: Path, mode: int) -> None:
    key = tmp_path / "k.pub"
    key.write_bytes(KEY.public.pem())
    key.chmod(mode)
    policy = tmp_path / "c/policy.json"
    policy.parent.mkdir()
    policy.write_text(
        json.dumps({"default": [{"type": "sigstoreSigned", "keyPath": os.fspath(key)}]})
    )
    store = ImageStore(tmp_path / "s", extract=True)
    made = Trust(tmp_path / "s/trust", policy.parent, store, Events(), system=False)

    with pytest.raises(TareError, match="can be written by others"):
        made.policy()
    key.chmod(0o644)
    assert made.policy().fallback() is not None
    policy.chmod(mode)
    with pytest.raises(DeniedError, match="can be written by others"):
        made.policy()
    store.close()


def test_a_directory_in_the_place_of_the_policy_accepts_nothing(tmp_path: Path) -> None:
    (tmp_path / "c/policy.json").mkdir(parents=True)
    store = ImageStore(tmp_path / "s", extract=True)
    made = Trust(tmp_path / "s/trust", tmp_path / "c", store, Events(), system=False)

    with pytest.raises(TareError):
        made.policy()
    store.close()


def test_the_default_says_nothing_until_there_is_something_to_compare_with(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "s", extract=True)
    made = Trust(tmp_path / "s/trust", tmp_path / "c", store, Events(), system=False)

    assert (made.mode, made.configured) == (Mode.WARN, False)
    made.change_ring(Ring().with_key(ENTRY), "test")
    assert made.configured
    assert trust.SYSTEM_POLICY.is_absolute()
    store.close()


# --- archives -------------------------------------------------------------------------------------


@given(raw=st.binary(max_size=200) | st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["format", "images", "config", "documents", "signatures"]), inner
    ),
    max_leaves=8,
).map(lambda v: json.dumps(v).encode()))  # fmt: skip
def test_a_member_of_an_archive_is_read_or_refused(raw: bytes) -> None:
    image = Loaded(CONFIG, (), {MEMBER: raw})

    try:
        documents, found = attached.read(image)
    except TareError:
        return

    assert (documents, found) == ([], {})


# --- publishers -----------------------------------------------------------------------------------


def test_publishers_are_followed_across_restarts(tmp_path: Path) -> None:
    author = Author.create({role: [KEY] for role in ROLES}, 1_800_000_000)
    author.publish({str(NAME): (SUBJECT, 3)}, 1_800_000_000)
    following = Following(tmp_path)
    following.follow("reg.example/team", unpacked(packed(author.current)), 1_800_000_000)

    again = Following(tmp_path)

    assert again.any
    assert again.states() == following.states()
    again.unfollow("reg.example/team")
    with pytest.raises(MissingError, match="no publisher"):
        again.unfollow("reg.example/team")


@pytest.mark.attack("A34")
def test_what_is_followed_begins_with_a_root_and_goes_on_from_it(tmp_path: Path) -> None:
    author = Author.create({role: [KEY] for role in ROLES}, 1_800_000_000)
    other = Author.create({role: [PrivateKey.generate()] for role in ROLES}, 1_800_000_000)
    following = Following(tmp_path)

    with pytest.raises(InvalidError, match=r"no 1.root.json"):
        following.follow("reg.example", {"timestamp.json": b"{}"}, 1_800_000_000)
    following.follow("reg.example", author.files, 1_800_000_000)
    before = following.states()["reg.example"]
    with pytest.raises(DeniedError, match="not signed"):
        following.follow("reg.example", other.files, 1_800_000_000)

    assert following.states()["reg.example"] == before


@pytest.mark.attack("A34")
def test_a_damaged_file_of_publishers_trusts_nobody(tmp_path: Path) -> None:
    (tmp_path / "followed.json").write_bytes(b'{"reg.example":{"root":"%%"}}')

    with pytest.raises(FailedError, match="cannot be read"):
        Following(tmp_path).states()
