"""How an image stands beside what it was made of, as a value. Not for finding it out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """How an image came to be here: what makes it anew."""

    BUILT = "built"
    BOOTSTRAPPED = "bootstrapped"
    PULLED = "pulled"
    UNKNOWN = "unknown"


class Verdict(StrEnum):
    """How an image stands."""

    CURRENT = "current"
    BEHIND = "behind"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How one image stands: ``reasons`` say why.

    ``client`` is the recipe in the client's words, ``bootstrap`` what `image.bootstrap` was asked
    for, ``pulls`` the names that mean something else in their registries now.
    """

    name: str
    id: str
    kind: Kind
    verdict: Verdict = Verdict.CURRENT
    base: str = ""
    reasons: tuple[str, ...] = ()
    packages: tuple[tuple[str, str, str], ...] = ()
    client: str = ""
    pulls: tuple[str, ...] = ()
    bootstrap: tuple[tuple[str, str], ...] = ()
