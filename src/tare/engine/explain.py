"""``tare explain``: why a container is as it is, in sentences, from what the engine knows.

Nothing is guessed: each sentence names the record, the limit or the rule that it rests on. What is
not known (a rule of a firewall that is not the engine's) is said to be not known.

Not for: the host as a whole (engine.doctor).
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import signal
import time
from collections.abc import Sequence
from typing import Final

from tare.engine import network_values
from tare.engine.budget import Budgets, counted
from tare.engine.core import Core
from tare.engine.ids import UNIT
from tare.errors import TareError
from tare.model import budget as arithmetic
from tare.model.explanation import Explanation, Limit, Port
from tare.model.networking import Joined, Published
from tare.model.record import HealthStatus, Record
from tare.model.spec import Isolation, MountKind, SecurityProfile
from tare.model.state import STATUS, State
from tare.network import firewall
from tare.network.values import engine_tag, table_name
from tare.run import plan

_LAST_CAPABILITY: Final = 40
_MEANINGS: Final = {
    0: "it ended by itself and without an error",
    1: "it ended by itself and reported a general error",
    2: "it ended by itself and reported a wrong use of its arguments, or a shell's syntax error",
    125: "the container could not be made or started",
    126: "its program was found and may not be executed",
    127: "its program was not found",
    128: "the container could not be started",
}


async def explain(core: Core, ref: str) -> Explanation:
    """All that can be said of the container *ref*; MissingError."""
    record = core.store.get(ref)
    verdict, advice = _why(record)
    return Explanation(
        id=record.id,
        name=record.name,
        state=STATUS[record.state],
        verdict=tuple(verdict),
        advice=tuple(advice),
        limits=tuple(_limits(record, core.budgets)),
        ports=tuple(await _ports(record, core)),
        networks=tuple(_networks(record)),
        isolation=tuple(_isolation(record)),
        volumes=tuple(_volumes(record, core)),
    )


# --- why --------------------------------------------------------------------------------------


def _why(record: Record) -> tuple[list[str], list[str]]:
    match record.state:
        case State.RUNNING | State.STOPPING:
            found = [f"it runs since {_since(record.started_ns)}"]
        case State.PAUSED:
            found = ["it is frozen: somebody paused it"]
            return found, [f"tare unpause {record.name}"]
        case State.RESTARTING:
            found = ["it ended, and its restart policy will start it again", *_end(record)[0]]
            return found, _end(record)[1]
        case State.CREATED | State.STARTING if not record.finished_ns and not record.error:
            return ["it was made and never started"], [f"tare start {record.name}"]
        case _:
            return _end(record)
    advice: list[str] = []
    health = record.health
    if health is not None and health.status is not HealthStatus.NONE:
        found.append(f"its health check says {health.status}")
        if health.status is HealthStatus.UNHEALTHY and health.log:
            last = health.log[-1]
            found.append(
                f"{health.failing_streak} checks in a row have failed, the last with"
                f" {'a time-out' if last.exit_code == -1 else f'exit code {last.exit_code}'}:"
                f" {last.output.strip()[:200] or 'it printed nothing'}"
            )
    if record.oom_killed:
        found.append("the OOM killer has taken a process in it during this run")
    if record.restart_count:
        found.append(f"its restart policy has started it {record.restart_count} times")
    return found, advice


def _end(record: Record) -> tuple[list[str], list[str]]:
    code, advice = record.exit_code, []
    when = f", {_since(record.finished_ns)}" if record.finished_ns else ""
    if not record.started_ns and record.error:
        return [f"it could not be started: {record.error}"], []
    found = []
    if record.oom_killed:
        limit = record.spec.resources.memory
        if limit:
            found.append(
                f"a process in it was killed by the kernel's OOM killer: it wanted more than its"
                f" memory limit of {arithmetic.size(limit)}{when}"
            )
            swap = record.spec.resources.memory_swap or 0
            both = f" --memory-swap {_more(max(swap, limit))}" if swap > 0 else ""
            advice.append(f"give it more: tare update --memory {_more(limit)}{both} {record.name}")
        else:
            found.append(
                "a process in it was killed by the kernel's OOM killer, and it has no limit of its"
                f" own: all containers together had reached the engine's budget, or the host{when}"
            )
            advice.append("see who uses what: tare stats --no-stream, tare budget")
    if record.oom_killed and code == 128 + signal.SIGKILL:
        found.append("exit code 137: that was its first process, so the container ended")
    elif 128 < code < 128 + 65:
        found.append(f"{_signalled(record, code - 128)}{'' if record.oom_killed else when}")
    elif not record.oom_killed or code:
        words = _MEANINGS.get(code, "it ended by itself; what the code means, the program says")
        found.append(f"exit code {code}: {words}{when}")
    if record.manually_stopped:
        found.append("somebody had asked it to stop")
    if record.error and not record.oom_killed:
        found.append(record.error)
    if code and not record.oom_killed and not record.manually_stopped:
        advice.append(f"what it printed last: tare logs --tail 20 {record.name}")
    return found, advice


def _signalled(record: Record, number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    known: dict[int, str] = {
        signal.SIGKILL: "nothing can catch it; with `stop` it comes when the grace time is over",
        signal.SIGTERM: "the usual way to ask a program to end",
        signal.SIGSEGV: "it touched memory that is not its own: an error in the program",
        signal.SIGABRT: "the program gave up by itself (abort)",
        signal.SIGILL: "an instruction that this processor does not have",
        signal.SIGBUS: "memory that cannot be had: a cut file, or a full tmpfs",
        signal.SIGINT: "somebody pressed Ctrl-C",
        signal.SIGPIPE: "nobody read what it wrote",
        signal.SIGSYS: "a system call that its seccomp filter kills for",
    }
    why = known.get(number, "")
    own = f" ({record.spec.stop_signal} is its stop signal)" if number == signal.SIGTERM else ""
    return f"exit code {128 + number}: it was ended by {name}{own}" + (f": {why}" if why else "")


def _more(limit: int) -> str:
    return f"{max(limit * 2 >> 20, 1)}m"


def _since(ns: int) -> str:
    seconds = max(int(time.time() - ns / 1e9), 0)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


# --- limits -----------------------------------------------------------------------------------


def _limits(record: Record, budgets: Budgets) -> list[Limit]:
    spec, limits = record.spec, record.spec.resources
    hardened = spec.security.profile is SecurityProfile.HARDENED
    project = budgets.project_of(spec)
    found = []
    engine = budgets.engine
    if limits.memory:
        source = "--memory"
        if hardened and limits.memory == 1 << 30:
            source = "--memory, or the default of the profile hardened"
        found.append(Limit("memory", arithmetic.size(limits.memory), source))
    else:
        found.append(Limit("memory", "none of its own", "no --memory"))
    if limits.memory_swap:
        swap = limits.memory_swap
        value = "unlimited" if swap < 0 else arithmetic.size(swap)
        found.append(Limit("memory and swap", value, "--memory-swap"))
    if engine.memory is not None:
        found.append(
            Limit("memory of all together", arithmetic.size(engine.memory), "budget of the engine")
        )
    cpu = arithmetic.cpu_limit(limits)
    found.append(
        Limit("CPUs", arithmetic.cpus(cpu), "--cpus or --cpu-quota")
        if cpu
        else Limit("CPUs", f"all {os.cpu_count()} of the host", "no --cpus")
    )
    if engine.nano_cpus is not None:
        found.append(
            Limit("CPUs of all together", arithmetic.cpus(engine.nano_cpus), "budget of the engine")
        )
    if limits.cpuset_cpus:
        found.append(Limit("which CPUs", limits.cpuset_cpus, "--cpuset-cpus"))
    found.append(_pids(record, hardened=hardened))
    if engine.pids is not None:
        found.append(Limit("processes of all together", str(engine.pids), "budget of the engine"))
    if project:
        found += _project(project, budgets)
    for name, throttles in (
        ("reads", limits.read_bps), ("writes", limits.write_bps),
        ("reads", limits.read_iops), ("writes", limits.write_iops),
    ):  # fmt: skip
        found += [
            Limit(f"{name} of {one.device}", f"{one.rate} a second", "--device-*")
            for one in throttles
        ]
    found.append(Limit("shared memory", arithmetic.size(spec.shm_size), "--shm-size or default"))
    holds = counted(spec, limits, engine)
    if holds.memory or holds.nano_cpus:
        words = f"{arithmetic.size(holds.memory)} memory, {arithmetic.cpus(holds.nano_cpus)} CPUs"
        found.append(Limit("reserved", words, "budget: what it counts on while it runs"))
    return found


def _pids(record: Record, *, hardened: bool) -> Limit:
    pids = record.spec.resources.pids
    if pids is None:
        value = plan.HARDENED_PIDS if hardened else plan.DEFAULT_PIDS
        return Limit("processes", str(value), f"default of {record.spec.security.profile}")
    return Limit("processes", "unlimited" if pids <= 0 else str(pids), "--pids-limit")


def _project(project: str, budgets: Budgets) -> list[Limit]:
    budget = budgets.of(project)
    source = f"budget of {project}"
    found = []
    if budget.memory is not None:
        found.append(Limit("memory of the project", arithmetic.size(budget.memory), source))
    if budget.nano_cpus is not None:
        found.append(Limit("CPUs of the project", arithmetic.cpus(budget.nano_cpus), source))
    if budget.pids is not None:
        found.append(Limit("processes of the project", str(budget.pids), source))
    return found


# --- network ----------------------------------------------------------------------------------


async def _ports(record: Record, core: Core) -> list[Port]:
    if not any(joined.ports for joined in record.networks):
        return []
    if core.paths.rootless:
        return [_relayed(port, record.alive) for joined in record.networks for port in joined.ports]
    table = table_name(engine_tag(str(core.paths.state)))
    walls = await asyncio.to_thread(firewall.foreign_walls, "forward")
    found = []
    for joined in record.networks:
        network = core.networks.find(joined.network_id)
        together = network is not None and not network_values.network(network).isolated
        found += [_port(record, joined, p, table, walls, together=together) for p in joined.ports]
    return found


def _relayed(port: Published, alive: bool) -> Port:
    """Of an engine without root there is no rule: a program of the user's holds the port."""
    host = _shown(port.host_address)
    rule = "no rule: pasta or slirp4netns of this container listens there, as an ordinary program"
    return Port(
        f"{host}:{port.host_port} -> {port.container_port}/{port.protocol}",
        rule if alive else f"none while it does not run; then: {rule}",
        _reach(port.host_address),
    )


def _shown(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _port(
    record: Record,
    joined: Joined,
    port: Published,
    table: str,
    walls: Sequence[str],
    *,
    together: bool,
) -> Port:
    host = _shown(port.host_address)
    where = joined.ipv6 if ":" in port.host_address else joined.ipv4
    target = where or joined.ipv4 or joined.ipv6 or "the container"
    family = "6" if ":" in port.host_address else "4"
    everywhere = port.host_address in ("", "0.0.0.0", "::")  # noqa: S104  # only told about
    rule = (
        f"nft: table inet {table}, map {'any' if everywhere else 'at'}{family}: {port.protocol} to"
        f" {host} port {port.host_port} goes to {target} port {port.container_port},"
        f" network {joined.network} (chains arriving for others and own for this host; chain in"
        " lets it through)"
    )
    if not record.alive:
        rule = f"none while it does not run; then: {rule}"
    reach = [_reach(port.host_address)]
    if together:
        inside = f"{_shown(target)}:{port.container_port}"
        reach.append(f"containers of the network {joined.network} reach {inside} without it")
    if walls and not port.host_address.startswith(("127.", "::1")):
        reach.append(f"the host's own firewall ({', '.join(walls)}) decides too: tare doctor")
    return Port(
        f"{host}:{port.host_port} -> {port.container_port}/{port.protocol}",
        rule,
        "; ".join(reach),
    )


def _reach(address: str) -> str:
    try:
        found = ipaddress.ip_address(address or "0.0.0.0")  # noqa: S104  # it is only told about
    except ValueError:
        return f"whoever reaches {address}"
    if found.is_loopback:
        return "programs of this host only: it is published on the loopback address"
    if found.is_unspecified:
        return "everybody who reaches any address of this host, containers of other networks too"
    return f"everybody who reaches {found}"


def _networks(record: Record) -> list[str]:
    mode = record.spec.namespaces.network
    if mode == "host":
        return ["the host's own network: every port it opens is the host's, nothing is published"]
    if mode == "none":
        return ["none: it has loopback only, and nobody reaches it"]
    if mode.startswith("container:"):
        return [f"that of container {mode.removeprefix('container:')[:12]}: it has no other"]
    found = []
    for joined in record.networks:
        addresses = ", ".join(joined.addresses) or "no address while it does not run"
        found.append(f"{joined.network}: {addresses}")
    return found or ["a network of its own with loopback only"]


# --- isolation and volumes --------------------------------------------------------------------


def _isolation(record: Record) -> list[str]:
    spec = record.spec
    walls = spec.security
    if spec.isolation is Isolation.VM:
        found = ["a virtual machine: its own kernel"]
    else:
        found = ["a container: it shares the host's kernel"]
    found.append(f"profile {walls.profile}")
    if walls.privileged:
        found.append("PRIVILEGED: all capabilities, all devices, no seccomp: it can be the host")
        return found
    block = record.id_block
    if block is not None:
        found.append(
            f"its user ids 0-{block.size - 1} are {block.base}-{block.base + block.size - 1} of the"
            f" host: its root is nobody there ({block.size // UNIT} block of its own)"
        )
    elif spec.isolation is not Isolation.VM:
        found.append("it runs with the host's user ids: its root is root, but for what follows")
    names = plan.capabilities(walls, _LAST_CAPABILITY)
    found.append(f"capabilities: {', '.join(sorted(names)) or 'none'}")
    if walls.seccomp == "unconfined":
        found.append("seccomp: OFF (--security-opt seccomp=unconfined)")
    else:
        found.append(f"seccomp: {'its own profile' if walls.seccomp else 'that of the profile'}")
    on = plan.no_new_privileges(walls)
    found.append(f"no_new_privs: {'on: set-uid programs gain nothing' if on else 'off'}")
    shared = [
        f"{name} of the host"
        for name, value in (
            ("pid", spec.namespaces.pid), ("ipc", spec.namespaces.ipc),
            ("uts", spec.namespaces.uts), ("network", spec.namespaces.network),
        )
        if value == "host"
    ]  # fmt: skip
    if shared:
        found.append("shares " + ", ".join(shared))
    if spec.read_only:
        found.append("its root file system is read-only")
    return found


def _volumes(record: Record, core: Core) -> list[str]:
    found = []
    for mount in record.spec.mounts:
        access = "read-only" if mount.read_only else "read and write"
        if mount.kind is MountKind.BIND:
            found.append(f"{mount.target}: the host's {mount.source}, {access}")
        elif mount.kind is MountKind.VOLUME:
            found.append(f"{mount.target}: {_volume(mount.source, core)}, {access}")
    return found


def _volume(name: str, core: Core) -> str:
    try:
        status = core.volumes.status(name)
    except TareError:
        return f"volume {name}, which IS GONE: the container cannot start"
    if status.missing:
        return f"volume {name}, whose directory SOMEBODY DELETED: the container cannot start"
    kind = "anonymous volume" if status.volume.anonymous else "volume"
    others = len(status.users) - 1
    shared = f", shared with {others} more" if others > 0 else ""
    return f"{kind} {name[:64]}{shared}"
