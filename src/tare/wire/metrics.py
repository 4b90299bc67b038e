"""``/metrics``: the engine's figures in the text format of Prometheus (0.0.4). Pure.

Names follow its conventions: base units (bytes, seconds), ``_total`` for what only grows. A
container is told by ``id`` (12 digits), ``name`` and ``image``; one that does not run has only
``tare_container_info`` and its exit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tare.model.record import Record, Sample
from tare.model.state import STATUS

_HELP: dict[str, tuple[str, str]] = {
    "tare_containers": ("gauge", "Containers by state."),
    "tare_container_info": ("gauge", "1 for each container, with its state."),
    "tare_container_started_seconds": ("gauge", "When the container was started, Unix time."),
    "tare_container_restarts_total": ("counter", "How often its policy has started it again."),
    "tare_container_exit_code": ("gauge", "How its last run ended."),
    "tare_container_cpu_seconds_total": ("counter", "CPU time used."),
    "tare_container_cpu_throttled_seconds_total": ("counter", "Time held back by its CPU limit."),
    "tare_container_memory_bytes": ("gauge", "Memory in use, page cache included."),
    "tare_container_memory_cache_bytes": ("gauge", "Of it, page cache."),
    "tare_container_memory_limit_bytes": ("gauge", "Its memory limit, or the host's memory."),
    "tare_container_oom_kills_total": ("counter", "Processes that the OOM killer took."),
    "tare_container_pids": ("gauge", "Processes and threads."),
    "tare_container_io_read_bytes_total": ("counter", "Read from block devices."),
    "tare_container_io_written_bytes_total": ("counter", "Written to block devices."),
    "tare_container_network_receive_bytes_total": ("counter", "Received, by interface."),
    "tare_container_network_transmit_bytes_total": ("counter", "Sent, by interface."),
    "tare_container_pressure_seconds_total": (
        "counter",
        "Time in which some tasks waited for cpu, memory or io.",
    ),
    "tare_budget_limit_bytes": ("gauge", "Cap on the memory of all containers together."),
    "tare_budget_reservable_bytes": ("gauge", "How much memory may be reserved."),
    "tare_budget_reserved_bytes": ("gauge", "How much memory is reserved."),
    "tare_volumes": ("gauge", "Volumes."),
    "tare_images": ("gauge", "Images."),
}
Series = dict[str, list[str]]


def render(
    records: Iterable[Record],
    samples: Iterable[tuple[Record, Sample]],
    engine: Mapping[str, float],
) -> str:
    """The whole page; *engine* are values of the engine's own by the name of the metric."""
    series: Series = {name: [] for name in _HELP}
    counts = dict.fromkeys(sorted(set(STATUS.values())), 0)
    for record in records:
        counts[STATUS[record.state]] += 1
        _record(series, record)
    for state, count in counts.items():
        series["tare_containers"].append(_line("tare_containers", f'state="{state}"', count))
    for record, sample in samples:
        _sample(series, record, sample)
    for name, value in engine.items():
        series[name].append(_line(name, "", value))
    parts = []
    for name, lines in series.items():
        if lines:
            kind, about = _HELP[name]
            parts.append(f"# HELP {name} {about}\n# TYPE {name} {kind}\n")
            parts += lines
    return "".join(parts)


def _line(name: str, labels: str, value: float) -> str:
    figure = repr(value) if isinstance(value, float) else str(value)
    return f"{name}{{{labels}}} {figure}\n" if labels else f"{name} {figure}\n"


def _labels(record: Record) -> str:
    return (
        f'id="{record.id[:12]}",name="{escaped(record.name)}",image="{escaped(record.spec.image)}"'
    )


def escaped(text: str) -> str:
    """A label's value: backslash, quote and line end are escaped, other controls are dropped."""
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return "".join(letter for letter in text if letter.isprintable())


def _record(series: Series, record: Record) -> None:
    labels = _labels(record)
    state = f'{labels},state="{STATUS[record.state]}"'
    _add(series, "tare_container_info", state, 1)
    _add(series, "tare_container_restarts_total", labels, record.restart_count)
    if record.alive:
        _add(series, "tare_container_started_seconds", labels, record.started_ns / 1e9)
    elif record.finished_ns:
        _add(series, "tare_container_exit_code", labels, record.exit_code)


def _add(series: Series, name: str, labels: str, value: float) -> None:
    series[name].append(_line(name, labels, value))


def _sample(series: Series, record: Record, sample: Sample) -> None:
    labels = _labels(record)
    read = sum(count.value for count in sample.block_bytes if count.op == "read")
    written = sum(count.value for count in sample.block_bytes if count.op == "write")
    for name, value in (
        ("cpu_seconds_total", sample.cpu_ns / 1e9),
        ("cpu_throttled_seconds_total", sample.throttled_ns / 1e9),
        ("memory_bytes", sample.memory),
        ("memory_cache_bytes", sample.cache),
        ("memory_limit_bytes", sample.memory_limit),
        ("oom_kills_total", sample.oom_kills),
        ("pids", sample.pids),
        ("io_read_bytes_total", read),
        ("io_written_bytes_total", written),
    ):
        _add(series, f"tare_container_{name}", labels, value)
    for interface, count in sample.networks.items():
        own = f'{labels},interface="{escaped(interface)}"'
        _add(series, "tare_container_network_receive_bytes_total", own, count.rx_bytes)
        _add(series, "tare_container_network_transmit_bytes_total", own, count.tx_bytes)
    for resource, share in sample.pressure.items():
        own = f'{labels},resource="{escaped(resource)}"'
        _add(series, "tare_container_pressure_seconds_total", own, share.some_us / 1e6)
