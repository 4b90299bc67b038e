"""Where an engine keeps its things: one value, made once by the daemon.

::

    state/format                   "1"; a newer number is refused
    state/state.db                 engine.store
    state/workloads/ID/            0700: upper/ work/ log files/{hosts,hostname,resolv.conf}
    state/spare/N/                 workload directories with empty layers, to be used again
    state/trash/N/                 removed ones, deleted in the background
    run/workloads/ID/              FIFOs and the exit file, the keeper's
    run/{daemon.lock,daemon.pid,tare.sock,keeper.sock,keeper.lock}

Not for: what lies in images' directories (image.store owns those).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from tare.errors import FailedError
from tare.kernel import files

FORMAT: Final = "1"


@dataclass(frozen=True, slots=True)
class Paths:
    """The three roots of an engine and the names below them."""

    state: Path
    run: Path
    config: Path
    cgroup_parent: str = "tare"
    rootless: bool = False

    @classmethod
    def detect(cls, environ: Mapping[str, str] | None = None, *, uid: int | None = None) -> Self:
        """The paths of the system engine (root) or of the user's own, environment honoured."""
        env = os.environ if environ is None else environ
        user = os.geteuid() if uid is None else uid
        if user == 0:
            state, run = Path("/var/lib/tare"), Path("/run/tare")
            config = Path("/etc/tare")
        else:
            home = Path(env.get("HOME") or "/nonexistent")
            data = env.get("XDG_DATA_HOME")
            state = (Path(data) if data else home / ".local/share") / "tare"
            runtime = env.get("XDG_RUNTIME_DIR")
            run = Path(runtime) / "tare" if runtime else Path(f"/tmp/tare-{user}")  # noqa: S108
            settings = env.get("XDG_CONFIG_HOME")
            config = (Path(settings) if settings else home / ".config") / "tare"
        return cls(
            state=_override(env, "TARE_STATE_DIR", state),
            run=_override(env, "TARE_RUN_DIR", run),
            config=_override(env, "TARE_CONFIG_DIR", config),
            cgroup_parent=env.get("TARE_CGROUP_PARENT") or "tare",
            rootless=user != 0,
        )

    @property
    def database(self) -> Path:
        """The engine's SQLite file."""
        return self.state / "state.db"

    @property
    def workloads(self) -> Path:
        """The directory of what containers write."""
        return self.state / "workloads"

    @property
    def trash(self) -> Path:
        """Where removed workload directories wait for their deletion."""
        return self.state / "trash"

    @property
    def spare(self) -> Path:
        """Where workload directories that nobody wrote to wait to be used again."""
        return self.state / "spare"

    @property
    def files(self) -> Path:
        """Where each container's hosts, hostname and resolv.conf are; written at every start."""
        return self.run / "files"

    @property
    def socket(self) -> Path:
        """The API's unix socket."""
        return self.run / "tare.sock"

    @property
    def lock(self) -> Path:
        """Held by the one daemon of these paths."""
        return self.run / "daemon.lock"

    def workload(self, identity: str) -> Path:
        """The directory of one container below the state root."""
        return self.state / "workloads" / identity

    def runtime(self, identity: str) -> Path:
        """The directory of one container that dies with the boot."""
        return self.run / "workloads" / identity

    def prepare(self) -> None:
        """Make the directories, private to the engine's user; refuse a newer state format."""
        for path in (self.state, self.run):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            owner = path.stat().st_uid
            if owner != os.geteuid():
                raise FailedError(
                    f"{path} belongs to user {owner}, not to the engine's user {os.geteuid()}",
                    hint="set TARE_STATE_DIR and TARE_RUN_DIR to directories of your own",
                )
        # Others pass through the run directory of root's engine to its socket, nothing else.
        self.run.chmod(0o700 if self.rootless else 0o711)
        self.state.chmod(0o700)
        for path in (self.workloads, self.trash, self.spare, self.run / "workloads", self.files):
            path.mkdir(exist_ok=True, mode=0o700)
            path.chmod(0o700)
        self._check_format()

    def _check_format(self) -> None:
        marker = self.state / "format"
        try:
            found = marker.read_text("ascii").strip()
        except FileNotFoundError:
            files.replace(marker, FORMAT.encode() + b"\n", mode=0o644)
            return
        if found != FORMAT:
            raise FailedError(
                f"{self.state} was written in format {found!r}, and this tare reads {FORMAT!r}",
                hint="use the tare that wrote it, or another TARE_STATE_DIR",
            )


def _override(env: Mapping[str, str], name: str, default: Path) -> Path:
    value = env.get(name)
    return Path(value).absolute() if value else default
