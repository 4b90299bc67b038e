"""Sizes, times, signals, detach keys, filters."""

from __future__ import annotations

import pytest

from tare.errors import InvalidError
from tare.wire import detach, values
from tare.wire.filters import filters


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("1024", 1024), ("64m", 64 << 20), ("1.5g", 3 << 29), ("1kb", 1024), ("2GiB", 2 << 30)],
)
def test_size(text: str, wanted: int) -> None:
    assert values.size(text) == wanted


@pytest.mark.parametrize("text", ["", "-1", "m", "1x", "1e3", "٣", "1 0", "1..5", "0x10"])
def test_bad_size_is_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        values.size(text)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("5", 5 * 10**9),
        ("5.000000001", 5 * 10**9 + 1),
        ("1970-01-01T00:00:05Z", 5 * 10**9),
        ("1970-01-01T01:00:05.5+01:00", 5_500_000_000),
        ("1970-01-01T00:00:05", 5 * 10**9),
        ("1970-01-02", 86_400 * 10**9),
        ("1m30s", -90 * 10**9),
    ],
)
def test_moment(text: str, wanted: int) -> None:
    assert values.moment(text, now_ns=0) == wanted


@pytest.mark.parametrize("text", ["yesterday", "1z", "", "12:00", "1m 2s"])
def test_bad_moment_is_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        values.moment(text, now_ns=0)


def test_times_are_printed_as_go_does() -> None:
    assert values.rfc3339(0) == "0001-01-01T00:00:00Z"
    assert values.rfc3339(1_500_000_000) == "1970-01-01T00:00:01.5Z"
    assert values.rfc3339(10**9, digits=9) == "1970-01-01T00:00:01.000000000Z"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("", b"\x10\x11"), ("ctrl-a,b", b"\x01b"), ("ctrl-@", b"\0"), ("ctrl-],x,y", b"\x1dxy")],
)
def test_detach_keys(text: str, wanted: bytes) -> None:
    assert detach.keys(text) == wanted


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-1", "xy", "ctrl-a,,", "ä"])
def test_bad_detach_keys_are_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        detach.keys(text)


def test_detach_keys_are_found_across_reads() -> None:
    detector = detach.Detector(b"\x10\x11")

    assert detector.feed(b"ab\x10") == (b"ab", False)
    assert detector.feed(b"\x11cd") == (b"", True)


def test_keys_that_only_begin_the_sequence_are_passed_on() -> None:
    detector = detach.Detector(b"\x10\x11")

    assert detector.feed(b"\x10") == (b"", False)
    assert detector.feed(b"x\x10\x10") == (b"\x10x\x10", False)
    assert detector.feed(b"\x11") == (b"", True)


def test_filters_in_both_of_dockers_shapes() -> None:
    known = ("label", "name")

    assert filters('{"label":{"a=b":true,"no":false}}', known) == {"label": ("a=b",)}
    assert filters('{"label":["a=b"],"name":null}', known) == {"label": ("a=b",)}


@pytest.mark.attack("A45")
@pytest.mark.parametrize(
    "text",
    ['{"odd":["x"]}', "[]", "{", '{"name":1}', '{"name":["' + "x" * 2000 + '"]}', "[" * 10**5],
)
def test_bad_filters_are_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        filters(text, ("name",))
