"""Answers that are a stream of JSON lines which tell how it goes, as Docker's clients read them.

Not for: the lines' words (wire), events (observe).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web

from tare.api.call import Call, encoded, stream
from tare.errors import TareError

Say = Callable[[dict[str, object]], None]


def _line(error: TareError) -> dict[str, object]:
    message = str(error)
    return {"errorDetail": {"message": message}, "error": message, "hint": error.hint}


async def told(
    call: Call,
    work: Callable[[Say], Awaitable[None]],
    *,
    failure: Callable[[TareError], dict[str, object]] = _line,
) -> web.StreamResponse:
    """Run *work*, whose progress is a stream of JSON lines; an error is its last one.

    An error before the first line is an ordinary answer. *failure* makes a line of one.
    """
    lines: asyncio.Queue[bytes | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def say(line: dict[str, object]) -> None:
        loop.call_soon_threadsafe(lines.put_nowait, encoded(line))

    working = asyncio.ensure_future(work(say))
    working.add_done_callback(lambda _: loop.call_soon(lines.put_nowait, None))
    response = stream()
    try:
        while (line := await lines.get()) is not None:
            if not response.prepared:
                await response.prepare(call.request)
            await response.write(line)
        try:
            await working
        except TareError as error:
            if not response.prepared:
                raise
            await response.write(encoded(failure(error)))
    finally:
        working.cancel()
    if not response.prepared:
        await response.prepare(call.request)
    await response.write_eof()
    return response
