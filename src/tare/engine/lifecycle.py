"""Keeps the records true: every start, stop, end, failure and crash comes through here.

Each change writes its intent, acts, and records what is *seen*. `settle` is the one place where
a record takes on a fact: after a success (`Seen` alive), a failure (`Seen` absent), an end told
by the driver (`Seen` dead), and at the start of the daemon, when `engine.recovery` looks at the
kernel and at what the keeper left. Restart policies, auto-removal, events and waiters hang on
`settle`, so they work the same in all those cases.

Locks: start, removal, pause and anything else that awaits between reading and writing a record
holds ``Live.lock``; ends are settled without it, at once. Everything runs in one event loop.

Not for: finding a container by name or checking requests (engine.containers).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from tare.engine import restart
from tare.engine.driver import Driver, Ended, Pipes, Request, Started
from tare.engine.events import Events
from tare.engine.ids import Blocks
from tare.engine.store import Store
from tare.engine.streams import Input
from tare.engine.workloads import Workloads
from tare.errors import ConflictError, FailedError, MissingError, TareError
from tare.model.record import ExitInfo, Health, HealthStatus, Record, Usage, changed
from tare.model.spec import SecurityProfile
from tare.model.state import INTENTS, Action, Fact, State, settled

_KILL_PATIENCE: Final = 10.0
_UNKNOWN_CODE: Final = 255
_USAGES: Final = 512

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Seen:
    """What was observed of a workload, and how we know."""

    fact: Fact
    started: Started | None = None
    ended: Ended | None = None
    error: TareError | None = None
    recovering: bool = False


@dataclass(slots=True)
class Live:
    """What this process holds for a container besides its record; gone with the daemon."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    pidfd: int = -1
    input: Input = field(default_factory=Input)
    readers: list[Pipes] = field(default_factory=list)
    next_exit: list[asyncio.Future[ExitInfo]] = field(default_factory=list)
    removed: list[asyncio.Future[ExitInfo]] = field(default_factory=list)
    delay: float = 0.0
    timer: asyncio.TimerHandle | None = None
    early: Ended | None = None
    restarting_by_hand: bool = False


class Lifecycle:
    """The state machine over all containers of one engine."""

    def __init__(
        self,
        *,
        store: Store,
        driver: Driver,
        events: Events,
        blocks: Blocks,
        workloads: Workloads,
        prepare: Callable[[Record], Awaitable[Request]],
    ) -> None:
        self.store = store
        self.driver = driver
        self.events = events
        self.blocks = blocks
        self.workloads = workloads
        self._prepare = prepare
        self._live: dict[str, Live] = {}
        self._tasks: set[asyncio.Task[object]] = set()
        self._closing = False
        self._usage: dict[str, Usage] = {}
        self.admit: Callable[[Record], Record] = lambda record: record
        self.after_start: list[Callable[[Record], None]] = []
        self.after_started: list[Callable[[Record], Awaitable[None]]] = []  # start waits for these
        self.after_end: list[Callable[[Record], None]] = []
        self.after_removal: list[Callable[[Record], None]] = []
        self.after_settled: list[Callable[[Record], None]] = []  # after an end or a failed start
        self.exec_ended: Callable[[Ended], None] | None = None
        # Workloads of the engine's own, by id, and who is told their end (steps of builds).
        self.unrecorded: dict[str, Callable[[Ended], None]] = {}

    # --- what others may ask ------------------------------------------------------------------

    def live(self, identity: str) -> Live:
        """What this process holds for *identity*; made when first asked for."""
        found = self._live.get(identity)
        if found is None:
            found = self._live[identity] = Live()
        return found

    def spawn(self, work: Coroutine[object, object, _T]) -> asyncio.Task[_T]:
        """Run *work* beside the request; the engine keeps it until it is done."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def uninterrupted(self, work: Coroutine[object, object, _T]) -> _T:
        """Await *work*, which goes on even when the one who asked goes away."""
        return await asyncio.shield(self.spawn(work))

    def emit(self, record: Record, action: str, more: Mapping[str, str] | None = None) -> None:
        """Tell that *action* happened to a container, with Docker's attributes."""
        attributes = {**record.spec.labels, "image": record.spec.image, "name": record.name}
        if more:
            attributes.update(more)
        self.events.emit("container", action, record.id, attributes)

    # --- start --------------------------------------------------------------------------------

    async def start(self, identity: str, *, automatic: bool = False) -> bool:
        """Start a container; False when it runs already. TareError when it could not."""
        live = self.live(identity)
        async with live.lock:
            record = self._current(identity)
            if automatic and record.state is not State.RESTARTING:
                return False
            if not automatic and record.running:
                if record.state is State.PAUSED:
                    raise ConflictError(
                        "cannot start a paused container, try unpause instead",
                    )
                return False
            if (record.state, Action.START) not in INTENTS:
                raise ConflictError("container is marked for removal and cannot be started")
            record = self._admitted(record, automatic=automatic)
            count = record.restart_count + 1 if automatic else 0
            record = self.store.put(
                changed(
                    record,
                    state=INTENTS[record.state, Action.START],
                    restart_count=count,
                    manually_stopped=False,
                    oom_killed=False,
                    error="",
                )
            )
            self._cancel_timer(live)
            await self._start(record, live)
        for follow in self.after_started:
            await follow(record)
        return True

    def _admitted(self, record: Record, *, automatic: bool) -> Record:
        """What the budget lets in; a restart that does not fit is a start that failed.

        Nothing is awaited from here until the record says that it is starting.
        """
        try:
            return self.admit(record)
        except TareError as error:
            if automatic:
                self.store.put(changed(record, state=State.EXITED, error=str(error)))
            raise

    async def _start(self, record: Record, live: Live) -> None:
        """Between the intent and `settle`; the lock is held."""
        readers, live.readers = live.readers, []
        try:
            request = await self._prepare(record)
        except BaseException as error:
            close_pipes(readers)
            self.settle(record.id, Seen(Fact.ABSENT, error=as_error(error)))
            raise
        try:
            started = await self.driver.start(replace(request, readers=readers))
        except asyncio.CancelledError:
            raise  # the daemon ends; what came of the start, the next one will see
        except BaseException as error:
            live.early = None
            self.settle(record.id, Seen(Fact.ABSENT, error=as_error(error)))
            if isinstance(error, OSError):
                raise as_error(error) from error
            raise
        self.settle(record.id, Seen(Fact.ALIVE, started=started))
        self.replay(live)

    def replay(self, live: Live) -> None:
        """Settle the end that was told before the start was recorded, if there is one."""
        ended, live.early = live.early, None
        if ended is not None:
            self.on_end(ended)

    # --- the one place where a record takes on a fact -------------------------------------------

    def settle(self, identity: str, seen: Seen) -> Record:
        """Record what is *seen* of a container, and do what follows from it. Idempotent."""
        record = self._current(identity)
        state = settled(record.state, seen.fact)
        if state is State.CREATED and record.started_ns:
            state = State.EXITED
        if state in (State.RUNNING, State.PAUSED):
            return self._settle_alive(record, state, seen)
        if record.alive or record.state is State.STARTING or seen.ended is not None:
            return self._settle_ended(record, state, seen)
        return record

    def _settle_alive(self, record: Record, state: State, seen: Seen) -> Record:
        fresh = record.state is State.STARTING or not record.alive
        changes = changed(record, state=state)
        if seen.started is not None:
            live = self.live(record.id)
            self._adopt(record, live, seen.started)
            changes = changed(changes, pid=seen.started.pid, pid_start=seen.started.start_time)
        if fresh:
            check = record.spec.health
            changes = changed(
                changes,
                started_ns=time.time_ns(),
                finished_ns=0,
                exit_code=0,
                health=Health(status=HealthStatus.STARTING)
                if check and check.test and check.test[0] != "NONE"
                else None,
                warnings=seen.started.warnings if seen.started else (),
            )
        record = self.store.put(changes)
        if fresh:
            self.emit(record, "start")
        if fresh or seen.recovering:
            for follow in self.after_start:
                follow(record)
        return record

    def _settle_ended(self, record: Record, state: State, seen: Seen) -> Record:
        live = self.live(record.id)
        ran = record.alive or seen.ended is not None
        changes = _ended(record, state, seen) if ran else _failed(record, state, seen)
        if ran and not self._closing and self._wants_restart(changes):
            live.delay = restart.next_delay(live.delay, changes.finished_ns - record.started_ns)
            changes = changed(changes, state=State.RESTARTING)
        record = self.store.put(changes)
        ended = seen.ended
        if ended is not None and (ended.cpu_ns is not None or ended.memory_peak is not None):
            self._remember_usage(record, ended)
        _release(live)
        if ran:
            self._tell_end(record, live)
        if ended is None or not ended.reaped:
            self.driver.discard(record)
        if record.state is State.RESTARTING:
            self._schedule(record.id, live)
        elif record.spec.auto_remove and not live.restarting_by_hand:
            self.dispose(record)
        for follow in self.after_settled:
            follow(record)
        return record

    def _remember_usage(self, record: Record, ended: Ended) -> None:
        """Kept in memory for those who ask after the container is gone (``tare.run``)."""
        if len(self._usage) >= _USAGES:
            del self._usage[next(iter(self._usage))]
        self._usage[record.id] = Usage(
            wall_ns=max(record.finished_ns - record.started_ns, 0),
            cpu_ns=ended.cpu_ns,
            memory_peak=ended.memory_peak,
        )

    def usage(self, identity: str) -> Usage | None:
        """What the last run of a container used; None when that is not known (any more)."""
        return self._usage.get(identity)

    def _adopt(self, record: Record, live: Live, started: Started) -> None:
        """Own the handles of the run that has begun."""
        if live.pidfd >= 0:
            os.close(live.pidfd)
        live.pidfd = started.pidfd
        if started.stdin >= 0:
            # The driver holds a copy of the write end: only both closed are an end of file.
            def closed(identity: str = record.id) -> None:
                if not self._closing and not record.spec.process.tty:
                    self.spawn(self._close_stdin(identity))

            live.input.bind(started.stdin, closed)

    async def _close_stdin(self, identity: str) -> None:
        with contextlib.suppress(TareError, OSError):
            await self.driver.close_stdin(identity)

    def _wants_restart(self, record: Record) -> bool:
        return restart.again(
            record.spec.restart,
            code=record.exit_code,
            manual=record.manually_stopped,
            count=record.restart_count,
        )

    def _tell_end(self, record: Record, live: Live) -> None:
        if record.oom_killed:
            self.emit(record, "oom")
        ran_ns = max(record.finished_ns - record.started_ns, 0)
        more = {"exitCode": str(record.exit_code), "execDuration": str(ran_ns // 1_000_000_000)}
        self.emit(record, "die", more)
        for follow in self.after_end:
            follow(record)
        info = exit_info(record)
        waiters, live.next_exit = live.next_exit, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(info)

    # --- ends, told by the driver ---------------------------------------------------------------

    def on_end(self, ended: Ended) -> None:
        """A process has ended: settle it, then let the driver forget it."""
        if ended.exec_id is not None:
            if self.exec_ended is not None:
                self.exec_ended(ended)
            return
        if (told := self.unrecorded.get(ended.id)) is not None:
            told(ended)
            return
        record = self.store.find(ended.id)
        if record is not None and record.state is State.STARTING:
            self.live(ended.id).early = ended
            return
        if record is not None and record.alive:
            self.settle(ended.id, Seen(Fact.DEAD, ended=ended))
        # The commit is made: only now may the keeper drop the exit file.
        self.spawn(self._acknowledge(ended.id))

    async def _acknowledge(self, identity: str) -> None:
        with contextlib.suppress(TareError, OSError):
            await self.driver.acknowledge(identity)

    # --- automatic restarts ---------------------------------------------------------------------

    def _schedule(self, identity: str, live: Live) -> None:
        loop = asyncio.get_running_loop()
        live.timer = loop.call_later(live.delay, self._restart, identity)

    def schedule_restart(self, record: Record) -> None:
        """Start a container by its policy, after its back-off; once only."""
        live = self.live(record.id)
        if record.state is not State.RESTARTING:
            self.store.put(changed(record, state=State.RESTARTING))
        if live.timer is None:
            self._schedule(record.id, live)

    def _restart(self, identity: str) -> None:
        live = self.live(identity)
        live.timer = None
        if not self._closing:
            self.spawn(self._restart_now(identity))

    async def _restart_now(self, identity: str) -> None:
        try:
            await self.start(identity, automatic=True)
        except MissingError:
            return
        except (TareError, OSError):
            self._restart_failed(identity)

    def _restart_failed(self, identity: str) -> None:
        """A restart that could not start counts as an end, as in Docker: the policy goes on."""
        record = self.store.find(identity)
        if record is None or record.state is not State.EXITED or self._closing:
            return
        if self._wants_restart(record):
            live = self.live(identity)
            live.delay = restart.next_delay(live.delay, 0)
            self.schedule_restart(record)

    @staticmethod
    def _cancel_timer(live: Live) -> None:
        if live.timer is not None:
            live.timer.cancel()
            live.timer = None

    # --- stop and kill --------------------------------------------------------------------------

    async def stop(self, identity: str, number: int, timeout: float) -> bool:
        """Ask to end, wait *timeout* seconds (negative: for ever), kill; False if not running."""
        record = self._current(identity)
        if record.state is State.STARTING:
            async with self.live(identity).lock:
                record = self._current(identity)
        if not record.running:
            return False
        if record.state is State.RESTARTING:
            self._give_up_restart(record)
            return True
        ended = self.next_exit(identity)
        was_paused = record.state is State.PAUSED
        if record.state is not State.STOPPING:
            record = self.store.put(
                changed(record, state=INTENTS[record.state, Action.STOP], manually_stopped=True)
            )
        self._send(record, number)
        if was_paused:
            await self.driver.thaw(record)
        if not await _within(ended, None if timeout < 0 else timeout):
            await self._kill_and_wait(self._current(identity), ended)
        after = self.store.find(identity)
        self.emit(after or record, "stop")
        return True

    async def kill(self, identity: str, number: int, *, manual: bool) -> None:
        """Send a signal; *manual* (it is meant to end it) stands in the way of a restart.

        SIGKILL is waited for. ConflictError when the container does not run.
        """
        record = self._current(identity)
        if not record.running:
            raise ConflictError(f"container {record.id} is not running")
        if manual:
            record = self.store.put(changed(record, manually_stopped=True))
        if record.state is State.RESTARTING:
            if manual:
                self._give_up_restart(record)
            return
        if number == 9:
            await self._kill_and_wait(record, self.next_exit(identity))
            return
        self._send(record, number)
        if manual and record.state is State.PAUSED:
            await self.driver.thaw(record)

    async def _kill_and_wait(self, record: Record, ended: asyncio.Future[ExitInfo]) -> None:
        if ended.done():
            return
        self.emit(record, "kill", {"signal": "9"})
        self.driver.kill(record)
        if record.state is State.PAUSED:
            with contextlib.suppress(TareError, OSError):
                await self.driver.thaw(record)
        if await _within(ended, _KILL_PATIENCE):
            return
        fact = self.driver.observe(record)
        if fact in (Fact.ALIVE, Fact.FROZEN):
            self.settle(record.id, Seen(fact))
            raise FailedError(
                f"container {record.id[:12]} did not end within {_KILL_PATIENCE:.0f} s of SIGKILL",
                hint="a process may hang in the kernel: look for state D in ps",
            )
        unknown = Ended(record.id, _UNKNOWN_CODE, time.time_ns(), known=False)
        self.on_end(self.driver.leftover_end(record) or unknown)

    def _send(self, record: Record, number: int) -> None:
        self.emit(record, "kill", {"signal": str(number)})
        self.driver.signal(record, number)

    def _give_up_restart(self, record: Record) -> None:
        self._cancel_timer(self.live(record.id))
        record = self.store.put(changed(record, state=State.EXITED, manually_stopped=True))
        self.emit(record, "stop")

    # --- pause ----------------------------------------------------------------------------------

    async def pause(self, identity: str, action: Action) -> None:
        """Freeze (PAUSE) or thaw (UNPAUSE) all processes; what is seen then is recorded."""
        async with self.live(identity).lock:
            record = self._current(identity)
            act = self.driver.freeze if action is Action.PAUSE else self.driver.thaw
            try:
                await act(record)
            finally:
                now = self._current(identity)
                if now.state in (State.RUNNING, State.PAUSED):
                    fact = self.driver.observe(now)
                    if fact in (Fact.ALIVE, Fact.FROZEN):
                        self.settle(identity, Seen(fact))
            self.emit(record, action.value)

    # --- waiting --------------------------------------------------------------------------------

    def next_exit(self, identity: str) -> asyncio.Future[ExitInfo]:
        """A future for the next end, registered now: an end after this call is never missed."""
        waiter: asyncio.Future[ExitInfo] = asyncio.get_running_loop().create_future()
        self.live(identity).next_exit.append(waiter)
        return waiter

    def removal(self, identity: str) -> asyncio.Future[ExitInfo]:
        """A future for the container's removal, registered now."""
        waiter: asyncio.Future[ExitInfo] = asyncio.get_running_loop().create_future()
        self.live(identity).removed.append(waiter)
        return waiter

    # --- removal --------------------------------------------------------------------------------

    def dispose(self, record: Record) -> None:
        """Remove a container that has no process: name and directory are free when it returns."""
        record = self.store.put(
            changed(record, state=INTENTS[record.state, Action.REMOVE])
            if record.state is not State.RESTARTING
            else changed(record, state=State.REMOVING)
        )
        live = self.live(record.id)
        self._cancel_timer(live)
        try:
            self.workloads.discard(record.id)
        except OSError as error:
            message = f"cannot remove container {record.id[:12]}: {error}"
            self.store.put(changed(record, state=State.DEAD, error=message))
            raise FailedError(message) from error
        hardened = record.spec.security.profile is SecurityProfile.HARDENED
        if record.id_block is not None and hardened:
            self.blocks.rest(record.id_block)
        self.store.delete(record.id)
        if record.id_block is not None:
            self.blocks.release(record.id_block)
        del self._live[record.id]
        _release(live)
        close_pipes(live.readers)
        for follow in self.after_removal:
            follow(record)
        self.emit(record, "destroy")
        info = exit_info(record)
        for waiter in (*live.next_exit, *live.removed):
            if not waiter.done():
                waiter.set_result(info)

    async def close(self) -> None:
        """Stop what this process does by itself; containers go on."""
        self._closing = True
        for live in self._live.values():
            self._cancel_timer(live)
            _release(live)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _current(self, identity: str) -> Record:
        record = self.store.find(identity)
        if record is None:
            raise MissingError(f"No such container: {identity}")
        return record


def exit_info(record: Record) -> ExitInfo:
    """How *record* ended, for those who wait."""
    return ExitInfo(code=record.exit_code, error=record.error, oom_killed=record.oom_killed)


def as_error(error: BaseException) -> TareError:
    """*error* as one of the tree: the kernel's own words for an OSError."""
    if isinstance(error, TareError):
        return error
    if isinstance(error, OSError):
        return FailedError(str(error), exit_code=125)
    return FailedError(f"interrupted: {type(error).__name__}", exit_code=125)


def close_pipes(readers: list[Pipes]) -> None:
    """Close the write ends of readers whose container will not write."""
    for pipes in readers:
        for descriptor in (pipes.stdout, pipes.stderr):
            if descriptor >= 0:
                os.close(descriptor)
    readers.clear()


def size_in_words(size: int) -> str:
    """64 MiB, 1.5 GiB, 700 bytes."""
    value, unit = float(size), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.4g} {unit}"


def _ended(record: Record, state: State, seen: Seen) -> Record:
    """*record* after its process has ended, by what is known of that."""
    ended = seen.ended or Ended(record.id, _UNKNOWN_CODE, time.time_ns(), known=False)
    error = ""
    if ended.oom_killed:
        limit = record.spec.resources.memory
        where = f" at its memory limit of {size_in_words(limit)}" if limit else ""
        whom = "" if ended.code == 137 else "a process in it was "
        error = f"{whom}killed by the kernel's OOM killer{where}"
    elif not ended.known:
        error = "it ended while neither the daemon nor the keeper ran: its exit code is not known"
    return changed(
        record,
        state=State.EXITED if state is State.CREATED else state,
        exit_code=ended.code,
        oom_killed=ended.oom_killed,
        finished_ns=ended.at_ns,
        error=error,
        pid=0,
        pid_start=0,
    )


def _failed(record: Record, state: State, seen: Seen) -> Record:
    """*record* after a start that did not come about."""
    code = seen.error.exit_code if seen.error else 128
    return changed(
        record,
        state=state,
        exit_code=code if code in (125, 126, 127) else 128,
        error=str(seen.error) if seen.error else "the engine ended while it was being started",
        pid=0,
        pid_start=0,
    )


def _release(live: Live) -> None:
    """Close what belonged to the run that has ended."""
    if live.pidfd >= 0:
        os.close(live.pidfd)
        live.pidfd = -1
    live.input.close()
    live.input = Input()


async def _within(future: Awaitable[ExitInfo], timeout: float | None) -> bool:
    done, _ = await asyncio.wait((asyncio.ensure_future(future),), timeout=timeout)
    return bool(done)
