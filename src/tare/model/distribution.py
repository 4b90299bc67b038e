"""The words of the OCI distribution specification: digests, names, error codes.

A registry stores content of two digest algorithms under names that the specification's grammar
allows; whoever holds a `ContentDigest` or a name that passed `repository_name` may build a path
from it. Not for: what people type (``reference``), the images that the engine itself keeps, which
are sha256 only (``digest``).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Self

from tare.errors import TareError

if TYPE_CHECKING:
    from hashlib import _Hash as Hash
else:
    Hash = object

NAME_MAX: Final = 255
_PART: Final = "[a-z0-9]+(?:(?:[.]|_|__|-+)[a-z0-9]+)*"
_NAME: Final = re.compile(f"{_PART}(?:/{_PART})*")
_TAG: Final = re.compile("[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_LENGTHS: Final = {"sha256": 64, "sha512": 128}
_DIGEST: Final = re.compile("(sha256|sha512):([0-9a-f]{64,128})")


class Code(StrEnum):
    """The error codes of the specification, and two that every registry has besides."""

    BLOB_UNKNOWN = "BLOB_UNKNOWN"
    BLOB_UPLOAD_INVALID = "BLOB_UPLOAD_INVALID"
    BLOB_UPLOAD_UNKNOWN = "BLOB_UPLOAD_UNKNOWN"
    DENIED = "DENIED"
    DIGEST_INVALID = "DIGEST_INVALID"
    MANIFEST_BLOB_UNKNOWN = "MANIFEST_BLOB_UNKNOWN"
    MANIFEST_INVALID = "MANIFEST_INVALID"
    MANIFEST_UNKNOWN = "MANIFEST_UNKNOWN"
    NAME_INVALID = "NAME_INVALID"
    NAME_UNKNOWN = "NAME_UNKNOWN"
    PAGINATION_NUMBER_INVALID = "PAGINATION_NUMBER_INVALID"
    SIZE_INVALID = "SIZE_INVALID"
    TOOMANYREQUESTS = "TOOMANYREQUESTS"
    UNAUTHORIZED = "UNAUTHORIZED"
    UNKNOWN = "UNKNOWN"
    UNSUPPORTED = "UNSUPPORTED"

    @property
    def http_status(self) -> int:
        """What it is answered with unless whoever raises it knows better."""
        return _STATUS.get(self, 400)


_STATUS: Final = {
    Code.BLOB_UNKNOWN: 404,
    Code.BLOB_UPLOAD_UNKNOWN: 404,
    Code.DENIED: 403,
    Code.MANIFEST_UNKNOWN: 404,
    Code.NAME_UNKNOWN: 404,
    Code.TOOMANYREQUESTS: 429,
    Code.UNAUTHORIZED: 401,
    Code.UNKNOWN: 500,
    Code.UNSUPPORTED: 405,
}


class DistributionError(TareError):
    """A registry refuses, in the specification's terms; ``headers`` go with the answer."""

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        status: int = 0,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.http_status = status or code.http_status
        self.headers = headers or {}


@dataclass(frozen=True, slots=True, order=True)
class ContentDigest:
    """``sha256:`` and 64, or ``sha512:`` and 128 lower-case hex digits, checked once, here."""

    algorithm: str
    hex: str

    def __post_init__(self) -> None:
        if len(self.hex) != _LENGTHS.get(self.algorithm) or not _DIGEST.fullmatch(str(self)):
            raise _no_digest(str(self))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the canonical form; anything else is DIGEST_INVALID."""
        match = _DIGEST.fullmatch(text)
        if match is None or len(match[2]) != _LENGTHS[match[1]]:
            raise _no_digest(text)
        return cls(match[1], match[2])

    @classmethod
    def of(cls, content: bytes, algorithm: str = "sha256") -> Self:
        """Address *content*."""
        digest = new_hash(algorithm)
        digest.update(content)
        return cls(algorithm, digest.hexdigest())

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


def new_hash(algorithm: str) -> Hash:
    """The running hash of one of the two algorithms; more are not known."""
    return hashlib.sha512() if algorithm == "sha512" else hashlib.sha256()


def _no_digest(text: str) -> DistributionError:
    return DistributionError(
        Code.DIGEST_INVALID, f"not a sha256 or sha512 digest in its canonical form: {text[:150]!a}"
    )


def repository_name(text: str) -> str:
    """*text* itself, which is a repository's name; else NAME_INVALID."""
    if len(text) > NAME_MAX:
        raise DistributionError(
            Code.NAME_INVALID, f"a repository's name has at most {NAME_MAX} characters"
        )
    if not _NAME.fullmatch(text):
        raise DistributionError(
            Code.NAME_INVALID,
            f"not a repository's name: {text[:100]!a} (lower-case words, joined by . _ __ - or /)",
        )
    return text


def is_tag(text: str) -> bool:
    """May a manifest be tagged so?"""
    return _TAG.fullmatch(text) is not None


def manifest_reference(text: str) -> str | ContentDigest:
    """A tag or a digest; else MANIFEST_INVALID or DIGEST_INVALID."""
    if ":" in text:
        return ContentDigest.parse(text)
    if not is_tag(text):
        raise DistributionError(
            Code.MANIFEST_INVALID, f"neither a tag nor a digest: {text[:150]!a}"
        )
    return text
