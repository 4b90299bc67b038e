"""The chain of the ledger: whatever is changed, left out, put in, swapped or cut off shows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tare.model.ledger import FIRST, Entry, check


def chain(count: int, start: str = FIRST) -> list[bytes]:
    lines, before = [], start
    for number in range(1, count + 1):
        entry = Entry(
            number=number, time_ns=number, who="uid 0", did="image pull", what=f"box:{number}",
            before=before,
        )  # fmt: skip
        line, before = entry.encode()
        lines.append(line)
    return lines


def test_a_whole_chain_holds_and_shows_its_head() -> None:
    lines = chain(5)

    found = check(lines)

    assert (found.entries, found.number, found.fault) == (5, 5, "")
    assert found.head == Entry.decode(lines[-1])[1]
    assert check([]).fault == ""


@given(at=st.integers(0, 9_999), value=st.integers(0, 255))
def test_a_changed_byte_shows(at: int, value: int) -> None:
    lines = chain(6)
    head = (6, check(lines).head)
    raw = bytearray(lines[2])
    before = bytes(raw)
    raw[at % len(raw)] = value
    lines[2] = bytes(raw)

    assert (check(lines, head).fault == "") == (bytes(raw) == before)


def test_what_is_left_out_put_in_or_swapped_shows() -> None:
    lines = chain(6)
    foreign = chain(6, "1" * 64)

    assert "entries 3 to 3 are missing" in check([*lines[:2], *lines[3:]]).fault
    assert "the order" in check([lines[0], lines[1], lines[1]]).fault
    assert check([lines[0], lines[2], lines[1], *lines[3:]]).fault
    assert "begins with entry 2" in check(lines[1:]).fault
    assert "does not follow" in check([*lines[:3], *foreign[3:]]).fault


def test_an_end_that_was_cut_off_shows_by_a_head_that_was_noted() -> None:
    lines = chain(6)
    head = (6, check(lines).head)

    assert check(lines[:4]).fault == ""
    assert "entries 5 to 6 were cut off" in check(lines[:4], head).fault
    assert "not the one that was noted" in check(lines, (6, "0" * 64)).fault
    assert check([*lines, *[]], (4, Entry.decode(lines[3])[1])).fault == ""
