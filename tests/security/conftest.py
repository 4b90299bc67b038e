"""For attacks on real containers: hostile layers, canaries of the host, and stops to race at."""

from __future__ import annotations

import io
import os
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pytest

from run.conftest import Bench, bench, busybox_layer  # noqa: F401  # fixtures
from tare.engine.engine import erofs_from_files
from tare.image.layers import Layers
from tare.model.spec import ContainerSpec, ProcessSpec
from tare.run.plan import plan

SPEC: Final = ContainerSpec(image="b", image_id="b", process=ProcessSpec(args=("true",)))


def entry(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    """A header of *kind*; ``mode`` is 0755 unless a field says otherwise."""
    made = tarfile.TarInfo(name)
    made.type, made.mode = kind, 0o755
    for field, value in fields.items():
        setattr(made, field, value)
    return made


def link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    """A symlink."""
    return entry(name, tarfile.SYMTYPE, linkname=target), b""


def layer(directory: Path, *entries: tuple[tarfile.TarInfo, bytes]) -> Path:
    """A layer file of *entries*."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for header, content in entries:
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    buffer.seek(0)
    return Layers(directory, extract=not erofs_from_files()).add(buffer).path


async def start_on(
    b: Bench,
    above: Path | None,
    spec: ContainerSpec,
    *args: str,
    files: dict[str, str] | None = None,
) -> str:
    """Start *args* on a root with the layer *above* on top; what else *spec* says of it holds."""
    wanted = replace(spec, process=replace(spec.process, args=args))
    layers = (str(b.layer),) if above is None else (str(b.layer), str(above))
    place = b.place(layers=layers, files=files or {})
    b._specs[place.id] = (wanted, place)
    await b.keeper.start(plan(wanted, place, b.host))
    return place.id


async def run_on(
    b: Bench,
    above: Path | None,
    spec: ContainerSpec,
    *args: str,
    files: dict[str, str] | None = None,
) -> tuple[int, str]:
    """Exit code and output of *args* on a root with the layer *above* on top."""
    identity = await start_on(b, above, spec, *args, files=files)
    exited = await b.ended(identity)
    b.keeper.acknowledge(identity)
    return exited.code, b.output(identity)


@dataclass(frozen=True)
class Treasure:
    """A directory of the host that no container may see or change."""

    directory: Path

    @property
    def file(self) -> Path:
        """What must stay as it is."""
        return self.directory / "canary"

    def untouched(self) -> bool:
        """Whether nothing was added, changed or mounted."""
        names = sorted(os.listdir(self.directory))
        mounts = Path("/proc/self/mountinfo").read_text()
        return (
            names == ["canary"]
            and self.file.read_text() == "treasure\n"
            and f" {self.directory}" not in mounts
        )


@pytest.fixture
def treasure(tmp_path: Path) -> Treasure:
    """A fresh one."""
    directory = tmp_path / "treasure"
    directory.mkdir(mode=0o777)
    directory.chmod(0o777)
    (directory / "canary").write_text("treasure\n")
    (directory / "canary").chmod(0o666)
    return Treasure(directory)


Stops = Callable[[str, Callable[[int], None]], None]


@pytest.fixture
def stop_at(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bench: object,  # noqa: F811  # so that its directory, where the stops are, outlives them
) -> Iterator[Stops]:
    """``stop_at(point, swap)``: each child that comes to *point* waits while *swap(n)* runs.

    To be called before the keeper is started; n counts from 0.
    """
    directory = tmp_path / "points"
    directory.mkdir()
    monkeypatch.setenv("TARE_TEST_POINTS", str(directory))
    threads: list[tuple[threading.Thread, Path]] = []
    ending = threading.Event()

    def serve(fifo: Path, swap: Callable[[int], None]) -> None:
        number = 0
        while True:
            descriptor = os.open(fifo, os.O_WRONLY)  # until a child opens it
            try:
                if ending.is_set():
                    return
                swap(number)
                number += 1
                # The next child stops at another FIFO: this one may be open a moment longer.
                fresh = fifo.with_suffix(".new")
                os.mkfifo(fresh)
                fresh.rename(fifo)
                os.write(descriptor, b"g")
            finally:
                os.close(descriptor)

    def add(point: str, swap: Callable[[int], None]) -> None:
        fifo = directory / point
        os.mkfifo(fifo)
        thread = threading.Thread(target=serve, args=(fifo, swap), daemon=True)
        thread.start()
        threads.append((thread, fifo))

    yield add
    ending.set()
    for thread, fifo in threads:
        if fifo.exists():
            waiting = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
            thread.join(10)
            os.close(waiting)
