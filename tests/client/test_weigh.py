"""Receipts drawn: for terminals, as JSON, as a page. Nothing runs here."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser

import pytest

from client.conftest import Tare
from fakes.engine_http import FakeEngine
from tare.client import document, weigh_page, weigh_receipt, weigh_rows, weigh_text
from tare.client.document import Json
from tare.client.weigh import Side
from tare.client.weigh_receipt import Receipt, Unit

_NASTY = '<script>alert("x")</script>\x1b[31m'


def surface(**changes: Json) -> Mapping[str, Json]:
    return {
        "Known": 386, "Allowed": 307, "Checked": 5, "WhyUnknown": "", "Capabilities": 3,
        "UserNamespace": True, "NoNewPrivileges": True, "Emulator": False, "Accelerated": False,
        **changes,
    }  # fmt: skip


def receipt(image: str = "busybox", **changes: object) -> Receipt:
    container = Side(
        samples={"first-warm": [0.010, 0.012, 0.011], "memory-idle": [1 << 20], "write": [4e9]},
        missing={"latency": "it is in no network with an address"},
        surface=surface(),
    )
    vm = Side(
        samples={"first-warm": [2.0, 2.4, 2.2], "memory-idle": [200 << 20], "write": [1e8]},
        missing={"latency": "it is in no network with an address", "send": "the image has no nc"},
        surface=surface(Emulator=True, Allowed=None, WhyUnknown="its filter cannot be read here"),
    )
    sides = {"container": container, "vm": vm}
    values: dict[str, object] = {
        "image": image, "image_id": "sha256:aa", "command": ["echo", _NASTY], "rounds": 3,
        "when": "2026-01-01 00:00 UTC", "engine": "0.1.0", "host": {"kernel": "6.18"},
        "sides": ("container", "vm"), "emulated": True,
        "rows": weigh_rows.rows(sides, image_size=2 << 20, free=1 << 30, health_check=False),
        "facts": weigh_rows.facts(sides),
        "cannot": weigh_rows.cannot(sides, emulated=True, rounds=3),
        **changes,
    }  # fmt: skip
    return Receipt(**values)  # type: ignore[arg-type]  # the fields' own types, by name


def test_the_figures_are_medians_with_their_spread_and_the_ratio_of_both() -> None:
    drawn = weigh_text.render(receipt(), width=100)

    assert re.search(r"First output, warm +200 x\n +Container .* 11 ms \(10 ms to 12 ms\)\n", drawn)
    assert re.search(r"Virtual machine +#+ +2\.20 s \(2\.00 s to 2\.40 s\) emulated\n", drawn)
    assert re.search(r"How many fit.*1/205\n.* 1024\n.* 5\n", drawn)


def test_memory_is_not_marked_as_emulated() -> None:
    drawn = weigh_text.render(receipt(), width=100)

    assert re.search(r"Memory, at rest +200 x\n.*1MiB\n.*200MiB\n", drawn)


def test_what_was_not_measured_says_why() -> None:
    drawn = weigh_text.render(receipt(), width=100)

    assert "Network, a round trip: it is in no network with an address\n" in drawn
    assert "Healthy: the image has no health check\n" in drawn
    assert "KVM does not boot a guest here" in drawn
    assert "not known: its filter cannot be read here" in drawn


def test_a_pipe_gets_no_colours_and_no_escapes_of_strangers() -> None:
    plain = weigh_text.render(receipt(_NASTY), width=100)
    coloured = weigh_text.render(receipt(_NASTY), width=100, colour=True)

    assert "\x1b" not in plain
    assert "\x1b[36m" in coloured
    assert "\x1b[31m" not in coloured


def test_a_side_that_cannot_be_run_is_said_and_the_other_one_is_shown() -> None:
    sides = {"container": Side(samples={"first-warm": [0.01]}), "vm": Side(failed="no QEMU")}
    rows = weigh_rows.rows(sides, image_size=1, free=1, health_check=False)
    drawn = weigh_text.render(
        receipt(rows=rows, facts=[], cannot=weigh_rows.cannot(sides, emulated=False, rounds=1))
    )

    assert "it cannot be run so here: no QEMU" in drawn
    assert "The image as a vm: no QEMU." in drawn
    assert "fewer than three rounds" in drawn


class _Page(HTMLParser):
    """Collects tags and checks that they nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_from_elsewhere() -> None:
    page = weigh_page.render(receipt(_NASTY))
    parsed = _Page()
    parsed.feed(page)

    names = [tag for tag, _ in parsed.tags]
    assert parsed.open == []
    assert not {"script", "link", "img", "iframe", "object"} & set(names)
    assert not any({"src", "href", "onload"} & set(found) for _, found in parsed.tags)
    assert names.count("svg") == 10
    assert "url(" not in page and "@import" not in page
    assert "prefers-color-scheme: dark" in page
    assert "&lt;script&gt;" in page
    assert page.count("<em class=") == 2  # a time and a rate; not memory, disk, or how many fit


def test_bars_of_a_page_never_leave_their_track() -> None:
    page = weigh_page.render(receipt())

    widths = [float(found) for found in re.findall(r'class="bar" width="([0-9.]+)%"', page)]
    assert widths and max(widths) <= 100
    assert min(widths) > 0


def test_json_has_every_sample_and_every_reason() -> None:
    found = json.loads(document.compact(weigh_receipt.document(receipt()), ordered=True))

    rows = {row["Key"]: row for row in found["Figures"]}
    assert rows["first-warm"]["Sides"]["vm"]["Samples"] == [2.0, 2.4, 2.2]
    assert rows["first-warm"]["Ratio"] == pytest.approx(200)
    assert rows["send"]["Missing"]["vm"] == "the image has no nc"
    assert found["Emulated"] is True


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.000_25, Unit.SECONDS, "250 µs"), (0.0123, Unit.SECONDS, "12.3 ms"),
        (2.0, Unit.SECONDS, "2.00 s"), (3 << 20, Unit.BYTES, "3MiB"), (1024, Unit.RATE, "1KiB/s"),
        (17.0, Unit.COUNT, "17"),
    ],
)  # fmt: skip
def test_values_are_shown_in_units_that_people_read(value: float, unit: Unit, text: str) -> None:
    assert weigh_receipt.shown(value, unit) == text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--rounds", "0", "x"], "--rounds takes 1 to 1000, not 0"),
        (["--only", "both", "x"], "--only takes container or vm, not 'both'"),
        (["--format", "xml", "x"], "--format takes json here"),
        (["--html", "/nowhere/at/all.html", "x"], "there is no such directory"),
    ],
)
def test_a_wrong_wish_is_refused_before_anything_runs(
    tare: Tare, engine: FakeEngine, words: list[str], sentence: str
) -> None:
    said = tare("weigh", *words)

    assert said.code != 0
    assert sentence in said.err
    assert engine.asked == []
