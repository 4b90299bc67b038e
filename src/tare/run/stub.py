"""The sealed stub: the last program that tare runs in a sandbox before the user's own.

While a runtime execs into an image, ``/proc/self/exe`` names the runtime's own program, and a
hostile image can make the kernel run or open *that* (CVE-2019-5736). So the last step is not an
exec of the user's program by Python: it is an exec of a static ELF of some 300 bytes in a sealed
memfd, which then execs the user's program. Whoever reaches for ``/proc/self/exe`` meanwhile
finds a file that cannot be written, and that exits 126 unless called with a secret cookie.

The stub does, in machine code::

    if argc < 3 or argv[0] != COOKIE: exit_group(126)
    fcntl(3, F_SETFD, FD_CLOEXEC)          # success is seen as end-of-file on descriptor 3
    execve(argv[1], argv + 2, envp)
    write(3, &errno, 4); exit_group(126)

Not for: choosing the program; `run.init` has resolved it.
"""

from __future__ import annotations

import fcntl
import os
import struct
from dataclasses import dataclass
from typing import Final

from tare.kernel.libc import MACHINE

COOKIE_SIZE: Final = 32
REPORT: Final = 3
"""The descriptor on which the stub reports a failed exec."""

_CODE: Final = {
    # cmp argc; repe cmpsb cookie; fcntl; execve; write; exit_group (tests disassemble it)
    "x86_64": bytes.fromhex(
        "488b0c244883f903725c488b742408488d3d5c000000b920000000f3a67547b848000000bf03000000be020000"
        "00ba010000000f05488b7c2410488d742418488b0424488d54c410b83b0000000f05f7d850b801000000bf0300"
        "00004889e6ba040000000f05bf7e000000b8e70000000f05"
    ),
    "aarch64": bytes.fromhex(
        "e90340f93f0d00f183030054e10740f9a2030010030480d224144038451440389f00056ba1020054630400f161"
        "ffff54280380d2600080d2410080d2220080d2010000d4e00b40f9e1630091e2430091420c098ba81b80d20100"
        "00d4e003004be00f1fb8600080d2e1030091820080d2080880d2010000d4c00f80d2c80b80d2010000d4"
    ),
}
_MACHINES: Final = {"x86_64": 62, "aarch64": 183}
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_BASE: Final = 0x400000
_HEADERS: Final = 64 + 56
_MFD_EXEC: Final = 0x10


def image(cookie: bytes, machine: str = MACHINE) -> bytes:
    """The stub's ELF file for *machine*, with *cookie* built in (elf(5))."""
    code = _CODE[machine] + cookie
    size = _HEADERS + len(code)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = ident + struct.pack(
        "<HHIQQQIHHHHHH",
        2, _MACHINES[machine], 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0,
    )  # fmt: skip
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return header + segment + code


@dataclass(frozen=True, slots=True)
class Stub:
    """A sealed stub, and the cookie without which it refuses to do anything."""

    descriptor: int
    cookie: bytes

    @classmethod
    def make(cls) -> Stub:
        """Create it once for a process; the descriptor is close-on-exec."""
        # NUL would end the argument early, so the cookie is hex.
        cookie = os.urandom(COOKIE_SIZE // 2).hex().encode()
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        try:
            descriptor = os.memfd_create("tare-exec", flags | _MFD_EXEC)
        except OSError:  # before Linux 6.3 there is no MFD_EXEC, and none is needed
            descriptor = os.memfd_create("tare-exec", flags)
        os.write(descriptor, image(cookie))
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        # A read-only view: the descriptor that execs was never able to write.
        sealed = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        # Not readable for who runs it, so the kernel keeps the process undumpable (exec(2)).
        os.fchmod(sealed, 0o111)
        os.close(descriptor)
        return cls(sealed, cookie)
