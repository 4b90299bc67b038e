"""The daemon's end of the keeper: start it, talk to it, outlive it.

`Keeper.connect` starts a keeper when none answers. When the keeper dies the link starts another,
which adopts what runs, with the pidfds, inputs and terminals that this side holds copies of.

Not for: what should run. `engine` decides; this only passes it on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tare.errors import (
    ConflictError,
    DeniedError,
    FailedError,
    InvalidError,
    MissingError,
    TareError,
    UnsupportedError,
)
from tare.kernel import background, process
from tare.run.protocol import VERSION, Message, Receiver, Sender
from tare.run.sandbox import ExecPlan, Sandbox

_ERRORS: Final = {
    kind.__name__: kind
    for kind in (
        ConflictError, DeniedError, FailedError, InvalidError, MissingError, UnsupportedError,
    )
}  # fmt: skip
_TRIES: Final = 5
_START_TIMEOUT: Final = 10.0


@dataclass(slots=True)
class Adopted:
    """A container that the keeper holds: its process and our copies of its handles."""

    id: str
    pid: int
    start_time: int
    pidfd: int = -1
    stdin: int = -1  # writing end of its input, or its terminal's master; -1 if it has none
    tty: bool = False


@dataclass(frozen=True, slots=True)
class Started:
    """A container that has begun: the link keeps *pidfd* and *stdin* open until it ends."""

    pid: int
    start_time: int
    pidfd: int
    stdin: int | None
    tty: bool
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Execed:
    """An exec'd program that has begun; *terminal* (a tty's master) belongs to the caller."""

    pid: int
    pidfd: int
    terminal: int | None


@dataclass(frozen=True, slots=True)
class Exited:
    """The end of a container's first process (``exec_id`` None) or of an exec'd one.

    ``code`` is 0 to 255, 128 + signal for a killed one; 255 and not ``known`` when the keeper was
    dead at the time and the kernel does not tell any more.
    """

    id: str
    exec_id: str | None
    code: int
    oom_killed: bool
    at_ns: int
    known: bool = True
    cpu_ns: int = 0
    memory_peak: int = 0


@dataclass(frozen=True, slots=True)
class AttachPipes:
    """Write ends for a live copy of the output; the link closes the caller's after sending."""

    stdout: int | None = None
    stderr: int | None = None

    def items(self) -> list[tuple[str, int]]:
        """Those that are there, by name."""
        pairs = (("stdout", self.stdout), ("stderr", self.stderr))
        return [(name, end) for name, end in pairs if end is not None]


@dataclass(slots=True)
class _Handlers:
    exited: Callable[[Exited], None]
    lost: Callable[[], None]
    waiting: dict[int, asyncio.Future[tuple[Message, list[int]]]] = field(default_factory=dict)


class Keeper:
    """A connection to the keeper of a run directory. One event loop, one user."""

    def __init__(
        self, run_dir: Path, exited: Callable[[Exited], None], lost: Callable[[], None]
    ) -> None:
        self._run = str(run_dir)
        self._handlers = _Handlers(exited, lost)
        self._sequence = 0
        self._loop = asyncio.get_running_loop()
        self._connection: socket.socket | None = None
        self._receiver: Receiver | None = None
        self._sender: Sender | None = None
        self._closed = self._opening = False
        self._reached = asyncio.Event()  # clear while one keeper is replaced by the next
        self.running: dict[str, Adopted] = {}
        self._pipes: list[int] = []  # outputs that nobody reads while there is no keeper
        self._handles: dict[str, list[int]] = {}

    @classmethod
    async def connect(
        cls, run_dir: Path, on_exit: Callable[[Exited], None], on_lost: Callable[[], None]
    ) -> Keeper:
        """The keeper of *run_dir*, started if none answers; `running` says what it holds.

        Exits that happened while no daemon was there come by *on_exit* before this returns.
        *on_lost* is called when the keeper had to be replaced.
        """
        keeper = cls(run_dir, on_exit, on_lost)
        await keeper._reach()
        return keeper

    # --- connection ---------------------------------------------------------------------------

    async def _reach(self) -> None:
        """Open, again if the keeper that answered was just dying."""
        self._opening = True
        try:
            for _ in range(_TRIES):
                try:
                    if await self._open() == VERSION:
                        return
                    # One of another version of tare. Its death harms nothing that runs; a new
                    # one takes over, with the handles that `ping` made sure are here.
                    await self._request("ping", {})
                    self._end_keeper()
                except ConnectionResetError:
                    self._drop_connection()
            raise FailedError("the keeper keeps dying", hint=f"see {self._run}/keeper.log")
        finally:
            self._opening = False
            self._reached.set()  # those who waited hear what went wrong from `_post`

    def _end_keeper(self) -> None:
        assert self._connection is not None
        size = struct.calcsize("3i")
        peer = self._connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        os.kill(struct.unpack("3i", peer)[0], signal.SIGKILL)
        self._drop_connection()

    async def _open(self) -> int:
        """Connect, take over what the keeper holds; the version it speaks."""
        connection = await self._dial()
        self._connection = connection
        self._receiver, self._sender = Receiver(connection), Sender(connection)
        self._loop.add_reader(connection.fileno(), self._readable)
        result, _ = await self._request("list", {})
        before = self.running
        self.running = {}
        for item in result["running"]:
            held = before.pop(str(item["id"]), None)
            adopted = Adopted(
                str(item["id"]), int(item["pid"]), int(item["start_time"]), tty=bool(item["tty"])
            )
            if held is not None:
                adopted.pidfd, adopted.stdin = held.pidfd, held.stdin
            self.running[adopted.id] = adopted
        self._give_handles()
        for record in result["exits"]:
            self._exit(record)
        for held in before.values():
            await self._hand_back(held)
        return int(result.get("version", 1))

    async def _hand_back(self, held: Adopted) -> None:
        """A new keeper could not adopt it alone: give it the handles, or say how it ended.

        It takes one that has ended too, by its pidfd: what it said last is then in its log.
        """
        descriptors = [one for one in (held.pidfd, held.stdin) if one >= 0]
        message = {"id": held.id, "pidfd": held.pidfd >= 0}
        self.running[held.id] = held  # its end may be told right behind the answer
        try:
            await self._request("adopt", message, descriptors)
        except MissingError:
            self.running.pop(held.id, None)
            status = process.exit_status(held.pidfd) if held.pidfd >= 0 else None
            code = 255 if status is None else process.exit_code(status)
            self._end(
                held.id,
                Exited(held.id, None, code, False, time.time_ns(), known=status is not None),
            )
            self._close_handles(held)

    async def _dial(self) -> socket.socket:
        path = f"{self._run}/keeper.sock"
        deadline = self._loop.time() + _START_TIMEOUT
        child: subprocess.Popen[bytes] | None = None
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.connect(path)
            except (FileNotFoundError, ConnectionRefusedError):
                connection.close()
                if child is None or child.poll() is not None:
                    child = self._spawn()
                if self._loop.time() > deadline:
                    raise FailedError(
                        "the keeper does not start", hint=f"see {self._run}/keeper.log"
                    ) from None
                await asyncio.sleep(0.005)
            else:
                connection.setblocking(False)
                return connection

    def _spawn(self) -> subprocess.Popen[bytes]:
        """Start a keeper that no signal to us reaches; the lock lets only one live."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        log = os.open(f"{self._run}/keeper.log", flags, 0o600)
        try:
            return background.start("tare.run.keeper", self._run, log=log)
        finally:
            os.close(log)

    def _readable(self) -> None:
        assert self._receiver is not None
        try:
            # A poll decides whether there is more, so one wake-up takes a burst of exits.
            for message, descriptors in self._receiver.receive():
                self._dispatch(message, descriptors)
        except (EOFError, OSError):
            self._lost()

    def _lost(self) -> None:
        self._drop_connection()
        self._reached.clear()
        self._hold_outputs()
        error: Exception = FailedError("the keeper died", hint="try again: a new one takes over")
        if self._opening:
            error = ConnectionResetError("the keeper died")
        for future in self._handlers.waiting.values():
            if not future.done():
                future.set_exception(error)
        self._handlers.waiting.clear()
        if not (self._closed or self._opening):
            task = self._loop.create_task(self._reopen())
            task.add_done_callback(lambda t: t.cancelled() or t.exception())

    async def _reopen(self) -> None:
        try:
            await self._reach()
        finally:
            self._release_outputs()
        self._handlers.lost()

    def _hold_outputs(self) -> None:
        """Keep what containers say until the next keeper reads it.

        A pipe that nobody has open forgets what is in it, and a container that ends closes it.
        """
        for identity in () if self._closed else self.running:
            for name in ("stdout", "stderr"):
                with contextlib.suppress(OSError):
                    path = f"{self._run}/workloads/{identity}/{name}"
                    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
                    self._pipes.append(os.open(path, flags))

    def _release_outputs(self) -> None:
        while self._pipes:
            os.close(self._pipes.pop())

    def _drop_connection(self) -> None:
        if self._connection is None:
            return
        self._loop.remove_reader(self._connection.fileno())
        self._loop.remove_writer(self._connection.fileno())
        if self._receiver is not None:
            self._receiver.close()
        if self._sender is not None:
            self._sender.close()
        self._connection.close()
        self._connection = self._receiver = self._sender = None

    def _dispatch(self, message: Message, descriptors: list[int]) -> None:
        event = message.get("event")
        if event == "exit":
            self._exit(message)
        elif event == "holds":
            # It comes right behind the list, often before who asked for that has read it.
            self._handles[str(message["id"])] = descriptors
            self._give_handles()
        else:
            future = self._handlers.waiting.pop(int(message["re"]), None)
            if future is None or future.done():
                for descriptor in descriptors:
                    os.close(descriptor)
            elif "error" in message:
                future.set_exception(_error(message["error"]))
            else:
                future.set_result((message["ok"], descriptors))

    def _give_handles(self) -> None:
        for identity in [i for i in self._handles if i in self.running]:
            descriptors = self._handles.pop(identity)
            adopted = self.running[identity]
            if adopted.pidfd >= 0:
                for descriptor in descriptors:
                    os.close(descriptor)
                continue
            adopted.pidfd = descriptors[0]
            adopted.stdin = descriptors[1] if len(descriptors) > 1 else -1

    def _exit(self, record: Message) -> None:
        used = record.get("usage") or {}
        exec_id = record["exec_id"]
        exited = Exited(
            str(record["id"]),
            None if exec_id is None else str(exec_id),
            int(record["code"]),
            bool(record["oom_killed"]),
            int(record["at_ns"]),
            known=bool(record["known"]),
            cpu_ns=int(used.get("cpu_ns") or 0),
            memory_peak=int(used.get("memory_peak") or 0),
        )
        self._end(exited.id if exec_id is None else None, exited)

    def _end(self, container: str | None, exited: Exited) -> None:
        if container is not None:
            held = self.running.pop(container, None)
            if held is not None:
                self._close_handles(held)
        self._handlers.exited(exited)

    @staticmethod
    def _close_handles(held: Adopted) -> None:
        for descriptor in (held.pidfd, held.stdin):
            if descriptor >= 0:
                os.close(descriptor)
        held.pidfd = held.stdin = -1

    def _post(
        self, operation: str, message: Message, descriptors: list[int]
    ) -> asyncio.Future[tuple[Message, list[int]]]:
        if self._sender is None or self._connection is None:
            if self._opening:
                raise ConnectionResetError("the keeper died")
            raise FailedError("the keeper is being restarted", hint="try again")
        self._sequence += 1
        future: asyncio.Future[tuple[Message, list[int]]] = self._loop.create_future()
        self._handlers.waiting[self._sequence] = future
        try:
            self._sender.send(message | {"op": operation, "seq": self._sequence}, descriptors)
        except OSError as error:
            self._handlers.waiting.pop(self._sequence, None)
            if self._opening:
                raise ConnectionResetError("the keeper died") from error
            raise FailedError("the keeper died", hint="try again") from error
        if self._sender.waiting:
            self._loop.add_writer(self._connection.fileno(), self._writable)
        return future

    def _writable(self) -> None:
        if self._sender is None or self._connection is None:
            return
        try:
            self._sender.flush()
        except OSError:
            return  # the reader side notices
        if not self._sender.waiting:
            self._loop.remove_writer(self._connection.fileno())

    async def _request(
        self, operation: str, message: Message, descriptors: list[int] | None = None
    ) -> tuple[Message, list[int]]:
        return await self._post(operation, message, descriptors or [])

    # --- requests -----------------------------------------------------------------------------

    async def start(self, sandbox: Sandbox, attach: AttachPipes | None = None) -> Started:
        """Start it; returns when its program runs. On a TareError nothing is left behind."""
        tees = attach.items() if attach is not None else []
        message: Message = {"sandbox": sandbox, "tees": [name for name, _ in tees]}
        try:
            await self._reached.wait()
            future = self._post("start", message, [end for _, end in tees])
        finally:
            for _, end in tees:
                os.close(end)
        result, handles = await future
        adopted = Adopted(
            sandbox["id"],
            int(result["pid"]),
            int(result["start_time"]),
            handles[0],
            handles[1] if len(handles) > 1 else -1,
            bool(result["tty"]),
        )
        self.running[adopted.id] = adopted
        return Started(
            adopted.pid,
            adopted.start_time,
            adopted.pidfd,
            adopted.stdin if adopted.stdin >= 0 else None,
            adopted.tty,
            tuple(result["warnings"]),
        )

    async def attach(self, identity: str, pipes: AttachPipes) -> None:
        """Copy the output from now on into *pipes* too; ConflictError if it does not run."""
        tees = pipes.items()
        message: Message = {"id": identity, "tees": [name for name, _ in tees]}
        try:
            await self._reached.wait()
            future = self._post("attach", message, [end for _, end in tees])
        finally:
            for _, end in tees:
                os.close(end)
        await future

    async def exec(self, plan: ExecPlan, stdio: tuple[int, int, int] | None) -> Execed:
        """Start a program in a running container; *stdio* is its ends of stdin, stdout, stderr.

        None asks for a terminal. The caller's copies of *stdio* are closed. Its end comes by
        *on_exit* with the plan's ``exec_id``.
        """
        ends = list(stdio) if stdio is not None else []
        try:
            await self._reached.wait()
            future = self._post("exec", {"plan": plan}, ends)
        finally:
            for end in ends:
                os.close(end)
        result, handles = await future
        return Execed(int(result["pid"]), handles[0], handles[1] if result["tty"] else None)

    async def close_stdin(self, identity: str) -> None:
        """End the container's input, for a client that has sent all of it."""
        held = self.running.get(identity)
        if held is not None and held.stdin >= 0 and not held.tty:
            os.close(held.stdin)
            held.stdin = -1
        await self._reached.wait()
        await self._request("close_stdin", {"id": identity})

    def acknowledge(self, identity: str) -> None:
        """The exit is recorded: the keeper may forget it and delete its run directory."""
        if self._sender is not None:
            with contextlib.suppress(FailedError):
                future = self._post("acknowledge", {"id": identity}, [])
                future.add_done_callback(lambda f: f.cancelled() or f.exception())

    async def forget_layers(self) -> None:
        """Layers were deleted: let go of them, so that their space is freed."""
        await self._reached.wait()
        await self._request("forget_layers", {})

    async def ping(self) -> None:
        """Return when the keeper has answered."""
        await self._request("ping", {})

    async def close(self) -> None:
        """Leave the keeper to itself; what runs goes on."""
        self._closed = True
        self._reached.set()
        self._drop_connection()
        for held in self.running.values():
            self._close_handles(held)


def _error(detail: Message) -> TareError:
    kind = _ERRORS.get(str(detail.get("class")), FailedError)
    return kind(
        str(detail.get("message")),
        hint=str(detail.get("hint") or ""),
        exit_code=int(detail.get("exit_code") or 1),
    )


def read_exit(run_dir: Path, identity: str) -> Exited | None:
    """The exit that a keeper wrote before it died, if it did."""
    try:
        content = (run_dir / "workloads" / identity / "exit").read_bytes()
        record = json.loads(content)
        return Exited(
            identity,
            None,
            int(record["code"]),
            bool(record["oom_killed"]),
            int(record["at_ns"]),
            known=bool(record["known"]),
        )
    except (OSError, ValueError, KeyError):
        return None
