"""What filters leave reachable: hand-made programs, and tare's own beside their profile."""

from __future__ import annotations

import struct

import pytest

from tare.errors import InvalidError
from tare.model import reach
from tare.model.seccomp import Profile
from tare.model.seccomp_filter import compile_filter
from tare.model.seccomp_profiles import hardened_profile, standard_profile
from tare.model.syscalls import numbers

_ABI = 0xC000_003E
_ALLOW, _ERRNO, _KILL = 0x7FFF_0000, 0x0005_0001, 0x8000_0000


def program(*instructions: tuple[int, int, int, int]) -> reach.Code:
    return reach.load(b"".join(struct.pack("=HBBI", *one) for one in instructions))


def only(number: int) -> reach.Code:
    return program(
        (0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, _ALLOW), (0x06, 0, 0, _ERRNO)
    )


def test_a_call_that_the_filter_names_is_the_only_one_left() -> None:
    assert reach.reach([only(3)], _ABI, range(10)) == reach.Reach(10, 1, 0)


def test_without_a_filter_every_call_is_left() -> None:
    assert reach.reach([], _ABI, range(10)) == reach.Reach(10, 10, 0)


def test_of_two_filters_only_what_both_let_through_is_left() -> None:
    assert reach.reach([only(3), only(4)], _ABI, range(10)).allowed == 0


def test_an_argument_that_decides_makes_a_call_checked() -> None:
    tested = program(
        (0x20, 0, 0, 16),
        (0x54, 0, 0, 7),
        (0x15, 0, 1, 1),
        (0x06, 0, 0, _ALLOW),
        (0x06, 0, 0, _KILL),
    )

    assert reach.reach([tested], _ABI, [1, 2]) == reach.Reach(2, 2, 2)


def test_another_abi_is_told_apart() -> None:
    here = program((0x20, 0, 0, 4), (0x15, 0, 1, _ABI), (0x06, 0, 0, _ALLOW), (0x06, 0, 0, _ERRNO))

    assert reach.reach([here], _ABI, [1]).allowed == 1
    assert reach.reach([here], 0x4000_0003, [1]).allowed == 0


@pytest.mark.parametrize(
    "code", [b"", b"short", struct.pack("=HBBI", 0x99, 0, 0, 0), struct.pack("=HBBI", 5, 0, 0, 9)]
)
def test_what_is_no_filter_is_refused(code: bytes) -> None:
    with pytest.raises(InvalidError):
        reach.reach([reach.load(code)], _ABI, [1])


def test_our_own_profiles_leave_what_they_name_and_the_hardened_one_less() -> None:
    table = numbers("x86_64")

    def left(profile: Profile, *names: str) -> reach.Reach:
        code = compile_filter(profile, capabilities=frozenset(), kernel=(6, 18), machine="x86_64")
        wanted = [table[name] for name in names] or sorted(set(table.values()))
        return reach.reach([reach.load(code)], _ABI, wanted)

    assert left(standard_profile(), "read", "write", "openat") == reach.Reach(3, 3, 0)
    assert left(standard_profile(), "kexec_load", "bpf", "init_module").allowed == 0
    assert left(standard_profile(), "clone").checked == 1
    assert left(hardened_profile()).allowed < left(standard_profile()).allowed
