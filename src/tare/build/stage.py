"""One stage of a build: its steps in order, from what it starts from to what it makes.

Each step is either found in the cache or done, and either way leaves the same: a layer or none, a
line of history, a changed configuration. What only changes the configuration is decided here;
what changes files is in ``copying`` and ``running``. Steps follow BuildKit's meaning.

Not for: which stages run, and when (``executor``).
"""

from __future__ import annotations

import contextlib
import json
import os
import posixpath
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tare.build import graph
from tare.build.cache import Step
from tare.build.dockerfile import (
    Add,
    Arg,
    Cmd,
    CommandLine,
    Copy,
    Entrypoint,
    Env,
    Expose,
    Healthcheck,
    Instruction,
    Label,
    Maintainer,
    Onbuild,
    Run,
    Scope,
    Shell,
    Stopsignal,
    User,
    Volume,
    Workdir,
    expand,
)
from tare.build.request import Note, Progress, State, StepInfo
from tare.build.threads import in_thread
from tare.build.tree import DirectoryTree
from tare.errors import InvalidError
from tare.image.moments import format_time
from tare.model import oci
from tare.model.digest import Digest
from tare.model.oci import History, ImageConfig
from tare.model.spec import HealthCheck
from tare.run import rootfs

if TYPE_CHECKING:
    from tare.build.executor import Builder

Make = Callable[[], Awaitable[Digest | None]]
Files = Callable[[], Mapping[str, str]]

DEFAULT_SHELL: Final = ("/bin/sh", "-c")
DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
EMPTY: Final = Digest.of(bytes(1024))
"""The diff_id of an archive with nothing in it: such a layer is left out."""


class StepError(InvalidError):
    """The program of a step failed: which, and the code it ended with."""

    def __init__(self, command: str, code: int, *, hint: str = "") -> None:
        super().__init__(
            f'process "{command}" did not complete successfully: exit code: {code}', hint=hint
        )
        self.command = command
        self.code = code


@dataclass(slots=True)
class Made:
    """What a stage has made so far; ``link`` stands for the steps that led here."""

    config: ImageConfig
    layers: tuple[Digest, ...] = ()
    history: tuple[History, ...] = ()
    link: str = ""
    created_ns: int = 0
    cmd_set: bool = False
    parent: Digest | None = None


class StageRun:
    """The steps of one stage, done one after the other by `do`."""

    def __init__(self, builder: Builder, name: str, index: int, made: Made, total: int) -> None:
        self.builder = builder
        self.name = name
        self.index = index
        self.made = made
        self._total = total
        self._number = 0
        base = dict(item.partition("=")[::2] for item in made.config.env)
        base.setdefault("PATH", DEFAULT_PATH)
        self.scope = Scope(base, builder.arguments, builder.request.build_args)
        made.config = replace(made.config, env=_variables(base))

    # --- steps --------------------------------------------------------------------------------

    async def do(self, written: Instruction) -> None:
        """Do one step; StepError, DockerfileError or another TareError if it cannot be done."""
        self._number += 1
        match written:
            case Arg():
                declared = self.scope.declare(written)
                words = " ".join(
                    d.name if d.value is None else f"{d.name}={d.value}"
                    for d in declared.declarations
                )
                await self._configure(written, f"ARG {words}")
            case Env():
                found = self.scope.set(written)
                env = _variables(self.scope.image_environment)
                self.made.config = replace(self.made.config, env=env)
                words = " ".join(f"{pair.key}={pair.value}" for pair in found.pairs)
                await self._configure(written, f"ENV {words}")
            case Copy() | Add() | Workdir() | Run():
                await self._change_files(expand(written, self.scope.environment), written)
            case _:
                instruction = expand(written, self.scope.environment)
                text = self._settings(instruction)
                await self._configure(written, text)

    async def _change_files(self, instruction: Instruction, written: Instruction) -> None:
        match instruction:
            case Run():
                from tare.build.running import run

                await run(self, instruction, written)
            case Workdir():
                from tare.build.copying import workdir

                await workdir(self, instruction, written)
            case Copy():
                from tare.build.copying import copy

                await copy(self, instruction, written)
            case Add():
                from tare.build.adding import add

                await add(self, instruction, written)
            case _:
                raise AssertionError(instruction)

    def info(self, written: Instruction) -> StepInfo:
        """The step at hand, for those who watch."""
        return StepInfo(
            id=self.builder.next_id(),
            of=self.builder.total,
            stage=self.name,
            number=self._number,
            total=self._total,
            text=written.original,
            lines=written.lines,
        )

    async def _configure(self, written: Instruction, text: str) -> None:
        """A step that makes no layer: its time is kept, so that the same build has the same id."""
        parts = {"base": self.made.link, "instruction": text}
        step = self.info(written)
        key = graph.key_of(parts)
        found = self.builder.look_up(key)
        state = State.CACHED
        if found is None:
            created = self.builder.now_ns()
            found = Step(key=key, layer=None, created_ns=created, what=text, parts=parts)
            self.builder.keep(found)
            self.builder.tell(Progress(step=step, state=State.RUNNING))
            state = State.DONE
        self._push(found, text)
        self.builder.tell(Progress(step=step, state=state, result=self.made.link))

    async def layered(
        self,
        written: Instruction,
        parts: Mapping[str, str],
        make: Make,
        *,
        created_by: str,
        files: Files = dict,
        step: StepInfo | None = None,
    ) -> None:
        """A step that may make a layer: out of the cache by its *parts*, else by *make*."""
        builder = self.builder
        step = step or self.info(written)
        key = graph.key_of(parts)
        found = builder.look_up(key)
        async with contextlib.AsyncExitStack() as held:
            if found is None and not builder.request.no_cache:
                # Two equal builds at once: one does the step, the other has what it made.
                turn = builder.host.cache.turn(f"step {key}")
                if turn.locked():
                    builder.tell(Note(f"another build is doing this already: {written.original}"))
                await held.enter_async_context(turn)
                found = builder.look_up(key)
            if found is None:
                await self._made(step, written, parts, make, created_by=created_by, files=files)
                return
        self._push(found, created_by)
        builder.tell(Progress(step=step, state=State.CACHED, result=self.made.link))

    async def _made(
        self,
        step: StepInfo,
        written: Instruction,
        parts: Mapping[str, str],
        make: Make,
        *,
        created_by: str,
        files: Files,
    ) -> None:
        """Do a step that the cache has not."""
        builder = self.builder
        key = graph.key_of(parts)
        what = written.original
        described = await in_thread(files)
        why = tuple(builder.why(what, key, parts, described))
        builder.tell(Progress(step=step, state=State.RUNNING, why=why))
        started = time.monotonic()
        try:
            layer = await make()
        except BaseException:
            seconds = time.monotonic() - started
            builder.tell(Progress(step=step, state=State.FAILED, seconds=seconds))
            raise
        if layer == EMPTY:
            layer = None
        made = Step(
            key=key,
            layer=layer,
            created_ns=builder.now_ns(),
            what=what,
            parts=parts,
            files=described,
        )
        builder.keep(made)
        self._push(made, created_by)
        seconds = time.monotonic() - started
        builder.tell(
            Progress(step=step, state=State.DONE, seconds=seconds, why=why, result=self.made.link)
        )

    def _push(self, step: Step, created_by: str) -> None:
        made = self.made
        layers = made.layers if step.layer is None else (*made.layers, step.layer)
        if len(layers) > oci.LAYERS_MAX:
            raise InvalidError(f"the image would have more than {oci.LAYERS_MAX} layers")
        made.layers = layers
        made.created_ns = max(made.created_ns, step.created_ns)
        made.link = graph.key_of({"after": made.link, "step": step.key})
        line = History(
            created=format_time(step.created_ns),
            created_by=created_by,
            comment=f"{graph.FORMAT} {step.key}",
            empty_layer=step.layer is None,
        )
        made.history = (*made.history, line)

    # --- what is below ------------------------------------------------------------------------

    @property
    def chain(self) -> str:
        """What stands for the layers so far."""
        return graph.chain(self.made.layers)

    def paths(self) -> list[Path]:
        """What to mount for the layers so far, bottom first."""
        return layer_paths(self.builder, self.made.layers)

    def mounted(self) -> DirectoryTree | None:
        """The files so far, read-only; None of no layers. The caller closes it."""
        return mounted(self.builder, self.made.layers)

    # --- configuration ------------------------------------------------------------------------

    def _settings(self, instruction: Instruction) -> str:
        """Change the configuration; what history says of it."""
        config = self.made.config
        match instruction:
            case Cmd(command=command):
                self.made.cmd_set = True
                words = self._command(command)
                self.made.config = replace(config, cmd=words)
                return f"CMD {_json(words)}"
            case Entrypoint(command=command):
                words = self._command(command)
                cmd = config.cmd if self.made.cmd_set else None
                self.made.config = replace(config, entrypoint=words, cmd=cmd)
                return f"ENTRYPOINT {_json(words)}"
            case Label(pairs=pairs):
                labels = {**config.labels, **{pair.key: pair.value for pair in pairs}}
                self.made.config = replace(config, labels=labels)
                return "LABEL " + " ".join(f"{pair.key}={pair.value}" for pair in pairs)
            case Maintainer(author=author):
                self.made.config = replace(config, author=author)
                return f"MAINTAINER {author}"
            case Expose(ports=ports):
                every = tuple(sorted({*config.exposed_ports, *ports}))
                self.made.config = replace(config, exposed_ports=every)
                return "EXPOSE " + " ".join(ports)
            case User(user=user):
                self.made.config = replace(config, user=user)
                return f"USER {user}"
            case Volume(paths=paths):
                every = tuple(sorted({*config.volumes, *paths}))
                self.made.config = replace(config, volumes=every)
                return f"VOLUME {_json(paths)}"
            case Shell(arguments=arguments):
                self.made.config = replace(config, shell=arguments)
                return f"SHELL {_json(arguments)}"
            case Stopsignal(signal=signal):
                self.made.config = replace(config, stop_signal=signal)
                return f"STOPSIGNAL {signal}"
            case Healthcheck():
                self.made.config = replace(config, health=_health(instruction))
                return instruction.original
            case Onbuild(trigger=trigger):
                self.made.config = replace(config, on_build=(*config.on_build, trigger))
                return f"ONBUILD {trigger}"
            case _:
                raise AssertionError(instruction)

    @property
    def shell(self) -> tuple[str, ...]:
        """What a command in the shell form is given to."""
        return self.made.config.shell or DEFAULT_SHELL

    def _command(self, command: CommandLine) -> tuple[str, ...]:
        if command.shell:
            return (*self.shell, *command.arguments)
        return command.arguments

    def absolute(self, path: str) -> str:
        """*path* from the root, below WORKDIR if it is relative."""
        return posixpath.join("/", self.made.config.cwd, path)


def layer_paths(builder: Builder, layers: tuple[Digest, ...]) -> list[Path]:
    """What to mount for *layers*, bottom first; those that one hides entirely are left out."""
    infos = [builder.host.store.layer(layer) for layer in layers]
    hidden = max((i for i, info in enumerate(infos) if info.opaque_root), default=0)
    return [info.path for info in infos[hidden:]]


def mounted(builder: Builder, layers: tuple[Digest, ...]) -> DirectoryTree | None:
    """The files of *layers*, read-only; None of no layers."""
    if not layers:
        return None
    paths = [os.fspath(path) for path in layer_paths(builder, layers)]
    return DirectoryTree(rootfs.mounted_image(paths))


def _variables(values: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"{name}={value}" for name, value in values.items())


def _json(words: tuple[str, ...]) -> str:
    return json.dumps(list(words), ensure_ascii=False)


def _health(told: Healthcheck) -> HealthCheck:
    default = HealthCheck()
    return HealthCheck(
        test=told.test,
        interval_ns=told.interval_ns or default.interval_ns,
        timeout_ns=told.timeout_ns or default.timeout_ns,
        start_period_ns=told.start_period_ns,
        start_interval_ns=told.start_interval_ns or default.start_interval_ns,
        retries=told.retries or default.retries,
    )
