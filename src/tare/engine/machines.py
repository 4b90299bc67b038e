"""The driver of machines: QEMU below a relay, started by the keeper like any first process.

A machine differs from a container in what its sandbox is planned from (`vm.machine`) and in how a
program in it is asked for; streams, limits, exits, freezing and leftovers are those of
`engine.sandboxes`, which this inherits and to which it leaves containers.

Not for: what a machine is made of (vm.machine), or kernels (vm.kernels).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import secrets
import shutil
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import tare
from tare.engine.driver import Ended, Held, Request, Started
from tare.engine.paths import Paths
from tare.engine.sandboxes import Sandboxes
from tare.errors import FailedError, MissingError, TareError, UnsupportedError
from tare.kernel import cgroup
from tare.kernel.interfaces import Attacher
from tare.model.record import ExecRecord, Record
from tare.model.spec import ContainerSpec, ExecSpec, Isolation, Resources
from tare.run.plan import Host, plan, plan_exec
from tare.run.sandbox import ExecPlan, Sandbox
from tare.vm import disks, machine, probe, relay
from tare.vm.kernels import Kernels

_HARD_KILL: Final = 8.0
"""Seconds that a relay has to end its machine by itself before it is killed."""
_PACKAGE: Final = Path(tare.__file__).resolve().parent


class Machines(Sandboxes):
    """Implements `engine.driver.Driver` for both isolations, by the record's."""

    def __init__(self, paths: Paths, host: Host, layout: cgroup.Layout) -> None:
        super().__init__(paths, host, layout)
        self.kernels = Kernels(paths.state / "kernels")
        self._boot: machine.Boot | None = None
        self._tsc_khz: int | None = None
        self._booting = asyncio.Lock()
        self._attacher: Attacher | None = None
        self._starting: dict[str, asyncio.Future[Ended]] = {}

    def check(self, request: Request) -> Sequence[str]:
        """Refuse what a machine or this host does not have, before anything is made."""
        if not is_machine(request.record):
            return super().check(request)
        _check_host(self._host)
        machine.check(request.record.spec, len(request.layers), request.interfaces)
        self._own_plan(request)
        return ()

    async def start(self, request: Request) -> Started:
        """Prepare kernel and disk where they are missing, then as any sandbox."""
        if not is_machine(request.record):
            return await super().start(request)
        with contextlib.ExitStack() as closing:
            try:
                machine.check(request.record.spec, len(request.layers), request.interfaces)
                boot = await self._ready()
                door = await asyncio.to_thread(self._prepare, request, boot, closing)
                links = self._links(request, closing)
            except BaseException:
                _close_readers(request)
                raise
            return await self._start_behind(request, door, links)

    async def _start_behind(
        self, request: Request, door: socket.socket, links: list[int]
    ) -> Started:
        """Start the relay, give it its links at the *door*, and wait for the program to run."""
        record = request.record
        ended: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        self._starting[record.id] = ended
        try:
            # The links are ours to make: the sandbox itself has none.
            started = await super().start(dataclasses.replace(request, interfaces=()))

            async def met() -> None:
                # Not before: the file server must find the relay listening.
                if self._shares(request):
                    await self._serve_files(record, started)

            telling = asyncio.create_task(_visit(door, links, met))
            try:
                await asyncio.wait((telling, ended), return_when=asyncio.FIRST_COMPLETED)
                words = telling.result() if telling.done() else b""
            except (TareError, OSError):
                os.kill(started.pid, signal.SIGKILL)
                await ended
                await self.acknowledge(record.id)
                raise
            finally:
                telling.cancel()
            await self._up(record, words, ended, started)
        finally:
            self._starting.pop(record.id, None)
        return started

    async def _up(
        self, record: Record, words: bytes, ended: asyncio.Future[Ended], started: Started
    ) -> None:
        """By what the relay said: go on, or FailedError with the exit code of what failed."""
        if words == relay.STARTED:
            if ended.done():  # it has run, and that is how it is told
                self._starting.pop(record.id, None)
                asyncio.get_running_loop().call_soon(self._on_end, ended.result())
            return
        end = await ended
        if started.stdin >= 0:
            os.close(started.stdin)
        await self.acknowledge(record.id)
        code, _, reason = words.decode("utf-8", "replace").partition(" ")
        number = int(code) if code.isdigit() else end.code
        if not reason:
            reason = "the virtual machine was killed while it came up"
        if end.oom_killed:
            reason += ": its memory limit is too low"
        raise FailedError(reason, exit_code=number if number in (126, 127) else 125)

    async def open(
        self, on_end: Callable[[Ended], None], on_lost: Callable[[], None]
    ) -> Mapping[str, Held]:
        """As for containers; the end of a machine that still comes up is for its start to tell."""

        def ended(end: Ended) -> None:
            waiting = self._starting.get(end.id) if end.exec_id is None else None
            if waiting is not None and not waiting.done():
                waiting.set_result(end)
            else:
                on_end(end)

        return await super().open(ended, on_lost)

    def signal(self, record: Record, number: int) -> bool:
        """The relay passes signals on; one that it cannot catch goes by another number."""
        if is_machine(record):
            number = relay.FREEZE if number == signal.SIGSTOP else number
        return super().signal(record, number)

    def kill(self, record: Record) -> None:
        """SIGKILL the program; what it wrote reaches its disk. A machine that hangs is cut off."""
        if not is_machine(record):
            super().kill(record)
            return
        super().signal(record, relay.KILL)
        asyncio.get_running_loop().call_later(_HARD_KILL, self._kill_hard, record)

    def _kill_hard(self, record: Record) -> None:
        with contextlib.suppress(OSError):
            super().kill(record)

    def update(self, record: Record, resources: Resources) -> Sequence[str]:
        """The limits of QEMU; its guest's memory and processors stay what they began with."""
        if is_machine(record):
            before = record.spec.resources
            spec = dataclasses.replace(record.spec, resources=resources)
            if resources.memory != before.memory:
                raise UnsupportedError("the memory of a running virtual machine cannot be changed")
            machine.check(spec, 1)
            resources = machine.bare(spec).resources
        return super().update(record, resources)

    # --- inside -------------------------------------------------------------------------------

    async def _ready(self) -> machine.Boot:
        """What a machine boots with: looked up each time, for there may be a newer kernel."""
        async with self._booting:
            self._boot = await asyncio.to_thread(self._look)
            return self._boot

    def _look(self) -> machine.Boot:
        kernel = self.kernels.prepare()
        self.kernels.skeleton()
        self.kernels.blank(disks.SIZE)
        if self._tsc_khz is None:
            self._tsc_khz = self.kernels.tsc_khz()
        boot = machine.Boot(
            kernel=os.fspath(kernel.vmlinux),
            initramfs=os.fspath(kernel.initramfs),
            tsc_khz=self._tsc_khz,
        )
        return dataclasses.replace(boot, kvm=probe.kvm(self.kernels.directory, boot).works)

    async def _serve_files(self, record: Record, started: Started) -> None:
        """Start the file server in the machine's sandbox; it ends with the machine."""
        walls, process = machine.file_server(record.spec)
        place = self._place(Request(record, ()))
        wanted = plan_exec(walls, ExecSpec(process=process), place, self._host)
        wanted["exec_id"] = f"files-{record.id[:12]}"
        wanted["pid"], wanted["start_time"] = started.pid, started.start_time
        null = [os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC) for _ in range(3)]
        execed = await self._connected().exec(wanted, (null[0], null[1], null[2]))
        os.close(execed.pidfd)

    def _shares(self, request: Request) -> list[machine.Share]:
        """The binds and volumes; UnsupportedError for what is neither a file nor a directory."""
        found = []
        for share in machine.shares_of(request.record.spec, self._own_plan(request)):
            source = Path(share.bind["source"])
            if source.exists() and not source.is_dir():
                if not source.is_file():
                    raise UnsupportedError(
                        f"{source} cannot be shared with a virtual machine: it is neither a file"
                        " nor a directory",
                        hint="a socket or device of the host is of no use to another kernel",
                    )
                share = dataclasses.replace(share, name="file")
            found.append(share)
        return found

    def _links(self, request: Request, closing: contextlib.ExitStack) -> list[int]:
        """Descriptors of tap devices, ports of the bridges as a container's links are."""
        if self._attacher is None:
            self._attacher = Attacher()
        links = []
        for wanted in request.interfaces:
            try:
                links.append(self._attacher.tap(wanted))
            except OSError as error:
                where = f" ({os.fsdecode(error.filename)})" if error.filename else ""
                raise FailedError(
                    f"cannot link the machine to its network: {error.strerror}{where}",
                    exit_code=125,
                ) from error
            closing.callback(os.close, links[-1])
        return links

    def _prepare(
        self, request: Request, boot: machine.Boot, closing: contextlib.ExitStack
    ) -> socket.socket:
        """The machine's directory, its disk if it has none yet, and the plan of this start.

        The socket is where the relay asks for its links and tells how the start went.
        """
        record = request.record
        directory = _directory(record)
        directory.mkdir(mode=0o700, exist_ok=True)
        if not (directory / "upper").exists():
            disks.copy_sparse(self.kernels.blank(disks.SIZE), directory / "upper")
        inner = self._own_plan(request)
        own = _disks(request)
        begin = machine.beginning(
            record.spec,
            inner["process"],
            inner["operations"],
            self._files(request),
            links=request.interfaces,
            shares=self._shares(request),
            layers=len(own.layers),
            entropy=secrets.token_bytes(64),
            now_ns=time.time_ns(),
        )
        process = record.spec.process
        content = machine.plan_file(
            machine.arguments(record.spec, own, boot, request.interfaces),
            begin,
            tty=process.tty,
            stdin=process.open_stdin,
        )
        file = os.open(directory / "plan", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(file, "wb") as out:
            out.write(content)
        return _door(directory, closing)

    def _files(self, request: Request) -> dict[str, bytes]:
        place = self._place(request)
        return {target: Path(source).read_bytes() for target, source in place.files.items()}

    def _own_plan(self, request: Request) -> Sandbox:
        """What would be planned for a container: the program and its mounts are taken from it."""
        return plan(_own_kernel(request.record.spec), self._place(request), self._host)

    def _sandbox(self, request: Request) -> Sandbox:
        if not is_machine(request.record):
            return super()._sandbox(request)
        assert self._boot is not None
        record = request.record
        directory = os.fspath(_directory(record))
        spec = machine.sandbox_spec(
            record.spec,
            _disks(request),
            self._boot,
            directory=directory,
            package=os.fspath(_PACKAGE),
        )
        place = dataclasses.replace(
            self._place(request),
            layers=(os.fspath(self.kernels.skeleton()),),
            files={},
        )
        sandbox = plan(spec, place, self._host)
        sandbox["root"]["upper"] = f"{directory}/over"
        sandbox["root"]["work"] = f"{directory}/work"
        machine.add_shares(sandbox, self._shares(request))
        return sandbox

    def _program(self, record: Record, instance: ExecRecord) -> ExecPlan:
        if not is_machine(record):
            return super()._program(record, instance)
        place = self._place(Request(record, ()))
        inner = plan_exec(_own_kernel(record.spec), instance.spec, place, self._host)
        walls = machine.bare(record.spec)
        wish = ExecSpec(process=machine.exec_words(inner["process"]))
        return plan_exec(walls, wish, place, self._host)


def _door(directory: Path, closing: contextlib.ExitStack) -> socket.socket:
    """A listening socket named ``door`` in the machine's directory."""
    (directory / "door").unlink(missing_ok=True)
    door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    closing.callback(door.close)
    # Through the descriptor: the path may be longer than a socket's name can be.
    handle = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        door.bind(f"/proc/self/fd/{handle}/door")
    finally:
        os.close(handle)
    (directory / "door").chmod(0o600)
    door.listen(1)
    door.setblocking(False)
    return door


async def _visit(
    door: socket.socket, links: list[int], met: Callable[[], Awaitable[None]]
) -> bytes:
    """Let the relay in, hand it *links*, and hear how its start went; empty when it is gone.

    *met* is awaited once it is in.
    """
    loop = asyncio.get_running_loop()
    visitor, _ = await loop.sock_accept(door)
    with visitor:
        await met()
        try:
            socket.send_fds(visitor, [b"links"], links)
            return await loop.sock_recv(visitor, 8192)
        except OSError:
            return b""


def _close_readers(request: Request) -> None:
    for pipes in request.readers:
        for end in (pipes.stdout, pipes.stderr):
            if end >= 0:
                os.close(end)


def is_machine(record: Record) -> bool:
    """Whether the record is of a machine."""
    return record.spec.isolation is Isolation.VM


def _own_kernel(spec: ContainerSpec) -> ContainerSpec:
    """*spec* without what only the host's kernel gives: the guest's own has all of it."""
    return dataclasses.replace(spec, sysctls={})


def _directory(record: Record) -> Path:
    return Path(record.workload_dir) / "machine"


def _disks(request: Request) -> machine.Disks:
    return machine.Disks(
        layers=[os.fspath(path) for path in request.layers],
        upper=f"{_directory(request.record)}/upper",
    )


def _check_host(host: Host) -> None:
    if host.rootless:
        raise UnsupportedError(
            "virtual machines need the engine of root", hint="run the engine as root"
        )
    if host.machine != "x86_64":
        raise UnsupportedError(f"virtual machines run on x86-64 hosts, and this is {host.machine}")
    for path, package in ((machine.QEMU, "qemu-system-x86"), (machine.PYTHON, "python3")):
        if not os.access(path, os.X_OK):
            raise MissingError(
                f"virtual machines need {path}, which is not on this host",
                hint=f"apt-get install {package}",
            )
    if shutil.which("mke2fs", path="/usr/sbin:/sbin") is None:
        raise MissingError(
            "virtual machines need mke2fs, which is not on this host",
            hint="apt-get install e2fsprogs",
        )
