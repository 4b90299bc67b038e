"""An engine of an ordinary user's own: inside a user namespace where that user is root.

The first daemon of a user makes the namespace (newuidmap(1) maps the ranges of /etc/subuid into
it) and leaves a sleeping process in it that holds it, so that daemons and keepers may die and
their successors find the same one. Everything of the engine then runs inside, and needs to know
little of it: layers are directories, devices are bound instead of made, the containers' ids are
those of the namespace.

::

    RUN/namespace   "PID START-TIME" of the holder

Not for: what differs inside (`run.plan.Host.rootless`).
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
from pathlib import Path
from typing import Final

from tare.errors import FailedError, UnsupportedError
from tare.kernel import files, mount, process

IDS: Final = 65536
"""Container ids that are mapped: 0 to 65535."""

_KINDS: Final = process.CLONE_NEWUSER | process.CLONE_NEWNS
_SUBORDINATE_HINT: Final = (
    "as root: apt-get install uidmap && usermod --add-subuids 100000-165535 "
    "--add-subgids 100000-165535 USER"
)


def enter(run_dir: Path) -> None:
    """Put this process, single-threaded still, into the user's namespace, as its root.

    Makes the namespace if no holder lives. UnsupportedError says what the host must have.
    """
    record = run_dir / "namespace"
    holder = _living(record)
    if holder is None:
        holder = _make()
        files.replace(record, f"{holder} {process.start_time(holder)}\n".encode())
    pidfd = os.pidfd_open(holder)
    try:
        process.join_namespaces(pidfd, _KINDS)
    except OSError as error:
        raise FailedError(
            f"cannot enter your namespace, held by process {holder}: {error.strerror}",
            hint=f"end that process and delete {record}, then try again",
        ) from error
    finally:
        os.close(pidfd)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def _living(record: Path) -> int | None:
    try:
        pid, start = map(int, record.read_text("ascii").split())
        return pid if process.start_time(pid) == start else None
    except (OSError, ValueError):
        return None


def subordinate_ids(path: str, user: str, uid: int) -> tuple[int, int] | None:
    """The first range that subuid(5) or subgid(5) gives the user: start and count."""
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8") as file:
        for line in file:
            parts = line.strip().split(":")
            if len(parts) == 3 and parts[0] in (user, str(uid)) and parts[2].isdigit():
                return int(parts[1]), int(parts[2])
    return None


def _make() -> int:
    """A sleeping process in new user and mount namespaces, its ids mapped; its pid."""
    uid, gid = os.getuid(), os.getgid()
    user = pwd.getpwuid(uid).pw_name
    ranges = [subordinate_ids(f"/etc/sub{kind}id", user, uid) for kind in ("u", "g")]
    missing = shutil.which("newuidmap") is None or None in ranges
    small = any(found is not None and found[1] < IDS for found in ranges)
    if missing or small:
        what = (
            "newuidmap(1) is not installed"
            if shutil.which("newuidmap") is None
            else (f"/etc/subuid and /etc/subgid give {user} no range of {IDS} ids")
        )
        raise UnsupportedError(
            f"containers without root need subordinate ids: {what}",
            hint=_SUBORDINATE_HINT.replace("USER", user),
        )
    ready_read, ready_write = os.pipe()
    go_read, go_write = os.pipe()
    holder = os.fork()
    if holder == 0:
        _hold(ready_write, go_read)
    os.close(ready_write)
    os.close(go_read)
    answer = os.read(ready_read, 200)
    os.close(ready_read)
    try:
        if answer != b"ready":
            raise UnsupportedError(
                "this host does not let you make a user namespace: " + answer.decode(),
                hint="as root: sysctl -w kernel.unprivileged_userns_clone=1 "
                "user.max_user_namespaces=10000 kernel.apparmor_restrict_unprivileged_userns=0",
            )
        for (program, own), found in zip(
            (("newuidmap", uid), ("newgidmap", gid)), ranges, strict=True
        ):
            assert found is not None
            line = [str(n) for n in (0, own, 1, 1, found[0], IDS)]
            done = subprocess.run(
                [program, str(holder), *line], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise FailedError(
                    f"{program} failed: {done.stderr.strip()}",
                    hint=_SUBORDINATE_HINT.replace("USER", user),
                )
        os.write(go_write, b"go")
    except BaseException:
        os.kill(holder, 9)
        os.waitpid(holder, 0)
        raise
    finally:
        os.close(go_write)
    return holder


def _hold(ready: int, go: int) -> None:
    """The holder's life: unshare, wait for the maps, become a sleep."""
    try:
        try:
            process.unshare(_KINDS)
        except OSError as error:
            os.write(ready, (error.strerror or "refused").encode())
            os._exit(1)
        os.write(ready, b"ready")
        if os.read(go, 2) != b"go":
            os._exit(1)
        os.setsid()
        mount.make_slave()
        null = os.open("/dev/null", os.O_RDWR)
        for descriptor in range(3):
            os.dup2(null, descriptor)
        os.closerange(3, 1 << 16)
        os.chdir("/")
        os.execv("/bin/sleep", ["tare-namespace", "infinity"])  # noqa: S606  # no shell is meant
    finally:
        os._exit(1)
