"""Whether KVM really works here: found out by booting once, and remembered.

That ``/dev/kvm`` opens says little: nested and paravirtual hosts offer it and then hang or abort.
So a guest without disks is booted with a time limit; its init says hello, or KVM is not used. The
answer is kept in ``STATE/kernels/kvm-HEX``, HEX being the digest of all that it depends on.

Not for: emulation, which always works.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tare.kernel import files
from tare.vm import machine
from tare.vm.protocol import Decoder, ProtocolError, ToHost

_LIMIT: Final = 10.0
DEVICE: Final = "/dev/kvm"


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether KVM works, and if not, why."""

    works: bool
    why: str = ""


def kvm(directory: Path, boot: machine.Boot) -> Answer:
    """The answer for this host, from ``directory`` when it is known already."""
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return Answer(False, "there is no /dev/kvm that can be opened")
    path = directory / f"kvm-{_circumstances(boot)}"
    with contextlib.suppress(OSError, ValueError, KeyError):
        known = json.loads(path.read_text("utf-8"))
        return Answer(bool(known["works"]), str(known["why"]))
    found = try_boot(boot, "kvm")
    content = json.dumps({"works": found.works, "why": found.why})
    files.replace(path, content.encode(), mode=0o600)
    return found


def _circumstances(boot: machine.Boot) -> str:
    """Another kernel, processor, QEMU or guest may give another answer."""
    model = ""
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text("ascii", "replace")
        model = next((line for line in text.splitlines() if line.startswith("model name")), "")
    status = Path(machine.QEMU).stat()
    parts = (os.uname().release, model, str(status.st_mtime_ns), str(status.st_size), boot.kernel)
    return hashlib.sha256("\0".join((*parts, boot.initramfs)).encode()).hexdigest()[:16]


def try_boot(boot: machine.Boot, accelerator: str, limit: float = _LIMIT) -> Answer:
    """Boot once without disks; it works when the guest's init says hello within *limit* seconds."""
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe2(os.O_CLOEXEC)
    with ours, theirs:
        command = machine.probe_arguments(boot, accelerator, theirs.fileno())
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=writing,
            pass_fds=(theirs.fileno(),),
            cwd="/",
            env={"PATH": "/usr/bin"},
        )
        os.close(writing)
        theirs.close()
        try:
            said = _hello(ours, limit)
        finally:
            process.kill()
            process.wait()
    os.set_blocking(reading, False)
    words = b""
    with contextlib.suppress(BlockingIOError):
        words = os.read(reading, 4096)
    os.close(reading)
    if said:
        return Answer(True)
    reason = words.decode("utf-8", "replace").strip().splitlines()
    return Answer(False, reason[-1][:200] if reason else f"nothing booted within {limit:.0f} s")


def _hello(agent: socket.socket, limit: float) -> bool:
    decoder, end = Decoder(ToHost), time.monotonic() + limit
    while (left := end - time.monotonic()) > 0:
        if not select.select([agent], [], [], left)[0]:
            return False
        try:
            data = agent.recv(4096)
            if not data:
                return False
            if any(said.type == ToHost.HELLO for said in decoder.feed(data)):
                return True
        except (OSError, ProtocolError):
            return False
    return False
