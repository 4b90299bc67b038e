"""Device rules: their meaning, the program made of them, and both against the real kernel."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tare.kernel.cgroup import ANY, DEFAULT_DEVICES, DeviceRule, RefusedLimitError, detect
from tare.kernel.device_filter import Table, assemble, attached, install, reduce

ACCESSES = ("r", "w", "m", "rw", "rm", "wm", "rwm")


def run(program: bytes, type: str, major: int, minor: int, access: str) -> bool:
    """Interpret the few eBPF instructions that a device program uses (RFC 9669)."""
    bits = sum({"m": 1, "r": 2, "w": 4}[letter] for letter in access)
    context = struct.pack("=III", bits << 16 | {"b": 1, "c": 2}[type], major, minor)
    registers = [0] * 11
    at, steps = 0, 0
    while True:
        opcode, pair, offset, immediate = struct.unpack_from("<BBhi", program, at * 8)
        destination, source = pair & 15, pair >> 4
        at, steps = at + 1, steps + 1
        assert steps < 100_000
        if opcode == 0x61:
            assert source == 1, "context is read from r1"
            registers[destination] = struct.unpack_from("=I", context, offset)[0]
        elif opcode == 0xBF:
            registers[destination] = registers[source]
        elif opcode == 0xB7:
            registers[destination] = immediate
        elif opcode == 0x57:
            registers[destination] &= immediate
        elif opcode == 0x77:
            registers[destination] >>= immediate
        elif opcode in (0x15, 0x55):
            if (registers[destination] == immediate) == (opcode == 0x15):
                at += offset
        elif opcode == 0x95:
            return bool(registers[0])
        else:
            pytest.fail(f"unknown instruction {opcode:#x}")


numbers = st.sampled_from((ANY, 0, 1, 3))
rules = st.builds(
    DeviceRule, st.booleans(), st.sampled_from("abc"), numbers, numbers, st.sampled_from(ACCESSES)
)


@given(
    st.lists(rules, max_size=8),
    st.sampled_from("bc"),
    st.integers(0, 4),
    st.integers(0, 4),
    st.sampled_from(ACCESSES),
)
def test_the_program_does_what_the_table_says(
    listed: list[DeviceRule], type: str, major: int, minor: int, access: str
) -> None:
    try:
        table = reduce(tuple(listed))
    except RefusedLimitError:
        return

    assert run(assemble(table), type, major, minor, access) == table.permits(
        type, major, minor, access
    )


def test_the_default_opens_null_and_makes_but_does_not_open_disks() -> None:
    table = reduce(DEFAULT_DEVICES)

    assert table.permits("c", 1, 3, "rw")
    assert table.permits("c", 136, 7, "rw")
    assert table.permits("b", 8, 0, "m")
    assert not table.permits("b", 8, 0, "r")
    assert not table.permits("c", 1, 1, "r")
    assert not table.permits("c", 1, 11, "rm"), "each access must be allowed, not any"


def test_no_rules_allow_everything_and_a_deny_takes_one_away() -> None:
    assert reduce(()) == Table(True, ())
    table = reduce((DeviceRule(False, "c", 1, 3, "w"),))
    assert table.permits("c", 1, 3, "r")
    assert not table.permits("c", 1, 3, "rw")


def test_a_later_rule_about_everything_forgets_the_earlier_ones() -> None:
    rules = (DeviceRule(False, "a"), DeviceRule(True, "c", 1, 3), DeviceRule(False, "a"))

    assert reduce(rules) == Table(False, ())


def test_a_wider_deny_takes_the_narrower_allow_back() -> None:
    rules = (DeviceRule(False, "a"), DeviceRule(True, "c", 1, 3), DeviceRule(False, "c", 1, ANY))

    assert not reduce(rules).permits("c", 1, 3, "r")


@pytest.mark.parametrize(
    "wide", [DeviceRule(True, "c"), DeviceRule(True, "c", 1), DeviceRule(True, "c", ANY, 3)]
)
def test_a_deny_that_version_1_would_ignore_is_refused(wide: DeviceRule) -> None:
    narrow = DeviceRule(False, "c", 1, 3, "w")

    with pytest.raises(RefusedLimitError, match="would be ignored"):
        reduce((DeviceRule(False, "a"), wide, narrow))


def test_a_type_for_all_with_part_of_the_accesses_is_both_types() -> None:
    table = reduce((DeviceRule(False, "a"), DeviceRule(True, "a", ANY, ANY, "m")))

    assert table.permits("b", 9, 9, "m")
    assert not table.permits("c", 9, 9, "r")


# --- the real kernel --------------------------------------------------------------------------


@pytest.fixture
def directory() -> Iterator[str]:
    """A version 2 group that takes device programs."""
    layout = detect()
    if layout.unified is None or not layout.unified.writable or not layout.privileged:
        pytest.skip("no writable version 2 control groups here")
    path = f"{layout.unified.base}/tare-test-{os.getpid()}-devices"
    os.mkdir(path)
    try:
        yield path
    finally:
        os.rmdir(path)


@pytest.fixture
def group(directory: str) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            install(descriptor, ())
        except OSError as error:
            if error.errno in (errno.EPERM, errno.ENOSYS, errno.EINVAL):
                pytest.skip(f"no device programs here: {error}")
            raise
        yield descriptor
    finally:
        os.close(descriptor)


def opened_within(directory: str, path: str, flags: int) -> int:
    """The errno (0 for success) that open(2) has for a process in the group."""
    child = os.fork()
    if child == 0:
        try:
            Path(directory, "cgroup.procs").write_text("0")
            os.close(os.open(path, flags))
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or 255)
        except BaseException:
            os._exit(255)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_the_kernel_enforces_the_default_rules(directory: str, group: int) -> None:
    before = opened_within(directory, "/dev/kmsg", os.O_RDONLY)

    install(group, DEFAULT_DEVICES)

    assert before == 0
    assert opened_within(directory, "/dev/null", os.O_RDWR) == 0
    assert opened_within(directory, "/dev/urandom", os.O_RDONLY) == 0
    assert opened_within(directory, "/dev/kmsg", os.O_RDONLY) == errno.EPERM


def test_an_access_that_is_not_allowed_is_refused_alone(directory: str, group: int) -> None:
    install(group, (DeviceRule(False, "a"), DeviceRule(True, "c", 1, 3, "r")))

    assert opened_within(directory, "/dev/null", os.O_RDONLY) == 0
    assert opened_within(directory, "/dev/null", os.O_WRONLY) == errno.EPERM
    assert opened_within(directory, "/dev/null", os.O_RDWR) == errno.EPERM


def test_a_deny_list_leaves_the_rest(directory: str, group: int) -> None:
    install(group, (DeviceRule(False, "c", 1, 5, "w"),))

    assert opened_within(directory, "/dev/zero", os.O_RDONLY) == 0
    assert opened_within(directory, "/dev/zero", os.O_WRONLY) == errno.EPERM
    assert opened_within(directory, "/dev/null", os.O_WRONLY) == 0


def test_new_rules_take_the_place_of_the_old(directory: str, group: int) -> None:
    install(group, (DeviceRule(False, "a"),))
    install(group, DEFAULT_DEVICES)

    assert len(attached(group)) == 1
    assert opened_within(directory, "/dev/null", os.O_RDWR) == 0


def test_a_program_of_many_rules_passes_the_verifier(directory: str, group: int) -> None:
    many = tuple(DeviceRule(True, "c", 1 + n % 200, n, "rw") for n in range(250))

    install(group, (DeviceRule(False, "a"), *many, DeviceRule(True, "c", 1, 3)))

    assert opened_within(directory, "/dev/null", os.O_RDWR) == 0
    assert opened_within(directory, "/dev/kmsg", os.O_RDONLY) == errno.EPERM


def test_more_rules_than_the_verifier_follows_are_refused_and_change_nothing(
    directory: str, group: int
) -> None:
    install(group, DEFAULT_DEVICES)
    many = tuple(DeviceRule(True, "c", 1 + n % 200, n, "rw") for n in range(2000))

    with pytest.raises(RefusedLimitError, match="too many device rules"):
        install(group, (DeviceRule(False, "a"), *many))

    assert opened_within(directory, "/dev/null", os.O_RDWR) == 0
    assert opened_within(directory, "/dev/kmsg", os.O_RDONLY) == errno.EPERM
