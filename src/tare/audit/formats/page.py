"""A report as one HTML page that needs nothing else: no script, no font, no address. Pure.

What containers and images are called is text of strangers: everything is escaped, and the page's
own policy forbids what an escape that was forgotten could start.
"""

from __future__ import annotations

from datetime import UTC, datetime
from html import escape
from typing import Final

from tare.audit import catalogue
from tare.audit.finding import Item, Level, Report, Result, Standing
from tare.audit.formats.tally import tally

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem .2rem 0; text-align: left; }
details { border-top: 1px solid var(--line); padding: .35rem 0; }
summary { cursor: pointer; display: flex; gap: .7rem; }
.id { min-width: 3.5rem; font-variant-numeric: tabular-nums; opacity: .7; }
.l { border-radius: .25rem; color: #fff; font-size: .75rem; font-weight: 600; min-width: 3.2rem;
  padding: .1rem .3rem; text-align: center; align-self: center; }
.PASS { background: #2a7d3f; } .NOTE { background: #6b6b6b; } .INFO { background: #2563a8; }
.WARN { background: #a85d00; } .FAIL { background: #b3202c; } .off { opacity: .6; }
ul { margin: .4rem 0 .4rem 4.2rem; padding: 0; list-style: none; } li { margin: .25rem 0; }
p { margin: .3rem 0 .3rem 4.2rem; } code { overflow-wrap: anywhere; opacity: .8; }
"""


def render(report: Report) -> str:
    """The whole page."""
    sums = tally(report)
    moment = datetime.fromtimestamp(report.start_ns // 10**9, UTC).strftime("%Y-%m-%d %H:%M UTC")
    title = f"tare audit of {report.host}"
    rows = [
        ("Benchmark", f"CIS Docker Benchmark {report.benchmark}"),
        ("When", moment),
        ("Engine", f"tare {report.engine}"),
        ("Checks", str(sums.checks)),
        ("Score", str(sums.score)),
    ]
    rows += [
        (name, f"{ok} of {all_} scored checks pass") for name, (ok, all_) in sums.levels.items()
    ]
    rows += [
        (str(level), str(sums.items[level])) for level in reversed(Level) if level in sums.items
    ]
    table = "".join(f"<tr><th>{_e(a)}</th><td>{_e(b)}</td></tr>" for a, b in rows)
    remarks = "".join(f"<p>{_e(remark)}</p>" for remark in report.remarks)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{_e(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{_e(title)}</h1>\n<table>{table}</table>\n{remarks}\n{_sections(report)}</body>\n</html>\n"
    )


def _e(text: str) -> str:
    return escape(text.encode("utf-8", "replace").decode())


def _sections(report: Report) -> str:
    parts = []
    current = ""
    for result in report.results:
        name = catalogue.section(result.id)
        if name != current:
            current = name
            parts.append(f"<h2>{_e(name)} {_e(catalogue.section_title(name))}</h2>\n")
        parts.append(_result(result))
    return "".join(parts)


def _result(result: Result) -> str:
    check = catalogue.checks()[result.check]
    level = result.level
    opened = " open" if level.rank >= Level.WARN.rank else ""
    items = "".join(_item(item) for item in result.items)
    more = (
        f"<p><b>Why</b> {_e(check.why)}</p><p><b>What to do</b> {_e(check.remedy)}</p>"
        if level is not Level.PASS
        else ""
    )
    off = "" if result.applicable else " off"
    return (
        f'<details{opened}><summary><span class="l {level}">{level}</span>'
        f'<span class="id">{_e(result.id)}</span><span class="t{off}">{_e(check.title)}</span>'
        f"</summary><ul>{items}</ul>{more}</details>\n"
    )


def _item(item: Item) -> str:
    subject = f"<b>{_e(item.subject)}</b>: " if item.subject else ""
    line = f" (line {item.line})" if item.line else ""
    evidence = "".join(f"<br><code>{_e(e.where)}: {_e(e.value)}</code>" for e in item.evidence)
    standing = ""
    if item.standing is not Standing.COUNTS:
        standing = f" <i>{_e(str(item.standing))}{': ' + _e(item.note) if item.note else ''}</i>"
    off = "" if item.standing is Standing.COUNTS else ' class="off"'
    return (
        f'<li{off}><span class="l {item.level}">{item.level}</span> '
        f"{subject}{_e(item.seen)}{line}{standing}{evidence}</li>"
    )
