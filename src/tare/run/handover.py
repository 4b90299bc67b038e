"""The last steps of every program in a sandbox, a first one and an exec'd one alike.

From its identity to the sealed stub: ids and groups from the image's files, its three standard
streams, its working directory, and giving up privilege in the order of rule 5 of `run.init`.

Not for: making the sandbox around it (`run.init`), or joining one (`run.entering`).
"""

from __future__ import annotations

import array
import base64
import errno
import fcntl
import json
import os
import resource
import signal
import socket
import stat
import struct
import termios
from dataclasses import dataclass
from typing import Final, NoReturn

from tare.errors import FailedError, InvalidError, TareError
from tare.kernel import confine, files, mount, process, seccomp
from tare.run import identity
from tare.run.sandbox import Process
from tare.run.stub import REPORT, Stub

READY: Final = b"exec"
"""The child's last word before exec: end-of-file after it is success, before it is death."""

CANNOT_EXECUTE: Final = 126
NOT_FOUND: Final = 127

MAXIMUM_MESSAGE: Final = 1 << 16
_TIOCSPTLCK: Final = 0x40045431
_TIOCGPTPEER: Final = 0x5441
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IGNORED: Final = (
    signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP, signal.SIGINT, signal.SIGTERM,
)  # fmt: skip


@dataclass(slots=True)
class Inherited:
    """What the child has from the keeper: opened before the clone."""

    control: socket.socket  # to the keeper: descriptors in, failures and the terminal out
    stdin: int | None  # read end of the container's input, None: /dev/null
    stdout: int
    stderr: int
    stub: Stub
    last_capability: int
    test_points: int | None  # directory of FIFOs that tests stop us at
    tasks: list[int]  # cgroup files to write 0 to


def join_cgroups(inherited: Inherited) -> None:
    """Move this thread into its groups; see `kernel.cgroup.Group.open_tasks`."""
    for descriptor in inherited.tasks:
        os.write(descriptor, b"0")
        os.close(descriptor)


def fail(control: socket.socket, error: BaseException) -> NoReturn:
    """Report *error* to the keeper and end this process."""
    code = getattr(error, "exit_code", 125)
    hint = getattr(error, "hint", "")
    if isinstance(error, TareError):
        words = str(error)
        code = 125 if code == 1 else code
    elif isinstance(error, OSError):
        words = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
    else:
        words = f"{type(error).__name__}: {error}"
    kind = "invalid" if isinstance(error, InvalidError) else "failed"
    report = json.dumps({"error": words, "hint": hint, "exit_code": code, "kind": kind})
    try:
        control.send(report.encode()[:MAXIMUM_MESSAGE])
    finally:
        os._exit(125)


def host_device(name: str) -> int:
    """A detached clone of the host's /dev/NAME, for an engine that cannot make nodes."""
    node = os.open(f"/dev/{name}", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISCHR(os.fstat(node).st_mode):
            raise FailedError(f"the host's /dev/{name} is not a character device")
        return mount.clone_tree_at(node)
    finally:
        os.close(node)


def bring_up_loopback() -> None:
    """netdevice(7): set IFF_UP on ``lo`` of the calling process's network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh14x", b"lo", 0)
        flags: int = struct.unpack_from("16xh", fcntl.ioctl(control, _SIOCGIFFLAGS, request))[0]
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | 1))


def open_terminal(pts: int, control: socket.socket) -> int:
    """A new terminal of the devpts mount *pts*: its slave; the master goes to the keeper.

    The slave comes from TIOCGPTPEER, never from a path (attack A04).
    """
    master = files.open_beneath(pts, "ptmx", os.O_RDWR | os.O_NOCTTY)
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
    slave: int = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [master]))]
    control.sendmsg([b"terminal"], ancillary)
    os.close(master)
    return slave


def _standard_streams(
    program: Process, inherited: Inherited, root: int, who: identity.Identity, terminal: int | None
) -> None:
    """Descriptors 0 to 2, owned by the user; everything else closes at exec."""
    if terminal is not None:
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
        os.fchown(terminal, who.uid, -1)
        sources = (terminal, terminal, terminal)
    else:
        stdin = inherited.stdin
        if stdin is None:
            stdin = files.open_in_root(root, "/dev/null", os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY)
            status = os.fstat(stdin)
            if not stat.S_ISCHR(status.st_mode) or status.st_rdev != os.makedev(1, 3):
                raise FailedError("the container's /dev/null is not the null device")
        sources = (stdin, inherited.stdout, inherited.stderr)
        for stream in {inherited.stdout, inherited.stderr}:
            if stat.S_ISFIFO(os.fstat(stream).st_mode):
                os.fchown(stream, who.uid, who.gid)
        if inherited.stdin is not None and stat.S_ISFIFO(os.fstat(stdin).st_mode):
            os.fchown(stdin, who.uid, who.gid)
    # Out of the way first, so that no dup2 overwrites a source.
    high = [fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, 10) for source in sources]
    report = fcntl.fcntl(inherited.control.fileno(), fcntl.F_DUPFD_CLOEXEC, 10)
    for number, source in enumerate(high):
        os.dup2(source, number)
    os.dup2(report, REPORT)
    process.close_on_exec_from(REPORT + 1)


def _change_directory(program: Process, root: int) -> None:
    """chdir(2), made where missing as Docker does; the result must lie inside the root."""
    path = program["cwd"]
    if not path.startswith("/"):
        raise InvalidError(f"the working directory {path!r} is not an absolute path")
    try:
        directory = _existing_or_made(root, path)
        os.fchdir(directory)
        os.close(directory)
    except OSError as error:
        raise FailedError(
            f"cannot change to the working directory {path}: {error.strerror}",
            exit_code=CANNOT_EXECUTE if error.errno == errno.EACCES else 125,
        ) from error
    # CVE-2024-21626: a working directory reached through a leaked descriptor is outside the
    # root, and getcwd(2) then says "(unreachable)" or fails.
    try:
        inside = os.getcwd().startswith("/")
    except OSError:
        inside = False
    if not inside:
        raise FailedError(f"the working directory {path} leads out of the container")


def _existing_or_made(root: int, path: str) -> int:
    """The directory *path* below *root*, as far as it is missing made with the user's rights."""
    flags = os.O_PATH | os.O_DIRECTORY
    try:
        return files.open_in_root(root, path, flags)
    except FileNotFoundError:
        pass
    done, parent = "", files.open_in_root(root, "/", flags)
    for part in (p for p in path.split("/") if p):
        done = f"{done}/{part}"
        try:
            child = files.open_in_root(root, done, flags)
        except FileNotFoundError:
            os.mkdir(part, 0o755, dir_fd=parent)
            child = files.open_beneath(parent, part, flags)
        os.close(parent)
        parent = child
    return parent


def find_program(name: str, path: str) -> str:
    """The file to execute for *name*, looked for in *path* as a shell would.

    Raises with Docker's words and exit code: 127 not found, 126 not executable.
    """
    if "/" in name:
        return name
    denied = ""
    for directory in path.split(":"):
        candidate = f"{directory or '.'}/{name}"
        try:
            mode = os.stat(candidate).st_mode
        except OSError:
            continue
        if stat.S_ISDIR(mode):
            continue
        if os.access(candidate, os.X_OK, effective_ids=True):
            return candidate
        denied = candidate
    if denied:
        raise FailedError(f'exec: "{name}": permission denied', exit_code=CANNOT_EXECUTE)
    raise FailedError(
        f'exec: "{name}": executable file not found in $PATH',
        hint="check the spelling, or give the full path inside the image",
        exit_code=NOT_FOUND,
    )


def _limit_descriptors(program: Process) -> None:
    """The limit on open files, lowered last: until here there are many of the keeper's."""
    for number, soft, hard in program["rlimits"]:
        if number == resource.RLIMIT_NOFILE:
            _, highest = resource.getrlimit(number)
            if highest != resource.RLIM_INFINITY:
                hard = min(hard, highest) if hard >= 0 else highest
            if hard >= 0:
                soft = min(soft, hard) if soft >= 0 else hard
            resource.setrlimit(number, (soft, hard))


def finish(program: Process, inherited: Inherited, root: int, *, terminal: int | None) -> NoReturn:
    """Rule 5: give up privilege step by step, and execute the program through the stub."""
    passwd = identity.read_account_file(root, "etc/passwd")
    group = identity.read_account_file(root, "etc/group")
    who = identity.resolve(program["user"], tuple(program["groups"]), passwd, group)
    limit = program["id_limit"]
    if limit:
        for number in (who.uid, who.gid, *who.groups):
            if number >= limit:
                raise InvalidError(
                    f"id {number} is outside this container's {limit} ids",
                    hint=f"run it with --userns=auto:size={number + 1} or --userns=host",
                )
    environment = program["env"]
    if not any(item.startswith("HOME=") for item in environment):
        environment = [*environment, f"HOME={who.home}"]
    _standard_streams(program, inherited, root, who, terminal)
    filter_program = base64.b64decode(program["seccomp"])
    # 1. the bounding set
    confine.drop_bounding(program["capabilities"], inherited.last_capability)
    # 2. seccomp needs privilege unless no_new_privs is on: without it, before the ids go
    if filter_program and not program["no_new_privileges"]:
        seccomp.install(filter_program)
    # 3. the ids, then the capability sets
    confine.become(who.uid, who.gid, list(who.groups), program["capabilities"])
    _change_directory(program, root)
    path = next((i[5:] for i in reversed(environment) if i.startswith("PATH=")), "")
    arguments = [os.fsencode(argument) for argument in program["args"]]
    file = os.fsencode(find_program(program["args"][0], path))
    # Python or the keeper ignores these; an ignored signal stays ignored across exec.
    for ignored in _IGNORED:
        signal.signal(ignored, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    _limit_descriptors(program)
    # 4. no_new_privs, then seccomp: last, so that it need not allow what the steps above did
    if program["no_new_privileges"]:
        confine.no_new_privileges()
        if filter_program:
            seccomp.install(filter_program)
    stub = inherited.stub
    os.write(REPORT, READY)
    process.execute(
        stub.descriptor,
        [stub.cookie, file, *arguments],
        [os.fsencode(item) for item in environment],
    )
    raise FailedError("the stub did not start")
