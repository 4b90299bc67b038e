"""What a terminal is shown: safe text and aligned columns.

Names, labels and messages come from strangers: nothing printed for people may hold what a
terminal obeys (attack A19). Not for --format json, which is escaped by JSON itself, nor for the
raw output of containers.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def shown(text: str, keep: str = "") -> str:
    """*text* with controls, bidi marks and lone surrogates as escapes; *keep* stays."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _escaped(c) for c in text)


def _escaped(letter: str) -> str:
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"  # a byte that was not UTF-8 (surrogateescape)
    return (
        f"\\x{code:02x}"
        if code < 0x100
        else f"\\u{code:04x}"
        if code < 0x10000
        else f"\\U{code:08x}"
    )


def write_out(data: bytes, descriptor: int = 1) -> None:
    """Write all of *data*."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def say(text: str) -> None:
    """Print lines for people on standard output, escaped, with a final newline."""
    write_out((shown(text, "\n\t") + "\n").encode("utf-8", "replace"))


def warn(text: str) -> None:
    """Print lines for people on standard error, escaped, with a final newline."""
    write_out((shown(text, "\n\t") + "\n").encode("utf-8", "replace"), 2)


def width(text: str) -> int:
    """How many columns *text* takes; wide East Asian characters take two."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns as Docker's: three blanks between, ten wide at least, the last one free."""
    cells = [[shown(cell) for cell in row] for row in rows]
    columns = max((len(row) for row in cells), default=0)
    widths = [
        max(max(width(row[at]) if at < len(row) - 1 else 0 for row in cells) + 3, 10)
        for at in range(columns)
    ]
    return "".join(
        "".join(cell + " " * (widths[at] - width(cell)) for at, cell in enumerate(row[:-1]))
        + row[-1]
        + "\n"
        for row in cells
        if row
    )


def render(
    template: str,
    default: Sequence[str],
    headers: Mapping[str, str],
    rows: Sequence[Mapping[str, str]],
) -> str:
    """Rows by ``--format``: "" or ``table`` (the *default* columns), ``table TEMPLATE``,
    ``json`` (an object a line) or a Go template for each row.
    """
    if template in ("", "table"):
        head = [headers[name] for name in default]
        return aligned([head, *([row[name] for name in default] for row in rows)])
    if template in ("json", "{{json .}}"):
        from tare.client.document import compact

        return "".join(
            compact({k: v if v or k != "Platform" else None for k, v in row.items()}, ordered=True)
            + "\n"
            for row in rows
        )
    from tare.client.templates import Template

    as_table = template.startswith(("table ", "table\\t"))
    text = template[5:].lstrip() if as_table else template
    text = text.replace("\\t", "\t").replace("\\n", "\n")
    compiled = Template(text)
    lines = [compiled.render(dict(row)) for row in rows]
    if as_table:
        head_line = compiled.render({name: headers.get(name, name) for name in headers})
        return aligned([line.split("\t") for line in (head_line, *lines)])
    return "".join(shown(line, "\n\t") + "\n" for line in lines)
