"""Keys: cosign's own files both ways, other forms, and signatures that only look like some."""

from __future__ import annotations

import base64
import json

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from hypothesis import given
from hypothesis import strategies as st

from tare.errors import DeniedError, InvalidError, TareError, UnsupportedError
from tare.trust import secretbox
from tare.trust.keys import PrivateKey, PublicKey

# NaCl's own published vector (tests/secretbox.c of NaCl 20110221).
KEY = bytes.fromhex("1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389")
NONCE = bytes.fromhex("69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37")
PLAIN = bytes.fromhex(
    "be075fc53c81f2d5cf141316ebeb0c7b5228c52a4c62cbd44b66849b64244ffce5ecbaaf33bd751a1ac728d45e6c61"
    "296cdc3c01233561f41db66cce314adb310e3be8250c46f06dceea3a7fa1348057e2f6556ad6b1318a024a838f21af"
    "1fde048977eb48f59ffd4924ca1c60902e52f0a089bc76897040e082f937763848645e0705"
)
SEALED_START = bytes.fromhex("f3ffc7703f9400e52a7dfb4b3d3305d98e993b9f48681273c29650ba32fc76ce")
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def test_the_secretbox_is_nacls() -> None:
    sealed = secretbox.seal(KEY, NONCE, PLAIN)

    assert sealed[:32] == SEALED_START
    assert secretbox.open_(KEY, NONCE, sealed) == PLAIN


@given(plain=st.binary(max_size=300), at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_changed_secretbox_does_not_open(plain: bytes, at: int, bit: int) -> None:
    sealed = bytearray(secretbox.seal(KEY, NONCE, plain))
    sealed[at % len(sealed)] ^= 1 << bit

    assert secretbox.open_(KEY, NONCE, bytes(sealed)) is None
    assert secretbox.open_(KEY, NONCE, bytes(sealed[:15])) is None


@pytest.mark.parametrize("kind", ["ecdsa-p256", "ed25519"])
def test_an_encrypted_key_opens_with_its_passphrase_only(kind: str) -> None:
    key = PrivateKey.generate(kind)
    sealed = key.encrypted(b"right")

    opened = PrivateKey.parse(sealed, b"right")

    assert opened.public == key.public
    assert opened.public.verifies(key.sign(b"x"), b"x")
    with pytest.raises(DeniedError, match="does not open"):
        PrivateKey.parse(sealed, b"wrong")


def test_keys_of_the_older_name_and_the_smaller_scrypt_are_read() -> None:
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    key = PrivateKey.generate()
    der = key.key.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    derived = Scrypt(salt=b"s" * 32, length=32, n=32768, r=8, p=1).derive(b"old")
    body = {
        "kdf": {
            "name": "scrypt",
            "params": {"N": 32768, "r": 8, "p": 1},
            "salt": base64.b64encode(b"s" * 32).decode(),
        },
        "cipher": {"name": "nacl/secretbox", "nonce": base64.b64encode(b"n" * 24).decode()},
        "ciphertext": base64.b64encode(secretbox.seal(derived, b"n" * 24, der)).decode(),
    }
    text = base64.encodebytes(json.dumps(body).encode())
    label = b"ENCRYPTED COSIGN PRIVATE KEY"
    pem = b"-----BEGIN " + label + b"-----\n" + text + b"-----END " + label + b"-----\n"

    assert PrivateKey.parse(pem, b"old").public == key.public


@pytest.mark.parametrize(
    "change",
    [
        {"kdf": {"name": "scrypt", "params": {"N": 1 << 26, "r": 8, "p": 1}, "salt": "AAAA"}},
        {"kdf": {"name": "scrypt", "params": {"N": 65536, "r": 512, "p": 1}, "salt": "AAAA"}},
        {"kdf": {"name": "scrypt", "params": {"N": 65536, "r": 8, "p": 1}, "salt": "AAAA"}},
        {"cipher": {"name": "nacl/box", "nonce": "AAAA"}},
        {"ciphertext": "*"},
        {"kdf": 7},
    ],
)
def test_a_key_file_cannot_ask_for_what_it_likes(change: dict[str, object]) -> None:
    body: dict[str, object] = {
        "kdf": {
            "name": "scrypt",
            "params": {"N": 65536, "r": 8, "p": 1},
            "salt": base64.b64encode(b"s" * 32).decode(),
        },
        "cipher": {"name": "nacl/secretbox", "nonce": base64.b64encode(b"n" * 24).decode()},
        "ciphertext": "AAAA",
    }
    text = base64.encodebytes(json.dumps({**body, **change}).encode())
    label = b"ENCRYPTED SIGSTORE PRIVATE KEY"
    pem = b"-----BEGIN " + label + b"-----\n" + text + b"-----END " + label + b"-----\n"

    with pytest.raises((InvalidError, UnsupportedError)):
        PrivateKey.parse(pem, b"x")


@pytest.mark.parametrize(
    "made",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP521R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["p256", "p384", "p521", "ed25519", "rsa"],
)
def test_plain_keys_of_every_kind_sign_and_verify(
    made: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey,
) -> None:
    pem = made.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    key = PrivateKey.parse(pem, b"a passphrase that is not needed")
    public = PublicKey.parse(key.public.pem())

    assert public == key.public
    assert public.verifies(key.sign(b"content"), b"content")
    assert not public.verifies(key.sign(b"content"), b"Content")


def test_weak_and_foreign_keys_are_refused() -> None:
    def pem(key: rsa.RSAPrivateKey | dsa.DSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
        return key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    with pytest.raises(InvalidError, match="at least 2048"):
        PublicKey.parse(pem(rsa.generate_private_key(65537, 1024)))
    with pytest.raises(UnsupportedError, match="signs no images"):
        PublicKey.parse(pem(dsa.generate_private_key(2048)))
    with pytest.raises(UnsupportedError, match="secp256k1"):
        PublicKey.parse(pem(ec.generate_private_key(ec.SECP256K1())))


def test_a_private_key_is_not_taken_for_a_public_one() -> None:
    with pytest.raises(InvalidError, match="is a private key"):
        PublicKey.parse(PrivateKey.generate().encrypted(b""))


def test_a_file_with_two_keys_is_refused() -> None:
    both = PrivateKey.generate().public.pem() + PrivateKey.generate().public.pem()

    with pytest.raises(InvalidError, match="no public key"):
        PublicKey.parse(both)


@pytest.mark.attack("A33")
def test_signatures_in_other_encodings_do_not_count() -> None:
    key = PrivateKey.generate()
    public = key.public
    signature = key.sign(b"x")
    r, s = decode_dss_signature(signature)

    assert public.verifies(signature, b"x")
    for other in (
        r.to_bytes(32, "big") + s.to_bytes(32, "big"),  # raw, as JOSE has it
        signature + b"\0",
        encode_dss_signature(0, s),
        encode_dss_signature(r, 0),
        encode_dss_signature(0, 0),
        encode_dss_signature(r + ORDER, s),
        encode_dss_signature(r, s + ORDER),
        b"",
    ):
        assert not public.verifies(other, b"x")


def test_a_signature_made_for_another_hash_does_not_count() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    public = PublicKey.of(key.public_key())

    assert not public.verifies(key.sign(b"x", ec.ECDSA(hashes.SHA512())), b"x")


@given(raw=st.binary(max_size=400))
def test_anything_else_is_refused_with_a_sentence(raw: bytes) -> None:
    framed = b"-----BEGIN PUBLIC KEY-----\n" + base64.b64encode(raw) + b"\n-----END PUBLIC KEY-----"
    for text in (raw, framed):
        with pytest.raises(TareError):
            PublicKey.parse(text)
    sealed = framed.replace(b"PUBLIC KEY", b"ENCRYPTED SIGSTORE PRIVATE KEY")
    for text in (raw, sealed):
        with pytest.raises(TareError):
            PrivateKey.parse(text, b"")
