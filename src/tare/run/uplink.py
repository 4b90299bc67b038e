"""The way out of a sandbox that has no bridge: pasta(1), or slirp4netns(1), one for each.

An ordinary user may make no bridges and no packet filter. What he may do is run a program that
joins his container's network namespace, answers there as a router, and does with sockets of his
own what the container asks for; it opens the published ports too. It cannot reach the host's
loopback, nor other containers.

::

    RUN/workloads/ID/uplink       "PID START-TIME" of the program
    RUN/workloads/ID/uplink.pid   pasta's own; appears when it is ready
    RUN/workloads/ID/uplink.user uplink.net   the namespaces, while it begins

It does not end with the namespace: `end` does it, whoever removes the run directory.

Not for: root's engine, whose networks are bridges (tare.network).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import time
from collections.abc import Iterator
from typing import Final

from tare.errors import FailedError, UnsupportedError
from tare.kernel import interfaces, mount, process
from tare.kernel.interfaces import Interface

USER: Final = "user"
"""The kind of such an `Interface`; its parent and outer end mean nothing.

pasta gives it the addresses and gateways wanted, slirp4netns its own (10.0.2.100).
"""

_NAMESPACES: Final = ("user", "net")
FILES: Final = (
    "uplink", "uplink.pid", "uplink.log", *(f"uplink.{k}" for k in _NAMESPACES),
)  # fmt: skip
"""What it may leave in a run directory."""
MISSING: Final = (
    "neither pasta nor slirp4netns is installed, and a network without root needs one of them"
)
HINT: Final = "apt-get install passt (or slirp4netns); or --network none, or --network host"
_TIMEOUT: Final = 15.0


def find(name: str) -> str:
    """Where a program is on the PATH; "" when it is not there."""
    for directory in os.environ.get("PATH", "/usr/bin:/bin").split(":"):
        path = f"{directory}/{name}"
        if directory and os.access(path, os.X_OK):
            return path
    return ""


def unavailable() -> str:
    """Why there can be no such way out here, in one sentence; or ``""``."""
    if not find("pasta") and not find("slirp4netns"):
        return MISSING
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "/dev/net/tun cannot be opened, and a network without root needs it"
    return ""


def begin(wanted: Interface, pid: int, run: str) -> None:
    """Give the network namespace of *pid* a way out; returns when it works."""
    pasta, slirp = find("pasta"), find("slirp4netns")
    if not pasta and not slirp:
        raise UnsupportedError(MISSING, hint=HINT, exit_code=125)
    if not wanted.ipv6:
        interfaces.disable_ipv6(pid)
    with _shown(pid, run):
        if not pasta:
            path = _socket(run)
            try:
                _start(slirp, _slirp(wanted, run, path), run, path)
                _wait_for_interface(wanted.name, pid, f"{run}/uplink.log")
                _publish(wanted, path)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            return
        try:
            _start(pasta, _pasta(wanted, run), run, f"{run}/uplink.pid")
        except FailedError:
            if _way_out():
                raise
            # Versions before 2024 want an interface of the host that leads somewhere.
            end(run)
            alone = ("--interface", "lo", "--mac-addr", wanted.mac, "--ipv4-only")
            _start(pasta, [*_pasta(wanted, run), *alone], run, f"{run}/uplink.pid")


def _socket(run: str) -> str:
    """Where slirp4netns is asked for ports: a path of a socket has 108 characters at most."""
    top, _, identity = run.removesuffix("/").rpartition("/workloads/")
    return f"{top}/{identity[:12]}.sock"


def _way_out() -> bool:
    """Whether the host has a default route."""
    with contextlib.suppress(OSError), open("/proc/net/route", encoding="ascii") as file:
        if any(line.split()[1:2] == ["00000000"] for line in file):
            return True
    with contextlib.suppress(OSError), open("/proc/net/ipv6_route", encoding="ascii") as file:
        return any(line.split()[1:2] == ["00"] and "lo" not in line.split() for line in file)
    return False


def _start(program: str, arguments: list[str], run: str, sign: str) -> None:
    """Start it, leave its record, wait until the file *sign* tells that it works."""
    log = f"{run}/uplink.log"
    child = _spawn(program, arguments, log)
    with open(f"{run}/uplink", "w", encoding="ascii") as file:
        file.write(f"{child} {process.start_time(child)}")
    pidfd = os.pidfd_open(child)
    try:
        _wait(pidfd, sign, log, arguments[0])
    finally:
        os.close(pidfd)


@contextlib.contextmanager
def _shown(pid: int, run: str) -> Iterator[None]:
    """The namespaces of *pid* as files: its own in /proc are closed to a program without privilege.

    Once it has opened them they are not needed any more, and nothing is left to pin them.
    """
    with contextlib.ExitStack() as ending:
        for kind in _NAMESPACES:
            path = f"{run}/uplink.{kind}"
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            tree = mount.clone_tree(f"/proc/{pid}/ns/{kind}", follow=True)
            try:
                mount.attach(tree, path)
            finally:
                os.close(tree)
            ending.callback(mount.unmount, path)
        yield


def end(run: str) -> None:
    """End the program of that run directory, if there is one."""
    try:
        with open(f"{run}/uplink", encoding="ascii") as file:
            pid, start = map(int, file.read().split())
        pidfd = os.pidfd_open(pid)
    except (OSError, ValueError):
        return
    try:
        if process.start_time(pid) == start:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)


def _pasta(wanted: Interface, run: str) -> list[str]:
    words = ["pasta", "--foreground", "--quiet", "--config-net", "--no-map-gw"]
    words += ["--ns-ifname", wanted.name, "--mtu", str(wanted.mtu)]
    if not wanted.ipv6:
        words.append("--ipv4-only")
    for address in wanted.addresses:
        host, _, bits = address.partition("/")
        words += ["--address", host, *(() if ":" in host else ("--netmask", bits))]
    for gateway in wanted.gateways:
        words += ["--gateway", gateway]
    for option, protocol in (("--tcp-ports", "tcp"), ("--udp-ports", "udp")):
        specs = [f"{h}/{n}:{inside}" for h, n, inside, kind in wanted.ports if kind == protocol]
        for spec in specs or ["none"]:
            words += [option, spec]
    # Nothing of the host's loopback is reached from inside.
    words += ["--tcp-ns", "none", "--udp-ns", "none"]
    words += ["--userns", f"{run}/uplink.user", "--netns", f"{run}/uplink.net", "--no-netns-quit"]
    return [*words, "--pid", f"{run}/uplink.pid"]


def _slirp(wanted: Interface, run: str, path: str) -> list[str]:
    words = ["slirp4netns", "--configure", "--disable-host-loopback", f"--mtu={wanted.mtu}"]
    words += [f"--userns-path={run}/uplink.user", f"--api-socket={path}"]
    return [*words, "--netns-type=path", f"{run}/uplink.net", wanted.name]


def _spawn(program: str, arguments: list[str], log: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    return os.posix_spawn(
        program,
        arguments,
        {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C"},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
            (os.POSIX_SPAWN_OPEN, 1, log, flags, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsigmask=(),
        setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE),
        setpgroup=0,
    )


def _wait(pidfd: int, sign: str, log: str, name: str) -> None:
    """Until the file *sign* has something in it, or the program has ended."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    until = time.monotonic() + _TIMEOUT
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            status = os.stat(sign)
            if status.st_size or not sign.endswith(".pid"):
                return
        if poll.poll(2):
            raise FailedError(f"{name} could not begin: {_said(log)}", exit_code=125)
    raise FailedError(f"{name} did not begin within {_TIMEOUT:.0f} seconds", exit_code=125)


def _said(log: str) -> str:
    """The last words of a program that are about its work."""
    with contextlib.suppress(OSError), open(log, encoding="utf-8", errors="replace") as file:
        lines = [line.strip() for line in file if line.strip()]
        told = [line for line in lines if "syslog" not in line]
        if told:
            return " ".join(told[-3:])[:300]
    return "it gave no reason"


def _wait_for_interface(name: str, pid: int, log: str) -> None:
    """slirp4netns tells by the interface that it is ready."""
    until = time.monotonic() + _TIMEOUT
    while time.monotonic() < until:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/net/route", encoding="ascii") as file:
            if any(line.split()[:2] == [name, "00000000"] for line in file):
                return
        time.sleep(0.002)
    raise FailedError(f"slirp4netns made no interface: {_said(log)}", exit_code=125)


def _publish(wanted: Interface, path: str) -> None:
    """Ask slirp4netns to open the ports, by its socket."""
    for host, number, inside, protocol in wanted.ports:
        request = {
            "execute": "add_hostfwd",
            "arguments": {
                "proto": protocol,
                "host_addr": host,
                "host_port": number,
                "guest_port": inside,
            },
        }
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_TIMEOUT)
            connection.connect(path)
            connection.sendall(json.dumps(request).encode())
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(4096)
        if b"error" in answer:
            words = answer.decode("utf-8", "replace")[:200]
            raise FailedError(
                f"slirp4netns cannot publish port {number}/{protocol} on {host}: {words}",
                hint="it knows IPv4 only, and a user may not take ports below 1024",
                exit_code=125,
            )
