"""Health checks: run by the engine inside each container that has one, in Docker's way.

States: ``starting`` until the first success or ``retries`` failures after the start period, then
``healthy`` or ``unhealthy``. A failure in the start period does not count. The last five results
are kept, each with at most 4096 bytes of output.

Not for: acting on what is found; there is an event, and the record tells.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Final

from tare.engine.execs import Execs
from tare.engine.lifecycle import Lifecycle
from tare.engine.store import Store
from tare.errors import TareError
from tare.model.record import Health, HealthStatus, Probe, Record, changed
from tare.model.spec import ExecSpec, HealthCheck, ProcessSpec
from tare.model.state import State

KEPT: Final = 5
OUTPUT: Final = 4096
_DEFAULT_NS: Final = 30_000_000_000
_DEFAULT_START_NS: Final = 5_000_000_000
_DEFAULT_RETRIES: Final = 3


class Checks:
    """One task for each running container that has a health check."""

    def __init__(self, store: Store, lifecycle: Lifecycle, execs: Execs) -> None:
        self._store = store
        self._lifecycle = lifecycle
        self._execs = execs
        self._tasks: dict[str, asyncio.Task[None]] = {}
        lifecycle.after_start.append(self._started)
        lifecycle.after_end.append(self._ended)

    async def close(self) -> None:
        """Stop checking."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _started(self, record: Record) -> None:
        if enabled(record.spec.health) and record.id not in self._tasks:
            self._tasks[record.id] = asyncio.get_running_loop().create_task(self._watch(record))

    def _ended(self, record: Record) -> None:
        task = self._tasks.pop(record.id, None)
        if task is not None:
            task.cancel()

    async def _watch(self, record: Record) -> None:
        check = record.spec.health
        assert check is not None
        identity = record.id
        while True:
            now = self._store.find(identity)
            if now is None or not now.alive:
                return
            await asyncio.sleep(pause(check, now, time.time_ns()))
            now = self._store.find(identity)
            if now is None or not now.alive:
                return
            if now.state is State.PAUSED:
                continue
            self._record(identity, check, await self._probe(now, check))

    async def _probe(self, record: Record, check: HealthCheck) -> Probe:
        begin = time.time_ns()
        timeout = (check.timeout_ns or _DEFAULT_NS) / 1e9
        try:
            code, output = await self._execs.run(
                record, probe_spec(check), limit=OUTPUT, timeout=timeout
            )
            text = output[:OUTPUT].decode(errors="replace")
            if len(output) > OUTPUT:
                text += "..."
        except TimeoutError:
            code, text = -1, f"Health check exceeded timeout ({timeout:g}s)"
        except TareError as error:
            code, text = -1, str(error)
        return Probe(start_ns=begin, end_ns=time.time_ns(), exit_code=code, output=text)

    def _record(self, identity: str, check: HealthCheck, probe: Probe) -> None:
        record = self._store.find(identity)
        if record is None or not record.alive:
            return
        before = record.health or Health(status=HealthStatus.STARTING)
        in_start = probe.start_ns - record.started_ns < check.start_period_ns
        health = judged(before, probe, check, in_start=in_start)
        record = self._store.put(changed(record, health=health))
        if health.status is not before.status:
            self._lifecycle.emit(record, f"health_status: {health.status}")


def enabled(check: HealthCheck | None) -> bool:
    """Whether there is anything to run."""
    return check is not None and bool(check.test) and check.test[0] != "NONE"


def probe_spec(check: HealthCheck) -> ExecSpec:
    """The program of a check: ``CMD`` words, or ``CMD-SHELL`` by the container's shell."""
    kind, *words = check.test
    arguments = ("/bin/sh", "-c", " ".join(words)) if kind == "CMD-SHELL" else tuple(words)
    return ExecSpec(process=ProcessSpec(args=arguments))


def pause(check: HealthCheck, record: Record, now_ns: int) -> float:
    """Seconds until the next probe: shorter while the container is starting."""
    interval = check.interval_ns or _DEFAULT_NS
    status = record.health.status if record.health else HealthStatus.STARTING
    starting = status is HealthStatus.STARTING
    if starting and now_ns - record.started_ns < check.start_period_ns:
        interval = min(interval, check.start_interval_ns or _DEFAULT_START_NS)
    return interval / 1e9


def judged(before: Health, probe: Probe, check: HealthCheck, *, in_start: bool) -> Health:
    """The state after one more probe. Pure."""
    log = (*before.log, probe)[-KEPT:]
    if probe.exit_code == 0:
        return Health(status=HealthStatus.HEALTHY, failing_streak=0, log=log)
    if in_start and before.status is HealthStatus.STARTING:
        return replace(before, log=log)
    streak = before.failing_streak + 1
    failed = streak >= (check.retries or _DEFAULT_RETRIES)
    status = HealthStatus.UNHEALTHY if failed else before.status
    return Health(status=status, failing_streak=streak, log=log)
