"""Events: told to whoever listens, the last 1024 kept in memory for ``since``.

Filters are Docker's: values of one key are alternatives, keys are all required. A listener
that does not keep up loses its oldest events, never slows the engine.

Not for: durable history; a restarted daemon begins anew.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Final

from tare.model.record import Event

KEPT: Final = 1024
_BACKLOG: Final = 8192

Filters = Mapping[str, Sequence[str]]


class Events:
    """The engine's one list of events and its listeners."""

    def __init__(self) -> None:
        self._kept: deque[Event] = deque(maxlen=KEPT)
        self._listeners: set[_Listener] = set()
        self.heard: list[Callable[[Event], None]] = []
        """Called with every event, in the order of the events; must not wait."""

    def emit(
        self, type_: str, action: str, identity: str, attributes: Mapping[str, str] | None = None
    ) -> None:
        """Record that *action* happened to *identity* now, and tell the listeners."""
        event = Event(
            type=type_,
            action=action,
            id=identity,
            attributes=attributes if attributes is not None else {},
            time_ns=time.time_ns(),
        )
        self._kept.append(event)
        for heard in self.heard:
            heard(event)
        for listener in self._listeners:
            listener.put(event)

    def subscribe(
        self,
        since_ns: int | None = None,
        until_ns: int | None = None,
        filters: Filters | None = None,
    ) -> AsyncIterator[Event]:
        """Events from *since_ns* (None: from now) to *until_ns* (None: for ever).

        The subscription begins now, not at the first iteration, so nothing is lost between.
        """
        listener = _Listener()
        past = [e for e in self._kept if since_ns is not None and e.time_ns >= since_ns]
        self._listeners.add(listener)
        return self._stream(listener, past, until_ns, filters or {})

    async def _stream(
        self, listener: _Listener, past: list[Event], until_ns: int | None, filters: Filters
    ) -> AsyncIterator[Event]:
        try:
            for event in past:
                if (until_ns is None or event.time_ns <= until_ns) and matches(event, filters):
                    yield event
            while True:
                remaining = None if until_ns is None else (until_ns - time.time_ns()) / 1e9
                event_or_none = await listener.get(remaining)
                if event_or_none is None:
                    return
                if matches(event_or_none, filters):
                    yield event_or_none
        finally:
            self._listeners.discard(listener)


class _Listener:
    """A bounded queue with one reader."""

    def __init__(self) -> None:
        self._queue: deque[Event] = deque(maxlen=_BACKLOG)
        self._arrived = asyncio.Event()

    def put(self, event: Event) -> None:
        self._queue.append(event)
        self._arrived.set()

    async def get(self, timeout: float | None) -> Event | None:
        """The next event, or None when *timeout* seconds passed."""
        while not self._queue:
            if timeout is not None and timeout <= 0:
                return None
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), timeout)
            except TimeoutError:
                return None
        return self._queue.popleft()


def matches(event: Event, filters: Filters) -> bool:
    """Whether *event* passes Docker's event *filters*."""
    return all(_one(event, key, values) for key, values in filters.items() if values)


def _one(event: Event, key: str, values: Sequence[str]) -> bool:
    match key:
        case "type":
            return event.type in values
        case "event":
            # exec_create: and health_status: carry arguments behind the colon.
            return event.action in values or event.action.partition(":")[0] in values
        case "scope":
            return event.scope in values
        case "label":
            return all(_label(event, value) for value in values)
        case "container":
            return event.type == "container" and any(_actor(event, value) for value in values)
        case "image":
            return _image(event, values)
        case "volume" | "network" | "plugin" | "daemon" | "node" | "service" | "secret" | "config":
            return event.type == key and any(_actor(event, value) for value in values)
        case _:
            return False


def _label(event: Event, wanted: str) -> bool:
    name, has_value, value = wanted.partition("=")
    found = event.attributes.get(name)
    return found is not None and (not has_value or found == value)


def _actor(event: Event, wanted: str) -> bool:
    return event.id.startswith(wanted) or event.attributes.get("name") == wanted.lstrip("/")


def _image(event: Event, values: Sequence[str]) -> bool:
    names = {event.attributes.get("image", "")}
    if event.type == "image":
        names |= {event.id, event.attributes.get("name", "")}
    names |= {name.rpartition(":")[0] for name in names if ":" in name.rpartition("/")[2]}
    return any(value in names for value in values)
