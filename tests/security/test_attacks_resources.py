"""Attacks A46 to A48: what a container uses up is its own, and the host goes on working."""
# ruff: noqa: F811  # fixtures are imported by name

from __future__ import annotations

import asyncio
import ctypes
import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engine.test_engine_system import Host, Play, play  # noqa: F401  # a fixture
from run.conftest import Bench, Body, bench, busybox_layer  # noqa: F401  # fixtures
from security.sysrun import DATA, Call, program, results
from tare.model.spec import (
    ContainerSpec,
    ExecSpec,
    Mount,
    MountKind,
    ProcessSpec,
    Resources,
)

Run = Callable[[Body], None]
SPEC = ContainerSpec(image="b", image_id="b", process=ProcessSpec(args=("true",)))
LIMITED = replace(SPEC, resources=Resources(memory=32 << 20, memory_swap=32 << 20))

on_x86_64 = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="sysrun: writes machine code for x86_64 only"
)


@pytest.mark.attack("A46")
def test_a46_a_fork_bomb_stays_below_its_limit_and_stop_ends_all_of_it(play: Play) -> None:
    async def work(host: Host) -> None:
        # A shell that cannot fork gives up, so the first one forks once and then waits.
        one = "(while :; do (trap '' TERM; while :; do sleep 1000 & done) & done)"
        bomb = f"trap '' TERM; {one} & wait; exec tail -f /dev/null"
        resources = Resources(pids=64, nano_cpus=500_000_000)
        identity = await host.started("sh", "-c", bomb, resources=resources)
        containers = host.engine.containers
        while (await containers.stats(identity)).pids < 60:
            assert (await containers.get(identity)).alive
            await asyncio.sleep(0.05)
        space = _pid_namespace((await containers.get(identity)).pid)

        assert (await containers.stats(identity)).pids <= 64
        assert subprocess.run(["true"], check=False).returncode == 0
        assert await host.output("sh", "-c", "echo fine") == (0, b"fine\n")
        await asyncio.wait_for(containers.stop(identity, 1), 10)

        left = [p for p in os.listdir("/proc") if p.isdigit() and _pid_namespace(p) == space]
        assert space
        assert left == [], [Path(f"/proc/{p}/status").read_text()[:400] for p in left]

    play(work)


def _pid_namespace(pid: int | str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


@pytest.mark.attack("A46")
def test_a46_there_is_a_limit_without_asking(play: Play) -> None:
    async def work(host: Host) -> None:
        identity = await host.started("sleep", "1000")
        assert 0 < (await host.engine.containers.stats(identity)).pids_limit <= 2048

    play(work)


@pytest.mark.attack("A47")
def test_a47_memory_files_count_and_only_the_container_is_killed(bench: Run) -> None:
    async def body(b: Bench) -> None:
        other = await b.start("sleep", "1000")
        for script in (
            "dd if=/dev/zero of=/dev/shm/f bs=1M count=60; tail /dev/zero",
            "a=xxxxxxxxxxxxxxxx; while :; do a=$a$a; done",
        ):
            identity = await b.start("sh", "-c", f"({script})", spec=LIMITED)
            exited = await b.ended(identity)
            assert exited.oom_killed
            assert exited.code == 137
        await b.keeper.ping()
        assert (await b.execute(other, "echo", "alive"))[1] == "alive\n"

    bench(body)


@pytest.mark.attack("A47")
def test_a47_shared_memory_is_64_mib_and_its_files_are_counted(bench: Run) -> None:
    async def body(b: Bench) -> None:
        script = (
            "dd if=/dev/zero of=/dev/shm/f bs=1M count=80 2>&1 | grep -c 'No space';"
            " stat -c %s /dev/shm/f; rm /dev/shm/f; i=0;"
            " while [ $i -lt 70000 ] && true >/dev/shm/$i; do i=$((i+1)); done 2>/dev/null;"
            " [ $i -lt 70000 ] && echo bounded"
        )
        _, text = await b.run("sh", "-c", script)
        assert text.split() == ["1", str(64 << 20), "bounded"]

    bench(body)


@pytest.mark.attack("A47")
def test_a47_nobody_makes_himself_safe_from_the_killer(bench: Run) -> None:
    async def body(b: Bench) -> None:
        _, text = await b.run(
            "sh",
            "-c",
            "before=$(cat /proc/self/oom_score_adj);"
            " (echo -1000 >/proc/self/oom_score_adj) 2>/dev/null && echo lowered; echo $before",
        )
        assert "lowered" not in text
        assert int(text) >= 0

    bench(body)


@pytest.mark.attack("A48")
def test_a48_a_flood_of_output_keeps_three_files_of_ten_mib(bench: Run) -> None:
    async def body(b: Bench) -> None:
        identity = await b.start("sh", "-c", "yes | head -c 45000000; echo the end")
        assert (await b.ended(identity)).code == 0
        state = Path(b._specs[identity][1].state_dir)
        sizes = [file.stat().st_size for file in state.glob("log*")]
        assert len(sizes) == 3
        assert max(sizes) <= 10 << 20
        assert (state / "log").read_bytes().endswith(b"the end\n")

    bench(body)


@pytest.mark.attack("A48")
def test_a48_a_flood_from_exec_is_held_back_not_kept(play: Play) -> None:
    async def work(host: Host) -> None:
        identity = await host.started("sleep", "1000")
        wanted = ExecSpec(process=ProcessSpec(args=("yes",)))
        made = await host.engine.execs.create(identity, wanted)
        attachment = await host.engine.execs.start(made)
        assert attachment is not None
        before = _resident()
        await asyncio.sleep(0.5)  # nobody reads for so long

        assert _resident() - before < 64 << 20
        assert await host.output("echo", "fine") == (0, b"fine\n")
        host.engine.execs.kill(made)
        await attachment.close()

    play(work)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@on_x86_64
@pytest.mark.attack("A48")
@pytest.mark.parametrize("what", ["inotify", "pty"])
def test_a48_what_is_scarce_on_the_host_is_not_used_up(
    bench: Run, tmp_path: Path, what: str
) -> None:
    count = 200 if what == "inotify" else 1100
    call = Call("x86_64", 253) if what == "inotify" else Call("x86_64", 2, (DATA, os.O_RDWR))
    calls = [*[call] * count, Call("x86_64", 0, (0, DATA, 1))]  # and hold them until told
    file = tmp_path / "payload" / "sysrun"
    file.parent.mkdir()
    file.write_bytes(program(calls, b"/dev/ptmx\0"))
    file.chmod(0o755)
    wanted = Mount(kind=MountKind.BIND, source=str(file.parent), target="/t", read_only=True)

    async def body(b: Bench) -> None:
        spec = replace(SPEC, mounts=(wanted,))
        identity = await b.start("/t/sysrun", spec=spec, open_stdin=True)
        while len(b.output(identity).split()) < count:
            await asyncio.sleep(0.02)
        held = [answer for answer in results(b.output(identity)) if answer >= 0]
        assert len(held) >= 50  # it has taken what it could
        assert len(held) <= 1024

        if what == "inotify":
            libc = ctypes.CDLL(None, use_errno=True)
            watch = libc.inotify_init()
            assert watch >= 0, os.strerror(ctypes.get_errno())
            os.close(watch)
        else:
            for descriptor in os.openpty():
                os.close(descriptor)
        other = await b.start("sh", "-c", "tty", tty=True)
        assert (await b.ended(other)).code == 0

    bench(body)


@pytest.mark.attack("A48")
def test_a48_a_crash_leaves_no_core(bench: Run, tmp_path: Path) -> None:
    async def body(b: Bench) -> None:
        script = "ulimit -Sc; ulimit -Hc; cd /tmp; sh -c 'kill -ABRT $$'; echo $?; ls /tmp"
        _, text = await b.run("sh", "-c", script)
        assert [word for word in text.split() if word != "Aborted"] == ["0", "0", "134"]

    bench(body)
