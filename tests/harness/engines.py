"""An engine of a test's own, driven by the real client, and what may be left of it: nothing.

Not for: the session's engine, which the client starts with the environment of the tests.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from harness.canaries import mounts_below, remove_parent

MARK: Final = "TARE_TEST_ENGINE"
_SOURCE: Final = Path(__file__).resolve().parents[2] / "src"
# As the launcher does it: isolated and without site, which makes the client start fast.
_CODE: Final = (
    f"import sys; sys.path[:0] = [{str(_SOURCE)!r}]; "
    f"sys.path.append({sysconfig.get_path('purelib')!r}); "
    "from tare.client.cli.main import main; sys.exit(main(sys.argv[1:]))"
)
_PYTHON: Final = os.path.realpath(sys.executable)
_PATIENCE: Final = 30.0  # a host may be many times slower than the one this was written on


def without_networks(directory: Path) -> Path:
    """Configure engines at *directory* so that they leave the host's network alone.

    Tests of networks run their engine in a network namespace of its own, without this.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.toml").write_text('[network]\ndefault = "none"\n')
    (directory / "config.toml").chmod(0o644)
    return directory


@dataclass
class Shown:
    """A container as ``inspect`` shows it."""

    id: str
    name: str
    status: str
    running: bool
    pid: int
    code: int
    error: str


@dataclass
class Engine:
    """State, run and config directories below *directory*, and a cgroup parent of its own."""

    directory: Path
    prefix: tuple[str, ...] = ()
    more: dict[str, str] = field(default_factory=dict)
    networks: bool = False  # whether it has a network namespace of its own, by *prefix*

    def __post_init__(self) -> None:
        self.run_dir, self.state = self.directory / "r", self.directory / "s"
        if not self.networks:
            without_networks(self.directory / "c")
        self.mark = os.urandom(6).hex()
        self.parent = f"{os.environ['TARE_CGROUP_PARENT']}-{self.mark}"
        self.environment = {
            **os.environ,
            "TARE_PYTHON": sys.executable,
            "TARE_STATE_DIR": str(self.state),
            "TARE_RUN_DIR": str(self.run_dir),
            "TARE_CONFIG_DIR": str(self.directory / "c"),
            "TARE_CGROUP_PARENT": self.parent,
            MARK: self.mark,
            **self.more,
        }

    # --- the client ---------------------------------------------------------------------------

    def command(self, *words: str) -> list[str]:
        """The command line of the client, for those who start it themselves."""
        return [*self.prefix, _PYTHON, "-I", "-S", "-c", _CODE, *words]

    def begin(self, *words: str) -> subprocess.Popen[str]:
        """The client at work."""
        return subprocess.Popen(
            self.command(*words),
            env=self.environment,
            cwd="/",
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def tare(self, *words: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """The client, at its end."""
        client = self.begin(*words)
        try:
            out, err = client.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            client.kill()
            client.communicate()
            raise
        return subprocess.CompletedProcess(words, client.returncode, out, err)

    def out(self, *words: str) -> str:
        """What the client prints when all goes well."""
        done = self.tare(*words)
        assert done.returncode == 0, (words, done.returncode, done.stderr, self.log())
        return done.stdout.strip()

    def log(self) -> str:
        """The end of the daemon's log."""
        with contextlib.suppress(OSError):
            return (self.run_dir / "daemon.log").read_text()[-2000:]
        return ""

    def all(self) -> dict[str, Shown]:
        """All records by name; starts the daemon if none answers."""
        ids = self.out("ps", "-aq", "--no-trunc").split()
        found = {}
        for item in json.loads(self.out("inspect", *ids)) if ids else []:
            state = item["State"]
            found[item["Name"].lstrip("/")] = Shown(
                item["Id"], item["Name"], state["Status"], state["Running"],
                state["Pid"], state["ExitCode"], state["Error"],
            )  # fmt: skip
        return found

    # --- its processes ------------------------------------------------------------------------

    def daemon(self) -> int:
        """The pid of the daemon; 0 if none lives."""
        return self._pid("daemon.pid")

    def keeper(self) -> int:
        """The pid of the keeper; 0 if none lives."""
        return self._pid("keeper.lock")

    def name_server(self) -> int:
        """The pid of the name server; 0 if none lives."""
        return self._pid("dns.lock")

    def _pid(self, name: str) -> int:
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid = int((self.run_dir / name).read_text().split()[0])
            if pid in self.marked():
                return pid
        return 0

    def marked(self) -> dict[int, int]:
        """The processes that carry our mark (daemon, keeper and its copies): pid to parent."""
        found = {}
        mark = f"{MARK}={self.mark}".encode()
        for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
            with contextlib.suppress(OSError):
                if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                    if fields[0] != "Z":
                        found[pid] = int(fields[1])
        return found

    def kill(self, *pids: int) -> None:
        """kill -9, all of them before the end of any is waited for."""
        handles = []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                if pid:
                    handles.append(os.pidfd_open(pid))
                    os.kill(pid, signal.SIGKILL)
        for handle in handles:
            select.select([handle], [], [], _PATIENCE)
            os.close(handle)

    # --- the truth ----------------------------------------------------------------------------

    def lies(self, clients: tuple[int, ...] = ()) -> list[str]:
        """Everything in which records, processes, cgroups and directories disagree."""
        records = {shown.id: shown for shown in self.all().values()}
        running = {identity for identity, shown in records.items() if shown.running}
        found = []
        for identity, shown in records.items():
            where = f"{shown.name} {identity[:12]} {shown.status}"
            if shown.running and not _in_group(shown.pid, identity):
                found.append(f"{where}: pid {shown.pid} is none of its processes")
            if not shown.running and shown.pid:
                found.append(f"{where}: shows pid {shown.pid}")
        groups = {path.name for path in self.groups()}
        found += [f"cgroup of {name[:12]} left" for name in groups - running]
        for base, known in ((self.state, set(records)), (self.run_dir, running)):
            names = set(os.listdir(base / "workloads"))
            found += [f"{base}/workloads/{name[:12]} left" for name in names - known]
            found += [f"{base}/workloads/{name[:12]} is gone" for name in known - names]
        found += [f"mount left: {point}" for point in mounts_below(self.directory)]
        own = {self.daemon(), self.keeper(), self.name_server(), *clients}
        for pid, parent in self.marked().items():
            if pid not in own and parent != self.keeper():
                found.append(f"process left: {pid}, child of {parent}")
        return found

    def groups(self) -> list[Path]:
        """The directories of containers' cgroups, in every hierarchy."""
        found = [path for top in self._parents() for path in top.iterdir() if path.is_dir()]
        projects = [path for path in found if path.name.startswith("project-")]
        found += [path for top in projects for path in top.iterdir() if path.is_dir()]
        return [path for path in found if not path.name.startswith(("spare-", "project-"))]

    def _parents(self) -> list[Path]:
        top = Path("/sys/fs/cgroup")
        return [*top.glob(self.parent), *top.glob(f"*/{self.parent}")]

    def settled_lies(self) -> list[str]:
        """`lies` that stay: what is being taken down gets a moment to go."""
        end = time.monotonic() + _PATIENCE
        while (found := self.lies()) and time.monotonic() < end:
            time.sleep(0.05)
        return found

    def end(self) -> list[str]:
        """Remove every container, end daemon and keeper; what is left then."""
        ids = self.out("ps", "-aq").split()
        if ids:
            self.tare("rm", "-f", *ids)
        found = self.settled_lies()
        self.stop()
        return found

    def stop(self) -> None:
        """End daemon, keeper and their copies, and remove the cgroup parent."""
        end = time.monotonic() + _PATIENCE
        while (pids := [p for p in (self.daemon(), self.keeper(), *self.marked()) if p]) and (
            time.monotonic() < end
        ):
            self.kill(*pids)
            time.sleep(0.02)
        for path in self._parents():
            remove_parent(path)


def _in_group(pid: int, identity: str) -> bool:
    try:
        return identity in Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return False
