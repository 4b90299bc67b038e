"""NaCl's secretbox, XSalsa20 with Poly1305: what encrypted cosign keys are sealed with.

``cryptography`` has Poly1305 but no Salsa20, so the stream is made here. It is for a few hundred
bytes of key, where speed does not count. Not for: anything else; new formats have better choices.
"""

from __future__ import annotations

import hmac
import struct
from typing import Final

from cryptography.hazmat.primitives.poly1305 import Poly1305

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 24
TAG_BYTES: Final = 16
_SIGMA: Final = struct.unpack("<4I", b"expand 32-byte k")
_MASK: Final = 0xFFFFFFFF
# Rows and columns of the Salsa20 matrix: each quarter round's (target, from, from, rotation).
_ROUNDS: Final = tuple(
    (line[(i + 1) % 4], line[i], line[(i + 3) % 4], by)
    for lines in (
        ((0, 4, 8, 12), (5, 9, 13, 1), (10, 14, 2, 6), (15, 3, 7, 11)),
        ((0, 1, 2, 3), (5, 6, 7, 4), (10, 11, 8, 9), (15, 12, 13, 14)),
    )
    for line in lines
    for i, by in ((0, 7), (1, 9), (2, 13), (3, 18))
)


def _core(key: tuple[int, ...], position: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """The Salsa20 matrix before and after its twenty rounds."""
    start = [
        _SIGMA[0], *key[:4], _SIGMA[1], *position, _SIGMA[2], *key[4:], _SIGMA[3],
    ]  # fmt: skip
    state = list(start)
    for _ in range(10):
        for target, a, b, by in _ROUNDS:
            total = (state[a] + state[b]) & _MASK
            state[target] ^= (total << by | total >> (32 - by)) & _MASK
    return start, state


def _stream(key: bytes, nonce: bytes, size: int) -> bytes:
    """*size* bytes of XSalsa20."""
    _, mixed = _core(struct.unpack("<8I", key), struct.unpack("<4I", nonce[:16]))
    inner = tuple(mixed[i] for i in (0, 5, 10, 15, 6, 7, 8, 9))
    rest = struct.unpack("<2I", nonce[16:])
    found = bytearray()
    for block in range(-(-size // 64)):
        start, state = _core(inner, (*rest, block & _MASK, block >> 32))
        found += struct.pack("<16I", *((a + b) & _MASK for a, b in zip(start, state, strict=True)))
    return bytes(found[:size])


def seal(key: bytes, nonce: bytes, plain: bytes) -> bytes:
    """*plain*, encrypted behind its tag; a nonce must never be used twice with one key."""
    _check(key, nonce)
    stream = _stream(key, nonce, 32 + len(plain))
    cipher = bytes(a ^ b for a, b in zip(plain, stream[32:], strict=True))
    return Poly1305.generate_tag(stream[:32], cipher) + cipher


def open_(key: bytes, nonce: bytes, sealed: bytes) -> bytes | None:
    """What was sealed, or None: another key, or it was changed."""
    _check(key, nonce)
    if len(sealed) < TAG_BYTES:
        return None
    tag, cipher = sealed[:TAG_BYTES], sealed[TAG_BYTES:]
    stream = _stream(key, nonce, 32 + len(cipher))
    if not hmac.compare_digest(tag, Poly1305.generate_tag(stream[:32], cipher)):
        return None
    return bytes(a ^ b for a, b in zip(cipher, stream[32:], strict=True))


def _check(key: bytes, nonce: bytes) -> None:
    if len(key) != KEY_BYTES or len(nonce) != NONCE_BYTES:
        raise ValueError("a secretbox has a key of 32 bytes and a nonce of 24")
