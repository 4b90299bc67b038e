"""Starting a sandbox: what the keeper does outside, beside what `run.init` does inside.

The child is cloned first and sets up what needs nothing from here, while this side writes the id
maps, joins the cgroup, and makes the overlay, /dev and the binds, which need the host's
privilege. Then everything goes over as descriptors. The keeper is not blocked while the child
finishes: `Launch.answer` is called when the child says something.
"""

from __future__ import annotations

import array
import contextlib
import errno
import json
import os
import resource
import signal
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from tare.errors import (
    ConflictError,
    FailedError,
    InvalidError,
    MissingError,
    TareError,
    UnsupportedError,
)
from tare.kernel import cgroup, files, mount, process
from tare.kernel.interfaces import Attacher, Interface, Prepared
from tare.run import devices, handover, init, rootfs, spares, uplink
from tare.run.sandbox import Bind, Sandbox
from tare.run.spares import Spare, Spares
from tare.run.stock import Stock
from tare.run.stub import Stub


@dataclass(slots=True)
class Context:
    """What the keeper has for every launch."""

    layout: cgroup.Layout
    layers: rootfs.Layers
    stub: Stub
    last_capability: int
    test_points: int | None
    own_pid_namespace: int
    rootless: bool
    nofile_hard: int
    spares: Spares | None = None
    stock: Stock | None = None
    attacher: Attacher | None = None  # made with the first container on a network
    deferred: list[int] = field(default_factory=list)  # descriptors to close when idle

    def close_deferred(self) -> None:
        """Close what could wait."""
        while self.deferred:
            os.close(self.deferred.pop())


@dataclass(slots=True)
class Launch:
    """A child on its way to its program: its handles, and how to undo everything."""

    sandbox: Sandbox
    control: socket.socket
    group: cgroup.Group
    pid: int = 0
    pidfd: int = -1
    stdout: int = -1  # reading ends, or -1
    stderr: int = -1
    stdin: int = -1  # writing end
    terminal: int = -1  # master
    kept: list[int] = field(default_factory=list)  # closed late, to keep teardown off the exit
    warnings: list[str] = field(default_factory=list)
    ready: bool = False
    owner: int = 0  # of the user namespace; 0 when it has none of its own

    def answer(self) -> bool:
        """Take what the child says; True when its program runs; a TareError when it failed."""
        while True:
            try:
                data, ancillary, _, _ = self.control.recvmsg(init.MAXIMUM_FDS * 512, 64)
            except BlockingIOError:
                return False
            except ConnectionResetError:
                # It ended without reading all that we sent. The kernel tells that once, and
                # before what the child itself said (unix_release_sock): that comes next.
                continue
            received = _descriptors(ancillary)
            if data == b"terminal" and len(received) == 1 and self.terminal < 0:
                self.terminal = received[0]
                os.set_inheritable(self.terminal, False)
                continue
            for descriptor in received:
                os.close(descriptor)
            if received:
                raise self._died()
            if data == handover.READY:
                self.ready = True
            elif not data:
                if self.ready:
                    return True
                raise self._died()
            else:
                raise failure(data, self.sandbox["process"]["args"][0])

    def _died(self) -> TareError:
        with contextlib.suppress(OSError):
            if self.group.oom_kills():
                return FailedError(
                    "the container was killed while it was set up: its memory limit is too low",
                    hint="give it more --memory",
                    exit_code=125,
                )
        return FailedError("the container's first process died while it was set up", exit_code=125)

    def abandon(self) -> None:
        """Undo: nothing of the launch is left."""
        self.control.close()
        if self.pidfd >= 0:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        for descriptor in (
            self.pidfd, self.stdout, self.stderr, self.stdin, self.terminal, *self.kept,
        ):  # fmt: skip
            if descriptor >= 0:
                os.close(descriptor)
        self.pidfd = self.stdout = self.stderr = self.stdin = self.terminal = -1
        self.kept.clear()
        with contextlib.suppress(OSError):
            self.group.kill()
            self.group.remove()
        remove_run_directory(self.sandbox["run_dir"])


def failure(report: bytes, program: str) -> TareError:
    """The error for what a child reported: the stub's errno, or `handover.fail`'s JSON."""
    if len(report) == 4:  # the stub's errno
        number = int.from_bytes(report, "little")
        words = os.strerror(number).lower()
        not_found = number in (errno.ENOENT, errno.ENOTDIR)
        code = handover.NOT_FOUND if not_found else handover.CANNOT_EXECUTE
        hint = ""
        if number == errno.ENOEXEC:
            words = "exec format error"
            hint = "it is no program for this machine: wrong architecture, or a script without #!"
        elif not_found:
            hint = "the file, its interpreter (#!) or its dynamic loader is not in the image"
        return FailedError(f'exec: "{program}": {words}', hint=hint, exit_code=code)
    try:
        parsed = json.loads(report)
        words, hint = str(parsed["error"]), str(parsed["hint"])
        code = int(parsed["exit_code"]) & 0xFF
        kind = InvalidError if parsed["kind"] == "invalid" else FailedError
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return FailedError("the container's set-up failed", exit_code=125)
    return kind(words, hint=hint, exit_code=code)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    numbers = array.array("i")
    for _, _, content in ancillary:
        numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
    return numbers.tolist()


def remove_run_directory(path: str) -> None:
    """Delete a container's run directory; its few files have fixed names."""
    uplink.end(path)
    for name in ("stdout", "stderr", "exit", "exit.new", "keeper.json", *uplink.FILES):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{path}/{name}")
    with contextlib.suppress(OSError):
        os.rmdir(path)


def launch(sandbox: Sandbox, context: Context) -> Launch:
    """Clone the child and hand it everything; raises TareError with nothing left behind."""
    # The group's name is the container's: one of a crashed start may be left, and is replaced.
    group = context.layout.group(sandbox["cgroup"]["path"])
    job = spare = None
    if sandbox["ordinary"] and context.spares is not None:
        job = spares.job(sandbox)
        spare = context.spares.take(sandbox["interfaces"]) if job is not None else None
    theirs = None
    if spare is None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        work = Launch(sandbox, ours, group)
    else:
        work = Launch(sandbox, spare.control, group, spare.pid, spare.pidfd)
    try:
        try:
            if spare is not None and job is not None:
                spares.tell(spare.control, job)
            _launch(work, theirs, spare, context)
        finally:
            if theirs is not None:
                theirs.close()
    except TareError:
        work.abandon()
        raise
    except cgroup.LimitError as error:
        work.abandon()
        kind = InvalidError if isinstance(error, cgroup.RefusedLimitError) else UnsupportedError
        raise kind(str(error.strerror), hint=error.hint, exit_code=125) from error
    except OSError as error:
        try:
            if work.pid:
                work.answer()  # a child that died of something said so: ours only came of it
        except TareError as told:
            work.abandon()
            raise told from error
        work.abandon()
        raise FailedError(
            f"cannot set up the container: {error.strerror}"
            + (f" ({error.filename})" if error.filename else ""),
            exit_code=125,
        ) from error
    return work


def _launch(
    work: Launch, theirs: socket.socket | None, spare: Spare | None, context: Context
) -> None:
    """The steps, in the order that keeps both sides busy.

    A spare is there already: it gets its root first and enters it while the streams and the
    cgroup are made. A child that must be cloned is born with its streams and in its group.
    """
    with contextlib.ExitStack() as closing:
        made = _devices(work, context, closing)
        if spare is not None:
            work.owner = spare.owner
            _limit(work)
            _link(work, context, spare.link)
            _hand_over_root(work, made, context, closing)
            inherited = _streams(work, work.control, context, closing)
            _make_group(work, made.rules, inherited, context, closing)
            streams = [inherited.stdout, inherited.stderr, *inherited.tasks]
            if inherited.stdin is not None:
                streams.insert(0, inherited.stdin)
            _pass(work.control, init.STREAMS, streams)
        else:
            inherited = _streams(work, theirs or work.control, context, closing)
            _make_group(work, made.rules, inherited, context, closing)
            _clone(work, inherited, closing)
            _limit(work)
            _link(work, context, None)
            _hand_over_root(work, made, context, closing)
    # Tearing down namespaces takes long: these are kept until the exit is reported.
    for kind, flag in (("mnt", process.CLONE_NEWNS), ("ipc", process.CLONE_NEWIPC)):
        if work.sandbox["flags"] & flag:
            path = f"/proc/{work.pid}/ns/{kind}"
            with contextlib.suppress(FileNotFoundError):  # it has ended already
                work.kept.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))


def _link(work: Launch, context: Context, prepared: Prepared | None) -> None:
    """The interfaces of its own network namespace; loopback is the child's work.

    Before the root goes over, so that they are there when sysctls that name them are written.
    The outer ends go when the namespace does, however this process ends.
    """
    if not work.sandbox["flags"] & process.CLONE_NEWNET:
        return
    namespace = os.open(f"/proc/{work.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    # Kept too until the exit is reported, see `_launch`.
    work.kept.append(namespace)
    for plain in work.sandbox["interfaces"]:
        if plain["kind"] == uplink.USER:
            continue  # see _hand_over_root
        if context.attacher is None:
            context.attacher = Attacher()
        try:
            context.attacher.attach(Interface.of(plain), namespace, prepared)
            prepared = None  # it was for the first
        except OSError as error:
            where = f" ({os.fsdecode(error.filename)})" if error.filename else ""
            raise FailedError(
                f"cannot link the container to its network: {error.strerror}{where}",
                hint="look whether the bridge of its network is there: ip link",
                exit_code=125,
            ) from error


def _devices(work: Launch, context: Context, closing: contextlib.ExitStack) -> devices.Devices:
    sandbox = work.sandbox
    tree = None
    if context.stock is not None and _usual_devices(sandbox):
        tree = context.stock.take_devices()
    if tree is not None:
        made = devices.Devices(tree, cgroup.DEFAULT_DEVICES, shifted=False)
    elif context.rootless:
        made = devices.make_empty(sandbox["devices"])
    else:
        made = devices.make(
            sandbox["devices"],
            sandbox["id_map"][0] if sandbox["id_map"] else 0,
            everything=sandbox["all_devices"],
            rules=sandbox["cgroup"]["devices"],
        )
    closing.callback(os.close, made.tree)
    return made


def _usual_devices(sandbox: Sandbox) -> bool:
    special = sandbox["devices"] or sandbox["all_devices"] or sandbox["cgroup"]["devices"]
    return not special


def _clone(work: Launch, inherited: handover.Inherited, closing: contextlib.ExitStack) -> None:
    """The child, born in its version 2 group where there is one."""
    sandbox = work.sandbox
    flags = sandbox["flags"]
    born_in = work.group.open_directory()
    if born_in is not None:
        closing.callback(os.close, born_in)
    if sandbox["join"]:
        _spawn_joined(work, inherited, born_in)
        return
    if sandbox["id_map"] is not None and flags & process.CLONE_NEWUSER:
        # Who owns a new user namespace has all privilege over it, CAP_SYS_RESOURCE too.
        work.owner = sandbox["id_map"][0]
    # A child's credentials begin anew with its user namespace; and it never returns.
    with process.owning(work.owner):
        work.pid, work.pidfd = process.spawn(flags, cgroup=born_in)
        if work.pid == 0:
            init.enter(sandbox, inherited)


def _hand_over_root(
    work: Launch, made: devices.Devices, context: Context, closing: contextlib.ExitStack
) -> None:
    """Map the ids, make the overlay and the binds, and send them."""
    sandbox = work.sandbox
    id_map = sandbox["id_map"]
    if id_map is not None and sandbox["flags"] & process.CLONE_NEWUSER:
        rootfs.write_id_maps(work.pid, id_map)
    user_namespace = -1
    if id_map is not None and id_map[0] != 0:
        path = f"/proc/{work.pid}/ns/user"
        user_namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        closing.callback(os.close, user_namespace)
    root = _root(work, context, user_namespace, id_map[0] if id_map else 0)
    work.kept.append(root)
    if user_namespace >= 0 and not made.shifted:
        mount.map_ids(made.tree, user_namespace)
    trees = [root, made.tree]
    for wanted in sandbox["binds"]:
        tree = clone_bind(wanted, user_namespace, work.warnings)
        trees.append(tree)
        closing.callback(os.close, tree)
    for plain in sandbox["interfaces"]:
        if plain["kind"] == uplink.USER:  # its program enters the user namespace: ids mapped
            uplink.begin(Interface.of(plain), work.pid, sandbox["run_dir"])
    _send(work.control, trees)


_KINDS = {
    "user": process.CLONE_NEWUSER,
    "network": process.CLONE_NEWNET,
    "ipc": process.CLONE_NEWIPC,
    "uts": process.CLONE_NEWUTS,
    "pid": process.CLONE_NEWPID,
}


def _spawn_joined(work: Launch, inherited: handover.Inherited, born_in: int | None) -> None:
    """Clone into namespaces of other containers (``--network container:NAME``).

    New namespaces must be owned by the user namespace that is joined, so a first child joins,
    and clones the real one from there as our child (CLONE_PARENT); its pid comes back by a pipe.
    """
    sandbox = work.sandbox
    handles: list[tuple[int, int]] = []

    def join() -> None:
        handover.join_cgroups(inherited)
        inherited.tasks.clear()
        for handle, kind in handles:
            process.join_namespaces(handle, kind)

    try:
        # The user namespace first: joining the others needs its privilege.
        for name in sorted(sandbox["join"], key=lambda n: n != "user"):
            try:
                handles.append((os.pidfd_open(sandbox["join"][name]), _KINDS[name]))
            except ProcessLookupError:
                raise ConflictError(
                    f"the container whose {name} namespace is to be joined is not running",
                    exit_code=125,
                ) from None
        spawn_staged(work, join, lambda: init.enter(sandbox, inherited), sandbox["flags"], born_in)
    finally:
        for handle, _ in handles:
            os.close(handle)


def spawn_staged(
    work: Launch,
    join: Callable[[], None],
    inside: Callable[[], NoReturn],
    flags: int,
    born_in: int | None,
) -> None:
    """Clone twice: a first child calls *join*, and clones the one that calls *inside*.

    That one is our child too (CLONE_PARENT); its pid comes back by a pipe.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        stage, stage_fd = process.spawn(0, cgroup=born_in)
        if stage == 0:
            _stage(work.control, join, inside, flags, writing)
        os.close(writing)
        writing = -1
        answer = os.read(reading, 64)
        os.waitid(os.P_PIDFD, stage_fd, os.WEXITED)
        os.close(stage_fd)
        if not answer.isdigit():
            words = answer.decode("utf-8", "replace") or "the process that should do it died"
            raise FailedError(f"cannot join the namespaces: {words}", exit_code=125)
        work.pid = int(answer)
        work.pidfd = os.pidfd_open(work.pid)
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)


def _stage(
    control: socket.socket,
    join: Callable[[], None],
    inside: Callable[[], NoReturn],
    flags: int,
    writing: int,
) -> NoReturn:
    try:
        control.close()
        process.set_dumpable(dumpable=False)
        join()
        pid, _ = process.spawn(flags | process.CLONE_PARENT)
        if pid == 0:
            os.close(writing)
            inside()
        os.write(writing, str(pid).encode())
    except BaseException as error:  # the parent must hear of it, whatever it is
        os.write(writing, str(error).encode()[:60])
    finally:
        os._exit(0)


def _send(control: socket.socket, trees: list[int]) -> None:
    step = init.MAXIMUM_FDS
    for start in range(0, len(trees), step):
        batch = trees[start : start + step]
        word = b"go" if start + step >= len(trees) else b"more"
        _pass(control, word, batch)


def _pass(control: socket.socket, word: bytes, descriptors: list[int]) -> None:
    rights = array.array("i", descriptors)
    control.sendmsg([word], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])


def _streams(
    work: Launch, theirs: socket.socket, context: Context, closing: contextlib.ExitStack
) -> handover.Inherited:
    """The run directory and the ends of the program's standard streams."""
    sandbox = work.sandbox
    run = sandbox["run_dir"]
    try:
        os.mkdir(run, 0o700)
    except FileExistsError:
        remove_run_directory(run)
        os.makedirs(run, 0o700, exist_ok=True)
    owner = sandbox["id_map"][0] if sandbox["id_map"] else 0
    program = sandbox["process"]
    stdin: int | None = None
    stdout = stderr = -1
    if program["tty"]:
        # The terminal is made inside; these two stand in until it is there.
        stdout, stderr = (os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC) for _ in range(2))
    else:
        work.stdout, stdout = _fifo(f"{run}/stdout", owner)
        work.stderr, stderr = _fifo(f"{run}/stderr", owner)
        if program["stdin"]:
            stdin, work.stdin = os.pipe2(os.O_CLOEXEC)
            os.fchown(stdin, owner, owner)
            closing.callback(os.close, stdin)
    closing.callback(os.close, stdout)
    closing.callback(os.close, stderr)
    return handover.Inherited(
        control=theirs,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        stub=context.stub,
        last_capability=context.last_capability,
        test_points=context.test_points,
        tasks=[],
    )


def _fifo(path: str, owner: int) -> tuple[int, int]:
    """A named pipe: our reading end, and the program's, which is open for both (see `output`)."""
    os.mkfifo(path, 0o600)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    writing = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    if owner:
        os.fchown(writing, owner, owner)
    return reading, writing


def _make_group(
    work: Launch,
    rules: tuple[cgroup.DeviceRule, ...],
    inherited: handover.Inherited,
    context: Context,
    closing: contextlib.ExitStack,
) -> None:
    wanted = work.sandbox["cgroup"]
    prepared = None
    if context.stock is not None and _usual_devices(work.sandbox):
        prepared = context.stock.take_group(work.group.path)
    if prepared is not None:
        work.group, inherited.tasks, rules = prepared.group, prepared.tasks, ()
    else:
        work.group.create()
    work.warnings += work.group.apply(limits_of(wanted["limits"], wanted["throttles"], rules))
    if prepared is None:
        inherited.tasks = work.group.open_tasks()
    for descriptor in inherited.tasks:
        closing.callback(os.close, descriptor)


def limits_of(
    values: dict[str, int | str | bool | None],
    throttles: dict[str, list[tuple[str, int]]],
    rules: tuple[cgroup.DeviceRule, ...] = (),
) -> cgroup.Limits:
    """`cgroup.Limits` from a plan's values, device paths looked up on the host."""
    numbers = {
        name: tuple((*_block_device(path), rate) for path, rate in wanted)
        for name, wanted in throttles.items()
    }
    return cgroup.Limits(devices=rules, **values, **numbers)  # type: ignore[arg-type]  # the plan's keys are its fields


def _block_device(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise MissingError(f"no such device: {path} ({error.strerror})") from None
    if not stat.S_ISBLK(status.st_mode):
        raise InvalidError(f"{path} is not a block device: its I/O cannot be limited")
    return os.major(status.st_rdev), os.minor(status.st_rdev)


def _limit(work: Launch) -> None:
    """rlimits and the OOM score, from outside: raising needs the host's privilege.

    Before the root goes over: the child has our ids until then, so we may.
    """
    program = work.sandbox["process"]
    with process.owning(work.owner):
        apply_limits(work.pid, program["rlimits"], program["oom_score_adj"], work.warnings)


def apply_limits(
    pid: int,
    rlimits: list[tuple[int, int, int]],
    oom_score_adj: int | None,
    warnings: list[str],
) -> None:
    """prlimit(2) and /proc/PID/oom_score_adj; without CAP_SYS_RESOURCE clamped, and said."""
    for number, soft, hard in rlimits:
        if number == resource.RLIMIT_NOFILE:
            # The child holds copies of all our descriptors until its exec: it lowers this one
            # itself at the end (`handover`), and here it is at most raised.
            _, highest = resource.prlimit(pid, number)
            if highest == resource.RLIM_INFINITY or 0 <= hard <= highest:
                continue
            soft = hard
        try:
            resource.prlimit(pid, number, (soft, hard))
        except PermissionError:
            _, highest = resource.prlimit(pid, number)
            if highest != resource.RLIM_INFINITY:
                hard = highest if hard == resource.RLIM_INFINITY else min(hard, highest)
                soft = hard if soft == resource.RLIM_INFINITY else min(soft, hard)
            resource.prlimit(pid, number, (soft, hard))
            warnings.append(f"ulimit {number} was lowered to {hard}: no CAP_SYS_RESOURCE here")
    if oom_score_adj is not None:
        try:
            with open(f"/proc/{pid}/oom_score_adj", "w", encoding="ascii") as file:
                file.write(str(oom_score_adj))
        except PermissionError:
            warnings.append("oom_score_adj was not lowered: no CAP_SYS_RESOURCE here")


def _root(work: Launch, context: Context, user_namespace: int, owner: int) -> int:
    wanted = work.sandbox["root"]
    lowers: list[int] = []
    try:
        for path in wanted["layers"]:
            lowers.append(context.layers.clone(path))
        if user_namespace >= 0:
            rootfs.map_lowers(lowers, user_namespace)
        return rootfs.overlay(
            wanted,
            lowers,
            owner=owner,
            volatile=wanted["volatile"],
            user_xattr=context.rootless,
        )
    finally:
        # Letting go of a detached mount waits for RCU, up to a millisecond: not now.
        context.deferred += lowers


def clone_bind(wanted: Bind, user_namespace: int, warnings: list[str]) -> int:
    """A detached, private, possibly id-mapped clone of a host tree; MissingError names it."""
    source = wanted["source"]
    if "process" in wanted:
        return _borrow(wanted["process"], source)
    try:
        tree = rootfs.clone_below(source, wanted.get("subpath", ""), recursive=wanted["recursive"])
    except FileNotFoundError:
        if "volume" in wanted:
            what = f"subpath {wanted['subpath']!r} of " if "subpath" in wanted else ""
            raise MissingError(
                f"cannot mount {what}volume {wanted['volume']}: it does not exist",
                hint="make it first, by a container that mounts the whole volume",
                exit_code=125,
            ) from None
        if not wanted["create"]:
            raise MissingError(
                f"invalid mount config: bind source path does not exist: {source}",
                hint="create it first, or use -v, which makes missing directories",
                exit_code=125,
            ) from None
        os.makedirs(source, 0o755, exist_ok=True)
        tree = mount.clone_tree(source, recursive=wanted["recursive"], follow=True)
    try:
        propagation = mount.PROPAGATION[wanted["propagation"]]
        attributes = 0 if wanted["generated"] else mount.NODEV
        attributes |= mount.RDONLY if wanted["read_only"] else 0
        recursive = wanted["recursive"]
        mount.set_attributes(tree, attributes, propagation=propagation, recursive=recursive)
        if wanted["map_ids"] and user_namespace >= 0:
            _map_bind(tree, user_namespace, wanted, warnings)
    except BaseException:
        os.close(tree)
        raise
    return tree


def _borrow(pid: int, path: str) -> int:
    """A clone of the mount at *path* of another sandbox, taken by a child that enters it.

    Only for paths that the sandbox itself cannot change: mounts below its /dev.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        handle = os.pidfd_open(pid)
        child, child_fd = process.spawn(0)
        if child == 0:
            try:
                process.set_dumpable(dumpable=False)
                process.join_namespaces(handle, process.CLONE_NEWUSER | process.CLONE_NEWNS)
                root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                shared = files.open_beneath(root, path.lstrip("/"), os.O_PATH | os.O_DIRECTORY)
                rights = array.array("i", [mount.clone_tree_at(shared)])
                theirs.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            finally:
                os._exit(0)
        theirs.close()
        os.close(handle)
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_LEN(4))
        os.waitid(os.P_PIDFD, child_fd, os.WEXITED)
        os.close(child_fd)
    if not ancillary:
        raise FailedError(f"cannot share {path} of the other container", exit_code=125)
    numbers = array.array("i")
    numbers.frombytes(ancillary[0][2])
    os.set_inheritable(numbers[0], False)
    return numbers[0]


def _map_bind(tree: int, user_namespace: int, wanted: Bind, warnings: list[str]) -> None:
    """Shift a bind's ids; a file system that cannot (NFS, FUSE, already mapped) stays as it is.

    Its files then belong to nobody inside: safe, and said.
    """
    try:
        mount.map_ids(tree, user_namespace, recursive=wanted["recursive"])
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EPERM, errno.EOPNOTSUPP):
            raise
        if not wanted["generated"]:
            what = f"volume {wanted['volume']}" if "volume" in wanted else wanted["source"]
            warnings.append(
                f"the ids of {what} cannot be mapped, its file system cannot do that: its files"
                " belong to nobody inside (--userns=host shows their owners)"
            )
