"""The published build cases, as far as the language decides them: what configuration comes out.

Each is a Dockerfile that the reference's classic builder was given; expected are the image's
configuration, or its refusal. Files, users and the network are the executor's: the cases that are
refused for those are listed, so that none is forgotten.
"""

from __future__ import annotations

import gzip
import json
import posixpath
import tarfile
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

from tare.build.dockerfile import (
    Arg,
    Cmd,
    CommandLine,
    DockerfileError,
    Entrypoint,
    Env,
    Expose,
    Instruction,
    Onbuild,
    Scope,
    User,
    Volume,
    Workdir,
    base_of,
    expand,
    global_arguments,
    parse,
)
from tare.model.oci import Platform

DATA = Path(__file__).parents[2] / "data"
HOST = Platform("linux", "amd64")
# Refused for a variable or a quote: the language's own.
REFUSED: Final = frozenset((27, 118))
# Refused for what is in the context, in the base image or on the network: the executor's.
LATER: Final = frozenset((0, 24, 30, 41, 50, 51, 52, 55, 57, 141, 142, 151, 152, 179))
CASES: Final = range(187)

Config = dict[str, Any]


@cache
def cases() -> dict[int, tuple[dict[str, Any], bytes]]:
    """For each case how to build it, and its Dockerfile."""
    found: dict[int, tuple[dict[str, Any], bytes]] = {}
    with tarfile.open(DATA / "build-cases.tar.gz") as archive:
        for member in archive.getmembers():
            folder, _, name = member.name.rpartition("/")
            if name == "case.json":
                case = json.loads(_content(archive, member.name))
                inline = "Dockerfile.inline" if case["inline"] else ""
                path = f"{folder}/{inline or 'context/' + case['dockerfile']}"
                found[case["index"]] = case, _content(archive, path)
    return found


def _content(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None
    return file.read()


@cache
def expected() -> dict[int, dict[str, Any]]:
    document = json.loads(gzip.decompress((DATA / "build-cases-expected.json.gz").read_bytes()))
    return {int(name.split()[0]): result for name, result in document.items()}


def configuration(index: int) -> Config:
    """What the last stage of a case says of its image, as Docker writes it."""
    case, raw = cases()[index]
    dockerfile = parse(raw)
    build_args = case["buildArgs"] or {}
    arguments = global_arguments(dockerfile, build_args, build=HOST, target=HOST)
    done: dict[int, tuple[Scope, Config]] = {}
    for stage in dockerfile.stages:
        image = base_of(stage, arguments).image
        parent = dockerfile.named(image, before=stage.index)
        if parent is not None:
            scope, config = done[parent.index][0].child(), dict(done[parent.index][1])
        else:
            # The other bases of the cases say `sh` and the usual PATH.
            scope = Scope({}, arguments, build_args)
            config = {} if image == "scratch" else {"Cmd": ["sh"]}
        for instruction in stage.instructions:
            _apply(instruction, scope, config)
        config["Env"] = [f"{name}={value}" for name, value in scope.image_environment.items()]
        done[stage.index] = scope, config
    return done[len(dockerfile.stages) - 1][1]


def _apply(written: Instruction, scope: Scope, config: Config) -> None:
    match written:
        case Arg():
            scope.declare(written)
            return
        case Env():
            scope.set(written)
            return
        case _:
            instruction = expand(written, scope.environment)
    match instruction:
        case Workdir():
            directory = posixpath.join(config.get("WorkingDir", "/"), instruction.path)
            config["WorkingDir"] = posixpath.normpath(directory)
        case User():
            config["User"] = instruction.user
        case Volume():
            config["Volumes"] = {*config.get("Volumes", ()), *instruction.paths}
        case Expose():
            config["ExposedPorts"] = {*config.get("ExposedPorts", ()), *instruction.ports}
        case Onbuild():
            config["OnBuild"] = [*config.get("OnBuild", ()), instruction.trigger]
        case Cmd():
            config["Cmd"] = _words(instruction.command)
        case Entrypoint():
            config["Entrypoint"] = _words(instruction.command)
        case _:
            pass


def _words(command: CommandLine) -> list[str]:
    return [*(("/bin/sh", "-c") if command.shell else ()), *command.arguments]


@pytest.mark.parametrize("index", sorted(REFUSED))
def test_a_case_is_refused_by_the_language(index: int) -> None:
    assert expected()[index]["result"] == "fail"

    with pytest.raises(DockerfileError) as caught:
        configuration(index)

    assert caught.value.reason in expected()[index]["log"]


@pytest.mark.parametrize("index", [n for n in CASES if n not in REFUSED])
def test_a_case_has_the_configuration_of_the_reference(index: int) -> None:
    found = configuration(index)

    result = expected().get(index)
    if result is None:
        return  # the reference gave no answer: that the file is read is all there is to say
    if index in LATER:
        assert result["result"] == "fail"
        return
    wanted = {k: set(v) if isinstance(v, dict) else v for k, v in result["config"].items()}
    assert found == wanted
