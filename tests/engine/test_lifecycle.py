from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import pytest

from fakes.daemon import Daemon
from fakes.driver import Kernel, refused
from tare.errors import ConflictError, FailedError, TareError
from tare.model.record import Record
from tare.model.spec import Resources, RestartPolicy
from tare.model.state import Action, State

Boot = Callable[..., Daemon]


def run(work: Coroutine[object, object, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 20))


async def ended(daemon: Daemon, record: Record, code: int = 0, *, oom: bool = False) -> None:
    waiter = daemon.lifecycle.next_exit(record.id)
    daemon.kernel.end(record.id, code, oom=oom)
    await waiter


def test_a_start_and_an_end_are_told_in_dockers_order(daemon_at: Boot) -> None:
    async def work() -> None:
        daemon = await daemon_at().boot()
        record = daemon.add()
        assert await daemon.lifecycle.start(record.id)
        assert daemon.record(record).state is State.RUNNING

        await ended(daemon, record, 3)

        now = daemon.record(record)
        assert (now.state, now.exit_code, now.pid) == (State.EXITED, 3, 0)
        assert daemon.actions() == ["start", "die"]
        await daemon.close()

    run(work())


def test_starting_what_runs_changes_nothing(daemon_at: Boot) -> None:
    async def work() -> None:
        daemon = await daemon_at().boot()
        record = daemon.add()
        await daemon.lifecycle.start(record.id)
        before = daemon.record(record)

        assert await daemon.lifecycle.start(record.id) is False

        assert daemon.record(record) == before
        await daemon.close()

    run(work())


def test_two_starts_at_once_start_once(daemon_at: Boot, kernel: Kernel) -> None:
    async def work() -> None:
        daemon = await daemon_at().boot()
        record = daemon.add()

        answers = await asyncio.gather(*(daemon.lifecycle.start(record.id) for _ in range(3)))

        assert sorted(answers) == [False, False, True]
        assert daemon.actions() == ["start"]
        await daemon.close()

    run(work())


def test_a_failed_start_leaves_it_created_with_the_code_and_the_reason(daemon_at: Boot) -> None:
    async def work() -> None:
        daemon = await daemon_at().boot()
        record = daemon.add()
        daemon.driver.fail = refused("exec: no such file or directory", 127)

        with pytest.raises(TareError, match="no such file"):
            await daemon.lifecycle.start(record.id)

        now = daemon.record(record)
        assert (now.state, now.exit_code) == (State.CREATED, 127)
        assert "no such file" in now.error
        assert daemon.actions() == []
        await daemon.close()

    run(work())


def test_a_failed_start_of_a_rm_container_removes_it(daemon_at: Boot) -> None:
    async def work() -> None:
        daemon = await daemon_at().boot()
        record = daemon.add(auto_remove=True)
        daemon.driver.fail = refused()

        with pytest.raises(TareError):
            await daemon.lifecycle.start(record.id)

        assert daemon.store.find(record.id) is None
        await daemon.close()

    run(work())


def test_stop_sends_its_signal_then_kills_what_does_not_listen(
    daemon_at: Boot, kernel: Kernel
) -> None:
    async def work() -> None:
        daemon = await daemon_at().boot()
        record = daemon.add()
        daemon.driver.deaf = True
        await daemon.lifecycle.start(record.id)
        process = kernel.processes[record.id]

        assert await daemon.lifecycle.stop(record.id, 15, 0)

        assert process.signals == [15, 9]
        assert daemon.record(record).exit_code == 137
        assert daemon.record(record).manually_stopped
        assert daemon.actions() == ["start", "kill", "kill", "die", "stop"]
        await daemon.close()

    run(work())


def test_stop_of_what_does_not_run_says_so(daemon_at: Boot) -> None:
    async def work() -> None:
        daemon = await daemon_at().boot()
        record = daemon.add()

        assert await daemon.lifecycle.stop(record.id, 15, 0) is False

        with pytest.raises(ConflictError, match="is not running"):
            await daemon.lifecycle.kill(record.id, 9, manual=True)
        await daemon.close()

    run(work())


def test_a_paused_container_is_thawed_to_be_stopped(daemon_at: Boot, kernel: Kernel) -> None:
    async def work() -> None:
        daemon = await daemon_at().boot()
        record = daemon.add()
        await daemon.lifecycle.start(record.id)
        await daemon.lifecycle.pause(record.id, Action.PAUSE)
        assert daemon.record(record).state is State.PAUSED

        assert await daemon.lifecycle.stop(record.id, 15, 5)

        assert daemon.record(record).exit_code == 143
        await daemon.close()

    run(work())


@pytest.mark.parametrize("signal", [9, 15])
def test_a_wait_registered_before_the_end_is_never_missed(daemon_at: Boot, signal: int) -> None:
    async def work() -> None:
        daemon = await daemon_at().boot()
        record = daemon.add()
        first = daemon.lifecycle.next_exit(record.id)
        gone = daemon.lifecycle.removal(record.id)
        await daemon.lifecycle.start(record.id)
        await daemon.lifecycle.kill(record.id, signal, manual=True)

        assert (await first).code == 128 + signal
        assert not gone.done()

        daemon.lifecycle.dispose(daemon.record(record))
        assert (await gone).code == 128 + signal
        await daemon.close()

    run(work())


def test_an_end_told_before_the_answer_to_its_start_counts(daemon_at: Boot, kernel: Kernel) -> None:
    async def work() -> None:
        daemon = await daemon_at().boot()
        record = daemon.add()
        original = daemon.driver._begin

        def begin(identity: str) -> None:
            original(identity)
            kernel.listener = daemon.lifecycle.on_end  # told at once, not by the loop
            kernel.end(identity, 5)

        daemon.driver._begin = begin  # type: ignore[method-assign]
        first = daemon.lifecycle.next_exit(record.id)
        await daemon.lifecycle.start(record.id)

        assert (await first).code == 5
        assert daemon.record(record).state is State.EXITED
        assert daemon.actions() == ["start", "die"]
        await daemon.close()

    run(work())


def test_an_oom_kill_names_the_limit(daemon_at: Boot) -> None:
    async def work() -> None:
        daemon = await daemon_at().boot()
        record = daemon.add(resources=Resources(memory=64 << 20))
        await daemon.lifecycle.start(record.id)

        await ended(daemon, record, 137, oom=True)

        now = daemon.record(record)
        assert now.oom_killed
        assert now.error == "killed by the kernel's OOM killer at its memory limit of 64 MiB"
        assert daemon.actions() == ["start", "oom", "die"]
        await daemon.close()

    run(work())


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # the back-off is real time
        await asyncio.sleep(0.005)


def test_a_policy_starts_it_again_and_counts(daemon_at: Boot, kernel: Kernel) -> None:
    async def work() -> None:
        daemon = await daemon_at().boot()
        record = daemon.add(restart=RestartPolicy(name="on-failure", maximum_retries=1))
        await daemon.lifecycle.start(record.id)
        await ended(daemon, record, 1)
        assert daemon.record(record).state is State.RESTARTING

        await _until(lambda: record.id in kernel.processes)
        await _until(lambda: daemon.record(record).state is State.RUNNING)
        assert daemon.record(record).restart_count == 1
        await ended(daemon, record, 1)

        assert daemon.record(record).state is State.EXITED
        await daemon.close()

    run(work())


def test_stop_ends_the_waiting_for_a_restart(daemon_at: Boot, kernel: Kernel) -> None:
    async def work() -> None:
        daemon = await daemon_at().boot()
        record = daemon.add(restart=RestartPolicy(name="always"))
        await daemon.lifecycle.start(record.id)
        await ended(daemon, record, 1)

        assert await daemon.lifecycle.stop(record.id, 15, 1)

        assert daemon.record(record).state is State.EXITED
        assert daemon.lifecycle.live(record.id).timer is None
        await daemon.close()

    run(work())


@pytest.mark.parametrize(
    ("policy", "manual", "starts"),
    [("always", True, True), ("unless-stopped", True, False), ("unless-stopped", False, True)],
)
def test_the_engines_start_honours_the_policies(
    daemon_at: Boot, kernel: Kernel, policy: str, manual: bool, starts: bool
) -> None:
    async def before() -> Record:
        daemon = await daemon_at().boot()
        record = daemon.add(restart=RestartPolicy(name=policy))
        await daemon.lifecycle.start(record.id)
        if manual:
            await daemon.lifecycle.stop(record.id, 15, 5)
        await daemon.close()
        if not manual:
            kernel.end(record.id, 0)
        return record

    async def after(record: Record) -> None:
        daemon = await daemon_at().boot()
        state = daemon.record(record).state
        assert (state is State.RESTARTING) == starts
        if starts:
            await _until(lambda: record.id in kernel.processes)
        await daemon.close()

    run(after(asyncio.run(before())))


def test_a_rm_container_that_ended_unseen_is_gone_after_the_boot(
    daemon_at: Boot, kernel: Kernel
) -> None:
    async def before() -> Record:
        daemon = await daemon_at().boot()
        record = daemon.add(auto_remove=True)
        await daemon.lifecycle.start(record.id)
        await daemon.close()
        return record

    async def after(record: Record) -> None:
        daemon = await daemon_at().boot()
        assert daemon.store.find(record.id) is None
        assert daemon.store.holder("web") is None
        await daemon.close()

    record = asyncio.run(before())
    kernel.end(record.id, 0)
    run(after(record))


def test_an_end_that_nobody_saw_is_said_to_be_unknown(daemon_at: Boot, kernel: Kernel) -> None:
    async def before() -> Record:
        daemon = await daemon_at().boot()
        record = daemon.add()
        await daemon.lifecycle.start(record.id)
        await daemon.close()
        return record

    async def after(record: Record) -> None:
        daemon = await daemon_at().boot()
        now = daemon.record(record)
        assert (now.state, now.exit_code) == (State.EXITED, 255)
        assert "not known" in now.error
        await daemon.close()

    record = asyncio.run(before())
    kernel.kill_keeper()
    kernel.end(record.id, 0)
    run(after(record))


def test_a_process_that_survives_sigkill_is_reported_and_stays_running(
    daemon_at: Boot, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tare.engine.lifecycle._KILL_PATIENCE", 0.01)

    async def work() -> None:
        daemon = await daemon_at().boot()
        record = daemon.add()
        await daemon.lifecycle.start(record.id)
        daemon.driver._signal = lambda *_: None  # type: ignore[method-assign]  # state D

        with pytest.raises(FailedError, match="did not end"):
            await daemon.lifecycle.stop(record.id, 15, 0)

        assert daemon.record(record).state is State.RUNNING
        await daemon.close()

    run(work())


def test_a_boot_removes_directories_that_no_record_knows(daemon_at: Boot) -> None:
    async def work() -> None:
        daemon = daemon_at()
        stray = daemon.paths.workload("f" * 64)
        daemon.workloads.make("f" * 64)
        record = daemon.add()

        await daemon.boot()

        assert not stray.exists()
        assert daemon.paths.workload(record.id).exists()
        await daemon.close()

    run(work())


def test_ids_in_use_are_not_given_out_after_a_boot(daemon_at: Boot) -> None:
    async def work() -> None:
        before = daemon_at()
        record = before.add()
        await before.close()

        after = await daemon_at().boot()

        assert after.blocks.in_use == 1
        assert after.blocks.take(65536) != record.id_block
        await after.close()

    run(work())


def test_what_the_driver_did_not_clean_up_is_discarded(daemon_at: Boot, kernel: Kernel) -> None:
    async def work() -> None:
        daemon = await daemon_at().boot()
        record = daemon.add()
        await daemon.lifecycle.start(record.id)
        assert record.id in kernel.groups

        await ended(daemon, record)

        assert record.id not in kernel.groups
        await daemon.close()

    run(work())
