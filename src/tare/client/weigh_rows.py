"""From samples to a receipt: the names of the rows, what each means, and what is to be said.

Pure. Not for: taking samples (client.weigh).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from tare.client import units
from tare.client.document import flag, number, text
from tare.client.weigh_inside import TURNS
from tare.client.weigh_receipt import Fact, Figure, Row, Unit

if TYPE_CHECKING:
    from tare.client.document import Json
    from tare.client.weigh import Side

_ROWS: Final = (
    ("first-cold", "First output, cold", Unit.SECONDS, False,
     "from the request to the first byte that the workload prints, after the image's layers were"
     " dropped from the page cache"),
    ("first-warm", "First output, warm", Unit.SECONDS, False,
     "the same, started again at once: the layers are in the page cache"),
    ("end-warm", "Start to end", Unit.SECONDS, False,
     "from the request until the workload has ended by itself, warm"),
    ("healthy", "Healthy", Unit.SECONDS, False,
     "from the request until the image's health check says so; the check's interval counts"),
    ("exec", "A command in one that runs", Unit.SECONDS, False,
     "an exec of the shell that does nothing, to its end"),
    ("memory-workload", "Memory, at work", Unit.BYTES, False,
     "proportional set size of all its processes on the host, the guest included, after its first"
     " output"),
    ("memory-idle", "Memory, at rest", Unit.BYTES, False,
     "proportional set size of all processes of a shell that has become sleep, the guest included:"
     " what the isolation itself takes"),
    ("fits", "How many fit, by memory", Unit.COUNT, True,
     "what the engine's budget has free, divided by the memory at work, else at rest; what many"
     " share is not deducted, so more may fit"),
    ("image", "Disk, image", Unit.BYTES, False,
     "the image's layers, unpacked: stored once, and used by both as they are"),
    ("disk", "Disk, each", Unit.BYTES, False,
     "blocks that one workload at rest occupies on the disk beside the image"),
    ("cpu-wall", "Fixed load, time", Unit.SECONDS, False,
     f"{TURNS} turns of a loop in the image's shell, less the time of an empty command"),
    ("cpu-host", "Fixed load, CPU of the host", Unit.SECONDS, False,
     "CPU time that the control group was charged for the same loop"),
    ("write", "Disk, writing", Unit.RATE, True,
     "16 MiB of zeros by dd, synced once at the end"),
    ("read", "Disk, reading again", Unit.RATE, True,
     "the same file by dd, eight times: mostly from memory"),
    ("sync", "Disk, a small synced write", Unit.SECONDS, False,
     "4 KiB by dd with fsync, less the same without it; 20 of them"),
    ("latency", "Network, a round trip", Unit.SECONDS, False,
     "a TCP connection from this client that is refused by the kernel there; median of 15"),
    ("send", "Network, sending to it", Unit.RATE, True,
     "16 MiB by TCP from this client to nc, until the last byte is taken"),
)  # fmt: skip


def rows(sides: Mapping[str, Side], *, image_size: int, free: int, health_check: bool) -> list[Row]:
    """All rows, those that nothing was measured for too."""
    made = []
    for key, title, unit, more, how in _ROWS:
        figures, missing = {}, {}
        for name, side in sides.items():
            samples = _samples(key, side, image_size, free)
            if samples:
                figures[name] = Figure(tuple(samples))
            elif side.failed:
                missing[name] = f"it cannot be run so here: {side.failed}"
            elif key == "healthy" and not health_check:
                missing[name] = "the image has no health check"
            else:
                missing[name] = side.missing.get(key, "not measured")
        made.append(
            Row(
                key=key,
                title=title,
                unit=unit,
                how=how,
                more_is_better=more,
                figures=figures,
                missing=missing,
            )
        )
    return made


def _samples(key: str, side: Side, image_size: int, free: int) -> Sequence[float]:
    if side.failed:
        return []
    if key == "image":
        return [image_size]
    if key == "fits":
        memory = side.samples.get("memory-workload") or side.samples.get("memory-idle") or []
        return [free // each for each in memory if each > 0] if free > 0 else []
    return side.samples.get(key, [])


def free_memory(budget: Json) -> int:
    """Bytes that the engine's budget still has for workloads; the host's memory without one."""
    engine = next(
        (
            each
            for each in _items(budget, "Budgets")
            if isinstance(each, dict) and not text(each, "Project")
        ),
        None,
    )
    return number(engine, "Memory", "Free") or number(budget, "Host", "Memory")


def _items(found: Json, key: str) -> list[Json]:
    value = found.get(key) if isinstance(found, dict) else None
    return value if isinstance(value, list) else []


# --- facts ------------------------------------------------------------------------------------


def facts(sides: Mapping[str, Side]) -> list[Fact]:
    """What of the host's kernel each side can reach; only sides that were looked at."""
    seen = {name: side.surface for name, side in sides.items() if side.surface}
    if not seen:
        return []
    made = (
        ("Kernel", _kernel),
        ("System calls of the host", _calls),
        ("Capabilities", _capabilities),
        ("Users", _users),
    )
    return [
        Fact(title=title, said={name: say(surface) for name, surface in seen.items()})
        for title, say in made
    ]


def _kernel(surface: Mapping[str, Json]) -> str:
    if not flag(dict(surface), "Emulator"):
        return "shared with the host: a hole in it is a hole in the host"
    return "its own; the host's is reached only by who has first broken out of QEMU"


def _calls(surface: Mapping[str, Json]) -> str:
    found = dict(surface)
    if found.get("Allowed") is None:
        return f"not known: {text(found, 'WhyUnknown')}"
    who = "left to QEMU after a break-out" if flag(found, "Emulator") else "left by its filter"
    return (
        f"{number(found, 'Allowed')} of {number(found, 'Known')} {who},"
        f" {number(found, 'Checked')} of them with some arguments only"
    )


def _capabilities(surface: Mapping[str, Json]) -> str:
    found = dict(surface)
    count = number(found, "Capabilities").bit_count()
    gain = ", and none can be gained by a program's file" if flag(found, "NoNewPrivileges") else ""
    scope = " within its own user namespace" if flag(found, "UserNamespace") and count else ""
    return f"{count or 'none'}{scope}{gain}"


def _users(surface: Mapping[str, Json]) -> str:
    found = dict(surface)
    subject = "QEMU is" if flag(found, "Emulator") else "its root is"
    if flag(found, "UserNamespace"):
        return f"{subject} an ordinary user of the host, in a block of ids of its own"
    return f"{subject} in the engine's own user namespace"


def cannot(sides: Mapping[str, Side], *, emulated: bool, rounds: int) -> list[str]:
    """What the figures do not say, in sentences."""
    said = []
    for name, side in sides.items():
        if side.failed:
            said.append(f"The image as a {name}: {side.failed}.")
        elif side.exit_code:
            said.append(f"As a {name} its command ended with exit code {side.exit_code}.")
    if emulated and "vm" in sides:
        said.append(
            "KVM does not boot a guest here, so QEMU emulates the processor: the machine's times"
            " and rates are for comparison on this host only, and say nothing about one with KVM."
        )
    said.append(
        "Cold means that the image's layers are not in the page cache; QEMU, the guest's kernel"
        " and the disk's own cache may be warm."
    )
    if rounds < 3:
        said.append("With fewer than three rounds the spread means little.")
    return said


def host_facts(info: Json) -> dict[str, str]:
    """What the figures were taken on."""
    return {
        "system": text(info, "OperatingSystem"),
        "kernel": text(info, "KernelVersion"),
        "CPUs": str(number(info, "NCPU")),
        "memory": units.binary_size(number(info, "MemTotal")),
    }
