"""Measures tare beside the peers that are installed: one run, one table, one JSON file.

    ./dev bench [--json FILE] [--idle N] [--seconds S] [--only ENGINE,...] [ROW...]

Needs root. The host is noisy and so is every figure: subjects take turns sample by sample, the
table shows medians, and what tare is held to are ratios within the same run. A peer that is not
here, or does not work, is left out with a line that says why.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import machines
import newer
import peers
import published
from engines import BenchError, Engine
from rows import ROWS, Bound, Row, Stage

SUBJECTS = (
    "floor",
    "tare",
    "no network",
    "own address",
    "crun",
    "runc",
    "podman",
    "docker",
    "buildx",
)


@dataclass(frozen=True, slots=True)
class Figure:
    """What one subject did in one row."""

    row: str
    subject: str
    unit: str
    median: float
    low: float
    high: float
    samples: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether tare keeps one bound."""

    row: str
    bound: str
    seen: float
    limit: float
    kept: bool


def note(text: str) -> None:
    """A word on progress, where it does not mix with the table."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def measured(row: Row, stage: Stage) -> list[Figure]:
    """All subjects of *row*, taking turns; one that fails is left out from then on."""
    note(row.title)
    samples: dict[str, list[float]] = {}
    try:
        with row.subjects(stage) as subjects:
            for turn in range(-1, row.samples):
                for name, once in list(subjects.items()):
                    try:
                        figure = once()
                    except (BenchError, OSError) as error:
                        note(f"{row.name}: {name} left out: {error}")
                        del subjects[name]
                        continue
                    # The first turn warms up; a row of one sample is long enough without.
                    if turn >= 0 or row.samples == 1:
                        samples.setdefault(name, []).append(figure)
                if row.samples == 1:
                    break
    except (BenchError, OSError) as error:
        note(f"{row.name}: {error}")
    return [
        Figure(row.name, name, row.unit, statistics.median(s), min(s), max(s), len(s))
        for name, s in samples.items()
    ]


def judged(row: Row, bound: Bound, figures: dict[str, Figure]) -> Verdict | None:
    """What the bound says, or None where tare or the peer has no figure."""
    mine, other = figures.get("tare"), figures.get(bound.subject)
    if mine is None or (bound.subject and other is None):
        return None
    limit = bound.factor * (other.median if other else 1.0)
    kept = mine.median >= limit if bound.at_least else mine.median <= limit
    sign = "≥" if bound.at_least else "≤"
    if other is None:
        text = f"{sign} {bound.factor:g} {row.unit}"
    elif bound.factor < 1:
        text = f"{sign} 1/{1 / bound.factor:g} of {bound.subject}"
    else:
        text = f"{sign} {bound.factor:g} × {bound.subject}"
    return Verdict(row.name, text, mine.median, limit, kept)


def table(figures: list[Figure], verdicts: list[Verdict]) -> str:
    """A Markdown table: medians, and in brackets how many times tare's figure that is."""
    seen = [name for name in SUBJECTS if any(f.subject == name for f in figures)]
    lines = [
        "| what | unit | " + " | ".join(seen) + " | tare is held to |",
        "|---|---|" + "---|" * len(seen) + "---|",
    ]
    for row in ROWS:
        here = {figure.subject: figure for figure in figures if figure.row == row.name}
        if not here:
            continue
        cells = [_cell(here.get(name), here.get("tare")) for name in seen]
        held = [
            f"{v.bound}: {'kept' if v.kept else 'MISSED'}" for v in verdicts if v.row == row.name
        ]
        lines.append(f"| {row.title} | {row.unit} | {' | '.join(cells)} | {'; '.join(held)} |")
    return "\n".join(lines)


def _cell(figure: Figure | None, mine: Figure | None) -> str:
    if figure is None:
        return "–"
    text = f"{figure.median:.3g}"
    if mine is not None and figure is not mine and mine.median > 0:
        text += f" ({figure.median / mine.median:.1f}×)"
    return text


def stage_of(stack: contextlib.ExitStack, chosen: frozenset[str], options: Options) -> Stage:
    """Start all that is here; what cannot start is said and left out."""
    name = stack.enter_context(tempfile.TemporaryDirectory(prefix="tare-bench-", dir="/var/tmp"))
    directory = Path(name)
    rootfs, archive = peers.busybox_image(directory)
    engines: list[Engine] = []
    for engine, start in peers.ENGINES.items():
        # tare comes first, and sees the host as it is; the others see what they can bear.
        if engine in chosen:
            with _left_out(engine):
                engines.append(stack.enter_context(start(directory, archive)))
        if engine == "tare":
            peers.see_only_v1_cgroups()
    runtimes: list[peers.Runtime] = []
    inside = stack.enter_context(newer.entered(peers.cache(), directory))
    for runtime in ("crun", "runc"):
        if runtime in chosen:
            with _left_out(runtime):
                runtimes.append(peers.Runtime(runtime, directory, rootfs, inside))
    floor = None
    if "floor" in chosen:
        with _left_out("floor"):
            floor = peers.floor_program(directory)
    return Stage(directory, rootfs, engines, runtimes, floor, options.idle, options.seconds)


@contextlib.contextmanager
def _left_out(name: str) -> Iterator[None]:
    try:
        yield
    except (BenchError, OSError) as error:
        note(f"{name} left out: {error}")


@dataclass(frozen=True, slots=True)
class Options:
    """The command line, typed."""

    rows: tuple[Row, ...]
    json: Path | None
    only: frozenset[str]
    idle: int
    seconds: float


def options_of(arguments: list[str]) -> Options:
    """Parse, or exit with a usage line."""
    parser = argparse.ArgumentParser(prog="./dev bench", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(r.name for r in ROWS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--only", default=",".join(SUBJECTS), metavar="NAME,...")
    parser.add_argument("--idle", type=int, default=500, metavar="N", help="idle containers")
    parser.add_argument("--seconds", type=float, default=10, help="of the throughput row, each")
    parsed = parser.parse_args(arguments)
    unknown = set(parsed.rows) - {row.name for row in ROWS}
    if unknown:
        parser.error(f"no row is named {', '.join(sorted(unknown))}")
    only = frozenset(parsed.only.split(","))
    if only - set(SUBJECTS):
        parser.error(f"nobody is named {', '.join(sorted(only - set(SUBJECTS)))}")
    chosen = tuple(row for row in ROWS if not parsed.rows or row.name in parsed.rows)
    return Options(chosen, parsed.json, only, parsed.idle, parsed.seconds)


def main(arguments: list[str]) -> int:
    """Measure; 0 also when a bound is missed, for the table says so."""
    options = options_of(arguments)
    # An end like any other: the peers are stopped and what they left is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if os.geteuid() != 0:
        note("only root can start the peers")
        return 1
    if any(row.name.startswith("vm-") for row in options.rows):
        with _left_out("virtual machines"):
            machines.fetch()
    if not os.environ.get("TARE_SOCKET"):
        published.enter_own_network()
    peers.adopt_orphans()
    figures: list[Figure] = []
    with contextlib.ExitStack() as stack:
        stage = stage_of(stack, options.only, options)
        versions = {engine.name: engine.version for engine in stage.engines}
        versions |= {runtime.name: runtime.version for runtime in stage.runtimes}
        for row in options.rows:
            figures += measured(row, stage)
    peers.reap_orphans()
    verdicts: list[Verdict] = []
    for row in options.rows:
        here = {figure.subject: figure for figure in figures if figure.row == row.name}
        verdicts += [v for bound in row.bounds if (v := judged(row, bound, here))]
    host = peers.host()
    print(f"{host['at']}, Linux {host['kernel']}, {host['cores']} cores, {host['processor']}")
    print(", ".join(f"{name} {version}" for name, version in versions.items()) + "\n")
    print(table(figures, verdicts))
    if options.json is not None:
        content = {
            "host": host,
            "versions": versions,
            "figures": [asdict(figure) for figure in figures],
            "verdicts": [asdict(verdict) for verdict in verdicts],
        }
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0 if figures else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
