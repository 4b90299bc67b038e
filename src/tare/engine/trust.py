"""Trust in the engine: which images may be pulled, loaded, built from, created, started.

`Trust.check` is asked with an image and the name it was asked by, always about the digest that will
be used. What is on decides what becomes of the verdict: nothing (``off``), a warning (``warn``),
a refusal (``on``). A request may ask for more than is set (`ASKED`), never for less. A verdict is
remembered until policy, ring or evidence change, so that a start pays for it once.

Until a policy, a key or a pin is there, ``warn`` says nothing: there is nothing to compare with.
When policy or ring cannot be read, nothing is accepted.

Not for: what makes a verdict (``trust``), how signatures are fetched (image.registry.companions).
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tare.engine.evidence import EvidenceStore
from tare.engine.following import Following
from tare.errors import DeniedError, InvalidError, TareError
from tare.image.registry import companions
from tare.model import oci
from tare.model.digest import Digest
from tare.model.oci import Descriptor, MediaType
from tare.model.reference import Reference
from tare.trust.identity import within
from tare.trust.switch import Mode

if TYPE_CHECKING:
    from tare.engine.events import Events
    from tare.image.archive import Loaded
    from tare.image.registry.client import Repository
    from tare.image.registry.pull import Found
    from tare.image.registry.settings import Settings
    from tare.image.store import Image, ImageStore
    from tare.trust.policy import Policy
    from tare.trust.ring import Ring
    from tare.trust.signature import Artifact
    from tare.trust.verdict import Evidence, Verdict

ASKED: Final[contextvars.ContextVar[Mode]] = contextvars.ContextVar("ASKED", default=Mode.OFF)
"""What the request under way asks for itself."""
ATTACHED: Final = "tare/evidence.json"
"""The member of archives that carries signatures (engine.attached)."""
SYSTEM_POLICY: Final = Path("/etc/containers/policy.json")
_UNNAMED: Final = Reference("localhost", "unnamed")
_REMEMBERED: Final = 4096
_SECONDS: Final = 60
_DOCUMENTS: Final = 64

Stamp = tuple[object, ...]


class Trust:
    """The trust of one engine. Its coroutines may be called at once, its plain calls in threads."""

    def __init__(
        self,
        directory: Path,
        config: Path,
        store: ImageStore,
        events: Events,
        *,
        system: bool,
        look_alikes: str = "warn",
    ) -> None:
        self.look_alikes = look_alikes
        self.kept = EvidenceStore(directory)
        self._paths = [config / "policy.json", *([SYSTEM_POLICY] if system else [])]
        self._store = store
        self._events = events
        self._mode = self.kept.mode()
        self._generation = 0
        self._ring: Ring | None = None
        self._policy: tuple[Stamp, Policy | TareError] | None = None
        self._watched: list[str] = []
        self._verdicts: dict[tuple[str, str], tuple[Stamp, Verdict]] = {}
        self.following = Following(directory)
        self._configured = self.kept.has_ring or self.following.any
        self.told: list[Callable[[str, Verdict, bool], None]] = []
        """Called with every decision: what was done, the verdict, whether it was refused."""

    # --- what is set --------------------------------------------------------------------------

    @property
    def mode(self) -> Mode:
        """What is set for all requests."""
        return self._mode

    @property
    def effective(self) -> Mode:
        """What holds for the request under way."""
        return self._mode.at_least(ASKED.get())

    def set_mode(self, mode: Mode) -> None:
        """Turn the switch; it stays so."""
        self.kept.set_mode(mode)
        self._mode = mode
        self._events.emit("trust", str(mode), "", {})

    def ring(self) -> Ring:
        """The trusted keys, pins and revocations; FailedError when they cannot be read."""
        if self._ring is None:
            self._ring = self.kept.ring()
        return self._ring

    def change_ring(self, ring: Ring, how: str) -> None:
        """Keep *ring* from now on; *how* it was changed is told."""
        self.kept.set_ring(ring)
        self._ring = ring
        self._configured = True
        self.forget()
        self._events.emit("trust", "change", "", {"name": how})

    def follow(self, scope: str, given: Mapping[str, bytes]) -> None:
        """Follow a publisher for *scope*, or take newer metadata of it."""
        self.following.follow(scope, given, self.kept.now())
        self._configured = True
        self.forget()
        self._events.emit("trust", "follow", "", {"name": scope})

    def unfollow(self, scope: str) -> None:
        """Follow no publisher for *scope* any more."""
        self.following.unfollow(scope)
        self.forget()
        self._events.emit("trust", "unfollow", "", {"name": scope})

    def forget(self) -> None:
        """What was concluded counts no more."""
        self._generation += 1
        self._verdicts.clear()

    def policy_path(self) -> Path | None:
        """The policy file that holds, if there is one."""
        return next((path for path in self._paths if os.path.lexists(path)), None)

    def policy(self) -> Policy:
        """The policy as it is now; InvalidError, DeniedError when its file cannot be believed."""
        stamp = self._policy_stamp()
        if self._policy is None or self._policy[0] != stamp:
            found = self._read_policy()
            self._policy = (self._policy_stamp(), found)
        found = self._policy[1]
        if isinstance(found, TareError):
            raise found
        return found

    def _policy_stamp(self) -> Stamp:
        path = self.policy_path()
        return () if path is None else (_stamp(path), *(_stamp(name) for name in self._watched))

    def _read_policy(self) -> Policy | TareError:
        from tare.trust import policy

        path = self.policy_path()
        self._watched = []
        if path is None:
            return policy.NOTHING
        try:
            return policy.parse(_guarded(str(path), policy.LIMIT), str(path), self._read_key)
        except TareError as error:
            return error
        except OSError as error:
            return InvalidError(f"the policy cannot be read: {error}")

    def _read_key(self, path: str) -> bytes:
        self._watched.append(path)
        return _guarded(path, 1 << 20)

    @property
    def configured(self) -> bool:
        """Whether there is anything to compare with: a policy of the engine's own, or a ring."""
        # Debian installs a system policy that accepts everything: that alone is no wish.
        return self._configured or os.path.lexists(self._paths[0])

    # --- verdicts -----------------------------------------------------------------------------

    async def check(self, image_id: str, asked: str, doing: str) -> list[str]:
        """See that an image may be used under the name *asked*: warnings, or DeniedError."""
        mode = self.effective
        if mode is Mode.OFF or (mode is Mode.WARN and not self.configured):
            return []
        verdict = await self.verdict(image_id, asked)
        return self._decided(verdict, mode, doing)

    def _decided(self, verdict: Verdict, mode: Mode, doing: str) -> list[str]:
        if ASKED.get() is Mode.ON:
            verdict = verdict.strict()
        refused = mode is Mode.ON and not verdict.accepted
        if refused or doing != "start":
            self._tell(doing, verdict, refused=refused)
        if verdict.accepted:
            return []
        if refused:
            raise verdict.error()
        return [f"{verdict.error()} (tare trust on would refuse it)"]

    def _tell(self, doing: str, verdict: Verdict, *, refused: bool) -> None:
        attributes = {
            "name": verdict.name,
            "digest": verdict.digest,
            "verdict": str(verdict.standing),
            "rule": verdict.rule,
            "reasons": "; ".join(verdict.reasons),
            "doing": doing,
            "refused": "true" if refused else "false",
        }
        if verdict.key:
            attributes["key"] = verdict.key
        self._events.emit("image", "trust", verdict.name, attributes)
        for told in self.told:
            told(doing, verdict, refused)

    async def verdict(self, image_id: str, asked: str = "") -> Verdict:
        """The verdict on an image that is here, under the name *asked* or its own."""
        key = (image_id, asked)
        stamp = self._stamp()
        known = self._verdicts.get(key)
        if known is not None and known[0] == stamp:
            return known[1]
        verdict = await asyncio.to_thread(self._judge_stored, image_id, asked)
        if len(self._verdicts) >= _REMEMBERED:
            self._verdicts.clear()
        self._verdicts[key] = (stamp, verdict)
        return verdict

    def _stamp(self) -> Stamp:
        # Keys become valid and expire: a verdict is asked for again now and then.
        return (self._generation, self.kept.now() // _SECONDS, self._policy_stamp())

    def _judge_stored(self, image_id: str, asked: str) -> Verdict:
        image = self._store.get(image_id)
        names = self._names(image, asked)
        return self._judge(self.evidence(image), names)

    def _names(self, image: Image, asked: str) -> list[Reference]:
        """The names under which an image may be accepted, the one that was asked for first.

        Where a rule or a pin names what was asked for, only that name counts. Else a local name
        may stand for the one by which the image was pulled.
        """
        own = [Reference.parse(text) for text in (*image.digests, *image.tags)]
        with contextlib.suppress(InvalidError):
            name = Reference.parse(asked).with_default_tag()
            if self._store.find(name) == image.id or name in own:
                named = self.policy().explicit(name) or str(name) in self.ring().pins
                named = named or any(within(scope, name) for scope in self.following.states())
                return [name] if named else [name, *own[: len(image.digests)]]
        return own or [_UNNAMED]

    def _judge(
        self, evidence: Evidence, names: Sequence[Reference], *, arriving: bool = False
    ) -> Verdict:
        from tare.trust.verdict import judge

        policy, ring, now = self.policy(), self.ring(), self.kept.now()
        followed = self.following.states()
        found = [
            judge(name, evidence, policy, ring, now, followed=followed, arriving=arriving)
            for name in names[:_DOCUMENTS]
        ]
        return next((one for one in found if one.accepted), found[0])

    def evidence(self, image: Image) -> Evidence:
        """All that is kept about an image."""
        return self._evidence(image.id, self._store.manifests(image.id))

    def _evidence(
        self,
        image: Digest,
        documents: Sequence[tuple[str, bytes]],
        more: Mapping[Digest, Sequence[Artifact]] | None = None,
    ) -> Evidence:
        from tare.trust.verdict import Evidence, chain

        subjects = chain(documents, image)
        artifacts = {
            subject: (*(more or {}).get(subject, ()), *self.kept.artifacts(subject))
            for subject in subjects
        }
        return Evidence(image, subjects, artifacts, self.kept.made(image))

    # --- pull ---------------------------------------------------------------------------------

    async def pulling(
        self, places: Sequence[Repository], reference: Reference, found: Found
    ) -> list[str]:
        """See that what a registry offers may be brought, before any of its layers is."""
        mode = self.effective
        if mode is Mode.OFF or (mode is Mode.WARN and not self.configured):
            return []
        documents = [
            (found.top.media_type, found.top.raw),
            (found.manifest.media_type, found.manifest.raw),
        ]
        image = found.manifest.config.digest
        evidence = await asyncio.to_thread(self._evidence, image, documents)
        fetched, trouble = await self.fetch(places, evidence.subjects)
        evidence = await asyncio.to_thread(self._evidence, image, documents, fetched)
        if self.following.any:
            stale = await self.following.refresh(places, reference, self.kept.now())
            self.forget()
            trouble = stale or trouble
        verdict = await asyncio.to_thread(self._judge, evidence, [reference], arriving=True)
        try:
            warnings = self._decided(verdict, mode, "pull")
        except DeniedError as error:
            if trouble:
                raise DeniedError(f"{error}; {trouble}", hint=error.hint) from None
            raise
        await asyncio.to_thread(self.add, fetched)
        return warnings

    async def fetch(
        self, places: Sequence[Repository], subjects: Sequence[Digest]
    ) -> tuple[dict[Digest, list[Artifact]], str]:
        """What a registry has about *subjects*; and why there may be more, if it failed."""
        from tare.trust.signature import Artifact

        trouble = ""
        found: dict[Digest, list[Artifact]] = {}
        for subject in subjects:
            for place in reversed(places):  # the registry itself, then its mirrors
                try:
                    listed = await companions.fetch(place, subject)
                except TareError as error:
                    trouble = f"signatures could not be fetched from {place}: {error}"
                    continue
                if listed:
                    found[subject] = [Artifact(one.raw, one.blobs) for one in listed]
                    break
        return found, trouble

    def add(self, artifacts: Mapping[Digest, Sequence[Artifact]]) -> None:
        """Keep signatures; in a thread."""
        for subject, listed in artifacts.items():
            self.kept.add(subject, listed)
        if artifacts:
            self.forget()

    # --- names ------------------------------------------------------------------------------

    def look(self, name: Reference, settings: Settings) -> tuple[list[str], bool]:
        """What a name resembles, in sentences, and whether its registry may see credentials.

        Asked before anything is sent. DeniedError where the administrator wants such names refused.
        A name for which there is a rule, a key or a pin is meant as it is written.
        """
        if self.look_alikes == "off" or self._named(name):
            return [], True
        from tare.trust.lookalike import Level, look

        found = look(name, hosts=[host for host in (name.domain,) if settings.known(host)])
        if settings.of(name.domain).mirrors:
            # A mirror may have names of its own where Docker Hub has none.
            found = [one for one in found if one.level is Level.WARNING]
        warnings = [one for one in found if one.level is Level.WARNING]
        if warnings and self.look_alikes == "refuse":
            raise DeniedError(
                warnings[0].text,
                hint="If it is meant: tare trust pin or tare trust key add says so for the name,"
                f' and [registries."{name.domain}"] in config.toml for the registry.',
            )
        return [one.text for one in found], not any(one.host for one in warnings)

    def _named(self, name: Reference) -> bool:
        if not self.configured:
            return False
        with contextlib.suppress(TareError):
            ring = self.ring()
            keys = any(one.covers(name) and "*" not in one.scopes for one in ring.keys)
            return keys or str(name) in ring.pins or self.policy().explicit(name) is not None
        return False

    # --- load, import, save -------------------------------------------------------------------

    def loading(self, images: Sequence[Loaded], mode: Mode, asked: Mode) -> None:
        """See that what an archive holds may be taken in; in a thread, before it is named."""
        token = ASKED.set(asked)
        try:
            for image in images:
                self._load_one(image, mode)
        finally:
            ASKED.reset(token)

    def _load_one(self, image: Loaded, mode: Mode) -> None:
        from tare.engine import attached

        documents, found = attached.read(image)
        evidence = self._evidence(image.config.digest, documents, found)
        if mode is Mode.ON or (mode is Mode.WARN and self.configured):
            # Each name stands for itself here: the archive chose them.
            for name in image.names or (_UNNAMED,):
                self._decided(self._judge(evidence, [name], arriving=True), mode, "load")
        self.add({subject: one for subject, one in found.items() if subject in evidence.subjects})

    def loaded(self, images: Sequence[Loaded]) -> None:
        """Keep the documents that lead to what was taken in; in a thread, after it is named."""
        from tare.engine import attached
        from tare.trust.verdict import chain

        for image in images:
            documents, _ = attached.read(image)
            subjects = chain(documents, image.config.digest)
            for kind, raw in documents:
                if Digest.of(raw) in subjects:
                    parsed = oci.parse_manifest(raw, kind)
                    self._store.add_manifest(image.config.digest, raw, parsed.media_type)
        self.forget()

    def importing(self) -> None:
        """DeniedError where trust is on: an archive of files has nothing that could be signed."""
        if self.effective is Mode.ON:
            raise DeniedError(
                "trust is on, and the archive of a root file system cannot be signed",
                hint="Build it instead (FROM scratch, ADD), or load an image that was signed.",
            )

    def attachment(self, images: Sequence[Digest]) -> bytes:
        """What to put into an archive of *images*, so that their signatures travel with them."""
        if not self.kept.any:
            return b""
        from tare.engine import attached

        return attached.encode(
            [self.evidence(self._store.get(str(image))) for image in images], self._store
        )

    # --- made here ----------------------------------------------------------------------------

    async def accepted(self, image_id: str, asked: str = "") -> bool:
        """Whether an image would be accepted if trust were on."""
        if not self.configured and not await asyncio.to_thread(
            self.kept.made, Digest.parse(image_id)
        ):
            return False
        try:
            return (await self.verdict(image_id, asked)).accepted
        except TareError:
            return False

    async def made(self, image: Digest, *, accepted: bool) -> None:
        """Remember that the engine made *image*, and whether all it is made of was accepted."""
        await asyncio.to_thread(self.kept.mark_made if accepted else self.kept.unmark_made, image)
        self.forget()

    # --- signing ------------------------------------------------------------------------------

    def to_sign(self, ref: str) -> tuple[Reference, Descriptor, bool]:
        """What a signature of *ref* is about: its name, a document, whether a registry has it.

        An image that no registry has gets the manifest that `tare save` writes.
        """
        image = self._store.get(ref)
        name = Reference.parse(ref).with_default_tag() if _is_name(ref) else None
        if name is None or self._store.find(name) != image.id:
            tags = [Reference.parse(text) for text in image.tags]
            if len(tags) != 1:
                raise InvalidError(
                    f"the image {ref} has {len(tags)} names: a signature is for one",
                    hint="name the image by the name it is signed for",
                )
            [name] = tags
        by_digest = [Reference.parse(text) for text in image.digests]
        known = [one.digest for one in by_digest if one.name == name.name and one.digest]
        documents = {Digest.of(raw): (kind, raw) for kind, raw in self._store.manifests(image.id)}
        subjects = self.evidence(image).subjects
        for digest in (*(d for d in subjects if d in known), *subjects):
            kind, raw = documents[digest]
            parsed = oci.parse_manifest(raw, kind)
            described = Descriptor(media_type=parsed.media_type, digest=digest, size=len(raw))
            return name, described, digest in known
        raw = self._store.manifest(image)
        self._store.add_manifest(image.id, raw, MediaType.OCI_MANIFEST)
        described = Descriptor(
            media_type=MediaType.OCI_MANIFEST, digest=Digest.of(raw), size=len(raw)
        )
        return name, described, False

    def collect(self) -> None:
        """Delete what is about images that are gone; in a thread."""
        images = self._store.list()
        subjects = [
            Digest.of(raw) for image in images for _, raw in self._store.manifests(image.id)
        ]
        self.kept.keep_only(subjects, [image.id for image in images])


def _is_name(text: str) -> bool:
    with contextlib.suppress(InvalidError):
        Reference.parse(text)
        return True
    return False


def _stamp(path: str | Path) -> Stamp:
    try:
        found = os.stat(path)
    except OSError as error:
        return (str(path), error.errno)
    return (str(path), found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode, found.st_uid)


def _guarded(path: str, limit: int) -> bytes:
    """A file that only root or the engine's user may write; DeniedError names whose fault it is."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise DeniedError(f"{path} is no regular file, so it is not believed")
        if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
            raise DeniedError(
                f"{path} can be written by others (owner {found.st_uid},"
                f" mode {found.st_mode & 0o7777:04o}), so it is not believed",
                hint=f"chown root {path} && chmod go-w {path}",
            )
        raw = file.read(limit + 1)
    if len(raw) > limit:
        raise InvalidError(f"{path} is longer than {limit} bytes")
    return raw
