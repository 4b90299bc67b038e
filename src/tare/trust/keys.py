"""Keys that sign images: read, written, made; and one strict way to check a signature.

Read are cosign's encrypted private keys (scrypt and secretbox, under both of their names), plain
PKCS#8, SEC 1 and PKCS#1 in PEM, and public keys in PEM. Keys are ECDSA P-256, P-384 or P-521,
Ed25519, or RSA of at least 2048 bits. The algorithm follows from the key, never from the data.

Not for: where keys are kept (``engine``), or which key may sign what (``policy``).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from dataclasses import dataclass
from typing import Final, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from tare.errors import DeniedError, InvalidError, UnsupportedError
from tare.model import strict_json
from tare.model.strict_json import Fields
from tare.trust import secretbox

_LIMIT: Final = 64 << 10
_RSA_BITS: Final = 2048
_RSA_BITS_MAX: Final = 16384
_SCRYPT_N: Final = 65536
_SCRYPT_N_MAX: Final = 1 << 20  # 1 GiB of memory with r=8: no file may ask for more
_ENCRYPTED: Final = ("ENCRYPTED SIGSTORE PRIVATE KEY", "ENCRYPTED COSIGN PRIVATE KEY")
_PUBLIC: Final = "PUBLIC KEY"
_CURVES: Final[dict[str, type[hashes.HashAlgorithm]]] = {
    "secp256r1": hashes.SHA256,
    "secp384r1": hashes.SHA384,
    "secp521r1": hashes.SHA512,
}
# Group orders: a signature's numbers lie between them and zero (SEC 1, 4.1.4, step 1).
_ORDERS: Final = {
    "secp256r1": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    "secp384r1": 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973,  # noqa: E501
    "secp521r1": 0x01FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFA51868783BF2F966B7FCC0148F709A5D03BB5C9B8899C47AEBB6FB71E91386409,  # noqa: E501
}
_Public = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey
_Private = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that checks signatures. ``id`` is the sha256 of its DER form, in hex."""

    key: _Public
    der: bytes

    @classmethod
    def parse(cls, raw: bytes, what: str = "the public key") -> Self:
        """Read PEM; InvalidError says what is wrong with *what*."""
        if len(raw) > _LIMIT:
            raise InvalidError(f"{what} is {len(raw)} bytes long: that is no key")
        label = _label(raw)
        if "PRIVATE" in label:
            raise InvalidError(f"{what} is a private key", hint="name its public half (.pub)")
        if label != _PUBLIC:
            raise InvalidError(f"{what} is no public key in PEM form")
        try:
            return cls.of(serialization.load_pem_public_key(raw), what)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise InvalidError(f"{what} cannot be read: {error}") from None

    @classmethod
    def of(cls, key: object, what: str = "the public key") -> Self:
        """A key of ``cryptography``, if tare takes its kind."""
        if not isinstance(
            key, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey
        ):
            raise UnsupportedError(f"{what} is of a kind that signs no images")
        if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name not in _CURVES:
            raise UnsupportedError(f"{what} is on the curve {key.curve.name}, not on P-256")
        if isinstance(key, rsa.RSAPublicKey) and not _RSA_BITS <= key.key_size <= _RSA_BITS_MAX:
            raise InvalidError(f"{what} is RSA of {key.key_size} bits; at least {_RSA_BITS} count")
        der = key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return cls(key, der)

    @property
    def id(self) -> str:
        """What the key is called: sha256 of its DER form, in hex."""
        return hashlib.sha256(self.der).hexdigest()

    @property
    def kind(self) -> str:
        """Its algorithm, as people write it."""
        match self.key:
            case ec.EllipticCurvePublicKey():
                return f"ECDSA P-{self.key.key_size}"
            case ed25519.Ed25519PublicKey():
                return "Ed25519"
            case _:
                return f"RSA {self.key.key_size}"

    def pem(self) -> bytes:
        """The key in PEM form."""
        return self.key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def verifies(self, signature: bytes, signed: bytes) -> bool:
        """Whether *signature* is this key's over *signed*; any malformed one is not."""
        try:
            match self.key:
                case ec.EllipticCurvePublicKey():
                    name = self.key.curve.name
                    # One encoding only, both numbers in range: no malleable or empty signature.
                    r, s = decode_dss_signature(signature)
                    if encode_dss_signature(r, s) != signature or not (
                        0 < r < _ORDERS[name] and 0 < s < _ORDERS[name]
                    ):
                        return False
                    return self._ecdsa_verifies(self.key, signature, signed)
                case ed25519.Ed25519PublicKey():
                    self.key.verify(signature, signed)
                case _:
                    return self._rsa_verifies(self.key, signature, signed)
        except (InvalidSignature, ValueError):
            return False
        return True

    def _ecdsa_verifies(
        self, key: ec.EllipticCurvePublicKey, signature: bytes, signed: bytes
    ) -> bool:
        # Older tools hash with SHA-256 whatever the curve; both are at least that strong.
        own = _CURVES[key.curve.name]
        for algorithm in (own(), hashes.SHA256()):
            try:
                key.verify(signature, signed, ec.ECDSA(algorithm))
            except InvalidSignature:
                continue
            return True
        return False

    def _rsa_verifies(self, key: rsa.RSAPublicKey, signature: bytes, signed: bytes) -> bool:
        # cosign signs with PKCS#1 v1.5, other tools of the family with PSS; both are sound.
        pss = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
        for scheme in (padding.PKCS1v15(), pss):
            try:
                key.verify(signature, signed, scheme, hashes.SHA256())
            except InvalidSignature:
                continue
            return True
        return False


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A key that signs."""

    key: _Private

    @classmethod
    def generate(cls, kind: str = "ecdsa-p256") -> Self:
        """A new key: ``ecdsa-p256``, as cosign makes them, or ``ed25519``."""
        if kind == "ecdsa-p256":
            return cls(ec.generate_private_key(ec.SECP256R1()))
        if kind == "ed25519":
            return cls(ed25519.Ed25519PrivateKey.generate())
        raise InvalidError(f"invalid kind of key {kind[:40]!r}: ecdsa-p256 or ed25519")

    @classmethod
    def parse(cls, raw: bytes, passphrase: bytes = b"", what: str = "the key") -> Self:
        """Read PEM, encrypted or not; DeniedError when the passphrase does not open it."""
        if len(raw) > _LIMIT:
            raise InvalidError(f"{what} is {len(raw)} bytes long: that is no key")
        label = _label(raw)
        if label in _ENCRYPTED:
            return cls._of(_unsealed(raw, passphrase, what), what)
        if not label.endswith("PRIVATE KEY"):
            raise InvalidError(f"{what} is no private key in PEM form")
        try:
            key = serialization.load_pem_private_key(raw, passphrase or None)
        except TypeError:
            if passphrase:
                return cls.parse(raw, b"", what)  # not encrypted: nothing to open
            raise DeniedError(f"{what} is encrypted, and no passphrase was given") from None
        except (ValueError, UnsupportedAlgorithm) as error:
            if label.startswith("ENCRYPTED"):
                raise DeniedError(f"the passphrase does not open {what}") from None
            raise InvalidError(f"{what} cannot be read: {error}") from None
        return cls._checked(key, what)

    @classmethod
    def _of(cls, der: bytes, what: str) -> Self:
        try:
            key = serialization.load_der_private_key(der, None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise InvalidError(f"{what} holds no key that can be read: {error}") from None
        return cls._checked(key, what)

    @classmethod
    def _checked(cls, key: object, what: str) -> Self:
        if not isinstance(
            key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
        ):
            raise UnsupportedError(f"{what} is of a kind that signs no images")
        PublicKey.of(key.public_key(), what)
        return cls(key)

    @property
    def public(self) -> PublicKey:
        """Its public half."""
        return PublicKey.of(self.key.public_key())

    def sign(self, content: bytes) -> bytes:
        """A signature over *content* that `PublicKey.verifies` takes."""
        match self.key:
            case ec.EllipticCurvePrivateKey():
                return self.key.sign(content, ec.ECDSA(_CURVES[self.key.curve.name]()))
            case ed25519.Ed25519PrivateKey():
                return self.key.sign(content)
            case _:
                return self.key.sign(content, padding.PKCS1v15(), hashes.SHA256())

    def encrypted(self, passphrase: bytes) -> bytes:
        """The key as cosign keeps it, sealed with *passphrase*."""
        der = self.key.private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        salt, nonce = os.urandom(32), os.urandom(secretbox.NONCE_BYTES)
        sealed = secretbox.seal(_derived(passphrase, salt, _SCRYPT_N), nonce, der)
        # cosign compares the order of nothing, but people compare files: its order of keys.
        body = json.dumps(
            {
                "kdf": {
                    "name": "scrypt",
                    "params": {"N": _SCRYPT_N, "r": 8, "p": 1},
                    "salt": _b64(salt),
                },
                "cipher": {"name": "nacl/secretbox", "nonce": _b64(nonce)},
                "ciphertext": _b64(sealed),
            },
            separators=(",", ":"),
        ).encode()
        return _pem(_ENCRYPTED[0], body)


def _b64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def decoded(text: str, what: str) -> bytes:
    """What *text* is in base64, standard alphabet, padded; InvalidError."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidError(f"{what} is not base64") from None


def _label(raw: bytes) -> str:
    """The label of the one PEM block that *raw* is; "" for anything else."""
    lines = raw.strip().splitlines()
    if len(lines) < 3:
        return ""
    first, last = lines[0].strip(), lines[-1].strip()
    begins = first.startswith(b"-----BEGIN ") and first.endswith(b"-----")
    label = first[11:-5]
    if not begins or last != b"-----END " + label + b"-----" or raw.count(b"-----BEGIN ") != 1:
        return ""
    return label.decode("ascii", "replace")


def _pem(label: str, body: bytes) -> bytes:
    text = _b64(body)
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""]).encode()


def _unsealed(raw: bytes, passphrase: bytes, what: str) -> bytes:
    """The DER form of the key in an encrypted PEM block of cosign's."""
    text = b"".join(line.strip() for line in raw.strip().splitlines()[1:-1])
    body = decoded(text.decode("ascii", "replace"), what)
    fields = Fields(strict_json.decode(body, what, limit=_LIMIT), what)
    kdf, cipher = fields.fields("kdf", required=True), fields.fields("cipher", required=True)
    parameters = kdf.fields("params", required=True)
    if kdf.text("name") != "scrypt" or cipher.text("name") != "nacl/secretbox":
        raise UnsupportedError(f"{what} is not sealed with scrypt and secretbox")
    n = parameters.integer("N", required=True)
    if n not in (1 << bits for bits in range(14, 21)) or n > _SCRYPT_N_MAX:
        raise InvalidError(f"{what} asks for a scrypt of N={n}; 16384 to {_SCRYPT_N_MAX} are done")
    if (parameters.integer("r"), parameters.integer("p")) != (8, 1):
        raise InvalidError(f"{what} asks for a scrypt other than r=8, p=1")
    salt = decoded(kdf.text("salt"), f"the salt of {what}")
    nonce = decoded(cipher.text("nonce"), f"the nonce of {what}")
    sealed = decoded(fields.text("ciphertext"), f"the ciphertext of {what}")
    if len(salt) < 16 or len(nonce) != secretbox.NONCE_BYTES:
        raise InvalidError(f"{what} is damaged: its salt or nonce is too short")
    found = secretbox.open_(_derived(passphrase, salt, n), nonce, sealed)
    if found is None:
        raise DeniedError(
            f"the passphrase does not open {what}",
            hint="give it in TARE_TRUST_PASSPHRASE or COSIGN_PASSWORD",
        )
    return found


def _derived(passphrase: bytes, salt: bytes, n: int) -> bytes:
    return Scrypt(salt=salt, length=secretbox.KEY_BYTES, n=n, r=8, p=1).derive(passphrase)
