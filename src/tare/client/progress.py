"""A stream of JSON progress as people know it: bars on a terminal, plain lines elsewhere.

One line of the terminal for each layer, rewritten as it goes on, as Docker's client draws it. Not
for: archives' progress, which has no layers (``cli.archives``).
"""

from __future__ import annotations

from tare.client import document, terminal, units
from tare.client.document import number, text
from tare.client.tables import shown, write_out
from tare.errors import FailedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.client.document import Json
    from tare.client.transport import Response

_WIDE = 110  # columns from which there is room for a bar
_BAR = 50


def display(response: Response, *, descriptor: int = 1, quiet: bool = False) -> list[Json]:
    """Show the stream on *descriptor*; the ``aux`` values in it. FailedError when it tells one."""
    screen = _Screen(descriptor)
    aux: list[Json] = []
    for line in response.lines():
        entry = document.decode(line)
        if failure := text(entry, "errorDetail", "message") or text(entry, "error"):
            raise FailedError(failure, hint=text(entry, "hint"))
        value = document.field(entry, "aux")
        if value is not None:
            aux.append(value)
        elif not quiet:
            screen.show(entry)
    return aux


class _Screen:
    """Where the lines of the layers stand."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._terminal = terminal.is_terminal(descriptor)
        self._lines: dict[str, int] = {}

    def show(self, entry: Json) -> None:
        """Print one message, in its layer's line if it has one."""
        identity, status = text(entry, "id"), text(entry, "status") or text(entry, "stream")
        if document.field(entry, "progressDetail") is None:
            self._lines.clear()  # what follows stands below
            self._write(_line(identity, status.rstrip("\n")) + "\n")
            return
        columns = terminal.size(self._descriptor)[1] or 80
        bar = progress(number(entry, "progressDetail", "current"),
                       number(entry, "progressDetail", "total"), columns)  # fmt: skip
        if not self._terminal:
            if not bar:
                self._write(_line(identity, status) + "\n")
            return
        out = ""
        at = self._lines.get(identity)
        if at is None:
            at = self._lines[identity] = len(self._lines)
            out = "\n"
        up = len(self._lines) - at
        words = _line(identity, f"{status} {bar}".rstrip())[: columns - 1]
        self._write(f"{out}\x1b[{up}A\x1b[2K\r{words}\r\x1b[{up}B")

    def _write(self, content: str) -> None:
        write_out(content.encode("utf-8", "replace"), self._descriptor)


def _line(identity: str, status: str) -> str:
    """Registries choose both: nothing in them moves the cursor."""
    return shown(f"{identity}: {status}" if identity else status)


def progress(current: int, total: int, columns: int) -> str:
    """``[==>   ]  1.2MB/3.4MB``; "" when nothing is known."""
    if current <= 0 and total <= 0:
        return ""
    if total <= 0:
        return f"{units.human_size(current):>8}"
    numbers = f"{units.human_size(current):>8}/{units.human_size(total)}"
    if current > total:
        numbers = f"{units.human_size(current):>8}"
    if columns <= _WIDE:
        return numbers
    done = min(int(current / total * 100) // 2, _BAR)
    return f"[{'=' * done + '>':<{_BAR + 1}}] {numbers}"
