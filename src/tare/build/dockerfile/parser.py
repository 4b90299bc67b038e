"""A Dockerfile's bytes to its typed stages; the door to the reader.

Not for variables (`expansion`, `scope`) nor for advice (`checks`).
"""

from __future__ import annotations

import dataclasses
from typing import Final

from tare.build.dockerfile import figures
from tare.build.dockerfile.instructions import (
    Arg,
    CheckOptions,
    Directives,
    Dockerfile,
    Finding,
    From,
    Instruction,
    Maintainer,
    Onbuild,
    Stage,
)
from tare.build.dockerfile.nodes import Tree, decode, read
from tare.build.dockerfile.reading import instruction
from tare.build.dockerfile.source import DockerfileError, Lines, Place, Source
from tare.build.dockerfile.words import quoted

_EMPTY_CONTINUATION: Final = "Empty continuation lines will become errors in a future release"
# Far above what a layered image can have; what looks at all stages for each step stays quick.
_INSTRUCTIONS_MAX: Final = 10_000
_STAGES_MAX: Final = 1_000
_NOT_IN_TRIGGERS: Final = (From, Onbuild, Maintainer)


def parse(text: bytes, *, name: str = "Dockerfile") -> Dockerfile:
    """Read a whole Dockerfile; *name* is for messages. DockerfileError, and no other."""
    tree = Tree(decode(text, name))
    source = tree.source
    args: list[Arg] = []
    starts: list[From] = []
    bodies: list[list[Instruction]] = []
    for count, node in enumerate(read(tree), 1):
        found = instruction(node)
        if count > _INSTRUCTIONS_MAX or len(starts) > _STAGES_MAX:
            reason = f"more than {_INSTRUCTIONS_MAX} instructions or {_STAGES_MAX} stages"
            raise DockerfileError(reason, source, found.lines)
        if isinstance(found, From):
            starts.append(found)
            bodies.append([])
        elif bodies:
            bodies[-1].append(found)
        elif isinstance(found, Arg):
            args.append(found)
        else:
            raise DockerfileError(
                "no build stage in current context",
                source,
                found.lines,
                hint="a Dockerfile begins with FROM; only ARG may stand before it",
            )
    if not starts:
        raise _nothing(source, text, has_args=bool(args))
    return Dockerfile(
        source=source,
        stages=tuple(
            Stage(index=index, start=start, instructions=tuple(body))
            for index, (start, body) in enumerate(zip(starts, bodies, strict=True))
        ),
        global_args=tuple(args),
        directives=_directives(tree),
        warnings=tuple(
            Finding(
                "NoEmptyContinuation",
                Lines(line, line),
                "Empty continuation line",
                _EMPTY_CONTINUATION,
            )
            for line in tree.empty_continuations
        ),
    )


def _nothing(source: Source, text: bytes, *, has_args: bool) -> DockerfileError:
    last = len(source.lines)
    where = Lines(max(last, 1), max(last, 1))
    if not text:
        return DockerfileError("the Dockerfile cannot be empty", source, where)
    reason = "dockerfile contains no stages to build" if has_args else "file with no instructions"
    return DockerfileError(reason, source, where, hint="a Dockerfile begins with FROM")


def parse_trigger(text: str, place: Place) -> Instruction:
    """One ONBUILD trigger of a base image, to be told at *place* (the FROM). DockerfileError."""
    name = f"{place.source.name} (ONBUILD trigger of its base image)"
    # The configuration of an image may hold what no file can.
    tree = Tree(decode(text.encode(errors="replace"), name))
    nodes = list(read(tree))
    if len(nodes) != 1:
        reason = "onbuild trigger should be a single expression"
        raise DockerfileError(reason, place.source, place.lines)
    found = instruction(nodes[0])
    if isinstance(found, _NOT_IN_TRIGGERS):
        reason = f"{found.keyword} isn't allowed as an ONBUILD trigger"
        raise DockerfileError(reason, tree.source, found.lines)
    return dataclasses.replace(
        found,
        place=Place(place.source, place.lines, found.original, (), found.place.escape),
    )


def _directives(tree: Tree) -> Directives:
    syntax = tree.directives.get("syntax", ("", 0))[0].partition(" ")[0]
    check, line = tree.directives.get("check", ("", 0))
    try:
        options = check_options(check.partition(" ")[0])
    except ValueError as error:
        raise DockerfileError(str(error), tree.source, Lines(line, line)) from None
    return Directives(syntax, tree.escape, options)


def check_options(text: str) -> CheckOptions:
    """What ``# check=`` says; ValueError in BuildKit's words."""
    skip: frozenset[str] = frozenset()
    experimental: frozenset[str] = frozenset()
    error = False
    for part in text.split(";") if text else ():
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"invalid check option {quoted(part)}")
        names = frozenset(name.strip() for name in value.split(","))
        match key.strip():
            case "skip":
                skip = names
            case "experimental":
                experimental = names
            case "error":
                try:
                    error = figures.truth(value.strip())
                except ValueError:
                    raise ValueError(f"failed to parse check option {quoted(part)}") from None
            case unknown:
                raise ValueError(f"invalid check option {quoted(unknown)}")
    return CheckOptions(skip, experimental, error)
