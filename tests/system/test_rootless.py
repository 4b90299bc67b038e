"""An ordinary user's own engine, from the first command to the last trace of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from harness import canaries
from harness.engines import Engine

pytestmark = [
    pytest.mark.system,
    pytest.mark.needs("root", "userns", "newuidmap", "overlay", "busybox"),
]

_USER: Final = 54321
_FILES: Final = {
    "passwd": f"root:x:0:0:root:/root:/bin/sh\nttuser:x:{_USER}:{_USER}::/nonexistent:/bin/sh\n",
    "subuid": "ttuser:805306368:65536\n",
    "subgid": "ttuser:805306368:65536\n",
}


def _as_user(directory: Path) -> tuple[str, ...]:
    """Runs what follows as a user whom only a private copy of the accounts knows.

    useradd would change the host's files, which other tests watch.
    """
    lines = ["set -e"]
    for name, content in _FILES.items():
        if not Path("/etc", name).exists():
            pytest.skip(f"newuidmap: the host has no /etc/{name}")
        (directory / name).write_text(content)
        (directory / name).chmod(0o644)
        lines.append(f"mount --bind {directory}/{name} /etc/{name}")
    lines.append(f'exec setpriv --reuid {_USER} --regid {_USER} --clear-groups "$@"')
    # Where only root may make tunnels, a node of the user's own stands for the host's.
    if Path("/dev/net/tun").exists() and shutil.which("pasta"):
        os.mknod(directory / "tun", 0o666 | stat.S_IFCHR, os.makedev(10, 200))
        os.chmod(directory / "tun", 0o666)
        lines.insert(1, f"mount --bind {directory}/tun /dev/net/tun")
    private = ("unshare", "--mount", "--propagation", "private")
    return (*private, "/bin/sh", "-c", "\n".join(lines), "sh")


@pytest.fixture(scope="module")
def engine(busybox_archive: Path) -> Iterator[Engine]:
    # Not below pytest's own directory: that is closed to other users.
    directory = Path(tempfile.mkdtemp(prefix=f"tt-{os.getpid()}-", dir="/var/tmp"))
    os.chown(directory, _USER, _USER)
    archive = directory / "busybox.tar"
    shutil.copy(busybox_archive, archive)
    archive.chmod(0o644)
    found = Engine(
        directory,
        _as_user(directory),
        {"HOME": str(directory), "USER": "ttuser"},
        networks=True,  # in a namespace of its user's
    )
    found.environment.pop("XDG_RUNTIME_DIR", None)
    holder = 0
    try:
        assert "busybox" in found.out("load", "-i", str(archive))
        holder = int((found.run_dir / "namespace").read_text().split()[0])
        assert Path(f"/proc/{holder}/cmdline").read_bytes().startswith(b"tare-namespace\0")
        yield found
        ids = found.out("ps", "-aq").split()
        assert not ids or found.tare("rm", "-f", *ids).returncode == 0
        assert os.listdir(found.run_dir / "workloads") == []
    finally:
        found.stop()
        if holder:
            with contextlib.suppress(ProcessLookupError):
                os.kill(holder, signal.SIGKILL)
        left = canaries.mounts_below(directory)
        shutil.rmtree(directory)
        assert left == []
        assert found.marked() == {}


def test_run_is_root_inside_and_the_user_outside(engine: Engine) -> None:
    engine.out("run", "-d", "--name", "who", "busybox", "sleep", "1000")

    assert engine.out("exec", "who", "id", "-u") == "0"
    assert os.stat(f"/proc/{engine.all()['who'].pid}").st_uid != 0
    assert os.stat(f"/proc/{engine.daemon()}").st_uid == _USER
    engine.out("rm", "-f", "who")


def test_run_passes_output_and_exit_code(engine: Engine) -> None:
    done = engine.tare("run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 6")

    assert (done.returncode, done.stdout, done.stderr) == (6, "out\n", "err\n")


def test_user_option(engine: Engine) -> None:
    assert engine.out("run", "--rm", "--user", "1000:1001", "busybox", "sh", "-c",
                      "echo $(id -u):$(id -g)") == "1000:1001"  # fmt: skip


@pytest.mark.parametrize(("network", "alone"), [("none", True), ("host", False)])
def test_networks(engine: Engine, network: str, alone: bool) -> None:
    name = f"net-{network}"
    engine.out("run", "-d", "--name", name, "--network", network, "busybox", "sleep", "1000")

    inside = engine.out("exec", name, "readlink", "/proc/self/ns/net")
    engine.out("rm", "-f", name)

    assert (inside != os.readlink("/proc/self/ns/net")) is alone


def test_logs_stop_copy_and_remove(engine: Engine) -> None:
    script = 'trap "exit 4" TERM; echo here; echo kept > /kept; while :; do usleep 10000; done'
    engine.out("run", "-d", "--name", "whole", "busybox", "sh", "-c", script)
    follow = engine.begin("logs", "-f", "whole")
    assert follow.stdout is not None
    assert follow.stdout.readline() == "here\n"

    engine.out("exec", "whole", "sh", "-c", "until [ -s /kept ]; do usleep 1000; done")
    copied = engine.out("cp", "whole:/kept", "-")
    engine.out("stop", "-t", "5", "whole")
    follow.communicate(timeout=10)

    assert "kept" in copied
    assert engine.all()["whole"].code == 4
    assert engine.out("logs", "whole") == "here"
    engine.out("rm", "whole")
    assert "whole" not in engine.all()


def test_limits_are_refused_and_delegation_named(engine: Engine) -> None:
    done = engine.tare("run", "--rm", "-m", "64m", "busybox", "true")

    if done.returncode == 0:
        pytest.skip("this host delegates control groups to the user")
    assert done.returncode == 125
    assert "delegat" in done.stderr
    assert engine.all() == {}


def test_own_directory_is_bound_and_stays_the_users(engine: Engine) -> None:
    own = engine.directory / "own"
    own.mkdir()
    os.chown(own, _USER, _USER)

    engine.out("run", "--rm", "-v", f"{own}:/own", "busybox", "sh", "-c", "echo mine > /own/file")

    assert (own / "file").read_text() == "mine\n"
    assert (own / "file").stat().st_uid == _USER
    assert engine.tare(
        "run", "--rm", "-v", "/etc:/there", "busybox", "cat", "/there/shadow"
    ).returncode  # fmt: skip


@pytest.mark.parametrize("whom", ["daemon", "keeper", "both"])
def test_the_next_daemon_adopts_what_runs(engine: Engine, whom: str) -> None:
    engine.out("run", "-d", "--name", "stays", "busybox", "sleep", "1000")
    holder = (engine.run_dir / "namespace").read_text()
    pid = engine.all()["stays"].pid

    victims = {"daemon": [engine.daemon()], "keeper": [engine.keeper()]}
    engine.kill(*(victims.get(whom) or [*victims["daemon"], *victims["keeper"]]))

    shown = engine.all()["stays"]
    assert (shown.running, shown.pid) == (True, pid)
    assert (engine.run_dir / "namespace").read_text() == holder
    assert engine.out("exec", "stays", "echo", "in") == "in"
    engine.out("rm", "-f", "stays")
    assert engine.all() == {}


def test_volumes_keep_their_owners_and_tmpfs_ones_are_in_memory(engine: Engine) -> None:
    engine.out("run", "--rm", "-v", "kept:/v", "busybox", "sh", "-c", "id > /v/f; chown 5:6 /v/f")
    again = engine.out("run", "--rm", "-v", "kept:/v", "busybox", "stat", "-c", "%u:%g", "/v/f")
    engine.out("volume", "create", "ram", "--opt", "type=tmpfs", "--opt", "o=size=1m")
    memory = engine.out("run", "--rm", "-v", "ram:/r", "busybox", "df", "-m", "/r")
    limited = engine.tare("volume", "create", "small", "--opt", "size=20m")
    engine.out("volume", "export", "kept", "-o", str(engine.directory / "kept.tar"))
    engine.out("volume", "import", "copy", str(engine.directory / "kept.tar"))
    copied = engine.out("run", "--rm", "-v", "copy:/v", "busybox", "stat", "-c", "%u:%g", "/v/f")
    engine.out("volume", "prune", "-a", "-f")

    assert again == copied == "5:6"
    assert "tmpfs" in memory
    assert "needs root's engine" in limited.stderr
    assert engine.out("budget").startswith("Engine")


@pytest.mark.needs("pasta")
def test_a_published_port_and_the_way_out(engine: Engine) -> None:
    """The host's loopback stays closed to the container (attack A43)."""
    with socket.create_server(("0.0.0.0", 0)) as outside, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
        free.close()
        script = "while :; do echo inside | nc -l -p 80; done"
        run = ("run", "-d", "--name", "way", "-p", f"127.0.0.1:{number}:80", "busybox")
        engine.out(*run, "sh", "-c", script)
        try:
            deadline = time.monotonic() + 30
            answer = b""
            while answer != b"inside\n" and time.monotonic() < deadline:
                with (
                    contextlib.suppress(OSError),
                    socket.create_connection(("127.0.0.1", number), 30) as client,
                ):
                    client.shutdown(socket.SHUT_WR)
                    answer = client.recv(100)
            assert answer == b"inside\n"
            shown = engine.out("exec", "way", "ip", "-o", "addr", "show", "eth0")
            address = engine.out("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "way")
            assert f"inet {address}/16" in shown
            assert "inet6 " not in shown
            port = outside.getsockname()[1]
            for host in ("127.0.0.1", address.rpartition(".")[0] + ".1"):
                assert engine.tare("exec", "way", "nc", "-w", "1", host, str(port)).returncode
            taken = engine.tare("run", "--rm", "-p", f"127.0.0.1:{number}:80", "busybox", "true")
            assert taken.returncode == 125
            assert "in use" in taken.stderr or "way" in taken.stderr
        finally:
            engine.out("rm", "-f", "way")
        with socket.socket() as again:  # its program is gone, and the port is free
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", number))
            again.listen()


@pytest.mark.needs("pasta")
def test_networks_of_its_own_need_root(engine: Engine) -> None:
    done = engine.tare("network", "create", "mine")

    assert done.returncode != 0
    assert "needs an engine that runs as root" in done.stderr
    assert "mine" not in engine.out("network", "ls")


def test_builds_run_with_the_users_own_ids(engine: Engine) -> None:
    context = engine.directory / "context"
    context.mkdir()
    (context / "f").write_text("x\n")
    (context / "Dockerfile").write_text(
        "FROM busybox\nCOPY --chown=5:6 f /f\nRUN chown 7:8 /f && rm /etc/group && id -u\n"
        "RUN --mount=type=bind,target=/c --mount=type=secret,id=none cat /c/f > /g\n"
    )
    os.chown(context, _USER, _USER)

    engine.out("build", "--network", "none", "-t", "mine:1", str(context))

    look = "stat -c '%u:%g' /f; cat /g; ls /etc"
    shown = engine.out("run", "--rm", "--network", "none", "mine:1", "sh", "-c", look)
    assert shown.split("\n")[:2] == ["7:8", "x"]
    assert "group" not in shown.split("\n")[2:]
