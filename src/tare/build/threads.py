"""Work on files beside the event loop, of which nothing outlives the one who waits for it.

A thread cannot be stopped. `asyncio.to_thread` lets its caller go when that is cancelled, and the
thread goes on with descriptors that its owner then closes, whose numbers are soon those of other
files. Here the caller stays until the thread is done, and is cancelled then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


async def in_thread(work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call *work* in a thread; it has ended when this returns or raises."""
    working = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    cancelled = False
    while not working.done():
        try:
            await asyncio.wait((working,))
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        working.exception()  # it was asked for: nobody else will
        raise asyncio.CancelledError
    return working.result()
