"""The engine on the real kernel: keeper, cgroups, namespaces, a busybox image."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import replace
from pathlib import Path

import pytest

from tare.engine.engine import Engine
from tare.engine.paths import Paths
from tare.errors import ConflictError, InvalidError, MissingError, TareError
from tare.model.networking import NetworkWish
from tare.model.record import HealthStatus, LogQuery
from tare.model.spec import (
    ContainerSpec,
    ExecSpec,
    HealthCheck,
    ProcessSpec,
    Resources,
    RestartPolicy,
)
from tare.model.state import State

pytestmark = pytest.mark.system


class Host:
    """One engine after the other on the session's directories, with one image."""

    def __init__(self, archive: Path) -> None:
        self._archive = archive
        self.engine = Engine.open(Paths.detect())
        self.image = ""

    async def begin(self) -> None:
        await self.engine.start()
        try:
            image = await self.engine.images.get("engine-test")
        except MissingError:
            names = await self.engine.images.load(_chunks(self._archive.read_bytes()))
            image = await self.engine.images.tag(names[0], "engine-test")
        self.image = str(image.id)

    async def next_life(self) -> None:
        """The daemon is gone without a word, and another one begins."""
        await self.engine.close()
        self.engine = Engine.open(Paths.detect())
        await self.begin()

    def spec(self, *args: str, **changes: object) -> ContainerSpec:
        process = changes.pop("process", ProcessSpec(args=()))
        assert isinstance(process, ProcessSpec)
        process = replace(process, args=args)
        spec = ContainerSpec(image="engine-test", image_id=self.image, process=process)
        return replace(spec, **changes)  # type: ignore[arg-type]  # a test names its fields

    async def started(self, *args: str, **changes: object) -> str:
        identity, _ = await self.engine.containers.create(self.spec(*args, **changes))
        await self.engine.containers.start(identity)
        return identity

    async def ready(self, identity: str) -> None:
        """Return when the container has written something: its signal handlers are set."""
        lines = self.engine.containers.logs(identity, LogQuery(follow=True))
        assert await anext(lines)
        await lines.aclose()

    async def output(self, *args: str, **changes: object) -> tuple[int, bytes]:
        containers = self.engine.containers
        identity, _ = await containers.create(self.spec(*args, **changes))
        attachment = await containers.attach(identity)
        ended = containers.waiter(identity, "next-exit")
        await containers.start(identity)
        out = b"".join([chunk async for _, chunk in attachment.output])
        code = (await ended).code
        await attachment.close()
        return code, out

    async def end(self) -> None:
        for record in await self.engine.containers.list(all=True):
            await self.engine.containers.remove(record.id, force=True)
        await self.engine.close()


async def _chunks(content: bytes) -> AsyncIterator[bytes]:
    yield content


Play = Callable[[Callable[[Host], Coroutine[object, object, None]]], None]


@pytest.fixture
def play(busybox_archive: Path) -> Play:
    """Run a test's coroutine on an engine of its own, and remove all that it made."""
    if os.geteuid() != 0:
        pytest.skip("needs root: the system engine")

    def act(work: Callable[[Host], Awaitable[None]]) -> None:
        async def live() -> None:
            host = Host(busybox_archive)
            await host.begin()
            try:
                await asyncio.wait_for(work(host), 60)
            finally:
                await host.end()

        asyncio.run(live())

    return act


def test_output_and_exit_code_come_back(play: Play) -> None:
    async def work(host: Host) -> None:
        assert await host.output("sh", "-c", "echo out; echo err >&2; exit 7") == (7, b"out\nerr\n")

    play(work)


@pytest.mark.parametrize(
    ("program", "code"), [("/nowhere", 127), ("nowhere", 127), ("/etc/passwd", 126), ("/etc", 126)]
)
def test_what_cannot_run_says_why_and_by_which_code(play: Play, program: str, code: int) -> None:
    async def work(host: Host) -> None:
        identity, _ = await host.engine.containers.create(host.spec(program))

        with pytest.raises(TareError) as caught:
            await host.engine.containers.start(identity)

        record = await host.engine.containers.get(identity)
        assert (caught.value.exit_code, record.exit_code, record.state) == (
            code, code, State.CREATED,
        )  # fmt: skip

    play(work)


def test_standard_input_reaches_the_program_and_ends(play: Play) -> None:
    async def work(host: Host) -> None:
        containers = host.engine.containers
        process = ProcessSpec(args=(), open_stdin=True, stdin_once=True)
        identity, _ = await containers.create(host.spec("wc", "-c", process=process))
        attachment = await containers.attach(identity, stdin=True)
        await containers.start(identity)
        await attachment.write(b"x" * 200_000)
        await attachment.close_stdin()

        assert b"".join([c async for _, c in attachment.output]).strip() == b"200000"
        await attachment.close()

    play(work)


def test_a_terminal_has_its_size_and_one_stream(play: Play) -> None:
    async def work(host: Host) -> None:
        containers = host.engine.containers
        process = ProcessSpec(args=(), open_stdin=True, tty=True)
        identity, _ = await containers.create(
            host.spec("sh", "-c", "read x; stty size >&2", process=process)
        )
        attachment = await containers.attach(identity, stdin=True)
        await containers.start(identity)
        await containers.resize(identity, 33, 111)
        await attachment.write(b"go\n")

        chunks = [one async for one in attachment.output]
        assert b"33 111" in b"".join(c for _, c in chunks)
        assert {stream for stream, _ in chunks} == {1}
        await attachment.close()

    play(work)


def test_a_daemon_that_dies_loses_nothing(play: Play) -> None:
    async def work(host: Host) -> None:
        script = "trap 'echo bye; exit 5' TERM; echo one; while :; do sleep 0.05; done"
        identity = await host.started("sh", "-c", script)
        pid = (await host.engine.containers.get(identity)).pid
        await host.ready(identity)

        await host.next_life()

        record = await host.engine.containers.get(identity)
        assert (record.state, record.pid) == (State.RUNNING, pid)
        assert await host.engine.containers.stop(identity, 10)
        assert (await host.engine.containers.get(identity)).exit_code == 5
        lines = [
            line.content
            async for batch in host.engine.containers.logs(identity, LogQuery())
            for line in batch
        ]
        assert lines == [b"one\n", b"bye\n"]

    play(work)


def test_what_ended_while_no_daemon_was_there_is_known_afterwards(play: Play) -> None:
    async def work(host: Host) -> None:
        kept = await host.started("sleep", "1000")
        gone = await host.started("sleep", "1000", auto_remove=True)
        pids = [(await host.engine.containers.get(i)).pid for i in (kept, gone)]
        await host.engine.close()
        for pid in pids:
            handle = os.pidfd_open(pid)
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            os.close(handle)

        host.engine = Engine.open(Paths.detect())
        await host.begin()
        await host.engine.containers.wait(kept, "not-running")

        record = await host.engine.containers.get(kept)
        assert (record.state, record.exit_code) == (State.EXITED, 137)
        if any(r.id == gone for r in await host.engine.containers.list(all=True)):
            await host.engine.containers.wait(gone, "removed")
        with pytest.raises(MissingError):
            await host.engine.containers.get(gone)

    play(work)


def test_an_exec_joins_and_its_code_is_there_at_the_end_of_its_output(play: Play) -> None:
    async def work(host: Host) -> None:
        identity = await host.started("sleep", "1000")
        execs = host.engine.execs
        wanted = ExecSpec(process=ProcessSpec(args=("sh", "-c", "hostname; exit 9")))

        made = await execs.create(identity, wanted)
        attachment = await execs.start(made)
        assert attachment is not None
        out = b"".join([c async for _, c in attachment.output])

        assert out.decode().strip() == identity[:12]
        assert execs.inspect(made).exit_code == 9
        with pytest.raises(ConflictError):
            await execs.start(made)
        await host.engine.containers.kill(identity)
        with pytest.raises(ConflictError, match="is not running"):
            await execs.create(identity, wanted)

    play(work)


def test_a_limit_that_is_hit_is_named(play: Play) -> None:
    async def work(host: Host) -> None:
        hungry = "a=xxxxxxxxxxxxxxxx; while :; do a=$a$a; done"
        code, _ = await host.output(
            "sh", "-c", hungry, resources=Resources(memory=16 << 20, memory_swap=16 << 20)
        )

        record = (await host.engine.containers.list(all=True))[0]
        assert code == 137
        assert record.oom_killed
        assert "memory limit of 16 MiB" in record.error

    play(work)


def test_pause_stops_it_and_unpause_lets_it_go_on(play: Play) -> None:
    async def work(host: Host) -> None:
        identity = await host.started("sh", "-c", "while :; do :; done")
        containers = host.engine.containers
        await containers.pause(identity)
        before = (await containers.stats(identity)).cpu_ns
        with pytest.raises(ConflictError, match="already paused"):
            await containers.pause(identity)
        with pytest.raises(ConflictError, match="must be unpaused first"):
            await containers.remove(identity)
        assert (await containers.stats(identity)).cpu_ns == before

        await containers.unpause(identity)

        assert (await containers.get(identity)).state is State.RUNNING
        await containers.pause(identity)
        assert await containers.stop(identity, 0)

    play(work)


def test_following_logs_ends_with_the_container(play: Play) -> None:
    async def work(host: Host) -> None:
        identity = await host.started("sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.1; done")

        lines = [
            line.content
            async for batch in host.engine.containers.logs(identity, LogQuery(follow=True))
            for line in batch
        ]

        assert lines == [b"1\n", b"2\n", b"3\n"]

    play(work)


def test_a_health_check_is_run_and_judged(play: Play) -> None:
    async def work(host: Host) -> None:
        check = HealthCheck(test=("CMD-SHELL", "test -e /ok"), interval_ns=50_000_000, retries=2)
        events = host.engine.events.subscribe(filters={"event": ["health_status"]})
        identity = await host.started("sleep", "1000", health=check)

        assert (await anext(events)).action == "health_status: unhealthy"
        made = await host.engine.execs.create(
            identity, ExecSpec(process=ProcessSpec(args=("touch", "/ok")))
        )
        await host.engine.execs.start(made, detach=True)
        assert (await anext(events)).action == "health_status: healthy"

        health = (await host.engine.containers.get(identity)).health
        assert health is not None
        assert (health.status, health.failing_streak) == (HealthStatus.HEALTHY, 0)
        assert 0 < len(health.log) <= 5

    play(work)


def test_limits_of_a_running_one_change(play: Play) -> None:
    async def work(host: Host) -> None:
        identity = await host.started("sleep", "1000", resources=Resources(memory=32 << 20))
        containers = host.engine.containers
        assert (await containers.stats(identity)).memory_limit == 32 << 20

        await containers.update(
            identity, Resources(memory=64 << 20, pids=77), RestartPolicy(name="always")
        )

        sample = await containers.stats(identity)
        assert (sample.memory_limit, sample.pids_limit) == (64 << 20, 77)
        assert (await containers.get(identity)).spec.restart.name == "always"

    play(work)


def test_a_commit_keeps_what_changed_and_diff_shows_it(play: Play) -> None:
    async def work(host: Host) -> None:
        await host.output("sh", "-c", "echo new >/made; rm /etc/group")
        record = (await host.engine.containers.list(all=True))[0]
        found = [(c.kind, c.path) for c in await host.engine.containers.changes(record.id)]
        assert ("A", "/made") in found
        assert ("D", "/etc/group") in found

        base = await host.engine.images.get(record.image_id)
        host.image = await host.engine.containers.commit(record.id, base.config)

        assert await host.output("sh", "-c", "cat /made; test -e /etc/group") == (1, b"new\n")
        await host.engine.containers.remove(record.id)

    play(work)


def test_what_is_refused_leaves_nothing(play: Play) -> None:
    async def work(host: Host) -> None:
        containers = host.engine.containers
        await containers.create(host.spec("true"), "taken")
        before = os.listdir(host.engine.paths.workloads)
        with pytest.raises(ConflictError, match="already in use by container"):
            await containers.create(host.spec("true"), "taken")
        with pytest.raises(InvalidError, match="6MB"):
            await containers.create(host.spec("true", resources=Resources(memory=1)))
        with pytest.raises(MissingError):
            await containers.create(replace(host.spec("true"), image_id="sha256:" + "1" * 64))
        spec = host.spec("true")
        with pytest.raises(InvalidError, match="network mine not found"):
            await containers.create(replace(spec, networks=(NetworkWish(network="mine"),)))

        assert os.listdir(host.engine.paths.workloads) == before
        with pytest.raises(MissingError, match="No such container: nobody"):
            await containers.get("nobody")

    play(work)


def test_a_running_one_is_removed_only_by_force_and_its_name_is_free(play: Play) -> None:
    async def work(host: Host) -> None:
        containers = host.engine.containers
        await containers.create(host.spec("sleep", "1000"), "mine")
        await containers.start("mine")
        with pytest.raises(
            ConflictError, match='cannot remove container "/mine": container is running'
        ):
            await containers.remove("mine")

        await containers.remove("mine", force=True)

        await containers.create(host.spec("true"), "mine")

    play(work)


def test_a_keeper_that_dies_takes_no_container_with_it(play: Play) -> None:
    async def work(host: Host) -> None:
        identity = await host.started(
            "sh", "-c", "trap 'exit 4' TERM; echo; while :; do sleep 0.05; done"
        )
        before = await host.engine.containers.get(identity)
        await host.ready(identity)
        os.kill(_keeper_pid(before.pid), signal.SIGKILL)

        while True:
            try:
                await host.engine.containers.stop(identity, 10)
                break
            except TareError:
                await asyncio.sleep(0.02)

        after = await host.engine.containers.get(identity)
        assert after.state is State.EXITED
        assert after.exit_code in (4, 255)

    play(work)


def _keeper_pid(container: int) -> int:
    """The parent of a container's first process."""
    return int(Path(f"/proc/{container}/stat").read_text().rpartition(")")[2].split()[1])
