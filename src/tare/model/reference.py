"""Image names: parsed, normalised and shown as the distribution grammar says.

``debian`` means ``docker.io/library/debian``; nobody has to type that, and nobody should see it.
Not for: finding what a name stands for (``image.store``), ids, look-alike names (``trust``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final, Self

from tare.errors import InvalidError
from tare.model.digest import Digest

DEFAULT_DOMAIN: Final = "docker.io"
DEFAULT_TAG: Final = "latest"
_LEGACY_DOMAIN: Final = "index.docker.io"
_OFFICIAL: Final = "library/"
_NAME_MAX: Final = 255
_TEXT_MAX: Final = 4096  # a bound on what the expressions below are run on

_ALNUM: Final = "[a-z0-9]+"
_COMPONENT: Final = rf"{_ALNUM}(?:(?:[._]|__|-+){_ALNUM})*"
_LABEL: Final = "(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST: Final = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[(?:[a-fA-F0-9:]+)\])"
_DOMAIN: Final = rf"{_HOST}(?::[0-9]+)?"
_TAG: Final = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_DIGEST: Final = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"
_REFERENCE: Final = re.compile(
    rf"(?:({_DOMAIN})/)?({_COMPONENT}(?:/{_COMPONENT})*)(?::({_TAG}))?(?:@({_DIGEST}))?"
)
_TAG_ONLY: Final = re.compile(_TAG)
_IDENTIFIER: Final = re.compile("[a-f0-9]{64}")


@dataclass(frozen=True, slots=True, order=True)
class Reference:
    """A full image name; `parse` makes it from what people type.

    ``domain`` and ``path`` are always there (``docker.io``, ``library/debian``); ``tag`` and
    ``digest`` only if they were given.
    """

    domain: str
    path: str
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a name in its short or its full form; InvalidError in Docker's words."""
        shown = text if len(text) <= 200 else text[:197] + "..."
        if len(text) > _TEXT_MAX or not text.isascii():
            raise InvalidError(f"invalid reference format: {shown!a}")
        if _IDENTIFIER.fullmatch(text):
            raise InvalidError(
                f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings"
            )
        domain, rest = _split_domain(text)
        path = rest.split(":", 1)[0]
        if path.lower() != path:
            raise InvalidError(
                f"invalid reference format: repository name ({path[:200]}) must be lowercase"
            )
        match = _REFERENCE.fullmatch(f"{domain}/{rest}")
        if match is None or match[1] is None:
            raise InvalidError(f"invalid reference format: {shown!a}")
        if len(match[2]) > _NAME_MAX:
            raise InvalidError("repository name must not be more than 255 characters")
        digest = None if match[4] is None else _digest(match[4])
        return cls(match[1], match[2], match[3], digest)

    @property
    def name(self) -> str:
        """Domain and path: what tags and digests are of."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar_name(self) -> str:
        """The shortest name that means the same, without tag and digest."""
        if self.domain != DEFAULT_DOMAIN:
            return self.name
        head, _, tail = self.path.partition("/")
        return tail if head == "library" and tail and "/" not in tail else self.path

    @property
    def familiar(self) -> str:
        """The shortest form that parses to the same: what people see."""
        return self.familiar_name + self._suffix()

    def __str__(self) -> str:
        return self.name + self._suffix()

    def _suffix(self) -> str:
        tag = "" if self.tag is None else f":{self.tag}"
        return tag if self.digest is None else f"{tag}@{self.digest}"

    def with_default_tag(self) -> Self:
        """The same, tagged ``latest`` if it has neither tag nor digest."""
        if self.tag is None and self.digest is None:
            return replace(self, tag=DEFAULT_TAG)
        return self

    def with_tag(self, tag: str) -> Self:
        """The same repository's *tag*; InvalidError when that is none."""
        if not _TAG_ONLY.fullmatch(tag):
            raise InvalidError(f"invalid tag format: {tag[:200]!a}")
        return replace(self, tag=tag, digest=None)

    def with_digest(self, digest: Digest) -> Self:
        """The same repository at *digest*, whatever tags there are."""
        return replace(self, tag=None, digest=digest)


def _split_domain(text: str) -> tuple[str, str]:
    """Where a name without a domain means the default one."""
    head, slash, tail = text.partition("/")
    if not slash:
        return DEFAULT_DOMAIN, _OFFICIAL + text
    if head == _LEGACY_DOMAIN:
        domain, rest = DEFAULT_DOMAIN, tail
    elif head == "localhost" or "." in head or ":" in head or head.lower() != head:
        # A first part with upper case cannot be a repository, so it is taken for a host.
        domain, rest = head, tail
    else:
        domain, rest = DEFAULT_DOMAIN, text
    if domain == DEFAULT_DOMAIN and "/" not in rest:
        rest = _OFFICIAL + rest
    return domain, rest


def _digest(text: str) -> Digest:
    """Only sha256: what else the grammar allows is not used by any registry."""
    if not text.startswith("sha256:"):
        raise InvalidError(f"unsupported digest algorithm: {text.split(':', 1)[0][:40]!r}")
    try:
        return Digest.parse(text)
    except InvalidError as error:
        raise InvalidError(f"invalid reference format: {error}") from None
