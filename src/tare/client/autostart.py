"""Starts the daemon when none answers, and says why when it does not come up.

Not for stopping or supervising it: the daemon holds its own lock, so starting it twice is
harmless (the second one ends).
"""

from __future__ import annotations

import os
import select
import sys
import time

from tare.client.transport import Connection
from tare.errors import FailedError

_WAIT_SECONDS = 30.0
_TAIL_LINES = 8
_ALREADY = 75  # the exit code of a daemon that found another one holding the lock


def interpreter() -> str:
    """The Python that has the daemon's dependencies.

    The launcher runs the client on the fastest Python, isolated, so sys.executable may lack
    them: TARE_PYTHON says, else the checkout's own environment, else this one.
    """
    if chosen := os.environ.get("TARE_PYTHON"):
        return chosen
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    root = os.path.dirname(os.path.dirname(package))
    for candidate in (
        f"{root}/.venv/bin/python",  # a checkout: ROOT/src/tare
        f"{os.path.dirname(os.path.dirname(root))}/bin/python",  # VENV/lib/pythonX/site-packages
        f"{sys.prefix}/bin/python",
    ):
        if os.access(candidate, os.X_OK):
            return candidate
    return sys.executable


def start(path: str) -> None:
    """Start the daemon whose socket is *path* and wait until it answers; FailedError if not."""
    import subprocess

    directory = os.path.dirname(path)
    try:
        os.makedirs(directory, mode=0o711 if os.geteuid() == 0 else 0o700, exist_ok=True)
        log = os.open(
            f"{directory}/daemon.log",
            os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW,
            0o600,
        )
    except OSError as error:
        raise FailedError(
            f"cannot start the daemon: {directory}: {error.strerror}",
            hint="Set TARE_RUN_DIR to a directory that you may write.",
        ) from error
    began = os.fstat(log).st_size
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(package)}
    try:
        process = subprocess.Popen(
            [interpreter(), "-m", "tare.daemon"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        raise FailedError(f"cannot start the daemon: {interpreter()}: {error.strerror}") from error
    finally:
        os.close(log)
    _wait(path, process.pid, f"{directory}/daemon.log", began)
    process.returncode = 0  # it outlives us: Popen must not warn about it


def _wait(path: str, pid: int, log: str, began: int) -> None:
    """Until the daemon on *path* answers; FailedError with the end of its log if it does not."""
    deadline = time.monotonic() + _WAIT_SECONDS
    pidfd = os.pidfd_open(pid)
    ended, code = False, -1
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        pause = 5
        while True:
            # Its end is waited for, its readiness is polled: the socket may be made by a
            # daemon that somebody else started in the same moment.
            if _answers(path, pidfd if code < 0 else -1, deadline):
                return
            if ended or time.monotonic() > deadline:
                break
            ended = code < 0 and bool(poller.poll(pause))
            if ended:
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0xFF
                ended = code != _ALREADY
            elif code >= 0:
                time.sleep(pause / 1000)  # another one holds the lock: only the socket can tell
            pause = min(pause * 2, 50)
    finally:
        os.close(pidfd)
    if not ended:
        sentence = f"the daemon did not answer within {_WAIT_SECONDS:.0f} seconds"
        raise FailedError(sentence, hint=_tail(log, began))
    raise FailedError(f"the daemon ended at once (exit code {code})", hint=_tail(log, began))


def _answers(path: str, pidfd: int, deadline: float) -> bool:
    """Whether a ping is answered: a daemon may end between taking its socket and serving it."""
    try:
        connection = Connection(path)
    except OSError:
        return False
    try:
        connection.socket.send(b"GET /_ping HTTP/1.1\r\nHost: tare\r\nConnection: close\r\n\r\n")
        poller = select.poll()
        poller.register(connection.fileno(), select.POLLIN)
        if pidfd >= 0:
            poller.register(pidfd, select.POLLIN)
        poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
        connection.socket.setblocking(False)
        return bool(connection.some())
    except OSError:
        return False
    finally:
        connection.close()


def _tail(log: str, began: int) -> str:
    try:
        with open(log, "rb") as file:
            file.seek(max(began, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError as error:
        return f"Its log {log} cannot be read: {error.strerror}"
    if not lines:
        return f"Its log {log} says nothing about it."
    return f"The end of its log {log}:\n" + "\n".join(f"  {line}" for line in lines[-_TAIL_LINES:])
