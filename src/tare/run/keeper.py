"""The keeper: one small single-threaded process, parent of every container.

It starts sandboxes, execs into them, moves their output to the logs, reaps them, and tells the
daemon. It knows nothing of images, names or policies. It imports little, because every container
begins as a copy of it. It may be killed: what it knows is on disk and in the kernel too
(the run directory's ``keeper.json`` and FIFOs, the cgroup, the pid with its start time), and the
next keeper adopts it.

::

    RUN/keeper.sock   one daemon at a time, messages of `run.protocol`
    RUN/workloads/ID/ keeper.json  what a new keeper needs to adopt the container
                      stdout stderr  FIFOs    exit  written before the exit is reported

Requests: start, exec, attach, close_stdin, acknowledge, list, adopt, forget_layers, ping.
Events: exit.

Run as ``python3 -I -S -m``-less script by `run.link`: the path of the package is its argument.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from tare.errors import ConflictError, FailedError, MissingError, TareError
from tare.kernel import cgroup, confine, process
from tare.run import entering, launching, rootfs, uplink
from tare.run.launching import Context, Launch
from tare.run.logs import STDERR, STDOUT, LogWriter
from tare.run.output import Stream
from tare.run.protocol import VERSION, Message, Receiver, Sender
from tare.run.sandbox import Log, Sandbox
from tare.run.spares import Spares
from tare.run.stock import Stock
from tare.run.stub import Stub

_SPARES: Final = 3
_SOON: Final = 0.02
"""How long nothing must happen before what is not urgent is done, in seconds."""
_MOST_DEFERRED: Final = 64


@dataclass(slots=True)
class Kept:
    """A running container."""

    sandbox: Sandbox
    pid: int
    start_time: int
    pidfd: int
    group: cgroup.Group
    streams: list[Stream] = field(default_factory=list)
    stdin: int = -1  # writing end, or the terminal's master (shared with its stream)
    log: LogWriter | None = None
    held: list[int] = field(default_factory=list)
    oom_kills: int = 0


@dataclass(slots=True)
class Execed:
    """A running exec'd program."""

    id: str
    exec_id: str
    pid: int
    pidfd: int


class Keeper:
    """The loop and its requests."""

    def __init__(self, run_dir: str, context: Context) -> None:
        self._run = run_dir
        self._context = context
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._kept: dict[str, Kept] = {}
        self._execs: dict[str, Execed] = {}
        self._exits: dict[str, Message] = {}  # not acknowledged yet, by container or exec id
        self._daemon: socket.socket | None = None
        self._receiver: Receiver | None = None
        self._sender: Sender | None = None
        self._listener: socket.socket | None = None
        self._launches = 0  # children that are not yet a program
        self._ended = False  # a container ended, and nothing came since
        self._requests: dict[str, Callable[[Message, list[int], int], None]] = {
            "start": self._start,
            "exec": self._exec,
            "attach": self._attach,
            "close_stdin": self._close_stdin,
            "acknowledge": self._acknowledge,
            "list": self._list,
            "adopt": self._adopt,
            "forget_layers": self._forget_layers,
            "ping": lambda _message, _fds, sequence: self._reply(sequence, {}),
        }

    # --- loop ---------------------------------------------------------------------------------

    def watch(self, descriptor: int, events: int, callback: Callable[[int], None]) -> None:
        """Call *callback* with the events of *descriptor*; no events: stop doing so."""
        known = descriptor in self._callbacks
        if not events:
            if known:
                del self._callbacks[descriptor]
                with contextlib.suppress(OSError):
                    self._epoll.unregister(descriptor)
            return
        self._callbacks[descriptor] = callback
        if known:
            self._epoll.modify(descriptor, events)
        else:
            self._epoll.register(descriptor, events)

    def serve(self, listener: socket.socket) -> None:
        """Serve until nothing runs and no daemon is there (then a keeper has no purpose)."""
        self._listener = listener
        self.watch(listener.fileno(), select.EPOLLIN, self._accept)
        idle_since = time.monotonic()
        while True:
            context = self._context
            ready = self._epoll.poll(self._patience())
            if not ready and self._tidy():
                continue
            if len(context.deferred) > _MOST_DEFERRED:
                os.close(context.deferred.pop(0))
                os.close(context.deferred.pop(0))
            for descriptor, events in ready:
                callback = self._callbacks.get(descriptor)
                if callback is not None:
                    callback(events)
            if self._daemon is not None or self._kept or self._exits or ready:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > 10:
                for maker in (context.spares, context.stock):
                    if maker is not None:
                        maker.close()
                return

    def _patience(self) -> float:
        """How long to wait for an event before what can wait is done."""
        if not self._unfinished():
            return 5.0
        # The end of a container is the best moment: whoever waits for it is busy elsewhere now.
        return 0.0 if self._ended else _SOON

    def _unfinished(self) -> bool:
        context = self._context
        makers = (context.spares, context.stock)
        return bool(context.deferred) or any(m is not None and m.wanted for m in makers)

    def _tidy(self) -> bool:
        """Nothing else to do right now: close what was deferred, make one thing ready."""
        context = self._context
        if not self._unfinished():
            return False
        self._ended = False
        if self._launches:
            return True  # a child is at work, and what it says must not wait
        context.close_deferred()
        for maker in (context.spares, context.stock):
            if maker is not None and maker.wanted:
                maker.fill()
                self._ended = True
                break
        return True

    def _accept(self, _: int) -> None:
        assert self._listener is not None
        connection, _address = self._listener.accept()
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        uid = int.from_bytes(credentials[4:8], "little")
        if uid != os.getuid():
            connection.close()
            return
        self._lose_daemon()  # a new daemon takes over from a dead one
        connection.setblocking(False)
        self._daemon = connection
        self._receiver, self._sender = Receiver(connection), Sender(connection)
        self.watch(connection.fileno(), select.EPOLLIN, self._hear)

    def _lose_daemon(self) -> None:
        if self._daemon is None:
            return
        self.watch(self._daemon.fileno(), 0, self._hear)
        if self._receiver is not None:
            self._receiver.close()
        if self._sender is not None:
            self._sender.close()
        self._daemon.close()
        self._daemon = self._receiver = self._sender = None

    def _hear(self, events: int) -> None:
        try:
            if events & select.EPOLLOUT and self._sender is not None:
                self._sender.flush()
                self._want_output()
            if events & (select.EPOLLIN | select.EPOLLHUP) and self._receiver is not None:
                for message, descriptors in self._receiver.receive():
                    self._handle(message, descriptors)
        except (EOFError, OSError):
            self._lose_daemon()

    def _handle(self, message: Message, descriptors: list[int]) -> None:
        sequence = int(message.get("seq", 0))
        request = self._requests.get(str(message.get("op")))
        try:
            if request is None:
                raise FailedError(f"the keeper has no request {message.get('op')!r}")
            request(message, descriptors, sequence)
        except TareError as error:
            self._refuse(sequence, error)
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._refuse(sequence, FailedError(f"keeper: {type(error).__name__}: {error}"))

    def _want_output(self) -> None:
        if self._daemon is not None and self._sender is not None:
            events = select.EPOLLIN | (select.EPOLLOUT if self._sender.waiting else 0)
            self.watch(self._daemon.fileno(), events, self._hear)

    def _send(self, message: Message, descriptors: list[int] | None = None) -> None:
        if self._sender is None:
            return
        try:
            self._sender.send(message, descriptors or [])
        except OSError:
            self._lose_daemon()
            return
        if self._sender.waiting:
            self._want_output()

    def _reply(self, sequence: int, result: Message, descriptors: list[int] | None = None) -> None:
        self._send({"re": sequence, "ok": result}, descriptors)

    def _refuse(self, sequence: int, error: TareError) -> None:
        detail = {
            "class": type(error).__name__,
            "message": str(error),
            "hint": error.hint,
            "exit_code": error.exit_code,
        }
        self._send({"re": sequence, "error": detail})

    # --- start --------------------------------------------------------------------------------

    def _start(self, message: Message, descriptors: list[int], sequence: int) -> None:
        sandbox: Sandbox = message["sandbox"]
        tees = dict(zip(message.get("tees", []), descriptors, strict=True))
        try:
            if sandbox["id"] in self._kept:
                raise ConflictError(f"container {sandbox['id'][:12]} is already running")
            work = launching.launch(sandbox, self._context)
        except BaseException:
            for descriptor in tees.values():
                os.close(descriptor)
            raise

        start_time = _start_time(work.pid)

        def progress(_: int) -> None:
            try:
                if not work.answer():
                    return
            except TareError as error:
                self._launches -= 1
                self.watch(work.control.fileno(), 0, progress)
                for descriptor in tees.values():
                    os.close(descriptor)
                work.abandon()
                self._refuse(sequence, error)
                return
            self._launches -= 1
            self.watch(work.control.fileno(), 0, progress)
            work.control.close()
            self._started(work, start_time, tees, sequence)

        self._launches += 1
        self.watch(work.control.fileno(), select.EPOLLIN, progress)
        # While the child works; before it can be known to run, so a new keeper always finds it.
        self._write_record(sandbox, work.pid, start_time)

    def _started(self, work: Launch, start_time: int, tees: dict[str, int], sequence: int) -> None:
        sandbox = work.sandbox
        kept = Kept(
            sandbox=sandbox,
            pid=work.pid,
            start_time=start_time,
            pidfd=work.pidfd,
            group=work.group,
            stdin=work.terminal if work.terminal >= 0 else work.stdin,
            held=work.kept,
        )
        self._keep(kept, [(STDOUT, work.stdout), (STDERR, work.stderr)], work.terminal)
        for name, descriptor in tees.items():
            self._tee(kept, name, descriptor)
        result = {
            "pid": kept.pid,
            "start_time": kept.start_time,
            "warnings": work.warnings,
            "stdin": kept.stdin >= 0,
            "tty": work.terminal >= 0,
        }
        handles = [kept.pidfd] + ([kept.stdin] if kept.stdin >= 0 else [])
        self._reply(sequence, result, handles)
        self.watch(kept.pidfd, select.EPOLLIN, lambda _: self._exited(kept))

    def _keep(self, kept: Kept, sources: list[tuple[int, int]], terminal: int) -> None:
        log: Log = kept.sandbox["log"]
        if log["path"]:
            kept.log = LogWriter(log["path"], log["max_size"], log["max_files"])
        if terminal >= 0:
            # The stream closes its descriptor; the master stays for input and resizing.
            copy = fcntl.fcntl(terminal, fcntl.F_DUPFD_CLOEXEC, 3)
            kept.streams.append(Stream(STDOUT, copy, kept.log, self.watch))
        else:
            for number, source in sources:
                if source >= 0:
                    kept.streams.append(Stream(number, source, kept.log, self.watch))
        self._kept[kept.sandbox["id"]] = kept

    @staticmethod
    def _write_record(sandbox: Sandbox, pid: int, start_time: int) -> None:
        """What a keeper that comes after this one needs; gone with the boot, so not synced."""
        record = {"sandbox": sandbox, "pid": pid, "start_time": start_time}
        path = f"{sandbox['run_dir']}/keeper.json"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        os.write(descriptor, json.dumps(record).encode())
        os.close(descriptor)

    # --- exit ---------------------------------------------------------------------------------

    def _exited(self, kept: Kept) -> None:
        code, known = wait_for(kept.pidfd)
        identity = kept.sandbox["id"]
        self.watch(kept.pidfd, 0, lambda _: None)
        with contextlib.suppress(OSError):
            if not kept.sandbox["flags"] & process.CLONE_NEWPID:
                kept.group.kill()  # without an own pid namespace others may have stayed
        oom = 0
        with contextlib.suppress(OSError):
            oom = kept.group.oom_kills()
        for stream in kept.streams:
            stream.finish()
        if kept.log is not None:
            kept.log.close()
        if any(one["kind"] == uplink.USER for one in kept.sandbox["interfaces"]):
            uplink.end(kept.sandbox["run_dir"])  # its ports are free before the exit is told
        exit_record: Message = {
            "event": "exit",
            "id": identity,
            "exec_id": None,
            "code": code,
            "known": known,
            "oom_killed": oom > kept.oom_kills,
            "usage": usage(kept.group),
            "at_ns": time.time_ns(),
        }
        run = kept.sandbox["run_dir"]
        with contextlib.suppress(OSError):
            write_new(f"{run}/exit", json.dumps(exit_record).encode())
        self._exits[identity] = exit_record
        del self._kept[identity]
        self._send(exit_record)
        with contextlib.suppress(OSError):
            kept.group.remove()
        for descriptor in (kept.pidfd, kept.stdin):
            if descriptor >= 0:
                os.close(descriptor)
        # Taking its namespaces down can wait until nobody waits for us; but who starts again with
        # the same addresses must not meet itself.
        if kept.sandbox["interfaces"]:
            for descriptor in kept.held:
                os.close(descriptor)
        else:
            self._context.deferred += kept.held
        self._ended = True

    def _acknowledge(self, message: Message, _: list[int], sequence: int) -> None:
        identity = str(message["id"])
        record = self._exits.pop(identity, None)
        if record is not None and record["exec_id"] is None:
            launching.remove_run_directory(f"{self._run}/workloads/{identity}")
        self._reply(sequence, {})

    # --- exec ---------------------------------------------------------------------------------

    def _exec(self, message: Message, descriptors: list[int], sequence: int) -> None:
        plan = message["plan"]
        try:
            kept = self._find(str(plan["id"]))
            work = entering.enter(plan, kept.sandbox, kept.pidfd, descriptors, self._context)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

        def progress(_: int) -> None:
            try:
                if not work.answer():
                    return
            except TareError as error:
                self.watch(work.control.fileno(), 0, progress)
                self._end_failed_exec(work)
                self._refuse(sequence, error)
                return
            self.watch(work.control.fileno(), 0, progress)
            work.control.close()
            execed = Execed(str(plan["id"]), str(plan["exec_id"]), work.pid, work.pidfd)
            self._execs[execed.exec_id] = execed
            handles = [execed.pidfd] + ([work.terminal] if work.terminal >= 0 else [])
            result = {"pid": work.pid, "tty": work.terminal >= 0, "warnings": work.warnings}
            self._reply(sequence, result, handles)
            if work.terminal >= 0:
                os.close(work.terminal)
            self.watch(execed.pidfd, select.EPOLLIN, lambda _: self._exec_exited(execed))

        self.watch(work.control.fileno(), select.EPOLLIN, progress)

    def _end_failed_exec(self, work: Launch) -> None:
        work.control.close()
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(work.pidfd, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, work.pidfd, os.WEXITED)
        os.close(work.pidfd)
        if work.terminal >= 0:
            os.close(work.terminal)

    def _exec_exited(self, execed: Execed) -> None:
        code, known = wait_for(execed.pidfd)
        self.watch(execed.pidfd, 0, lambda _: None)
        os.close(execed.pidfd)
        del self._execs[execed.exec_id]
        self._send(
            {
                "event": "exit",
                "id": execed.id,
                "exec_id": execed.exec_id,
                "code": code,
                "known": known,
                "oom_killed": False,
                "usage": {},
                "at_ns": time.time_ns(),
            }
        )

    # --- the rest -----------------------------------------------------------------------------

    def _find(self, identity: str) -> Kept:
        kept = self._kept.get(identity)
        if kept is None:
            raise ConflictError(f"container {identity[:12]} is not running")
        return kept

    def _tee(self, kept: Kept, name: str, descriptor: int) -> None:
        number = STDERR if name == "stderr" else STDOUT
        for stream in kept.streams:
            if stream.number == number:
                stream.attach(descriptor)
                return
        os.close(descriptor)

    def _attach(self, message: Message, descriptors: list[int], sequence: int) -> None:
        names = [str(name) for name in message["tees"]]
        try:
            kept = self._find(str(message["id"]))
        except ConflictError:
            for descriptor in descriptors:
                os.close(descriptor)
            raise
        for name, descriptor in zip(names, descriptors, strict=True):
            self._tee(kept, name, descriptor)
        self._reply(sequence, {})

    def _close_stdin(self, message: Message, _: list[int], sequence: int) -> None:
        kept = self._kept.get(str(message["id"]))
        if kept is not None and kept.stdin >= 0 and not kept.sandbox["process"]["tty"]:
            os.close(kept.stdin)
            kept.stdin = -1
        self._reply(sequence, {})

    def _list(self, _message: Message, _: list[int], sequence: int) -> None:
        running = []
        handles: list[int] = []
        for identity, kept in self._kept.items():
            stdin = kept.stdin >= 0
            running.append(
                {
                    "id": identity,
                    "pid": kept.pid,
                    "start_time": kept.start_time,
                    "stdin": stdin,
                    "tty": bool(kept.sandbox["process"]["tty"]),
                }
            )
        held = {"running": running, "exits": list(self._exits.values()), "version": VERSION}
        self._reply(sequence, held, handles)
        for identity, kept in self._kept.items():
            handles = [kept.pidfd] + ([kept.stdin] if kept.stdin >= 0 else [])
            self._send({"event": "holds", "id": identity}, handles)

    def _forget_layers(self, _message: Message, _: list[int], sequence: int) -> None:
        self._context.layers.keep_only_existing()
        self._reply(sequence, {})

    def _adopt(self, message: Message, descriptors: list[int], sequence: int) -> None:
        """Take over a container from a keeper that died, with the handles the daemon saved."""
        handles = list(descriptors)
        pidfd = handles.pop(0) if message.get("pidfd") and handles else -1
        stdin = handles[0] if handles else -1
        identity = str(message["id"])
        if identity in self._kept:
            for descriptor in descriptors:
                os.close(descriptor)
        elif not self.adopt(f"{self._run}/workloads/{identity}", stdin, pidfd):
            for descriptor in descriptors:
                os.close(descriptor)
            raise MissingError(f"container {identity[:12]} does not run any more")
        self._reply(sequence, {})

    def adopt(self, run: str, stdin: int = -1, pidfd: int = -1) -> bool:
        """Hold the container of the run directory *run* again; False if it does not run.

        With its *pidfd* also one that has just ended: its end is then told like any.
        """
        try:
            with open(f"{run}/keeper.json", encoding="utf-8") as file:
                record = json.load(file)
            sandbox: Sandbox = record["sandbox"]
            pid = int(record["pid"])
            if found := pidfd < 0:
                pidfd = os.pidfd_open(pid)
        except (OSError, ValueError, KeyError):
            return False
        if found and _start_time(pid) != record["start_time"]:
            os.close(pidfd)
            return False
        group = self._context.layout.group(sandbox["cgroup"]["path"])
        kept = Kept(sandbox, pid, int(record["start_time"]), pidfd, group, stdin=stdin)
        sources = []
        terminal = stdin if sandbox["process"]["tty"] else -1
        if not sandbox["process"]["tty"]:
            for number, name in ((STDOUT, "stdout"), (STDERR, "stderr")):
                with contextlib.suppress(OSError):
                    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
                    sources.append((number, os.open(f"{run}/{name}", flags)))
        self._keep(kept, sources, terminal)
        self.watch(pidfd, select.EPOLLIN, lambda _: self._exited(kept))
        return True


def wait_for(pidfd: int) -> tuple[int, bool]:
    """Reap what ended behind *pidfd*: its exit code, and whether that is known.

    A child of a keeper that died was reaped by another; newer kernels still tell (pidfd info).
    """
    try:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    except ChildProcessError:
        status = process.exit_status(pidfd)
        return (255, False) if status is None else (process.exit_code(status), True)
    if result is None:
        return 255, False
    if result.si_code == os.CLD_EXITED:
        return result.si_status, True
    return 128 + result.si_status, True


def usage(group: cgroup.Group) -> Message:
    """What the container used until its end, as far as the kernel still says."""
    try:
        cpu_ns, memory_peak = group.totals()
    except OSError:
        return {}
    return {"cpu_ns": cpu_ns, "memory_peak": memory_peak}


def write_new(path: str, content: bytes) -> None:
    """A file that appears whole; it lives in the boot's run directory, so it is not synced."""
    descriptor = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, content)
    finally:
        os.close(descriptor)
    os.rename(f"{path}.new", path)


def _start_time(pid: int) -> int:
    try:
        return process.start_time(pid)
    except ProcessLookupError:
        return 0


def main(arguments: list[str]) -> int:
    """``keeper RUN_DIR``: serve on RUN_DIR/keeper.sock until nothing is left to keep."""
    run = arguments[0]
    lock = os.open(f"{run}/keeper.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0  # another keeper is alive
    os.truncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())
    process.set_name("tare-keeper")
    process.set_dumpable(dumpable=False)  # and so are the children, until they exec
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    path = f"{run}/keeper.sock"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    os.umask(0o077)
    listener.bind(path)
    listener.listen(8)
    os.umask(0o022)  # what else is private says so itself; a container must read its own cgroup
    points = os.environ.get("TARE_TEST_POINTS")
    rootless = process.in_user_namespace()
    stub = Stub.make()
    last_capability = confine.last_capability()
    test_points = os.open(points, os.O_RDONLY | os.O_DIRECTORY) if points else None
    layout = cgroup.detect(privileged=False if rootless else None).plain()
    spares = stock = None
    if layout.mode in (cgroup.Mode.V1, cgroup.Mode.NONE) and not rootless:
        spares = Spares(_SPARES, stub, last_capability, test_points)
        stock = Stock(_SPARES, layout)
    context = Context(
        spares=spares,
        stock=stock,
        layout=layout,
        layers=rootfs.Layers(),
        stub=stub,
        last_capability=last_capability,
        test_points=test_points,
        own_pid_namespace=os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC),
        rootless=rootless,
        nofile_hard=hard,
    )
    os.makedirs(f"{run}/workloads", 0o700, exist_ok=True)
    keeper = Keeper(run, context)
    for name in os.listdir(f"{run}/workloads"):
        # Those with a terminal or open stdin wait for the daemon, which holds their handles.
        with contextlib.suppress(OSError, ValueError, KeyError):
            with open(f"{run}/workloads/{name}/keeper.json", encoding="utf-8") as file:
                program = json.load(file)["sandbox"]["process"]
            if not (program["tty"] or program["stdin"]):
                keeper.adopt(f"{run}/workloads/{name}")
    # What is here now is here for good: no collection writes to it, and children share it.
    gc.collect()
    gc.freeze()
    keeper.serve(listener)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
