"""Detach keys: ``ctrl-p,ctrl-q`` as bytes, and finding them in what a user types. Pure."""

from __future__ import annotations

from typing import Final

from tare.errors import InvalidError

DEFAULT: Final = b"\x10\x11"
_SPECIAL: Final = {"@": 0, "[": 27, "\\": 28, "]": 29, "^": 30, "_": 31}


def keys(text: str) -> bytes:
    """The bytes of ``ctrl-x,y``; "" is Docker's default, anything unknown InvalidError."""
    if not text:
        return DEFAULT
    found = bytearray()
    for word in text.split(","):
        if len(word) == 1 and word.isascii():
            found.append(ord(word))
            continue
        letter = word.lower().removeprefix("ctrl-")
        if not word.lower().startswith("ctrl-") or len(letter) != 1:
            raise InvalidError(
                f"invalid detach keys ({text[:40]}): Unknown character: '{word[:20]}'"
            )
        if "a" <= letter <= "z":
            found.append(ord(letter) - 96)
        elif letter in _SPECIAL:
            found.append(_SPECIAL[letter])
        else:
            raise InvalidError(
                f"invalid detach keys ({text[:40]}): Unknown character: '{word[:20]}'"
            )
    return bytes(found)


class Detector:
    """Passes typed bytes on until the whole sequence of detach keys was typed.

    Keys that may begin the sequence are held back until the next byte decides.
    """

    def __init__(self, sequence: bytes) -> None:
        self._sequence = sequence
        self._matched = 0

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """The bytes for the container, and whether the user asked to detach."""
        sequence = self._sequence
        if not self._matched and sequence[0] not in data:
            return data, False
        out = bytearray()
        for byte in data:
            if byte == sequence[self._matched]:
                self._matched += 1
                if self._matched == len(sequence):
                    return bytes(out), True
                continue
            out += sequence[: self._matched]
            self._matched = 1 if byte == sequence[0] else 0
            if not self._matched:
                out.append(byte)
        return bytes(out), False
