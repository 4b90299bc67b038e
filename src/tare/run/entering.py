"""Another program in a running sandbox (``exec``): joining instead of making.

The keeper joins the container's pid namespace for its children only, clones, and goes back; so
one clone is enough, and the program is the keeper's own child. The child waits until it is in
the cgroup, is not dumpable before it can be seen inside, joins the other namespaces by pidfd,
and ends in the same steps as a first process (`handover.finish`), under the same walls.
"""

from __future__ import annotations

import os
import socket
import stat
from typing import NoReturn

from tare.errors import ConflictError, FailedError
from tare.kernel import files, process
from tare.run import handover
from tare.run.launching import Context, Launch, apply_limits, spawn_staged
from tare.run.sandbox import ExecPlan, Sandbox

_ALL = (
    process.CLONE_NEWUSER | process.CLONE_NEWNS | process.CLONE_NEWIPC | process.CLONE_NEWUTS
    | process.CLONE_NEWNET | process.CLONE_NEWCGROUP
)  # fmt: skip


def enter(
    plan: ExecPlan, sandbox: Sandbox, container: int, stdio: list[int], context: Context
) -> Launch:
    """Start the child; *container* is the pidfd of the container's first process.

    *stdio* is empty with a terminal, else the program's ends of stdin (or -1), stdout, stderr:
    they become the child's and are closed here.
    """
    program = plan["process"]
    group = context.layout.group(plan["cgroup"])
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    stand_in = -1
    streams = stdio
    owner = sandbox["id_map"][0] if sandbox["id_map"] else 0
    for descriptor in stdio:
        # As with a first process: the program may reopen its own streams (/dev/stdout).
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            os.fchown(descriptor, owner, owner)
    if not stdio:
        stand_in = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        streams = [stand_in, stand_in, stand_in]
    inherited = handover.Inherited(
        control=theirs,
        stdin=streams[0] if program["stdin"] and stdio else None,
        stdout=streams[1],
        stderr=streams[2],
        stub=context.stub,
        last_capability=context.last_capability,
        test_points=context.test_points,
        tasks=group.open_tasks(),
    )
    born_in = group.open_directory()
    joined = _namespaces(sandbox)
    own_pids = bool(sandbox["flags"] & process.CLONE_NEWPID) or "pid" in sandbox["join"]
    work = Launch(sandbox, ours, group)
    try:
        if own_pids and context.rootless:
            # Without privilege over the host's pid namespace there would be no way back to it.
            spawn_staged(
                work,
                lambda: process.join_namespaces(container, process.CLONE_NEWPID),
                lambda: _inside(program["tty"], plan, inherited, container, joined),
                0,
                born_in,
            )
        else:
            if own_pids:
                process.join_namespaces(container, process.CLONE_NEWPID)
            try:
                work.pid, work.pidfd = process.spawn(0, cgroup=born_in)
                if work.pid == 0:
                    _inside(program["tty"], plan, inherited, container, joined)
            finally:
                if own_pids:
                    process.join_namespaces(context.own_pid_namespace, process.CLONE_NEWPID)
        apply_limits(work.pid, program["rlimits"], program["oom_score_adj"], work.warnings)
        ours.send(b"go")
    except OSError as error:
        _undo(work)
        if isinstance(error, ProcessLookupError | FileNotFoundError):
            raise ConflictError(f"container {plan['id'][:12]} is not running") from error
        raise FailedError(f"cannot exec: {error.strerror}", exit_code=126) from error
    finally:
        theirs.close()
        for descriptor in (stand_in, -1 if born_in is None else born_in, *inherited.tasks):
            if descriptor >= 0:
                os.close(descriptor)
    return work


def _undo(work: Launch) -> None:
    work.control.close()
    if work.pidfd >= 0:
        os.kill(work.pid, 9)
        os.waitid(os.P_PIDFD, work.pidfd, os.WEXITED)
        os.close(work.pidfd)
        work.pidfd = -1


def _namespaces(sandbox: Sandbox) -> int:
    """The kinds that the container does not share with the keeper."""
    kinds = sandbox["flags"] & _ALL
    names = {
        "network": process.CLONE_NEWNET,
        "ipc": process.CLONE_NEWIPC,
        "uts": process.CLONE_NEWUTS,
        "user": process.CLONE_NEWUSER,
    }
    for name in sandbox["join"]:
        kinds |= names.get(name, 0)
    if sandbox["cgroup_namespace"]:
        kinds |= process.CLONE_NEWCGROUP
    return kinds


def _inside(
    tty: bool,
    plan: ExecPlan,
    inherited: handover.Inherited,
    container: int,
    kinds: int,
) -> NoReturn:
    control = inherited.control
    try:
        process.set_dumpable(dumpable=False)
        handover.join_cgroups(inherited)
        os.setsid()
        if control.recv(16) != b"go":
            os._exit(125)
        process.join_namespaces(container, kinds)
        if kinds & process.CLONE_NEWUSER:
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
        os.umask(0o022)
        process.new_session_keyring()
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        terminal = None
        if tty:
            pts = files.open_beneath(root, "dev/pts", os.O_PATH | os.O_DIRECTORY)
            terminal = handover.open_terminal(pts, control)
        handover.finish(plan["process"], inherited, root, terminal=terminal)
    except BaseException as error:  # the child must report and end, whatever it is
        handover.fail(control, error)
    os._exit(handover.CANNOT_EXECUTE)
