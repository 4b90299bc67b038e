"""``/tare/trust``: what is asked and what is shown. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from tare.errors import InvalidError
from tare.model import strict_json
from tare.model.oci import encode_descriptor
from tare.model.strict_json import Fields

if TYPE_CHECKING:
    from tare.engine.signing import Signature, Subject
    from tare.trust.ring import Ring, Trusted
    from tare.trust.signature import Artifact
    from tare.trust.verdict import Verdict

Json = dict[str, object]
_ARTIFACTS_MAX: Final = 8


class SwitchBody(Struct, rename="pascal"):
    """``POST /tare/trust``."""

    mode: str


class KeyBody(Struct, rename="pascal"):
    """``POST /tare/trust/keys``. Times are seconds since 1970; 0 says nothing."""

    pem: str
    name: str
    scopes: list[str]
    not_before: int = 0
    not_after: int = 0
    nameless: bool = False
    vouches: bool = False


class RevokeBody(Struct, rename="pascal"):
    """``POST /tare/trust/revoke``: a key by name or id, or ``sha256:...``."""

    what: str


class PinBody(Struct, rename="pascal"):
    """``POST /tare/trust/pins``: without a digest, that of the image that is here."""

    ref: str
    digest: str = ""
    replace: bool = False


class FollowBody(Struct, rename="pascal"):
    """``POST /tare/trust/follow``: metadata files by their names, in base64."""

    scope: str
    files: dict[str, str]


FOLLOW: Final = msgspec.json.Decoder(FollowBody)
SWITCH: Final = msgspec.json.Decoder(SwitchBody)
KEY: Final = msgspec.json.Decoder(KeyBody)
REVOKE: Final = msgspec.json.Decoder(RevokeBody)
PIN: Final = msgspec.json.Decoder(PinBody)


def trusted(body: KeyBody) -> Trusted:
    """The entry that is asked for."""
    from tare.trust.identity import check_scope
    from tare.trust.keys import PublicKey
    from tare.trust.ring import Trusted

    if not body.name or not body.name.isprintable() or len(body.name) > 80 or "/" in body.name:
        raise InvalidError(f"invalid name of a key: {body.name[:80]!a}")
    if min(body.not_before, body.not_after) < 0:
        raise InvalidError("a time before 1970 is none")
    return Trusted(
        PublicKey.parse(body.pem.encode()),
        body.name,
        tuple(check_scope(scope) for scope in body.scopes),
        body.not_before,
        body.not_after,
        nameless=body.nameless,
        vouches=body.vouches,
    )


def key(entry: Trusted, now: int) -> Json:
    """A trusted key."""
    return {
        "Name": entry.name,
        "Id": entry.key.id,
        "Kind": entry.key.kind,
        "Scopes": list(entry.scopes),
        "NotBefore": entry.not_before,
        "NotAfter": entry.not_after,
        "Revoked": entry.revoked,
        "Nameless": entry.nameless,
        "Vouches": entry.vouches,
        "State": entry.why_not(now) or "valid",
        "Pem": entry.key.pem().decode("ascii"),
    }


def status(
    mode: str,
    ring: Ring,
    now: int,
    *,
    policy: str,
    trouble: str,
    scopes: int,
    set_back: int,
    followed: Iterable[str] = (),
) -> Json:
    """``GET /tare/trust``."""
    return {
        "Mode": mode,
        "Policy": {"Path": policy, "Scopes": scopes, "Error": trouble},
        "Keys": [key(entry, now) for entry in ring.keys],
        "Pins": {name: str(digest) for name, digest in sorted(ring.pins.items())},
        "Revoked": [str(digest) for digest in sorted(ring.revoked)],
        "Followed": sorted(followed),
        "ClockSetBack": set_back,
    }


def verdict(found: Verdict) -> Json:
    """A verdict, as inspect, verify and the list of images show it."""
    return {
        "Verdict": str(found.standing),
        "Accepted": found.accepted,
        "Name": found.name,
        "Digest": found.digest,
        "Rule": found.rule,
        "Reasons": list(found.reasons),
        "Key": found.key,
        "Remedy": found.remedy,
    }


def verified(found: Verdict, signatures: Iterable[Signature]) -> Json:
    """``GET /tare/trust/verdict``."""
    listed = [
        {
            "Form": one.form,
            "Digest": one.digest,
            "Name": one.name,
            "Signer": one.signer,
            "Unreadable": one.why,
        }
        for one in signatures
    ]
    return {**verdict(found), "Signatures": listed}


def subject(found: Subject) -> Json:
    """``GET /tare/trust/subject``."""
    return {
        "Name": str(found.name),
        "Document": encode_descriptor(found.document),
        "Remote": found.remote,
    }


def followed(body: FollowBody) -> dict[str, bytes]:
    """The files that came."""
    from tare.trust.keys import decoded

    return {name: decoded(text, name[:80]) for name, text in body.files.items()}


def signatures(raw: bytes) -> tuple[str, tuple[Artifact, ...], bool]:
    """``POST /tare/trust/signatures``: the image, what was signed of it, whether to push it."""
    from tare.trust.signature import decode

    what = "the request"
    top = Fields(strict_json.decode(raw, what, limit=4 << 20), what)
    artifacts = decode(top.each("Artifacts", limit=_ARTIFACTS_MAX, required=True))
    return top.text("Ref", required=True), artifacts, top.boolean("Push")
