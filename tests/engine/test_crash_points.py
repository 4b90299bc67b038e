"""Wherever the daemon dies, the next one tells the truth and leaves nothing behind.

Every commit, every act on the kernel and every removal of a directory is a step before and a
step after; each number of steps survived is one life, crashed, and one more that recovers.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from fakes.daemon import Daemon
from fakes.driver import Crash, Fuse, Kernel
from tare.errors import TareError
from tare.model.record import Record
from tare.model.spec import RestartPolicy
from tare.model.state import Action, State

INTENTS = (State.STARTING, State.STOPPING, State.REMOVING)
MOST_STEPS = 60

Scenario = Callable[[Daemon, Record], Awaitable[object]]


async def _start(daemon: Daemon, record: Record) -> None:
    await daemon.lifecycle.start(record.id)


async def _stop(daemon: Daemon, record: Record) -> None:
    await daemon.lifecycle.stop(record.id, 15, 5)


async def _kill(daemon: Daemon, record: Record) -> None:
    await daemon.lifecycle.kill(record.id, 9, manual=True)


async def _pause(daemon: Daemon, record: Record) -> None:
    await daemon.lifecycle.pause(record.id, Action.PAUSE)


async def _unpause(daemon: Daemon, record: Record) -> None:
    await daemon.lifecycle.pause(record.id, Action.UNPAUSE)


async def _end(daemon: Daemon, record: Record) -> None:
    ended = daemon.lifecycle.next_exit(record.id)
    daemon.kernel.end(record.id, 3)
    await ended
    while daemon.kernel.exits:  # until the keeper was told to forget it
        await asyncio.sleep(0)


async def _remove(daemon: Daemon, record: Record) -> None:
    daemon.lifecycle.dispose(daemon.record(record))


RUNNING = (State.RUNNING, State.PAUSED)
SCENARIOS: dict[str, tuple[State, Scenario, dict[str, object]]] = {
    "start": (State.CREATED, _start, {}),
    "start again": (State.EXITED, _start, {}),
    "start a --rm": (State.CREATED, _start, {"auto_remove": True}),
    "stop": (State.RUNNING, _stop, {}),
    "stop a paused one": (State.PAUSED, _stop, {}),
    "stop a --rm": (State.RUNNING, _stop, {"auto_remove": True}),
    "kill": (State.RUNNING, _kill, {}),
    "pause": (State.RUNNING, _pause, {}),
    "unpause": (State.PAUSED, _unpause, {}),
    "end": (State.RUNNING, _end, {}),
    "end of a --rm": (State.RUNNING, _end, {"auto_remove": True}),
    "end with a policy": (State.RUNNING, _end, {"restart": RestartPolicy(name="always")}),
    "remove": (State.EXITED, _remove, {}),
}


async def _arrange(daemon: Daemon, state: State, changes: dict[str, object]) -> Record:
    record = daemon.add("web", **changes)
    if state is State.CREATED:
        return record
    await daemon.lifecycle.start(record.id)
    if state is State.EXITED:
        ended = daemon.lifecycle.next_exit(record.id)
        daemon.kernel.end(record.id)
        await ended
    elif state is State.PAUSED:
        await daemon.lifecycle.pause(record.id, Action.PAUSE)
    return daemon.record(record)


async def _until_crash(daemon: Daemon, work: Awaitable[object]) -> None:
    """Do *work* until it is done or the daemon crashed, wherever that happened."""
    loop = asyncio.get_running_loop()
    crashed = loop.create_future()

    def seen(_: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        if isinstance(context.get("exception"), Crash) and not crashed.done():
            crashed.set_result(None)

    loop.set_exception_handler(seen)
    task = asyncio.ensure_future(work)
    await asyncio.wait((task, crashed), return_when=asyncio.FIRST_COMPLETED)
    crash = task.exception() if task.done() else None
    if crash is not None and not isinstance(crash, Crash | TareError):
        raise crash
    for other in asyncio.all_tasks() - {asyncio.current_task()}:
        other.cancel()
        await asyncio.wait((other,))
        if not other.cancelled():
            other.exception()


def _life(directory: Path, kernel: Kernel, name: str, survived: float) -> tuple[Fuse, Record]:
    state, scenario, changes = SCENARIOS[name]

    async def live() -> tuple[Fuse, Record]:
        daemon = Daemon(directory, kernel)
        await daemon.boot()
        record = await _arrange(daemon, state, changes)
        fuse = Fuse(survived)
        daemon.store.fuse = daemon.workloads.fuse = daemon.driver.fuse = fuse
        await _until_crash(daemon, scenario(daemon, record))
        # Nothing of this process acts any more.
        fuse.blown = True
        kernel.listener = None
        return fuse, record

    return asyncio.run(live())


def _recovered(directory: Path, kernel: Kernel, record: Record) -> Record | None:
    async def live() -> Record | None:
        daemon = Daemon(directory, kernel)
        await daemon.boot()
        found = daemon.store.find(record.id)
        known = {r.id for r in daemon.store.all()}
        listed = set(os.listdir(daemon.paths.workloads))
        await daemon.close()
        assert listed == known, "a directory without a record, or the other way round"
        return found

    return asyncio.run(live())


def _steps(directory: Path, name: str) -> int:
    fuse, _ = _life(directory, Kernel(), name, float("inf"))
    return fuse.burnt


@pytest.mark.parametrize("name", SCENARIOS)
def test_recovery_tells_the_truth_wherever_we_die(tmp_path: Path, name: str) -> None:
    steps = _steps(tmp_path / "all", name)
    assert 2 <= steps <= MOST_STEPS
    for survived in range(steps + 1):
        directory, kernel = tmp_path / str(survived), Kernel()
        _, record = _life(directory, kernel, name, survived)
        alive = kernel.processes.get(record.id)

        found = _recovered(directory, kernel, record)

        where = f"{name}, {survived} of {steps} steps survived"
        if found is None:
            assert record.id not in kernel.processes, where
            assert record.id not in kernel.groups, where
            continue
        assert found.state not in INTENTS, where
        process = kernel.processes.get(record.id)
        assert (found.state in RUNNING) == (process is not None), where
        assert (found.state is State.PAUSED) == (process is not None and process.frozen), where
        if process is None:
            assert record.id not in kernel.groups, where
        if alive is not None and found.state in RUNNING:
            assert process is alive, f"{where}: a running container was touched"


@pytest.mark.parametrize("name", ["start", "stop", "remove"])
def test_nothing_is_done_before_its_intent_is_on_disk(tmp_path: Path, name: str) -> None:
    """With the first commit not made, the world is as it was."""
    directory, kernel = tmp_path, Kernel()
    _, record = _life(directory, kernel, name, 1)  # dies right after the first commit began

    async def look() -> Record:
        daemon = Daemon(directory, kernel)
        try:
            return daemon.record(record)
        finally:
            await daemon.close()

    left = asyncio.run(look())
    before = SCENARIOS[name][0]

    assert (record.id in kernel.processes) == (before in RUNNING)
    assert left.state in (before, *INTENTS)


@pytest.mark.parametrize("name", ["start", "stop", "end", "end of a --rm", "remove"])
def test_the_keeper_may_die_with_the_daemon(tmp_path: Path, name: str) -> None:
    steps = _steps(tmp_path / "all", name)
    for survived in range(steps + 1):
        directory, kernel = tmp_path / str(survived), Kernel()
        _, record = _life(directory, kernel, name, survived)
        kernel.kill_keeper()

        found = _recovered(directory, kernel, record)

        where = f"{name}, {survived} of {steps} steps survived"
        if found is None:
            assert record.id not in kernel.processes, where
            continue
        assert found.state not in INTENTS, where
        assert (found.state in RUNNING) == (record.id in kernel.processes), where
