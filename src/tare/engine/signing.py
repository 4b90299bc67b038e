"""Signing in the engine: what a signature is about, taking one in, giving it to a registry; pins.

Private keys never come here. The client asks what is to be signed, signs it, and hands back what
it made; the engine checks that it is about that image, keeps it and brings it to the registry.

Not for: verdicts (engine.trust), the formats (trust.signature).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tare.engine.following import TAG, packed
from tare.errors import ConflictError, InvalidError, MissingError
from tare.image.registry import companions
from tare.image.registry.client import Repository
from tare.image.registry.companions import Companion
from tare.image.registry.pull import repositories
from tare.image.registry.settings import endpoint
from tare.image.registry.transport import Host, Transport
from tare.model.digest import Digest
from tare.model.reference import Reference

if TYPE_CHECKING:
    from tare.engine.trust import Trust
    from tare.image.registry.credentials import Credentials
    from tare.image.registry.settings import Settings
    from tare.image.store import ImageStore
    from tare.model.oci import Descriptor
    from tare.trust.ring import Trusted
    from tare.trust.signature import Artifact
    from tare.trust.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Subject:
    """What a signature of an image is to be about. ``remote``: its registry has the document."""

    name: Reference
    document: Descriptor
    remote: bool


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature about an image, as it was found: by whom, if that key is trusted."""

    form: str
    digest: str
    name: str
    signer: str
    why: str = ""


class Signing:
    """The use cases of ``tare trust``."""

    def __init__(self, trust: Trust, store: ImageStore, settings: Settings) -> None:
        self._trust = trust
        self._store = store
        self._settings = settings

    async def subject(self, ref: str) -> Subject:
        """What to sign for *ref*: MissingError, or InvalidError when that is not one thing."""
        return Subject(*await asyncio.to_thread(self._trust.to_sign, ref))

    async def take(
        self,
        ref: str,
        artifacts: Sequence[Artifact],
        *,
        push: bool,
        credentials: Credentials | None = None,
    ) -> Subject:
        """Keep signatures of *ref*, and give them to its registry if *push*."""
        from tare.trust.signature import Claim, claims

        subject = await self.subject(ref)
        for artifact in artifacts:
            found = claims(artifact, subject.document.digest)
            for claim in found:
                if not isinstance(claim, Claim):
                    raise InvalidError(f"that is no signature of {ref}: {claim.why}")
            if not found:
                raise InvalidError(f"that is no signature of {ref}: it holds none")
        if push and not subject.remote:
            raise ConflictError(
                f"no registry is known to have {subject.name.familiar}",
                hint="push it first, or sign it with --local: then the signature stays here and"
                " goes with `tare save`",
            )
        if push:
            await self._push(subject, artifacts, credentials)
        await asyncio.to_thread(self._trust.add, {subject.document.digest: list(artifacts)})
        return subject

    async def _push(
        self, subject: Subject, artifacts: Sequence[Artifact], credentials: Credentials | None
    ) -> None:
        from tare.trust import signature

        host = endpoint(subject.name.domain)
        own = credentials.meant_for(host) if credentials else None
        async with Transport(self._settings) as transport:
            place = await transport.find(host)
            repository = Repository(Host(transport, place, own), subject.name.path, push=True)
            for artifact in artifacts:
                tag = ""
                if signature.is_simple(artifact):
                    tag = signature.tag_of(subject.document.digest)
                    old = await companions.tagged(repository, tag)
                    if old is not None:
                        artifact = signature.joined(
                            signature.Artifact(old.raw, old.blobs), artifact
                        )
                await companions.put(repository, Companion(artifact.raw, artifact.blobs), tag=tag)

    async def verify(
        self, ref: str, *, fetch: bool, credentials: Credentials | None = None
    ) -> tuple[Verdict, list[Signature]]:
        """The verdict on an image that is here, and the signatures that there are.

        With *fetch* its registry is asked for more of them first.
        """
        image = await asyncio.to_thread(self._store.get, ref)
        evidence = await asyncio.to_thread(self._trust.evidence, image)
        if fetch:
            for text in image.digests:
                await self._fetch(Reference.parse(text), evidence.subjects, credentials)
        verdict = await self._trust.verdict(str(image.id), ref)
        return verdict, await asyncio.to_thread(self._signatures, ref)

    async def _fetch(
        self, name: Reference, subjects: Sequence[Digest], credentials: Credentials | None
    ) -> None:
        async with Transport(self._settings) as transport:
            places = await repositories(transport, name, credentials)
            found, _ = await self._trust.fetch(places, subjects)
        await asyncio.to_thread(self._trust.add, found)

    def _signatures(self, ref: str) -> list[Signature]:
        from tare.trust.signature import Claim, claims

        evidence = self._trust.evidence(self._store.get(ref))
        keys = self._trust.ring().keys
        listed = []
        for subject, artifacts in evidence.artifacts.items():
            for artifact in artifacts:
                for found in claims(artifact, subject):
                    if not isinstance(found, Claim):
                        listed.append(Signature("", str(subject), "", "", found.why))
                        continue
                    signer = next((k.name for k in keys if found.signed_by(k.key)), "")
                    name = found.name.familiar if found.name is not None else ""
                    listed.append(Signature(str(found.form), str(subject), name, signer))
        return list(dict.fromkeys(listed))

    async def publish(
        self, scope: str, given: Mapping[str, bytes], *, credentials: Credentials | None = None
    ) -> None:
        """Give a publisher's metadata to the registry, in the repository that *scope* names."""
        name = Reference.parse(f"{scope}:{TAG}")
        host = endpoint(name.domain)
        own = credentials.meant_for(host) if credentials else None
        async with Transport(self._settings) as transport:
            place = await transport.find(host)
            repository = Repository(Host(transport, place, own), name.path, push=True)
            await companions.put(repository, packed(given), tag=TAG)

    # --- keys, pins, revocations --------------------------------------------------------------

    def trust_key(self, entry: Trusted) -> None:
        """Let a key sign what its scopes say."""
        self._trust.change_ring(self._trust.ring().with_key(entry), f"key {entry.key.id}")

    def forget_key(self, text: str) -> Trusted:
        """Let a key sign nothing more; MissingError."""
        ring = self._trust.ring()
        entry = ring.find(text)
        self._trust.change_ring(ring.without_key(entry), f"no key {entry.key.id}")
        return entry

    def revoke(self, text: str) -> str:
        """Let a key, or an image by its digest, count no more: what was revoked, in words."""
        ring = self._trust.ring()
        if text.startswith("sha256:"):
            digest = Digest.parse(text)
            revoked = replace(ring, revoked=ring.revoked | {digest})
            self._trust.change_ring(revoked, f"revoked {digest}")
            return f"the digest {digest}"
        entry = ring.find(text)
        changed = replace(entry, revoked=self._trust.kept.now())
        self._trust.change_ring(ring.with_key(changed), f"revoked key {entry.key.id}")
        return f"the key {entry.name}"

    async def pin(self, ref: str, digest: Digest | None, *, replacing: bool) -> Digest:
        """Let *ref* mean one digest only: the given one, else that of the image that is here."""
        name = Reference.parse(ref).with_default_tag()
        ring = self._trust.ring()
        if digest is None:
            image = await asyncio.to_thread(self._store.get, str(name))
            evidence = await asyncio.to_thread(self._trust.evidence, image)
            digest = evidence.subjects[0] if evidence.subjects else image.id
        before = ring.pins.get(str(name))
        if before not in (None, digest) and not replacing:
            raise ConflictError(
                f"{name.familiar} is pinned to {before}",
                hint=f"If the new image is wanted: tare trust pin --replace {name.familiar}",
            )
        self._trust.change_ring(ring.with_pin(name, digest), f"pin {name} {digest}")
        return digest

    def unpin(self, ref: str) -> None:
        """Let *ref* mean any digest again; MissingError when it was not pinned."""
        name = Reference.parse(ref).with_default_tag()
        ring = self._trust.ring()
        if str(name) not in ring.pins:
            raise MissingError(f"{name.familiar} is not pinned")
        self._trust.change_ring(ring.with_pin(name, None), f"no pin {name}")
