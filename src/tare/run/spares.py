"""Children prepared ahead of time, so that starting does not wait for what is always the same.

A spare is cloned into all the namespaces of an ordinary container, has its /proc and /sys mounted
behind their walls and its loopback up, and waits. Its ids are not mapped and it is in no cgroup
of a container: both come with the container it becomes. It is made while the keeper has nothing
else to do.

Not for: version 2 control groups, where moving a process is slow and being born in the right
group is fast (`launching` clones there).
"""

from __future__ import annotations

import itertools
import json
import os
import select
import signal
import socket
from collections import deque
from dataclasses import dataclass
from typing import Final, NoReturn

from tare.kernel.interfaces import VETH, Attacher, Plain, Prepared
from tare.run import handover, init
from tare.run.nursery import Nursery, close_all_but
from tare.run.sandbox import Sandbox
from tare.run.stub import REPORT, Stub

_PIECE: Final = 60_000
_MAXIMUM: Final = 120_000
# The namespaces' owners: ids that no container has, each its own, so that what a container uses
# of per-user limits counts against nobody else (attack A48).
_OWNER_BASE: Final = 0x5FFF0000
_OWNERS: Final = 65_000
_REMEMBERED: Final = 8
"""How many starts decide what the next spares are like."""


@dataclass(slots=True)
class Spare:
    """A child that waits: its pid, its pidfd and the socket it listens to."""

    pid: int
    pidfd: int
    control: socket.socket
    owner: int
    link: Prepared | None = None

    def alive(self) -> bool:
        """Whether it still waits."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """End it."""
        self.control.close()
        if self.link is not None:
            self.link.close()
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        os.close(self.pidfd)


def job(sandbox: Sandbox) -> bytes | None:
    """What a spare must be told of *sandbox*; None if that is too much for it."""
    told = {
        "process": sandbox["process"],
        "operations": sandbox["operations"],
        "id_map": sandbox["id_map"],
        "cgroup_namespace": sandbox["cgroup_namespace"],
    }
    content = json.dumps(told).encode()
    return content if len(content) <= _MAXIMUM else None


def tell(control: socket.socket, content: bytes) -> None:
    """Send a job: its length, then the JSON; the root follows, then `init.STREAMS`."""
    control.send(str(len(content)).encode())
    for start in range(0, len(content), _PIECE):
        control.send(content[start : start + _PIECE])


class Spares:
    """The children that wait; `fill` makes them, `take` gives one away."""

    def __init__(
        self, number: int, stub: Stub, last_capability: int, test_points: int | None
    ) -> None:
        self._number = number
        self._waiting: list[Spare] = []
        self._stub, self._last, self._points = stub, last_capability, test_points
        self._owners = itertools.cycle(range(_OWNERS))
        self._wishes: deque[bool] = deque(maxlen=_REMEMBERED)
        self._ipv6 = False
        self._attacher: Attacher | None = None
        self._nursery: Nursery | None = None

    @property
    def wanted(self) -> bool:
        """Whether `fill` would make one."""
        return len(self._waiting) < self._number

    def take(self, interfaces: list[Plain]) -> Spare | None:
        """One that is alive, or None; with a link if that is of use for *interfaces*."""
        linked = bool(interfaces) and interfaces[0]["kind"] == VETH
        self._wishes.append(linked)
        if linked:
            self._ipv6 = interfaces[0]["ipv6"]
        for spare in sorted(self._waiting, key=lambda one: (one.link is None) is linked):
            if spare.link is not None and not linked:
                break  # taking the link away would take longer than cloning
            self._waiting.remove(spare)
            if spare.alive():
                return spare
            spare.close()
        return None

    def _next_is_linked(self) -> bool:
        """Whether the next one is to have a link: as many have one as were wanted with one."""
        have = sum(spare.link is not None for spare in self._waiting)
        share = sum(self._wishes) / max(len(self._wishes), 1)
        return have < share * self._number

    def fill(self) -> None:
        """Make one."""
        try:
            if self._nursery is None:
                self._nursery = Nursery(self._wait, self._needed())
            owner = _OWNER_BASE + next(self._owners)
            pid, pidfd, control = self._nursery.clone(owner)
        except OSError:
            self._number = 0  # it will not work the next time either; clone when asked
            return
        spare = Spare(pid, pidfd, control, owner)
        self._waiting.append(spare)
        if self._next_is_linked():
            self._link(spare)

    def _needed(self) -> set[int]:
        points = set() if self._points is None else {self._points}
        return {self._stub.descriptor} | points

    def _link(self, spare: Spare) -> None:
        """What cannot be done ahead of time is done when it is wanted, and fails then."""
        if self._attacher is None:
            self._attacher = Attacher()
        namespace = os.open(f"/proc/{spare.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            spare.link = self._attacher.prepare(namespace, ipv6=self._ipv6)
        except OSError:
            pass
        finally:
            os.close(namespace)

    def _wait(self, control: socket.socket) -> NoReturn:
        # It may wait long: it must not keep other containers' pipes open.
        close_all_but({control.fileno()} | self._needed())
        # The stub reports on a fixed descriptor: nothing that is still needed then may get it.
        while os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC) <= REPORT:
            pass
        init.stand_by(
            handover.Inherited(
                control=control,
                stdin=None,
                stdout=-1,
                stderr=-1,
                stub=self._stub,
                last_capability=self._last,
                test_points=self._points,
                tasks=[],
            )
        )

    def close(self) -> None:
        """End all that wait."""
        while self._waiting:
            self._waiting.pop().close()
        if self._nursery is not None:
            self._nursery.close()
            self._nursery = None
