"""Attacks A12 to A20 from inside real containers: paths, devices, calls, identity, namespaces.

Each payload that can be tried without the walls is tried so too: one that does not win there
would prove nothing.
"""
# ruff: noqa: F811  # fixtures are imported by name

from __future__ import annotations

import asyncio
import ctypes
import errno
import hashlib
import io
import itertools
import os
import platform
import stat
import struct
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engine.test_engine_system import Host, Play, play  # noqa: F401  # a fixture
from run.conftest import Bench, Body, bench, busybox_layer  # noqa: F401  # fixtures
from security.sysrun import DATA, Call, hello_i386, program, results
from tare.engine.engine import erofs_from_files
from tare.image.layers import Layers
from tare.model.record import HealthStatus
from tare.model.spec import (
    ContainerSpec,
    Device,
    ExecSpec,
    HealthCheck,
    Mount,
    MountKind,
    ProcessSpec,
    Security,
)
from tare.run.plan import plan
from tare.run.walls import MASKED_PATHS

Run = Callable[[Body], None]
SPEC = ContainerSpec(image="b", image_id="b", process=ProcessSpec(args=("true",)))
AF_ALG, AF_VSOCK = 38, 40
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
CLONE_NEWUSER = 0x10000000
DENIED = [-errno.EPERM]

on_x86_64 = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="sysrun: writes machine code for x86_64 only"
)


def bound(source: Path, target: str = "/t", *, read_only: bool = True) -> ContainerSpec:
    """A container with *source* of the host at *target*."""
    wanted = Mount(kind=MountKind.BIND, source=str(source), target=target, read_only=read_only)
    return replace(SPEC, mounts=(wanted,))


def lay(directory: Path, calls: Iterable[Call], data: bytes = b"") -> Path:
    """The directory of a program that makes *calls*."""
    directory.mkdir(exist_ok=True)
    file = directory / "sysrun"
    file.write_bytes(program(calls, data))
    file.chmod(0o755)
    return directory


def without_walls(directory: Path) -> list[int]:
    """What the same calls answer to a process of the host."""
    done = subprocess.run([directory / "sysrun"], capture_output=True, stdin=subprocess.DEVNULL)
    return results(done.stdout)


def layer(directory: Path, *entries: tuple[tarfile.TarInfo, bytes]) -> Path:
    """A layer file of *entries*."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry, content in entries:
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    buffer.seek(0)
    return Layers(directory, extract=not erofs_from_files()).add(buffer).path


def entry(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.mode = kind, 0o755
    for field, value in fields.items():
        setattr(made, field, value)
    return made


async def run_on(b: Bench, above: Path, spec: ContainerSpec, *args: str, user: str = "") -> str:
    """The output of *args* on a root with the layer *above* on top."""
    wanted = replace(spec, process=ProcessSpec(args=args, user=user))
    place = b.place(layers=(str(b.layer), str(above)))
    b._specs[place.id] = (wanted, place)
    await b.keeper.start(plan(wanted, place, b.host))
    await b.ended(place.id)
    b.keeper.acknowledge(place.id)
    return b.output(place.id)


# --- A12: /proc and /sys ----------------------------------------------------------------------

MORE_SECRETS = ("/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/interrupts")


@pytest.mark.attack("A12")
def test_a12_masked_paths_show_nothing_by_any_name(bench: Run) -> None:
    async def body(b: Bench) -> None:
        paths = " ".join(sorted({*MASKED_PATHS, *MORE_SECRETS}))
        script = (
            f"for p in {paths}; do for r in '' /proc/1/root /proc/self/attr/../../../;"
            " do if [ -d $r$p ]; then n=$(ls -A $r$p 2>/dev/null | wc -l);"
            " else n=$(head -c 9 $r$p 2>/dev/null | wc -c); fi;"
            " [ $n = 0 ] || echo $r$p; done; done; echo done"
        )
        _, shown = await b.run("sh", "-c", script)

        assert shown == "done\n"

    bench(body)
    seen = [path for path in MORE_SECRETS if Path(path).exists() and _has_content(path)]
    assert seen  # the host shows some of them to who is not walled in


def _has_content(path: str) -> bool:
    with open(path, "rb") as file:
        return bool(file.read(1))


@pytest.mark.attack("A12")
def test_a12_what_the_kernel_obeys_cannot_be_written(bench: Run) -> None:
    pattern = Path("/proc/sys/kernel/core_pattern").read_text()

    async def body(b: Bench) -> None:
        script = (
            "for r in '' /proc/1/root /proc/self/root; do"
            " for p in net/ipv4/ip_forward kernel/msgmax kernel/core_pattern vm/panic_on_oom; do"
            " f=$r/proc/sys/$p; if echo 1 2>/dev/null >$f; then echo written $f; fi; done;"
            " for f in $r/proc/sysrq-trigger $r/sys/kernel/uevent_helper $r/proc/1/attr/current"
            " $r/sys/kernel/mm/transparent_hugepage/enabled $r/sys/power/state"
            " $r/sys/fs/cgroup/*/release_agent $r/sys/fs/cgroup/*/cgroup.procs;"
            " do [ -e $f ] || continue;"
            " if echo 1 2>/dev/null >$f; then echo written $f; fi; done; done;"
            " echo 1 >/proc/sys/net/ipv4/ip_forward"  # its own, so only the mount refuses
        )
        _, text = await b.run("sh", "-c", script)

        assert "written" not in text
        assert "Read-only file system" in text

    bench(body)
    assert Path("/proc/sys/kernel/core_pattern").read_text() == pattern


@pytest.mark.attack("A12")
def test_a12_what_is_masked_cannot_be_uncovered(bench: Run) -> None:
    async def body(b: Bench) -> None:
        script = (
            "umount /proc/keys && echo 1; mount -o remount,rw /proc/sys && echo 2;"
            " mkdir -p /p; mount -t proc proc /p && echo 3; mount --bind /proc /p && echo 4;"
            " unshare -Urm true && echo 5; unshare -m umount /proc/keys && echo 6"
        )
        _, text = await b.run("sh", "-c", f"{{ {script}; }} 2>/dev/null; echo end")

        assert text == "end\n"

    bench(body)


@on_x86_64
def _content(layer: Path) -> bytes:
    """A digest of the layer: one file, or a directory on a host that mounts no EROFS from files."""
    whole = hashlib.sha256()
    for path in sorted([layer, *layer.rglob("*")]):
        whole.update(os.fsencode(path) + b"\0")
        if path.is_file() and not path.is_symlink():
            whole.update(path.read_bytes())
    return whole.digest()


@pytest.mark.attack("A12")
def test_a12_one_container_changes_nothing_of_another_of_its_image(
    bench: Run, busybox_layer: Path, tmp_path: Path
) -> None:
    name = b"/bin/busybox\0".ljust(16, b"\0")
    calls = [
        Call("x86_64", 2, (DATA, os.O_RDONLY)),
        Call("x86_64", 293, (DATA + 32, 0)),  # pipe2: 4 and 5
        Call("x86_64", 1, (5, DATA, 8)),
        Call("x86_64", 275, (4, 0, 3, 0, 8, 0)),  # splice into what is open for reading
        Call("x86_64", 425, (8, DATA + 64)),  # io_uring_setup
        Call("x86_64", 41, (AF_ALG, 5, 0)),
    ]
    directory = lay(tmp_path / "payload", calls, name)
    before = _content(busybox_layer)

    async def body(b: Bench) -> None:
        other = await b.start("sleep", "1000")
        _, first = await b.execute(other, "sha256sum", "/bin/busybox")
        code, text = await b.run("/t/sysrun", spec=bound(directory))
        assert code == 0
        answers = results(text)
        assert answers[0] == 3
        assert answers[3] == -errno.EBADF
        assert answers[4] in (-errno.ENOSYS, -errno.EPERM)
        assert answers[5] == -errno.EPERM

        _, text = await b.run("sh", "-c", "cp /bin/busybox /x; echo evil >/bin/busybox; /x ls /bin")
        assert "busybox" in text
        _, after = await b.execute(other, "sha256sum", "/bin/busybox")
        assert after == first

    bench(body)
    assert _content(busybox_layer) == before


# --- A13: devices -----------------------------------------------------------------------------

NODES = ("b 254 0", "c 1 1", "c 1 2", "c 1 11", "c 10 200", "c 10 229", "c 10 232", "c 5 1",
         "b 7 0", "c 1 5")  # fmt: skip


@pytest.mark.attack("A13")
def test_a13_no_device_node_can_be_made_anywhere(bench: Run, tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir(mode=0o777)

    async def body(b: Bench) -> None:
        made = "; ".join(
            f"mknod $d/x{i} {node} 2>&1 || :" for i, node in enumerate(NODES)
        )  # fmt: skip
        script = f"for d in / /tmp /dev /dev/shm /v; do {made}; done"
        _, text = await b.run(
            "sh", "-c", script, spec=bound(tmp_path / "volume", "/v", read_only=False)
        )

        lines = text.splitlines()
        assert len(lines) == 5 * len(NODES)
        assert all("Operation not permitted" in line for line in lines), lines

    bench(body)
    assert list((tmp_path / "volume").iterdir()) == []


@pytest.mark.attack("A13")
def test_a13_nodes_in_a_layer_or_a_volume_do_not_open(bench: Run, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    for minor in (1, 5, 11):
        os.mknod(volume / f"n{minor}", 0o666 | stat.S_IFCHR, os.makedev(1, minor))
        (volume / f"n{minor}").chmod(0o666)
    assert os.read(os.open(volume / "n5", os.O_RDONLY), 1) == b"\0"  # the payload wins outside
    nodes = [
        (entry(f"n{minor}", tarfile.CHRTYPE, devmajor=1, devminor=minor, mode=0o666), b"")
        for minor in (1, 5, 11)
    ]
    nodes.append((entry("disk", tarfile.BLKTYPE, devmajor=254, devminor=0, mode=0o666), b""))
    above = layer(tmp_path / "layers", *nodes)

    async def body(b: Bench) -> None:
        script = "for f in /n* /disk /v/n*; do head -c 1 $f >/dev/null 2>&1 && echo $f; done; ls /v"
        text = await run_on(b, above, bound(volume, "/v"), "sh", "-c", script)

        assert text.split() == ["n1", "n11", "n5"]

    bench(body)


@pytest.mark.attack("A13")
def test_a13_a_device_that_is_given_opens_no_other(bench: Run, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    for minor in (5, 11):
        os.mknod(volume / f"n{minor}", 0o666 | stat.S_IFCHR, os.makedev(1, minor))
        (volume / f"n{minor}").chmod(0o666)

    async def body(b: Bench) -> None:
        given = Device(host_path=str(volume / "n5"), target="/dev/mine")
        spec = replace(bound(volume, "/v"), devices=(given,))
        script = (
            "head -c 3 /dev/mine | wc -c; head -c 1 /v/n11 2>&1 | wc -l;"
            " for f in /v/n5 /v/n11; do (exec 3<$f) 2>/dev/null && echo open $f; done;"
            " mknod /dev/other c 1 11 2>/dev/null && echo made; ls /dev | grep -E 'kmsg|mem|vd'"
        )
        _, text = await b.run("sh", "-c", script, spec=spec)

        assert text.split() == ["3", "1"]

    bench(body)


# --- A14 and A15: system calls ----------------------------------------------------------------

_VSOCK_ARGS = struct.pack("<III", AF_VSOCK, 1, 0)
FORBIDDEN = [
    Call("x86_64", number, args)
    for number, args in (
        (308, (-1, 0)), (165, ()), (166, ()), (155, ()), (428, (-1,)),
        (429, (-1,)), (430, ()), (432, (-1,)), (442, (-1,)), (250, (0, -3)), (248, ()), (249, ()),
        (321, (-1,)), (298, ()), (323, (-1,)), (175, ()), (313, (-1,)), (167, ()), (179, (-1,)),
        (246, (-1, -1, -1, -1)), (41, (AF_VSOCK, 1, 0)), (41, (1 << 32 | AF_VSOCK, 1, 0)),
        (41, (17, 3, 0)), (16, (-1, TIOCSTI, 0)), (16, (-1, 1 << 32 | TIOCSTI, 0)),
        (16, (-1, 0xFFFF_FFFF << 32 | TIOCLINUX, 0)),
        (272, (CLONE_NEWUSER,)),  # the last: in such a namespace others are refused anyway
    )
]  # fmt: skip
FOREIGN = [
    Call("i386", number, args)
    for number, args in (
        (288, (0, -3)), (310, (CLONE_NEWUSER,)), (346, (-1, 0)), (359, (AF_VSOCK, 1, 0)),
        (359, (AF_ALG, 5, 0)), (102, (1, DATA)), (54, (-1, TIOCSTI, 0)), (21, ()), (357, (-1,)),
    )
]  # fmt: skip


@on_x86_64
@pytest.mark.attack("A14")
def test_a14_the_filter_is_there_before_the_first_instruction_of_init_and_exec(
    bench: Run, tmp_path: Path
) -> None:
    absent = [Call("x86_64", n) for n in (435, 425, 426, 427, 470, 511, 600, 1000)]
    calls = [Call("x86_64", 157, (21,)), *FORBIDDEN, *absent]  # 21: PR_GET_SECCOMP
    directory = lay(tmp_path / "payload", calls, _VSOCK_ARGS)
    naive = without_walls(directory)
    won = [a for c, a in zip(calls, naive, strict=True) if c.args[:1] != (17,)]
    assert naive[0] == 0
    assert len([answer for answer in won if answer == -errno.EPERM]) <= 3
    expected = [2, *DENIED * len(FORBIDDEN), *[-errno.ENOSYS] * len(absent)]

    async def body(b: Bench) -> None:
        _, text = await b.run("/t/sysrun", spec=bound(directory))
        found = dict(zip(calls, zip(results(text), expected, strict=True), strict=True))
        assert {c: a for c, (a, wanted) in found.items() if a != wanted} == {}

        identity = await b.start("sleep", "1000", spec=bound(directory))
        _, text = await b.execute(identity, "/t/sysrun")
        assert results(text) == expected
        _, text = await b.execute(identity, "/t/sysrun", user="1000")
        assert results(text) == expected

    bench(body)


@on_x86_64
@pytest.mark.attack("A15")
def test_a15_a_foreign_abi_meets_the_same_walls(bench: Run, tmp_path: Path) -> None:
    x32 = [Call("x32", number, (0, -3)) for number in (39, 41, 101, 250, 272, 321)]
    uring = [Call("i386", 425, (1, 0))]
    calls = [*FOREIGN, *uring, *x32]
    directory = lay(tmp_path / "payload", calls, _VSOCK_ARGS)
    naive = without_walls(directory)
    if not naive or naive[0] == -errno.ENOSYS:
        pytest.skip("ia32: the kernel has no 32-bit calls")
    assert -errno.EPERM not in naive

    async def body(b: Bench) -> None:
        _, text = await b.run("/t/sysrun", spec=bound(directory))
        answers = results(text)
        assert answers[: len(FOREIGN)] == DENIED * len(FOREIGN)
        assert set(answers[len(FOREIGN) :]) == {-errno.ENOSYS}

        _, again = await b.run("/t/sysrun", spec=bound(directory), user="1000")
        assert results(again) == answers

    bench(body)


@on_x86_64
@pytest.mark.attack("A15")
def test_a15_a_32_bit_program_still_runs(bench: Run, tmp_path: Path) -> None:
    file = tmp_path / "payload" / "hello"
    file.parent.mkdir()
    file.write_bytes(hello_i386())
    file.chmod(0o755)
    if subprocess.run([file], capture_output=True, check=False).returncode:
        pytest.skip("ia32: the kernel runs no 32-bit programs")

    async def body(b: Bench) -> None:
        assert await b.run("/t/hello", spec=bound(file.parent)) == (0, "hello from i386\n")

    bench(body)


# --- A16 and A17: identity and keys -----------------------------------------------------------


@on_x86_64
@pytest.mark.attack("A16")
def test_a16_a_setuid_program_gives_nothing(bench: Run, tmp_path: Path) -> None:
    calls = [
        Call("x86_64", 102), Call("x86_64", 107), Call("x86_64", 108),
        Call("x86_64", 105, (0,)), Call("x86_64", 116, (0, 0)),
    ]  # fmt: skip
    capable = struct.pack("<IIIII", 0x02000001, 0xFF, 0, 0, 0).decode("latin-1")
    above = layer(
        tmp_path / "layers",
        (entry("setuid", mode=0o6755), program(calls)),
        (entry("able", pax_headers={"SCHILY.xattr.security.capability": capable}), program(calls)),
    )

    async def body(b: Bench) -> None:
        inside = results(await run_on(b, above, SPEC, "/setuid", user="1000"))
        assert inside[:3] == [1000, 1000, 0]
        assert inside[3:] == [-errno.EPERM, -errno.EPERM]
        capable = results(await run_on(b, above, SPEC, "/able", user="1000"))
        assert capable[3:] == [-errno.EPERM, -errno.EPERM]

        naive = replace(SPEC, security=Security(no_new_privileges=False))
        assert results(await run_on(b, above, naive, "/setuid", user="1000"))[1] == 0

    bench(body)


@pytest.mark.attack("A16")
def test_a16_containers_have_ids_that_nobody_else_has(play: Play) -> None:
    async def work(host: Host) -> None:
        blocks = []
        for _ in range(3):
            identity = await host.started("sleep", "1000")
            pid = (await host.engine.containers.get(identity)).pid
            maps = [Path(f"/proc/{pid}/{kind}_map").read_text() for kind in ("uid", "gid")]
            assert maps[0] == maps[1]
            inside, base, size = map(int, maps[0].split())
            assert (inside, size) == (0, 65536)
            assert base > 65535
            assert os.stat(f"/proc/{pid}").st_uid == base
            blocks.append(range(base, base + size))
        blocks.sort(key=lambda block: block.start)
        assert all(a.stop <= b.start for a, b in itertools.pairwise(blocks))

    play(work)


@pytest.mark.attack("A16")
def test_a16_root_inside_does_not_write_what_the_hosts_root_keeps(
    bench: Run, tmp_path: Path
) -> None:
    async def body(b: Bench) -> None:
        script = "kill -0 -1 && echo signalled; cat /proc/self/setgroups; id -u"
        _, text = await b.run("sh", "-c", script)
        assert text.split()[-1] == "0"
        pid = b.keeper.running[await b.start("sleep", "1000")].pid
        done = subprocess.run(
            ["cat", __file__, "/etc/shadow"], user=Path(f"/proc/{pid}").stat().st_uid,
            group=65534, extra_groups=[], capture_output=True, check=False,
        )  # fmt: skip
        assert b"/etc/shadow: Permission denied" in done.stderr

    bench(body)


KEYCTL = 250
ADD_KEY = 248


@pytest.fixture
def secret_key() -> Iterator[int]:
    """A key of the host in the session of whoever starts the keeper."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    number = libc.syscall(ADD_KEY, b"user", b"tare-secret", b"hidden", ctypes.c_size_t(6), -3)
    if number < 0:
        pytest.skip(f"keyring: {os.strerror(ctypes.get_errno())}")
    yield number
    libc.syscall(KEYCTL, 9, number, -3, 0, 0)  # KEYCTL_UNLINK


@on_x86_64
@pytest.mark.attack("A17")
def test_a17_keys_of_the_host_are_out_of_reach_even_without_a_filter(
    bench: Run, tmp_path: Path, secret_key: int
) -> None:
    data = b"user\0\0\0\0tare-secret\0\0\0\0\0_ses.0\0"
    calls = [
        Call("x86_64", KEYCTL, (10, -3, DATA, DATA + 8, 0)),  # search the session
        Call("x86_64", KEYCTL, (11, secret_key, DATA + 64, 16)),  # read
        Call("x86_64", KEYCTL, (6, secret_key, DATA + 64, 64)),  # describe
        Call("x86_64", KEYCTL, (1, DATA + 24)),  # join by name
        *[Call("x86_64", ADD_KEY, (DATA, DATA + 8, DATA, 4, -4))] * 3,
    ]
    directory = lay(tmp_path / "payload", calls, data)
    naive = without_walls(directory)
    assert naive[0] == secret_key
    assert naive[1] == 6

    async def body(b: Bench) -> None:
        _, text = await b.run("/t/sysrun", spec=bound(directory))
        assert results(text) == DENIED * len(calls)
        _, text = await b.run("sh", "-c", "cat /proc/keys /proc/key-users | wc -c")
        assert text == "0\n"

        open_wide = replace(bound(directory), security=Security(seccomp="unconfined"))
        _, text = await b.run("/t/sysrun", spec=open_wide)
        answers = results(text)
        assert answers[0] == -errno.ENOKEY
        assert answers[1] in (-errno.EACCES, -errno.ENOKEY)
        assert answers[2] in (-errno.EACCES, -errno.ENOKEY)

    bench(body)


# --- A18: namespaces and what enters them -----------------------------------------------------


@pytest.mark.attack("A18")
def test_a18_every_namespace_is_its_own_and_shows_only_its_own(bench: Run) -> None:
    names = ("pid", "mnt", "net", "ipc", "uts", "cgroup", "user")

    async def body(b: Bench) -> None:
        links = " ".join(f"/proc/self/ns/{name}" for name in names)
        script = f"for l in {links}; do readlink $l; done; ls -d /proc/[0-9]* | wc -l"
        first = await b.start("sleep", "1000")  # lives on: numbers of ended ones are used again
        _, text = await b.execute(first, "sh", "-c", script)
        words = text.split()
        for name, inside in zip(names, words, strict=False):
            assert inside.startswith(f"{name}:[")
            assert inside != os.readlink(f"/proc/self/ns/{name}")
        assert int(words[len(names)]) <= 4
        _, other = await b.run("sh", "-c", f"for l in {links}; do readlink $l; done")
        assert set(other.split()).isdisjoint(words)

    bench(body)


@pytest.mark.attack("A18")
def test_a18_the_environment_is_only_what_was_asked(
    bench: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TARE_TOKEN", "s3cret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")

    async def body(b: Bench) -> None:
        identity = await b.start("sh", "-c", "echo go; while :; do sleep 1; done", env=("ASKED=1",))
        while "go" not in b.output(identity):
            await asyncio.sleep(0.02)
        for pid in ("1", "self"):
            _, text = await b.execute(
                identity, "sh", "-c", f"cat /proc/{pid}/environ | tr '\\0' '\\n'"
            )
            found = {line.partition("=")[0] for line in text.split("\n") if line}
            assert "ASKED" in found
            assert found <= {"ASKED", "PATH", "HOME", "HOSTNAME", "PWD", "SHLVL"}

    bench(body)


@pytest.mark.attack("A18")
def test_a18_what_enters_by_exec_shows_nothing_of_the_host(
    bench: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TARE_TOKEN", "s3cret-of-host")
    watch = (
        "trap 'echo end; exit 0' TERM; echo go; while :; do for p in /proc/[0-9]*; do"
        " readlink $p/exe; readlink $p/cwd; tr '\\0' '\\n' <$p/environ; ls -l $p/fd; cat $p/maps;"
        " head -c 1 $p/mem; readlink $p/root;"
        " done 2>/dev/null | grep -vE '/workloads/[0-9a-f]*/std(in|out|err)$'"
        " | grep -E 'python|s3cret|/run/|\\.so|keeper' ; done"
    )

    async def body(b: Bench) -> None:
        identity = await b.start("sh", "-c", watch)
        while "go" not in b.output(identity):
            await asyncio.sleep(0.02)
        for _ in range(25):
            code, _ = await b.execute(identity, "true")
            assert code == 0
        os.kill(b.keeper.running[identity].pid, 15)
        await b.ended(identity)

        assert b.output(identity) == "go\nend\n"

    bench(body)


# --- A19 and A20 ------------------------------------------------------------------------------


@on_x86_64
@pytest.mark.attack("A19")
def test_a19_nothing_is_typed_into_the_terminal_which_is_its_own(
    bench: Run, tmp_path: Path
) -> None:
    calls = [
        Call("x86_64", 16, (0, TIOCSTI, DATA)), Call("i386", 54, (0, TIOCSTI, DATA)),
        Call("x86_64", 16, (0, TIOCLINUX, DATA)), Call("x86_64", 16, (0, 1 << 32 | TIOCSTI, DATA)),
    ]  # fmt: skip
    directory = lay(tmp_path / "payload", calls, b"\x03")

    async def body(b: Bench) -> None:
        _, text = await b.run(
            "sh", "-c", "/t/sysrun; tty; ls /dev/pts", spec=bound(directory), tty=True
        )
        words = text.split()
        assert results(" ".join(words[:4])) == DENIED * 4
        assert words[4:] == ["/dev/pts/0", "0", "ptmx"]

    bench(body)


_FIELDS = (
    "grep -E '^(Cap...|NoNewPrivs|Seccomp|Uid|Gid|Groups):' /proc/self/status;"
    " cat /proc/self/uid_map /proc/self/gid_map /proc/self/cgroup /proc/self/limits"
    " /proc/self/oom_score_adj; for n in user pid mnt net ipc uts cgroup; do"
    " readlink /proc/self/ns/$n; done"
)


@pytest.mark.attack("A20")
def test_a20_exec_and_health_check_have_the_walls_of_the_first_program(
    play: Play,
) -> None:
    async def work(host: Host) -> None:
        # Renamed into place: the next check may be writing while this one's answer is read.
        kept = f"({_FIELDS}) >/h.$$; mv /h.$$ /health"
        check = HealthCheck(test=("CMD-SHELL", kept), interval_ns=50_000_000)
        events = host.engine.events.subscribe(filters={"event": ["health_status"]})
        script = f"({_FIELDS}) >/first; sleep 1000"
        identity = await host.started("sh", "-c", script, health=check)
        assert HealthStatus.HEALTHY in (await anext(events)).action

        first = await _execed(host, identity, "cat /first")
        assert "Seccomp:\t2" in first
        assert await _execed(host, identity, "cat /health") == first
        assert await _execed(host, identity, _FIELDS) == first

        await host.next_life()
        assert await _execed(host, identity, _FIELDS) == first
        await host.engine.containers.restart(identity, 0)
        await _execed(host, identity, "until [ -s /health ]; do :; done")
        walls = "grep -E '^(Cap...|NoNewPrivs|Seccomp):' "
        again = await _execed(host, identity, f"{walls} /proc/1/status")
        assert again in first
        assert await _execed(host, identity, f"{walls} /proc/self/status") == again

    play(work)


async def _execed(host: Host, identity: str, script: str) -> str:
    wanted = ExecSpec(process=ProcessSpec(args=("sh", "-c", script)))
    attachment = await host.engine.execs.start(await host.engine.execs.create(identity, wanted))
    assert attachment is not None
    return b"".join([chunk async for _, chunk in attachment.output]).decode()
