"""What a build has to do, and what each step depends on. Pure.

`plan` answers which stages are needed for a target and what each starts from. A step's cache key
is made of its *parts*: everything that can change its result, by content, and nothing else. The
layers below are among them (by diff_id, not by who made them), so a layer is only ever used again
above exactly the layers it was made on. `reasons` compares the parts of two steps, which is how
``--explain`` can say why one ran.

Not for: running anything (``executor``), or keeping results (``cache``).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tare.build.dockerfile import (
    Add,
    Base,
    Copy,
    Dockerfile,
    Instruction,
    Onbuild,
    Run,
    Stage,
)
from tare.errors import InvalidError
from tare.model.digest import Digest

FORMAT: Final = "tare.build.v1"
"""Changes whenever the same parts may give another result, so that no old result is used."""

SCRATCH: Final = "scratch"
_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class Planned:
    """One stage that is needed: what it starts from, and the stages that it uses.

    ``parent`` is the index of the stage it starts from; None where it is the image ``base.image``.
    """

    stage: Stage
    base: Base
    parent: int | None
    needs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """The stages that are needed, by index, each after those that it uses."""

    stages: Mapping[int, Planned]
    target: int

    @property
    def images(self) -> tuple[str, ...]:
        """The images that stages start from, as written."""
        names = (p.base.image for p in self.stages.values() if p.parent is None)
        return tuple(dict.fromkeys(name for name in names if name != SCRATCH))


def plan(dockerfile: Dockerfile, target: str, base_of: Callable[[Stage], Base]) -> Plan:
    """The stages that *target* (a name or a number; "" is the last) needs; InvalidError if none.

    *base_of* answers what a stage starts from, variables put in.
    """
    last = dockerfile.stages[-1]
    wanted = dockerfile.stage(target) if target else last
    if wanted is None:
        known = ", ".join(stage.name for stage in dockerfile.stages if stage.name)
        raise InvalidError(
            f"target stage {target!r} could not be found",
            hint=f"the stages are called: {known}" if known else "no stage has a name",
        )
    needed: dict[int, Planned] = {}
    stack = [wanted.index]
    while stack:
        index = stack.pop()
        if index in needed:
            continue
        planned = _planned(dockerfile, dockerfile.stages[index], base_of)
        needed[index] = planned
        stack += planned.needs
    # A stage only ever uses stages above it, so their numbers are an order.
    return Plan({index: needed[index] for index in sorted(needed)}, wanted.index)


def _planned(dockerfile: Dockerfile, stage: Stage, base_of: Callable[[Stage], Base]) -> Planned:
    base = base_of(stage)
    parent = None
    if base.image != SCRATCH:
        found = dockerfile.stage(base.image, before=stage.index) if base.image else None
        # A number is no name here: FROM 0 is an image called 0.
        if found is not None and found.name == base.image.lower():
            parent = found.index
    used = [] if parent is None else [parent]
    for instruction in stage.instructions:
        used += stages_used(dockerfile, instruction, before=stage.index)
    return Planned(stage, base, parent, tuple(dict.fromkeys(used)))


def stages_used(dockerfile: Dockerfile, instruction: Instruction, *, before: int) -> list[int]:
    """The stages that one instruction takes files from."""
    names: Sequence[str] = ()
    match instruction:
        case Copy(from_name=name) if name:
            names = (name,)
        case Run(mount_sources=sources):
            names = sources
        case Onbuild() | Add():
            pass
    found = (dockerfile.stage(name, before=before) for name in names if name)
    return [stage.index for stage in found if stage is not None]


# --- keys ---------------------------------------------------------------------------------------

Parts = Mapping[str, str]


def key_of(parts: Parts) -> str:
    """The cache key of a step with these parts: sha256, in hex."""
    document = json.dumps([FORMAT, sorted(parts.items())], separators=(",", ":"))
    return hashlib.sha256(document.encode("utf-8", "surrogatepass")).hexdigest()


def chain(layers: Iterable[Digest]) -> str:
    """What stands for layers on top of each other, in hex; that of no layers is fixed, too."""
    found = hashlib.sha256()
    for layer in layers:
        found.update(bytes.fromhex(layer.hex))
    return found.hexdigest()


def veiled(value: str) -> str:
    """A value as a key knows it: told apart from others, and not told to who reads the cache."""
    return hashlib.sha256(value.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def without_password(address: str) -> str:
    """An address as it may be told: who wrote a password into it does not want it in history."""
    return re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*://)[^/@]*@", r"\1", address)


# --- why ----------------------------------------------------------------------------------------

_WORDS: Final = {
    "base": "what is below it changed",
    "instruction": "the instruction changed",
    "user": "USER changed",
    "directory": "WORKDIR changed",
    "shell": "SHELL changed",
    "network": "the network changed",
    "epoch": "SOURCE_DATE_EPOCH changed",
    "hosts": "--add-host changed",
    "platform": "the platform changed",
    "owner": "--chown means another owner now",
}


def reasons(old: Parts, new: Parts) -> list[str]:
    """In what the step that has *new* differs from one that had *old*, in words."""
    found: list[str] = []
    for name in sorted(old.keys() | new.keys(), key=lambda n: (n not in _WORDS, n)):
        before, now = old.get(name), new.get(name)
        if before == now:
            continue
        if name in _WORDS:
            found.append(_WORDS[name])
            continue
        kind, _, subject = name.partition(" ")
        match kind:
            case "arg" | "env":
                what = f"{kind.upper()} {subject}"
                change = "is new" if before is None else "is gone" if now is None else "changed"
                found.append(f"{what} {change}")
            case "files":
                found.append("files changed")
            case "mount":
                found.append(f"what is mounted at {subject} changed")
            case _:
                found.append(f"{name} changed")
    return found


def changed_files(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """Which files differ between two descriptions of what was copied, in words; "" for none."""
    changes = [f"{name} changed" for name in new if name in old and old[name] != new[name]]
    changes += [f"{name} is new" for name in new if name not in old]
    changes += [f"{name} is gone" for name in old if name not in new]
    if not changes:
        return ""
    more = len(changes) - _SHOWN
    return ", ".join(changes[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
