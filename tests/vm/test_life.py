"""Real machines, emulated where there is no KVM: the whole life, as a user sees it."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.engines import Engine

pytestmark = [pytest.mark.system, pytest.mark.needs("root", "overlay", "erofs", "cgroup", "qemu")]

_PATIENCE = 60.0


def until(true: Callable[[], object]) -> None:
    """Wait for a condition; on a busy host an emulated machine takes its time."""
    end = time.monotonic() + _PATIENCE
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)


def client(engine: Engine, *words: str) -> list[str]:
    """The client's command line for *words*, for those that `Engine.tare` cannot run."""
    begun = engine.begin("version")
    begun.communicate()
    assert isinstance(begun.args, list)
    return [*(str(word) for word in begun.args[:-1]), *words]


def test_a_program_has_its_own_kernel_and_its_streams_and_exit_code(engine: Engine) -> None:
    script = "uname -r; hostname; echo wrong >&2; exit 7"
    done = engine.tare("run", "--rm", "--vm", "-h", "within", "busybox", "sh", "-c", script)

    assert done.returncode == 7, done.stderr
    release, name = done.stdout.split()
    assert release != os.uname().release
    assert re.fullmatch(r"[0-9.-]+-cloud-amd64", release)
    assert name == "within"
    assert done.stderr == "wrong\n"


def test_the_user_the_limits_and_the_mounts_are_those_asked_for(engine: Engine) -> None:
    script = (
        "id -u; id -g; pwd; echo $X; ulimit -n; cat /proc/self/status | grep CapEff; "
        "touch /scratch/a && echo scratch; touch /etc/a 2>/dev/null || echo kept; nproc; "
        "cat /etc/hosts; cat /proc/sys/kernel/msgmax"
    )
    done = engine.tare(
        "run", "--rm", "--runtime", "tare-vm", "-u", "1000:2000", "-w", "/var/new", "-e", "X=y",
        "--ulimit", "nofile=99:100", "--tmpfs", "/scratch", "--cpus", "2", "--add-host",
        "far:192.0.2.7", "--sysctl", "kernel.msgmax=12345", "busybox", "sh", "-c", script,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:5] == ["1000", "2000", "/var/new", "y", "99"]
    assert lines[5].split()[1] == "0" * 16
    assert lines[6:9] == ["scratch", "kept", "2"]
    assert "192.0.2.7\tfar" in lines
    assert lines[-1] == "12345"


def test_a_machine_lives_as_a_container_does(engine: Engine) -> None:
    script = (
        "echo up; cat /kept 2>/dev/null; trap 'echo bye; exit 3' TERM; while :; do sleep 0.1; done"
    )
    engine.out("run", "-d", "--vm", "--name", "life", "-m", "200m", "busybox", "sh", "-c", script)
    until(lambda: engine.out("logs", "life") == "up")

    # exec: streams, code, input, users
    done = engine.tare("exec", "life", "sh", "-c", "echo kept > /kept; echo wrong >&2; exit 5")
    assert (done.returncode, done.stderr) == (5, "wrong\n")
    assert engine.out("exec", "-u", "12", "life", "id", "-u") == "12"
    missing = engine.tare("exec", "life", "nothing-of-that-name")
    assert missing.returncode == 127
    assert "executable file not found" in missing.stderr
    shown = json.loads(engine.out("inspect", "life"))[0]
    assert shown["HostConfig"]["Runtime"] == "tare-vm"
    assert shown["Tare"]["Isolation"] == "vm"
    assert int(engine.out("exec", "life", "grep", "MemTotal", "/proc/meminfo").split()[1]) < 204800
    # pause
    engine.out("pause", "life")
    engine.out("unpause", "life")
    # daemon and keeper die: the machine does not notice
    engine.kill(engine.daemon())
    assert engine.out("exec", "life", "echo", "on") == "on"
    engine.kill(engine.keeper())
    until(lambda: engine.tare("exec", "life", "true").returncode == 0)
    # stop: the program's own way to end
    engine.out("stop", "life")
    assert engine.all()["life"].code == 3
    assert engine.out("logs", "life") == "up\nbye"
    # what it wrote is there again; a kill loses nothing that the program had written
    engine.out("start", "life")
    until(lambda: engine.out("logs", "life").splitlines()[-1] == "kept")
    engine.out("exec", "life", "sh", "-c", "echo more >> /kept")
    engine.out("kill", "life")
    assert engine.all()["life"].code == 137
    engine.out("start", "life")
    until(lambda: engine.out("logs", "life").splitlines()[-2:] == ["kept", "more"])
    engine.out("rm", "-f", "life")
    assert engine.settled_lies() == []


def test_a_program_that_is_not_there_fails_the_start(engine: Engine) -> None:
    done = engine.tare("run", "-d", "--vm", "--name", "nothing", "busybox", "nothing")

    assert done.returncode == 127
    assert "executable file not found" in done.stderr
    assert engine.all()["nothing"].status == "created"
    engine.out("rm", "nothing")


def test_much_input_and_output_pass_unharmed(engine: Engine, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "in").write_bytes(content)
    with open(tmp_path / "in", "rb") as source:
        done = subprocess.run(
            client(engine, "run", "-i", "--rm", "--vm", "busybox", "cat"),
            env=engine.environment,
            stdin=source,
            capture_output=True,
            timeout=_PATIENCE * 2,
            check=False,
        )

    assert done.returncode == 0, done.stderr
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(content).digest()


def test_a_terminal_is_one(engine: Engine) -> None:
    words = client(engine, "run", "-it", "--rm", "--vm", "busybox", "sh")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(words[0], words, {**engine.environment, "TERM": "dumb"})
    heard = bytearray()

    def hears(wanted: bytes) -> None:
        end = time.monotonic() + _PATIENCE
        while wanted not in heard:
            assert time.monotonic() < end, bytes(heard)
            if select.select([terminal], [], [], 1.0)[0]:
                heard.extend(os.read(terminal, 4096))

    hears(b"# ")
    os.write(terminal, b"tty; echo $((40 + 2)) done\n")
    hears(b"/dev/pts/0\r\n42 done")
    os.write(terminal, b"echo rea''dy; sleep 1000\n")
    hears(b"\r\nready")
    os.write(terminal, b"\x03")
    hears(b"^C")
    os.write(terminal, b"exit 9\n")
    end = time.monotonic() + _PATIENCE
    while select.select([terminal], [], [], 1.0)[0] or time.monotonic() < end:
        try:
            if not os.read(terminal, 4096):
                break
        except OSError:
            break
    _, status = os.waitpid(pid, 0)
    os.close(terminal)

    assert os.waitstatus_to_exitcode(status) == 9


@pytest.mark.attack("A49", "A50")
def test_qemu_is_confined_and_a_hostile_guest_ends_alone(engine: Engine) -> None:
    """A guest with all the privilege there is: the host's files and limits stay as they are."""
    layers = {path: path.read_bytes() for path in (engine.state / "layers").glob("*.erofs")}
    engine.out("run", "-d", "--vm", "--privileged", "--name", "evil", "busybox", "sleep", "1000")
    relay = engine.all()["evil"].pid
    children = Path(f"/proc/{relay}/task/{relay}/children").read_text().split()

    for pid in (relay, *map(int, children)):
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        )
        assert int(status["Uid"].split()[0]) > 65535
        assert status["Seccomp"].strip() == "2"
        assert status["NoNewPrivs"].strip() == "1"
        for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb"):
            assert int(status[name], 16) == 0
        for kind in ("mnt", "pid", "net", "ipc", "user"):
            assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
        assert not Path(f"/proc/{pid}/root/etc/shadow").exists()
    qemu = int(children[0])
    held = [os.readlink(f"/proc/{qemu}/fd/{number}") for number in os.listdir(f"/proc/{qemu}/fd")]
    files = [path for path in held if path.startswith("/") and not path.startswith("/dev/")]
    assert set(files) <= {"/machine/L0", "/machine/upper"} | {f for f in files if "memfd" in f}
    # The disk of a layer is read-only for QEMU, whatever the guest's kernel thinks.
    script = (
        "mkdir /b; mount -t devtmpfs none /b; for d in /b/vd*; do "
        '[ "$(cat /sys/block/${d##*/}/serial)" = L0 ] && blockdev --setrw $d; '
        '[ "$(cat /sys/block/${d##*/}/serial)" = L0 ] && dd if=/dev/zero of=$d count=9; done; true'
    )
    engine.tare("exec", "--privileged", "evil", "sh", "-c", script)
    engine.tare("exec", "--privileged", "evil", "sh", "-c", "echo c > /proc/sysrq-trigger")
    until(lambda: not engine.all()["evil"].running)
    assert engine.all()["evil"].code == 125
    assert "its kernel stopped" in engine.tare("logs", "evil").stderr
    assert {path: path.read_bytes() for path in layers} == layers
    engine.out("rm", "evil")
    assert engine.settled_lies() == []
