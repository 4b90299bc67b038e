"""Network namespaces of a test's own: nothing of the host's network is seen or changed there."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator

from tare.kernel import process
from tare.kernel.rtnetlink import Routing, set_link


@contextlib.contextmanager
def own_network() -> Iterator[None]:
    """The calling thread, and what it starts, is in a new network namespace until the end."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        process.unshare(process.CLONE_NEWNET)
        try:
            with Routing() as kernel:
                kernel.request(set_link(1, "lo", up=True))
            yield
        finally:
            process.join_namespaces(home, process.CLONE_NEWNET)
    finally:
        os.close(home)


class Host:
    """A network namespace held open by a sleeping process: another host, or a container."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo; exec sleep 1000"], stdout=subprocess.PIPE
        )
        assert self._holder.stdout is not None
        self._holder.stdout.readline()
        self.namespace = os.open(f"/proc/{self._holder.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        with Routing(namespace=self.namespace) as kernel:
            kernel.request(set_link(1, "lo", up=True))

    @property
    def pid(self) -> int:
        """The pid of a process in it."""
        return self._holder.pid

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """The calling thread is in it; sockets made meanwhile belong to it."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            process.join_namespaces(self.namespace, process.CLONE_NEWNET)
            try:
                yield
            finally:
                process.join_namespaces(home, process.CLONE_NEWNET)
        finally:
            os.close(home)

    def close(self) -> None:
        """Let it go, with all its interfaces."""
        os.close(self.namespace)
        self._holder.kill()
        self._holder.wait()
