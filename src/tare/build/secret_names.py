"""Which names of variables and files speak of a secret.

The words for variables are BuildKit's, those for files are the ones that image linters agree on.
Not for looking into contents.
"""

from __future__ import annotations

import re
from typing import Final

_SECRET: Final = frozenset((
    "apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd",
    "secret", "token",
))  # fmt: skip
_HARMLESS: Final = frozenset(("public", "file", "version"))
_FILE: Final = re.compile(
    r"(id_(rsa|dsa|ecdsa|ed25519)|\.env(\.(local|prod|production))?|\.netrc|\.pgpass|\.npmrc"
    r"|\.pypirc|\.git-credentials|\.htpasswd|credentials(\.(json|xml))?|secrets?\.(ya?ml|json|txt)"
    r"|passwords?\.txt|master\.key|[^/]*\.(pem|p12|pfx|jks|keystore|kdbx|ovpn))",
    re.IGNORECASE,
)


def names_a_secret(variable: str) -> bool:
    """Whether a variable of this name is likely to hold a secret."""
    words = set(variable.lower().split("_"))
    return bool(words & _SECRET) and not words & _HARMLESS


def is_secret_file(path: str) -> bool:
    """Whether a file of this name is likely to hold a secret; certificates may be public."""
    name = path.rstrip("/").rpartition("/")[2]
    return _FILE.fullmatch(name) is not None
