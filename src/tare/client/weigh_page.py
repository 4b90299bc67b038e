"""A receipt as one HTML page that needs nothing else: no script, no font, no address. Pure.

Names of images and commands are text of strangers: everything is escaped, and the page's own
policy forbids what an escape that was forgotten could start.
"""

from __future__ import annotations

from html import escape
from typing import Final

from tare.client.weigh_receipt import (
    EMULATED,
    NAMES,
    Figure,
    Receipt,
    Row,
    Unit,
    shown,
    times,
)

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1b2430; --soft: #5b6675; --paper: #f6f7f9; --card: #fff;
  --line: #d9dee5; --track: #eceff3; --container: #0b7285; --vm: #c2570c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #9aa6b5; --paper: #12161c;
  --card: #1a2028; --line: #2c3540; --track: #262e38; --container: #3bc9db; --vm: #ffa94d; } }
* { box-sizing: border-box; }
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif;
  margin: 0 auto; max-width: 78rem; padding: 2rem 1.25rem 3rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .7rem; }
h3 { font-size: .95rem; margin: 0; }
code { font-size: .92em; overflow-wrap: anywhere; }
.soft { color: var(--soft); } .small { font-size: .82rem; }
.key { display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; margin: 1rem 0; }
.key i { border-radius: 3px; display: inline-block; height: .8rem; margin-right: .45rem;
  vertical-align: -1px; width: .8rem; }
i.container { background: var(--container); } i.vm { background: var(--vm); }
.warn { background: var(--card); border: 1px solid var(--line); border-left: 4px solid var(--vm);
  border-radius: 6px; margin: 1rem 0; padding: .6rem .9rem; }
.grid { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: .9rem 1rem .8rem; }
.top { align-items: baseline; display: flex; gap: 1rem; justify-content: space-between; }
.ratio { font-variant-numeric: tabular-nums; font-weight: 600; white-space: nowrap; }
.side { align-items: baseline; display: flex; font-variant-numeric: tabular-nums; gap: .6rem;
  justify-content: space-between; margin-top: .55rem; }
.side b { font-weight: 600; } svg { display: block; height: 14px; margin-top: .15rem; width: 100%; }
.track { fill: var(--track); } .container rect.bar { fill: var(--container); }
.vm rect.bar { fill: var(--vm); } .dot { fill: var(--ink); opacity: .5; }
.card p { margin: .6rem 0 0; }
.wide { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: .5rem .9rem; text-align: left;
  vertical-align: top; } tbody tr:last-child > * { border-bottom: 0; } tbody th { font-weight: 600;
  width: 15rem; }
@media print { body { max-width: none; } .card { break-inside: avoid; } }
"""


def render(receipt: Receipt) -> str:
    """The whole page."""
    command = " ".join(receipt.command)
    said = f" <span class=soft>running</span> <code>{_e(command)}</code>" if command else ""
    title = f"{receipt.image}, weighed"
    cards = "".join(_card(row, receipt) for row in receipt.rows if not row.empty)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_e(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{_e(receipt.image)}{said}</h1>\n"
        f'<div class="soft">{_headline(receipt)}</div>\n{_key(receipt)}\n{_warning(receipt)}'
        f'<div class="grid">\n{cards}</div>\n'
        f"{_facts(receipt)}{_missing(receipt)}{_cannot(receipt)}</body>\n</html>\n"
    )


def _e(text: str) -> str:
    return escape(text.encode("utf-8", "replace").decode())


def _headline(receipt: Receipt) -> str:
    rounds = "1 round" if receipt.rounds == 1 else f"{receipt.rounds} rounds"
    host = ", ".join(f"{name} {value}" for name, value in receipt.host.items())
    return _e(f"{receipt.when} · {rounds} · tare {receipt.engine} · {host}")


def _key(receipt: Receipt) -> str:
    parts = [f"<span><i class={side}></i>{NAMES[side]}</span>" for side in receipt.sides]
    words = "bars: medians. Marks: the single samples. 12 x: the machine beside the container"
    return f'<div class="key">{"".join(parts)}<span class="soft">{words}</span></div>'


def _warning(receipt: Receipt) -> str:
    if not receipt.emulated:
        return ""
    return (
        '<div class="warn"><b>Without KVM.</b> This host emulates the machine\'s processor. Times'
        " and rates of the virtual machine are for comparison only and are marked"
        f" <em>{EMULATED}</em>; memory, disk and reach are real.</div>\n"
    )


def _card(row: Row, receipt: Receipt) -> str:
    ratio = ""
    if row.ratio is not None:
        ratio = f'<span class="ratio" title="machine / container">{times(row.ratio)}</span>'
    best = ' <span class="soft small">more is better</span>' if row.more_is_better else ""
    top = max(figure.most for figure in row.figures.values())
    sides = "".join(_side(row, side, top, receipt) for side in receipt.sides)
    return (
        f'<section class="card"><div class="top"><h3>{_e(row.title)}{best}</h3>{ratio}</div>'
        f'{sides}<p class="soft small">{_e(row.how)}</p></section>\n'
    )


def _side(row: Row, side: str, top: float, receipt: Receipt) -> str:
    figure = row.figures.get(side)
    if figure is None:
        why = _e(row.missing.get(side, "not measured"))
        return f'<div class="side"><span>{NAMES[side]}</span><span class="soft">{why}</span></div>'
    marked = side == "vm" and receipt.emulated and row.unit in (Unit.SECONDS, Unit.RATE)
    mark = f' <em class="soft small">{EMULATED}</em>' if marked else ""
    spread = ""
    if figure.least != figure.most:
        words = f"{shown(figure.least, row.unit)} to {shown(figure.most, row.unit)}"
        spread = f' <span class="soft small">{_e(words)}</span>'
    return (
        f'<div class="side"><span>{NAMES[side]}{mark}</span>'
        f"<span><b>{_e(shown(figure.median, row.unit))}</b>{spread}</span></div>"
        f"{_bar(side, figure, top, _e(f'{NAMES[side]}: {shown(figure.median, row.unit)}'))}"
    )


def _bar(side: str, figure: Figure, top: float, label: str) -> str:
    def at(value: float) -> float:
        return value / top * 100 if top > 0 else 0.0

    width = max(at(figure.median), 0.4 if figure.median > 0 else 0.0)
    dots = "".join(
        f'<rect class="dot" x="{min(at(value), 99.5):.2f}%" y="1" width="2" height="12"/>'
        for value in figure.samples
        if len(figure.samples) > 1
    )
    return (
        f'<svg class="{side}" role="img" aria-label="{label}">'
        '<rect class="track" width="100%" y="2" height="10" rx="3"/>'
        f'<rect class="bar" width="{width:.2f}%" y="2" height="10" rx="3"/>{dots}</svg>'
    )


def _facts(receipt: Receipt) -> str:
    if not receipt.facts:
        return ""
    heads = "".join(f"<th>{NAMES[side]}</th>" for side in receipt.sides)
    rows = "".join(
        f"<tr><th>{_e(fact.title)}</th>"
        + "".join(f"<td>{_e(fact.said.get(side, ''))}</td>" for side in receipt.sides)
        + "</tr>"
        for fact in receipt.facts
    )
    return (
        "<h2>What the workload can reach of this host</h2>\n"
        f'<div class="wide"><table><thead><tr><th></th>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>\n"
    )


def _missing(receipt: Receipt) -> str:
    empty = [row for row in receipt.rows if row.empty]
    if not empty:
        return ""
    rows = "".join(
        f"<tr><th>{_e(row.title)}</th>"
        f"<td>{_e('; '.join(dict.fromkeys(row.missing.values())))}</td></tr>"
        for row in empty
    )
    return f'<h2>Not measured</h2>\n<div class="wide"><table><tbody>{rows}</tbody></table></div>\n'


def _cannot(receipt: Receipt) -> str:
    if not receipt.cannot:
        return ""
    items = "".join(f"<li>{_e(sentence)}</li>" for sentence in receipt.cannot)
    return f"<h2>What this host cannot show</h2>\n<ul>{items}</ul>\n"
