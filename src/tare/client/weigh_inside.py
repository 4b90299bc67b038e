"""Loads that an image can carry itself, timed through `exec`: processor, disk, network.

Only what the image has is used: its shell, its dd, its nc. What is missing is said.

Not for: starting what the loads run in (client.weigh).
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Final

from tare.client import document
from tare.client.document import number, text
from tare.client.sdk import Container
from tare.errors import FailedError, TareError

KEYS: Final = ("cpu-wall", "cpu-host", "write", "read", "sync", "latency", "send", "exec")
TURNS: Final = 100_000
"""Of the loop that is the processor's load."""
_LOOP: Final = f"i=0; while [ $i -lt {TURNS} ]; do i=$((i+1)); done"
_FILE: Final = "/.tare-weighs"
_MEGABYTES: Final = 16
_SYNCS: Final = 20
_WRITE: Final = f"dd if=/dev/zero of={_FILE} bs=1048576 count={_MEGABYTES} conv=fsync 2>/dev/null"
_READS: Final = 8
_READ: Final = (
    f"i=0; while [ $i -lt {_READS} ]; do dd if={_FILE} of=/dev/null bs=1048576 2>/dev/null"
    " || exit 1; i=$((i+1)); done"
)
_SMALL: Final = (
    "i=0; while [ $i -lt {count} ]; do dd if=/dev/zero of={file} bs=4096 count=1 {how}"
    " 2>/dev/null || exit 1; i=$((i+1)); done"
)
_TOOLS: Final = "for t in dd nc; do command -v $t >/dev/null 2>&1 && echo $t; done; true"
_PORT: Final = 47_001
_CONNECTS: Final = 15
_SENT: Final = 16 << 20
_PATIENCE: Final = 10.0


@dataclass(frozen=True, slots=True)
class Reading:
    """A value, or why there is none."""

    key: str
    value: float | None
    why: str = ""


def loads(container: Container) -> list[Reading]:
    """Put every load on the running *container*, whose image has a shell."""
    overhead = median(_timed(container, ":") for _ in range(3))
    found = [Reading("exec", overhead)]
    found += _cpu(container, overhead)
    tools = container.exec(["sh", "-c", _TOOLS]).stdout.decode("utf-8", "replace").split()
    found += _disk(container, overhead, "dd" in tools)
    found += _network(container, "nc" in tools)
    return found


def _timed(container: Container, script: str) -> float:
    began = time.monotonic()
    done = container.exec(["sh", "-c", script])
    passed = time.monotonic() - began
    if not done.ok:
        raise FailedError(f"exit code {done.exit_code}")
    return passed


def _tried(key: str, work: Callable[[], float]) -> Reading:
    try:
        return Reading(key, work())
    except (TareError, OSError) as error:
        return Reading(key, None, f"it failed: {error}")


def _beyond(passed: float, base: float) -> float:
    """The seconds that *passed* is longer than *base*; FailedError where that is noise."""
    if passed < base * 1.05:
        raise FailedError("it is lost in the time that starting the program takes")
    return passed - base


def _cpu(container: Container, overhead: float) -> list[Reading]:
    def used() -> int:
        return number(container.stats(), "cpu_stats", "cpu_usage", "total_usage")

    before = used()
    wall = _tried("cpu-wall", lambda: _beyond(_timed(container, _LOOP), overhead))
    after = used()
    if wall.value is None:
        return [wall, Reading("cpu-host", None, wall.why)]
    if after <= before:
        return [wall, Reading("cpu-host", None, "this host does not count it")]
    return [wall, Reading("cpu-host", (after - before) / 1e9)]


def _disk(container: Container, overhead: float, has_dd: bool) -> list[Reading]:
    if not has_dd:
        return [Reading(key, None, "the image has no dd") for key in ("write", "read", "sync")]

    def rate(script: str, times: int) -> float:
        return (times * _MEGABYTES << 20) / _beyond(_timed(container, script), overhead)

    def sync() -> float:
        plain = _SMALL.format(count=_SYNCS, file=_FILE, how="")
        synced = _SMALL.format(count=_SYNCS, file=_FILE, how="conv=fsync")
        base = _timed(container, plain)
        return _beyond(_timed(container, synced), base) / _SYNCS

    return [
        _tried("write", lambda: rate(_WRITE, 1)),
        _tried("read", lambda: rate(_READ, _READS)),
        _tried("sync", sync),
    ]


# --- the network ------------------------------------------------------------------------------


def _network(container: Container, has_nc: bool) -> list[Reading]:
    joined = document.mapping(container.inspect(), "NetworkSettings", "Networks")
    address = next((a for each in joined.values() if (a := text(each, "IPAddress"))), "")
    if not address:
        why = "it is in no network with an address"
        return [Reading("latency", None, why), Reading("send", None, why)]
    latency = _tried("latency", lambda: _round_trip(address))
    if latency.value is None:
        why = f"{address} does not answer this client: {latency.why}"
        return [Reading("latency", None, why), Reading("send", None, why)]
    if not has_nc:
        return [latency, Reading("send", None, "the image has no nc")]
    return [latency, _tried("send", lambda: _send(container, address))]


def _round_trip(address: str) -> float:
    """The median of connecting to a port where nobody listens: the kernel there refuses."""
    passed = []
    for _ in range(_CONNECTS):
        with socket.socket() as trial:
            trial.settimeout(_PATIENCE)
            began = time.monotonic()
            try:
                trial.connect((address, _PORT + 1))
            except ConnectionRefusedError:
                pass
            passed.append(time.monotonic() - began)
    return median(passed)


def _send(container: Container, address: str) -> float:
    listen = f"(nc -l -p {_PORT} || nc -l {_PORT}) </dev/null >/dev/null 2>&1 &"
    container.exec(["sh", "-c", listen])
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            link = socket.create_connection((address, _PORT), timeout=_PATIENCE)
            break
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)
    with link:
        link.settimeout(_PATIENCE * 6)
        began = time.monotonic()
        link.sendall(bytes(_SENT))
        link.shutdown(socket.SHUT_WR)
        while link.recv(1 << 16):
            pass
        return _SENT / (time.monotonic() - began)
