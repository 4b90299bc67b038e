"""The relay: first process of a machine's sandbox, and all of the host that hears the guest.

It starts QEMU, passes its program's streams between the guest and its own standard streams, and
ends with the program's exit code. So the keeper sees a machine as it sees a container: one first
process with a log, a terminal, limits and an exit. ``relay exec`` runs as an exec'd program of
the sandbox: it asks the first relay for a program in the guest, and is that program's streams
and exit code. Both speak `tare.vm.protocol`; the first relay only renumbers the channels.

What the guest says is read here, without privilege, and nowhere else on the host.

::

    /machine/door      socket of the daemon: gives the network links (descriptors), and is told
                       how the start went
    /machine/plan      JSON: QEMU's arguments, the frames to begin with (base64)
    /run/control       socket for execs; one connection, one program

Not for: deciding anything (vm.machine), or for more than the standard library gives: it is in
memory once for each machine.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import socket
import termios
import time
from binascii import a2b_base64
from collections.abc import Callable
from typing import Final, NoReturn

from tare.vm import protocol
from tare.vm.protocol import Decoder, Frame, ProtocolError, ToGuest, ToHost, Windows

DOOR: Final = "/machine/door"
STARTED: Final = b"started"
PLAN: Final = "/machine/plan"
CONTROL: Final = "/run/control"
KILL: Final = signal.SIGRTMAX
"""Asks for what SIGKILL does to a program: what it wrote is on disk when the relay ends."""
FREEZE: Final = signal.SIGRTMAX - 1
"""SIGSTOP for the program in the guest."""

CANNOT: Final = 125
_BOOT_PATIENCE: Final = 180.0
_KILL_PATIENCE: Final = 5.0
_TAIL: Final = 8192
_MOST_LINKS: Final = 16
_MOST_UNSERVED: Final = 256
_MOST_WAITING: Final = 1 << 20
_NOT_PASSED_ON: Final = frozenset(
    (signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGWINCH, signal.SIGPIPE, KILL, FREEZE)
)


class Loop:
    """poll(2) with one callback for each descriptor."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self.deadlines: dict[str, tuple[float, Callable[[], None]]] = {}

    def watch(self, descriptor: int, events: int, callback: Callable[[int], None]) -> None:
        """Call back on *events*; none: stop."""
        if events:
            self._callbacks[descriptor] = callback
            self._poll.register(descriptor, events)
        elif self._callbacks.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)

    def turn(self) -> None:
        """Wait for something, and call back."""
        now = time.monotonic()
        waits = [at - now for at, _ in self.deadlines.values()]
        timeout = None if not waits else max(0, int(min(waits) * 1000) + 1)
        for descriptor, events in self._poll.poll(timeout):
            callback = self._callbacks.get(descriptor)
            if callback is not None:
                callback(events)
        now = time.monotonic()
        for name in [n for n, (at, _) in self.deadlines.items() if at <= now]:
            self.deadlines.pop(name)[1]()


class Link:
    """A stream socket of frames: what does not fit waits, what comes is decoded."""

    def __init__(
        self,
        loop: Loop,
        connection: socket.socket,
        decoder: Decoder,
        on_frame: Callable[[Frame], None],
        on_end: Callable[[str], None],
    ) -> None:
        self._loop, self._socket, self._decoder = loop, connection, decoder
        self._on_frame, self._on_end = on_frame, on_end
        self._waiting = bytearray()
        self._held = False
        self._open = True
        connection.setblocking(False)
        self._want()

    @property
    def waiting(self) -> int:
        """How many bytes the other side has not taken yet."""
        return len(self._waiting)

    def send(self, data: bytes) -> None:
        """Send now or as soon as possible."""
        if self._open:
            self._waiting += data
            self._flush()

    def hold(self, *, held: bool) -> None:
        """Whether to leave what comes where it is."""
        if self._open and held is not self._held:
            self._held = held
            self._want()

    def close(self) -> None:
        """Let go; nothing is called back any more."""
        if self._open:
            self._open = False
            self._loop.watch(self._socket.fileno(), 0, self._ready)
            self._socket.close()

    def _want(self) -> None:
        events = (0 if self._held else select.POLLIN) | (select.POLLOUT if self._waiting else 0)
        self._loop.watch(self._socket.fileno(), events, self._ready)

    def _flush(self) -> None:
        try:
            while self._waiting:
                sent = self._socket.send(self._waiting[: 1 << 16])
                del self._waiting[:sent]
        except BlockingIOError:
            pass
        except OSError as error:
            self._end(str(error))
            return
        self._want()

    def _ready(self, events: int) -> None:
        if events & select.POLLOUT:
            self._flush()
        if not self._open or not events & (select.POLLIN | select.POLLHUP | select.POLLERR):
            return
        try:
            data = self._socket.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end("QEMU ended")
            return
        try:
            for one in self._decoder.feed(data):
                if self._open:
                    self._on_frame(one)
        except ProtocolError as error:
            self._end(f"it does not keep to the protocol: {error}")

    def _end(self, why: str) -> None:
        if self._open:
            self.close()
            self._on_end(why)


class Standard:
    """A program's streams as this process's own 0, 1 and 2."""

    def __init__(
        self, loop: Loop, send: Callable[[bytes], None], *, tty: bool, stdin: bool
    ) -> None:
        self._loop, self._send = loop, send
        self._tty = tty
        self._credit = protocol.WINDOW
        self._windows = Windows()
        self._pending = {1: bytearray(), 2: bytearray()}
        self._reads = stdin or tty
        self.running = False
        for descriptor in (0, 1, 2):
            os.set_blocking(descriptor, False)
        if tty:
            _make_raw(0)

    def begin(self) -> None:
        """The program runs: its input may come."""
        self.running = True
        if self._tty:
            self.resize()
        self._want_input()

    def size(self) -> bytes:
        """The terminal's rows and columns, as RESIZE wants them."""
        if not self._tty:
            return b""
        return fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8))[:4]

    def resize(self) -> None:
        """Tell the guest the terminal's size."""
        if self._tty and self.running:
            self._send(protocol.frame(ToGuest.RESIZE, self.size()))

    def credit(self, number: int) -> None:
        """The guest takes more input."""
        self._credit += number
        if self._credit > protocol.WINDOW:
            raise ProtocolError("more credit than was used")
        self._want_input()

    def output(self, stream: int, data: bytes) -> None:
        """Write it, now or when there is room; granted again once it is written."""
        self._windows.take(stream, len(data))
        self._pending[stream] += data
        self._write(stream)

    @property
    def written(self) -> bool:
        """Whether all output is out."""
        return not any(self._pending.values())

    def _want_input(self) -> None:
        wanted = self.running and self._reads and self._credit > 0
        self._loop.watch(0, select.POLLIN if wanted else 0, self._input)

    def _input(self, _: int) -> None:
        try:
            data = os.read(0, min(protocol.CHUNK, self._credit))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._credit -= len(data)
        else:
            self._reads = False
        self._send(protocol.frame(ToGuest.INPUT, data))
        self._want_input()

    def _write(self, stream: int) -> None:
        pending = self._pending[stream]
        descriptor = stream
        try:
            while pending:
                written = os.write(descriptor, pending[: protocol.CHUNK])
                del pending[:written]
                self._grant(stream, written)
        except BlockingIOError:
            self._loop.watch(descriptor, select.POLLOUT, lambda _: self._write(stream))
            return
        except OSError:
            # Nobody reads it any more: it vanishes, and the program is not held up.
            self._grant(stream, len(pending))
            pending.clear()
        self._loop.watch(descriptor, 0, self._input)

    def _grant(self, stream: int, length: int) -> None:
        self._windows.grant(stream, length)
        self._send(protocol.numbered(ToGuest.GRANT, length, stream=stream))


def _make_raw(descriptor: int) -> None:
    """The guest's terminal does what a terminal does; this one only passes bytes."""
    mode = termios.tcgetattr(descriptor)
    mode[0] = mode[1] = mode[3] = 0
    mode[2] = mode[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    mode[6][termios.VMIN] = 1
    mode[6][termios.VTIME] = 0
    termios.tcsetattr(descriptor, termios.TCSANOW, mode)


def _signals() -> int:
    """A descriptor that reads as the numbers of the signals that came."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGCHLD):
            signal.signal(number, lambda _number, _frame: None)
    return reading


def _complain(words: str) -> None:
    with_end = words.rstrip().encode("utf-8", "replace") + b"\n"
    os.set_blocking(2, True)
    _write_all(2, with_end)


def _write_all(descriptor: int, data: bytes) -> None:
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except OSError:
        return


class Guest:
    """One program of the guest that somebody other than us is the streams of."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.windows = Windows()


class Machine:
    """QEMU, the port of its agent, the first program, and the execs."""

    def __init__(
        self, arguments: list[str], beginning: bytes, door: Door, *, tty: bool, stdin: bool
    ) -> None:
        self._loop = Loop()
        listening = _listening()
        self._door = door
        door.enter()
        self._beginning = beginning
        self._console, self._words = bytearray(), bytearray()
        self._guests: dict[int, Guest] = {}
        self._next = 1
        self._code: int | None = None
        self._failure = ""
        self._starting = True
        self._files: Link | None = None
        self._unserved: list[bytes] = []
        port, theirs = socket.socketpair()
        self._link = Link(self._loop, port, Decoder(ToHost), self._heard, self._fail)
        self._standard = Standard(self._loop, self._link.send, tty=tty, stdin=stdin)
        console, console_theirs = socket.socketpair()
        words, words_theirs = os.pipe2(os.O_CLOEXEC)
        self._qemu = _spawn(arguments, theirs, console_theirs, words_theirs, door.links)
        for link in door.links:
            os.close(link)
        theirs.close()
        console_theirs.close()
        os.close(words_theirs)
        self._console_socket = console
        self._tail(console.fileno(), self._console)
        self._tail(words, self._words)
        self._words_fd = words
        self._pidfd = os.pidfd_open(self._qemu)
        self._loop.watch(self._pidfd, select.POLLIN, lambda _: self._fail("QEMU ended"))
        self._loop.deadlines["boot"] = (time.monotonic() + _BOOT_PATIENCE, self._too_long)
        signals = _signals()
        self._loop.watch(signals, select.POLLIN, lambda _: self._signalled(signals))
        self._listen(listening)

    def run(self) -> int:
        """Until the program has ended: its exit code."""
        while not (self._code is not None and self._standard.written):
            self._loop.turn()
            busy = self._link.waiting > _MOST_WAITING
            for guest in self._guests.values():
                guest.link.hold(held=busy)
            if self._files is not None:
                self._files.hold(held=busy)
                self._link.hold(held=self._files.waiting > _MOST_WAITING)
        # All that the guest wrote is on its disks: it says EXITED only then.
        os.kill(self._qemu, signal.SIGKILL)
        os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        if self._failure and not (self._starting and self._door.tell(self._code, self._failure)):
            _complain(self._failure)
        return self._code

    # --- QEMU ---------------------------------------------------------------------------------

    def _tail(self, descriptor: int, kept: bytearray) -> None:
        """Keep the last of what comes, whoever floods it."""

        def ready(_: int) -> None:
            try:
                data = os.read(descriptor, 1 << 16)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._loop.watch(descriptor, 0, ready)
                return
            kept.extend(data)
            del kept[:-_TAIL]

        os.set_blocking(descriptor, False)
        self._loop.watch(descriptor, select.POLLIN, ready)

    def _fail(self, why: str) -> None:
        if self._code is not None:
            return
        self._tail_now()
        shown = self._words.decode("utf-8", "replace").strip()
        panic = [
            line for line in _lines(self._console) if "panic" in line or line.startswith("tare")
        ]
        if panic:
            why = f"its kernel stopped: {panic[0][:200]}"
        elif shown:
            why = f"{why}: {shown[-400:]}"
        self._failure = f"tare: the machine failed: {why}"
        self._code = CANNOT

    def _tail_now(self) -> None:
        """What QEMU said just before it ended."""
        for descriptor, kept in (
            (self._words_fd, self._words),
            (self._console_socket.fileno(), self._console),
        ):
            try:
                while data := os.read(descriptor, 1 << 16):
                    kept.extend(data)
                    del kept[:-_TAIL]
            except OSError:
                continue

    def _too_long(self) -> None:
        self._fail(f"it did not come up within {_BOOT_PATIENCE:.0f} s")

    def _signalled(self, descriptor: int) -> None:
        for number in os.read(descriptor, 4096):
            if number == signal.SIGWINCH:
                self._standard.resize()
            elif number == KILL:
                self._kill()
            elif number == FREEZE:
                self._tell(signal.SIGSTOP)
            elif number not in _NOT_PASSED_ON:
                self._tell(number)

    def _tell(self, number: int) -> None:
        self._link.send(protocol.numbered(ToGuest.SIGNAL, number))

    def _kill(self) -> None:
        if not self._standard.running:
            self._code = 137
            return
        self._tell(signal.SIGKILL)

        def give_up() -> None:
            self._code = 137

        self._loop.deadlines["kill"] = (time.monotonic() + _KILL_PATIENCE, give_up)

    # --- the guest's words --------------------------------------------------------------------

    def _heard(self, said: Frame) -> None:
        match said.type:
            case ToHost.HELLO:
                if said.number() != protocol.VERSION:
                    raise ProtocolError("the guest's init is of another version")
                self._link.send(self._beginning)
            case ToHost.READY:
                pass
            case ToHost.BROKEN:
                self._fail(said.payload.decode("utf-8", "replace")[:400])
            case ToHost.FILES:
                self._of_files(said)
            case _ if said.channel == 0:
                self._of_first(said)
            case _:
                self._of_other(said)

    def _of_first(self, said: Frame) -> None:
        match said.type:
            case ToHost.STARTED:
                self._loop.deadlines.pop("boot", None)
                self._starting = False
                self._door.tell(0, "")
                self._standard.begin()
            case ToHost.OUTPUT:
                self._standard.output(said.stream, said.payload)
            case ToHost.CREDIT:
                self._standard.credit(said.number())
            case ToHost.EXITED:
                self._code = said.number() & 0xFF
            case ToHost.FAILED:
                self._code = _failure_code(said)
                self._failure = said.payload[1:].decode("utf-8", "replace")

    def _of_other(self, said: Frame) -> None:
        guest = self._guests.get(said.channel)
        if guest is None:
            return  # its client is gone
        if said.type == ToHost.OUTPUT:
            guest.windows.take(said.stream, len(said.payload))
        guest.link.send(protocol.frame(said.type, said.payload, stream=said.stream))
        if said.type in (ToHost.EXITED, ToHost.FAILED, ToHost.LISTED):
            del self._guests[said.channel]

    def _of_files(self, said: Frame) -> None:
        """A request for files of a share, to who serves them; the first wait for it to come."""
        again = protocol.frame(said.type, said.payload, channel=said.channel)
        if self._files is not None:
            self._files.send(again)
        elif len(self._unserved) < _MOST_UNSERVED:
            self._unserved.append(again)
        else:
            raise ProtocolError("too many requests for files")

    def _serves_files(self, link: Link) -> None:
        if self._files is None:
            self._files = link
            link.send(b"".join(self._unserved))
            self._unserved.clear()

    # --- execs --------------------------------------------------------------------------------

    def _listen(self, listener: socket.socket) -> None:
        def ready(_: int) -> None:
            try:
                connection, _address = listener.accept()
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.ECONNABORTED, errno.EMFILE):
                    raise
                return
            self._accepted(connection)

        self._loop.watch(listener.fileno(), select.POLLIN, ready)

    def _accepted(self, connection: socket.socket) -> None:
        channel, self._next = self._next, self._next + 1

        def heard(said: Frame) -> None:
            if said.type == ToGuest.FILES:
                self._guests.pop(channel, None)
                self._serves_files(link)
                if said.payload:
                    self._link.send(protocol.frame(said.type, said.payload, channel=said.channel))
                return
            if said.type == ToGuest.GRANT:
                guest.windows.grant(said.stream, said.number())
            again = protocol.frame(said.type, said.payload, channel=channel, stream=said.stream)
            self._link.send(again)

        def ended(_: str) -> None:
            if self._files is link:
                self._fail("the server of its files ended")
            elif self._guests.pop(channel, None) is not None:
                self._link.send(protocol.numbered(ToGuest.SIGNAL, signal.SIGKILL, channel=channel))

        link = Link(self._loop, connection, Decoder(ToGuest, 16 << 20), heard, ended)
        guest = self._guests[channel] = Guest(link)


def _listening() -> socket.socket:
    """Where execs and the file server come to."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(CONTROL)
    listener.listen(64)
    listener.setblocking(False)
    return listener


def _filled(argument: str, inherited: dict[str, int]) -> str:
    name = argument[argument.find("@") :] if "@" in argument else ""
    return argument.replace(name, str(inherited[name])) if name in inherited else argument


class DoorError(Exception):
    """The daemon that started us is gone."""


class Door:
    """The daemon that started us, as long as it listens; "" is none at all, for tests."""

    def __init__(self, path: str = "") -> None:
        self.links: list[int] = []
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def enter(self) -> None:
        """Take the links of this machine; DoorError when the daemon is gone."""
        if not self._path:
            return
        try:
            self._socket.connect(self._path)
            word, self.links, _, _ = socket.recv_fds(self._socket, 16, _MOST_LINKS)
        except OSError as error:
            raise DoorError from error
        if not word:
            raise DoorError

    def tell(self, code: int, words: str) -> bool:
        """Tell how the start went (code 0: well); False when nobody hears it."""
        line = STARTED if not code else f"{code} {words}".encode("utf-8", "replace")
        try:
            self._socket.send(line[:4000], socket.MSG_NOSIGNAL)
        except OSError:
            return False
        self._socket.close()
        return True


def _failure_code(said: Frame) -> int:
    code = said.payload[0] if said.payload else CANNOT
    return code if code in (CANNOT, 126, 127) else CANNOT


def _lines(content: bytearray) -> list[str]:
    return [line.strip() for line in content.decode("utf-8", "replace").splitlines()]


def _spawn(
    arguments: list[str],
    agent: socket.socket,
    console: socket.socket,
    words: int,
    links: list[int],
) -> int:
    """QEMU; ``@agent``, ``@console`` and ``@link0`` ... in its arguments become descriptors."""
    inherited = {"@agent": agent.fileno(), "@console": console.fileno()}
    inherited |= {f"@link{number}": link for number, link in enumerate(links)}
    for descriptor in inherited.values():
        os.set_inheritable(descriptor, True)
    filled = [_filled(argument, inherited) for argument in arguments]
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
        (os.POSIX_SPAWN_DUP2, 0, 1),
        (os.POSIX_SPAWN_DUP2, words, 2),
    ]
    environment = {"PATH": "/usr/bin", "HOME": "/", "TMPDIR": "/run"}
    return os.posix_spawn(filled[0], filled, environment, file_actions=actions, setsigmask=())


def machine() -> int:
    """Be the first process: the exit code."""
    import json

    with open(PLAN, encoding="ascii") as file:  # noqa: PTH123 -- pathlib is a megabyte more
        plan = json.load(file)
    beginning = a2b_base64(plan["beginning"])
    door = Door(DOOR)
    qemu, tty, stdin = plan["qemu"], bool(plan["tty"]), bool(plan["stdin"])
    try:
        return Machine(qemu, beginning, door, tty=tty, stdin=stdin).run()
    except DoorError:
        _complain("tare: the engine ended while the machine was being started")
        return CANNOT


def execute(wish: bytes, *, tty: bool, stdin: bool) -> int:
    """Be the streams of a program in the guest: its exit code."""
    loop = Loop()
    ended: list[int] = []
    failure: list[str] = []

    def heard(said: Frame) -> None:
        match said.type:
            case ToHost.STARTED:
                standard.begin()
            case ToHost.OUTPUT:
                standard.output(said.stream, said.payload)
            case ToHost.CREDIT:
                standard.credit(said.number())
            case ToHost.EXITED:
                ended.append(said.number() & 0xFF)
            case ToHost.FAILED:
                ended.append(_failure_code(said))
                failure.append(said.payload[1:].decode("utf-8", "replace"))

    def lost(_: str) -> None:
        if not ended:
            ended.append(137)  # the machine ended, and all programs with it

    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(CONTROL)
    link = Link(loop, connection, Decoder(ToHost), heard, lost)
    standard = Standard(loop, link.send, tty=tty, stdin=stdin)
    signals = _signals()

    def signalled(_: int) -> None:
        for number in os.read(signals, 4096):
            if number == signal.SIGWINCH:
                standard.resize()
            elif number not in _NOT_PASSED_ON:
                link.send(protocol.numbered(ToGuest.SIGNAL, number))

    loop.watch(signals, select.POLLIN, signalled)
    if tty:
        wish += protocol.field(protocol.Wish.SIZE, standard.size())
    link.send(protocol.frame(ToGuest.START, wish))
    while not (ended and standard.written):
        loop.turn()
    for words in failure:
        _complain(words)
    return ended[0]


def main(arguments: list[str]) -> NoReturn:
    """``machine``, ``files``, or ``exec FLAGS BASE64``."""
    if arguments[0] == "machine":
        code = machine()
    elif arguments[0] == "files":
        from tare.vm import sharing

        code = sharing.serve(CONTROL)
    else:
        flags = protocol.ProgramFlag(int(arguments[1]))
        code = execute(
            a2b_base64(arguments[2]),
            tty=protocol.ProgramFlag.TTY in flags,
            stdin=protocol.ProgramFlag.STDIN in flags,
        )
    os._exit(code)
