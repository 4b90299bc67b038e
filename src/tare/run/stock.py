"""What most sandboxes get ready-made: a /dev, and a control group with its device rules.

Making them takes some sixty system calls, and none depends on the sandbox: the /dev belongs to
id 0 and is shown through the sandbox's id map, the group is renamed. Both are made while the
keeper has nothing else to do.

Not for: children prepared ahead (`run.spares`), or sandboxes with devices of their own
(`run.devices`). Version 2 groups cannot be renamed, and are made when needed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from dataclasses import dataclass
from typing import Final

from tare.kernel import cgroup
from tare.kernel.cgroup import DEFAULT_DEVICES
from tare.run import devices

_PREFIX: Final = "spare-"


@dataclass(slots=True)
class Prepared:
    """A group that waits, and its ``tasks`` files, open."""

    group: cgroup.Group
    tasks: list[int]


class Stock:
    """`fill` makes, `take_devices` and `take_group` give away."""

    def __init__(self, number: int, layout: cgroup.Layout) -> None:
        self._number, self._layout = number, layout
        self._devices: list[int] = []
        self._groups: list[Prepared] = []
        self._parent: str | None = None  # known from the first sandbox on
        self._names = itertools.count()

    @property
    def wanted(self) -> bool:
        """Whether `fill` would make something."""
        if len(self._devices) < self._number:
            return True
        return self._parent is not None and len(self._groups) < self._number

    def fill(self) -> None:
        """Make one of what is missing; where that fails, it is made when needed."""
        try:
            if len(self._devices) < self._number:
                self._devices.append(devices.make_default())
            elif self._parent is not None:
                self._groups.append(self._prepare(self._parent))
        except OSError:
            self._number = 0

    def _prepare(self, parent: str) -> Prepared:
        group = self._layout.group(f"{parent}/{_PREFIX}{next(self._names)}")
        group.create()
        try:
            group.apply(cgroup.Limits(devices=DEFAULT_DEVICES))
            return Prepared(group, group.open_tasks())
        except BaseException:
            group.remove()
            raise

    def take_devices(self) -> int | None:
        """A detached default /dev that belongs to id 0, or None."""
        return self._devices.pop() if self._devices else None

    def take_group(self, path: str) -> Prepared | None:
        """A group that is *path* from now on, or None; its ``tasks`` are the caller's to close."""
        parent = os.path.dirname(path)
        if self._parent is None:
            self._settle(parent)
        if self._parent != parent:
            return None
        while self._groups:
            prepared = self._groups.pop()
            try:
                prepared.group.rename(path)
            except OSError:
                self._discard(prepared)
            else:
                return prepared
        return None

    def _settle(self, parent: str) -> None:
        """Work below *parent* from now on; what an earlier keeper left there goes."""
        self._parent = parent
        for name in self._layout.group(parent).subgroups():
            if name.startswith(_PREFIX):
                with contextlib.suppress(OSError):
                    self._layout.group(f"{parent}/{name}").remove()

    @staticmethod
    def _discard(prepared: Prepared) -> None:
        for descriptor in prepared.tasks:
            os.close(descriptor)
        with contextlib.suppress(OSError):
            prepared.group.remove()

    def close(self) -> None:
        """Remove the groups; the rest goes with the process."""
        while self._groups:
            self._discard(self._groups.pop())
