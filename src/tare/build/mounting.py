"""``RUN --mount``: what is mounted for one step, opened by descriptor and let go of with it.

bind
    files of the context, a stage or an image, below an overlay of their own: what is written
    there is seen by the step and lost with it (attack A37).
cache
    a directory that the build cache keeps (`cache.Cache.mount`).
tmpfs, secret, ssh
    in a tmpfs that has no name: a secret never reaches a disk.

A path chosen by the Dockerfile is opened below its root by openat2(2), and what is mounted is the
descriptor, named by /proc/PID/fd. Not for: running (``running``).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import posixpath
import stat
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tare.build import graph
from tare.build.copying import layers_of
from tare.build.dockerfile import (
    BindMount,
    CacheMount,
    Mount,
    SecretMount,
    Sharing,
    SshMount,
    TmpfsMount,
)
from tare.build.placing import Manner, Placement
from tare.build.selection import select
from tare.build.threads import in_thread
from tare.errors import FailedError, InvalidError, MissingError
from tare.kernel import files, mount
from tare.model import spec
from tare.model.spec import MountKind
from tare.run import rootfs

if TYPE_CHECKING:
    from tare.build.host import Workplace
    from tare.build.stage import Made, StageRun

_SECRETS: Final = "/run/secrets"
_AGENTS: Final = "/run/buildkit"
_SOCKET_PIECE: Final = 64 << 10


@dataclass(slots=True)
class Mounted:
    """What the mounts of one step are, before it runs: the parts of its key, and their sources."""

    stage: StageRun
    mounts: Sequence[Mount]
    others: dict[str, Made] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)

    @contextlib.asynccontextmanager
    async def open(self, place: Workplace) -> AsyncIterator[Opened]:
        """Open them all for a step that runs at *place*."""
        async with contextlib.AsyncExitStack() as closing:
            opened = Opened(self.stage, place, closing)
            for number, wanted in enumerate(self.mounts):
                await opened.add(wanted, number, self.others)
            yield opened


async def mounted_for(stage: StageRun, mounts: Sequence[Mount]) -> Mounted:
    """Look at what *mounts* take: each is part of the step's key by content."""
    found = Mounted(stage, mounts)
    seen: set[str] = set()
    for wanted in mounts:
        target = _target(stage, wanted)
        if target and target in seen:
            raise InvalidError(f"two mounts have the same target {target}")
        seen.add(target)
        name = getattr(wanted, "from_name", "")
        if name:
            found.others[name] = await stage.builder.other(stage, name)
        if isinstance(wanted, BindMount):
            other = found.others.get(name)
            digest = await in_thread(_digest, stage, wanted, other)
            found.parts[f"mount {target}"] = digest
        else:
            # What is in a cache, a secret or a tmpfs is no part of what is made; that it is
            # there, and how, is.
            found.parts[f"mount {target or repr(wanted)}"] = graph.veiled(repr(wanted))
    return found


def _target(stage: StageRun, wanted: Mount) -> str:
    """Where it is mounted, from the root; "" for a secret that is only a variable."""
    target = wanted.target
    if isinstance(wanted, SecretMount) and not target:
        if wanted.variable:
            return ""
        target = f"{_SECRETS}/{posixpath.basename(wanted.secret_id)}"
    elif isinstance(wanted, SshMount) and not target:
        target = f"{_AGENTS}/ssh_agent.{wanted.agent_id}"
    if "\0" in target:
        raise InvalidError("a mount's target contains NUL")
    path = posixpath.normpath(stage.absolute(target))
    return "/" + path.lstrip("/")


def _digest(stage: StageRun, wanted: BindMount, other: Made | None) -> str:
    """What stands for the files that a bind shows."""
    source = wanted.source or "/"
    mode = "ro" if wanted.readonly else "rw"
    if other is None:
        context = stage.builder.context
        return f"{mode} {select(context, (source,)).digest()}"
    # Of a stage all layers count: cheaper than reading every file of it.
    return f"{mode} {graph.chain(other.layers)} {json.dumps(source)}"


class Opened:
    """The mounts of a step that is about to run."""

    def __init__(
        self, stage: StageRun, place: Workplace, closing: contextlib.AsyncExitStack
    ) -> None:
        self._stage = stage
        self._place = place
        self._closing = closing
        self._memory = -1
        self._names = 0
        self.mounts: list[spec.Mount] = []
        self.environment: dict[str, str] = {}
        self.stubs: frozenset[bytes] = frozenset()

    async def add(self, wanted: Mount, number: int, others: dict[str, Made]) -> None:
        """Open one."""
        target = _target(self._stage, wanted)
        match wanted:
            case BindMount():
                other = others.get(wanted.from_name)
                await self._bind(wanted, other, target, number)
            case CacheMount():
                await self._cache(wanted, others.get(wanted.from_name), target)
            case TmpfsMount():
                options: list[tuple[str, str | int | None]] = [("mode", "1777")]
                if wanted.size:
                    options.append(("size", str(wanted.size)))
                tree = mount.filesystem("tmpfs", options, attributes=mount.NODEV)
                self._closing.callback(os.close, tree)
                self._show(tree, target, read_only=wanted.readonly)
            case SecretMount():
                self._secret(wanted, target)
            case SshMount():
                await self._agent(wanted, target)

    def _show(self, handle: int, target: str, *, read_only: bool) -> None:
        """Mount what *handle* holds at *target*."""
        self.mounts.append(
            spec.Mount(
                kind=MountKind.BIND,
                source=f"/proc/{os.getpid()}/fd/{handle}",
                target=target,
                read_only=read_only,
                recursive=False,
            )
        )
        self._leaves(target)

    def _leaves(self, target: str) -> None:
        """The place may have to be made for the mount: what is empty there is no change."""
        found = set(self.stubs)
        path = target
        while path not in ("/", ""):
            found.add(os.fsencode(path.lstrip("/")))
            path = posixpath.dirname(path)
        self.stubs = frozenset(found)

    # --- bind ---------------------------------------------------------------------------------

    async def _bind(self, wanted: BindMount, other: Made | None, target: str, number: int) -> None:
        handle = await in_thread(self._overlay, wanted.source, other, number)
        self._show(handle, target, read_only=wanted.readonly)

    def _overlay(self, source: str, other: Made | None, number: int) -> int:
        """A descriptor of *source* in an overlay of its own, closed with the step."""
        stage = self._stage
        if other is None:
            layers = [stage.builder.context_layer()]
        else:
            from tare.build.stage import layer_paths

            layers = [os.fspath(path) for path in layer_paths(stage.builder, other.layers)]
        if not layers:
            raise InvalidError("there is nothing to mount from a stage without files")
        base = self._place.directory / f"mount-{number}"
        base.mkdir(mode=0o700)
        tree = rootfs.mounted(
            {
                "layers": layers,
                "upper": f"{base}/upper",
                "work": f"{base}/work",
                "attributes": mount.NODEV,
                "volatile": True,
            },
            self._place.block,
            user_xattr=stage.builder.host.rootless,
        )
        self._closing.callback(os.close, tree)
        return self._below(tree, source, f"{source or '/'} to be mounted")

    def _below(self, root: int, path: str, what: str) -> int:
        """A descriptor of *path* as a process rooted in *root* sees it."""
        try:
            handle = files.open_in_root(root, path or "/", os.O_PATH)
        except OSError as error:
            raise MissingError(f"{what}: {error.strerror}") from error
        self._closing.callback(os.close, handle)
        if stat.S_IFMT(os.fstat(handle).st_mode) not in (stat.S_IFDIR, stat.S_IFREG):
            raise InvalidError(f"{what}: it is neither a file nor a directory")
        return handle

    # --- cache --------------------------------------------------------------------------------

    async def _cache(self, wanted: CacheMount, other: Made | None, target: str) -> None:
        builder = self._stage.builder
        identity = wanted.cache_id or target
        if wanted.sharing is Sharing.LOCKED:
            await self._closing.enter_async_context(builder.host.cache.turn(identity))
        alone = wanted.sharing is Sharing.PRIVATE
        path, new = self._closing.enter_context(builder.host.cache.mount(identity, alone=alone))
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        root = os.open(path, flags)
        self._closing.callback(os.close, root)
        if new:
            if other is not None:
                await in_thread(self._fill, root, other, wanted.source)
            os.fchown(root, wanted.uid, wanted.gid)
            os.fchmod(root, wanted.mode)
        handle = root
        if wanted.source and other is None:
            # Below what the steps themselves have made: no link in it leads anywhere.
            try:
                handle = files.open_beneath(root, wanted.source.lstrip("/"), os.O_PATH)
            except OSError as error:
                raise InvalidError(
                    f"the cache has no directory {wanted.source}: {error.strerror}"
                ) from error
            self._closing.callback(os.close, handle)
        self._show(handle, target, read_only=wanted.readonly)

    def _fill(self, root: int, other: Made, source: str) -> None:
        """Begin a cache with files of a stage or an image."""
        from tare.image.extract import Rules, extract
        from tare.image.tar import read

        with layers_of(self._stage, other) as tree:
            placement = Placement(None, Manner())
            placement.copy(select(tree, (source or "/",)), "/", into=True)
            extract(read(placement.stream()), root, rules=Rules(layer=False))

    # --- secrets, agents, scripts -------------------------------------------------------------

    def _in_memory(self) -> int:
        if self._memory < 0:
            options = [("mode", "0755"), ("size", "16m")]
            self._memory = mount.filesystem("tmpfs", options, attributes=mount.NODEV)
            self._closing.callback(os.close, self._memory)
        return self._memory

    def _file(self, content: bytes, *, mode: int, uid: int = 0, gid: int = 0) -> int:
        """A file in memory; its descriptor."""
        self._names += 1
        name = str(self._names)
        memory = self._in_memory()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(name, flags, 0o600, dir_fd=memory)
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchown(descriptor, uid, gid)
            os.fchmod(descriptor, mode)
        # Held by another that cannot write: a program that is open for writing cannot be run.
        handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=memory)
        self._closing.callback(os.close, handle)
        return handle

    def _secret(self, wanted: SecretMount, target: str) -> None:
        content = self._stage.builder.request.secrets.get(wanted.secret_id)
        if content is None:
            if wanted.required:
                raise MissingError(
                    f"secret {wanted.secret_id}: not found",
                    hint=f"give it: --secret id={wanted.secret_id},src=FILE",
                )
            return
        if wanted.variable:
            try:
                self.environment[wanted.variable] = content.decode()
            except UnicodeDecodeError:
                raise InvalidError(
                    f"secret {wanted.secret_id} is not text: it cannot be a variable"
                ) from None
        if target:
            handle = self._file(content, mode=wanted.mode, uid=wanted.uid, gid=wanted.gid)
            self._show(handle, target, read_only=True)

    async def script(self, name: str, content: str) -> spec.Mount:
        """A script that stands in the Dockerfile, where `Execution` says it is."""
        handle = self._file(content.encode("utf-8", "surrogateescape"), mode=0o755)
        return spec.Mount(
            kind=MountKind.BIND,
            source=f"/proc/{os.getpid()}/fd/{handle}",
            target=f"/dev/pipes/{name}",
            read_only=True,
            recursive=False,
        )

    async def _agent(self, wanted: SshMount, target: str) -> None:
        agent = self._stage.builder.request.agents.get(wanted.agent_id)
        if agent is None:
            if wanted.required:
                raise MissingError(
                    f"no SSH agent {wanted.agent_id!r} was given to the build",
                    hint="start ssh-agent and build with --ssh default",
                )
            return
        # Between the two stands a relay: an agent answers its own user only, and that is not
        # who the program runs as.
        memory = self._in_memory()
        self._names += 1
        name = f"agent-{self._names}"

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await _relay(agent, reader, writer)

        server = await asyncio.start_unix_server(serve, f"/proc/self/fd/{memory}/{name}")
        self._closing.push_async_callback(_end, server)
        handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=memory)
        self._closing.callback(os.close, handle)
        os.chown(name, wanted.uid, wanted.gid, dir_fd=memory)
        os.chmod(name, wanted.mode, dir_fd=memory)
        self._show(handle, target, read_only=False)
        self.environment["SSH_AUTH_SOCK"] = target


async def _end(server: asyncio.AbstractServer) -> None:
    server.close()


async def _relay(agent: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry one connection to the agent and back."""
    try:
        theirs, ours = await asyncio.open_unix_connection(agent)
    except OSError:
        writer.close()
        return

    async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await source.read(_SOCKET_PIECE):
                sink.write(piece)
                await sink.drain()
        with contextlib.suppress(OSError):
            sink.close()

    await asyncio.gather(carry(reader, ours), carry(theirs, writer))


def check_agent(path: str) -> None:
    """FailedError if *path* is no socket."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise FailedError(f"the SSH agent's socket {path}: {error.strerror}") from error
    if not stat.S_ISSOCK(status.st_mode):
        raise InvalidError(f"{path} is not the socket of an SSH agent")
