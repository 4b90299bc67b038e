"""crypt_r(3): is this the password that was hashed so?

By ctypes, because Python's own ``crypt`` is gone from 3.13 on. The library is libcrypt (libxcrypt),
which every Debian has: login needs it. Not for: which hashes are strong enough (``api.registry``).
"""

from __future__ import annotations

import ctypes
import hmac
import secrets
from ctypes import c_char_p, c_void_p
from typing import Final

# libxcrypt's struct crypt_data has 32 KiB, old glibc's about 128 KiB; it must begin as zeroes.
_DATA_SIZE: Final = 256 << 10
_ALPHABET: Final = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def _library() -> ctypes.CDLL:
    for name in ("libcrypt.so.1", "libcrypt.so.2", "libcrypt.so"):
        try:
            return ctypes.CDLL(name, use_errno=True)
        except OSError:
            continue
    raise OSError("crypt_r: there is no libcrypt on this system")


def hashed(password: bytes, setting: str) -> str | None:
    """*password* hashed as *setting* (a salt, or a hash made before) says; None if it cannot be.

    The interpreter's lock is not held meanwhile, so threads may hash side by side.
    """
    if b"\0" in password or "\0" in setting or not setting.isascii():
        return None
    crypt_r = _library()["crypt_r"]
    crypt_r.argtypes = (c_char_p, c_char_p, c_void_p)
    crypt_r.restype = c_char_p
    # SAFETY: the buffer is at least as large as any struct crypt_data and outlives the call;
    # the answer points into it and is copied before it goes.
    data = ctypes.create_string_buffer(_DATA_SIZE)
    answer: bytes | None = crypt_r(password, setting.encode("ascii"), ctypes.addressof(data))
    # "*0" and "*1" are libxcrypt's tokens for a failure.
    return None if answer is None or answer.startswith(b"*") else answer.decode("ascii")


def matches(password: bytes, known: str) -> bool:
    """Is *known* a hash of *password*? Compared in constant time."""
    found = hashed(password, known)
    return found is not None and hmac.compare_digest(found, known)


def bcrypt_salt(cost: int = 10) -> str:
    """A new salt for a bcrypt hash that takes 2**cost rounds."""
    # The last of the 22 characters carries only two bits: these four have no others set.
    body = "".join(secrets.choice(_ALPHABET) for _ in range(21)) + secrets.choice(".Oeu")
    return f"$2y${cost:02d}${body}"
