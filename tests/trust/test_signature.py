"""cosign's two forms: what is written is read, and what only resembles a signature is none."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tare.errors import TareError
from tare.model.digest import Digest
from tare.model.reference import Reference
from tare.model.strict_json import Fields, Json
from tare.trust import signature
from tare.trust.keys import PrivateKey
from tare.trust.signature import Artifact, Claim, Form, Unreadable, claims

KEY = PrivateKey.generate()
OTHER = PrivateKey.generate()
IMAGE = Digest.of(b"an image")
ANOTHER = Digest.of(b"another image")
NAME = Reference.parse("registry.example/team/app:1.2")
SUBJECT: dict[str, Json] = {
    "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "size": 8,
    "digest": str(IMAGE),
}
NOW = "2026-11-23T12:00:00Z"
ANNOTATION = "dev.cosignproject.cosign/signature"


def simple(name: Reference = NAME, digest: Digest = IMAGE, key: PrivateKey = KEY) -> Artifact:
    return signature.signed_simple(key, [name], digest)


def bundle(name: Reference | None = NAME, key: PrivateKey = KEY) -> Artifact:
    return signature.signed_bundle(key, name, IMAGE, SUBJECT, NOW)


def one(artifact: Artifact, subject: Digest = IMAGE) -> Claim:
    [found] = claims(artifact, subject)
    assert isinstance(found, Claim), found
    return found


def why(artifact: Artifact, subject: Digest = IMAGE) -> str:
    [found] = claims(artifact, subject)
    assert isinstance(found, Unreadable), found
    return found.why


def changed_by(change: Any, value: Any) -> Any:
    """*value* as *change* leaves it, or what *change* answers instead."""
    other = change(value)
    return value if other is None else other


def with_payload(change: Any, *, sign: bool = True) -> Artifact:
    """The ``.sig`` document whose payload *change* has changed, signed anew unless told not to."""
    artifact = simple()
    document = json.loads(artifact.raw)
    layer = document["layers"][0]
    payload = json.loads(artifact.blobs[Digest.parse(layer["digest"])])
    raw = json.dumps(changed_by(change, payload)).encode()
    layer["digest"], layer["size"] = str(Digest.of(raw)), len(raw)
    if sign:
        layer["annotations"][ANNOTATION] = base64.b64encode(KEY.sign(raw)).decode()
    return Artifact(json.dumps(document).encode(), {**artifact.blobs, Digest.of(raw): raw})


def with_bundle(change: Any) -> Artifact:
    artifact = bundle()
    document = json.loads(artifact.raw)
    layer = document["layers"][0]
    body = json.loads(artifact.blobs[Digest.parse(layer["digest"])])
    raw = json.dumps(changed_by(change, body)).encode()
    layer["digest"], layer["size"] = str(Digest.of(raw)), len(raw)
    return Artifact(json.dumps(document).encode(), {**artifact.blobs, Digest.of(raw): raw})


def with_statement(change: Any) -> Artifact:
    def changed(body: Any) -> None:
        envelope = body["dsseEnvelope"]
        statement = json.loads(base64.b64decode(envelope["payload"]))
        raw = json.dumps(changed_by(change, statement)).encode()
        envelope["payload"] = base64.b64encode(raw).decode()
        signed = KEY.sign(signature.authenticated(raw))
        envelope["signatures"][0]["sig"] = base64.b64encode(signed).decode()

    return with_bundle(changed)


def test_the_payload_is_cosigns_to_the_byte() -> None:
    name = Reference.parse("127.0.0.1:5000/a/b")

    assert signature.payload_of(name, IMAGE) == (
        b'{"critical":{"identity":{"docker-reference":"127.0.0.1:5000/a/b"},'
        b'"image":{"docker-manifest-digest":"' + str(IMAGE).encode() + b'"},'
        b'"type":"cosign container image signature"},"optional":null}'
    )


@pytest.mark.parametrize(("made", "form"), [(simple(), Form.SIMPLE), (bundle(), Form.BUNDLE)])
def test_what_is_written_is_read(made: Artifact, form: Form) -> None:
    claim = one(made)

    assert (claim.form, claim.digest, claim.name) == (form, IMAGE, NAME)
    assert claim.signed_by(KEY.public)
    assert not claim.signed_by(OTHER.public)


def test_a_bundle_of_cosigns_own_names_no_repository() -> None:
    assert one(bundle(None)).name is None


def test_artifacts_survive_being_kept() -> None:
    kept = signature.encode([simple(), bundle()])
    read = signature.decode(Fields({"all": kept}, "kept").each("all", limit=9))

    assert len(read) == 2
    assert all(isinstance(found, Claim) for a in read for found in claims(a, IMAGE))


def test_signatures_of_several_stay_together() -> None:
    both = signature.joined(simple(key=OTHER), simple())

    found = claims(both, IMAGE)

    assert [type(f) for f in found] == [Claim, Claim]
    assert sum(isinstance(f, Claim) and f.signed_by(KEY.public) for f in found) == 1
    assert signature.joined(both, both).raw == both.raw


# --- the negative vectors -----------------------------------------------------------------------


@pytest.mark.attack("A33")
def test_a_flipped_byte_in_the_payload_shows() -> None:
    artifact = simple()
    [layer] = json.loads(artifact.raw)["layers"]
    digest = Digest.parse(layer["digest"])
    flipped = bytearray(artifact.blobs[digest])
    flipped[30] ^= 1
    changed = replace(artifact, blobs={**artifact.blobs, digest: bytes(flipped)})

    assert "not what it says it is" in why(changed)


@pytest.mark.attack("A33")
def test_a_payload_that_was_replaced_with_its_digest_is_not_signed() -> None:
    def other(payload: Any) -> None:
        payload["critical"]["identity"]["docker-reference"] = "registry.example/team/other"

    assert not one(with_payload(other, sign=False)).signed_by(KEY.public)


@pytest.mark.attack("A33")
def test_a_signature_of_another_image_is_no_evidence() -> None:
    assert "another image" in why(simple(digest=ANOTHER))
    assert "another image" in why(bundle(), ANOTHER)


@pytest.mark.attack("A33")
def test_a_bundle_about_one_image_that_refers_to_another_is_no_evidence() -> None:
    document = json.loads(bundle().raw)
    document["subject"]["digest"] = str(ANOTHER)

    assert "another image" in why(Artifact(json.dumps(document).encode(), bundle().blobs))


@pytest.mark.attack("A33")
@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.update(more=1),
        lambda p: p["critical"].update(more=1),
        lambda p: p["critical"]["identity"].update(also="registry.example/x"),
        lambda p: p["critical"]["image"].update({"Docker-manifest-digest": str(ANOTHER)}),
        lambda p: p["critical"].update(type="atomic container signature"),
        lambda p: p["critical"].pop("identity") and None,
        lambda p: p.pop("optional") and None,
        lambda p: p.update(optional=[]),
        lambda p: p["critical"]["image"].update({"docker-manifest-digest": "sha512:00"}),
        lambda p: p["critical"]["identity"].update({"docker-reference": ""}),
        lambda p: p["critical"]["identity"].update({"docker-reference": "Not A Name"}),
        lambda _: [],
        lambda _: 7,
    ],
)
def test_a_payload_that_says_more_or_less_proves_nothing(change: Any) -> None:
    assert why(with_payload(change))


@pytest.mark.attack("A33")
def test_a_payload_with_a_key_twice_proves_nothing() -> None:
    raw = signature.payload_of(NAME, IMAGE).replace(
        b'"type"', b'"type":"cosign container image signature","type"'
    )
    document = json.loads(simple().raw)
    layer = document["layers"][0]
    layer.update(digest=str(Digest.of(raw)), size=len(raw))
    layer["annotations"][ANNOTATION] = base64.b64encode(KEY.sign(raw)).decode()

    assert "twice" in why(Artifact(json.dumps(document).encode(), {Digest.of(raw): raw}))


@pytest.mark.attack("A33")
@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.update(predicateType="https://slsa.dev/provenance/v1"),
        lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"),
        lambda s: s["subject"].append(s["subject"][0]),
        lambda s: s["subject"].clear(),
        lambda s: s["subject"][0]["digest"].update(sha512="00"),
        lambda s: s["subject"][0].update(digest={"sha512": "00"}),
        lambda s: s["subject"][0]["digest"].update(sha256="00"),
        lambda s: s.update(more=1),
        lambda _: [],
    ],
)
def test_a_statement_that_says_another_thing_proves_nothing(change: Any) -> None:
    assert why(with_statement(change))


@pytest.mark.attack("A33")
@pytest.mark.parametrize(
    "change",
    [
        lambda b: b.update(mediaType="application/vnd.dev.sigstore.bundle.v0.9+json"),
        lambda b: b["verificationMaterial"].update(publicKey=None, certificate={"rawBytes": ""}),
        lambda b: b["dsseEnvelope"].update(payloadType="text/plain"),
        lambda b: b["dsseEnvelope"]["signatures"].append(b["dsseEnvelope"]["signatures"][0]),
        lambda b: b["dsseEnvelope"].update(signatures=[]),
        lambda b: b.update(messageSignature={"signature": "AAAA"}),
        lambda b: b.pop("dsseEnvelope") and None,
        lambda _: 7,
    ],
)
def test_a_bundle_of_another_kind_proves_nothing(change: Any) -> None:
    assert why(with_bundle(change))


@pytest.mark.attack("A33")
def test_the_key_comes_from_nowhere_but_the_caller() -> None:
    def named(body: Any) -> None:
        hint = base64.b64encode(bytes.fromhex(OTHER.public.id)).decode()
        body["verificationMaterial"]["publicKey"]["hint"] = hint

    claim = one(with_bundle(named))

    assert claim.signed_by(KEY.public)
    assert not claim.signed_by(OTHER.public)


@pytest.mark.attack("A33")
def test_fifty_signatures_are_read_and_not_one_more() -> None:
    document = json.loads(simple().raw)
    document["layers"] = document["layers"] * 51

    assert "at most 50" in why(Artifact(json.dumps(document).encode(), simple().blobs))


def test_one_broken_signature_does_not_hide_the_good_one() -> None:
    document = json.loads(simple().raw)
    broken = {**document["layers"][0], "annotations": {ANNOTATION: "%%%"}}
    document["layers"].insert(0, broken)

    first, second = claims(Artifact(json.dumps(document).encode(), simple().blobs), IMAGE)

    assert isinstance(first, Unreadable)
    assert isinstance(second, Claim)


# --- fuzzed ---------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner),
    max_leaves=12,
)


@given(raw=st.binary(max_size=300) | VALUES.map(lambda v: json.dumps(v).encode()))
def test_any_document_is_read_or_said_to_be_unreadable(raw: bytes) -> None:
    for found in claims(Artifact(raw), IMAGE):
        assert isinstance(found, Claim | Unreadable)
    for read in (signature.read_payload, signature.read_statement):
        with pytest.raises(TareError):
            read(raw)


@given(at=st.integers(0, 100_000), value=st.integers(0, 255), which=st.booleans())
def test_no_changed_byte_leaves_a_proof_of_something_else(at: int, value: int, which: bool) -> None:
    artifact = simple() if which else bundle()
    raw = bytearray(artifact.raw)
    raw[at % len(raw)] = value

    for found in claims(Artifact(bytes(raw), artifact.blobs), IMAGE):
        if isinstance(found, Claim) and found.signed_by(KEY.public):
            assert (found.digest, found.name) == (IMAGE, NAME)


@given(change=VALUES, key=st.sampled_from(["critical", "optional"]))
def test_payloads_with_foreign_values_are_refused_or_mean_the_same(change: Json, key: str) -> None:
    def changed(payload: Any) -> None:
        payload[key] = change

    for found in claims(with_payload(changed), IMAGE):
        if isinstance(found, Claim):
            assert (found.digest, found.name) == (IMAGE, NAME)
