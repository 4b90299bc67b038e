"""Looking at containers and talking to them: attach, logs, top, stats, resize.

``attach`` may come before ``start``: it misses nothing then. ``logs`` with follow ends when the
container does.

Not for: changing a container's state (engine.containers), its files (engine.copying).
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import os
import shlex
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Final

from tare.engine.core import Core
from tare.engine.driver import Pipes
from tare.engine.guest_processes import top_of
from tare.engine.lifecycle import Live
from tare.engine.streams import STDERR, STDOUT, Attachment, Output, pipe
from tare.errors import ConflictError, FailedError, InvalidError, UnsupportedError
from tare.model.record import LogLine, LogQuery, Record, Sample, Top
from tare.model.spec import Isolation
from tare.model.state import State

if TYPE_CHECKING:
    from tare.run.logs import Line, LogReader

_INLINE_LOG: Final = 1 << 18  # larger logs are searched for their tail in a thread
_BATCH: Final = 512  # lines


class Observing:
    """The verbs that leave a container as it is."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._store = core.store
        self._lifecycle = core.lifecycle
        self._driver = core.driver

    async def get(self, ref: str) -> Record:
        """The record of a name, an id or a unique id prefix; MissingError."""
        return self._store.get(ref)

    async def attach(
        self, ref: str, *, stdin: bool = False, stdout: bool = True, stderr: bool = True
    ) -> Attachment:
        """A view of the container's streams from now on (or from its coming start)."""
        record = self._store.get(ref)
        if record.state is State.PAUSED:
            raise ConflictError(
                f"container {record.id} is paused, unpause the container before attach"
            )
        if record.state is State.RESTARTING:
            raise ConflictError(
                f"container {record.id} is restarting, wait until the container is running"
            )
        live = self._lifecycle.live(record.id)
        tty = record.spec.process.tty
        output, pipes = _open_pipes(stdout=stdout, stderr=stderr and not tty)
        if record.state is State.STARTING:
            async with live.lock:
                record = self._store.get(record.id)
        if record.alive:
            await self._join(record, output, pipes)
        else:
            live.readers.append(pipes)
        entry = live.input if stdin and record.spec.process.open_stdin else None
        self._lifecycle.emit(record, "attach")
        return Attachment(
            output,
            entry,
            tty=tty,
            end_input=record.spec.process.stdin_once,
            on_close=lambda _: _withdraw(live, pipes),
        )

    async def _join(self, record: Record, output: Output, pipes: Pipes) -> None:
        try:
            await self._driver.attach(record.id, pipes)
        except BaseException:
            output.close()
            raise

    async def resize(self, ref: str, height: int, width: int) -> None:
        """Tell the container's terminal its size; without one nothing happens."""
        record = self._store.get(ref)
        if not record.alive:
            raise ConflictError(f"container {record.id} is not running")
        if not (0 < height < 1 << 16 and 0 < width < 1 << 16):
            raise InvalidError(f"invalid terminal size: {height}x{width}")
        if record.spec.process.tty:
            with contextlib.suppress(OSError):
                self._lifecycle.live(record.id).input.resize(height, width)
        self._lifecycle.emit(record, "resize", {"height": str(height), "width": str(width)})

    def logs(self, ref: str, query: LogQuery) -> AsyncGenerator[list[LogLine], None]:
        """Batches of the lines that *query* asks for, oldest first; errors are raised now."""
        from tare.run.logs import LogReader

        record = self._store.get(ref)
        if record.spec.log.driver == "none":
            raise UnsupportedError("configured logging driver does not support reading")
        if not (query.stdout or query.stderr):
            raise InvalidError("Bad parameters: you must choose at least one stream")
        # Now, not when the first line is asked for: by then the container may be removed.
        reader = LogReader(record.log_path)
        reader.open()
        return self._logs(record, query, reader)

    async def _logs(
        self, record: Record, query: LogQuery, reader: LogReader
    ) -> AsyncGenerator[list[LogLine], None]:
        # Follow first, then read: what is written between the two is told twice, read once.
        signal = await self._follow(record) if query.follow else None
        try:
            source = reader.read() if signal is not None else _rest(reader)
            for batch in _batches(await _tail(_wanted(source, query), query, record)):
                yield batch
                await asyncio.sleep(0)
            if signal is None:
                return
            until = query.until_ns
            remaining = None if until is None else (until - time.time_ns()) / 1e9
            deadline = None if remaining is None else time.monotonic() + remaining
            while await _told(signal, deadline):
                for batch in _batches(_wanted(reader.read(), query)):
                    yield batch
            for batch in _batches(_wanted(_rest(reader), query)):
                yield batch
        finally:
            if signal is not None:
                signal.close()
            reader.close()

    async def _follow(self, record: Record) -> Output | None:
        """A stream that tells of new output; None when the container does not run."""
        live = self._lifecycle.live(record.id)
        if record.state is State.STARTING:
            async with live.lock:
                record = self._store.get(record.id)
        if not record.alive:
            return None
        output, pipes = _open_pipes(stdout=True, stderr=not record.spec.process.tty)
        try:
            await self._join(record, output, pipes)
        except ConflictError:
            return None  # it has just ended; all that it said is in the log by then
        return output

    async def top(self, ref: str, arguments: str = "-ef") -> Top:
        """The container's processes as the host's ps(1) prints them."""
        record = self._store.get(ref)
        if not record.alive:
            raise ConflictError(f"container {record.id} is not running")
        if record.spec.isolation is Isolation.VM:
            return await top_of(record, arguments)
        pids = {str(pid) for pid in self._driver.pids(record)}
        try:
            words = shlex.split(arguments or "-ef")
        except ValueError as error:
            raise InvalidError(f"invalid arguments of ps: {error}") from None
        try:
            process = await asyncio.create_subprocess_exec(
                "ps",
                *words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except FileNotFoundError:
            raise UnsupportedError(
                "the host has no ps program", hint="install procps on the host"
            ) from None
        out, err = await process.communicate()
        if process.returncode:
            words_of_ps = err.decode(errors="replace").strip().splitlines()
            raise InvalidError(f"Error running ps: {words_of_ps[0] if words_of_ps else 'failed'}")
        return _table(out.decode(errors="replace"), pids)

    async def stats(self, ref: str) -> Sample:
        """What the container uses now; an empty sample when it does not run."""
        record = self._store.get(ref)
        if not record.alive:
            return Sample(read_ns=time.time_ns())
        try:
            return self._driver.sample(record)
        except OSError as error:
            raise FailedError(f"cannot read the usage of {record.id[:12]}: {error}") from error

    async def samples(self) -> builtins.list[tuple[Record, Sample]]:
        """What every running container uses now, in one go; read in a thread."""
        alive = [record for record in self._store.active() if record.alive]

        def read() -> builtins.list[tuple[Record, Sample]]:
            found = []
            for record in alive:
                with contextlib.suppress(OSError, ValueError):  # it ends while it is read
                    found.append((record, self._driver.sample(record)))
            return found

        return await asyncio.to_thread(read)


def _open_pipes(*, stdout: bool, stderr: bool) -> tuple[Output, Pipes]:
    sources: list[tuple[int, int]] = []
    ends = {STDOUT: -1, STDERR: -1}
    for stream, wanted in ((STDOUT, stdout), (STDERR, stderr)):
        if wanted:
            read, ends[stream] = pipe()
            sources.append((stream, read))
    return Output(sources), Pipes(ends[STDOUT], ends[STDERR])


def _withdraw(live: Live, pipes: Pipes) -> None:
    """Drop a reader that left before the start."""
    if pipes in live.readers:
        live.readers.remove(pipes)
        for descriptor in (pipes.stdout, pipes.stderr):
            if descriptor >= 0:
                os.close(descriptor)


async def _told(signal: Output, deadline: float | None) -> bool:
    """Wait for new output; False when there will be none, or *deadline* has passed."""
    remaining = None if deadline is None else deadline - time.monotonic()
    if remaining is not None and remaining <= 0:
        return False
    try:
        await asyncio.wait_for(anext(signal), remaining)
    except (StopAsyncIteration, TimeoutError):
        return False
    return True


async def _tail(lines: Iterator[LogLine], query: LogQuery, record: Record) -> Iterator[LogLine]:
    """The last lines if the query asks for those; a large log is searched in a thread."""
    if query.tail is None:
        return lines
    try:
        large = os.stat(record.log_path).st_size > _INLINE_LOG
    except FileNotFoundError:
        large = False
    length = max(query.tail, 0)
    return iter(await asyncio.to_thread(deque, lines, length) if large else deque(lines, length))


def _batches(lines: Iterator[LogLine]) -> Iterator[list[LogLine]]:
    while batch := list(islice(lines, _BATCH)):
        yield batch


def _rest(reader: LogReader) -> Iterator[Line]:
    yield from reader.read()
    yield from reader.flush()


def _wanted(lines: Iterator[Line], query: LogQuery) -> Iterator[LogLine]:
    streams = {STDOUT} if query.stdout else set()
    streams |= {STDERR} if query.stderr else set()
    since, until = query.since_ns or 0, query.until_ns
    for line in lines:
        if until is not None and line.time_ns > until:
            continue
        if line.stream in streams and line.time_ns >= since:
            yield LogLine(line.stream, line.time_ns, line.data)


def _table(text: str, pids: set[str]) -> Top:
    """Docker's table of ps output: only the rows of *pids*."""
    lines = text.splitlines()
    titles = lines[0].split() if lines else []
    if "PID" not in titles:
        raise InvalidError("Couldn't find PID field in ps output")
    column = titles.index("PID")
    rows = []
    for line in lines[1:]:
        fields = line.split(None, len(titles) - 1)
        if len(fields) > column and fields[column] in pids:
            rows.append(tuple(fields))
    return Top(titles=tuple(titles), processes=tuple(rows))
