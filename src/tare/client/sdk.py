"""The Python SDK: what `tare` does, typed and synchronous.

::

    import tare

    result = tare.run("debian:bookworm", ["id"], memory="64m", timeout=5)
    with tare.connect() as client:
        container = client.containers.create("debian:bookworm", ["sleep", "60"])
        container.start()

Errors are those of `tare.errors`. A client may be used by one thread at a time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Unpack

from tare.client import document, runspec, streams
from tare.client.cli.ps import filters as encoded_filters
from tare.client.document import flag, mapping, number, text
from tare.client.sdk_networks import Networks
from tare.client.sdk_values import (
    ContainerSummary,
    ImageSummary,
    Options,
    Result,
    Usage,
    flags_of,
)
from tare.client.sdk_volumes import Volumes
from tare.client.transport import Connection, Daemon, quoted, segment, target
from tare.errors import FailedError, InvalidError, TareError

if TYPE_CHECKING:
    from types import TracebackType

    from tare.client.document import Json

_TAR = "application/x-tar"
_GRACE_SECONDS = 10.0  # for a killed container to be gone


class Container:
    """One container, by its id; every method asks the daemon afresh."""

    def __init__(self, daemon: Daemon, identity: str) -> None:
        self._daemon = daemon
        self.id = identity

    def __repr__(self) -> str:
        return f"<Container {self.id[:12]}>"

    def _post(self, verb: str, query: Mapping[str, str | int | bool] | None = None) -> Json:
        return self._daemon.call("POST", target(f"/containers/{self.id}/{verb}", query or {}))

    def inspect(self) -> dict[str, Json]:
        """All details, as ``tare inspect`` prints them."""
        return mapping(self._daemon.call("GET", f"/containers/{self.id}/json"))

    @property
    def name(self) -> str:
        """Its name, without a slash."""
        return text(self.inspect(), "Name").lstrip("/")

    @property
    def state(self) -> str:
        """created, running, paused, restarting, exited, removing or dead."""
        return text(self.inspect(), "State", "Status")

    def start(self) -> None:
        """Start it; starting a running one changes nothing."""
        self._post("start")

    def stop(self, *, timeout: int | None = None, signal: str = "") -> None:
        """Ask it to stop, and kill it after *timeout* seconds (None: its own, else 10)."""
        self._post("stop", {"t": "" if timeout is None else str(timeout), "signal": signal})

    def restart(self, *, timeout: int | None = None) -> None:
        """Stop and start it."""
        self._post("restart", {"t": "" if timeout is None else str(timeout)})

    def kill(self, signal: str = "KILL") -> None:
        """Send it a signal; ConflictError when it does not run."""
        self._post("kill", {"signal": signal})

    def pause(self) -> None:
        """Freeze its processes."""
        self._post("pause")

    def unpause(self) -> None:
        """Let them go on."""
        self._post("unpause")

    def rename(self, name: str) -> None:
        """Give it another name; ConflictError when that is taken."""
        self._post("rename", {"name": name})

    def wait(self) -> int:
        """Wait until it does not run; its exit code."""
        return number(self._post("wait"), "StatusCode")

    def remove(self, *, force: bool = False) -> None:
        """Remove it; a running one is a ConflictError unless *force* kills it."""
        self._daemon.call("DELETE", target(f"/containers/{self.id}", {"force": force, "v": True}))

    def logs(self, *, tail: int | None = None, timestamps: bool = False) -> tuple[bytes, bytes]:
        """What it has printed: standard output and standard error."""
        query: dict[str, str | int | bool] = {
            "stdout": True,
            "stderr": True,
            "tail": "all" if tail is None else str(tail),
            "timestamps": timestamps,
        }
        raw = self._daemon.open("GET", target(f"/containers/{self.id}/logs", query)).read()
        if flag(self.inspect(), "Config", "Tty"):
            return raw, b""
        collected = _Collected()
        collected.frames.feed(raw)
        return collected.out()

    def exec(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        user: str = "",
        workdir: str = "",
        stdin: bytes = b"",
    ) -> Result:
        """Run *command* inside and wait for it; a missing program is exit code 127."""
        body: dict[str, Json] = {
            "AttachStdin": bool(stdin),
            "AttachStdout": True,
            "AttachStderr": True,
            "Cmd": list(command),
            "Env": [f"{key}={value}" for key, value in (env or {}).items()],
            "User": user,
            "WorkingDir": workdir,
        }
        made = text(self._daemon.call("POST", f"/containers/{self.id}/exec", body), "Id")
        order: dict[str, Json] = {"Detach": False, "Tty": False}
        attached = self._daemon.open("POST", f"/exec/{made}/start", order, upgrade=True)
        collected = _Collected()
        _converse(attached.connection, collected, stdin, None)
        attached.connection.close()
        out, err = collected.out()
        code = number(self._daemon.call("GET", f"/exec/{made}/json"), "ExitCode")
        return Result(exit_code=code, stdout=out, stderr=err)

    def stats(self) -> dict[str, Json]:
        """What it uses now, as the API gives it."""
        where = f"/containers/{self.id}/stats?stream=0&one-shot=1"
        return mapping(self._daemon.call("GET", where))

    def update(self, **options: Unpack[Options]) -> list[str]:
        """Change its limits; the warnings."""
        body = runspec.create_body(flags_of(options), [""], detached=True)
        limits = mapping(body, "HostConfig")
        answer = self._daemon.call("POST", f"/containers/{self.id}/update", limits)
        return document.strings(answer, "Warnings")

    def get_archive(self, path: str) -> Iterator[bytes]:
        """A tar archive of *path* inside, in pieces. It is hostile data: unpack with care."""
        where = target(f"/containers/{self.id}/archive", {"path": path})
        return self._daemon.open("GET", where).pieces()

    def put_archive(self, path: str, archive: bytes | Iterator[bytes]) -> None:
        """Unpack a tar archive into the directory *path* inside."""
        where = target(f"/containers/{self.id}/archive", {"path": path})
        pieces = iter([archive]) if isinstance(archive, bytes) else archive
        self._daemon.open("PUT", where, pieces, kind=_TAR).connection.close()

    def changes(self) -> list[tuple[str, str]]:
        """What it changed: (``A``, ``C`` or ``D``, path)."""
        listed = document.items(self._daemon.call("GET", f"/containers/{self.id}/changes"))
        return [("CAD"[number(each, "Kind")], text(each, "Path")) for each in listed]

    def commit(self, repository: str = "", tag: str = "", *, message: str = "") -> str:
        """Make an image of it; the image's id."""
        query = {"container": self.id, "repo": repository, "tag": tag, "comment": message}
        return text(self._daemon.call("POST", target("/commit", query)), "Id")

    def export(self) -> Iterator[bytes]:
        """Its whole file system as a tar archive, in pieces."""
        return self._daemon.open("GET", f"/containers/{self.id}/export").pieces()


class Containers:
    """The containers of one engine."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def create(
        self, image: str, command: Sequence[str] = (), **options: Unpack[Options]
    ) -> Container:
        """Make a container without starting it; MissingError when the image is not there."""
        flags = flags_of(options)
        body = runspec.create_body(flags, [image, *command], detached=False)
        where = target("/containers/create", {"name": options.get("name", "")})
        return Container(self._daemon, text(self._daemon.call("POST", where, body), "Id"))

    def get(self, name: str) -> Container:
        """The container of that name, id or unique beginning of an id; else MissingError."""
        details = self._daemon.call("GET", f"/containers/{segment(name)}/json")
        return Container(self._daemon, text(details, "Id"))

    def list(self, *, all: bool = False, filters: Sequence[str] = ()) -> list[ContainerSummary]:
        """Running ones, or *all*; *filters* as ``status=exited``."""
        query: dict[str, str | int | bool] = {"all": all, "filters": encoded_filters([*filters])}
        listed = document.items(self._daemon.call("GET", target("/containers/json", query)))
        return [
            ContainerSummary(
                id=text(each, "Id"),
                name=next(iter(document.strings(each, "Names")), "").lstrip("/"),
                image=text(each, "Image"),
                state=text(each, "State"),
                status=text(each, "Status"),
                created=number(each, "Created"),
                labels=_labels(each),
            )
            for each in listed
        ]

    def prune(self) -> int:
        """Remove all that are stopped; the bytes that were freed."""
        return number(self._daemon.call("POST", "/containers/prune"), "SpaceReclaimed")


class Images:
    """The images of one engine."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def list(self, *, filters: Sequence[str] = ()) -> list[ImageSummary]:
        """All images, or those for which *filters* hold (``label=a=b``)."""
        query = {"filters": encoded_filters([*filters])}
        listed = document.items(self._daemon.call("GET", target("/images/json", query)))
        return [
            ImageSummary(
                id=text(each, "Id"),
                tags=tuple(document.strings(each, "RepoTags")),
                size=number(each, "Size"),
                created=number(each, "Created"),
                labels=_labels(each),
            )
            for each in listed
        ]

    def inspect(self, name: str) -> dict[str, Json]:
        """All details; MissingError when it is not there."""
        return mapping(self._daemon.call("GET", f"/images/{quoted(name)}/json"))

    def load(self, path: str | os.PathLike[str]) -> tuple[str, ...]:
        """Load an archive; what the engine says of each image in it."""
        with open(path, "rb") as file:
            pieces = iter(lambda: file.read(256 << 10), b"")
            return tuple(_said(self._daemon, "/images/load?quiet=1", pieces))

    def save(self, names: Sequence[str], path: str | os.PathLike[str]) -> None:
        """Write images as an archive."""
        where = "/images/get?" + "&".join(target("", {"names": name})[1:] for name in names)
        response = self._daemon.open("GET", where)
        with open(path, "wb") as file:
            for piece in response.pieces():
                file.write(piece)

    def pull(
        self, name: str, *, platform: str = "", credentials: tuple[str, str] | None = None
    ) -> str:
        """Bring an image from its registry; its id. *credentials*: user and password.

        Without them those of ``~/.docker/config.json`` are used. MissingError when the registry
        has no such image, or says nothing about it to strangers.
        """
        from tare.client.cli import transfers

        reference = transfers.parsed(name).with_default_tag()
        query = {
            "fromImage": reference.name,
            "tag": str(reference.digest or reference.tag),
            "platform": platform,
        }
        self._transfer(target("/images/create", query), reference.domain, credentials)
        return text(self.inspect(str(reference)), "Id")

    def push(self, name: str, *, credentials: tuple[str, str] | None = None) -> str:
        """Give an image to the registry in its name; the digest by which it is there."""
        from tare.client.cli import transfers

        reference = transfers.parsed(name).with_default_tag()
        where = target(f"/images/{quoted(reference.name)}/push", {"tag": reference.tag or ""})
        pushed = self._transfer(where, reference.domain, credentials)
        return next((text(one, "Digest") for one in pushed if text(one, "Digest")), "")

    def _transfer(
        self, where: str, domain: str, credentials: tuple[str, str] | None
    ) -> Sequence[Json]:
        from tare.client import credentials as stored
        from tare.client import progress

        who = stored.find(domain) if credentials is None else stored.given(domain, *credentials)
        response = self._daemon.open("POST", where, headers=stored.header(who))
        return progress.display(response, quiet=True)

    def tag(self, name: str, repository: str, tag: str = "latest") -> None:
        """Give an image another name."""
        where = target(f"/images/{quoted(name)}/tag", {"repo": repository, "tag": tag})
        self._daemon.call("POST", where)

    def remove(self, name: str, *, force: bool = False) -> None:
        """Remove a name, and the image with its last one."""
        self._daemon.call("DELETE", target(f"/images/{quoted(name)}", {"force": force}))

    def bootstrap(
        self, name: str, *, suite: str = "", variant: str = "minbase", packages: Sequence[str] = ()
    ) -> None:
        """Make a base image from Debian's signed packages; the suite is the tag by default."""
        query = {
            "suite": suite or name.rpartition(":")[2],
            "variant": variant,
            "packages": ",".join(packages),
            "tag": name,
        }
        _said(self._daemon, target("/tare/images/bootstrap", query), None)


class Client:
    """A connection to one engine; ``with`` closes it."""

    def __init__(self, host: str = "") -> None:
        """Use the socket *host*; "" is the user's own engine, started when none answers."""
        self._daemon = Daemon(host)
        self.containers = Containers(self._daemon)
        self.images = Images(self._daemon)
        self.networks = Networks(self._daemon)
        self.volumes = Volumes(self._daemon)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close what is open; the engine goes on."""
        self._daemon.close()

    def version(self) -> dict[str, Json]:
        """Versions of the daemon."""
        return mapping(self._daemon.call("GET", "/version"))

    def explain(self, name: str) -> dict[str, Json]:
        """Why a container is as it is: ``Why``, ``Advice``, ``Limits``, ``Ports`` ..."""
        return mapping(self._daemon.call("GET", target("/tare/explain", {"name": name})))

    def budget(self) -> dict[str, Json]:
        """What the engine may use of its server, and who holds what."""
        return mapping(self._daemon.call("GET", "/tare/budget"))

    def info(self) -> dict[str, Json]:
        """What the engine is and has."""
        return mapping(self._daemon.call("GET", "/info"))

    def events(self, *, since: str = "", until: str = "") -> Iterator[dict[str, Json]]:
        """What happens; ends at *until*, else never."""
        response = self._daemon.open("GET", target("/events", {"since": since, "until": until}))
        return (mapping(document.decode(line)) for line in response.lines())

    def run(
        self,
        image: str,
        command: Sequence[str] = (),
        *,
        stdin: bytes = b"",
        timeout: float | None = None,
        **options: Unpack[Options],
    ) -> Result:
        """Run *command* in a fresh container, wait, remove it, and tell how it went.

        A program that fails is a Result. A container that cannot be made or started is an error.
        After *timeout* seconds it is killed, and the Result says so.
        """
        if timeout is not None and timeout <= 0:
            raise InvalidError(f"a timeout of {timeout} seconds leaves no time to run")
        body = runspec.create_body(flags_of(options), [image, *command], detached=False)
        body["Name"] = options.get("name", "")
        host = body.setdefault("HostConfig", {})
        assert isinstance(host, dict)
        host["AutoRemove"] = True
        body["AttachStdin"] = body["OpenStdin"] = body["StdinOnce"] = bool(stdin)
        if timeout is not None:  # should we die before our own clock runs out
            body["Tare"] = {"Timeout": timeout + _GRACE_SECONDS}
        began = time.monotonic()
        response = self._daemon.open("POST", "/tare/run", body, upgrade=True)
        collected = _Collected()
        end = None if timeout is None else began + timeout
        timed_out = False
        try:
            _converse(response.connection, collected, stdin, end)
        except TimeoutError:
            timed_out = True
            self._kill(response.headers.get("tare-id", ""))
            _converse(response.connection, collected, b"", time.monotonic() + _GRACE_SECONDS)
        finally:
            response.connection.close()
        return _result(collected, timed_out=timed_out, warnings=streams.warnings(response))

    def _kill(self, identity: str) -> None:
        try:
            self._daemon.call("POST", f"/containers/{identity}/kill")
        except TareError:
            pass  # it ended in the same moment


class _Collected:
    """Output as it comes, kept."""

    def __init__(self) -> None:
        self._out: list[bytes] = []
        self._err: list[bytes] = []
        self.frames = streams.Frames({1: self._out.append, 2: self._err.append})

    def out(self) -> tuple[bytes, bytes]:
        return b"".join(self._out), b"".join(self._err)


def _converse(
    connection: Connection, collected: _Collected, stdin: bytes, end: float | None
) -> None:
    """Give *stdin* and collect what comes; TimeoutError at *end* (by the monotonic clock)."""
    deadline = None if end is None else (lambda: end - time.monotonic())
    source: int | None = None
    if stdin:
        source = os.memfd_create("stdin", os.MFD_CLOEXEC)
        with open(os.dup(source), "wb") as file:
            file.write(stdin)
        os.lseek(source, 0, os.SEEK_SET)
    try:
        streams.pump(connection, collected.frames.feed, stdin=source, deadline=deadline)
    finally:
        if source is not None:
            os.close(source)


def _result(collected: _Collected, *, timed_out: bool, warnings: list[str]) -> Result:
    report = collected.frames.report
    if "StatusCode" not in report:
        raise FailedError(
            "the daemon ended while the container ran", hint="`tare ps` shows what goes on."
        )
    out, err = collected.out()
    counted = {
        key: number(report, "Usage", name) if name in mapping(report, "Usage") else None
        for key, name in (
            ("wall_ns", "WallNs"),
            ("cpu_ns", "CpuNs"),
            ("memory_peak", "MemoryPeak"),
            ("pids_peak", "PidsPeak"),
            ("block_bytes", "BlockBytes"),
        )
    }
    return Result(
        exit_code=number(report, "StatusCode"),
        stdout=out,
        stderr=err,
        oom_killed=flag(report, "OOMKilled"),
        timed_out=timed_out,
        warnings=tuple(warnings),
        error=text(report, "Error"),
        usage=Usage(**counted),
    )


def _labels(each: Json) -> dict[str, str]:
    return {key: text(value) for key, value in mapping(each, "Labels").items()}


def _said(daemon: Daemon, where: str, body: Iterator[bytes] | None) -> list[str]:
    lines = []
    for line in daemon.open("POST", where, body, kind=_TAR).lines():
        entry = document.decode(line)
        if failure := text(entry, "error"):
            raise FailedError(failure, hint=text(entry, "hint"))
        lines.append((text(entry, "stream") or text(entry, "status")).rstrip("\n"))
    return lines


def connect(host: str = "") -> Client:
    """A client of the engine at *host* ("" is the user's own, started when none answers)."""
    return Client(host)


def run(
    image: str,
    command: Sequence[str] = (),
    *,
    stdin: bytes = b"",
    timeout: float | None = None,
    **options: Unpack[Options],
) -> Result:
    """`Client.run` of a client that is made for this one call."""
    with Client() as client:
        return client.run(image, command, stdin=stdin, timeout=timeout, **options)
