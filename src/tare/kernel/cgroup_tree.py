"""The files and directories that control groups are made of, of either version.

Control files take one write(2) for one value and are never created; directories are groups. Not
for: what the values mean.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable
from typing import Final

# A killed process leaves its group a moment after its exit is seen: an eighth of a second
# of patience in all, in steps that double.
_PATIENCE: Final = (0.0, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064)

# Descriptors held at once while killing: a fork bomb has more processes than we may have files.
_BATCH: Final = 128


def write_value(path: str, *values: bytes) -> None:
    """Write each value to a control file, by one write(2) each; the file is not made."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        for value in values:
            os.write(descriptor, value)
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(descriptor)


def read_value(path: str) -> bytes:
    """The whole of a control file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        content = os.read(descriptor, 65536)
        # seq_file hands out at most a page or so for one read: short does not mean done.
        while content and (more := os.read(descriptor, 65536)):
            content += more
        return content
    finally:
        os.close(descriptor)


def read_optional(path: str) -> bytes | None:
    """The whole of a control file, or None where the kernel does not have it."""
    try:
        return read_value(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
            return None
        raise


def walk(directory: str) -> list[str]:
    """The group *directory* and all groups below it, the deepest first; none if it is gone."""
    found: list[str] = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        # The link count of a cgroup directory is 2 + its children: most have none.
        if os.stat(directory).st_nlink != 2:
            with os.scandir(directory) as entries:
                names = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
            for name in names:
                found += walk(name)
        found.append(directory)
    return found


def children(directory: str) -> list[str]:
    """Names of the groups directly below *directory*; none if it is gone."""
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def members(directory: str) -> list[int]:
    """Processes of the group *directory* and of those below it."""
    found: list[int] = []
    for group in walk(directory):
        content = read_optional(f"{group}/cgroup.procs")
        found += map(int, (content or b"").split())
    return found


def remove_tree(directory: str, *, patient: bool = True) -> None:
    """rmdir(2) the group and those below it; OSError(EBUSY) if processes stay in them."""
    for pause in _PATIENCE if patient else _PATIENCE[:2]:
        if pause:
            time.sleep(pause)
        try:
            # Most groups have none below: try before looking.
            os.rmdir(directory)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                raise
        else:
            return
        for group in walk(directory)[:-1]:
            with contextlib.suppress(OSError):
                os.rmdir(group)
    raise OSError(errno.EBUSY, "the control group still has processes", directory)


def kill_members(listed: Callable[[], list[int]]) -> set[int]:
    """SIGKILL each process that *listed* names, and say which; never one that got its number.

    A pidfd is opened for each, then the list is read again: a number that is still listed after
    its pidfd was opened belongs to that pidfd.
    """
    pids = listed()
    killed: set[int] = set()
    for start in range(0, len(pids), _BATCH):
        handles: dict[int, int] = {}
        try:
            for pid in pids[start : start + _BATCH]:
                with contextlib.suppress(ProcessLookupError):
                    handles[pid] = os.pidfd_open(pid)
            for pid in handles.keys() & set(listed()):
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handles[pid], signal.SIGKILL)
                killed.add(pid)
        finally:
            for handle in handles.values():
                os.close(handle)
    return killed
