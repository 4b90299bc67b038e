"""Which images are behind what they were made of, and why.

An image that was built is behind when a name it was built on means something else now: in its
registry, or, for a base that no registry has, here. An image that was bootstrapped is behind when
its distribution has newer signed packages. One that was pulled is behind when its tag moved on. An
image whose base is behind is behind, too: `find` answers bases before what is built on them, which
is the order to build them again.

Not for: building again (the client has the context), or the package lists (image.newer_packages).
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from tare.build.sbom.inventory import FILE_MAX, Files, Inventory
from tare.engine import origins
from tare.errors import FailedError, MissingError, TareError
from tare.model.digest import Digest
from tare.model.reference import Reference
from tare.model.updates import Kind, Standing, Verdict

if TYPE_CHECKING:
    from tare.engine.images import Images
    from tare.engine.origins import Base
    from tare.engine.registries import Registries
    from tare.image.bootstrap import Recipe
    from tare.image.newer_packages import Newer, PackageLists
    from tare.image.registry.credentials import Credentials
    from tare.image.store import Image, ImageStore

BASE_NAME: Final = "org.opencontainers.image.base.name"
BASE_DIGEST: Final = "org.opencontainers.image.base.digest"
_AT_ONCE: Final = 4


class Found(NamedTuple):
    """What was found of one thing that an image is made of; *pull* is what to pull anew."""

    verdict: Verdict
    why: str = ""
    pull: str = ""


class Updates:
    """Asks registries and distributions what is new."""

    def __init__(self, images: Images, store: ImageStore, registries: Registries) -> None:
        self._images = images
        self._store = store
        self._registries = registries

    async def find(
        self, names: Sequence[str] = (), *, credentials: Mapping[str, Credentials] | None = None
    ) -> list[Standing]:
        """How these images stand (none given: all that have a name), bases first."""
        chosen: dict[str, tuple[str, Image]] = {}
        if names:
            for ref in names:
                image = await self._images.get(ref)
                name = ref if any(_same(tag, ref) for tag in image.tags) else _named(image)
                chosen[str(image.id)] = (name, image)
        else:
            for image in await self._images.list():
                if image.tags:
                    chosen[str(image.id)] = (image.tags[0], image)
        asking = _Asking(self._images, self._store, self._registries, credentials or {})
        try:
            found = await asyncio.gather(*(asking.judge(*pair) for pair in chosen.values()))
        finally:
            await asyncio.to_thread(asking.close)
        return _inherited(_ordered([*found]))


def _same(tag: str, ref: str) -> bool:
    try:
        return Reference.parse(ref).with_default_tag().familiar == tag
    except TareError:
        return False


def _named(image: Image) -> str:
    return image.tags[0] if image.tags else str(image.id)


def _ordered(found: list[Standing]) -> list[Standing]:
    """Bases before what is built on them; what goes in a circle as it comes."""
    by_name = {one.name: one for one in found}
    done: dict[str, Standing] = {}

    def visit(one: Standing, above: frozenset[str]) -> None:
        below = by_name.get(one.base)
        if below is not None and below.name not in above and below.name not in done:
            visit(below, above | {one.name})
        done.setdefault(one.name, one)

    for one in found:
        visit(one, frozenset())
    return list(done.values())


def _inherited(found: list[Standing]) -> list[Standing]:
    """What is built on something that is behind is behind, too."""
    behind: set[str] = set()
    result = []
    for one in found:
        if one.base in behind and one.verdict is not Verdict.BEHIND:
            words = (*one.reasons, f"its base {one.base} is behind")
            one = replace(one, verdict=Verdict.BEHIND, reasons=words)
        if one.verdict is Verdict.BEHIND:
            behind.add(one.name)
        result.append(one)
    return result


class _Asking:
    """One round of questions: each name is asked for once."""

    def __init__(
        self,
        images: Images,
        store: ImageStore,
        registries: Registries,
        credentials: Mapping[str, Credentials],
    ) -> None:
        self._images = images
        self._store = store
        self._registries = registries
        self._credentials = credentials
        self._asked: dict[str, asyncio.Task[Digest | TareError]] = {}
        self._crowd = asyncio.Semaphore(_AT_ONCE)
        self._lock = threading.Lock()
        self._lists: PackageLists | None = None

    async def judge(self, name: str, image: Image) -> Standing:
        """How one image stands."""
        from tare.image.newer_packages import recipe_of

        origin = await asyncio.to_thread(origins.origin, self._store, image.id)
        if origin is not None:
            base = next((one.name for one in origin.bases if one.base), "")
            told = Standing(
                name=name, id=str(image.id), kind=Kind.BUILT, base=base, client=origin.client
            )
            return await self._of_bases(told, origin.bases)
        recipe = recipe_of(image)
        if recipe is not None:
            told = Standing(
                name=name,
                id=str(image.id),
                kind=Kind.BOOTSTRAPPED,
                base=f"{recipe.distribution.name} {recipe.suite}",
                bootstrap=recipe.asked(),
            )
            return await self._of_packages(told, image, recipe)
        return await self._of_registry(name, image)

    async def _of_bases(self, told: Standing, bases: Sequence[Base]) -> Standing:
        return _summed(told, await asyncio.gather(*(self._base(one) for one in bases)))

    async def _base(self, base: Base) -> Found:
        """Whether a name still means what it meant."""
        what = "its base" if base.base else "what it copies from,"
        try:
            reference = Reference.parse(base.name)
        except TareError:
            return Found(Verdict.CURRENT)  # it was named by id
        if reference.digest is not None:
            return Found(Verdict.CURRENT)
        if base.digests:
            return await self._moved(reference, base.digests, f"{what} {base.name}")
        try:
            now = await self._images.get(base.name)
        except MissingError:
            return Found(Verdict.UNKNOWN, f"{what} {base.name} is not here any more")
        if str(now.id) != base.id:
            return Found(Verdict.BEHIND, f"{what} {base.name} was made anew here")
        return Found(Verdict.CURRENT)

    async def _moved(self, reference: Reference, known: Sequence[str], what: str) -> Found:
        now = await self._registry_digest(reference)
        if isinstance(now, TareError):
            return Found(Verdict.UNKNOWN, f"{what}: {now}")
        if str(now) in known:
            return Found(Verdict.CURRENT)
        return Found(Verdict.BEHIND, f"{what} is {str(now)[:19]} now", reference.familiar)

    async def _registry_digest(self, reference: Reference) -> Digest | TareError:
        key = str(reference.with_default_tag())
        task = self._asked.get(key)
        if task is None:
            task = self._asked[key] = asyncio.ensure_future(self._ask(reference))
        return await task

    async def _ask(self, reference: Reference) -> Digest | TareError:
        given = self._credentials.get(reference.domain)
        try:
            async with self._crowd:
                found = await self._registries.describe(reference, credentials=given)
        except TareError as error:
            return error
        return found.descriptor.digest

    async def _of_packages(self, told: Standing, image: Image, recipe: Recipe) -> Standing:
        opened = await self._images.tree(str(image.id))
        try:
            found = await asyncio.to_thread(self._newer, opened, image, recipe)
        except TareError as error:
            return replace(told, verdict=Verdict.UNKNOWN, reasons=(str(error),))
        if not found:
            return told
        count = f"{len(found)} newer package{'s' if len(found) > 1 else ''}"
        return replace(told, verdict=Verdict.BEHIND, reasons=(count,), packages=tuple(found))

    def _newer(self, opened: Callable[[], int], image: Image, recipe: Recipe) -> list[Newer]:
        from tare.image.newer_packages import PackageLists

        root = opened()
        try:
            status = Files(root, Inventory()).read(b"var/lib/dpkg/status", FILE_MAX)
        finally:
            os.close(root)
        if status is None:
            raise FailedError("the image has no list of its packages that can be read")
        with self._lock:
            if self._lists is None:
                self._lists = PackageLists()
        return self._lists.newer(recipe, status, image.config.platform)

    def close(self) -> None:
        """Delete what was fetched; no question may be under way."""
        if self._lists is not None:
            self._lists.close()

    async def _of_registry(self, name: str, image: Image) -> Standing:
        """One that was neither built nor bootstrapped here: what its manifest says, and its tag."""
        annotations = await asyncio.to_thread(_annotations, self._store, image.id)
        base, digest = annotations.get(BASE_NAME, ""), annotations.get(BASE_DIGEST, "")
        told = Standing(name=name, id=str(image.id), kind=Kind.UNKNOWN, base=base)
        verdicts: list[Found] = []
        try:
            reference = Reference.parse(name).with_default_tag()
            known = [
                str(one.digest) for one in map(Reference.parse, image.digests)
                if one.name == reference.name
            ]  # fmt: skip
            if known and reference.digest is None and not name.startswith("sha256:"):
                told = replace(told, kind=Kind.PULLED)
                verdicts.append(await self._moved(reference, known, "its tag in the registry"))
            if base and digest:
                about = Reference.parse(base).with_default_tag()
                verdicts.append(await self._moved(about, [digest], f"its base {base}"))
        except TareError as error:
            verdicts.append(Found(Verdict.UNKNOWN, str(error)))
        if not verdicts:
            return replace(
                told,
                verdict=Verdict.UNKNOWN,
                reasons=("nothing is known of what it was made of",),
            )
        return _summed(told, verdicts)


def _summed(told: Standing, found: Sequence[Found]) -> Standing:
    """The worst of what was found, with all reasons."""
    seen = {one.verdict for one in found}
    return replace(
        told,
        verdict=next((v for v in (Verdict.BEHIND, Verdict.UNKNOWN) if v in seen), Verdict.CURRENT),
        reasons=tuple(one.why for one in found if one.why),
        pulls=tuple(one.pull for one in found if one.pull),
    )


def _annotations(store: ImageStore, image: Digest) -> dict[str, str]:
    from tare.model import oci

    found: dict[str, str] = {}
    for kind, raw in store.manifests(image):
        try:
            parsed = oci.parse_manifest(raw, kind)
        except TareError:
            continue
        found.update(parsed.annotations)
    return found
