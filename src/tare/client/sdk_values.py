"""What the SDK takes and gives: options of a run, results, facts about containers and images.

Values only; the objects that act are in client.sdk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from tare.client.options import Flags
from tare.errors import InvalidError

if TYPE_CHECKING:
    from tare.client.options import Value


class Options(TypedDict, total=False):
    """How a container is made; names are those of ``tare run``, and so are the forms of words."""

    name: str
    env: Mapping[str, str]
    user: str
    workdir: str
    entrypoint: str
    hostname: str
    labels: Mapping[str, str]
    memory: str | int
    memory_swap: str | int
    cpus: float
    cpu_shares: int
    pids_limit: int
    volumes: Sequence[str]
    mounts: Sequence[str]
    tmpfs: Sequence[str]
    devices: Sequence[str]
    ulimits: Sequence[str]
    read_only: bool
    privileged: bool
    init: bool
    network: str | Sequence[str]
    network_alias: Sequence[str]
    network_rate: str | int
    publish: Sequence[str]
    publish_all: bool
    expose: Sequence[str]
    ip: str
    add_host: Sequence[str]
    dns: Sequence[str]
    cap_add: Sequence[str]
    cap_drop: Sequence[str]
    security_opt: Sequence[str]
    security_profile: str
    sysctls: Mapping[str, str]
    shm_size: str | int
    restart: str
    stop_signal: str
    stop_timeout: int


_PLURALS = {
    "labels": "label",
    "volumes": "volume",
    "mounts": "mount",
    "devices": "device",
    "ulimits": "ulimit",
    "sysctls": "sysctl",
}
_LISTS = frozenset(("network",))
_NUMBERS = frozenset(("cpu-shares", "pids-limit", "stop-timeout"))


def flags_of(options: Options) -> Flags:
    """The options as the command line would have given them, so both mean the same."""
    values: dict[str, Value] = {}
    for name, value in options.items():
        if name not in Options.__annotations__:
            raise InvalidError(
                f"unknown option: {name}", hint=f"Known: {', '.join(Options.__annotations__)}."
            )
        flag = _PLURALS.get(name, name).replace("_", "-")
        if isinstance(value, Mapping):
            values[flag] = [f"{key}={text}" for key, text in value.items()]
        elif isinstance(value, bool):
            values[flag] = value
        elif isinstance(value, (int, float)):
            values[flag] = int(value) if flag in _NUMBERS else str(value)
        elif isinstance(value, str):
            values[flag] = [value] if flag in _LISTS else value
        elif isinstance(value, Sequence):
            values[flag] = [str(each) for each in value]
    return Flags(values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a run used, as the kernel counted it; None where this host does not count."""

    wall_ns: int | None = None
    cpu_ns: int | None = None
    memory_peak: int | None = None
    pids_peak: int | None = None
    block_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a program ended and what it said.

    ``exit_code`` is 128+N after signal N. ``timed_out`` means that it was killed because its time
    was over, ``oom_killed`` that it needed more memory than its limit; ``error`` is what the
    engine says of such an end, ``warnings`` what it said of the options.
    """

    exit_code: int
    stdout: bytes
    stderr: bytes
    oom_killed: bool = False
    timed_out: bool = False
    error: str = ""
    warnings: tuple[str, ...] = ()
    usage: Usage = Usage()

    @property
    def ok(self) -> bool:
        """Whether it ended by itself with 0."""
        return self.exit_code == 0 and not self.timed_out


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSummary:
    """One line of ``tare ps``."""

    id: str
    name: str
    image: str
    state: str
    status: str
    created: int
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSummary:
    """One image: its names, size in bytes and when it was made (seconds since 1970)."""

    id: str
    tags: tuple[str, ...]
    size: int
    created: int
    labels: Mapping[str, str]
