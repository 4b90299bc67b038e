"""The ledger: who did what to which digest with which verdict, appended and never changed.

::

    STATE/ledger/
      entries     one line of JSON an entry, chained by hashes           (model.ledger)
      head        number and hash of an entry that was there: a cut-off end shows

Entries come from the engine's events, in their order, with the user of the request under way. A
line is written at once and synced within seconds, with ``head`` after it; kill -9 loses nothing, a
power cut the last seconds. A line that a crash left half is taken away when the engine starts.

Who can write as the engine's user can also write a new chain: `head`, noted elsewhere now and
then (``tare ledger verify`` shows it), tells. Not for: what may happen (engine.trust).
"""

from __future__ import annotations

import contextvars
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tare.errors import InvalidError
from tare.kernel import files
from tare.model.ledger import FIRST, LINE_MAX, Checked, Entry, check

if TYPE_CHECKING:
    from tare.model.record import Event

log = logging.getLogger("tare.ledger")

WHO: Final[contextvars.ContextVar[str]] = contextvars.ContextVar("WHO", default="the engine")
"""The user for whom something is done: ``uid 1000``."""
_KEPT: Final = {
    "image": frozenset(
        {"pull", "push", "load", "import", "save", "build", "commit", "tag", "untag", "delete",
         "prune", "trust"}
    ),
    "container": frozenset({"create", "start", "destroy"}),
    "trust": None,
}  # fmt: skip
_TEXT_MAX: Final = 2000


class Ledger:
    """The one ledger of an engine; its calls come from the event loop's thread."""

    def __init__(self, directory: Path, digest_of: Callable[[Event], str] = lambda _: "") -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path, self._head = directory / "entries", directory / "head"
        self._digest_of = digest_of
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.open(self._path, flags, 0o600)
        self._synced = True
        self._number, self._last = self._recover()

    def _recover(self) -> tuple[int, str]:
        """Where the chain ends; what a crash left half is cut away."""
        size = os.fstat(self._file).st_size
        tail = os.pread(self._file, min(size, 2 * LINE_MAX), max(0, size - 2 * LINE_MAX))
        whole = tail[: tail.rfind(b"\n") + 1]
        if len(whole) < len(tail):
            log.warning("the ledger's last line was half written: %d bytes of it are cut away",
                        len(tail) - len(whole))  # fmt: skip
            os.ftruncate(self._file, size - (len(tail) - len(whole)))
        number, last = 0, FIRST
        line = whole.rstrip(b"\n").rpartition(b"\n")[2]
        if line:
            try:
                entry, last = Entry.decode(line)
                number = entry.number
            except InvalidError as error:
                log.error("the ledger's last entry cannot be read: %s", error)
        noted = self.noted()
        if noted is not None and noted[0] > number:
            # Its numbers go on behind the gap, so that every later look shows it.
            log.error(
                "the ledger was cut off: entry %d was there, now it ends at %d", noted[0], number
            )
            return noted
        return number, last

    def noted(self) -> tuple[int, str] | None:
        """The entry that was the last one when the head was written."""
        try:
            number, _, found = self._head.read_text("ascii").strip().partition(" ")
            return int(number), found
        except (OSError, ValueError):
            return None

    def heard(self, event: Event) -> None:
        """Write down an event, if it is one that counts."""
        actions = _KEPT.get(event.type, frozenset())
        if actions is not None and event.action not in actions:
            return
        attributes = event.attributes
        digest = attributes.get("digest", "") or self._digest_of(event)
        detail = attributes.get("reasons", "") or attributes.get("detail", "")
        doing = attributes.get("doing", "")
        refused = " refused" if attributes.get("refused") == "true" else ""
        self.append(
            did=f"{event.type} {event.action}" + (f" {doing}{refused}" if doing else ""),
            what=attributes.get("name", "") or event.id,
            digest=digest,
            verdict=attributes.get("verdict", ""),
            detail=detail,
        )

    def append(
        self, *, did: str, what: str, digest: str = "", verdict: str = "", detail: str = ""
    ) -> None:
        """Write one entry; a ledger that cannot be written is said to be, and stops nothing."""
        entry = Entry(
            number=self._number + 1,
            time_ns=time.time_ns(),
            who=WHO.get(),
            did=did[:_TEXT_MAX],
            what=what[:_TEXT_MAX],
            digest=digest[:_TEXT_MAX],
            verdict=verdict[:_TEXT_MAX],
            detail=detail[:_TEXT_MAX],
            before=self._last,
        )
        line, found = entry.encode()
        try:
            written = os.write(self._file, line + b"\n")
            if written != len(line) + 1:
                os.ftruncate(self._file, os.fstat(self._file).st_size - written)
                raise OSError("the disk is full")
        except OSError as error:
            log.error("the ledger cannot be written: %s", error)
            return
        self._number, self._last = entry.number, found
        self._synced = False

    def sync(self) -> None:
        """Put what was written on disk, and its head after it; in a thread."""
        if self._synced:
            return
        number, last = self._number, self._last
        self._synced = True
        try:
            os.fsync(self._file)
            files.replace(self._head, f"{number} {last}\n".encode())
        except OSError as error:
            self._synced = False  # the next time again
            log.error("the ledger cannot be put on disk: %s", error)

    def lines(self) -> Iterator[bytes]:
        """All entries, the oldest first, without line ends."""
        with open(self._path, "rb") as file:
            while line := file.readline(LINE_MAX + 1):
                yield line.rstrip(b"\n")

    def check(self) -> Checked:
        """Whether the whole chain holds, up to the head at least; in a thread."""
        return check(self.lines(), self.noted())

    def close(self) -> None:
        """Sync and close."""
        self.sync()
        os.close(self._file)
