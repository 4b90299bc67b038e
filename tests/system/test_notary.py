"""Leaving Docker Content Trust: what its metadata says becomes pins."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.engines import Engine
from harness.notary_v1 import GUN, ONE, ROOT, TWO, made

pytestmark = pytest.mark.system
DAY = "2027-01-15"  # when that metadata was made


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    started = Engine(tmp_path_factory.mktemp("e"))
    yield started
    assert not started.end()


@pytest.fixture
def metadata(tmp_path: Path) -> Path:
    for role, raw in made(released={"2": TWO}).items():
        path = tmp_path / f"{role}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(raw)
    return tmp_path


def pins(engine: Engine) -> dict[str, str]:
    found = json.loads(engine.out("trust", "--format", "json"))["Pins"]
    assert isinstance(found, dict)
    return found


def test_signed_tags_become_pins(engine: Engine, metadata: Path) -> None:
    asked = ("trust", "notary", "--dir", str(metadata), "--as-of", DAY, "--root", ROOT.id)

    shown = engine.out(*asked, GUN)
    assert str(ONE) in shown
    assert pins(engine) == {}
    engine.out(*asked, "--pin", GUN)

    assert pins(engine) == {f"{GUN}:1": str(ONE), f"{GUN}:2": str(TWO)}


@pytest.mark.attack("A34")
def test_nothing_is_pinned_of_what_proves_nothing(engine: Engine, metadata: Path) -> None:
    before = pins(engine)
    asked = ("trust", "notary", "--pin", "--replace", "--dir", str(metadata))
    for why, words in (
        ("whose root is trusted", ("--as-of", DAY, GUN)),
        ("none of these keys is trusted", ("--as-of", DAY, "--root", "ab" * 32, GUN)),
        ("expired on", ("--as-of", "2027-03-01", "--first-use", GUN)),
        ("no certificate", ("--as-of", DAY, "--first-use", "reg.example/team/other")),
    ):
        done = engine.tare(*asked, *words)
        assert done.returncode != 0, words
        assert why in done.stderr, done.stderr

    assert pins(engine) == before
