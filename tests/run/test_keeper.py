"""The keeper with real sandboxes: starting, ending, exec, and its own death."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import shutil
import signal
import stat
import subprocess
import termios
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import tare
from run.conftest import Bench, Body
from tare.errors import ConflictError, InvalidError, TareError
from tare.kernel import cgroup, process
from tare.model.spec import (
    ContainerSpec,
    Mount,
    MountKind,
    Namespaces,
    ProcessSpec,
    Resources,
    Security,
)
from tare.run import link, walls
from tare.run.protocol import VERSION

Run = Callable[[Body], None]
SPEC = ContainerSpec(image="b", image_id="b", process=ProcessSpec(args=("true",)))


def test_the_exit_code_and_both_streams_come_back(bench: Run) -> None:
    async def body(b: Bench) -> None:
        result = await b.run("sh", "-c", "echo out; echo err >&2; exit 3")

        assert result == (3, "out\nerr\n")

    bench(body)


def test_a_killed_program_gives_128_and_its_signal(bench: Run) -> None:
    async def body(b: Bench) -> None:
        code, _ = await b.run("sh", "-c", "sh -c 'kill -9 $$'; exit $?")

        assert code == 137

    bench(body)


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("nosuch",), 127, "executable file not found in $PATH"),
        (("/no/such",), 127, "no such file or directory"),
        (("/etc/passwd",), 126, "permission denied"),
        (("/tmp",), 126, "permission denied"),
    ],
)
def test_a_program_that_cannot_run_says_why_and_leaves_nothing(
    bench: Run, args: tuple[str, ...], code: int, words: str
) -> None:
    async def body(b: Bench) -> None:
        with pytest.raises(TareError) as raised:
            await b.start(*args)

        assert words in str(raised.value)
        assert raised.value.exit_code == code
        assert list((b.run_dir / "workloads").iterdir()) == []

    bench(body)


def test_a_user_that_the_image_does_not_have_is_refused(bench: Run) -> None:
    async def body(b: Bench) -> None:
        with pytest.raises(InvalidError, match="unable to find user ghost"):
            await b.start("true", user="ghost")

    bench(body)


def test_it_runs_in_its_own_namespaces_with_little_privilege(bench: Run) -> None:
    async def body(b: Bench) -> None:
        script = (
            "id -u; hostname; cat /proc/1/comm; cat /proc/self/uid_map;"
            " grep -E '^(CapEff|CapBnd|CapInh|CapAmb|NoNewPrivs|Seccomp):' /proc/self/status"
        )
        _, text = await b.run("sh", "-c", script, spec=replace(SPEC, hostname="inside"))

        words = text.split()
        assert words[:3] == ["0", "inside", "sh"]
        assert words[3:6] == ["0", "1610612736", "65536"]
        status = dict(zip(words[6::2], words[7::2], strict=True))
        assert status["CapEff:"] == status["CapBnd:"] == "00000000800405fb"
        assert status["CapInh:"] == status["CapAmb:"] == "0" * 16
        assert (status["NoNewPrivs:"], status["Seccomp:"]) == ("1", "2")

    bench(body)


def test_only_the_standard_descriptors_are_open(bench: Run) -> None:
    async def body(b: Bench) -> None:
        _, text = await b.run("sh", "-c", "echo /proc/self/fd/*")

        assert set(text.split()) <= {f"/proc/self/fd/{n}" for n in (0, 1, 2, 3)}
        _, text = await b.run("sh", "-c", "readlink /proc/1/fd/3 || echo none")
        assert text == "none\n"

    bench(body)


def test_input_reaches_the_program_until_it_is_closed(bench: Run) -> None:
    async def body(b: Bench) -> None:
        identity = await b.start("cat", open_stdin=True)
        held = b.keeper.running[identity]
        os.write(held.stdin, b"hello\n")
        await b.keeper.close_stdin(identity)

        exited = await b.ended(identity)

        assert (exited.code, b.output(identity)) == (0, "hello\n")

    bench(body)


def test_a_terminal_is_a_terminal_and_can_be_resized(bench: Run) -> None:
    async def body(b: Bench) -> None:
        script = "tty; test -c /dev/console && echo console; read x; stty size"
        identity = await b.start("sh", "-c", script, tty=True, open_stdin=True)
        master = b.keeper.running[identity].stdin
        termios.tcsetwinsize(master, (33, 77))
        os.write(master, b"\n")
        await b.ended(identity)

        lines = b.output(identity).replace("\r", "").split("\n")
        assert "/dev/pts/0" in lines
        assert "console" in lines
        assert "33 77" in lines

    bench(body)


def test_exec_has_the_same_walls_and_its_own_exit_code(bench: Run) -> None:
    async def body(b: Bench) -> None:
        identity = await b.start("sleep", "1000")
        keys = "'^(Cap...|NoNewPrivs|Seccomp):'"

        code, inside = await b.execute(
            identity, "sh", "-c", f"grep -E {keys} /proc/self/status; exit 5"
        )
        _, first = await b.execute(identity, "sh", "-c", f"grep -E {keys} /proc/1/status")

        assert code == 5
        assert inside == first
        assert "Seccomp:\t2" in inside

    bench(body)


def test_exec_of_what_is_not_there_is_127(bench: Run) -> None:
    async def body(b: Bench) -> None:
        identity = await b.start("sleep", "1000")

        with pytest.raises(TareError) as raised:
            await b.execute(identity, "nosuch")

        assert raised.value.exit_code == 127

    bench(body)


def test_exec_in_what_has_ended_is_refused(bench: Run) -> None:
    async def body(b: Bench) -> None:
        identity = await b.start("true")
        await b.ended(identity)

        with pytest.raises(ConflictError, match="is not running"):
            await b.execute(identity, "true")

    bench(body)


def test_the_oom_killer_is_recognised(bench: Run) -> None:
    async def body(b: Bench) -> None:
        limited = replace(SPEC, resources=Resources(memory=16 << 20, memory_swap=16 << 20))
        identity = await b.start("tail", "/dev/zero", spec=limited)

        exited = await b.ended(identity)

        assert exited.oom_killed
        assert exited.code == 137

    bench(body)


def test_a_container_that_joins_another_shares_its_network_and_ids(bench: Run) -> None:
    async def body(b: Bench) -> None:
        first = await b.start("sleep", "1000")
        pid = b.keeper.running[first].pid
        from tare.run.plan import plan

        joining = replace(
            SPEC,
            process=ProcessSpec(args=("sh", "-c", "readlink /proc/self/ns/net; id -u; ps | wc -l")),
            namespaces=Namespaces(network=f"container:{first}"),
        )
        place = b.place(joined={"network": pid})
        b._specs[place.id] = (joining, place)

        await b.keeper.start(plan(joining, place, b.host))
        await b.ended(place.id)

        words = b.output(place.id).split()
        assert words[0] == os.readlink(f"/proc/{pid}/ns/net")
        assert words[1] == "0"

    bench(body)


def _orphan(code: int) -> tuple[tuple[int, bool], ...]:
    """How one may end whose parent died first: code, and whether it is known.

    Newer kernels (6.15) always tell; older ones only as long as nobody has reaped it.
    """
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    pidfd = os.pidfd_open(pid)
    os.waitpid(pid, 0)
    known = process.exit_status(pidfd) is not None
    os.close(pidfd)
    return ((code, True),) if known else ((code, True), (255, False))


def test_a_killed_keeper_takes_nothing_along_and_the_next_one_knows_the_end(bench: Run) -> None:
    async def body(b: Bench) -> None:
        quiet = await b.start("sh", "-c", "sleep 2; echo late; exit 9")
        talking = await b.start("sh", "-c", "cat; echo done; exit 4", open_stdin=True)
        old = b.keeper_pid()

        os.kill(old, signal.SIGKILL)
        await asyncio.wait_for(b.lost.wait(), 10)
        os.write(b.keeper.running[talking].stdin, b"after\n")
        await b.keeper.close_stdin(talking)

        first, second = await b.ended(quiet), await b.ended(talking)
        assert b.keeper_pid() != old
        assert (first.code, first.known) in _orphan(9)
        assert (second.code, second.known) in _orphan(4)
        assert (b.output(quiet), b.output(talking)) == ("late\n", "after\ndone\n")

    bench(body)


def test_what_one_says_that_ends_before_the_next_keeper_begins_is_not_lost(
    bench: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(b: Bench) -> None:
        identity = await b.start("sh", "-c", "read x; echo last words; exit 5", open_stdin=True)
        held = b.keeper.running[identity]
        begin = link.Keeper._spawn

        def when_it_is_over(keeper: link.Keeper) -> subprocess.Popen[bytes]:
            os.write(held.stdin, b"go\n")
            assert select.select([held.pidfd], [], [], 30)[0]
            return begin(keeper)

        monkeypatch.setattr(link.Keeper, "_spawn", when_it_is_over)
        os.kill(b.keeper_pid(), signal.SIGKILL)
        ended = await b.ended(identity)

        assert (ended.code, ended.known) in _orphan(5)
        assert b.output(identity) == "last words\n"
        assert b.keeper._pipes == []

    bench(body)


def test_output_written_while_no_keeper_lives_is_not_lost(bench: Run) -> None:
    async def body(b: Bench) -> None:
        identity = await b.start("sh", "-c", "while :; do echo tick; sleep 0.01; done")
        pid = b.keeper.running[identity].pid
        await b.keeper.close()
        os.kill(b.keeper_pid(), signal.SIGKILL)
        os.kill(pid, 0)

        await b.connect()
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGKILL)
        await b.ended(identity)

        assert set(b.output(identity).split()) == {"tick"}

    bench(body)


def test_a_reader_that_does_not_read_holds_the_program_back_and_loses_nothing(bench: Run) -> None:
    async def body(b: Bench) -> None:
        from tare.run.link import AttachPipes
        from tare.run.plan import plan

        reading, writing = os.pipe()
        spec = replace(SPEC, process=ProcessSpec(args=("seq", "1", "60000")))
        place = b.place()
        b._specs[place.id] = (spec, place)
        await b.keeper.start(plan(spec, place, b.host), AttachPipes(stdout=writing))

        def drain() -> bytes:
            with open(reading, "rb") as file:
                return file.read()

        data = await asyncio.to_thread(drain)
        await b.ended(place.id)

        assert data.decode() == "".join(f"{n}\n" for n in range(1, 60001))
        assert b.output(place.id) == data.decode()

    bench(body)


def test_two_keepers_never_serve_one_directory(bench: Run) -> None:
    async def body(b: Bench) -> None:
        first = b.keeper_pid()
        again = b.keeper._spawn()

        code = await asyncio.to_thread(again.wait, 10)

        assert code == 0
        assert b.keeper_pid() == first
        await b.keeper.ping()

    bench(body)


def test_no_descriptor_is_left_in_the_keeper(bench: Run) -> None:
    async def body(b: Bench) -> None:
        await b.run("true")
        await b.keeper.ping()
        before = await _settled(b)
        for _ in range(8):
            await b.run("true")
            with pytest.raises(TareError):
                await b.start("nosuch")
        await b.keeper.ping()

        # Detached mounts are let go of, and children made to stand by, when nothing is to be done.
        assert await _settled(b) <= before + 8

    bench(body)


async def _settled(b: Bench) -> int:
    """The keeper's descriptors, once it has nothing to tidy up or to prepare."""
    last, same = -1, 0
    while same < 20:
        now = len(os.listdir(f"/proc/{b.keeper_pid()}/fd"))
        last, same = now, same + 1 if now == last else 0
        await asyncio.sleep(0.05)
    return last


def _children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(word) for word in file.read().split()]


async def _standing_by(b: Bench) -> list[int]:
    """The keeper's prepared children, once there are some."""
    if cgroup.detect().plain().mode is cgroup.Mode.V2:
        pytest.skip("cgroup: on a host of version 2 only the keeper prepares no children")
    await b.keeper.ping()
    deadline = asyncio.get_running_loop().time() + 10
    while len(found := _children(b.keeper_pid())) < 2:
        if asyncio.get_running_loop().time() > deadline:
            pytest.skip("cgroup: this host's keeper prepares no children")
        await asyncio.sleep(0.02)
    return found


def test_a_child_that_stood_by_has_the_same_walls_as_one_just_cloned(bench: Run) -> None:
    async def body(b: Bench) -> None:
        keys = (
            "^(Cap...|NoNewPrivs|Seccomp|Uid|Gid|Groups|Umask|TracerPid|NS(tgid|pid|pgid|sid)"
            "|Sig(Blk|Ign|Cgt)|ShdPnd|Cpus_allowed|Mems_allowed|Speculation.*|THP_enabled):"
        )
        # Each mount with its options: one that is not read-only or nosuid shows as well. Only the
        # /dev made ahead is shown through an id map, with the owners that the other has.
        mounts = (
            "while read -r _ _ _ root at options rest; do"
            ' case $at in /) root=; esac; set -- ${rest##*- }; echo "$root $at $options $1";'
            " done </proc/self/mountinfo | sed s/,idmapped// | sort"
        )
        script = (
            f"grep -E '{keys}' /proc/self/status; cat /proc/self/uid_map /proc/self/cgroup;"
            " head -c 1 /proc/kcore /proc/keys 2>&1; ls /sys/firmware /proc/acpi 2>&1;"
            " echo 1 > /proc/sys/kernel/sysrq; echo 1 > /proc/sysrq-trigger; mkdir /sys/x;"
            " cd /proc/sys/net/ipv4; cat ip_unprivileged_port_start ping_group_range;"
            " ls /proc/self/fd; hostname;"
            " cd /proc/self; cat limits oom_score_adj personality timerslack_ns loginuid"
            " 2>&1; cut -d' ' -f6-8,19 stat; ls -lnR /dev | sed 's/[A-Z][a-z][a-z] .*[0-9] / /'"
            # Made with the namespace, so for a spare before its ids are mapped: nobody's, 1777.
            " | grep -v ' mqueue$';"
            f" cat /proc/keys /proc/key-users; ls /sys /sys/fs/cgroup; {mounts}"
        )
        named = replace(SPEC, hostname="same")
        waiting = await _standing_by(b)
        started = await b.start("sh", "-c", f"sleep 0.3; ({script}) 2>&1", spec=named)
        assert b.keeper.running[started].pid in waiting
        await b.ended(started)
        prepared = b.output(started)

        # One whose walls differ from the usual only in word is cloned when it is asked for.
        usual = replace(named, security=Security(masked_paths=walls.MASKED_PATHS))
        cloned = await b.start("sh", "-c", f"sleep 0.3; ({script}) 2>&1", spec=usual)
        assert b.keeper.running[cloned].pid not in waiting
        await b.ended(cloned)

        assert prepared.splitlines() == b.output(cloned).splitlines()

    bench(body)


def test_children_that_stand_by_die_with_the_keeper(bench: Run) -> None:
    async def body(b: Bench) -> None:
        waiting = await _standing_by(b)
        pidfds = [os.pidfd_open(pid) for pid in waiting]
        os.kill(b.keeper_pid(), signal.SIGKILL)

        for pidfd in pidfds:
            assert select.select([pidfd], [], [], 10)[0]
            os.close(pidfd)
        await asyncio.wait_for(b.lost.wait(), 10)

    bench(body)


def test_a_container_can_read_its_own_limits(bench: Run) -> None:
    async def body(b: Bench) -> None:
        if b.host.cgroup_version != 1:
            pytest.skip("cgroup: version 1 spells its files so")
        limited = replace(SPEC, resources=Resources(memory=64 << 20, memory_swap=64 << 20))

        _, text = await b.run(
            "cat", "/sys/fs/cgroup/memory/memory.limit_in_bytes", "/proc/self/cgroup", spec=limited
        )

        assert text.startswith(f"{64 << 20}\n")
        assert ":memory:/\n" in text

    bench(body)


def test_a_missing_bind_source_is_made_as_docker_makes_it(bench: Run) -> None:
    async def body(b: Bench) -> None:
        source = b.directory / "made"
        mount = Mount(kind=MountKind.BIND, source=str(source), target="/data", create_source=True)

        await b.run("sh", "-c", "echo x > /data/file", spec=replace(SPEC, mounts=(mount,)))

        status = source.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o755, 0)
        assert (source / "file").stat().st_uid == 0

    bench(body)


def test_a_keeper_of_another_version_is_replaced_and_what_runs_goes_on(
    bench: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    shutil.copytree(Path(tare.__file__).parent, other / "tare")
    protocol = other / "tare/run/protocol.py"
    protocol.write_text(
        protocol.read_text().replace(f"VERSION: Final = {VERSION}", "VERSION: Final = 1")
    )

    async def body(b: Bench) -> None:
        await b.keeper.close()
        os.kill(b.keeper_pid(), signal.SIGKILL)
        with monkeypatch.context() as patch:
            patch.setattr(link, "VERSION", 1)
            patch.setattr(tare, "__file__", str(other / "tare/__init__.py"))
            await b.connect()
            identity = await b.start("sh", "-c", "cat; exit 6", open_stdin=True)
            await b.keeper.close()
        old = b.keeper_pid()

        await b.connect()
        os.write(b.keeper.running[identity].stdin, b"still here\n")
        await b.keeper.close_stdin(identity)
        exited = await b.ended(identity)

        assert b.keeper_pid() != old
        assert (exited.code, exited.known) in _orphan(6)
        assert b.output(identity) == "still here\n"

    bench(body)


def test_without_its_nursery_a_keeper_clones_when_asked(bench: Run) -> None:
    async def body(b: Bench) -> None:
        await _standing_by(b)  # skips where none are
        assert await b.run("echo", "one") == (0, "one\n")
        while not _children_named(b.keeper_pid(), "tare-nursery"):
            await asyncio.sleep(0.01)
        while found := _children_named(b.keeper_pid(), "tare-nursery"):
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.01)
        for word in ("two", "three", "four", "five"):
            assert await b.run("echo", word) == (0, f"{word}\n")

    bench(body)


def _children_named(parent: int, name: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            comm, fields = (path / "stat").read_text().rsplit(")", 1)
            state, owner = fields.split()[:2]
            if comm.partition("(")[2] == name and int(owner) == parent and state != "Z":
                found.append(int(path.name))
    return found
