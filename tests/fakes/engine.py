"""An engine in memory: what the API asks of `tare.engine.engine.Engine`, without a kernel.

Its only program is a cat: it copies standard input to standard output, says ``bye`` on standard
error at the end of input and exits with 7. A program called ``missing`` does not start.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace

from tare.build.cache import Entry
from tare.engine.events import Events
from tare.errors import ConflictError, FailedError, MissingError
from tare.image.store import Image
from tare.model.digest import Digest
from tare.model.networking import Joined, NetworkRecord, NetworkSpec
from tare.model.oci import History, ImageConfig
from tare.model.record import (
    Check,
    ExecRecord,
    ExitInfo,
    Info,
    LogLine,
    LogQuery,
    PathStat,
    Record,
    Sample,
    Top,
    Usage,
)
from tare.model.spec import ContainerSpec, ExecSpec
from tare.model.state import State
from tare.model.volume import Volume, VolumeStatus
from tare.trust.switch import Mode
from tare.trust.verdict import Standing, Verdict

IMAGE = Image(
    id=Digest("a" * 64),
    config=ImageConfig(
        architecture="amd64",
        os="linux",
        cmd=("cat",),
        labels={"kind": "base"},
        created="2024-01-01T00:00:00Z",
        history=(History(created="2024-01-01T00:00:00Z", created_by="made"),),
    ),
    layers=(Digest("b" * 64),),
    tags=("busybox:latest",),
    digests=(),
    size=1234,
    created_ns=1_704_067_200 * 10**9,
)


class View:
    """An attachment to the one program."""

    def __init__(self, program: Cat) -> None:
        self.tty = program.tty
        self.closed = False
        self._program = program
        self._queue: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue()
        program.views.append(self)

    @property
    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        while (item := await self._queue.get()) is not None:
            yield item

    def put(self, item: tuple[int, bytes] | None) -> None:
        self._queue.put_nowait(item)

    async def write(self, content: bytes) -> None:
        self._program.say(1, content)

    async def close_stdin(self) -> None:
        self._program.say(2, b"bye")
        self._program.end(7)

    async def close(self) -> None:
        self.closed = True
        self.put(None)


class Cat:
    """The one program."""

    def __init__(self, tty: bool) -> None:
        self.tty = tty
        self.views: list[View] = []
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def say(self, stream: int, content: bytes) -> None:
        for view in self.views:
            view.put((stream, content))

    def end(self, code: int) -> None:
        for view in self.views:
            view.put(None)
        if not self.ended.done():
            self.ended.set_result(code)


class Images:
    async def get(self, ref: str) -> Image:
        if ref in (*IMAGE.tags, "busybox", str(IMAGE.id)):
            return IMAGE
        raise MissingError(f"No such image: {ref}", hint="tare images lists those there are")

    async def history(self, ref: str) -> list[tuple[History, int]]:
        return [(step, 1234) for step in (await self.get(ref)).config.history]

    async def list(self) -> list[Image]:
        return [IMAGE]

    async def weigh(self) -> tuple[int, dict[str, int]]:
        return IMAGE.size, {str(IMAGE.id): IMAGE.size}


class Trust:
    """Nothing was set up."""

    configured = False
    mode = Mode.WARN

    async def verdict(self, image_id: str, asked: str = "") -> Verdict:
        return Verdict(Standing.UNSIGNED, asked, image_id, "no rule", ("it has no signature",))


class Containers:
    def __init__(self, events: Events) -> None:
        self.records: dict[str, Record] = {}
        self.cats: dict[str, Cat] = {}
        self.received = b""
        self.removals: dict[str, asyncio.Future[ExitInfo]] = {}
        self._events = events

    async def get(self, ref: str) -> Record:
        return self.find(ref)

    def inhabitants(self, network: str) -> list[tuple[Record, Joined]]:
        return []

    def find(self, ref: str) -> Record:
        for record in self.records.values():
            if ref == record.name or record.id.startswith(ref):
                return record
        raise MissingError(f"No such container: {ref}")

    async def create(self, spec: ContainerSpec, name: str = "") -> tuple[str, list[str]]:
        if any(record.name == name for record in self.records.values()):
            raise ConflictError(f'The container name "/{name}" is already in use')
        identity = secrets.token_hex(32)
        self.records[identity] = Record(
            id=identity, name=name or identity[:8], spec=spec, created_ns=time.time_ns()
        )
        self._events.emit("container", "create", identity, {"image": spec.image})
        return identity, []

    async def list(self, *, all: bool, filters: object) -> list[Record]:
        return [r for r in self.records.values() if all or r.running]

    async def sizes(self, ref: str) -> tuple[int, int]:
        return 0, 1234

    def usage(self, ref: str) -> Usage | None:
        return Usage(wall_ns=5)

    async def attach(
        self, ref: str, *, stdin: bool = False, stdout: bool = True, stderr: bool = True
    ) -> View:
        record = self.find(ref)
        return View(self.cats.setdefault(record.id, Cat(record.spec.process.tty)))

    async def start(self, ref: str) -> bool:
        record = self.find(ref)
        if record.running:
            return False
        if record.spec.process.args[0] == "missing":
            raise FailedError('exec: "missing": executable file not found in $PATH', exit_code=127)
        cat = self.cats.setdefault(record.id, Cat(record.spec.process.tty))
        cat.ended.add_done_callback(lambda ended: self._end(record.id, ended.result()))
        self.records[record.id] = replace(
            record, state=State.RUNNING, started_ns=time.time_ns(), pid=1
        )
        return True

    def _end(self, identity: str, code: int) -> None:
        record = replace(
            self.records[identity],
            state=State.EXITED,
            exit_code=code,
            finished_ns=time.time_ns(),
            pid=0,
        )
        self.records[identity] = record
        if record.spec.auto_remove:
            del self.records[identity]
            self.removal(identity).set_result(ExitInfo(code=code))

    def removal(self, identity: str) -> asyncio.Future[ExitInfo]:
        loop = asyncio.get_running_loop()
        return self.removals.setdefault(identity, loop.create_future())

    def waiter(self, ref: str, condition: str) -> asyncio.Future[ExitInfo]:
        record = self.find(ref)
        if condition == "removed":
            return self.removal(record.id)
        found: asyncio.Future[ExitInfo] = asyncio.get_running_loop().create_future()
        cat = self.cats.get(record.id)
        if condition == "not-running" and not record.running:
            found.set_result(ExitInfo(code=record.exit_code))
        elif cat is not None:
            cat.ended.add_done_callback(lambda e: found.set_result(ExitInfo(code=e.result())))
        return found

    async def kill(self, ref: str, signal: str) -> None:
        self.cats[self.find(ref).id].end(137)

    async def remove(self, ref: str, *, force: bool, volumes: bool) -> None:
        record = self.find(ref)
        if record.running and not force:
            raise ConflictError(f"cannot remove container {ref}: container is running")
        del self.records[record.id]

    async def stats(self, ref: str) -> Sample:
        return Sample(read_ns=time.time_ns(), cpu_ns=5, memory=6, memory_limit=7, pids=1)

    async def top(self, ref: str, arguments: str) -> Top:
        return Top(titles=("PID", "CMD"), processes=(("1", "cat"),))

    async def archive_stat(self, ref: str, path: str) -> PathStat:
        self.find(ref)
        if path != "/etc":
            raise MissingError(f"Could not find the file {path} in container {ref}")
        return PathStat(name="etc", size=4096, mode=0o41777, mtime_ns=10**9)

    async def archive_get(self, ref: str, path: str) -> tuple[PathStat, AsyncIterator[bytes]]:
        return await self.archive_stat(ref, path), self.export(ref)

    async def archive_put(
        self,
        ref: str,
        path: str,
        source: AsyncIterator[bytes],
        *,
        no_overwrite_dir_non_dir: bool = False,
        copy_ids: bool = False,
    ) -> None:
        await self.archive_stat(ref, path)
        self.received = b"".join([chunk async for chunk in source])

    async def export(self, ref: str) -> AsyncIterator[bytes]:
        record = self.find(ref)
        yield b"tar"
        if record.name == "broken":
            raise FailedError("the disk broke")
        yield b"ball"

    async def logs(self, ref: str, query: LogQuery) -> AsyncIterator[Sequence[LogLine]]:
        yield [LogLine(1, 1_000_000_000, b"out\n"), LogLine(2, 2_000_000_000, b"err\n")]


class Volumes:
    def listed(self, filters: object = None) -> list[VolumeStatus]:
        volume = Volume(name="data", created_ns=1_704_067_200 * 10**9, labels={"a": "b"})
        return [VolumeStatus(volume=volume, path="/v/data/_data", users=("web",))]

    def status(self, name: str) -> VolumeStatus:
        if name != "data":
            raise MissingError(f"get {name}: no such volume")
        return self.listed()[0]

    async def sized(self, found: list[VolumeStatus]) -> list[VolumeStatus]:
        return [replace(one, size=4096) for one in found]


class Execs:
    def __init__(self, containers: Containers) -> None:
        self._containers = containers
        self.records: dict[str, ExecRecord] = {}

    def of(self, container: str) -> list[str]:
        return [r.id for r in self.records.values() if r.container == container]

    async def create(self, ref: str, spec: ExecSpec) -> str:
        record = self._containers.find(ref)
        if not record.running:
            raise ConflictError(f"container {record.id} is not running")
        identity = secrets.token_hex(32)
        self.records[identity] = ExecRecord(id=identity, container=record.id, spec=spec)
        return identity

    def inspect(self, ref: str) -> ExecRecord:
        if ref not in self.records:
            raise MissingError(f"No such exec instance: {ref}")
        return self.records[ref]

    async def start(self, ref: str, *, detach: bool = False) -> View | None:
        cat = Cat(self.inspect(ref).spec.process.tty)
        cat.ended.add_done_callback(
            lambda e: self.records.__setitem__(
                ref, replace(self.records[ref], exit_code=e.result())
            )
        )
        return None if detach else View(cat)

    async def wait(self, ref: str) -> int:
        return self.inspect(ref).exit_code or 0

    async def resize(self, ref: str, height: int, width: int) -> None:
        self.inspect(ref)


class Networks:
    """The networks that every engine has."""

    def __init__(self) -> None:
        self.records = {
            name: NetworkRecord(
                id=f"{at}" * 64, spec=NetworkSpec(name=name, driver=driver), created_ns=1
            )
            for at, (name, driver) in enumerate(
                (("bridge", "bridge"), ("host", "host"), ("none", "null"))
            )
        }

    def get(self, ref: str) -> NetworkRecord:
        if ref not in self.records:
            raise MissingError(f"network {ref} not found")
        return self.records[ref]

    def list(self, filters: Mapping[str, Sequence[str]]) -> list[NetworkRecord]:
        return list(self.records.values())


class Builds:
    """Nothing was ever built."""

    async def entries(self) -> list[Entry]:
        return [Entry(id="k", kind="step", size=5, used_ns=10**18, what="RUN true")]


class Engine:
    """The facade."""

    def __init__(self) -> None:
        self.builds = Builds()
        self.events = Events()
        self.images = Images()
        self.trust = Trust()
        self.containers = Containers(self.events)
        self.networks = Networks()
        self.volumes = Volumes()
        self.execs = Execs(self.containers)

    async def info(self) -> Info:
        return Info(
            id="x", name="host", containers=0, running=0, paused=0, stopped=0, images=1, cpus=2,
            memory_total=1 << 30, kernel="6", operating_system="Debian", os_version="12",
            architecture="x86_64", state_dir="/var/lib/tare", version="0", cgroup_version="1",
            cgroup_driver="cgroupfs", storage_driver="erofs", rootless=False, memory_limit=True,
            swap_limit=True, cpu_limit=True, cpuset=True, pids_limit=True, oom_kill_disable=False,
            security_options=("name=seccomp,profile=tare",),
        )  # fmt: skip

    async def doctor(self) -> list[Check]:
        return [Check(check="kernel", status="ok", seen="6.18")]
