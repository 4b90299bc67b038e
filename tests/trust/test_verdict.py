"""Verdicts: who may say what about which image, under which name, and until when."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tare.errors import InvalidError, MissingError, TareError
from tare.model import oci
from tare.model.digest import Digest
from tare.model.oci import Descriptor, MediaType, Platform
from tare.model.reference import Reference
from tare.model.strict_json import encode
from tare.trust import signature
from tare.trust.keys import PrivateKey
from tare.trust.policy import NOTHING, Policy, parse
from tare.trust.ring import Ring, Trusted
from tare.trust.signature import Artifact
from tare.trust.tuf import State, refreshed, started
from tare.trust.tuf_author import ROLES, Author
from tare.trust.verdict import Evidence, Standing, Verdict, chain, judge

NOW = 1_800_000_000
KEY, OTHER = PrivateKey.generate(), PrivateKey.generate()
NAME = Reference.parse("reg.example/team/app:1")
IMAGE = Digest.of(b"the configuration")
MANIFEST = oci.encode_manifest(
    Descriptor(media_type=MediaType.OCI_CONFIG, digest=IMAGE, size=17), ()
)
INDEX = oci.encode_index(
    (
        Descriptor(
            media_type=MediaType.OCI_MANIFEST,
            digest=Digest.of(MANIFEST),
            size=len(MANIFEST),
            platform=Platform("linux", "amd64"),
        ),
    )
)
DOCUMENTS = [("", MANIFEST), ("", INDEX)]
SUBJECTS = chain(DOCUMENTS, IMAGE)
TRUSTED = Trusted(KEY.public, "team", ("reg.example/team",))
RING = Ring((TRUSTED,))


def signed(
    *names: str, key: PrivateKey = KEY, digest: Digest | None = None
) -> dict[Digest, Sequence[Artifact]]:
    about = digest or SUBJECTS[0]
    given_ = [Reference.parse(name) for name in names or (str(NAME),)]
    return {about: [signature.signed_simple(key, given_, about)]}


def evidence(artifacts: Mapping[Digest, Sequence[Artifact]] | None = None) -> Evidence:
    return Evidence(IMAGE, SUBJECTS, artifacts or {})


def requiring(scope: str, **fields: object) -> Policy:
    data = base64.b64encode(KEY.public.pem()).decode()
    requirement = {"type": "sigstoreSigned", "keyData": data, **fields}
    transports = {"docker": {scope: [requirement]}}
    made: dict[str, Any] = {"default": [{"type": "insecureAcceptAnything"}]}
    return parse(json.dumps({**made, "transports": transports}).encode(), "policy.json", _no_key)


def _no_key(path: str) -> bytes:
    raise FileNotFoundError(path)


def verdict(
    found: Evidence,
    *,
    name: Reference = NAME,
    policy: Policy = NOTHING,
    ring: Ring = RING,
    now: int = NOW,
) -> Verdict:
    return judge(name, found, policy, ring, now)


def test_documents_that_lead_to_the_image_stand_for_it() -> None:
    assert (Digest.of(INDEX), Digest.of(MANIFEST)) == SUBJECTS


@pytest.mark.attack("A33")
def test_documents_of_another_image_do_not_stand_for_it() -> None:
    assert chain(DOCUMENTS, Digest.of(b"another")) == ()
    assert chain([("", INDEX)], IMAGE) == ()
    assert chain([("", b"{}"), ("", b"\xff"), ("x", MANIFEST)], IMAGE) == ()


@pytest.mark.parametrize("which", [0, 1], ids=["index", "manifest"])
def test_a_signature_of_the_index_or_of_the_manifest_counts(which: int) -> None:
    found = verdict(evidence(signed(digest=SUBJECTS[which])))

    assert (found.standing, found.key) == (Standing.VERIFIED, KEY.public.id)


@pytest.mark.attack("A33")
def test_an_unsigned_image_is_refused_with_a_remedy() -> None:
    found = verdict(evidence())

    assert found.standing is Standing.UNSIGNED
    assert not found.accepted
    assert "no signature" in str(found.error())
    assert "tare trust key add" in found.error().hint


@pytest.mark.attack("A33")
def test_a_signature_by_another_key_is_refused() -> None:
    found = verdict(evidence(signed(key=OTHER)))

    assert found.standing is Standing.REFUSED
    assert "may not sign" in str(found.error())


@pytest.mark.attack("A33")
def test_a_signed_image_under_another_name_is_refused() -> None:
    found = verdict(evidence(signed("reg.example/team/other:1")))

    assert found.standing is Standing.REFUSED
    assert "signed as reg.example/team/other:1, not as reg.example/team/app:1" in str(found.error())


@pytest.mark.attack("A33")
def test_a_revoked_or_expired_key_does_not_count() -> None:
    for changed, why in (
        (replace(TRUSTED, revoked=NOW - 9), "was revoked"),
        (replace(TRUSTED, not_after=NOW), "has expired"),
        (replace(TRUSTED, not_before=NOW + 1), "not valid yet"),
    ):
        found = verdict(evidence(signed()), ring=Ring((changed,)))

        assert not found.accepted
        assert why in str(found.error())


@pytest.mark.attack("A33")
def test_a_key_revoked_here_does_not_count_in_policy_json_either() -> None:
    ring = Ring((replace(TRUSTED, revoked=NOW - 9),))
    policy = requiring("reg.example", signedIdentity={"type": "matchRepository"})

    assert not verdict(evidence(signed()), policy=policy, ring=ring).accepted
    assert verdict(evidence(signed()), policy=policy).accepted


@pytest.mark.attack("A33")
def test_a_revoked_digest_is_refused_whoever_signed_it() -> None:
    for digest in (IMAGE, *SUBJECTS):
        ring = replace(RING, revoked=frozenset({digest}))

        assert verdict(evidence(signed()), ring=ring).standing is Standing.REFUSED


def test_a_signature_beside_broken_ones_counts() -> None:
    broken = Artifact(b"{")
    artifacts = {SUBJECTS[0]: [broken, *signed(key=OTHER)[SUBJECTS[0]], *signed()[SUBJECTS[0]]]}

    assert verdict(evidence(artifacts)).accepted


@pytest.mark.attack("A33")
def test_endless_signatures_are_not_read() -> None:
    many = [Artifact(b"{")] * 50

    assert not verdict(evidence({SUBJECTS[0]: [*many, *signed()[SUBJECTS[0]]]})).accepted


def test_the_policy_decides_where_it_has_a_scope() -> None:
    exact = requiring("reg.example/team")

    assert verdict(evidence(signed()), policy=exact, ring=Ring()).standing is Standing.VERIFIED
    tagless = verdict(evidence(signed("reg.example/team/app")), policy=exact)
    assert tagless.standing is Standing.REFUSED
    assert "policy.json: line 1" in tagless.rule


def test_every_requirement_of_a_scope_must_hold() -> None:
    rules = [{"type": "insecureAcceptAnything"}, {"type": "signedBy", "keyType": "GPGKeys"}]
    raw = {"default": [{"type": "reject"}], "transports": {"docker": {"reg.example": rules}}}
    policy = parse(json.dumps(raw).encode(), "policy.json", _no_key)

    assert verdict(evidence(signed()), policy=policy).standing is Standing.REFUSED


@pytest.mark.attack("A33")
def test_a_default_that_accepts_anything_verifies_nothing() -> None:
    raw = json.dumps({"default": [{"type": "insecureAcceptAnything"}]}).encode()
    policy = parse(raw, "policy.json", _no_key)

    found = verdict(evidence(), policy=policy, ring=Ring())

    assert found.standing is Standing.UNSIGNED


@pytest.mark.attack("A33")
def test_an_exempt_scope_is_no_answer_to_a_request_that_wants_verification() -> None:
    rules = {"reg.example": [{"type": "insecureAcceptAnything"}]}
    raw = {"default": [{"type": "reject"}], "transports": {"docker": rules}}
    policy = parse(json.dumps(raw).encode(), "policy.json", _no_key)

    found = verdict(evidence(), policy=policy)

    assert found.standing is Standing.EXEMPT
    assert found.accepted
    assert not found.strict().accepted


@pytest.mark.attack("A33")
def test_a_default_of_reject_refuses_what_nobody_signed() -> None:
    raw = json.dumps({"default": [{"type": "reject"}]}).encode()
    policy = parse(raw, "policy.json", _no_key)

    assert verdict(evidence(), policy=policy, ring=Ring()).standing is Standing.REFUSED


def test_a_pin_stands_in_for_a_signature() -> None:
    ring = Ring().with_pin(NAME, SUBJECTS[0])

    assert verdict(evidence(), ring=ring).standing is Standing.PINNED
    assert verdict(evidence(), ring=ring, name=Reference.parse("x:1")).standing is Standing.UNSIGNED


@pytest.mark.attack("A33")
def test_another_image_under_a_pinned_name_is_refused_though_it_is_signed() -> None:
    ring = RING.with_pin(NAME, Digest.of(b"the old one"))

    found = verdict(evidence(signed()), ring=ring)

    assert found.standing is Standing.REFUSED
    assert "tare trust pin --replace" in found.remedy


@pytest.mark.attack("A33")
def test_a_pin_does_not_undo_the_policy() -> None:
    ring = Ring().with_pin(NAME, SUBJECTS[0])

    assert not verdict(evidence(), policy=requiring("reg.example"), ring=ring).accepted


def test_what_is_made_here_is_accepted_unless_a_rule_names_it() -> None:
    made = Evidence(IMAGE, made=True)

    assert verdict(made, ring=Ring()).standing is Standing.MADE
    assert not verdict(made, policy=requiring("reg.example")).accepted


def test_bundles_without_a_name_count_only_where_that_was_allowed() -> None:
    subject: dict[str, Any] = {"mediaType": "x", "size": 1, "digest": str(SUBJECTS[0])}
    bundle = signature.signed_bundle(KEY, None, SUBJECTS[0], subject, "")
    found = evidence({SUBJECTS[0]: [bundle]})

    assert "names no repository" in str(verdict(found).error())
    assert verdict(found, ring=Ring((replace(TRUSTED, nameless=True),))).accepted


def test_a_vouch_is_told_from_a_publishers_signature() -> None:
    ring = Ring((replace(TRUSTED, vouches=True),))

    assert "vouched for by team" in verdict(evidence(signed()), ring=ring).reasons[0]


# --- the ring -------------------------------------------------------------------------------------


def test_a_ring_survives_being_kept() -> None:
    entry = replace(TRUSTED, not_after=NOW, revoked=3, nameless=True)
    ring = replace(
        Ring((entry,)).with_pin(NAME, SUBJECTS[0]), revoked=frozenset({Digest.of(b"bad")})
    )

    read = Ring.decode(encode(ring.encode()), "ring")

    assert (read, read.digest) == (ring, ring.digest)
    assert read.with_pin(NAME, None).pins == {}


def test_keys_are_found_by_name_and_by_id() -> None:
    ring = RING.with_key(Trusted(OTHER.public, "other", ("*",)))

    assert ring.find("team").key == KEY.public
    assert ring.find(OTHER.public.id[:12]).name == "other"
    with pytest.raises(MissingError, match="No such key"):
        ring.find("nobody")
    with pytest.raises(InvalidError, match="another key is called"):
        ring.with_key(Trusted(PrivateKey.generate().public, "team", ("*",)))
    with pytest.raises(InvalidError, match="needs a scope"):
        ring.with_key(Trusted(KEY.public, "team", ()))
    assert ring.without_key(ring.find("other")) == RING


@given(raw=st.binary(max_size=200) | st.just(encode(RING.encode())).map(lambda r: r[:-3]))
def test_a_damaged_ring_is_refused(raw: bytes) -> None:
    with pytest.raises(TareError):
        Ring.decode(raw, "ring")


@given(at=st.integers(0, 100_000), value=st.integers(0, 255))
def test_no_changed_byte_in_a_signature_makes_another_image_trusted(at: int, value: int) -> None:
    [artifact] = signed(digest=Digest.of(b"other"))[Digest.of(b"other")]
    raw = bytearray(artifact.raw)
    raw[at % len(raw)] = value
    changed = Artifact(bytes(raw), artifact.blobs)

    assert not verdict(evidence({SUBJECTS[0]: [changed]})).accepted


@pytest.mark.attack("A34")
def test_the_publisher_of_the_most_specific_scope_decides() -> None:
    def state(digest: Digest) -> State:
        made = Author.create({role: [PrivateKey.generate("ed25519")] for role in ROLES}, NOW)
        made.publish({str(NAME): (digest, 3)}, NOW)
        return refreshed(started(made.files["1.root.json"]), lambda n, _: made.files.get(n), NOW)

    wide, narrow = state(Digest.of(b"another")), state(SUBJECTS[0])

    for followed in (
        {"reg.example/team": wide, "reg.example/team/app": narrow},
        {"reg.example/team/app": narrow, "*": wide, "reg.example/team": wide},
    ):
        found = judge(NAME, evidence(), NOTHING, Ring(), NOW, followed=followed, arriving=True)
        assert found.standing is Standing.VERIFIED
        assert found.rule == "the publisher followed for reg.example/team/app"
