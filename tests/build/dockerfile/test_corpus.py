"""A corpus of real-looking Dockerfiles: each with a summary of what it means.

``NAME.Dockerfile`` and ``NAME.json`` in tests/data/dockerfiles. The summary has the variables put
in, for linux/amd64, without build arguments, and the findings of the checks. After a change that
is meant, write the summaries anew with ``python tests/build/dockerfile/test_corpus.py`` (src on
PYTHONPATH) and read the difference.
"""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path

import pytest

from tare.build.checks import check
from tare.build.dockerfile import (
    Arg,
    Dockerfile,
    DockerfileError,
    Env,
    Instruction,
    Run,
    Scope,
    Stage,
    base_of,
    expand,
    global_arguments,
    parse,
)
from tare.model.oci import Platform

CORPUS = Path(__file__).parents[2] / "data" / "dockerfiles"
FILES = sorted(CORPUS.glob("*.Dockerfile"))
HOST = Platform("linux", "amd64")


def summary(raw: bytes, name: str) -> dict[str, object]:
    """What the file means, in few words."""
    dockerfile = parse(raw, name=name)
    arguments = global_arguments(dockerfile, {}, build=HOST, target=HOST)
    scopes: dict[int, Scope] = {}
    return {
        "stages": [_stage(dockerfile, stage, arguments, scopes) for stage in dockerfile.stages],
        "findings": [f"{finding.lines} {finding.name}" for finding in check(dockerfile)],
    }


def _stage(
    dockerfile: Dockerfile, stage: Stage, arguments: dict[str, str], scopes: dict[int, Scope]
) -> dict[str, object]:
    base = base_of(stage, arguments)
    parent = dockerfile.named(base.image, before=stage.index)
    scope = Scope({}, arguments, {}) if parent is None else scopes[parent.index].child()
    scopes[stage.index] = scope
    start = " ".join(
        part for part in (base.platform, base.image, stage.name and f"as {stage.name}") if part
    )
    return {"from": start, "steps": [_step(step, scope) for step in stage.instructions]}


def _step(instruction: Instruction, scope: Scope) -> str:
    try:
        match instruction:
            case Arg():
                done: Instruction = scope.declare(instruction)
            case Env():
                done = scope.set(instruction)
            case _:
                done = expand(instruction, scope.environment)
    except DockerfileError as error:
        return f"{instruction.lines} {instruction.keyword} refused: {error.reason}"
    parts = [str(instruction.lines), instruction.keyword]
    for field in fields(done):
        value = getattr(done, field.name)
        if field.name not in ("place", "mount_flags", "command") and value != field.default:
            parts.append(f"{field.name}={json.dumps(_plain(value), ensure_ascii=False)}")
    command = getattr(done, "command", None)
    if command is not None:
        run = done.execution() if isinstance(done, Run) else command
        parts.append("shell" if run.shell else "exec")
        parts.append(json.dumps(run.arguments, ensure_ascii=False))
        if isinstance(done, Run) and (script := done.execution().script) is not None:
            parts.append(json.dumps(script.content))
    return " ".join(parts)


def _plain(value: object) -> object:
    """*value* in lists and texts; what is as it is by default is left out."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Instruction):
        return value.keyword
    if is_dataclass(value):
        found = {field.name: getattr(value, field.name) for field in fields(value)}
        kept = {k: _plain(v) for k, v in found.items() if v not in ("", False, 0, None, ())}
        return {type(value).__name__: kept}
    return value


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_of_the_corpus_means_what_its_summary_says(path: Path) -> None:
    wanted = json.loads(path.with_suffix(".json").read_text())

    assert summary(path.read_bytes(), path.name) == wanted


def test_the_corpus_covers_the_language() -> None:
    keywords = {
        step.keyword
        for path in FILES
        for stage in parse(path.read_bytes()).stages
        for step in stage.instructions
    }

    assert len(FILES) >= 40
    assert len(keywords) == 17  # all but FROM


if __name__ == "__main__":
    for file in FILES:
        text = json.dumps(summary(file.read_bytes(), file.name), indent=1, ensure_ascii=False)
        file.with_suffix(".json").write_text(text + "\n")
