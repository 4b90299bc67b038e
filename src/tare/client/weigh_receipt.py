"""What `tare weigh` found: figures side by side, each with how it was measured. Pure values.

Not for: measuring (client.weigh), or how it looks (client.weigh_text, client.weigh_page).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median
from typing import TYPE_CHECKING, Final

from tare.client import units

if TYPE_CHECKING:
    from tare.client.document import Json

SIDES: Final = ("container", "vm")
NAMES: Final[Mapping[str, str]] = {"container": "Container", "vm": "Virtual machine"}
EMULATED: Final = "emulated"


class Unit(StrEnum):
    """What a figure counts."""

    SECONDS = "s"
    BYTES = "B"
    RATE = "B/s"
    COUNT = ""


@dataclass(frozen=True, slots=True)
class Figure:
    """The samples of one thing on one side, in the order they were taken; at least one."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return median(self.samples)

    @property
    def least(self) -> float:
        """The smallest one."""
        return min(self.samples)

    @property
    def most(self) -> float:
        """The largest one."""
        return max(self.samples)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One thing that was measured, or that could not be: then *missing* says why, by side."""

    key: str
    title: str
    unit: Unit
    how: str
    more_is_better: bool = False
    figures: Mapping[str, Figure] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """The machine's median divided by the container's; None where one is missing or 0."""
        both = [self.figures[side].median for side in SIDES if side in self.figures]
        return both[1] / both[0] if len(both) == 2 and both[0] > 0 else None

    @property
    def empty(self) -> bool:
        """Whether nothing was measured on any side."""
        return not self.figures


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """Something that is said and not measured repeatedly, by side."""

    title: str
    said: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """Everything that a weighing found."""

    image: str
    image_id: str
    command: Sequence[str]
    rounds: int
    when: str
    engine: str
    host: Mapping[str, str]
    sides: Sequence[str]
    emulated: bool
    rows: Sequence[Row]
    facts: Sequence[Fact]
    cannot: Sequence[str]


def shown(value: float, unit: Unit) -> str:
    """A value for people."""
    match unit:
        case Unit.SECONDS:
            if value < 0.000_999_5:
                return f"{value * 1e6:.0f} µs"
            return f"{value * 1e3:.3g} ms" if value < 0.999_5 else f"{value:.2f} s"
        case Unit.BYTES:
            return units.binary_size(value)
        case Unit.RATE:
            return f"{units.binary_size(value)}/s"
        case Unit.COUNT:
            return f"{value:.0f}"


def times(ratio: float) -> str:
    """A ratio for people: ``12 x``, or ``1/12``."""
    if 0 < ratio < 0.95:
        return f"1/{times(1 / ratio).removesuffix(' x')}"
    return f"{ratio:.3g} x" if ratio < 100 else f"{ratio:.0f} x"


def document(receipt: Receipt) -> Json:
    """The receipt as JSON; seconds, bytes, bytes a second and counts."""
    return {
        "Image": receipt.image,
        "ImageId": receipt.image_id,
        "Command": list(receipt.command),
        "Rounds": receipt.rounds,
        "When": receipt.when,
        "Engine": receipt.engine,
        "Host": dict(receipt.host),
        "Emulated": receipt.emulated,
        "Figures": [_row(row) for row in receipt.rows],
        "Facts": [{"Title": fact.title, "Said": dict(fact.said)} for fact in receipt.facts],
        "CannotShow": list(receipt.cannot),
    }


def _row(row: Row) -> Json:
    return {
        "Key": row.key,
        "Title": row.title,
        "Unit": str(row.unit),
        "How": row.how,
        "MoreIsBetter": row.more_is_better,
        "Ratio": row.ratio,
        "Sides": {side: _figure(figure) for side, figure in row.figures.items()},
        "Missing": dict(row.missing),
    }


def _figure(figure: Figure) -> Json:
    return {
        "Median": figure.median,
        "Least": figure.least,
        "Most": figure.most,
        "Samples": list(figure.samples),
    }
