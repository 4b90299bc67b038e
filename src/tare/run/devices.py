"""A sandbox's /dev: made on the host side, where nodes can be made, handed in by descriptor.

The nodes belong to the container's root. What may be opened is decided by the device cgroup as
well; `Devices.rules` says what it must allow.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tare.errors import InvalidError, MissingError, UnsupportedError
from tare.kernel import mount
from tare.kernel.cgroup import DEFAULT_DEVICES, DeviceRule
from tare.run.sandbox import DeviceNode

_DEFAULT: Final = (
    ("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9),
    ("tty", 5, 0),
)  # fmt: skip
_LINKS: Final = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
)
_DEFAULT_RULES: Final = DEFAULT_DEVICES
_SKIPPED: Final = frozenset({"pts", "shm", "mqueue", "fd", "console", "ptmx", "hugepages"})
_SIZE: Final = "65536"
_NODES: Final = 1024
_NODES_PRIVILEGED: Final = 16384


@dataclass(frozen=True, slots=True)
class Devices:
    """A detached /dev and the cgroup rules that go with it."""

    tree: int
    rules: tuple[DeviceRule, ...]
    shifted: bool = True  # its ids are the sandbox's already


def make_empty(wanted: list[DeviceNode]) -> Devices:
    """A /dev without nodes, for an engine that cannot make any: the sandbox binds the host's."""
    if wanted:
        raise UnsupportedError(
            f"cannot show the device {wanted[0]['source']}: that needs root",
            hint="run the engine as root to give devices to containers",
            exit_code=125,
        )
    options = [("mode", "755"), ("size", _SIZE), ("nr_inodes", str(_NODES))]
    tree = mount.filesystem("tmpfs", options, attributes=mount.NOSUID | mount.NOEXEC)
    return Devices(tree, ())


def make_default() -> int:
    """A detached /dev with the default nodes and links, all of id 0.

    For any sandbox without devices of its own: it is shown through the sandbox's id map.
    """
    tree = _new(_NODES, 0)
    try:
        for name, major, minor in _DEFAULT:
            _node(tree, name, stat.S_IFCHR | 0o666, os.makedev(major, minor), 0)
        for name in ("pts", "shm", "mqueue"):
            os.mkdir(name, 0o755, dir_fd=tree)
        make_links(tree)
    except BaseException:
        os.close(tree)
        raise
    return tree


def make_links(tree: int) -> None:
    """The symlinks of a /dev; none is made if the first is there."""
    try:
        for name, text in _LINKS:
            os.symlink(text, name, dir_fd=tree)
    except FileExistsError:
        pass


def _new(nodes: int, owner: int) -> int:
    options = [
        ("mode", "755"), ("size", _SIZE), ("nr_inodes", str(nodes)),
        ("uid", str(owner)), ("gid", str(owner)),
    ]  # fmt: skip
    return mount.filesystem("tmpfs", options, attributes=mount.NOSUID | mount.NOEXEC)


def make(wanted: list[DeviceNode], owner: int, *, everything: bool, rules: list[str]) -> Devices:
    """A new /dev with the default nodes, *wanted* ones, or *everything* the host has.

    MissingError and InvalidError name the device.
    """
    tree = _new(_NODES_PRIVILEGED if everything else _NODES, owner)
    try:
        for name, major, minor in _DEFAULT:
            _node(tree, name, stat.S_IFCHR | 0o666, os.makedev(major, minor), owner)
        allowed = [] if everything else list(_DEFAULT_RULES)
        if everything:
            allowed.append(DeviceRule(True, "a"))
            for path, status in _walk("/dev"):
                _place(tree, path.removeprefix("/dev/"), status, owner)
        for device in wanted:
            allowed += _wanted(tree, device, owner)
        allowed += [parse_rule(text) for text in rules]
    except BaseException:
        os.close(tree)
        raise
    return Devices(tree, tuple(allowed))


def _wanted(tree: int, device: DeviceNode, owner: int) -> Iterator[DeviceRule]:
    source, target = device["source"], device["target"] or device["source"]
    try:
        status = os.stat(source)
    except OSError as error:
        raise MissingError(
            f'error gathering device information while adding custom device "{source}": '
            f"{(error.strerror or '').lower()}",
            hint="check the path with ls -l; the device must exist on this host",
        ) from None
    if not target.startswith("/dev/") or ".." in target.split("/"):
        raise InvalidError(f"device target {target!r} must lie below /dev")
    found = [(source, status)] if not stat.S_ISDIR(status.st_mode) else list(_walk(source))
    devices = [(p, s) for p, s in found if stat.S_ISCHR(s.st_mode) or stat.S_ISBLK(s.st_mode)]
    if not devices:
        raise InvalidError(f"{source} is not a device node")
    for path, node in devices:
        _place(tree, target.removeprefix("/dev/") + path.removeprefix(source), node, owner)
        kind = "c" if stat.S_ISCHR(node.st_mode) else "b"
        major, minor = os.major(node.st_rdev), os.minor(node.st_rdev)
        yield DeviceRule(True, kind, major, minor, device["permissions"])


def _walk(top: str) -> Iterator[tuple[str, os.stat_result]]:
    for entry in os.scandir(top):
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            if entry.name not in _SKIPPED:
                yield from _walk(entry.path)
        elif entry.name not in _SKIPPED and stat.S_IFMT(status.st_mode) in (
            stat.S_IFCHR,
            stat.S_IFBLK,
        ):
            yield entry.path, status


def _place(tree: int, name: str, status: os.stat_result, owner: int) -> None:
    parts = name.split("/")
    for depth in range(1, len(parts)):
        directory = "/".join(parts[:depth])
        try:
            os.mkdir(directory, 0o755, dir_fd=tree)
            os.chown(directory, owner, owner, dir_fd=tree)
        except FileExistsError:
            pass
    try:
        _node(tree, name, status.st_mode, status.st_rdev, owner)
    except FileExistsError:
        pass


def _node(tree: int, name: str, mode: int, device: int, owner: int) -> None:
    os.mknod(name, mode, device, dir_fd=tree)
    # mknod is subject to the umask
    os.chmod(name, mode & 0o7777, dir_fd=tree)
    os.chown(name, owner, owner, dir_fd=tree)


def parse_rule(text: str) -> DeviceRule:
    """A ``--device-cgroup-rule`` such as ``c 1:3 mr`` or ``a *:* rwm``; else InvalidError."""
    try:
        kind, numbers, access = text.split()
        major, minor = (-1 if n == "*" else int(n) for n in numbers.split(":"))
        return DeviceRule(True, kind, major, minor, access)
    except (ValueError, OSError):
        raise InvalidError(
            f"invalid device cgroup format {text!r}", hint="write it like 'c 1:3 rwm'"
        ) from None
