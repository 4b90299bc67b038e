"""Root file systems: layers, id maps and the overlay, as detached mounts.

A layer is an EROFS file, mounted once by this process and cloned for each user, or a directory.
Nothing here has a mount point until a sandbox attaches it in its own mount namespace, so a
process that dies takes its mounts with it.

Not for: what layers are made of (`image.layers`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, NoReturn

from tare.kernel import files, mount, process
from tare.run.sandbox import Root

_KEPT_LAYERS: Final = 512
_SKELETON_MODE: Final = 0o755
_SKELETON_DIRECTORIES: Final = ("", "dev", "etc", "proc", "sys")
_SKELETON_FILES: Final = ("etc/hosts", "etc/hostname", "etc/resolv.conf")
_SCRATCH: Final = "/sys"
"""Where a child that mounts in a namespace of its own puts a file system for its mount points."""
_DETACHED_LAYERS: Final = [True]  # whether this kernel's overlay takes detached mounts
_PREFERRED_DIRECT: Final = [True]  # whether this kernel's EROFS takes "directio"


def mount_layer(path: str) -> int:
    """A detached read-only mount of the layer at *path*."""
    if os.path.isdir(path):
        tree = mount.clone_tree(path)
        mount.set_attributes(tree, mount.RDONLY | mount.NODEV, propagation=mount.MS_PRIVATE)
        return tree
    options: list[tuple[str, str | int | None]] = [("source", path), ("ro", None)]
    attributes = mount.RDONLY | mount.NODEV
    if _PREFERRED_DIRECT[0]:
        # File-backed EROFS would keep every page twice; direct I/O below it keeps one copy.
        with contextlib.suppress(OSError):
            return mount.filesystem("erofs", [*options, ("directio", None)], attributes=attributes)
        tree = mount.filesystem("erofs", options, attributes=attributes)
        _PREFERRED_DIRECT[0] = False
        return tree
    return mount.filesystem("erofs", options, attributes=attributes)


class Layers:
    """Mounted layers by path, for a process that uses them again and again (the keeper)."""

    def __init__(self) -> None:
        self._mounted: OrderedDict[str, int] = OrderedDict()

    def clone(self, path: str) -> int:
        """A detached mount of the layer, owned by the caller."""
        cached = self._mounted.get(path)
        if cached is None:
            cached = mount_layer(path)
            self._mounted[path] = cached
            if len(self._mounted) > _KEPT_LAYERS:
                os.close(self._mounted.popitem(last=False)[1])
        else:
            self._mounted.move_to_end(path)
        try:
            return mount.clone_tree_at(cached)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return mount_layer(path)  # before Linux 6.15 a detached mount cannot be cloned

    def forget(self, path: str) -> None:
        """Let go of a layer whose image is being deleted."""
        descriptor = self._mounted.pop(path, None)
        if descriptor is not None:
            os.close(descriptor)

    def keep_only_existing(self) -> None:
        """Let go of layers whose files are gone, so that their space is freed."""
        for path in [p for p in self._mounted if not os.path.exists(p)]:
            self.forget(path)


def overlay(
    root: Root, lowers: list[int], *, owner: int, volatile: bool = False, user_xattr: bool = False
) -> int:
    """A detached overlay of *lowers* (mounts, bottom first) under the root's upper directory.

    The upper and work directories are made if they are missing, the upper one with the
    attributes of the topmost layer's root. *owner* is the host's id of the container's root.
    """
    _make_upper(root, lowers, owner)
    options: list[tuple[str, str | int | None]] = [
        ("upperdir", root["upper"]),
        ("workdir", root["work"]),
        # Our own diff reads the upper directory: it must hold whole files under their names.
        ("redirect_dir", "nofollow"),
        ("metacopy", "off"),
        ("index", "off"),
        ("xino", "off"),
    ]
    if user_xattr:
        options = [*options[:2], ("userxattr", None), ("xino", "off")]
    if volatile:
        options.append(("volatile", None))
    return _merged(lowers, options, root["attributes"])


def _merged(lowers: list[int], options: list[tuple[str, str | int | None]], attributes: int) -> int:
    """A detached overlay of *lowers* (mounts, bottom first) with *options*."""
    if _DETACHED_LAYERS[0]:
        named: list[tuple[str, str | int | None]] = [("lowerdir+", n) for n in reversed(lowers)]
        try:
            return mount.filesystem("overlay", named + options, attributes=attributes)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
    tree = _overlay_of_attached(lowers, options, attributes)
    _DETACHED_LAYERS[0] = False
    return tree


def _overlay_of_attached(
    lowers: list[int], options: list[tuple[str, str | int | None]], attributes: int
) -> int:
    """The same for a kernel before Linux 6.15: it takes layers by path only, and attached ones.

    A child attaches them in a mount namespace of its own, so they are gone with it; the overlay
    keeps clones of them, as it does anyway.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        # os.fork, as in `id_namespace`: the child makes system calls and ends.
        pid = os.fork()
        if pid == 0:
            _attach_and_send(theirs, lowers, options)
        theirs.close()
        try:
            said, received, _, _ = socket.recv_fds(ours, 400, 1)
        finally:
            os.waitpid(pid, 0)
    finally:
        ours.close()
        theirs.close()
    if not received:
        number, _, text = said.decode("utf-8", "replace").partition(" ")
        code = int(number) if number.isdigit() else errno.EIO
        raise OSError(code, text or "the process that should mount it died", "overlay")
    os.set_inheritable(received[0], False)
    mount.set_attributes(received[0], attributes, propagation=mount.MS_PRIVATE)
    return received[0]


def _attach_and_send(
    control: socket.socket, lowers: list[int], options: list[tuple[str, str | int | None]]
) -> NoReturn:
    try:
        process.unshare(process.CLONE_NEWNS)
        mount.make_private()
        words = []
        for name, value in options:
            if name in ("upperdir", "workdir"):
                # By descriptor, opened in this namespace: a comma in a path would end it.
                opened = os.open(str(value), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                words.append(f"{name}=/proc/self/fd/{opened}")
            else:
                words.append(name if value is None else f"{name}={value}")
        mount.mount("tmpfs", _SCRATCH)
        os.chdir(_SCRATCH)
        names = [str(number) for number in range(len(lowers))]
        for name, lower in zip(names, reversed(lowers), strict=True):
            os.mkdir(name)
            mount.attach(lower, name)
        os.mkdir("merged")
        mount.mount("overlay", "merged", ",".join([f"lowerdir={':'.join(names)}", *words]))
        socket.send_fds(control, [b"made"], [mount.clone_tree("merged")])
    except OSError as error:
        control.send(f"{error.errno} {error.strerror}".encode()[:400])
    finally:
        os._exit(0)


def make_skeleton(directory: str) -> str:
    """The lowest layer of every sandbox: the places that are mounted on, so none is made in it.

    Empty files and directories; whatever an image has under these names hides them.
    """
    for name in _SKELETON_DIRECTORIES:
        path = f"{directory}/{name}"
        os.makedirs(path, exist_ok=True)
        os.chmod(path, _SKELETON_MODE)
    for name in _SKELETON_FILES:
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(f"{directory}/{name}", flags, 0o644)
        os.fchmod(file, 0o644)
        os.close(file)
    return directory


def _make_upper(root: Root, lowers: list[int], owner: int) -> None:
    try:
        os.mkdir(root["upper"], 0o700)
    except FileExistsError:
        os.makedirs(root["work"], 0o700, exist_ok=True)
        return
    status = os.fstat(lowers[-1])
    os.makedirs(root["work"], 0o700, exist_ok=True)
    os.chown(root["upper"], max(status.st_uid, owner), max(status.st_gid, owner))
    os.chmod(root["upper"], status.st_mode & 0o7777)


def map_lowers(lowers: list[int], user_namespace: int) -> None:
    """Show each of *lowers* with its ids shifted into the block of the namespace."""
    for lower in lowers:
        mount.map_ids(lower, user_namespace)


@contextlib.contextmanager
def id_namespace(block: tuple[int, int]) -> Iterator[int]:
    """A user namespace that maps 0.. to *block*, for as long as the ``with`` lasts.

    It needs a process; that one only waits to be killed.
    """
    read, write = os.pipe()
    # os.fork is safe with threads because the child calls nothing but read and _exit.
    pid = os.fork()
    if pid == 0:
        try:
            process.unshare(process.CLONE_NEWUSER)
            os.write(write, b"1")
            os.close(write)
            process.die_with_parent()
            signal.pause()
        finally:
            os._exit(0)
    descriptor = -1
    try:
        os.close(write)
        os.read(read, 1)
        write_id_maps(pid, block)
        descriptor = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        yield descriptor
    finally:
        os.close(read)
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        if descriptor >= 0:
            os.close(descriptor)


def write_id_maps(pid: int, block: tuple[int, int]) -> None:
    """Map ids 0.. of the user namespace of *pid* to *block* = (base, size), user_namespaces(7)."""
    base, size = block
    line = f"0 {base} {size}".encode()
    if base == 0:
        # Inside a user's own namespace, whose map has two ranges that a line may not span.
        line = f"0 0 1\n1 1 {size - 1}".encode()
    for name in ("uid_map", "gid_map"):
        file = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(file, line)
        finally:
            os.close(file)


def mounted(root: Root, block: tuple[int, int] | None, *, user_xattr: bool = False) -> int:
    """The root of a container that does not run, as a detached mount owned by the caller.

    Ids in it are the host's, shifted by *block*.
    """
    lowers: list[int] = []
    try:
        lowers = [mount_layer(path) for path in root["layers"]]
        if block is not None:
            with id_namespace(block) as namespace:
                map_lowers(lowers, namespace)
        owner = block[0] if block else 0
        return overlay(root, lowers, owner=owner, user_xattr=user_xattr)
    finally:
        for lower in lowers:
            os.close(lower)


class Shown(NamedTuple):
    """A directory or file of the host, and where a container that does not run has it."""

    source: str
    subpath: str  # below it; links lead nowhere else
    target: str
    read_only: bool


def clone_below(source: str, subpath: str, *, recursive: bool = False) -> int:
    """A detached clone of *source*, or of *subpath* in it: followed inside, whatever links say."""
    if not subpath:
        return mount.clone_tree(source, recursive=recursive, follow=True)
    root = os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        below = files.open_in_root(root, subpath, os.O_PATH)
    except NotADirectoryError as error:
        raise FileNotFoundError(str(error)) from error
    finally:
        os.close(root)
    try:
        return mount.clone_tree_at(below, recursive=recursive)
    finally:
        os.close(below)


def show(root: int, wanted: Iterable[Shown], block: tuple[int, int] | None) -> None:
    """Attach what a stopped container has mounted to its detached *root*, ids shifted likewise.

    What is not there, on either side, is left out. OSError (EINVAL) before Linux 6.15, which
    mounts nothing on a detached mount.
    """
    with contextlib.ExitStack() as closing:
        namespace = -1
        for one in wanted:
            try:
                target = files.open_in_root(root, one.target, os.O_PATH)
            except OSError:
                continue
            closing.callback(os.close, target)
            try:
                tree = clone_below(one.source, one.subpath)
            except FileNotFoundError:
                continue
            closing.callback(os.close, tree)
            attributes = mount.NODEV | (mount.RDONLY if one.read_only else 0)
            mount.set_attributes(tree, attributes, propagation=mount.MS_PRIVATE)
            if block is not None:
                if namespace < 0:
                    namespace = closing.enter_context(id_namespace(block))
                with contextlib.suppress(OSError):  # a file system that cannot: nobody's files
                    mount.map_ids(tree, namespace)
            mount.attach_at(tree, target, subject=one.target)


def mounted_image(layers: list[str]) -> int:
    """A detached read-only view of *layers* (bottom first) as one tree; ids unshifted."""
    lowers = [mount_layer(path) for path in layers]
    try:
        if len(lowers) == 1:
            return lowers.pop()
        return _merged(lowers, [], mount.RDONLY | mount.NODEV)
    finally:
        for lower in lowers:
            os.close(lower)


def live(pid: int) -> int:
    """The root directory of the running process *pid*, all its mounts included."""
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    return os.open(f"/proc/{pid}/root", flags)
