"""The inside of a new sandbox: from clone to exec, applying a plan's operations in order.

This code runs in a child of the keeper that already sits in its new namespaces, and never
returns. Construction rules (docs/threat-model.md):

1. Nothing is imported here, and no file of the image is loaded: only descriptors are opened.
2. Every mount target is found by openat2(2) below the root's descriptor, symlinks confined to
   it, and mounted by descriptor; /proc, /sys and /dev must be real directories.
3. Writes to /proc go through the procfs mounted here, by its own descriptor.
4. The terminal and the masks are bound by descriptors checked to be what they should be.
5. Order at the end: bounding set, ids, capabilities, no_new_privs, seccomp, sealed stub; without
   no_new_privs seccomp comes before the ids, for it needs a privilege that goes with them.

A failure is reported to the keeper as JSON on descriptor 3, then the child exits.
"""

from __future__ import annotations

import array
import errno
import json
import os
import socket
import stat
from typing import Final, NoReturn

from tare.errors import FailedError, InvalidError
from tare.kernel import files, mount, process
from tare.run import walls
from tare.run.devices import make_links
from tare.run.handover import (
    CANNOT_EXECUTE,
    MAXIMUM_MESSAGE,
    Inherited,
    bring_up_loopback,
    fail,
    finish,
    host_device,
    join_cgroups,
    open_terminal,
)
from tare.run.sandbox import Operation, Sandbox

STREAMS: Final = b"streams"
"""With this come the descriptors of a sandbox's streams and cgroups, to a child standing by."""

_QUIET: Final = mount.NOSUID | mount.NODEV | mount.NOEXEC
_SYSCTLS: Final = "/proc/sys"
_PTS_MAXIMUM: Final = 1024
MAXIMUM_FDS: Final = 250


def enter(sandbox: Sandbox, inherited: Inherited) -> NoReturn:
    """Make the sandbox around the calling process and run its program; never returns."""
    control = inherited.control
    try:
        builder = _Builder(inherited)
        join_cgroups(inherited)
        builder.begin()
        builder.take(sandbox)
        builder.receive()
        builder.apply_all()
        finish(sandbox["process"], inherited, builder.root, terminal=builder.terminal)
    except BaseException as error:  # the child must report and end, whatever it is
        fail(control, error)
    os._exit(CANNOT_EXECUTE)


def stand_by(inherited: Inherited) -> NoReturn:
    """Prepare what every ordinary sandbox has, wait for one to become, become it."""
    control = inherited.control
    try:
        builder = _Builder(inherited)
        builder.begin()
        builder.prepare_ordinary()
        message, _ = receive(control)
        length = int(message)
        parts = bytearray()
        while len(parts) < length:
            parts += receive(control)[0]
        sandbox: Sandbox = json.loads(parts)
        builder.take(sandbox)
        builder.receive()
        builder.apply_all()
        finish(sandbox["process"], inherited, builder.root, terminal=builder.terminal)
    except BaseException as error:  # the child must report and end, whatever it is
        fail(control, error)
    os._exit(CANNOT_EXECUTE)


def receive(control: socket.socket) -> tuple[bytes, list[int]]:
    """The keeper's next message and its descriptors; ends this process when it is gone."""
    space = socket.CMSG_LEN(MAXIMUM_FDS * 4)
    message, ancillary, _, _ = control.recvmsg(MAXIMUM_MESSAGE, space, socket.MSG_CMSG_CLOEXEC)
    if not message:
        os._exit(125)  # nobody wants this sandbox
    numbers = array.array("i")
    for _, _, data in ancillary:
        numbers.frombytes(data[: len(data) - len(data) % 4])
    return message, numbers.tolist()


class _Builder:
    """The state of a half-made sandbox: descriptors of its parts."""

    sandbox: Sandbox

    def __init__(self, inherited: Inherited) -> None:
        self.inherited = inherited
        self._ready: dict[str, int] = {}
        self._walls_stand = False
        self.root = -1
        self.device_tree = -1
        self.binds: list[int] = []
        self.proc = self.sys = self.pts = -1
        self.null_file = -1
        self.terminal: int | None = None
        self._prepared: dict[int, int] = {}
        self._bound_devices: list[tuple[str, int]] = []
        self._empty = -1

    def stop_at(self, name: str) -> None:
        """Wait where a test wants to look or to swap something; nothing outside tests."""
        directory = self.inherited.test_points
        if directory is not None:
            try:
                point = os.open(name, os.O_RDONLY, dir_fd=directory)
            except FileNotFoundError:
                return
            os.read(point, 1)
            os.close(point)

    def begin(self) -> None:
        """What every sandbox begins with."""
        os.setsid()
        mount.make_private()
        process.new_session_keyring()
        # Rule 4: our own view of the host's null device, taken before the image is in sight.
        null = os.open("/dev/null", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        status = os.fstat(null)
        if not stat.S_ISCHR(status.st_mode) or status.st_rdev != os.makedev(1, 3):
            raise FailedError("the host's /dev/null is not the null device")
        self.null_file = mount.clone_tree_at(null)
        mount.set_attributes(self.null_file, mount.RDONLY | mount.NOSUID | mount.NOEXEC)
        os.close(null)

    def prepare_ordinary(self) -> None:
        """What an ordinary sandbox has, its walls included where the kernel lets them stand."""
        bring_up_loopback()
        self._ready["proc"] = self.proc = mount.filesystem("proc", attributes=_QUIET)
        self._ready["sysfs"] = self.sys = mount.filesystem(
            "sysfs", attributes=_QUIET | mount.RDONLY
        )
        self._ready["mqueue"] = mount.filesystem("mqueue", attributes=_QUIET)
        try:
            for path in walls.READONLY_PATHS:
                if path != _SYSCTLS:  # read-only once the sandbox's own values are written
                    self._read_only(path)
            for path in walls.MASKED_PATHS:
                self._mask(path)
            self._walls_stand = True
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise  # before Linux 6.15 nothing is mounted on a detached mount: later then

    def take(self, sandbox: Sandbox) -> None:
        """What needs neither the root nor the id maps, done while the keeper prepares those."""
        self.sandbox = sandbox
        for index, operation in enumerate(sandbox["operations"]):
            op = operation["op"]
            if op == "dev":
                for name in operation.get("targets", []):
                    self._bound_devices.append((name, host_device(name)))
            elif op == "hostname":
                socket.sethostname(operation["name"])
            elif op == "loopback":
                if not self._ready:
                    bring_up_loopback()
            elif op == "filesystem" and operation["kind"] in ("proc", "sysfs", "mqueue"):
                ready = self._ready.get(operation["kind"], -1)
                if ready >= 0:
                    self._prepared[index] = ready
                else:
                    self._prepare(index, operation)

    def _prepare(self, index: int, operation: Operation) -> None:
        try:
            self._prepared[index] = self._new(operation)
        except PermissionError:
            if not operation.get("optional"):
                raise

    def receive(self) -> None:
        """Wait for the keeper's go: the root, /dev, and the binds, as descriptors."""
        received: list[int] = []
        message = b""
        while message != b"go":
            message, descriptors = receive(self.inherited.control)
            received += descriptors
        self.root, self.device_tree, *self.binds = received
        if self.sandbox["id_map"] is not None:
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
        os.umask(0o022)

    def apply_all(self) -> None:
        """Enter the root and apply the operations in order."""
        if not self._ready:
            self._enter_cgroup_namespace()
        # On top of the old root: no directory of the host is needed, or stays open (A02).
        mount.attach(self.root, "/")
        self.stop_at("rootfs-mounted")
        self.stop_at("before-pivot")
        mount.enter_root(self.root)
        for index, operation in enumerate(self.sandbox["operations"]):
            op = operation["op"]
            if op in ("hostname", "loopback"):
                continue
            if op in ("cgroup_v1", "console"):
                self._receive_streams()
            if self._walls_stand and op == "mask":
                continue
            if self._walls_stand and op == "readonly":
                operation["targets"] = [_SYSCTLS]
            self.stop_at(f"before-{op}")
            try:
                self._apply(index, operation)
            except OSError as error:
                if operation.get("optional"):
                    continue
                what = operation.get("target") or op
                raise FailedError(
                    f"cannot set up {what}: {error.strerror}"
                    + (f" ({os.fsdecode(error.filename)})" if error.filename else "")
                ) from error
        self._receive_streams()

    def _enter_cgroup_namespace(self) -> None:
        if self.sandbox["cgroup_namespace"]:
            process.unshare(process.CLONE_NEWCGROUP)

    def _receive_streams(self) -> None:
        """Once, for a child that stood by: its streams and its cgroups, which came after its root.

        The cgroups before anything of them is seen, and before the program runs.
        """
        inherited = self.inherited
        if not self._ready or inherited.stdout >= 0:
            return
        message, descriptors = receive(inherited.control)
        if message != STREAMS:
            raise FailedError("the keeper sent something else than the streams")
        program = self.sandbox["process"]
        if program["stdin"] and not program["tty"]:
            inherited.stdin = descriptors.pop(0)
        inherited.stdout, inherited.stderr, *inherited.tasks = descriptors
        join_cgroups(inherited)
        self._enter_cgroup_namespace()

    def _apply(self, index: int, operation: Operation) -> None:
        match operation["op"]:
            case "filesystem":
                self._filesystem(index, operation)
            case "dev":
                self._dev()
            case "bind":
                self._bind(operation)
            case "mask":
                for target in operation["targets"]:
                    self._mask(target)
            case "readonly":
                for target in operation["targets"]:
                    self._read_only(target)
            case "sysctl":
                self._sysctl(operation["values"])
            case "console":
                self._console()
            case "cgroup_v1":
                self._cgroup_v1(operation)
            case "readonly_root":
                mount.set_attributes(self.root, mount.RDONLY)
            case unknown:
                raise FailedError(f"unknown operation {unknown!r}")

    # --- targets ------------------------------------------------------------------------------

    def _directory(self, path: str, *, plain: bool = False) -> int:
        """An O_PATH descriptor of the directory *path* in the root, made where missing.

        With *plain*, no component may be a symlink: /proc, /sys and /dev must be themselves.
        """
        find = files.open_beneath if plain else files.open_in_root
        try:
            return find(self.root, path.lstrip("/"), os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            return self._make_directories(path)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EXDEV):
                raise FailedError(
                    f"cannot mount on {path}: it is a symlink or no directory in the image"
                ) from error
            raise

    def _make_directories(self, path: str) -> int:
        """Create *path* component by component below descriptors; symlinks stay in the root."""
        done = ""
        parent = os.open(self.root_path(), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        for part in (p for p in path.split("/") if p):
            done = f"{done}/{part}"
            try:
                child = files.open_in_root(self.root, done, os.O_PATH | os.O_DIRECTORY)
            except FileNotFoundError:
                # Through a real descriptor: O_PATH is enough for mkdirat(2).
                os.mkdir(part, 0o755, dir_fd=parent)
                child = files.open_beneath(parent, part, os.O_PATH | os.O_DIRECTORY)
            os.close(parent)
            parent = child
        return parent

    def root_path(self) -> str:
        """After the pivot the root is ``/``."""
        return "/"

    def _file(self, path: str) -> int:
        """An O_PATH descriptor of the non-directory *path* in the root, made where missing."""
        try:
            return files.open_in_root(self.root, path, os.O_PATH)
        except FileNotFoundError:
            pass
        parent_path, _, name = path.rstrip("/").rpartition("/")
        parent = self._directory(parent_path or "/")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        try:
            os.close(files.open_beneath(parent, name, flags, mode=0o644))
        except FileExistsError as error:
            raise FailedError(f"cannot mount on {path}: it is a dangling symlink") from error
        return files.open_beneath(parent, name, os.O_PATH)

    # --- operations ---------------------------------------------------------------------------

    def _new(self, operation: Operation) -> int:
        options = operation.get("options", [])
        return mount.filesystem(
            operation["kind"], options, attributes=operation.get("attributes", 0)
        )

    def _filesystem(self, index: int, operation: Operation) -> None:
        kind, path = operation["kind"], operation["target"]
        tree = self._prepared.pop(index, -1)
        if tree < 0:
            tree = self._new(operation)
        if operation.get("copy_up"):
            self._keep_mode(tree, path, operation)
        if path.startswith("/dev/") and path.count("/") == 2:
            target = self._in_dev(path.removeprefix("/dev/"))
        else:
            target = self._directory(path, plain=kind in ("proc", "sysfs"))
            self._check_place(path, target)
        mount.attach_at(tree, target, subject=path)
        os.close(target)
        if kind == "proc":
            self.proc = tree
        elif kind == "sysfs":
            self.sys = tree
        else:
            os.close(tree)

    def _keep_mode(self, tree: int, path: str, operation: Operation) -> None:
        """A tmpfs over an existing directory of the image takes its mode and owner, as Docker's."""
        if any(name == "mode" and value != "1777" for name, value in operation["options"]):
            return
        try:
            below = files.open_in_root(self.root, path, os.O_PATH | os.O_DIRECTORY)
        except OSError:
            return
        status = os.fstat(below)
        os.close(below)
        top = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=tree)
        os.fchown(top, status.st_uid, status.st_gid)
        os.fchmod(top, stat.S_IMODE(status.st_mode))
        os.close(top)

    def _check_place(self, path: str, target: int) -> None:
        """Refuse a target that symlinks of the image have led into procfs or sysfs."""
        device = os.fstat(target).st_dev
        for prefix, top in (("/proc", self.proc), ("/sys", self.sys)):
            inside = top >= 0 and os.fstat(top).st_dev == device
            if inside and path != prefix and not path.startswith(f"{prefix}/"):
                raise FailedError(f"cannot mount on {path}: the image leads it into {prefix}")

    def _in_dev(self, name: str) -> int:
        """The directory *name* of our own /dev: no image ever had a hand in it.

        One component only: below it may lie a volume, whose links mkdirat(2) would follow.
        """
        try:
            os.mkdir(name, 0o755, dir_fd=self.device_tree)
        except FileExistsError:
            pass
        return files.open_beneath(self.device_tree, name, os.O_PATH | os.O_DIRECTORY)

    def _dev(self) -> None:
        target = self._directory("/dev", plain=True)
        mount.attach_at(self.device_tree, target, subject="/dev")
        os.close(target)
        options = [
            ("newinstance", None), ("ptmxmode", "0666"), ("mode", "0620"),
            ("max", str(_PTS_MAXIMUM)),
        ]  # fmt: skip
        try:
            self.pts = mount.filesystem(
                "devpts", [*options, ("gid", "5")], attributes=mount.NOSUID | mount.NOEXEC
            )
        except OSError:  # group tty is not mapped
            self.pts = mount.filesystem("devpts", options, attributes=mount.NOSUID | mount.NOEXEC)
        target = self._in_dev("pts")
        mount.attach_at(self.pts, target, subject="/dev/pts")
        os.close(target)
        make_links(self.device_tree)
        for name, tree in self._bound_devices:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            os.close(os.open(name, flags, 0o666, dir_fd=self.device_tree))
            place = files.open_beneath(self.device_tree, name, os.O_PATH)
            mount.attach_at(tree, place, subject=f"/dev/{name}")
            os.close(place)
            os.close(tree)

    def _bind(self, operation: Operation) -> None:
        path, tree = operation["target"], self.binds[operation["index"]]
        directory = stat.S_ISDIR(os.fstat(tree).st_mode)
        target = self._directory(path) if directory else self._file(path)
        self._check_place(path, target)
        try:
            mount.attach_at(tree, target, subject=path)
        finally:
            os.close(target)
            os.close(tree)

    def _cgroup_v1(self, operation: Operation) -> None:
        attributes = operation["attributes"]
        target = self._below_sys("fs/cgroup")
        if target is None:
            return
        top = mount.filesystem("tmpfs", [("mode", "755"), ("size", "64k")], attributes=_QUIET)
        mount.attach_at(top, target, subject="/sys/fs/cgroup")
        os.close(target)
        for name in operation["name"].split(","):
            named = name.startswith("name=")
            directory = name.removeprefix("name=")
            option = ("name", directory) if named else (name, None)
            options = [option, *([("none", None)] if named else [])]
            if "+" in name:
                options = [(part, None) for part in name.split("+")]
                directory = name.replace("+", ",")
            os.mkdir(directory, 0o755, dir_fd=top)
            try:
                tree = mount.filesystem("cgroup", options, attributes=attributes)
            except OSError:
                continue  # a hierarchy that this kernel does not let us see again
            place = files.open_beneath(top, directory, os.O_PATH | os.O_DIRECTORY)
            mount.attach_at(tree, place)
            os.close(place)
            os.close(tree)
        mount.set_attributes(top, attributes)
        os.close(top)

    def _below_sys(self, path: str) -> int | None:
        try:
            return files.open_beneath(self.sys, path, os.O_PATH | os.O_DIRECTORY)
        except OSError:
            return None

    def _find(self, path: str) -> int | None:
        """*path* for masking: in our own procfs or sysfs by their descriptors, else in the root.

        None if there is no such thing, which is as good as hidden.
        """
        for prefix, top in (("/proc/", self.proc), ("/sys/", self.sys)):
            if path.startswith(prefix) and top >= 0:
                try:
                    return files.open_beneath(top, path.removeprefix(prefix), os.O_PATH)
                except FileNotFoundError:
                    return None
                except OSError as error:
                    # A mount of the user lies there (EXDEV does not occur without NO_XDEV);
                    # symlinks of procfs (/proc/net) lead back into it.
                    if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EACCES):
                        return None
                    raise
        try:
            return files.open_in_root(self.root, path, os.O_PATH)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _mask(self, path: str) -> None:
        target = self._find(path)
        if target is None:
            return
        if stat.S_ISDIR(os.fstat(target).st_mode):
            if self._empty < 0:
                options = [("size", "4k"), ("nr_inodes", "2"), ("mode", "555")]
                tree = self._empty = mount.filesystem(
                    "tmpfs", options, attributes=_QUIET | mount.RDONLY
                )
            else:
                tree = mount.clone_tree_at(self._empty)
        else:
            tree = mount.clone_tree_at(self.null_file) if self._masked_file else self.null_file
            self._masked_file = True
        mount.attach_at(tree, target, subject=path)
        os.close(target)
        if tree not in (self._empty, self.null_file):
            os.close(tree)

    _masked_file = False

    def _read_only(self, path: str) -> None:
        target = self._find(path)
        if target is None:
            return
        tree = mount.clone_tree_at(target, recursive=True)
        mount.set_attributes(tree, mount.RDONLY | _QUIET, recursive=True)
        mount.attach_at(tree, target, subject=path)
        os.close(tree)
        os.close(target)

    def _sysctl(self, values: dict[str, str]) -> None:
        """Rule 3: through the procfs that this child mounted, checked below its descriptor."""
        limit = self.sandbox["process"]["id_limit"]
        highest = str(limit - 1 if limit else 2147483647)
        for name, value in values.items():
            path = "sys/" + name.replace(".", "/")
            try:
                file = files.open_beneath(self.proc, path, os.O_WRONLY)
            except FileNotFoundError:
                if name == "net.ipv4.ping_group_range":
                    continue
                raise InvalidError(f"sysctl {name!r} does not exist on this host") from None
            try:
                os.write(file, value.replace("MAXGID", highest).encode())
            except OSError as error:
                raise InvalidError(
                    f"sysctl {name}={value}: {os.strerror(error.errno or 0)}"
                ) from error
            finally:
                os.close(file)

    def _console(self) -> None:
        self.terminal = open_terminal(self.pts, self.inherited.control)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        os.close(os.open("console", flags, 0o600, dir_fd=self.device_tree))
        target = files.open_beneath(self.device_tree, "console", os.O_PATH)
        tree = mount.clone_tree_at(self.terminal)
        mount.attach_at(tree, target, subject="/dev/console")
        os.close(tree)
        os.close(target)
