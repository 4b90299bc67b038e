"""Notation's signatures (Notary Project 1.x, JWS), read and verified against a trust policy.

A referrer of the image has one layer, a JWS in flattened JSON: payload, protected header, and, not
signed, the chain of certificates. Reading and verifying are numbered:

1. everything is bounded, base64url as RFC 7515 writes it, and JSON that reads in one way only;
2. the protected header names what is known here; any other critical field refuses it;
3. the payload names the digest, size and type of the document that it is evidence for;
4. the algorithm follows from the leaf's key, and the header must say the same; the leaf's key made
   the signature;
5. the chain is whole, from the leaf to a certificate that signed itself, each signed by the next,
   each allowed to do what it does, each valid now;
6. a certificate of the chain is in a trust store that the policy names, byte by byte;
7. the leaf's subject has all that one of the trusted identities names;
8. the signature's own expiry has not passed.

Times come from the caller's clock: timestamps by RFC 3161 are not read, so a certificate that has
expired proves nothing more. Revocation lists are not fetched: nothing here asks a network; revoke
the digest (``tare trust revoke``), or take the certificate out of the store. COSE and signing
authorities are not read, and are said not to be.

Not for: files of policies and stores (``engine``), repositories' names: notation signs digests, so
its policy decides by scope who may sign what (`Policy.find`).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tare.errors import DeniedError, InvalidError
from tare.model import strict_json
from tare.model.digest import Digest
from tare.model.oci import MANIFEST_MAX
from tare.model.reference import Reference
from tare.model.strict_json import Fields

ARTIFACT: Final = "application/vnd.cncf.notary.signature"
JWS: Final = "application/jose+json"
ENVELOPE_MAX: Final = 4 << 20
POLICY_MAX: Final = 1 << 20
_PAYLOAD_TYPE: Final = "application/vnd.cncf.notary.payload.v1+json"
_SCHEME: Final = "io.cncf.notary.signingScheme"
_EXPIRY: Final = "io.cncf.notary.expiry"
_TIME_FIELD: Final = "io.cncf.notary.signingTime"
_KNOWN: Final = frozenset(("alg", "cty", "crit", _SCHEME, _EXPIRY, _TIME_FIELD))
_CHAIN_MAX: Final = 10
_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]+")
_TIME: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d{1,9})?(Z|[+-]\d\d:\d\d)")
_EC: Final[dict[str, tuple[str, type[hashes.HashAlgorithm], int]]] = {
    "secp256r1": ("ES256", hashes.SHA256, 32),
    "secp384r1": ("ES384", hashes.SHA384, 48),
    "secp521r1": ("ES512", hashes.SHA512, 66),
}
_RSA: Final[dict[int, tuple[str, type[hashes.HashAlgorithm]]]] = {
    2048: ("PS256", hashes.SHA256),
    3072: ("PS384", hashes.SHA384),
    4096: ("PS512", hashes.SHA512),
}
_WEAK: Final = (hashes.MD5, hashes.SHA1)
_UNREADABLE: Final = (
    ValueError, TypeError, OverflowError, UnsupportedAlgorithm, x509.DuplicateExtension,
    x509.InvalidVersion, x509.UnsupportedGeneralNameType,
)  # fmt: skip
_SUBJECT: Final = {
    "C": NameOID.COUNTRY_NAME,
    "ST": NameOID.STATE_OR_PROVINCE_NAME,
    "S": NameOID.STATE_OR_PROVINCE_NAME,
    "L": NameOID.LOCALITY_NAME,
    "O": NameOID.ORGANIZATION_NAME,
    "OU": NameOID.ORGANIZATIONAL_UNIT_NAME,
    "CN": NameOID.COMMON_NAME,
    "STREET": NameOID.STREET_ADDRESS,
}


# --- the envelope -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Signed:
    """A signature as it was found, about *digest*. Not a proof: `verify` is."""

    digest: Digest
    algorithm: str
    chain: tuple[x509.Certificate, ...]
    content: bytes
    signature: bytes
    expires: int
    """When the signer wants it to count no more, in seconds since 1970; 0: never."""

    @property
    def subject(self) -> str:
        """Who signed, by the leaf's own word."""
        return self.chain[0].subject.rfc4514_string()


def envelope(manifest: bytes, blobs: Mapping[Digest, bytes], subject: Digest, size: int) -> Signed:
    """Read the signature document *manifest* about *subject*, *size* bytes; InvalidError."""
    what = "notation's document"
    top = Fields(strict_json.decode(manifest, what, limit=MANIFEST_MAX), what)
    kind = top.text("artifactType") or top.fields("config", required=True).text("mediaType")
    if kind != ARTIFACT:
        raise InvalidError(f"{what} is of the type {kind[:80]!a}")
    if top.fields("subject", required=True).text("digest") != str(subject):
        raise InvalidError(f"{what} is about another image")
    layers = top.each("layers", limit=1, required=True)
    if not layers or layers[0].text("mediaType") != JWS:
        found = layers[0].text("mediaType") if layers else "nothing"
        raise InvalidError(f"{what} has {found[:80]!a}: only {JWS} is read")
    digest = Digest.parse(layers[0].text("digest", required=True))
    raw = blobs.get(digest)
    if raw is None or Digest.of(raw) != digest:
        raise InvalidError(f"the envelope of {what} is missing, or is another")
    return parse(raw, subject, size)


def parse(raw: bytes, subject: Digest, size: int) -> Signed:
    """Read an envelope (steps 1 to 3); InvalidError says what is wrong with it."""
    what = "the envelope"
    top = strict_json.decode(raw, what, limit=ENVELOPE_MAX)
    if set(top) - {"payload", "protected", "header", "signature"}:
        raise InvalidError(f"{what} has fields that are not known")
    fields = Fields(top, what)
    parts = {
        name: fields.text(name, required=True) for name in ("protected", "payload", "signature")
    }
    algorithm, expires = _protected(_unpacked(parts["protected"], "the protected header"))
    _payload(_unpacked(parts["payload"], "the payload"), subject, size)
    header = fields.fields("header", required=True)
    chain = header.texts("x5c") or ()
    if not 1 <= len(chain) <= _CHAIN_MAX:
        raise InvalidError(f"{what} has {len(chain)} certificates; 1 to {_CHAIN_MAX} are possible")
    return Signed(
        subject,
        algorithm,
        tuple(_certificate(text) for text in chain),
        f"{parts['protected']}.{parts['payload']}".encode(),
        _unpacked(parts["signature"], "the signature"),
        expires,
    )


def _protected(raw: bytes) -> tuple[str, int]:
    what = "the protected header"
    value = strict_json.decode(raw, what, limit=1 << 16)
    fields = Fields(value, what)
    critical = fields.texts("crit") or ()
    if not isinstance(value.get("crit"), list) or len(set(critical)) != len(critical):
        fields.refuse("crit", "must be a list, each name once")
    unknown = sorted({*value, *critical} - _KNOWN)
    if unknown:
        # Plugins and signing authorities stand among these: who cannot do it must not accept.
        fields.refuse(ascii(unknown[0][:80]), "is not understood here, so it cannot be verified")
    if fields.text("cty", required=True) != _PAYLOAD_TYPE:
        fields.refuse("cty", f"is {fields.text('cty')[:80]!a}")
    if fields.text(_SCHEME, required=True) != "notary.x509":
        fields.refuse(_SCHEME, f"is {fields.text(_SCHEME)[:80]!a}: only notary.x509 is read")
    wanted = {_SCHEME} | ({_EXPIRY} if _EXPIRY in fields else set())
    if set(critical) != wanted:
        fields.refuse("crit", f"must be {', '.join(sorted(wanted))}")
    _moment(fields, _TIME_FIELD)
    return fields.text("alg", required=True), _moment(fields, _EXPIRY) if _EXPIRY in fields else 0


def _payload(raw: bytes, subject: Digest, size: int) -> None:
    what = "the payload"
    value = strict_json.decode(raw, what, limit=1 << 20)
    if set(value) != {"targetArtifact"}:
        raise InvalidError(f"{what} has other fields than targetArtifact")
    target = Fields(value, what).fields("targetArtifact", required=True)
    if target.text("digest", required=True) != str(subject):
        target.refuse("digest", f"is {target.text('digest')[:80]!a}, not that of the image")
    if target.integer("size", required=True) != size:
        target.refuse("size", f"is not the {size} bytes of the image's document")
    target.text("mediaType", required=True)


def _moment(fields: Fields, name: str) -> int:
    match = _TIME.fullmatch(fields.text(name, required=True))
    try:
        if match is None:
            raise ValueError
        return int(datetime.fromisoformat(match[1] + match[2].replace("Z", "+00:00")).timestamp())
    except (ValueError, OverflowError):
        fields.refuse(name, "is no time (RFC 3339)")


def _unpacked(text: str, what: str) -> bytes:
    if not _BASE64URL.fullmatch(text):
        raise InvalidError(f"{what} is not base64url")
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        raise InvalidError(f"{what} is not base64url") from None
    if base64.urlsafe_b64encode(raw).rstrip(b"=") != text.encode():
        raise InvalidError(f"{what} is base64url with bits to spare")
    return raw


def _certificate(text: str) -> x509.Certificate:
    try:
        found = x509.load_der_x509_certificate(base64.b64decode(text, validate=True))
        # Parts are read when they are asked for: ask here, where what is broken can be said.
        _ = (found.subject.rfc4514_string(), found.issuer, found.extensions, found.serial_number)
        _ = (found.not_valid_before_utc, found.not_valid_after_utc, found.version)
        _ = found.signature_algorithm_oid
    except _UNREADABLE as error:
        raise InvalidError(f"a certificate cannot be read: {str(error)[:200]}") from None
    return found


# --- the policy ---------------------------------------------------------------------------------


class Level(StrEnum):
    """How strictly a policy wants signatures verified."""

    STRICT = "strict"
    PERMISSIVE = "permissive"
    AUDIT = "audit"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Rule:
    """Who may sign what lies in some repositories."""

    name: str
    scopes: tuple[str, ...]
    level: Level
    stores: tuple[str, ...]
    """Names of trust stores, as ``ca:acme``."""
    identities: tuple[Mapping[str, str], ...]
    """Subjects that may sign; none at all: whoever the stores vouch for."""


@dataclass(frozen=True, slots=True)
class Policy:
    """notation's ``trustpolicy.oci.json``."""

    rules: tuple[Rule, ...]

    def find(self, name: Reference) -> Rule | None:
        """The rule for a repository: the one that names it, else that of ``*``."""
        for wanted in (name.name, "*"):
            for rule in self.rules:
                if wanted in rule.scopes:
                    return rule
        return None

    @classmethod
    def parse(cls, raw: bytes, path: str) -> Policy:
        """Read the file; InvalidError names what is wrong in *path*."""
        value = strict_json.decode(raw, path, limit=POLICY_MAX)
        top = Fields(value, path)
        _only(top, value, "version", "trustPolicies")
        if top.text("version", required=True) != "1.0":
            top.refuse("version", f"is {top.text('version')[:40]!a}, not 1.0")
        rules = tuple(
            _rule(fields, item)
            for fields, item in zip(
                top.each("trustPolicies", limit=1000, required=True),
                _items(value["trustPolicies"]),
                strict=True,
            )
        )
        scopes = [scope for rule in rules for scope in rule.scopes]
        for kind, listed in (("name", [rule.name for rule in rules]), ("scope", scopes)):
            for one in listed:
                if listed.count(one) > 1:
                    raise InvalidError(f"{path}: the {kind} {one[:200]!a} stands there twice")
        return cls(rules)


def _items(value: strict_json.Json) -> list[Mapping[str, strict_json.Json]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _only(fields: Fields, value: Mapping[str, strict_json.Json], *known: str) -> None:
    for key in value:
        if key not in known:
            fields.refuse(ascii(key[:80]), f"is not known here; there are: {', '.join(known)}")


def _rule(fields: Fields, value: Mapping[str, strict_json.Json]) -> Rule:
    _only(fields, value, "name", "registryScopes", "signatureVerification", "trustStores",
          "trustedIdentities")  # fmt: skip
    scopes = fields.texts("registryScopes") or ()
    if not scopes or ("*" in scopes and len(scopes) > 1):
        fields.refuse("registryScopes", "must name repositories, or be the one *")
    for scope in scopes:
        if scope != "*" and Reference.parse(scope).name != scope:
            fields.refuse("registryScopes", f"has {scope[:200]!a}, which is no HOST/REPOSITORY")
    level = _level(fields)
    stores = fields.texts("trustStores") or ()
    identities = fields.texts("trustedIdentities") or ()
    if level is Level.SKIP:
        if stores or identities:
            fields.refuse("trustStores", "and trustedIdentities mean nothing with skip")
        return Rule(fields.text("name", required=True), scopes, level, (), ())
    for store in stores:
        kind, _, name = store.partition(":")
        if kind not in ("ca", "signingAuthority", "tsa") or not re.fullmatch(r"[\w.-]{1,80}", name):
            fields.refuse("trustStores", f"has {store[:80]!a}, which is no ca:NAME")
    if not stores or not identities:
        fields.refuse("trustStores", "and trustedIdentities must not be empty")
    if "*" in identities and len(identities) > 1:
        fields.refuse("trustedIdentities", "must be subjects, or the one *")
    wanted = [_identity(fields, text) for text in identities if text != "*"]
    return Rule(fields.text("name", required=True), scopes, level, stores, tuple(wanted))


def _level(fields: Fields) -> Level:
    asked = fields.fields("signatureVerification", required=True)
    if "override" in asked:
        asked.refuse("override", "is not read: say strict, permissive, audit or skip")
    if asked.text("verifyTimestamp") not in ("", "always", "afterCertExpiry"):
        asked.refuse("verifyTimestamp", "must be always or afterCertExpiry")
    try:
        return Level(asked.text("level", required=True))
    except ValueError:
        asked.refuse("level", f"is {asked.text('level')[:40]!a}")


def _identity(fields: Fields, text: str) -> Mapping[str, str]:
    """``x509.subject: C=US, ST=WA, O=acme``: no value twice, and the three must be there."""
    kind, _, subject = text.partition(":")
    if kind != "x509.subject":
        fields.refuse("trustedIdentities", f"has {text[:200]!a}, which is no x509.subject")
    found: dict[str, str] = {}
    for part in re.split(r"(?<!\\),", subject):
        key, equals, value = part.strip().partition("=")
        key = "ST" if key == "S" else key
        if not equals or key not in _SUBJECT or not value.strip() or key in found:
            fields.refuse("trustedIdentities", f"has {text[:200]!a}: {part.strip()[:80]!a}")
        found[key] = re.sub(r"\\(.)", r"\1", value.strip())
    if not {"C", "ST", "O"} <= set(found):
        fields.refuse("trustedIdentities", f"has {text[:200]!a}: no subject with C, ST and O")
    return found


# --- verifying ----------------------------------------------------------------------------------


def store(raw: bytes, what: str) -> tuple[x509.Certificate, ...]:
    """The certificates of a trust store's file, PEM or DER; InvalidError."""
    try:
        if b"-----BEGIN" in raw:
            return tuple(x509.load_pem_x509_certificates(raw))
        return (x509.load_der_x509_certificate(raw),)
    except (ValueError, TypeError) as error:
        raise InvalidError(f"{what} cannot be read: {str(error)[:200]}") from None


def verify(
    signed: Signed, rule: Rule, stores: Mapping[str, Sequence[x509.Certificate]], now: int
) -> str:
    """See that *signed* counts by *rule* (steps 4 to 8): who signed, or DeniedError says why not.

    The level is the caller's: here everything is checked.
    """
    algorithm = _key_algorithm(signed.chain[0])
    if signed.algorithm != algorithm:
        raise DeniedError(f"the header says {signed.algorithm[:20]!a}, the key is for {algorithm}")
    if not _signature_holds(signed):
        raise DeniedError("the signature is not by the key of its certificate")
    _check_chain(signed.chain, datetime.fromtimestamp(now, UTC))
    roots = {
        certificate.fingerprint(hashes.SHA256())
        for name in rule.stores
        if name.startswith("ca:")
        for certificate in stores.get(name, ())
    }
    if not any(one.fingerprint(hashes.SHA256()) in roots for one in signed.chain):
        raise DeniedError(
            f"no certificate of {signed.subject[:200]} is in {', '.join(rule.stores)}"
        )
    if rule.identities and not any(_is(signed.chain[0], wanted) for wanted in rule.identities):
        raise DeniedError(f"{signed.subject[:200]} is none of the trusted identities")
    if signed.expires and now >= signed.expires:
        raise DeniedError("the signature has expired")
    return signed.subject


def _key_algorithm(certificate: x509.Certificate) -> str:
    match _public_key(certificate):
        case ec.EllipticCurvePublicKey() as key if key.curve.name in _EC:
            return _EC[key.curve.name][0]
        case rsa.RSAPublicKey() as key if key.key_size in _RSA:
            return _RSA[key.key_size][0]
    raise DeniedError("the key of the certificate is of a kind that notation does not have")


def _public_key(certificate: x509.Certificate) -> object:
    try:
        return certificate.public_key()
    except _UNREADABLE:
        raise DeniedError("the key of a certificate cannot be read") from None


def _signature_holds(signed: Signed) -> bool:
    key, signature = signed.chain[0].public_key(), signed.signature
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            _, algorithm, width = _EC[key.curve.name]
            if len(signature) != 2 * width:
                return False  # r and s as they are, not DER
            r, s = (int.from_bytes(part) for part in (signature[:width], signature[width:]))
            if not r or not s:
                return False
            key.verify(encode_dss_signature(r, s), signed.content, ec.ECDSA(algorithm()))
            return True
        if isinstance(key, rsa.RSAPublicKey):
            chosen = _RSA[key.key_size][1]()
            pss = padding.PSS(padding.MGF1(chosen), chosen.digest_size)
            key.verify(signature, signed.content, pss, chosen)
            return True
    except (InvalidSignature, ValueError):
        pass
    return False


def _check_chain(chain: Sequence[x509.Certificate], now: datetime) -> None:
    """Step 5: RFC 5280 as the Notary Project narrows it."""
    for at, certificate in enumerate(chain):
        shown = certificate.subject.rfc4514_string()[:200]
        if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
            raise DeniedError(f"the certificate of {shown} is not valid now")
        above = chain[at + 1] if at + 1 < len(chain) else certificate
        if at and at + 1 < len(chain) and certificate.issuer == certificate.subject:
            raise DeniedError(f"the certificate of {shown} signed itself in the middle of a chain")
        try:
            certificate.verify_directly_issued_by(above)
            weak = isinstance(certificate.signature_hash_algorithm, _WEAK)
        except (InvalidSignature, *_UNREADABLE):
            raise DeniedError(f"the certificate of {shown} is not signed by the next") from None
        if weak:
            raise DeniedError(f"the certificate of {shown} is signed with a broken hash")
        try:
            _check_uses(certificate, at, only=len(chain) == 1, shown=shown)
        except _UNREADABLE:
            raise DeniedError(f"the extensions of {shown} cannot be read") from None


_UNDERSTOOD: Final = (
    x509.KeyUsage.oid, x509.BasicConstraints.oid, x509.ExtendedKeyUsage.oid,
)  # fmt: skip


def _check_uses(certificate: x509.Certificate, at: int, *, only: bool, shown: str) -> None:
    extensions = certificate.extensions
    for extension in extensions:
        if extension.critical and extension.oid not in _UNDERSTOOD:
            raise DeniedError(f"the certificate of {shown} has a critical extension unknown here")
    try:
        usage = extensions.get_extension_for_class(x509.KeyUsage)
    except x509.ExtensionNotFound:
        raise DeniedError(f"the certificate of {shown} does not say what it is for") from None
    if not usage.critical:
        raise DeniedError(f"what the certificate of {shown} is for is not critical")
    authority = _authority(extensions)
    if at == 0:
        if not usage.value.digital_signature or (usage.value.key_cert_sign and not only):
            raise DeniedError(f"the certificate of {shown} is not for signatures")
        if authority is not None and authority.ca:
            raise DeniedError(f"the certificate of {shown} is an authority's, and signed an image")
        _check_purposes(extensions, shown)
    elif authority is None or not authority.ca or not usage.value.key_cert_sign:
        raise DeniedError(f"the certificate of {shown} may not sign certificates")
    elif authority.path_length is not None and at - 1 > authority.path_length:
        raise DeniedError(f"the chain below {shown} is longer than it allows")


def _authority(extensions: x509.Extensions) -> x509.BasicConstraints | None:
    try:
        return extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return None


def _check_purposes(extensions: x509.Extensions, shown: str) -> None:
    try:
        purposes = set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return
    others = {
        ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE, ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.EMAIL_PROTECTION, ExtendedKeyUsageOID.TIME_STAMPING,
        ExtendedKeyUsageOID.OCSP_SIGNING,
    }  # fmt: skip
    if ExtendedKeyUsageOID.CODE_SIGNING not in purposes or purposes & others:
        raise DeniedError(f"the certificate of {shown} is not for signing code alone")


def _is(leaf: x509.Certificate, wanted: Mapping[str, str]) -> bool:
    for key, value in wanted.items():
        found = leaf.subject.get_attributes_for_oid(_SUBJECT[key])
        # Two of one kind: another reader may take the other.
        if len(found) != 1 or found[0].value != value:
            return False
    return True
