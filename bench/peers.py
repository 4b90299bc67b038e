"""The engines that tare is measured against: how to get them, and what each needs to run.

    python3 bench/peers.py install      Debian's runc, crun and podman; dockerd is only unpacked
    python3 bench/peers.py install --newer    those of Debian's trixie, in a root of their own
                                        (`newer`): where it is, they are measured, not the host's
    python3 bench/peers.py check        starts each that is here, runs `true` by it, stops it

Nothing is started as a service, and no program on PATH is replaced: dockerd and containerd lie in
a cache directory (``TARE_BENCH_PEERS``) and run with directories, sockets and pid files of their
own. Every daemon is stopped by the pid that started it. Not for measuring: that is ``rows``.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import newer
from engines import IMAGE, Api, BenchError, Engine

from harness import images

ROOT: Final = Path(__file__).resolve().parent.parent
_CLONE_NEWNS: Final = 0x00020000
_PR_SET_CHILD_SUBREAPER: Final = 36
_CGROUPS: Final = Path("/sys/fs/cgroup")
_MS_REC, _MS_PRIVATE, _MNT_DETACH = 0x4000, 0x40000, 2

# ulimits: raising them needs CAP_SYS_RESOURCE, which a host may lack; none by default is fair to
# all. Without systemd there is neither its cgroup manager nor its journal.
_CONTAINERS_CONF: Final = """\
[containers]
default_ulimits = []
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
firewall_driver = "iptables"
"""


_NO_NETWORKS: Final = ("--bridge", "none", "--ip-forward=false", "--iptables=false")


def cache() -> Path:
    """Where unpacked peers are kept."""
    return Path(os.environ.get("TARE_BENCH_PEERS", "/var/cache/tare-bench/peers"))


def install() -> None:
    """Fetch the peers; as root, with a network."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    packages = ["runc", "crun", "podman", "busybox-static"]
    apt = ["apt-get", "-y", "-qq", "--no-install-recommends", "install", *packages]
    subprocess.run(apt, check=True, env=environment, stdin=subprocess.DEVNULL)
    target = cache()
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        command = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download"]
        subprocess.run([*command, "docker.io", "containerd"], check=True, cwd=scratch)
        for package in sorted(Path(scratch).glob("*.deb")):
            subprocess.run(["dpkg-deb", "--extract", str(package), str(target)], check=True)
    print(f"peers: dockerd and containerd are in {target}, the others on PATH")


def see_only_v1_cgroups() -> None:
    """Enter a private mount namespace without the v2 hierarchy of a hybrid host.

    crun (and podman on it) refuses a hybrid host. Where only v2 is mounted, nothing changes.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0 or libc.mount(
        None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None
    ):
        error = ctypes.get_errno()
        raise OSError(error, f"no private mount namespace: {os.strerror(error)}")
    if os.path.ismount("/sys/fs/cgroup/unified"):
        libc.umount2(b"/sys/fs/cgroup/unified", _MNT_DETACH)


def busybox_image(directory: Path) -> tuple[Path, Path]:
    """A busybox root file system and the same as an archive that engines load."""
    root = images.lay_busybox(directory / "busybox")
    config: dict[str, object] = {"Cmd": ["sh"], "Env": ["PATH=/bin"]}
    return root, images.docker_archive(root, directory / "busybox.tar", IMAGE, config)


def adopt_orphans() -> None:
    """Become the parent of monitors whose starter is gone: not every init reaps them."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def reap_orphans() -> None:
    """Collect the ended ones; only when nothing that this process itself waits for is under way."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


class Daemon:
    """A background process with a log, stopped by its own pid."""

    def __init__(self, command: list[str], log: Path, environment: dict[str, str]) -> None:
        self._log = log
        with open(log, "wb") as out:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, **environment},
                start_new_session=True,
            )

    def wait_for(self, path: Path, patience: float = 60.0) -> None:
        """Return once something answers on the socket at *path*."""
        end = time.monotonic() + patience
        while time.monotonic() < end:
            if self._process.poll() is not None:
                break
            if path.exists():
                with contextlib.suppress(BenchError):
                    api = Api(str(path), timeout=10)
                    api.ask("GET", "/_ping")
                    api.close()
                    return
            time.sleep(0.05)
        raise BenchError(f"nothing answers on {path}: {self._log.read_text()[-600:]}")

    def wait_for_file(self, path: Path, patience: float = 30.0) -> None:
        """Return once *path* exists."""
        end = time.monotonic() + patience
        while not path.exists():
            if self._process.poll() is not None or time.monotonic() > end:
                raise BenchError(f"{path} does not appear: {self._log.read_text()[-600:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL to one that does not heed it."""
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _remove_containers(engine: Engine) -> None:
    with contextlib.suppress(BenchError):
        api = engine.api()
        for container in json.loads(api.ask("GET", "/containers/json?all=true")):
            api.remove(container["Id"])
        api.close()


def _end_processes(mark: str) -> None:
    """Kill what an engine left running (podman's monitors of exec stay for five minutes).

    *mark* is the engine's own temporary directory, so nobody else's process carries it.
    """
    for pid in Engine("", "", [], mark).pids():
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def _cgroups_removed(name: str) -> Iterator[None]:
    """Remove the peer's own top cgroup afterwards, unless the host had it before."""
    tops = [Path(base) / name for base in _CGROUPS.iterdir() if base.is_dir()]
    fresh = [top for top in tops if not top.exists()]
    yield
    end = time.monotonic() + 5
    while any(top.exists() for top in fresh) and time.monotonic() < end:
        # One that was killed keeps its cgroup until it is reaped.
        reap_orphans()
        for top in fresh:
            for directory, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    Path(directory).rmdir()
        time.sleep(0.02)


def _unmount_below(directory: Path) -> None:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split(" ")[4] for line in lines]
    for point in reversed([p for p in points if p.startswith(f"{directory}/")]):
        subprocess.run(["umount", "--lazy", point], check=False)


@contextlib.contextmanager
def docker(directory: Path, archive: Path) -> Iterator[Engine]:
    """Debian's dockerd on its own containerd, without networks."""
    base = directory / "docker"
    base.mkdir()
    with newer.entered(cache(), directory) as inside:
        yield from _docker(base, archive, inside)


def _docker(base: Path, archive: Path, inside: list[str]) -> Iterator[Engine]:
    networks = not os.environ.get("TARE_SOCKET")  # then this is a network namespace of our own
    programs = cache() / "usr"
    dockerd = programs / "sbin/dockerd"
    search = f"{programs}/bin:{programs}/sbin:{os.environ['PATH']}"
    if inside:
        dockerd, search = Path("/usr/sbin/dockerd"), os.environ["PATH"]
    elif not dockerd.exists():
        found = shutil.which("dockerd")
        if found is None:
            raise BenchError("dockerd is not here (python3 bench/peers.py install)")
        dockerd = Path(found)
    client = shutil.which("docker") or str(programs / "bin/docker")
    endpoint, containerd = base / "docker.sock", base / "containerd.sock"
    (base / "daemon.json").write_text("{}")  # so that the host's own settings do not count
    config = base / "containerd.toml"
    config.write_text(
        f'version = 2\nroot = "{base}/containerd"\nstate = "{base}/containerd-run"\n'
        f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{containerd}"\n'
    )
    with _cgroups_removed("docker"), contextlib.ExitStack() as stack:
        stack.callback(_unmount_below, base)
        stack.callback(_end_processes, str(base))
        below = (
            Daemon(
                [*inside, "containerd", "--config", str(config)],
                base / "containerd.log",
                {"PATH": search},
            )
            if inside or shutil.which("containerd", path=search)
            else None
        )
        if below is None:
            raise BenchError("containerd is not here (python3 bench/peers.py install)")
        stack.callback(below.stop)
        below.wait_for_file(containerd)
        daemon = Daemon(
            [*inside, str(dockerd), "--host", f"unix://{endpoint}", "--containerd", str(containerd),
             "--data-root", str(base / "data"), "--exec-root", str(base / "exec"),
             "--pidfile", str(base / "docker.pid"), "--config-file", str(base / "daemon.json"),
             "--exec-opt", "native.cgroupdriver=cgroupfs", "--storage-driver", "overlay2",
             "--ip6tables=false", *(() if networks else _NO_NETWORKS)],
            base / "dockerd.log", {"PATH": search},
        )  # fmt: skip
        stack.callback(daemon.stop)
        daemon.wait_for(endpoint)
        command = [client, "--host", f"unix://{endpoint}"]
        engine = Engine("docker", str(endpoint), command, str(base), _client_of_docker(base))
        stack.callback(_remove_containers, engine)
        engine.cli("load", "--quiet", "--input", str(archive))
        engine.version = _version(engine)
        yield engine


def _client_of_docker(base: Path) -> dict[str, str]:
    """Variables that give docker's client a configuration of its own, with buildx if it is here."""
    config = base / "client"
    (config / "cli-plugins").mkdir(parents=True)
    buildx = newer.plugin(cache(), "docker-buildx")
    if buildx is not None:
        (config / "cli-plugins/docker-buildx").symlink_to(buildx)
    return {"DOCKER_CONFIG": str(config)}


@contextlib.contextmanager
def podman(directory: Path, archive: Path) -> Iterator[Engine]:
    """Podman on crun (else runc), with its API served from directories of its own."""
    base = directory / "podman"
    base.mkdir()
    with newer.entered(cache(), directory) as inside:
        yield from _podman(base, archive, inside)


def _podman(base: Path, archive: Path, inside: list[str]) -> Iterator[Engine]:
    program = "podman" if inside else shutil.which("podman")
    if program is None:
        raise BenchError("podman is not here (python3 bench/peers.py install)")
    (base / "networks").mkdir()
    configured = f'{_CONTAINERS_CONF}network_config_dir = "{base}/networks"\n'
    (base / "containers.conf").write_text(configured)
    runtime = "crun" if inside else shutil.which("crun") or shutil.which("runc") or "crun"
    command = [*inside, program, "--root", f"{base}/root", "--runroot", f"{base}/run", "--tmpdir",
               f"{base}/tmp", "--storage-driver", "overlay", "--runtime", runtime]  # fmt: skip
    environment = {"CONTAINERS_CONF": f"{base}/containers.conf"}
    endpoint = base / "podman.sock"
    with _cgroups_removed("libpod_parent"), contextlib.ExitStack() as stack:
        stack.callback(_unmount_below, base)
        stack.callback(_end_processes, str(base))
        engine = Engine("podman", str(endpoint), command, str(base), environment)
        engine.cli("load", "--quiet", "--input", str(archive))
        serve = [*command, "system", "service", "--time=0", f"unix://{endpoint}"]
        daemon = Daemon(serve, base / "podman.log", environment)
        stack.callback(daemon.stop)
        stack.callback(_remove_containers, engine)
        daemon.wait_for(endpoint)
        engine.version = _version(engine)
        yield engine


@contextlib.contextmanager
def tare(directory: Path, archive: Path) -> Iterator[Engine]:
    """This checkout's engine: the one at TARE_SOCKET, else one with directories of its own."""
    client = ROOT / ".venv/bin/tare"
    if not client.exists():
        raise BenchError("tare is not set up (./dev setup)")
    given = os.environ.get("TARE_SOCKET")
    if given:
        engine = Engine("tare", given, [str(client)], "tare.", {"TARE_HOST": f"unix://{given}"})
        engine.cli("load", "--quiet", "--input", str(archive))
        engine.version = _version(engine)
        yield engine
        return
    base = directory / "tare"
    base.mkdir()
    environment = {
        "TARE_STATE_DIR": f"{base}/state",
        "TARE_RUN_DIR": f"{base}/run",
        "TARE_CONFIG_DIR": f"{base}/config",
        "TARE_CGROUP_PARENT": f"tare-bench-{os.getpid()}",
    }
    endpoint = base / "run/tare.sock"
    with _cgroups_removed(environment["TARE_CGROUP_PARENT"]), contextlib.ExitStack() as stack:
        stack.callback(_unmount_below, base)
        stack.callback(_stop_keeper, base / "run/keeper.lock", str(base))
        daemon = Daemon([str(ROOT / ".venv/bin/tared")], base / "daemon.log", environment)
        stack.callback(daemon.stop)
        engine = Engine("tare", str(endpoint), [str(client)], str(base), environment)
        stack.callback(_remove_containers, engine)
        daemon.wait_for(endpoint)
        engine.cli("load", "--quiet", "--input", str(archive))
        engine.version = _version(engine)
        yield engine


def _stop_keeper(pid_file: Path, mark: str) -> None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        pid = int(pid_file.read_text().split()[0])
        if mark.encode() in Path(f"/proc/{pid}/environ").read_bytes():
            os.kill(pid, signal.SIGKILL)  # all that ends a keeper


def _version(engine: Engine) -> str:
    api = engine.api()
    told = json.loads(api.ask("GET", "/version"))
    api.close()
    return str(told.get("Version", ""))


ENGINES: Final = {"tare": tare, "podman": podman, "docker": docker}


class Runtime:
    """A bare OCI runtime (runc, crun) with one bundle of the busybox image."""

    def __init__(self, name: str, directory: Path, rootfs: Path, inside: list[str]) -> None:
        program = name if inside else shutil.which(name)
        if program is None:
            raise BenchError(f"{name} is not here (python3 bench/peers.py install)")
        self.name, self._program = name, [*inside, program]
        self._base = directory / name
        self._base.mkdir()
        self._bundle("true", rootfs, ["true"])
        self._bundle("idle", rootfs, ["sleep", "1000000"])
        self._count = 0
        first = subprocess.run(
            [*self._program, "--version"], capture_output=True, text=True, check=True
        )
        self.version = first.stdout.split("\n")[0].split()[-1]

    def _bundle(self, name: str, rootfs: Path, command: list[str]) -> None:
        bundle = self._base / name
        bundle.mkdir()
        made = subprocess.run(
            [*self._program[:-1], "sh", "-c", f"cd {bundle} && exec {self._program[-1]} spec"],
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        if made.returncode != 0:
            raise BenchError(f"{self.name} spec: {made.stderr.strip()[-300:]}")
        path = bundle / "config.json"
        spec = json.loads(path.read_text())
        spec["process"].update(args=command, terminal=False, env=["PATH=/bin"])
        spec["root"] = {"path": str(rootfs), "readonly": True}
        path.write_text(json.dumps(spec))

    def _call(self, *arguments: str) -> None:
        command = [*self._program, "--root", str(self._base / "state"), *arguments]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise BenchError(f"{self.name} {arguments[0]}: {done.stderr.strip()[-300:]}")

    def run_true(self, client: int = 0) -> None:
        """One container from start to exit, removed."""
        self._count += 1
        name = f"tare-bench-{os.getpid()}-{client}-{self._count}"
        self._call("run", "--bundle", str(self._base / "true"), name)

    @contextlib.contextmanager
    def idle(self) -> Iterator[str]:
        """A container that runs until the end of the block; its name."""
        name = f"tare-bench-{os.getpid()}-idle"
        # The container must not hold our pipes: run it as a background process.
        command = [*self._program, "--root", str(self._base / "state"), "run", "--detach",
                   "--bundle", str(self._base / "idle"), name]  # fmt: skip
        nothing = subprocess.DEVNULL
        subprocess.run(command, check=True, stdin=nothing, stdout=nothing, stderr=nothing)
        try:
            yield name
        finally:
            self._call("delete", "--force", name)

    def exec_true(self, name: str) -> None:
        """Run `true` in the idle container."""
        self._call("exec", name, "true")


def floor_program(directory: Path) -> Path:
    """The C program of floor.c, compiled; BenchError without a compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise BenchError("no C compiler is here (./dev setup bench)")
    program = directory / "floor"
    source = Path(__file__).resolve().parent / "floor.c"
    subprocess.run([compiler, "-O2", "-Wall", "-o", str(program), str(source)], check=True)
    return program


def host() -> dict[str, object]:
    """The facts of the host that a figure is worth nothing without."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "processor": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def check() -> int:
    """Start each peer, run `true` by it, stop it, and say how it went."""
    failures = 0
    adopt_orphans()
    see_only_v1_cgroups()
    with tempfile.TemporaryDirectory(prefix="tare-bench-", dir="/var/tmp") as name:
        directory = Path(name)
        rootfs, archive = busybox_image(directory)
        for peer, start in ENGINES.items():
            try:
                with start(directory, archive) as engine:
                    engine.api().run_true()
                    engine.cli("run", "--rm", "--network", "none", IMAGE, "true")
                    print(f"peers: {peer} {engine.version}: works")
            except (BenchError, OSError) as error:
                failures += 1
                print(f"peers: {peer}: {error}")
        for runtime in ("crun", "runc"):
            try:
                with newer.entered(cache(), directory) as inside:
                    one = Runtime(runtime, directory, rootfs, inside)
                    one.run_true()
                    print(f"peers: {runtime} {one.version}: works")
            except (BenchError, OSError) as error:
                failures += 1
                print(f"peers: {runtime}: {error}")
    reap_orphans()
    return 1 if failures else 0


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["install"]:
            install()
        case ["install", "--newer"]:
            newer.install(cache())
        case ["check"]:
            sys.exit(check())
        case _:
            sys.exit("usage: python3 bench/peers.py install [--newer] | check")
