"""The compiler: its programs are valid, and answer as the profile says, for any profile."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import bpf
from fakes.seccomp_oracle import ARCH, ENOSYS, evaluate
from tare.errors import InvalidError, UnsupportedError
from tare.model import syscalls
from tare.model.seccomp import (
    EPERM,
    Comparison,
    Condition,
    Op,
    Profile,
    Ret,
    Rule,
    parse_profile,
    render_profile,
    unknown_calls,
)
from tare.model.seccomp_filter import compile_filter, is_narrow

X32_BIT = 0x4000_0000
SUBS = {"x86_64": ("i386", "x32"), "aarch64": ("arm",)}
WORDS = """read write openat clone clone3 ioctl socket socketcall personality mmap futex stat64
unshare cachestat set_tls rt_sigaction nosuchcall"""
NAMES = tuple(WORDS.split())
EDGES = st.sampled_from(
    [
        *(0, 1, 2, 40, 0x5412, 0x7E020000, 0x1_7E02_0000),
        *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**32 + 40, 2**63, 2**64 - 1),
    ]
)
VALUES = EDGES | st.integers(0, 2**64 - 1) | st.integers(0, 64)
VERDICTS = st.sampled_from(
    [*Ret, Ret.ERRNO | 1, Ret.ERRNO | 22, ENOSYS, Ret.TRACE | 7, Ret.ERRNO | 4095]
)


@st.composite
def comparisons(draw: st.DrawFn) -> tuple[Comparison, ...]:
    result = []
    for index in draw(st.sets(st.integers(0, 5), max_size=3)):
        op = draw(st.sampled_from(list(Op)))
        value = draw(VALUES)
        # Mostly bits of the mask: others never match.
        two = draw(VALUES) & draw(st.sampled_from([value, value, 2**64 - 1]))
        result.append(Comparison(index, op, value, two if op is Op.MASKED_EQ else 0))
    return tuple(result)


CONDITIONS = st.builds(
    Condition,
    st.frozensets(st.sampled_from(["SYS_ADMIN", "BPF"]), max_size=1),
    st.frozensets(st.sampled_from(["amd64", "arm64"]), max_size=1),
    st.none() | st.sampled_from([(4, 8), (6, 18), (7, 0)]),
)
NOTHING = st.just(Condition())
RULES = st.builds(
    Rule,
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=5).map(tuple),
    VERDICTS,
    st.just(()) | comparisons(),
    NOTHING | CONDITIONS,
    NOTHING | CONDITIONS,
)
ARCH_MAPS = st.sampled_from(
    [(), (("x86_64", ("i386", "x32")), ("aarch64", ("arm",))), (("x86_64", ("i386",)),)]
)
PROFILES = st.builds(Profile, VERDICTS, st.lists(RULES, max_size=12).map(tuple), ARCH_MAPS)
CAPS = st.frozensets(st.sampled_from(["SYS_ADMIN", "BPF", "CHOWN"]))


def compiled(
    profile: Profile, caps: frozenset[str] = frozenset(), machine: str = "x86_64"
) -> bpf.Code:
    return bpf.load(compile_filter(profile, capabilities=caps, kernel=(6, 18), machine=machine))


def answer(code: bpf.Code, abi: str, number: int, args: tuple[int, ...] = ()) -> int:
    bit = X32_BIT if abi == "x32" else 0
    return bpf.run(code, ARCH[abi], number | bit, args)


@settings(max_examples=300, deadline=None)
@given(PROFILES, CAPS, st.sampled_from(sorted(SUBS)), st.data())
def test_a_compiled_filter_answers_as_the_profile_says(
    profile: Profile, caps: frozenset[str], native: str, data: st.DataObject
) -> None:
    code = compiled(profile, caps, native)
    # What is drawn at random seldom meets a comparison: so also what is next to its constants.
    constants = [v for r in profile.rules for c in r.args for v in (c.value, c.value_two)]
    near = [(v + d) % 2**64 for v in constants for d in (-1, 0, 1, 2**32)] or [0]
    args = data.draw(st.lists(st.tuples(*[VALUES | st.sampled_from(near)] * 6), min_size=1))

    for abi in (native, *SUBS[native]):
        table = syscalls.numbers(abi)
        for number in {table[name] for name in NAMES if name in table} | {0, 250, 335, 600, 2**29}:
            for each in args:
                expected = evaluate(profile, abi, number, each, caps=caps, native=native)
                assert answer(code, abi, number, each) == expected, (abi, number, each)


@settings(max_examples=60, deadline=None)
@given(PROFILES)
def test_a_profile_survives_being_written_and_read(profile: Profile) -> None:
    # KILL has two names, and an errno of TRACE is kept; both are the same value afterwards.
    assert parse_profile(render_profile(profile)) == profile


@pytest.mark.attack("A15")
def test_a_foreign_abi_gets_nothing_even_where_the_default_allows() -> None:
    code = compiled(Profile(Ret.ALLOW, ()))

    assert answer(code, "x86_64", 0) == Ret.ALLOW
    assert answer(code, "i386", 3) == ENOSYS
    assert answer(code, "x32", 0) == ENOSYS
    assert bpf.run(code, ARCH["aarch64"], 0) == ENOSYS


@pytest.mark.attack("A15")
def test_the_bit_of_x32_does_not_lead_into_the_native_table() -> None:
    allow_read = Profile(EPERM, (Rule(("read",), Ret.ALLOW),))

    code = compiled(allow_read)

    assert answer(code, "x86_64", 0) == Ret.ALLOW
    assert bpf.run(code, ARCH["x86_64"], X32_BIT) == ENOSYS
    assert bpf.run(code, ARCH["x86_64"], 0x8000_0000) == ENOSYS
    assert bpf.run(code, ARCH["x86_64"], 0xFFFF_FFFF) == ENOSYS


def test_a_number_above_all_that_the_profile_names_is_absent_and_one_below_is_refused() -> None:
    code = compiled(Profile(EPERM, (Rule(("faccessat2",), Ret.ALLOW),)))

    assert answer(code, "x86_64", 438) == EPERM
    assert answer(code, "x86_64", 439) == Ret.ALLOW
    assert answer(code, "x86_64", 440) == ENOSYS
    assert answer(code, "x86_64", 400) == ENOSYS, "no such call"


def test_an_unknown_number_is_killed_where_the_default_kills_below_the_highest_named() -> None:
    code = compiled(Profile(Ret.KILL_PROCESS, (Rule(("faccessat2",), Ret.ALLOW),)))

    assert answer(code, "x86_64", 400) == Ret.KILL_PROCESS
    assert answer(code, "x86_64", 900) == ENOSYS


@pytest.mark.attack("A14")
@pytest.mark.parametrize("high", [0, 1 << 32, 0xFFFF_FFFF << 32])
def test_high_bits_do_not_get_an_int_argument_past_a_comparison(high: int) -> None:
    all_but_vsock = Rule(("socket",), Ret.ALLOW, (Comparison(0, Op.NE, 40),))

    code = compiled(Profile(EPERM, (all_but_vsock,)))

    assert answer(code, "x86_64", 41, (high | 40,)) == EPERM
    assert answer(code, "x86_64", 41, (high | 2,)) == Ret.ALLOW


def test_a_pointer_sized_argument_is_compared_in_full() -> None:
    rule = Rule(("mmap",), Ret.ALLOW, (Comparison(1, Op.LE, 2**32 + 5),))

    code = compiled(Profile(EPERM, (rule,)))

    assert not is_narrow("x86_64", "mmap", 1)
    assert answer(code, "x86_64", 9, (0, 2**32 + 5)) == Ret.ALLOW
    assert answer(code, "x86_64", 9, (0, 2**32 + 6)) == EPERM
    assert answer(code, "x86_64", 9, (0, 2**33)) == EPERM


def test_a_rule_without_comparisons_decides_whatever_comes_before_it() -> None:
    some = Rule(("socket",), Ret.ERRNO | errno.EINVAL, (Comparison(0, Op.EQ, 16),))
    every = Rule(("socket",), Ret.ALLOW)

    code = compiled(Profile(EPERM, (some, every)))

    assert answer(code, "x86_64", 41, (16,)) == Ret.ALLOW


def test_a_profile_too_large_for_the_kernel_is_refused() -> None:
    rules = tuple(
        Rule((name,), Ret.ALLOW, (Comparison(0, Op.EQ, 20 * number + value),))
        for name, number in syscalls.numbers("x86_64").items()
        for value in range(10)
    )

    with pytest.raises(InvalidError, match="instructions, and the kernel takes 4096"):
        compile_filter(
            Profile(EPERM, rules), capabilities=frozenset(), kernel=(6, 1), machine="x86_64"
        )


def test_a_long_program_still_jumps_to_the_right_place() -> None:
    # More than 255 instructions on both sides of the first decisions.
    numbers = syscalls.numbers("x86_64")
    names = sorted(numbers, key=numbers.__getitem__)[:330]
    rules = tuple(
        Rule((name,), Ret.ERRNO | 1000 + numbers[name], (Comparison(5, Op.NE, 2**40),))
        for name in names
    )

    code = compiled(Profile(EPERM, rules))

    assert len(code) > 1500
    for name in names:
        assert answer(code, "x86_64", numbers[name]) == Ret.ERRNO | 1000 + numbers[name]
        assert answer(code, "x86_64", numbers[name], (0, 0, 0, 0, 0, 2**40)) == EPERM


@pytest.mark.parametrize("checks", range(124, 131))
def test_a_leaf_about_as_long_as_a_jump_reaches_is_jumped_over(checks: int) -> None:
    values = range(1, 2 * checks, 2)
    rules = [Rule(("socket",), Ret.ALLOW, (Comparison(0, Op.EQ, value),)) for value in values]

    code = compiled(Profile(EPERM, (*rules, Rule(("connect", "bind"), Ret.ALLOW))))

    assert answer(code, "x86_64", 42) == Ret.ALLOW
    assert answer(code, "x86_64", 41, (values[-1],)) == Ret.ALLOW
    assert answer(code, "x86_64", 41, (values[-1] + 1,)) == EPERM


def test_a_processor_without_a_table_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="riscv64"):
        compile_filter(
            Profile(EPERM, ()), capabilities=frozenset(), kernel=(6, 1), machine="riscv64"
        )


def test_names_without_a_number_are_told() -> None:
    profile = Profile(EPERM, (Rule(("read", "opennat", "s390_pci_mmio_read"), Ret.ALLOW),))

    assert unknown_calls(profile) == ("opennat", "s390_pci_mmio_read")


def test_the_tables_have_the_numbers_that_the_kernel_has() -> None:
    spot = {
        "x86_64": {"read": 0, "clone3": 435, "uretprobe": 335, "socket": 41},
        "i386": {"read": 3, "socketcall": 102, "keyctl": 288, "unshare": 310, "socket": 359},
        "x32": {"read": 0, "ioctl": 514},
        "aarch64": {"read": 63, "clone3": 435, "newfstatat": 79},
        "arm": {"read": 3, "set_tls": 0xF0005, "sync_file_range2": 341},
    }

    for abi, calls in spot.items():
        assert calls.items() <= syscalls.numbers(abi).items()
