"""Disks that a machine writes: sparse copies of an empty file system, one for each machine.

::

    STATE/workloads/ID/machine/   0700
        upper     ext4, sparse: what the machine wrote (u/ and w/ are overlay's), as in upper/
        plan      what vm.relay reads; written anew at each start
        door      socket by which the relay gets its links and tells how the start went
        over/ work/  the overlay of QEMU's own sandbox: nothing is ever written to it

A guest's file system is never mounted on the host: its driver would read what a hostile kernel
wrote. It is read through a guest.

Not for: the image's layers, which are the files that containers mount as well (image.layers).
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

SIZE: Final = 64 << 30
"""The size of a machine's writable disk; it takes what is written, and 5 MiB."""
_STEP: Final = 1 << 20


def copy_sparse(source: Path, target: Path) -> None:
    """Copy *source* to the new file *target*; holes stay holes. Whole, or not there."""
    temporary = target.with_name(f".tmp-{target.name}")
    temporary.unlink(missing_ok=True)
    reading = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        writing = os.open(temporary, flags, 0o600)
        try:
            size = os.fstat(reading).st_size
            os.ftruncate(writing, size)
            _copy_data(reading, writing, size)
        finally:
            os.close(writing)
    finally:
        os.close(reading)
    temporary.rename(target)


def _copy_data(reading: int, writing: int, size: int) -> None:
    at = 0
    while at < size:
        try:
            at = os.lseek(reading, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # nothing but a hole to the end
            raise
        end = os.lseek(reading, at, os.SEEK_HOLE)
        while at < end:
            chunk = os.pread(reading, min(_STEP, end - at), at)
            os.pwrite(writing, chunk, at)
            at += len(chunk)
