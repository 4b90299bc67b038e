"""The ledger's entries and its chain: each entry holds the hash of the one before it. Pure.

An entry is one line of JSON. ``hash`` is the sha256 of the rest in its one encoding (sorted keys,
no spaces), and ``before`` the hash of the entry before, so that no entry can be changed, left out
or put in without every later hash being another. What a chain cannot show is that its end was cut
off: for that a head (number and hash), noted elsewhere, is compared.

Not for: the file (engine.ledger).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tare.errors import InvalidError
from tare.model import strict_json
from tare.model.strict_json import Fields, Json

FIRST: Final = "0" * 64
"""What the first entry has as the hash before it."""
LINE_MAX: Final = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Who did what to which digest, with which verdict."""

    number: int
    time_ns: int
    who: str
    did: str
    what: str
    digest: str = ""
    verdict: str = ""
    detail: str = ""
    before: str = FIRST

    def encode(self) -> tuple[bytes, str]:
        """The line, without its end, and the entry's hash."""
        value: dict[str, Json] = {
            "number": self.number,
            "time": self.time_ns,
            "who": self.who,
            "did": self.did,
            "what": self.what,
            "digest": self.digest,
            "verdict": self.verdict,
            "detail": self.detail,
            "before": self.before,
        }
        found = hashlib.sha256(strict_json.encode(value)).hexdigest()
        return strict_json.encode({**value, "hash": found}), found

    @classmethod
    def decode(cls, line: bytes) -> tuple[Entry, str]:
        """An entry and the hash it has; InvalidError when it is none, or has another."""
        what = "an entry of the ledger"
        fields = Fields(strict_json.decode(line, what, limit=LINE_MAX), what)
        entry = cls(
            number=fields.integer("number", required=True),
            time_ns=fields.integer("time", required=True),
            who=fields.text("who"),
            did=fields.text("did"),
            what=fields.text("what"),
            digest=fields.text("digest"),
            verdict=fields.text("verdict"),
            detail=fields.text("detail"),
            before=fields.text("before", required=True),
        )
        made, found = entry.encode()
        if made != line:
            raise InvalidError(f"entry {entry.number} was changed: its hash is another")
        return entry, found


@dataclass(frozen=True, slots=True)
class Checked:
    """What a look at a chain found: how many entries hold, the last hash, and the first fault."""

    entries: int
    number: int
    head: str
    fault: str = ""


def check(lines: Iterable[bytes], head: tuple[int, str] | None = None) -> Checked:
    """Go through a chain; with *head* it must have come at least so far, by way of that hash."""
    count, number, last = 0, 0, FIRST
    passed = head is None or head[0] == 0
    for line in lines:
        try:
            entry, found = Entry.decode(line)
        except InvalidError as error:
            return Checked(count, number, last, f"after entry {number}: {error}")
        if entry.number != number + 1 and count:
            missing = f"entries {number + 1} to {entry.number - 1}"
            if entry.number <= number:
                missing = f"the order: {entry.number} stands after {number}"
            return Checked(count, number, last, f"{missing} are missing")
        if count and entry.before != last:
            return Checked(count, number, last, f"entry {entry.number} does not follow {number}")
        if not count and (entry.number, entry.before) != (1, FIRST):
            return Checked(
                0, 0, FIRST, f"it begins with entry {entry.number}: what was before is missing"
            )
        count, number, last = count + 1, entry.number, found
        if head is not None and entry.number == head[0]:
            if found != head[1]:
                return Checked(count, number, last, f"entry {number} is not the one that was noted")
            passed = True
    if not passed and head is not None:
        return Checked(count, number, last, f"entries {number + 1} to {head[0]} were cut off")
    return Checked(count, number, last)
