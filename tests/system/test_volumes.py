"""Volumes on real containers: filled, shared, refused, limited, lost, exported, brought back."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import tare
from harness import images
from harness.canaries import mounts_below
from harness.engines import Engine
from harness.programs import program_image
from tare.errors import MissingError

pytestmark = [pytest.mark.system, pytest.mark.needs("root", "overlay", "cgroup", "busybox")]


@pytest.fixture(scope="module")
def stocked(session_directory: Path) -> Path:
    """An image with something at /data: owners, modes, a link, a hard link, an attribute."""
    root = images.lay_busybox(session_directory / "stocked-root")
    data = root / "data"
    (data / "sub").mkdir(parents=True)
    (data / "hello").write_text("hi")
    os.link(data / "hello", data / "sub/same")
    (data / "link").symlink_to("/etc/passwd")
    (data / "tool").write_text("#!/bin/sh\n")
    (data / "tool").chmod(0o4711)
    data.chmod(0o2750)
    (root / "escape").symlink_to("/etc")
    config: dict[str, object] = {"Cmd": ["sh"], "Env": ["PATH=/bin"], "Volumes": {"/anon": {}}}
    return images.docker_archive(root, session_directory / "stocked.tar", "stocked:latest", config)


@pytest.fixture(scope="module")
def engine(session_directory: Path, stocked: Path) -> Iterator[Engine]:
    found = Engine(session_directory / "volumes")
    try:
        found.out("load", "-q", "-i", str(stocked))
        yield found
    finally:
        found.stop()
        assert mounts_below(found.directory) == []


@pytest.fixture(autouse=True)
def tidy(engine: Engine) -> Iterator[None]:
    yield
    ids = engine.out("ps", "-aq").split()
    if ids:
        engine.out("rm", "-f", *ids)
    engine.out("volume", "prune", "-a", "-f")


def run(engine: Engine, *words: str) -> str:
    return engine.out("run", "--rm", "--network", "none", *words)


def names(engine: Engine, *words: str) -> list[str]:
    return engine.out("volume", "ls", "-q", *words).split()


def test_a_volume_is_filled_once_from_the_image_with_owners_modes_and_links(
    engine: Engine,
) -> None:
    seen = run(
        engine, "-v", "db:/data", "stocked",
        "sh", "-c", "stat -c '%n %a %u %h %F' /data /data/* /data/sub/same; readlink /data/link",
    )  # fmt: skip
    run(engine, "-v", "db:/data", "stocked", "rm", "/data/hello")
    later = run(engine, "-v", "db:/data", "stocked", "ls", "/data")

    assert "/data 2750 0 3 directory" in seen
    assert "/data/hello 644 0 2 regular file" in seen
    assert "/data/sub/same 644 0 2 regular file" in seen
    assert "/data/tool 4711 0 1 regular file" in seen
    assert seen.splitlines()[-1] == "/etc/passwd"
    assert "hello" not in later.split()


def test_what_is_written_is_the_insides_id_on_disk_and_another_block_sees_the_same(
    engine: Engine,
) -> None:
    run(engine, "-v", "db:/v", "stocked", "sh", "-c", "echo x > /v/f; chown 33:44 /v/f")

    seen = run(engine, "-v", "db:/v", "stocked", "stat", "-c", "%u:%g", "/v/f")
    on_disk = os.stat(engine.state / "volumes/db/_data/f")

    assert seen == "33:44"
    assert (on_disk.st_uid, on_disk.st_gid) == (33, 44)


def test_nocopy_read_only_and_a_subpath(engine: Engine) -> None:
    empty = run(engine, "-v", "one:/data:nocopy", "stocked", "ls", "-A", "/data")
    run(engine, "-v", "two:/data", "stocked", "true")
    read_only = engine.tare(
        "run", "--rm", "--network", "none", "-v", "two:/data:ro", "stocked", "touch", "/data/x"
    )
    below = run(
        engine, "--mount", "type=volume,src=two,dst=/s,volume-subpath=sub", "stocked", "ls", "/s"
    )
    missing = engine.tare(
        "run", "--rm", "--network", "none",
        "--mount", "type=volume,src=two,dst=/s,volume-subpath=nowhere", "stocked", "true",
    )  # fmt: skip

    assert empty == ""
    assert (read_only.returncode, "Read-only file system" in read_only.stderr) == (1, True)
    assert below == "same"
    assert missing.returncode == 125
    assert "subpath 'nowhere' of volume two: it does not exist" in missing.stderr


@pytest.mark.attack("A24")
def test_a_subpath_that_is_a_link_leads_nowhere_outside(engine: Engine, host_canary: Path) -> None:
    run(
        engine, "-v", "evil:/v", "stocked",
        "sh", "-c", f"ln -s /etc /v/abs; ln -s {host_canary} /v/file; ln -s ../../../../etc /v/up",
    )  # fmt: skip

    for link in ("abs", "file", "up", "up/../../etc"):
        done = engine.tare(
            "run", "--rm", "--network", "none",
            "--mount", f"type=volume,src=evil,dst=/s,volume-subpath={link}", "stocked",
            "sh", "-c", "ls /s; cat /s",
        )  # fmt: skip
        assert done.returncode in (1, 125)
        assert "shadow" not in done.stdout


@pytest.mark.attack("A24")
def test_filling_follows_no_link_of_the_image_out_of_it(engine: Engine) -> None:
    seen = run(engine, "-v", "etc:/escape", "stocked", "ls", "/escape")

    assert sorted(seen.split()) == ["group", "passwd"]  # the image's own /etc, not the host's


def test_anonymous_volumes_go_with_their_container_when_asked(engine: Engine) -> None:
    engine.out("create", "--name", "kept", "--network", "none", "stocked")
    engine.out("create", "--name", "gone", "--network", "none", "-v", "/more", "stocked")
    before = len(names(engine))
    engine.out("rm", "-v", "gone")
    after_v = len(names(engine))
    run(engine, "stocked", "true")  # --rm
    engine.out("rm", "kept")

    assert (before, after_v) == (3, 1)
    assert len(names(engine)) == 1
    assert len(names(engine, "--filter", "dangling=true")) == 1
    assert "Total reclaimed space" in engine.out("volume", "prune", "-f")
    assert names(engine) == []


def test_prune_takes_anonymous_ones_only_unless_asked_for_all(engine: Engine) -> None:
    engine.out("volume", "create", "mine", "--label", "a=b")
    engine.out("volume", "create")

    engine.out("volume", "prune", "-f")
    left = names(engine)
    engine.out("volume", "prune", "-a", "-f", "--filter", "label!=a=b")
    labelled = names(engine)
    engine.out("volume", "prune", "-a", "-f", "--filter", "label=a=b")

    assert left == labelled == ["mine"]
    assert names(engine) == []


def test_a_volume_in_use_is_refused_with_its_holders_names(engine: Engine) -> None:
    engine.out("create", "--name", "holder", "--network", "none", "-v", "db:/v", "stocked")

    refused = engine.tare("volume", "rm", "db")
    engine.out("rm", "holder")

    assert refused.returncode == 1
    assert "volume is in use - [holder " in refused.stderr
    assert engine.out("volume", "rm", "db") == "db"
    assert "no such volume" in engine.tare("volume", "rm", "db").stderr


def test_a_volume_deleted_by_hand_is_said_to_be(engine: Engine) -> None:
    engine.out("create", "--name", "holder", "--network", "none", "-v", "db:/v", "stocked")
    shutil.rmtree(engine.state / "volumes/db")

    start = engine.tare("start", "holder")
    shown = json.loads(engine.out("volume", "inspect", "db"))[0]
    said = engine.out("explain", "holder")
    doctor = engine.out("doctor")
    engine.out("volume", "create", "db")
    again = engine.tare("start", "-a", "holder")

    assert start.returncode != 0
    assert "volume db of holder is gone" in start.stderr
    assert "deleted by hand" in start.stderr
    assert "deleted by hand" in shown["Status"]["Missing"]["Reason"]
    assert "SOMEBODY DELETED" in said
    assert "deleted by hand: db" in doctor
    assert again.returncode == 0


def test_volumes_from_another_container(engine: Engine) -> None:
    engine.out("create", "--name", "source", "--network", "none", "-v", "db:/data", "stocked")

    seen = run(engine, "--volumes-from", "source", "stocked", "cat", "/data/hello")
    read_only = engine.tare(
        "run", "--rm", "--network", "none", "--volumes-from", "source:ro", "stocked",
        "touch", "/data/x",
    )  # fmt: skip

    assert seen == "hi"
    assert read_only.returncode == 1


def test_inspect_and_events_speak_of_volumes_as_docker_does(engine: Engine) -> None:
    since = str(time.time())
    engine.out("run", "--name", "seen", "--network", "none", "-v", "told:/v:ro", "stocked", "true")
    shown = json.loads(engine.out("inspect", "seen"))[0]
    engine.out("rm", "seen")
    engine.out("volume", "rm", "told")
    events = engine.out(
        "events", "--since", since, "--until", str(time.time()), "--filter", "volume=told",
        "--filter", "type=volume", "--format", "{{.Action}}",
    )  # fmt: skip

    assert shown["HostConfig"]["Binds"] == ["told:/v:ro"]
    mount = next(m for m in shown["Mounts"] if m["Destination"] == "/v")
    assert mount["Source"] == str(engine.state / "volumes/told/_data")
    assert (mount["Type"], mount["Name"], mount["RW"]) == ("volume", "told", False)
    assert events.split() == ["create", "mount", "unmount", "destroy"]


def test_a_tmpfs_volume_is_shared_while_it_is_used_and_empty_afterwards(engine: Engine) -> None:
    engine.out(
        "volume", "create", "ram", "--opt", "type=tmpfs", "--opt", "o=size=4m,mode=700",
    )  # fmt: skip
    engine.out(
        "run", "-d", "--name", "first", "--network", "none", "-v", "ram:/r", "stocked",
        "sh", "-c", "echo here > /r/f; sleep 1000",
    )  # fmt: skip
    shared = run(
        engine, "-v", "ram:/r", "stocked",
        "sh", "-c", "until [ -s /r/f ]; do :; done; cat /r/f; stat -c %a /r; df -m /r | tail -1",
    ).split()  # fmt: skip
    engine.out("rm", "-f", "first")
    left = run(engine, "-v", "ram:/r", "stocked", "ls", "-A", "/r")

    assert shared[:2] == ["here", "700"]
    assert "4" in shared
    assert left == ""


@pytest.mark.attack("A48")
def test_a_size_limit_is_the_file_systems_own(engine: Engine) -> None:
    if not Path("/dev/loop-control").exists():
        pytest.skip("loop: no /dev/loop-control")
    engine.out("volume", "create", "small", "--opt", "size=16m")

    seen = run(
        engine, "-v", "small:/data", "stocked",
        "sh", "-c", "cat /data/hello; echo; dd if=/dev/zero of=/data/f bs=1M count=40 2>&1; "
        "ls -A /data",
    )  # fmt: skip
    too_small = engine.tare("volume", "create", "tiny", "--opt", "size=1k")

    assert seen.splitlines()[0] == "hi"
    assert "No space left on device" in seen
    assert "lost+found" not in seen
    assert "at least 8 MiB" in too_small.stderr
    assert mounts_below(engine.state / "volumes") == []  # taken down with its last user


def test_a_bind_volume_shows_a_directory_of_the_host_and_says_when_it_is_gone(
    engine: Engine, tmp_path: Path
) -> None:
    shown = tmp_path / "shown"
    shown.mkdir()
    (shown / "f").write_text("host")
    engine.out(
        "volume", "create", "bound", "--opt", "type=none", "--opt", "o=bind",
        "--opt", f"device={shown}",
    )  # fmt: skip

    seen = run(engine, "-v", "bound:/b", "stocked", "cat", "/b/f")
    shutil.rmtree(shown)
    gone = engine.tare("run", "--rm", "--network", "none", "-v", "bound:/b", "stocked", "true")

    assert seen == "host"
    assert gone.returncode == 125
    assert f"shows {shown} of the host, which does not exist" in gone.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("type=ext4",), 'missing required option: "device"'),
        (("type=nosuchfs", "device=x"), ""),  # made, and refused when it is mounted
        (("bogus=1",), "invalid option: 'bogus'"),
        (("o=bind", "device=rel"), "absolute path"),
        (("size=lots",), "invalid size"),
    ],
)
def test_options_that_make_no_sense_are_one_sentence(
    engine: Engine, options: tuple[str, ...], words: str
) -> None:
    chosen = [word for option in options for word in ("--opt", option)]

    made = engine.tare("volume", "create", "odd", *chosen)

    if words:
        assert (made.returncode, words in made.stderr) == (1, True), made.stderr
        return
    used = engine.tare("run", "--rm", "--network", "none", "-v", "odd:/o", "stocked", "true")
    assert "this kernel has no file system 'nosuchfs'" in used.stderr


# --- export and import --------------------------------------------------------------------------


def _full(data: Path) -> None:
    """Everything that an archive could lose."""
    (data / "deep").mkdir(mode=0o1777)
    with open(data / "sparse", "wb") as file:
        file.truncate(8 << 20)
        file.seek(1 << 20)
        file.write(b"x" * 5000)
    os.link(data / "sparse", data / "deep/linked")
    (data / ".wh.kept").write_text("no whiteout here")
    os.mkfifo(data / "fifo", 0o640)
    os.symlink("nowhere", data / "link")
    (data / "owned").write_text("o")
    os.chown(data / "owned", 1234, 70000)
    os.setxattr(data / "owned", "user.note", b"\0binary\xff")
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    os.setxattr(data / "owned", "security.capability", capability)
    acl = bytes.fromhex(
        "0200000001000600ffffffff02000400d204000004000400ffffffff10000600ffffffff20000400ffffffff"
    )
    with contextlib.suppress(OSError):  # a file system without ACLs
        os.setxattr(data / "deep", "system.posix_acl_access", acl)
    os.utime(data / "deep/linked", ns=(10**18 + 7, 10**18 + 123456789))


def _facts(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for directory, below, files in os.walk(root):
        for name in [".", *below, *files]:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            link = os.path.islink(path)
            xattrs = () if link else sorted(os.listxattr(path))
            found[os.path.relpath(path, root)] = (
                status.st_mode, status.st_uid, status.st_gid, status.st_nlink,
                status.st_size if os.path.isfile(path) else 0, status.st_mtime_ns,
                os.readlink(path) if link else "",
                b"" if link or not os.path.isfile(path) else Path(path).read_bytes(),
                tuple((name, os.getxattr(path, name)) for name in xattrs),
            )  # fmt: skip
    return found


def test_an_export_brings_back_every_bit(engine: Engine, tmp_path: Path) -> None:
    engine.out("volume", "create", "full")
    data = engine.state / "volumes/full/_data"
    _full(data)

    said = engine.tare("volume", "export", "full", "-o", str(tmp_path / "full.tar"))
    engine.out("volume", "import", "copy", str(tmp_path / "full.tar"))

    other = engine.state / "volumes/copy/_data"
    assert "full: idle" in said.stderr
    assert _facts(other) == _facts(data)
    assert os.stat(other / "sparse").st_blocks * 512 < 1 << 20
    assert (tmp_path / "full.tar").stat().st_size < 1 << 20


def test_an_import_is_whole_or_not_at_all(engine: Engine, tmp_path: Path) -> None:
    good, cut = tmp_path / "good.tar", tmp_path / "cut.tar"
    with tarfile.open(good, "w") as archive:
        entry = tarfile.TarInfo("f")
        entry.size = 100_000
        archive.addfile(entry, io.BytesIO(b"y" * 100_000))
    cut.write_bytes(good.read_bytes()[:50_000])
    engine.out("volume", "create", "old")
    (engine.state / "volumes/old/_data/kept").write_text("kept")

    broken = engine.tare("volume", "import", "fresh", str(cut))
    not_empty = engine.tare("volume", "import", "old", str(good))
    broken_too = engine.tare("volume", "import", "old", "--replace", str(cut))
    kept = os.listdir(engine.state / "volumes/old/_data")
    engine.out("volume", "import", "old", "--replace", str(good))

    assert broken.returncode == 1
    assert "fresh" not in names(engine)
    assert "is not empty" in not_empty.stderr
    assert (broken_too.returncode, kept) == (1, ["kept"])
    assert os.listdir(engine.state / "volumes/old/_data") == ["f"]
    assert [n for n in os.listdir(engine.state / "volumes") if n.startswith(".new")] == []


@pytest.mark.attack("A23")
@pytest.mark.parametrize("name", ["../out", "/abs/../../out", "a/../../out"])
def test_an_archive_cannot_leave_the_volume(engine: Engine, tmp_path: Path, name: str) -> None:
    path = tmp_path / "evil.tar"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("way")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        archive.addfile(link)
        for member in ("way/out", name):
            entry = tarfile.TarInfo(member)
            entry.size = 1
            archive.addfile(entry, io.BytesIO(b"x"))

    done = engine.tare("volume", "import", "evil", str(path))

    assert done.returncode == 1
    assert not (tmp_path / "out").exists()
    assert "evil" not in names(engine)


def test_a_volume_in_use_is_exported_live_or_paused_and_it_is_said(
    engine: Engine, tmp_path: Path
) -> None:
    engine.out(
        "run", "-d", "--name", "busy", "--network", "none", "-v", "db:/v", "stocked",
        "sh", "-c", "while :; do date > /v/f; sleep 0.01; done",
    )  # fmt: skip

    live = engine.tare("volume", "export", "-q", "db", "-o", str(tmp_path / "live.tar"))
    paused = engine.tare("volume", "export", "--pause", "db", "-o", str(tmp_path / "p.tar"))
    status = engine.all()["busy"].status
    refused = engine.tare("volume", "import", "db", "--replace", str(tmp_path / "p.tar"))

    assert "db: live: busy went on writing" in live.stderr
    assert "db: paused: busy stood still" in paused.stderr
    assert status == "running"
    assert "volume db is in use - [busy]" in refused.stderr


@pytest.fixture
def sharing(tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system that shares extents."""
    made = shutil.which("mkfs.btrfs"), shutil.which("mkfs.xfs")
    if not any(made):
        pytest.skip("reflink: neither btrfs-progs nor xfsprogs is installed")
    image, point = tmp_path / "disk", tmp_path / "point"
    point.mkdir()
    with open(image, "wb") as file:
        file.truncate(400 << 20)
    if made[1]:
        subprocess.run([made[1], "-q", "-m", "reflink=1", image], check=True)
    else:
        subprocess.run([str(made[0]), "-q", image], check=True)
    mounted = subprocess.run(
        ["mount", "-o", "loop", image, point], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"reflink: {mounted.stderr.decode().strip()}")
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)


def test_where_files_share_extents_a_volume_in_use_is_exported_from_a_snapshot(
    sharing: Path, stocked: Path
) -> None:
    engine = Engine(sharing / "e")
    try:
        engine.out("load", "-q", "-i", str(stocked))
        engine.out(
            "run", "-d", "--name", "busy", "--network", "none", "-v", "db:/v", "stocked",
            "sh", "-c", "i=0; while :; do i=$((i+1)); "
            "echo $i > /v/t; mv /v/t /v/a; echo $i > /v/t; mv /v/t /v/b; done",
        )  # fmt: skip
        while not (engine.state / "volumes/db/_data/b").exists():
            pass

        done = engine.tare("volume", "export", "db", "-o", str(sharing / "s.tar"))
        running = engine.all()["busy"].running

        assert "db: snapshot: busy stood still while the files were cloned" in done.stderr
        assert running
        with tarfile.open(sharing / "s.tar") as archive:
            first, second = (archive.extractfile(name) for name in ("a", "b"))
            assert first is not None
            assert second is not None
            difference = int(first.read()) - int(second.read())
        assert difference in (0, 1)  # of one moment
    finally:
        engine.end()


# --- kill -9 ------------------------------------------------------------------------------------


def test_kill_9_of_the_daemon_while_volumes_are_made_leaves_whole_ones_or_none(
    engine: Engine,
) -> None:
    known: set[str] = set()
    for round_ in range(4):
        clients = [
            engine.begin("volume", "create", f"v{round_}-{n}", "--label", "x=y") for n in range(4)
        ]
        while engine.daemon() == 0:
            pass
        time.sleep(0.03 * round_)
        engine.kill(engine.daemon())
        for client in clients:
            out, _ = client.communicate(timeout=40)
            if client.returncode == 0:
                known.add(out.strip())
        listed = set(names(engine))

        assert known <= listed
        for name in listed:
            shown = json.loads(engine.out("volume", "inspect", name))[0]
            assert shown["Labels"] == {"x": "y"}
            assert os.path.isdir(shown["Mountpoint"])
        left = os.listdir(engine.state / "volumes")
        assert [name for name in left if name.startswith((".new", ".gone"))] == []


@pytest.fixture(scope="module")
def many(session_directory: Path, engine: Engine) -> int:
    """An image with many files at /many: filling a volume from it takes a while."""
    root = images.lay_busybox(session_directory / "many-root")
    (root / "many").mkdir()
    count = 4000
    for number in range(count):
        (root / f"many/{number}").write_text("x")
    archive = session_directory / "many.tar"
    images.docker_archive(root, archive, "many:latest", {"Cmd": ["sh"], "Env": ["PATH=/bin"]})
    engine.out("load", "-q", "-i", str(archive))
    return count


def test_kill_9_while_a_volume_is_filled_leaves_it_empty_or_whole(
    engine: Engine, many: int
) -> None:
    caught = 0
    for attempt in range(3):
        name = f"filled{attempt}"
        mark = engine.state / f"volumes/{name}/filling"
        client = engine.begin("run", "--rm", "--network", "none", "-v", f"{name}:/many", "many")
        while not mark.exists() and client.poll() is None:
            pass
        engine.kill(engine.daemon())
        caught += mark.exists()
        client.communicate(timeout=40)

        engine.out("volume", "ls")  # the next daemon
        left = len(os.listdir(engine.state / f"volumes/{name}/_data"))
        seen = run(engine, "-v", f"{name}:/many", "many", "sh", "-c", "ls /many | wc -l")

        assert left in (0, many)
        assert int(seen) == many
        assert not mark.exists()
    assert caught, "no kill fell into a filling"


def test_what_a_killed_export_had_frozen_goes_on(engine: Engine) -> None:
    engine.out(
        "run", "-d", "--name", "frozen", "--network", "none", "-v", "db:/v", "stocked",
        "sh", "-c", "dd if=/dev/zero of=/v/big bs=1M count=64; sleep 1000",
    )  # fmt: skip
    client = engine.begin("volume", "export", "--pause", "db")
    mark = engine.state / "volumes/.frozen"
    end = time.monotonic() + 30
    assert client.stdout is not None
    # Nobody reads what the client writes, so the export stands with the container frozen.
    while engine.all()["frozen"].status != "paused" and time.monotonic() < end:
        pass
    assert os.listdir(mark)
    engine.kill(engine.daemon())
    client.kill()
    client.communicate()

    status = engine.all()["frozen"].status

    assert status == "running"
    assert os.listdir(mark) == []


# --- a real database ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def redis(session_directory: Path, engine: Engine) -> str:
    archive = program_image(
        session_directory, "redis-server", "redis-server", "redis",
        {
            "Cmd": ["redis-server", "--dir", "/data", "--appendonly", "yes",
                    "--appendfsync", "always", "--bind", "127.0.0.1"],
            "Env": ["PATH=/usr/local/bin:/bin"],
            "Volumes": {"/data": {}},
        },
    )  # fmt: skip
    engine.out("load", "-q", "-i", str(archive))
    return "redis"


def _redis(engine: Engine, name: str, *volume: str) -> None:
    engine.out("run", "-d", "--name", name, "--network", "none", *volume, "redis")


def _ask(engine: Engine, name: str, *words: str) -> str:
    """One command by redis's own protocol, from a shell inside the container."""
    request = f"*{len(words)}\\r\\n" + "".join(f"${len(w)}\\r\\n{w}\\r\\n" for w in words)
    script = f"printf '{request}' | nc -w 9 127.0.0.1 6379 | head -n 2"
    end = time.monotonic() + 60
    while True:
        done = engine.tare("exec", name, "sh", "-c", script)
        said = done.stdout.replace("\r", "").split("\n")
        if said[0] and not said[0].startswith("-LOADING"):
            return said[1] if said[0].startswith("$") else said[0]
        assert time.monotonic() < end, (done.stdout, done.stderr, engine.tare("logs", name).stdout)


def test_redis_keeps_its_data_over_replacement_kill_9_and_a_restore(
    engine: Engine, redis: str, tmp_path: Path
) -> None:
    _redis(engine, "r1", "-v", "store:/data")
    assert _ask(engine, "r1", "SET", "one", "first") == "+OK"
    engine.out("rm", "-f", "r1")

    _redis(engine, "r2", "-v", "store:/data")  # replaced
    replaced = _ask(engine, "r2", "GET", "one")
    assert _ask(engine, "r2", "SET", "two", "second") == "+OK"
    engine.kill(engine.daemon(), engine.keeper(), engine.all()["r2"].pid)
    engine.out("rm", "-f", "r2")

    _redis(engine, "r3", "-v", "store:/data")  # after kill -9 of everything
    killed = _ask(engine, "r3", "GET", "two")
    engine.out("volume", "export", "--pause", "store", "-o", str(tmp_path / "store.tar"))
    assert _ask(engine, "r3", "SET", "three", "too late") == "+OK"
    engine.out("rm", "-f", "r3")
    engine.out("volume", "rm", "store")
    engine.out("volume", "import", "store", str(tmp_path / "store.tar"))

    _redis(engine, "r4", "-v", "store:/data")  # restored
    restored = _ask(engine, "r4", "GET", "one"), _ask(engine, "r4", "GET", "two")

    assert replaced == "first"
    assert killed == "second"
    assert restored == ("first", "second")
    assert _ask(engine, "r4", "GET", "three") == ""


# --- cp -----------------------------------------------------------------------------------------


def test_cp_reaches_the_volume_of_a_container_that_does_not_run(
    engine: Engine, tmp_path: Path
) -> None:
    (tmp_path / "in").write_text("copied")
    engine.out("create", "--name", "still", "--network", "none", "-v", "db:/data", "stocked")

    engine.out("cp", str(tmp_path / "in"), "still:/data/sub/in")
    engine.out("cp", "still:/data", str(tmp_path / "out"))
    seen = run(engine, "-v", "db:/d", "stocked", "stat", "-c", "%u %n", "/d/sub/in")

    assert seen == "0 /d/sub/in"
    assert (tmp_path / "out/sub/in").read_text() == "copied"
    assert (tmp_path / "out/hello").read_text() == "hi"


@pytest.mark.attack("A22")
def test_cp_through_a_volumes_links_stays_inside(
    engine: Engine, host_canary: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").write_text("evil")
    run(engine, "-v", "db:/v", "stocked", "sh", "-c", f"ln -s {host_canary} /v/file; ln -s / /v/up")
    engine.out(
        "create", "--name", "still", "--network", "none", "-v", "db:/v",
        "--mount", "type=volume,src=db,dst=/data,volume-subpath=up", "stocked",
    )  # fmt: skip
    before = host_canary.read_bytes()

    engine.tare("cp", str(tmp_path / "in"), "still:/v/file")
    engine.tare("cp", str(tmp_path / "in"), f"still:/data{host_canary}")
    engine.tare("cp", f"still:/data{host_canary}", str(tmp_path / "out"))

    assert host_canary.read_bytes() == before
    assert not (tmp_path / "out").exists()


# --- the SDK, and --mount in full ---------------------------------------------------------------


def test_the_sdk_makes_exports_and_brings_back(engine: Engine, tmp_path: Path) -> None:
    with tare.connect(str(engine.run_dir / "tare.sock")) as client:
        made = client.volumes.create("db", labels={"a": "b"})
        Path(made.path, "f").write_text("kept")
        consistency = client.volumes.export("db", tmp_path / "db.tar")
        client.volumes.remove("db")
        client.volumes.bring("db", tmp_path / "db.tar")
        listed = client.volumes.list(filters=["dangling=true"])
        freed = client.volumes.prune(all=True)

        assert consistency == "idle"
        assert [one.name for one in listed] == ["db"]
        assert freed >= 4096
        assert client.volumes.list() == []
        with pytest.raises(MissingError):
            client.volumes.get("db")


def test_mount_type_volume_in_all_its_forms(engine: Engine) -> None:
    seen = run(
        engine, "--mount",
        "type=volume,source=full,target=/v,volume-label=a=b,volume-driver=local,"
        "volume-opt=type=tmpfs,volume-opt=o=size=1m", "stocked", "df", "/v",
    )  # fmt: skip
    shown = json.loads(engine.out("volume", "inspect", "full"))[0]
    anonymous = run(engine, "--mount", "type=volume,dst=/data", "stocked", "cat", "/data/hello")
    driver = engine.tare("run", "--mount", "src=xy,dst=/v,volume-driver=flocker", "stocked")
    propagation = engine.tare("run", "--mount", "src=xy,dst=/v,bind-propagation=shared", "stocked")
    shown_df = engine.out("system", "df").splitlines()
    left = next(line.split() for line in shown_df if line.startswith("Local Volumes"))

    assert "tmpfs" in seen
    assert shown["Labels"] == {"a": "b"}
    assert shown["Options"] == {"type": "tmpfs", "o": "size=1m"}
    assert anonymous == "hi"
    assert driver.returncode == 125
    assert "volume driver 'flocker' is not there" in driver.stderr
    assert "cannot mix 'bind-*' options with mount type 'volume'" in propagation.stderr
    assert left[:4] == ["Local", "Volumes", "1", "0"]
