"""The real docker CLI and docker-py against a real daemon, engine and kernel."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import docker.errors
import pytest

from harness.engines import without_networks

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="the system engine needs root"),
]


class Host:
    """A daemon on directories of its own, and the docker client that speaks to it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.run_dir = directory / "r"
        self.socket = self.run_dir / "tare.sock"
        self.environment = {
            **os.environ,
            "TARE_STATE_DIR": str(directory / "s"),
            "TARE_RUN_DIR": str(self.run_dir),
            "TARE_CONFIG_DIR": str(without_networks(directory / "c")),
            "DOCKER_HOST": f"unix://{self.socket}",
            "DOCKER_CONFIG": str(directory / "docker"),
        }
        self.daemon: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the daemon and wait until it answers."""
        with open(self.directory / "daemon.err", "ab") as errors:
            self.daemon = subprocess.Popen(
                [sys.executable, "-m", "tare.daemon", "--foreground"],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                start_new_session=True,
            )
        end = time.monotonic() + 20
        while self.docker("version", check=False).returncode:
            assert time.monotonic() < end, self.errors()
            assert self.daemon.poll() is None, self.errors()
            time.sleep(0.02)

    def errors(self) -> str:
        return (self.directory / "daemon.err").read_text()

    def kill(self, number: int = signal.SIGTERM) -> None:
        assert self.daemon is not None
        self.daemon.send_signal(number)
        self.daemon.wait(20)

    def end(self) -> None:
        """Remove all containers, end daemon and keeper."""
        ids = self.docker("ps", "-aq", check=False).stdout.split()
        if ids:
            self.docker("rm", "-f", *ids, check=False)
        self.kill()
        with contextlib.suppress(OSError, ValueError, IndexError):
            os.kill(int((self.run_dir / "keeper.lock").read_text().split()[0]), signal.SIGTERM)

    def docker(
        self, *words: str, check: bool = True, given: str = "", timeout: float = 20
    ) -> subprocess.CompletedProcess[str]:
        """Run the docker CLI."""
        return subprocess.run(
            ["docker", *words],
            env=self.environment,
            input=given,
            capture_output=True,
            text=True,
            check=check,
            timeout=timeout,
        )

    def out(self, *words: str, given: str = "") -> str:
        return self.docker(*words, given=given).stdout.strip()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, busybox_archive: Path) -> Iterator[Host]:
    if shutil.which("docker") is None:
        pytest.skip("no docker client here")
    found = Host(tmp_path_factory.mktemp("d"))
    found.start()
    try:
        found.out("load", "-i", str(busybox_archive))
        yield found
    finally:
        found.end()


@pytest.fixture
def client(host: Host) -> Iterator[docker.DockerClient]:
    found = docker.DockerClient(base_url=f"unix://{host.socket}", timeout=20)
    yield found
    found.close()


@pytest.fixture
def running(host: Host) -> Iterator[str]:
    """The name of a container that sleeps."""
    host.out("run", "-d", "--name", "sleeper", "busybox", "sleep", "1000")
    yield "sleeper"
    host.docker("rm", "-f", "sleeper", "renamed", check=False)


@pytest.mark.parametrize(
    ("words", "code", "out"),
    [
        (("echo", "hello"), 0, "hello\n"),
        (("sh", "-c", "exit 5"), 5, ""),
        (("not-there",), 127, ""),
        (("/etc",), 126, ""),
    ],
)
def test_run_has_dockers_output_and_exit_code(
    host: Host, words: tuple[str, ...], code: int, out: str
) -> None:
    found = host.docker("run", "--rm", "busybox", *words, check=False)

    assert (found.returncode, found.stdout) == (code, out)


def test_run_separates_the_streams(host: Host) -> None:
    found = host.docker("run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2")

    assert (found.stdout, found.stderr) == ("out\n", "err\n")


def test_standard_input_reaches_the_program_and_ends(host: Host) -> None:
    text = "line\n" * 100_000

    found = host.docker("run", "--rm", "-i", "busybox", "cat", given=text)

    assert found.stdout == text


def test_an_image_whose_registry_does_not_answer_is_told_so(host: Host) -> None:
    found = host.docker("run", "--rm", "127.0.0.1:1/nothing", check=False)

    assert found.returncode == 125
    assert "Unable to find image '127.0.0.1:1/nothing:latest' locally" in found.stderr
    assert "127.0.0.1:1 cannot be reached: Connection refused" in found.stderr


def test_a_terminal_has_a_size_and_takes_input(host: Host) -> None:
    script = "stty rows 33 cols 77; docker run -it --rm busybox sh -c 'sleep .2; stty size; tty'"
    found = subprocess.run(
        ["script", "-qec", script, "/dev/null"],
        env={**host.environment, "TERM": "xterm"},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=True,
        timeout=20,
    )

    assert "33 77" in found.stdout
    assert "/dev/pts/0" in found.stdout


def test_exec_runs_inside(host: Host, running: str) -> None:
    assert host.out("exec", running, "echo", "in") == "in"
    assert host.out("exec", "-i", running, "cat", given="typed") == "typed"
    assert host.docker("exec", running, "sh", "-c", "exit 9", check=False).returncode == 9
    missing = host.docker("exec", running, "nope", check=False)
    assert (missing.returncode, missing.stdout) == (127, "")
    assert "executable file not found" in missing.stderr
    assert host.out("exec", "-w", "/tmp", "-e", "A=b", running, "sh", "-c", "pwd; echo $A") == (
        "/tmp\nb"
    )


def test_logs_follow_to_the_end(host: Host) -> None:
    host.out("run", "-d", "--name", "talker", "busybox", "sh", "-c", "echo a; sleep .3; echo b >&2")

    followed = host.docker("logs", "-f", "talker")

    assert (followed.stdout, followed.stderr) == ("a\n", "b\n")
    assert host.out("logs", "--tail", "1", "talker") == ""
    assert host.docker("logs", "-t", "talker").stdout.split(" ")[0].endswith("Z")
    host.out("rm", "talker")


def test_the_life_of_a_container(host: Host, running: str) -> None:
    assert host.out("inspect", "-f", "{{.State.Status}}", running) == "running"
    host.out("pause", running)
    assert host.out("ps", "--filter", "status=paused", "--format", "{{.Names}}") == running
    host.out("unpause", running)
    host.out("rename", running, "renamed")
    host.out("update", "--memory", "64m", "--memory-swap", "64m", "renamed")
    assert host.out("inspect", "-f", "{{.HostConfig.Memory}}", "renamed") == str(64 << 20)
    assert "sleep 1000" in host.out("top", "renamed")
    stats = json.loads(host.out("stats", "--no-stream", "--format", "{{json .}}", "renamed"))
    assert stats["MemUsage"].endswith("64MiB")
    host.out("kill", "renamed")
    assert host.out("wait", "renamed") == "137"
    host.out("start", "renamed")
    host.out("restart", "-t", "0", "renamed")
    host.out("stop", "-t", "0", "renamed")
    assert host.out("inspect", "-f", "{{.State.ExitCode}}", "renamed") == "137"


def test_files_in_and_out(host: Host, running: str, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("content")

    host.out("cp", str(tmp_path / "in"), f"{running}:/tmp/file")
    host.out("cp", f"{running}:/tmp/file", str(tmp_path / "out"))

    assert (tmp_path / "out").read_text() == "content"
    assert "A /tmp/file" in host.out("diff", running).splitlines()
    missing = host.docker("cp", f"{running}:/nope", str(tmp_path / "x"), check=False)
    assert missing.returncode == 1


def test_commit_export_save_and_import(host: Host, running: str, tmp_path: Path) -> None:
    host.out("exec", running, "sh", "-c", "echo kept > /kept")
    host.out("commit", "-c", 'CMD ["cat", "/kept"]', running, "committed:1")
    assert host.out("run", "--rm", "committed:1") == "kept"
    host.out("save", "-o", str(tmp_path / "i.tar"), "committed:1")
    host.out("rmi", "committed:1")
    assert "Loaded image: committed:1" in host.out("load", "-i", str(tmp_path / "i.tar"))
    assert host.out("history", "-q", "committed:1")
    host.out("export", "-o", str(tmp_path / "e.tar"), running)
    host.out("import", "-c", 'CMD ["cat","/kept"]', str(tmp_path / "e.tar"), "flat:1")
    assert host.out("run", "--rm", "flat:1") == "kept"
    host.out("tag", "flat:1", "other:2")
    assert "other:2" in host.out("images", "--format", "{{.Repository}}:{{.Tag}}").split()
    host.out("rmi", "flat:1", "other:2", "committed:1")


def test_events_tell_a_life(host: Host) -> None:
    host.out("run", "--rm", "--name", "told", "busybox", "true")

    told = host.out(
        "events", "--since", "1m", "--until", str(int(time.time()) + 1),
        "--filter", "container=told", "--format", "{{.Action}}",
    )  # fmt: skip

    assert [w for w in told.split() if w != "attach"] == ["create", "start", "die", "destroy"]


def test_clients_start_up_requests_are_answered(host: Host) -> None:
    info = json.loads(host.out("info", "--format", "{{json .}}"))

    assert info["OSType"] == "linux"
    networks = host.out("network", "ls", "--format", "{{.Name}}").split()
    assert [name for name in networks if name != "bridge"] == ["host", "none"]
    assert host.out("volume", "ls", "-q") == ""
    assert host.docker("build", "-", given="FROM x", check=False).returncode != 0


def test_conflicts_and_missing_things_are_one_sentence(host: Host, running: str) -> None:
    for words, sentence in (
        (("run", "--name", running, "busybox"), "is already in use by container"),
        (("rm", running), "is running"),
        (("start", "none-such"), "No such container: none-such"),
        (("rmi", "busybox"), "conflict"),
        (("run", "--network", "mine", "busybox"), "network mine not found"),
        (("run", "-m", "1m", "busybox"), "Minimum memory limit allowed is 6MB"),
    ):
        found = host.docker(*words, check=False)

        assert found.returncode != 0
        assert sentence in found.stderr, words


def test_what_runs_goes_on_while_the_daemon_is_killed(host: Host, running: str) -> None:
    pid = host.out("inspect", "-f", "{{.State.Pid}}", running)

    host.kill(signal.SIGKILL)
    host.start()

    assert (
        host.out("inspect", "-f", "{{.State.Pid}} {{.State.Status}}", running) == f"{pid} running"
    )
    assert host.out("exec", running, "echo", "still") == "still"


def test_a_second_daemon_ends_at_once(host: Host) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "tare.daemon"],
        env=host.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )

    assert second.returncode == 75
    assert "another daemon serves" in second.stderr
    assert host.out("version", "--format", "{{.Server.Version}}")


def test_docker_py_runs_and_reads(client: docker.DockerClient) -> None:
    assert client.ping()
    assert client.containers.run("busybox", ["echo", "hi"], remove=True) == b"hi\n"
    with pytest.raises(docker.errors.ContainerError) as caught:
        client.containers.run("busybox", ["sh", "-c", "echo no >&2; exit 3"], remove=True)
    assert caught.value.exit_status == 3
    with pytest.raises(docker.errors.NotFound):
        client.containers.get("none-such")


def test_docker_py_works_with_a_container(client: docker.DockerClient) -> None:
    made = client.containers.run(
        "busybox",
        ["sleep", "1000"],
        detach=True,
        mem_limit="64m",
        environment={"A": "b"},
        labels={"mine": "1"},
        cap_drop=["ALL"],
        ulimits=[docker.types.Ulimit(name="nofile", soft=64, hard=64)],
    )
    try:
        made.reload()
        assert made.status == "running"
        assert client.containers.list(filters={"label": "mine=1"}) == [made]
        code, (out, err) = made.exec_run(["sh", "-c", "echo $A; ulimit -n; echo e >&2"], demux=True)
        assert (code, out, err) == (0, b"b\n64\n", b"e\n")
        assert made.stats(stream=False)["memory_stats"]["limit"] == 64 << 20
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            entry = tarfile.TarInfo("put")
            entry.size = 3
            archive.addfile(entry, io.BytesIO(b"abc"))
        assert made.put_archive("/tmp", packed.getvalue())
        chunks, found = made.get_archive("/tmp/put")
        assert found["size"] == 3
        with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
            member = archive.extractfile("put")
            assert member is not None
            assert member.read() == b"abc"
        assert any("sleep" in row[-1] for row in made.top()["Processes"])
        made.stop(timeout=0)
        assert made.wait()["StatusCode"] == 137
    finally:
        made.remove(force=True)


def test_docker_py_attaches_with_a_socket(client: docker.DockerClient) -> None:
    made = client.containers.create("busybox", ["cat"], stdin_open=True)
    try:
        stream = made.attach_socket(params={"stdin": 1, "stdout": 1, "stream": 1})
        made.start()
        stream._sock.sendall(b"through\n")

        head = stream._sock.recv(8)
        assert (head, stream._sock.recv(100)) == (b"\1\0\0\0\0\0\0\x08", b"through\n")
        stream._sock.close()
    finally:
        made.remove(force=True)
