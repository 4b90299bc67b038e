"""Standard streams of workloads as asyncio sees them: pipes read and written on demand.

An `Attachment` is one user's view: what comes out, and a way in. It may be made before its
container starts; writing then waits for the start. Reading is by demand, so a slow reader slows
the workload (a full pipe) and never fills this process.

Not for: Docker's framing of streams (api), and logs (run.logs).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import struct
import termios
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

STDOUT: Final = 1
STDERR: Final = 2
_CHUNK: Final = 65536


class Output:
    """Chunks of ``(stream, bytes)`` from pipes (or a terminal) until all of them end."""

    def __init__(
        self, sources: list[tuple[int, int]], until: Callable[[], Awaitable[object]] | None = None
    ) -> None:
        """*until* is awaited after the last chunk: the end of the output is its end as well."""
        self._sources = deque(sources)
        self._until = until
        self._waiting: asyncio.Future[None] | None = None
        for _, descriptor in sources:
            os.set_blocking(descriptor, False)

    def __aiter__(self) -> Output:
        return self

    async def __anext__(self) -> tuple[int, bytes]:
        while self._sources:
            for _ in range(len(self._sources)):
                stream, descriptor = self._sources[0]
                try:
                    chunk = os.read(descriptor, _CHUNK)
                except BlockingIOError:
                    self._sources.rotate(-1)
                    continue
                except OSError:
                    chunk = b""  # EIO: nobody holds the terminal any more
                if chunk:
                    return stream, chunk
                self._sources.popleft()
                os.close(descriptor)
            if self._sources:
                await self._readable()
        if self._until is not None:
            until, self._until = self._until, None
            await until()
        raise StopAsyncIteration

    def close(self) -> None:
        """Stop reading; a reader that waits is told the end."""
        self._until = None
        while self._sources:
            descriptor = self._sources.pop()[1]
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop().remove_reader(descriptor)
            os.close(descriptor)
        self._wake()

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        self._waiting = loop.create_future()
        descriptors = [descriptor for _, descriptor in self._sources]
        for descriptor in descriptors:
            loop.add_reader(descriptor, self._wake)
        try:
            await self._waiting
        finally:
            self._waiting = None
            if self._sources:
                for descriptor in descriptors:
                    loop.remove_reader(descriptor)

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


class Input:
    """The way into a workload's standard input, shared by all who are attached.

    It is bound to a descriptor at the start; writers wait for that. A reader that is gone makes
    writes vanish, as it does with a pipe whose writer ignores SIGPIPE.
    """

    def __init__(self) -> None:
        self._descriptor = -1
        self._closed = False
        self._on_close: Callable[[], None] | None = None
        self._bound = asyncio.Event()
        self._turn = asyncio.Lock()
        self._waiting: asyncio.Future[None] | None = None

    def bind(self, descriptor: int, on_close: Callable[[], None] | None = None) -> None:
        """Own *descriptor* from now on, or close it when `close` was called already.

        *on_close* is called once it is closed.
        """
        if self._closed:
            os.close(descriptor)
            if on_close is not None:
                on_close()
        else:
            os.set_blocking(descriptor, False)
            self._descriptor = descriptor
            self._on_close = on_close
        self._bound.set()

    async def write(self, content: bytes) -> None:
        """Write all of *content*, waiting as long as the workload does not read."""
        if not self._bound.is_set():
            await self._bound.wait()
        async with self._turn:
            view = memoryview(content)
            while view and not self._closed:
                try:
                    view = view[os.write(self._descriptor, view) :]
                except BlockingIOError:
                    await self._writable()
                except OSError:
                    self.close()

    def close(self) -> None:
        """End of input; the workload reads end of file (of a terminal: nothing happens)."""
        self._closed = True
        self._bound.set()
        if self._descriptor >= 0:
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop().remove_writer(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1
            if self._on_close is not None:
                self._on_close()
        self._wake()

    @property
    def closed(self) -> bool:
        """True once `close` was called."""
        return self._closed

    def resize(self, height: int, width: int) -> None:
        """Tell the terminal its size; OSError when it is none."""
        if self._descriptor >= 0:
            fcntl.ioctl(
                self._descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0)
            )

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        descriptor = self._descriptor
        self._waiting = loop.create_future()
        loop.add_writer(descriptor, self._wake)
        try:
            await self._waiting
        finally:
            self._waiting = None
            if self._descriptor == descriptor:
                loop.remove_writer(descriptor)

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


class Attachment:
    """One user's view of a container's or an exec's streams; close it."""

    def __init__(
        self,
        output: Output,
        input_: Input | None,
        *,
        tty: bool,
        end_input: bool = False,
        on_close: Callable[[Attachment], None] | None = None,
    ) -> None:
        self.output = output
        self.tty = tty
        self._input = input_
        self._end_input = end_input
        self._on_close = on_close

    async def write(self, content: bytes) -> None:
        """Write to the standard input; without one the bytes vanish."""
        if self._input is not None:
            await self._input.write(content)

    async def close_stdin(self) -> None:
        """The user has no more input: the workload is told if its input is for one user only."""
        if self._input is not None and self._end_input and not self.tty:
            self._input.close()

    async def close(self) -> None:
        """Leave; the workload goes on (but see ``stdin_once``)."""
        await self.close_stdin()
        self._input = None
        self.output.close()
        if self._on_close is not None:
            self._on_close(self)
            self._on_close = None


def pipe() -> tuple[int, int]:
    """A pipe, close-on-exec, both ends blocking."""
    return os.pipe2(os.O_CLOEXEC)
