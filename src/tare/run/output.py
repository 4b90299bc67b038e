"""Moving a program's output: from its FIFOs or terminal to its log and to who is attached.

The FIFOs have names, and the program holds its ends open for reading and writing: when keeper
and daemon are both killed, nothing is lost and no write fails; the next keeper opens them again.
An attached reader that does not keep up holds the program back, as a pipe would; the log never
does.

Not for: who is attached (`run.keeper`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
import struct
import termios
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from tare.run.logs import LogWriter

CHUNK: Final = 1 << 16
# More than a pipe of 1 MiB holds, one write a page; a stranger may hold an end and never stop.
_LAST_READS: Final = 1024

Watch = Callable[[int, int, Callable[[int], None]], None]
"""Register a descriptor, an epoll mask and what to call with the events; mask 0 unregisters."""


class Tee:
    """One attached reader of one stream: a pipe's write end, owned here, never blocking."""

    __slots__ = ("backlog", "descriptor")

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self.descriptor = descriptor
        self.backlog: deque[bytes] = deque()

    def write(self, data: bytes) -> bool:
        """Pass on *data*; False when the reader is gone."""
        if self.backlog:
            self.backlog.append(data)
            return True
        try:
            written = os.write(self.descriptor, data)
        except BlockingIOError:
            written = 0
        except OSError:
            return False
        if written < len(data):
            self.backlog.append(data[written:])
        return True

    def drain(self) -> bool:
        """Write what is held back; False when the reader is gone."""
        while self.backlog:
            data = self.backlog[0]
            try:
                written = os.write(self.descriptor, data)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if written < len(data):
                self.backlog[0] = data[written:]
                return True
            self.backlog.popleft()
        return True


def _waiting(pipe: int) -> int:
    """How many bytes wait in *pipe* (FIONREAD, pipe(7))."""
    (count,) = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0\0\0\0"))
    return int(count)


class Stream:
    """One stream of one program: the reading end, the log, the tees."""

    def __init__(self, number: int, source: int, log: LogWriter | None, watch: Watch) -> None:
        self.number, self.source, self._log, self._watch = number, source, log, watch
        self.tees: list[Tee] = []
        self._is_pipe = stat.S_ISFIFO(os.fstat(source).st_mode)
        self._paused = False
        self.ended: Callable[[], None] | None = None
        os.set_blocking(source, False)
        watch(source, select.EPOLLIN, self._ready)

    def attach(self, descriptor: int) -> None:
        """Copy everything from now on to *descriptor*, which becomes ours."""
        if self.source < 0:
            os.close(descriptor)
            return
        self.tees.append(Tee(descriptor))

    def _ready(self, events: int) -> None:
        if events & select.EPOLLIN:
            self.pump()
        elif events & (select.EPOLLHUP | select.EPOLLERR):
            self.close()

    def pump(self) -> bool:
        """Move one chunk; False when there is nothing to read now."""
        if self._log is not None and self._is_pipe and (waiting := _waiting(self.source)):
            count = min(waiting, CHUNK)
            moved = self._log.move(self.number, self.source, count, time.time_ns())
            if moved:
                if self.tees:
                    self._pass_on(self._log.tail(moved))
                return True
        try:
            data = os.read(self.source, CHUNK)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno == errno.EIO:  # the terminal's last slave is closed
                self.close()
                return False
            raise
        if not data:
            self.close()
            return False
        if self._log is not None:
            self._log.write(self.number, data, time.time_ns())
        self._pass_on(data)
        return True

    def _pass_on(self, data: bytes) -> None:
        for tee in list(self.tees):
            if not tee.write(data):
                self._drop(tee)
            elif tee.backlog:
                self._hold(tee)

    def _hold(self, tee: Tee) -> None:
        if not self._paused:
            self._paused = True
            self._watch(self.source, 0, self._ready)
        self._watch(tee.descriptor, select.EPOLLOUT, lambda _: self._drain(tee))

    def _drain(self, tee: Tee) -> None:
        alive = tee.drain()
        if alive and tee.backlog:
            return
        self._watch(tee.descriptor, 0, self._ready)
        if not alive:
            self._drop(tee)
        if self._paused and not any(t.backlog for t in self.tees):
            self._paused = False
            if self.source >= 0:
                self._watch(self.source, select.EPOLLIN, self._ready)
            else:
                self._release()

    def _drop(self, tee: Tee) -> None:
        if tee in self.tees:
            self.tees.remove(tee)
            if tee.backlog:
                self._watch(tee.descriptor, 0, self._ready)
            os.close(tee.descriptor)
        if self._paused and not any(t.backlog for t in self.tees):
            self._paused = False
            if self.source >= 0:
                self._watch(self.source, select.EPOLLIN, self._ready)

    def finish(self) -> None:
        """The program has ended: move what is left, then close."""
        for _ in range(_LAST_READS):
            if self.source < 0 or not self.pump():
                break
        self.close()

    def close(self) -> None:
        """Close the source; tees close when what they hold back is written."""
        if self.source < 0:
            return
        self._watch(self.source, 0, self._ready)
        os.close(self.source)
        self.source = -1
        self._release()
        if self.ended is not None:
            self.ended()

    def _release(self) -> None:
        for tee in [t for t in self.tees if not t.backlog]:
            self.tees.remove(tee)
            os.close(tee.descriptor)
