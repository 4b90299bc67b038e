"""Is what was signed what was asked for? The rules of containers-policy.json(5), signedIdentity.

cosign signs a repository, with or without a tag, and leaves it to the reader to compare. Without
that, any image of a publisher can be served under the name of any other.

Not for: keys and signatures (``keys``, ``signature``), or which rule holds where (``policy``).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tare.errors import InvalidError
from tare.model.reference import Reference


class Match(StrEnum):
    """How the signed name is compared; values are those of policy.json."""

    EXACT = "matchExact"
    REPO_DIGEST_OR_EXACT = "matchRepoDigestOrExact"
    REPOSITORY = "matchRepository"
    EXACT_REFERENCE = "exactReference"
    EXACT_REPOSITORY = "exactRepository"
    REMAP = "remapIdentity"


@dataclass(frozen=True, slots=True)
class Identity:
    """One comparison. ``name`` is the reference or repository of the exact kinds."""

    match: Match = Match.REPO_DIGEST_OR_EXACT
    name: Reference | None = None
    prefix: str = ""
    signed_prefix: str = ""

    def accepts(self, signed: Reference, asked: Reference) -> bool:
        """Whether a signature for *signed* is one for *asked*."""
        match self.match:
            case Match.EXACT:
                return _has_version(asked) and signed == asked
            case Match.REPO_DIGEST_OR_EXACT:
                return _repo_digest_or_exact(signed, asked)
            case Match.REPOSITORY:
                return signed.name == asked.name
            case Match.EXACT_REFERENCE:
                return signed == self.name
            case Match.EXACT_REPOSITORY:
                return self.name is not None and signed.name == self.name.name
            case Match.REMAP:
                return _repo_digest_or_exact(signed, self._remapped(asked))

    def _remapped(self, asked: Reference) -> Reference:
        full = asked.name
        if full != self.prefix and not full.startswith(f"{self.prefix}/"):
            return asked
        renamed = Reference.parse(self.signed_prefix + full.removeprefix(self.prefix))
        return Reference(renamed.domain, renamed.path, asked.tag, asked.digest)


def _has_version(name: Reference) -> bool:
    return name.tag is not None or name.digest is not None


def _repo_digest_or_exact(signed: Reference, asked: Reference) -> bool:
    """A tag must be the tag that was signed; for a digest the repository is enough."""
    if asked.digest is not None:
        return signed.name == asked.name
    return _has_version(asked) and signed == asked


def within(scope: str, name: Reference) -> bool:
    """Whether *name* lies in *scope*: ``*``, a host, a namespace, a repository, with a tag or not.

    ``*.example.com`` is every host below that domain.
    """
    return scope == "*" or scope in scopes_of(name)


def scopes_of(name: Reference) -> list[str]:
    """Every scope that *name* lies in, the most specific first; the default is not among them."""
    found = [str(name)] if _has_version(name) else []
    if name.tag is not None and name.digest is not None:
        found.append(f"{name.name}:{name.tag}")
    parts = name.name.split("/")
    found += ["/".join(parts[:n]) for n in range(len(parts), 0, -1)]
    host = name.domain.rpartition(":")[0] or name.domain
    labels = host.split(".")
    return found + [f"*.{'.'.join(labels[n:])}" for n in range(1, len(labels))]


def check_scope(text: str) -> str:
    """*text*, if it can be a scope; InvalidError."""
    bare = text.removeprefix("*.")
    if text == "*":
        return text
    if not bare or "*" in bare or not bare.isascii() or not bare.isprintable() or " " in bare:
        raise InvalidError(f"invalid scope {text[:80]!a}: a host, or HOST/NAME, or *.DOMAIN")
    if bare != text and "/" in bare:
        raise InvalidError(f"invalid scope {text[:80]!a}: *.DOMAIN has no path behind it")
    return text
