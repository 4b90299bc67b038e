"""A21, A22, A24, A25: files of a container on their way in and out, volumes, and who sees them.

A real engine, driven by the real client: these are attacks on what the daemon does with a
container's files, not on how a sandbox is made.
"""

from __future__ import annotations

import gzip
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.engines import Engine
from harness.images import docker_archive, lay_busybox
from security import naive
from security.conftest import Treasure
from tare.client.document import Json
from tare.client.sdk import connect
from tare.engine.copying import _live
from tare.errors import ConflictError, InvalidError, UnsupportedError
from tare.kernel import process
from tare.model.record import Record
from tare.model.spec import ContainerSpec, ProcessSpec

pytestmark = [pytest.mark.system, pytest.mark.needs("root", "overlay", "cgroup", "busybox")]

TROJAN = f"/run/tare-trojan-{os.getpid()}"
# What host-side code that looks into a container was seen to load or run (CVE-2019-14271,
# CVE-2026-41567): decompressors, tar, NSS, the interpreter's own modules, the preload list.
PROGRAMS = ("tar", "gzip", "gunzip", "zcat", "unpigz", "xz", "unxz", "zstd", "ps", "id", "getent")
TEXTS = {
    "etc/ld.so.preload": "/usr/lib/evil.so\n",
    "etc/nsswitch.conf": "passwd: evil\ngroup: evil\n",
    "usr/lib/python3.11/encodings/__init__.py": f"open({TROJAN!r}, 'w')\n",
    "usr/lib/python3/dist-packages/sitecustomize.py": f"open({TROJAN!r}, 'w')\n",
    "usr/lib/evil.so": "\x7fELF",
    "usr/lib/x86_64-linux-gnu/libnss_evil.so.2": "\x7fELF",
}


def lay_trojans(root: Path) -> Path:
    lay_busybox(root)
    for name in PROGRAMS:
        (root / "bin" / name).unlink(missing_ok=True)
        (root / "bin" / name).write_text(f"#!/bin/sh\n: > {TROJAN}\n")
        (root / "bin" / name).chmod(0o755)
    for name, text in TEXTS.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    suid = root / "bin/suid"
    suid.write_bytes((root / "bin/busybox").read_bytes())
    suid.chmod(0o4755)
    return root


@pytest.fixture(scope="module")
def engine(
    session_directory: Path, busybox_archive: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    """An engine with `busybox` and `trojan`."""
    found = Engine(session_directory / "files")
    root = lay_trojans(tmp_path_factory.mktemp("trojan") / "root")
    config: dict[str, object] = {"Cmd": ["sh"], "Env": ["PATH=/bin"]}
    trojan = docker_archive(root, root.parent / "trojan.tar", "trojan:latest", config)
    try:
        for archive in (busybox_archive, trojan):
            found.out("load", "-q", "-i", str(archive))
        yield found
    finally:
        left = found.end()
    assert left == []


@pytest.fixture
def running(engine: Engine) -> Iterator[list[str]]:
    """Names of containers to be removed afterwards."""
    names: list[str] = []
    yield names
    if names:
        engine.tare("rm", "-f", *names)


def begin(engine: Engine, running: list[str], *words: str) -> str:
    name = f"f{os.urandom(4).hex()}"
    engine.out("run", "-d", "--name", name, *words)
    running.append(name)
    return name


# --- A21 ---------------------------------------------------------------------------------------


@pytest.mark.attack("A21")
def test_a21_nothing_of_the_container_runs_or_loads_on_the_host(
    engine: Engine, running: list[str], tmp_path: Path
) -> None:
    name = begin(engine, running, "trojan", "sleep", "1000")
    plain, packed = tmp_path / "in.tar", tmp_path / "in.tar.gz"
    with tarfile.open(plain, "w") as archive:
        archive.addfile(tarfile.TarInfo("empty"), io.BytesIO())
    packed.write_bytes(gzip.compress(plain.read_bytes()))

    for line in (
        ("cp", f"{name}:/etc", str(tmp_path / "out")),
        ("cp", str(packed), f"{name}:/root/"),
        ("export", "-o", str(tmp_path / "all.tar"), name),
        ("diff", name),
        ("top", name),
        ("stats", "--no-stream", name),
        ("commit", name, "trojan:again"),
        ("exec", "-u", "nobody", name, "true"),
        ("stop", "-t", "0", name),
        ("cp", f"{name}:/etc", str(tmp_path / "stopped")),
        ("diff", name),
        ("export", "-o", str(tmp_path / "stopped.tar"), name),
    ):
        engine.out(*line)
    engine.out("start", name)
    inside = engine.tare("exec", name, "ls", TROJAN)

    assert not os.path.lexists(TROJAN)
    assert inside.returncode != 0  # it did not run inside on the engine's behalf either
    for pid in (engine.daemon(), engine.keeper()):
        mapped = Path(f"/proc/{pid}/maps").read_text()
        assert "evil" not in mapped
        assert os.readlink(f"/proc/{pid}/root") == "/"


@pytest.mark.attack("A21")
def test_a21_control_a_helper_that_enters_by_chroot_runs_the_trojan(tmp_path: Path) -> None:
    root = lay_trojans(tmp_path / "root")

    naive.run(root, "tar", "c", "/etc")

    assert (root / TROJAN.lstrip("/")).exists()


# --- A22 ---------------------------------------------------------------------------------------


@pytest.mark.attack("A22")
@pytest.mark.parametrize("place", ["/tmp/d", "/v/d"])
def test_a22_a_directory_swapped_for_a_link_leads_no_copy_out(
    engine: Engine, running: list[str], treasure: Treasure, tmp_path: Path, place: str
) -> None:
    volume = tmp_path / "volume"
    volume.mkdir(mode=0o777)
    (tmp_path / "loot").write_text("from the client\n")
    flip = (
        f"while :; do mkdir {place} && echo mine > {place}/canary; "
        f"rm -r {place}; ln -s {treasure.directory} {place}; rm {place}; done"
    )
    name = begin(engine, running, "-v", f"{volume}:/v", "busybox", "sh", "-c", flip)

    answers = []
    for _ in range(40):
        answers.append(engine.tare("cp", f"{name}:{place}/canary", "-"))
        answers.append(engine.tare("cp", f"{name}:{place}", "-"))
        answers.append(engine.tare("cp", str(tmp_path / "loot"), f"{name}:{place}/"))

    assert treasure.untouched()
    assert not any("treasure\n" in answer.stdout for answer in answers)
    assert any(answer.returncode == 0 for answer in answers)  # both sides of the race were met
    assert any(answer.returncode != 0 for answer in answers)


@pytest.mark.attack("A22")
@pytest.mark.parametrize("alive", [True, False])
def test_a22_links_in_the_middle_and_at_the_end_stay_inside(
    engine: Engine, running: list[str], treasure: Treasure, tmp_path: Path, alive: bool
) -> None:
    (tmp_path / "loot").write_text("from the client\n")
    script = (
        f"ln -s {treasure.directory} /d; ln -s ../../../../../..{treasure.directory} /e; "
        f"ln -s {treasure.file} /f; ln -s /proc/1/root /g; ln -s /etc /h; sleep 1000"
    )
    name = begin(engine, running, "busybox", "sh", "-c", f"{script} & touch /ready; wait")
    engine.out("exec", name, "sh", "-c", "until [ -L /h ]; do :; done")
    if not alive:
        engine.out("stop", "-t", "0", name)

    reads = [
        engine.tare("cp", *follow, f"{name}:{path}", "-")
        for path in ("/d/canary", "/e/canary", "/f", "/d/", f"/g{treasure.file}")
        for follow in ((), ("-L",))
    ]
    inside = engine.tare("cp", f"{name}:/h/passwd", "-")
    for path in ("/d/", "/e/", "/f", f"/g{treasure.directory}/"):
        engine.tare("cp", str(tmp_path / "loot"), f"{name}:{path}")

    assert not any("treasure\n" in answer.stdout for answer in reads)
    assert treasure.untouched()
    assert "root:x:0:0" in inside.stdout  # links are followed, within the container


@pytest.mark.attack("A22")
def test_a22_a_process_that_has_taken_the_containers_pid_is_not_its_root() -> None:
    spec = ContainerSpec(image="b", image_id="b", process=ProcessSpec(args=("true",)))
    ended = Record(id="0" * 64, name="x", spec=spec, created_ns=0, pid=os.getpid(), pid_start=1)

    with pytest.raises(ConflictError):
        _live(ended)

    same = replace(ended, pid_start=process.start_time(os.getpid()))
    with _live(same) as root:
        assert os.path.samestat(os.fstat(root.fileno()), os.stat("/"))


@pytest.mark.attack("A22")
def test_a22_control_a_copy_by_path_is_led_out(tmp_path: Path, treasure: Treasure) -> None:
    root = naive.lay(tmp_path / "root", {"/d": str(treasure.directory)})

    assert (root / "d/canary").read_text() == "treasure\n"


# --- A24 ---------------------------------------------------------------------------------------


def declaring(tmp_path: Path, volume: str, tag: str) -> Path:
    root = tmp_path / "root"
    if not root.exists():
        lay_busybox(root)
    config: dict[str, object] = {"Cmd": ["sh"], "Env": ["PATH=/bin"], "Volumes": {volume: {}}}
    return docker_archive(root, tmp_path / "declaring.tar", tag, config)


@pytest.mark.attack("A24")
def test_a24_volumes_that_an_image_declares_stay_inside(
    engine: Engine, treasure: Treasure, tmp_path: Path
) -> None:
    wanted = (
        f"/../../../../../..{treasure.directory}", "/proc", "/", "..//x", "/sys/firmware", "/a\n/b",
    )  # fmt: skip
    for number, volume in enumerate(wanted):
        tag = f"declares{number}:latest"
        loaded = engine.tare("load", "-q", "-i", str(declaring(tmp_path, volume, tag)))
        if loaded.returncode != 0:
            continue
        look = "ls -d /proc/self && ! [ -w /proc/sys/kernel/hostname ] && ls /sys/firmware"
        done = engine.tare("run", "--rm", tag, "sh", "-c", look)
        # Refused with a reason, or run behind all its walls.
        assert done.returncode != 0 or done.stdout == "/proc/self\n", (volume, done)
        assert "Traceback" not in done.stderr

    assert treasure.untouched()


@pytest.mark.attack("A24")
@pytest.mark.parametrize(
    "words",
    [
        ("-v", "a/b:/y"),
        ("-v", f"{'n' * 300}:/y"),
        ("-v", "/tmp:/"),
        ("-v", "/tmp:/proc"),
        ("--mount", "type=volume,source=../x,target=/y"),
        ("--mount", "type=volume,source=v,target=/y,volume-subpath=../../etc"),
        ("--mount", "type=bind,source=relative,target=/y"),
    ],
)
def test_a24_names_and_targets_of_volumes_are_no_paths(
    engine: Engine, words: tuple[str, str]
) -> None:
    before = sorted(os.listdir(engine.state))

    done = engine.tare("run", "--rm", *words, "busybox", "ls", "/y")

    assert done.returncode == 125, done
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert sorted(os.listdir(engine.state)) == before


@pytest.mark.attack("A24")
@pytest.mark.parametrize("source", ["../../../../tare-a24", ".", "..", "a/../../b", "x\0y"])
def test_a24_the_daemon_takes_no_relative_source(engine: Engine, source: str) -> None:
    # The client makes "./x" absolute, as Docker's does; others send what they like.
    with connect(f"unix://{engine.run_dir}/tare.sock") as client:
        body: dict[str, Json] = {"Image": "busybox", "HostConfig": {"Binds": [f"{source}:/y"]}}
        with pytest.raises((InvalidError, UnsupportedError)):
            client._daemon.call("POST", "/containers/create", body)

    assert not os.path.lexists("/tare-a24")


@pytest.mark.attack("A24")
def test_a24_a_target_that_climbs_ends_at_the_containers_root(
    engine: Engine, treasure: Treasure, tmp_path: Path
) -> None:
    target = f"/../../../../../..{treasure.directory}"

    done = engine.tare(
        "run", "--rm", "-v", f"{tmp_path}:{target}", "busybox", "ls", str(treasure.directory)
    )

    assert done.returncode == 125 or "treasure" in done.stdout, done  # its name below tmp_path
    assert treasure.untouched()


@pytest.mark.attack("A24")
def test_a24_control_a_naive_runtime_mounts_where_the_target_says(
    tmp_path: Path, treasure: Treasure
) -> None:
    root = naive.lay(tmp_path / "root", {})
    above = "/.." * (len(root.parts) - 1)

    _, _, outside = naive.run(root, "true", binds=[(tmp_path, f"{above}{treasure.directory}")])

    assert str(treasure.directory) in outside


# --- A25 ---------------------------------------------------------------------------------------


@pytest.mark.attack("A25")
def test_a25_what_a_container_mounts_is_not_mounted_on_the_host(
    engine: Engine, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    (shared / "below").mkdir(parents=True)
    script = "mount -t tmpfs none /m/below && touch /m/below/inside && ls /m/below"

    done = engine.tare(
        "run", "--rm", "--cap-add", "SYS_ADMIN", "--security-opt", "seccomp=unconfined",
        "-v", f"{shared}:/m", "busybox", "sh", "-c", script,
    )  # fmt: skip

    assert done.stdout == "inside\n", done
    assert os.listdir(shared / "below") == []
    assert str(shared) not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.attack("A25")
def test_a25_what_the_host_mounts_later_does_not_appear_inside(
    engine: Engine, running: list[str], tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    (shared / "below").mkdir(parents=True)
    late = f"mount -t tmpfs none {shared}/below && touch {shared}/below/later"
    # A peer group, as systemd makes of all mounts, whatever this host does.
    subprocess.run(["mount", "--bind", str(shared), str(shared)], check=True)
    try:
        subprocess.run(["mount", "--make-shared", str(shared)], check=True)
        private = begin(engine, running, "-v", f"{shared}:/m", "busybox", "sleep", "1000")
        slave = begin(engine, running, "-v", f"{shared}:/m:rslave", "busybox", "sleep", "1000")
        subprocess.run(["sh", "-c", late], check=True)
        seen = [engine.out("exec", name, "ls", "/m/below") for name in (private, slave)]
    finally:
        subprocess.run(["umount", "-R", str(shared)], check=True)

    assert seen == ["", "later"]  # the second asked for it, and shows that there was something


@pytest.mark.attack("A25")
@pytest.mark.parametrize("uid", ["65534", "1000"])
def test_a25_other_users_of_the_host_see_nothing_of_the_engine(
    engine: Engine, running: list[str], session_directory: Path, uid: str
) -> None:
    name = begin(engine, running, "-e", "TOKEN=hunter2", "trojan", "sleep", "1000")
    engine.out("exec", name, "sh", "-c", "cp /bin/busybox /tmp/own; chmod 4755 /tmp/own /etc/hosts")
    (identity,) = (shown.id for shown in engine.all().values() if shown.name.endswith(name))
    as_other = ["setpriv", "--reuid", uid, "--regid", uid, "--clear-groups", "--inh-caps=-all"]

    def other(*words: str) -> subprocess.CompletedProcess[str]:
        # By a shell of that user: setpriv(1) itself keeps its capabilities until its exec.
        return subprocess.run(
            [*as_other, "sh", "-c", 'exec "$@"', "sh", *words],
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    listed = other("find", str(engine.state), str(engine.run_dir), "-mindepth", "1")
    read = [
        other("cat", str(path))
        for path in (
            engine.state / "state.db",
            engine.state / "state.db-wal",
            engine.state / "images.db",
            engine.run_dir / "keeper.log",
            engine.run_dir / "workloads" / identity / "keeper.json",
            engine.state / "workloads" / identity / "log",
        )
    ]
    workload = engine.state / "workloads" / identity
    ran = [other(str(workload / path)) for path in ("upper/tmp/own", "files/hosts")]
    reachable = session_directory / "own"
    shutil.copy(workload / "upper/tmp/own", reachable)
    reachable.chmod(0o755)
    runs = other(str(reachable))
    control = other("find", str(engine.directory.parent), "-mindepth", "1", "-maxdepth", "1")

    assert control.stdout  # that user can look where there is something to see,
    assert "denied" not in runs.stderr  # and run the same file where it may
    assert listed.stdout == ""
    assert all(answer.returncode != 0 and not answer.stdout for answer in read), read
    assert all(answer.returncode != 0 and "denied" in answer.stderr for answer in ran), ran
