"""The process that spares are cloned from, and that does nothing else.

A clone shares every page with its parent until one of the two writes to it. The keeper writes
all the time, and three spares wait beside it: cloned from the keeper, each would cost it some
hundred page copies. This process was cloned from the keeper once, hardly ever writes, and makes
the spares as the keeper's own children (CLONE_PARENT, clone(2)).

Not for: what a spare does (`run.init.stand_by`), or children that are cloned when asked for.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Callable, Iterable
from typing import NoReturn

from tare.kernel import process
from tare.run import walls

_PATIENCE = 10.0  # seconds; a clone takes one thousandth of one


class Nursery:
    """A process that clones on request; it ends when its maker does."""

    def __init__(self, enter: Callable[[socket.socket], NoReturn], needed: Iterable[int]) -> None:
        """Clone it; OSError. *enter* is what its children call, with a socket to their keeper.

        *needed* are the descriptors that these need; it has no others.
        """
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self.pid, pidfd = process.spawn(0)
            if self.pid == 0:
                _serve(theirs, enter, needed)
            os.close(pidfd)
        except BaseException:
            self._link.close()
            raise
        finally:
            theirs.close()
        self._link.settimeout(_PATIENCE)

    def clone(self, owner: int) -> tuple[int, int, socket.socket]:
        """A new child in namespaces of its own, owned by *owner*: pid, pidfd and its socket."""
        self._link.send(str(owner).encode())
        answer, handles, _, _ = socket.recv_fds(self._link, 64, 2)
        for handle in handles:
            os.set_inheritable(handle, False)
        if len(handles) != 2:
            raise OSError(int(answer or b"0"), "no child could be cloned ahead of time")
        control = socket.socket(fileno=handles[1])
        control.setblocking(False)
        return int(answer), handles[0], control

    def close(self) -> None:
        """Let it end."""
        self._link.close()


def _serve(
    link: socket.socket, enter: Callable[[socket.socket], NoReturn], needed: Iterable[int]
) -> NoReturn:
    try:
        process.set_name("tare-nursery")
        close_all_but({link.fileno(), *needed})
        while request := link.recv(32):
            _clone(link, int(request), enter)
    finally:
        os._exit(0)


def _clone(link: socket.socket, owner: int, enter: Callable[[socket.socket], NoReturn]) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        try:
            with process.owning(owner):
                pid, pidfd = process.spawn(walls.OWN_NAMESPACES | process.CLONE_PARENT)
                if pid == 0:
                    enter(theirs)
        except OSError as error:
            link.send(str(error.errno or 0).encode())
            return
        rights = array.array("i", [pidfd, ours.fileno()])
        link.sendmsg([str(pid).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        os.close(pidfd)


def close_all_but(kept: set[int]) -> None:
    """Close every descriptor above 2 that is not *kept*."""
    low = 3
    for descriptor in sorted(kept - {0, 1, 2}):
        os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, 1 << 16)
