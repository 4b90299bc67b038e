"""cosign's two forms of signatures: read into claims, written, and checked against a key.

``simplesigning``: the tag ``sha256-HEX.sig`` beside an image is a manifest whose layers are small
payloads that name repository and digest; the signature of each is an annotation. ``bundle``:
a referrer of the image with one sigstore bundle (v0.3), a DSSE envelope around an in-toto
statement. Bundles name no repository, so tare puts one into the statement's annotations.

Reading is numbered; a claim exists only when all of it holds:

1. document and blobs have the size that is announced, and the digest;
2. the document is of a form known here, with at most 50 signatures;
3. what is signed is read strictly, to the last key, and says what it is;
4. the digest it names is the digest that it is evidence for.

A claim is no proof: `Claim.signed_by` is. Certificates and transparency logs in the data are not
looked at: nothing of theirs counts without a root that somebody configured.

Not for: which key may sign what, and whether the repository is the right one (``policy``).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from tare.errors import InvalidError, TareError
from tare.model import strict_json
from tare.model.digest import Digest
from tare.model.oci import CONFIG_MAX, MANIFEST_MAX, MediaType
from tare.model.reference import Reference
from tare.model.strict_json import Fields, Json
from tare.trust.keys import PrivateKey, PublicKey, decoded

SIMPLE: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
BUNDLE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
_BUNDLES: Final = (BUNDLE, "application/vnd.dev.sigstore.bundle+json;version=0.3")
_COSIGN_ARTIFACT: Final = "application/vnd.dev.cosign.artifact.sig.v1+json"
_SIGNATURE: Final = "dev.cosignproject.cosign/signature"
_TYPE: Final = "cosign container image signature"
_STATEMENT: Final = "https://in-toto.io/Statement/v1"
_PREDICATE: Final = "https://sigstore.dev/cosign/sign/v1"
_PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
_EMPTY: Final = "application/vnd.oci.empty.v1+json"
REFERENCE: Final = "dev.tare.ref"
"""The annotation of a statement's subject that names the repository (and tag) it is signed as."""
SIGNATURES_MAX: Final = 50
ARTIFACTS_MAX: Final = 50
_PAYLOAD_MAX: Final = 1 << 20


class Form(StrEnum):
    """In which form a signature was found."""

    SIMPLE = "simplesigning"
    BUNDLE = "bundle"


@dataclass(frozen=True, slots=True)
class Artifact:
    """A document that accompanies an image, with the small blobs that it names.

    Nothing about it is verified: `claims` does that.
    """

    raw: bytes
    blobs: Mapping[Digest, bytes] = field(default_factory=dict)

    @property
    def digest(self) -> Digest:
        """What it is addressed by."""
        return Digest.of(self.raw)


@dataclass(frozen=True, slots=True)
class Claim:
    """A signature as it was found, and what it says: that *digest* is *name*. Not a proof."""

    form: Form
    digest: Digest
    name: Reference | None
    signed: bytes
    signature: bytes

    def signed_by(self, key: PublicKey) -> bool:
        """Whether *key* made it."""
        return key.verifies(self.signature, self.signed)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Something in the place of a signature that is none, and why."""

    why: str


def tag_of(digest: Digest, suffix: str = "sig") -> str:
    """The tag beside an image where cosign keeps what belongs to it."""
    return f"sha256-{digest.hex}.{suffix}"


# --- reading ----------------------------------------------------------------------------------


def claims(artifact: Artifact, subject: Digest) -> list[Claim | Unreadable]:
    """What *artifact* says of *subject*; what is malformed is said to be, never raised."""
    try:
        return list(_claims(artifact, subject))
    except (TareError, RecursionError) as error:
        return [Unreadable(str(error))]


def _claims(artifact: Artifact, subject: Digest) -> Iterator[Claim | Unreadable]:
    what = "the signature document"
    top = Fields(strict_json.decode(artifact.raw, what, limit=MANIFEST_MAX), what)
    if top.integer("schemaVersion") != 2:
        raise InvalidError(f"{what} is no manifest")
    if top.text("mediaType") not in ("", MediaType.OCI_MANIFEST):
        raise InvalidError(f"{what} is of the type {top.text('mediaType')[:80]!r}")
    about = top.fields("subject")
    if "digest" in about and about.text("digest") != str(subject):
        raise InvalidError(f"{what} is about another image: {about.text('digest')[:80]!a}")
    layers = top.each("layers", limit=SIGNATURES_MAX, required=True)
    for layer in layers:
        kind = layer.text("mediaType")
        try:
            if kind == SIMPLE:
                yield _simple(artifact, layer, subject)
            elif kind in _BUNDLES:
                yield _bundle(_blob(artifact, layer), subject)
            else:
                yield Unreadable(f"it is of the type {kind[:80]!r}, which is not read")
        except TareError as error:
            yield Unreadable(str(error))


def _blob(artifact: Artifact, layer: Fields) -> bytes:
    """Step 1: the blob that a descriptor leads to."""
    digest = Digest.parse(layer.text("digest", required=True))
    content = artifact.blobs.get(digest)
    if content is None:
        raise InvalidError(f"its content {digest} is missing")
    if len(content) != layer.integer("size", required=True, maximum=CONFIG_MAX):
        raise InvalidError(f"its content {digest} has another size than announced")
    if Digest.of(content) != digest:
        raise InvalidError(f"its content is not what it says it is: it is {Digest.of(content)}")
    return content


def _only(fields: Mapping[str, Json], what: str, *known: str) -> None:
    """Step 3: a key that is not known may mean what we do not know."""
    for key in fields:
        if key not in known:
            raise InvalidError(f"{what} has the key {key[:60]!a}, which is not known here")
    for key in known:
        if key not in fields:
            raise InvalidError(f"{what} lacks {key!r}")


def _object(value: Json, what: str) -> dict[str, Json]:
    if not isinstance(value, dict):
        raise InvalidError(f"{what} is not an object")
    return value


def _simple(artifact: Artifact, layer: Fields, subject: Digest) -> Claim:
    payload = _blob(artifact, layer)
    signature = decoded(layer.mapping("annotations").get(_SIGNATURE, ""), "its signature")
    name, digest = read_payload(payload)
    if digest != subject:
        raise InvalidError(f"it signs another image: {digest}")
    return Claim(Form.SIMPLE, digest, name, payload, signature)


def read_payload(payload: bytes) -> tuple[Reference, Digest]:
    """What a simplesigning payload names; InvalidError when it says anything else."""
    what = "its payload"
    top = strict_json.decode(payload, what, limit=_PAYLOAD_MAX)
    _only(top, what, "critical", "optional")
    if top["optional"] is not None:
        _object(top["optional"], f"{what}: optional")
    critical = _object(top["critical"], f"{what}: critical")
    _only(critical, f"{what}: critical", "identity", "image", "type")
    identity = _object(critical["identity"], f"{what}: identity")
    _only(identity, f"{what}: identity", "docker-reference")
    image = _object(critical["image"], f"{what}: image")
    _only(image, f"{what}: image", "docker-manifest-digest")
    if critical["type"] != _TYPE:
        raise InvalidError(f"{what} is not of the type {_TYPE!r}")
    named = Fields(identity, what).text("docker-reference", required=True)
    digest = Fields(image, what).text("docker-manifest-digest", required=True)
    return Reference.parse(named), Digest.parse(digest)


def _bundle(raw: bytes, subject: Digest) -> Claim:
    what = "its bundle"
    top = Fields(strict_json.decode(raw, what, limit=_PAYLOAD_MAX * 4), what)
    if top.text("mediaType") not in _BUNDLES:
        raise InvalidError(f"{what} is of the type {top.text('mediaType')[:80]!a}")
    if "messageSignature" in top:
        raise InvalidError(f"{what} signs a message, not a statement about an image")
    material = top.fields("verificationMaterial", required=True)
    if "publicKey" not in material:
        raise InvalidError(f"{what} is signed with a certificate, and no authority is configured")
    envelope = top.fields("dsseEnvelope", required=True)
    if envelope.text("payloadType") != _PAYLOAD_TYPE:
        raise InvalidError(f"{what} holds {envelope.text('payloadType')[:80]!a}")
    signatures = envelope.each("signatures", limit=1, required=True)
    if len(signatures) != 1:
        raise InvalidError(f"{what} has no signature")
    payload = decoded(envelope.text("payload", required=True), "its statement")
    signature = decoded(signatures[0].text("sig", required=True), "its signature")
    name, digest = read_statement(payload)
    if digest != subject:
        raise InvalidError(f"it signs another image: {digest}")
    return Claim(Form.BUNDLE, digest, name, authenticated(payload), signature)


def read_statement(payload: bytes) -> tuple[Reference | None, Digest]:
    """What a statement that an image was signed names; InvalidError when it says another thing."""
    what = "its statement"
    fields = strict_json.decode(payload, what, limit=_PAYLOAD_MAX)
    _only(fields, what, "_type", "subject", "predicateType", "predicate")
    top = Fields(fields, what)
    if top.text("_type") != _STATEMENT or top.text("predicateType") != _PREDICATE:
        raise InvalidError(f"{what} does not say that an image was signed")
    subjects = top.each("subject", limit=1, required=True)
    if len(subjects) != 1:
        raise InvalidError(f"{what} is about nothing")
    digests = subjects[0].mapping("digest")
    if set(digests) != {"sha256"}:
        raise InvalidError(f"{what} names its subject by other digests than sha256 alone")
    named = subjects[0].mapping("annotations").get(REFERENCE, "")
    return Reference.parse(named) if named else None, Digest.parse(f"sha256:{digests['sha256']}")


def authenticated(payload: bytes, kind: str = _PAYLOAD_TYPE) -> bytes:
    """What a DSSE signature is over: the pre-authentication encoding."""
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)


# --- writing ----------------------------------------------------------------------------------


def payload_of(name: Reference, digest: Digest) -> bytes:
    """The simplesigning payload that says *digest* is *name*; to the byte as cosign writes it."""
    return json.dumps(
        {
            "critical": {
                "identity": {"docker-reference": str(name)},
                "image": {"docker-manifest-digest": str(digest)},
                "type": _TYPE,
            },
            "optional": None,
        },
        separators=(",", ":"),
    ).encode()


def signed_simple(key: PrivateKey, names: Iterable[Reference], digest: Digest) -> Artifact:
    """The ``.sig`` document with a signature for each of *names*."""
    layers: list[Json] = []
    blobs: dict[Digest, bytes] = {}
    for name in names:
        payload = payload_of(name, digest)
        blobs[Digest.of(payload)] = payload
        signature = base64.b64encode(key.sign(payload)).decode("ascii")
        layers.append(
            {**_described(SIMPLE, payload), "annotations": {_SIGNATURE: signature}},
        )
    return _simple_document(layers, blobs)


def _simple_document(layers: Sequence[Json], blobs: dict[Digest, bytes]) -> Artifact:
    diff_ids: list[Json] = [layer["digest"] for layer in layers if isinstance(layer, dict)]
    never = "0001-01-01T00:00:00Z"
    config = json.dumps(
        {
            "architecture": "",
            "created": never,
            "history": [{"created": never} for _ in layers],
            "os": "",
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "config": {},
        },
        separators=(",", ":"),
    ).encode()
    raw = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": str(MediaType.OCI_MANIFEST),
            "config": _described(MediaType.OCI_CONFIG, config),
            "layers": layers,
        },
        separators=(",", ":"),
    ).encode()
    return Artifact(raw, {**blobs, Digest.of(config): config})


def joined(old: Artifact, new: Artifact) -> Artifact:
    """One ``.sig`` document with the signatures of both; those of *old* that are read stay."""
    layers: list[Json] = []
    blobs: dict[Digest, bytes] = {}
    seen: set[bytes] = set()
    for one in (old, new):
        top = strict_json.decode(one.raw, "the signature document", limit=MANIFEST_MAX)
        listed = top.get("layers")
        for layer in listed if isinstance(listed, list) else []:
            kept = strict_json.encode(layer)
            if isinstance(layer, dict) and layer.get("mediaType") == SIMPLE and kept not in seen:
                content = _blob(one, Fields(layer, "the signature document"))
                blobs[Digest.of(content)] = content
                layers.append(layer)
                seen.add(kept)
    if len(layers) > SIGNATURES_MAX:
        raise InvalidError(f"the image has {len(layers)} signatures; {SIGNATURES_MAX} are possible")
    return _simple_document(layers, blobs)


def signed_bundle(
    key: PrivateKey, name: Reference | None, digest: Digest, subject: Mapping[str, Json], now: str
) -> Artifact:
    """A bundle about *digest*, as a referrer of the document that *subject* describes."""
    statement = json.dumps(
        {
            "_type": _STATEMENT,
            "subject": [
                {
                    "digest": {"sha256": digest.hex},
                    "annotations": {} if name is None else {REFERENCE: str(name)},
                }
            ],
            "predicateType": _PREDICATE,
            "predicate": {},
        },
        separators=(",", ":"),
    ).encode()
    signature = key.sign(authenticated(statement))
    hint = base64.b64encode(bytes.fromhex(key.public.id)).decode("ascii")
    bundle = json.dumps(
        {
            "mediaType": BUNDLE,
            "verificationMaterial": {"publicKey": {"hint": hint}},
            "dsseEnvelope": {
                "payload": base64.b64encode(statement).decode("ascii"),
                "payloadType": _PAYLOAD_TYPE,
                "signatures": [{"sig": base64.b64encode(signature).decode("ascii")}],
            },
        },
        separators=(",", ":"),
    ).encode()
    raw = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": str(MediaType.OCI_MANIFEST),
            "artifactType": BUNDLE,
            "config": {**_described(_EMPTY, b"{}"), "artifactType": BUNDLE},
            "layers": [_described(BUNDLE, bundle)],
            "annotations": {
                "dev.sigstore.bundle.content": "dsse-envelope",
                "dev.sigstore.bundle.predicateType": _PREDICATE,
                "org.opencontainers.image.created": now,
            },
            "subject": dict(subject),
        },
        separators=(",", ":"),
    ).encode()
    return Artifact(raw, {Digest.of(bundle): bundle, Digest.of(b"{}"): b"{}"})


def _described(media_type: str, content: bytes) -> dict[str, Json]:
    return {
        "mediaType": str(media_type),
        "size": len(content),
        "digest": str(Digest.of(content)),
    }


# --- kept as one value ------------------------------------------------------------------------


def encode(artifacts: Iterable[Artifact]) -> Json:
    """*artifacts* as JSON, for a file or a request."""
    return [
        {
            "document": base64.b64encode(one.raw).decode("ascii"),
            "blobs": [base64.b64encode(blob).decode("ascii") for blob in one.blobs.values()],
        }
        for one in artifacts
    ]


def decode(values: Iterable[Fields]) -> tuple[Artifact, ...]:
    """What `encode` made; InvalidError for anything else."""
    found = []
    for value in values:
        raw = decoded(value.text("document", required=True), "a signature document")
        blobs = [decoded(text, "a signature's blob") for text in value.texts("blobs") or ()]
        found.append(Artifact(raw, {Digest.of(blob): blob for blob in blobs}))
    return tuple(found)


def is_simple(artifact: Artifact) -> bool:
    """Whether it is a ``.sig`` document, which has a tag, and no referrer."""
    what = "the signature document"
    return "subject" not in strict_json.decode(artifact.raw, what, limit=MANIFEST_MAX)
