"""Notation's signatures: who signed, by which chain, and what its policy makes of that."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID as Purpose
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from tare.errors import DeniedError, InvalidError, TareError
from tare.model.digest import Digest
from tare.model.reference import Reference
from tare.trust import notation
from tare.trust.notation import ARTIFACT, JWS, Level, Policy, Rule

NOW = 1_800_000_000
MOMENT = datetime.fromtimestamp(NOW, UTC)
IMAGE, SIZE = Digest.of(b"the manifest"), 12
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
Json = dict[str, Any]


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


ROOT_KEY, MIDDLE_KEY, LEAF_KEY, THIEF_KEY = (new_key() for _ in range(4))


def name(common: str, **more: str) -> x509.Name:
    fields = {"C": "US", "ST": "WA", "O": "acme", **more, "CN": common}
    oids = {"C": NameOID.COUNTRY_NAME, "ST": NameOID.STATE_OR_PROVINCE_NAME,
            "O": NameOID.ORGANIZATION_NAME, "CN": NameOID.COMMON_NAME}  # fmt: skip
    return x509.Name([x509.NameAttribute(oids[key], value) for key, value in fields.items()])


def certificate(
    subject: str,
    key: Key,
    issuer: str,
    by: Key,
    *,
    ca: bool = False,
    path: int | None = None,
    purposes: tuple[x509.ObjectIdentifier, ...] = (Purpose.CODE_SIGNING,),
    days: tuple[int, int] = (-10, 300),
    usage: bool = True,
    signs: bool = True,
    critical: bool = True,
    strange: bool = False,
    **more: str,
) -> x509.Certificate:
    made = (
        x509.CertificateBuilder()
        .subject_name(name(subject, **more))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(MOMENT + timedelta(days=days[0]))
        .not_valid_after(MOMENT + timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=path), critical=True)
    )
    if usage:
        said = x509.KeyUsage(signs and not ca, False, False, False, False, ca, False, False, False)
        made = made.add_extension(said, critical=critical)
    if not ca:
        made = made.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    if strange:
        odd = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"x")
        made = made.add_extension(odd, critical=True)
    return made.sign(by, hashes.SHA256())


ROOT = certificate("root", ROOT_KEY, "root", ROOT_KEY, ca=True)
MIDDLE = certificate("middle", MIDDLE_KEY, "root", ROOT_KEY, ca=True, path=0)
LEAF = certificate("leaf", LEAF_KEY, "middle", MIDDLE_KEY)
CHAIN = (LEAF, MIDDLE, ROOT)
RULE = Rule("all", ("*",), Level.STRICT, ("ca:acme",), ({"C": "US", "ST": "WA", "O": "acme"},))
STORES = {"ca:acme": (ROOT,), "ca:other": ()}
PROTECTED: Json = {
    "alg": "ES256",
    "cty": "application/vnd.cncf.notary.payload.v1+json",
    "crit": ["io.cncf.notary.signingScheme"],
    "io.cncf.notary.signingScheme": "notary.x509",
    "io.cncf.notary.signingTime": "2027-01-15T08:00:00Z",
}
PAYLOAD: Json = {
    "targetArtifact": {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": str(IMAGE),
        "size": SIZE,
    }
}


def packed(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def raw_signature(key: Key, content: bytes) -> bytes:
    if isinstance(key, rsa.RSAPrivateKey):
        chosen = {2048: hashes.SHA256(), 3072: hashes.SHA384()}[key.key_size]
        return key.sign(
            content, padding.PSS(padding.MGF1(chosen), chosen.digest_size), chosen
        )  # fmt: skip
    width = (key.key_size + 7) // 8
    algorithm = {32: hashes.SHA256(), 48: hashes.SHA384(), 66: hashes.SHA512()}[width]
    r, s = decode_dss_signature(key.sign(content, ec.ECDSA(algorithm)))
    return r.to_bytes(width) + s.to_bytes(width)


def enveloped(
    *,
    key: Key = LEAF_KEY,
    chain: tuple[x509.Certificate, ...] = CHAIN,
    protected: Json | None = None,
    payload: Json | None = None,
    sign: Callable[[Key, bytes], bytes] = raw_signature,
    more: Json | None = None,
) -> bytes:
    parts = [packed(json.dumps(part).encode()) for part in (protected or PROTECTED, payload or PAYLOAD)]  # fmt: skip  # noqa: E501
    x5c = [base64.b64encode(one.public_bytes(Encoding.DER)).decode() for one in chain]
    signature = packed(sign(key, ".".join(parts).encode()))
    return json.dumps(
        {
            "protected": parts[0],
            "payload": parts[1],
            "header": {"x5c": x5c, "io.cncf.notary.signingAgent": "notation/1.3"},
            "signature": signature,
            **(more or {}),
        }
    ).encode()


def verified(raw: bytes, rule: Rule = RULE, now: int = NOW) -> str:
    return notation.verify(notation.parse(raw, IMAGE, SIZE), rule, STORES, now)


def with_leaf(**more: Any) -> bytes:
    leaf = certificate("leaf", LEAF_KEY, "middle", MIDDLE_KEY, **more)
    return enveloped(chain=(leaf, MIDDLE, ROOT))


def test_a_signature_of_the_trusted_chain_counts() -> None:
    assert "O=acme" in verified(enveloped())


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        (ec.generate_private_key(ec.SECP384R1()), "ES384"),
        (ec.generate_private_key(ec.SECP521R1()), "ES512"),
        (rsa.generate_private_key(65537, 2048), "PS256"),
        (rsa.generate_private_key(65537, 3072), "PS384"),
    ],
    ids=["ES384", "ES512", "PS256", "PS384"],
)
def test_every_algorithm_of_the_specification_is_read(key: Key, algorithm: str) -> None:
    leaf = certificate("leaf", key, "middle", MIDDLE_KEY)
    raw = enveloped(key=key, chain=(leaf, MIDDLE, ROOT), protected={**PROTECTED, "alg": algorithm})

    assert verified(raw)


def test_a_certificate_that_signed_itself_is_a_chain_of_one() -> None:
    alone = certificate("root", LEAF_KEY, "root", LEAF_KEY)
    signed = notation.parse(enveloped(chain=(alone,)), IMAGE, SIZE)

    assert notation.verify(signed, RULE, {"ca:acme": (alone,)}, NOW)


def test_any_certificate_of_the_chain_may_be_the_trusted_one() -> None:
    signed = notation.parse(enveloped(), IMAGE, SIZE)

    assert notation.verify(signed, RULE, {"ca:acme": (MIDDLE,)}, NOW)


def test_a_document_is_read_with_its_envelope() -> None:
    raw = enveloped()
    document = manifest(raw)

    found = notation.envelope(document, {Digest.of(raw): raw}, IMAGE, SIZE)
    assert found.digest == IMAGE


def manifest(raw: bytes, **more: Any) -> bytes:
    layer = {"mediaType": JWS, "digest": str(Digest.of(raw)), "size": len(raw)}
    fields = {"artifactType": ARTIFACT, "subject": {"digest": str(IMAGE)}, "layers": [layer]}
    return json.dumps({"schemaVersion": 2, **fields, **more}).encode()


@pytest.mark.attack("A33")
@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"artifactType": "text/plain"}, "of the type"),
        ({"subject": {"digest": str(Digest.of(b"x"))}}, "about another image"),
        ({"layers": []}, "only application/jose"),
        ({"layers": [{"mediaType": "application/cose"}]}, "'application/cose'"),
        ({"layers": [{"mediaType": JWS, "digest": str(Digest.of(b"x"))}]}, "missing"),
    ],
)
def test_documents_of_something_else_are_refused(more: Json, why: str) -> None:
    raw = enveloped()

    with pytest.raises(InvalidError, match=why):
        notation.envelope(manifest(raw, **more), {Digest.of(raw): raw}, IMAGE, SIZE)


# --- the negative vectors of signatures -----------------------------------------------------------


@pytest.mark.attack("A33")
def test_a_flipped_byte_of_the_payload_is_noticed() -> None:
    value = json.loads(enveloped())
    twin = {"targetArtifact": {**PAYLOAD["targetArtifact"], "mediaType": "x"}}
    value["payload"] = packed(json.dumps(twin).encode())

    with pytest.raises(DeniedError, match="not by the key"):
        verified(json.dumps(value).encode())


@pytest.mark.attack("A33")
@pytest.mark.parametrize(("field", "value"), [("digest", str(Digest.of(b"another"))), ("size", 13)])
def test_a_signature_of_another_document_is_refused(field: str, value: object) -> None:
    other = {"targetArtifact": {**PAYLOAD["targetArtifact"], field: value}}

    with pytest.raises(InvalidError, match=field):
        verified(enveloped(payload=other))


@pytest.mark.attack("A33")
def test_another_key_under_the_right_chain_is_refused() -> None:
    with pytest.raises(DeniedError, match="not by the key"):
        verified(enveloped(key=THIEF_KEY))


@pytest.mark.attack("A33")
def test_der_instead_of_r_and_s_is_refused() -> None:
    def der(key: Key, content: bytes) -> bytes:
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key.sign(content, ec.ECDSA(hashes.SHA256()))

    with pytest.raises(DeniedError, match="not by the key"):
        verified(enveloped(sign=der))
    with pytest.raises(DeniedError, match="not by the key"):
        verified(enveloped(sign=lambda _key, _content: bytes(64)))


@pytest.mark.attack("A33")
@pytest.mark.parametrize("algorithm", ["none", "HS256", "ES384", "PS256"])
def test_the_algorithm_is_that_of_the_key(algorithm: str) -> None:
    with pytest.raises(DeniedError, match="the key is for ES256"):
        verified(enveloped(protected={**PROTECTED, "alg": algorithm}))


@pytest.mark.attack("A33")
@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"crit": []}, "crit must be"),
        ({"crit": None}, "crit must be a list"),
        ({"crit": ["io.cncf.notary.signingScheme"] * 2}, "each name once"),
        ({"crit": ["io.cncf.notary.signingScheme", "b64"]}, "'b64'"),
        ({"io.cncf.notary.verificationPlugin": "x"}, "not understood here"),
        ({"io.cncf.notary.signingScheme": "notary.x509.signingAuthority"}, "only notary.x509"),
        ({"io.cncf.notary.expiry": "2099-01-01T00:00:00Z"}, "crit must be"),
        ({"io.cncf.notary.signingTime": "soon"}, "no time"),
        ({"cty": "text/plain"}, "cty"),
    ],
)
def test_headers_that_are_not_understood_are_refused(change: Json, why: str) -> None:
    with pytest.raises(InvalidError, match=why):
        verified(enveloped(protected={**PROTECTED, **change}))


@pytest.mark.attack("A33")
def test_more_fields_than_are_known_are_refused() -> None:
    with pytest.raises(InvalidError, match="not known"):
        verified(enveloped(more={"signatures": []}))
    with pytest.raises(InvalidError, match="other fields"):
        verified(enveloped(payload={**PAYLOAD, "more": 1}))


@pytest.mark.attack("A33")
def test_a_signature_expires_when_its_signer_says() -> None:
    critical = ["io.cncf.notary.signingScheme", "io.cncf.notary.expiry"]
    expiry = (MOMENT + timedelta(days=2)).strftime("%Y-%m-%dT%H:%M:%SZ")
    raw = enveloped(protected={**PROTECTED, "crit": critical, "io.cncf.notary.expiry": expiry})

    assert verified(raw)
    with pytest.raises(DeniedError, match="the signature has expired"):
        verified(raw, now=NOW + 2 * 86_400)


# --- chains ---------------------------------------------------------------------------------------


@pytest.mark.attack("A33")
@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"days": (-10, -1)}, "is not valid now"),
        ({"days": (1, 10)}, "is not valid now"),
        ({"usage": False}, "does not say what it is for"),
        ({"critical": False}, "is not critical"),
        ({"signs": False}, "not for signatures"),
        ({"ca": True}, "not for signatures"),
        ({"purposes": (Purpose.SERVER_AUTH,)}, "not for signing code"),
        ({"purposes": (Purpose.CODE_SIGNING, Purpose.ANY_EXTENDED_KEY_USAGE)}, "signing code"),
        ({"strange": True}, "critical extension unknown"),
        ({"O": "evil"}, "none of the trusted identities"),
    ],
)
def test_a_leaf_that_may_not_sign_is_refused(more: Json, why: str) -> None:
    with pytest.raises(DeniedError, match=why):
        verified(with_leaf(**more))


@pytest.mark.attack("A33")
@pytest.mark.parametrize(
    ("middle", "why"),
    [
        ({"ca": False}, "may not sign certificates"),
        ({"ca": True, "days": (-10, -1)}, "is not valid now"),
        ({"ca": True, "usage": False}, "does not say"),
    ],
)
def test_an_authority_that_is_none_is_refused(middle: Json, why: str) -> None:
    made = certificate("middle", MIDDLE_KEY, "root", ROOT_KEY, **middle)

    with pytest.raises(DeniedError, match=why):
        verified(enveloped(chain=(LEAF, made, ROOT)))


@pytest.mark.attack("A33")
def test_a_chain_longer_than_an_authority_allows_is_refused() -> None:
    low_key = new_key()
    low = certificate("low", low_key, "middle", MIDDLE_KEY, ca=True)
    leaf = certificate("leaf", LEAF_KEY, "low", low_key)

    with pytest.raises(DeniedError, match="longer than it allows"):
        verified(enveloped(chain=(leaf, low, MIDDLE, ROOT)))


@pytest.mark.attack("A33")
@pytest.mark.parametrize(
    "chain", [(LEAF, ROOT), (LEAF, MIDDLE), (LEAF,), (MIDDLE, LEAF, ROOT), (LEAF, ROOT, MIDDLE)]
)
def test_a_chain_with_a_gap_or_out_of_order_is_refused(
    chain: tuple[x509.Certificate, ...],
) -> None:
    with pytest.raises(DeniedError):
        verified(enveloped(chain=chain))


@pytest.mark.attack("A33")
def test_a_chain_of_the_same_names_by_other_keys_is_refused() -> None:
    root_key, middle_key = new_key(), new_key()
    root = certificate("root", root_key, "root", root_key, ca=True)
    middle = certificate("middle", middle_key, "root", root_key, ca=True)
    leaf = certificate("leaf", THIEF_KEY, "middle", middle_key)

    with pytest.raises(DeniedError, match=r"no certificate of .* is in ca:acme"):
        verified(enveloped(key=THIEF_KEY, chain=(leaf, middle, root)))
    with pytest.raises(DeniedError, match="not signed by the next"):
        verified(enveloped(key=THIEF_KEY, chain=(leaf, middle, ROOT)))


@pytest.mark.attack("A33")
def test_no_chain_and_an_endless_one_are_refused() -> None:
    for chain in ((), (LEAF,) * 11):
        with pytest.raises(InvalidError, match="certificates"):
            verified(enveloped(chain=chain))


@pytest.mark.attack("A33")
def test_a_store_the_rule_does_not_name_does_not_count() -> None:
    other = Rule("x", ("*",), Level.STRICT, ("ca:other", "signingAuthority:acme"), ())

    with pytest.raises(DeniedError, match="no certificate"):
        verified(enveloped(), other)


def test_stores_are_pem_or_der() -> None:
    assert notation.store(ROOT.public_bytes(Encoding.PEM) * 2, "x") == (ROOT, ROOT)
    assert notation.store(ROOT.public_bytes(Encoding.DER), "x") == (ROOT,)
    with pytest.raises(InvalidError, match=r"acme.pem cannot be read"):
        notation.store(b"no", "acme.pem")


# --- the policy -----------------------------------------------------------------------------------


def written(**change: object) -> Json:
    rule = {
        "name": "acme",
        "registryScopes": ["reg.example/team/app"],
        "signatureVerification": {"level": "strict"},
        "trustStores": ["ca:acme"],
        "trustedIdentities": ["x509.subject: C=US, ST=WA, O=acme\\, inc"],
    }
    return {key: value for key, value in {**rule, **change}.items() if value is not None}


def policy(*rules: Json, **top: object) -> Policy:
    value = {"version": "1.0", "trustPolicies": list(rules), **top}
    return Policy.parse(json.dumps(value).encode(), "trustpolicy.oci.json")


SKIPPED = {"level": "skip"}


def test_the_rule_of_a_repository_goes_before_the_general_one() -> None:
    rest = written(name="rest", registryScopes=["*"], signatureVerification=SKIPPED,
                   trustStores=None, trustedIdentities=None)  # fmt: skip
    found = policy(written(), rest)

    rule = found.find(Reference.parse("reg.example/team/app:1"))
    assert rule is not None
    assert rule.identities == ({"C": "US", "ST": "WA", "O": "acme, inc"},)
    rule = found.find(Reference.parse("reg.example/other:1"))
    assert rule is not None
    assert rule.level is Level.SKIP
    assert policy(written()).find(Reference.parse("reg.example/other:1")) is None


@pytest.mark.attack("A33")
@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"registryScopes": []}, "must name repositories"),
        ({"registryScopes": ["*", "reg.example/a"]}, "be the one"),
        ({"registryScopes": ["reg.example/a:1"]}, "no HOST/REPOSITORY"),
        ({"registryScopes": ["reg.example/*"]}, "reg.example"),
        ({"signatureVerification": {"level": "strickt"}}, "level is 'strickt'"),
        ({"signatureVerification": {"level": "strict", "override": {}}}, "override is not read"),
        ({"trustStores": []}, "must not be empty"),
        ({"trustStores": ["acme"]}, "no ca:NAME"),
        ({"trustStores": ["ca:../../etc"]}, "no ca:NAME"),
        ({"trustedIdentities": []}, "must not be empty"),
        ({"trustedIdentities": ["*", "x509.subject: C=US, ST=WA, O=a"]}, "the one"),
        ({"trustedIdentities": ["x509.subject: C=US"]}, "with C, ST and O"),
        ({"trustedIdentities": ["x509.subject: C=US, ST=WA, O=a, O=b"]}, "O=b"),
        ({"trustedIdentities": ["did:x: C=US, ST=WA, O=a"]}, "no x509.subject"),
        ({"trustedIdentitys": []}, "is not known here"),
        ({"signatureVerification": SKIPPED}, "mean nothing with skip"),
    ],
)
def test_a_policy_with_a_mistake_is_refused_by_name(change: Json, why: str) -> None:
    with pytest.raises(InvalidError, match=why) as caught:
        policy(written(**change))
    assert "trustpolicy.oci.json" in str(caught.value) or "reg.example" in str(caught.value)


def test_two_rules_for_one_repository_are_refused() -> None:
    with pytest.raises(InvalidError, match=r"the scope .* stands there twice"):
        policy(written(), written(name="b"))
    with pytest.raises(InvalidError, match="the name 'acme' stands there twice"):
        policy(written(), written(registryScopes=["*"]))
    with pytest.raises(InvalidError, match=r"not 1.0"):
        policy(version="2.0")


# --- garbage --------------------------------------------------------------------------------------

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


@pytest.mark.attack("A33")
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_garbage_is_taken_for_a_signature(data: st.DataObject) -> None:
    value = json.loads(enveloped())
    field = data.draw(st.sampled_from(["protected", "payload", "signature", "header"]))
    raw = data.draw(st.binary(max_size=80) | ANYTHING.map(lambda v: json.dumps(v).encode()))
    value[field] = data.draw(st.sampled_from([packed(raw), data.draw(ANYTHING)]))
    with pytest.raises(TareError):
        verified(json.dumps(value).encode())


@pytest.mark.attack("A33")
@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 2000), bit=st.integers(0, 7), which=st.integers(0, 2))
def test_no_changed_bit_of_a_certificate_helps(at: int, bit: int, which: int) -> None:
    value = json.loads(enveloped())
    der = bytearray(base64.b64decode(value["header"]["x5c"][which]))
    der[at % len(der)] ^= 1 << bit
    value["header"]["x5c"][which] = base64.b64encode(der).decode()
    try:
        verified(json.dumps(value).encode())
    except TareError:
        return
    # The bits that fill up the last byte of a signature are nobody's; all that is signed is equal.
    assert x509.load_der_x509_certificate(bytes(der)).tbs_certificate_bytes == (
        CHAIN[which].tbs_certificate_bytes
    )


@settings(max_examples=100, deadline=None)
@given(raw=st.binary(max_size=100) | ANYTHING.map(lambda v: json.dumps(v).encode()))
def test_garbage_is_no_policy(raw: bytes) -> None:
    with pytest.raises(TareError):
        Policy.parse(raw, "trustpolicy.oci.json")
