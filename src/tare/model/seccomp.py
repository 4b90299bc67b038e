"""A seccomp profile as a value, and the OCI/Docker JSON form of it.

Not for: compiling a profile (`seccomp_filter`), tare's own profiles (`seccomp_profiles`) or
installing a filter (`kernel.seccomp`).

What a profile means, for one system call of one container:

1. Rules whose conditions (capabilities, architecture, kernel) do not hold are left out, and so
   are rules whose verdict is the default anyway.
2. Of the rules that name the call, the first without comparisons decides; without such a rule,
   the first one whose comparisons all hold; without that, the default.
3. Where the default refuses, a number that the profile cannot have known (above all that it
   names, or, if the default is an errno, not a call at all) answers ENOSYS, so that a C library
   newer than the profile falls back instead of failing.

runtime-spec, config-linux.md, "Seccomp"; the conditions and ``archMap`` are Docker's addition.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final


class Ret(IntEnum):
    """SECCOMP_RET_*: what the kernel does with a call; ERRNO, TRACE and TRAP carry 16 bits."""

    KILL_THREAD = 0x0000_0000
    TRAP = 0x0003_0000
    ERRNO = 0x0005_0000
    TRACE = 0x7FF0_0000
    LOG = 0x7FFC_0000
    ALLOW = 0x7FFF_0000
    KILL_PROCESS = 0x8000_0000


ACTION_MASK: Final = 0xFFFF_0000
ENOSYS: Final = Ret.ERRNO | errno.ENOSYS
EPERM: Final = Ret.ERRNO | errno.EPERM


def verdict_allows(verdict: int) -> bool:
    """Whether *verdict* lets the call happen, if only after a log entry or a tracer's word."""
    return verdict & ACTION_MASK in (Ret.ALLOW, Ret.LOG, Ret.TRACE)


class Op(StrEnum):
    """How an argument is compared; MASKED_EQ is ``argument & value == value_two``."""

    NE = "SCMP_CMP_NE"
    LT = "SCMP_CMP_LT"
    LE = "SCMP_CMP_LE"
    EQ = "SCMP_CMP_EQ"
    GE = "SCMP_CMP_GE"
    GT = "SCMP_CMP_GT"
    MASKED_EQ = "SCMP_CMP_MASKED_EQ"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One test of the call's argument number *index*, unsigned.

    64 bits are compared, or the 32 that the kernel reads where the argument is an int
    (`seccomp_filter.NARROW`).
    """

    index: int
    op: Op
    value: int
    value_two: int = 0


@dataclass(frozen=True, slots=True)
class Condition:
    """When a rule is there at all. An empty field says nothing.

    ``caps`` are upper case without ``CAP_``; ``arches`` are Docker's names (amd64, arm64 ...).
    """

    caps: frozenset[str] = frozenset()
    arches: frozenset[str] = frozenset()
    min_kernel: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """A verdict (a `Ret` with its 16 bits of data) for the named calls.

    ``includes`` must hold in full for the rule to be there; ``excludes`` takes it away as soon
    as one of its capabilities, its architecture or its kernel is there.
    """

    names: tuple[str, ...]
    verdict: int
    args: tuple[Comparison, ...] = ()
    includes: Condition = Condition()
    excludes: Condition = Condition()


@dataclass(frozen=True, slots=True)
class Profile:
    """A whole profile; holding one is proof that it is well formed.

    ``arch_map`` has, for a native ABI, the further ABIs that are filtered by the same rules. An
    ABI that is not in it is absent for the container: each of its calls answers ENOSYS.
    """

    default: int
    rules: tuple[Rule, ...]
    arch_map: tuple[tuple[str, tuple[str, ...]], ...] = ()
    log: bool = False  # SECCOMP_FILTER_FLAG_LOG

    def sub_abis(self, native: str) -> tuple[str, ...]:
        """The ABIs besides *native* that programs may use."""
        return next((subs for abi, subs in self.arch_map if abi == native), ())


def parse_profile(data: bytes | str) -> Profile:
    """Read the JSON of Docker or of the OCI runtime-spec; InvalidError says what is wrong.

    Unknown keys are refused, since a misspelt ``excludes`` would open what it should close;
    names of system calls are not, since profiles name those of all architectures.
    """
    from tare.model.seccomp_json import read

    return read(data)


def render_profile(profile: Profile) -> str:
    """The profile as JSON for Docker, podman and tare; `parse_profile` gives it back."""
    from tare.model.seccomp_json import write

    return write(profile)


def unknown_calls(profile: Profile) -> tuple[str, ...]:
    """The names that no table of tare has: misspelt, newer, or of other architectures."""
    from tare.model import syscalls

    known = {name for abi in syscalls.ABIS for name in syscalls.numbers(abi)}
    named = {name for rule in profile.rules for name in rule.names}
    return tuple(sorted(named - known))
