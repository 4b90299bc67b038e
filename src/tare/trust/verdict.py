"""The verdict on one image under one name: from evidence, policy and ring. Pure.

In this order; the first that says something decides:

1. a digest that was revoked is refused;
2. a pinned name that has another digest is refused;
3. the most specific rule that policy.json has for the name decides, pinned or not;
4. else a publisher that is followed for the name (TUF) says which digest its tag has, and
   decides;
5. else a pinned name is accepted, and else one valid signature of the trusted keys whose scope the
   name lies in is enough;
6. else an image that this engine made of accepted ones is accepted;
7. else policy.json's default decides, but its ``insecureAcceptAnything`` accepts nothing: it says
   that nothing was written for this name, and that is what the switch is about;
8. else there is no evidence.

Evidence is about digests of manifests. A digest counts for an image only if its document leads to
it (`chain`): a manifest that has it as its configuration, or an index of that manifest.

Not for: acting on it (``engine``).
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from tare.errors import DeniedError, InvalidError
from tare.model import oci
from tare.model.digest import Digest
from tare.model.reference import Reference
from tare.trust.identity import Identity, Match, scopes_of
from tare.trust.keys import PublicKey
from tare.trust.policy import Kind, Policy, Requirement, Rule
from tare.trust.ring import Ring, Trusted
from tare.trust.signature import ARTIFACTS_MAX, Artifact, Claim, claims

if TYPE_CHECKING:
    from tare.trust.tuf import State

_SAID: Final = 6


class Standing(StrEnum):
    """What a verdict comes to."""

    VERIFIED = "verified"  # signed by a key that may, under this name
    PINNED = "pinned"  # the digest that the name was pinned to
    EXEMPT = "exempt"  # the policy names this scope and asks for nothing
    MADE = "made here"  # by this engine, of accepted images
    UNSIGNED = "unsigned"  # nothing is known for or against it
    REFUSED = "refused"  # a rule stands against it


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an image is what its name says, and why. ``remedy`` says what would help."""

    standing: Standing
    name: str
    digest: str
    rule: str
    reasons: tuple[str, ...]
    key: str = ""
    remedy: str = ""

    @property
    def accepted(self) -> bool:
        """Whether it may be used while trust is on."""
        return self.standing not in (Standing.UNSIGNED, Standing.REFUSED)

    def strict(self) -> Verdict:
        """The verdict where the request itself asks for verification: no exemption counts."""
        if self.standing is not Standing.EXEMPT:
            return self
        why = ("the request asks for a verified image, and nothing verifies it",)
        return Verdict(
            Standing.UNSIGNED,
            self.name,
            self.digest,
            self.rule,
            why + self.reasons,
            "",
            self.remedy,
        )

    def error(self) -> DeniedError:
        """What is raised when it is not accepted."""
        return DeniedError(
            f"{self.name} is not trusted: {'; '.join(self.reasons)} [{self.rule}]",
            hint=self.remedy,
        )


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known of one image: who says what about which of its digests."""

    image: Digest
    subjects: tuple[Digest, ...] = ()
    """Digests of documents that lead to it, the one that names it first."""
    artifacts: Mapping[Digest, Sequence[Artifact]] = field(default_factory=dict)
    made: bool = False
    """Whether this engine made it, of images that were accepted."""

    @property
    def digest(self) -> str:
        """What names this content."""
        found = hashlib.sha256(f"{self.image} {self.made}".encode())
        for subject in self.subjects:
            found.update(f"\n{subject}".encode())
            for artifact in self.artifacts.get(subject, ()):
                found.update(f" {artifact.digest}".encode())
        return found.hexdigest()


def chain(documents: Iterable[tuple[str, bytes]], image: Digest) -> tuple[Digest, ...]:
    """The digests among *documents* (media type, bytes) that stand for *image*: indexes first."""
    manifests: list[Digest] = []
    indexes: list[oci.Index] = []
    for kind, raw in documents:
        with contextlib.suppress(InvalidError):
            document = oci.parse_manifest(raw, kind)
            if isinstance(document, oci.Index):
                indexes.append(document)
            elif document.config.digest == image:
                manifests.append(document.digest)
    above = [
        Digest.of(index.raw)
        for index in indexes
        if any(d.digest in manifests and not d.attestation for d in index.manifests)
    ]
    return tuple(dict.fromkeys((*above, *manifests)))


def judge(
    name: Reference,
    evidence: Evidence,
    policy: Policy,
    ring: Ring,
    now: int,
    *,
    followed: Mapping[str, State] | None = None,
    arriving: bool = False,
) -> Verdict:
    """The verdict on *evidence* under *name*, at *now* (seconds since 1970).

    *followed* are publishers' metadata by their scopes. What is *arriving* (from a registry or an
    archive) needs metadata that has not expired; what is here already was judged by it.
    """
    return _Judge(name, evidence, policy, ring, now).verdict(followed or {}, arriving=arriving)


class _Judge:
    """One case."""

    def __init__(
        self, name: Reference, evidence: Evidence, policy: Policy, ring: Ring, now: int
    ) -> None:
        self._name = name
        self._evidence = evidence
        self._policy = policy
        self._ring = ring
        self._now = now
        self._claims: list[Claim] | None = None
        self._unreadable: list[str] = []

    def verdict(self, followed: Mapping[str, State], *, arriving: bool) -> Verdict:
        for digest in (self._evidence.image, *self._evidence.subjects):
            if digest in self._ring.revoked:
                return self._make(Standing.REFUSED, "revoked digests", f"{digest} was revoked")
        pin = self._ring.pins.get(str(self._name))
        if pin is not None and pin not in (self._evidence.image, *self._evidence.subjects):
            why = f"{self._name.familiar} is pinned to {pin}, and this is not it"
            return self._make(Standing.REFUSED, "pins", why)
        rule = self._policy.explicit(self._name)
        if rule is not None:
            return self._by_rule(rule)
        if self._name.tag is not None and self._name.digest is None:
            for scope in (*scopes_of(self._name), "*"):  # the most specific first
                if scope in followed:
                    return self._by_publisher(scope, followed[scope], arriving=arriving)
        if pin is not None:
            return self._make(Standing.PINNED, "pins", f"it is the pinned {pin}")
        trusted = [one for one in self._ring.keys if one.covers(self._name)]
        by_ring = self._by_ring(trusted) if trusted else None
        if by_ring is not None and by_ring.accepted:
            return by_ring
        if self._evidence.made:
            why = "this engine made it of accepted images"
            return self._make(Standing.MADE, "what is made here", why)
        if by_ring is not None:
            return by_ring
        rule = self._policy.fallback()
        if rule is not None and any(r.kind is not Kind.ACCEPT for r in rule.requirements):
            return self._by_rule(rule)
        self._read()
        return self._make(
            Standing.UNSIGNED,
            "no rule and no key is for this name",
            *self._counted("nothing here says who may sign it"),
        )

    # --- by what a publisher says ----------------------------------------------------------

    def _by_publisher(self, scope: str, state: State, *, arriving: bool) -> Verdict:
        from tare.trust.tuf import find

        rule = f"the publisher followed for {scope}"
        try:
            found = find(state, str(self._name), self._now if arriving else None)
        except DeniedError as error:
            return self._make(Standing.REFUSED, rule, str(error))
        if found is None:
            why = f"the publisher does not know {self._name.familiar}"
            return self._make(Standing.REFUSED, rule, why)
        if found.digest not in self._evidence.subjects:
            why = f"the publisher says that {self._name.familiar} is {found.digest}: this is not it"
            return self._make(Standing.REFUSED, rule, why)
        said = "its publisher says that the tag has this digest"
        return self._make(Standing.VERIFIED, rule, said)

    # --- by rule ------------------------------------------------------------------------------

    def _by_rule(self, rule: Rule) -> Verdict:
        reasons: list[str] = []
        key = ""
        standing = Standing.EXEMPT
        for requirement in rule.requirements:
            match requirement.kind:
                case Kind.ACCEPT:
                    reasons.append("the policy asks for no signature here")
                case Kind.REJECT:
                    return self._make(Standing.REFUSED, str(rule), "the policy rejects it")
                case Kind.UNMET:
                    return self._make(Standing.REFUSED, str(rule), requirement.why)
                case Kind.SIGSTORE:
                    signer, why = self._signed(requirement)
                    if signer is None:
                        return self._make(Standing.REFUSED, str(rule), *why)
                    key, standing = signer.id, Standing.VERIFIED
                    reasons += why
        return self._make(standing, str(rule), *reasons, key=key)

    def _signed(self, requirement: Requirement) -> tuple[PublicKey | None, list[str]]:
        usable = []
        against = []
        for key in requirement.keys:
            known = self._ring.known(key)
            why_not = known.why_not(self._now) if known is not None else ""
            if why_not:
                against.append(f"the key {key.id[:12]} {why_not}")
            else:
                usable.append(key)
        signer, why = self._find(usable, requirement.identity)
        return signer, why if signer is not None else [*against, *why]

    # --- by ring ------------------------------------------------------------------------------

    def _by_ring(self, trusted: Sequence[Trusted]) -> Verdict:
        against = []
        for one in trusted:
            why_not = one.why_not(self._now)
            if why_not:
                against.append(f"the key {one.name} {why_not}")
                continue
            signer, why = self._find([one.key], Identity(Match.REPOSITORY), nameless=one.nameless)
            if signer is not None:
                verb = "vouched for" if one.vouches else "signed"
                said = f"{verb} by {one.name} ({one.key.id[:12]})"
                return self._make(Standing.VERIFIED, f"the key {one.name}", said, key=signer.id)
            against += [text for text in why if text not in against]
        names = ", ".join(one.name for one in trusted[:4])
        standing = Standing.REFUSED if self._read() else Standing.UNSIGNED
        return self._make(standing, f"trusted for this name: {names}", *against)

    # --- signatures ---------------------------------------------------------------------------

    def _read(self) -> list[Claim]:
        if self._claims is None:
            self._claims = []
            for subject in self._evidence.subjects:
                for artifact in list(self._evidence.artifacts.get(subject, ()))[:ARTIFACTS_MAX]:
                    for found in claims(artifact, subject):
                        if isinstance(found, Claim):
                            self._claims.append(found)
                        else:
                            self._unreadable.append(found.why)
        return self._claims

    def _find(
        self, keys: Sequence[PublicKey], identity: Identity, *, nameless: bool = False
    ) -> tuple[PublicKey | None, list[str]]:
        """The key of a signature that counts, with what speaks for it; or what stands against."""
        against: list[str] = []
        for claim in self._read():
            signer = next((key for key in keys if claim.signed_by(key)), None)
            if signer is None:
                against.append("a signature is by a key that may not sign this name")
            elif claim.name is None and not nameless:
                against.append("a signature names no repository (cosign's bundle)")
            elif claim.name is not None and not identity.accepts(claim.name, self._name):
                against.append(
                    f"it was signed as {claim.name.familiar}, not as {self._name.familiar}"
                )
            else:
                return signer, [f"signed by {signer.id[:12]} ({claim.form})"]
        return None, self._counted(*against)

    def _counted(self, *against: str) -> list[str]:
        found = list(dict.fromkeys(against))
        if not self._claims and not self._unreadable:
            found.append("it has no signature")
        found += [f"a signature cannot be used: {why}" for why in dict.fromkeys(self._unreadable)]
        return found[:_SAID]

    def _make(self, standing: Standing, rule: str, *reasons: str, key: str = "") -> Verdict:
        digest = self._evidence.subjects[0] if self._evidence.subjects else self._evidence.image
        shown = self._name.familiar
        remedy = ""
        if standing is Standing.UNSIGNED or standing is Standing.REFUSED:
            remedy = _remedy(rule, shown)
        return Verdict(standing, shown, str(digest), rule, reasons, key, remedy)


def _remedy(rule: str, name: str) -> str:
    if rule == "pins":
        return f"If the new image is wanted: tare trust pin --replace {name}"
    if rule == "revoked digests":
        return "Use an image that was not revoked."
    return (
        f"If its registry has signatures that are not here: tare trust verify {name}\n"
        f"If its publisher signs: tare trust key add KEY.pub --scope {name.partition('@')[0]}\n"
        f"If you answer for it yourself: tare trust vouch {name}, or tare trust pin {name}"
    )
