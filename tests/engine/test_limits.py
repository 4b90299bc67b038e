from __future__ import annotations

from pathlib import Path

import pytest

from tare.engine.limits import Abilities, check, check_devices, check_update, with_defaults
from tare.errors import InvalidError, UnsupportedError
from tare.model.spec import (
    ContainerSpec,
    Device,
    ProcessSpec,
    Resources,
    Security,
    SecurityProfile,
    Throttle,
)

ALL = Abilities(cpus=2, online_cpus="0-1", online_mems="0")
MIB = 1 << 20


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (Resources(memory=6 * MIB - 1), "Minimum memory limit allowed is 6MB"),
        (Resources(memory=-5), "Minimum memory limit"),
        (Resources(memory_swap=MIB), "always set the Memory limit"),
        (Resources(memory=8 * MIB, memory_swap=7 * MIB), "larger than memory limit"),
        (Resources(memory=8 * MIB, memory_reservation=9 * MIB), "less than memory reservation"),
        (Resources(memory_reservation=MIB), "Minimum memory reservation"),
        (Resources(memory_swappiness=101), "valid memory swappiness range is 0-100"),
        (Resources(nano_cpus=2_000_000_001), "only 2 CPUs available"),
        (Resources(nano_cpus=1), "from 0.01 to 2.00"),
        (Resources(nano_cpus=10**9, cpu_quota_us=5000), "cannot both be set"),
        (Resources(nano_cpus=10**9, cpu_period_us=5000), "cannot both be set"),
        (Resources(cpu_period_us=999), "cfs period"),
        (Resources(cpu_quota_us=999), "cfs quota"),
        (Resources(cpuset_cpus="0-2"), "available: 0-1"),
        (Resources(cpuset_cpus="a"), "invalid cpuset"),
        (Resources(cpuset_cpus="1-0"), "invalid cpuset"),
        (Resources(cpuset_mems="1"), "memory nodes"),
        (Resources(pids=-2), "invalid pids limit"),
        (Resources(blkio_weight=9), "10 to 1000"),
        (Resources(read_bps=(Throttle(device="/nope", rate=1),)), "no such file"),
        (Resources(read_bps=(Throttle(device="/dev/null", rate=1),)), "not a block device"),
    ],
)
def test_what_makes_no_sense_is_refused_in_dockers_words(wanted: Resources, words: str) -> None:
    with pytest.raises(InvalidError, match=words):
        check(wanted, ALL)


@pytest.mark.parametrize(
    ("wanted", "can", "field", "words"),
    [
        (Resources(memory=8 * MIB, memory_swap=-1), {"swap": False}, "memory_swap", "swap limit"),
        (
            Resources(memory_reservation=8 * MIB),
            {"reservation": False},
            "memory_reservation",
            "soft",
        ),
        (Resources(memory_swappiness=5), {"swappiness": False}, "memory_swappiness", "swappiness"),
        (Resources(pids=5), {"pids": False}, "pids", "PIDs limit discarded"),
        (Resources(blkio_weight=50), {"blkio_weight": False}, "blkio_weight", "Weight discarded"),
    ],
)
def test_what_docker_only_warns_about_is_dropped_with_a_warning(
    wanted: Resources, can: dict[str, bool], field: str, words: str
) -> None:
    result, warnings = check(wanted, Abilities(cpus=2, **can))  # type: ignore[arg-type]  # names

    assert getattr(result, field) is None
    assert any(words in warning for warning in warnings)


@pytest.mark.parametrize(
    ("wanted", "can"),
    [
        (Resources(memory=8 * MIB), {"memory": False}),
        (Resources(nano_cpus=10**9), {"cpu": False}),
        (Resources(cpuset_cpus="0"), {"cpuset": False}),
    ],
)
def test_a_limit_that_cannot_be_enforced_is_never_ignored(
    wanted: Resources, can: dict[str, bool]
) -> None:
    with pytest.raises(UnsupportedError, match="cannot be enforced"):
        check(wanted, Abilities(cpus=2, **can))  # type: ignore[arg-type]  # names of fields


def test_an_update_changes_only_what_it_names() -> None:
    old = Resources(memory=64 * MIB, pids=10)

    new, warnings = check_update(old, Resources(pids=20), ALL)

    assert (new.memory, new.pids, warnings) == (64 * MIB, 20, [])


def test_an_update_above_the_swap_limit_needs_both() -> None:
    old = Resources(memory=64 * MIB, memory_swap=64 * MIB)

    with pytest.raises(InvalidError, match="memoryswap"):
        check_update(old, Resources(memory=128 * MIB), ALL)


def test_devices_must_be_there_and_be_devices(tmp_path: Path) -> None:
    check_devices([Device(host_path="/dev/null", target="/dev/null")])
    with pytest.raises(InvalidError, match="not a device node"):
        check_devices([Device(host_path="/etc/passwd", target="/dev/x")])
    with pytest.raises(InvalidError, match="no such file"):
        check_devices([Device(host_path=str(tmp_path / "no"), target="/dev/x")])
    with pytest.raises(InvalidError, match="invalid device mode"):
        check_devices([Device(host_path="/dev/null", target="/dev/x", permissions="rx")])


def test_a_hardened_container_has_a_gibibyte_unless_it_asks() -> None:
    process = ProcessSpec(args=("a",))
    hardened = Security(profile=SecurityProfile.HARDENED)

    def memory(security: Security, **limits_: int) -> int | None:
        spec = ContainerSpec(
            image="i",
            image_id="i",
            process=process,
            security=security,
            resources=Resources(**limits_),  # type: ignore[arg-type]  # a test names its fields
        )
        return with_defaults(spec, ALL).memory

    assert memory(hardened) == 1 << 30
    assert memory(hardened, memory=64 << 20) == 64 << 20
    assert memory(hardened, memory_reservation=2 << 30) == 2 << 30
    assert memory(Security()) is None
