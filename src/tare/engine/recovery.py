"""Settles every record to the truth: at the daemon's start, and when the keeper was lost.

The order of belief, for a record that says something runs or was about to:

1. the driver holds it: it runs (or is frozen, as its cgroup says);
2. its end waits to be told, or lies in the exit file: it ended so;
3. a process with its pid *and* start time lives: it runs, and is watched from here;
4. otherwise it is gone; how it ended is not known, and the record says that.

Then removals under way are finished, policies applied, and whatever no record knows (processes,
cgroups, directories) is removed. All of it goes through `Lifecycle.settle`: there is no code
that only a crash runs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from tare.engine import restart
from tare.engine.driver import Ended, Held, Started
from tare.engine.lifecycle import Lifecycle, Seen
from tare.errors import TareError
from tare.model.record import Record, changed
from tare.model.state import Fact, State


async def recover(lifecycle: Lifecycle) -> None:
    """Open the driver and make all records true; call it once, before any request."""
    for record in lifecycle.store.all():
        if record.id_block is not None:
            lifecycle.blocks.share(record.id_block)
    await reopen(lifecycle)
    known = lifecycle.store.find
    lifecycle.workloads.recover(lambda identity: known(identity) is not None)
    for record in list(lifecycle.store.all()):
        if record.state is State.EXITED:
            _apply_policy(lifecycle, record)


async def reopen(lifecycle: Lifecycle) -> None:
    """Connect to the driver (again) and settle what is active."""

    def lost() -> None:
        # The keeper died: another takes its place, and what runs goes on.
        lifecycle.spawn(reopen(lifecycle))

    held = await lifecycle.driver.open(lifecycle.on_end, lost)
    for record in lifecycle.store.active():
        settle_one(lifecycle, record, held)
    # A keeper that was killed may have left the traces of what it had just reaped or begun.
    lifecycle.driver.strays(
        lambda identity: (
            identity in lifecycle.unrecorded or _has_process(lifecycle.store.find(identity))
        )
    )
    for identity, told in list(lifecycle.unrecorded.items()):
        if identity not in held:
            told(Ended(identity, 255, time.time_ns(), known=False))


def _has_process(record: Record | None) -> bool:
    """Whether a process may belong to *record*, were it only one that is being started."""
    return record is not None and (record.alive or record.state is State.STARTING)


def settle_one(lifecycle: Lifecycle, record: Record, held: Mapping[str, Held]) -> None:
    """Make one record true, whatever it says now."""
    if lifecycle.live(record.id).lock.locked():
        return  # a request is at work on it, and settles it
    match record.state:
        case State.REMOVING:
            _finish_removal(lifecycle, record)
        case State.RESTARTING:
            lifecycle.schedule_restart(record)
        case State.STARTING | State.RUNNING | State.PAUSED | State.STOPPING:
            _settle_active(lifecycle, record, held.get(record.id))
        case State.CREATED | State.EXITED | State.DEAD:
            pass


def _settle_active(lifecycle: Lifecycle, record: Record, held: Held | None) -> None:
    live = lifecycle.live(record.id)
    if held is not None:
        started = Started(held.pid, held.start_time, held.pidfd, held.stdin)
        _settle_running(lifecycle, record, started)
        lifecycle.replay(live)
        return
    ended, live.early = live.early, None
    ended = ended or lifecycle.driver.leftover_end(record)
    if ended is not None:
        lifecycle.settle(record.id, Seen(Fact.DEAD, ended=ended, recovering=True))
        return
    fact = lifecycle.driver.observe(record) if record.pid else Fact.ABSENT
    if fact in (Fact.ALIVE, Fact.FROZEN):
        try:
            _settle_running(lifecycle, record, lifecycle.driver.watch(record))
        except ProcessLookupError:
            fact = Fact.DEAD
        else:
            return
    lifecycle.settle(record.id, Seen(fact, recovering=True))


def _settle_running(lifecycle: Lifecycle, record: Record, started: Started) -> None:
    fact = lifecycle.driver.observe(changed(record, pid=started.pid, pid_start=started.start_time))
    if fact not in (Fact.ALIVE, Fact.FROZEN):
        fact = Fact.ALIVE  # its end is on the way and will be told
    lifecycle.settle(record.id, Seen(fact, started=started, recovering=True))


def _finish_removal(lifecycle: Lifecycle, record: Record) -> None:
    try:
        lifecycle.dispose(record)
    except TareError:
        return  # it is DEAD now and its error says why; rm -f tries again


def _apply_policy(lifecycle: Lifecycle, record: Record) -> None:
    policy = record.spec.restart
    if record.spec.auto_remove:
        _finish_removal(lifecycle, record)
    elif restart.at_engine_start(
        policy, ran_before=record.started_ns > 0, manual=record.manually_stopped
    ):
        lifecycle.schedule_restart(record)
