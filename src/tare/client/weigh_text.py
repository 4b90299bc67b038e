"""A receipt for a terminal: a table with bars; without colours where it is not one. Pure.

Not for: what was measured (client.weigh_receipt).
"""

from __future__ import annotations

import textwrap
from typing import Final

from tare.client import tables
from tare.client.weigh_receipt import EMULATED, NAMES, Figure, Receipt, Row, shown, times

_COLOURS: Final = {"container": "\033[36m", "vm": "\033[33m"}
_BOLD, _DIM, _PLAIN = "\033[1m", "\033[2m", "\033[0m"
_EIGHTHS: Final = " ▏▎▍▌▋▊▉"
_LEAST_BAR, _MOST_BAR = 8, 40


def render(receipt: Receipt, *, width: int = 80, colour: bool = False) -> str:
    """The whole receipt, at most *width* columns where words allow."""
    paint = _Paint(colour)
    lines = [paint.bold(f"tare weigh {tables.shown(receipt.image)}{_command(receipt)}")]
    lines += _wrapped(_headline(receipt), width)
    lines.append("")
    bar = max(_LEAST_BAR, min(_MOST_BAR, width - 58))
    for row in receipt.rows:
        if not row.empty:
            lines += _row(row, receipt, bar, paint)
    if receipt.facts:
        lines += ["", paint.bold("What the workload can reach of this host")]
        for fact in receipt.facts:
            lines.append(f"  {fact.title}")
            for side, said in fact.said.items():
                lines += _wrapped(said, width, f"    {NAMES[side] + ':':<17}", 21)
    lines += _missing(receipt, width, paint)
    lines += ["", paint.bold("How it was measured")]
    for row in receipt.rows:
        if not row.empty:
            lines += _wrapped(row.how, width, f"  {row.title}: ", 4)
    if receipt.cannot:
        lines += ["", paint.bold("What this host cannot show")]
        for sentence in receipt.cannot:
            lines += _wrapped(sentence, width, "  - ", 4)
    return "\n".join(lines) + "\n"


class _Paint:
    """Colours, or none."""

    def __init__(self, on: bool) -> None:
        self._on = on

    def bold(self, text: str) -> str:
        return f"{_BOLD}{text}{_PLAIN}" if self._on else text

    def dim(self, text: str) -> str:
        return f"{_DIM}{text}{_PLAIN}" if self._on else text

    def bar(self, side: str, part: float, width: int) -> str:
        """A bar of *width* columns, *part* of it filled: to an eighth of a column in colour."""
        filled = max(min(part, 1.0), 0.0) * width
        if not self._on:
            whole = min(max(int(filled + 0.5), 1 if part > 0 else 0), width)
            return "#" * whole + "." * (width - whole)
        whole, rest = int(filled), int((filled - int(filled)) * 8)
        if part > 0 and not whole and not rest:
            rest = 1
        drawn = ("█" * whole + (_EIGHTHS[rest] if rest else "")).ljust(width)
        return f"{_COLOURS[side]}{drawn}{_PLAIN}"


def _command(receipt: Receipt) -> str:
    words = " ".join(tables.shown(word) for word in receipt.command)
    return f" -- {words}" if words else ""


def _headline(receipt: Receipt) -> str:
    facts = ", ".join(f"{name} {tables.shown(value)}" for name, value in receipt.host.items())
    rounds = "1 round" if receipt.rounds == 1 else f"{receipt.rounds} rounds"
    return f"{rounds}, median (least to most). {facts}."


def _row(row: Row, receipt: Receipt, bar: int, paint: _Paint) -> list[str]:
    best = " (more is better)" if row.more_is_better else ""
    ratio = f"   {times(row.ratio)}" if row.ratio is not None else ""
    lines = [f"{paint.bold(row.title)}{paint.dim(best)}{ratio}"]
    top = max(figure.median for figure in row.figures.values())
    for side in receipt.sides:
        name = f"  {NAMES[side]:<15} "
        figure = row.figures.get(side)
        if figure is None:
            lines.append(f"{name} - {row.missing.get(side, 'not measured')}")
            continue
        part = figure.median / top if top > 0 else 0.0
        mark = f" {EMULATED}" if side == "vm" and receipt.emulated and _timed(row) else ""
        said = f"{shown(figure.median, row.unit):>10}{paint.dim(_spread(row, figure) + mark)}"
        lines.append(f"{name} {paint.bar(side, part, bar)} {said}")
    return lines


def _timed(row: Row) -> bool:
    return row.unit in ("s", "B/s")


def _spread(row: Row, figure: Figure) -> str:
    if len(figure.samples) < 2 or figure.least == figure.most:
        return ""
    return f" ({shown(figure.least, row.unit)} to {shown(figure.most, row.unit)})"


def _missing(receipt: Receipt, width: int, paint: _Paint) -> list[str]:
    empty = [row for row in receipt.rows if row.empty]
    if not empty:
        return []
    lines = ["", paint.bold("Not measured")]
    for row in empty:
        why = "; ".join(dict.fromkeys(row.missing.values())) or "nothing was asked for"
        lines += _wrapped(why, width, f"  {row.title}: ", 4)
    return lines


def _wrapped(text: str, width: int, first: str = "", indent: int = 0) -> list[str]:
    return textwrap.wrap(
        tables.shown(text),
        max(width, 40),
        initial_indent=first,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [first]
