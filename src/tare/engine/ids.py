"""Host user ids: a block of 65536 for each container, never shared by two that are unrelated.

Blocks start at 0x60000000 (above what distributions, systemd-nspawn and Docker's userns-remap
use) and there are 4096 of them. Which are in use is told by the records. A freed block is used
again as late as possible: the search goes on from the last block given out, so ids that a forgotten
file still carries stay strange for long. That of a hardened container rests for 24 hours, which the
table ``resting_ids`` keeps across restarts.

Not for: rootless engines, whose ids come from /etc/subuid (run.host).
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tare.errors import FailedError, InvalidError
from tare.model.record import IdBlock

if TYPE_CHECKING:
    from tare.engine.documents import Documents

BASE: Final = 0x60000000
UNIT: Final = 65536
COUNT: Final = 4096
REST_NS: Final = 24 * 3600 * 10**9

_AUTO: Final = re.compile(r"auto(?::size=([0-9]{1,10}))?")


def wanted_size(user: str) -> int | None:
    """How many ids ``--userns`` asks for: None for ``host``, a multiple of 65536 else."""
    if user == "host":
        return None
    match = _AUTO.fullmatch(user or "auto")
    if match is None:
        raise InvalidError(
            f"invalid user namespace mode: {user[:80]!r}",
            hint="host, auto or auto:size=N are known",
        )
    size = int(match[1] or UNIT)
    if not 0 < size <= UNIT * COUNT:
        raise InvalidError(f"invalid size of the user namespace: {size}")
    return -(-size // UNIT) * UNIT


@dataclass(frozen=True, slots=True)
class Rest:
    """A block that nobody gets before a moment."""

    base: int
    size: int
    until_ns: int


class Blocks:
    """The blocks in use, counted: a container that joins another's namespaces shares its ids."""

    def __init__(self, resting: Documents[Rest] | None = None) -> None:
        self._used = bytearray(COUNT)
        self._next = 0
        self._shares: dict[int, int] = {}
        self._kept = resting
        self._resting: dict[int, Rest] = {}
        for _, rest in resting.items() if resting is not None else ():
            self._resting[rest.base] = rest
            self._mark(IdBlock(base=rest.base, size=rest.size), 1)

    def take(self, size: int) -> IdBlock:
        """Give out *size* ids that nobody holds; FailedError when there are no such left."""
        self._wake()
        units = -(-size // UNIT)
        free = bytes(units)
        first = self._used.find(free, self._next)
        if first < 0:
            first = self._used.find(free)
        if first < 0:
            raise FailedError(
                f"no {units * UNIT} host user ids are free: {COUNT} blocks of {UNIT} are in use",
                hint="remove containers that are no longer needed, or use --userns=host",
            )
        block = IdBlock(base=BASE + first * UNIT, size=units * UNIT)
        self.share(block)
        self._next = (first + units) % COUNT
        return block

    def share(self, block: IdBlock) -> None:
        """Count one more holder of *block* (a record read at start, a joined container)."""
        holders = self._shares.get(block.base, 0)
        self._shares[block.base] = holders + 1
        if holders == 0:
            self._mark(block, 1)

    def release(self, block: IdBlock) -> None:
        """Count one holder less; the last one frees the ids."""
        holders = self._shares.pop(block.base, 0)
        if holders > 1:
            self._shares[block.base] = holders - 1
        elif holders == 1 and block.base not in self._resting:
            self._mark(block, 0)

    def rest(self, block: IdBlock) -> None:
        """Give *block* to nobody for 24 hours, once it is released; call it before that."""
        rest = Rest(block.base, block.size, time.time_ns() + REST_NS)
        if self._kept is not None:
            self._kept.put(str(block.base), rest)
        self._resting[block.base] = rest

    def _wake(self) -> None:
        """Free the blocks that have rested."""
        now = time.time_ns()
        for rest in [rest for rest in self._resting.values() if rest.until_ns <= now]:
            if self._kept is not None:
                self._kept.delete(str(rest.base))
            del self._resting[rest.base]
            if rest.base not in self._shares:
                self._mark(IdBlock(base=rest.base, size=rest.size), 0)

    @property
    def in_use(self) -> int:
        """How many units are given out."""
        return self._used.count(1)

    def _mark(self, block: IdBlock, value: int) -> None:
        first, units = (block.base - BASE) // UNIT, -(-block.size // UNIT)
        if first >= 0 and first + units <= COUNT:
            self._used[first : first + units] = bytes((value,)) * units
