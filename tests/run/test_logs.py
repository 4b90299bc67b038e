"""The log on disk: what was written is read back, whatever happened in between."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tare.run.logs import STDERR, STDOUT, Line, LogReader, LogWriter, paths


def _lines(path: Path) -> list[Line]:
    reader = LogReader(str(path))
    found = [*reader.read(), *reader.flush()]
    reader.close()
    return found


def test_lines_come_back_with_stream_and_time(tmp_path: Path) -> None:
    writer = LogWriter(str(tmp_path / "log"), 1 << 20, 3)
    writer.write(STDOUT, b"one\ntw", 10)
    writer.write(STDERR, b"oops\n", 20)
    writer.write(STDOUT, b"o\nthree", 30)
    writer.close()

    assert _lines(tmp_path / "log") == [
        Line(STDOUT, 10, b"one\n"),
        Line(STDERR, 20, b"oops\n"),
        Line(STDOUT, 10, b"two\n"),
        Line(STDOUT, 30, b"three"),
    ]


@given(chunks=st.lists(st.binary(min_size=1, max_size=200), max_size=30))
def test_whatever_is_written_in_whatever_pieces_is_read_whole(
    chunks: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    writer = LogWriter(str(path), 0, 3)
    for chunk in chunks:
        writer.write(STDOUT, chunk, 1)
    writer.close()

    lines = _lines(path)

    assert b"".join(line.data for line in lines) == b"".join(chunks)
    assert all(line.data.count(b"\n") <= 1 for line in lines)


@pytest.mark.attack("A19")
def test_output_cannot_forge_a_record_of_the_other_stream(tmp_path: Path) -> None:
    forged = (tmp_path / "forged").resolve()
    other = LogWriter(str(forged), 0, 1)
    other.write(STDERR, b"I am stderr\n", 5)
    other.close()
    writer = LogWriter(str(tmp_path / "log"), 0, 1)
    writer.write(STDOUT, forged.read_bytes(), 9)
    writer.close()

    assert {line.stream for line in _lines(tmp_path / "log")} == {STDOUT}


def test_a_record_cut_by_a_crash_is_skipped_and_then_mended(tmp_path: Path) -> None:
    path = tmp_path / "log"
    writer = LogWriter(str(path), 0, 1)
    writer.write(STDOUT, b"whole\n", 1)
    writer.write(STDOUT, b"cut off\n", 2)
    writer.close()
    os.truncate(path, path.stat().st_size - 3)

    before = _lines(path)
    writer = LogWriter(str(path), 0, 1)
    writer.write(STDOUT, b"after\n", 3)
    writer.close()

    assert [line.data for line in before] == [b"whole\n"]
    assert [line.data for line in _lines(path)] == [b"whole\n", b"cut oafter\n"]


def test_rotation_keeps_the_number_of_files_and_the_newest_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    writer = LogWriter(str(path), 1000, 3)
    for number in range(200):
        writer.write(STDOUT, b"line %d\n" % number, number)
    writer.close()

    lines = [line.data for line in _lines(path)]

    assert len(paths(str(path))) == 3
    assert all(os.path.getsize(name) <= 1000 for name in paths(str(path)))
    assert lines[-1] == b"line 199\n"
    assert lines == [b"line %d\n" % n for n in range(200 - len(lines), 200)]


def test_a_reader_that_follows_sees_each_line_once_across_rotations(tmp_path: Path) -> None:
    path = tmp_path / "log"
    writer = LogWriter(str(path), 500, 3)
    reader = LogReader(str(path))
    seen = []
    for number in range(300):
        writer.write(STDOUT, b"line %d\n" % number, number)
        if number % 5 == 0:
            seen += [line.data for line in reader.read()]
    seen += [line.data for line in reader.read()]
    writer.close()
    reader.close()

    assert seen == [b"line %d\n" % number for number in range(300)]


def test_a_full_disk_loses_output_but_never_fails(tmp_path: Path) -> None:
    writer = LogWriter("/dev/full", 0, 1)

    writer.write(STDOUT, b"lost\n", 1)

    assert writer.lost == 5
    writer.close()


def _pipe(data: bytes) -> int:
    reading, writing = os.pipe()
    os.write(writing, data)
    os.close(writing)
    return reading


def test_what_waits_in_a_pipe_is_moved_to_the_log(tmp_path: Path) -> None:
    source = _pipe(b"one\ntwo\n")
    writer = LogWriter(str(tmp_path / "log"), 0, 1)

    assert writer.move(STDOUT, source, 4, 7) == 4
    assert writer.tail(4) == b"one\n"
    assert writer.move(STDERR, source, 4, 8) == 4
    writer.close()
    os.close(source)

    assert _lines(tmp_path / "log") == [Line(STDOUT, 7, b"one\n"), Line(STDERR, 8, b"two\n")]


def test_a_pipe_with_less_than_was_said_makes_a_shorter_record(tmp_path: Path) -> None:
    source = _pipe(b"little\n")
    writer = LogWriter(str(tmp_path / "log"), 0, 1)

    assert writer.move(STDOUT, source, 100, 1) == 7
    assert writer.move(STDOUT, source, 100, 1) == 0
    writer.write(STDOUT, b"after\n", 2)
    writer.close()
    os.close(source)

    assert [line.data for line in _lines(tmp_path / "log")] == [b"little\n", b"after\n"]


def test_what_a_full_disk_does_not_take_stays_in_the_pipe(tmp_path: Path) -> None:
    source = _pipe(b"kept\n")
    writer = LogWriter("/dev/full", 0, 1)

    assert writer.move(STDOUT, source, 5, 1) == 0
    writer.close()

    assert os.read(source, 10) == b"kept\n"
    os.close(source)


def test_a_writer_killed_while_it_moved_leaves_what_it_moved(tmp_path: Path) -> None:
    path = tmp_path / "log"
    source = _pipe(b"first\nsecond\n")
    writer = LogWriter(str(path), 0, 1)
    writer.move(STDOUT, source, 13, 5)
    writer.close()
    os.truncate(path, path.stat().st_size - 7)  # killed before "second" had come over

    assert _lines(path) == []
    writer = LogWriter(str(path), 0, 1)
    writer.write(STDOUT, b"second\n", 6)
    writer.close()

    assert _lines(path) == [Line(STDOUT, 5, b"first\n"), Line(STDOUT, 6, b"second\n")]
