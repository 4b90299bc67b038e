"""Attacks A01 to A11 on the making of a container, tried by hostile images, volumes and users.

What can be tried on a runtime without walls (`security.naive`) is tried so too: a payload that
does not win there would prove nothing.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import platform
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from run.conftest import Bench, Body
from security import naive
from security.conftest import SPEC, Stops, Treasure, entry, layer, link, run_on, start_on
from security.sysrun import DATA, Call, program
from tare.errors import InvalidError, TareError
from tare.kernel import confine
from tare.kernel.libc import Syscall, number
from tare.model.spec import (
    ContainerSpec,
    Mount,
    MountKind,
    Namespaces,
    ProcessSpec,
    Security,
    SecurityProfile,
)
from tare.run.walls import MASKED_PATHS

Run = Callable[[Body], None]

on_x86_64 = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="sysrun: writes machine code for x86_64 only"
)


def bind(source: Path, target: str, *, read_only: bool = False) -> Mount:
    """*source* of the host at *target*."""
    return Mount(kind=MountKind.BIND, source=str(source), target=target, read_only=read_only)


def tmpfs(target: str) -> Mount:
    """A tmpfs at *target*."""
    return Mount(kind=MountKind.TMPFS, target=target)


def mounting(*mounts: Mount, **changes: object) -> ContainerSpec:
    """A container with *mounts*."""
    return replace(SPEC, mounts=mounts, **changes)  # type: ignore[arg-type]  # a shortcut


def open_directory(path: Path) -> Path:
    """A directory that the container's root, an ordinary user to the host, may change."""
    path.mkdir(parents=True)
    path.chmod(0o777)
    return path


# --- A01: /proc/self/exe ----------------------------------------------------------------------

EXE = "/proc/self/exe"
WON = b"attacker's code\n"


def hostile_loader() -> bytes:
    """What a dynamic program of the host would load first: it says so, then opens that program."""
    calls = [
        Call("x86_64", 1, (1, DATA + 64, len(WON))),
        Call("x86_64", 2, (DATA, os.O_WRONLY)),
    ]
    return program(calls, EXE.encode().ljust(64, b"\0") + WON)


def exe_layer(directory: Path) -> Path:
    """An image whose every program leads to /proc/self/exe, with a loader of its own."""
    script = f"#!{EXE}\n".encode()
    return layer(
        directory,
        (entry("app"), script),
        (entry("app2"), b"#!/app\n"),
        link("linked", EXE),
        link("first", "/proc/1/exe"),
        (entry("lib64", tarfile.DIRTYPE), b""),
        (entry("lib64/ld-linux-x86-64.so.2"), hostile_loader()),
    )


@on_x86_64
@pytest.mark.attack("A01")
def test_control_a_naive_runtime_gives_its_own_program_away(tmp_path: Path) -> None:
    root = naive.lay(tmp_path / "root", {})
    (root / "app").write_text(f"#!{EXE}\n")
    (root / "app").chmod(0o755)
    (root / "lib64").mkdir()
    (root / "lib64/ld-linux-x86-64.so.2").write_bytes(hostile_loader())
    (root / "lib64/ld-linux-x86-64.so.2").chmod(0o755)

    _, output, _ = naive.run(root, "/app", proc=True)

    assert WON.decode() in output
    # It got hold of the host's chroot(8), and only its being executed kept that from changes.
    assert f"{(-errno.ETXTBSY) % 2**64:016x}" in output


@on_x86_64
@pytest.mark.attack("A01")
@pytest.mark.parametrize(
    "name", [EXE, "/app", "/app2", "/linked", "/first", "/proc/thread-self/exe"]
)
def test_a01_an_image_that_leads_to_the_runtimes_program_runs_nothing(
    bench: Run, tmp_path: Path, name: str
) -> None:
    async def body(b: Bench) -> None:
        above = exe_layer(tmp_path / "layers")
        try:
            code, output = await run_on(b, above, SPEC, name)
        except TareError as error:
            code, output = error.exit_code, ""

        assert code in (126, 127)
        assert output == ""

        identity = await start_on(b, above, SPEC, "sleep", "1000")
        try:
            code, output = await b.execute(identity, name)
        except TareError as error:
            code, output = error.exit_code, ""
        # In exec, /proc/1/exe is the container's own first program, busybox without an applet.
        assert code in ((126, 127) if name != "/first" else (126, 127, 0, 1))
        assert WON.decode() not in output

    bench(body)


@pytest.mark.attack("A01")
def test_a01_no_process_in_sight_runs_a_program_of_the_host(bench: Run) -> None:
    async def body(b: Bench) -> None:
        # The first program looks again and again while others come in by exec.
        script = (
            "while :; do for p in /proc/[0-9]*; do readlink $p/exe; done; done"
            " | while read x; do [ $x = /bin/busybox ] || echo $x; done"
        )
        identity = await b.start("sh", "-c", script)
        for _ in range(12):
            await b.execute(identity, "true")

        seen = set(b.output(identity).split("\n")) - {""}
        assert not [name for name in seen if "python" in name or "memfd" not in name], seen

    bench(body)


# --- A02: descriptors and the working directory -----------------------------------------------


@pytest.mark.attack("A02")
def test_a02_a_working_directory_that_is_a_descriptor_is_refused(
    bench: Run, tmp_path: Path
) -> None:
    async def body(b: Bench) -> None:
        above = layer(tmp_path / "layers", link("way", "/proc/self/fd/7"), link("w9", "/dev/fd/9"))
        names = [f"/proc/self/fd/{n}" for n in range(3, 24)]
        names += ["/proc/1/fd/7", "/proc/thread-self/fd/8/..", "/way", "/w9/..", "/proc/self/cwd/x"]
        names += [
            "/proc/self/fd/7/../../../../../../..",
            "/dev/stdin",
            "/proc/self/root/../etc/x/y",
        ]
        running = await start_on(b, above, SPEC, "sleep", "1000")
        for name in names:
            wanted = replace(SPEC, process=ProcessSpec(args=("pwd",), cwd=name))
            with pytest.raises(TareError, match="working directory"):
                await run_on(b, above, wanted, "pwd")
            with pytest.raises(TareError, match=r"working directory|cannot"):
                await b.execute(running, "pwd", cwd=name)

    bench(body)


LOOK = "for n in $(seq 3 60); do cat /proc/self/fd/$n/canary 2>/dev/null; done; echo end"


@pytest.mark.attack("A02")
def test_control_a_naive_runtime_leaves_directories_of_the_host_open(
    tmp_path: Path, treasure: Treasure
) -> None:
    root = naive.lay(tmp_path / "root", {})
    descriptor = os.open(treasure.directory, os.O_RDONLY)

    _, output, _ = naive.run(root, "sh", "-c", LOOK, proc=True, descriptors=(descriptor,))
    os.close(descriptor)

    assert output == "treasure\nend\n"


@pytest.mark.attack("A02")
def test_a02_a_careless_parent_leaves_nothing_open_in_init_or_exec(
    bench: Run, treasure: Treasure
) -> None:
    stray = [os.open(treasure.directory, os.O_RDONLY) for _ in range(20)]
    for descriptor in stray:
        os.set_inheritable(descriptor, True)

    async def body(b: Bench) -> None:
        identity = await b.start("sleep", "1000")
        _, output = await b.run("sh", "-c", LOOK)
        _, inside = await b.execute(identity, "sh", "-c", f"{LOOK}; ls /proc/$$/fd; true")
        pid = b.keeper.running[identity].pid

        assert sorted(os.listdir(f"/proc/{pid}/fd")) == ["0", "1", "2"]
        assert inside == "end\n0\n1\n2\n"
        assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"
        assert output == "end\n"

    try:
        bench(body)
    finally:
        for descriptor in stray:
            os.close(descriptor)


# --- A03, A04: /dev under somebody else's control ---------------------------------------------


@pytest.mark.attack("A03")
def test_control_a_naive_mask_opens_what_it_should_hide(tmp_path: Path, treasure: Treasure) -> None:
    root = naive.lay(tmp_path / "root", {"/dev/null": str(treasure.file)})

    naive.run(root, "sh", "-c", "echo won > /proc/keys", proc=True, masks=("/proc/keys",))

    assert treasure.file.read_text() == "won\n"


def hostile_device_volume(directory: Path) -> Path:
    """A volume for /dev: its null, console, terminals and links lead into /proc."""
    for name, target in (
        ("null", "/proc/sys/kernel/core_pattern"),
        ("console", "/proc/sys/kernel/core_pattern"),
        ("ptmx", "/proc/sys/kernel/core_pattern"),
        ("pts", "/proc/self"),
        ("shm", "/proc"),
    ):
        (directory / name).unlink(missing_ok=True)
        (directory / name).symlink_to(target)
    return directory


WALLS = (
    "for p in /proc/keys /proc/kcore /proc/timer_list /proc/sys/kernel/core_pattern; do"
    " (echo '|/won' > $p) 2>/dev/null; done;"
    " head -c 9 /proc/keys; head -c 9 /proc/kcore; head -c 9 /proc/timer_list;"
    " cat /proc/self/mountinfo"
)


def misplaced(mountinfo: str) -> list[str]:
    """Mounts over /proc of something that is neither procfs, nor /dev/null, nor empty."""
    found = []
    for line in mountinfo.splitlines():
        fields = line.split()
        if "-" not in fields:
            continue  # not of the table
        kind = fields[fields.index("-") + 1]
        root, place, options = fields[3], fields[4], fields[5]
        if not place.startswith("/proc/"):
            continue
        hidden = (root == "/null") or (kind == "tmpfs" and root == "/")
        if not (hidden or (kind == "proc" and place.endswith(root) and "ro" in options)):
            found.append(line)
    return found


@pytest.mark.attack("A03")
@pytest.mark.parametrize("moment", ["before", "before-mask", "before-readonly"])
def test_a03_masks_are_not_made_of_the_containers_null_device(
    bench: Run, tmp_path: Path, stop_at: Stops, moment: str
) -> None:
    volume = open_directory(tmp_path / "devices")
    stopped = threading.Event()
    if moment == "before":
        hostile_device_volume(volume)
    else:
        (volume / "null").touch()

        def swap(_: int) -> None:
            stopped.set()
            hostile_device_volume(volume)

        stop_at(moment, swap)

    async def body(b: Bench) -> None:
        # Explicit masks are set up for this container, not ahead of time.
        wanted = mounting(bind(volume, "/dev"), security=Security(masked_paths=MASKED_PATHS))
        with pytest.raises(TareError, match="null"):
            await run_on(b, None, wanted, "true")
        if moment != "before":
            return
        stdin = replace(wanted, process=ProcessSpec(args=("true",), open_stdin=True))
        code, output = await run_on(b, None, stdin, "sh", "-c", WALLS)
        assert code == 0
        assert misplaced(output) == []
        assert output.count(" /proc/keys ") == 1

    bench(body)
    assert stopped.is_set() or moment == "before"


@pytest.mark.attack("A04")
@pytest.mark.parametrize("moment", ["", "rootfs-mounted", "before-dev", "before-console"])
def test_a04_the_terminal_is_the_containers_own_whatever_dev_holds(
    bench: Run, tmp_path: Path, stop_at: Stops, moment: str
) -> None:
    volume = open_directory(tmp_path / "devices")

    def swap(_: int) -> None:
        hostile_device_volume(volume)

    if moment:
        stop_at(moment, swap)
    else:
        swap(0)

    async def body(b: Bench) -> None:
        script = (
            f"exec 2>&1; {WALLS}; for n in 0 1 2; do stat -L -c 'type %t' /proc/self/fd/$n;"
            " done; echo"
        )
        wanted = mounting(bind(volume, "/dev"))
        wanted = replace(wanted, process=ProcessSpec(args=("true",), tty=True))
        code, output = await run_on(b, None, wanted, "sh", "-c", script)

        assert code == 0
        lines = output.replace("\r", "").split("\n")
        assert lines.count("type 88") == 3  # major 136: a terminal of devpts
        assert misplaced("\n".join(lines)) == []

    bench(body)


@pytest.mark.attack("A04")
def test_a04_an_image_with_its_own_console_gets_ours(bench: Run, tmp_path: Path) -> None:
    async def body(b: Bench) -> None:
        above = layer(
            tmp_path / "layers",
            link("dev/console", "/proc/sys/kernel/core_pattern"),
            link("dev/pts", "/proc"),
            link("dev/ptmx", "/proc/self/mem"),
        )
        wanted = replace(SPEC, process=ProcessSpec(args=("true",), tty=True))
        script = "tty; stat -c %F-%t /dev/console; readlink /dev/ptmx; stat -f -c %t /dev/pts"

        _, output = await run_on(b, above, wanted, "sh", "-c", script)

        assert output.split()[0] == "/dev/pts/0"
        assert "character special file-88" in output
        assert "pts/ptmx" in output.split()
        assert output.split()[-1] == "1cd1"

    bench(body)


# --- A05: writes through /proc ----------------------------------------------------------------


@pytest.mark.attack("A05")
def test_control_a_naive_runtime_writes_where_the_image_says(
    tmp_path: Path, treasure: Treasure
) -> None:
    root = naive.lay(tmp_path / "root", {"/proc": str(tmp_path / "fake")})
    (tmp_path / "fake/sys/kernel").mkdir(parents=True)
    (tmp_path / "fake/sys/kernel/shm_rmid_forced").symlink_to(treasure.file)

    naive.run(root, "true", sysctls=(("kernel.shm_rmid_forced", "1"),))

    assert treasure.file.read_text() == "1\n"


@pytest.mark.attack("A05")
@pytest.mark.attack("A06")
@pytest.mark.parametrize("name", ["proc", "sys", "dev"])
@pytest.mark.parametrize("how", ["host", "upwards", "inside", "dangling", "file", "loop"])
def test_a05_a06_an_image_without_a_real_proc_sys_or_dev_is_refused(
    bench: Run, tmp_path: Path, treasure: Treasure, name: str, how: str
) -> None:
    target = {
        "host": str(treasure.directory),
        "upwards": "../" * 12 + str(treasure.directory)[1:],
        "inside": "/tmp",
        "dangling": "/nowhere",
        "loop": name,
    }

    async def body(b: Bench) -> None:
        hostile = (entry(name), b"") if how == "file" else link(name, target[how])
        above = layer(tmp_path / "layers", hostile)
        wanted = replace(SPEC, sysctls={"kernel.shm_rmid_forced": "1"})

        with pytest.raises(TareError, match=name):
            await run_on(b, above, wanted, "true")

    bench(body)
    assert treasure.untouched()


@pytest.mark.attack("A05")
def test_a05_nothing_is_mounted_over_proc_even_by_other_names(
    bench: Run, tmp_path: Path, treasure: Treasure
) -> None:
    async def body(b: Bench) -> None:
        volume = open_directory(tmp_path / "volume")
        (volume / "into").symlink_to("/proc/sys")
        (volume / "attr").symlink_to("../proc/self/attr")
        above = layer(tmp_path / "layers", link("p", "/proc"), link("q", "sys/../proc/self"))
        refused = 0
        targets = [
            "/proc",
            "/proc/",
            "//proc/self/attr",
            "/proc/sys",
            "/./proc/sys",
            "/tmp/../proc",
        ]
        targets += [
            "/p",
            "/p/sys",
            "/p/self/attr",
            "/q/attr",
            "/q/net",
            "/v/into",
            "/v/into/kernel",
        ]
        targets += ["/v/attr", "/p/1/root/proc", "/dev/fd/../attr"]
        for target in targets:
            for wanted in (bind(treasure.directory, target), tmpfs(target)):
                with pytest.raises(TareError):
                    await run_on(b, above, mounting(bind(volume, "/v"), wanted), "true")
                refused += 1
        assert refused == 2 * len(targets)

    bench(body)
    assert treasure.untouched()


@pytest.mark.attack("A05")
@pytest.mark.parametrize("masked", [None, MASKED_PATHS])
def test_a05_settings_arrive_and_stay_in_the_container(
    bench: Run, tmp_path: Path, masked: tuple[str, ...] | None
) -> None:
    async def body(b: Bench) -> None:
        values = {
            "kernel.shm_rmid_forced": "1",
            "kernel.msgmax": "4242",
            "net.ipv4.ip_unprivileged_port_start": "77",
        }
        below = {name: Path("/proc/sys", name.replace(".", "/")) for name in values}
        before = {name: path.read_text() for name, path in below.items()}
        volume = open_directory(tmp_path / "volume")
        wanted = mounting(bind(volume, "/sys/fs/cgroup"), sysctls=values)
        wanted = replace(wanted, security=Security(masked_paths=masked))
        identity = await start_on(b, None, wanted, "sleep", "1000")

        pid = str(b.keeper.running[identity].pid)
        paths = [str(path) for path in below.values()]
        done = subprocess.run(
            ["nsenter", "--target", pid, "--net", "--ipc", "cat", *paths],
            capture_output=True,
            text=True,
            check=True,
        )

        assert done.stdout.split() == list(values.values())
        assert {name: path.read_text() for name, path in below.items()} == before

    bench(body)


# --- A06, A07: where mounts land --------------------------------------------------------------


@pytest.mark.attack("A06")
@pytest.mark.attack("A07")
def test_control_a_naive_runtime_mounts_and_makes_stubs_on_the_host(
    tmp_path: Path, treasure: Treasure
) -> None:
    links = {"/a": str(treasure.directory), "/proc": str(treasure.directory)}
    root = naive.lay(tmp_path / "root", links)
    source = open_directory(tmp_path / "source")

    _, _, by_proc = naive.run(root, "true", proc=True)
    _, _, by_bind = naive.run(root, "true", binds=((source, "/a/b"),))

    assert by_proc == [str(treasure.directory)]
    assert by_bind == [f"{treasure.directory}/b"]
    assert sorted(os.listdir(treasure.directory)) == ["b", "canary"]


# Names of the image (or of a volume at /v) that a mount's target goes through.
WAYS = {
    "host": "{host}",
    "upwards": "../../../../../../../../../../../..{host}",
    "self-root": "/proc/self/root{host}",
    "init-root": "/proc/1/root{host}",
    "cwd": "/proc/self/cwd{host}",
    "fd": "/proc/self/fd/5",
    "thread": "/proc/thread-self/fd/6",
    "chain": "/c0",
    "loop": "/loop",
    "file": "{host}/canary",
    "nowhere": "/nowhere/at/all",
}
INSIDE = {"inside": "/tmp", "clamped": "../../../../../../../../tmp", "chained": "/s0"}


def way_links(treasure: Treasure) -> dict[str, str]:
    """Every way by name, and the chains they need."""
    links = {n: t.format(host=treasure.directory) for n, t in {**WAYS, **INSIDE}.items()}
    links |= {f"c{n}": f"/c{n + 1}" for n in range(45)}
    links["c45"] = str(treasure.directory)
    links |= {f"s{n}": f"s{n + 1}" for n in range(10)}
    links["s10"] = "/tmp"
    return links


def mounted(output: str, mark: str) -> list[str]:
    """Where the thing with *mark* in its line of mountinfo is mounted."""
    return [line.split()[4] for line in output.splitlines() if mark in line]


@pytest.mark.attack("A06")
@pytest.mark.attack("A07")
@pytest.mark.parametrize("kind", ["directory", "file", "tmpfs", "generated"])
def test_a06_a_target_that_links_lead_out_stays_in_or_is_refused(
    bench: Run, tmp_path: Path, treasure: Treasure, kind: str
) -> None:
    source = open_directory(tmp_path / "marked")
    (source / "marked").touch()
    source_file = source / "marked"

    async def attempt(b: Bench, above: Path, volume: Path, target: str) -> list[str] | None:
        base = [bind(volume, "/v")]
        files: dict[str, str] = {}
        if kind == "generated":
            files[target] = str(source_file)
        elif kind == "tmpfs":
            base.append(replace(tmpfs(target), tmpfs_size=1236 << 10))
        else:
            base.append(bind(source if kind == "directory" else source_file, target))
        try:
            spec = mounting(*base)
            _, output = await run_on(b, above, spec, "cat", "/proc/self/mountinfo", files=files)
        except TareError:
            return None
        return mounted(output, "size=1236k" if kind == "tmpfs" else "/marked")

    async def body(b: Bench) -> None:
        links = way_links(treasure)
        above = layer(tmp_path / "layers", *(link(name, to) for name, to in links.items()))
        volume = open_directory(tmp_path / "volume")
        for name, to in links.items():
            (volume / name).symlink_to(to)
        for way in WAYS:
            for target in (f"/{way}", f"/{way}/x", f"/v/{way}/x/y"):
                landed = await attempt(b, above, volume, target)
                assert landed is None or len(landed) == 1, (target, landed)
                assert treasure.untouched(), target
        for way in INSIDE:
            for target in (f"/{way}/x", f"/v/{way}/x") if kind != "generated" else (f"/{way}/x",):
                assert await attempt(b, above, volume, target) == ["/tmp/x"], target

    bench(body)
    assert treasure.untouched()


@pytest.mark.attack("A06")
@pytest.mark.parametrize("name", ["etc", "etc/hosts", "etc/resolv.conf", "etc/hostname"])
def test_a06_files_of_the_engine_do_not_land_on_the_host(
    bench: Run, tmp_path: Path, treasure: Treasure, name: str
) -> None:
    async def body(b: Bench) -> None:
        ours = tmp_path / "ours"
        ours.write_text("ours\n")
        files = {f"/etc/{f}": str(ours) for f in ("hosts", "resolv.conf", "hostname")}
        for target in (treasure.directory, treasure.file, Path("/proc/self/environ")):
            above = layer(tmp_path / "layers", link(name, str(target)))
            try:
                _, output = await run_on(b, above, SPEC, "cat", "/etc/hosts", files=files)
            except TareError:
                continue
            assert output == "ours\n"

    bench(body)
    assert treasure.untouched()


@pytest.mark.attack("A06")
@pytest.mark.attack("A07")
@pytest.mark.parametrize("kind", ["directory", "file", "tmpfs", "dev"])
def test_a07_a_volume_swapped_before_the_mount_leaves_nothing_on_the_host(
    bench: Run, tmp_path: Path, treasure: Treasure, stop_at: Stops, kind: str
) -> None:
    volume = open_directory(tmp_path / "volume")
    open_directory(volume / "sub")
    source = open_directory(tmp_path / "marked")
    (source / "marked").touch()
    swapped = threading.Event()

    def swap(_: int) -> None:
        # The volume is there by now; what is mounted below it, or below /dev, is not.
        if (volume / "sub").is_symlink():
            return
        (volume / "sub").rename(volume / "old")
        (volume / "sub").symlink_to(treasure.directory)
        swapped.set()

    stop_at("before-filesystem" if kind in ("tmpfs", "dev") else "before-bind", swap)
    top = "/dev/v" if kind == "dev" else "/v"
    wanted = {
        "directory": bind(source, f"{top}/sub/new/deep"),
        "file": bind(source / "marked", f"{top}/sub/new"),
        "tmpfs": tmpfs(f"{top}/sub/new/deep"),
        "dev": tmpfs(f"{top}/sub/new"),
    }

    async def body(b: Bench) -> None:
        with pytest.raises(TareError):
            await run_on(b, None, mounting(bind(volume, top), wanted[kind]), "true")

    bench(body)
    assert swapped.is_set()
    assert treasure.untouched()


@pytest.mark.attack("A07")
def test_a07_tmpfs_below_a_device_volume_makes_nothing_through_its_links(
    bench: Run, tmp_path: Path, treasure: Treasure
) -> None:
    volume = open_directory(tmp_path / "volume")
    (volume / "out").symlink_to("/tmp")
    (volume / "fd").symlink_to("/proc/self/fd")

    async def body(b: Bench) -> None:
        spec = mounting(bind(volume, "/dev/v"), bind(treasure.directory, "/t", read_only=True))
        for number_ in range(3, 20):
            wanted = replace(spec, mounts=(*spec.mounts, tmpfs(f"/dev/v/fd/{number_}/made")))
            with pytest.raises(TareError):
                await run_on(b, None, wanted, "true")
        # A plain link stays in the container.
        wanted = replace(spec, mounts=(*spec.mounts, tmpfs("/dev/v/out/landed")))
        code, _ = await run_on(b, None, wanted, "test", "-d", "/tmp/landed")
        assert code == 0

    bench(body)
    assert treasure.untouched()
    for directory in (tmp_path, *tmp_path.glob("[0-9a-f]*/*")):
        assert not (directory / "made").exists()


AT_FDCWD, RENAME_EXCHANGE = -100, 2
_RENAMEAT2 = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)


@pytest.mark.attack("A06")
@pytest.mark.attack("A07")
def test_a07_a_volume_that_never_stands_still_does_not_win(
    bench: Run, tmp_path: Path, treasure: Treasure
) -> None:
    volume = open_directory(tmp_path / "volume")
    open_directory(volume / "sub")
    (volume / "trap").symlink_to(treasure.directory)
    source = open_directory(tmp_path / "marked")
    ending = threading.Event()

    exchange = Syscall("renameat2", number(x86_64=316, aarch64=276), *_RENAMEAT2)
    sub, trap = (str(volume / name).encode() for name in ("sub", "trap"))

    def turn() -> None:
        while not ending.wait(0.0002):
            exchange(AT_FDCWD, sub, AT_FDCWD, trap, RENAME_EXCHANGE)

    async def body(b: Bench) -> None:
        thread = threading.Thread(target=turn)
        thread.start()
        try:
            for number in range(60):
                wanted = bind(source, f"/v/sub/new{number}/deep")
                try:
                    await run_on(b, None, mounting(bind(volume, "/v"), wanted), "true")
                except TareError:
                    continue
        finally:
            ending.set()
            await asyncio.to_thread(thread.join)

    bench(body)
    assert treasure.untouched()


# --- A08: control groups ----------------------------------------------------------------------

CGROUP_ESCAPE = (
    "mkdir -p /tmp/c;"
    " for k in memory pids cpu devices freezer blkio cpuset; do"
    " mount -t cgroup -o $k none /tmp/c 2>/dev/null || continue;"
    # Written is what was there: where that succeeds, the host is none the worse.
    " cat /tmp/c/release_agent > /tmp/was 2>/dev/null &&"
    " (tr -d '\\n' < /tmp/was > /tmp/c/release_agent) 2>/dev/null && echo writable $k;"
    " umount /tmp/c; done; echo end"
)
CGROUP_WRITES = (
    "cd /sys/fs/cgroup || exit; for f in release_agent */release_agent */notify_on_release"
    " */cgroup.procs */tasks */devices.allow */memory.limit_in_bytes */cgroup.clone_children"
    " cgroup.procs cgroup.subtree_control memory.max; do"
    " [ -e $f ] || continue; (echo 1 > $f) 2>/dev/null && echo wrote $f; done;"
    " for d in */ .; do mkdir $d/x 2>/dev/null && echo made $d; done; echo end"
)


@pytest.mark.attack("A08")
def test_control_a_naive_runtime_lets_release_agents_be_written(tmp_path: Path) -> None:
    if not Path("/sys/fs/cgroup/memory/release_agent").exists():
        pytest.skip("not applicable: no version 1 hierarchy has a release agent on this host")

    _, output, _ = naive.run(naive.lay(tmp_path / "root", {}), "sh", "-c", CGROUP_ESCAPE)

    assert "writable memory" in output


@pytest.mark.attack("A08")
@pytest.mark.parametrize("name", ["standard", "compat", "sys-admin", "user"])
def test_a08_control_groups_of_the_host_are_not_to_be_had(bench: Run, name: str) -> None:
    security = {
        "standard": Security(),
        "user": Security(),
        "compat": Security(profile=SecurityProfile.DOCKER_COMPAT),
        "sys-admin": Security(cap_add=("SYS_ADMIN", "DAC_OVERRIDE"), seccomp="unconfined"),
    }[name]

    async def body(b: Bench) -> None:
        user = "1000" if name == "user" else ""
        wanted = replace(SPEC, security=security, process=ProcessSpec(args=("x",), user=user))
        for script in (CGROUP_ESCAPE, CGROUP_WRITES):
            _, output = await run_on(b, None, wanted, "sh", "-c", script)
            assert output == "end\n"
        if name != "sys-admin":
            script = "for f in -UrmC -Ur -m -C; do unshare $f true 2>/dev/null && echo $f; done"
            _, output = await run_on(b, None, wanted, "sh", "-c", f"{script}; echo end")
            assert output == "end\n"
        _, output = await run_on(b, None, wanted, "cat", "/proc/self/cgroup")
        own = [line for line in output.splitlines() if not line.endswith(":/")]
        assert not [line for line in own if "tare" in line], own

    bench(body)


# --- A09: control sockets ---------------------------------------------------------------------


@pytest.mark.attack("A09")
def test_a09_the_engines_sockets_have_paths_that_only_it_reaches(bench: Run) -> None:
    async def body(b: Bench) -> None:
        shared = replace(SPEC, namespaces=Namespaces(network="host"))
        _, table = await run_on(b, None, shared, "cat", "/proc/net/unix")
        names = [line.split()[7] for line in table.splitlines()[1:] if len(line.split()) > 7]
        ours = [name for name in names if str(b.run_dir) in name]

        assert ours, "the host's table is not the one that was read"
        assert not [name for name in names if name.startswith("@") and "tare" in name]
        for name in ours:
            assert stat.S_IMODE(os.stat(name).st_mode) & 0o077 == 0, name
            assert stat.S_IMODE(os.stat(Path(name).parent).st_mode) == 0o700, name
            # The container's root, as the host sees it, and anybody else.
            for uid in ("1610612736", "65534"):
                code = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
                done = subprocess.run(
                    ["setpriv", "--reuid", uid, "--clear-groups", sys.executable, "-c", code, name],
                    capture_output=True,
                    text=True,
                    check=False,
                )
                assert done.returncode != 0 and "PermissionError" in done.stderr

    bench(body)


# --- A10: capabilities ------------------------------------------------------------------------

STANDARD = 0x800405FB
CAPS = "grep -E '^Cap' /proc/self/status"


def sets(output: str) -> dict[str, int]:
    """The five sets of a status file."""
    pairs = (line.split() for line in output.splitlines() if line.startswith("Cap"))
    return {name[3:6]: int(value, 16) for name, value in pairs}


@pytest.mark.attack("A10")
def test_control_a_naive_runtime_gives_every_capability(tmp_path: Path) -> None:
    root = naive.lay(tmp_path / "root", {})

    _, output, _ = naive.run(root, "sh", "-c", CAPS, proc=True)

    assert sets(output)["Eff"] & confine.mask(["SYS_ADMIN", "NET_RAW", "MKNOD"])


@pytest.mark.attack("A10")
@pytest.mark.parametrize(
    ("security", "bounding"),
    [
        (Security(), STANDARD),
        (Security(cap_add=("NET_ADMIN",)), STANDARD | 1 << 12),
        (Security(cap_drop=("CHOWN",)), STANDARD & ~1),
        (Security(cap_drop=("ALL",)), 0),
        (Security(cap_drop=("ALL",), cap_add=("KILL",)), 1 << 5),
        (Security(no_new_privileges=False), STANDARD),
        (Security(privileged=True), -1),
    ],
)
def test_a10_every_program_has_what_was_given_and_no_user_has_any(
    bench: Run, security: Security, bounding: int
) -> None:
    async def body(b: Bench) -> None:
        wanted = replace(SPEC, security=security)
        # Nobody gives what the engine itself was not given.
        full = sets(Path("/proc/self/status").read_text())["Bnd"]
        bound = full if bounding < 0 else bounding
        identity = await start_on(b, None, wanted, "sleep", "1000")
        for user in ("", "1000", "0:1000", "1000:0", "nobody"):
            program_ = ProcessSpec(args=("x",), user=user)
            first = await run_on(b, None, replace(wanted, process=program_), "sh", "-c", CAPS)
            second = await b.execute(identity, "sh", "-c", CAPS, user=user)
            own = bound if user in ("", "0:1000") else 0
            expected = {"Inh": 0, "Prm": own, "Eff": own, "Bnd": bound, "Amb": 0}
            assert sets(first[1]) == expected, user
            assert sets(second[1]) == expected, user

    bench(body)


@pytest.mark.attack("A10")
@pytest.mark.parametrize("nnp", [True, False])
def test_a10_capabilities_of_a_file_give_nothing_that_is_not_bounded(
    bench: Run, tmp_path: Path, busybox_layer: Path, nnp: bool
) -> None:
    del busybox_layer
    # linux/capability.h: revision 2, effective; CAP_NET_RAW permitted.
    value = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
    headers = {"SCHILY.xattr.security.capability": value.decode("latin-1")}
    program_ = Path(shutil.which("busybox") or "").read_bytes()

    async def body(b: Bench) -> None:
        above = layer(tmp_path / "layers", (entry("grep", pax_headers=headers), program_))
        process = ProcessSpec(args=("x",), user="1000")
        wanted = replace(SPEC, security=Security(no_new_privileges=nnp), process=process)
        try:
            _, output = await run_on(b, above, wanted, "/grep", "^Cap", "/proc/self/status")
        except TareError as error:
            assert error.exit_code == 126
            return
        assert sets(output)["Eff"] == sets(output)["Prm"] == 0

    bench(body)


# --- A11: who it runs as ----------------------------------------------------------------------

PASSWD = (
    "root:x:0:0:root:/root:/bin/sh\n1000:x:0:0:trap:/root:/bin/sh\n"
    "app:x:1000:1001::/home:/bin/sh\nbig:x:4294967296:0::/:\nbad:x:1001:4294967295::/:\n"
    "hex:x:0x0:0::/:\n٣:x:٠:0::/:\n"
    f"long:x:1002:1002:{'x' * 300_000}:/:\nlast:x:1003:1003::/:/bin/sh\n"
)
GROUP = "root:x:0:\nmore:x:1005:app,long\nshut:x:1006:app\nroot2:x:0:1000\nbig:x:4294967296:app\n"


def accounts(directory: Path) -> Path:
    """An image with hostile account files, and a file closed to one group."""
    return layer(
        directory,
        (entry("etc/passwd", mode=0o644), PASSWD.encode()),
        (entry("etc/group", mode=0o644), GROUP.encode()),
        (entry("closed", mode=0o604, gid=1006), b"secret\n"),
    )


@pytest.mark.attack("A11")
def test_a11_what_is_no_user_is_refused_by_run_and_exec(bench: Run, tmp_path: Path) -> None:
    bad = ["4294967295", "4294967296", "-1:0", "2147483648", "0x0", " 1000", "1000 ", "+1", "1e3"]
    bad += ["١", "big", "bad", "hex", "ghost", "0:ghost", "0:4294967295", "0:-1", "1000:", "65536"]
    bad += ["0:65536", "00000000000", "0:0:0", "1000:big"]

    async def body(b: Bench) -> None:
        above = accounts(tmp_path / "layers")
        identity = await start_on(b, above, SPEC, "sleep", "1000")
        for user in bad:
            wanted = replace(SPEC, process=ProcessSpec(args=("x",), user=user))
            with pytest.raises(InvalidError):
                print(user, await run_on(b, above, wanted, "id"))
            with pytest.raises(InvalidError):
                print(user, await b.execute(identity, "id", user=user))

    bench(body)


@pytest.mark.attack("A11")
def test_a11_ids_and_groups_are_those_of_the_image_and_no_others(
    bench: Run, tmp_path: Path
) -> None:
    expected = {
        "app": "1000 1001 1001 1005 1006",
        "1000": "1000 1001 1001 1005 1006",  # a number is never the name that is mapped to root
        "1000:1001": "1000 1001 1001",
        "long": "1002 1002 1002 1005",
        "last": "1003 1003 1003",
        "1000:more": "1000 1005 1005",
        "4242": "4242 0 0",  # as Docker: without an entry the group is 0
        "": "0 0 0",
    }
    script = "echo $(id -u) $(id -g) $(id -G | tr ' ' '\\n' | sort -nu)"

    async def body(b: Bench) -> None:
        above = accounts(tmp_path / "layers")
        identity = await start_on(b, above, SPEC, "sleep", "1000")
        for user, ids in expected.items():
            wanted = replace(SPEC, process=ProcessSpec(args=("x",), user=user))
            assert await run_on(b, above, wanted, "sh", "-c", script) == (0, f"{ids}\n"), user
            assert await b.execute(identity, "sh", "-c", script, user=user) == (0, f"{ids}\n"), user

        # Closed to a group is closed to its members: no dropping of the group helps.
        inside = "cat /closed 2>/dev/null; unshare -Ur cat /closed 2>/dev/null; echo end"
        wanted = replace(SPEC, process=ProcessSpec(args=("x",), user="app"))
        assert await run_on(b, above, wanted, "sh", "-c", inside) == (0, "end\n")
        wanted = replace(SPEC, process=ProcessSpec(args=("x",), user="last"))
        assert await run_on(b, above, wanted, "sh", "-c", inside) == (0, "secret\nend\n")

    bench(body)
