"""Filters read back from processes that really have them."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tare.kernel import tracing

_SOURCE = Path(__file__).resolve().parents[2] / "src"
_ALLOW_ALL = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF_0000)
_LOG_ALL = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFC_0000)
_CODE = """
import ctypes, sys
sys.path.insert(0, sys.argv[1])
from tare.kernel import seccomp
assert ctypes.CDLL(None).prctl(38, 1, 0, 0, 0) == 0
for program in sys.argv[2:]:
    seccomp.install(bytes.fromhex(program))
print("ready", flush=True)
for line in sys.stdin:
    print(line, end="", flush=True)
"""


@contextmanager
def filtered(*programs: bytes) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-c", _CODE, str(_SOURCE), *(one.hex() for one in programs)]
    child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "ready\n"
        yield child
    finally:
        child.kill()
        child.communicate()


def read(pid: int) -> list[bytes]:
    try:
        return tracing.filters(pid)
    except OSError as error:
        pytest.skip(f"filters cannot be read here: {error}")


def test_filters_come_as_they_were_installed_and_the_process_goes_on() -> None:
    with filtered(_ALLOW_ALL, _LOG_ALL) as child:
        found = read(child.pid)

        assert child.stdin is not None and child.stdout is not None
        child.stdin.write("on\n")
        child.stdin.flush()
        assert child.stdout.readline() == "on\n"
    # A test that runs below a filter of its own sees that one, too.
    own = Path("/proc/self/status").read_text()
    if "Seccomp:\t0" in own:
        assert sorted(found) == sorted([_ALLOW_ALL, _LOG_ALL])
    assert {_ALLOW_ALL, _LOG_ALL} <= set(found)


def test_a_process_without_a_filter_has_none() -> None:
    if "Seccomp:\t0" not in Path("/proc/self/status").read_text():
        pytest.skip("this test runs below a filter")
    with filtered() as child:
        assert read(child.pid) == []


def test_a_process_that_is_gone_is_an_error_that_names_it() -> None:
    child = subprocess.Popen(["sleep", "100"])
    os.kill(child.pid, signal.SIGKILL)
    child.wait()

    with pytest.raises(OSError, match=f"ptrace: .*{child.pid}"):
        tracing.filters(child.pid)
