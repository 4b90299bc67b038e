"""The kernel's text formats, as both versions write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tare.kernel.cgroup_stats import (
    DeviceIo,
    Pressure,
    Stall,
    join_blkio,
    parse_flat,
    parse_io_stat,
    parse_limit,
    parse_number,
    parse_pressure,
)


def test_a_flat_file_is_read_by_name() -> None:
    assert parse_flat(b"oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")["oom_kill"] == 3


def test_a_missing_file_counts_nothing() -> None:
    assert parse_flat(None) == {}
    assert parse_number(None) == 0
    assert parse_limit(None) is None
    assert join_blkio(None, None) == ()
    assert parse_io_stat(None) == ()


@pytest.mark.parametrize(
    ("content", "limit"),
    [(b"max\n", None), (b"9223372036854771712\n", None), (b"0\n", 0), (b"4096\n", 4096)],
)
def test_the_ways_to_say_unlimited_are_one(content: bytes, limit: int | None) -> None:
    assert parse_limit(content) == limit


def test_version_1_block_counters_are_joined_by_device() -> None:
    sizes = b"8:0 Read 10\n8:0 Write 20\n8:0 Sync 0\n8:0 Total 30\n8:16 Read 1\nTotal 31\n"
    counts = b"8:0 Read 1\n8:0 Write 2\nTotal 3\n"

    assert join_blkio(sizes, counts) == (DeviceIo(8, 0, 10, 20, 1, 2), DeviceIo(8, 16, 1, 0, 0, 0))


def test_version_2_block_counters_are_read_in_any_order() -> None:
    content = b"254:0 wbytes=2 rbytes=1 rios=3 wios=4 dbytes=0 dios=0\n7:0 \n"

    assert parse_io_stat(content) == (DeviceIo(254, 0, 1, 2, 3, 4), DeviceIo(7, 0))


def test_pressure_is_read_with_and_without_its_full_line() -> None:
    some = b"some avg10=0.12 avg60=1.50 avg300=0.00 total=42\n"

    assert parse_pressure(some) == Pressure(Stall(0.12, 1.5, 0.0, 42))
    assert parse_pressure(some + b"full avg10=0.00 avg60=0.00 avg300=0.00 total=7\n").full == Stall(
        total_us=7
    )


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,20}", fullmatch=True), st.integers(0, 2**64)))
def test_what_the_kernel_would_write_is_read_back(values: dict[str, int]) -> None:
    assert parse_flat("".join(f"{k} {v}\n" for k, v in values.items()).encode()) == values
