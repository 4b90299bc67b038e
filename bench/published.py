"""Traffic to a container through a port published on 127.0.0.1, and to its own address.

The server runs in the container's network namespace and comes from the host, so all engines have
the same one: `serve.c` for wrk, iperf3 for bulk. Client and server share the host's processors.
Not for: what a container on a network costs to start (`rows`).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from engines import BenchError, Engine

_CLONE_NEWNET: Final = 0x40000000
_FIRST_PORT: Final = 18080
_TRIES: Final = 5
OWN: Final = "own address"
"""The subject that goes to tare's container without a published port."""


def enter_own_network() -> None:
    """Leave the host's network alone: one with loopback only for this process and all it starts."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


@contextlib.contextmanager
def requests(directory: Path, engines: list[Engine]) -> Iterator[dict[str, Callable[[], float]]]:
    """Requests a second by wrk on 32 connections."""
    _there("wrk", "gcc")
    program = directory / "serve"
    source = Path(__file__).resolve().parent / "serve.c"
    subprocess.run(["gcc", "-O2", "-Wall", "-o", str(program), str(source)], check=True)
    with _reached(engines, [str(program), "80"], _wrk) as subjects:
        yield subjects


@contextlib.contextmanager
def bulk(_: Path, engines: list[Engine]) -> Iterator[dict[str, Callable[[], float]]]:
    """Gbit a second by iperf3 on one connection, towards the container."""
    _there("iperf3")
    with _reached(engines, ["iperf3", "--server", "--forceflush", "--port", "80"], _iperf) as found:
        yield found


def _there(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            raise BenchError(f"{program} is not here (./dev setup bench)")


def _wrk(host: str, port: int) -> float:
    said = _out("wrk", "-t1", "-c32", "-d2s", f"http://{host}:{port}/")
    for line in said.splitlines():
        if line.startswith("Requests/sec:"):
            return float(line.split()[1])
    raise BenchError(f"wrk says no figure: {said[-300:]}")


def _iperf(host: str, port: int) -> float:
    for _ in range(_TRIES):
        said = json.loads(_out("iperf3", "-c", host, "-p", str(port), "-t", "1", "--json"))
        if "sum_received" in said["end"]:
            return float(said["end"]["sum_received"]["bits_per_second"]) / 1e9
        time.sleep(0.2)  # its server is still at the last one
    raise BenchError(f"iperf3: {said.get('error', 'no figure')}")


def _out(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode != 0:
        raise BenchError(f"{command[0]}: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout


@contextlib.contextmanager
def _reached(
    engines: list[Engine], server: list[str], ask: Callable[[str, int], float]
) -> Iterator[dict[str, Callable[[], float]]]:
    subjects: dict[str, Callable[[], float]] = {}
    with contextlib.ExitStack() as stack:
        for number, engine in enumerate(engines):
            port = _FIRST_PORT + number
            address = stack.enter_context(_serving(engine, port, server))
            subjects[engine.name] = _asking(ask, "127.0.0.1", port)
            if engine.name == "tare":
                subjects[OWN] = _asking(ask, address, 80)
        yield subjects


def _asking(ask: Callable[[str, int], float], host: str, port: int) -> Callable[[], float]:
    return lambda: ask(host, port)


@contextlib.contextmanager
def _serving(engine: Engine, port: int, server: list[str]) -> Iterator[str]:
    """The address of a container whose port 80 is published on 127.0.0.1:*port*."""
    api = engine.api()
    container = api.create("sleep", "1000000", network="bridge", published=port)
    try:
        api.start(container)
        seen = json.loads(api.ask("GET", f"/containers/{container}/json"))
        networks = seen["NetworkSettings"]["Networks"].values()
        address = next(str(one["IPAddress"]) for one in networks)
        inside = ["nsenter", f"--net=/proc/{seen['State']['Pid']}/ns/net", "--", *server]
        running = subprocess.Popen(
            inside, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=os.sep
        )
        try:
            assert running.stdout is not None
            running.stdout.readline()  # it listens, or is about to
            yield address
        finally:
            running.kill()
            running.wait()
    finally:
        # A new connection: engines close one that was idle for as long as a row takes.
        api.close()
        last = engine.api()
        last.remove(container)
        last.close()
