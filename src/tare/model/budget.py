"""What an engine may use of its host: caps, what may be reserved, and the arithmetic of both. Pure.

A *cap* bounds use: the kernel enforces it, whatever runs. A *reservation* is what a workload counts
on: it starts only if its reservation fits beside those of all that run. They are different numbers:
a container with ``--memory-reservation 1g --memory 4g`` counts as 1 GiB and may take 4.

Not for: who runs (engine.budget), control groups (kernel.cgroup).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tare.errors import InvalidError
from tare.model.spec import Resources

GIB: Final = 1 << 30
_KEPT: Final = 512 << 20
_PERIOD_US: Final = 100_000
_PROJECT_LABEL: Final = "com.docker.compose.project"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What was set; None is the default, which for the engine is `defaults`, else no bound.

    ``memory``, ``nano_cpus``, ``pids`` and ``disk`` are caps. ``reservable_*`` is how much may be
    reserved altogether (default: the cap), ``default_*`` what a workload that says nothing counts.
    """

    memory: int | None = None
    nano_cpus: int | None = None
    pids: int | None = None
    disk: int | None = None
    reservable_memory: int | None = None
    reservable_nano_cpus: int | None = None
    default_memory: int | None = None
    default_nano_cpus: int | None = None


@dataclass(frozen=True, slots=True)
class Amount:
    """Memory in bytes and CPUs in billionths: of a reservation, or of what may be reserved."""

    memory: int = 0
    nano_cpus: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.memory + other.memory, self.nano_cpus + other.nano_cpus)


@dataclass(frozen=True, slots=True)
class Holder:
    """A workload and what it holds, for the arithmetic that is shown."""

    name: str
    holds: Amount


def defaults(total_memory: int, pid_max: int) -> Budget:
    """The engine's budget where nothing was set: the host keeps 512 MiB or a tenth of its memory,
    whichever is more, and a quarter of its process ids."""
    return Budget(memory=total_memory - max(_KEPT, total_memory // 10), pids=pid_max * 3 // 4)


def merged(below: Budget, over: Budget) -> Budget:
    """*over* where it says something, else *below*."""
    names = Budget.__dataclass_fields__
    values = {
        name: getattr(over, name) if getattr(over, name) is not None else getattr(below, name)
        for name in names
    }
    return Budget(**values)


def reservation(resources: Resources, budget: Budget) -> Amount:
    """What a workload counts: what it reserves, else its limit, else the budget's default."""
    memory = resources.memory_reservation or resources.memory or budget.default_memory or 0
    return Amount(memory, cpu_limit(resources) or budget.default_nano_cpus or 0)


def cpu_limit(resources: Resources) -> int:
    """The CPUs that a workload may use, in billionths; 0 where it has no limit."""
    if resources.nano_cpus:
        return resources.nano_cpus
    quota = resources.cpu_quota_us or 0
    if quota <= 0:
        return 0
    return quota * 1_000_000_000 // (resources.cpu_period_us or _PERIOD_US)


def reservable(budget: Budget) -> tuple[int | None, int | None]:
    """The memory and the CPUs that may be reserved; None is no bound."""
    memory = budget.memory if budget.reservable_memory is None else budget.reservable_memory
    cpus = budget.nano_cpus if budget.reservable_nano_cpus is None else budget.reservable_nano_cpus
    return memory, cpus


def refusal(
    name: str, wanted: Amount, budget: Budget, holders: Iterable[Holder], *, of: str = ""
) -> str:
    """Why *wanted* does not fit beside *holders*, with the arithmetic; "" if it fits."""
    known = [*holders]
    held = sum((holder.holds for holder in known), Amount())
    whose = f"the budget of {of}" if of else "the engine's budget"
    for what, bound, ask, taken, show, key in (
        ("memory", reservable(budget)[0], wanted.memory, held.memory, size, "memory"),
        ("CPUs", reservable(budget)[1], wanted.nano_cpus, held.nano_cpus, cpus, "nano_cpus"),
    ):
        if bound is None or not ask or taken + ask <= bound:
            continue
        largest = sorted(known, key=lambda h: -int(getattr(h.holds, key)))
        shown = [h for h in largest if getattr(h.holds, key)][:5]
        who = ", ".join(f"{h.name} {show(getattr(h.holds, key))}" for h in shown)
        more = sum(1 for h in known if getattr(h.holds, key)) - len(shown)
        others = f" and {more} more" if more > 0 else ""
        return (
            f"{name} does not fit {whose}: it reserves {show(ask)} {what}, and of"
            f" {show(bound)} that may be reserved {show(taken)} are held"
            f"{f' ({who}{others})' if who else ''}, {show(max(bound - taken, 0))} are free"
        )
    return ""


def checked(budget: Budget, *, total_memory: int, online_cpus: int) -> Budget:
    """*budget* when it makes sense on this host, or InvalidError."""
    for name in Budget.__dataclass_fields__:
        value = getattr(budget, name)
        if value is not None and value < 0:
            raise InvalidError(f"invalid budget: {name} is negative")
    if budget.memory is not None and not 64 << 20 <= budget.memory <= total_memory:
        raise InvalidError(
            f"invalid memory budget {size(budget.memory)}: it is 64 MiB to the host's"
            f" {size(total_memory)}"
        )
    if budget.nano_cpus is not None and not 10_000_000 <= budget.nano_cpus <= online_cpus * 10**9:
        raise InvalidError(
            f"invalid CPU budget {cpus(budget.nano_cpus)}: it is 0.01 to the host's {online_cpus}"
        )
    if budget.pids is not None and budget.pids < 32:
        raise InvalidError("invalid pids budget: fewer than 32 let nothing run")
    return budget


def project(text: str) -> str:
    """The label ``NAME=VALUE`` of a project; a word alone is the name of a compose project."""
    name, equals, value = text.partition("=")
    if not name or (equals and not value) or len(text) > 1024 or not text.isprintable():
        raise InvalidError(
            f"invalid project {text[:80]!r}",
            hint="a label NAME=VALUE, or the name of a compose project",
        )
    return text if equals else f"{_PROJECT_LABEL}={text}"


def size(value: int) -> str:
    """64 MiB, 1.5 GiB."""
    amount, unit = float(value), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.4g} {unit}"


def cpus(value: int) -> str:
    """1.5 of 1500000000."""
    return f"{value / 1e9:.4g}"
