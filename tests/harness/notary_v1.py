"""A publisher's Notary v1 metadata, made as Docker's tools made it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from tare.model.digest import Digest
from tare.trust.notary import canonical

NOW = 1_800_000_000
GUN = "reg.example/team/app"
ONE, TWO = Digest.of(b"one"), Digest.of(b"two")


class Key:
    """A key of Notary's, with its certificate where it is a root's."""

    def __init__(self, name: str = "", *, days: int = 3650) -> None:
        self.private = ec.generate_private_key(ec.SECP256R1())
        public = self.private.public_key()
        if name:
            raw = certificate(self.private, name, days).public_bytes(Encoding.PEM)
        else:
            raw = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        kind = "ecdsa-x509" if name else "ecdsa"
        value = {"private": None, "public": base64.b64encode(raw).decode()}
        self.entry: dict[str, Any] = {"keytype": kind, "keyval": value}
        self.id = hashlib.sha256(canonical(self.entry)).hexdigest()

    def sign(self, content: bytes) -> dict[str, Any]:
        r, s = decode_dss_signature(self.private.sign(content, ec.ECDSA(hashes.SHA256())))
        raw = r.to_bytes(32) + s.to_bytes(32)
        return {"keyid": self.id, "method": "ecdsa", "sig": base64.b64encode(raw).decode()}


def certificate(key: ec.EllipticCurvePrivateKey, name: str, days: int) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.fromtimestamp(NOW, UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now - timedelta(days=4000))
        .not_valid_after(now + timedelta(days=days))
        .sign(key, hashes.SHA256())
    )


ROOT, TARGETS, SNAPSHOT, TIMESTAMP, RELEASER, THIEF = Key(GUN), *(Key() for _ in range(5))
Change = Callable[[dict[str, Any]], None]


def signed(content: dict[str, Any], *keys: Key) -> bytes:
    raw = canonical(content)
    return json.dumps({"signed": content, "signatures": [k.sign(raw) for k in keys]}).encode()


def when(days: int) -> str:
    return (datetime.fromtimestamp(NOW, UTC) + timedelta(days=days)).strftime(
        "%Y-%m-%dT%H:%M:%S.123456789Z"
    )


def meta(raw: bytes) -> dict[str, Any]:
    digest = base64.b64encode(hashlib.sha256(raw).digest()).decode()
    return {"hashes": {"sha256": digest}, "length": len(raw)}


def target(digest: Digest) -> dict[str, Any]:
    return {"hashes": {"sha256": base64.b64encode(bytes.fromhex(digest.hex)).decode()}, "length": 3}


def made(
    *,
    root_keys: tuple[Key, ...] = (ROOT,),
    signers: tuple[Key, ...] = (),
    threshold: int = 1,
    released: dict[str, Digest] | None = None,
    paths: tuple[str, ...] = ("",),
    change: dict[str, Change] | None = None,
    by: dict[str, Key] | None = None,
    version: int = 3,
) -> dict[str, bytes]:
    """A repository of metadata; *change* edits a role before it is signed, *by* another key."""
    changes, others = change or {}, by or {}
    keys = {key.id: key.entry for key in (*root_keys, TARGETS, SNAPSHOT, TIMESTAMP)}
    roles = {
        "root": {"keyids": [key.id for key in root_keys], "threshold": threshold},
        "targets": {"keyids": [TARGETS.id], "threshold": 1},
        "snapshot": {"keyids": [SNAPSHOT.id], "threshold": 1},
        "timestamp": {"keyids": [TIMESTAMP.id], "threshold": 1},
    }

    def role(name: str, kind: str, days: int, more: dict[str, Any], *who: Key) -> bytes:
        content = {"_type": kind, "version": version, "expires": when(days), **more}
        if name in changes:
            changes[name](content)
        return signed(content, *((others[name],) if name in others else who))

    files = {}
    files["root"] = role(
        "root", "Root", 3650, {"consistent_snapshot": False, "keys": keys, "roles": roles},
        *(signers or root_keys),
    )  # fmt: skip
    delegations: dict[str, Any] = {"keys": {}, "roles": []}
    metas = {}
    if released is not None:
        entry = {"name": "targets/releases", "keyids": [RELEASER.id], "threshold": 1}
        delegations = {
            "keys": {RELEASER.id: RELEASER.entry},
            "roles": [{**entry, "paths": list(paths)}],
        }
        content = {"targets": {tag: target(d) for tag, d in released.items()}, "delegations": {}}
        files["targets/releases"] = role("releases", "Targets", 1000, content, RELEASER)
        metas["targets/releases"] = meta(files["targets/releases"])
    more = {"targets": {"1": target(ONE)}, "delegations": delegations}
    files["targets"] = role("targets", "Targets", 1000, more, TARGETS)
    metas |= {"root": meta(files["root"]), "targets": meta(files["targets"])}
    files["snapshot"] = role("snapshot", "Snapshot", 1000, {"meta": metas}, SNAPSHOT)
    more = {"meta": {"snapshot": meta(files["snapshot"])}}
    files["timestamp"] = role("timestamp", "Timestamp", 14, more, TIMESTAMP)
    return files
