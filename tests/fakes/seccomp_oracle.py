"""A profile read literally, one call at a time: what the compiled filter must answer.

Written from the words of `tare.model.seccomp`, not from the compiler.
"""

from __future__ import annotations

import errno

from tare.model import syscalls
from tare.model.seccomp import Comparison, Op, Profile, Rule
from tare.model.seccomp_filter import NARROW

ARCH = {"x86_64": 0xC000003E, "i386": 0x40000003, "aarch64": 0xC00000B7, "arm": 0x40000028}
ARCH["x32"] = ARCH["x86_64"]
ENOSYS = 0x0005_0000 | errno.ENOSYS
GOARCH = {"x86_64": "amd64", "aarch64": "arm64"}
SOFT = (0x7FFF, 0x7FFC, 0x7FF0)


def _present(rule: Rule, caps: frozenset[str], kernel: tuple[int, int], native: str) -> bool:
    wants, bars = rule.includes, rule.excludes
    if not wants.caps <= caps or bars.caps & caps:
        return False
    if (wants.arches and GOARCH[native] not in wants.arches) or GOARCH[native] in bars.arches:
        return False
    if wants.min_kernel and kernel < wants.min_kernel:
        return False
    return not (bars.min_kernel and kernel >= bars.min_kernel)


def _holds(comparison: Comparison, abi: str, name: str, args: tuple[int, ...]) -> bool:
    argument, value, two = args[comparison.index], comparison.value, comparison.value_two
    if comparison.op is Op.MASKED_EQ and two & ~value:
        return False
    if abi in ("i386", "arm") or (name, comparison.index) in NARROW:
        argument &= 0xFFFFFFFF
        if comparison.op in (Op.EQ, Op.NE, Op.MASKED_EQ):
            value, two = value & 0xFFFFFFFF, two & 0xFFFFFFFF
    return {
        Op.NE: argument != value,
        Op.LT: argument < value,
        Op.LE: argument <= value,
        Op.EQ: argument == value,
        Op.GE: argument >= value,
        Op.GT: argument > value,
        Op.MASKED_EQ: argument & value == two,
    }[comparison.op]


def evaluate(
    profile: Profile,
    abi: str,
    number: int,
    args: tuple[int, ...] = (),
    *,
    caps: frozenset[str] = frozenset(),
    kernel: tuple[int, int] = (6, 18),
    native: str = "x86_64",
) -> int:
    """The verdict for call *number* of *abi* (for x32 without its bit)."""
    args = (*args, *[0] * (6 - len(args)))
    if abi not in (native, *profile.sub_abis(native)):
        return ENOSYS
    table = syscalls.numbers(abi)
    names = [name for name, found in table.items() if found == number]
    if profile.default >> 16 not in SOFT:
        named = [table[name] for rule in profile.rules for name in rule.names if name in table]
        if number > max(named, default=-1):
            return ENOSYS
        if not names and profile.default >> 16 == 0x0005:
            return ENOSYS
    rules = [
        rule
        for rule in profile.rules
        if set(names) & set(rule.names)
        and rule.verdict != profile.default
        and _present(rule, caps, kernel, native)
    ]
    for rule in rules:
        if not rule.args:
            return rule.verdict
    for rule in rules:
        if all(_holds(comparison, abi, names[0], args) for comparison in rule.args):
            return rule.verdict
    return profile.default
