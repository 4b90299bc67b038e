"""Attacks A01 to A07 on the making of a container, tried by hostile images and volumes.

What can be tried on a runtime without walls (`security.naive`) is tried so too: a payload that
does not win there would prove nothing.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import platform
import subprocess
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
from tare.errors import TareError
from tare.kernel.libc import Syscall, number
from tare.model.spec import (
    ContainerSpec,
    Mount,
    MountKind,
    ProcessSpec,
    Security,
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
