"""Builds of a Dockerfile of ten steps by each engine's own command line, cached and cold.

Docker is measured twice where it has buildx: by its classic builder and by BuildKit. No step has
a network. Not for the rows' bounds (``rows``).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from engines import IMAGE, BenchError, Engine

_DOCKERFILE: Final = f"""\
FROM {IMAGE}
ENV A=b C=d
WORKDIR /work
COPY app /app/
COPY b.txt .
RUN echo one > one
RUN cat one /app/a.txt > two
RUN mkdir d && cp two d/three
LABEL x=y
CMD ["cat", "/work/two"]
"""
# podman build does not look at what its configuration says of limits.
_PODMAN: Final = ("--ulimit", "nofile=20000:20000", "--ulimit", "nproc=90000:90000")


def _context(directory: Path) -> Path:
    where = directory / "build-context"
    (where / "app").mkdir(parents=True, exist_ok=True)
    (where / "Dockerfile").write_text(_DOCKERFILE)
    (where / "app/a.txt").write_text("a\n" * 1000)
    (where / "b.txt").write_text("b\n")
    return where


@contextlib.contextmanager
def builds(
    directory: Path, engines: list[Engine], *, cold: bool
) -> Iterator[dict[str, Callable[[], float]]]:
    """For each engine, what builds it once and answers the milliseconds."""
    where = _context(directory)
    subjects: dict[str, Callable[[], float]] = {}
    for engine in engines:
        if engine.name == "docker":
            subjects["docker"] = _once(engine, where, cold=cold, buildkit="0")
            if _has_buildx(engine):
                subjects["buildx"] = _once(engine, where, cold=cold, buildkit="1")
        else:
            subjects[engine.name] = _once(engine, where, cold=cold)
    for once in () if cold else subjects.values():
        once()  # what fills the cache is not measured
    yield subjects


def _has_buildx(engine: Engine) -> bool:
    environment = {**os.environ, **engine.environment}
    command = [*engine.command, "buildx", "version"]
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    return done.returncode == 0


def _once(engine: Engine, where: Path, *, cold: bool, buildkit: str = "") -> Callable[[], float]:
    words = ["build", "--quiet", "--network", "none", "--tag", "bench-build:1"]
    words += ["--no-cache"] if cold else []
    words += _PODMAN if engine.name == "podman" else ()
    environment = {**os.environ, **engine.environment}
    if buildkit:
        environment["DOCKER_BUILDKIT"] = buildkit

    def once() -> float:
        began = time.perf_counter()
        done = subprocess.run(
            [*engine.command, *words, str(where)],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        took = (time.perf_counter() - began) * 1e3
        if done.returncode != 0:
            raise BenchError(f"{engine.name} build: {done.stderr.strip()[-300:]}")
        return took

    return once
