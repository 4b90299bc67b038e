"""Content digests: checked once, here, so that a path or a URL may be built from one."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final, Self

from tare.errors import InvalidError

_SHA256: Final = re.compile(r"sha256:([0-9a-f]{64})")
_HEX: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """``sha256:`` and 64 lower-case hex digits, checked once, here.

    Holding a Digest is proof of its shape. image-spec, descriptor.md, "Digests".
    """

    hex: str

    def __post_init__(self) -> None:
        if not _HEX.fullmatch(self.hex):
            raise InvalidError(f"not a sha256 digest: {self.hex[:80]!r}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the canonical form; anything else, upper case included, is InvalidError."""
        match = _SHA256.fullmatch(text)
        if match is None:
            raise InvalidError(f"not a sha256 digest: {text[:80]!r}")
        return cls(match[1])

    @classmethod
    def of(cls, content: bytes) -> Self:
        """Address *content*."""
        return cls(hashlib.sha256(content).hexdigest())

    def __str__(self) -> str:
        return f"sha256:{self.hex}"
