"""Compile a seccomp profile to the classic BPF program that the kernel runs at each call.

Not for: installing the program (`kernel.seccomp`), or deciding what is allowed.

The program: the ABI of the call (``arch``, then bit 30 of the number for x32) picks a balanced
search tree over ranges of call numbers; a leaf is a verdict, or the comparisons of one call's
arguments. The kernel evaluates the leaves without comparisons once, when the filter is installed
(its per-call bitmap of always allowed calls), so only calls with comparisons cost time.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from tare.errors import InvalidError, UnsupportedError
from tare.model import syscalls
from tare.model.seccomp import (
    ACTION_MASK,
    ENOSYS,
    Comparison,
    Condition,
    Op,
    Profile,
    Ret,
    Rule,
    verdict_allows,
)

MAX_INSTRUCTIONS: Final = 4096  # BPF_MAXINSNS

# linux/bpf_common.h: class, size or operation, mode or source.
_LOAD: Final = 0x20  # LD | W | ABS
_JA: Final = 0x05
_JEQ: Final = 0x15
_JGT: Final = 0x25
_JGE: Final = 0x35
_AND: Final = 0x54  # ALU | AND | K
_RET: Final = 0x06

# struct seccomp_data
_NR: Final = 0
_ARCH: Final = 4
_ARGS: Final = 16

_X32_BIT: Final = 0x4000_0000
_LOW: Final = 0xFFFF_FFFF
_FAR: Final = 255  # how far a conditional jump reaches

# linux/audit.h. x32 shares the value of x86_64.
AUDIT_ARCH: Final = {
    "x86_64": 0xC000_003E,
    "i386": 0x4000_0003,
    "x32": 0xC000_003E,
    "aarch64": 0xC000_00B7,
    "arm": 0x4000_0028,
}
_32_BIT: Final = frozenset({"i386", "arm"})
_DOCKER_ARCH: Final = {"x86_64": "amd64", "aarch64": "arm64", "i386": "x86", "arm": "arm"}
_NATIVE: Final = {"x86_64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64", "amd64": "x86_64"}

# Arguments that the kernel reads as 32 bits. A comparison of all 64 bits would be got round by
# setting a high one (CVE-2019-10063, CVE-2023-28100); where libseccomp compares 64 bits here, this
# is stricter for rules of the kind "all but", and equal for others.
NARROW: Final = frozenset(
    {
        ("ioctl", 1),
        ("fcntl", 1),
        ("fcntl64", 1),
        ("socket", 0),
        ("socket", 1),
        ("socket", 2),
        ("socketpair", 0),
        ("socketpair", 1),
        ("socketpair", 2),
        ("socketcall", 0),
        ("setsockopt", 1),
        ("setsockopt", 2),
        ("getsockopt", 1),
        ("getsockopt", 2),
        ("clone", 0),  # kernel/fork.c takes lower_32_bits
        ("setns", 1),
        ("personality", 0),
        ("prctl", 0),
        ("arch_prctl", 0),
        ("modify_ldt", 0),
        ("keyctl", 0),
        ("bpf", 0),
        ("seccomp", 0),
        ("seccomp", 1),
        ("futex", 1),
        ("ipc", 0),
        ("quotactl", 0),
        ("quotactl_fd", 1),
        ("open", 1),
        ("openat", 2),
        ("io_uring_register", 1),
        ("kcmp", 2),
        ("madvise", 2),
        ("membarrier", 0),
        ("memfd_create", 1),
        ("sched_setscheduler", 1),
        ("fanotify_init", 0),
        ("perf_event_open", 1),
        ("userfaultfd", 0),
        ("kill", 1),
        ("tkill", 1),
        ("tgkill", 2),
        ("prlimit64", 1),
        ("setrlimit", 0),
        ("epoll_ctl", 1),
        ("landlock_restrict_self", 1),
    }
)

_Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant
_Checks = tuple[tuple[tuple[Comparison, ...], int], ...]


@dataclass(frozen=True, slots=True)
class Container:
    """What the conditions of rules are about: one container on one host."""

    capabilities: frozenset[str]  # with or without CAP_
    kernel: tuple[int, int]
    native: str

    def wants(self, rule: Rule) -> bool:
        """Whether the conditions of *rule* hold."""
        return self._included(rule.includes) and not self._excluded(rule.excludes)

    def _included(self, condition: Condition) -> bool:
        return (
            condition.caps <= self.capabilities
            and (not condition.arches or _DOCKER_ARCH[self.native] in condition.arches)
            and (condition.min_kernel is None or self.kernel >= condition.min_kernel)
        )

    def _excluded(self, condition: Condition) -> bool:
        return (
            bool(condition.caps & self.capabilities)
            or _DOCKER_ARCH[self.native] in condition.arches
            or (condition.min_kernel is not None and self.kernel >= condition.min_kernel)
        )


@dataclass(frozen=True, slots=True)
class _Checked:
    """The leaf of a call whose arguments decide: the first check that holds, else *default*."""

    checks: _Checks
    default: int


def compile_filter(
    profile: Profile, *, capabilities: frozenset[str], kernel: tuple[int, int], machine: str
) -> bytes:
    """The ``struct sock_filter[]`` for a container with these *capabilities* on this host.

    *machine* is as uname(2) has it. UnsupportedError where tare has no table for it;
    InvalidError where the profile does not fit into one filter.
    """
    native = _NATIVE.get(machine)
    if native is None:
        raise UnsupportedError(f"tare has no system call table for the processor {machine!r}")
    container = Container(
        frozenset(cap.removeprefix("CAP_") for cap in capabilities), kernel, native
    )
    rules = [rule for rule in profile.rules if container.wants(rule)]
    rules = [rule for rule in rules if rule.verdict != profile.default]
    named = frozenset(name for rule in profile.rules for name in rule.names)
    trees = {
        abi: _tree(_ranges(_leaves(abi, rules, profile.default), abi, profile, named))
        for abi in (native, *profile.sub_abis(native))
        if abi in AUDIT_ARCH
    }
    program = _dispatch(trees, native)
    if len(program) > MAX_INSTRUCTIONS:
        raise InvalidError(
            f"seccomp profile: it compiles to {len(program)} instructions, and the kernel takes "
            f"{MAX_INSTRUCTIONS}",
            hint="Use fewer rules with args.",
        )
    pack = struct.Struct("<HBBI").pack
    return b"".join([pack(*instruction) for instruction in program])


def _dispatch(trees: Mapping[str, list[_Instruction]], native: str) -> list[_Instruction]:
    """The whole program: pick a tree by ABI; an ABI without a tree answers ENOSYS."""
    absent: list[_Instruction] = [(_RET, 0, 0, ENOSYS)]
    body = trees[native]
    if native == "x86_64":
        # Always checked, with or without a tree for x32: its numbers are the native ones with
        # one bit set, and a tree that ends in "allow the rest" would let them through.
        body = _split(_X32_BIT, body, _rebase(trees.get("x32", absent)))
    program: list[_Instruction] = absent
    for abi, tree in trees.items():
        if abi not in (native, "x32"):
            program = _when_arch(abi, [(_LOAD, 0, 0, _NR), *tree], program)
    program = _when_arch(native, [(_LOAD, 0, 0, _NR), *body], program)
    return [(_LOAD, 0, 0, _ARCH), *program]


def _when_arch(
    abi: str, then: list[_Instruction], otherwise: list[_Instruction]
) -> list[_Instruction]:
    return [(_JEQ, 1, 0, AUDIT_ARCH[abi]), (_JA, 0, 0, len(then)), *then, *otherwise]


def _rebase(tree: list[_Instruction]) -> list[_Instruction]:
    """*tree* for numbers that have the bit of x32."""
    return [(_AND, 0, 0, _LOW ^ _X32_BIT), *tree]


def _leaves(abi: str, rules: Iterable[Rule], default: int) -> dict[int, int | _Checked]:
    """What each call that some rule is about gets: see `seccomp`, "What a profile means"."""
    table = syscalls.numbers(abi)
    plain: dict[int, int | _Checked] = {}
    checked: dict[int, tuple[str, list[tuple[tuple[Comparison, ...], int]]]] = {}
    for rule in rules:
        if rule.args:
            for name in rule.names:
                if (number := table.get(name)) is not None:
                    checked.setdefault(number, (name, []))[1].append((rule.args, rule.verdict))
        else:
            for name in rule.names:
                if (number := table.get(name)) is not None:
                    plain.setdefault(number, rule.verdict)
    for number, (name, checks) in checked.items():
        if number not in plain:
            plain[number] = _resolve(abi, name, checks, default)
    return plain


def _resolve(
    abi: str, name: str, checks: Iterable[tuple[tuple[Comparison, ...], int]], default: int
) -> int | _Checked:
    """The checks of one call with what is known already taken out."""
    result: list[tuple[tuple[Comparison, ...], int]] = []
    for args, verdict in checks:
        reduced = [_reduce(abi, name, argument) for argument in args]
        if False in reduced:
            continue
        left = tuple(argument for argument in reduced if isinstance(argument, Comparison))
        if not left:
            default = verdict
            break
        result.append((left, verdict))
    return _Checked(tuple(result), default) if result else default


def is_narrow(abi: str, name: str, index: int) -> bool:
    """Whether the kernel reads only the low 32 bits of that argument."""
    return abi in _32_BIT or (name, index) in NARROW


def _reduce(abi: str, name: str, comparison: Comparison) -> Comparison | bool:
    """*comparison* as it is made: on one 32-bit half, on both, or already decided.

    One on the low half has no high bits in its constants. So has one on both halves whose
    constants are small: those are told apart by `_Wide`.
    """
    index, op, value, two = (
        comparison.index,
        comparison.op,
        comparison.value,
        comparison.value_two,
    )
    if op is Op.MASKED_EQ and two & ~value:
        return False
    if not is_narrow(abi, name, index):
        # A mask without high bits asks nothing of the high half.
        wide = op is not Op.MASKED_EQ or value > _LOW
        return _Wide(index, op, value, two) if wide else comparison
    match op:
        case Op.EQ | Op.NE | Op.MASKED_EQ:
            return Comparison(index, op, value & _LOW, two & _LOW)
        case Op.LT | Op.LE if value > _LOW:
            return True
        case Op.GT | Op.GE if value > _LOW:
            return False
    return comparison


class _Wide(Comparison):
    """A comparison of both halves."""

    __slots__ = ()


def _ranges(
    leaves: Mapping[int, int | _Checked], abi: str, profile: Profile, named: frozenset[str]
) -> list[tuple[int, int | _Checked]]:
    """The first number of each run of calls that share a leaf, with the leaf; starts at 0."""
    default = profile.default
    table = syscalls.numbers(abi)
    if verdict_allows(default):
        last, hole = _LOW, default
    else:
        last = max((number for name, number in table.items() if name in named), default=-1)
        hole = ENOSYS if default & ACTION_MASK == Ret.ERRNO else default
    result: list[tuple[int, int | _Checked]] = []
    expected = 0
    current: int | _Checked | None = None
    get = leaves.get
    for number in sorted(set(table.values())):
        if number > last:
            break
        if number != expected and current != hole:
            result.append((expected, hole))
            current = hole
        leaf = get(number, default)
        if leaf != current:
            result.append((number, leaf))
            current = leaf
        expected = number + 1
    rest = default if verdict_allows(default) else ENOSYS
    if current != rest:
        result.append((expected, rest))
    return result


def _tree(ranges: list[tuple[int, int | _Checked]]) -> list[_Instruction]:
    """A balanced search for the range that the number in the accumulator lies in."""
    if len(ranges) == 1:
        leaf = ranges[0][1]
        return [(_RET, 0, 0, leaf)] if isinstance(leaf, int) else _checked(leaf)
    middle = len(ranges) // 2
    return _split(ranges[middle][0], _tree(ranges[:middle]), _tree(ranges[middle:]))


def _split(number: int, below: list[_Instruction], above: list[_Instruction]) -> list[_Instruction]:
    """Go to *below* or to *above*, as the accumulator is less than *number* or not."""
    if len(below) <= _FAR:
        return [(_JGE, len(below), 0, number), *below, *above]
    return [(_JGE, 0, 1, number), (_JA, 0, 0, len(below)), *below, *above]


def _checked(leaf: _Checked) -> list[_Instruction]:
    """The comparisons of one call, check after check."""
    result: list[_Instruction] = []
    loaded = -1
    for comparisons, verdict in leaf.checks:
        body: list[_Instruction] = []
        for comparison in reversed(comparisons):
            # Built from its end, so that the distance to the next check is known.
            body = _compare(comparison, len(body) + 1) + body
        if body[0] == (_LOAD, 0, 0, loaded):
            body = body[1:]
        result += [*body, (_RET, 0, 0, verdict)]
        loaded = _still_loaded(comparisons)
    result.append((_RET, 0, 0, leaf.default))
    return result


def _still_loaded(comparisons: tuple[Comparison, ...]) -> int:
    """The offset that the accumulator holds when a check has failed, or -1: not sure."""
    only = comparisons[0]
    if len(comparisons) > 1 or isinstance(only, _Wide) or only.op is Op.MASKED_EQ:
        return -1
    return _ARGS + 8 * only.index


def _compare(comparison: Comparison, rest: int) -> list[_Instruction]:
    """Fall through where *comparison* holds, else jump over *rest* instructions after it."""
    low = _ARGS + 8 * comparison.index
    value, two = comparison.value, comparison.value_two
    if not isinstance(comparison, _Wide):
        return [(_LOAD, 0, 0, low), *_compare_half(comparison.op, value, two, rest)]
    end = _compare_half(comparison.op, value & _LOW, two & _LOW, rest)
    high = value >> 32
    fail, done = rest + len(end) + 1, len(end) + 1  # counted from the last test of the high half
    start: list[_Instruction] = [(_LOAD, 0, 0, low + 4)]
    match comparison.op:
        case Op.EQ:
            start += [(_JEQ, 0, fail, high)]
        case Op.NE:
            start += [(_JEQ, 0, done, high)]
        case Op.MASKED_EQ:
            start += [(_AND, 0, 0, high), (_JEQ, 0, fail, two >> 32)]
        case Op.GT | Op.GE:
            start += [(_JGT, done + 1, 0, high), (_JEQ, 0, fail, high)]
        case Op.LT | Op.LE:
            start += [(_JGT, fail + 1, 0, high), (_JEQ, 0, done, high)]
    return [*start, (_LOAD, 0, 0, low), *end]


def _compare_half(op: Op, value: int, two: int, rest: int) -> list[_Instruction]:
    """The same for the 32 bits in the accumulator."""
    match op:
        case Op.EQ:
            return [(_JEQ, 0, rest, value)]
        case Op.NE:
            return [(_JEQ, rest, 0, value)]
        case Op.GT:
            return [(_JGT, 0, rest, value)]
        case Op.GE:
            return [(_JGE, 0, rest, value)]
        case Op.LT:
            return [(_JGE, rest, 0, value)]
        case Op.LE:
            return [(_JGT, rest, 0, value)]
        case Op.MASKED_EQ:
            return [(_AND, 0, 0, value), (_JEQ, 0, rest, two)]
