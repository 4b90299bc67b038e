"""More programs inside running containers: created, started once, looked at.

Kept in memory only, as in Docker: a restarted daemon knows none of them, what runs goes on.

Not for: health checks' own bookkeeping (engine.health uses `run`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from dataclasses import dataclass, field, replace
from typing import Final

from tare.engine.driver import Driver, Ended
from tare.engine.lifecycle import Lifecycle
from tare.engine.store import Store
from tare.engine.streams import STDERR, STDOUT, Attachment, Input, Output, pipe
from tare.errors import ConflictError, FailedError, InvalidError, MissingError, TareError
from tare.model.record import ExecRecord, Record
from tare.model.spec import ExecSpec
from tare.model.state import State

_KEPT_FINISHED: Final = 128
_DRAIN: Final = 2.0  # seconds that output may outlive the program, as in Docker


@dataclass(slots=True)
class _Exec:
    """One instance and the handles this process holds of it."""

    record: ExecRecord
    input: Input = field(default_factory=Input)
    output: Output | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    early: Ended | None = None


class Execs:
    """All exec instances of one engine."""

    def __init__(self, store: Store, driver: Driver, lifecycle: Lifecycle) -> None:
        self._store = store
        self._driver = driver
        self._lifecycle = lifecycle
        self._all: dict[str, _Exec] = {}
        self._by_container: dict[str, dict[str, None]] = {}
        self._finished: list[str] = []
        lifecycle.exec_ended = self._on_end
        lifecycle.after_end.append(self._container_ended)
        lifecycle.after_removal.append(self._container_removed)

    async def create(self, ref: str, spec: ExecSpec) -> str:
        """Make an instance in a running container: its id."""
        record = _runnable(self._store.get(ref))
        if not spec.process.args:
            raise InvalidError("No exec command specified")
        identity = secrets.token_hex(32)
        made = ExecRecord(id=identity, container=record.id, spec=spec)
        self._all[identity] = _Exec(made)
        self._by_container.setdefault(record.id, {})[identity] = None
        self._emit(made, f"exec_create: {' '.join(spec.process.args)}")
        return identity

    async def start(self, identity: str, *, detach: bool = False) -> Attachment | None:
        """Start it, once; its streams unless *detach*."""
        found = self._find(identity)
        if found.record.exit_code is not None or found.record.started:
            raise ConflictError(f"exec command {identity} is already running or has run")
        record = _runnable(self._store.get(found.record.container))
        found.record = replace(found.record, started=True, running=True)
        self._emit(found.record, f"exec_start: {' '.join(found.record.spec.process.args)}")
        return await self._lifecycle.uninterrupted(self._start(found, record, detach=detach))

    async def _start(self, found: _Exec, record: Record, *, detach: bool) -> Attachment | None:
        spec = found.record.spec
        tty = spec.process.tty
        ends, sources, write = _streams(spec, detach=detach, tty=tty)
        try:
            started = await self._driver.execute(record, found.record, ends)
        except BaseException as error:
            for _, descriptor in sources:
                os.close(descriptor)
            if write >= 0:
                os.close(write)
            code = error.exit_code if isinstance(error, TareError) else 126
            self._finish(found, code if code in (126, 127) else 126)
            if isinstance(error, OSError):
                raise FailedError(f"cannot exec: {error}", exit_code=126) from error
            raise
        if started.pidfd >= 0:
            os.close(started.pidfd)  # its end is told by the driver
        found.record = replace(found.record, pid=started.pid)
        if tty and started.stdin >= 0:
            sources = [(STDOUT, os.dup(started.stdin))]
            write = started.stdin
        if write >= 0:
            found.input.bind(write)
        attachment = None
        if detach and not tty:
            pass
        else:
            # A client asks for the exit code right after the output: it must be there by then.
            found.output = Output(sources, found.ended.wait)
            # A detached terminal is read to its end all the same: nobody else does.
            if detach:
                self._lifecycle.spawn(_swallow(found.output))
            else:
                attachment = self._attachment(found)
        if found.early is not None:
            self._on_end(found.early)
        return attachment

    def _attachment(self, found: _Exec) -> Attachment:
        assert found.output is not None
        spec = found.record.spec
        wants_input = spec.attach_stdin
        return Attachment(
            found.output,
            found.input if wants_input else None,
            tty=spec.process.tty,
            end_input=True,
        )

    async def wait(self, identity: str) -> int:
        """Its exit code, once it has ended."""
        found = self._find(identity)
        await found.ended.wait()
        return found.record.exit_code or 0

    def inspect(self, identity: str) -> ExecRecord:
        """What is known of an instance; MissingError."""
        return self._find(identity).record

    def of(self, container: str) -> list[str]:
        """The ids of a container's instances that have not ended."""
        return [
            identity
            for identity in self._by_container.get(container, ())
            if self._all[identity].record.exit_code is None
        ]

    async def resize(self, identity: str, height: int, width: int) -> None:
        """Tell its terminal the size."""
        found = self._find(identity)
        if not found.record.running:
            raise ConflictError(f"exec {identity} is not running")
        with contextlib.suppress(OSError):
            found.input.resize(height, width)

    async def run(
        self, record: Record, spec: ExecSpec, *, limit: int, timeout: float
    ) -> tuple[int, bytes]:
        """Run to the end and return exit code and output (stdout and stderr, up to *limit*).

        TimeoutError, and the program killed, when it takes longer than *timeout* seconds.
        """
        identity = await self.create(record.id, spec)
        found = self._all[identity]
        collected = bytearray()
        try:
            async with asyncio.timeout(timeout):
                attachment = await self.start(identity)
                assert attachment is not None
                async for _, chunk in attachment.output:
                    if len(collected) <= limit:
                        collected += chunk
                await found.ended.wait()
        except TimeoutError:
            self.kill(identity)
            raise
        finally:
            if found.output is not None:
                found.output.close()
        return found.record.exit_code or 0, bytes(collected)

    def kill(self, identity: str) -> None:
        """SIGKILL its first process, if it runs."""
        found = self._find(identity)
        if found.record.running and found.record.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(found.record.pid, 9)

    # --- ends ---------------------------------------------------------------------------------

    def _on_end(self, ended: Ended) -> None:
        found = self._all.get(ended.exec_id or "")
        if found is None or found.record.exit_code is not None:
            return
        if not found.record.pid:
            found.early = ended  # told before the answer to its start was read
            return
        self._finish(found, ended.code)

    def _finish(self, found: _Exec, code: int) -> None:
        found.record = replace(found.record, running=False, exit_code=code)
        found.ended.set()
        found.input.close()
        output = found.output
        if output is not None:
            # Something it left behind may hold the pipes for ever: do not wait that long.
            asyncio.get_running_loop().call_later(_DRAIN, output.close)
        self._emit(found.record, "exec_die", {"exitCode": str(code)})
        self._finished.append(found.record.id)
        if len(self._finished) > _KEPT_FINISHED:
            self._forget(self._finished.pop(0))

    def _container_ended(self, record: Record) -> None:
        """What ran inside ended with it; ends that the driver still tells change nothing."""
        for identity in self.of(record.id):
            found = self._all[identity]
            if found.record.running:
                asyncio.get_running_loop().call_later(0.5, self._end_unseen, identity)

    def _end_unseen(self, identity: str) -> None:
        found = self._all.get(identity)
        if found is not None and found.record.running:
            self._finish(found, 137)

    def _container_removed(self, record: Record) -> None:
        for identity in list(self._by_container.get(record.id, ())):
            if not self._all[identity].record.running:
                self._forget(identity)

    def _forget(self, identity: str) -> None:
        found = self._all.pop(identity, None)
        if found is None:
            return
        mine = self._by_container.get(found.record.container)
        if mine is not None:
            mine.pop(identity, None)
            if not mine:
                del self._by_container[found.record.container]

    def _find(self, identity: str) -> _Exec:
        found = self._all.get(identity)
        if found is None:
            raise MissingError(f"No such exec instance: {identity[:80]}")
        return found

    def _emit(self, made: ExecRecord, action: str, more: dict[str, str] | None = None) -> None:
        record = self._store.find(made.container)
        if record is not None:
            self._lifecycle.emit(record, action, {"execID": made.id, **(more or {})})


def _runnable(record: Record) -> Record:
    if record.state is State.PAUSED:
        raise ConflictError(f"container {record.id} is paused, unpause the container before exec")
    if record.state is State.RESTARTING:
        raise ConflictError(
            f"container {record.id} is restarting, wait until the container is running"
        )
    if not record.alive:
        raise ConflictError(f"container {record.id} is not running")
    return record


def _streams(
    spec: ExecSpec, *, detach: bool, tty: bool
) -> tuple[tuple[int, int, int], list[tuple[int, int]], int]:
    """The program's ends, ours to read from, and ours to write to (-1: none)."""
    if tty:
        return (-1, -1, -1), [], -1
    sources: list[tuple[int, int]] = []
    write, stdin = -1, -1
    if spec.attach_stdin and not detach:
        stdin, write = pipe()
    else:
        stdin = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    outs = []
    for stream, wanted in ((STDOUT, spec.attach_stdout), (STDERR, spec.attach_stderr)):
        if wanted and not detach:
            read, end = pipe()
            sources.append((stream, read))
            outs.append(end)
        else:
            outs.append(os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC))
    return (stdin, outs[0], outs[1]), sources, write


async def _swallow(output: Output) -> None:
    async for _ in output:
        pass
