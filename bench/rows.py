"""The rows of the table: what is done once, by whom, and what the figure means.

A row names its subjects (engines, runtimes, the floor) and gives a function that does the thing
once and returns one figure. The order of measuring is `run`'s: subjects take turns, so that a
host that slows down slows all of them. Not for setting engines up: that is `peers`.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import building
import machines
import published
import pulling
from engines import IMAGE, BenchError, Engine
from peers import Runtime

Once = Callable[[], float]
"""Does the thing once and returns its figure."""


@dataclass(slots=True)
class Stage:
    """All that is here to be measured."""

    directory: Path
    rootfs: Path
    engines: list[Engine]
    runtimes: list[Runtime]
    floor: Path | None
    idle: int = 500  # how many idle containers the rows with company have
    seconds: float = 10.0  # how long the row on throughput runs for each subject


@dataclass(frozen=True, slots=True)
class Bound:
    """What tare is held to in a row: at most *factor* times *subject*'s figure (or at least)."""

    subject: str
    factor: float
    at_least: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One line of docs/performance.md."""

    name: str
    title: str
    unit: str
    samples: int
    subjects: Callable[[Stage], contextlib.AbstractContextManager[dict[str, Once]]]
    bounds: tuple[Bound, ...] = field(default=())


def _timed(work: Callable[[], object]) -> Once:
    def once() -> float:
        began = time.perf_counter()
        work()
        return (time.perf_counter() - began) * 1e3

    return once


@contextlib.contextmanager
def _running(engine: Engine, name: str = "", network: str = "none") -> Iterator[str]:
    api = engine.api()
    container = api.create("sleep", "1000000", name=name, network=network)
    try:
        api.start(container)
        yield container
    finally:
        # podman gives one that ignores SIGTERM ten seconds before it removes it by force.
        with contextlib.suppress(BenchError):
            api.kill(container)
        api.remove(container)
        api.close()


@contextlib.contextmanager
def _runtime(stage: Stage) -> Iterator[dict[str, Once]]:
    """Start to exit of a container, by the runtime alone.

    runc and crun are programs, so theirs includes their own start; tare's keeper is there already,
    and its figure includes one request and one event. The floor includes nothing at all.
    """
    subjects: dict[str, Once] = {}
    with contextlib.ExitStack() as stack:
        if stage.floor is not None:
            subjects["floor"] = _floor_once(stage, stage.floor)
        for runtime in stage.runtimes:
            subjects[runtime.name] = _timed(runtime.run_true)
        if any(engine.name == "tare" for engine in stage.engines):
            from keeper import DirectKeeper

            direct = DirectKeeper(stage.directory, stage.rootfs)
            stack.callback(direct.close)
            subjects["tare"] = direct.run_true
        yield subjects


def _floor_once(stage: Stage, program: Path) -> Once:
    turns = iter(range(1_000_000))

    def once() -> float:
        # Ten rounds a process, the first left out: it pays for cold caches that others keep warm.
        scratch = stage.directory / f"floor-{next(turns)}"
        scratch.mkdir()
        command = [str(program), str(stage.rootfs), str(scratch), "10"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BenchError(done.stderr.strip())
        figures = sorted(float(line) for line in done.stdout.split()[1:])
        return figures[len(figures) // 2] / 1e3

    return once


@contextlib.contextmanager
def _api_run(stage: Stage) -> Iterator[dict[str, Once]]:
    with contextlib.ExitStack() as stack:
        subjects: dict[str, Once] = {}
        for engine in stage.engines:
            api = engine.api()
            stack.callback(api.close)
            subjects[engine.name] = _timed(api.run_true)
        yield subjects


@contextlib.contextmanager
def _cli_run(stage: Stage) -> Iterator[dict[str, Once]]:
    bare = ["/usr/bin/python3", "-IS", "-c", "pass"]
    subjects: dict[str, Once] = {"floor": _timed(lambda: subprocess.run(bare, check=True))}
    for engine in stage.engines:
        subjects[engine.name] = _timed(_cli_once(engine))
    yield subjects


def _cli_once(engine: Engine) -> Callable[[], None]:
    return lambda: engine.cli("run", "--rm", "--network", "none", IMAGE, "true")


@contextlib.contextmanager
def _bridged(
    stage: Stage, once: Callable[[Engine, str, contextlib.ExitStack], Once]
) -> Iterator[dict[str, Once]]:
    """On each engine's default bridge, and by tare without a network beside it."""
    with contextlib.ExitStack() as stack:
        subjects: dict[str, Once] = {}
        for engine in stage.engines:
            subjects[engine.name] = once(engine, "bridge", stack)
            if engine.name == "tare":
                subjects["no network"] = once(engine, "none", stack)
        yield subjects


def _api_once(engine: Engine, network: str, stack: contextlib.ExitStack) -> Once:
    api = engine.api()
    stack.callback(api.close)
    return _timed(lambda: api.run_true(network))


def _cli_network_once(engine: Engine, network: str, _: contextlib.ExitStack) -> Once:
    return _timed(lambda: engine.cli("run", "--rm", "--network", network, IMAGE, "true"))


@contextlib.contextmanager
def _exec(stage: Stage) -> Iterator[dict[str, Once]]:
    with contextlib.ExitStack() as stack:
        subjects: dict[str, Once] = {}
        for engine in stage.engines:
            container = stack.enter_context(_running(engine))
            subjects[engine.name] = _exec_once(engine, container, stack)
        for runtime in stage.runtimes:
            name = stack.enter_context(runtime.idle())
            subjects[runtime.name] = _timed(_runtime_exec(runtime, name))
        yield subjects


def _exec_once(engine: Engine, container: str, stack: contextlib.ExitStack) -> Once:
    api = engine.api()
    stack.callback(api.close)
    return _timed(lambda: api.exec_true(container))


def _runtime_exec(runtime: Runtime, name: str) -> Callable[[], None]:
    return lambda: runtime.exec_true(name)


@contextlib.contextmanager
def _memory(stage: Stage) -> Iterator[dict[str, Once]]:
    yield {engine.name: _memory_once(engine) for engine in stage.engines}


def _memory_once(engine: Engine, count: int = 20) -> Once:
    def once() -> float:
        with contextlib.ExitStack() as stack:
            # What the first container makes the engine load is not the price of one more.
            stack.enter_context(_running(engine))
            before = engine.memory()
            for _ in range(count):
                stack.enter_context(_running(engine))
            return (engine.memory() - before) / count / 2**20

    return once


@contextlib.contextmanager
def _list(stage: Stage) -> Iterator[dict[str, Once]]:
    with contextlib.ExitStack() as stack:
        subjects: dict[str, Once] = {}
        for engine in stage.engines:
            stack.enter_context(_running(engine))
            api = engine.api()
            stack.callback(api.close)
            subjects[engine.name] = _timed(api.names)
        yield subjects


_AUDITED: Final = 100


@contextlib.contextmanager
def _audit(stage: Stage) -> Iterator[dict[str, Once]]:
    """A full audit beside a hundred containers; peers have none."""
    subjects: dict[str, Once] = {}
    with contextlib.ExitStack() as stack:
        for engine in stage.engines:
            if engine.name == "tare":
                for _ in range(_AUDITED):
                    stack.enter_context(_running(engine))
                subjects["tare"] = _audit_once(engine, stack)
        yield subjects


def _audit_once(engine: Engine, stack: contextlib.ExitStack) -> Once:
    api = engine.api()
    stack.callback(api.close)
    timed = _timed(lambda: api.ask("POST", "/tare/audit", {}))
    return lambda: timed() / 1000


@contextlib.contextmanager
def _throughput(stage: Stage) -> Iterator[dict[str, Once]]:
    subjects: dict[str, Once] = {}
    for engine in stage.engines:
        subjects[engine.name] = _clients(_api_client(engine), stage.seconds)
    for runtime in stage.runtimes:
        subjects[runtime.name] = _clients(_runtime_client(runtime), stage.seconds)
    yield subjects


Client = Callable[[int], contextlib.AbstractContextManager[Callable[[], None]]]


def _api_client(engine: Engine) -> Client:
    @contextlib.contextmanager
    def client(_number: int) -> Iterator[Callable[[], None]]:
        api = engine.api()
        try:
            yield api.run_true
        finally:
            api.close()

    return client


def _runtime_client(runtime: Runtime) -> Client:
    @contextlib.contextmanager
    def client(number: int) -> Iterator[Callable[[], None]]:
        yield lambda: runtime.run_true(number)

    return client


def _clients(client: Client, seconds: float, count: int = 8) -> Once:
    """Containers a second that *count* clients get out of it in *seconds*."""

    def once() -> float:
        done, errors = [0] * count, list[Exception]()
        began = time.perf_counter()

        def work(number: int) -> None:
            try:
                with client(number) as run:
                    while time.perf_counter() - began < seconds:
                        run()
                        done[number] += 1
            except Exception as error:  # brought to the thread that reports
                errors.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise BenchError(f"{len(errors)} of {count} clients failed, the first: {errors[0]}")
        return sum(done) / (time.perf_counter() - began)

    return once


@contextlib.contextmanager
def _company(stage: Stage, action: str) -> Iterator[dict[str, Once]]:
    """The figure beside many idle containers, divided by the figure alone; tare only.

    For a peer the crowd alone would take minutes and gigabytes.
    """
    subjects: dict[str, Once] = {}
    with contextlib.ExitStack() as stack:
        for engine in stage.engines:
            if engine.name == "tare":
                once = _company_once(engine, action, stack)
                alone = sorted(once() for _ in range(15))[7]
                network = "bridge" if action == "bridge" else "none"
                for _ in range(stage.idle):
                    stack.enter_context(_running(engine, network=network))
                subjects["tare"] = _relative(once, alone)
        yield subjects


def _company_once(engine: Engine, action: str, stack: contextlib.ExitStack) -> Once:
    container = stack.enter_context(_running(engine, "tare-bench-named"))
    api = engine.api()
    stack.callback(api.close)
    match action:
        case "start":
            return _timed(api.run_true)
        case "bridge":
            return _timed(lambda: api.run_true("bridge"))
        case "exec":
            return _timed(lambda: api.exec_true(container))
        case _:
            return _timed(lambda: api.names("tare-bench-named"))


def _relative(once: Once, alone: float) -> Once:
    return lambda: once() / alone


def _pull_row(how: str) -> Row:
    def subjects(stage: Stage) -> contextlib.AbstractContextManager[dict[str, Once]]:
        return pulling.pulls(stage.directory, stage.engines, how)

    title = f"pull of 3 layers, 450 MB, {how}; floor: unpack, sha256sum"
    name = "pull" if how == "gzip" else f"pull-{how}"
    bounds = (Bound("docker", 1 / 4), Bound("podman", 1 / 4), Bound("floor", 1.3))
    return Row(name, title, "s", 3, subjects, bounds)


def _build_row(*, cold: bool) -> Row:
    def subjects(stage: Stage) -> contextlib.AbstractContextManager[dict[str, Once]]:
        return building.builds(stage.directory, stage.engines, cold=cold)

    if cold:
        return Row("build-cold", "build of 10 steps, nothing cached", "ms", 5, subjects,
                   (Bound("buildx", 1 / 3), Bound("docker", 1 / 6)))  # fmt: skip
    bounds = (Bound("buildx", 1 / 4), Bound("docker", 1))
    return Row("build-cached", "build of 10 steps, all cached", "ms", 15, subjects, bounds)


def _company_row(action: str, title: str) -> Row:
    def subjects(stage: Stage) -> contextlib.AbstractContextManager[dict[str, Once]]:
        return _company(stage, action)

    return Row(f"idle-{action}", title, "x", 15, subjects, (Bound("", 1.3),))


_PUBLISHED: Final = (
    Bound(published.OWN, 0.95, at_least=True), Bound("podman", 1, at_least=True),
)  # fmt: skip

ROWS: Final = (
    Row("runtime", "start to exit inside the runtime", "ms", 15, _runtime,
        (Bound("floor", 3), Bound("crun", 1))),
    Row("api-run", "API create, start, wait, remove", "ms", 15, _api_run,
        (Bound("podman", 1 / 8), Bound("docker", 1 / 20))),
    Row("cli-run", "CLI run --rm", "ms", 15, _cli_run,
        (Bound("podman", 1 / 4), Bound("docker", 1 / 10))),
    Row("api-run-bridge", "API create, start, wait, remove, on the bridge", "ms", 15,
        lambda stage: _bridged(stage, _api_once),
        (Bound("no network", 1.5), Bound("podman", 1 / 12), Bound("docker", 1 / 20))),
    Row("cli-run-bridge", "CLI run --rm, on the bridge", "ms", 15,
        lambda stage: _bridged(stage, _cli_network_once),
        (Bound("no network", 1.3), Bound("podman", 1 / 8), Bound("docker", 1 / 10))),
    Row("published", "requests by 127.0.0.1 to a published port, wrk on 32 connections", "/s", 7,
        lambda stage: published.requests(stage.directory, stage.engines), _PUBLISHED),
    Row("published-bulk", "the same, iperf3 on one connection", "Gbit/s", 15,
        lambda stage: published.bulk(stage.directory, stage.engines), _PUBLISHED),
    Row("exec", "API exec of true", "ms", 15, _exec, (Bound("docker", 1 / 8),)),
    Row("memory", "memory per idle container (PSS)", "MiB", 3, _memory, (Bound("", 0.1),)),
    Row("list", "API list of 1 container", "ms", 31, _list, (Bound("docker", 1),)),
    Row("audit", "full audit of 100 containers", "s", 5, _audit, (Bound("", 5),)),
    Row("throughput", "containers per second, 8 clients", "/s", 1, _throughput,
        (Bound("", 100, at_least=True),)),
    _pull_row("gzip"),
    _pull_row("zstd"),
    _build_row(cold=False),
    _build_row(cold=True),
    Row("vm-cold", "virtual machine, cold, to first output; floor: bare QEMU to its init", "s", 7,
        lambda stage: machines.cold(stage.engines), (Bound("floor", 1.2),)),
    _company_row("start", "create to remove beside idle containers, relative to alone"),
    _company_row("bridge", "the same on a bridge with as many on it, relative to alone"),
    _company_row("exec", "exec beside idle containers, relative to alone"),
    _company_row("list", "list by name beside idle containers, relative to alone"),
)  # fmt: skip
