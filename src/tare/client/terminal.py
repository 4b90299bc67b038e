"""The caller's terminal: raw mode, its size, the keys that detach, and signals.

Uses _signal, the C half of signal: the other half costs an import of enum. Not for containers'
terminals, which the daemon keeps.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # typeshed knows only signal
import os

from tare.errors import InvalidError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

SIGNALS: dict[str, int] = {
    name[3:]: number
    for name, number in vars(_signal).items()
    if name.startswith("SIG") and not name.startswith("SIG_") and isinstance(number, int)
}
# Those a person or a supervisor sends; the rest are faults, job control of the kernel's, or ours.
_PROXIED = (
    "HUP",
    "INT",
    "QUIT",
    "TERM",
    "USR1",
    "USR2",
    "CONT",
    "TSTP",
    "ALRM",
    "VTALRM",
    "PWR",
    "IO",
)
_KEYS = {"@": 0, "[": 27, "\\": 28, "]": 29, "^": 30, "_": 31}
DETACH_KEYS = "ctrl-p,ctrl-q"


def on_signal(name: str, action: Callable[[], None]) -> None:
    """Run *action* (between two bytecodes of the main thread) whenever the signal comes."""
    _signal.signal(SIGNALS[name], lambda _number, _frame: action())


def proxy_signals(send: Callable[[str], None]) -> None:
    """Give every signal that people send to *send*, by its name."""
    for name in _PROXIED:

        def forward(_number: int, _frame: object, name: str = name) -> None:
            send(name)

        _signal.signal(SIGNALS[name], forward)


def is_terminal(descriptor: int) -> bool:
    """Whether it is a terminal; False for a closed descriptor."""
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


def size(descriptor: int = 1) -> tuple[int, int]:
    """Rows and columns; (0, 0) when it is no terminal."""
    try:
        columns, rows = os.get_terminal_size(descriptor)
    except OSError:
        return 0, 0
    return rows, columns


class Raw:
    """The terminal gives every key at once and echoes nothing, while this is held."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __enter__(self) -> Raw:
        import termios

        self._before = before = termios.tcgetattr(self._descriptor)
        raw = [*before[:6], list(before[6])]
        raw[0] &= ~(
            termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP
            | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON
        )  # fmt: skip
        raw[1] &= ~termios.OPOST
        raw[2] = raw[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
        raw[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        raw[6][termios.VMIN], raw[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self._descriptor, termios.TCSANOW, raw)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        import termios

        termios.tcsetattr(self._descriptor, termios.TCSANOW, self._before)


def keys(text: str) -> bytes:
    """The bytes of a key sequence like ``ctrl-p,ctrl-q`` or ``a,b``; InvalidError."""
    out = bytearray()
    for key in text.split(","):
        control = key.removeprefix("ctrl-")
        if len(key) == 1 and key.isascii():
            out.append(ord(key))
        elif len(control) == 1 and key.startswith("ctrl-") and "a" <= control <= "z":
            out.append(ord(control) - ord("a") + 1)
        elif key.startswith("ctrl-") and control in _KEYS:
            out.append(_KEYS[control])
        else:
            raise InvalidError(
                f"invalid detach keys ({text}): unknown character {key!r}",
                hint="Write single characters or ctrl-X, with commas: ctrl-p,ctrl-q.",
            )
    return bytes(out)


class Escape:
    """Watches input for the detach keys; what may be their beginning is held back."""

    __slots__ = ("_held", "_keys", "found")

    def __init__(self, sequence: bytes) -> None:
        self._keys = sequence
        self._held = b""
        self.found = False

    def feed(self, data: bytes) -> bytes:
        """The part of the input that may go on; ``found`` once the keys were all pressed."""
        if not self._keys:
            return data
        data = self._held + data
        self._held = b""
        at = data.find(self._keys)
        if at >= 0:
            self.found = True
            return data[:at]
        for length in range(min(len(self._keys) - 1, len(data)), 0, -1):
            if data.endswith(self._keys[:length]):
                self._held = data[-length:]
                return data[:-length]
        return data

    def held(self) -> bool:
        """Whether the last keys may be the beginning of the sequence."""
        return bool(self._held)
