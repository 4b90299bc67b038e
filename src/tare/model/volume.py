"""A volume: a directory that outlives the containers that use it, as a value.

Not for: where it lies and who uses it (engine.volumes).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tare.errors import InvalidError

ANONYMOUS_LABEL: Final = "com.docker.volume.anonymous"
_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{1,254}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """What is known of a volume for good; ``options`` are those of the driver ``local``."""

    name: str
    created_ns: int
    driver: str = "local"
    options: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def anonymous(self) -> bool:
        """Whether nobody gave it a name: ``prune`` takes those first."""
        return ANONYMOUS_LABEL in self.labels


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeStatus:
    """A volume as it is now.

    ``path`` is where its files are on the host. ``size`` is -1 when it was not counted.
    ``missing`` says that somebody deleted its directory by hand.
    """

    volume: Volume
    path: str
    users: tuple[str, ...] = ()  # names of the containers that have it, running or not
    size: int = -1
    missing: bool = False
    mounted: bool = False  # a volume with a file system of its own is mounted while it is used


def checked_name(text: str) -> str:
    """*text* when it can name a volume, or InvalidError in Docker's words."""
    if not _NAME.fullmatch(text):
        raise InvalidError(
            f'create {text[:80]}: "{text[:80]}" includes invalid characters for a local volume'
            ' name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed, two to 255 of them. If you'
            " intended to pass a host directory, use absolute path"
        )
    return text
