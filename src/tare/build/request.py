"""What a build is asked for, and what it tells while it works. Values only.

Not for: how either crosses a socket (``api``, ``wire``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from tare.errors import InvalidError, TareError
from tare.model.digest import Digest
from tare.model.spec import Resources, Ulimit

if TYPE_CHECKING:
    from tare.build.dockerfile import Finding
    from tare.build.dockerfile.source import Lines
    from tare.build.provenance import Evidence


class BuildError(InvalidError):
    """A build failed at a step; ``excerpt`` shows the Dockerfile's lines with a marker.

    ``command`` and ``code`` are those of a program that failed, else "" and 0.
    """

    def __init__(self, error: TareError, excerpt: str, *, command: str = "", code: int = 0) -> None:
        super().__init__(str(error), hint=error.hint)
        self.http_status = error.http_status
        self.excerpt = excerpt
        self.command = command
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """All that a client may say of a build.

    ``dockerfile`` is a path in the context, unless ``inline`` is the file itself. ``remote`` is
    where the context comes from, if the client does not send it. ``epoch`` is
    SOURCE_DATE_EPOCH in seconds. ``secrets`` are contents by id, ``agents`` the sockets of SSH
    agents by id. ``platform`` is empty for the host's own. ``sbom`` is the form of a bill of
    materials that is wanted beside the image; ``recipe`` is what the client wants to be told when
    it is to build this again, in its own words.
    """

    dockerfile: str = "Dockerfile"
    remote: str = ""
    inline: bytes | None = None
    tags: tuple[str, ...] = ()
    target: str = ""
    build_args: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    platform: str = ""
    no_cache: bool = False
    pull: bool = False
    cache_from: tuple[str, ...] = ()
    network: str = ""
    allow: tuple[str, ...] = ()
    extra_hosts: tuple[str, ...] = ()
    shm_size: int = 64 << 20
    ulimits: tuple[Ulimit, ...] = ()
    resources: Resources = field(default_factory=Resources)
    secrets: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    agents: Mapping[str, str] = field(default_factory=dict)
    epoch: int | None = None
    check_only: bool = False
    sbom: str = ""
    provenance: bool = False
    recipe: str = ""


class State(StrEnum):
    """How it stands with a step."""

    RUNNING = "running"
    CACHED = "cached"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInfo:
    """One step as people see it: ``number`` of ``total`` in its stage, counted from 1 (FROM is 0).

    ``id`` counts the steps of the whole build as they begin, ``of`` is how many there will be.
    """

    id: int
    of: int
    stage: str
    number: int
    total: int
    text: str
    lines: Lines | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A step begins or ends. ``why`` says why it ran; ``result`` stands for what it made."""

    step: StepInfo
    state: State
    seconds: float = 0.0
    why: tuple[str, ...] = ()
    result: str = ""


@dataclass(frozen=True, slots=True)
class Output:
    """What the program of a step said; ``stream`` is 1 or 2."""

    step: StepInfo
    stream: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Note:
    """Something that is neither: an image is pulled, a file fetched."""

    text: str


@dataclass(frozen=True, slots=True)
class Warned:
    """A mistake that does not stop the build."""

    finding: Finding
    file: str
    excerpt: str


Event = Progress | Output | Note | Warned
Tell = Callable[[Event], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What a build made: the image's id (None where it was only checked)."""

    id: Digest | None
    names: tuple[str, ...] = ()
    steps: int = 0
    cached: int = 0
    evidence: Evidence | None = None
