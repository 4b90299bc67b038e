"""RUN: a program in a sandbox above the files so far, and what it changed as a layer.

The sandbox is that of any container (its own ids, walls and limits). What is mounted for the step
alone (files of the context, of stages, caches, secrets, an agent's socket) is mounted by
descriptor, so no link in it is followed on the host (attack A37), and leaves nothing in the
layer. Secrets are only ever in memory.

Not for: where sandboxes come from (`host.Host`), or the language of mounts (``dockerfile``).
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from tare.build import graph
from tare.build.dockerfile import Execution, Network, Run, Security, proxies
from tare.build.mounting import Mounted, mounted_for
from tare.build.request import Output
from tare.build.stage import StageRun, StepError
from tare.build.threads import in_thread
from tare.errors import DeniedError, InvalidError, UnsupportedError
from tare.image.changes import open_layer
from tare.model.digest import Digest
from tare.model.networking import NetworkWish
from tare.model.spec import (
    ContainerSpec,
    LogConfig,
    Mount,
    Namespaces,
    ProcessSpec,
)

if TYPE_CHECKING:
    from tare.build.dockerfile import Instruction
    from tare.build.host import Listener, Workplace

HOSTNAME: Final = "buildkitsandbox"
_ALONE: Final = ("none", "host")
_DEFAULT: Final = "default"
HOST_NETWORK: Final = "network.host"
_LOG_MOST: Final = 2 << 20


@dataclass(slots=True)
class _Wish:
    """One RUN, all decided: what is run, with which variables and where."""

    execution: Execution
    arguments: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    network: str = ""


async def run(stage: StageRun, instruction: Run, written: Instruction) -> None:
    """Do a RUN."""
    builder = stage.builder
    if instruction.security is Security.INSECURE:
        raise DeniedError(
            "RUN --security=insecure is not allowed",
            hint="a build never gets privileges: run a container for what needs them",
        )
    if any(device.required for device in instruction.devices):
        raise UnsupportedError("RUN --device is not supported: builds see no host devices")
    wish = _wish(stage, instruction)
    step = stage.info(written)
    sources = await mounted_for(stage, instruction.mounts)
    parts = {**_parts(stage, wish), **sources.parts}

    told = 0

    def listen(stream: int, data: bytes) -> None:
        # Whoever watches may be slower than the program that talks: what waits is bounded.
        nonlocal told
        if told <= _LOG_MOST < told + len(data):
            data = data[: _LOG_MOST - told] + b"\n[output clipped, log limit 2MiB reached]\n"
            told = _LOG_MOST
        if told <= _LOG_MOST:
            builder.tell(Output(step, stream, data))
        told += len(data)

    async def make() -> Digest | None:
        async with builder.crowd:
            return await _made(stage, wish, sources, listen)

    history = _history(stage, wish)
    await stage.layered(written, parts, make, created_by=history, step=step)


def _wish(stage: StageRun, instruction: Run) -> _Wish:
    execution = instruction.execution()
    words = execution.arguments
    arguments = (*stage.shell, *words) if execution.shell else words
    if not arguments:
        raise InvalidError("RUN has nothing to run")
    environment = {**proxies(stage.builder.request.build_args), **stage.scope.environment}
    return _Wish(execution, arguments, environment, _network(stage, instruction))


def _network(stage: StageRun, instruction: Run) -> str:
    """The step's own wish, else the build's; the host's network only where it was allowed."""
    asked = stage.builder.request
    if instruction.network is Network.NONE:
        return "none"
    if instruction.network is Network.HOST:
        if asked.network != "host" and HOST_NETWORK not in asked.allow:
            raise DeniedError(
                "RUN --network=host is not allowed",
                hint="allow it with: tare build --allow network.host",
            )
        return "host"
    if asked.network.startswith("container:"):
        raise UnsupportedError("a build cannot join the network of a container")
    return "" if asked.network in ("", "default", "bridge") else asked.network


def _parts(stage: StageRun, wish: _Wish) -> dict[str, str]:
    """All that can change what the program does, by content."""
    request = stage.builder.request
    config = stage.made.config
    script = wish.execution.script
    parts = {
        "base": stage.chain,
        "instruction": json.dumps(
            ["run", wish.arguments, [script.name, script.content] if script else None]
        ),
        "user": config.user,
        "directory": config.cwd,
        "network": wish.network,
    }
    for name, value in stage.scope.image_environment.items():
        parts[f"env {name}"] = graph.veiled(value)
    for name, value in stage.scope.arguments.items():
        parts[f"arg {name}"] = graph.veiled(value)
    if request.extra_hosts:
        parts["hosts"] = json.dumps(sorted(request.extra_hosts))
    if request.epoch is not None:
        parts["epoch"] = str(request.epoch)
    return parts


def _history(stage: StageRun, wish: _Wish) -> str:
    """As Docker writes it: the ARGs that the command saw stand before it."""
    arguments = stage.scope.arguments
    told = [f"{name}={value}" for name, value in sorted(arguments.items())]
    front = f"|{len(told)} {' '.join(told)} " if told else ""
    return f"RUN {front}{' '.join(wish.arguments)}"


async def _made(stage: StageRun, wish: _Wish, sources: Mounted, listen: Listener) -> Digest | None:
    """Run it, and make the layer."""
    builder = stage.builder
    store = builder.host.store
    highest = max((store.layer(layer).max_id for layer in stage.made.layers), default=0)
    spec = _spec(stage, wish)
    async with builder.host.workplace(spec, highest) as place:
        async with sources.open(place) as mounts:
            environment = {**wish.environment, **mounts.environment}
            binds = list(mounts.mounts)
            if wish.execution.script is not None:
                script = wish.execution.script
                binds.append(await mounts.script(script.name, script.content))
            spec = _with(spec, environment, binds)
            code = await place.run(spec, stage.paths(), listen)
        if code:
            raise _failed(wish, code)
        return await in_thread(_layer, stage, place, mounts.stubs)


def _spec(stage: StageRun, wish: _Wish) -> ContainerSpec:
    request = stage.builder.request
    config = stage.made.config
    return ContainerSpec(
        image="build",
        image_id="",
        process=ProcessSpec(args=wish.arguments, cwd=config.cwd, user=config.user),
        hostname=HOSTNAME,
        resources=request.resources,
        ulimits=request.ulimits,
        namespaces=Namespaces(network=wish.network if wish.network in _ALONE else ""),
        networks=() if wish.network in _ALONE else (NetworkWish(network=wish.network or _DEFAULT),),
        shm_size=request.shm_size,
        auto_remove=True,
        log=LogConfig(driver="none"),
        extra_hosts=request.extra_hosts,
    )


def _with(spec: ContainerSpec, environment: dict[str, str], mounts: list[Mount]) -> ContainerSpec:
    env = tuple(f"{name}={value}" for name, value in environment.items())
    return replace(spec, process=replace(spec.process, env=env), mounts=tuple(mounts))


def _failed(wish: _Wish, code: int) -> StepError:
    command = " ".join(wish.arguments) if wish.execution.shell else shlex.join(wish.arguments)
    hint = ""
    if code == 137:
        hint = "it was killed: perhaps it needed more memory than it may have"
    return StepError(command, code, hint=hint)


def _layer(stage: StageRun, place: Workplace, stubs: frozenset[bytes]) -> Digest | None:
    """What the program changed; None when that is nothing."""
    builder = stage.builder
    try:
        upper = os.open(place.upper, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    epoch = builder.request.epoch
    block = place.block

    def inside(host: int) -> int:
        if block is not None and block[0] <= host < block[0] + block[1]:
            return host - block[0]
        return host

    with contextlib.ExitStack() as closing:
        closing.callback(os.close, upper)
        if not os.listdir(upper):
            return None
        lower = stage.mounted() if stubs else None
        if lower is not None:
            closing.callback(lower.close)
        stream = closing.enter_context(
            open_layer(
                upper,
                unshift=inside,
                userxattr=builder.host.rootless,
                lower=None if lower is None else lower.root,
                stubs=stubs,
                latest_ns=None if epoch is None else epoch * 10**9,
            )
        )
        info = builder.host.store.add_layer(stream, lease=builder.lease, durable=False)
        return info.diff_id
