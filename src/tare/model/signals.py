"""Signals by name, as people and images write them (signal(7)).

Not for: sending them (`kernel.process`, the driver).
"""

from __future__ import annotations

import re
import signal
from functools import lru_cache
from typing import Final

from tare.errors import InvalidError

_FIRST_REALTIME: Final = 34  # glibc keeps 32 and 33 for itself
_LAST: Final = 64


@lru_cache(maxsize=128)
def signal_number(text: str) -> int:
    """1 to 64 of ``9``, ``KILL``, ``sigkill``, ``RTMIN+3``; InvalidError otherwise."""
    word = text.upper().removeprefix("SIG")
    if word.isascii() and word.isdigit():
        number = int(word) if len(word) < 4 else 0
    elif word.startswith(("RTMIN", "RTMAX")):
        offset = word[5:] or "+0"
        number = 0
        if re.fullmatch(r"[+-][0-9]{1,2}", offset, re.ASCII):
            number = (_FIRST_REALTIME if word.startswith("RTMIN") else _LAST) + int(offset)
            number = number if _FIRST_REALTIME <= number <= _LAST else 0
    else:
        number = getattr(signal, f"SIG{word}", 0) if re.fullmatch("[A-Z0-9]+", word) else 0
    if not 1 <= number <= _LAST:
        raise InvalidError(f"Invalid signal: {text[:40]}")
    return number
