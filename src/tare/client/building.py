"""How a build goes, told to people: lines, or on a terminal what runs now.

Not for: asking for it (cli.build).
"""

from __future__ import annotations

import os
import time

from tare.client import document, terminal
from tare.client.document import number, text
from tare.client.tables import shown, warn, write_out
from tare.errors import FailedError, InvalidError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.client.document import Json
    from tare.client.transport import Response

_MODES = ("auto", "plain", "tty", "quiet", "rawjson")
_LIVE_LINES = 6


class Progress:
    """Follows one build; `follow` answers what it made."""

    def __init__(self, mode: str, *, quiet: bool, explain: bool, check: bool) -> None:
        if mode not in _MODES:
            raise InvalidError(
                f"invalid progress value: {mode}", hint="possible: " + ", ".join(_MODES)
            )
        if mode == "auto":
            mode = os.environ.get("BUILDKIT_PROGRESS", "auto")
        if mode not in _MODES or mode == "auto":
            mode = "tty" if terminal.is_terminal(2) else "plain"
        self._mode = "quiet" if quiet else mode
        self._explain = explain
        self._check = check
        self._names: dict[int, str] = {}
        self._told: list[tuple[str, str, str]] = []
        self._warnings: list[Json] = []
        self._live: _Live | None = _Live() if self._mode == "tty" else None
        self._logs: list[str] = []

    def follow(self, response: Response) -> Json:
        """Tell what comes; FailedError when the build failed."""
        done: Json = None
        try:
            for line in response.lines():
                if self._mode == "rawjson":
                    write_out(line + b"\n", 2)
                entry = document.decode(line)
                if "error" in (entry if isinstance(entry, dict) else {}):
                    self._fail(entry)
                if isinstance(entry, dict) and "built" in entry:
                    done = entry["built"]
                    continue
                self._tell(entry)
        finally:
            if self._live is not None:
                self._live.clear()
        if done is None:
            raise FailedError("the daemon ended the build without a word of how it went")
        self._end(done)
        return done

    # --- what comes ---------------------------------------------------------------------------

    def _tell(self, entry: Json) -> None:
        if not isinstance(entry, dict):
            return
        if "step" in entry:
            self._step(entry)
        elif "log" in entry:
            self._log(entry["log"])
        elif "note" in entry:
            self._line(f"=> {text(entry, 'note')}")
        elif "warning" in entry:
            self._warnings.append(entry["warning"])

    def _step(self, entry: Json) -> None:
        step = document.field(entry, "step")
        identity, state = number(step, "id"), text(entry, "state")
        name = self._name(step)
        self._names[identity] = name
        why = "; ".join(document.strings(entry, "why"))
        seconds = document.field(entry, "seconds")
        took = seconds if isinstance(seconds, (int, float)) else 0.0
        if state == "running":
            self._logs = []
            if why and self._explain and self._mode == "plain":
                self._line(f"#{identity} {name}")
                self._line(f"#{identity} because {why}")
            else:
                self._line(f"#{identity} {name}", live=identity)
            return
        if state == "cached" and number(step, "number"):
            self._line(f"#{identity} CACHED {name}")
        elif state == "cached":
            self._line(f"#{identity} {name}")
        elif state == "done":
            self._line(f"#{identity} DONE {took:.1f}s", over=identity, name=name)
        elif state == "failed":
            self._line(f"#{identity} ERROR after {took:.1f}s", over=identity, name=name)
        if number(step, "number"):
            self._told.append((name, state, why))

    @staticmethod
    def _name(step: Json) -> str:
        stage = text(step, "stage")
        label = "" if stage.startswith("stage-") else f"{stage} "
        count = f"[{label}{number(step, 'number')}/{number(step, 'total')}]"
        return f"{count} {' '.join(shown(text(step, 'text')).split())}"

    def _log(self, log: Json) -> None:
        identity = number(log, "id")
        for line in text(log, "text").splitlines():
            self._logs = [*self._logs[-50:], line]
            self._line(f"#{identity} {shown(line)}", log=True)

    def _line(
        self, words: str, *, live: int = 0, over: int = 0, name: str = "", log: bool = False
    ) -> None:
        if self._mode in ("quiet", "rawjson"):
            return
        if self._live is None:
            warn(words)
        elif log:
            self._live.log(words)
        elif live:
            self._live.begin(live, words)
        elif over:
            self._live.end(over, f"{words}  {name}")
        else:
            self._live.above(words)

    # --- the end ------------------------------------------------------------------------------

    def _fail(self, entry: Json) -> None:
        if self._live is not None:
            self._live.clear()
        if self._mode in ("quiet", "tty"):
            for line in self._logs[-20:]:
                warn(f"  {shown(line)}")
        if excerpt := text(entry, "excerpt"):
            warn(shown(excerpt, "\n\t"))
        reason = text(entry, "reason") or text(entry, "error")
        raise FailedError(reason, hint=text(entry, "hint"))

    def _end(self, done: Json) -> None:
        if self._explain and not self._check:
            self._explain_steps(done)
        if self._mode in ("quiet", "rawjson"):
            return
        if self._warnings and not self._check:
            count = len(self._warnings)
            plural = "s" if count > 1 else ""
            warn(f"\n{count} warning{plural} found (tare build --check tells more):")
            for warning in self._warnings:
                where = f" (line {number(warning, 'line')})" if number(warning, "line") else ""
                warn(f" - {text(warning, 'rule')}: {shown(text(warning, 'text'))}{where}")
        if identity := text(done, "id"):
            names = ", ".join(document.strings(done, "names"))
            warn(f"built {identity}{' ' + names if names else ''}")

    def _explain_steps(self, done: Json) -> None:
        for name, state, why in self._told:
            reason = "nothing it depends on changed" if state == "cached" else why
            verb = "cached" if state == "cached" else "ran"
            if state == "done" and not why:
                verb, reason = "new", "it only changes the configuration"
            write_out(f"{verb:<7}{name}\n       {reason}\n".encode())
        write_out(f"{number(done, 'cached')} of {number(done, 'steps')} steps cached\n".encode())

    def checked(self) -> int:
        """What ``--check`` found; 1 if that was anything."""
        for warning in self._warnings:
            head = f"WARNING: {text(warning, 'rule')}: {shown(text(warning, 'text'))}"
            write_out(f"{head}\n{shown(text(warning, 'explanation'))}\n".encode())
            if excerpt := text(warning, "excerpt"):
                where = f"{text(warning, 'file')}:{number(warning, 'line')}"
                write_out(f"{shown(where)}\n{shown(excerpt, chr(10))}\n".encode())
            write_out(b"\n")
        count = len(self._warnings)
        if not count:
            write_out(b"Check complete, no warnings found.\n")
            return 0
        write_out(f"Check complete, {count} warning{'s' if count > 1 else ''} found.\n".encode())
        return 1


class _Live:
    """The last lines of a terminal, painted again and again: what runs, and what it says."""

    def __init__(self) -> None:
        self._running: dict[int, str] = {}
        self._since: dict[int, float] = {}
        self._log: list[str] = []
        self._painted = 0

    def begin(self, identity: int, words: str) -> None:
        """A step runs."""
        self._running[identity] = words
        self._since[identity] = time.monotonic()
        self._paint()

    def end(self, identity: int, words: str) -> None:
        """It is done."""
        self._running.pop(identity, None)
        self._log = []
        self.above(words)

    def log(self, words: str) -> None:
        """A program said something."""
        self._log = [*self._log[-_LIVE_LINES + 1 :], words]
        self._paint()

    def above(self, words: str) -> None:
        """Something that stays."""
        self.clear()
        write_out(f"{words[: self._columns()]}\n".encode(), 2)
        self._paint()

    def clear(self) -> None:
        """Take away what is painted."""
        if self._painted:
            write_out(b"\x1b[%dA\x1b[J" % self._painted, 2)
            self._painted = 0

    def _paint(self) -> None:
        self.clear()
        now = time.monotonic()
        lines = [
            f"{words} {now - self._since[identity]:.1f}s"
            for identity, words in self._running.items()
        ]
        lines += [f"  {line}" for line in self._log] if self._running else []
        columns = self._columns()
        write_out("".join(f"{line[:columns]}\n" for line in lines).encode(), 2)
        self._painted = len(lines)

    @staticmethod
    def _columns() -> int:
        return max((terminal.size(2)[1] or 80) - 1, 20)
