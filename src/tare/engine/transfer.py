"""Bytes between the event loop and a thread that works on files: through pipes.

The loop's end never blocks; the thread's end is a plain file. A full or an empty pipe makes the
other side wait, so nothing piles up in memory.

Not for: a container's standard streams (engine.streams).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import BinaryIO, Final, TypeVar

from tare.engine.streams import STDOUT, Input, Output, pipe

_PIPE_SIZE: Final = 1 << 20
_T = TypeVar("_T")


async def consumed(source: AsyncIterator[bytes], work: Callable[[BinaryIO], _T]) -> _T:
    """Run *work* in a thread on a file that gives what *source* yields.

    When the source fails its error is raised; *work* sees a file that ends early.
    """
    read, write = _large_pipe()
    feeding = asyncio.create_task(_feed(source, write))
    try:
        result = await asyncio.to_thread(_read_from, read, work)
    except BaseException:
        if feeding.done() and not feeding.cancelled() and feeding.exception() is not None:
            await feeding
        raise
    finally:
        feeding.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await feeding
    return result


async def _feed(source: AsyncIterator[bytes], write: int) -> None:
    entry = Input()
    entry.bind(write)
    try:
        async for chunk in source:
            await entry.write(chunk)
            if entry.closed:
                return  # the reader has seen enough
    finally:
        entry.close()


def _read_from(descriptor: int, work: Callable[[BinaryIO], _T]) -> _T:
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        return work(file)


async def produced(work: Callable[[BinaryIO], object]) -> AsyncGenerator[bytes, None]:
    """The bytes that *work* writes to a file, in a thread; its error is raised at the end."""
    read, write = _large_pipe()
    output = Output([(STDOUT, read)])
    writing = asyncio.create_task(asyncio.to_thread(_write_to, write, work))
    try:
        async for _, chunk in output:
            yield chunk
        await writing
    finally:
        output.close()
        # A thread cannot be stopped; it ends at its next write, to a pipe that nobody reads.
        with contextlib.suppress(BrokenPipeError):
            await writing


def _write_to(descriptor: int, work: Callable[[BinaryIO], object]) -> None:
    with os.fdopen(descriptor, "wb") as file:
        work(file)


async def piped(produce: Callable[[BinaryIO], object], consume: Callable[[BinaryIO], _T]) -> _T:
    """Two threads, the one's output the other's input; the producer's error is the cause."""
    read, write = _large_pipe()
    writing = asyncio.create_task(asyncio.to_thread(_write_to, write, produce))
    try:
        result = await asyncio.to_thread(_read_from, read, consume)
    except BaseException:
        with contextlib.suppress(BrokenPipeError):
            await writing
        raise
    await writing
    return result


def _large_pipe() -> tuple[int, int]:
    read, write = pipe()
    with contextlib.suppress(OSError):
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
    return read, write
