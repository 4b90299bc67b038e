"""A virtual machine's cold start beside a bare QEMU that boots the same kernel.

The floor is QEMU's microvm with tare's kernel, initramfs and options, without disks, links, sandbox
or limits, until the guest's init says hello. tare's figure ends at the first byte that a program
from the image prints. Both are emulated where KVM does not boot: compare them with each other only.
Not for: what machines cost beside containers; that is `tare weigh`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from engines import IMAGE, BenchError, Engine

from tare.errors import TareError
from tare.vm import machine, probe
from tare.vm.kernels import Kernels

_LIMIT = 60.0
_KERNELS = Path("/var/cache/tare-bench/kernels")


def fetch() -> None:
    """Have a kernel ready, for the rows run without a network; BenchError if none can be had."""
    _KERNELS.parent.mkdir(parents=True, exist_ok=True)
    try:
        Kernels(_KERNELS).prepare()
    except TareError as error:
        raise BenchError(f"kernel: {error}") from error


@contextlib.contextmanager
def cold(engines: list[Engine]) -> Iterator[dict[str, Callable[[], float]]]:
    """tare and the floor; BenchError where this host has no QEMU or no kernel can be had."""
    engine = next((one for one in engines if one.name == "tare"), None)
    state = engine.environment.get("TARE_STATE_DIR") if engine is not None else None
    if engine is None or state is None:
        raise BenchError("needs a tare engine that the benchmark starts itself")
    with contextlib.suppress(FileExistsError):
        (Path(state) / "kernels").symlink_to(_KERNELS)
    engine.cli("run", "--rm", "--vm", "--network", "none", IMAGE, "true")
    try:
        kernels = Kernels(_KERNELS)
        kernel = kernels.prepare()
        boot = machine.Boot(
            kernel=os.fspath(kernel.vmlinux),
            initramfs=os.fspath(kernel.initramfs),
            tsc_khz=kernels.tsc_khz(),
        )
    except TareError as error:
        raise BenchError(f"kernel: {error}") from error
    accelerator = "kvm" if probe.kvm(kernels.directory, boot).works else "tcg"

    def floor() -> float:
        began = time.perf_counter()
        answer = probe.try_boot(boot, accelerator, _LIMIT)
        if not answer.works:
            raise BenchError(f"bare QEMU: {answer.why}")
        return time.perf_counter() - began

    yield {"floor": floor, "tare": lambda: _first_byte(engine)}


def _first_byte(engine: Engine) -> float:
    """Seconds from the start of the client to the first byte of the program in the machine."""
    words = [*engine.command, "run", "--rm", "--vm", "--network", "none", "-m", "128m", IMAGE]
    began = time.perf_counter()
    client = subprocess.Popen(
        [*words, "echo", "up"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**os.environ, **engine.environment},
    )
    assert client.stdout is not None
    said = client.stdout.read(1)
    passed = time.perf_counter() - began
    client.communicate()
    if not said or client.returncode != 0:
        raise BenchError(f"the machine ended with {client.returncode}")
    return passed
