"""How a registry is served: values that the command line or the configuration gives."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tare.errors import InvalidError

LISTEN: Final = "127.0.0.1:5000"
_ADDRESS: Final = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9.-]*)):([0-9]{1,5})")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """Where to listen, whom to let in, and what to show.

    ``data`` is the registry's own directory; without it, ``registry`` in the engine's state.
    ``images`` says whether the engine's images are shown too.
    """

    data: Path | None = None
    host: str = "127.0.0.1"
    port: int = 5000
    tls_cert: Path | None = None
    tls_key: Path | None = None
    htpasswd: Path | None = None
    read_only: bool = False
    images: bool = True

    def __post_init__(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InvalidError("a certificate needs its key, and a key its certificate")

    @property
    def loopback(self) -> bool:
        """Is only this host let in?"""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")

    def warnings(self) -> list[str]:
        """What an administrator should know of these settings."""
        if self.loopback:
            return []
        found = []
        if self.htpasswd is None:
            may = "pull" if self.read_only else "push and pull"
            found.append(f"everybody who reaches {self.host or 'this host'} may {may}")
        if self.tls_cert is None:
            found.append("without --tls-cert, what is sent can be read and changed on its way")
        return found


def parse_listen(text: str) -> tuple[str, int]:
    """HOST:PORT, [IPv6]:PORT or :PORT (every address of the host); else InvalidError."""
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match[3]) > 65535:
        raise InvalidError(
            f"not an address to listen on: {text[:100]!a}",
            hint=f"write HOST:PORT, as in {LISTEN}; port 0 takes any that is free",
        )
    return match[1] or match[2] or "", int(match[3])
