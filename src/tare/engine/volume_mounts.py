"""Volumes with a file system of their own: what the options of driver ``local`` mean, and mounting.

The options are Docker's: ``type``, ``device`` and ``o`` (a list with commas), and tare's ``size``:

* ``type=none`` with ``o=bind`` or ``rbind`` shows the directory *device* of the host;
* any other type (``tmpfs``, ``nfs``, ``ext4`` ...) is mounted with the words of ``o``;
* ``size=10G`` alone keeps the volume in a sparse file of that size with an ext4 of its own: the
  files cannot take more, whatever file system is below. ``size`` with ``type=tmpfs`` is tmpfs's.

They are mounted on the volume's ``_data`` by the daemon, when a container that uses the volume
starts, and taken down when the last of them has ended; what runs has its own clone of the mount.

Not for: deciding when (engine.volumes).
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tare.errors import FailedError, InvalidError, UnsupportedError
from tare.kernel import loop, mount

_KNOWN: Final = ("type", "device", "o", "size")
_FLAGS: Final = {
    "ro": mount.RDONLY, "nosuid": mount.NOSUID, "nodev": mount.NODEV, "noexec": mount.NOEXEC,
    "noatime": mount.NOATIME,
}  # fmt: skip
_DEFAULTS: Final = frozenset(
    ("rw", "suid", "dev", "exec", "atime", "relatime", "defaults", "bind", "rbind", "async",
     "private", "rprivate", "_netdev")
)  # fmt: skip
_NETWORKED: Final = ("nfs", "nfs4", "cifs", "smb3")
_SMALLEST: Final = 8 << 20
IMAGE: Final = "image"  # the sparse file, beside _data
_INSIDE: Final = "data"  # the directory of its file system that is the volume: no lost+found


@dataclass(frozen=True, slots=True)
class Own:
    """The file system of a volume that has its own; ``size`` is that of a sparse file."""

    kind: str
    device: str = ""
    words: tuple[tuple[str, str | None], ...] = ()
    attributes: int = 0
    recursive: bool = False
    size: int = 0


def parse(options: Mapping[str, str]) -> Own | None:
    """What *options* ask for; None for a plain directory; InvalidError for what makes no sense."""
    for key in options:
        if key not in _KNOWN:
            raise InvalidError(
                f"create: invalid option: {key[:80]!r}", hint="known are " + ", ".join(_KNOWN)
            )
    if not options:
        return None
    kind, device = options.get("type", ""), options.get("device", "")
    words = [word for word in options.get("o", "").split(",") if word]
    size = _size(options["size"]) if "size" in options else 0
    binds = "bind" in words or "rbind" in words
    if size and not kind and not device and not words:
        if size < _SMALLEST:
            raise InvalidError("a volume with a size limit needs at least 8 MiB")
        return Own("ext4", size=size)
    if size and kind != "tmpfs":
        raise InvalidError(
            "size goes with type=tmpfs or alone",
            hint="a bind or a network file system is limited where it lies",
        )
    if size:
        words.append(f"size={size}")
    if binds:
        return _bind(kind, device, words)
    if not kind:
        raise InvalidError('missing required option: "type"', hint="--opt type=tmpfs, nfs, none")
    if kind == "none" or (kind != "tmpfs" and not device):
        raise InvalidError(
            'missing required option: "device"' if kind != "none" else "type=none needs o=bind"
        )
    attributes, rest = _split(words)
    return Own(kind, device or kind, rest, attributes)


def _bind(kind: str, device: str, words: list[str]) -> Own:
    if kind not in ("", "none"):
        raise InvalidError(f"o=bind does not go with type={kind[:40]}")
    if not device.startswith("/"):
        raise InvalidError(
            f"invalid device {device[:80]!r} for o=bind: an absolute path of the host is needed"
        )
    attributes, rest = _split(words)
    if rest:
        raise InvalidError(f"option {rest[0][0][:40]!r} does not go with o=bind")
    return Own("none", os.path.normpath(device), (), attributes, "rbind" in words)


def _split(words: list[str]) -> tuple[int, tuple[tuple[str, str | None], ...]]:
    attributes, rest = 0, []
    for word in words:
        name, equals, value = word.partition("=")
        if word in _FLAGS:
            attributes |= _FLAGS[word]
        elif word not in _DEFAULTS:
            rest.append((name, value if equals else None))
    return attributes, tuple(rest)


def _size(text: str) -> int:
    digits = text.rstrip("kKmMgGtTiBb ")
    unit = text[len(digits) :].strip().lower().removesuffix("b").removesuffix("i")
    shift = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}.get(unit)
    try:
        value = float(digits)
    except ValueError:
        value = -1.0
    if shift is None or not 0 < value < 1 << 50:
        raise InvalidError(f"invalid size: {text[:40]!r}", hint="for example 500m, 10G")
    return int(value * (1 << shift))


def make_image(directory: str, size: int, *, rootless: bool) -> None:
    """Put an ext4 of *size* bytes into *directory*, as a sparse file; or UnsupportedError."""
    if rootless:
        raise UnsupportedError(
            "a size limit of a volume needs root's engine: others cannot mount a file system",
            hint="--opt type=tmpfs --opt o=size=... is limited and in memory",
        )
    program = shutil.which("mkfs.ext4") or shutil.which("mkfs.ext4", path="/usr/sbin:/sbin")
    if program is None:
        raise UnsupportedError(
            "a size limit needs mkfs.ext4 on this host", hint="apt-get install e2fsprogs"
        )
    path = f"{directory}/{IMAGE}"
    with open(path, "xb", opener=lambda p, f: os.open(p, f, 0o600)) as file:
        file.truncate(size)
    command = [program, "-q", "-F", "-m", "0", "-E", "nodiscard,root_owner=0:0", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FailedError(f"mkfs.ext4: {done.stderr.strip()[-300:]}")
    tree = _loop(path, 0)
    try:
        os.mkdir(_INSIDE, 0o755, dir_fd=tree)
    finally:
        os.close(tree)


def attach(own: Own, directory: str) -> None:
    """Mount on ``_data`` in the volume's *directory*; FailedError with the kernel's words."""
    target = f"{directory}/_data"
    try:
        if own.size:
            whole = _loop(f"{directory}/{IMAGE}", own.attributes, own.words)
            try:
                inner = os.open(_INSIDE, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=whole)
                tree = mount.clone_tree_at(inner)
                os.close(inner)
            finally:
                os.close(whole)
        elif own.kind == "none":
            tree = mount.clone_tree(own.device, recursive=own.recursive, follow=True)
            mount.set_attributes(
                tree, own.attributes, propagation=mount.MS_PRIVATE, recursive=own.recursive
            )
        else:
            tree = mount.filesystem(own.kind, _options(own), attributes=own.attributes)
    except OSError as error:
        raise _explained(own, error) from error
    try:
        mount.attach(tree, target)
    finally:
        os.close(tree)


def detach(directory: str) -> None:
    """Take it down; users go on with their clones. Not mounted: nothing happens."""
    try:
        mount.unmount(f"{directory}/_data")
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise


def mounted_below(root: str) -> set[str]:
    """Mount points of this mount namespace below *root*, by /proc/self/mountinfo."""
    prefix = root.rstrip("/") + "/"
    found = set()
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            path = line.split(" ", 5)[4]
            if "\\" in path:
                path = path.encode("utf-8", "surrogateescape").decode("unicode_escape")
            if path.startswith(prefix):
                found.add(path)
    return found


def _options(own: Own) -> list[tuple[str, str | None]]:
    words = list(own.words)
    if own.kind in _NETWORKED:
        words = [(key, _address(value) if key == "addr" else value) for key, value in words]
    return [("source", own.device), *words]


def _address(name: str | None) -> str:
    """A host's name as its address: the kernel resolves none."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise FailedError(f"the volume's host {name!r} cannot be resolved: {error}") from error
    return str(found[0][4][0])


def _loop(path: str, attributes: int, words: tuple[tuple[str, str | None], ...] = ()) -> int:
    device = loop.attach(path)
    try:
        source = os.readlink(f"/proc/self/fd/{device}")
        return mount.filesystem("ext4", [("source", source), *words], attributes=attributes)
    finally:
        os.close(device)


def _explained(own: Own, error: OSError) -> FailedError:
    if error.errno == errno.ENODEV:
        return FailedError(
            f"this kernel has no file system {own.kind!r}", hint="load its module: modprobe"
        )
    if error.errno == errno.ENOENT and own.kind == "none":
        return FailedError(
            f"the volume shows {own.device} of the host, which does not exist",
            hint="create it, or remove the volume",
        )
    return FailedError(
        f"failed to mount local volume: {own.kind} {own.device}: {error.strerror or error}"
    )
