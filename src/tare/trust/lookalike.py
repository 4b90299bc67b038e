"""Names that resemble others: a registry one keystroke away, an official image misspelled. Pure.

Looked at before anything is sent. Every finding says what the name resembles and how:

1. the host: a known registry misspelled, with another ending, or as part of a longer host; an
   internationalised name (``xn--``), which may look like any other;
2. on Docker Hub, a name without a namespace that is no official image, or is one no longer;
3. a name or a namespace one or two keystrokes from a known one, or the same after look-alike
   letters (0 and o, 1 and l, rn and m), decorations (``official-``, ``-docker``) and separators
   are taken away.

What is known exactly never resembles anything. Not for: whether the image is good (``verdict``).
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tare.model.reference import DEFAULT_DOMAIN, Reference
from tare.trust.known import ARCHIVED, BELOW, INSTEAD, OFFICIAL, PUBLISHERS, REGISTRIES

_LONGEST: Final = 64
_ALIKE: Final = (("rn", "m"), ("vv", "w"), ("cl", "d"))
_LETTERS: Final = str.maketrans("01358", "olesb")
_DECORATION: Final = re.compile(
    r"^(?:official|docker|lib|the|my|get)[-_.]|[-_.](?:official|docker|latest|image|images|data|hub)$"
)
_VERSION: Final = re.compile(r"[-_.]?v?\d+(?:[._]\d+)*$")
_SEPARATORS: Final = re.compile(r"[-_.]+")


class Level(StrEnum):
    """How much a finding says."""

    NOTICE = "notice"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Resemblance:
    """A name resembles *meant*, or is not what it seems; *host* when the registry does."""

    level: Level
    text: str
    meant: str = ""
    host: bool = False


def look(name: Reference, *, hosts: Collection[str] = ()) -> list[Resemblance]:
    """What *name* resembles. *hosts* are registries that somebody configured on purpose."""
    found = _host(name.domain, hosts)
    if found:
        return found
    if name.domain != DEFAULT_DOMAIN:
        first = name.path.partition("/")[0]
        if first in REGISTRIES and "/" in name.path:
            text = f"{name.name} is on {name.domain}, though it is written like an image of {first}"
            mirror = Resemblance(Level.NOTICE, text, first)
            return [] if name.domain in hosts else [mirror]
        return []
    namespace, _, rest = name.path.partition("/")
    if namespace == "library" and rest and "/" not in rest:
        return _official(rest)
    return _published(namespace, rest)


def described(name: Reference) -> str:
    """What kind of name it is, if that is known: ``an official image of Docker Hub``."""
    namespace, _, rest = name.path.partition("/")
    if name.domain != DEFAULT_DOMAIN:
        return ""
    if namespace == "library" and rest in OFFICIAL:
        return "an official image of Docker Hub"
    if namespace == "library" and rest in ARCHIVED:
        return "once an official image of Docker Hub, maintained no more"
    return ""


# --- hosts ------------------------------------------------------------------------------------


def _host(domain: str, configured: Collection[str]) -> list[Resemblance]:
    host = domain.rpartition(":")[0] if re.search(r":\d+$", domain) else domain
    host = host.lower()
    if domain in configured or host in REGISTRIES or _own(host):
        return []
    if host.endswith(tuple(f".{domain_}" for domain_ in BELOW)):
        return []
    if any(label.startswith("xn--") for label in host.split(".")):
        return [_warned(f"the registry {host} has letters beyond ASCII: {_unicode(host)}", "")]
    for known in REGISTRIES:
        if host.startswith(f"{known}.") or f".{known}." in host:
            text = f"the registry {host} only begins like {known}: it belongs to somebody else"
            return [_warned(text, known)]
    meant = _nearest_host(host)
    if meant:
        return [_warned(f"the registry {host} resembles {meant}, and is another", meant)]
    return []


def _own(host: str) -> bool:
    """Whether a host can only be of one's own: an address, a name without a domain."""
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return "." not in host or host.endswith((".localhost", ".local", ".internal", ".test"))
    return True


def _warned(text: str, meant: str) -> Resemblance:
    return Resemblance(Level.WARNING, text, meant, host=True)


def _unicode(host: str) -> str:
    try:
        return ascii(host.encode("ascii").decode("idna"))
    except UnicodeError:
        return "they cannot even be decoded"


def _nearest_host(host: str) -> str:
    for known in REGISTRIES:
        stem, _, _ = known.rpartition(".")
        if host.rpartition(".")[0] == stem:
            return known  # the same with another ending
        if _SEPARATORS.sub("", host) == _SEPARATORS.sub("", known):
            return known  # a dot is missing, or a hyphen
        if _skeleton(host) == _skeleton(known):
            return known
        most = 1 if len(known) <= 7 else 2
        if abs(len(host) - len(known)) <= most and distance(host, known, most) <= most:
            return known
    return ""


# --- repositories -----------------------------------------------------------------------------


def _official(name: str) -> list[Resemblance]:
    if name in OFFICIAL:
        return []
    if name in ARCHIVED:
        instead = INSTEAD.get(name, "")
        more = f"; use {instead}" if instead else ""
        return [Resemblance(Level.NOTICE, f"{name} is maintained by nobody any more{more}")]
    near = nearest(name, OFFICIAL | ARCHIVED)
    if near:
        text = f"{name} is no official image, and resembles {', '.join(near)}"
        return [Resemblance(Level.WARNING, text, near[0])]
    return [Resemblance(Level.NOTICE, f"{name} is no official image of Docker Hub")]


def _published(namespace: str, rest: str) -> list[Resemblance]:
    if namespace in PUBLISHERS:
        return []
    near = nearest(namespace, PUBLISHERS | {"library", "dockerhub", "docker-library"})
    if near:
        meant = f"{near[0]}/{rest}"
        text = f"the publisher {namespace} resembles {near[0]}, and is another"
        return [Resemblance(Level.WARNING, text, meant)]
    last = rest.rpartition("/")[2]
    if last in OFFICIAL:
        text = f"{namespace}/{rest} is not the official image {last}: {namespace} published it"
        return [Resemblance(Level.NOTICE, text, last)]
    near = nearest(last, OFFICIAL)
    if near:
        text = f"{namespace}/{rest} resembles the official image {near[0]}, and is another"
        return [Resemblance(Level.WARNING, text, near[0])]
    return []


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Those of *known* that *name* could be taken for, the nearest first, at most three."""
    if len(name) > _LONGEST:
        return []
    own = _skeleton(name)
    found: list[tuple[float, str]] = []
    for other in known:
        if own == _skeleton(other):
            found.append((0.5, other))
            continue
        most = 1 if len(other) <= 5 else 2
        if len(other) < 3 or abs(len(name) - len(other)) > most:
            continue
        if (far := distance(name, other, most)) <= most:
            found.append((far, other))
    return [other for _, other in sorted(found)[:3]]


@functools.lru_cache(maxsize=1024)
def _skeleton(name: str) -> str:
    """What is left of a name when all is taken away that eyes pass over."""
    return _reduced(name)


def _reduced(name: str) -> str:
    plain = name
    for _ in range(3):
        stripped = _DECORATION.sub("", plain)
        if stripped == plain or len(stripped) < 3:
            break
        plain = stripped
    # A version that is glued on (python3) goes, but not what is the whole of the name.
    bare = _VERSION.sub("", plain)
    plain = bare if len(bare) >= 3 else plain
    plain = _SEPARATORS.sub("", plain).translate(_LETTERS).replace("i", "l")
    for pair, letter in _ALIKE:
        plain = plain.replace(pair, letter)
    return plain


def distance(one: str, other: str, most: int = _LONGEST) -> int:
    """Damerau and Levenshtein's: how many keystrokes lie between two words.

    Once it is sure that there are more than *most*, the answer is a number above it.
    """
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        older, before, row = before, row, [i]
        for j, b in enumerate(other, 1):
            best = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                best = min(best, older[j - 2] + 1)
            row.append(best)
        # A transposition looks back two rows, so both must be beyond the bound.
        if min(row) > most and min(before) > most:
            return most + 1
    return row[-1]
