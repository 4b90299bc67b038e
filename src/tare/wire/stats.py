"""``GET /containers/ID/stats``: two samples of a cgroup as Docker shows them. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from tare.model.record import BlockCount, NetworkCount, Record, Sample
from tare.wire.values import rfc3339

Json = dict[str, object]


def _cpu(sample: Sample | None) -> Json:
    if sample is None:
        return {
            "cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0},
            "throttling_data": {"periods": 0, "throttled_periods": 0, "throttled_time": 0},
        }
    usage: Json = {
        "total_usage": sample.cpu_ns,
        "usage_in_kernelmode": sample.cpu_system_ns,
        "usage_in_usermode": sample.cpu_user_ns,
    }
    if sample.per_cpu_ns:
        usage["percpu_usage"] = list(sample.per_cpu_ns)
    return {
        "cpu_usage": usage,
        "system_cpu_usage": sample.system_cpu_ns,
        "online_cpus": sample.online_cpus,
        "throttling_data": {
            "periods": sample.periods,
            "throttled_periods": sample.throttled_periods,
            "throttled_time": sample.throttled_ns,
        },
    }


def _blocks(counts: Iterable[BlockCount]) -> list[Json]:
    return [{"major": c.major, "minor": c.minor, "op": c.op, "value": c.value} for c in counts]


def stats(record: Record, sample: Sample | None, before: Sample | None) -> Json:
    """One answer; *sample* None is a container that does not run, all of it zero."""
    found: Json = {
        "name": f"/{record.name}",
        "id": record.id,
        "read": rfc3339(sample.read_ns if sample else 0),
        "preread": rfc3339(before.read_ns if before else 0),
        "num_procs": 0,
        "cpu_stats": _cpu(sample),
        "precpu_stats": _cpu(before),
        "memory_stats": {},
        "pids_stats": {},
        "storage_stats": {},
        "blkio_stats": dict.fromkeys(
            (
                "io_service_bytes_recursive", "io_serviced_recursive", "io_queue_recursive",
                "io_service_time_recursive", "io_wait_time_recursive", "io_merged_recursive",
                "io_time_recursive", "sectors_recursive",
            )
        ),
    }  # fmt: skip
    if sample is None:
        return found
    memory: Json = {
        "usage": sample.memory,
        "limit": sample.memory_limit,
        "stats": dict(sample.memory_stats),
    }
    if sample.memory_max:
        memory["max_usage"] = sample.memory_max
        memory["failcnt"] = sample.memory_failures
    found["memory_stats"] = memory
    pids: Json = {"current": sample.pids}
    if sample.pids_limit:
        pids["limit"] = sample.pids_limit
    found["pids_stats"] = pids
    found["blkio_stats"] = {
        **dict.fromkeys(
            (
                "io_queue_recursive", "io_service_time_recursive", "io_wait_time_recursive",
                "io_merged_recursive", "io_time_recursive", "sectors_recursive",
            )
        ),
        "io_service_bytes_recursive": _blocks(sample.block_bytes),
        "io_serviced_recursive": _blocks(sample.block_ops),
    }  # fmt: skip
    found["networks"] = {name: _network(one) for name, one in sample.networks.items()}
    found["Tare"] = {
        "Cache": sample.cache,
        "OOMKills": sample.oom_kills,
        "Pressure": {
            name: {
                "Some10": one.some10, "Some60": one.some60, "SomeUs": one.some_us,
                "Full10": one.full10, "Full60": one.full60, "FullUs": one.full_us,
            }
            for name, one in sample.pressure.items()
        },
    }  # fmt: skip
    return found


def _network(one: NetworkCount) -> Json:
    return {
        "rx_bytes": one.rx_bytes, "rx_packets": one.rx_packets, "rx_errors": one.rx_errors,
        "rx_dropped": one.rx_dropped, "tx_bytes": one.tx_bytes, "tx_packets": one.tx_packets,
        "tx_errors": one.tx_errors, "tx_dropped": one.tx_dropped,
    }  # fmt: skip
