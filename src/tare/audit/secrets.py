"""What looks like a secret: by the form that issuers give their tokens, by name and entropy. Pure.

A finding never holds the secret: it shows the first letters, so that a report can be passed on.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tare.build.secret_names import names_a_secret

_FORMS: Final = (
    ("a private key", rb"-----BEGIN (?:RSA |EC |OPENSSH |DSA |PGP )?PRIVATE KEY(?: BLOCK)?-----"),
    ("a key of Amazon Web Services", rb"(?<![A-Za-z0-9])(?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Za-z])"),
    ("a token of GitHub", rb"(?<![A-Za-z0-9])gh[pousr]_[A-Za-z0-9]{36,255}"),
    ("a token of GitHub", rb"github_pat_[A-Za-z0-9_]{60,255}"),
    ("a token of GitLab", rb"(?<![A-Za-z0-9])glpat-[A-Za-z0-9_-]{20,}"),
    ("a token of Slack", rb"(?<![A-Za-z0-9])xox[abprs]-[A-Za-z0-9-]{20,}"),
    ("a key of Stripe", rb"(?<![A-Za-z0-9])[sr]k_live_[A-Za-z0-9]{20,}"),
    ("a key of Google", rb"(?<![A-Za-z0-9])AIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])"),
    ("a token of npm", rb"(?<![A-Za-z0-9])npm_[A-Za-z0-9]{36}(?![A-Za-z0-9])"),
    ("a token of PyPI", rb"(?<![A-Za-z0-9])pypi-AgEIcHlwaS5vcmc[A-Za-z0-9_-]{40,}"),
    ("a token of Docker Hub", rb"(?<![A-Za-z0-9])dckr_pat_[A-Za-z0-9_-]{20,}"),
    ("a password in a URL", rb"[a-z][a-z0-9+]{2,11}://[^\s/:@'\"$<{]{1,64}:[^\s/@'\"$<{]{6,128}@[a-z0-9]"),
)  # fmt: skip
_ALL: Final = re.compile(
    b"|".join(b"(?P<f%d>%s)" % (n, form) for n, (_, form) in enumerate(_FORMS))
)
_ASSIGNED: Final = re.compile(
    rb"(?im)^\s*(?:export\s+|set\s+)?[\"']?([a-z][a-z0-9_.-]{0,60})[\"']?\s*[:=]\s*[\"']?"
    rb"([^\s\"'#,;]{8,200})"
)
_PLACEHOLDER: Final = re.compile(
    r"(?i)^(?:\$|%|<|\{|\[|\*|x{4,}|change|your|example|dummy|test|none|null|true|false|/|\./|file:)"
)
_ENTROPY: Final = 3.5
_LONG: Final = 16
_MOST: Final = 20


@dataclass(frozen=True, slots=True)
class Secret:
    """Something that looks like a secret. ``sure``: by its form, not by its name only."""

    what: str
    shown: str
    sure: bool


def entropy(text: str) -> float:
    """Shannon's bits for each letter: words have about 2.5, random letters 4 and more."""
    total = len(text)
    counts = Counter(text).values()
    return -sum(n / total * math.log2(n / total) for n in counts) if total else 0.0


def hidden(text: str) -> str:
    """The first letters of a secret, and how long it is."""
    return f"{text[:4]}... ({len(text)} characters)"


def in_content(content: bytes, *, assigned: bool = False) -> Iterator[Secret]:
    """Secrets in a file; with *assigned* also values of names that speak of one."""
    count = 0
    for match in _ALL.finditer(content):
        what = _FORMS[int(str(match.lastgroup)[1:])][0]
        text = match[0].decode("ascii", "replace")
        yield Secret(what, text if text.startswith("-----") else hidden(text), sure=True)
        count += 1
        if count >= _MOST:
            return
    if assigned:
        for match in _ASSIGNED.finditer(content):
            name = match[1].decode("ascii", "replace")
            value = match[2].decode("utf-8", "replace")
            found = in_variable(name.replace("-", "_").replace(".", "_"), value)
            if found is not None and found.sure:
                yield found
                count += 1
            if count >= _MOST:
                return


def in_variable(name: str, value: str) -> Secret | None:
    """Whether a variable holds a secret: by the form of its value, or by name and entropy."""
    match = _ALL.search(value.encode("utf-8", "replace"))
    if match is not None:
        what = _FORMS[int(str(match.lastgroup)[1:])][0]
        return Secret(f"{name}: {what}", hidden(value), sure=True)
    if not value or not names_a_secret(name) or _PLACEHOLDER.match(value):
        return None
    random = len(value) >= _LONG and entropy(value) >= _ENTROPY
    return Secret(f"{name} has the name of a secret", hidden(value), sure=random)
