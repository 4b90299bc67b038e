"""Threads of a build: nothing outlives the one who waits for it."""

from __future__ import annotations

import asyncio
import io
import tarfile
import threading
from pathlib import Path

import pytest

from tare.build.context import Context
from tare.build.threads import in_thread
from tare.errors import FailedError


def test_a_cancelled_caller_stays_until_its_thread_is_done() -> None:
    begun, go, done = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        assert go.wait(30)
        done.set()

    async def body() -> None:
        task = asyncio.ensure_future(in_thread(work))
        await asyncio.to_thread(begun.wait, 30)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert done.is_set()

    asyncio.run(body())


def test_results_and_errors_come_through() -> None:
    def fail() -> None:
        raise FailedError("no")

    assert asyncio.run(in_thread(int, "7")) == 7
    with pytest.raises(FailedError, match="no"):
        asyncio.run(in_thread(fail))


def test_a_context_that_was_closed_is_not_written_to(tmp_path: Path) -> None:
    """Its descriptor's number may be another file's by then."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        entry = tarfile.TarInfo("f")
        entry.size = 3
        archive.addfile(entry, io.BytesIO(b"abc"))
    out.seek(0)
    context = Context(tmp_path)
    context.put(b"before", b"x")
    context.close()
    context.close()

    with open(tmp_path / "other", "w+b"):  # takes the number
        with pytest.raises(FailedError, match="ended"):
            context.take(out)
        with pytest.raises(FailedError, match="ended"):
            list(context.content(b"before"))

    assert (tmp_path / "other").read_bytes() == b""
