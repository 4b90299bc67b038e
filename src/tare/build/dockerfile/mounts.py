"""``RUN --mount=...`` as typed values, one class for each type of mount.

Not for making the mounts (the executor), nor for splitting the flag from its line (`reading`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Sharing(StrEnum):
    """What two steps that want the same cache at the same time do."""

    SHARED = "shared"
    PRIVATE = "private"
    LOCKED = "locked"


@dataclass(frozen=True, slots=True, kw_only=True)
class BindMount:
    """Files of the context, a stage or an image; writes are seen by this step alone.

    An empty ``from_name`` is the build context. ``target`` may be relative to the WORKDIR.
    """

    target: str
    from_name: str = ""
    source: str = ""
    readonly: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheMount:
    """A directory kept between builds under ``cache_id``, first filled from ``from_name``.

    The id is the target as written where none is said.
    """

    target: str
    cache_id: str
    from_name: str = ""
    source: str = ""
    readonly: bool = False
    sharing: Sharing = Sharing.SHARED
    mode: int = 0o755
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TmpfsMount:
    """Memory that ends with the step; ``size`` 0 is no bound of its own."""

    target: str
    size: int = 0
    readonly: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretMount:
    """A secret of the build by ``secret_id``: as a file, as a variable, or both.

    An empty ``target`` is no file, an empty ``variable`` no variable; never are both empty.
    """

    secret_id: str
    target: str = ""
    variable: str = ""
    required: bool = False
    mode: int = 0o400
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SshMount:
    """The builder's SSH agent ``agent_id`` as a socket at ``target`` (empty: chosen)."""

    agent_id: str = "default"
    target: str = ""
    required: bool = False
    mode: int = 0o600
    uid: int = 0
    gid: int = 0


Mount = BindMount | CacheMount | TmpfsMount | SecretMount | SshMount
