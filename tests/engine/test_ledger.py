"""The ledger on disk: what is written survives, what a crash left half does not, cuts show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tare.engine.events import Events
from tare.engine.ledger import WHO, Ledger
from tare.model.ledger import Entry


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(tmp_path / "ledger")
    yield made
    made.close()


def entries(ledger: Ledger) -> list[Entry]:
    return [Entry.decode(line)[0] for line in ledger.lines()]


def test_events_that_count_are_written_with_who_did_them(ledger: Ledger) -> None:
    events = Events()
    events.heard.append(ledger.heard)
    token = WHO.set("uid 1000")
    events.emit("image", "pull", "box:1", {"name": "box", "digest": "sha256:1"})
    WHO.reset(token)
    events.emit("container", "resize", "x", {})
    events.emit(
        "image", "trust", "box", {"doing": "pull", "refused": "true", "verdict": "unsigned"}
    )

    one, two = entries(ledger)

    assert (one.who, one.did, one.what, one.digest) == ("uid 1000", "image pull", "box", "sha256:1")
    assert (two.who, two.did, two.verdict) == ("the engine", "image trust pull refused", "unsigned")
    assert ledger.check().fault == ""


def test_a_new_engine_goes_on_where_the_last_one_was_killed(tmp_path: Path) -> None:
    first = Ledger(tmp_path / "ledger")
    first.append(did="a", what="1")
    first.append(did="b", what="2")  # neither synced nor closed: as kill -9 leaves it

    second = Ledger(tmp_path / "ledger")
    second.append(did="c", what="3")

    assert [entry.number for entry in entries(second)] == [1, 2, 3]
    assert second.check().fault == ""
    second.close()
    first.close()


def test_half_a_line_is_taken_away_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = Ledger(tmp_path / "ledger")
    first.append(did="a", what="1")
    first.close()
    with open(tmp_path / "ledger/entries", "ab") as file:
        file.write(b'{"before":"00')

    second = Ledger(tmp_path / "ledger")
    second.append(did="b", what="2")

    assert (second.check().entries, second.check().fault) == (2, "")
    assert "13 bytes of it are cut away" in caplog.text
    second.close()


def test_what_could_not_be_synced_is_synced_later(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_descriptor: int) -> None:
        raise OSError("no space")

    ledger.append(did="a", what="1")
    with monkeypatch.context() as patch:
        patch.setattr("tare.engine.ledger.os.fsync", broken)
        ledger.sync()
    assert "cannot be put on disk: no space" in caplog.text
    assert ledger.noted() is None
    ledger.sync()

    noted = ledger.noted()
    assert noted is not None
    assert noted[0] == 1


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_cut_off_end_shows_for_ever(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "ledger/entries"
    first = Ledger(tmp_path / "ledger")
    for number in range(3):
        first.append(did="a", what=str(number))
    first.close()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:kept]))

    second = Ledger(tmp_path / "ledger")
    assert second.check().fault
    second.append(did="b", what="after")
    second.close()

    third = Ledger(tmp_path / "ledger")
    assert third.check().fault
    third.close()


def test_it_is_the_owners_alone(tmp_path: Path, ledger: Ledger) -> None:
    ledger.append(did="a", what="1")
    ledger.sync()

    assert (tmp_path / "ledger").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "ledger/entries").stat().st_mode & 0o777 == 0o600
