"""The images of one audit: which, their files, what trust and the advisories say of them.

Not for: judging one (`image`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from tare.audit import finding, image, image_scan, vulnerabilities
from tare.audit.finding import Item
from tare.audit.image import Subject
from tare.audit.image_scan import ImageFacts
from tare.audit.request import AuditBody
from tare.audit.vulnerabilities import Database
from tare.engine.engine import Engine
from tare.errors import InvalidError, TareError
from tare.image.store import Image
from tare.model.reference import DEFAULT_DOMAIN, Reference

_FILELESS = frozenset((
    "image-user", "image-trusted-base", "image-content-trust", "image-healthcheck", "image-age",
    "image-update-alone", "image-add", "image-secrets", "image-verified-packages", "image-signed",
    "image-volumes",
))  # fmt: skip
MIRRORED = "vulnerabilities"
"""The directory beside the configuration where advisories are kept, if somebody keeps them."""


async def audit(
    engine: Engine, asked: AuditBody, names: Sequence[str], remarks: list[str]
) -> dict[str, tuple[Item, ...]]:
    """The items of the checks *names* for the images that *asked* means; MissingError."""
    if asked.max_age_days < 1:
        raise InvalidError("the age of an image is a number of days from 1 on")
    if asked.names:
        found = [(name, await engine.images.get(name)) for name in asked.names]
    else:
        found = [(_name(one), one) for one in await engine.images.list()]
    if not found:
        return {name: (finding.inapplicable("there is no image"),) for name in names}
    facts: list[tuple[ImageFacts | None, str]] = [(None, "")] * len(found)
    if set(names) - _FILELESS:
        facts = [await _facts(engine, one, remarks) for _, one in found]
    advisories = None
    if "image-vulnerabilities" in names:
        advisories = await asyncio.to_thread(_advisories, engine, asked, facts, remarks)
    subjects = [
        await _subject(engine, asked, name, one, files, advisories)
        for (name, one), files in zip(found, facts, strict=True)
    ]

    def judge() -> dict[str, tuple[Item, ...]]:
        return {
            name: tuple(item for one in subjects for item in image.judge(one, name))
            for name in names
        }

    return await asyncio.to_thread(judge)


def _name(one: Image) -> str:
    return one.tags[0] if one.tags else one.short_id


async def _facts(engine: Engine, one: Image, remarks: list[str]) -> tuple[ImageFacts | None, str]:
    try:
        paths = await engine.images.layers(str(one.id))
        # A layer that hides all below it leaves those out: pair them from the top.
        named = list(zip(reversed(one.layers), reversed(list(paths)), strict=False))
        layers = [(str(digest), os.fspath(path)) for digest, path in reversed(named)]
        facts = await asyncio.to_thread(image_scan.scan, str(one.id), layers)
    except (OSError, TareError) as error:
        return None, str(error)
    if any(layer.cut_short for _, layer in facts.layers):
        remarks.append(f"{_name(one)} has too many files: not all were looked at")
    remarks += [f"{_name(one)}: {note}" for note in facts.inventory.notes]
    return facts, ""


def _advisories(
    engine: Engine,
    asked: AuditBody,
    facts: Sequence[tuple[ImageFacts | None, str]],
    remarks: list[str],
) -> Database | None:
    path = asked.vulnerabilities
    if not path:
        mirrored = engine.paths.config / MIRRORED
        if not mirrored.is_dir() or not any(Path(mirrored).iterdir()):
            return None
        path = str(mirrored)
    wanted = {
        (package.kind, name)
        for one, _ in facts
        if one is not None
        for package in one.inventory.packages
        for name, _ in vulnerabilities.names_of(package)
    }
    found = vulnerabilities.load(path, wanted)
    if found.unreadable:
        remarks.append(f"{found.unreadable} documents in {path} could not be read as advisories")
    return found


async def _subject(  # noqa: PLR0917  # what the loop has, in its order
    engine: Engine,
    asked: AuditBody,
    name: str,
    one: Image,
    files: tuple[ImageFacts | None, str],
    advisories: Database | None,
) -> Subject:
    mode, verdict, accepted = await _trust(engine, one)
    return Subject(
        image=one,
        name=name,
        facts=files[0],
        trouble=files[1],
        advisories=advisories,
        trust_mode=mode,
        verdict=verdict,
        accepted=accepted,
        official=any(_official(tag) for tag in one.tags),
        max_age_days=asked.max_age_days,
    )


async def _trust(engine: Engine, one: Image) -> tuple[str, str, bool]:
    """What trust is set to, and what it says of an image."""
    try:
        verdict = await engine.trust.verdict(str(one.id))
    except TareError as error:
        return str(engine.trust.mode), f"its evidence cannot be judged: {error}", False
    reasons = "; ".join(verdict.reasons)
    return str(engine.trust.mode), f"{verdict.standing}: {reasons}", verdict.accepted


def _official(tag: str) -> bool:
    try:
        reference = Reference.parse(tag)
    except TareError:
        return False
    return reference.domain == DEFAULT_DOMAIN and reference.path.startswith("library/")
